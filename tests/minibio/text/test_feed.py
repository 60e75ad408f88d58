"""Which samples a step takes: the same whatever the processes, each dealt out once, evenly."""

from itertools import islice

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from minibio.batch import Batch
from minibio.run.dist import Ranks
from minibio.run.errors import InputError
from minibio.text.feed import CHUNK, Feed, deal

CPU = torch.device("cpu")


class Line:
    """A corpus whose sample at position i is (i + 1) % 7 + 3 tokens that say i."""

    length = 9

    def lengths_at(self, positions):
        return torch.tensor([(i + 1) % 7 + 3 for i in positions]).numpy()

    def take(self, positions):
        lengths = self.lengths_at(positions)
        return Batch.from_sequences([[i] * T for i, T in zip(positions, lengths, strict=True)])


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
