"""One PubMed file: what is read of each record, against a walk of our own; damage named by byte."""

import gzip
import html
import random
import re
import time
from collections import Counter
from pathlib import Path
from xml.dom import minidom
from xml.etree import ElementTree

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data.pubmed import citations as module
from data.pubmed.citations import Damaged, citation, deleted, elements
from helpers import real_data
from pubmed_files import HEAD, TAIL, article, book, deletion, pubmed_file


def read(path, counts=None):
    counts = Counter() if counts is None else counts
    return [citation(element, counts) for element in elements(path)]


def one(tmp_path, record, counts=None):
    """The citation that comes of one record."""
    return read(pubmed_file(tmp_path / "a.xml", record), counts)[0].citation


# ---- against real files, read in another way: the text of the source, by regular expressions ----


def unpacked(path):
    data = path.read_bytes()
    return gzip.decompress(data) if path.suffix == ".gz" else data


def plain(inner):
    """Inner XML as text, by the rules of data/pubmed/markup.py, on the characters of the source."""
    sign = "[-+\u2212\u2010\u2011\u2013]?"
    inner = re.sub(rf"(\d)<sup>(?={sign}\d)", r"\1^", inner)
    inner = re.sub(r"(\d)(</?su[bp]>)+(?=\d)", r"\1 ", inner)
    return re.sub(r"\s+", " ", html.unescape(re.sub("<[^>]*>", "", inner))).strip()


def first(pattern, text):
    found = re.search(pattern, text, re.DOTALL)
    return found[1] if found else ""


def by_expressions(source):
    for raw in re.findall("<PubmedArticle>.*?</PubmedArticle>", source, re.DOTALL):
        title = plain(first("<ArticleTitle>(.*?)</ArticleTitle>", raw))
        if re.fullmatch(r"\[.*\]\.?", title):
            title = title.replace("[", "", 1)[::-1].replace("]", "", 1)[::-1]
        abstract = first("<Abstract>(.*?)</Abstract>", raw)
        if not abstract:
            abstract = first('<OtherAbstract [^>]*Language="eng">(.*?)</OtherAbstract>', raw)
        sections = [
            (html.unescape(first('Label="(.*?)"', head)), plain(text or ""))
            for head, text in re.findall(
                "<AbstractText([^>]*?)(?:/>|>(.*?)</AbstractText>)", abstract, re.DOTALL
            )
        ]
        date = first("<PubDate>(.*?)</PubDate>", raw)
        yield {
            "pmid": first("<PMID [^>]*>(.*?)</PMID>", raw),
            "version": int(first('<PMID Version="(.*?)"', raw)),
            "title": title,
            "abstract": " ".join(
                f"{label}: {text}".strip() if label else text for label, text in sections
            ),
            "sections": [{"label": label, "text": text} for label, text in sections],
            "language": first("<Language>(.*?)</Language>", raw),
            "year": int(first(r"(\d{4})", date)),
        }


def by_tree(source):
    """(PMID, title, section texts) by a full tree, spaces and the ^ of exponents left out."""

    def characters(node):
        if node.nodeType == node.TEXT_NODE:
            return node.data
        return "".join(map(characters, node.childNodes))

    def bare(node):
        return re.sub(r"[\s^]", "", characters(node))

    for record in minidom.parseString(source).getElementsByTagName("MedlineCitation"):
        texts = record.getElementsByTagName("AbstractText")
        own = [text for text in texts if text.parentNode.tagName == "Abstract"]
        english = [
            text
            for text in texts
            if text.parentNode.tagName == "OtherAbstract"
            and text.parentNode.getAttribute("Language") == "eng"
        ]
        pmid = next(n for n in record.childNodes if n.nodeName == "PMID")
        title = record.getElementsByTagName("ArticleTitle")[0]
        yield bare(pmid), bare(title), [bare(text) for text in own or english]


def real_files():
    return sorted(real_data("pubmed/xml").iterdir())


def test_real_records_equal_another_reading_of_the_source():
    n = 0
    for path in real_files():
        got = [record.citation for record in read(path)]
        assert got == list(by_expressions(unpacked(path).decode()))
        n += len(got)
    assert n == 129


def test_real_records_have_the_characters_of_the_full_tree():
    for path in real_files():
        for record, (pmid, title, sections) in zip(
            read(path), by_tree(unpacked(path)), strict=True
        ):
            assert record.citation["pmid"] == pmid
            bare = re.sub(r"[\s^]", "", record.citation["title"])
            assert bare == re.sub(r"^\[(.*)\](\.?)$", r"\1\2", title)
            texts = [re.sub(r"[\s^]", "", s["text"]) for s in record.citation["sections"]]
            assert texts == sections


def test_real_records_by_hand():
    """Four records, typed from the source."""
    found = {r.citation["pmid"]: r.citation for path in real_files() for r in read(path)}
    aim = found["27797938"]
    assert [s["label"] for s in aim["sections"]] == [
        "OBJECTIVE",
        "DESIGN",
        "RESULTS",
        "CONCLUSIONS",
    ]
    assert "(linkage disequilibrium r2<0.25)" in aim["abstract"]
    assert "TERT gene region" in aim["title"]
    assert found["28775130"]["abstract"].count("ptrend") == 8
    empty = next(c for c in found.values() if {"label": "METHODS", "text": ""} in c["sections"])
    assert "AIM: abstract 1 METHODS: DESIGN: abstract 3" in empty["abstract"]
    translated = [c for c in found.values() if c["language"] == "ger"]
    assert len(translated) == 3
    assert all(c["title"][0] != "[" and c["title"].endswith(".") for c in translated)


# ---- the rules ----


def test_a_record_in_full(tmp_path):
    record = article(
        12, "On <i>E. coli</i>.", (("AIM", "To  see\n10<sup>5</sup>."), ("", "Seen &amp; told.")), 2
    )
    assert one(tmp_path, record) == {
        "pmid": "12",
        "version": 2,
        "title": "On E. coli.",
        "abstract": "AIM: To see 10^5. Seen & told.",
        "sections": [
            {"label": "AIM", "text": "To see 10^5."},
            {"label": "", "text": "Seen & told."},
        ],
        "language": "eng",
        "year": 2020,
    }


@pytest.mark.parametrize(
    ("title", "expected"),
    [
        ("[Zinc in rats].", "Zinc in rats."),
        ("[Zinc in rats.]", "Zinc in rats."),
        ("[ Zinc ]", "Zinc"),
        ("[Zinc [65] in rats (author's transl)].", "Zinc [65] in rats (author's transl)."),
        ("[18F]FDG in mice.", "[18F]FDG in mice."),
        ("[A] and [B].", "[A] and [B]."),
        ("[Never closed.", "[Never closed."),
        ("Zinc [65].", "Zinc [65]."),
        ("[Not Available].", ""),
        ("[In process citation]", ""),
        ("Not available in shops.", "Not available in shops."),
        ("[]", ""),
    ],
)
def test_titles(tmp_path, title, expected):
    assert one(tmp_path, article(1, title))["title"] == expected


@pytest.mark.parametrize(
    ("label", "text", "expected"),
    [
        ("AIM", "x", "AIM: x"),
        ("AIM:", "x", "AIM: x"),
        ("AIM", "", ""),
        ("UNLABELLED", "x", "x"),
        ("MATERIALS &amp;  METHODS", "x", "MATERIALS & METHODS: x"),
        ("&beta; CELLS", "x", "β CELLS: x"),
    ],
)
def test_labels(tmp_path, label, text, expected):
    assert one(tmp_path, article(1, "T", ((label, text),)))["abstract"] == expected


def test_an_unlabelled_section_keeps_its_label_in_the_list(tmp_path):
    sections = one(tmp_path, article(1, "T", (("UNLABELLED", "x"),)))["sections"]
    assert sections == [{"label": "UNLABELLED", "text": "x"}]


@pytest.mark.parametrize(
    ("date", "year"),
    [
        ("<Year>2001</Year><Month>Jan</Month>", 2001),
        ("<MedlineDate>1998 Dec-1999 Jan</MedlineDate>", 1998),
        ("<MedlineDate>Winter 1976</MedlineDate>", 1976),
        ("<MedlineDate>undated</MedlineDate>", None),
        ("<Season>Fall</Season>", None),
    ],
)
def test_years(tmp_path, date, year):
    assert one(tmp_path, article(1, date=date))["year"] == year


def test_languages(tmp_path):
    assert one(tmp_path, article(1, language="eng fre"))["language"] == "eng fre"
    assert one(tmp_path, article(1, language=""))["language"] == "und"


def test_vernacular_titles_and_other_abstracts(tmp_path):
    def other(language, text):
        code = f' Language="{language}"' if language else ""
        return (
            f'<OtherAbstract Type="PIP"{code}><AbstractText>{text}</AbstractText></OtherAbstract>'
        )

    both = other("fre", "Un.") + other("eng", "One.") + other("eng", "Two.")
    counts = Counter()
    assert one(tmp_path, article(1, others=both), counts)["abstract"] == "Text of it."
    assert counts == {"other abstracts left out": 3}
    counts.clear()
    assert one(tmp_path, article(1, sections=(), others=both), counts)["abstract"] == "One."
    assert counts == {"other abstracts left out": 2, "other abstracts taken": 1}
    assert one(tmp_path, article(1, sections=(), others=other("", "So.")))["abstract"] == "So."
    for empty in ((("", ""),), (("AIM", ""), ("", " ")), (("AIM", "<i> </i>"),)):
        counts.clear()
        found = one(tmp_path, article(1, sections=empty, others=both), counts)
        assert found["abstract"] == "One." and len(found["sections"]) == 1
        assert counts == {"other abstracts left out": 2, "other abstracts taken": 1}
        found = one(tmp_path, article(1, sections=empty, others=other("fre", "Un.")))
        assert found["abstract"] == "" and len(found["sections"]) == len(empty)
    later = other("eng", "") + other("eng", " ") + other("eng", "Text.")
    assert one(tmp_path, article(1, sections=(), others=later))["abstract"] == "Text."
    assert one(tmp_path, article(1, others=both))["abstract"] == "Text of it."
    assert one(tmp_path, article(1, sections=(), others=other("fre", "Un.")))["abstract"] == ""
    counts.clear()
    assert one(tmp_path, article(1, "[T]", vernacular="Der T"), counts)["title"] == "T"
    assert counts["vernacular titles left out"] == 1


def test_titles_that_are_none_are_counted_once(tmp_path):
    records = [
        article(i, title) for i, title in enumerate(("[Not Available].", "[In process]", ""))
    ]
    counts = Counter()
    read(pubmed_file(tmp_path / "a.xml", *records, article(9, "[Not available]")), counts)
    assert +counts == {"titles that only say not available": 2}


def test_books(tmp_path):
    found = one(tmp_path, book(5))
    assert (found["pmid"], found["title"], found["year"]) == ("5", "A chapter.", 2011)
    assert (found["abstract"], found["language"]) == ("Of a book.", "eng")
    assert one(tmp_path, book(5, title=""))["title"] == "The book"


def test_what_has_no_text_or_no_number(tmp_path):
    path = pubmed_file(
        tmp_path / "a.xml",
        article(1, "", ()),
        article(2, " ", (("AIM", " "),)),
        article("x"),
        article(""),
        article(3, version="first"),
        "<PubmedArticle><MedlineCitation><PMID>4</PMID></MedlineCitation></PubmedArticle>",
        "<PubmedArticle/>",
        article("9" * 19),
    )
    found = [record and (record.pmid, record.version, record.citation) for record in read(path)]
    assert found == [(1, 1, None), (2, 1, None), None, None, None, (4, 1, None), None, None]


def test_deletions(tmp_path):
    path = pubmed_file(tmp_path / "a.xml", deletion(3, "x", 5))
    assert [deleted(element) for element in elements(path)] == [[(3, 1), (5, 1)]]


# ---- characters and entities ----


def test_named_characters_of_the_document_type(tmp_path):
    text = "&alpha;&nbsp;&NotEqualTilde; &#x3b2; &#946; &LT;"
    assert one(tmp_path, article(1, text))["title"] == "α ≂̸ β β <"


def test_named_characters_need_no_document_type(tmp_path):
    path = tmp_path / "a.xml"
    path.write_text(f"<PubmedArticleSet>{article(1, '&Delta;F')}</PubmedArticleSet>")
    assert read(path)[0].citation["title"] == "ΔF"


@pytest.mark.parametrize("encoding", ["uvf-8", "base64", "shift_jis", "idna", "x\u00e9"])
def test_an_encoding_that_cannot_be_read_is_one_line(tmp_path, encoding):
    """Unknown to Python, not of text, of several bytes a letter, without a table."""
    text = f'<?xml version="1.0" encoding="{encoding}"?><PubmedArticleSet>{article(1, "x")}{TAIL}'
    path = tmp_path / "a.xml"
    path.write_bytes(text.encode())
    with pytest.raises(Damaged, match=r"a\.xml: byte \d+") as caught:
        list(elements(path))
    assert "\n" not in str(caught.value)


def test_other_encodings(tmp_path):
    for encoding in ("utf-16", "iso-8859-1"):
        text = f'<?xml version="1.0" encoding="{encoding}"?><PubmedArticleSet>{article(1, "é")}'
        path = tmp_path / "a.xml"
        path.write_bytes((text + TAIL).encode(encoding))
        assert read(path)[0].citation["title"] == "é"


LAUGHS = "".join(f'<!ENTITY l{i} "{f"&l{i - 1};" * 10}">' for i in range(1, 30))


@pytest.mark.parametrize(
    "declared",
    [
        '<!ENTITY l0 "ha">' + LAUGHS,
        '<!ENTITY l29 SYSTEM "file:///etc/passwd">',
        '<!ENTITY % l29 SYSTEM "http://localhost:1/x.dtd"> %l29;',
        '<!ENTITY l29 "harmless">',
    ],
)
def test_a_file_may_declare_no_entities(tmp_path, declared):
    path = tmp_path / "a.xml"
    path.write_text(
        f"<!DOCTYPE PubmedArticleSet [{declared}]><PubmedArticleSet>"
        f"{article(1, '&l29;')}</PubmedArticleSet>"
    )
    with pytest.raises(Damaged, match=r"a\.xml: byte \d+: declares the entity l"):
        read(path)


def test_no_other_file_is_read(tmp_path):
    """Neither the document type's nor any other address is opened."""
    dtd = tmp_path / "evil.dtd"
    dtd.write_text('<!ENTITY secret "told">')
    path = tmp_path / "a.xml"
    head = HEAD.replace("http://dtd.nlm.nih.gov/ncbi/pubmed/out/pubmed_250101.dtd", dtd.as_uri())
    path.write_text(head + article(1, "&secret;") + TAIL)
    with pytest.raises(Damaged, match="undefined entity"):
        read(path)


# ---- damage ----


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b"", "byte 0: no element found"),
        (b"not XML", r"byte 0: syntax error"),
        (b"<html><body/></html>", "byte 0: the root is <html>, expected <PubmedArticleSet>"),
        (b"<html>" + b"<a>x</a>" * 9 + b"</html>", "root is <html>"),
        (b"<PubmedArticleSet><a></b></PubmedArticleSet>", r"byte 23: mismatched tag"),
        (b"<PubmedArticleSet><a>", "byte 21: no element found"),
        (b"<PubmedArticleSet/>\nrubbish", "byte 20: syntax error"),
        (b"<PubmedArticleSet/>\n<PubmedArticleSet>", "byte 38: no element found"),
        (b"<PubmedArticleSet/>\n<html/>", "byte 20: the root is <html>"),
        (b"<PubmedArticleSet/>\n</PubmedArticleSet>", "byte 21: not well-formed"),
        (b"<PubmedArticleSet/>\n\0\0", "byte 20: not well-formed"),
        (b"<PubmedArticleSet/>\n<PubmedArticleSet>&x;</PubmedArticleSet>", "byte 38: undefined"),
        (b"<PubmedArticleSet>\xff</PubmedArticleSet>", "byte 18: not well-formed"),
    ],
)
def test_damaged_xml_is_named_with_its_byte(tmp_path, text, message):
    path = tmp_path / "a.xml"
    path.write_bytes(text)
    with pytest.raises(Damaged, match=rf"a\.xml: .*{message}"):
        read(path)
    path.write_bytes(gzip.compress(text))
    with pytest.raises(Damaged, match=message):
        read(path)


HEADS = [
    "",
    "\ufeff",
    '<?xml version="1.0"?>',
    HEAD.removesuffix("<PubmedArticleSet>\n"),
    '<!-- a note --><?xml-stylesheet href="x"?>\n<!DOCTYPE PubmedArticleSet>',
]


@pytest.mark.parametrize("second", HEADS)
@pytest.mark.parametrize("first", HEADS)
@pytest.mark.parametrize("chunk", [1, 7, 1 << 17])
def test_several_documents_in_one_file_are_read(tmp_path, monkeypatch, first, second, chunk):
    """As `cat` makes of several files, plain or packed; the bytes named are the file's."""
    monkeypatch.setattr(module, "CHUNK", chunk)
    texts = [
        f"{head}<PubmedArticleSet>{records}</PubmedArticleSet>{end}".encode()
        for head, records, end in (
            (first, article(1, "&beta;") + article(2), "\n<!-- end -->\n"),
            (second, deletion(3), ""),
            (second, book(4), "\n\n"),
        )
    ]
    for name, parts in (("a.xml", texts), ("a.xml.gz", map(gzip.compress, texts))):
        (tmp_path / name).write_bytes(b"".join(parts))
        found = list(elements(tmp_path / name))
        assert [e.tag for e in found] == ["PubmedArticle"] * 2 + ["DeleteCitation",
                                                                  "PubmedBookArticle"]  # fmt: skip
        pmids = [citation(e, Counter()).pmid for e in found if e.tag != "DeleteCitation"]
        assert pmids == [1, 2, 4]
    texts[2] = texts[2].replace(b"</BookDocument>", b"</Bookdocument>")
    (tmp_path / "a.xml").write_bytes(b"".join(texts))
    with pytest.raises(Damaged) as found:
        read(tmp_path / "a.xml")
    byte = b"".join(texts).index(b"</Bookdocument>") + 2  # of the name in the end tag
    assert f"byte {byte:,}: mismatched tag" in str(found.value)


def test_an_empty_set_is_no_damage(tmp_path):
    assert read(pubmed_file(tmp_path / "a.xml")) == []


PACKED = gzip.compress(
    (HEAD + "".join(article(i, f"Title {i * i}.") for i in range(20)) + TAIL).encode(), mtime=0
)


@settings(derandomize=True, deadline=None)
@given(st.integers(2, len(PACKED) - 1))
def test_a_truncated_archive_is_named_with_its_byte(tmp_path_factory, n):
    path = tmp_path_factory.mktemp("cut") / "a.xml.gz"
    path.write_bytes(PACKED[:n])
    with pytest.raises(Damaged) as found:
        read(path)
    assert f"byte {n:,} of the archive: it ends too early" in str(found.value)


def test_a_damaged_archive_is_named_with_its_byte(tmp_path):
    path = tmp_path / "a.xml.gz"
    data = bytearray(PACKED)
    data[-8] ^= 1  # of the checksum, which the last byte of four completes
    path.write_bytes(data)
    with pytest.raises(Damaged, match=rf"byte {len(data) - 5:,} of the archive: .*data check"):
        read(path)
    path.write_bytes(PACKED + b"\0" * 99)
    assert len(read(path)) == 20
    path.write_bytes(PACKED + b"\0" * 99 + b"rubbish")
    with pytest.raises(Damaged, match=rf"byte {len(PACKED) + 100:,} of the archive: .*header"):
        read(path)


@pytest.mark.parametrize("chunk", [1, 16, 1 << 17])
def test_archives_of_several_members(tmp_path, monkeypatch, chunk):
    """With zeros between them, as from a tape, more than are read at once."""
    monkeypatch.setattr(module, "CHUNK", chunk)
    text = gzip.decompress(PACKED)
    path = tmp_path / "a.xml.gz"
    path.write_bytes(
        (b"\0" * 50).join(gzip.compress(text[i : i + 999]) for i in range(0, len(text), 999))
    )
    assert len(read(path)) == 20


@settings(derandomize=True, deadline=None, max_examples=25)
@given(st.integers(0, 10**9), st.sampled_from([1, 7, 64, 1000]))
def test_the_chunks_make_no_difference(tmp_path_factory, seed, chunk):
    rng = random.Random(seed)
    records = "".join(article(i, "β" * rng.randrange(9), version=2) for i in range(5))
    folder = tmp_path_factory.mktemp("chunks")
    expected = read(pubmed_file(folder / "a.xml", records, deletion(3)))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "CHUNK", chunk)
        assert read(folder / "a.xml") == expected
        assert read(pubmed_file(folder / "a.xml.gz", records, deletion(3))) == expected


WHOLE = (HEAD + article(1, "One <i>β</i>.") + book(2) + deletion(3) + TAIL).encode()


@settings(derandomize=True, deadline=None, max_examples=300)
@given(st.data())
def test_fuzzed_files_are_read_or_named(tmp_path_factory, data):
    """Cut, overwritten, or with something put in: records, or one error with file and byte."""
    damaged = bytearray(WHOLE)
    for _ in range(data.draw(st.integers(1, 3))):
        i = data.draw(st.integers(0, len(damaged)))
        j = i + data.draw(st.integers(0, 30))
        damaged[i:j] = data.draw(st.binary(max_size=9) | st.sampled_from([b"<", b"&x;", b"]]>"]))
    is_packed = data.draw(st.booleans())
    path = tmp_path_factory.getbasetemp() / "fuzzed.xml"
    path.write_bytes(gzip.compress(damaged, 1) if is_packed else damaged)
    try:
        read(path)
    except Damaged as damage:
        assert re.match(r"\S*/fuzzed\.xml: byte [\d,]+( of the archive)?: ", str(damage))
        byte = int(re.search(r"byte ([\d,]+)", str(damage))[1].replace(",", ""))
        assert 0 <= byte <= len(damaged)


@settings(derandomize=True, deadline=None)
@given(st.integers(0, len(WHOLE.rstrip()) - 1))
def test_a_truncated_file_is_never_taken_for_whole(tmp_path_factory, n):
    path = tmp_path_factory.getbasetemp() / "cut.xml"
    path.write_bytes(WHOLE[:n])
    with pytest.raises(Damaged, match=r"cut\.xml: byte"):
        read(path)


@settings(derandomize=True, deadline=None, max_examples=100)
@given(st.data())
def test_fuzzed_archives_are_read_or_named(tmp_path_factory, data):
    damaged = bytearray(PACKED)
    i = data.draw(st.integers(2, len(damaged) - 1))
    damaged[i] ^= data.draw(st.integers(1, 255))
    path = tmp_path_factory.getbasetemp() / "fuzzed.xml.gz"
    path.write_bytes(damaged)
    try:
        assert len(read(path)) == 20  # a bit of the header's that says nothing
        assert i < 10
    except Damaged as damage:
        assert re.match(r"\S*/fuzzed\.xml\.gz: byte [\d,]+( of the archive)?: ", str(damage))


@pytest.mark.parametrize("filling", ["x" * 999, "<i/>" * 250, "<i>" * 333])
def test_a_record_without_end_is_refused(tmp_path, monkeypatch, filling):
    monkeypatch.setattr(module, "LONGEST_RECORD", 1 << 20)
    path = tmp_path / "a.xml.gz"
    text = HEAD + article(1) + article(2).partition("Text of")[0] + filling * 3000
    path.write_bytes(gzip.compress(text.encode(), 1))
    with pytest.raises(Damaged, match="no record ends in the next 1 MiB"):
        read(path)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(Damaged, match="a.xml: No such file"):
        read(tmp_path / "a.xml")


# ---- speed ----


def large(path: Path, size: int) -> Path:
    """The real records over and over, uncompressed, about `size` bytes."""
    bodies = b"".join(
        first("(<PubmedArticle>.*</PubmedArticle>)", unpacked(p).decode()).encode()
        for p in real_files()
    )
    path.write_bytes(HEAD.encode() + bodies * (size // len(bodies)) + TAIL.encode())
    return path


def seconds(function):
    began = time.process_time()
    function()
    return time.process_time() - began


@pytest.mark.slow
def test_half_the_speed_of_a_bare_loop_or_more(tmp_path):
    path = large(tmp_path / "a.xml", 20 << 20)

    def bare():
        for _, element in ElementTree.iterparse(path):
            element.clear()

    times = [(seconds(bare), seconds(lambda: read(path))) for _ in range(3)]
    bare_time, our_time = map(min, zip(*times, strict=True))
    print(f"bare iterparse {20 / bare_time:.1f} MiB/s, the parser {20 / our_time:.1f} MiB/s")
    assert our_time <= 2 * bare_time
