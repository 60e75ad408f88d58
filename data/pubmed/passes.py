"""The two passes over one file of PubMed, and the files that come of it.

The first pass parses the XML, into a file of all its citations and an index of their PMIDs; the
second leaves out what does not count when all files are read. Each notes what it read and wrote in
a small JSON file, written last: a pass whose note fits what is there is not run again. A pass is
one call, for any process to make.
"""

import gzip
import io
import json
import lzma
import os
import shutil
import zlib
from collections import Counter
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from data.pubmed import index
from data.pubmed.citations import DELETIONS, Damaged, Record, citation, deleted, elements
from minibio.run import fingerprint
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
    """The records that are written, and their form; one directory has one set of options."""

    format: str = "gz"
    title_only: bool = True
    books: bool = True
    languages: tuple[str, ...] = ()  # empty: all


class Source:
    """An input file, and the files that come of it.

    Attributes:
        result:    the citations that count, for the user.
        citations: all citations of the file, and
        index:     its events: what the first pass writes.
        note:      says what the passes read and wrote.
    """

    def __init__(self, path: Path, stem: str, out: Path, ending: str):
        self.path, self.stem, self.out = path, stem, out
        self.result = out / f"{stem}{ending}"
        self.citations = out / "parsed" / f"{stem}{ending}"
        self.index = out / "parsed" / f"{stem}.index"
        self.note = out / "parsed" / f"{stem}.json"

    def noted(self) -> dict:
        """The note; empty where there is none, or it is damaged."""
        try:
            note = read_json(self.note)
        except InputError:
            return {}
        return note if note.pop("check", None) == fingerprint.of_parts(note) else {}

    def write(self, note: dict) -> None:
        note = json.loads(json.dumps(note))  # as it will be read again
        write_json(self.note, note | {"check": fingerprint.of_parts(note)})

    def is_parsed(self) -> bool:
        note = self.noted()
        return (
            bool(note)
            and note["input"] == fingerprint.of_state(self.path)
            and note["parsed"] == self.parsed()
        )

    def is_selected(self, fates: np.ndarray | None = None) -> bool:
        """Whether the second pass is done, with these fates where some are given."""
        note = self.noted()
        if "selected" not in note or note["selected"] != size(self.result):
            return False
        return fates is None or note["fates"] == fingerprint.of_parts(fates)

    def parsed(self) -> list:
        """The output of the first pass, to be compared."""
        events = self.index.read_bytes() if self.index.exists() else None
        return [size(self.citations), fingerprint.of_parts(events)]

    def remove(self) -> None:
        for path in (self.note, self.result, self.citations, self.index):
            path.unlink(missing_ok=True)


def size(path: Path) -> int | None:
    """Bytes of a file; None where there is none."""
    return path.stat().st_size if path.exists() else None


# ---- the two passes, a file each ----


def parse(options: Options, source: Source) -> str | None:
    """Write the citations and the index of one file; a message where it is damaged."""
    source.remove()
    before, counts, events = fingerprint.of_state(source.path), Counter(), bytearray()
    try:
        with writer(source.citations) as lines:
            for element in elements(source.path):
                if element.tag in DELETIONS:
                    for key in deleted(element):
                        events += index.PACKED.pack(*key, index.DELETION)
                        counts["deletions"] += 1
                    continue
                counts["records"] += 1
                record = citation(element, counts) if element.tag in RECORDS else None
                reason = why_skipped(element.tag, record, options)
                if record is not None:
                    kind = index.SKIPPED if reason else index.WRITTEN
                    events += index.PACKED.pack(record.pmid, record.version, kind)
                if reason:
                    counts[f"skipped: {reason}"] += 1
                else:
                    tally(record.citation, counts, 1)
                    lines.write(json.dumps(record.citation, ensure_ascii=False).encode() + b"\n")
    except Damaged as damage:
        return str(damage)
    except RecursionError:
        return f"{source.path}: record {counts['records']:,} has markup nested hundreds deep"
    with staged_file(source.index) as staged:
        staged.write_bytes(events)
    source.write({"input": before, "parsed": source.parsed(), "counts": counts})
    return None


def why_skipped(tag: str, record: Record | None, options: Options) -> str | None:
    """The reason to leave a record out; None where it is written."""
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


def select(job: tuple[Source, np.ndarray]) -> None:
    """Write those citations of one file that count.

    Args:
        job: the file, and the fate of each of its lines.
    Raises:
        InputError: the file of its citations is damaged.
    """
    source, fates = job
    note = {name: source.noted()[name] for name in ("input", "parsed", "counts")}
    source.write(note)  # the second pass is not done until it is noted again
    counts = Counter(note["counts"])
    if (fates == index.KEPT).all():
        with staged_file(source.result) as staged:
            link(source.citations, staged)
    else:
        try:
            with reader(source.citations) as lines, writer(source.result) as out:
                for line, fate in zip(lines, fates.tolist(), strict=True):
                    if fate == index.KEPT:
                        out.write(line)
                    else:
                        counts[DROPPED[fate]] += 1
                        tally(json.loads(line), counts, -1)
        except (
            ValueError, LookupError, TypeError, RecursionError,  # of a line that is not a citation
            EOFError, gzip.BadGzipFile, lzma.LZMAError, zlib.error,
        ) as error:  # fmt: skip
            source.remove()
            raise InputError(f"{source.citations} was damaged ({error}); run again") from None
    source.write(
        note
        | {"fates": fingerprint.of_parts(fates), "selected": size(source.result), "totals": counts}
    )


def link(old: Path, new: Path) -> None:
    """A second name for a file; a copy where the file system has no such thing."""
    new.unlink(missing_ok=True)
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
