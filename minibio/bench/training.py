"""The loop of train.py on one batch, step by step: what `bench step` times is the code that trains.

The loop is imported from train.py, so a benchmark of steps runs in the repository only. It gets a
feed whose steps all take the same batch, and in place of the run's directory an object that neither
reads nor writes, and makes the loop wait where it would log a line.
"""

import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import count

import torch

from minibio.batch import Batch
from minibio.distil.objectives import Objective
from minibio.model.heads import Model
from minibio.run.dist import Ranks
from minibio.run.errors import InputError

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


class Turns(NoDirectory):
    """A loop in a thread of its own, which makes a step when it is its turn.

    Args:
        loop: trains, given this in place of a directory; logs every step.
    """

    def __init__(self, device: torch.device, loop: Callable):
        super().__init__(device)
        self.loop, self.error = loop, None
        self.turn, self.done = threading.Semaphore(0), threading.Semaphore(0)
        self.thread = threading.Thread(target=self.run, daemon=True)
        self.thread.start()

    def run(self) -> None:
        self.turn.acquire()
        try:
            self.loop(self)
        except BaseException as error:  # raised again in `step`
            self.error = error
            self.done.release()

    def step(self) -> None:
        """Let the loop make one step, and wait for its end."""
        self.turn.release()
        self.done.acquire()
        if self.error is not None:
            raise self.error

    def log_interval(self, progress, steps: int, lr: float, measures: int) -> None:
        """The end of a step; after the last one the thread ends."""
        self.done.release()
        if progress.step < steps:
            self.turn.acquire()


def train_on(
    batch: Batch,
    objective: Objective,
    teacher: Model | None,
    steps: int,
    precision: str,
    run_dir: NoDirectory,
) -> None:
    """Train for some steps, all on `batch`, with the loop of train.py.

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
        log_every=1,
        eval_every=steps,
        save_every=steps,
    )
    train.train(objective, teacher, SameBatch(batch), [], run, run_dir, run_dir.ranks)
