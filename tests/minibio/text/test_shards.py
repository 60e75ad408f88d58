"""Token shards: what goes in comes out, and a damaged file never passes."""

import json
import re
import struct
import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from minibio.run.errors import InputError
from minibio.text import shards
from minibio.text.shards import FORMAT, Shards, ShardWriter, verify

DOCUMENTS = [[2, 7, 9, 3], [2, 3], [2, 8, 8, 8, 8, 3], [2, 5, 3]]


def write(path, documents=DOCUMENTS, V=101, file_tokens=8):
    """A directory of shards with all documents to train on and one held out."""
    path.mkdir(exist_ok=True)
    splits = {}
    for split, rows in (("train", documents), ("held-out", [[2, 6, 3]])):
        writer = ShardWriter(path, split, V, file_tokens)
        for ids in rows:
            writer.add(ids)
        splits[split] = writer.close()
    meta = {"format": FORMAT, "V": V, "length": 256, "tokenizer": "00", "splits": splits}
    (path / "meta.json").write_text(json.dumps(meta))
    return path


def change_meta(path, **changes):
    meta = json.loads((path / "meta.json").read_text())
    (path / "meta.json").write_text(json.dumps({**meta, **changes}))


@settings(derandomize=True, deadline=None, max_examples=60)
@given(
    documents=st.lists(st.lists(st.integers(0, 2**16), min_size=1, max_size=12), max_size=20),
    V=st.sampled_from([2**16 + 1, 2**17]),
    file_tokens=st.integers(1, 60),
)
def test_what_goes_in_comes_out(tmp_path_factory, documents, V, file_tokens):
    found = Shards(write(tmp_path_factory.mktemp("shards"), documents, V, file_tokens))
    assert [found[i].tolist() for i in range(len(found))] == documents
    assert found.lengths.tolist() == [len(ids) for ids in documents]
    assert found.n_tokens == sum(map(len, documents)) and found.V == V


def test_documents_go_on_into_the_next_file(tmp_path):
    write(tmp_path)
    names = sorted(p.name for p in tmp_path.glob("*.bin"))
    assert names == ["held-out-00000.bin", "train-00000.bin", "train-00001.bin"]
    assert [ids.tolist() for ids in map(Shards(tmp_path).__getitem__, range(4))] == DOCUMENTS
    assert Shards(tmp_path, "held-out")[0].tolist() == [2, 6, 3]


def header(version, offsets_crc, tokens_crc, documents=2, tokens=5):
    start = b"minibio\n" + struct.pack("<IIQQII20x", version, 2, documents, tokens, tokens_crc,
                                       offsets_crc)  # fmt: skip
    return start + struct.pack("<I", zlib.crc32(start) if version > 1 else 0)


OFFSETS, TOKENS = struct.pack("<3Q", 0, 3, 5), struct.pack("<5H", 2, 300, 3, 2, 3)


def test_the_format_is_the_one_written_down(tmp_path):
    """Byte by byte, so that shards of today are read tomorrow."""
    write(tmp_path, [[2, 300, 3], [2, 3]], V=301, file_tokens=100)
    expected = header(2, zlib.crc32(OFFSETS), zlib.crc32(TOKENS)) + OFFSETS + TOKENS
    assert (tmp_path / "train-00000.bin").read_bytes() == expected


def test_files_of_format_1_are_read_and_every_damage_is_found(tmp_path):
    write(tmp_path, [[2, 300, 3], [2, 3]], V=301, file_tokens=100)
    file, body = tmp_path / "train-00000.bin", OFFSETS + TOKENS
    whole = header(1, 0, zlib.crc32(body)) + body
    file.write_bytes(whole)
    change_meta(tmp_path, format=1)
    assert Shards(tmp_path)[0].tolist() == [2, 300, 3] and list(verify(tmp_path)) == []
    for i in range(64, len(whole)):
        file.write_bytes(whole[:i] + bytes([whole[i] ^ 0x10]) + whole[i + 1 :])
        with pytest.raises(InputError, match="bytes 64 to 97: the checksum"):
            Shards(tmp_path)


@pytest.mark.parametrize("V, itemsize", [(2**16, 2), (2**16 + 1, 4)])
def test_bytes_a_token_follow_from_the_vocabulary(tmp_path, V, itemsize):
    found = Shards(write(tmp_path, [[0, V - 1]], V))
    assert found[0].itemsize == itemsize and found[0].tolist() == [0, V - 1]


def test_documents_are_views_that_cannot_be_written(tmp_path):
    ids = Shards(write(tmp_path))[0]
    with pytest.raises(ValueError, match="read-only"):
        ids[0] = 1


def test_index_outside_the_split(tmp_path):
    for i in (-1, 4):
        with pytest.raises(IndexError, match="of 4"):
            Shards(write(tmp_path))[i]


def test_a_split_may_be_empty(tmp_path):
    found = Shards(write(tmp_path, []))
    assert (len(found), found.n_tokens, found.lengths.shape) == (0, 0, (0,))


@pytest.mark.parametrize("ids", [[], [101], [-1]])
def test_writer_refuses_ids_outside_the_vocabulary(tmp_path, ids):
    with pytest.raises(ValueError, match="expected at least one, each in 0 to 100"):
        ShardWriter(tmp_path, "train", 101).add(ids)


def test_writer_refuses_another_split(tmp_path):
    with pytest.raises(ValueError, match="split is 'test'"):
        ShardWriter(tmp_path, "test", 101)


# damage


def test_every_damaged_byte_is_found(tmp_path):
    """Any one byte other than it was: in header and offsets when opened, anywhere by `verify`."""
    file = write(tmp_path) / "train-00000.bin"
    whole = file.read_bytes()
    start = 64 + 8 * 4  # three documents of 4, 2 and 6 tokens
    for i in range(len(whole)):
        file.write_bytes(whole[:i] + bytes([whole[i] ^ 0x10]) + whole[i + 1 :])
        faults = list(verify(tmp_path))
        assert faults and all(str(file) in fault or "meta.json" in fault for fault in faults)
        if i < start:
            with pytest.raises(InputError, match="train-00000.bin"):
                Shards(tmp_path)
        else:
            assert f"tokens (bytes {start} to {len(whole) - 1}): the checksum" in faults[-1]
    file.write_bytes(whole)
    Shards(tmp_path)
    assert list(verify(tmp_path)) == []


def forge(file, offsets, tokens):
    """A file whose checksums are right, whatever it holds."""
    offsets, tokens = np.array(offsets, "<u8"), np.array(tokens, "<u2")
    start = header(2, zlib.crc32(offsets), zlib.crc32(tokens), len(offsets) - 1, len(tokens))
    file.write_bytes(start + offsets.tobytes() + tokens.tobytes())


@pytest.mark.parametrize(
    "offsets, tokens, fault",
    [
        ([0, 3, 7, 12], [5] * 10 + [101, 5], "document 2 .byte 116. holds id 101, expected .* 101"),
        ([0, 3, 3, 12], [5] * 12, "document 1 .byte 72. has 0 tokens, expected 1 to 10"),
        ([0, 7, 3, 12], [5] * 12, "document 1 .byte 72. has -4 tokens"),
        ([0, 1, 12, 12], [5] * 12, "document 1 .byte 72. has 11 tokens"),
    ],
)
def test_verify_finds_what_checksums_do_not_tell(tmp_path, offsets, tokens, fault):
    write(tmp_path)
    change_meta(tmp_path, length=10)
    forge(tmp_path / "train-00000.bin", offsets, tokens)
    faults = list(verify(tmp_path))
    assert len(faults) == 1 and re.search(f"train-00000.bin: {fault}", faults[0])


def test_offsets_that_do_not_span_the_tokens_are_found(tmp_path):
    write(tmp_path)
    for offsets in ([1, 3, 7, 12], [0, 3, 7, 11]):
        forge(tmp_path / "train-00000.bin", offsets, [5] * 12)
        assert any("train-00000.bin: offsets span" in fault for fault in verify(tmp_path))


def test_verify_goes_on_after_a_fault_and_counts(tmp_path):
    write(tmp_path)
    (tmp_path / "train-00000.bin").unlink()
    (tmp_path / "held-out-00000.bin").write_bytes(b"")
    faults = list(verify(tmp_path))
    assert [fault.split(": ")[0].rpartition("/")[2] for fault in faults] == [
        "train-00000.bin", "meta.json", "held-out-00000.bin", "meta.json",
    ]  # fmt: skip
    assert "train: 4 documents and 15 tokens, the readable files hold 1 and 3" in faults[1]
    (tmp_path / "meta.json").write_text("{")
    assert ["meta.json: line 1" in fault for fault in verify(tmp_path)] == [True]


@settings(derandomize=True, deadline=None, max_examples=200)
@given(data=st.data())
def test_fuzzed_directories_are_refused_by_name_or_read(tmp_path_factory, data):
    """Bytes overwritten, cut off or added anywhere: an InputError that names a file, or shards."""
    path = write(tmp_path_factory.mktemp("fuzz"))
    file = path / data.draw(st.sampled_from(["meta.json", "train-00000.bin", "train-00001.bin"]))
    raw = bytearray(file.read_bytes())
    at = data.draw(st.integers(0, len(raw)))
    new = data.draw(st.binary(max_size=12))
    file.write_bytes(raw[:at] + new + raw[at + data.draw(st.sampled_from([0, len(new), 999])) :])
    faults = list(verify(path))
    try:
        found = Shards(path)
        [found[i].tolist() for i in range(len(found))]
    except InputError as error:
        assert str(path) in str(error) and "\n" not in str(error) and faults
    else:
        is_same = file.read_bytes() == bytes(raw)
        assert is_same or faults or file.name == "meta.json"


@pytest.mark.parametrize("keep", [0, 5, 63, 64, 70, -1])
def test_a_file_cut_short_is_found(tmp_path, keep):
    file = write(tmp_path) / "train-00001.bin"
    file.write_bytes(file.read_bytes()[:keep])
    with pytest.raises(InputError, match="train-00001.bin.*(not a token shard|cut short)"):
        Shards(tmp_path)


def test_a_longer_and_a_missing_file_are_found(tmp_path):
    file = write(tmp_path) / "train-00000.bin"
    file.write_bytes(file.read_bytes() + b"\0")
    with pytest.raises(InputError, match="cut short or damaged"):
        Shards(tmp_path)
    file.unlink()
    with pytest.raises(InputError, match="train-00000.bin: no such file"):
        Shards(tmp_path)


def test_files_of_another_run_are_found(tmp_path):
    write(tmp_path / "a")
    write(tmp_path / "b", [*DOCUMENTS, [2, 4, 3]])
    (tmp_path / "a" / "meta.json").write_bytes((tmp_path / "b" / "meta.json").read_bytes())
    with pytest.raises(InputError, match="train has 5 documents and 18 tokens, the files hold 4"):
        Shards(tmp_path / "a")


def test_meta_is_checked(tmp_path):
    with pytest.raises(InputError, match="no meta.json there"):
        Shards(tmp_path)
    write(tmp_path)
    change_meta(tmp_path, V=2**17)
    with pytest.raises(InputError, match="with 2 bytes a token, expected format 2 with 4"):
        Shards(tmp_path)
    change_meta(tmp_path, V=101, splits={"train": {"documents": 4}})
    with pytest.raises(InputError, match="meta.json: train: files is None, expected a list"):
        Shards(tmp_path)
    change_meta(tmp_path, format=FORMAT + 1)
    with pytest.raises(InputError, match="format is 3, expected 2"):
        Shards(tmp_path)
    write(tmp_path)
    change_meta(tmp_path, length="long")
    with pytest.raises(InputError, match="meta.json: length is 'long', expected a number"):
        Shards(tmp_path)


@pytest.mark.parametrize("value", [None, True, -1, 0, 1.5, "101", 2**70, [101], {}])
@pytest.mark.parametrize("key", ["V", "length", "documents", "tokens"])
def test_numbers_of_meta_are_whole_and_in_range(tmp_path, key, value):
    write(tmp_path)
    meta = json.loads((tmp_path / "meta.json").read_text())
    (meta if key in meta else meta["splits"]["held-out"])[key] = value
    change_meta(tmp_path, **meta)
    if key in ("documents", "tokens") and value == 0 and value is not False:
        message = "held-out has .* the files hold 1 and 3"
    else:
        message = f"meta.json: (held-out: )?{key} is .*, expected a number from"
    with pytest.raises(InputError, match=message) as found:
        Shards(tmp_path, "held-out")
    assert "\n" not in str(found.value) and len(list(verify(tmp_path))) == 1


@pytest.mark.parametrize("names", [
    "train-00000.bin", [3], ["../a/train-00000.bin"], ["/dev/zero"], ["a\0b"], [".."], [""],
    ["sub/x.bin"], ["train-00000.bin", "train-00000.bin"], ["meta.json"], ["..\\x.bin"],
])  # fmt: skip
def test_no_file_outside_the_directory_is_read(tmp_path, names):
    write(tmp_path / "a")
    path = write(tmp_path / "b")
    meta = json.loads((path / "meta.json").read_text())
    meta["splits"]["train"]["files"] = names
    change_meta(path, **meta)
    with pytest.raises(InputError, match="b/meta.json: train: files (has|is) .*, expected"):
        Shards(path)


@pytest.mark.parametrize("splits", [None, 3, [], {}, {"train": 3, "held-out": []}])
@pytest.mark.parametrize("tokenizer", [None, 7, "00"])
def test_meta_of_other_types_is_named(tmp_path, splits, tokenizer):
    write(tmp_path)
    change_meta(tmp_path, splits=splits, tokenizer=tokenizer)
    with pytest.raises(InputError, match="meta.json: train: files is None"):
        Shards(tmp_path)
    write(tmp_path)
    change_meta(tmp_path, tokenizer=tokenizer)
    if tokenizer == "00":
        assert len(Shards(tmp_path)) == 4
    else:
        with pytest.raises(InputError, match="meta.json: tokenizer is .*, expected its hash"):
            Shards(tmp_path)


def test_shards_of_another_format_version(tmp_path, monkeypatch):
    monkeypatch.setattr(shards, "FORMAT", 3)
    write(tmp_path)
    change_meta(tmp_path, format=2)
    with pytest.raises(InputError, match="train-00000.bin: format 3"):
        Shards(tmp_path)


# many at a time


@settings(derandomize=True, deadline=None, max_examples=100)
@given(
    lengths=st.lists(st.integers(1, 9), max_size=30),
    cuts=st.lists(st.integers(0, 30), max_size=5),
    file_tokens=st.integers(1, 40),
)
def test_files_do_not_depend_on_how_many_are_added_at_a_time(
    tmp_path_factory, lengths, cuts, file_tokens
):
    path = tmp_path_factory.mktemp("shards")
    tokens = np.arange(sum(lengths)) % 101
    ends = np.cumsum([0, *lengths])
    a, b = (ShardWriter(path, split, 101, file_tokens) for split in ("train", "held-out"))
    for first, last in zip(ends, ends[1:], strict=False):
        a.add(tokens[first:last].tolist())
    cuts = sorted({0, len(lengths), *(min(cut, len(lengths)) for cut in cuts)})
    for first, last in zip(cuts, cuts[1:], strict=False):
        b.extend(tokens[ends[first] : ends[last]], np.array(lengths[first:last]))
    one, other = a.close(), b.close()
    assert (one["documents"], one["tokens"]) == (len(lengths), sum(lengths))
    assert len(one["files"]) == len(other["files"])
    for file, twin in zip(one["files"], other["files"], strict=True):
        assert (path / file).read_bytes() == (path / twin).read_bytes()
