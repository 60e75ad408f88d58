"""Time, memory and tables of both: the instruments of every benchmark of this repository.

Calls that are compared take turns, so that a change of the clock's speed meets them all. Times are
those of a finished call: by the wall clock on a CPU, by events on a GPU, where each call starts
with a cold cache. Memory is the peak of a call above what was allocated before it, counted by the
allocator itself: nothing is sampled. `milliseconds` -> `Spread` -> `Table` is one row of figures.
"""

import csv
import gc
import os
import shutil
import time
import tracemalloc
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from itertools import accumulate, pairwise
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

TITLE, ABSTRACT = (10, 30), (120, 256)  # word pieces of a bare title, of a citation with its text

Stages = Sequence[Callable]  # of one call, each given what the one before it returned


def ragged_lengths(B: int, longest: int, seed: int) -> list[int]:
    """B lengths as PubMed has them, ascending as in training batches: a third bare titles.

    Args:
        longest: tokens; a limit below the usual 256 shrinks the abstracts, not the titles.
    """
    rng = np.random.Generator(np.random.Philox(key=[seed, 0]))
    n_titles = B // 3
    titles = rng.integers(TITLE[0], TITLE[1] + 1, n_titles)
    abstracts = rng.integers(ABSTRACT[0], ABSTRACT[1] + 1, B - n_titles)
    return sorted(np.minimum([*titles, *abstracts], longest).tolist())


class Contender(NamedTuple):
    """One way to compute an operation at one shape, on its own tensors."""

    name: str
    forward: Callable  # () -> the outputs
    inputs: tuple[Tensor, ...]  # those that receive a gradient
    gradients: tuple[Tensor, ...]  # that arrive at the outputs
    to_row: Callable = lambda x: x  # from its own layout to the one that is common to all
    bytes_needed: int = 0  # about, where it is much; 0 = no more than there is
    missing: str = ""  # the reason why it cannot run here
    is_ours: bool = False
    is_equal: bool = True  # it computes the same as the others, so that it can be checked

    def backward(self, *outputs: Tensor) -> tuple[Tensor, ...]:
        """Gradients of the inputs."""
        return torch.autograd.grad(outputs, self.inputs, self.gradients)

    def both(self) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
        """Outputs and gradients."""
        outputs = self.forward()
        return outputs, self.backward(*outputs)


def compiler_missing(device: torch.device) -> str:
    """Why torch.compile cannot make code for `device` here; "" where it can."""
    if device.type == "cuda" and find_spec("triton") is None:
        return "Triton is not installed"
    names = [os.environ["CXX"]] if "CXX" in os.environ else ["g++", "clang++"]
    if not any(shutil.which(name) for name in names):
        return f"no C++ compiler ({', '.join(names)})"
    return ""


def compiled(function: Callable) -> Callable:
    """torch.compile of it, one graph for each shape, with nothing kept of other shapes."""
    torch.compiler.reset()  # else many shapes exhaust the graphs it keeps of a function
    return torch.compile(function, dynamic=False, fullgraph=True)


# ---- time


def mark(device: torch.device):
    """This moment, in the order of the work given to the device."""
    if device.type != "cuda":
        return time.perf_counter()
    event = torch.cuda.Event(enable_timing=True)
    event.record(torch.cuda.current_stream(device))
    return event


def milliseconds(
    calls: Sequence[Stages], device: torch.device, repeats: int, warmup: int = 3
) -> list[np.ndarray]:
    """The time of every stage of every call, the calls taking turns.

    Args:
        calls: each a list of stages; the first takes no argument.
    Returns:
        for each call (repeats, stages) milliseconds.
    """
    times = [np.zeros((repeats, len(stages))) for stages in calls]
    cold = None
    if device.type == "cuda":  # what is written here pushes all else out of the cache
        size = 2 * torch.cuda.get_device_properties(device).L2_cache_size
        cold = torch.empty(size, dtype=torch.uint8, device=device)
    for i in range(-warmup, repeats):
        for stages, row in zip(calls, times, strict=True):
            if cold is not None:
                torch.cuda.synchronize(device)
                cold.zero_()
            given, marks = (), [mark(device)]
            for stage in stages:
                given = stage(*given)
                marks.append(mark(device))
            if cold is not None:
                torch.cuda.synchronize(device)
                laps = [a.elapsed_time(b) for a, b in pairwise(marks)]
            else:
                laps = 1000 * np.diff(marks)
            if i >= 0:
                row[i] = laps
    return times


class Spread(NamedTuple):
    """Median, 20th and 80th percentile of the times of one call, milliseconds."""

    p50: float
    p20: float
    p80: float

    @classmethod
    def of(cls, times: np.ndarray) -> "Spread":
        """times: (repeats,) milliseconds."""
        return cls(*(float(x) for x in np.percentile(times, (50, 20, 80))))

    def columns(self) -> dict[str, float]:
        """The three columns that every table of times has, to five digits."""
        return {f"ms_{name}": rounded(x) for name, x in self._asdict().items()}

    def __str__(self) -> str:
        digits = 3 if self.p50 < 100 else 1
        return f"{self.p50:,.{digits}f} ms ({self.p20:,.{digits}f}-{self.p80:,.{digits}f})"


def rounded(x: float, digits: int = 5) -> float:
    """x to that many significant digits."""
    return float(f"{x:.{digits}g}")


def ratio(x: float | None, baseline: float | None) -> float | None:
    """x / baseline to three digits; None where one of them was not measured."""
    return rounded(x / baseline, 3) if x is not None and baseline else None


# ---- memory


def cpu_peak(call: Callable) -> int:
    """Bytes in use at the peak of a call, above what was allocated before; never too few.

    Exact for tensors: the profiler records every allocation and release of PyTorch's allocator, in
    order, and this is the largest value of their running sum; releasing tensors that were there
    before makes no room. The peak of Python and NumPy, in a second run of the call, is added. Not
    counted: memory that compiled libraries take from the system for themselves.
    """
    os.environ.setdefault("KINETO_LOG_LEVEL", "6")  # else each profile writes to stderr
    with torch.profiler.profile(
        activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True, acc_events=True
    ) as profile:
        call()
    events = [e for e in profile.profiler.kineto_results.events() if e.name() == "[memory]"]
    events.sort(key=lambda e: e.start_ns())
    tensors = max(accumulate((e.nbytes() for e in events), initial=0))
    tracemalloc.start()
    call()
    _, others = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    return tensors + others


def extra_mib(call: Callable, device: torch.device) -> float:
    """MiB at the peak of a call, above what was allocated before it."""
    gc.collect()  # what is freed meanwhile would be subtracted
    if device.type != "cuda":
        return cpu_peak(call) / 2**20
    torch.cuda.synchronize(device)
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    call()
    return (torch.cuda.max_memory_allocated(device) - before) / 2**20


def free_bytes() -> float:
    """Memory that a process on this machine can still get; infinity where that is unknown."""
    try:
        lines = Path("/proc/meminfo").read_text("utf-8").splitlines()
    except OSError:
        return float("inf")
    found = [line.split()[1] for line in lines if line.startswith("MemAvailable:")]
    return 1024 * float(found[0]) if found else float("inf")


# ---- tables


class Table:
    """Rows that are printed, and appended to a CSV file as soon as they are added.

    The first line of both is `header`: the machine, the versions, the date. The first row names the
    columns; an existing file is replaced. A context manager, which closes the file.
    """

    def __init__(self, path: Path | None, header: str):
        self.file = self.writer = None
        print(header)
        if path is not None:
            path.parent.mkdir(parents=True, exist_ok=True)
            self.file = path.open("w", encoding="utf-8", newline="")
            self.file.write(f"# {header}\n")
            self.file.flush()

    def __enter__(self) -> "Table":
        return self

    def __exit__(self, *error) -> None:
        if self.file is not None:
            self.file.close()

    def add(self, row: dict, line: str) -> None:
        """Write `row` to the file, None as an empty field, and print `line`."""
        print(line, flush=True)
        if self.file is None:
            return
        if self.writer is None:
            self.writer = csv.DictWriter(self.file, row)
            self.writer.writeheader()
        self.writer.writerow(row)
        self.file.flush()
