"""One file of PubMed XML, plain or gzip, as a stream of citations.

    for element in elements(path):           # PubmedArticle, PubmedBookArticle, DeleteCitation
        record = citation(element, counts)

The parser is expat, of the standard library, feeding a tree of which only the record at hand is
kept. The file's document type is never fetched: in its stead stand the named characters that
PubMed's own declares (`&alpha;`, those of HTML and MathML). A file that declares entities of its
own is refused, so none can grow or reach for another file. `Damaged` names the file and the byte.
"""

import html.entities
import re
import zlib
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple
from xml.etree.ElementTree import Element, TreeBuilder
from xml.parsers import expat

from data.pubmed.markup import even, readable, without_brackets
from minibio.run.errors import InputError

CHUNK = 1 << 17  # bytes read, and unpacked, at once
LONGEST_RECORD = 8 << 20  # bytes; the longest there are, with thousands of authors, have a few
ROOTS = ("PubmedArticleSet", "PubmedBookArticleSet")
DELETIONS = ("DeleteCitation", "DeleteDocument")
UNTITLED = re.compile(r"\[?(not available|in process citation)\]?\.?", re.IGNORECASE)
PMID, VERSION = re.compile(r"[0-9]{1,18}"), re.compile(r"[0-9]{1,4}")
YEAR = re.compile(r"(?<![0-9])[0-9]{4}(?![0-9])")
ISSUE = "Journal/JournalIssue/PubDate"
YEARS = (f"{ISSUE}/Year", f"{ISSUE}/MedlineDate", "Book/PubDate/Year", "Book/PubDate/MedlineDate",
         "ArticleDate/Year", "ContributionDate/Year")  # fmt: skip
UNLABELLED = "UNLABELLED"  # PubMed's word for a section that has no label
UNDETERMINED = "und"  # ISO 639-2, as PubMed itself has it
PREDEFINED = {"amp;", "lt;", "gt;", "quot;", "apos;"}

# stands for the document type: <!ENTITY alpha "&#945;"> and two thousand more
CHARACTERS = "".join(
    f'<!ENTITY {name[:-1]} "{"".join(f"&#38;#{ord(c)};" for c in text)}">'
    for name, text in html.entities.html5.items()
    if name.endswith(";") and name not in PREDEFINED
).encode()


class Damaged(InputError):
    """A file that cannot be read to its end: its name, the byte, what is wrong there."""


def elements(path: Path) -> Iterator[Element]:
    """The children of the root element, each when it is whole.

    Raises:
        Damaged: no well-formed XML, a damaged archive, another kind of document.
    """
    builder = TreeBuilder()
    above = builder.start("file", {})  # the way to the root before the document ends
    parser = make_parser(builder, path)
    n_read = n_whole = 0
    try:
        for chunk in unpacked(path):
            parser.Parse(chunk)
            n_read += len(chunk)
            if len(above) and len(above[0]) > 1:  # the last child may still grow
                yield from take(above[0], path, slice(0, -1))
                n_whole = n_read
            if n_read - n_whole > LONGEST_RECORD:
                raise Damaged(
                    f"{path}: byte {n_whole:,}: no record ends in the next "
                    f"{LONGEST_RECORD >> 20} MiB; is it PubMed XML?"
                )
        parser.Parse(b"", True)
    except expat.ExpatError as error:
        byte, what = max(0, parser.ErrorByteIndex), expat.ErrorString(error.code)
        raise Damaged(
            f"{path}: byte {byte:,}: {what} (line {error.lineno}, column {error.offset})"
        ) from None
    yield from take(above[0], path, slice(None))


def take(root: Element, path: Path, which: slice) -> list[Element]:
    """Children of the root, taken out of it."""
    if root.tag not in ROOTS:
        raise Damaged(f"{path}: byte 0: the root is <{root.tag}>, expected <{ROOTS[0]}>")
    found = root[which]
    del root[which]
    return found


def make_parser(builder: TreeBuilder, path: Path):
    """An expat parser that builds the tree, reads no other file and expands no file's entities."""
    parser = expat.ParserCreate()
    parser.buffer_text, parser.buffer_size = True, CHUNK
    parser.StartElementHandler = builder.start
    parser.EndElementHandler = builder.end
    parser.CharacterDataHandler = builder.data

    def refuse(name, *_):
        raise Damaged(
            f"{path}: byte {parser.CurrentByteIndex:,}: declares the entity {name}; PubMed's files "
            "declare none, and what it stands for could be anything"
        )

    def document_type(context, *_):
        inner = parser.ExternalEntityParserCreate(context)
        inner.EntityDeclHandler = None
        inner.Parse(CHARACTERS, True)
        return 1

    def unknown(name, *_):
        raise Damaged(f"{path}: byte {parser.CurrentByteIndex:,}: undefined entity {name}")

    parser.EntityDeclHandler = refuse
    parser.SkippedEntityHandler = unknown  # not told of in attributes: there it reads as nothing
    parser.ExternalEntityRefHandler = document_type
    parser.SetParamEntityParsing(expat.XML_PARAM_ENTITY_PARSING_ALWAYS)
    parser.UseForeignDTD(True)
    return parser


def unpacked(path: Path) -> Iterator[bytes]:
    """The bytes of a file, unpacked where it is gzip, whatever its name.

    Raises:
        Damaged: it cannot be read, or the archive is damaged; the byte is the archive's.
    """
    try:
        with path.open("rb") as file:
            if file.read(2) == b"\x1f\x8b":
                file.seek(0)
                yield from gunzipped(file, path)
                return
            file.seek(0)
            yield from iter(lambda: file.read(CHUNK), b"")
    except OSError as error:
        raise Damaged(f"{path}: {error.strerror}") from None


def gunzipped(file, path: Path) -> Iterator[bytes]:
    """The bytes packed in a gzip file, of all its members; no more than CHUNK at once."""
    stream, start, packed = None, 0, file.read(CHUNK)  # `packed` begins at byte `start`
    while packed:
        if stream is None:  # between members may stand zeros, which fill up a block
            n_zeros = len(packed) - len(packed.lstrip(b"\0"))
            if n_zeros:
                start, packed = start + n_zeros, packed[n_zeros:] or file.read(CHUNK)
                continue
            stream = zlib.decompressobj(wbits=31)
        before = stream.copy()
        try:
            yield from inflated(stream, packed)
        except zlib.error as error:
            where = start + n_sound(before, packed)
            raise Damaged(f"{path}: byte {where:,} of the archive: {error}; damaged") from None
        rest = stream.unused_data
        if stream.eof:  # another member may follow
            stream = None
        start += len(packed) - len(rest)
        packed = rest or file.read(CHUNK)
    if stream is not None:
        raise Damaged(f"{path}: byte {start:,} of the archive: it ends too early; truncated")


def inflated(stream, packed: bytes) -> Iterator[bytes]:
    while data := stream.decompress(packed, CHUNK):
        yield data
        packed = stream.unconsumed_tail


def n_sound(stream, packed: bytes) -> int:
    """How many bytes can be unpacked before the damage."""
    for i in range(len(packed)):
        try:
            stream.decompress(packed[i : i + 1])
        except zlib.error:
            return i
    return len(packed)


# ---- one record ----


class Record(NamedTuple):
    """What a file says of one PMID."""

    pmid: int
    version: int
    citation: dict | None  # as it is written; None: it has no text


def citation(element: Element, counts: Counter) -> Record | None:
    """A PubmedArticle or PubmedBookArticle as the object to write; None where it has no PMID.

        pmid       digits, as text
        version    1 where the source has none
        title      without the brackets of a translated one; a book's where a chapter has none
        abstract   the sections, joined by a space: "LABEL: text", or text alone
        sections   [{"label": ..., "text": ...}], each AbstractText in order, empty ones too
        language   ISO 639-2, of the article; several are joined by a space
        year       of publication, or None

    The vernacular title is left out. An OtherAbstract is left out too, but for the first English
    one where there is no abstract, whose place it takes.
    """
    is_book = element.tag == "PubmedBookArticle"
    top = element.find("BookDocument" if is_book else "MedlineCitation")
    if top is None:
        return None
    key = identity(top.find("PMID"))
    if key is None:
        return None
    article = top if is_book else top.find("Article")
    if article is None:
        return Record(*key, None)
    title = title_of(article, counts)
    sections = sections_of(article, top, counts)
    if not title and not any(section["text"] for section in sections):
        return Record(*key, None)
    languages = [readable(language) for language in article.iterfind("Language")]
    return Record(
        *key,
        {
            "pmid": str(key[0]),
            "version": key[1],
            "title": title,
            "abstract": " ".join(filter(None, map(shown, sections))),
            "sections": sections,
            "language": " ".join(filter(None, languages)) or UNDETERMINED,
            "year": year_of(article),
        },
    )


def identity(pmid: Element | None) -> tuple[int, int] | None:
    """(PMID, version) of a PMID element, or None where either is no number of usual size."""
    if pmid is None:
        return None
    digits, version = (pmid.text or "").strip(), pmid.get("Version", "1").strip()
    if PMID.fullmatch(digits) and VERSION.fullmatch(version):
        return int(digits), int(version)
    return None


def deleted(element: Element) -> list[tuple[int, int]]:
    """The (PMID, version) that a DeleteCitation or DeleteDocument names."""
    return [key for pmid in element.iterfind("PMID") if (key := identity(pmid))]


def title_of(article: Element, counts: Counter) -> str:
    found = article.find("ArticleTitle")
    title = "" if found is None else readable(found)
    if not title and (book := article.find("Book/BookTitle")) is not None:
        title = readable(book)
    if article.find("VernacularTitle") is not None:
        counts["vernacular titles left out"] += 1
    if UNTITLED.fullmatch(title):
        counts["titles that only say not available"] += 1
        return ""
    return without_brackets(title)


def sections_of(article: Element, top: Element, counts: Counter) -> list[dict]:
    others = top.findall("OtherAbstract")
    abstract = article.find("Abstract")
    if abstract is None:  # the document type's default language is English
        abstract = next((o for o in others if o.get("Language", "eng") == "eng"), None)
        counts["other abstracts taken"] += abstract is not None
        counts["other abstracts left out"] -= abstract is not None
    counts["other abstracts left out"] += len(others)
    return [
        {"label": even(text.get("Label", "")), "text": readable(text)}
        for text in (() if abstract is None else abstract.iterfind("AbstractText"))
    ]


def shown(section: dict) -> str:
    """A section in the abstract; a label with no text is shown too."""
    label, text = section["label"], section["text"]
    if not label or label == UNLABELLED:
        return text
    return f"{label.rstrip(':')}: {text}".strip()


def year_of(article: Element) -> int | None:
    """The first year, in order: of the issue or book, of its free-form date, of the web page."""
    for path in YEARS:
        if (found := YEAR.search(article.findtext(path, ""))) is not None:
            return int(found[0])
    return None
