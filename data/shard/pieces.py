"""Blocks of text to pieces: tokenised, each with a table that says all that is to be decided later.

A piece is what one block of an input comes to. It stands on its own: any process can make it, in
any order, and a run that was killed goes on from those that are whole. What needs all documents,
which of two equal ones stays, which sentence is but a phrase, is decided when all pieces are there
(shard.py), from their tables alone. On disk:

    00017.bin   the token ids, in the form of a shard (minibio/text/shards.py): a document, or the
                windows of a document that was split, one after another
    00017.npz   the columns of `Piece`, a row a document; written last: with it the piece is whole
"""

import hashlib
import re
import zipfile
import zlib
from array import array
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np

from data.shard import duplicates, records
from data.shard.leakage import Sentences
from data.shard.records import FLAGS, Block, Document, documents
from minibio.run.errors import InputError
from minibio.run.files import staged_file
from minibio.text.shards import open_part, write_part
from minibio.text.tokenizer import Tokenizer

CHUNK = 512  # documents tokenised at once
COUNTED = ("read", *FLAGS, "empty")  # what a piece counts; the rest is counted from its table
CHARACTERS = 6  # of a text for each token that fits; PubMed has 4.4 a token
NAME = 80  # characters of a document's name in the leakage report
SENTENCE_END = re.compile(r"(?<=[.!?])\s+")


@dataclass(frozen=True)
class Recipe:
    """How blocks become pieces."""

    tokenizer: Path  # its directory
    length: int  # tokens of the longest sequence, [CLS] and [SEP] included
    split_long: bool  # longer documents are split into windows, not cut
    keep_eval: bool  # records flagged as part of an evaluation set are kept
    duplicates: str  # "keep", "exact" or "near": which hashes are wanted
    sentences: Sentences | None  # to look for

    @property
    def fingerprint(self) -> str:
        """Changes with everything that the pieces depend on but the input."""
        sentences = self.sentences.fingerprint if self.sentences else None
        tokenizer = Tokenizer.from_dir(self.tokenizer).fingerprint
        parts = (1, records.BLOCK, tokenizer, self.length, self.split_long, self.keep_eval,
                 self.duplicates, sentences)  # fmt: skip
        return hashlib.sha256(repr(parts).encode()).hexdigest()


class Maker:
    """Makes pieces: built once in each process, then called for block after block."""

    def __init__(self, recipe: Recipe):
        self.recipe, self.tokenizer = recipe, Tokenizer.from_dir(recipe.tokenizer)
        self.is_start = [not piece.startswith("##") for piece in self.tokenizer.pieces]  # of a word

    def __call__(self, task: tuple[Block, Path]) -> int:
        """Write the piece of (a block, the path of its piece without an ending).

        Returns:
            the lines of the block, blank ones left out.
        Raises:
            InputError: a line that is no record.
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

    def chunk(self, chunk: list[Document], counts: Counter, first: int) -> tuple:
        """The table of some documents, their tokens in a row, and the length of each sequence.

        Args:
            first: the number of the first of them in the piece.
        """
        t = self.tokenizer
        row, lengths, kept, n_windows, is_cut = array("H" if t.V <= 2**16 else "I"), [], [], [], []
        texts = [d.text for d in chunk]
        found = self.windows(texts) if self.recipe.split_long else self.heads(texts)
        for document, (windows, is_short) in zip(chunk, found, strict=True):
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
            is_cut.append(is_short)
        tokens, lengths = np.asarray(row), np.array(lengths, np.int64)
        table = {
            "key": np.array([key_hash(d.key) for d in kept], np.uint64),
            "version": np.array([d.version for d in kept], np.uint32),
            "windows": np.array(n_windows, np.uint32),
            "is_cut": np.array(is_cut, bool),
        }
        if self.recipe.duplicates != "keep":
            table["text"] = np.array([text_hash(d.text) for d in kept], np.uint64)
        if self.recipe.duplicates == "near":
            bare = bare_tokens(tokens, t)
            document = np.repeat(np.arange(len(kept)), n_windows).repeat(lengths)[bare]
            each = np.bincount(document, minlength=len(kept))
            table["bands"] = duplicates.bands(tokens[bare], each, t.unk_id)
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

    def heads(self, texts: list[str]) -> Iterator[tuple[list[list[int]], bool]]:
        """For each text its first `room` tokens, none or one list of them, and if there were more.

        Words are cut into pieces on their own, so the pieces of the first words of a text are the
        first pieces of the text. A quarter of PubMed's characters lies beyond the usual cut.
        """
        starts = [first_words(text, CHARACTERS * self.room) for text in texts]
        found = self.tokenizer.encode_words(starts)
        for text, start, ids in zip(texts, starts, found, strict=True):
            if len(ids) <= self.room and len(start) < len(text):
                [ids] = self.tokenizer.encode_words([text])
            yield [ids[: self.room]] if ids else [], len(ids) > self.room

    def windows(self, texts: list[str]) -> Iterator[tuple[list[list[int]], bool]]:
        """For each text its windows; nothing is cut off.

        What is long enough to be split is tokenised sentence by sentence to begin with.
        """
        parts = [SENTENCE_END.split(x) if len(x) > 2 * self.room else [x] for x in texts]
        found = iter(self.tokenizer.encode_words([part for each in parts for part in each]))
        for text, part in zip(texts, parts, strict=True):
            sentences = list(islice(found, len(part)))
            if len(part) == 1 and len(sentences[0]) > self.room:
                sentences = self.tokenizer.encode_words(SENTENCE_END.split(text))
            yield split(sentences, self.room, self.is_start), False


def first_words(text: str, n: int) -> str:
    """The words of a text that end in its first n characters; all of it where there is no such."""
    if len(text) <= n:
        return text
    end = text.rfind(" ", 0, n)
    return text if end < 0 else text[:end]


def split(sentences: list[list[int]], room: int, is_start: list[bool]) -> list[list[int]]:
    """The windows of a document: as many whole sentences each as fit into `room` tokens.

    A sentence that is longer alone is cut before the last word that does not fit whole, or within a
    word of more than `room` tokens; what is left of it begins the next window. Nothing is lost, and
    nothing comes twice.
    """
    windows, window = [], []
    for ids in sentences:
        if window and len(window) + len(ids) > room:
            windows.append(window)
            window = []
        while len(ids) > room:
            at = next((k for k in range(room, 0, -1) if is_start[ids[k]]), room)
            windows.append(ids[:at])
            ids = ids[at:]
        window = window + ids
    return [*windows, window] if window else windows


def bare_tokens(tokens: np.ndarray, tokenizer: Tokenizer) -> np.ndarray:
    """(N,) bool: neither [CLS] nor [SEP]."""
    return (tokens != tokenizer.cls_id) & (tokens != tokenizer.sep_id)


def key_hash(key: str) -> int:
    """64 bits that stand for an id, and decide whether its document is held out."""
    return int.from_bytes(hashlib.sha256(key.encode()).digest()[:8], "big")


def text_hash(text: str) -> int:
    """64 bits that stand for a text, whatever its case and white space."""
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
            is_cut   (n,) bool     whether tokens were left out
            text     (n,) uint64   hash of the text, and
            bands    (BANDS, n) uint64, where duplicates are wanted
            leaks    (2, h) int64  document in this piece, sentence, and
            names    (1, h)        what the document is called, where sentences are looked for
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
        """What the documents with a test sentence are called."""
        return dict(zip(self.leaks[0].tolist(), self.column("names")[0].tolist(), strict=True))

    def sequences(self, V: int) -> tuple[np.ndarray, np.ndarray]:
        """(offsets, tokens), memory-mapped: those of `minibio.text.shards.open_part`."""
        return open_part(Path(f"{self.stem}.bin"), V)
