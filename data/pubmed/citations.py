"""One file of PubMed XML, plain or gzip, as a stream of citations.

    for element in elements(path):           # PubmedArticle, PubmedBookArticle, DeleteCitation
        record = citation(element, counts)

The parser is expat, of the standard library, feeding a tree of which only the current record is
kept. The file's document type is never fetched: the named characters that PubMed's own declares
(`&alpha;`, those of HTML and MathML) take its place. A file that declares entities of its own is
refused, so none can grow or reach for another file. A file may hold several documents, as `cat`
makes of several files. `Damaged` names the file and the byte.
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
TAIL = 1 << 12  # bytes; the first tag of the next document is shorter
LONGEST_RECORD = 8 << 20  # bytes; the longest of PubMed, with thousands of authors, have a few
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
# what expat says where another document begins; the second at a byte-order mark
AFTER_ROOT = (
    expat.errors.codes[expat.errors.XML_ERROR_JUNK_AFTER_DOC_ELEMENT],
    expat.errors.codes[expat.errors.XML_ERROR_INVALID_TOKEN],
)
PREDEFINED = {"amp;", "lt;", "gt;", "quot;", "apos;"}

# in place of the document type: <!ENTITY alpha "&#945;"> and two thousand more
CHARACTERS = "".join(
    f'<!ENTITY {name[:-1]} "{"".join(f"&#38;#{ord(c)};" for c in text)}">'
    for name, text in html.entities.html5.items()
    if name.endswith(";") and name not in PREDEFINED
).encode()


class Damaged(InputError):
    """A file that cannot be read to its end: its name, the byte, the fault there."""


def elements(path: Path) -> Iterator[Element]:
    """The children of the root element of each document, each child when it is complete.

    Raises:
        Damaged: not well-formed XML, a damaged archive, another kind of document.
    """
    document = XmlDocument(path, 0)
    for chunk in unpacked(path):
        while chunk:
            rest = document.feed(chunk)
            chunk = b""
            if rest is None:
                yield from document.take(slice(0, -1))  # the last child may still grow
                document.check_growth()
            else:  # another document follows
                yield from document.take(slice(None))
                document, chunk = XmlDocument(path, document.end), rest
    document.close()
    yield from document.take(slice(None))


class XmlDocument:
    """One XML document, parsed as its bytes come."""

    def __init__(self, path: Path, start: int):
        """`start`: the byte of the file where it begins."""
        self.path, self.start = path, start
        self.builder = TreeBuilder()
        self.above = self.builder.start("file", {})  # the way to the root before the document ends
        self.parser = make_parser(self.builder, path, start)
        self.n_read = self.n_whole = 0  # bytes, and those when a record was last complete
        self.tail = b""  # the last bytes read: an error may lie before the chunk that shows it

    def feed(self, chunk: bytes) -> bytes | None:
        """Parse more bytes; those from the next document on, or None where none begins here."""
        self.n_read += len(chunk)
        self.tail = (self.tail + chunk)[-max(len(chunk), TAIL) :]
        try:
            self.parse(chunk)
        except expat.ExpatError as error:
            left = self.n_read - self.parser.ErrorByteIndex
            if error.code not in AFTER_ROOT or left > len(self.tail) or not self.is_over():
                raise self.damaged(error) from None
            self.end = self.start + self.parser.ErrorByteIndex
            return self.tail[-left:]
        return None

    def parse(self, chunk: bytes, is_last: bool = False) -> None:
        try:
            self.parser.Parse(chunk, is_last)
        except Damaged:  # from the tree's side
            raise
        except (LookupError, ValueError) as error:  # from the codec that the document names
            raise Damaged(f"{self.path}: byte {self.start:,}: {error}") from None

    def is_over(self) -> bool:
        """Whether the root has ended: a probe then becomes its sibling. Nothing may follow it."""
        self.builder.start("probe", {})
        is_over = len(self.above) > 1
        del self.above[1:]
        return is_over

    def close(self) -> None:
        try:
            self.parse(b"", True)
        except expat.ExpatError as error:
            raise self.damaged(error) from None

    def damaged(self, error: expat.ExpatError) -> Damaged:
        byte = self.start + max(0, self.parser.ErrorByteIndex)
        where = "" if self.start else f" (line {error.lineno}, column {error.offset})"
        return Damaged(f"{self.path}: byte {byte:,}: {expat.ErrorString(error.code)}{where}")

    def take(self, which: slice) -> list[Element]:
        """Children of the root, taken out of it."""
        if not len(self.above):
            return []
        root = self.above[0]
        if root.tag not in ROOTS:
            raise Damaged(
                f"{self.path}: byte {self.start:,}: the root is <{root.tag}>, expected <{ROOTS[0]}>"
            )
        found = root[which]
        del root[which]
        self.n_whole = self.n_read if found else self.n_whole
        return found

    def check_growth(self) -> None:
        """Refuse a record without an end before it fills the memory."""
        if self.n_read - self.n_whole > LONGEST_RECORD:
            raise Damaged(
                f"{self.path}: byte {self.start + self.n_whole:,}: no record ends in the next "
                f"{LONGEST_RECORD >> 20} MiB; is it PubMed XML?"
            )


def make_parser(builder: TreeBuilder, path: Path, start: int):
    """An expat parser that builds the tree, reads no other file and expands no file's entities."""
    parser = expat.ParserCreate()
    parser.buffer_text, parser.buffer_size = True, CHUNK
    parser.StartElementHandler = builder.start
    parser.EndElementHandler = builder.end
    parser.CharacterDataHandler = builder.data

    def refuse(name, *_):
        raise Damaged(
            f"{path}: byte {start + parser.CurrentByteIndex:,}: declares the entity {name}; "
            "PubMed's files declare none, and it could mean anything"
        )

    def document_type(context, *_):
        inner = parser.ExternalEntityParserCreate(context)
        inner.EntityDeclHandler = None
        inner.Parse(CHARACTERS, True)
        return 1

    def unknown(name, *_):
        raise Damaged(f"{path}: byte {start + parser.CurrentByteIndex:,}: undefined entity {name}")

    parser.EntityDeclHandler = refuse
    parser.SkippedEntityHandler = unknown  # not called in attributes: there it reads as nothing
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
        if stream is None:  # between members there may be zeros, which fill up a block
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
    """The number of bytes that can be unpacked before the damage."""
    for i in range(len(packed)):
        try:
            stream.decompress(packed[i : i + 1])
        except zlib.error:
            return i
    return len(packed)


# ---- one record ----


class Record(NamedTuple):
    """One record of a file."""

    pmid: int
    version: int
    citation: dict | None  # as it is written; None: the record has no text


def citation(element: Element, counts: Counter) -> Record | None:
    """A PubmedArticle or PubmedBookArticle as the object to write; None where it has no PMID.

        pmid       digits, as text
        version    1 where the source has none
        title      without the brackets of a translated one; a book's where a chapter has none
        abstract   the sections, joined by a space: "LABEL: text", or the text; "" without any text
        sections   [{"label": ..., "text": ...}], each AbstractText in order, empty ones too
        language   ISO 639-2, of the article; several are joined by a space
        year       of publication, or None

    The vernacular title is left out. An OtherAbstract is left out too; where no abstract has text,
    the first English one with text takes its place.
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
    has_abstract = any(section["text"] for section in sections)
    if not title and not has_abstract:
        return Record(*key, None)
    languages = [readable(language) for language in article.iterfind("Language")]
    return Record(
        *key,
        {
            "pmid": str(key[0]),
            "version": key[1],
            "title": title,
            "abstract": " ".join(filter(None, map(shown, sections))) if has_abstract else "",
            "sections": sections,
            "language": " ".join(filter(None, languages)) or UNDETERMINED,
            "year": year_of(article),
        },
    )


def identity(pmid: Element | None) -> tuple[int, int] | None:
    """(PMID, version) of a PMID element, or None where either is not a number of usual size."""
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
    counts["other abstracts left out"] += len(others)
    own = sections_in(article.find("Abstract"))
    if any(section["text"] for section in own):
        return own
    for other in others:
        sections = sections_in(other)
        # the document type's default language is English
        if other.get("Language", "eng") == "eng" and any(s["text"] for s in sections):
            counts["other abstracts taken"] += 1
            counts["other abstracts left out"] -= 1
            return sections
    return own


def sections_in(abstract: Element | None) -> list[dict]:
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
