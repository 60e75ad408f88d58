"""The loop of train.py on one batch, step by step: what `bench step` times is the code that trains.

The loop is imported from train.py, so a benchmark of steps runs in the repository only. It gets a
feed whose steps all take the same batch, and in place of the run's directory an object that neither
reads nor writes.
"""

from collections.abc import Iterator
from dataclasses import replace
from itertools import count

import torch

from minibio.batch import Batch
from minibio.distil.objectives import Objective
from minibio.model.heads import Model
from minibio.run.dist import Ranks
from minibio.run.errors import InputError
from minibio.run.log import Progress
from minibio.run.rundir import StopRequest

LR = 1e-5


class SameBatch:
    """A feed whose steps all take one batch."""

    def __init__(self, batch: Batch):
        self.batch = batch

    def spans(self, position: int) -> Iterator[range]:
        """The samples of each step."""
        return (range(i * self.batch.B, (i + 1) * self.batch.B) for i in count())

    def make(self, span: range) -> list[Batch]:
        """The micro-batches of a step: one."""
        return [self.batch]


class NoDirectory:
    """In place of a run's directory: a new run, of which nothing is kept."""

    def __init__(self, device: torch.device):
        self.ranks = Ranks(1, 0, 1, device)  # rank 1 of a world of one: rank 0 has a progress bar

    def resume(self, *args) -> None: ...
    def log(self, event: dict) -> None: ...
    def log_interval(self, progress, steps: int, lr: float, measures: int) -> None: ...
    def save(self, *args) -> None: ...


def steps_on(
    batch: Batch, objective: Objective, teacher: Model | None, steps: int, precision: str
) -> Iterator[Progress]:
    """The loop of train.py, ready for its first step, all on `batch`: each `next` makes one.

    A signal ends the process, not the loop.

    Raises:
        InputError: train.py cannot be imported.
    """
    try:
        import train
    except ImportError:
        raise InputError(
            "the loop that is timed is train.py's; run this in the repository"
        ) from None
    run = replace(
        objective.run,
        steps=steps,
        lr=LR,
        warmup=0,
        schedule="wsd",
        precision=precision,
        log_every=steps,
        eval_every=steps,
        save_every=steps,
    )
    directory = NoDirectory(batch.device)
    loop = train.train(objective, teacher, SameBatch(batch), [], run, directory, StopRequest())
    next(loop)  # what comes before the first step
    return loop
