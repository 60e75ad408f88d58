"""Older versions, equal and nearly equal texts: the right ones go, in memory that stays small."""

import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data.shard import duplicates
from data.shard.duplicates import (
    BANDS,
    EXACT,
    FEWEST,
    KEPT,
    NEAR,
    NEARLY,
    OLDER,
    ROWS,
    WIDTH,
    bands,
    drop_exact,
    drop_near,
    drop_older,
    jaccard,
    repeated,
    shingles,
)

UNK = 1


def rng(seed=0):
    return np.random.Generator(np.random.Philox(key=[seed, 77]))


def shingles_by_hand(ids):
    runs = (tuple(ids[i : i + WIDTH]) for i in range(len(ids) - WIDTH + 1))
    return [run for run in runs if UNK not in run]


@settings(derandomize=True, deadline=None, max_examples=150)
@given(st.lists(st.lists(st.integers(0, 4), max_size=12), max_size=6))
def test_shingles_are_the_runs_of_each_document(documents):
    tokens = np.array(sum(documents, []), np.uint16)
    hashes, counts = shingles(tokens, np.array([len(d) for d in documents], int), UNK)
    expected = [run for d in documents for run in shingles_by_hand(d)]
    assert counts.tolist() == [len(shingles_by_hand(d)) for d in documents]
    assert len(hashes) == len(expected)
    number = dict(zip(hashes.tolist(), expected, strict=True))
    assert [number[h] for h in hashes.tolist()] == expected  # equal hashes, equal runs
    assert len(set(hashes.tolist())) == len(set(expected))


def test_signatures_do_not_depend_on_the_neighbours():
    documents = [rng(i).integers(2, 5000, 10 + 17 * i) for i in range(8)]
    documents.append(np.zeros(0, np.int64))
    lengths = np.array([len(d) for d in documents])
    together = bands(np.concatenate(documents), lengths, UNK)
    assert together.shape == (BANDS, 9) and together.dtype == np.uint64
    for i, d in enumerate(documents):
        assert (together[:, i] == bands(d, lengths[i : i + 1], UNK)[:, 0]).all()
        is_short = len(d) - WIDTH + 1 < FEWEST
        assert (together[:, i] == 0).all() if is_short else (together[:, i] != 0).all()


def test_the_signature_is_the_one_of_yesterday():
    """A literal value: pieces made under one version are read under the next."""
    found = bands(np.arange(100), np.array([100]), UNK)
    assert [hex(x) for x in found[[0, -1], 0]] == LITERAL


LITERAL = ["0x307ca9b70fe6523a", "0x60b6fe3bc1989dea"]


def pair(seed, share, n=240):
    """A text and one with a share of its tokens replaced, in one place after another."""
    a = rng(seed).integers(2, 20_000, n)
    b = a.copy()
    places = rng(seed + 10**6).choice(n, round(share * n), replace=False)
    b[places] = rng(seed + 2 * 10**6).integers(2, 20_000, len(places))
    return a, b


def jaccard_of(a, b):
    a, b = ({*shingles_by_hand(x.tolist())} for x in (a, b))
    return len(a & b) / len(a | b)


def test_bands_are_shared_as_often_as_they_should():
    """1 - (1 - J^ROWS)^BANDS of 400 pairs at each of several J, within 4 standard deviations."""
    for share in (0.02, 0.05, 0.08, 0.12):
        chance, shared = [], 0
        for seed in range(400):
            a, b = pair(seed, share)
            chance.append(1 - (1 - jaccard_of(a, b) ** ROWS) ** BANDS)
            found = bands(np.concatenate([a, b]), np.array([240, 240]), UNK)
            shared += (found[:, 0] == found[:, 1]).any()
        chance = np.array(chance)
        sigma = np.sqrt((chance * (1 - chance)).sum())
        assert abs(shared - chance.sum()) < 4 * sigma + 0.5, f"{share}: {shared}"


def write(path, values, dtype=np.uint64):
    np.array(values, dtype).tofile(path)
    return path


def drop(tmp_path, documents):
    """Fates of token arrays under `drop_near`."""
    lengths = np.array([len(d) for d in documents])
    found = bands(np.concatenate(documents), lengths, UNK)
    files = [write(tmp_path / f"{k}", row) for k, row in enumerate(found)]
    fate = np.zeros(len(documents), np.uint8)
    drop_near(files, fate, documents.__getitem__, UNK)
    return fate


def test_recall_and_precision_on_constructed_near_duplicates(tmp_path):
    """400 texts, 200 of which come again with 1 to 8 % of their tokens changed: of those at J of
    NEAR or more 0.98 are found and more; below it, and among the rest, none."""
    pairs = [pair(seed, 0.01 + 0.07 * (seed % 20) / 19) for seed in range(200)]
    documents = [a for a, _ in pairs] + [rng(9 * 10**6 + i).integers(2, 20_000, 240)
                                         for i in range(200)] + [b for _, b in pairs]  # fmt: skip
    fate = drop(tmp_path, documents)
    is_near = np.array([jaccard_of(a, b) >= NEAR for a, b in pairs])
    assert 70 < is_near.sum() < 190
    assert (fate[:400] == KEPT).all(), "the first of a pair, or a text alone, was dropped"
    found = fate[400:] == NEARLY
    assert not found[~is_near].any(), "precision below 1"
    assert found[is_near].mean() >= 0.98, f"recall {found[is_near].mean():.3f}"


def test_a_chain_of_near_duplicates_leaves_its_first(tmp_path):
    documents = [rng().integers(2, 20_000, 240)]
    for i in range(5):  # each changes a run of 20 more tokens: two steps apart J is 0.69
        d = documents[-1].copy()
        d[40 * i : 40 * i + 20] = rng(i + 1).integers(2, 20_000, 20)
        documents.append(d)
    assert jaccard_of(documents[0], documents[1]) >= NEAR > jaccard_of(documents[0], documents[2])
    assert drop(tmp_path, documents).tolist() == [KEPT] + [NEARLY] * 5


def test_short_texts_are_not_compared(tmp_path):
    short = np.arange(2, 2 + FEWEST + WIDTH - 2)
    assert (drop(tmp_path, [short] * 3) == KEPT).all()
    long = np.arange(2, 2 + FEWEST + WIDTH - 1)
    assert drop(tmp_path, [long] * 3).tolist() == [KEPT, NEARLY, NEARLY]
    unknown = np.full(100, UNK)
    assert (drop(tmp_path, [unknown] * 3) == KEPT).all()


def test_jaccard():
    a, b = np.array([1, 2, 3]), np.array([2, 3, 4, 5])
    assert jaccard(a, b) == 2 / 5 and jaccard(a, a) == 1 and jaccard(a[:0], a[:0]) == 0


# the search


@settings(derandomize=True, deadline=None, max_examples=100)
@given(
    values=st.lists(st.integers(0, 12), min_size=1, max_size=60),
    out=st.sets(st.integers(0, 59)),
    bucket=st.sampled_from([1, 7, 1000]),
)
def test_repeated_values_are_all_found(tmp_path_factory, values, out, bucket):
    path = tmp_path_factory.mktemp("column")
    spread = [v * (2**64 // 13) for v in values]  # even over the range; 0 = none
    fate = np.array([EXACT if i in out else KEPT for i in range(len(values))], np.uint8)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(duplicates, "BUCKET", bucket)
        patch.setattr(duplicates, "CHUNK", 5)
        groups = []
        for documents, is_first in repeated(write(path / "c", spread), fate):
            starts = np.flatnonzero(is_first)
            groups += [part.tolist() for part in np.split(documents, starts)[1:]]
    expected = {}
    for i, v in enumerate(values):
        if v and i not in out:
            expected.setdefault(v, []).append(i)
    assert sorted(groups) == sorted(g for g in expected.values() if len(g) > 1)


@settings(derandomize=True, deadline=None, max_examples=100)
@given(st.lists(st.tuples(st.integers(0, 3), st.integers(1, 3)), min_size=1, max_size=20))
def test_the_last_of_the_highest_version_stays(tmp_path_factory, records):
    path = tmp_path_factory.mktemp("ids")
    fate = np.zeros(len(records), np.uint8)
    ids = write(path / "id", [i * (2**64 // 5) for i, _ in records])  # 0: no id
    drop_older(ids, write(path / "version", [v for _, v in records], np.uint32), fate)
    best = {}
    for n, (i, version) in enumerate(records):
        if i and version >= best.get(i, (0, 0))[0]:
            best[i] = (version, n)
    stay = {n for _, n in best.values()} | {n for n, (i, _) in enumerate(records) if not i}
    assert [n for n, x in enumerate(fate) if x == KEPT] == sorted(stay)
    assert set(fate.tolist()) <= {KEPT, OLDER}


def test_the_first_of_equal_texts_stays(tmp_path):
    fate = np.array([KEPT, OLDER, KEPT, KEPT, KEPT, KEPT], np.uint8)
    drop_exact(write(tmp_path / "t", [5 << 60, 5 << 60, 5 << 60, 7, 5 << 60, 7]), fate)
    assert fate.tolist() == [KEPT, OLDER, EXACT, KEPT, EXACT, EXACT]


def index_memory(tmp_path, n):
    """Peak bytes held while n ids, a third of them again, are looked through."""
    values = duplicates.PRIME * np.arange(1, n + 1, dtype=np.uint64)
    values[-n // 3 :] = values[: -(-n // 3)]
    ids = write(tmp_path / "id", values)
    versions = write(tmp_path / "version", np.ones(n), np.uint32)
    del values
    fate = np.zeros(n, np.uint8)
    tracemalloc.start()
    drop_older(ids, versions, fate)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert (fate == OLDER).sum() == -(-n // 3)
    return peak


def test_memory_does_not_grow_with_the_documents(tmp_path, monkeypatch):
    monkeypatch.setattr(duplicates, "BUCKET", 20_000)
    monkeypatch.setattr(duplicates, "CHUNK", 4096)
    small, large = (index_memory(tmp_path, n) for n in (100_000, 1_000_000))
    assert large < 1.2 * small


@pytest.mark.slow
def test_37_million_ids_fit(tmp_path):
    assert index_memory(tmp_path, 37_000_000) < 300 << 20
