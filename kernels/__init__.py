"""The operations on attention maps and on rows of logits, and the choice of implementation.

    attention       the output of one attention layer
    attention_kl    the same, and the divergence of each row of its maps from a teacher's
    masked_mlm      the losses of the masked-LM head, from hidden states
    add_norm        the norm of a residual sum, with dropout and a copy for the next product

Each has several implementations. `reference` is the definition (kernels/reference.py); `torch`
needs no kernel of ours; `triton` is for GPUs, and so are `cuda`, in CUDA C++, and `triton-stream`
of masked_mlm. `impl="auto"` chooses; `resolve_impl` gives the choice and its reason. Nothing here
imports Triton before it is used, and nothing here knows of models or training.

Precision is that of the tensors given: an autocast region around a call changes nothing inside it.
"""

from kernels.api import MaskedLMLosses, add_norm, attention, attention_kl, masked_mlm
from kernels.dispatch import IMPLEMENTATIONS, parse_choice, resolve_choice, resolve_impl
from kernels.reference import DIVERGENCES, Decoder

__all__ = [
    "DIVERGENCES", "IMPLEMENTATIONS", "Decoder", "MaskedLMLosses", "add_norm", "attention",
    "attention_kl", "masked_mlm", "parse_choice", "resolve_choice", "resolve_impl",
]  # fmt: skip
