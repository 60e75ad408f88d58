"""The one training loop: `fit`. train.py and eval.py say what is trained; here it is trained.

A step, in order:

    count        the denominators, over all micro-batches and processes
    forward      the terms of the loss, each divided by those counts
    backward     gradients, summed over processes while the last pass is under way (gradients.py)
    agree        the terms, and whether all is finite: one wait for the device
    move         clip by global norm, AdamW at the schedule's rate; or skip the step

Since losses are sums divided by global counts, neither the number of processes nor that of
micro-batches changes what a step computes. Since all that a run is stands in its checkpoint
(weights, moments, random states, `Progress`), a resumed run makes the steps it would have made.
"""

import dataclasses
import math
import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass, field
from itertools import islice
from typing import Protocol

import torch
import torch.nn as nn
from torch import Tensor

from minibio.batch import Batch, Counts
from minibio.run import dist, log, optim
from minibio.run.checkpoint import Checkpoint, Checkpoints
from minibio.run.dist import autocast
from minibio.run.errors import InputError
from minibio.run.gradients import Gradients
from minibio.run.rundir import StopRequest
from minibio.text.feed import Prefetch


@dataclass(frozen=True)
class Plan:
    """How far and how fast; numbers that all processes share."""

    steps: int
    lr: float  # peak
    warmup: int = 0  # steps
    schedule: str = "linear"  # linear | cosine | wsd (optim.lr_at)
    weight_decay: float = 0.01
    betas: tuple[float, float] = (0.9, 0.999)
    adam_eps: float = 1e-8
    clip: float = 1.0  # largest norm of all gradients together
    precision: str = "fp32"  # fp32 | bf16: products under autocast | fp64: to check against
    seed: int = 42  # of dropout
    log_every: int = 1  # steps
    eval_every: int = 0  # 0: never but at both ends
    save_every: int = 0  # 0: never but at the end
    max_skips: int = 10  # steps in a row without a finite gradient, before the run gives up


class Feed(Protocol):
    """Which samples a step takes, and this process's micro-batches of them (feed.py)."""

    def spans(self, position: int) -> Iterator[range]: ...

    def make(self, span: range) -> list[Batch]: ...


class Objective(Protocol):
    """A module whose forward gives the terms of the loss by name, their sum as "loss"."""

    def at(self, step: int) -> None:
        """What the step asks for, where an equation changes with the step."""

    def __call__(self, batch: Batch, taught: object, counts: Counts) -> dict[str, Tensor]: ...


@dataclass
class Progress:
    """How far a run has come. All that it counts; every checkpoint has it."""

    step: int = 0  # optimiser steps done or skipped
    samples: int = 0  # the next position of the data's line
    tokens: int = 0
    seconds: float = 0.0  # in steps; measuring and saving are not among them
    skipped: int = 0
    skipped_in_a_row: int = 0
    terms: dict[str, list] = field(default_factory=dict)  # since the last line: name -> [sum, n]
    mark: tuple[int, int, float] = (0, 0, 0.0)  # step, tokens, seconds at the last line
    last: dict[str, float] = field(default_factory=dict)  # means of the terms in the last line
    held_out_first: dict = field(default_factory=dict)
    held_out: dict = field(default_factory=dict)
    stopped: str = ""  # by which signal, if not by the end of the plan


def fit(objective: nn.Module, feed: Feed, plan: Plan, ranks: dist.Ranks, journal: log.RunLog, *,
        teach: Callable[[Batch], object] | None = None,
        measure: Callable[[], dict] | None = None, checkpoints: Checkpoints | None = None,
        resume: Checkpoint | None = None, config: dict | None = None,
        name: str = "train") -> Progress:  # fmt: skip
    """Train `objective` on what `feed` gives, from the start or from a checkpoint.

    Args:
        objective:   what is trained, with the loss it is trained on (`Objective`).
        teach:       batch -> what the objective takes as `taught`; without, None.
        measure:     () -> figures on held-out data, the same on every process.
        checkpoints: where to save; without, nothing is saved.
        resume:      the checkpoint to go on from.
        config:      the resolved configuration, stored with every checkpoint.
        name:        of the run, for the progress bar.
    Returns:
        How far it came; `stopped` names the signal if it did not come to the end.
    Raises:
        InputError: `plan.max_skips` steps in a row were not finite, a checkpoint cannot be written
            or does not fit, a process is gone.
    """
    optimizer = optim.make_optimizer(
        objective, plan.lr, plan.weight_decay, betas=plan.betas, eps=plan.adam_eps
    )
    stepper = Stepper(objective, optimizer, plan, ranks, teach)
    torch.manual_seed(plan.seed + ranks.rank)  # dropout; weights were drawn alike on all ranks
    if resume is None:
        progress = Progress()
        progress.held_out = progress.held_out_first = look(measure, 0, journal)
    else:
        resume.restore(objective, optimizer, ranks, seed=plan.seed)
        progress = Progress(**resume.counters)
        journal.write({"event": "resume", "step": progress.step, "processes": ranks.world})

    def save():
        if checkpoints is not None:
            checkpoints.save(
                progress.step, objective, optimizer, samples=progress.samples,
                config=config or {}, counters=dataclasses.asdict(progress),
            )  # fmt: skip

    spans = islice(feed.spans(progress.samples), max(0, plan.steps - progress.step))
    bar = log.progress(plan.steps, name, ranks)
    bar.update(progress.step)
    with bar, StopRequest() as stop, Prefetch(lambda s: (s, feed.make(s)), spans) as ready:
        began = time.perf_counter()
        for span, batches in ready:
            lr = optim.lr_at(
                progress.step,
                peak=plan.lr, warmup=plan.warmup, total=plan.steps, schedule=plan.schedule,
            )  # fmt: skip
            objective.set_step(progress.step)
            outcome = stepper.step(batches, lr, stop)
            count(progress, outcome, plan)
            progress.step, progress.samples = progress.step + 1, span.stop
            now = time.perf_counter()
            progress.seconds += now - began
            bar.update()
            is_last = progress.step == plan.steps or outcome.is_asked_to_stop
            if progress.step % plan.log_every == 0 or is_last:
                tell(progress, lr, plan, journal, ranks)
            if progress.step == plan.steps or is_due(progress.step, plan.eval_every):
                progress.held_out = look(measure, progress.step, journal)
            if is_last or is_due(progress.step, plan.save_every):
                save()
            if outcome.is_asked_to_stop:
                progress.stopped = stop.name or "a signal"
                break
            began = time.perf_counter()
    return progress


def is_due(step: int, every: int) -> bool:
    return every > 0 and step % every == 0


def look(measure: Callable[[], dict] | None, step: int, journal: log.RunLog) -> dict:
    """The figures on held-out data, logged."""
    if measure is None:
        return {}
    figures = measure()
    journal.write({"event": "held_out", "step": step, **figures})
    return figures


@dataclass(frozen=True)
class Outcome:
    """What all processes know of a step when it is over."""

    terms: dict[str, float]  # of the loss, with "grad_norm"
    counts: Counts
    is_finite: bool
    is_asked_to_stop: bool  # some process has had a signal


class Stepper:
    """Makes one optimiser step after the other."""

    def __init__(self, objective, optimizer, plan, ranks, teach):
        self.objective, self.optimizer, self.plan, self.ranks = objective, optimizer, plan, ranks
        self.teach = teach
        self.gradients = Gradients(objective.parameters(), ranks)

    def step(self, batches: list[Batch], lr: float, stop: StopRequest) -> Outcome:
        """One optimiser step over this process's micro-batches, at least one."""
        asked = float(stop.name is not None)
        *totals, asked = dist.all_sum([*Counts.of(batches), asked], self.ranks)
        counts = Counts(*totals)
        terms: dict[str, Tensor] = {}
        self.gradients.clear()
        for i, batch in enumerate(batches):
            is_last = i == len(batches) - 1  # gradients travel once a step
            with self.gradients.summed() if is_last else nullcontext():
                parts = self.loss(batch.to(self.ranks.device), counts)
                parts["loss"].backward()
            for name, x in parts.items():
                terms[name] = terms.get(name, 0) + x.detach()
        norm = nn.utils.clip_grad_norm_(self.gradients.parameters, self.plan.clip)
        figures = self.agree(terms, norm)
        is_finite = all(map(math.isfinite, figures.values()))
        if is_finite:
            for group in self.optimizer.param_groups:
                group["lr"] = lr
            self.optimizer.step()
        return Outcome(figures, counts, is_finite, asked > 0)

    def loss(self, batch: Batch, counts: Counts) -> dict[str, Tensor]:
        """The terms of one micro-batch."""
        with autocast(self.plan.precision, self.ranks.device):
            taught = None if self.teach is None else self.teach(batch)
            return self.objective(batch, taught, counts)

    def agree(self, terms: dict[str, Tensor], norm: Tensor) -> dict[str, float]:
        """The same figures on every process, "grad_norm" last: all of them skip a step or none.

        The norm is of the summed gradients, the same everywhere but for the NaN of one process,
        which the sum of all norms brings to all.
        """
        values = torch.stack([x.double() for x in (*terms.values(), norm)]).tolist()
        *values, norms = dist.all_sum(values, self.ranks)
        return dict(zip(terms, values, strict=True)) | {"grad_norm": norms / self.ranks.world}


def count(progress: Progress, outcome: Outcome, plan: Plan) -> None:
    """Enter a step's outcome.

    Raises:
        InputError: the last `plan.max_skips` steps were all skipped.
    """
    progress.tokens += int(outcome.counts.N)
    if outcome.is_finite:
        progress.skipped_in_a_row = 0
        for name, x in outcome.terms.items():
            total, n = progress.terms.get(name, (0.0, 0))
            progress.terms[name] = [total + x, n + 1]
        return
    progress.skipped += 1
    progress.skipped_in_a_row += 1
    if progress.skipped_in_a_row == plan.max_skips:
        bad = ", ".join(f"{name} {x:g}" for name, x in outcome.terms.items())
        raise InputError(
            f"the last {plan.max_skips} steps, to step {progress.step + 1}, had a loss or gradient "
            f"that is not finite ({bad}) and were skipped; lower --lr, raise --warmup, or train in "
            f"--precision fp32"
        )


def tell(progress: Progress, lr: float, plan: Plan, journal: log.RunLog, ranks: dist.Ranks) -> None:
    """One line of the log for the steps since the last one: means of terms, rates, what is left."""
    step, tokens, seconds = progress.mark
    progress.last = {name: total / n for name, (total, n) in progress.terms.items()}
    steps, seconds = progress.step - step, progress.seconds - seconds
    line = {
        "event": "train",
        "step": progress.step,
        **progress.last,
        "lr": lr,
        "samples": progress.samples,
        "tokens": progress.tokens,
        "skipped": progress.skipped,
        "tokens_per_s": round((progress.tokens - tokens) / max(seconds, 1e-9)),
        "memory_gib": round(log.peak_bytes(ranks.device) / 2**30, 3),
        "eta_s": round((plan.steps - progress.step) * seconds / max(steps, 1), 1),
    }
    journal.write(line)
    log.say(log.interval_line(line, plan.steps), ranks)
    progress.terms, progress.mark = {}, (progress.step, progress.tokens, progress.seconds)
