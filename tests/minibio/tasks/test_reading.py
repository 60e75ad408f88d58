"""Ends of lines, complaints that name their place, words of odd texts, logits of every example."""

import io
import re
from contextlib import contextmanager
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from minibio.batch import Batch
from minibio.run.errors import InputError
from minibio.tasks.reading import Node, cut, forward, json_object, read_lines
from minibio.text.tokenizer import Tokenizer


@pytest.fixture
def file(tmp_path):
    def write(content):
        path = tmp_path / "x.txt"
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return path

    return write


@pytest.mark.parametrize("content", ["a\n\nb\n", "a\r\n\r\nb\r\n", "\ufeffa\n\nb"])
def test_ends_of_lines(file, content):
    assert list(read_lines(file(content), "x")) == [(1, "a"), (2, ""), (3, "b")]


def test_only_a_newline_ends_a_line(file):
    text = "a\u2028b\x0cc\x85d\x1ee\rf"
    assert list(read_lines(file(text + "\n"), "x")) == [(1, text)]
    assert list(read_lines(file(""), "x")) == []


def test_lines_come_as_they_are_read(file):
    lines = read_lines(file(b"a\nb\n\xff\n"), "text")
    assert next(lines) == (1, "a")
    assert next(lines) == (2, "b")
    with pytest.raises(InputError, match=r"x\.txt: line 3, byte 1 is not UTF-8, expected text"):
        next(lines)


def test_no_file(tmp_path):
    for path in (tmp_path, tmp_path / "none"):
        with pytest.raises(InputError, match=f"{path}: .*, expected text"):
            list(read_lines(path, "text"))


TEXT = """{
  "data": [
    {"name": "first", "n": 1},
    {"name": "second",
     "parts": [{"n": 2}, 3]}
  ],
  "flag": true
}
"""


def test_values_and_children(file):
    root = Node.read(file(TEXT))
    first, second = root.children("data")
    assert (first.get("name", str), first.get("n", int)) == ("first", 1)
    assert first.get("parts", list, []) == list(first.children("parts", [])) == []
    assert second.keys == ("data", 1)


@pytest.mark.parametrize(
    ("ask", "message"),
    [
        (lambda root: root.get("none", str), r"'none' is missing, expected text"),
        (lambda root: root.get("data", str), r"'data' is \[\{.* expected text"),
        (lambda root: root.get("flag", int), r"'flag' is true, expected a whole number"),
        (lambda root: list(root.children("flag")), r"'flag' .* a list \[...\]"),
        (
            lambda root: [x.get("n", int) for x in root.children("data")],
            r"data\[1\]: 'n' is missing, expected a whole number",
        ),
        (
            lambda root: [list(x.children("parts", [])) for x in root.children("data")],
            r"data\[1\]\.parts\[1\]: 3, expected an object",
        ),
    ],
)
def test_complaints_name_file_and_place(file, ask, message):
    with pytest.raises(InputError, match=r"x\.txt: " + message) as error:
        ask(Node.read(file(TEXT)))
    assert "\n" not in str(error.value)


def test_a_damaged_file(file):
    with pytest.raises(InputError, match=r"x\.txt: line 2, column 1"):
        Node.read(file('{"data": [\n'))


def test_the_standard_input(monkeypatch):
    class Stdin:
        buffer = io.BufferedReader(io.BytesIO(b"a\n\xff\n"))  # as the real one

    monkeypatch.setattr("sys.stdin", Stdin)
    lines = read_lines("-", "text")
    assert next(lines) == (1, "a")
    with pytest.raises(InputError, match="^standard input: line 2, byte 1 is not UTF-8"):
        next(lines)
    assert not Stdin.buffer.closed


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "x: line 7 is not JSON: Expecting property name"),
        ("[" * 100_000, "x: line 7 is not JSON"),
        ("[1]", r"x: line 7 is '\[1\]', expected an object"),
        ("null", "x: line 7 is 'null', expected an object"),
    ],
)
def test_a_line_that_is_no_object(line, message):
    with pytest.raises(InputError, match=message):
        json_object(line, "x: line 7")
    assert json_object('{"a": [1]}', "x: line 7") == {"a": [1]}


# text as the model reads it

TEXTS = ["The BRCA1 gene, Café naïve β-catenin; 中文 IL-2 receptor receptors a\u0301b İ 12"] * 3


@pytest.fixture(scope="module")
def tokenizers():
    return [Tokenizer.train(TEXTS, 130, cased) for cased in (True, False)]


def words(text, pieces):
    return [text[a:b] for a, b in pieces.word_spans]


@pytest.mark.parametrize(
    ("text", "want"),
    [
        ("The BRCA1 gene", ["The", "BRCA1", "gene"]),
        ("  IL-2\tx\n", ["IL", "-", "2", "x"]),
        ("re\u200bceptor", ["re\u200bceptor"]),
        ("\u200bIL\u200b-\ufeff2\x00", ["IL", "-", "2"]),
        ("\u200b \x07 \u00a0", []),
        ("", []),
        ("Café a\u0301b", ["Café", "a\u0301b"]),
        ("中文", ["中", "文"]),
        ("😀 β", ["😀", "β"]),
        ("a \ud800 b", ["a", "b"]),  # half a surrogate pair
        ("x" * 300 + " y", ["x" * 300, "y"]),
    ],
)
def test_words_of_a_text(tokenizers, text, want):
    for tokenizer in tokenizers:
        assert words(text, cut(text, tokenizer)) == want


CHARACTERS = st.sampled_from("aAbBIL12-,. é\u0301\u200b\x00\u00a0中İß😀\n") | st.characters()


@settings(derandomize=True, deadline=None)
@given(st.text(CHARACTERS, max_size=40))
def test_what_holds_of_any_text(tokenizers, text):
    for tokenizer in tokenizers:
        pieces = cut(text, tokenizer)
        valid = re.sub("[\ud800-\udfff]", "\ufffd", text)  # the package takes nothing else
        encoding = tokenizer.backend.encode(valid, add_special_tokens=False)
        assert pieces.ids == encoding.ids
        assert pieces.words == encoding.word_ids  # counted by the package
        assert len(pieces.word_spans) == len(set(pieces.words))
        for (a, b), w in zip(pieces.spans, pieces.words, strict=True):
            start, end = pieces.word_spans[w]
            assert 0 <= start <= a < b <= end <= len(text)
        for (_, b), (c, _) in zip(pieces.word_spans, pieces.word_spans[1:], strict=False):
            assert b <= c
        for start in range(len(text)):
            for end in (start + 1, start + 3, len(text)):
                want = [i for i, (a, b) in enumerate(pieces.spans) if a < end and b > start]
                assert list(pieces.inside(start, end)) == want


# a trained model over many examples


class Sums(torch.nn.Module):
    """The sum of each sequence's tokens; and what it was asked, in what mood."""

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(()))
        self.asked, self.inside = [], []

    def forward(self, batch):
        self.asked.append(batch.lengths)
        self.inside.append((self.training, torch.is_grad_enabled(), context.is_open))
        sums = [part.sum() for part in batch.tokens.split(batch.lengths)]
        return SimpleNamespace(logits=self.weight * torch.stack(sums)[:, None])


@contextmanager
def context():
    context.is_open = True
    yield
    context.is_open = False


def collate(examples):
    return Batch.from_sequences([x.tokens for x in examples])


@pytest.mark.parametrize("B", [1, 3, 7, 100])
def test_in_order_of_length_and_each_once(B):
    lengths = [5, 1, 4, 1, 9, 2, 6]
    examples = [SimpleNamespace(tokens=[i + 1] * T) for i, T in enumerate(lengths)]
    model, found = Sums().train(), {}
    for chosen, batch, logits in forward(model, examples, collate, B, "cpu", context):
        assert not context.is_open and torch.is_grad_enabled()  # the caller's own again
        assert list(batch.lengths) == [lengths[i] for i in chosen] and len(chosen) <= B
        found |= dict(zip(chosen, logits[:, 0].tolist(), strict=True))
    assert found == {i: (i + 1) * T for i, T in enumerate(lengths)}
    assert sum(map(list, model.asked), []) == sorted(lengths)
    assert set(model.inside) == {(False, False, True)}


def test_of_nothing_nothing_comes():
    assert list(forward(Sums(), [], collate, 4, "cpu", context)) == []
