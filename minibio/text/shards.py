"""Token shards: a tokenised corpus on disk, read through memory maps.

A corpus of 33 million citations is 16 GB of token ids: too much for memory, little for a disk. It
lies in a directory as files of a few million documents' tokens each:

    meta.json                  format, V, casing and fingerprint of the tokenizer, length, counts
    train-00000.bin ...        documents to train on
    held-out-00000.bin ...     documents kept back to measure on
    vocab.txt, tokenizer.json  the tokenizer that made them

One .bin, little-endian:

    header    64 bytes   magic, version, bytes per token, documents, tokens, CRC-32 of the tokens,
                         of the offsets, spare bytes, CRC-32 of all that precedes
    offsets   uint64     (documents + 1,)  where each document begins; the last is the end
    tokens    uint16     (tokens,)  ids, or uint32 where V > 65,536

Each document has its [CLS] and [SEP], already cut to the length of the shards.

Opening checks header and offsets; `verify` reads the tokens too. Files of format 1, which has one
checksum for offsets and tokens, are read whole when they are opened.
"""

import bisect
import re
import struct
import zlib
from collections.abc import Iterator
from itertools import accumulate
from pathlib import Path
from typing import NamedTuple

import numpy as np

from minibio.run.errors import InputError
from minibio.run.files import read_json, staged_file

FORMAT = 2
READABLE = (1, 2)
SPLITS = ("train", "held-out")
MAGIC = b"minibio\n"
HEADER = struct.Struct("<8sIIQQII20xI")
FILE_NAME = re.compile(r"[A-Za-z0-9_-]+\.bin")
MISMATCH = "the checksum does not match; the file is damaged"
FILE_TOKENS = 2**24  # a writer holds one file in memory: 34 MB


class ShardWriter:
    """Writes the documents of one split, file after file, in the order they are added."""

    def __init__(self, path: str | Path, split: str, V: int, file_tokens: int = FILE_TOKENS):
        if split not in SPLITS:
            raise ValueError(f"ShardWriter: split is {split!r}, expected one of {SPLITS}")
        self.path, self.split, self.V, self.file_tokens = Path(path), split, V, file_tokens
        self.dtype = np.dtype("<u2" if V <= 2**16 else "<u4")
        self.files: list[str] = []
        self.n_documents = self.n_tokens = 0
        self.clear()

    def clear(self) -> None:
        self.parts, self.lengths, self.held = [], [], 0  # arrays, and how many tokens they hold

    def add(self, ids: list[int]) -> None:
        """Append one document of token ids, each in 0 .. V-1."""
        if len(ids) == 0 or min(ids) < 0 or max(ids) >= self.V:
            raise ValueError(
                f"ShardWriter.add: {len(ids)} ids from {min(ids, default=None)} to "
                f"{max(ids, default=None)}, expected at least one, each in 0 to {self.V - 1}"
            )
        self.extend(np.array(ids, self.dtype), np.array([len(ids)]))

    def extend(self, tokens: np.ndarray, lengths: np.ndarray) -> None:
        """Append documents: their token ids one after another, and how many are whose.

        The ids are held as they are, not copied, until the file is full.

        A file is full with the document that brings it to `file_tokens`, whoever adds how many at
        a time.
        """
        while len(lengths):
            ends = np.cumsum(lengths)
            n = int(np.searchsorted(ends, self.file_tokens - self.held)) + 1
            n = min(n, len(lengths))
            self.parts.append(np.asarray(tokens[: ends[n - 1]], self.dtype))
            self.lengths.append(lengths[:n])
            self.held += int(ends[n - 1])
            self.n_documents += n
            self.n_tokens += int(ends[n - 1])
            assert ends[n - 1] <= len(tokens), "fewer ids than the lengths say"
            tokens, lengths = tokens[ends[n - 1] :], lengths[n:]
            if self.held >= self.file_tokens:
                self.flush()

    def flush(self) -> None:
        """Write what is held as the next file."""
        if not self.parts:
            return
        name = f"{self.split}-{len(self.files):05d}.bin"
        write_part(self.path / name, self.parts, np.concatenate(self.lengths))
        self.files.append(name)
        self.clear()

    def close(self) -> dict:
        """Write the rest; what `meta.json` says of this split."""
        self.flush()
        return {"documents": self.n_documents, "tokens": self.n_tokens, "files": self.files}


def write_part(file: Path, parts: list[np.ndarray], lengths: np.ndarray) -> None:
    """Write one .bin: token ids, in arrays of one type, and the length of each document."""
    offsets = np.append(0, np.cumsum(lengths)).astype("<u8")  # (documents + 1,)
    crc = 0
    for tokens in parts:
        crc = zlib.crc32(tokens, crc)
    n_tokens, itemsize = int(offsets[-1]), parts[0].itemsize if parts else 2
    header = HEADER.pack(
        MAGIC, FORMAT, itemsize, len(lengths), n_tokens, crc, zlib.crc32(offsets), 0
    )
    header = header[:-4] + struct.pack("<I", zlib.crc32(header[:-4]))
    with staged_file(file) as staged, open(staged, "wb") as opened:
        for part in (header, offsets, *parts):
            opened.write(part)


class Shards:
    """The documents of one split: `shards[i]` is an array of token ids, mapped, not read."""

    def __init__(self, path: str | Path, split: str = "train"):
        """Open and check every file of the split: its header, its size, where documents begin.

        Raises:
            InputError: no shards there, another format, or a file that is missing or damaged.
        """
        self.path, self.split = Path(path), split
        if not (self.path / "meta.json").is_file():
            raise InputError(
                f"{path}: no meta.json there, so no token shards; python -m data.shard makes them"
            )
        self.meta = read_meta(self.path / "meta.json")
        self.V: int = self.meta["V"]
        entry = self.meta["splits"][split]
        self.parts = [open_part(self.path / name, self.V) for name in entry["files"]]
        self.ends = list(accumulate(len(offsets) - 1 for offsets, _ in self.parts))
        self.n_tokens = sum(len(tokens) for _, tokens in self.parts)
        found = (len(self), self.n_tokens)
        if found != (entry["documents"], entry["tokens"]):
            raise InputError(
                f"{self.path / 'meta.json'}: {split} has {entry['documents']} documents and "
                f"{entry['tokens']} tokens, the files hold {found[0]} and {found[1]}; "
                "make the shards again"
            )

    def __len__(self) -> int:
        """Documents."""
        return self.ends[-1] if self.ends else 0

    def __getitem__(self, i: int) -> np.ndarray:
        """(T,) uint16 or uint32: the token ids of document i, a view into the file."""
        if not 0 <= i < len(self):
            raise IndexError(f"document {i} of {len(self)}")
        n = bisect.bisect_right(self.ends, i)
        offsets, tokens = self.parts[n]
        i -= self.ends[n - 1] if n else 0
        return tokens[offsets[i] : offsets[i + 1]]

    @property
    def lengths(self) -> np.ndarray:
        """(documents,) int64: tokens of each document."""
        parts = [np.diff(offsets).astype(np.int64) for offsets, _ in self.parts]
        return np.concatenate([np.zeros(0, np.int64), *parts])


def read_meta(file: Path) -> dict:
    """meta.json, every field that is used checked for its type and range.

    Raises:
        InputError: it names the file and the field.
    """
    meta = read_json(file)
    if meta.get("format") not in READABLE:
        raise InputError(
            f"{file}: format is {meta.get('format')!r}, expected {FORMAT}; make the shards again"
        )
    splits, numbers = (
        meta.get("splits"),
        {"V": (meta.get("V"), 1), "length": (meta.get("length"), 1)},
    )
    for split in SPLITS:
        entry = splits.get(split) if isinstance(splits, dict) else None
        entry = entry if isinstance(entry, dict) else {}
        names = entry.get("files")
        if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
            raise InputError(f"{file}: {split}: files is {names!r:.60}, expected a list of names")
        for name in names:  # a plain name: nothing outside the directory is read
            if not FILE_NAME.fullmatch(name) or names.count(name) > 1:
                raise InputError(
                    f"{file}: {split}: files has {name!r:.60}, expected {split}-00000.bin and so on"
                )
        numbers |= {f"{split}: {key}": (entry.get(key), 0) for key in ("documents", "tokens")}
    for key, (value, least) in numbers.items():
        if type(value) is not int or not least <= value < 2**62:
            raise InputError(f"{file}: {key} is {value!r:.60}, expected a number from {least}")
    if not isinstance(meta.get("tokenizer"), str):
        raise InputError(f"{file}: tokenizer is {meta.get('tokenizer')!r:.60}, expected its hash")
    return meta


class Header(NamedTuple):
    """The first 64 bytes of a .bin; the checksums are CRC-32."""

    magic: bytes
    version: int
    itemsize: int  # bytes a token
    documents: int
    tokens: int
    tokens_crc: int  # in format 1 of offsets and tokens
    offsets_crc: int
    header_crc: int

    @property
    def start(self) -> int:
        """The byte where the tokens begin."""
        return HEADER.size + 8 * (self.documents + 1)


def read_header(file: Path, V: int) -> Header:
    """The header of a .bin, checked against its checksum and the size of the file.

    Raises:
        InputError: missing, foreign, truncated or damaged.
    """
    if not file.is_file():
        raise InputError(f"{file}: no such file, but meta.json names it; make the shards again")
    size = file.stat().st_size
    with open(file, "rb") as opened:
        header = opened.read(HEADER.size)
    if len(header) < HEADER.size or not header.startswith(MAGIC):
        raise InputError(f"{file}: not a token shard (its first bytes are {header[:8]!r})")
    found = Header(*HEADER.unpack(header))
    itemsize = 2 if V <= 2**16 else 4
    if found.version not in READABLE or found.itemsize != itemsize:
        raise InputError(
            f"{file}: format {found.version} with {found.itemsize} bytes a token, expected format "
            f"{FORMAT} with {itemsize} for {V} pieces; make the shards again"
        )
    if found.version > 1 and zlib.crc32(header[:-4]) != found.header_crc:
        raise InputError(f"{file}: header (bytes 0 to 63): {MISMATCH}")
    need = found.start + itemsize * found.tokens
    if size != need:
        raise InputError(
            f"{file}: {size} bytes, expected {need} for {found.documents} documents of "
            f"{found.tokens} tokens; the file is cut short or damaged"
        )
    return found


def open_part(file: Path, V: int) -> tuple[np.ndarray, np.ndarray]:
    """The (offsets, tokens) of one .bin as memory maps.

    Raises:
        InputError: missing, foreign, truncated or damaged, as far as header and offsets show.
    """
    header = read_header(file, V)
    body = np.memmap(file, np.uint8, "r", offset=HEADER.size).view(np.ndarray)
    offsets, tokens = np.split(body, [header.start - HEADER.size])
    if header.version == 1 and zlib.crc32(body) != header.tokens_crc:
        raise InputError(
            f"{file}: bytes {HEADER.size} to {HEADER.size + len(body) - 1}: {MISMATCH}"
        )
    if header.version > 1 and zlib.crc32(offsets) != header.offsets_crc:
        raise InputError(f"{file}: offsets (bytes {HEADER.size} to {header.start - 1}): {MISMATCH}")
    return offsets.view("<u8"), tokens.view(f"<u{header.itemsize}")


# reading everything again


def verify(path: str | Path) -> Iterator[str]:
    """Every fault of a directory of shards, in words: file, place, what is wrong.

    Read again: the checksums, each document's length, each id, what meta.json says of them.
    """
    path = Path(path)
    try:
        meta = read_meta(path / "meta.json")
    except InputError as error:
        yield str(error)
        return
    for split in SPLITS:
        entry, n_documents, n_tokens = meta["splits"][split], 0, 0
        for name in entry["files"]:
            try:
                offsets, tokens = open_part(path / name, meta["V"])
            except InputError as error:
                yield str(error)
                continue
            yield from faults(path / name, offsets, tokens, meta)
            n_documents, n_tokens = n_documents + len(offsets) - 1, n_tokens + len(tokens)
        if (n_documents, n_tokens) != (entry["documents"], entry["tokens"]):
            yield (
                f"{path / 'meta.json'}: {split}: {entry['documents']} documents and "
                f"{entry['tokens']} tokens, the readable files hold {n_documents} and {n_tokens}"
            )


def faults(file: Path, offsets: np.ndarray, tokens: np.ndarray, meta: dict) -> Iterator[str]:
    """Faults inside one file whose header and offsets can be read."""
    header = read_header(file, meta["V"])
    lengths = np.diff(offsets.astype(np.int64))
    if (offsets[0], offsets[-1]) != (0, len(tokens)):
        yield f"{file}: offsets span tokens {offsets[0]} to {offsets[-1]} of {len(tokens)}"
        return
    is_bad = (lengths < 1) | (lengths > meta["length"])
    if is_bad.any():
        i = int(is_bad.argmax())
        yield (
            f"{file}: document {i} (byte {HEADER.size + 8 * i}) has {lengths[i]} tokens, expected "
            f"1 to {meta['length']}"
        )
        return
    crc = 0
    for first in range(0, len(tokens), FILE_TOKENS):
        part = tokens[first : first + FILE_TOKENS]
        crc = zlib.crc32(part, crc)
        is_bad = part >= meta["V"]
        if is_bad.any():
            at = first + int(is_bad.argmax())
            i = int(np.searchsorted(offsets, at, "right")) - 1
            yield (
                f"{file}: document {i} (byte {header.start + at * header.itemsize}) holds id "
                f"{tokens[at]}, expected ids below {meta['V']}"
            )
    if header.version > 1 and crc != header.tokens_crc:
        last = header.start + tokens.nbytes - 1
        yield f"{file}: tokens (bytes {header.start} to {last}): {MISMATCH}"
