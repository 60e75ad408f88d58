"""(seed, position) -> sample: which document comes when, and how it is masked.

Training reads an endless line of samples, position 0, 1, 2, ...; a step takes the next ones
(feed.py). The sample at a position follows from the seed and the position only, never from who
asks or what was asked before. So a run resumes exactly, and any number of ranks with any number of
micro-batches sees the same samples in the same steps.

Within an epoch every document comes exactly once, in an order that a keyed bijection computes
document by document (`shuffle`): a stored permutation of 33 million citations would take 264 MB in
every process and seconds at every start, this one takes neither.
"""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from minibio.batch import Batch
from minibio.run.errors import InputError
from minibio.text.masking import Masking
from minibio.text.shards import Shards
from minibio.text.tokenizer import Tokenizer

ROUNDS = 4  # of the Feistel network; a round changes both halves
HELD_OUT_SEED = 0  # the held-out documents are masked alike in every run


class Sample(NamedTuple):
    """One sequence, as the model sees it."""

    tokens: np.ndarray  # (T,) int64
    predict: np.ndarray  # (M,) int64  places in the sequence to be predicted, ascending
    labels: np.ndarray  # (M,) int64  what stood there


class Corpus:
    """Token shards as an endless line of samples, and the held-out ones as a fixed pass."""

    def __init__(
        self,
        path: str | Path,
        split: str = "train",
        *,
        seed: int,
        length: int = 256,
        masking: bool = True,
    ):
        """Open shards.

        Args:
            seed:    of order and masks, 0 or more.
            length:  tokens of the longest sequence (F35); shards of longer ones are cut again.
            masking: whether tokens are masked; without, `predict` and `labels` are empty.
        Raises:
            InputError: no shards, damaged ones, shorter than `length`, without a document, or with
                a tokenizer that did not make them.
        """
        self.shards, self.path = Shards(path, split), Path(path)
        self.split, self.seed, self.length = split, seed, length
        stored = self.shards.meta["length"]
        if not 3 <= length <= stored:
            raise InputError(
                f"{path}: documents were cut to {stored} tokens, asked for {length}, expected 3 to "
                f"{stored}; make the shards again with --length {length}"
            )
        if not 0 <= seed < 2**64:
            raise InputError(f"the seed is {seed}, expected 0 or more")
        if len(self.shards) == 0:
            raise InputError(f"{path}: the split {split!r} has no document")
        self.tokenizer = Tokenizer.from_dir(path)
        if self.tokenizer.fingerprint != self.shards.meta["tokenizer"]:
            raise InputError(f"{path}: the tokenizer there is not the one that made the shards")
        t, probability = self.tokenizer, Masking.probability if masking else 0.0
        self.masking = Masking(t.V, t.mask_id, t.special_ids, probability)

    @property
    def V(self) -> int:
        """Pieces of the vocabulary."""
        return self.tokenizer.V

    @property
    def n_documents(self) -> int:
        return len(self.shards)

    @property
    def n_tokens(self) -> int:
        """Tokens of one epoch, at this corpus's length."""
        return int(self.lengths.sum())

    @property
    def lengths(self) -> np.ndarray:
        """(documents,) int64: tokens of each document, at this corpus's length."""
        return self.shards.lengths.clip(max=self.length)

    def check_tokenizer(self, tokenizer: Tokenizer) -> None:
        """Refuse a model that reads other token ids than these shards hold.

        Raises:
            InputError: vocabulary or casing differ.
        """
        if tokenizer.fingerprint != self.tokenizer.fingerprint:
            raise InputError(
                f"{self.path}: the shards were made with {self.tokenizer}, the model has "
                f"{tokenizer}, another vocabulary; make shards with the model's tokenizer"
            )

    def order(self, positions: Sequence[int]) -> list[int]:
        """The document at each position."""
        positions = np.asarray(positions, np.int64)
        epochs, places = np.divmod(positions, self.n_documents)
        indices = np.empty_like(positions)
        for epoch in np.unique(epochs):
            is_in = epochs == epoch
            indices[is_in] = shuffle(places[is_in], self.n_documents, (self.seed, int(epoch)))
        return indices.tolist()

    def sample(self, position: int) -> Sample:
        """The sample at `position`, a pure function of (seed, position)."""
        (ids,) = self.documents_at([position])
        return Sample(*self.masking.apply(ids, draws(self.seed, [position], [len(ids)])))

    def documents_at(self, positions: Sequence[int]) -> list[np.ndarray]:
        """(T,) int64 each: the document at each position, [CLS] to [SEP], not masked yet."""
        return [self.cut(self.shards[i]) for i in self.order(positions)]

    def take(self, positions: Sequence[int]) -> Batch:
        """The samples at these positions as one row."""
        return self.collate(self.documents_at(positions), positions)

    def lengths_at(self, positions: Sequence[int]) -> np.ndarray:
        """(...) int64: the tokens of the sample at each position, without reading them."""
        lengths = [len(self.shards[i]) for i in self.order(positions)]
        return np.array(lengths, np.int64).clip(max=self.length)

    def held_out_batches(self, B: int, limit: int | None = None) -> list[Batch]:
        """The held-out documents, B at a time, in order, masked alike in every run.

        Args:
            limit: documents; None = all.
        Raises:
            InputError: there are none.
        """
        shards = self.shards if self.split == "held-out" else Shards(self.path, "held-out")
        if not len(shards):
            raise InputError(
                f"{self.path} has no held-out document to measure on; build the shards from more "
                f"documents, or with a larger --held-out"
            )
        indices = range(len(shards))[:limit]
        parts = [indices[first : first + B] for first in range(0, len(indices), B)]
        return [
            self.collate([self.cut(shards[i]) for i in part], part, HELD_OUT_SEED) for part in parts
        ]

    def cut(self, ids: np.ndarray) -> np.ndarray:
        """(T,) int64: a stored document, [CLS] to [SEP], in at most `length` tokens."""
        ids = ids[: self.length].astype(np.int64)  # a copy
        ids[-1] = self.tokenizer.sep_id
        return ids

    def collate(
        self, documents: list[np.ndarray], positions: Sequence[int], seed: int | None = None
    ) -> Batch:
        """Documents, each masked as at its position, as one row.

        The shortest come first, so that equal lengths are neighbours.

        Args:
            seed: of the masks; None = the corpus's.
        Raises:
            InputError: a token id beyond the vocabulary: damage that opening does not look for.
        """
        order = sorted(range(len(documents)), key=lambda i: len(documents[i]))
        lengths = [len(documents[i]) for i in order]
        seed = self.seed if seed is None else seed
        row = np.concatenate([documents[i] for i in order])  # (N,)
        if row.max() >= self.V:
            raise InputError(
                f"{self.path}: holds token id {row.max()}, expected ids below {self.V}; "
                f"python -m data.shard --verify {self.path} names the place"
            )
        row, predict, labels = self.masking.apply(
            row,
            draws(seed, [positions[i] for i in order], lengths),  # (3, N)
        )
        return Batch.from_row(row, lengths, predict=predict, labels=labels)


def draws(seed: int, positions: Sequence[int], lengths: Sequence[int]) -> np.ndarray:
    """(3, N) float64: the random numbers that mask samples of these lengths, side by side.

    Each sample's are the first of Philox(key=[seed, position]). Turning one generator to the next
    key gives the same numbers as building a new one, in a quarter of the time.
    """
    bits = np.random.Philox(key=np.array([seed, 0], np.uint64))  # as a list, 2^63 loses digits
    rng, state = np.random.Generator(bits), bits.state
    parts = []
    for position, T in zip(positions, lengths, strict=True):
        state["state"]["key"][1] = position
        bits.state = state
        parts.append(rng.random((3, T)))
    return np.concatenate(parts, axis=1)


def shuffle(places: np.ndarray, n: int, key: tuple[int, int]) -> np.ndarray:
    """A keyed bijection of 0 .. n-1: (...) int64 places -> (...) int64.

    A generalised Feistel network over the smallest rectangle a b >= n: a place is (left, right),
    and each half-round adds to one half a hash of the other, which can be undone. Where the result
    falls into the few cells beyond n, it goes through the network again until it does not ("cycle
    walking"; Black and Rogaway 2002).
    """
    a = math.isqrt(n - 1) + 1
    b = -(-n // a)
    bits = np.random.Philox(key=np.array(key, np.uint64), counter=[0, 0, 0, 1])  # not a mask's
    keys = bits.random_raw(2 * ROUNDS)
    x = np.array(places, dtype=np.uint64)
    is_out = np.ones(x.shape, bool)
    while is_out.any():
        left, right = np.divmod(x[is_out], np.uint64(b))
        for key_left, key_right in zip(keys[::2], keys[1::2], strict=True):
            left = (left + mix(right ^ key_left) % a) % a
            right = (right + mix(left ^ key_right) % b) % b
        x[is_out] = left * b + right
        is_out = x >= n
    return x.astype(np.int64)


def mix(x: np.ndarray) -> np.ndarray:
    """A hash of 64-bit integers: the finaliser of SplitMix64 (Steele and others 2014)."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))
