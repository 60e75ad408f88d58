"""Which examples a step of fine-tuning takes: every one once an epoch, whoever shares the work."""

from itertools import islice

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from minibio.batch import Batch
from minibio.run.dist import Ranks
from minibio.run.errors import InputError
from minibio.text.epochs import Epochs

CPU = torch.device("cpu")


def collate(examples):
    return Batch.from_sequences([[i] * (i % 7 + 3) for i in examples])


def epochs(n, rank=0, world=1, batch=4, **options):
    lengths = [i % 7 + 3 for i in range(n)]
    ranks = Ranks(rank, rank, world, CPU)
    return Epochs(range(n), lengths, collate, ranks, batch=batch, **{"seed": 5, **options})


def taken(batches):
    return [int(batch.tokens[i]) for batch in batches for i in batch.firsts()]


@settings(derandomize=True, deadline=None, max_examples=80)
@given(n=st.integers(1, 40), batch=st.integers(1, 12), world=st.integers(1, 3),
       accumulate=st.integers(1, 2))  # fmt: skip
def test_every_example_once_an_epoch_in_any_sharing_out(n, batch, world, accumulate):
    hands = world * accumulate
    if min(n, batch) < hands:
        with pytest.raises(InputError, match=f"expected at least {hands}"):
            epochs(n, world=world, batch=batch, accumulate=accumulate)
        return
    mine = [epochs(n, rank, world, batch, accumulate=accumulate) for rank in range(world)]
    spans = list(islice(mine[0].spans(0), 2 * mine[0].steps))
    assert [x for span in spans for x in span] == list(range(2 * n))
    for epoch in range(2):
        seen = []
        order = np.random.Generator(np.random.Philox(key=[5, epoch])).permutation(n)
        for span in spans[epoch * mine[0].steps : (epoch + 1) * mine[0].steps]:
            assert span.start // n == (span.stop - 1) // n == epoch
            made = [x.make(span) for x in mine]
            assert all(len(batches) == accumulate for batches in made)
            numbers = [b.B for batches in made for b in batches]
            assert min(numbers) >= 1 and max(numbers) - min(numbers) <= 1
            step = [i for batches in made for i in taken(batches)]
            assert sorted(step) == sorted(order[x - epoch * n] for x in span)
            seen += step
        assert sorted(seen) == list(range(n))


def test_a_short_last_step_stands_alone_or_joins_the_one_before():
    assert [len(x) for x in islice(epochs(10).spans(0), 6)] == [4, 4, 2, 4, 4, 2]
    assert [len(x) for x in islice(epochs(10, world=3).spans(0), 4)] == [4, 6, 4, 6]
    assert [len(x) for x in islice(epochs(3).spans(0), 2)] == [3, 3]
    assert epochs(10).steps == 3 and epochs(10, world=3).steps == 2 and epochs(8).steps == 2


def test_a_run_goes_on_where_it_was():
    spans = list(islice(epochs(10).spans(0), 7))
    for i, span in enumerate(spans):
        assert list(islice(epochs(10).spans(span.start), 7 - i)) == spans[i:]
        fresh, used = epochs(10), epochs(10)
        used.make(spans[0])
        assert taken(fresh.make(span)) == taken(used.make(span))


def test_a_run_that_went_on_with_other_processes_still_ends_with_the_epoch():
    assert [len(x) for x in islice(epochs(10, world=3).spans(8), 3)] == [2, 4, 6]


def test_equal_lengths_are_neighbours():
    (batch,) = epochs(20, batch=20).make(range(20))
    assert list(batch.lengths) == sorted(batch.lengths)


def test_orders_differ_by_seed_and_epoch():
    a, b = epochs(30, batch=30), epochs(30, batch=30, seed=6)
    orders = {tuple(a.order(0)), tuple(a.order(1)), tuple(b.order(0)), tuple(a.order(0))}
    assert len(orders) == 3
