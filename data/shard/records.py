"""Documents from files: blocks of whole lines, and the document of each line.

An input is `.txt`, a document a line, or `.jsonl`, a record a line with `title` and `abstract`;
either may be packed by gzip or xz, which its first bytes show, whatever its name. It is read in
blocks of a megabyte that end where a line ends. Where blocks begin depends on the file only, so
that any process may work on any block, and a run that was killed finds the same blocks again.
"""

import json
import math
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from data.pubmed.markup import without_brackets
from minibio.run.errors import InputError
from minibio.run.files import DAMAGED, real, unpacked

KINDS = (".txt", ".jsonl")
FLAGS = ("in_eval_corpus", "eval_test_overlap")
BLOCK = 1 << 20  # bytes of text, unpacked; the last line of a block is read to its end
LONGEST_LINE = 8 << 20  # bytes; a file that is one line would be read into memory whole


class Block(NamedTuple):
    """Whole lines of a file."""

    path: Path
    number: int  # of the block, from 0
    line: int  # number of its first line, from 1
    data: bytes
    read: int  # bytes of the file as it lies on disk, up to the end of this block


class CorpusDocument(NamedTuple):
    key: str  # its id, or its text where it has none: decides whether it is held out
    version: int  # of the record with this id, 1 or more; 0 = it has no id
    text: str


def kind(path: Path) -> str | None:
    """The ending of a file's name, `.gz` and `.xz` aside, where it is one of KINDS."""
    suffix = Path(path.name.removesuffix(".gz").removesuffix(".xz")).suffix
    return suffix if suffix in KINDS else None


def check_inputs(paths: list[Path]) -> None:
    """Refuse names without a known ending, files that are not there, and one named twice.

    Raises:
        InputError: one of them.
    """
    for path in paths:
        if kind(path) is None:
            raise InputError(
                f"{path}: expected a name that ends in .txt or .jsonl, also packed: .jsonl.gz"
            )
        if not path.is_file():
            raise InputError(f"{path}: no such file")
        if path.stat().st_size == 0:
            raise InputError(f"{path}: no document in it")
    counts = Counter(map(real, paths))
    for path in paths:
        if counts[real(path)] > 1:
            raise InputError(f"{path} is named twice, which would be two copies of each document")


def blocks(path: Path, size: int | None = None) -> Iterator[Block]:
    """The blocks of a file, in order.

    Raises:
        InputError: a damaged archive, or a line too long.
    """
    size, line, number = size or BLOCK, 1, 0
    try:
        with open(path, "rb") as packed:
            with unpacked(packed) as file:
                while data := file.read(size):
                    if not data.endswith(b"\n"):
                        rest = file.readline(LONGEST_LINE)
                        if len(rest) == LONGEST_LINE:
                            raise too_long(path, line + data.count(b"\n"))
                        data += rest
                    yield Block(path, number, line, data, packed.tell())
                    line += data.count(b"\n")
                    number += 1
    except DAMAGED as error:
        raise InputError(
            f"{path}: after line {line - 1}: {error}; the archive is damaged"
        ) from None


def lines(block: Block) -> Iterator[tuple[int, str]]:
    """(line number, line) of a block, blank lines left out.

    Raises:
        InputError: not UTF-8, binary, or a line too long.
    """
    if not block.data.strip():  # a megabyte of line ends takes no time
        return
    rows = block.data.split(b"\n")
    for n, raw in enumerate(rows, block.line):
        if len(raw) >= LONGEST_LINE:
            raise too_long(block.path, n)
        try:
            line = raw.decode("utf-8-sig" if n == 1 else "utf-8").strip()
        except UnicodeDecodeError as error:
            raise InputError(
                f"{block.path}: line {n}: byte {error.start} is not UTF-8; is it a text file?"
            ) from None
        if "\0" in line:
            raise InputError(f"{block.path}: line {n} holds a zero byte; is it a text file?")
        if line:
            yield n, line


def too_long(path: Path, n: int) -> InputError:
    return InputError(
        f"{path}: line {n} is longer than {LONGEST_LINE >> 20} MiB; expected a document a line"
    )


def documents(block: Block, counts: Counter, keep_eval: bool) -> Iterator[CorpusDocument]:
    """The documents of a block, in order; `counts` counts every line, and those left out.

    Raises:
        InputError: a line that is not a record.
    """
    for n, line in lines(block):
        counts["read"] += 1
        document = parse(line, block.path, n, counts, keep_eval)
        if document is not None:
            yield document


def parse(line: str, path: Path, n: int, counts: Counter, keep_eval: bool) -> CorpusDocument | None:
    """One line as a document, or None where it is left out.

    Raises:
        InputError: not a JSON object, neither title nor abstract, or one that is not text.
    """
    if kind(path) == ".txt":
        return CorpusDocument(key=line, version=0, text=line)
    try:
        record = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}: line {n}: {error}; expected a JSON object a line") from None
    if not isinstance(record, dict):
        raise InputError(f"{path}: line {n} is a {type(record).__name__}, expected a JSON object")
    if "title" not in record and "abstract" not in record:
        raise InputError(
            f"{path}: line {n} has neither title nor abstract, only: {', '.join(record)}"
        )
    for flag in FLAGS:
        if plain(record.get(flag)) and not keep_eval:
            counts[flag] += 1
            return None
    title, abstract = (plain(record.get(name)) or "" for name in ("title", "abstract"))
    for name, value in (("title", title), ("abstract", abstract)):
        if not isinstance(value, str):
            raise InputError(f"{path}: line {n}: {name} is a {type(value).__name__}, expected text")
    # F35: the released code takes every bracket out of a title, so that [18F]FDG and 18FFDG are one
    title = without_brackets(title.strip())
    text = f"{title} {abstract.strip()}".strip()
    if not text:
        counts["empty"] += 1
        return None
    key = id_of(record, path, n)
    document = CorpusDocument(key or text, version_of(record, path, n) if key else 0, text)
    try:
        f"{document.key}{text}".encode()
    except UnicodeEncodeError as error:
        raise InputError(
            f"{path}: line {n}: {error.object[error.start]!r} is half a character (a surrogate "
            "without its partner); mend the line"
        ) from None
    return document


def plain(value):
    """A JSON value, but 12.0 is 12 and NaN is null: pandas writes such beside missing values."""
    if not isinstance(value, float):
        return value
    return None if math.isnan(value) else int(value) if value.is_integer() else value


def id_of(record: dict, path: Path, n: int) -> str | None:
    """The id of a record, its `id` or `pmid`; None where both are missing, null or blank.

    Raises:
        InputError: neither text nor a whole number.
    """
    for name in ("id", "pmid"):
        value = plain(record.get(name))
        if value is None or (isinstance(value, str) and not value.strip()):
            continue
        if isinstance(value, bool) or not isinstance(value, int | str):
            shown = value if isinstance(value, float | bool) else f"a {type(value).__name__}"
            raise InputError(
                f"{path}: line {n}: {name} is {shown}, expected text or a whole number"
            )
        return str(value).strip()
    return None


def version_of(record: dict, path: Path, n: int) -> int:
    """The version of a record: 1 where it names none.

    Raises:
        InputError: not a whole number, or one outside 1 .. 2^32 - 1.
    """
    value = plain(record.get("version"))
    try:
        version = 1 if value is None else int(str(value))
    except ValueError:
        version = 0
    if not 0 < version < 2**32:
        raise InputError(f"{path}: line {n}: version is {value!r}, expected a number from 1")
    return version
