"""Which examples a step of fine-tuning takes: epochs, each in an order of its own.

    position     0 1 2 3 4 5 6 | 7 8 9 ...        of the run's line of examples, epoch after epoch
    steps        0 0 0 0 1 1 1 | 2 2 2 ...        no step reaches over the end of an epoch
    example      the order of epoch e is a permutation drawn from (seed, e)

The examples of a step are dealt out to processes and micro-batches as `feed.deal` deals; so neither
of their numbers changes what a step learns. Read feed.py first, whose form this has.
"""

from collections.abc import Callable, Iterator, Sequence

import numpy as np

from minibio.batch import Batch
from minibio.run.dist import Ranks
from minibio.run.errors import InputError
from minibio.text.feed import deal


class Epochs:
    """The steps of a run over `examples`.

    Args:
        examples:   what `collate` makes a batch of.
        lengths:    tokens of each.
        collate:    examples -> Batch, with labels.
        batch:      examples of one step, all processes together. The last step of an epoch takes
                    what is left, or goes with the step before where that is too little for all.
        accumulate: micro-batches of one process in one step.
    Raises:
        InputError: there are fewer examples, in all or in a step, than micro-batches.
    """

    def __init__(self, examples: Sequence, lengths: Sequence[int],
                 collate: Callable[[Sequence], Batch], ranks: Ranks, *, batch: int, seed: int,
                 accumulate: int = 1):  # fmt: skip
        self.examples, self.lengths, self.collate = examples, np.asarray(lengths), collate
        self.ranks, self.seed = ranks, seed
        self.hands, self.n = ranks.world * accumulate, len(examples)
        for what, n in (("a training set", self.n), ("a batch", batch)):
            if n < self.hands:
                raise InputError(
                    f"{what} of {n} examples, expected at least {self.hands}: one for each of "
                    f"{ranks.world} processes of {accumulate} micro-batches"
                )
        self.ends = [*range(batch, self.n, batch), self.n]  # of the steps of an epoch
        if len(self.ends) > 1 and self.n - self.ends[-2] < self.hands:
            del self.ends[-2]
        self.drawn = (-1, np.arange(0))  # the epoch whose order was asked for last, and that order

    @property
    def steps(self) -> int:
        """Of one epoch."""
        return len(self.ends)

    def spans(self, position: int) -> Iterator[range]:
        """The positions that each step takes, for ever, the first step at `position`."""
        while True:
            first = position - position % self.n  # of this epoch
            for end in self.ends:
                if first + end > position:
                    yield range(position, first + end)
                    position = first + end

    def order(self, epoch: int) -> np.ndarray:
        """(n,) the examples of one epoch in their order."""
        if self.drawn[0] != epoch:
            rng = np.random.Generator(np.random.Philox(key=[self.seed, epoch]))
            self.drawn = (epoch, rng.permutation(self.n))
        return self.drawn[1]

    def make(self, span: range) -> list[Batch]:
        """This process's micro-batches of the step that takes the examples of `span`."""
        epoch, first = divmod(span.start, self.n)
        chosen = self.order(epoch)[first : first + len(span)]
        hands = deal(self.lengths[chosen], self.hands)
        mine = hands[self.ranks.rank :: self.ranks.world]
        return [self.take(chosen[hand]) for hand in mine]

    def take(self, chosen: np.ndarray) -> Batch:
        """These examples as a batch, the shortest first: equal lengths are neighbours."""
        chosen = chosen[np.argsort(self.lengths[chosen], kind="stable")]
        return self.collate([self.examples[i] for i in chosen])
