"""Older versions and equal texts: the right ones go."""

import resource

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data.shard.duplicates import EXACT, KEPT, OLDER, drop_exact, drop_older


@settings(derandomize=True, deadline=None, max_examples=200)
@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3)), max_size=20))
def test_the_last_of_the_highest_version_stays(records):
    """Version 0 is a record without an id, whatever its hash."""
    fate = np.zeros(len(records), np.uint8)
    ids, versions = ([row[k] for row in records] for k in (0, 1))
    drop_older(np.array(ids, np.uint64), np.array(versions, np.uint32), fate)
    best = {}
    for n, (i, version) in enumerate(records):
        if version and version >= best.get(i, (0, 0))[0]:
            best[i] = (version, n)
    stay = {n for _, n in best.values()} | {n for n, (_, v) in enumerate(records) if not v}
    assert [n for n, x in enumerate(fate) if x == KEPT] == sorted(stay)
    assert set(fate.tolist()) <= {KEPT, OLDER}


@settings(derandomize=True, deadline=None, max_examples=200)
@given(st.lists(st.tuples(st.integers(0, 4), st.booleans()), max_size=20))
def test_the_first_of_equal_texts_stays(rows):
    """An older version does not count: a newer record with its text stays."""
    fate = np.array([OLDER if is_older else KEPT for _, is_older in rows], np.uint8)
    drop_exact(np.array([2**64 - 1 - text for text, _ in rows], np.uint64), fate)
    seen, expected = set(), []
    for text, is_older in rows:
        expected.append(OLDER if is_older else EXACT if text in seen else KEPT)
        seen |= set() if is_older else {text}
    assert fate.tolist() == expected


@pytest.mark.slow
def test_37_million_documents_fit_into_the_memory_promised():
    n = 37_000_000
    ids = np.uint64(0x9E3779B97F4A7C15) * np.arange(1, n + 1, dtype=np.uint64)
    ids[-n // 3 :] = ids[: -(-n // 3)]
    versions, fate = np.ones(n, np.uint32), np.zeros(n, np.uint8)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    drop_older(ids, versions, fate)
    assert (fate == OLDER).sum() == -(-n // 3)
    drop_exact(ids, fate)
    assert (fate == EXACT).sum() == 0
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 2**20
    assert grown < 1.3, f"{grown:.2f} GiB"
