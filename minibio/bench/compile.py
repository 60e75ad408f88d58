"""Every kernel that the benchmarks and tests of a GPU take, compiled side by side, none launched.

    python -m minibio.bench.compile

What is launched later is then found in Triton's cache on disk, and in the cache of nvcc's
libraries: the seconds of `make gpu` go into running. The operations of `kernels.bench.smoke` and
whole training steps are called as always, in a process for each core, with launches that end where
the kernel has been compiled; what they compute is never looked at.
"""

import os
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import contextmanager
from functools import partial
from multiprocessing import get_context

import torch

from kernels import cuda_attention, cuda_build, cuda_rows
from kernels.bench import smoke
from minibio.batch import Counts
from minibio.bench.step import Settings, build, random_batch
from minibio.distil.objectives import teach
from minibio.model.heads import freeze
from minibio.run.precision import autocast

METHODS = ("compact", "tiny")


@contextmanager
def unlaunched(kernel_type: type) -> Iterator[None]:
    """Within, a launch of any kernel of this type compiles it, and no more.

    Args:
        kernel_type: Triton's JITFunction.
    """
    run = kernel_type.run

    def compile_only(kernel, *args, grid, warmup, **options):
        return run(kernel, *args, grid=grid, warmup=True, **options)

    kernel_type.run = compile_only
    try:
        yield
    finally:
        kernel_type.run = run


def operation(case: smoke.Case, device: torch.device) -> None:
    """One operation, with a mask that is given and with one that is drawn."""
    case.compute(device, 0, exact=False)
    if case.op != "masked_mlm":
        case.compute(device, 0, exact=False, keep=None)


def step(method: str, precision: str, device: torch.device) -> None:
    """Forward and backward of a training step: the strides are those of the models."""
    settings = Settings([method], [], [], [], [], None, "biobert", 2, 64, 1, 1)
    objective, teacher = build(method, "released", settings, device)
    freeze(teacher, precision)
    batch = random_batch([64, 33], objective.student.config.V, 0, device)
    with autocast(precision, device):
        taught = teach(teacher, batch, objective.needs)
        loss = objective(batch, taught, Counts.of([batch]))["loss"]
    loss.backward()


def library(source, flags: tuple[str, ...], device: torch.device) -> None:
    """A file of CUDA C++."""
    cuda_build.build(source, cuda_build.architecture(device), *flags)


def jobs(device: torch.device) -> dict[str, Callable[[], None]]:
    """Name -> work, the longest first."""
    found = {}
    if cuda_build.unavailable(device) is None:
        sources = [(cuda_rows.SOURCE, ()), (cuda_attention.SOURCE, ())]
        found |= {x.name: partial(library, x, flags, device) for x, flags in sources}
    for method in METHODS:
        for precision in ("fp32", "bf16"):
            found[f"step {method} {precision}"] = partial(step, method, precision, device)
    for case in smoke.cases(device, smoke.HEADS, smoke.TYPES):
        if case.impl.startswith("triton"):
            found[str(case)] = partial(operation, case, device)
    return found


def compile_one(name: str, work: Callable[[], None]) -> tuple[str, float, str]:
    """(name, seconds, the reason why it does not compile or "")."""
    from triton.runtime.jit import JITFunction

    began, error = time.perf_counter(), ""
    with unlaunched(JITFunction):
        try:
            work()
        except Exception as found:  # any at all: the others must not be lost
            error = smoke.first_line(found)
    return name, time.perf_counter() - began, error


def main() -> int:
    """1: something does not compile; 2: there is no GPU."""
    if not torch.cuda.is_available():
        print("minibio.bench.compile: torch sees no GPU on this machine")
        return 2
    began, n_wrong, work = time.perf_counter(), 0, jobs(torch.device("cuda"))
    with ProcessPoolExecutor(os.cpu_count(), get_context("spawn")) as pool:
        for future in as_completed([pool.submit(compile_one, *x) for x in work.items()]):
            name, seconds, error = future.result()
            n_wrong += bool(error)
            print(f"{name:<66}{seconds:6.1f} s  {error}", flush=True)
    print(f"{len(work) - n_wrong} of {len(work)} in {time.perf_counter() - began:.0f} s")
    return int(n_wrong > 0)


if __name__ == "__main__":
    sys.exit(main())
