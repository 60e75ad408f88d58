"""Chosen files out of a zip or tar archive, and nothing else on the disk.

No name of the archive is ever a path: `choose` says which member goes to which place, and `at`
refuses a place outside its folder. Links and devices are no files. Each file is written beside its
place and renamed.
"""

import lzma
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO

from minibio.run.errors import InputError
from minibio.run.files import staged_file

CHUNK = 1 << 20  # bytes read at once
LARGEST = 2 << 30  # bytes of one member: more is no text of ours, and may be made to fill the disk
DAMAGE = (zipfile.BadZipFile, tarfile.TarError, lzma.LZMAError, zlib.error, struct.error, EOFError,
          OSError, NotImplementedError, RuntimeError, ValueError)  # fmt: skip


def is_archive(path: Path) -> bool:
    return zipfile.is_zipfile(path) or tarfile.is_tarfile(path)


def unpack(archive: Path, at: Callable[[str], Path],
           choose: Callable[[str], str | None]) -> list[str]:  # fmt: skip
    """Write the chosen members of an archive; the places written, in order.

    Args:
        at:     a place -> where that is; raises `InputError` for one it does not like.
        choose: a member's name -> its place, None = leave it. Of two members for one place the
            first counts.
    Raises:
        InputError: the archive is damaged, a member is too large.
    """
    try:
        read_all(archive)
    except DAMAGE as error:
        raise InputError(f"{archive}: {error}; the archive is damaged: remove it") from None
    places = []
    for name, size, file in members(archive):
        place = choose(name)
        if place is None or place in places:
            continue
        what = f"{archive}: {name}"
        if size > LARGEST:
            raise InputError(f"{what} has {size:,} bytes, expected at most {LARGEST:,}")
        with staged_file(at(place)) as staged, open(staged, "wb") as out:
            copy(file(), out, what)
        places.append(place)
    return sorted(places)


def read_all(archive: Path) -> None:
    """Raise what Python's readers raise where the archive is damaged, before a file is written.

    The checksum of a .tar.gz comes last, and who stops at the last member never reads it.
    """
    if zipfile.is_zipfile(archive):
        with zipfile.ZipFile(archive) as z:
            if bad := z.testzip():
                raise zipfile.BadZipFile(f"{bad} has another checksum")
    else:
        with tarfile.open(archive) as t:
            for _ in t:
                pass
            while t.fileobj.read(CHUNK):
                pass


def members(archive: Path) -> Iterator[tuple[str, int, Callable[[], IO[bytes]]]]:
    """(name, bytes, how to open it) of each regular file of an archive."""
    if zipfile.is_zipfile(archive):
        with zipfile.ZipFile(archive) as z:
            for entry in z.infolist():
                if not entry.is_dir():
                    yield entry.filename, entry.file_size, lambda e=entry: z.open(e)
    else:
        with tarfile.open(archive) as t:
            for entry in t:
                if entry.isreg():
                    yield entry.name, entry.size, lambda e=entry: t.extractfile(e)


def copy(source: IO[bytes], out: IO[bytes], what: str) -> None:
    """All bytes; the size an archive names is only a claim."""
    written = 0
    with source:
        while chunk := source.read(CHUNK):
            written += len(chunk)
            if written > LARGEST:
                raise InputError(f"{what} has more than {LARGEST:,} bytes")
            out.write(chunk)
