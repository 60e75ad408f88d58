"""`python -m minibio bench step`: whole training steps, the authors' and ours.

    minibio                 a step of training, on the row of real tokens
    minibio-bf16            the same under bf16 autocast
    minibio-bf16-compiled   and torch.compile
    authors                 transformers, eager attention, all maps and logits, padded (authors.py)
    authors-bf16            the same under bf16 autocast
    authors-bf16-compiled   and torch.compile

All sides of a method start from the same weights and see the same tokens in the same process,
ours first. On a CPU they take turns, and a share of the authors' time is that of a turn. On a GPU
each is timed by itself, so that its memory need not hold all of them, and its row is printed as
soon as it is: an interrupt costs only what was not begun, and shares are printed once the authors'
side is timed. One that does not fit into memory says so in its row, as does one that torch.compile
fails on.

A step is forward, backward, clipping and AdamW, with dropout as in training: the authors' teacher
has its own too (F32), unless `--no-teacher-dropout`. The losses of `authors` and of `minibio` as
released are compared on sequences of equal length without dropout; where they differ, a row has
both, and the command fails once all is timed. Peak memory is that of the tensors, weights and
moments included. The paper's equations, `--fidelity paper`, are compared with the same baselines.
"""

import gc
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from typing import NamedTuple

import numpy as np
import torch
import torch.nn as nn
from torch import Tensor

from kernels.bench.run import first_line, stop_at_fault
from kernels.bench.timing import Spread, Table, extra_mib, milliseconds, ragged_lengths
from kernels.machine import has_bf16_products
from minibio.batch import Batch, Counts
from minibio.bench.authors import Authors, rectangle
from minibio.bench.training import LR, steps_on
from minibio.config import METHODS, MODELS
from minibio.distil.objectives import OBJECTIVES, Objective, teach
from minibio.model.heads import Model, freeze
from minibio.model.transformer import compile_layers
from minibio.report.estimate import products_per_second, step_flops
from minibio.run import optim
from minibio.run.dist import Ranks
from minibio.run.errors import InputError
from minibio.run.log import Progress
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
    "minibio": Way(True),
    "minibio-bf16": Way(True, "bf16"),
    "minibio-bf16-compiled": Way(True, "bf16", True),
    "authors": Way(False),
    "authors-bf16": Way(False, "bf16"),
    "authors-bf16-compiled": Way(False, "bf16", True),
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

    def loop(steps: int) -> Iterator[Progress]:
        return steps_on(batch, objective, teacher, steps, way.precision)

    M = batch.N if objective.needs.every_token else batch.M
    flops = step_flops(objective, teacher, batch.N, M, batch.n_pairs, 0)
    what = named(method, fidelity, name, narrow)
    n = args.warmup + args.repeats
    timed = loop(n)

    def step():
        if next(timed).step == n:
            timed.close()  # and with it go the weights' moments
            objective.zero_grad()  # or `peak` would free these, and seem smaller

    def peak():
        for _ in loop(2):  # in its first step there are no moments yet
            pass

    return Side(what, step, peak, (objective, teacher), flops)


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
    by = name if parts == 1 else f"{name}/{parts}"
    what = named(method, "released", by, way.precision)
    whole = partial(step, parts)
    return Side(what, whole, whole, (model, optimizer), 0)


def pieces(inputs: dict[str, Tensor], n: int) -> list[dict[str, Tensor]]:
    """A rectangle cut into n, between sequences."""
    cut = {name: x.tensor_split(n) for name, x in inputs.items()}
    return [{name: xs[i] for name, xs in cut.items()} for i in range(n)]


def fitting(step: Callable, optimizer: torch.optim.Optimizer) -> int:
    """The fewest micro-batches with which the step fits into the device's memory, by trying.

    Raises:
        torch.OutOfMemoryError: it does not fit at all.
    """
    for parts in PARTS:
        try:
            step(parts)
            return parts
        except torch.OutOfMemoryError:
            optimizer.zero_grad(set_to_none=True)
            torch.cuda.empty_cache()
    raise torch.OutOfMemoryError(f"not in {PARTS[-1]} micro-batches either")


class Losses(NamedTuple):
    """The loss of one batch by both ways, without padding and dropout."""

    method: str
    authors: float
    minibio: float
    narrow: float | None = None  # by ours, with the teacher in bf16

    def off(self, loss: float) -> float:
        """A loss's distance from the authors', relative."""
        return abs(loss - self.authors) / abs(self.authors)

    @property
    def is_equal(self) -> bool:
        """Whether they are within EQUAL; NaN is not."""
        return self.off(self.minibio) <= EQUAL

    def __str__(self) -> str:
        line = (
            f"loss {self.authors:.7g} by authors, {self.minibio:.7g} by minibio, "
            f"{self.off(self.minibio):.1e} apart"
        )
        if not self.is_equal:
            return f"{line}, expected at most {EQUAL:.0e} (as released, no padding, no dropout)"
        if self.narrow is None:
            return line
        return f"{line}; {self.off(self.narrow):.1e} with the teacher in bf16"


@torch.no_grad()
def losses_of(method: str, args: Settings, device: torch.device) -> Losses:
    """Both losses of one batch of equal lengths."""
    objective, teacher = build(method, "released", args, device)
    objective.eval()
    batch = random_batch([args.length] * 2, objective.student.config.V, args.seed, device)
    theirs = Authors(objective, teacher).eval()(**rectangle(batch, objective.student)).item()

    def ours():
        taught = None if teacher is None else teach(teacher, batch, objective.needs)
        return objective(batch, taught, Counts.of([batch]))["loss"].item()

    found = Losses(method, theirs, ours())
    if teacher is None or not has_bf16_products(device):
        return found
    freeze(teacher, "bf16")
    return found._replace(narrow=ours())


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


def sides_of(
    method: str, batch: Batch, args: Settings
) -> list[tuple[dict[str, str], Callable[[], Side]]]:
    """(the columns that name a side, what makes it) for all sides of a method, ours first."""
    found = []
    for fidelity in args.fidelity if method != "mlm" else ["released"]:  # Eq. 1 is the same in both
        for name in (name for name in args.by if WAYS[name].is_ours):
            for narrow in teacher_precisions(method, WAYS[name], args, batch.device):
                what = named(method, fidelity, name, narrow)
                make = partial(our_side, method, name, fidelity, narrow, batch, args)
                found.append((what, make))
    for name in (name for name in args.by if not WAYS[name].is_ours):
        what = named(method, "released", name, WAYS[name].precision)
        found.append((what, partial(their_side, method, name, batch, args)))
    return found


def named(method: str, fidelity: str, by: str, teacher: str) -> dict[str, str]:
    """The columns that name a side."""
    return {"fidelity": fidelity, "by": by, "teacher": "-" if method == "mlm" else teacher}


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
        InputError: a method has no such side, or, once all is measured, losses differ.
    """
    check(args)
    types = {"fp32": torch.float32, "bf16": torch.bfloat16}
    n = CEILING[device.type]
    ceiling = {name: products_per_second(device, dtype, n) for name, dtype in types.items()}
    shown = ", ".join(f"{x / 1e12:.3g} TFLOP/s in {name}" for name, x in ceiling.items())
    print(f"ceiling, a product of {n} by {n} by {n}: {shown}", flush=True)
    unequal = []
    for method in args.methods:
        if any(not WAYS[name].is_ours for name in args.by):
            losses = losses_of(method, args, device)
            if losses.is_equal:
                print(f"{method}: {losses}", flush=True)
            else:
                unequal.append(losses)
                what = {"method": method, "lengths": "full"}
                add_note(table, what, named(method, "released", "losses", "fp32"), str(losses))
        V = MODELS[args.student or METHODS[method].model].V
        for lengths in args.lengths:
            drawn = LENGTHS[lengths](args.batch, args.length, args.seed)
            batch = random_batch(drawn, V, args.seed, device)
            rows = StepRows(table, {"method": method, "lengths": lengths}, batch, ceiling)
            sides = sides_of(method, batch, args)
            groups = [sides] if device.type == "cpu" else [[side] for side in sides]
            for group in groups:
                try:
                    rows.add(measured([make for _, make in group], args, device))
                except torch.OutOfMemoryError:
                    for side, _ in group:
                        add_note(table, rows.what, side, "out of memory")
                except Exception as error:  # a compiler raises any at all
                    stop_at_fault(error, " ".join(side["by"] for side, _ in group))
                    others = [x for x in group if not WAYS[x[0]["by"]].is_compiled]
                    if len(others) == len(group):
                        raise
                    for side, _ in group:
                        if WAYS[side["by"]].is_compiled:
                            add_note(table, rows.what, side, f"failed: {first_line(error)}")
                    if others:
                        groups.append(others)  # by themselves
                gc.collect()  # weights and the hooks on their gradients refer to each other
                if device.type == "cuda":
                    torch.cuda.empty_cache()
    if unequal:
        raise InputError("; ".join(f"{x.method}: {x}" for x in unequal))


class Measured(NamedTuple):
    """The figures of a side, whose weights are gone."""

    what: dict[str, str]
    flops: float
    ms: np.ndarray  # of each turn
    mib: float  # at the peak

    @property
    def way(self) -> str:
        """The row of WAYS, of micro-batches too."""
        return self.what["by"].split("/")[0]

    def shares(self, other: "Measured") -> tuple[float, float]:
        """Its part of another's time and memory."""
        # turn by turn: what else the machine did meets both
        return float(np.median(self.ms / other.ms)), self.mib / other.mib


def measured(
    makers: list[Callable[[], Side]], args: Settings, device: torch.device
) -> list[Measured]:
    """The figures of some sides, which take turns.

    Raises:
        torch.OutOfMemoryError: one of them does not fit.
    """
    sides = [make() for make in makers]
    times = milliseconds([[side.step] for side in sides], device, args.repeats, args.warmup)
    return [
        Measured(
            side.what,
            side.flops,
            laps[:, 0],
            extra_mib(side.peak, device) + held_mib(side.held),
        )
        for side, laps in zip(sides, times, strict=True)
    ]


THEIRS = [name for name, way in WAYS.items() if not way.is_ours]
COLUMNS = [
    "method", "lengths", "fidelity", "by", "teacher", "B", "longest", "N", "ms_p50", "ms_p20",
    "ms_p80", "tokens_per_s", "peak_mib", "ceiling_share",
    *(f"{x}_of_{name}" for name in THEIRS for x in ("time", "memory")), "note",
]  # fmt: skip


class StepRows:
    """The rows of one batch in a table, each with its shares of the authors' figures.

    Args:
        what:    the columns that name the batch.
        ceiling: the device's rate by precision, operations per second.
    """

    def __init__(self, table: Table, what: dict, batch: Batch, ceiling: dict[str, float]):
        self.table, self.what, self.batch, self.ceiling = table, what, batch, ceiling
        self.ours, self.baselines = [], {}  # of those in the table; name -> Measured

    def add(self, found: list[Measured]) -> None:
        """A row for each of some sides; shares of a baseline that comes after ours are printed."""
        new = {x.way: x for x in found if not WAYS[x.way].is_ours}
        self.baselines |= new
        for x in self.ours:
            self.print_shares(x, new)
        for x in found:
            self.add_one(x)
        self.ours += [x for x in found if WAYS[x.way].is_ours]

    def print_shares(self, x: Measured, baselines: dict[str, Measured]) -> None:
        """One line for a row that is in the table without them."""
        for name, other in baselines.items():
            print(start(self.what, x.what) + "{:.3f} time {:.3f} memory".format(*x.shares(other)),
                  "of", name, flush=True)  # fmt: skip

    def add_one(self, x: Measured) -> None:
        """One row, with its shares of the baselines that are known."""
        spread = Spread.of(x.ms)
        row = dict.fromkeys(COLUMNS) | self.what | x.what | columns(self.batch, spread)
        row |= {"peak_mib": round(x.mib, 1), "note": ""}
        line = (
            f"{start(self.what, x.what)}{self.batch.N:>7,} tokens"
            f"  {spread!s:<32}{row['tokens_per_s']:>9,} tok/s{x.mib:>8,.0f} MiB"
        )
        if x.flops:
            best = self.ceiling[WAYS[x.way].precision]
            row["ceiling_share"] = round(1000 * x.flops / spread.p50 / best, 3)
            line += f"  {row['ceiling_share']:.0%} of ceiling"
        for name, other in self.baselines.items() if WAYS[x.way].is_ours else ():
            time_share, memory_share = x.shares(other)
            line += f"  {time_share:.3f} time {memory_share:.3f} memory of {name}"
            row |= {
                f"time_of_{name}": round(time_share, 3),
                f"memory_of_{name}": round(memory_share, 3),
            }
        self.table.add(row, line)


def start(what: dict, side: dict) -> str:
    """The columns that name a row, as they begin its line."""
    shown = " ".join(f"{x:<9}" for x in what.values())
    return f"{shown}{side['fidelity']:<9}{side['by']:<24}{side['teacher']:<5}"


def add_note(table: Table, what: dict, side: dict, note: str) -> None:
    """A row without figures."""
    row = dict.fromkeys(COLUMNS) | what | side | {"note": note}
    table.add(row, f"{start(what, side)}{note}")


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
