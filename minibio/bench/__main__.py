"""Speed and memory on this machine: `python -m minibio bench`.

    python -m minibio bench encoder    one forward pass, ours and that of transformers
    python -m minibio bench step       one training step, the authors' and ours
    python -m minibio bench predict    documents a second from file to file, ours and others'
    python -m minibio bench count      ours on a GPU, counted: launches, operations, bytes, waits

Every row is printed, and appended to the CSV file, as soon as it is known.
"""

import argparse
import sys
from collections.abc import Collection
from pathlib import Path

import torch

from kernels.bench.timing import Table
from kernels.machine import describe, version
from minibio.bench.count import counts
from minibio.bench.encoder import encoder
from minibio.bench.predict import NEEDED, speeds
from minibio.bench.step import LENGTHS, WAYS, Settings, steps
from minibio.config import MODELS
from minibio.distil.objectives import OBJECTIVES
from minibio.run import errors
from minibio.run.dist import pick_device
from minibio.run.errors import InputError
from minibio.run.files import check_writable
from minibio.run.options import Parser, threads
from minibio.tasks.predict import PRECISIONS

# values of the options that are not given
DEFAULTS = {
    "cpu": {
        "models": ["tiny-biobert"], "precision": {"encoder": ["fp32"], "predict": ["fp32", "auto"]},
        "batch": {"encoder": 16, "step": 8, "count": 192, "predict": 32},
        "repeats": {"encoder": 7, "step": 3}, "warmup": 1,
        "by": {"step": ["authors", "minibio"], "count": ["minibio", "minibio-bf16"]},
    },
    "cuda": {
        "models": ["tiny-biobert", "distil-biobert", "biobert", "bio-mobilebert"],
        "precision": {"encoder": ["fp32", "bf16"], "predict": ["fp32", "auto"]},
        "batch": {"encoder": 128, "step": 192, "predict": 32},
        "repeats": {"encoder": 30, "step": 5}, "warmup": 2,
        "by": {"step": ["minibio-bf16", "minibio", "authors-bf16", "authors",
                        "authors-bf16-compiled"]},
    },
}  # fmt: skip

NOT_TIMED = {  # of `count`, on a GPU or not
    "repeats": 1, "warmup": 1, "device": "cpu", "threads": None,
    "teacher_precision": ["fp32"], "teacher_dropout": False,
}  # fmt: skip


def parser() -> Parser:
    """Every option; None means the device's own value."""
    p = Parser("minibio bench", description=__doc__)
    commands = p.add_subparsers(dest="what", required=True)

    g = commands.add_parser("encoder", help="one forward pass, ours and that of transformers")
    g.add_argument("--models", nargs="+", choices=MODELS, metavar="NAME", help="rows of MODELS")
    g.add_argument("--precision", nargs="+", choices=("fp32", "bf16"))

    g = commands.add_parser("step", help="one training step, the authors' and ours")
    add_steps(g, WAYS)
    g.add_argument(
        "--teacher-precision",
        nargs="+",
        choices=("auto", "fp32", "bf16"),
        default=["fp32", "auto"],
        help="under a student in fp32",
    )
    g.add_argument(
        "--teacher-dropout",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="of the authors' teacher, as in their code (default: yes)",
    )
    g.add_argument("--warmup", type=int, help="calls of each kind before those that are timed")

    for g in commands.choices.values():
        g.add_argument("--repeats", type=int, help="timed calls of each kind")

    g = commands.add_parser("count", help="our training step on a GPU, counted without one")
    add_steps(g, [name for name, way in WAYS.items() if way.is_ours and not way.is_compiled])
    g.add_argument("--top", type=int, default=12, help="largest operations listed (default: 12)")
    g.set_defaults(**NOT_TIMED)

    for g in commands.choices.values():
        g.add_argument(
            "--length", type=int, default=256, help="tokens of the longest (default: 256)"
        )
        g.add_argument("--seed", type=int, default=0)

    g = commands.add_parser("predict", help="documents a second from file to file")
    g.add_argument("directory", type=Path, metavar="DIR", help="of `eval.py ner`")
    g.add_argument(
        "--data",
        type=Path,
        required=True,
        metavar="FILE_OR_SET",
        help="a document a line as for `eval.py predict`, or tagged words",
    )
    g.add_argument("--documents", type=int, help="the first of them (default: all)")
    g.add_argument("--precision", nargs="+", choices=PRECISIONS, help="ours")
    g.add_argument("--by", nargs="*", choices=NEEDED, default=list(NEEDED), help="rivals")

    for name, g in commands.choices.items():
        g.add_argument("--batch", type=int, help="sequences")
        g.add_argument("--out", type=Path, help="CSV file")
        if name != "count":
            g.add_argument("--device", help="cuda, cpu (default: cuda if there is one)")
            g.add_argument("--threads", type=threads, help="of the CPU (default: all cores)")
    return p


def add_steps(g: argparse.ArgumentParser, ways: Collection[str]) -> None:
    """The options that say which steps are measured, or counted."""
    g.add_argument(
        "--methods", nargs="+", choices=OBJECTIVES, default=["compact", "tiny", "distil", "mlm"]
    )
    g.add_argument("--by", nargs="+", choices=ways, help="ways to make a step")
    g.add_argument("--lengths", nargs="+", choices=LENGTHS, default=["pubmed"])
    g.add_argument("--fidelity", nargs="+", choices=("released", "paper"), default=["released"])
    g.add_argument("--student", choices=MODELS, metavar="NAME", help="(default: the method's own)")
    g.add_argument("--teacher", choices=MODELS, metavar="NAME", default="biobert")


def main(argv=None) -> None:
    args = parser().parse_args(argv)
    device = pick_device(args.device)
    is_default = getattr(args, "by", ()) is None
    for name, value in DEFAULTS[device.type].items():
        if getattr(args, name, ()) is None:
            setattr(args, name, value[args.what] if isinstance(value, dict) else value)
    for name in ("batch", "length", "repeats", "warmup", "documents"):
        if (n := getattr(args, name, None)) is not None and n < 1:
            raise InputError(f"--{name} is {n}, expected at least 1")
    torch.set_num_threads(args.threads or torch.get_num_threads())
    if is_default and args.what == "step" and version("transformers") == "none":
        args.by = [name for name in args.by if WAYS[name].is_ours]
        print("without transformers, which is not installed: minibio only")
    out = None if args.out is None else check_writable(args.out)
    with Table(out, describe(device)) as table:
        if args.what == "encoder":
            encoder(
                args.models,
                args.precision,
                args.batch,
                args.length,
                args.repeats,
                args.seed,
                device,
                table,
            )
        elif args.what == "predict":
            speeds(
                args.directory,
                args.data,
                args.documents,
                args.precision,
                args.by,
                args.batch,
                device,
                table,
            )
        else:
            settings = Settings(**{name: getattr(args, name) for name in Settings._fields})
            if args.what == "count":
                counts(settings, args.top, table)
            else:
                steps(settings, device, table)


if __name__ == "__main__":
    errors.run(lambda: main(sys.argv[1:]), "minibio bench")
