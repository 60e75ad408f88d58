"""Token shards: a tokenised corpus on disk, read through memory maps.

A corpus of 33 million citations is 16 GB of token ids: too much for memory, little for a disk. It
lies in a directory as files of a few million documents' tokens each:

    meta.json                  format, V, casing and fingerprint of the tokenizer, length, counts
    train-00000.bin ...        documents to train on
    held-out-00000.bin ...     documents kept back to measure on
    vocab.txt, tokenizer.json  the tokenizer that made them

One .bin, little-endian:

    header    64 bytes   magic, version, bytes per token, documents, tokens, CRC-32 of what follows
    offsets   uint64     (documents + 1,)  where each document begins; the last is the end
    tokens    uint16     (tokens,)  ids, or uint32 where V > 65,536

Each document stands with its [CLS] and [SEP], already cut to the length of the shards.
"""

import bisect
import struct
import zlib
from array import array
from itertools import accumulate
from pathlib import Path

import numpy as np

from minibio.errors import InputError
from minibio.files import read_json, staged_file

FORMAT = 1
SPLITS = ("train", "held-out")
MAGIC = b"minibio\n"
HEADER = struct.Struct("<8sIIQQI28x")  # magic, version, bytes a token, documents, tokens, CRC-32
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
        self.offsets, self.tokens = array("Q", [0]), array("H" if self.V <= 2**16 else "I")

    def add(self, ids: list[int]) -> None:
        """Append one document of token ids, each in 0 .. V-1."""
        if len(ids) == 0 or min(ids) < 0 or max(ids) >= self.V:
            raise ValueError(
                f"ShardWriter.add: {len(ids)} ids from {min(ids, default=None)} to "
                f"{max(ids, default=None)}, expected at least one, each in 0 to {self.V - 1}"
            )
        self.tokens.extend(ids)
        self.offsets.append(len(self.tokens))
        self.n_documents += 1
        self.n_tokens += len(ids)
        if len(self.tokens) >= self.file_tokens:
            self.flush()

    def flush(self) -> None:
        """Write what is held as the next file."""
        if len(self.offsets) == 1:
            return
        offsets = np.asarray(self.offsets, dtype="<u8")  # (documents + 1,)
        tokens = np.asarray(self.tokens, dtype=self.dtype)  # (tokens,)
        crc = zlib.crc32(tokens, zlib.crc32(offsets))
        header = HEADER.pack(MAGIC, FORMAT, self.dtype.itemsize, len(offsets) - 1, len(tokens), crc)
        name = f"{self.split}-{len(self.files):05d}.bin"
        with staged_file(self.path / name) as staged, open(staged, "wb") as file:
            file.write(header)
            file.write(offsets)
            file.write(tokens)
        self.files.append(name)
        self.clear()

    def close(self) -> dict:
        """Write the rest; what `meta.json` says of this split."""
        self.flush()
        return {"documents": self.n_documents, "tokens": self.n_tokens, "files": self.files}


class Shards:
    """The documents of one split: `shards[i]` is an array of token ids, mapped, not read."""

    def __init__(self, path: str | Path, split: str = "train"):
        """Open and check every file of the split; reads each once for its checksum.

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
    """meta.json, checked for the keys that are used here."""
    meta = read_json(file)
    if meta.get("format") != FORMAT:
        raise InputError(
            f"{file}: format is {meta.get('format')}, expected {FORMAT}; make the shards again"
        )
    try:
        for key in ("V", "length", "tokenizer"):
            meta[key]
        for split in SPLITS:
            for key in ("documents", "tokens", "files"):
                meta["splits"][split][key]
    except (KeyError, TypeError) as error:
        raise InputError(f"{file}: {error.args[0]!r} is missing; make the shards again") from None
    return meta


def open_part(file: Path, V: int) -> tuple[np.ndarray, np.ndarray]:
    """The (offsets, tokens) of one .bin as memory maps.

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
    _, version, itemsize, documents, n_tokens, crc = HEADER.unpack(header)
    if version != FORMAT or itemsize != (2 if V <= 2**16 else 4):
        raise InputError(
            f"{file}: format {version} with {itemsize} bytes a token, expected format {FORMAT} "
            f"with {2 if V <= 2**16 else 4} for {V} pieces; make the shards again"
        )
    need = HEADER.size + 8 * (documents + 1) + itemsize * n_tokens
    if size != need:
        raise InputError(
            f"{file}: {size} bytes, expected {need} for {documents} documents of {n_tokens} "
            "tokens; the file is cut short or damaged"
        )
    body = np.memmap(file, np.uint8, "r", offset=HEADER.size).view(np.ndarray)
    if zlib.crc32(body) != crc:
        raise InputError(f"{file}: the checksum does not match; the file is damaged")
    offsets, tokens = np.split(body, [8 * (documents + 1)])
    return offsets.view("<u8"), tokens.view(f"<u{itemsize}")
