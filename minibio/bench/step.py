"""`python -m minibio bench step`: whole training steps, the authors' and ours.

    authors                 transformers, eager attention, all maps and logits, padded (authors.py)
    authors-bf16-compiled   the same under bf16 autocast and torch.compile
    minibio                 a step of training, on the row of real tokens
    minibio-bf16            the same under bf16 autocast
    minibio-bf16-compiled   and torch.compile

All sides of a method start from the same weights, see the same tokens in the same process and take
turns. A step is forward, backward, clipping and AdamW, with dropout as in training: the authors'
teacher has its own too (F32), unless `--no-teacher-dropout`. Before anything is timed, the losses
of `authors` and of `minibio` as released are compared on sequences of equal length without dropout.
Peak memory is that of the tensors, weights and moments included. The paper's equations, `--fidelity
paper`, are compared with the same baselines.
"""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import NamedTuple

import numpy as np
import torch
import torch.nn as nn
from torch import Tensor

from kernels.bench.timing import Spread, Table, extra_mib, milliseconds, ragged_lengths
from kernels.machine import has_bf16_products
from minibio.batch import Batch, Counts
from minibio.bench.authors import Authors, rectangle
from minibio.bench.training import LR, NoDirectory, Turns, train_on
from minibio.config import METHODS, MODELS
from minibio.distil.objectives import OBJECTIVES, Objective, freeze, teach
from minibio.model.heads import Model
from minibio.model.transformer import compile_layers
from minibio.report.estimate import products_per_second, step_flops
from minibio.run import optim
from minibio.run.dist import Ranks
from minibio.run.errors import InputError
from minibio.run.precision import autocast, resolve

PREDICTED = 0.15  # share of tokens, as in masked-LM training
EQUAL = 1e-5  # relative, of losses in float32
PARTS = (1, 2, 4, 8)  # micro-batches that the authors' way is cut into where memory runs out
CEILING = {"cuda": 8192, "cpu": 1024}  # rows of the product that is taken for the device's best


class Settings(NamedTuple):
    """The scope of a measurement: every method by every way, on every kind of lengths."""

    methods: list[str]
    by: list[str]  # rows of WAYS
    lengths: list[str]  # rows of LENGTHS
    fidelity: list[str]
    teacher_precision: list[str]  # under a student in fp32
    student: str | None  # row of MODELS; None = the method's own
    teacher: str
    batch: int  # sequences
    length: int  # tokens of the longest
    repeats: int
    warmup: int
    seed: int = 0
    teacher_dropout: bool = True  # of the authors' teacher


class Way(NamedTuple):
    """One way to make a step."""

    is_ours: bool
    precision: str = "fp32"
    is_compiled: bool = False


WAYS = {
    "authors": Way(False),
    "authors-bf16-compiled": Way(False, "bf16", True),
    "minibio": Way(True),
    "minibio-bf16": Way(True, "bf16"),
    "minibio-bf16-compiled": Way(True, "bf16", True),
}
LENGTHS = {  # of B sequences
    "pubmed": ragged_lengths,  # a third bare titles
    "full": lambda B, longest, seed: [longest] * B,
}


class Side(NamedTuple):
    """One way to make the step of one method, on weights of its own."""

    what: dict[str, str]  # the columns that name it
    step: Callable  # () -> None
    peak: Callable  # () -> None; has the peak memory of a step, above that of `held`
    held: tuple[nn.Module | torch.optim.Optimizer | None, ...]
    flops: float  # of the equations; 0 for the authors


def random_batch(lengths: list[int], V: int, seed: int, device: torch.device) -> Batch:
    """Random tokens, a share PREDICTED of them to be predicted."""
    rng = torch.Generator().manual_seed(seed)
    N = sum(lengths)
    M = max(1, round(PREDICTED * N))
    tokens = torch.randint(V, (N,), generator=rng)
    predict = torch.randperm(N, generator=rng)[:M].sort().values
    labels = torch.randint(V, (M,), generator=rng)
    return Batch.from_sequences(tokens.split(lengths), None, predict, labels).to(device)


# ---- the two ways


def build(
    method: str, fidelity: str, args: Settings, device: torch.device
) -> tuple[Objective, Model | None]:
    """Our objective and its teacher, with the same random weights at every call."""
    torch.manual_seed(args.seed)
    run = replace(METHODS[method], fidelity=fidelity)
    teacher = None if method == "mlm" else freeze(Model(MODELS[args.teacher]).to(device))
    student = Model(MODELS[args.student or run.model])
    return OBJECTIVES[method](student, teacher, run).to(device).train(), teacher


def our_side(
    method: str, name: str, fidelity: str, narrow: str, batch: Batch, args: Settings
) -> Side:
    """A step of train.py.

    Args:
        narrow: precision of the teacher, fp32 or bf16.
    """
    way, device = WAYS[name], batch.device
    objective, teacher = build(method, fidelity, args, device)
    if teacher is not None:
        freeze(teacher, narrow)
    for model in (objective.student, teacher) if way.is_compiled else ():
        if model is not None:
            compile_layers(model)

    def loop(steps: int, run_dir: NoDirectory) -> None:
        train_on(batch, objective, teacher, steps, way.precision, run_dir)

    M = batch.N if objective.needs.every_token else batch.M
    flops = step_flops(objective, teacher, batch.N, M, batch.n_pairs, 0)
    what = {"fidelity": fidelity, "by": name, "teacher": "-" if teacher is None else narrow}
    turns = Turns(device, partial(loop, args.warmup + args.repeats))

    def peak():
        turns.thread.join()  # and with it the weights' moments
        loop(2, NoDirectory(device))  # in its first step there are no moments yet

    return Side(what, turns.step, peak, (objective, teacher), flops)


def their_side(method: str, name: str, batch: Batch, args: Settings) -> Side:
    """A step of their Trainer; in micro-batches if it does not fit into memory whole."""
    way, device = WAYS[name], batch.device
    objective, teacher = build(method, "released", args, device)
    model = Authors(objective, teacher, teacher_dropout=args.teacher_dropout).train()
    optimizer = optim.make_optimizer(model, LR, objective.run.weight_decay)
    forward = torch.compile(model) if way.is_compiled else model
    inputs = rectangle(batch, objective.student)

    def step(parts: int):
        for part in pieces(inputs, parts):
            with autocast(way.precision, device):
                loss = forward(**part)
            (loss / parts).backward()
        nn.utils.clip_grad_norm_(model.parameters(), objective.run.clip)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    parts = fitting(step, optimizer)
    what = {
        "fidelity": "released",
        "by": name if parts == 1 else f"{name}/{parts}",
        "teacher": "-" if teacher is None else way.precision,
    }
    whole = partial(step, parts)
    return Side(what, whole, whole, (model, optimizer), 0)


def pieces(inputs: dict[str, Tensor], n: int) -> list[dict[str, Tensor]]:
    """A rectangle cut into n, between sequences."""
    cut = {name: x.tensor_split(n) for name, x in inputs.items()}
    return [{name: xs[i] for name, xs in cut.items()} for i in range(n)]


def fitting(step: Callable, optimizer: torch.optim.Optimizer) -> int:
    """The fewest micro-batches with which the step fits into the device's memory, by trying.

    Raises:
        InputError: it does not fit at all.
    """
    for parts in PARTS:
        try:
            step(parts)
            return parts
        except torch.OutOfMemoryError:
            optimizer.zero_grad(set_to_none=True)
            torch.cuda.empty_cache()
    raise InputError("the authors' step does not fit into memory; lower --batch")


@torch.no_grad()
def check_losses(method: str, args: Settings, device: torch.device) -> str:
    """One line: both losses of one batch without padding and dropout.

    Raises:
        InputError: they differ by more than EQUAL.
    """
    objective, teacher = build(method, "released", args, device)
    objective.eval()
    batch = random_batch([args.length] * 2, objective.student.config.V, args.seed, device)
    theirs = Authors(objective, teacher).eval()(**rectangle(batch, objective.student)).item()

    def ours():
        taught = None if teacher is None else teach(teacher, batch, objective.needs)
        return objective(batch, taught, Counts.of([batch]))["loss"].item()

    loss = ours()
    off = abs(loss - theirs) / abs(theirs)
    line = f"{method}: loss {theirs:.7g} by authors, {loss:.7g} by minibio, {off:.1e} apart"
    if not off <= EQUAL:
        raise InputError(
            f"{line}, expected at most {EQUAL:.0e} (as released, no padding, no dropout)"
        )
    if teacher is not None and has_bf16_products(device):
        freeze(teacher, "bf16")
        line += f"; {abs(ours() - theirs) / abs(theirs):.1e} with the teacher in bf16"
    return line


# ---- the table


def columns(batch: Batch, spread: Spread) -> dict:
    """The columns that both tables have: the size of the batch, times, tokens a second."""
    return {
        "B": batch.B,
        "longest": batch.max_len,
        "N": batch.N,
        **spread.columns(),
        "tokens_per_s": round(1000 * batch.N / spread.p50),
    }


def held_mib(things) -> float:
    """MiB of the memory that models and optimisers hold; what is another's view is in it once."""
    tensors = []
    for x in things:
        if isinstance(x, nn.Module):
            tensors += [*x.parameters(), *x.buffers()]
        elif x is not None:
            tensors += [y for kept in x.state.values() for y in kept.values()]
    memory = (y.untyped_storage() for y in tensors)
    return sum({x.data_ptr(): x.nbytes() for x in memory}.values()) / 2**20


def sides_of(method: str, batch: Batch, args: Settings) -> list[Side]:
    """All sides of a method, baselines first."""
    theirs = [name for name in args.by if not WAYS[name].is_ours]
    sides = [their_side(method, name, batch, args) for name in theirs]
    for fidelity in args.fidelity if method != "mlm" else ["released"]:  # Eq. 1 is the same in both
        for name in args.by:
            way = WAYS[name]
            if way.is_ours:
                sides += [
                    our_side(method, name, fidelity, narrow, batch, args)
                    for narrow in teacher_precisions(method, way, args, batch.device)
                ]
    return sides


def teacher_precisions(method: str, way: Way, args: Settings, device: torch.device) -> list[str]:
    """Those wanted that differ: under autocast all are bf16, and mlm has no teacher."""
    if method == "mlm":
        return ["fp32"]
    if way.precision == "bf16":
        return ["bf16"]
    ranks = Ranks(0, 0, 1, device)
    return list(dict.fromkeys(resolve(p, ranks)[0] for p in args.teacher_precision))


def steps(args: Settings, device: torch.device, table: Table) -> None:
    """Measure everything in the settings, a row for each side.

    Raises:
        InputError: a method has no such side, or the losses of both sides differ.
    """
    check(args)
    if any(not WAYS[name].is_ours for name in args.by):
        for method in args.methods:
            print(check_losses(method, args, device), flush=True)
    types = {"fp32": torch.float32, "bf16": torch.bfloat16}
    n = CEILING[device.type]
    ceiling = {name: products_per_second(device, dtype, n) for name, dtype in types.items()}
    shown = ", ".join(f"{x / 1e12:.3g} TFLOP/s in {name}" for name, x in ceiling.items())
    print(f"ceiling, a product of {n} by {n} by {n}: {shown}", flush=True)
    for method in args.methods:
        V = MODELS[args.student or METHODS[method].model].V
        for lengths in args.lengths:
            drawn = LENGTHS[lengths](args.batch, args.length, args.seed)
            batch = random_batch(drawn, V, args.seed, device)
            sides = sides_of(method, batch, args)
            times = milliseconds([[side.step] for side in sides], device, args.repeats, args.warmup)
            add_rows(table, {"method": method, "lengths": lengths}, batch, sides, times, ceiling)


def add_rows(
    table: Table,
    what: dict,
    batch: Batch,
    sides: list[Side],
    times: list[np.ndarray],
    ceiling: dict[str, float],
) -> None:
    """One row for each side, with its share of each baseline's time and memory."""
    baselines = {}
    for side, laps in zip(sides, times, strict=True):
        name, ms = side.what["by"].split("/")[0], laps[:, 0]
        mib = extra_mib(side.peak, batch.device) + held_mib(side.held)
        if not WAYS[name].is_ours:
            baselines[name] = ms, mib
        spread = Spread.of(ms)
        row = {**what, **side.what, **columns(batch, spread), "peak_mib": round(mib, 1)}
        best = ceiling[WAYS[name].precision]
        seconds = spread.p50 / 1000
        row["ceiling_share"] = round(side.flops / seconds / best, 3) if side.flops else None
        line = (
            f"{' '.join(f'{x:<9}' for x in what.values())}{side.what['fidelity']:<9}"
            f"{side.what['by']:<24}{side.what['teacher']:<5}{batch.N:>7,} tokens"
            f"  {spread!s:<32}{row['tokens_per_s']:>9,} tok/s"
            f"{mib:>8,.0f} MiB"
        )
        if side.flops:
            line += f"  {row['ceiling_share']:.0%} of ceiling"
        for other in (name for name, way in WAYS.items() if not way.is_ours):
            time_share = memory_share = None
            if side.flops and other in baselines:
                other_ms, other_mib = baselines[other]
                # turn by turn: what else the machine did meets both
                time_share, memory_share = float(np.median(ms / other_ms)), mib / other_mib
                line += f"  {time_share:.3f} time {memory_share:.3f} memory of {other}"
            row |= {
                f"time_of_{other}": None if time_share is None else round(time_share, 3),
                f"memory_of_{other}": None if memory_share is None else round(memory_share, 3),
            }
        table.add(row, line)


def check(args: Settings) -> None:
    """Refuse methods that the authors have no script for.

    Raises:
        InputError: mobile by the authors' way, or without IB-BERT.
    """
    has_theirs = any(not WAYS[name].is_ours for name in args.by)
    if has_theirs and "mobile" in args.methods:
        raise InputError("the authors have no code for mobile; pass --by minibio with it")
    if "mobile" in args.methods and args.teacher != "ib-bert":
        raise InputError("--methods mobile needs --teacher ib-bert")
