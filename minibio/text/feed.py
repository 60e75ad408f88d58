"""Which samples a step takes, and which of them are this process's: corpus -> micro-batches.

A step takes the next samples of the corpus's line: `batch` of them, or as many as fit into `tokens`
tokens. They are dealt out like cards, the longest first, to all micro-batches of all processes, so
that each has about as many tokens as the others and none waits long. Which samples a step takes
depends neither on the number of processes nor on the number of micro-batches.
"""

from collections.abc import Iterator, Sequence

import numpy as np

from minibio.batch import Batch
from minibio.run.dist import Ranks
from minibio.run.errors import InputError
from minibio.text.corpus import Corpus

CHUNK = 256  # samples whose lengths are looked up at a time


class Feed:
    """The steps of a run over `corpus`.

    Args:
        batch:      samples of one step, all processes together; or
        tokens:     the most tokens of one step, if not 0.
        accumulate: micro-batches of one process in one step.
    Raises:
        InputError: the samples of a step cannot be dealt out evenly, or one sample alone may have
            more than `tokens` tokens.
    """

    def __init__(self, corpus: Corpus, ranks: Ranks, *, batch: int, tokens: int = 0,
                 accumulate: int = 1):  # fmt: skip
        self.corpus, self.ranks, self.accumulate = corpus, ranks, accumulate
        self.batch, self.tokens = batch, tokens
        self.hands = ranks.world * accumulate
        of = f"{self.hands} ({ranks.world} processes of {accumulate} micro-batches)"
        if not tokens and (batch < 1 or batch % self.hands):
            raise InputError(f"a batch of {batch} sequences, expected a multiple of {of}")
        if tokens and tokens < self.hands * corpus.length:
            raise InputError(
                f"a batch of {tokens} tokens, expected at least {self.hands * corpus.length}: "
                f"{of} times {corpus.length}"
            )

    def spans(self, position: int) -> Iterator[range]:
        """The positions that each step takes, for ever, the first step at `position`."""
        while True:
            last = self.fill(position) if self.tokens else position + self.batch
            yield range(position, last)
            position = last

    def fill(self, first: int) -> int:
        """The end of the longest span from `first` on that has no more than `tokens` tokens."""
        last, room = first, self.tokens
        while True:
            ends = self.corpus.lengths_at(range(last, last + CHUNK)).cumsum()
            n = int(np.searchsorted(ends, room, side="right"))
            last += n
            if n < CHUNK:
                return last
            room -= int(ends[-1])

    def make(self, span: range) -> list[Batch]:
        """This process's micro-batches of the step that takes the samples of `span`."""
        hands = deal(self.corpus.lengths_at(span), self.hands)
        mine = hands[self.ranks.rank :: self.ranks.world]
        return [self.corpus.take([span[i] for i in hand]) for hand in mine]


def deal(lengths: Sequence[int], hands: int) -> list[list[int]]:
    """Indices of `lengths`, the longest first, one to each hand in turn, there and back."""
    order = np.argsort(-np.asarray(lengths), kind="stable").tolist()
    turns = [*range(hands), *reversed(range(hands))]
    dealt = [[] for _ in range(hands)]
    for n, i in enumerate(order):
        dealt[turns[n % len(turns)]].append(i)
    return [sorted(hand) for hand in dealt]
