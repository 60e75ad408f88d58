"""The record of each PMID that counts: against a plain simulation."""

import resource

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data.pubmed import index as module
from data.pubmed.index import EVENT, PACKED, line_fates, settle

DELETION, WRITTEN, SKIPPED = module.DELETION, module.WRITTEN, module.SKIPPED
KEPT, DELETED, OLDER, DUPLICATE = range(4)


def write(path, events):
    np.array(events, EVENT).tofile(path)
    return path


def fates_of(files):
    """The fates of the events of several files, given as lists of events."""
    found = settle(np.array([event for events in files for event in events], EVENT)).tolist()
    return [[found.pop(0) for _ in events] for events in files]


def simulated(files):
    """One event after another, as a reader of the files would keep a shelf of them."""
    fates = [[KEPT] * len(events) for events in files]
    shelf = {}  # PMID -> [(version, file, place)]
    for i, events in enumerate(files):
        for j, (pmid, version, kind) in enumerate(events):
            if kind == DELETION:
                for _, a, b in shelf.pop(pmid, []):
                    fates[a][b] = DELETED
            else:
                shelf.setdefault(pmid, []).append((version, i, j))
    for records in shelf.values():
        highest = max(version for version, _, _ in records)
        latest = [(i, j) for version, i, j in records if version == highest][-1]
        for version, i, j in records:
            if (i, j) != latest:
                fates[i][j] = DUPLICATE if version == highest else OLDER
    return fates


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ([], []),
        ([[]], [[]]),
        ([[(1, 1, WRITTEN), (2, 1, WRITTEN)]], [[KEPT, KEPT]]),
        ([[(1, 1, WRITTEN)], [(1, 1, WRITTEN)]], [[DUPLICATE], [KEPT]]),
        ([[(1, 2, WRITTEN)], [(1, 1, WRITTEN)]], [[KEPT], [OLDER]]),
        ([[(1, 1, WRITTEN)], [(1, 2, SKIPPED)]], [[OLDER], [KEPT]]),
        ([[(1, 3, WRITTEN)], [(1, 1, DELETION)]], [[DELETED], [KEPT]]),
        ([[(1, 1, DELETION)], [(1, 1, WRITTEN)]], [[KEPT], [KEPT]]),
        ([[(1, 2, WRITTEN), (1, 1, DELETION), (1, 1, WRITTEN)]], [[DELETED, KEPT, KEPT]]),
        ([[(1, 1, WRITTEN), (2, 1, DELETION)]], [[KEPT, KEPT]]),
    ],
)
def test_by_hand(files, expected):
    assert fates_of(files) == expected


EVENTS = st.tuples(
    st.integers(1, 5), st.integers(0, 3), st.sampled_from([DELETION, WRITTEN, WRITTEN, SKIPPED])
)


@settings(derandomize=True, deadline=None)
@given(st.lists(st.lists(EVENTS, max_size=8), max_size=6))
def test_equals_the_simulation(files):
    assert fates_of(files) == simulated(files)


def test_many_random_events():
    rng = np.random.default_rng(0)
    kinds = rng.choice([DELETION, WRITTEN, SKIPPED], 3000, p=[0.1, 0.8, 0.1]).tolist()
    pmids = (rng.integers(1, 900, 3000) * (10**18 // 900)).tolist()
    events = list(zip(pmids, rng.integers(0, 10_000, 3000).tolist(), kinds, strict=True))
    files = [events[i : i + 300] for i in range(0, 3000, 300)]
    assert fates_of(files) == simulated(files)


def test_events_are_packed_as_they_are_read():
    event = (10**18 - 1, 9999, SKIPPED)
    assert np.frombuffer(PACKED.pack(*event), EVENT).tolist() == [event]


def test_a_fate_for_each_line(tmp_path):
    events = [(1, 1, WRITTEN), (2, 1, SKIPPED), (1, 1, DELETION), (3, 1, WRITTEN), (3, 2, WRITTEN)]
    before = write(tmp_path / "0.index", [(9, 1, WRITTEN)])
    empty = write(tmp_path / "1.index", [])
    path = write(tmp_path / "2.index", events)
    found = [fates.tolist() for fates in line_fates([before, empty, path])]
    assert found == [[KEPT], [], [DELETED, OLDER, KEPT]]
    assert line_fates([]) == [] and [len(x) for x in line_fates([empty])] == [0]


@pytest.mark.slow
def test_37_million_pmids_fit_into_the_memory_promised(tmp_path):
    """1,240 files of 30,000 events; the last fifth revises or deletes every second PMID."""
    rng, paths = np.random.default_rng(0), []
    for i in range(1240):
        events = np.zeros(30_000, EVENT)
        events["pmid"] = np.arange(i * 30_000, (i + 1) * 30_000) + 1
        if i > 0.8 * 1240:
            events["pmid"][::2] = rng.integers(1, i * 30_000, 15_000)
        events["version"], events["kind"] = 1, WRITTEN
        events["kind"][::40] = DELETION
        paths.append(tmp_path / f"{i:04}.index")
        events.tofile(paths[-1])
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert sum(map(len, line_fates(paths))) == 1240 * 29_250
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 2**20
    assert grown < 1.3, f"{grown:.2f} GiB"
