"""The type of a model's products: fp32, bf16 under autocast, or `auto`, the faster one here.

fp64 is to check against: the model itself is converted.
"""

import sys

import torch

from kernels.machine import has_bf16_products
from minibio.run import dist
from minibio.run.dist import Ranks

MEANINGS = ("fp32", "bf16", "fp64")  # what `auto` is not


def resolve(asked: str, ranks: Ranks) -> tuple[str, str]:
    """The precision of a run, and its reason for a reader; the same on every rank.

    `auto` is bf16 where the processor of every rank multiplies bfloat16 itself, and fp32 elsewhere.
    bf16 is taken at its word; where the processor has no such products, a line on stderr says what
    that costs.
    """
    has_it = dist.all_sum([has_bf16_products(ranks.device)], ranks)[0] == ranks.world
    where = "GPU" if ranks.device.type == "cuda" else "processor"
    if asked == "auto":
        reason = f"auto: the {where} {'multiplies' if has_it else 'does not multiply'} bfloat16"
        return "bf16" if has_it else "fp32", reason
    if asked == "bf16" and not has_it and ranks.rank == 0:
        print(
            f"warning: bf16 is asked for, but this {where} does not multiply bfloat16: steps take "
            f"many times as long as in fp32 (15 times with AVX2); pass --precision auto",
            file=sys.stderr,
            flush=True,
        )
    return asked, "as asked for"


def resolve_both(student: str, teacher: str, ranks: Ranks) -> tuple[str, str, str]:
    """The precision of a student, that of its teacher, and the reason for the student's."""
    own, why = resolve(student, ranks)
    if own == "bf16":  # autocast's products are the teacher's too: round it once, not in every step
        return own, own, why
    return own, resolve(teacher, ranks)[0], why


def autocast(precision: str, device: torch.device):
    """The context of a forward pass: bf16 products under fp32 weights and losses, or plain fp32.

    Raises:
        ValueError: `precision` is "auto" still, or unknown.
    """
    if precision not in MEANINGS:
        raise ValueError(f"autocast: precision is {precision!r}, expected {', '.join(MEANINGS)}")
    return torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16")
