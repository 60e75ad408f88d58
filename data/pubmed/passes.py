"""The two passes over one file of PubMed, and the files it gives: for data/pubmed/pubmed.py.

The first pass parses the XML, into a file of all its citations and an index of their PMIDs; the
second leaves out what no longer stands when all files are read. Each ends with a record of what it
read and wrote, a small JSON file written last: a pass whose record fits what is there is not done
again. A pass is one call, for any process to make.
"""

import gzip
import io
import json
import lzma
import os
import shutil
from collections import Counter
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from data.pubmed import index as index
from data.pubmed.citations import DELETIONS, Damaged, Record, citation, deleted, elements
from minibio.run.errors import InputError
from minibio.run.files import read_json, staged_file, write_json

RECORDS = ("PubmedArticle", "PubmedBookArticle")
BUFFER = 1 << 18  # bytes
DROPPED = {
    index.DELETED: "dropped: deleted",
    index.OLDER: "dropped: older version",
    index.DUPLICATE: "dropped: same version again",
}


@dataclass(frozen=True)
class Options:
    """What is written; one directory has one set of them."""

    format: str = "gz"
    title_only: bool = True
    books: bool = True
    languages: tuple[str, ...] = ()  # empty: all


@dataclass(frozen=True)
class Source:
    """An input file, and the files that come of it."""

    path: Path
    stem: str
    out: Path
    ending: str

    @property
    def citations(self) -> Path:
        return self.out / "parsed" / f"{self.stem}{self.ending}"

    @property
    def index(self) -> Path:
        return self.out / "parsed" / f"{self.stem}.index"

    @property
    def parsed(self) -> Path:
        """The record of the first pass, written last: it says that the other two are whole."""
        return self.out / "parsed" / f"{self.stem}.parsed.json"

    @property
    def result(self) -> Path:
        return self.out / f"{self.stem}{self.ending}"

    @property
    def selected(self) -> Path:
        """The record of the second pass, written last."""
        return self.out / "parsed" / f"{self.stem}.selected.json"

    def remove(self) -> None:
        for path in (self.parsed, self.selected, self.result, self.citations, self.index):
            path.unlink(missing_ok=True)


def identity(path: Path) -> dict:
    stat = path.stat()
    return {"bytes": stat.st_size, "mtime_ns": stat.st_mtime_ns}


def sizes(*paths: Path) -> list[int]:
    """Bytes of each file, -1 where there is none."""
    return [path.stat().st_size if path.exists() else -1 for path in paths]


def record_in(path: Path) -> dict:
    """What a pass noted of a file; nothing where it did not, or the note cannot be read."""
    try:
        return read_json(path)
    except InputError:
        return {}


def is_parsed(source: Source) -> bool:
    record = record_in(source.parsed)
    return record.get("input") == identity(source.path) and record.get("bytes") == sizes(
        source.citations, source.index
    )


def is_selected(source: Source, fates: index.Span) -> bool:
    record = record_in(source.selected)
    return (
        record.get("parsed") == record_in(source.parsed)
        and record.get("fates") == fates.digest()
        and record.get("bytes") == sizes(source.result)
    )


# ---- the two passes, a file each ----


def parse(source: Source, options: Options) -> str | None:
    """Write the citations and the index of one file; a message where it is damaged."""
    source.remove()
    counts = Counter()
    before = identity(source.path)
    try:
        with (
            staged_file(source.index) as staged,
            staged.open("wb") as events,
            writer(source.citations) as lines,
        ):
            for element in elements(source.path):
                if element.tag in DELETIONS:
                    for pmid, version in deleted(element):
                        events.write(index.pack(pmid, version, index.DELETION))
                        counts["deletions"] += 1
                    continue
                counts["records"] += 1
                record = citation(element, counts) if element.tag in RECORDS else None
                reason = why_skipped(element.tag, record, options)
                if record is not None:
                    kind = index.SKIPPED if reason else index.WRITTEN
                    events.write(index.pack(record.pmid, record.version, kind))
                if reason:
                    counts[f"skipped: {reason}"] += 1
                    continue
                tally(record.citation, counts, 1)
                lines.write(json.dumps(record.citation, ensure_ascii=False).encode() + b"\n")
    except Damaged as damage:
        return str(damage)
    except RecursionError:
        return f"{source.path}: record {counts['records']:,} has markup nested hundreds deep"
    write_json(
        source.parsed,
        {"input": before, "bytes": sizes(source.citations, source.index), "counts": counts},
    )
    return None


def why_skipped(tag: str, record: Record | None, options: Options) -> str | None:
    """Why a record is not written; None where it is."""
    if tag not in RECORDS:
        return "neither article nor book"
    if record is None:
        return "no PMID, or no number"
    if tag == "PubmedBookArticle" and not options.books:
        return "book"
    if record.citation is None:
        return "no text"
    if not record.citation["abstract"] and not options.title_only:
        return "title only"
    languages = record.citation["language"].split()
    if options.languages and not set(languages) & set(options.languages):
        return "other language"
    return None


def tally(citation: dict, counts: Counter, sign: int) -> None:
    """Add a written citation to the counts, or take it away."""
    counts["citations"] += sign
    counts["title only"] += sign * (not citation["abstract"])
    counts["sections"] += sign * len(citation["sections"])
    counts["characters"] += sign * (len(citation["title"]) + len(citation["abstract"]))
    counts[f"language: {citation['language']}"] += sign


def select(source: Source, fates: index.Span) -> None:
    """Write those citations of one file that stand."""
    record = read_json(source.parsed)
    counts = Counter(record["counts"])
    for path in (source.selected, source.result):  # a link would not replace its own other name
        path.unlink(missing_ok=True)
    if all(fate == index.STANDS for fate in fates.of_lines(source.index)):
        with staged_file(source.result) as staged:
            link(source.citations, staged)
    else:
        with reader(source.citations) as lines, writer(source.result) as out:
            for line, fate in zip(lines, fates.of_lines(source.index), strict=True):
                if fate == index.STANDS:
                    out.write(line)
                else:
                    counts[DROPPED[fate]] += 1
                    tally(json.loads(line), counts, -1)
    write_json(
        source.selected,
        {
            "parsed": record, "fates": fates.digest(), "bytes": sizes(source.result),
            "counts": counts,
        },
    )  # fmt: skip


def link(old: Path, new: Path) -> None:
    """A second name for a file; a copy where the file system knows no such thing."""
    try:
        os.link(old, new)
    except OSError:
        shutil.copyfile(old, new)


@contextmanager
def writer(path: Path):
    """A file of lines, packed as its name says; the same bytes for the same lines."""
    with staged_file(path) as staged, staged.open("wb") as raw:
        if path.name.endswith(".gz"):
            file = gzip.GzipFile("", "wb", 6, raw, mtime=0)
        elif path.name.endswith(".xz"):
            file = lzma.LZMAFile(raw, "wb", preset=3)  # 32 MB of memory; 6 takes 94
        else:
            file = raw
        with io.BufferedWriter(file, BUFFER) as lines:
            yield lines


def reader(path: Path):
    opener = {".gz": gzip.open, ".xz": lzma.open}.get(path.suffix, open)
    return opener(path, "rb")
