"""Fingerprints: whether something is what a record says it was, by SHA-256.

A resumed run must read the same data and the same teacher; what is converted already is not
converted again. The digests are in records on disk: a change of one makes those records another
version's.
"""

import hashlib
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import torch.nn as nn

SHOWN = 24  # hexadecimal digits of a fingerprint of parts
ENDS = 1 << 16  # bytes at either end of a file


def of_bytes(chunks: Iterable[bytes]) -> str:
    """Hex SHA-256 of bytes; where one chunk ends and the next begins does not count."""
    sha = hashlib.sha256()
    for chunk in chunks:
        sha.update(chunk)
    return sha.hexdigest()


def of_value(value) -> str:
    """The fingerprint of numbers, strings and what is made of them, whatever files they came in."""
    return of_bytes([repr(value).encode()])


def of_parts(*parts) -> str:
    """24 hexadecimal digits that change with any of the parts.

    Args:
        parts: arrays count by their bytes, all else by its `repr`.
    """
    chunks = [x.tobytes() if isinstance(x, np.ndarray) else repr(x).encode() for x in parts]
    return of_bytes(y for x in chunks for y in (f"{len(x)} ".encode(), x))[:SHOWN]


def of_state(path: Path) -> str:
    """The fingerprint of a file's name, size, time of change, first and last bytes."""
    state = path.stat()
    with open(path, "rb") as file:
        head = file.read(ENDS)
        file.seek(max(0, state.st_size - ENDS))
        return of_parts(path.name, state.st_size, state.st_mtime_ns, head, file.read())


def of_files(paths: Iterable[Path]) -> str:
    """The fingerprint of the contents of files, in their order."""

    def digest(path: Path) -> bytes:
        with open(path, "rb") as file:
            return hashlib.file_digest(file, "sha256").digest()

    return of_bytes(map(digest, paths))


def of_weights(model: nn.Module | None) -> str | None:
    """The fingerprint of names and weights; None for no model."""
    if model is None:
        return None
    tensors = sorted(model.state_dict().items())
    return of_bytes(
        y for name, x in tensors for y in (name.encode(), x.cpu().contiguous().numpy().tobytes())
    )
