"""Directories of tensors that are whole or not there, whenever the power of the process ends.

    FOLDER/step-00001234/
        NAME.safetensors    one for each part
        state.json          whatever is known besides
        manifest.json       size and sha256 of every other file; written last

Each is written under a hidden name beside its place, down to the disk, and renamed; to be removed,
it is renamed to a hidden name first. So a kill at any instant leaves the whole ones whole, and
nothing that is not whole bears the name of one. What a dead save left, the next one clears.
checkpoint.py says what goes in.
"""

import hashlib
import json
import os
import re
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from minibio.run.errors import InputError
from minibio.run.files import read_json

FORMAT, VERSION = "minibio checkpoint", 1
STATE, MANIFEST = "state.json", "manifest.json"
# .before: the older one of the same step, whole, aside while the newer takes its place
NAME = re.compile(r"step-(\d{8,})(\.before)?")
DTYPES = {
    torch.float64: "F64", torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16",
    torch.int64: "I64", torch.int32: "I32", torch.uint8: "U8", torch.bool: "BOOL",
}  # fmt: skip


def standing(folder: Path) -> list[Path]:
    """What bears the name of a whole directory, newest first."""
    names = os.listdir(folder) if folder.is_dir() else []
    matches = [m for m in map(NAME.fullmatch, names) if m]
    matches.sort(key=lambda m: (int(m[1]), m[2] is None), reverse=True)
    return [folder / m[0] for m in matches]


def step_of(place: Path) -> int:
    return int(NAME.fullmatch(place.name)[1])


# ---- writing


def write(folder: Path, step: int, parts: dict[str, dict[str, Tensor]], state: bytes,
          also: Path | None = None) -> Path:  # fmt: skip
    """Write one directory; an older one of the same step goes when the new one stands.

    Args:
        state: the text of state.json.
        also:  a file that is brought down to the disk before the directory gets its name.
    Raises:
        OSError: the disk is full or broken; nothing is left of it then.
    """
    if not folder.is_dir():
        folder.mkdir(parents=True)
        sync(folder.parent)
    for left in folder.glob(".step-*"):  # by a save or a removal that was killed
        shutil.rmtree(left)
    place = folder / f"step-{step:08d}"
    staged, before = folder / f".{place.name}.new", folder / f"{place.name}.before"
    try:
        staged.mkdir()
        files = {f"{part}.safetensors": serialise(tensors) for part, tensors in parts.items()}
        files[STATE] = [state]
        listed = {name: write_file(staged / name, chunks) for name, chunks in files.items()}
        manifest = {"format": FORMAT, "version": VERSION, "files": listed}
        write_file(staged / MANIFEST, [json.dumps(manifest, indent=1).encode()])
        sync(staged)
        if also is not None and also.exists():
            sync(also)
        if place.exists():
            if before.exists():
                remove(before)
            place.rename(before)
        staged.rename(place)
    except BaseException:  # an interrupt too leaves nothing behind
        shutil.rmtree(staged, ignore_errors=True)
        raise
    sync(folder)
    if before.exists():
        remove(before)
    return place


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


def write_file(path: Path, chunks: Iterable) -> dict:
    """Write bytes down to the disk -> their number and sha256, computed on the way.

    (sha256 and not a shorter checksum: with the processor's own instructions for it, which give
    1.6 GB/s a core, it is faster than most disks.)
    """
    digest, size = hashlib.sha256(), 0
    with open(path, "wb") as file:
        for chunk in chunks:
            file.write(chunk)
            digest.update(chunk)
            size += len(chunk)
        file.flush()
        os.fsync(file.fileno())
    return {"bytes": size, "sha256": digest.hexdigest()}


def serialise(tensors: dict[str, Tensor]) -> Iterator:
    """The bytes of a safetensors file: 8 of length, a JSON header, the tensors one by one.

    The package's own writer wants every tensor in host memory, gives no checksum, and turns what
    the operating system says of a full disk into a text. Wide types come first: that aligns all.
    """
    order = sorted(tensors, key=lambda name: (-tensors[name].itemsize, name))
    header, end = {}, 0
    for name in order:
        x = tensors[name]
        header[name] = {
            "dtype": DTYPES[x.dtype], "shape": list(x.shape), "data_offsets": [end, end + x.nbytes]
        }  # fmt: skip
        end += x.nbytes
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    yield len(text).to_bytes(8, "little") + text
    for name in order:
        yield tensors[name].cpu().contiguous().reshape(-1).view(torch.uint8).numpy()


# ---- reading


def check(place: Path, parts: tuple[str, ...]) -> dict:
    """Read all of a directory -> its state.json.

    Raises:
        InputError: anything in it is not as it was written.
        OSError: it cannot be read.
    """
    manifest = read_json(place / MANIFEST)
    if manifest.get("format") != FORMAT:
        raise InputError(f"{place / MANIFEST}: this is no manifest of a checkpoint")
    if manifest.get("version") != VERSION:
        raise InputError(f"{place}: format {manifest.get('version')!r}, expected {VERSION}")
    names, listed = {*(f"{part}.safetensors" for part in parts), STATE}, manifest.get("files")
    if not isinstance(listed, dict) or set(listed) != names:
        raise InputError(f"{place / MANIFEST}: it does not list {', '.join(sorted(names))}")
    for name in sorted(names):
        if not (place / name).is_file():
            raise InputError(f"{place / name}: no such file")
        with open(place / name, "rb") as file:
            size = os.fstat(file.fileno()).st_size
            found = {"bytes": size, "sha256": hashlib.file_digest(file, "sha256").hexdigest()}
        if found != listed[name]:
            raise InputError(f"{place / name}: its {size} bytes are not those that were written")
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
