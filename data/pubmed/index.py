"""The record of each PMID that counts when all files are read.

Every input file has an index beside its citations: an event for each record and each deletion, in
the file's order. The rule, for one PMID:

1. A deletion takes away every version before it; a record after it counts again.
2. Of what is left, the highest version counts; of equal versions, the last.

All indexes are sorted together in memory: 37 million PMIDs take 1 GB.
"""

import struct
from pathlib import Path

import numpy as np

EVENT = np.dtype([("pmid", "<u8"), ("version", "<u2"), ("kind", "u1")])
PACKED = struct.Struct("<QHB")  # one of them
DELETION, WRITTEN, SKIPPED = range(3)  # kinds of event; a record has a line or none
KEPT, DELETED, OLDER, DUPLICATE = range(4)  # fates; of a deletion: KEPT


def line_fates(indexes: list[Path]) -> list[np.ndarray]:
    """For each file, the fate of each of its lines: (lines,) uint8.

    Args:
        indexes: files of EVENT, in the order in which they count.
    """
    if not indexes:
        return []
    ends = np.cumsum([index.stat().st_size // EVENT.itemsize for index in indexes])
    events = np.concatenate([np.fromfile(index, EVENT) for index in indexes])
    parts = zip(np.split(settle(events), ends[:-1]), np.split(events, ends[:-1]), strict=True)
    return [fates[part["kind"] == WRITTEN] for fates, part in parts]


def settle(events: np.ndarray) -> np.ndarray:
    """The fates of events in their order: (n,) EVENT -> (n,) uint8."""
    fates = np.full(len(events), KEPT, np.uint8)
    order = np.argsort(events["pmid"], kind="stable")  # the events of a PMID in their order
    pmid = events["pmid"][order]
    is_first = np.append(True, pmid[1:] != pmid[:-1])[: len(pmid)]
    is_only = is_first & np.append(is_first[1:], True)[: len(pmid)]
    order, is_first = order[~is_only], is_first[~is_only]
    if not len(order):
        return fates
    version = events["version"][order].astype(np.int64)
    is_deletion = events["kind"][order] == DELETION
    place = np.arange(len(order))
    first, group = np.flatnonzero(is_first), np.cumsum(is_first) - 1

    def last(values: np.ndarray) -> np.ndarray:
        """The largest value of each PMID, for each of its events."""
        return np.maximum.reduceat(values, first)[group]

    is_left = place > last(np.where(is_deletion, place, -1))
    is_highest = is_left & (version == last(np.where(is_left, version, -1)))
    is_last = place == last(np.where(is_highest, place, -1))
    found = np.full(len(order), DELETED, np.uint8)
    found[is_left] = OLDER
    found[is_highest] = DUPLICATE
    found[(is_highest & is_last) | is_deletion] = KEPT
    fates[order] = found
    return fates
