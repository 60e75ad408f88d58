"""Files that are whole or not there: everything is written beside its place, then renamed into it.

A run that is killed, or a disk that fills up, leaves the old file or none, never half of a new one
(what a power cut does to a file system is left to the file system). What a user can get wrong, a
place that cannot be written, a directory already in use, a damaged JSON file, is one `InputError`.
"""

import fcntl
import gzip
import json
import lzma
import math
import os
import shutil
import tempfile
import zlib
from contextlib import contextmanager
from pathlib import Path

from minibio.run.errors import InputError


def check_writable(path) -> Path:
    """Refuse a place that cannot be written now rather than after an hour of work.

    Args:
        path: a file or directory to be made later; the parents that it lacks can be made.
    Returns:
        `path` as a `Path`.
    Raises:
        InputError: a parent is a file, or nothing can be created there.
    """
    path = Path(path)
    place = path if path.is_dir() else path.absolute().parent
    while not os.path.lexists(place):
        place = place.parent
    if not place.is_dir():
        raise InputError(f"cannot write {path}: {place} is not a directory; choose another path")
    try:  # permission bits do not tell of read-only or full file systems: try it
        tempfile.TemporaryFile(dir=place).close()
    except OSError as error:
        raise InputError(
            f"cannot write {path}: {place}: {error.strerror}; choose another path"
        ) from None
    return path


def real(path) -> Path:
    """`path` with its links followed, whether it is there or not; a loop of links stays one."""
    return Path(os.path.realpath(path))


def check_apart(out, *paths) -> None:
    """Refuse to write a file or directory, perhaps to replace it, that is or holds what is read.

    Raises:
        InputError: one of the paths is `out`, or in it.
    """
    for path in paths:
        if real(path) == real(out) and not real(out).is_dir():
            raise InputError(f"--out {out} is what is read; name another place")
        if real(path).is_relative_to(real(out)):
            raise InputError(f"--out {out} holds {path}, which is read; name another directory")


def check_dir(path, overwrite: bool = False) -> Path:
    """Refuse a directory that `staged_dir` would refuse, before the work of filling it.

    Returns:
        `path` with its links followed: what is replaced, while the links keep pointing there.
    Raises:
        InputError: as `staged_dir`.
    """
    path = real(path)
    if os.path.lexists(path) and not path.is_dir():
        raise InputError(f"{path} is a file, expected a directory to write; choose another path")
    is_used = path.is_dir() and any(path.iterdir())
    if is_used and not overwrite:
        raise InputError(f"{path} already holds files; remove it or choose another path")
    if is_used and Path.cwd().is_relative_to(path):
        raise InputError(f"{path} contains the working directory and is not replaced")
    check_writable(path)
    check_writable(path.parent)
    return path


@contextmanager
def locked(path):
    """Exclusive use of what the lock file `path` protects, until the block ends.

    The file is removed at the end. One that a killed process left locks nothing and is taken over.

    Raises:
        InputError: another process holds it.
    """
    path = Path(path)
    while True:
        file = open(path, "ab")
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.path.exists(path) and os.path.samestat(os.fstat(file.fileno()), os.stat(path)):
                break
        except BlockingIOError:
            file.close()
            raise InputError(
                f"{path}: another process is writing there; wait for its end"
            ) from None
        file.close()  # the process before removed it after it was opened here
    try:
        yield
    finally:
        path.unlink(missing_ok=True)
        file.close()


def beside(path: Path, what: str) -> Path:
    """A hidden name in the same directory, so that a rename moves no data.

    The same for every process, so that the next one finds what a killed one left.
    """
    return path.parent / f".{path.name}.{what}"


def remove(path: Path) -> None:
    """A file or a directory with all that is in it, if it is there."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def remove_staged(path: Path) -> None:
    """Remove what `staged_dir` made, and what a killed one left beside it."""
    for place in (path, *(beside(path, what) for what in ("new", "old", "lock"))):
        remove(place)


def recover(path: Path) -> None:
    """Put back a directory whose replacement was killed between its two renames."""
    old = beside(path, "old")
    if old.exists() and not path.exists():
        old.rename(path)


@contextmanager
def staged_dir(path, overwrite: bool = False):
    """A temporary directory beside `path` that takes its place when the block ends without error.

        with staged_dir("runs/tiny") as staged:
            (staged / "config.json").write_text(...)

    Args:
        path:      the directory to be made. An empty one is taken over.
        overwrite: a directory with files in it is replaced, and kept until the new one is whole.
    Raises:
        InputError: `path` is a file, holds files and `overwrite` is False, contains the working
            directory, cannot be written, or is being written. All before the block runs.
    """
    path = check_dir(path, overwrite)
    path.parent.mkdir(parents=True, exist_ok=True)
    staged, old = beside(path, "new"), beside(path, "old")
    with locked(beside(path, "lock")):
        recover(path)
        check_dir(path, overwrite)
        is_used = path.is_dir() and any(path.iterdir())
        remove(old)
        remove(staged)
        staged.mkdir()
        try:
            yield staged
            if is_used:
                path.rename(old)
            try:
                staged.rename(path)
            except OSError:
                if is_used:
                    old.rename(path)
                raise
        except BaseException:  # an interrupt too leaves nothing behind
            remove(staged)
            raise
        remove(old)


@contextmanager
def staged_file(path):
    """A temporary path beside `path`; the file written there replaces it when the block succeeds.

    Raises:
        InputError: `path` is a directory or a device, cannot be written, or is being written;
            before the block runs.
    """
    path = Path(os.path.realpath(path))
    if path.is_dir():
        raise InputError(f"{path} is a directory, expected a file to write; choose another path")
    if path.exists() and not path.is_file():  # root would replace /dev/null
        raise InputError(f"{path} is a device or pipe, expected a file to write")
    check_writable(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    staged = beside(path, "new")
    with locked(staged):
        yield staged
        os.replace(staged, path)


# what a damaged archive raises while it is read
DAMAGED = (EOFError, gzip.BadGzipFile, lzma.LZMAError, zlib.error)


def unpacked(file):
    """A binary stream with a `peek`, unpacked where its first bytes are those of gzip or xz."""
    head = file.peek(6)
    if head.startswith(b"\x1f\x8b"):
        return gzip.open(file, "rb")
    return lzma.open(file, "rb") if head.startswith(b"\xfd7zXZ\0") else file


# first bytes of what comes in a file's place
NOT_THE_FILE = {
    b"version https://git-lfs": "a git-lfs pointer, not the file itself; run `git lfs pull` there",
    b"<!doctype html": "a web page, not the file itself; fetch it from its download address",
    b"<html": "a web page, not the file itself; fetch it from its download address",
}


def check_content(path) -> None:
    """Refuse a git-lfs pointer or a web page that was saved in a file's place.

    Raises:
        InputError: it is one.
    """
    with open(path, "rb") as file:
        head = file.read(64).lstrip().lower()
    for start, what in NOT_THE_FILE.items():
        if head.startswith(start):
            raise InputError(f"{path}: {what}")


def read_json(path, kinds: tuple[type, ...] = (dict,)) -> dict | list:
    """The object in a JSON file, with or without a byte-order mark.

    Args:
        kinds: (dict, list) = a list may be there instead.
    Raises:
        InputError: there is no such file, it is not UTF-8 text, not JSON (line and column are
            named), or not of these kinds.
    """
    path = Path(path)
    try:
        value = json.loads(path.read_text("utf-8-sig"))  # PowerShell and Notepad write a mark
    except OSError as error:
        raise InputError(f"{path}: {error.strerror}, expected a JSON file") from None
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: byte {error.start} is not UTF-8, expected a JSON file") from None
    except json.JSONDecodeError as error:
        check_content(path)
        raise InputError(
            f"{path}: line {error.lineno}, column {error.colno}: {error.msg}, expected JSON"
        ) from None
    except (RecursionError, ValueError) as error:  # nested too deeply, or a number too long
        raise InputError(f"{path}: {error}, expected a JSON file of usual depth") from None
    if not isinstance(value, kinds):
        names = "an object {...}" + " or a list [...]" * (list in kinds)
        raise InputError(f"{path}: holds a {type(value).__name__}, expected {names}")
    return value


@contextmanager
def as_written(path, remedy: str):
    """Around what takes a JSON file of ours apart: a missing name or another type is bad input.

    Raises:
        InputError: in place of what the block raises then.
    """
    try:
        yield
    except InputError:
        raise
    except (AttributeError, LookupError, OverflowError, TypeError, ValueError) as error:
        what = f"no {error}" if isinstance(error, KeyError) else error
        raise InputError(f"{path} is not as it was written ({what}); {remedy}") from None


def finite(value):
    """`value` with None for what JSON has no number for: NaN and the infinities."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: finite(x) for key, x in value.items()}
    return [finite(x) for x in value] if isinstance(value, list | tuple) else value


def write_json(path, value) -> None:
    """`value` as JSON, keys in their own order; the file is replaced in one move."""
    with staged_file(path) as staged:
        text = json.dumps(finite(value), indent=2, ensure_ascii=False, allow_nan=False)
        staged.write_text(text + "\n", "utf-8")
