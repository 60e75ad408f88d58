"""Blocks are the file, cut where lines end; a record says what it must, or is refused by name."""

import gzip
import json
import lzma
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data.shard import records
from data.shard.records import blocks, check_inputs, documents, parse
from minibio.run.errors import InputError


@settings(derandomize=True, deadline=None, max_examples=100)
@given(data=st.text(alphabet="ab\n", max_size=60).map(str.encode), size=st.integers(1, 70))
@pytest.mark.parametrize(
    "end, opener", [(".txt", open), (".jsonl.gz", gzip.open), (".jsonl.xz", lzma.open)]
)
def test_blocks_are_the_file_in_whole_lines(tmp_path_factory, end, opener, data, size):
    path = tmp_path_factory.mktemp("blocks") / f"in{end}"
    with opener(path, "wb") as file:
        file.write(data)
    found = list(blocks(path, size))
    assert b"".join(block.data for block in found) == data
    assert [block.number for block in found] == list(range(len(found)))
    line = 1
    for block in found[:-1]:
        assert block.data.endswith(b"\n") and len(block.data) >= size
        assert size >= len(block.data.rpartition(b"\n")[0].rpartition(b"\n")[0])  # one line more
    for block in found:
        assert block.line == line
        line += block.data.count(b"\n")
    assert [block.read for block in found] == sorted(block.read for block in found)
    assert not found or found[-1].read == path.stat().st_size or end != ".txt"


def read(tmp_path, content, name="in.jsonl", keep_eval=False):
    path, counts = tmp_path / name, Counter()
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    found = [d for block in blocks(path, 40) for d in documents(block, counts, keep_eval)]
    return found, counts


def test_line_numbers_go_on_from_block_to_block(tmp_path):
    rows = ["rats"] * 50 + ["mice\0"] + ["rats"] * 50
    with pytest.raises(InputError, match="in.txt: line 51 holds a zero byte"):
        read(tmp_path, "\n".join(rows), "in.txt")


def test_a_document_has_its_id_or_its_text_as_key(tmp_path):
    rows = [
        {"title": "[A b].", "abstract": " c ", "pmid": "12", "version": "3"},
        {"title": "A", "id": 7, "pmid": "12"},
        {"title": "A", "abstract": None},
    ]
    found, counts = read(tmp_path, "\n".join(map(json.dumps, rows)))
    assert found == [("12", 3, "A b. c"), ("7", 1, "A"), ("A", 0, "A")] and counts["read"] == 3


@pytest.mark.parametrize(
    "title, expected",
    [("[Zinc [65] in rats]. ", "Zinc [65] in rats. c"), ("[18F]FDG [a].", "[18F]FDG [a]. c"),
     ("[]", "c"), ("[Never closed", "[Never closed c")],
)  # fmt: skip
def test_only_brackets_around_the_whole_title_go(tmp_path, title, expected):
    found, _ = read(tmp_path, json.dumps({"title": title, "abstract": "c"}))
    assert found[0][2] == expected


@pytest.mark.parametrize("version", [0, -1, 1.5, "x", True, [1], 2**32, {}])
def test_a_version_that_is_no_number_is_refused(tmp_path, version):
    with pytest.raises(InputError, match="in.jsonl: line 1: version is .*, expected a number"):
        read(tmp_path, json.dumps({"title": "a", "id": 1, "version": version}))


def test_half_a_character_is_refused(tmp_path):
    for row in (r'{"title": "a\ud83d"}', r'{"title": "a", "id": "\udc00"}'):
        with pytest.raises(InputError, match="line 2: .* is half a character"):
            read(tmp_path, '{"title": "whole \U0001f400"}\n' + row)


json_values = st.recursive(
    st.none() | st.booleans() | st.floats() | st.integers() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner),
    max_leaves=5,
)
fields = st.sampled_from(["id", "pmid", "title", "abstract", "version", "in_eval_corpus"])


@settings(derandomize=True, deadline=None, max_examples=300)
@given(
    line=st.dictionaries(fields, json_values | st.text(max_size=9)).map(json.dumps)
    | json_values.map(json.dumps)
    | st.text(max_size=40)
    | st.sampled_from(["[" * 100_000, "9" * 5000, '{"title": 1e999}', '{"title"'])
)
def test_fuzzed_lines_are_documents_left_out_or_refused_by_name(line):
    counts = Counter()
    try:
        found = parse(line, records.Path("in.jsonl"), 9, counts, False)
    except InputError as error:
        assert str(error).startswith("in.jsonl: line 9") and len(str(error)) < 10_000
    else:
        assert sum(counts.values()) == 1 if found is None else (found.text and not counts)
        if found:
            found.key.encode(), found.text.encode()


@settings(derandomize=True, deadline=None, max_examples=150)
@given(data=st.data())
@pytest.mark.parametrize(
    "end, opener", [(".jsonl", open), (".jsonl.gz", gzip.open), (".jsonl.xz", lzma.open)]
)
def test_fuzzed_files_are_read_or_refused_by_name(tmp_path_factory, end, opener, data):
    path = tmp_path_factory.mktemp("fuzz") / f"in{end}"
    with opener(path, "wb") as file:
        file.write(b'{"title": "mice and rats"}\n' * 20)
    raw = path.read_bytes()
    at, new = data.draw(st.integers(0, len(raw))), data.draw(st.binary(max_size=9))
    path.write_bytes(raw[:at] + new + raw[at + data.draw(st.integers(0, 30)) :])
    try:
        for block in blocks(path, 64):
            list(documents(block, Counter(), False))
    except InputError as error:
        assert str(path) in str(error)


def test_a_line_without_end_is_not_read_whole(tmp_path, monkeypatch):
    monkeypatch.setattr(records, "LONGEST_LINE", 1000)
    path = tmp_path / "in.txt"
    path.write_bytes(b"mice\n" + b"rats " * 1000)
    found = blocks(path, 10)
    with pytest.raises(InputError, match="in.txt: line 2 is longer"):
        list(found)
    path.write_bytes(b"mice\n" + b"x" * 1200 + b"\nrats\n")
    with pytest.raises(InputError, match="in.txt: line 2 is longer"):
        for block in blocks(path, 5000):
            list(documents(block, Counter(), False))


@pytest.mark.parametrize("name", ["in.txt", "in.jsonl", "in.jsonl.gz", "in.jsonl.xz", "in.txt.gz"])
@pytest.mark.parametrize("opener", [open, gzip.open, lzma.open])
def test_an_archive_is_known_by_its_first_bytes(tmp_path, name, opener):
    """Whatever its name: a browser unpacks .gz and keeps the name, or packs and drops it."""
    path = tmp_path / name
    with opener(path, "wb") as file:
        file.write(b'{"title": "mice"}\n' * 9)
    check_inputs([path])
    (block,) = blocks(path)
    assert block.data == b'{"title": "mice"}\n' * 9
    expected = "mice" if "jsonl" in name else '{"title": "mice"}'
    assert [d.text for d in documents(block, Counter(), False)] == [expected] * 9


def test_an_archive_of_two_members_is_both(tmp_path):
    for pack in (gzip.compress, lzma.compress):
        path = tmp_path / "in.jsonl"
        path.write_bytes(pack(b'{"title": "mice"}\n') + pack(b'{"title": "rats"}\n'))
        (block,) = blocks(path)
        assert [d.text for d in documents(block, Counter(), False)] == ["mice", "rats"]


@pytest.mark.parametrize("name", ["in.csv", "in.jsonl.zip", "jsonl", "in.gz", "in.json"])
def test_other_names_are_refused(tmp_path, name):
    (tmp_path / name).write_text("mice")
    with pytest.raises(InputError, match="expected a name that ends in .txt or .jsonl"):
        check_inputs([tmp_path / name])


@pytest.mark.parametrize(
    ("record", "key", "version"),
    [
        ('"pmid": 1.0', "1", 1),  # pandas writes whole numbers so where a value is missing
        ('"pmid": 31234567.0, "version": 2.0', "31234567", 2),
        ('"pmid": 1e3', "1000", 1),
        ('"pmid": -0.0', "0", 1),
        ('"id": 7, "version": NaN', "7", 1),
        ('"pmid": " 12 "', "12", 1),
        ('"id": null, "pmid": 5', "5", 1),
        ('"id": NaN, "pmid": 5', "5", 1),
        ('"id": "", "pmid": 5', "5", 1),
        ('"pmid": NaN, "version": 3', "A", 0),
        ('"id": " ", "pmid": null', "A", 0),
        ('"id": 0', "0", 1),
    ],
)
def test_ids_as_they_are_written(tmp_path, record, key, version):
    [found], _ = read(tmp_path, f'{{"title": "A", {record}}}')
    assert (found.key, found.version) == (key, version)


@pytest.mark.parametrize(
    ("value", "shown"),
    [("1.5", "1.5"), ("true", "True"), ("[1]", "a list"), ('{"a": 1}', "a dict"), ("1e999", "inf")],
)
def test_an_id_that_is_neither_text_nor_whole_is_refused(tmp_path, value, shown):
    message = f"line 1: pmid is {shown}, expected text or a whole number"
    with pytest.raises(InputError, match=message):
        read(tmp_path, f'{{"title": "A", "pmid": {value}}}')


def test_a_missing_flag_or_field_may_be_nan(tmp_path):
    row = '{"title": NaN, "abstract": "mice", "in_eval_corpus": NaN, "eval_test_overlap": 0.0}'
    [found], counts = read(tmp_path, row)
    assert found.text == "mice" and counts == {"read": 1}
