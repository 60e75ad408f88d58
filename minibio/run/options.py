"""Command-line options made from the fields of a dataclass: one table of defaults, help and ranges.

    @dataclass(frozen=True)
    class RunConfig:
        steps: int = option(100_000, "optimiser steps", least=1)
        lr: float = option(5e-4, "peak learning rate", above=0, may_differ=True)

    parser = Parser("train.py", description=__doc__)
    add_options(parser, RunConfig)                     # --steps, --lr
    run = dataclasses.replace(row, **given(args, RunConfig))
    check(run)                                         # InputError: --lr is -1.0, ... above 0

`option` is in config.py. No option has a default of its own: one that is not given leaves the row
of the table as it is.
"""

import argparse
import dataclasses
import difflib
import math
import types
from collections.abc import Sequence
from pathlib import Path
from typing import get_args, get_origin, get_type_hints

from minibio.run.errors import InputError

MAX_THREADS = 1024  # more than a process can start, where the number is not a slip
LARGEST = 2**63 - 1  # of an integer: what a tensor holds


def flag(name: str) -> str:
    """The option of a field: weight_decay -> --weight-decay."""
    return "--" + name.replace("_", "-")


def fields(cls) -> list[dataclasses.Field]:
    """The fields that are options."""
    return [f for f in dataclasses.fields(cls) if "help" in f.metadata]


def may_differ(cls) -> frozenset[str]:
    """The fields that a resumed run may have otherwise."""
    return frozenset(f.name for f in fields(cls) if f.metadata["may_differ"])


HABITS = {  # options of other trainers -> ours
    "--learning-rate": "--lr", "--max-steps": "--steps", "--num-train-steps": "--steps",
    "--output-dir": "--out", "--output": "--out", "--batch-size": "--batch",
    "--per-device-train-batch-size": "--batch (of all ranks together)",
    "--train-batch-size": "--batch (of all ranks together)",
    "--gradient-accumulation-steps": "--accumulate", "--max-seq-length": "--length",
    "--max-length": "--length", "--warmup-steps": "--warmup", "--max-grad-norm": "--clip",
    "--lr-scheduler-type": "--schedule", "--logging-steps": "--log-every",
    "--save-steps": "--save-every", "--eval-steps": "--eval-every",
    "--save-total-limit": "--keep", "--model-name-or-path": "--from DIR or --model",
    "--teacher-model": "--teacher DIR", "--student-model": "--model",
    "--overwrite-output-dir": "--overwrite", "--bf16": "--precision bf16",
    "--fp16": "--precision bf16 (there is no fp16)", "--torch-compile": "--compile",
    "--alpha-mlm": "--alpha", "--epochs": "--steps", "--num-train-epochs": "--steps",
}  # fmt: skip
RESUME = ("--resume", "--resume-from-checkpoint")


class Parser(argparse.ArgumentParser):
    """A parser whose refusals are one line, without the usage.

    It takes no abbreviations (`--max 3` is not `--max-skips 3`) and knows the habits of other
    trainers. Numbers have what a tensor can hold, paths no NUL. Its subparsers are of the same
    kind.

    Raises:
        InputError: from `parse_args`, for whatever it refuses.
    """

    def __init__(self, *args, description: str | None = None, **more):
        first_line = (description or "").split("\n")[0] or None
        super().__init__(*args, description=first_line, allow_abbrev=False, **more)
        self.register("type", int, whole)
        self.register("type", Path, path)
        self.register("type", None, plain)
        self.is_mixed = False  # whether arguments without a flag may come between options
        self.is_outer = True

    def parse_known_args(self, args=None, namespace=None):
        """Parse, and refuse what no option takes; the parser of a subcommand knows its own."""
        if not (self.is_mixed and self.is_outer):
            found, unknown = super().parse_known_args(args, namespace)
        else:
            self.is_outer = False  # argparse calls this method again, twice
            found, unknown = self.parse_known_intermixed_args(args, namespace)
            self.is_outer = True
        if unknown and not (self.is_mixed and not self.is_outer):
            self.error(self.describe_unknown(unknown))
        return found, unknown

    def describe_unknown(self, left: list[str]) -> str:
        """A message for arguments that no option takes."""
        option = next((x.split("=")[0] for x in left if x.startswith("-")), None)
        if option is None:
            return f"{left[0]!r} belongs to no option; --help lists them"
        name = option.replace("_", "-").lower()
        known = [name for action in self._actions for name in action.option_strings]
        if name in RESUME:
            return f"{option} is not needed: re-run the same command to resume"
        if HABITS.get(name, "").split(" ")[0] in known:
            return f"{option} is {HABITS[name]} here"
        near = difflib.get_close_matches(name, known, 1) or ["--help"]
        return f"{option} is not an option; did you mean {near[0]}?"

    def error(self, message: str):
        raise InputError(message.removeprefix("argument "))


def whole(text: str) -> int:
    """An argparse type: an integer that a tensor holds."""
    if abs(int(text)) > LARGEST:
        raise argparse.ArgumentTypeError(f"{text}, expected at most {LARGEST}")
    return int(text)


def plain(text: str) -> str:
    """An argparse type: a word without NUL, which no path has."""
    if "\0" in text:
        raise argparse.ArgumentTypeError(f"{text!r} has a NUL in it; no file has such a name")
    return text


def path(text: str) -> Path:
    """An argparse type, in the place of `Path`: an empty name is not a directory."""
    if not text:
        raise argparse.ArgumentTypeError("it is empty, expected a path")
    return Path(plain(text))


def add_options(parser, cls, without: Sequence[str] = ()) -> None:
    """Add an option for each field of `cls` that is one, but for those in `without`."""
    hints = get_type_hints(cls)
    for f in fields(cls):
        if f.name in without:
            continue
        kind, about = hints[f.name], f.metadata
        more = {"default": argparse.SUPPRESS, "help": about["help"], "dest": f.name}
        if kind is bool:
            parser.add_argument(flag(f.name), action="store_true", **more)
            continue
        if about["const"] is not None:
            more |= {"nargs": "?", "const": about["const"]}
        parser.add_argument(
            flag(f.name),
            type=reader(kind),
            choices=about["choices"] or None,
            metavar=about["metavar"] or (None if about["choices"] else metavar(kind)),
            **more,
        )


def given(args: argparse.Namespace, cls) -> dict:
    """The fields of `cls` that the command line names."""
    return {f.name: getattr(args, f.name) for f in fields(cls) if hasattr(args, f.name)}


def element(kind) -> tuple[type, bool]:
    """(type of a value, whether there may be several): int | None -> int, no; tuple[int, ...]."""
    if get_origin(kind) is types.UnionType:
        (kind,) = (k for k in get_args(kind) if k is not type(None))
    if get_origin(kind) is tuple:
        return get_args(kind)[0], True
    return kind, False


def metavar(kind) -> str:
    """INT, FLOAT, INT,INT,..."""
    one, is_many = element(kind)
    name = one.__name__.upper()
    return f"{name},{name},..." if is_many else name


def directory(text: str) -> Path:
    """An argparse type: a path that is not empty (`--out $UNSET` is not the working directory)."""
    if not text:
        raise ValueError
    return Path(text)


def reader(kind):
    """An argparse type: one value, or `1,5,3` with `none` for ()."""
    one, is_many = element(kind)

    def read(text):
        if not is_many:
            return one(text)
        values = () if text == "none" else tuple(one(x) for x in text.split(","))
        if ... not in get_args(kind) and len(values) != len(get_args(kind)):  # tuple[float, float]
            raise ValueError
        return values

    read.__name__ = metavar(kind)
    return read


def check(config) -> None:
    """Refuse values out of their range.

    Raises:
        InputError: the option, its value, and what is expected.
    """
    for f in fields(type(config)):
        about, value = f.metadata, getattr(config, f.name)
        for x in value if isinstance(value, tuple) else (value,):
            if about["choices"] and x is not None and x not in about["choices"]:
                expected = f"one of {', '.join(about['choices'])}"
            elif isinstance(x, bool) or not isinstance(x, int | float):
                continue
            else:
                expected = out_of_range(x, about)
            if expected:
                raise InputError(f"{flag(f.name)} is {x!r}, expected {expected}")


def out_of_range(x: float, about) -> str:
    """The range that `x` is outside of; "" where it is inside."""
    if not math.isfinite(x):
        return "a finite number"
    if abs(x) > LARGEST and isinstance(x, int):
        return f"at most {LARGEST}"
    if about["least"] is not None and x < about["least"]:
        return f"at least {about['least']}"
    if about["above"] is not None and x <= about["above"]:
        return f"above {about['above']}"
    if about["below"] is not None and x >= about["below"]:
        return f"below {about['below']}"
    return ""


def threads(text: str) -> int:
    """An argparse type: a number of threads that a process can start."""
    if not 1 <= int(text) <= MAX_THREADS:
        raise argparse.ArgumentTypeError(f"{text}, expected 1 to {MAX_THREADS}")
    return int(text)
