"""Samples of each step: the same whatever the ranks, each dealt out once, evenly, ahead of time."""

import subprocess
import sys
import threading
import time
from itertools import islice

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from helpers import ROOT
from minibio.batch import Batch
from minibio.run.dist import Ranks
from minibio.run.errors import InputError
from minibio.text.feed import CHUNK, Epochs, Feed, Prefetch, deal

CPU = torch.device("cpu")


class Line:
    """A corpus whose sample at position i is (i + 1) % 7 + 3 tokens that say i."""

    length = 9

    def lengths_at(self, positions):
        return torch.tensor([(i + 1) % 7 + 3 for i in positions]).numpy()

    def documents_at(self, positions):
        lengths = self.lengths_at(positions)
        return [np.full(T, i) for i, T in zip(positions, lengths, strict=True)]

    def collate(self, documents, positions):
        return Batch.from_sequences(documents)


def feed(rank=0, world=1, **options):
    return Feed(Line(), Ranks(rank, rank, world, CPU), **options)


def samples(batches):
    """The positions whose samples are in the batches."""
    return [int(batch.tokens[i]) for batch in batches for i in batch.firsts()]


@settings(derandomize=True, deadline=None, max_examples=80)
@given(
    world=st.integers(1, 4), accumulate=st.integers(1, 3), n=st.integers(1, 4),
    first=st.integers(0, 10**6), in_tokens=st.booleans(),
)  # fmt: skip
def test_any_sharing_out_gives_the_same_steps(world, accumulate, n, first, in_tokens):
    hands = world * accumulate
    size = {"batch": 0, "tokens": n * hands * 9} if in_tokens else {"batch": n * hands}
    spans = list(islice(feed(**size).spans(first), 3))
    assert spans[0].start == first
    assert all(a.stop == b.start for a, b in zip(spans, spans[1:], strict=False))
    mine = [feed(rank, world, accumulate=accumulate, **size) for rank in range(world)]
    assert all(list(islice(f.spans(first), 3)) == spans for f in mine)
    for span in spans:
        made = [f.make(span) for f in mine]
        assert all(len(batches) == accumulate for batches in made)
        assert sorted(i for batches in made for i in samples(batches)) == list(span)
        numbers = [batch.B for batches in made for batch in batches]
        assert min(numbers) >= 1 and max(numbers) - min(numbers) <= 1


@pytest.mark.parametrize("tokens", [9, 10, 40, 9 * CHUNK, 100_000])
def test_a_budget_of_tokens_is_used_up_and_never_overdrawn(tokens):
    """Checked sample by sample; the largest budget takes more than one look at lengths."""
    line = Line()
    for span in islice(feed(batch=0, tokens=tokens).spans(5), 4):
        assert line.lengths_at(span).sum() <= tokens
        assert line.lengths_at(range(span.start, span.stop + 1)).sum() > tokens


def test_hands_have_about_as_many_tokens():
    lengths = torch.randint(10, 257, (96,), generator=torch.Generator().manual_seed(1)).tolist()
    sums = [sum(lengths[i] for i in hand) for hand in deal(lengths, 8)]
    assert max(sums) - min(sums) <= 0.05 * max(sums)


def test_one_hand_has_all_in_order():
    assert deal([3, 9, 3, 4], 1) == [[0, 1, 2, 3]]


@pytest.mark.parametrize(("batch", "world", "accumulate"), [(10, 4, 1), (10, 2, 3), (0, 1, 1)])
def test_a_batch_that_cannot_be_dealt_out(batch, world, accumulate):
    match = f"a batch of {batch} sequences, expected a multiple of {world * accumulate}"
    with pytest.raises(InputError, match=match):
        feed(0, world, batch=batch, accumulate=accumulate)


def test_a_budget_that_may_leave_a_hand_empty():
    assert feed(0, 2, batch=0, tokens=36, accumulate=2)
    with pytest.raises(InputError, match="35 tokens, expected at least 36"):
        feed(0, 2, batch=0, tokens=35, accumulate=2)


# epochs


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


# ahead of time


def threads():
    return [t for t in threading.enumerate() if t.name == "prefetch"]


@pytest.mark.parametrize("depth", [1, 3, 50])
def test_results_are_those_of_the_tasks_in_order(depth):
    with Prefetch(lambda i: i * i, range(20), depth) as results:
        assert list(results) == [i * i for i in range(20)]
    assert threads() == []


def test_a_process_that_ends_does_not_wait_for_the_thread():
    with Prefetch(lambda i: i, range(3)) as results:
        assert results.thread.daemon


def test_none_is_a_result():
    with Prefetch(lambda i: None, range(3)) as results:
        assert list(results) == [None] * 3


def test_asking_again_when_all_is_over_gives_nothing_and_does_not_wait():
    with Prefetch(lambda i: 1 // (2 - i), range(9)) as results:
        with pytest.raises(ZeroDivisionError):
            list(results)
        assert list(results) == []
    with Prefetch(lambda i: i, range(3)) as results:
        assert list(results) == [0, 1, 2] and list(results) == []
    assert list(results) == []


def test_the_thread_lives_in_the_block_alone():
    with pytest.raises(AssertionError, match="no thread"):
        list(Prefetch(str, range(3)))


INTERRUPTED = """
import os, signal, threading
from minibio.text.feed import Prefetch
try:
    with Prefetch(lambda i: i if i < 3 else threading.Event().wait(0.2), range(10**9)) as results:
        for result in results:
            if result == 2:
                threading.Timer(0.05, os.kill, (os.getpid(), signal.SIGINT)).start()
except KeyboardInterrupt:
    print([t.name for t in threading.enumerate() if t.name == "prefetch"])
"""


def test_an_interrupt_while_it_waits_ends_the_thread():
    done = subprocess.run(
        [sys.executable, "-c", INTERRUPTED], cwd=ROOT, capture_output=True, text=True, timeout=60
    )
    assert (done.returncode, done.stdout) == (0, "[]\n"), done.stderr


def wait_until(condition):
    last = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < last, "nothing happened for 60 s"
        time.sleep(0.001)


def test_it_runs_ahead_as_far_as_depth_and_no_further():
    made = []
    with Prefetch(made.append, range(100), depth=3) as results:
        wait_until(lambda: len(made) == 4)  # three wait, one has no room yet
        time.sleep(0.05)
        assert len(made) == 4
        next(iter(results))
        wait_until(lambda: len(made) == 5)
    assert len(made) == 5 and threads() == []


def test_who_uses_the_results_does_not_wait():
    """What comes next is made before it is asked for."""
    made = []
    with Prefetch(made.append, range(10), depth=4) as results:
        ready = iter(results)
        for i in range(9):
            next(ready)
            wait_until(lambda i=i: len(made) > i + 1)


@pytest.mark.parametrize("error", [ValueError("step 3"), KeyboardInterrupt(), StopIteration(3)])
def test_an_error_is_raised_in_the_place_of_its_result(error):
    def make(i):
        if i == 3:
            raise error
        return i

    seen = []
    with pytest.raises((type(error), RuntimeError)) as caught:  # StopIteration inside a generator
        with Prefetch(make, range(9)) as results:
            for result in results:
                seen.append(result)
    assert error in (caught.value, caught.value.__cause__) and seen == [0, 1, 2]
    assert threads() == []


def test_an_error_of_the_tasks_is_raised_too():
    def tasks():
        yield 1
        raise OSError("disk")

    with pytest.raises(OSError, match="disk"), Prefetch(lambda i: i, tasks()) as results:
        list(results)


def test_leaving_early_stops_the_thread():
    with pytest.raises(KeyError), Prefetch(lambda i: i, range(10**9), depth=2) as results:
        for result in results:
            if result == 5:
                raise KeyError
    assert threads() == []


def test_a_block_that_takes_nothing_ends():
    with Prefetch(lambda i: i, range(10**9), depth=1):
        pass
    assert threads() == []


def test_depth_is_checked():
    with pytest.raises(ValueError, match="depth is 0"):
        Prefetch(str, [], 0)
