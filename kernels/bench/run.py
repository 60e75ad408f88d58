"""Time and memory of our operations, beside other ways to compute them.

    python -m kernels.bench attention-kl                      every side, at the shapes of the paper
    python -m kernels.bench attention-kl --shapes B24-T256-H12-D32-D64 --divergence kl_ts
    python -m kernels.bench attention-kl --tune               block sizes of the Triton kernels
    python -m kernels.bench masked-mlm --tune                 and bytes of a chunk of logits
    python -m kernels.bench masked-mlm                        the same of the masked-LM losses

First all sides are compared with the definition in float64 on two small shapes; a side that is
wrong or breaks is left out, and the command then ends with status 1. Then each shape: memory, and
time with the sides taking turns, forward, backward and both measured in the same call. Memory is
the peak above the arguments; backward's is that of both, since it needs what forward left behind.
TFLOP/s and GB/s count the least work the operation can do (`work` in the operation's file), the
same for every side. Every row is printed and appended to the CSV as soon as it is known.

The operations and their sides: kernels/bench/attention.py, kernels/bench/mlm.py. Another operation
is another module with the same names, and a row of OPERATIONS.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import NamedTuple

import torch

import kernels
from kernels.bench import attention as bench_attention
from kernels.bench import mlm as bench_mlm
from kernels.bench.timing import (
    Contender,
    Spread,
    Table,
    extra_mib,
    free_bytes,
    milliseconds,
    ratio,
    rounded,
)
from kernels.machine import describe, is_cuda_fault

OPERATIONS = {"attention-kl": bench_attention, "masked-mlm": bench_mlm}
PASSES = ("forward", "backward", "both")
DTYPES = {
    str(dtype).removeprefix("torch."): dtype
    for dtype in (torch.float64, torch.float32, torch.float16, torch.bfloat16)
}
REPEATS = {"cpu": 5, "cuda": 30}
DEFAULT_DTYPE = {"cpu": "float32", "cuda": "bfloat16"}
# of the truth's largest magnitude. In half precision the rivals round scores and maps, we do not.
LIMIT = {"float64": 1e-12, "float32": 1e-5, "float16": 4e-3, "bfloat16": 3e-2}


class OneLineParser(argparse.ArgumentParser):
    """An argument parser whose errors are one line."""

    def error(self, message: str):
        self.exit(2, f"{self.prog}: error: {' '.join(message.split())}\n")


class Benchmark(NamedTuple):
    """One operation and what all its shapes are measured with."""

    op: str  # a row of OPERATIONS
    device: torch.device
    dtype: str  # a row of DTYPES
    seed: int
    repeats: int  # timed calls of each side
    rivals: Sequence[str]  # of the operation's RIVALS
    impls: Sequence[str]  # ours
    options: dict  # of the operation's OPTIONS, for its `sides`

    @property
    def operation(self) -> ModuleType:
        return OPERATIONS[self.op]

    def problem(self, shape):
        """Random numbers of that shape, on the device and in the type that are measured."""
        return self.operation.problem(shape, self.device, DTYPES[self.dtype], self.seed)

    def sides(self, problem, **exact) -> list[Contender]:
        """All sides of a problem; `exact` options in place of those that are measured."""
        options = {**self.options, **exact}
        return self.operation.sides(problem, self.rivals, self.impls, **options)

    def columns(self, shape) -> dict:
        """The columns of the table that tell its measurements apart."""
        return {"op": self.op, "shape": str(shape), "dtype": self.dtype, **self.options}


def pick_device(name: str | None) -> torch.device:
    """The device called `name`; without a name the first GPU, or the CPU.

    Raises:
        ValueError: there is no device of that name.
    """
    try:
        device = torch.device(name or ("cuda" if torch.cuda.is_available() else "cpu"))
    except RuntimeError:
        device = torch.device("meta")
    if device.type not in ("cpu", "cuda"):
        raise ValueError(f"--device is {name!r}, expected cpu, cuda or cuda:NUMBER")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise ValueError(f"--device is {name!r}, but torch sees {torch.cuda.device_count()} GPUs")
    return device


def pick_impls(
    op: str, names: list[str] | None, device: torch.device, dtype: torch.dtype
) -> list[str]:
    """The implementations `names` of an operation; without names all that run on the device.

    Triton's interpreter is never timed.

    Raises:
        ValueError: one of them does not exist, or does not run here or in this type.
    """
    if names is not None:
        names = [kernels.resolve_impl(op, name, device, dtype)[0] for name in names]
        if device.type == "cpu" and any(name.startswith("triton") for name in names):
            raise ValueError("--impl has triton, which on a CPU is interpreted and never timed")
        return list(dict.fromkeys(names))
    found = []
    for name in kernels.IMPLEMENTATIONS[op]:
        try:
            kernels.resolve_impl(op, name, device, dtype)
        except ValueError:
            continue
        if device.type == "cuda" or not name.startswith("triton"):
            found.append(name)
    return found


# ---- right?


def worst(got, truth) -> tuple[float, int]:
    """(largest error relative to the truth's largest magnitude, which of the tensors has it)."""
    errors = [
        float((x.detach().double() - y.detach()).abs().max() / y.detach().abs().max())
        for x, y in zip(got, truth, strict=True)
    ]
    errors = [float("inf") if e != e else e for e in errors]
    return max(errors), errors.index(max(errors))


def fault(side: Contender, truth: Contender, limit: float) -> str:
    """The fault in a side's results, in a few words; "" where they are right.

    The floor has fewer outputs; only those are compared.
    """
    if side.missing or not side.is_equal:
        return ""
    try:
        outputs, gradients = side.both()
    except Exception as error:  # any error at all: the rows of the other sides must not be lost
        stop_at_fault(error, side.name)
        return f"failed: {first_line(error)}"
    true_outputs, true_gradients = truth.both()
    pairs = [("output", outputs, true_outputs[: len(outputs)])]
    if len(outputs) == len(true_outputs):
        pairs.append(("gradient", gradients, true_gradients))
    for what, got, true in pairs:
        error, i = worst([side.to_row(x) for x in got], true)
        if error > limit:
            return f"wrong: {what} {i + 1} is off by {error:.1e} of max, expected <= {limit:.0e}"
    return ""


def first_line(error: Exception) -> str:
    """An exception in one short line."""
    lines = str(error).strip().splitlines() or [""]
    return f"{type(error).__name__}: {lines[0][:160]}"


def stop_at_fault(error: Exception, what: str) -> None:
    """End the command at the first CUDA error: every later figure of this process would be wrong.

    Raises:
        SystemExit: status 3, with one line that names the side, or the kernel and its blocks.
    """
    if is_cuda_fault(error):
        print(f"{what}: {first_line(error)}; this process can use its GPU no more", file=sys.stderr)
        raise SystemExit(3)


def check(bench: Benchmark) -> dict[str, str]:
    """{side: its fault}, from small problems without randomness."""
    operation, faults = bench.operation, {}
    for name in operation.CHECKED:
        problem = bench.problem(operation.parse_shape(name))
        options = {**bench.options, **operation.EXACT}
        (truth,) = operation.sides(problem.double(), (), ["reference"], **options)
        for side in bench.sides(problem, **operation.EXACT):
            found = fault(side, truth, LIMIT[bench.dtype])
            if found:
                faults.setdefault(side.name, f"{found} ({name})")
    return faults


# ---- how much, how fast?


def memory(side: Contender, device: torch.device) -> dict[str, float] | str:
    """{pass: MiB at the peak above the arguments}, or the reason why the side cannot run."""
    if side.missing:
        return f"not here: {side.missing}"
    if device.type == "cpu" and side.bytes_needed > (free := free_bytes()):
        return f"needs {side.bytes_needed / 2**30:.0f} GiB, {free / 2**30:.0f} GiB are free"
    try:
        side.both()  # compiled, tuned and warm from here on
        forward, both = extra_mib(side.forward, device), extra_mib(side.both, device)
    except torch.OutOfMemoryError:
        torch.cuda.empty_cache()
        return "out of memory"
    except Exception as error:  # as in `fault`
        stop_at_fault(error, side.name)
        return f"failed: {first_line(error)}"
    return {"forward": forward, "backward": both, "both": both}


def measure(bench: Benchmark, shape, faults: dict[str, str], table: Table) -> bool:
    """All sides at one shape, into the table; whether ours all ran."""
    sides = bench.sides(bench.problem(shape))
    needs = {s.name: faults.get(s.name) or memory(s, bench.device) for s in sides}
    running = [s for s in sides if not isinstance(needs[s.name], str)]
    calls = [(s.forward, s.backward) for s in running]
    laps = milliseconds(calls, bench.device, bench.repeats, warmup=1)
    times = {  # side -> pass -> Spread
        s.name: dict(zip(PASSES, map(Spread.of, (*x.T, x.sum(1))), strict=True))
        for s, x in zip(running, laps, strict=True)
    }
    work = bench.operation.work(shape, DTYPES[bench.dtype], bench.seed)
    what = {**bench.columns(shape), **shape._asdict()}
    for side in sides:
        for name in PASSES:
            row = {**what, "side": side.name, "pass": name}
            add_row(row, times, needs, work[name], bench.operation.BASELINES, table)
    return not any(s.is_ours and str(needs[s.name]).startswith("failed") for s in sides)


def compare_sides(bench: Benchmark, shapes: Sequence, table: Table) -> bool:
    """Check the sides, then measure them at every shape; whether all were right and ours ran."""
    faults = print_faults(bench)
    ran = [measure(bench, shape, faults, table) for shape in shapes]
    return all(ran) and not faults


def print_faults(bench: Benchmark) -> dict[str, str]:
    """Check the sides and print the faults: {side: its fault}."""
    faults = check(bench)
    for name, found in faults.items():
        print(f"{name:<10}{found}")
    return faults


def only_check(bench: Benchmark) -> bool:
    """Check the sides and name those that are right; whether all are."""
    faults = print_faults(bench)
    sides = bench.sides(bench.problem(bench.operation.parse_shape(bench.operation.CHECKED[0])))
    compared = (side.name for side in sides if side.is_equal and not side.missing)
    equal = [name for name in compared if name not in faults]
    print(f"equal to the definition: {', '.join(equal) or 'none'}")
    return not faults


def add_row(row: dict, times, needs, work: tuple[float, float], baselines, table: Table) -> None:
    """One side, one pass: figures, and their ratio to those of each baseline."""
    side, name = row["side"], row["pass"]
    start = f"{row['shape']:<21}{side:<10}{name:<9}"
    ms = {s: times[s][name] for s in (side, *baselines) if s in times}
    mib = {s: needs[s][name] for s in ms}
    figures = [*(f"ms_{p}" for p in Spread._fields), "extra_mib", "tflops", "gb_per_s"]
    row |= dict.fromkeys(figures)
    if side in ms:
        flops, moved = (x / ms[side].p50 / 1e6 for x in work)  # GFLOP/s, MB/ms = GB/s
        row |= ms[side].columns() | {"extra_mib": rounded(mib[side])}
        row |= {"tflops": rounded(flops / 1e3), "gb_per_s": rounded(moved)}
    for s in baselines:
        known = side in ms and s in ms
        row[f"time_vs_{s}"] = ratio(ms[side].p50, ms[s].p50) if known else None
        row[f"memory_vs_{s}"] = ratio(mib[side], mib[s]) if known else None
    row["note"] = "" if side in ms else needs[side]
    if side not in ms:
        table.add(row, f"{start}{needs[side]}")
        return
    against = "  ".join(
        f"x{row[f'time_vs_{s}']:<6g} x{row[f'memory_vs_{s}']:<8g} of {s}'s"
        for s in baselines
        if s in ms
    )
    table.add(
        row,
        f"{start}{ms[side]!s:<32}{mib[side]:>9.2f} MiB{row['tflops']:>9.3g} TFLOP/s"
        f"{row['gb_per_s']:>9.3g} GB/s  {against}",
    )


# ---- which block sizes?


def tune(bench: Benchmark, shape, args: argparse.Namespace, table: Table) -> None:
    """Time every candidate of every kernel at one shape; print the fastest and the one in use."""
    operation, dtype = bench.operation, DTYPES[bench.dtype]
    problem = bench.problem(shape)
    for kernel, impl in operation.tuned_impls(bench.device, dtype).items():
        (side,) = operation.sides(problem, (), [impl], **bench.options)
        name, tried = operation.TUNED[kernel], operation.candidates(kernel, args)
        own = operation.chosen(kernel, shape, bench.options["divergence"], dtype, bench.device)
        found = {}
        for config in dict.fromkeys([own, *tried]):
            row = {**bench.columns(shape), "kernel": kernel}
            row |= {**config._asdict(), "is_own": config == own}
            try:
                with operation.using(kernel, config):
                    calls = [(side.forward, side.backward)]
                    (laps,) = milliseconds(calls, bench.device, bench.repeats, warmup=2)
                found[config] = Spread.of(laps[:, PASSES.index(name)])
                row |= found[config].columns() | {"note": ""}
                shown = str(found[config])
            except Exception as error:  # too large for the device, or for the compiler
                stop_at_fault(error, f"{kernel} {tuple(config)}")
                shown = first_line(error)
                row |= dict.fromkeys(f"ms_{p}" for p in Spread._fields) | {"note": shown}
            table.add(row, f"{shape} {kernel:<8}{tuple(config)!s:<20}{shown}")
        for config in sorted(found, key=found.get)[:1]:
            print(
                f"{shape} {kernel:<8}best {tuple(config)} {found[config]} of the {name} pass; "
                f"in use {tuple(own)} {found.get(own, 'does not run')}",
                flush=True,
            )


def main(argv=None) -> int:
    parser = OneLineParser("kernels.bench", description=__doc__.split("\n")[0])
    commands = parser.add_subparsers(dest="op", required=True, metavar="OPERATION")
    for op, operation in OPERATIONS.items():
        p = commands.add_parser(op, description=operation.__doc__.split("\n")[0])
        p.add_argument("--sides", nargs="*", choices=operation.RIVALS, help="rivals (default: all)")
        p.add_argument("--impl", nargs="+", help="ours (default: all that run on the device)")
        p.add_argument("--dtype", choices=DTYPES, help="default: float32, on a GPU bfloat16")
        p.add_argument("--repeats", type=int, help="timed calls of each side")
        p.add_argument("--device", help="cuda, cpu (default: cuda if there is one)")
        p.add_argument("--out", type=Path, help="CSV file")
        p.add_argument("--seed", type=int, default=0)
        p.add_argument("--check", action="store_true", help="compare the sides, measure nothing")
        p.add_argument("--tune", action="store_true", help=operation.TUNE)
        operation.add_options(p)
    args = parser.parse_args(argv)
    operation = OPERATIONS[args.op]
    try:
        device = pick_device(args.device)
        dtype = args.dtype or DEFAULT_DTYPE[device.type]
        repeats = REPEATS[device.type] if args.repeats is None else args.repeats
        if repeats < 1:
            raise ValueError(f"--repeats is {repeats}, expected at least 1")
        if args.tune:
            impls = [*operation.tuned_impls(device, DTYPES[dtype]).values()]
        else:
            impls = pick_impls(operation.KERNEL, args.impl, device, DTYPES[dtype])
        default = operation.TUNED_SHAPES if args.tune else operation.SHAPES[device.type]
        shapes = [operation.parse_shape(name) for name in args.shapes or default]
        options = {name: getattr(args, name) for name in operation.OPTIONS}
        operation.check_options(**options)
        if not args.tune and getattr(args, "chunk_bytes", None):
            raise ValueError("--chunk-bytes has sizes to try, expected --tune with it")
        table = Table(args.out, describe(device))
    except (ValueError, OSError) as error:
        parser.error(str(error))
    bench = Benchmark(
        args.op,
        device,
        dtype,
        args.seed,
        repeats,
        operation.RIVALS if args.sides is None else args.sides,
        impls,
        options,
    )
    with table:
        if args.tune:
            for shape in shapes:
                tune(bench, shape, args, table)
            return 0
        if args.check:
            return int(not only_check(bench))
        return int(not compare_sides(bench, shapes, table))
