"""Chosen files out of a zip or tar archive, and nothing else on the disk.

No name of the archive is ever a path: `choose` says which member goes to which place, and `inside`
refuses a place outside its folder. Links and devices are left out. Each file is written beside its
place and renamed.
"""

import gzip
import shutil
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path, PurePosixPath
from typing import IO

from minibio.run.errors import InputError
from minibio.run.files import staged_file

LIMIT = 2 << 30  # bytes of all members: more is not a corpus of ours, and may fill the disk
MEMBERS = 100_000
DAMAGE = (zipfile.BadZipFile, tarfile.TarError, zlib.error, struct.error, EOFError, OSError,
          NotImplementedError, RuntimeError, ValueError, OverflowError)  # fmt: skip


def inside(folder: Path, place: str) -> Path:
    """`place` below `folder`; raises `InputError` where it would lead elsewhere."""
    parts = PurePosixPath(place).parts
    if not parts or place.startswith("/") or ".." in parts or "\\" in place or "\0" in place:
        raise InputError(f"{place!r} is not a place below {folder}")
    return folder.joinpath(*parts)


def is_archive(path: Path) -> bool:
    return zipfile.is_zipfile(path) or tarfile.is_tarfile(path)


def unpack(
    archive: Path, at: Callable[[str], Path], choose: Callable[[str], str | None]
) -> list[str]:
    """Write the chosen members of an archive that is sound to its end -> their places, sorted.

    Args:
        at:     a place -> its path; raises `InputError` for one it does not like.
        choose: a member's name -> its place, None = leave it. Of two members for one place the
            first counts.
    Raises:
        InputError: the archive is damaged, or larger than LIMIT or MEMBERS when unpacked.
    """
    try:
        check(archive)
    except DAMAGE as error:
        raise InputError(f"{archive}: {error}; it is damaged or not ours: remove it") from None
    places = []
    for name, file in members(archive):
        place = choose(name)
        if place is not None and place not in places:
            with staged_file(at(place)) as staged, file() as source, open(staged, "wb") as out:
                shutil.copyfileobj(source, out)
            places.append(place)
    return sorted(places)


def check(archive: Path) -> None:
    """Read all of an archive before a file of it is written; raises one of DAMAGE.

    The checksum of a .tar.gz comes last, and stopping at the last member never reads it. As a bare
    stream first: nothing that a tar says of itself can take time or memory beyond LIMIT.
    """
    if zipfile.is_zipfile(archive):
        with zipfile.ZipFile(archive) as z:
            add_up(entry.file_size for entry in z.infolist())
            if bad := z.testzip():
                raise zipfile.BadZipFile(f"{bad} has another checksum")
        return
    with open_tar(archive) as stream:
        add_up(map(len, iter(lambda: stream.read(1 << 20), b"")))
    with open_tar(archive) as stream, tarfile.open(fileobj=stream, mode="r:") as t:
        add_up(entry.size for entry in t)  # a sparse file is longer than its bytes


def add_up(sizes: Iterable[int]) -> None:
    """Raise `ValueError` where an archive has more than it may."""
    total = 0
    for n, size in enumerate(sizes, 1):
        total += size
        if size < 0 or total > LIMIT or n > MEMBERS:
            raise ValueError(f"more than the limit of {LIMIT:,} bytes or {MEMBERS:,} members")


def open_tar(archive: Path) -> IO[bytes]:
    with open(archive, "rb") as file:
        is_gzip = file.read(2) == b"\x1f\x8b"
    return gzip.open(archive) if is_gzip else open(archive, "rb")


def members(archive: Path) -> Iterator[tuple[str, Callable[[], IO[bytes]]]]:
    """(name, how to open it) of each regular file of an archive."""
    if zipfile.is_zipfile(archive):
        with zipfile.ZipFile(archive) as z:
            for entry in z.infolist():
                if not entry.is_dir():
                    yield entry.filename, lambda e=entry: z.open(e)
    else:
        with open_tar(archive) as stream, tarfile.open(fileobj=stream, mode="r:") as t:
            for entry in t:
                if entry.isreg():
                    yield entry.name, lambda e=entry: t.extractfile(e)
