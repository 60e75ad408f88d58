"""Cost of a run, before it starts: operations, time and memory (`train.py --dry-run`).

Operations are counted, two for each multiplication with its addition:

    linear maps     2 N (weights)            on each of the N tokens
    attention       4 width sum_b T_b^2      q k^T and a v, all heads together
    masked-LM head  2 M (C^2 + C V)          on the M predicted tokens

A backward pass costs twice its forward; the teacher has none, and of it only those layers count
that the method runs, and the head where it is run. Where steps differ (MobileBERT's stages) theirs
is the mean over the run. Time is operations over half the speed of a large matrix product measured
on this device. Memory is that of the tensors, counted one by one: on a CPU, where tensors of ragged
batches leave gaps between them, runs of some hundred steps in bf16 have reached four to six times
as much. The measured figures are in log.jsonl.
"""

import time

import torch

from minibio.config import ModelConfig, RunConfig
from minibio.distil.objectives import Objective
from minibio.model.heads import Model
from minibio.run.dist import Ranks
from minibio.run.log import duration
from minibio.text.corpus import Corpus

BYTES = 4  # of a float32: weights, gradients, statistics
SHARE_OF_PEAK = 0.5  # what a training step reaches of a large product's speed; a rule of thumb


def forward_flops(
    model: Model, N: float, M: float, n_pairs: float, depth: int | None = None, predict: bool = True
) -> float:
    """Operations of one forward pass over N tokens, M of them predicted, n_pairs = sum T^2.

    `depth` and `predict` as in `Model.forward`.
    """
    c = model.config
    matrices = (p for name, p in model.encoder.named_parameters() if "layers." in name)
    weights = sum(p.numel() for p in matrices if p.dim() == 2)
    layers = 2 * N * weights + 4 * c.width * n_pairs * c.L
    head = 2 * M * (c.C * c.C + c.C * c.V) if predict else 0
    return layers * (c.L if depth is None else depth) / c.L + head


def step_flops(
    objective: Objective, teacher: Model | None, N: float, M: float, n_pairs: float, step: int
) -> float:
    """Operations of one step of training, forward and backward."""
    objective.set_step(step)
    phase = objective.phase
    flops = 3 * forward_flops(objective.student, N, M, n_pairs, phase, predict=phase is None)
    if teacher is None:
        return flops
    flops += forward_flops(teacher, N, M, n_pairs, objective.needs.depth, objective.needs.head)
    # the teacher's scores of the matched layers, in forward and in backward
    return flops + 2 * 2 * n_pairs * teacher.config.width * len(objective.needs.keep)


def activation_bytes(c: ModelConfig, N: float, M: float) -> float:
    """Bytes that a forward pass keeps for its backward.

    Attention maps are computed again and logits are used at once: neither is kept.
    """
    per_layer = 4 * c.width + 8 * c.C + 2 * c.n_ffn * c.F  # q k v, sums and norms, ffn
    return BYTES * (N * c.L * per_layer + 4 * M * c.C)  # the head: sums, activation, norm


@torch.no_grad()
def products_per_second(device: torch.device, dtype: torch.dtype, n: int = 1024) -> float:
    """Operations a second of an (n, n) x (n, n) product on `device`; the best of a few."""
    a = torch.randn(n, n, device=device, dtype=dtype)
    best = float("inf")
    for _ in range(5):
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        began = time.perf_counter()
        a @ a
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        best = min(best, time.perf_counter() - began)
    return 2 * n**3 / best


def estimate(
    objective: Objective, teacher: Model | None, run: RunConfig, corpus: Corpus, ranks: Ranks
) -> dict[str, str]:
    """The rows that `--dry-run` prints."""
    T = corpus.lengths.clip(max=run.length).astype(float)  # tokens of each document
    N, n_pairs = run.batch * T.mean(), run.batch * (T**2).mean()
    masked = 0.15 * N
    M = N if objective.needs.every_token else masked
    student, c = objective.student, objective.student.config
    some = range(0, run.steps, max(1, run.steps // 100))
    step = sum(step_flops(objective, teacher, N, M, n_pairs, i) for i in some) / len(some)
    objective.set_step(0)
    weights = sum(p.numel() for p in objective.parameters())
    memory = 4 * BYTES * weights  # the weight, its gradient, AdamW's two moments
    memory += activation_bytes(c, N / ranks.world, M / ranks.world)
    if teacher is not None:
        memory += BYTES * teacher.n_parameters
    dtype = torch.bfloat16 if run.precision == "bf16" else torch.float32
    speed = products_per_second(ranks.device, dtype)
    seconds = step / ranks.world / (SHARE_OF_PEAK * speed)
    rows = {
        "student": f"{student.n_parameters:,} parameters, "
        f"{weights - student.n_parameters:,} more while training",
        "tokens": f"{N:,.0f} a step, {masked:,.0f} masked, {N * run.steps:,.0f} in all "
        f"({run.batch * run.steps / len(T):.3g} epochs of {len(T):,} documents)",
        "operations": f"{step / 1e12:.3g} TFLOP a step, {step * run.steps / 1e15:.3g} PFLOP in all",
        "device": f"{speed / 1e12:.3g} TFLOP/s in a large {run.precision} product",
        "time": f"about {duration(seconds)} a step, {duration(seconds * run.steps)} in all "
        f"on {ranks.world} process{'es' * (ranks.world > 1)}",
        "memory": f"at least {memory / 2**30:.2g} GiB a process",
    }
    if teacher is not None:
        rows = {"teacher": f"{teacher.n_parameters:,} parameters, frozen", **rows}
    return rows
