"""Only what was chosen leaves an archive, and only for its place."""

import gzip
import io
import struct
import tarfile
import zipfile
import zlib
from functools import partial

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import data.fetch.unpack
from data.fetch.unpack import inside, is_archive, unpack
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


every_kind = pytest.mark.parametrize("kind", ["zip", "", "gz"])


def there(folder):
    return {str(x.relative_to(folder)): x.read_bytes() for x in folder.rglob("*") if x.is_file()}


def everything(archive):
    """Unpack every member beside the archive."""
    return unpack(archive, partial(inside, archive.parent / "out"), lambda name: name)


@every_kind
def test_what_is_chosen(tmp_path, kind):
    archive = packed(tmp_path / "archive", MEMBERS, kind)
    assert is_archive(archive)
    out = tmp_path / "out"
    choose = {"a/x.tsv": "sets/1.tsv", "b/x.tsv": "2.tsv", "../y": "2.tsv"}.get  # the first counts
    assert unpack(archive, partial(inside, out), choose) == ["2.tsv", "sets/1.tsv"]
    assert there(out) == {"sets/1.tsv": b"one", "2.tsv": b"two" * 500_000}


@every_kind
@pytest.mark.parametrize("name", ["../y", "/z", "a/../../b", "..\\b"])
def test_no_path_outside(tmp_path, kind, name):
    archive = packed(tmp_path / "archive", {name: b"evil"}, kind)
    with pytest.raises(InputError, match="is not a place below"):
        everything(archive)
    assert [*there(tmp_path)] == ["archive"]


def test_inside(tmp_path):
    assert inside(tmp_path, "a/b.tsv") == tmp_path / "a" / "b.tsv"
    for place in ("", ".", "/", "/a", "..", "a/../../b", "a/..", "..\\a", "a\0b", "//a"):
        with pytest.raises(InputError, match="is not a place below"):
            inside(tmp_path, place)


def test_links_are_left_out(tmp_path):
    with tarfile.open(tmp_path / "archive", "w") as t:
        for kind in (tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE, tarfile.DIRTYPE):
            info = tarfile.TarInfo("x")
            info.type, info.linkname = kind, "/etc/passwd"
            t.addfile(info)
    assert everything(tmp_path / "archive") == []


# ---- bombs

LIMIT = "limit of 2,147,483,648 bytes or 100,000 members"


@every_kind
def test_too_large(tmp_path, kind, monkeypatch):
    archive = packed(tmp_path / "archive", MEMBERS, kind)
    monkeypatch.setattr(data.fetch.unpack, "LIMIT", 1_000_000)
    with pytest.raises(InputError, match="archive: more than the limit of 1,000,000 bytes"):
        everything(archive)
    assert [*there(tmp_path)] == ["archive"]


def test_20_gb_under_many_names(tmp_path):
    """One stretch of deflated zeros that 2,000 names point to."""
    c = zlib.compressobj(9, zlib.DEFLATED, -15)
    zeros = bytes(10_000_000)
    raw = c.compress(zeros) + c.flush()
    fields = (zlib.crc32(zeros), len(raw), len(zeros), 1, 0)
    local = struct.pack("<4s5H3L2H", b"PK\3\4", 20, 0, 8, 0, 0, *fields) + b"a" + raw
    one = struct.pack("<4s6H3L5H2L", b"PK\1\2", 20, 20, 0, 8, 0, 0, *fields, 0, 0, 0, 0, 0) + b"a"
    end = struct.pack("<4s4H2LH", b"PK\5\6", 0, 0, 2000, 2000, 2000 * len(one), len(local), 0)
    (tmp_path / "archive").write_bytes(local + 2000 * one + end)
    with pytest.raises(InputError, match=LIMIT):
        everything(tmp_path / "archive")


def test_what_a_tar_says_of_itself(tmp_path):
    def header(**fields):
        info = tarfile.TarInfo("x")
        for name, value in fields.items():
            setattr(info, name, value)
        return info.tobuf(tarfile.GNU_FORMAT)

    for name, body, match in (
        ("2^60 bytes", header(size=2**60) + bytes(1024), LIMIT),
        ("members", 100_001 * header(), LIMIT),
        ("negative", header(size=-512) + bytes(1024), LIMIT),
    ):
        (tmp_path / "archive").write_bytes(gzip.compress(body))
        with pytest.raises(InputError, match=match):
            everything(tmp_path / "archive")
        assert name and [*there(tmp_path)] == ["archive"]


@settings(max_examples=150, deadline=None)
@given(kind=st.sampled_from(["zip", "gz"]), draw=st.data())
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
