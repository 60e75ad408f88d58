"""The row of tokens: to the padded world and back."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from minibio.batch import Batch

LENGTHS = st.lists(st.integers(0, 9), max_size=6)


def padded(lengths):
    """Random ids, mask and segments of a rectangle with these row lengths, padding id 0."""
    T = max(lengths, default=0)
    mask = torch.arange(T) < torch.tensor(lengths, dtype=torch.int64)[:, None]  # (B, T)
    ids = torch.randint(5, 99, mask.shape) * mask
    return ids, mask.long(), torch.randint(0, 2, mask.shape) * mask


@settings(derandomize=True, deadline=None)
@given(LENGTHS)
def test_padded_to_row_and_back(lengths):
    ids, mask, segments = padded(lengths)
    batch = Batch.from_padded(ids, mask, segments)
    assert batch.lengths == tuple(lengths)
    assert batch.B == len(lengths) and batch.N == sum(lengths) == len(batch.tokens)
    assert torch.equal(batch.pad(batch.tokens), ids)
    assert torch.equal(batch.pad(batch.segments), segments)
    assert batch.cu_seqlens.tolist() == [sum(lengths[:b]) for b in range(len(lengths) + 1)]
    assert batch.n_pairs == sum(T * T for T in lengths)
    assert batch.own_lengths.tolist() == [T for T in lengths for _ in range(T)]


@settings(derandomize=True, deadline=None)
@given(LENGTHS)
def test_from_sequences_equals_from_padded(lengths):
    ids, mask, segments = padded(lengths)
    one = Batch.from_padded(ids, mask, segments)
    rows = [ids[b, :T].tolist() for b, T in enumerate(lengths)]
    two = Batch.from_sequences(rows, [segments[b, :T].tolist() for b, T in enumerate(lengths)])
    for name in ("tokens", "positions", "segments", "cu_seqlens"):
        assert torch.equal(getattr(one, name), getattr(two, name)), name
    assert one.lengths == two.lengths


def test_literal_row():
    batch = Batch.from_sequences([[2, 8, 9, 3], [2, 3]], predict=[1, 5], labels=[30, 31])
    assert batch.tokens.tolist() == [2, 8, 9, 3, 2, 3]
    assert batch.positions.tolist() == [0, 1, 2, 3, 0, 1]
    assert batch.firsts().tolist() == [0, 4]
    assert (batch.N, batch.M, batch.max_len) == (6, 2, 4)
    assert batch.without_targets().M == 6
    assert batch.to("cpu").labels.tolist() == [30, 31]


def test_one_text_is_known_without_looking():
    ids, mask, segments = padded([3, 2])
    for types in (None, segments):
        batch = Batch.from_padded(ids, mask, types)
        assert batch.is_one_text == (types is None)
        assert batch.to("cpu").without_targets().is_one_text == (types is None)
    assert Batch.from_sequences([[1, 2]]).is_one_text
    assert not Batch.from_sequences([[1, 2]], [[0, 1]]).is_one_text


def test_pad_carries_features_and_value():
    batch = Batch.from_sequences([[1, 2], [3]])
    x = batch.pad(torch.ones(3, 4), value=-1.0)
    assert x.shape == (2, 2, 4)
    assert x[1, 1].eq(-1).all() and x[0].eq(1).all()


def test_left_padding_is_refused():
    with pytest.raises(ValueError, match="padding on the right"):
        Batch.from_padded(torch.tensor([[0, 5]]), torch.tensor([[0, 1]]))


@pytest.mark.parametrize("name", ["attention_mask", "token_type_ids"])
def test_shapes_that_differ_are_named(name):
    ids = torch.ones(2, 3, dtype=torch.int64)
    args = {"attention_mask": ids, "token_type_ids": ids, name: ids[:, :2]}
    with pytest.raises(ValueError, match=rf"{name} is \(2, 2\), expected \(2, 3\)"):
        Batch.from_padded(ids, **args)
