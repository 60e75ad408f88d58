"""The log of a run: how far it has come, a progress bar for people, JSON lines for machines.

Only rank 0 prints and writes.
"""

import json
import math
import resource
import sys
from collections.abc import Collection
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch

from minibio.run.dist import Ranks, print0
from minibio.run.errors import InputError, RunFailed
from minibio.run.files import finite
from minibio.run.store import OTHER_VERSION

FIRST_LINES = (1, 2, 5, 10)  # steps that are logged whatever the interval


def is_due(step: int, every: int, last: int) -> bool:
    """Whether the figures after `step` are logged; by its number only, so a stop adds no line."""
    return step in FIRST_LINES or step % every == 0 or step == last


@dataclass
class Progress:
    """Counts of a run: every number that the next step needs. Part of each checkpoint."""

    step: int = 0  # optimiser steps done or skipped
    samples: int = 0  # samples read; the position of the next one
    tokens: int = 0
    seconds: float = 0.0  # from before the first step: steps, measuring and saving
    step_seconds: float = 0.0  # in steps
    measure_seconds: float = 0.0  # of the last measuring of held-out text
    skipped: int = 0
    skipped_in_a_row: int = 0
    terms: dict[str, list] = field(default_factory=dict)  # since the last line: name -> [sum, n]
    mark: tuple[int, int, float] = (0, 0, 0.0)  # step, tokens, step_seconds at the last line
    last: dict[str, float] = field(default_factory=dict)  # means of the terms in the last line
    held_out_first: dict = field(default_factory=dict)
    held_out: dict = field(default_factory=dict)
    stopped: str = ""  # the signal that ended the run before its last step

    @staticmethod
    def read(counters: dict, where: Path) -> "Progress":
        """The counts of a checkpoint, of a run that resumes.

        Raises:
            InputError: they are of another version.
        """
        blank = asdict(Progress())
        for name in {**blank, **counters}:
            kinds = (int, float) if isinstance(blank.get(name), float) else type(blank.get(name))
            kinds = list if name == "mark" else kinds
            if name not in blank or not isinstance(counters.get(name), kinds):
                raise InputError(
                    f"{where}: the counter {name!r} is {counters.get(name)!r}: {OTHER_VERSION}"
                )
        return Progress(**{**counters, "stopped": ""})

    def add(
        self, terms: dict[str, float], *, samples: int, tokens: int, seconds: float, max_skips: int
    ) -> None:
        """Count one step: the terms of its loss where all are finite, a skipped step otherwise.

        Args:
            samples: the position after it.
            seconds: that it took.
        Raises:
            InputError: the last `max_skips` steps were all skipped.
        """
        self.step, self.samples = self.step + 1, samples
        self.tokens, self.step_seconds = self.tokens + tokens, self.step_seconds + seconds
        if all(map(math.isfinite, terms.values())):
            self.skipped_in_a_row = 0
            for name, x in terms.items():
                total, n = self.terms.get(name, (0.0, 0))
                self.terms[name] = [total + x, n + 1]
            return
        self.skipped += 1
        self.skipped_in_a_row += 1
        if self.skipped_in_a_row == max_skips:
            bad = ", ".join(f"{name} {x:g}" for name, x in terms.items())
            raise InputError(
                f"the last {max_skips} steps, to step {self.step}, had a loss or gradient that is "
                f"not finite ({bad}) and were skipped; lower --lr, raise --warmup, or train in "
                f"--precision fp32"
            )

    def interval(self, steps: int, lr: float, device: torch.device, measures: int = 0) -> dict:
        """The line of the log for the steps since the last one: mean terms, rates, what is left.

        Args:
            steps:    of the run.
            measures: how often held-out text is still to be measured.
        """
        step, tokens, seconds = self.mark
        self.last = {name: total / n for name, (total, n) in self.terms.items()}
        done, seconds = self.step - step, self.step_seconds - seconds
        left = (steps - self.step) * seconds / max(done, 1) + measures * self.measure_seconds
        line = {
            "event": "train",
            "step": self.step,
            **self.last,
            "lr": lr,
            "samples": self.samples,
            "tokens": self.tokens,
            "skipped": self.skipped,
            "tokens_per_s": round((self.tokens - tokens) / max(seconds, 1e-9)),
            "memory_gib": round(peak_bytes(device) / 2**30, 3),
            "eta_s": round(left, 1),
        }
        self.terms, self.mark = {}, (self.step, self.tokens, self.step_seconds)
        return line

    def check_outcome(self, steps: int, out: Path) -> None:
        """Refuse to write the model of a run whose loss is not finite, or that made no step.

        Raises:
            RunFailed: so it is.
        """
        loss = self.held_out["mlm_loss"]
        if not math.isfinite(loss) or self.skipped == steps:
            raise RunFailed(
                f"no model is written to {out}: {self.skipped} of {steps} steps were skipped, the "
                f"held-out loss is {loss:g}; lower --lr or raise --warmup, with --overwrite"
            )

    def outcome(self) -> dict:
        """The figures of a run that has come to its end, for its record."""
        return {
            "held_out_first": self.held_out_first,
            "held_out": self.held_out,
            "losses": self.last,
            "tokens": self.tokens,
            "samples": self.samples,
            "skipped": self.skipped,
            "seconds": round(self.seconds, 1),
            "tokens_per_s": round(self.tokens / max(self.step_seconds, 1e-9)),
        }


class RunLog:
    """One JSON object a line, flushed at once, so that a killed run leaves every line it wrote.

    with RunLog(out / "log.jsonl", ranks) as journal: ...   closed, whatever happens inside.

    Args:
        resumed: append to what is there.
    """

    def __init__(self, path: str | Path, ranks: Ranks, resumed: bool = False):
        mode = "a" if resumed else "w"
        self.file = open(path, mode, encoding="utf-8") if ranks.rank == 0 else None

    def write(self, event: dict) -> None:
        """Append one event; "event" names its kind."""
        if self.file is not None:
            self.file.write(json.dumps(finite(event), allow_nan=False) + "\n")
            self.file.flush()

    def __enter__(self) -> "RunLog":
        return self

    def __exit__(self, *error) -> None:
        if self.file is not None:
            self.file.close()


def progress(
    total: int | None,
    description: str,
    ranks: Ranks,
    unit: str = "step",
    leave: bool = True,
    is_quiet: bool = False,
):
    """A tqdm bar on rank 0; quiet when not on a terminal.

    Args:
        total:    None where nobody knows.
        leave:    what the bar was at its end is left on the terminal.
        is_quiet: there is none on a terminal either.
    """
    from tqdm import tqdm

    is_quiet = is_quiet or ranks.rank != 0 or not sys.stderr.isatty()
    return tqdm(
        total=total, desc=description, unit=unit, leave=leave, disable=is_quiet, dynamic_ncols=True
    )


def say(text: str, ranks: Ranks) -> None:
    """A line of text on rank 0, above the progress bar if there is one."""
    if ranks.rank == 0:
        from tqdm import tqdm

        tqdm.write(text)
        print(end="", flush=True)


def interval_line(line: dict, steps: int) -> str:
    """One logged interval for people: every term of the loss, and how it goes."""
    known = {"event", "step", "loss", "lr", "grad_norm", "samples", "tokens", "tokens_per_s",
             "memory_gib", "eta_s", "skipped"}  # fmt: skip
    terms = [f"{name} {x:.4g}" for name, x in line.items() if name not in known]
    if "loss" in line:
        terms = [f"loss {line['loss']:.4f}", *terms, f"norm {line['grad_norm']:.3g}"]
    tail = [
        f"lr {line['lr']:.2e}",
        f"{line['tokens_per_s']:,} tokens/s",
        f"{line['memory_gib']:.2f} GiB",
        f"eta {duration(line['eta_s'])}",
    ]
    if line["skipped"]:
        tail.append(f"skipped {line['skipped']}")
    return "  ".join([f"step {line['step']}/{steps}", *terms, *tail])


def print_rows(title: str, rows: dict, marked: Collection[str] = ()) -> None:
    """Two columns under a title, on rank 0; `*` before the names that are marked."""
    print0(f"\n{title}")
    for name, value in rows.items():
        print0(f"  {'*' if name in marked else ' '} {name:<16} {value}")


def duration(seconds: float) -> str:
    """12 ms, 3.4 s, 5 min, 7 h, 2 days."""
    for unit, size, until in (("ms", 1e-3, 1), ("s", 1, 120), ("min", 60, 7200), ("h", 3600, 2e5)):
        if seconds < until:
            return f"{seconds / size:.3g} {unit}"
    return f"{seconds / 86400:.3g} days"


def peak_bytes(device: torch.device) -> int:
    """The most memory that this process has held so far: the device's, or on a CPU its own."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    unit = 1 if sys.platform == "darwin" else 1024  # of ru_maxrss
    return unit * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
