"""The plan of a run: a row of the table, the command line's overrides, and what is refused.

Nothing here imports torch, so that a wrong option is refused at once.
"""

import dataclasses
from collections.abc import Collection

from minibio.config import MODELS, RunConfig
from minibio.run import options
from minibio.run.errors import InputError
from minibio.run.options import flag


def resolve(row: RunConfig, given: dict) -> RunConfig:
    """A row of the table with the command line's overrides, and every interval in steps."""
    run = dataclasses.replace(row, **given)
    options.check(run)
    steps = run.steps
    return dataclasses.replace(
        run,
        # the same share of a shorter run
        warmup=given.get("warmup", round(row.warmup * steps / row.steps)),
        log_every=run.log_every or max(1, steps // 100),
        eval_every=run.eval_every or max(50, steps // 10),
        save_every=run.save_every or max(1, min(1000, steps // 10)),
    )


def check(run: RunConfig, given: Collection[str], has_teacher: bool, has_start: bool) -> None:
    """Refuse values out of range, and options that do not fit together.

    Args:
        given:     fields of `run` that the command line names.
        has_start: the weights are a directory's (--from).
    Raises:
        InputError: naming the option.
    """
    if has_start:
        if run.init_layers:
            raise InputError("--from DIR has weights of its own; drop --init-layers")
        if run.init_head == "copy":
            raise InputError("--from DIR has weights of its own; drop --init-head copy")
        for name in ("model", "layers", "width", "heads", "ffn"):
            if name in given:
                raise InputError(f"--from DIR has a shape of its own; drop --{name}")
    elif run.model not in MODELS:
        raise InputError(f"--model is {run.model!r}, expected one of {', '.join(MODELS)}")
    if run.stages and run.method != "mobile":
        raise InputError(f"--method {run.method} has no stages; drop --stages")
    if run.precision == "fp64" and run.teacher_precision != "fp32":
        raise InputError("--precision fp64 is to check against; drop --teacher-precision")
    if run.alpha and not any(run.alpha):
        raise InputError("--alpha has only weights of 0, expected one above 0")
    if run.warmup > run.steps:
        raise InputError(f"--warmup is {run.warmup}, expected at most the {run.steps} steps")
    if run.method != "mlm":
        if not has_teacher:
            raise InputError(
                f"--method {run.method} needs --teacher DIR (or no --corpus: the sample)"
            )
        return
    if has_teacher:
        raise InputError("--method mlm has no teacher; drop --teacher, or choose another method")
    for name in ("init_layers", "layer_map", "temperature"):
        if getattr(run, name):
            raise InputError(f"--method mlm has no teacher; drop {flag(name)}")
    if run.init_head == "copy":
        raise InputError("--method mlm has no teacher; drop --init-head copy")
