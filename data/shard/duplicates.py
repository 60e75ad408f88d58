"""Records that come twice: other versions of an id, equal texts, and texts that are nearly equal.

- Versions: of the records with one id the highest version stays, the last of equal ones, so that an
  update replaces the baseline that is named before it.
- Equal: texts that differ in case and white space alone. The first stays.
- Nearly equal: the Jaccard index of their sets of `WIDTH` tokens in a row, as they stand in the
  shards, is at least `NEAR`. One that is nearly equal to an earlier one goes, also where that one
  goes too.

A text is compared only with those that share one of its `BANDS` band hashes (MinHash with locality
sensitive hashing: Broder 1997; Leskovec and others, Mining of Massive Datasets, section 3.4): of
pairs with a Jaccard index J a share of 1 - (1 - J^ROWS)^BANDS is found, and what is found is
compared token by token.

Memory stays the same however many documents there are, but for two bytes each: hashes lie in files,
and are looked through a bucket of a few million at a time.
"""

from collections.abc import Callable, Iterator
from functools import lru_cache
from pathlib import Path

import numpy as np

WIDTH = 5  # tokens of a shingle
NEAR = 0.7  # Jaccard index from which two texts are nearly equal
BANDS, ROWS = 12, 4  # 0.964 of the pairs at J = 0.7, 0.998 at 0.8, 0.99998 at 0.9 are found
FEWEST = 20  # shingles; "Author's reply." and its like are compared as a whole alone
BUCKET = 2 << 20  # hashes in memory at once
CHUNK = 1 << 18  # hashes read at once
KEPT, OLDER, EXACT, NEARLY, LEAKED = range(5)  # what becomes of a document

PRIME = np.uint64(0x9E3779B97F4A7C15)
FACTORS, TERMS = np.random.Generator(np.random.Philox(key=[0, 0])).integers(
    2**64, size=(2, BANDS * ROWS, 1), dtype=np.uint64
)


# the signature of a text


def shingles(tokens: np.ndarray, lengths: np.ndarray, unk_id: int) -> tuple[np.ndarray, np.ndarray]:
    """Hashes of every WIDTH tokens in a row that lie in one document and are all known.

    Args:
        tokens:  (N,) integer ids of n documents, one after another, without [CLS] and [SEP].
        lengths: (n,) tokens of each.
    Returns:
        (S,) uint64, document after document, and (n,) int64: how many are whose.
    """
    document = np.repeat(np.arange(len(lengths)), lengths)  # (N,)
    if len(tokens) < WIDTH:
        return np.zeros(0, np.uint64), np.zeros(len(lengths), np.int64)
    n = len(tokens) - WIDTH + 1
    ids = tokens.astype(np.uint64)
    hashes, is_known = ids[:n], tokens[:n] != unk_id
    for k in range(1, WIDTH):
        hashes = hashes * PRIME + ids[k : k + n]
        is_known &= tokens[k : k + n] != unk_id
    is_whole = is_known & (document[:n] == document[WIDTH - 1 :])
    counts = np.bincount(document[:n][is_whole], minlength=len(lengths))
    hashes = hashes[is_whole]
    return (hashes ^ (hashes >> np.uint64(32))) * PRIME, counts


def bands(tokens: np.ndarray, lengths: np.ndarray, unk_id: int) -> np.ndarray:
    """(BANDS, n) uint64: the hashes of which nearly equal texts share one; 0 = not compared.

    Of the shingles, put in BANDS ROWS random orders, the first in each order is the same for two
    texts with a chance that is their Jaccard index. A band hash stands for ROWS of them.
    """
    hashes, counts = shingles(tokens, lengths, unk_id)
    found = np.zeros((BANDS, len(lengths)), np.uint64)
    is_long = counts >= FEWEST
    starts = (np.cumsum(counts) - counts)[counts > 0]
    if not len(starts):
        return found
    pairs = zip(FACTORS | np.uint64(1), TERMS, strict=True)
    ordered = (hashes * factor + term for factor, term in pairs)
    firsts = np.stack([np.minimum.reduceat(x, starts) for x in ordered])  # (BANDS ROWS, n)
    firsts = firsts[:, is_long[counts > 0]].reshape(BANDS, ROWS, -1)
    band = firsts[:, 0]
    for k in range(1, ROWS):
        band = (band ^ (band >> np.uint64(32))) * PRIME + firsts[:, k]
    found[:, is_long] = (band ^ (band >> np.uint64(32))) * PRIME
    return found


def jaccard(a: np.ndarray, b: np.ndarray) -> float:
    """Of two sets of hashes, each sorted and without repeats: shared / all."""
    shared = len(np.intersect1d(a, b, assume_unique=True))
    return shared / max(1, len(a) + len(b) - shared)


# the search


def repeated(column: Path, fate: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """The documents whose value others have too, bucket after bucket.

    Args:
        column: a file of (n,) uint64 hashes, even over their range; 0 = no value.
        fate:   (n,) uint8: documents that are not KEPT do not count.
    Yields:
        (m,) int64 documents, equal values side by side, in ascending order where equal; and (m,)
        bool: the first of its value.
    """
    n = len(fate)
    n_buckets = -(-n // BUCKET)
    for bucket in range(n_buckets):
        values, numbers = [], []
        for first in range(0, n, CHUNK):
            part = np.fromfile(column, np.uint64, CHUNK, offset=8 * first)
            place = ((part >> np.uint64(32)) * np.uint64(n_buckets)) >> np.uint64(32)
            is_here = (place == bucket) & (part != 0) & (fate[first : first + CHUNK] == KEPT)
            values.append(part[is_here])
            numbers.append(np.flatnonzero(is_here) + first)
        values, numbers = np.concatenate(values), np.concatenate(numbers)
        order = np.argsort(values, kind="stable")
        values, numbers = values[order], numbers[order]
        is_first = np.append(True, values[1:] != values[:-1])[: len(values)]
        is_alone = is_first & np.append(is_first[1:], True)[: len(values)]
        yield numbers[~is_alone], is_first[~is_alone]


def drop_older(ids: Path, versions: Path, fate: np.ndarray) -> None:
    """Of the records with one id, all but the highest version, the last of equal ones."""
    version = np.memmap(versions, np.uint32, "r")
    for documents, is_first in repeated(ids, fate):
        group = np.cumsum(is_first)
        order = np.lexsort((documents, version[documents], group))
        is_last = np.append(is_first[1:], True)[: len(is_first)]
        fate[documents[order[~is_last]]] = OLDER


def drop_exact(texts: Path, fate: np.ndarray) -> None:
    """Of equal texts, all but the first."""
    for documents, is_first in repeated(texts, fate):
        fate[documents[~is_first]] = EXACT


def drop_near(band_files: list[Path], fate: np.ndarray,
              tokens_of: Callable[[int], np.ndarray], unk_id: int) -> None:  # fmt: skip
    """Of nearly equal texts, all but the first.

    Each is compared with the first of those that share a band, and with the one before it.

    Args:
        tokens_of: the tokens of a document, as `shingles` takes them.
    """

    @lru_cache(4096)
    def set_of(i: int) -> np.ndarray:
        tokens = tokens_of(i)
        return np.unique(shingles(tokens, np.array([len(tokens)]), unk_id)[0])

    candidates = fate.copy()
    for file in band_files:
        for documents, is_first in repeated(file, candidates):
            firsts = documents[is_first][np.cumsum(is_first) - 1]
            for k in np.flatnonzero(~is_first).tolist():
                document = int(documents[k])
                if fate[document] == NEARLY:  # an earlier band told
                    continue
                earlier = (int(firsts[k]), int(documents[k - 1]))
                if any(jaccard(set_of(i), set_of(document)) >= NEAR for i in earlier):
                    fate[document] = NEARLY
