"""Lines end where they should, and every complaint about a file names the right one."""

import io
import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from minibio.run.errors import InputError
from minibio.tasks.lines import Node, json_object, line_of, read_lines


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


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)


@settings(derandomize=True, deadline=None)
@given(st.data(), values, st.sampled_from([None, 0, 3]))
def test_the_line_of_a_value(data, value, indent):
    """Against the same text with a word of ours in the value's place."""
    keys, here = [], value
    while isinstance(here, list | dict) and here and data.draw(st.booleans()):
        choices = range(len(here)) if isinstance(here, list) else list(here)
        keys.append(data.draw(st.sampled_from(choices)))
        holder, here = here, here[keys[-1]]
    text = json.dumps(value, indent=indent, ensure_ascii=False)
    if keys:
        holder[keys[-1]] = mark = "the place that is looked for"
        changed = json.dumps(value, indent=indent, ensure_ascii=False)
        want = changed[: changed.index(mark)].count("\n") + 1
    else:
        want = 1
    assert line_of(text, tuple(keys)) == want
    assert line_of("\n \n" + text, tuple(keys)) == want + 2


def test_a_name_given_twice():
    text = '{"a": [],\n "a": [1,\n 2]}'
    assert json.loads(text) == {"a": [1, 2]}
    assert [line_of(text, ("a", i)) for i in (0, 1)] == [2, 3]


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
        (lambda root: root.get("none", str), r"line 1: 'none' is missing, expected text"),
        (lambda root: root.get("data", str), r"line 2: 'data' is \[\{.* expected text"),
        (lambda root: root.get("flag", int), r"line 7: 'flag' is true, expected a whole number"),
        (lambda root: list(root.children("flag")), r"line 7: 'flag' .* a list \[...\]"),
        (
            lambda root: [x.get("n", int) for x in root.children("data")],
            r"line 4: data\[1\]: 'n' is missing, expected a whole number",
        ),
        (
            lambda root: [list(x.children("parts", [])) for x in root.children("data")],
            r"line 5: data\[1\]\.parts\[1\]: 3, expected an object",
        ),
    ],
)
def test_complaints_name_file_and_line(file, ask, message):
    with pytest.raises(InputError, match=r"x\.txt: " + message) as error:
        ask(Node.read(file(TEXT)))
    assert "\n" not in str(error.value)


def test_a_damaged_file(file):
    with pytest.raises(InputError, match=r"x\.txt: line 2, column 1"):
        Node.read(file('{"data": [\n'))


def test_the_standard_input(monkeypatch):
    class Stdin:
        buffer = io.BytesIO(b"a\n\xff\n")

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
