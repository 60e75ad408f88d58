"""Loss and accuracy of a masked language model on documents that it has not read."""

from collections.abc import Sequence

import torch
from torch import Tensor

from kernels.reference import cross_entropy_rows
from minibio.batch import Batch
from minibio.model.heads import Model
from minibio.run import dist, log
from minibio.run.precision import autocast


@torch.no_grad()
def held_out(
    model: Model, batches: Sequence[Batch], ranks: dist.Ranks, precision: str = "fp32"
) -> dict[str, float]:
    """Masked-LM loss (nats per predicted token) and accuracy, over all processes together.

    Args:
        batches: with targets, the same on every process; each takes its share of them.
    Returns:
        "mlm_loss" and "accuracy", the same on every process; the model is left as it was.
    """
    was_training = model.training
    model.eval()
    total = [0.0, 0.0, 0.0]  # loss, right, predicted tokens
    mine = batches[ranks.rank :: ranks.world]
    bar = log.progress(len(mine), "held-out text", ranks, unit="batch", leave=False)
    for batch in mine:
        batch = batch.to(ranks.device)
        with autocast(precision, ranks.device):
            logits: Tensor = model(batch).logits  # (M, V)
        loss = cross_entropy_rows(logits, batch.labels).sum()
        right = (logits.argmax(1) == batch.labels).sum()
        total = [a + b for a, b in zip(total, (loss.item(), right.item(), batch.M), strict=True)]
        bar.update()
    bar.close()
    model.train(was_training)
    loss, right, M = dist.all_sum(total, ranks)
    return {"mlm_loss": loss / max(M, 1), "accuracy": right / max(M, 1)}
