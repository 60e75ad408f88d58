"""Task files read line by line, or as JSON, so that every complaint can name its line.

A reader of a task says what it expected and where; this file knows the where. Lines end at "\\n"
alone (a word of a tagged file may be any other line break of Unicode) and are read as they come, so
that a file's size costs no memory. JSON says nothing of lines once it is read: `line_of` walks the
text again, and only when there is something to complain of.
"""

import json
import re
import sys
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path

from minibio.run.errors import InputError
from minibio.run.files import read_json

SPACE = re.compile(r"[ \t\r\n]*")  # what JSON may have between its parts
HALF = re.compile("[\ud800-\udfff]")  # half a surrogate pair: JSON can hold one, UTF-8 cannot


def read_lines(path: str | Path, expected: str) -> Iterator[tuple[int, str]]:
    """Number, from 1, and text of each line, without its end (LF or CRLF) and byte-order mark.

    Args:
        path:     "-" is the standard input.
        expected: what the file should hold, for the message.
    Raises:
        InputError: it cannot be read, or a line is not UTF-8.
    """
    name = name_of(path)
    try:
        with nullcontext(sys.stdin.buffer) if path == "-" else open(path, "rb") as file:
            for number, line in enumerate(file, start=1):
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
    except OSError as error:
        raise InputError(f"{name}: {error.strerror}, expected {expected}") from None


def name_of(path: str | Path) -> str:
    """What a complaint calls a file."""
    return "standard input" if path == "-" else str(path)


def json_object(line: str, where: str) -> dict:
    """The JSON object of one line; `where` begins a complaint."""
    try:
        value = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{where} is not JSON: {getattr(error, 'msg', error)}") from None
    if not isinstance(value, dict):
        raise InputError(f"{where} is {line[:40]!r}, expected an object {{...}}")
    return value


class Node:
    """An object in a JSON file that knows its place: `Node.read(path).children("data")`."""

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
            raise self.error(f"{key!r} {got}, expected {NAMES[kind]}", key)
        if kind is str and HALF.search(value):
            raise self.error(f"{key!r} has half a surrogate pair, which is no character", key)
        return value

    def children(self, key: str, default=None) -> Iterator["Node"]:
        """The objects of the list under `key`."""
        for i, value in enumerate(self.get(key, list, default)):
            child = Node(value, self.path, (*self.keys, key, i))
            if not isinstance(value, dict):
                raise child.error(f"{json.dumps(value)[:40]}, expected {NAMES[dict]}")
            yield child

    def error(self, what: str, key: str | None = None) -> InputError:
        """A complaint of one line: file, line (of `key`, if it is there), place, what is wrong."""
        place = "".join(f"[{k}]" if isinstance(k, int) else f".{k}" for k in self.keys)
        keys = self.keys if key is None or key not in self.value else (*self.keys, key)
        line = line_of(self.path.read_text("utf-8"), keys)
        place = f" {place.lstrip('.')}:" if place else ""
        return InputError(f"{self.path}: line {line}:{place} {what}")


# in messages
NAMES = {str: "text", list: "a list [...]", dict: "an object {...}", int: "a whole number"}


def line_of(text: str, keys: tuple) -> int:
    """The line, from 1, on which the value at `keys` of a JSON text begins.

    Args:
        text: valid JSON.
        keys: names and indices, from the outside in; they must be there.
    """
    decode = json.JSONDecoder().raw_decode  # value and end of the value that begins here

    def skip(at):  # over white space
        return SPACE.match(text, at).end()

    at = skip(0)
    for key in keys:
        at, index, found = skip(at + 1), 0, None  # into the object or list
        while text[at] not in "]}":
            name = index
            if isinstance(key, str):
                name, at = decode(text, at)
                at = skip(skip(at) + 1)  # over the colon
            if name == key:
                found = at  # of a name given twice the last is what a reader gets
            at = skip(decode(text, at)[1])
            at = skip(at + 1) if text[at] == "," else at
            index += 1
        at = found
    return text.count("\n", 0, at) + 1
