"""Answers written down: JSON lines, PubTator, brat, CoNLL; a file or folder whole or not there.

    json       a line for each line; the answer as `Predictor` makes it
    pubtator   ID|t|title, ID|a|abstract, ID TAB start TAB end TAB mention TAB type, a blank line
    brat       a folder of ID.txt, the text as it is, and ID.ann: T1 TAB type start end TAB mention
    words      the lines as they came, with a column of tags, whatever the format

Offsets are the same in all: characters of the document's text, which are Python's, so that one
beyond the 16-bit plane counts one. PubTator is made of lines and tabs: there each tab and line end
within a text is a space, which moves nothing. brat has no mention over a line end: such a one has a
fragment for each line. ID is the document's pmid, else its id, else the number of its line.
"""

import json
import os
import re
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import IO

from minibio.run.errors import InputError
from minibio.run.files import remove, staged_dir, staged_file
from minibio.tasks.documents import Document, Item, Words

FORMATS = {"json": ".jsonl", "pubtator": ".pubtator", "brat": ""}  # and endings of their outputs
TAGGED = ".conll"  # ending of words with tags
BREAKS = "\t\n\v\f\r\x1c\x1d\x1e\x85\u2028\u2029"
SPACES = dict.fromkeys(map(ord, BREAKS), " ")
LONGEST_NAME = 240  # bytes of a file's name, with its ending


def as_text(item: Item | None, answer: dict, format: str, name: str) -> str:
    """An answer as it is in a file.

    Args:
        format: json | pubtator.
        name:   of the input, for a complaint.
    Raises:
        InputError: the format cannot hold it.
    """
    if isinstance(item, Words):
        check_format(format, name)
        between = "\t" if item.by_tabs else " "
        tags = answer["tags"] or [None] * len(item.lines)
        rows = zip(item.lines, tags, strict=True)
        return "".join(line + (between + tag if tag else "") + "\n" for line, tag in rows)
    if format == "json":
        return json.dumps(answer, ensure_ascii=False, allow_nan=False) + "\n"
    return pubtator(item, answer, name) if item and item.text.strip() else ""


def check_format(format: str, name: str) -> None:
    """Refuse words a line in a format of offsets."""
    if format != "json":
        raise InputError(f"{name} is a word a line, without offsets; drop --format {format}")


def id_of(document: Document, name: str) -> str:
    """The name of a document in PubTator and brat.

    Raises:
        InputError: it is neither text nor a number, or breaks a line of these.
    """
    named = (document.given.get("pmid"), document.given.get("id"), document.number)
    found = next(x for x in named if x not in (None, ""))
    if type(found) not in (str, int) or re.search(rf"[|{BREAKS}]", str(found)):
        raise InputError(
            f"{name}: line {document.number} has the id {str(found)[:40]!r}, expected a number, or "
            f"text without | and tabs"
        )
    return str(found)


def pubtator(document: Document, answer: dict, name: str) -> str:
    """A document and its entities in PubTator's form."""
    key, text = id_of(document, name), document.text.translate(SPACES)
    title = len(text) if document.title is None else document.title
    rows = [f"{key}|t|{text[:title]}", f"{key}|a|{text[title + 1 :]}"]
    for e in answer["entities"]:
        start, end = e["start"], e["end"]
        rows.append(f"{key}\t{start}\t{end}\t{text[start:end]}\t{e['type']}")
    return "\n".join(rows) + "\n\n"


class Lines:
    """A file of JSON lines, of PubTator's, or of tagged words."""

    def __init__(self, file: IO[str], format: str, name: str):
        self.file, self.format, self.name, self.n = file, format, name, 0

    def write(self, item: Item | None, answer: dict) -> None:
        """Raises `InputError` where the format cannot hold it."""
        self.file.write(as_text(item, answer, self.format, self.name))
        if self.file is sys.stdout:
            self.file.flush()
        self.n += 1


class Brat:
    """A folder of ID.txt and ID.ann for each document."""

    def __init__(self, folder: Path, name: str):
        self.folder, self.name, self.lines = folder, name, {}  # ID -> number of its line

    @property
    def n(self) -> int:
        """Documents written."""
        return len(self.lines)

    def write(self, item: Item | None, answer: dict) -> None:
        """Raises `InputError` where the id cannot be a file's name, or has come before."""
        if isinstance(item, Words):
            check_format("brat", self.name)
        if not item or not item.text.strip():
            return
        key = id_of(item, self.name)
        if "/" in key or "\0" in key or key.startswith(".") or len(key.encode()) > LONGEST_NAME:
            raise InputError(
                f"{self.name}: line {item.number} has the id {key[:40]!r}, no name of a file"
            )
        if key in self.lines:
            raise InputError(
                f"{self.name}: line {item.number} has the id {key!r} of line {self.lines[key]}; "
                f"expected another one for each document"
            )
        self.lines[key] = item.number
        found = "".join(self.lines_of(item.text, answer["entities"]))
        for ending, text in ((".txt", item.text), (".ann", found)):
            (self.folder / f"{key}{ending}").write_bytes(text.encode())

    @staticmethod
    def lines_of(text: str, entities: list[dict]) -> Iterator[str]:
        for n, e in enumerate(entities, start=1):
            parts = re.finditer(r"[^\r\n]+", text[e["start"] : e["end"]])
            spans = [(e["start"] + m.start(), e["start"] + m.end()) for m in parts]
            places = ";".join(f"{a} {b}" for a, b in spans)
            mention = " ".join(text[a:b] for a, b in spans).replace("\t", " ")
            kind = "_".join(e["type"].split())
            yield f"T{n}\t{kind} {places}\t{mention}\n"


Write = Callable[[Item | None, dict], None]  # an item and its answer


@contextmanager
def output(path: Path | None, format: str, name: str) -> Iterator[Write]:
    """A file, or brat's folder, that is whole or not there -> the function that writes an answer.

    Where the input turns out to be wrong, what came before it is left in PATH.partial.

    Args:
        path: None = the standard output, written as answers come.
        name: of the input, for a complaint.
    Raises:
        InputError: it cannot be written; or the block's own, which then says where the rest is.
    """
    if path is None:
        yield Lines(sys.stdout, format, name).write
        return
    partial = path.with_name(f"{path.name}.partial")
    is_brat = format == "brat"
    with staged_dir(path) if is_brat else staged_file(path) as staged:
        try:
            opened = nullcontext() if is_brat else open(staged, "w", encoding="utf-8", newline="\n")
            with opened as file:
                writer = Brat(staged, name) if is_brat else Lines(file, format, name)
                yield writer.write
        except InputError as error:
            remove(partial)
            if not writer.n:
                raise
            os.replace(staged, partial)
            raise InputError(f"{error}; what came before it is in {partial}") from None
    remove(partial)
