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
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from functools import partial
from pathlib import Path, PurePosixPath
from typing import IO
from zipfile import is_zipfile

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
    return is_zipfile(path) or tarfile.is_tarfile(path)


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
    with ExitStack() as stack:
        try:
            files = read_zip(archive, stack) if is_zipfile(archive) else read_tar(archive, stack)
        except DAMAGE as error:
            raise InputError(f"{archive}: {error}; it is damaged or not ours: remove it") from None
        places = []
        for name, file in files:
            place = choose(name)
            if place is not None and place not in places:
                with staged_file(at(place)) as staged, file() as source, open(staged, "wb") as out:
                    shutil.copyfileobj(source, out)
                places.append(place)
    return sorted(places)


Files = list[tuple[str, Callable[[], IO[bytes]]]]  # the name of each, and how to open it


def read_zip(archive: Path, stack: ExitStack) -> Files:
    """The files of an archive, of which every byte was read; raises one of DAMAGE."""
    z = stack.enter_context(zipfile.ZipFile(archive))
    add_up(entry.file_size for entry in z.infolist())
    if bad := z.testzip():
        raise zipfile.BadZipFile(f"{bad} has another checksum")
    return [
        (entry.filename, partial(z.open, entry)) for entry in z.infolist() if not entry.is_dir()
    ]


def read_tar(archive: Path, stack: ExitStack) -> Files:
    """As `read_zip`. First as a bare stream: nothing that a tar says of itself takes time or memory
    beyond LIMIT, and the checksum of a .tar.gz comes after its last member."""
    stream = stack.enter_context(open(archive, "rb"))
    if stream.read(2) == b"\x1f\x8b":
        stream = stack.enter_context(gzip.open(archive))
    stream.seek(0)
    add_up(map(len, iter(partial(stream.read, 1 << 20), b"")))
    stream.seek(0)
    t = stack.enter_context(tarfile.open(fileobj=stream, mode="r:"))
    add_up(entry.size for entry in t)  # a sparse file is longer than its bytes
    return [(entry.name, partial(t.extractfile, entry)) for entry in t if entry.isreg()]


def add_up(sizes: Iterable[int]) -> None:
    """Raise `ValueError` where an archive has more than it may."""
    total = 0
    for n, size in enumerate(sizes, 1):
        total += size
        if size < 0 or total > LIMIT or n > MEMBERS:
            raise ValueError(f"more than the limit of {LIMIT:,} bytes or {MEMBERS:,} members")
