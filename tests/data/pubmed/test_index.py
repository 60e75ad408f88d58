"""Which record of each PMID stands: against a plain simulation; in memory that stays the same."""

import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data.pubmed import index as module
from data.pubmed.index import BUCKET_ROWS, EVENT, Fates, pack
from helpers import ROOT
from minibio.run.errors import InputError

DELETION, WRITTEN, SKIPPED = module.DELETION, module.WRITTEN, module.SKIPPED
STANDS, DELETED, OLDER, DUPLICATE = range(4)


def write(path, events):
    path.write_bytes(b"".join(pack(*event) for event in events))
    return path


def fates_of(folder, files, bucket_rows=BUCKET_ROWS):
    """The fates of the events of several files, given as lists of events."""
    paths = [write(folder / f"{i}.index", events) for i, events in enumerate(files)]
    with Fates(paths, folder, bucket_rows) as fates:
        spans = [fates[i] for i in range(len(paths))]
        return [np.fromfile(s.path, np.uint8)[s.start : s.end].tolist() for s in spans]


def simulated(files):
    """One event after another, as a reader of the files would keep a shelf of them."""
    fates = [[STANDS] * len(events) for events in files]
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
        ([[(1, 1, WRITTEN), (2, 1, WRITTEN)]], [[STANDS, STANDS]]),
        ([[(1, 1, WRITTEN)], [(1, 1, WRITTEN)]], [[DUPLICATE], [STANDS]]),
        ([[(1, 2, WRITTEN)], [(1, 1, WRITTEN)]], [[STANDS], [OLDER]]),
        ([[(1, 1, WRITTEN)], [(1, 2, SKIPPED)]], [[OLDER], [STANDS]]),
        ([[(1, 3, WRITTEN)], [(1, 1, DELETION)]], [[DELETED], [STANDS]]),
        ([[(1, 1, DELETION)], [(1, 1, WRITTEN)]], [[STANDS], [STANDS]]),
        ([[(1, 2, WRITTEN), (1, 1, DELETION), (1, 1, WRITTEN)]], [[DELETED, STANDS, STANDS]]),
        ([[(1, 1, WRITTEN), (2, 1, DELETION)]], [[STANDS, STANDS]]),
    ],
)
def test_by_hand(tmp_path, files, expected):
    assert fates_of(tmp_path, files) == expected


EVENTS = st.tuples(
    st.integers(1, 5), st.integers(0, 3), st.sampled_from([DELETION, WRITTEN, WRITTEN, SKIPPED])
)


@settings(derandomize=True, deadline=None)
@given(st.lists(st.lists(EVENTS, max_size=8), max_size=6), st.integers(1, 6), st.integers(1, 5))
def test_equals_the_simulation(tmp_path_factory, files, bucket_rows, block):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "BLOCK", block)
        folder = tmp_path_factory.mktemp("fates")
        assert fates_of(folder, files, bucket_rows) == simulated(files)


def test_many_random_events_in_many_buckets(tmp_path):
    rng = np.random.default_rng(0)
    kinds = rng.choice([DELETION, WRITTEN, SKIPPED], 3000, p=[0.1, 0.8, 0.1]).tolist()
    pmids = (rng.integers(1, 900, 3000) * (10**18 // 900)).tolist()
    events = list(zip(pmids, rng.integers(0, 10_000, 3000).tolist(), kinds, strict=True))
    files = [events[i : i + 300] for i in range(0, 3000, 300)]
    expected = simulated(files)
    assert fates_of(tmp_path, files, 70) == fates_of(tmp_path, files) == expected


def test_a_line_for_each_written_event(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "BLOCK", 2)
    events = [(1, 1, WRITTEN), (2, 1, SKIPPED), (1, 1, DELETION), (3, 1, WRITTEN), (3, 2, WRITTEN)]
    before = write(tmp_path / "0.index", [(9, 1, WRITTEN)])
    path = write(tmp_path / "1.index", events)
    with Fates([before, path], tmp_path) as fates:
        assert list(fates[1].of_lines(path)) == [DELETED, OLDER, STANDS]
        assert list(fates[0].of_lines(before)) == [STANDS]
        assert fates[0].digest() != fates[1].digest()


def test_nothing_is_left_behind(tmp_path):
    path = write(tmp_path / "a.index", [(1, 1, WRITTEN)])
    with Fates([path], tmp_path):
        assert len(list(tmp_path.iterdir())) == 2
    assert list(tmp_path.iterdir()) == [path]
    path.write_bytes(b"x" * (EVENT.itemsize + 1))
    with pytest.raises(InputError, match=r"a\.index: 12 bytes, no whole number of events"):
        Fates([path], tmp_path)
    assert list(tmp_path.iterdir()) == [path]


linux = pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads /proc")
SETTLE = """
import sys
from pathlib import Path
from data.pubmed.index import Fates
folder = Path(sys.argv[1])
with Fates(sorted(folder.glob("*.index")), folder) as fates:
    n = sum(fates[i].end - fates[i].start for i in range(len(fates.starts) - 1))
status = Path("/proc/self/status").read_text()  # ru_maxrss would be the parent's too
print(n, status.split("VmHWM:")[1].split()[0])
"""


def peak(folder, n_files, n_pmids):
    """(events, peak KiB, seconds) of settling `n_files` full indexes."""
    folder.mkdir()
    rng = np.random.default_rng(0)
    for i in range(n_files):
        events = np.zeros(n_pmids, EVENT)
        events["pmid"] = np.arange(i * n_pmids, (i + 1) * n_pmids) + 1
        if i > 0.8 * n_files:  # updates: revised and deleted, of all that came before
            events["pmid"][::2] = rng.integers(1, i * n_pmids, len(events[::2]))
        events["version"], events["kind"] = 1, WRITTEN
        events["kind"][::40] = DELETION
        events.tofile(folder / f"{i:04}.index")
    began = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-c", SETTLE, str(folder)], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    n, most = map(int, done.stdout.split())
    return n, most, time.perf_counter() - began


@linux
def test_memory_follows_the_bucket_and_not_the_input(tmp_path):
    _, small, _ = peak(tmp_path / "small", 32, 30_000)  # one full bucket, then five
    n, large, _ = peak(tmp_path / "large", 160, 30_000)
    assert n == 4_800_000
    assert large < small + 24_000  # KiB, of 41,000 more to read: bytes an event, and noise


@linux
@pytest.mark.slow
def test_37_million_pmids(tmp_path):
    n, most, seconds = peak(tmp_path / "all", 1240, 30_000)
    print(f"{n:,} events: peak {most / 1024:.0f} MiB, {seconds:.1f} s")
    assert n == 37_200_000
    assert most < 300 * 1024
