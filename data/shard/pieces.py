"""Blocks of text to pieces: tokenised, each with a table of what later decisions need.

A piece is made of one block of an input and of nothing else: any process can make it, in any order,
and a run that was killed resumes from those that are complete. Decisions that need all documents
(which of two equal ones is kept, which sentence is only a phrase) are made when all pieces are
there (shard.py), from their tables only. On disk:

    00017.bin   the token ids, in the form of a shard (minibio/text/shards.py): a document, or the
                windows of a document that was split, one after another
    00017.npz   the columns of `Piece`, a row a document; written last: it completes the piece
"""

import hashlib
import zipfile
import zlib
from array import array
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np

from data.shard import records
from data.shard.leakage import Sentences
from data.shard.records import FLAGS, Block, CorpusDocument, documents
from minibio.run import fingerprint
from minibio.run.errors import InputError
from minibio.run.files import staged_file
from minibio.text import sentences
from minibio.text.shards import MISMATCH, open_part, read_header, write_part
from minibio.text.tokenizer import Tokenizer

CHUNK = 512  # documents tokenised at once
COUNTED = ("read", *FLAGS, "empty")  # counts of a piece; the rest is counted from its table
CHARACTERS = 6  # of a text for each token that fits; PubMed has 4.4 a token
NAME = 80  # characters of a document's name in the leakage report


@dataclass(frozen=True)
class PieceRecipe:
    """All that pieces depend on, beside their block."""

    tokenizer: Path  # its directory
    length: int  # tokens of the longest sequence, [CLS] and [SEP] included
    split_long: bool  # longer documents are split into windows, not cut
    keep_eval: bool  # records flagged as part of an evaluation set are kept
    duplicates: str  # "keep" or "exact": whether hashes of texts are wanted
    sentences: Sentences | None  # to look for

    @property
    def fingerprint(self) -> str:
        """Changes with everything that the pieces depend on but the input."""
        wanted = self.sentences.fingerprint if self.sentences else None
        tokenizer = Tokenizer.from_dir(self.tokenizer).fingerprint
        options = (self.length, self.split_long, self.keep_eval, self.duplicates)
        return fingerprint.of_parts(3, records.BLOCK, tokenizer, options, wanted)


class Maker:
    """Makes pieces: built once in each process, then called for block after block."""

    def __init__(self, recipe: PieceRecipe):
        self.recipe, self.tokenizer = recipe, Tokenizer.from_dir(recipe.tokenizer)
        self.is_start = [not piece.startswith("##") for piece in self.tokenizer.pieces]  # of a word

    def __call__(self, task: tuple[Block, Path]) -> int:
        """Write the piece of (a block, the path of its piece without an ending).

        Returns:
            the lines of the block, blank ones left out.
        Raises:
            InputError: a line that is not a record.
        """
        block, stem = task
        counts, n, tables, tokens, lengths = Counter(), 0, [], [], []
        stream = documents(block, counts, self.recipe.keep_eval)
        while chunk := list(islice(stream, CHUNK)):
            table, row, row_lengths = self.chunk(chunk, counts, n)
            n += len(table["key"])
            tables.append(table)
            tokens.append(row)
            lengths.append(row_lengths)
        if not tables:  # every line was left out
            table, row, row_lengths = self.chunk([], counts, 0)
            tables, tokens, lengths = [table], [row], [row_lengths]
        table = {name: np.concatenate([t[name] for t in tables], -1) for name in tables[0]}
        table["counts"] = np.array([counts[name] for name in COUNTED])
        write_part(Path(f"{stem}.bin"), tokens, np.concatenate(lengths))
        with staged_file(f"{stem}.npz") as staged, open(staged, "wb") as file:
            np.savez(file, **table)
        return counts["read"]

    def chunk(self, chunk: list[CorpusDocument], counts: Counter, first: int) -> tuple:
        """The table of some documents, their tokens in a row, and the length of each sequence.

        Args:
            first: the number of the first of them in the piece.
        """
        t = self.tokenizer
        row, lengths, kept, n_windows, cut = array("H" if t.V <= 2**16 else "I"), [], [], [], []
        texts = [d.text for d in chunk]
        found = self.windows(texts) if self.recipe.split_long else self.heads(texts)
        for document, (windows, n_cut) in zip(chunk, found, strict=True):
            if not windows:  # spaces, control characters
                counts["empty"] += 1
                continue
            for window in windows:
                row.append(t.cls_id)
                row.extend(window)
                row.append(t.sep_id)
                lengths.append(len(window) + 2)
            kept.append(document)
            n_windows.append(len(windows))
            cut.append(n_cut)
        tokens, lengths = np.asarray(row), np.array(lengths, np.int64)
        table = {
            "key": np.array([key_hash(d.key) for d in kept], np.uint64),
            "version": np.array([d.version for d in kept], np.uint32),
            "windows": np.array(n_windows, np.uint32),
            "cut": np.array(cut, np.uint32),
        }
        if self.recipe.duplicates != "keep":
            table["text"] = np.array([text_hash(d.text) for d in kept], np.uint64)
        if self.recipe.sentences:
            leaks = self.recipe.sentences.find([d.text for d in kept])
            rows = np.array(leaks, np.int64).reshape(-1, 2).T  # (2, h)
            named = [[kept[i].key[:NAME]] for i, _ in leaks]
            table["leaks"] = rows + [[first], [0]]
            table["names"] = np.array(named, f"<U{NAME}").reshape(1, -1)
        return table, tokens, lengths

    @property
    def room(self) -> int:
        """Tokens of the longest sequence, beside [CLS] and [SEP]."""
        return self.recipe.length - 2

    def heads(self, texts: list[str]) -> Iterator[tuple[list[list[int]], int]]:
        """For each text its first `room` tokens, none or one list of them, and how many were cut.

        Each word is cut into pieces by itself, so the pieces of the first words of a text are the
        first pieces of the text. A quarter of PubMed's characters lies beyond the usual cut: they
        are not tokenised, and their tokens are estimated from those before the cut.
        """
        starts = [first_words(text, CHARACTERS * self.room) for text in texts]
        found = self.tokenizer.encode_words(starts)
        for text, start, ids in zip(texts, starts, found, strict=True):
            if len(ids) <= self.room and len(start) < len(text):
                start, [ids] = text, self.tokenizer.encode_words([text])
            n_cut = len(ids) * len(text) / max(1, len(start)) - self.room
            is_cut = len(ids) > self.room
            yield [ids[: self.room]] if ids else [], round(n_cut) if is_cut else 0

    def windows(self, texts: list[str]) -> Iterator[tuple[list[list[int]], int]]:
        """For each text its windows, and 0: no token is cut off.

        A text long enough to be split is tokenised sentence by sentence to begin with.
        """
        parts = [sentences.split(x) or [x] if len(x) > 2 * self.room else [x] for x in texts]
        found = iter(self.tokenizer.encode_words([part for each in parts for part in each]))
        for text, part in zip(texts, parts, strict=True):
            ids = list(islice(found, len(part)))
            if len(part) == 1 and len(ids[0]) > self.room:
                ids = self.tokenizer.encode_words(sentences.split(text))
            yield split(ids, self.room, self.is_start), 0


def first_words(text: str, n: int) -> str:
    """The words that end in the first n characters of a text; all of it where none does."""
    if len(text) <= n:
        return text
    end = text.rfind(" ", 0, n)
    return text if end < 0 else text[:end]


def split(sentences: list[list[int]], room: int, is_start: list[bool]) -> list[list[int]]:
    """The windows of a document: as many whole sentences each as fit into `room` tokens.

    A sentence longer than that is cut before the last word that does not fit whole, or within a
    word of more than `room` tokens; the rest of it begins the next window. Nothing is lost, and
    nothing comes twice.
    """
    windows, window = [], []
    for ids in sentences:
        if window and len(window) + len(ids) > room:
            windows.append(window)
            window = []
        begin = 0
        while len(ids) - begin > room:  # by index: slicing off the rest would be quadratic
            full = begin + room
            end = next((k for k in range(full, begin, -1) if is_start[ids[k]]), full)
            windows.append(ids[begin:end])
            begin = end
        window = window + ids[begin:]
    return [*windows, window] if window else windows


def key_hash(key: str) -> int:
    """64 bits of an id's hash; they decide whether its document is held out."""
    return int.from_bytes(hashlib.sha256(key.encode()).digest()[:8], "big")


def text_hash(text: str) -> int:
    """64 bits of a text's hash, whatever its case and white space."""
    plain = " ".join(text.split()).casefold()
    return int.from_bytes(hashlib.blake2b(plain.encode(), digest_size=8).digest(), "big")


@dataclass
class Piece:
    """A piece on disk; columns are read when asked for, and not kept."""

    stem: Path
    first: int = 0  # the number of its first document, over all pieces

    def column(self, name: str) -> np.ndarray:
        """A column of the table.

            key      (n,) uint64   hash of the id, or of the text where there is none
            version  (n,) uint32   0 = the document has no id
            windows  (n,) uint32   its sequences
            cut      (n,) uint32   tokens cut off, about; 0 = none
            text     (n,) uint64   hash of the text, where duplicates are looked for
            leaks    (2, h) int64  document in this piece, sentence, and
            names    (1, h)        the document's name, where sentences are looked for
            counts   (4,) int64    of COUNTED

        Raises:
            InputError: the file is damaged.
        """
        file = Path(f"{self.stem}.npz")
        try:
            with open(file, "rb") as opened, np.load(opened) as table:
                return table[name]
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error) as error:
            raise InputError(
                f"{file}: {error}; remove {file.parent.parent} and run again"
            ) from None

    @property
    def leaks(self) -> np.ndarray:
        return self.column("leaks")

    @property
    def names(self) -> dict[int, str]:
        """The names of the documents with a test sentence."""
        return dict(zip(self.leaks[0].tolist(), self.column("names")[0].tolist(), strict=True))

    def sequences(self, V: int) -> tuple[np.ndarray, np.ndarray]:
        """(offsets, tokens), memory-mapped: those of `minibio.text.shards.open_part`.

        Raises:
            InputError: the file is damaged, tokens included.
        """
        file = Path(f"{self.stem}.bin")
        try:
            offsets, tokens = open_part(file, V)
            if zlib.crc32(tokens) != read_header(file, V).tokens_crc:
                raise InputError(f"{file}: {MISMATCH}")
        except InputError as error:
            raise InputError(f"{error}; remove {file.parent.parent} and run again") from None
        return offsets, tokens
