"""Command-line options made from the fields of a dataclass: one table of defaults, help and ranges.

    @dataclass(frozen=True)
    class RunConfig:
        steps: int = option(100_000, "optimiser steps", least=1)
        lr: float = option(5e-4, "peak learning rate", above=0, may_differ=True)

    parser = new_parser("train.py", __doc__)
    add_options(parser, RunConfig)                     # --steps, --lr
    run = dataclasses.replace(row, **given(args, RunConfig))
    check(run)                                         # InputError: --lr is -1.0, ... above 0

`option` is in config.py. No option has a default of its own: one that is not given leaves the row
of the table as it is.
"""

import argparse
import dataclasses
import math
import types
from collections.abc import Sequence
from typing import get_args, get_origin, get_type_hints

from minibio.run.errors import InputError

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


def new_parser(name: str, description: str) -> argparse.ArgumentParser:
    """A parser that takes no abbreviations: `--max 3` is not `--max-skips 3`."""
    return argparse.ArgumentParser(name, description=description.split("\n")[0], allow_abbrev=False)


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
