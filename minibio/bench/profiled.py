"""Three training steps on a GPU, kernel by kernel.

    python -m minibio.bench.profiled                      in fp32, in bf16, in bf16 compiled
    python -m minibio.bench.profiled --ways minibio-bf16 --batch 24

For each way: the share of the time in which the GPU was busy, launches and waits of the host in a
step, and the 25 kernels that took longest. A wait is a call in which the host stands still until
the device has finished; a GPU that is not busy waits for the host.
"""

import argparse
import sys
from collections import defaultdict
from collections.abc import Iterable, Iterator
from functools import partial
from typing import NamedTuple

import torch
from torch.profiler import ProfilerActivity, profile

from kernels.machine import describe
from minibio.bench.step import LENGTHS, WAYS, Settings, build, random_batch
from minibio.bench.training import steps_on
from minibio.config import METHODS, MODELS
from minibio.distil.objectives import OBJECTIVES
from minibio.model.heads import freeze
from minibio.model.transformer import compile_layers
from minibio.run.log import Progress

LONGEST = 25
STEPS, WARMUP = 3, 3  # the first steps compile, and reserve memory
OURS = [name for name, way in WAYS.items() if way.is_ours]
LAUNCHES = ("cudaLaunchKernel", "cuLaunchKernel", "cudaGraphLaunch")  # and their Ex and ExC
WAITS = ("cudaStreamSynchronize", "cudaDeviceSynchronize", "cudaEventSynchronize")


class Event(NamedTuple):
    """One kernel or copy on the device, or one call of the host's to CUDA."""

    name: str
    start: int  # nanoseconds
    duration: int
    on_device: bool


def events_of(profiler: profile) -> Iterator[Event]:
    """The events that a profiler has recorded."""
    for x in profiler.profiler.kineto_results.events():
        on_device = x.device_type() == torch.autograd.DeviceType.CUDA
        yield Event(x.name(), x.start_ns(), x.duration_ns(), on_device)


def busy(events: Iterable[Event]) -> int:
    """Nanoseconds in which the device did something; what overlaps counts once."""
    total, end = 0, 0
    for x in sorted(events, key=lambda x: x.start):
        total += max(0, x.start + x.duration - max(x.start, end))
        end = max(end, x.start + x.duration)
    return total


def report(events: Iterable[Event], nanoseconds: int, steps: int) -> list[str]:
    """The lines of a table.

    Args:
        nanoseconds: that all `steps` took together.
    """
    events = list(events)
    device = [x for x in events if x.on_device]
    launches = sum(x.name.startswith(LAUNCHES) for x in events)
    waits = sum(x.name in WAITS for x in events)
    lines = [
        f"{nanoseconds / steps / 1e6:.1f} ms a step, GPU busy {busy(device) / nanoseconds:.0%}, "
        f"{launches / steps:g} launches, {waits / steps:g} waits a step"
    ]
    kernels = defaultdict(list)
    for x in device:
        kernels[x.name].append(x.duration)
    whole = sum(map(sum, kernels.values())) or 1
    for name in sorted(kernels, key=lambda name: -sum(kernels[name]))[:LONGEST]:
        took = sum(kernels[name])
        share, times = took / whole, len(kernels[name]) / steps
        lines.append(f"  {took / steps / 1e6:9.3f} ms {share:6.1%} {times:7g} x  {name[:110]}")
    return lines


def steps_of(
    method: str, name: str, settings: Settings, device: torch.device
) -> Iterator[Progress]:
    """train.py's loop on one batch: each `next` makes a step."""
    way = WAYS[name]
    objective, teacher = build(method, "released", settings, device)
    if teacher is not None:
        freeze(teacher, way.precision)
    for model in filter(None, (objective.student, teacher) if way.is_compiled else ()):
        compile_layers(model)
    V = MODELS[METHODS[method].model].V
    drawn = LENGTHS["pubmed"](settings.batch, settings.length, settings.seed)
    batch = random_batch(drawn, V, settings.seed, device)
    return steps_on(batch, objective, teacher, WARMUP + STEPS, way.precision)


def measure(method: str, name: str, settings: Settings, device: torch.device) -> list[str]:
    """`report` of STEPS steps after WARMUP."""
    loop = steps_of(method, name, settings, device)
    wait = partial(torch.cuda.synchronize, device) if device.type == "cuda" else lambda: None
    for _ in range(WARMUP):
        next(loop)
    wait()
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as profiler:
        start.record()
        for _ in range(STEPS):
            next(loop)
        end.record()
    wait()
    return report(events_of(profiler), round(1e6 * start.elapsed_time(end)), STEPS)


def main(argv=None) -> int:
    """2: there is no GPU."""
    p = argparse.ArgumentParser("minibio.bench.profiled", description=__doc__.split("\n")[0])
    p.add_argument("--method", choices=OBJECTIVES, default="compact")
    p.add_argument("--ways", nargs="+", choices=OURS, default=OURS)
    p.add_argument("--batch", type=int, default=192, help="sequences")
    p.add_argument("--length", type=int, default=256, help="tokens of the longest")
    args = p.parse_args(argv)
    if not torch.cuda.is_available():
        print("minibio.bench.profiled: torch sees no GPU on this machine")
        return 2
    device = torch.device("cuda")
    print(describe(device), flush=True)
    size = args.batch, args.length
    settings = Settings([args.method], args.ways, [], [], [], None, "biobert", *size, STEPS, WARMUP)
    for name in args.ways:
        print(f"{args.method} {name}, {args.batch} sequences:", flush=True)
        for line in measure(args.method, name, settings, device):
            print(line, flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
