"""Inputs of `eval.py predict`: what a line holds, and what kind of lines a file has.

    token      any text
               {"text": ...} or {"title": ..., "abstract": ...}: one text, a space between them
               words and tags of CoNLL, a word a line
    sequence   a text that marks two entities
               {"text": ...}, and "first", "second": [start, end] each where it marks none
    span       question TAB snippet TAB snippet ...
               {"question": ..., "snippets": [...]}

The first lines of a file show what it is: JSON where the first begins like an object, words where
all end in a tag. A table is refused, and so is a line of JSON among lines of text: neither is
prose. "id" and "pmid" of a line of JSON are handed on. gzip and xz are known by their first bytes.
"""

import json
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path

from minibio.run.errors import InputError
from minibio.tasks import ner, relation, tags
from minibio.tasks.reading import HALF, json_object, name_of, read_lines

SAMPLE = 50  # lines that show what a file is
FEW = 5  # lines of words apart by spaces, or without tags, that are too few to tell from prose
GIVEN = ("id", "pmid")  # fields of a line of JSON that are handed on
JSON_START = re.compile(r'\s*\{\s*("|\}|$)')
HEADER = re.compile(r'"?[A-Za-z_]\w*"?([,;]"?[A-Za-z_]\w*"?)+')  # of a CSV file
OTHERS = (  # first line of what is not an input -> what to do
    (re.compile(r"<(\?xml|!DOCTYPE|PubmedArticle)"), "XML; python -m data.pubmed makes JSON lines"),
    (re.compile(r"\[\s*(\{.*)?$"), "a JSON list, expected an object a line (JSON lines)"),
)


@dataclass(frozen=True)
class Document:
    """A text with one offset space.

    With a title and an abstract it is the title, a space and the abstract.
    """

    text: str
    title: int | None = None  # characters of the title, where an abstract follows
    number: int = 0  # of its line in the input
    given: dict = field(default_factory=dict)  # "id" and "pmid", where it came with them


@dataclass(frozen=True)
class Pair:
    """A text with two entities, whose relation is asked for."""

    text: str
    example: relation.Example  # with both marked
    spans: tuple  # characters [start, end] of both in `text`
    given: dict = field(default_factory=dict)


@dataclass(frozen=True)
class Question:
    """A question, and the snippets of text that may answer it."""

    question: str
    snippets: list[str]
    given: dict = field(default_factory=dict)


@dataclass(frozen=True)
class Words:
    """Lines of a word each, a sentence; or a line between sentences, without a word."""

    lines: list[str]
    words: list[str]
    by_tabs: bool = True


Item = Document | Pair | Question | Words


def read_items(
    path: str | Path, head: str, is_json: bool = False, seen: Callable[[int], None] | None = None
) -> Iterator[Item | None]:
    """The items of an input, one at a time; None for a blank line that asks for nothing.

    Args:
        path:    "-" is the standard input.
        head:    token | sequence | span.
        is_json: a line that is not JSON is refused.
        seen:    called with the bytes of the file that have been read.
    Raises:
        InputError: a line cannot be read, or the input is not of that form; what came before it has
            been yielded.
    """
    name = name_of(path)
    lines = read_lines(path, "text", seen)
    sample, failure = [], None
    try:
        sample.extend(islice(lines, SAMPLE))
    except InputError as error:
        failure = error
    kind = "json" if is_json else kind_of([line for _, line in sample], head, name)

    def again() -> Iterator[tuple[int, str]]:
        yield from sample
        if failure is not None:
            raise failure
        yield from lines

    if isinstance(kind, ner.Layout):
        yield from words_of(again(), kind, name)
        return
    for number, line in again():
        where = f"{name}: line {number}"
        if kind == "text" and JSON_START.match(line):
            refuse_object(line, where)
        yield parse(line, where, head, kind == "json", number)


# what a file is


def kind_of(lines: list[str], head: str, name: str) -> "str | ner.Layout":
    """ "json", "text", or the columns of words a line, from the first lines of an input.

    Raises:
        InputError: it is a table, or another kind of file.
    """
    rows = [line for line in lines if line.strip() and not ner.BOUNDARY.match(line)]
    first = next((line for line in lines if line.strip()), "")
    if JSON_START.match(first):
        return "json"
    for pattern, what in OTHERS:
        if pattern.match(first):
            raise InputError(f"{name} is {what}")
    if head == "token" and (layout := layout_of(rows)):
        return layout
    bare = name.removesuffix(".gz").removesuffix(".xz").lower()
    is_csv = len(rows) > 1 and HEADER.fullmatch(first) and re.search("[,;]", rows[1])
    tabs = {row.count("\t") for row in rows}
    is_tsv = head != "span" and len(rows) > 1 and len(tabs) == 1 and tabs != {0}
    if is_csv or is_tsv or bare.endswith(".csv"):
        raise InputError(
            f"{name} is a table ({'TSV' if is_tsv else 'CSV'}: {first[:40]!r}), whose cells are "
            f'not told apart; write a line of JSON for each row, {{"id": ..., "text": ...}}'
        )
    return "text"


def layout_of(rows: list[str]) -> ner.Layout | None:
    """The columns of lines of a word each, tagged or not; None if they are no such lines."""
    if not rows:
        return None
    by_tabs = "\t" in rows[0]
    cells = [ner.split(row, by_tabs) for row in rows]
    n = len(cells[0])
    if any(len(row) != n or not row[0] or re.search(r"\s", row[0]) for row in cells):
        return None
    last = [row[-1] for row in cells]
    known = all(map(tags.TAG.fullmatch, last)) or tags.of_file(last) is not None
    if n == 1:
        is_words = len(rows) >= FEW and "." in last
    else:
        is_words = known and (by_tabs or (len(rows) >= FEW and "O" in last))
    return ner.Layout(by_tabs or n == 1, n, 0, n - 1, 1) if is_words else None


def words_of(lines: Iterable[tuple[int, str]], layout: ner.Layout, name: str) -> Iterator[Words]:
    """Sentences of words a line, and the lines between them."""
    rows, words = [], []
    for number, line in lines:
        if line.strip() and not ner.BOUNDARY.match(line):
            words.append(layout.read(line, name, number)[0])
            rows.append(line)
            continue
        if rows:
            yield Words(rows, words, layout.by_tabs)
            rows, words = [], []
        yield Words([line], [])
    if rows:
        yield Words(rows, words, layout.by_tabs)


def refuse_object(line: str, where: str) -> None:
    """Refuse an object among lines of text, but not a text that only begins like one."""
    try:
        json.loads(line)
    except (ValueError, RecursionError):
        return
    raise InputError(f"{where} is JSON, the lines before it are text; expected one of them")


# lines


def parse(line: str, where: str, head: str, is_json: bool, number: int = 0) -> Item | None:
    """One line as an item; None for a blank one. `where` begins a complaint."""
    if not line.strip() and (is_json or head != "token"):
        return None
    fields = from_json(line, where) if is_json else {}
    given = {name: fields[name] for name in GIVEN if name in fields}
    if head == "span":
        if not is_json:
            fields["question"], *fields["snippets"] = line.split("\t")
        question, snippets = fields.get("question"), fields.get("snippets")
        is_list = isinstance(snippets, list) and snippets
        if not isinstance(question, str) or not is_list or not all_text(snippets):
            form = 'a "question" and a list "snippets"' if is_json else "question TAB snippet"
            raise InputError(f"{where} is {line[:40]!r}, expected {form}")
        return Question(question, snippets, given)
    title = None
    if not is_json:
        text = line
    elif head == "token" and "text" not in fields:
        text, title = title_and_abstract(fields, where)
    else:
        text = fields.get("text")
    if not isinstance(text, str):
        raise InputError(f"{where} is {line[:40]!r}, expected a text")
    if head == "sequence":
        return Pair(text, *pair_in(fields, text, where), given)
    return Document(text, title, number, given)


def title_and_abstract(fields: dict, where: str) -> tuple[str, int | None]:
    """One text of both, and the characters of the title where both are there."""
    parts = [fields.get(name) for name in ("title", "abstract")]
    if parts == [None, None] or not all_text([x for x in parts if x is not None]):
        has = ", ".join(fields) or "nothing"
        raise InputError(f'{where} has {has[:60]}, expected a "text", or "title" and "abstract"')
    title, abstract = parts
    if title and abstract:
        return f"{title} {abstract}", len(title)
    return title or abstract or "", None


def all_text(values: list) -> bool:
    return all(isinstance(x, str) for x in values)


def from_json(line: str, where: str) -> dict:
    item = json_object(line, where)
    if HALF.search(json.dumps(item, ensure_ascii=False)):
        raise InputError(f"{where} has half a surrogate pair, which is not a character")
    return item


def pair_in(item: dict, text: str, where: str) -> tuple[relation.Example, tuple]:
    """The text with its two entities marked, and where these are in the text as it was given."""
    spans = item.get("first"), item.get("second")
    if spans == (None, None):
        example = relation.marked(text, where)
        return example, example.spans
    for span in spans:
        if not (isinstance(span, list) and len(span) == 2 and all(type(x) is int for x in span)):
            raise InputError(f"{where}: first and second are {spans}, expected [start, end] each")
    try:
        return relation.mark(text, tuple(spans[0]), tuple(spans[1])), spans
    except InputError as error:
        raise InputError(f"{where}: {error}") from None
