"""The operations on attention maps and on rows of logits, and the choice of implementation.

    attention       what a layer computes
    attention_kl    the same, and how far each row of its maps is from a teacher's
    masked_mlm      the losses of the masked-LM head, from hidden states

Each exists several times. `reference` is the definition (kernels/reference.py); `torch` needs no
kernel of ours; `triton` is for GPUs, and so are `triton-stream` and `cuda` of masked_mlm, the ends
of its design space. `impl="auto"` chooses; `resolve_impl` says what it chose and why. Nothing here
imports Triton before it is used, and nothing here knows of models or training.

Precision is that of the tensors given: an autocast region around a call changes nothing inside it.
"""

from kernels.api import attention, attention_kl
from kernels.dispatch import IMPLEMENTATIONS, resolve_impl
from kernels.mlm import masked_mlm
from kernels.reference import DIVERGENCES

__all__ = [
    "DIVERGENCES", "IMPLEMENTATIONS", "attention", "attention_kl", "masked_mlm", "resolve_impl",
]  # fmt: skip
