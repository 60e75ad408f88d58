"""The record beside the files."""

import json

import pytest

from data.fetch.fetched import Folder, inside, verify
from data.fetch.sources import Item
from minibio.run.errors import InputError

ITEM = Item("a/x", "https://host/x", "MIT", "a", revision="7")
WEIGHTS = Item("model.safetensors", "https://hub/m", "MIT", "m", repo="me/m")


def write(path, body=b"abc"):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(body)


def test_what_is_recorded(tmp_path):
    folder = Folder(tmp_path)
    assert not folder.has(ITEM) and not folder.file.exists()
    write(tmp_path / "a" / "x")
    assert not folder.has(ITEM)  # by whom? it has to be checked
    folder.put("a/x", ITEM, size=3, sha256="00")
    assert folder.has(ITEM)
    again = Folder(tmp_path)
    assert again.files == folder.files and again.has(ITEM)
    text = json.loads((tmp_path / "fetched.json").read_text())
    assert (text["format"], text["version"]) == ("minibio fetch", 1)
    entry = text["files"]["a/x"]
    assert len(entry.pop("date")) == 10
    assert entry == {"address": "https://host/x", "revision": "7", "size": 3, "sha256": "00",
                     "licence": "MIT"}  # fmt: skip
    (tmp_path / "a" / "x").unlink()
    assert not again.has(ITEM)
    item = again.expect(ITEM)
    assert (item.sha256, item.since) == ("00", again.files["a/x"]["date"])


def test_places_are_in_order(tmp_path):
    folder = Folder(tmp_path)
    for place in ("c", "a", "b"):
        folder.put(place, ITEM)
    assert list(Folder(tmp_path).files) == ["a", "b", "c"]


def test_what_the_server_lacks(tmp_path):
    folder = Folder(tmp_path)
    folder.put("a/x", ITEM, absent=True)
    assert folder.has(ITEM) and folder.expect(ITEM) is ITEM and verify(folder) == {}


def test_weights_may_be_a_pickle(tmp_path):
    folder = Folder(tmp_path)
    write(tmp_path / "pytorch_model.bin")
    assert not folder.has(WEIGHTS)
    folder.put("pytorch_model.bin", WEIGHTS, size=3, sha256="00")
    assert folder.has(WEIGHTS)
    (tmp_path / "pytorch_model.bin").unlink()
    assert not folder.has(WEIGHTS)
    expected = folder.expect(WEIGHTS)
    assert (expected.place, expected.repo, expected.sha256) == ("pytorch_model.bin", None, "00")
    write(tmp_path / "model.safetensors")  # converted
    assert folder.has(WEIGHTS)


@pytest.mark.parametrize(
    "text",
    ['{"format": "other"}', '{"files": {}}', '{"format": "minibio fetch", "files": []}',
     '{"format": "minibio fetch", "files": {"x": 3}}'],
)  # fmt: skip
def test_no_record_of_ours(tmp_path, text):
    (tmp_path / "fetched.json").write_text(text)
    with pytest.raises(InputError, match="is no record of data.fetch"):
        Folder(tmp_path)


def test_a_damaged_record(tmp_path):
    (tmp_path / "fetched.json").write_text('{"format"')
    with pytest.raises(InputError, match="fetched.json: line 1, column 10"):
        Folder(tmp_path)


def test_inside(tmp_path):
    assert inside(tmp_path, "a/b.tsv") == tmp_path / "a" / "b.tsv"
    for place in ("", ".", "/", "/a", "..", "a/../../b", "a/..", "..\\a", "a\0b", "//a"):
        with pytest.raises(InputError, match="is no place below"):
            inside(tmp_path, place)


def test_a_place_that_is_no_folder(tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(InputError, match="is not a directory"), Folder(tmp_path / "file").alone():
        pass


def test_the_lock_is_given_back(tmp_path):
    folder = Folder(tmp_path / "new")
    for _ in range(2):
        with folder.alone(), pytest.raises(InputError, match="another data.fetch"):
            with Folder(tmp_path / "new").alone():
                pass
