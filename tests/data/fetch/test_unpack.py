"""Only what was chosen leaves an archive, and only for its place."""

import io
import tarfile
import zipfile
from functools import partial

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import data.fetch.unpack
from data.fetch.fetched import inside
from data.fetch.unpack import is_archive, unpack
from minibio.run.errors import InputError

MEMBERS = {"a/x.tsv": b"one", "b/x.tsv": b"two" * 500_000, "../y": b"evil", "/z": b"evil"}


def packed(path, members, kind):
    if kind == "zip":
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as z:
            for name, body in members.items():
                z.writestr(name, body)
    else:
        with tarfile.open(path, "w:" + kind) as t:
            for name, body in members.items():
                info = tarfile.TarInfo(name)
                info.size = len(body)
                t.addfile(info, io.BytesIO(body))
    return path


every_kind = pytest.mark.parametrize("kind", ["zip", "", "gz", "xz", "bz2"])


def there(folder):
    return {str(x.relative_to(folder)): x.read_bytes() for x in folder.rglob("*") if x.is_file()}


@every_kind
def test_what_is_chosen(tmp_path, kind):
    archive = packed(tmp_path / "archive", MEMBERS, kind)
    assert is_archive(archive)
    out = tmp_path / "out"
    choose = {"a/x.tsv": "sets/1.tsv", "b/x.tsv": "2.tsv"}.get
    assert unpack(archive, partial(inside, out), choose) == ["2.tsv", "sets/1.tsv"]
    assert there(out) == {"sets/1.tsv": b"one", "2.tsv": b"two" * 500_000}


@every_kind
def test_no_path_outside(tmp_path, kind):
    archive = packed(tmp_path / "archive", MEMBERS, kind)
    out = tmp_path / "out"
    for name in ("../y", "/z"):
        with pytest.raises(InputError, match="is no place below"):
            unpack(archive, partial(inside, out), {name: name}.get)
    assert not out.exists() and not (tmp_path / "y").exists()


def test_links_are_no_files(tmp_path):
    with tarfile.open(tmp_path / "archive", "w") as t:
        for kind in (tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE, tarfile.DIRTYPE):
            info = tarfile.TarInfo("x")
            info.type, info.linkname = kind, "/etc/passwd"
            t.addfile(info)
    assert unpack(tmp_path / "archive", partial(inside, tmp_path / "out"), lambda name: name) == []


def test_the_first_of_two_counts(tmp_path):
    archive = packed(tmp_path / "archive", {"a/x": b"1", "b/x": b"2"}, "gz")
    assert unpack(archive, partial(inside, tmp_path / "out"), lambda name: "x") == ["x"]
    assert there(tmp_path / "out") == {"x": b"1"}


@every_kind
def test_too_large(tmp_path, kind, monkeypatch):
    archive = packed(tmp_path / "archive", MEMBERS, kind)
    monkeypatch.setattr(data.fetch.unpack, "LARGEST", 1_000_000)
    with pytest.raises(InputError, match="b/x.tsv has 1,500,000 bytes, expected at most 1,000,000"):
        unpack(archive, partial(inside, tmp_path / "out"), lambda name: name.strip("./"))
    assert "b/x.tsv" not in there(tmp_path / "out")


def test_a_claim_of_size_is_not_believed(tmp_path, monkeypatch):
    monkeypatch.setattr(data.fetch.unpack, "LARGEST", 10)
    with pytest.raises(InputError, match="archive: x has more than 10 bytes"):
        data.fetch.unpack.copy(io.BytesIO(b"x" * 11), io.BytesIO(), "archive: x")


@settings(max_examples=150, deadline=None)
@given(kind=st.sampled_from(["zip", "gz", "xz", "bz2"]), draw=st.data())
def test_damaged(tmp_path_factory, kind, draw):
    """Bytes changed or cut off: an error by name, or files that are whole."""
    folder = tmp_path_factory.mktemp("damaged")
    members = {"a": b"some text " * 50, "b": bytes(range(256)) * 8}
    archive = packed(folder / "archive", members, kind)
    body = bytearray(archive.read_bytes())
    body[draw.draw(st.integers(0, len(body) - 1))] ^= draw.draw(st.integers(1, 255))
    archive.write_bytes(body[: draw.draw(st.integers(1, len(body)))])
    try:
        unpack(archive, partial(inside, folder / "out"), {"a": "a", "b": "b"}.get)
    except InputError as error:
        assert str(error).startswith(str(archive)) and "damaged" in str(error)
        assert set(there(folder)) == {"archive"}
    else:
        found = there(folder / "out")
        assert found == {name: members[name] for name in found}
