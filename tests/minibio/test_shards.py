"""Token shards: what goes in comes out, and a damaged file never passes."""

import json
import struct
import zlib

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from minibio import shards
from minibio.errors import InputError
from minibio.shards import FORMAT, Shards, ShardWriter

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


def test_the_format_is_the_one_written_down(tmp_path):
    """Byte by byte, so that shards of today are read tomorrow."""
    write(tmp_path, [[2, 300, 3], [2, 3]], V=301, file_tokens=100)
    body = struct.pack("<3Q", 0, 3, 5) + struct.pack("<5H", 2, 300, 3, 2, 3)
    header = b"minibio\n" + struct.pack("<IIQQI", 1, 2, 2, 5, zlib.crc32(body)) + bytes(28)
    assert (tmp_path / "train-00000.bin").read_bytes() == header + body


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
    """Any one byte of the file other than: every change is refused or lies in the spare bytes."""
    file = write(tmp_path) / "train-00000.bin"
    whole = file.read_bytes()
    spare = range(36, 64)  # of the header
    for i in [i for i in range(len(whole)) if i not in spare]:
        file.write_bytes(whole[:i] + bytes([whole[i] ^ 0x10]) + whole[i + 1 :])
        with pytest.raises(InputError, match="train-00000.bin"):
            Shards(tmp_path)
    file.write_bytes(whole)
    Shards(tmp_path)


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
    with pytest.raises(InputError, match="with 2 bytes a token, expected format 1 with 4"):
        Shards(tmp_path)
    change_meta(tmp_path, V=101, splits={"train": {"documents": 4}})
    with pytest.raises(InputError, match="meta.json: 'tokens' is missing"):
        Shards(tmp_path)
    change_meta(tmp_path, format=FORMAT + 1)
    with pytest.raises(InputError, match="format is 2, expected 1"):
        Shards(tmp_path)


def test_shards_of_another_format_version(tmp_path, monkeypatch):
    monkeypatch.setattr(shards, "FORMAT", 2)
    write(tmp_path)
    monkeypatch.setattr(shards, "FORMAT", 1)
    change_meta(tmp_path, format=1)
    with pytest.raises(InputError, match="train-00000.bin: format 2"):
        Shards(tmp_path)
