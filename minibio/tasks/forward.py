"""A trained model over many examples."""

from collections.abc import Callable, Iterator, Sequence

import torch
import torch.nn as nn
from torch import Tensor

from minibio.batch import Batch


def forward(
    model: nn.Module, examples: Sequence, collate: Callable[[Sequence], Batch], B: int,
    device, autocast,
) -> Iterator[tuple[list[int], Batch, Tensor]]:  # fmt: skip
    """Places of B examples, their batch and its logits, until every example has had its turn.

    Examples of like length share a batch; what comes for one does not depend on the others.

    Args:
        examples: each with its `tokens`.
        autocast: makes the context the model runs in.
    """
    model.eval()
    order = sorted(range(len(examples)), key=lambda i: len(examples[i].tokens))
    for first in range(0, len(order), B):
        chosen = order[first : first + B]
        batch = collate([examples[i] for i in chosen]).to(device)
        with torch.no_grad(), autocast():
            logits = model(batch).logits
        yield chosen, batch, logits
