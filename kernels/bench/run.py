"""Time and memory of our operations, beside other ways to compute them.

    python -m kernels.bench attention-kl                      every side, at the shapes of the paper
    python -m kernels.bench attention-kl --shapes B24-T256-H12-D32-D64 --divergence kl_ts
    python -m kernels.bench attention-kl --tune               block sizes of the Triton kernels
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
from pathlib import Path

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


class Parser(argparse.ArgumentParser):
    """An argument parser whose errors are one line."""

    def error(self, message: str):
        self.exit(2, f"{self.prog}: error: {' '.join(message.split())}\n")


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


def pick_impls(op: str, names: list[str] | None, device: torch.device) -> list[str]:
    """The implementations `names` of an operation; without names all that run on the device.

    Triton's interpreter is never timed.

    Raises:
        ValueError: one of them does not exist, or does not run here.
    """
    if names is not None:
        names = [kernels.resolve_impl(op, name, device)[0] for name in names]
        if device.type == "cpu" and "triton" in names:
            raise ValueError("--impl has triton, which on a CPU is interpreted and never timed")
        return list(dict.fromkeys(names))
    found = []
    for name in kernels.IMPLEMENTATIONS[op]:
        try:
            kernels.resolve_impl(op, name, device)
        except ValueError:
            continue
        if device.type == "cuda" or name != "triton":
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


def check(operation, args, options: dict) -> dict[str, str]:
    """{side: its fault}, from small problems without randomness."""
    options = {**options, **operation.EXACT}
    faults = {}
    for name in operation.CHECKED:
        shape = operation.Shape.parse(name)
        problem = operation.problem(shape, args.device, DTYPES[args.dtype], args.seed)
        (truth,) = operation.sides(problem.double(), (), ["reference"], **options)
        for side in operation.sides(problem, args.sides, args.impl, **options):
            found = fault(side, truth, LIMIT[args.dtype])
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


def measure(operation, shape, args, options: dict, faults: dict[str, str], table: Table) -> bool:
    """All sides at one shape, into the table; whether ours all ran."""
    dtype = DTYPES[args.dtype]
    problem = operation.problem(shape, args.device, dtype, args.seed)
    sides = operation.sides(problem, args.sides, args.impl, **options)
    needs = {s.name: faults.get(s.name) or memory(s, args.device) for s in sides}
    running = [s for s in sides if not isinstance(needs[s.name], str)]
    calls = [(s.forward, s.backward) for s in running]
    laps = milliseconds(calls, args.device, args.repeats, warmup=1)
    times = {  # side -> pass -> Spread
        s.name: dict(zip(PASSES, map(Spread.of, (*x.T, x.sum(1))), strict=True))
        for s, x in zip(running, laps, strict=True)
    }
    work = operation.work(shape, dtype, args.seed)
    what = {"op": args.op, "shape": str(shape), **shape._asdict(), "dtype": args.dtype, **options}
    for side in sides:
        for name in PASSES:
            row = {**what, "side": side.name, "pass": name}
            add_row(row, times, needs, work[name], operation.BASELINES, table)
    return not any(s.is_ours and str(needs[s.name]).startswith("failed") for s in sides)


def compare_sides(operation, shapes, args, options: dict, table: Table) -> bool:
    """Check the sides, then measure them at every shape; whether all were right and ours ran."""
    faults = check(operation, args, options)
    for name, found in faults.items():
        print(f"{name:<10}{found}")
    if args.check:
        shape = operation.Shape.parse(operation.CHECKED[0])
        problem = operation.problem(shape, args.device, DTYPES[args.dtype], args.seed)
        sides = operation.sides(problem, args.sides, args.impl, **options)
        compared = (side.name for side in sides if side.is_equal and not side.missing)
        equal = [name for name in compared if name not in faults]
        print(f"equal to the definition: {', '.join(equal) or 'none'}")
        return not faults
    ran = [measure(operation, shape, args, options, faults, table) for shape in shapes]
    return all(ran) and not faults


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


def tune(operation, shape, args, options: dict, table: Table) -> None:
    """Time every candidate of every kernel at one shape; print the fastest and the one in use."""
    dtype = DTYPES[args.dtype]
    problem = operation.problem(shape, args.device, dtype, args.seed)
    (side,) = operation.sides(problem, (), ["triton"], **options)
    for kernel, name in operation.TUNED.items():
        own = operation.chosen(kernel, shape, options["divergence"], dtype)
        found = {}
        for config in dict.fromkeys([own, *operation.candidates()]):
            row = {"op": args.op, "shape": str(shape), "dtype": args.dtype, **options}
            row |= {"kernel": kernel, **config._asdict(), "is_own": config == own}
            try:
                with operation.using(kernel, config):
                    calls = [(side.forward, side.backward)]
                    (laps,) = milliseconds(calls, args.device, args.repeats, warmup=2)
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
                f"in use {tuple(own)} {found.get(own, 'does not run')}"
            )


def main(argv=None) -> int:
    parser = Parser("kernels.bench", description=__doc__.split("\n")[0])
    commands = parser.add_subparsers(dest="op", required=True, metavar="OPERATION")
    for op, operation in OPERATIONS.items():
        p = commands.add_parser(op, description=operation.__doc__.split("\n")[0])
        p.add_argument("--shapes", nargs="+", metavar="NAME", help=operation.Shape.__doc__)
        p.add_argument("--sides", nargs="*", choices=operation.RIVALS, help="rivals (default: all)")
        p.add_argument("--impl", nargs="+", help="ours (default: all that run on the device)")
        p.add_argument("--dtype", choices=DTYPES, help="default: float32, on a GPU bfloat16")
        p.add_argument("--repeats", type=int, help="timed calls of each side")
        p.add_argument("--device", help="cuda, cpu (default: cuda if there is one)")
        p.add_argument("--out", type=Path, help="CSV file")
        p.add_argument("--seed", type=int, default=0)
        p.add_argument("--check", action="store_true", help="compare the sides, measure nothing")
        p.add_argument("--tune", action="store_true", help="time block sizes of the Triton kernels")
        operation.add_options(p)
    args = parser.parse_args(argv)
    operation = OPERATIONS[args.op]
    try:
        args.device = pick_device(args.device)
        kind = args.device.type
        args.dtype = args.dtype or DEFAULT_DTYPE[kind]
        args.repeats = REPEATS[kind] if args.repeats is None else args.repeats
        if args.repeats < 1:
            raise ValueError(f"--repeats is {args.repeats}, expected at least 1")
        args.sides = operation.RIVALS if args.sides is None else args.sides
        if args.tune:
            kernels.resolve_impl(operation.KERNEL, "triton", args.device)
        else:
            args.impl = pick_impls(operation.KERNEL, args.impl, args.device)
        default = operation.TUNED_SHAPES if args.tune else operation.SHAPES[kind]
        shapes = [operation.Shape.parse(name) for name in args.shapes or default]
        options = operation.options(args)
        table = Table(args.out, describe(args.device))
    except (ValueError, OSError) as error:
        parser.error(str(error))
    with table:
        if args.tune:
            for shape in shapes:
                tune(operation, shape, args, options, table)
            return 0
        return int(not compare_sides(operation, shapes, args, options, table))
