"""Directories of tensors that are whole or not there, whenever the process is killed.

    FOLDER/step-00001234/
        NAME.safetensors    one for each part
        state.json          whatever is known besides
        manifest.json       size and sha256 of every other file; written last

Each is written under a hidden name beside its place, down to the disk, and renamed; to be removed,
it is renamed to a hidden name first. So a kill at any instant leaves the whole ones whole, and
nothing that is not whole has the name of one. `tidy` clears what a killed one left.
checkpoint.py says what goes in.
"""

import errno
import hashlib
import json
import os
import re
import shutil
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from minibio.run.errors import InputError
from minibio.run.files import read_json

FORMAT, VERSION = "minibio checkpoint", 1
STATE, MANIFEST = "state.json", "manifest.json"
OTHER_VERSION = (
    "of another version; resume with the version that wrote it, or start again with --overwrite"
)
# .before: the older one of the same step, whole, aside while the newer takes its place
NAME = re.compile(r"step-(\d{8,})(\.before)?")


def whole(folder: Path) -> list[Path]:
    """The directories with the name of a whole one, newest first."""
    names = os.listdir(folder) if folder.is_dir() else []
    matches = [m for m in map(NAME.fullmatch, names) if m]
    matches.sort(key=lambda m: (int(m[1]), m[2] is None), reverse=True)
    return [folder / m[0] for m in matches]


def step_of(place: Path) -> int:
    return int(NAME.fullmatch(place.name)[1])


# ---- writing


def write(
    folder: Path,
    step: int,
    parts: dict[str, dict[str, Tensor]],
    state: bytes,
    also: Path | None = None,
) -> Path:
    """Write one directory; an older one of the same step is removed once the new one is whole.

    Args:
        state: the text of state.json.
        also:  a file that is brought down to the disk before the directory gets its name.
    Raises:
        OSError: the disk is full or broken; nothing is left of it then.
    """
    if not folder.is_dir():
        folder.mkdir(parents=True)
        sync(folder.parent)
    tidy(folder)
    place = folder / f"step-{step:08d}"
    staged, before = folder / f".{place.name}.new", folder / f"{place.name}.before"
    try:
        staged.mkdir()
        files = {f"{part}.safetensors": tensors for part, tensors in parts.items()}
        files[STATE] = state
        listed = {name: write_file(staged / name, content) for name, content in files.items()}
        manifest = {"format": FORMAT, "version": VERSION, "files": listed}
        write_file(staged / MANIFEST, json.dumps(manifest, indent=1).encode())
        sync(staged)
        if also is not None and also.exists():
            sync(also)
        if place.exists():
            place.rename(before)
        staged.rename(place)
    except BaseException:  # an interrupt too leaves nothing behind
        shutil.rmtree(staged, ignore_errors=True)
        raise
    sync(folder)
    if before.exists():
        remove(before)
    return place


def tidy(folder: Path) -> None:
    """Clear what a save or a removal left that was killed."""
    for left in folder.glob(".step-*"):
        shutil.rmtree(left)
    for before in folder.glob("step-*.before"):
        if before.with_suffix("").exists():
            remove(before)


def remove(place: Path) -> None:
    """Delete a directory, its name first: half of one must not look like one."""
    hidden = place.with_name(f".{place.name}.old")
    place.rename(hidden)
    shutil.rmtree(hidden)


def sync(path: Path) -> None:
    """Down to the disk: a file's bytes, a directory's names."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def write_file(path: Path, content: bytes | dict[str, Tensor]) -> dict:
    """Write bytes, or tensors as safetensors, down to the disk -> their number and sha256.

    Raises:
        OSError: it cannot be written.
    """
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        write_tensors(path, {name: x.cpu().contiguous() for name, x in content.items()})
    sync(path)
    return size_and_hash(path)


def write_tensors(
    path: Path, tensors: dict[str, Tensor], metadata: dict[str, str] | None = None
) -> None:
    """Write tensors as safetensors, for whoever may read other new files here.

    Raises:
        OSError: it cannot be written.
    """
    path.touch()
    mode = path.stat().st_mode
    try:
        save_file(tensors, path, metadata)
    except SafetensorError as error:  # the operating system's word is in its text only
        raise OSError(errno.EIO, str(error), str(path)) from None
    path.chmod(mode)  # the library replaces the file by one for its owner alone


def size_and_hash(path: Path) -> dict:
    """Size and sha256 of a file."""
    with open(path, "rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
        return {"bytes": os.fstat(file.fileno()).st_size, "sha256": digest}


# ---- reading


def check(place: Path, parts: tuple[str, ...]) -> dict:
    """Read all of a directory -> its state.json.

    Raises:
        InputError: anything in it is not as it was written.
        OSError: it cannot be read.
    """
    manifest = read_json(place / MANIFEST)
    if manifest.get("format") != FORMAT:
        raise InputError(f"{place / MANIFEST}: this is not a manifest of a checkpoint")
    if manifest.get("version") != VERSION:
        raise InputError(f"{place}: format {manifest.get('version')!r}, expected {VERSION}")
    names, listed = {*(f"{part}.safetensors" for part in parts), STATE}, manifest.get("files")
    if not isinstance(listed, dict) or set(listed) != names:
        raise InputError(f"{place / MANIFEST}: it does not list {', '.join(sorted(names))}")
    for name in sorted(names):
        if not (place / name).is_file():
            raise InputError(f"{place / name}: no such file")
        found = size_and_hash(place / name)
        if found != listed[name]:
            raise InputError(
                f"{place / name}: its {found['bytes']} bytes are not those that were written"
            )
    state = read_json(place / STATE)
    if state.get("step") != step_of(place):
        raise InputError(f"{place}: holds step {state.get('step')}, another than its name says")
    return state


def read(place: Path, parts: tuple[str, ...]) -> dict[str, Tensor]:
    """{"PART/NAME": tensor} of all parts; the tensors may be mapped files."""
    tensors = {}
    for part in parts:
        path = place / f"{part}.safetensors"
        try:
            tensors |= {f"{part}/{name}": x for name, x in load_file(path).items()}
        except (SafetensorError, OSError) as error:
            raise InputError(f"{path}: {error}: truncated or damaged") from None
    return tensors
