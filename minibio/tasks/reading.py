"""The readers that the tasks share: of files, of texts as a model sees them, of a model's logits.

A reader of a task says what it expected; `read_lines` and `Node` say where. Lines end only at "\\n"
(a word of a tagged file may be any other line break of Unicode) and are read one at a time, so that
a file of any size needs little memory.

    IL-2  re\\u200bceptors       text; the zero-width space is nothing to the model
    IL - 2  re ##ceptors        pieces
    0  1 2  3  3                the word of each: runs of letters and digits, or single marks
    (0, 2) ... (6, 15)          characters of each word

A piece or word reaches from its first to its last character in the text as given, whatever
normalisation removed in between; what it removed at the edges (spaces, controls, zero-width
characters, single accents) belongs to none.
"""

import json
import math
import re
import sys
import unicodedata
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn as nn
from torch import Tensor

from minibio.batch import Batch
from minibio.run.dist import trim_heap
from minibio.run.errors import InputError
from minibio.run.files import DAMAGED, read_json, unpacked
from minibio.text.tokenizer import Tokenizer

HALF = re.compile("[\ud800-\udfff]")  # half a surrogate pair: JSON can hold one, UTF-8 cannot


# lines and JSON


def read_lines(
    path: str | Path, expected: str, seen: Callable[[int], None] | None = None
) -> Iterator[tuple[int, str]]:
    """Number, from 1, and text of each line, without its end (LF or CRLF) and byte-order mark.

    gzip and xz are unpacked, whatever the file's name.

    Args:
        path:     "-" is the standard input.
        expected: what the file should hold, for the message.
        seen:     called with the bytes of the file that have been read, packed as they may be.
    Raises:
        InputError: it cannot be read, its archive is damaged, or a line is not UTF-8.
    """
    name = name_of(path)
    if path == "-" and sys.stdin is None:
        raise InputError(f"the standard input is closed, expected {expected}")
    number = 0
    try:
        with nullcontext(sys.stdin.buffer) if path == "-" else open(path, "rb") as packed:
            for number, line in enumerate(unpacked(packed), start=1):
                if seen is not None:
                    seen(packed.tell())
                if number == 1:
                    line = line.removeprefix(b"\xef\xbb\xbf")
                line = line.removesuffix(b"\n").removesuffix(b"\r")
                try:
                    text = line.decode("utf-8")
                except UnicodeDecodeError as error:
                    raise InputError(
                        f"{name}: line {number}, byte {error.start + 1} is not UTF-8, "
                        f"expected {expected}"
                    ) from None
                yield number, text
    except DAMAGED as error:
        raise InputError(f"{name}: after line {number}: {error}; the archive is damaged") from None
    except OSError as error:
        raise InputError(f"{name}: {error.strerror}, expected {expected}") from None


def name_of(path: str | Path) -> str:
    """The name of a file in messages."""
    return "standard input" if path == "-" else str(path)


def json_object(line: str, where: str) -> dict:
    """The JSON object of one line; `where` begins a complaint."""
    try:
        value = json.loads(line, parse_constant=no_number, parse_float=finite)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{where} is not JSON: {getattr(error, 'msg', error)}") from None
    if not isinstance(value, dict):
        raise InputError(f"{where} is {line[:40]!r}, expected an object {{...}}")
    return value


def no_number(name: str):
    """Refuse NaN, Infinity and -Infinity, which Python reads and JSON lacks."""
    raise ValueError(f"{name} is not a number")


def finite(digits: str) -> float:
    """A number of JSON, unless it is too large to be written again: 1e999."""
    return x if math.isfinite(x := float(digits)) else no_number(digits)


class Node:
    """An object in a JSON file, with its place there: `Node.read(path).children("data")`."""

    def __init__(self, value: dict, path: Path, keys: tuple = ()):
        self.value, self.path, self.keys = value, path, keys

    @staticmethod
    def read(path: str | Path) -> "Node":
        """The whole file. Raises `InputError` as `minibio.run.files.read_json` does."""
        return Node(read_json(path), Path(path))

    def get(self, key: str, kind: type, default=None):
        """The value under `key`, which must be a `kind`; a default makes it optional."""
        value = self.value.get(key, default)
        if not isinstance(value, kind) or isinstance(value, bool):
            got = f"is {json.dumps(value)[:40]}" if key in self.value else "is missing"
            raise self.error(f"{key!r} {got}, expected {NAMES[kind]}")
        if kind is str and HALF.search(value):
            raise self.error(f"{key!r} has half a surrogate pair, which is not a character")
        return value

    def id(self) -> str:
        """The value under "id": text, or a whole number as text."""
        value = self.value.get("id")
        return str(value) if type(value) is int else self.get("id", str)

    def children(self, key: str, default=None) -> Iterator["Node"]:
        """The objects of the list under `key`."""
        for i, value in enumerate(self.get(key, list, default)):
            child = Node(value, self.path, (*self.keys, key, i))
            if not isinstance(value, dict):
                raise child.error(f"{json.dumps(value)[:40]}, expected {NAMES[dict]}")
            yield child

    def error(self, what: str) -> InputError:
        """A complaint of one line: file, place, what is wrong."""
        place = "".join(f"[{k}]" if isinstance(k, int) else f".{k}" for k in self.keys)
        return InputError(f"{self.path}: {place.lstrip('.')}{': ' if place else ''}{what}")


# in messages
NAMES = {str: "text", list: "a list [...]", dict: "an object {...}", int: "a whole number"}


# text as the model reads it


class Pieces(NamedTuple):
    """The P pieces and W words of a text, without [CLS] and [SEP]."""

    ids: list[int]  # (P,) token ids
    spans: list[tuple[int, int]]  # (P,) characters of each piece: first, one behind the last
    words: list[int]  # (P,) the word of each piece, 0 .. W-1
    word_spans: list[tuple[int, int]]  # (W,) characters of each word

    def inside(self, start: int, end: int) -> range:
        """The pieces with a character among start .. end-1; empty where those leave no piece."""
        first = bisect_right(self.spans, start, key=lambda span: span[1])
        return range(first, max(first, bisect_left(self.spans, end, key=lambda span: span[0])))


def cut(text: str, tokenizer: Tokenizer) -> Pieces:
    """The pieces of a text; linear in its length."""
    return cut_all([text], tokenizer)[0]


def cut_all(texts: Sequence[str], tokenizer: Tokenizer) -> list[Pieces]:
    """The pieces of each text; faster than one by one."""
    found = []
    for ids, spans in tokenizer.encode_offsets([HALF.sub("\ufffd", x) for x in texts]):  # as long
        words, word_spans = [], []
        for i, (start, end) in zip(ids, spans, strict=True):
            if word_spans and tokenizer.pieces[i].startswith("##"):
                word_spans[-1] = (word_spans[-1][0], end)
            else:
                word_spans.append((start, end))
            words.append(len(word_spans) - 1)
        found.append(Pieces(ids, spans, words, word_spans))
    return found


def normalised(text: str) -> str:
    """The letters and digits of a text: case, accents' encoding, spaces and marks do not count."""
    return " ".join(re.findall(r"[^\W_]+", unicodedata.normalize("NFKC", text).casefold()))


# a trained model over many examples


def forward(
    model: nn.Module,
    examples: Sequence,
    collate: Callable[[Sequence], Batch],
    B: int,
    device,
    autocast,
    N: float = math.inf,
) -> Iterator[tuple[list[int], Batch, Tensor]]:
    """Places of B examples, their batch and its logits, until every example has had one.

    Examples of similar length share a batch; the logits of one do not depend on the others.

    Args:
        examples: each with its `tokens`.
        autocast: makes the context that the model runs in.
        N:        tokens of a batch, which has fewer than B examples where it is full.
    """
    model.eval()
    lengths = [len(example.tokens) for example in examples]
    order = sorted(range(len(examples)), key=lengths.__getitem__)
    for n, chosen in enumerate(in_batches(order, lengths, B, N), start=1):
        batch = collate([examples[i] for i in chosen]).to(device)
        with torch.no_grad(), autocast():
            logits = model(batch).logits
        yield chosen, batch, logits
        trim_heap(n, batch.device)


def in_batches(
    order: Iterable[int], lengths: Sequence[int], B: int, N: float
) -> Iterator[list[int]]:
    """The places in `order`, at most B at a time and, but for one longer by itself, N tokens."""
    chosen, n = [], 0
    for i in order:
        if len(chosen) == B or (chosen and n + lengths[i] > N):
            yield chosen
            chosen, n = [], 0
        chosen.append(i)
        n += lengths[i]
    if chosen:
        yield chosen
