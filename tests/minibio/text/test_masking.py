"""15 % of the tokens, 80/10/10, special tokens never: counted."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from minibio.text.masking import Masking

V, MASK, SPECIAL = 1000, 4, (0, 1, 2, 3, 4)
RULE = Masking(V, MASK, SPECIAL)


def rng(seed=0, position=0):
    return np.random.Generator(np.random.Philox(key=np.array([seed, position], np.uint64)))


def assert_share(name, count, n, p):
    """`count` of n with chance p, within five standard deviations (one in 1.7 million)."""
    bound = 5 * math.sqrt(n * p * (1 - p))
    assert abs(count - n * p) < bound, f"{name}: {count} of {n}, expected {n * p:.0f} ± {bound:.0f}"


def test_shares_over_100_000_tokens():
    n = 100_000
    ids = rng(1).integers(5, V, n)
    input_ids, predict, labels = RULE(ids, rng(2))
    M, got = len(predict), input_ids[predict]
    assert_share("predicted", M, n, 0.15)
    assert_share("[MASK]", (got == MASK).sum(), M, 0.8 + 0.1 / V)
    assert_share("unchanged", (got == labels).sum(), M, 0.1 + 0.1 / V)
    is_random = (got != MASK) & (got != labels)
    assert_share("random", is_random.sum(), M, 0.1 * (1 - 2 / V))
    # random pieces come from the whole vocabulary, evenly
    assert_share("lower half", (got[is_random] < V // 2).sum(), is_random.sum(), 0.5)
    assert got[is_random].min() < 20 and got[is_random].max() >= V - 20


@settings(derandomize=True, deadline=None, max_examples=40)
@given(
    seed=st.integers(0, 2**64 - 1),
    size=st.integers(20, 60_000),
    probability=st.sampled_from([0.15, 0.4, 0.9]),
)
def test_shares_whatever_seed_vocabulary_and_chance(seed, size, probability):
    n = 20_000
    ids = rng(seed, 1).integers(5, size, n)
    input_ids, predict, labels = Masking(size, MASK, SPECIAL, probability)(ids, rng(seed))
    M, got = len(predict), input_ids[predict]
    assert_share("predicted", M, n, probability)
    assert_share("[MASK]", (got == MASK).sum(), M, 0.8 + 0.1 / size)
    assert_share("unchanged", (got == labels).sum(), M, 0.1 + 0.1 / size)
    assert_share("random", ((got != MASK) & (got != labels)).sum(), M, 0.1 * (1 - 2 / size))


@settings(derandomize=True, deadline=None, max_examples=200)
@given(
    ids=st.lists(st.integers(0, V - 1), max_size=60),
    seed=st.integers(0, 2**64 - 1),
    probability=st.sampled_from([0.0, 0.15, 1.0]),
    dtype=st.sampled_from([np.uint16, np.int64]),
)
def test_labels_stood_there_and_all_else_stays(ids, seed, probability, dtype):
    ids = np.array(ids, dtype)
    before = ids.copy()
    rule = Masking(V, MASK, SPECIAL, probability)
    input_ids, predict, labels = rule(ids, rng(seed))
    assert (ids == before).all(), "the input was written to"
    assert (np.diff(predict) > 0).all() and labels.tolist() == ids[predict].tolist()
    assert not np.isin(labels, SPECIAL).any()
    others = np.delete(np.arange(len(ids)), predict)
    assert (input_ids[others] == ids[others]).all()
    assert ((0 <= input_ids) & (input_ids < V)).all()
    assert input_ids.dtype == predict.dtype == labels.dtype == np.int64
    if probability == 0.0:
        assert len(predict) == 0
    if probability == 1.0:
        assert len(predict) == (~np.isin(ids, SPECIAL)).sum()


def test_the_mask_of_a_row_is_that_of_its_parts():
    rows = [rng(3, i).integers(0, V, n) for i, n in enumerate((17, 1, 40))]
    draws = [rng(4, i).random((3, len(ids))) for i, ids in enumerate(rows)]
    whole = RULE.apply(np.concatenate(rows), np.concatenate(draws, axis=1))
    starts = np.cumsum([0, 17, 1])
    parts = [RULE.apply(ids, u) for ids, u in zip(rows, draws, strict=True)]
    assert whole[0].tolist() == np.concatenate([p[0] for p in parts]).tolist()
    places = np.concatenate([p[1] + start for p, start in zip(parts, starts, strict=True)])
    assert whole[1].tolist() == places.tolist()
    assert whole[2].tolist() == np.concatenate([p[2] for p in parts]).tolist()


@pytest.mark.parametrize(
    "deed, piece, expected",
    [(0.0, 0.9, MASK), (0.799, 0.9, MASK), (0.8, 0.0, 0), (0.899, 0.9999, 999), (0.9, 0.5, 7)],
)
def test_what_each_draw_does(deed, piece, expected):
    input_ids, predict, labels = RULE.apply(np.array([7]), np.array([[0.149], [deed], [piece]]))
    assert (input_ids.tolist(), predict.tolist(), labels.tolist()) == ([expected], [0], [7])
    assert RULE.apply(np.array([7]), np.array([[0.15], [deed], [piece]]))[1].size == 0


def test_a_generator_gives_three_numbers_a_token():
    a, b = rng(5), rng(5)
    RULE(np.arange(10), a)
    b.random((3, 10))
    assert a.random() == b.random()
