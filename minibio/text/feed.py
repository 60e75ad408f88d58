"""Samples of each step, and this rank's share of them, made ahead of time.

    Feed      a corpus: positions of an endless line of samples          pre-training, distillation
    Epochs    examples: epoch after epoch, each in an order of its own   fine-tuning
    ahead     the batches of the next steps, made in a thread

A step takes the next samples: `batch` of them, or as many as fit into `tokens` tokens. They are
dealt out like cards, the longest first, to all micro-batches of all ranks, so that each has about
as many tokens as the others and none waits long. Which samples a step takes depends neither on the
number of ranks nor on the number of micro-batches.
"""

import queue
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice

import numpy as np

from minibio.batch import Batch
from minibio.run.dist import Ranks
from minibio.run.errors import InputError
from minibio.text.corpus import Corpus

CHUNK = 256  # samples whose lengths are looked up at a time
END = object()  # no result, no error: the tasks are over


class Feed:
    """The steps of a run over `corpus`.

    Args:
        batch:      samples of one step, all ranks together; or
        tokens:     the most tokens of one step, if not 0.
        accumulate: micro-batches of one rank in one step.
    Raises:
        InputError: the samples of a step cannot be dealt out evenly, or a single sample may have
            more than `tokens` tokens.
    """

    def __init__(
        self, corpus: Corpus, ranks: Ranks, *, batch: int, tokens: int = 0, accumulate: int = 1
    ):
        self.corpus, self.ranks, self.accumulate = corpus, ranks, accumulate
        self.batch, self.tokens = batch, tokens
        self.hands = ranks.world * accumulate
        of = f"{self.hands} ({ranks.world} ranks of {accumulate} micro-batches)"
        if not tokens and (batch < 1 or batch % self.hands):
            raise InputError(f"a batch of {batch} sequences, expected a multiple of {of}")
        if tokens and tokens < self.hands * corpus.length:
            raise InputError(
                f"a batch of {tokens} tokens, expected at least {self.hands * corpus.length}: "
                f"{of} times {corpus.length}"
            )

    def spans(self, position: int) -> Iterator[range]:
        """The positions that each step takes, endlessly, the first step at `position`."""
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
        """This rank's micro-batches of the step that takes the samples of `span`."""
        documents = self.corpus.documents_at(span)
        hands = deal([len(ids) for ids in documents], self.hands)
        mine = hands[self.ranks.rank :: self.ranks.world]
        return [
            self.corpus.collate([documents[i] for i in hand], [span[i] for i in hand])
            for hand in mine
        ]


def deal(lengths: Sequence[int], hands: int) -> list[list[int]]:
    """Indices of `lengths`, the longest first, one to each hand in turn, there and back."""
    order = np.argsort(-np.asarray(lengths), kind="stable").tolist()
    turns = [*range(hands), *reversed(range(hands))]
    dealt = [[] for _ in range(hands)]
    for n, i in enumerate(order):
        dealt[turns[n % len(turns)]].append(i)
    return [sorted(hand) for hand in dealt]


class Epochs:
    """The steps of a run over `examples`.

        position     0 1 2 3 4 5 6 | 7 8 9 ...        of the run's line of examples
        steps        0 0 0 0 1 1 1 | 2 2 2 ...        no step reaches over the end of an epoch
        example      the order of epoch e is a permutation drawn from (seed, e)

    Args:
        examples:   what `collate` makes a batch of.
        lengths:    tokens of each.
        collate:    examples -> Batch, with labels.
        batch:      examples of one step, all ranks together. The last step of an epoch takes
                    what is left, or goes with the step before where that is too little for all.
        accumulate: micro-batches of one rank in one step.
    Raises:
        InputError: there are fewer examples, in all or in a step, than micro-batches.
    """

    def __init__(
        self,
        examples: Sequence,
        lengths: Sequence[int],
        collate: Callable[[Sequence], Batch],
        ranks: Ranks,
        *,
        batch: int,
        seed: int,
        accumulate: int = 1,
    ):
        self.examples, self.lengths, self.collate = examples, np.asarray(lengths), collate
        self.ranks, self.seed = ranks, seed
        self.hands, self.n = ranks.world * accumulate, len(examples)
        for what, n in (("a training set", self.n), ("a batch", batch)):
            if n < self.hands:
                raise InputError(
                    f"{what} of {n} examples, expected at least {self.hands}: one for each of "
                    f"{ranks.world} ranks of {accumulate} micro-batches"
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
        """The positions that each step takes, endlessly, the first step at `position`."""
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
        """This rank's micro-batches of the step that takes the examples of `span`."""
        epoch, first = divmod(span.start, self.n)
        chosen = self.order(epoch)[first : first + len(span)]
        hands = deal(self.lengths[chosen], self.hands)
        mine = hands[self.ranks.rank :: self.ranks.world]
        return [self.take(chosen[hand]) for hand in mine]

    def take(self, chosen: np.ndarray) -> Batch:
        """These examples as a batch, the shortest first: equal lengths are neighbours."""
        chosen = chosen[np.argsort(self.lengths[chosen], kind="stable")]
        return self.collate([self.examples[i] for i in chosen])


def ahead(feed, position: int, steps: int) -> "Prefetch":
    """(span, this rank's micro-batches) of each of the next steps, made ahead of time.

        with ahead(feed, progress.samples, run.steps - progress.step) as steps:
            for span, batches in steps: ...

    Args:
        feed:     a `Feed` or `Epochs`: `spans(position)` and `make(span)`.
        position: of the first step's first sample.
        steps:    how many; none below 1.
    """
    spans = islice(feed.spans(position), max(0, steps))
    return Prefetch(lambda span: (span, feed.make(span)), spans)


class Prefetch:
    """Results of `make(task)` for each task, in order, up to `depth` of them ahead of their use.

        with Prefetch(make, tasks, depth=4) as results:
            for result in results: ...

    While a step runs on the device its host is idle: a thread makes the next batches meanwhile. The
    results are the same calls in the same order, so nothing depends on how far ahead it is.
    """

    def __init__(self, make: Callable, tasks: Iterable, depth: int = 4):
        if depth < 1:
            raise ValueError(f"Prefetch: depth is {depth}, expected 1 or more")
        self.make, self.tasks = make, tasks
        self.ready = queue.Queue(depth)
        self.is_closed = threading.Event()
        self.thread = threading.Thread(target=self.run, name="prefetch", daemon=True)

    def run(self) -> None:
        """In the thread: make and hand over, until the tasks are over, one fails, or it is
        closed."""
        try:
            for task in self.tasks:
                if self.is_closed.is_set():
                    return
                self.put((self.make(task), None))
            self.put((END, None))
        except BaseException as error:  # raised again where the result is asked for
            self.put((END, error))

    def put(self, item: tuple) -> None:
        """Wait for room, but not endlessly: nothing takes from a closed one."""
        while not self.is_closed.is_set():
            try:
                return self.ready.put(item, timeout=0.1)
            except queue.Full:
                continue

    def __enter__(self) -> "Prefetch":
        self.thread.start()
        return self

    def __iter__(self) -> Iterator:
        """The results, once. What `make` raised is raised here, in the place of its result."""
        assert self.thread.ident is not None, "outside of the with block there is no thread"
        while not self.is_closed.is_set():
            result, error = self.ready.get()
            if result is END:
                self.is_closed.set()  # nothing more will come, whoever asks
            if error is not None:
                raise error
            if result is not END:
                yield result

    def __exit__(self, *error) -> None:
        self.is_closed.set()
        self.thread.join()
