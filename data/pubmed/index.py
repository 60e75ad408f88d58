"""Which record of each PMID stands, over files of any number, in memory that does not grow.

Every input file has an index beside its citations: an event for each record and each deletion, in
the file's order. `Fates` reads the indexes in the order of the files and deals the events out into
buckets on disk, by PMID; a bucket fits into memory, holds all there is of its PMIDs, and is settled
alone. The rule, for one PMID:

1. A deletion takes away every version that comes before it; one that comes after stands again.
2. Of what is left, the highest version stands; of equal versions, the last.
"""

import hashlib
import struct
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import NamedTuple

import numpy as np

from minibio.run.errors import InputError

EVENT = np.dtype([("pmid", "<u8"), ("version", "<u2"), ("kind", "u1")])
EVENT_BYTES = struct.Struct("<QHB")
DELETION, WRITTEN, SKIPPED = range(3)  # kinds of event; a citation has a line or none
STANDS, DELETED, OLDER, DUPLICATE = range(4)  # fates; of a deletion: STANDS
ROW = np.dtype([*EVENT.descr, ("place", "<u8")])  # place: the event's number over all files
FATE = np.dtype(np.uint8)
BUCKET_ROWS = 1 << 20
BLOCK = 1 << 18  # events read at once


def pack(pmid: int, version: int, kind: int) -> bytes:
    """One event, as it stands in an index."""
    return EVENT_BYTES.pack(pmid, version, kind)


def blocks(path: Path, dtype: np.dtype, start: int = 0, end: int | None = None):
    """Items `start` to `end` of a file of one dtype, some at a time, however long it is."""
    end = path.stat().st_size // dtype.itemsize if end is None else end
    for i in range(start, end, BLOCK):
        yield np.fromfile(path, dtype, min(BLOCK, end - i), offset=i * dtype.itemsize)


class Span(NamedTuple):
    """Where the fates of one file's events stand."""

    path: Path
    start: int
    end: int

    def digest(self) -> str:
        """What tells these fates from others."""
        sha = hashlib.sha256()
        for fates in blocks(self.path, FATE, self.start, self.end):
            sha.update(fates)
        return sha.hexdigest()

    def of_lines(self, index: Path) -> Iterator[int]:
        """The fate of each line: of the events that have one."""
        both = zip(blocks(self.path, FATE, *self[1:]), blocks(index, EVENT), strict=True)
        for fates, events in both:
            yield from fates[events["kind"] == WRITTEN].tolist()


class Fates:
    """The fate of every event, by file: `fates[i]` says where those of file i stand, in order.

    Lives in a file in `directory` and takes a byte an event there; the buckets, 19 bytes an event,
    are gone when it is made. Close it, or use it in a `with`, to remove the file.

    Args:
        indexes:   files of `write_index`, the first to be taken first.
        directory: a place for temporary files.
    """

    def __init__(self, indexes: list[Path], directory: Path, bucket_rows: int = BUCKET_ROWS):
        sizes = [n_events(path) for path in indexes]
        self.starts = np.cumsum([0, *sizes])
        n_buckets = int(self.starts[-1]) // bucket_rows + 1
        self.scratch = tempfile.TemporaryDirectory(prefix=".index-", dir=directory)
        try:
            place = Path(self.scratch.name)
            self.path = place / "fates"
            self.path.touch()
            if self.starts[-1]:
                buckets = [place / f"bucket-{b}" for b in range(n_buckets)]
                deal(indexes, self.starts, buckets)
                self.settle_all(buckets)
        except BaseException:
            self.close()
            raise

    def settle_all(self, buckets: list[Path]) -> None:
        with self.path.open("wb") as file:
            file.truncate(int(self.starts[-1]))
        for bucket in buckets:
            rows = np.fromfile(bucket, ROW)
            if len(rows):
                found = settle(rows)
                is_lost = found != STANDS  # few; the file is of zeros
                # mapped anew for each bucket, so that what was written leaves memory
                fates = np.memmap(self.path, FATE, "r+")
                fates[rows["place"][is_lost]] = found[is_lost]
            bucket.unlink()

    def __getitem__(self, i: int) -> Span:
        return Span(self.path, int(self.starts[i]), int(self.starts[i + 1]))

    def close(self) -> None:
        self.scratch.cleanup()

    def __enter__(self):
        return self

    def __exit__(self, *_) -> None:
        self.close()


def n_events(index: Path) -> int:
    size = index.stat().st_size
    if size % EVENT.itemsize:
        raise InputError(f"{index}: {size} bytes, no whole number of events; remove it, run again")
    return size // EVENT.itemsize


def deal(indexes: list[Path], starts: np.ndarray, buckets: list[Path]) -> None:
    """Every event to the bucket of its PMID, with its place; in each bucket in order."""
    with ExitStack() as stack:
        files = [stack.enter_context(bucket.open("wb")) for bucket in buckets]
        for path, place in zip(indexes, starts[:-1].tolist(), strict=True):
            for events in blocks(path, EVENT):
                rows = np.empty(len(events), ROW)
                for name in EVENT.names:
                    rows[name] = events[name]
                rows["place"] = np.arange(place, place + len(rows))
                place += len(rows)
                to = (rows["pmid"] % len(buckets)).astype(np.int64)
                rows = rows[np.argsort(to, kind="stable")]
                ends = np.cumsum(np.bincount(to, minlength=len(buckets)))
                for file, part in zip(files, np.split(rows, ends[:-1]), strict=True):
                    file.write(part)


def settle(rows: np.ndarray) -> np.ndarray:
    """(n,) uint8: the fate of each row; the rows hold all events of their PMIDs, in any order."""
    order = np.lexsort((rows["place"], rows["pmid"]))
    pmid, version = rows["pmid"][order], rows["version"][order].astype(np.int64)
    is_deletion = rows["kind"][order] == DELETION
    at = np.arange(len(rows))  # grows with place inside a PMID
    first = np.flatnonzero(np.append(True, pmid[1:] != pmid[:-1]))
    group = np.cumsum(np.append(False, pmid[1:] != pmid[:-1]))
    last_deletion = np.maximum.reduceat(np.where(is_deletion, at, -1), first)[group]
    is_left = at > last_deletion
    highest = np.maximum.reduceat(np.where(is_left, version, -1), first)[group]
    is_highest = is_left & (version == highest)
    last = np.maximum.reduceat(np.where(is_highest, at, -1), first)[group]
    fate = np.full(len(rows), DELETED, np.uint8)
    fate[is_left] = OLDER
    fate[is_highest] = DUPLICATE
    fate[(is_highest & (at == last)) | is_deletion] = STANDS
    found = np.empty_like(fate)
    found[order] = fate
    return found
