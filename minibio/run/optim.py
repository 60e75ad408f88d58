"""AdamW with decay on matrices only, and learning rates as a function of the step."""

import math

import torch
import torch.nn as nn

SCHEDULES = ("linear", "cosine", "wsd")


def parameter_groups(module: nn.Module, weight_decay: float) -> list[dict]:
    """Two groups: matrices decay; biases, norms and everything else of one dimension do not.

    Args:
        module: whatever is trained; frozen parameters are left out.
    """
    trained = [p for p in module.parameters() if p.requires_grad]
    return [
        {"params": [p for p in trained if p.dim() >= 2], "weight_decay": weight_decay},
        {"params": [p for p in trained if p.dim() < 2], "weight_decay": 0.0},
    ]


def make_optimizer(
    module: nn.Module,
    lr: float,
    weight_decay: float,
    *,
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-8,
) -> torch.optim.AdamW:
    """AdamW (Loshchilov and Hutter, 2019), as the authors' trainer sets it up (F44).

    Fused: one pass over weights, gradients and moments, the same bits with any number of threads.
    """
    groups = parameter_groups(module, weight_decay)
    return torch.optim.AdamW(groups, lr=lr, betas=betas, eps=eps, fused=True)


def lr_at(step: int, *, peak: float, warmup: int, total: int, schedule: str = "linear") -> float:
    """The learning rate of optimiser step `step`, counted from 0.

        warm-up    peak (step + 1) / warmup        for step < warmup
        linear     peak (1 - x)                    x: share done of what follows the warm-up
        cosine     peak (1 + cos(pi x)) / 2
        wsd        peak, then linear to 0 over the last tenth of the run

    Raises:
        ValueError: unknown schedule.
    """
    if schedule not in SCHEDULES:
        raise ValueError(f"lr_at: schedule is {schedule!r}, expected one of {SCHEDULES}")
    if step < warmup:
        return peak * (step + 1) / warmup
    x = (step - warmup) / max(total - warmup, 1)
    if schedule == "linear":
        return peak * max(1 - x, 0.0)
    if schedule == "cosine":
        return peak * (1 + math.cos(math.pi * min(x, 1.0))) / 2
    return peak * min(1.0, max(total - step, 0) / max(total / 10, 1))
