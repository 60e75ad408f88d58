"""The cost of running a model: the paper's Figure 2, with what its caption leaves out (F63).

    python eval.py speed tiny-biobert bio-mobilebert distil-biobert biobert --precision fp32 int8

A model is a Hugging Face directory or a row of `MODELS` with weights at random: speed does not
depend on their values. Only the encoder is measured, in inference, on B texts of exactly T tokens
each. For every B and T all models in all precisions take turns, so that a change of the machine's
speed meets them all; every combination has as many rounds as fit into `--seconds`, at least
`LEAST_ROUNDS` and at most `--rounds`, and the table says how many. Reported are

    latency       median and 95th percentile of one call, milliseconds
    throughput    texts and tokens a second, by the median
    peak memory   the weights and what one call needs above them at its peak, MiB
    on disk       the encoder's weights as a safetensors file of that precision, MiB

    fp32    as loaded
    bf16    weights and products; norms and softmax inside are PyTorch's own for that type
    int8    the products of all linear layers (model/int8.py). On CPUs only; the rest stays fp32
"""

import argparse
import copy
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torch.nn as nn
from safetensors.torch import save

from kernels.bench.timing import Table, extra_mib, milliseconds
from kernels.machine import describe
from minibio.batch import Batch
from minibio.config import MODELS
from minibio.model.convert import load
from minibio.model.heads import Model
from minibio.model.hub import how_to_fetch
from minibio.model.int8 import check_device, to_int8
from minibio.report import plot
from minibio.run import log
from minibio.run.dist import Ranks, pick_device
from minibio.run.errors import InputError
from minibio.run.files import check_writable

PRECISIONS = ("fp32", "bf16", "int8")
FIGURE_2 = ["tiny-biobert", "bio-mobilebert", "distil-biobert", "biobert"]
LEAST_ROUNDS = 5


def open_encoder(name: str) -> nn.Module:
    """The encoder of a row of MODELS, random, or of a directory, as trained.

    Raises:
        InputError: it is neither, or the directory holds no model that can be read.
    """
    if name in MODELS:
        return Model(MODELS[name], "encoder").eval().encoder
    if not Path(name).is_dir():
        raise InputError(
            f"{name!r} is neither a directory nor a configuration, expected a Hugging Face "
            f"directory or one of {', '.join(MODELS)}{how_to_fetch(name)}"
        )
    return load(name, head="encoder")[0].float().encoder


def at_precision(encoder: nn.Module, precision: str, device: torch.device) -> nn.Module:
    """A copy of `encoder`, which is fp32, in this precision."""
    if precision == "int8":
        return to_int8(copy.deepcopy(encoder), device)
    dtype = {"fp32": torch.float32, "bf16": torch.bfloat16}[precision]
    return copy.deepcopy(encoder).to(device, dtype)


def texts(V: int, B: int, T: int, device: torch.device) -> Batch:
    """B texts of T random tokens."""
    rng = torch.Generator().manual_seed(0)
    return Batch.from_sequences(list(torch.randint(V, (B, T), generator=rng))).to(device)


def rounds_for(calls: list, device: torch.device, most: int, seconds: float) -> int:
    """Rounds of all calls that fit into the time, judged by one of them."""
    one = sum(float(laps.sum()) for laps in milliseconds(calls, device, 1, warmup=1)) / 1000
    return min(most, max(LEAST_ROUNDS, int(seconds / max(one, 1e-9))))


def figures(times: np.ndarray, B: int, T: int) -> dict:
    """Latency and throughput from (rounds, 1) milliseconds."""
    p50, p95 = np.percentile(times, (50, 95))
    return {
        "ms_p50": round(p50, 3),
        "ms_p95": round(p95, 3),
        "texts_per_s": round(1000 * B / p50, 2),
        "tokens_per_s": round(1000 * B * T / p50),
    }


class Grid(NamedTuple):
    """All that is measured: every model in every precision at every batch size and length."""

    models: list[str]  # directories, or rows of MODELS
    precision: list[str]
    batch: list[int]  # texts of one call
    length: list[int]  # tokens of each

    def check(self, device: torch.device) -> None:
        """Refuse what cannot be measured, before anything is.

        Raises:
            InputError: a number below 1, a value named twice, int8 on a GPU.
        """
        for name in ("batch", "length"):
            values = getattr(self, name)
            if min(values) < 1:
                raise InputError(f"--{name} is {values}, expected numbers of at least 1")
        for name, values in self._asdict().items():
            twice = [x for i, x in enumerate(values) if x in values[:i]]
            if twice:
                raise InputError(f"{twice[0]} is named twice among the {name}: drop one")
        if "int8" in self.precision:
            check_device(device)


class Subject(NamedTuple):
    """One model in one precision, and its figures that do not depend on the texts."""

    label: str
    precision: str
    encoder: nn.Module
    parameters: int
    weights: float  # MiB in memory
    disk: float  # MiB


def subjects(grid: Grid, device: torch.device) -> list[Subject]:
    """All models in all precisions.

    Raises:
        InputError: a model cannot be read, or the texts are longer than its positions.
    """
    found = []
    labels = plot.labels([Path(name) for name in grid.models])
    for name, label in zip(grid.models, labels, strict=True):
        encoder = open_encoder(name)
        if max(grid.length) > encoder.config.P:
            raise InputError(
                f"--length is {max(grid.length)}, expected at most {encoder.config.P}: {name} has "
                f"no more positions"
            )
        n = sum(p.numel() for p in encoder.parameters())
        for precision in grid.precision:
            other = at_precision(encoder, precision, device)
            tensors = other.state_dict()
            weights = sum(x.nbytes for x in tensors.values()) / 2**20
            disk = len(save({name: x.contiguous() for name, x in tensors.items()})) / 2**20
            found.append(Subject(label, precision, other, n, weights, disk))
    return found


def measure(
    models: list[Subject],
    shapes: list[tuple[int, int]],
    rounds: int,
    seconds: float,
    device: torch.device,
    table: Table,
) -> list[dict]:
    """A row for each model, precision, B and T; each is printed and written as it is known."""
    rows = []
    bar = log.progress(len(shapes), "speed", Ranks(0, 0, 1, device), unit="shape")
    for B, T in shapes:
        calls = [partial(m.encoder, texts(m.encoder.config.V, B, T, device)) for m in models]
        stages = [[call] for call in calls]
        n = rounds_for(stages, device, rounds, seconds)
        times = milliseconds(stages, device, n, warmup=1)
        for m, call, laps in zip(models, calls, times, strict=True):
            row = {
                "model": m.label,
                "precision": m.precision,
                "device": device.type,
                "batch": B,
                "length": T,
                "rounds": n,
                **figures(laps, B, T),
                "peak_mib": round(m.weights + extra_mib(call, device), 1),
                "parameters": m.parameters,
                "disk_mib": round(m.disk, 2),
            }
            table.add(row, line(row))
            rows.append(row)
        bar.update()
    bar.close()
    return rows


def line(row: dict) -> str:
    """One row, for the terminal."""
    return (
        f"{row['model']:<22}{row['precision']:<5}{row['batch']:>4} x {row['length']:<4}"
        f"{row['ms_p50']:>11,.2f} ms (95 %: {row['ms_p95']:,.2f})"
        f"{row['texts_per_s']:>10,.1f} texts/s{row['peak_mib']:>9,.0f} MiB"
        f"{row['parameters'] / 1e6:>7.1f} M{row['disk_mib']:>8,.1f} MiB on disk"
    )


@torch.inference_mode()
def speed(
    grid: Grid,
    out: Path,
    *,
    rounds: int = 50,
    seconds: float = 20.0,
    pictures: bool = True,
    device: str | None = None,
) -> None:
    """Measure all, into speed.csv, and draw a picture for each precision.

    Args:
        out:     directory to write.
        rounds:  timed calls of a model at one batch size and length, at most.
        seconds: for all models at one batch size and length.
    Raises:
        InputError: something cannot be measured, or pictures cannot be drawn.
    """
    where = pick_device(device)
    grid.check(where)
    if rounds < 1:
        raise InputError(f"--rounds is {rounds}, expected at least 1")
    if not seconds > 0:
        raise InputError(f"--seconds is {seconds}, expected more than 0")
    images = {p: out / f"speed-{p}.png" for p in grid.precision if pictures}
    for path in (out / "speed.csv", *images.values()):
        check_writable(path)
    for path in images.values():
        plot.new_figure(path, 1, 1)  # what it would refuse at the end
    models = subjects(grid, where)
    random = ", ".join(name for name in grid.models if name in MODELS)
    if random:
        print(f"weights at random, which cost what trained ones do: {random}; or name a directory")
    shapes = [(B, T) for B in grid.batch for T in grid.length]
    with Table(out / "speed.csv", describe(where)) as table:
        rows = measure(models, shapes, rounds, seconds, where, table)
    for precision, path in images.items():
        plot.time_and_memory([row for row in rows if row["precision"] == precision], path)
        print(path)


def run_speed(args: argparse.Namespace) -> None:
    """`eval.py speed`."""
    grid = Grid(args.models, args.precision, args.batch, args.length)
    speed(
        grid,
        args.out,
        rounds=args.rounds,
        seconds=args.seconds,
        pictures=not args.no_picture,
        device=args.device,
    )


def add_arguments(p: argparse.ArgumentParser) -> None:
    """The options of `eval.py speed`, except --device and --threads, which all commands have."""
    p.set_defaults(run=run_speed)
    p.add_argument(
        "models",
        nargs="*",
        default=FIGURE_2,
        metavar="MODEL",
        help="Hugging Face directory or row of MODELS (default: Figure 2)",
    )
    p.add_argument("--precision", nargs="+", choices=PRECISIONS, default=["fp32"])
    p.add_argument("--batch", nargs="+", type=int, default=[1, 8, 32], help="texts of one call")
    p.add_argument("--length", nargs="+", type=int, default=[128, 256, 512], help="tokens of each")
    p.add_argument("--rounds", type=int, default=50, help="timed calls, at most (%(default)s)")
    p.add_argument(
        "--seconds",
        type=float,
        default=20.0,
        help="for all models at one batch and length (%(default)s)",
    )
    p.add_argument("--no-picture", action="store_true", help="only the table")
    p.add_argument(
        "--out",
        type=Path,
        default=Path("runs/speed"),
        help="directory of speed.csv, speed-PRECISION.png (%(default)s)",
    )
