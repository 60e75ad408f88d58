"""The operations that touch attention maps, and the choice of implementation.

    attention       what a layer computes
    attention_kl    the same, and how far each row of its maps is from a teacher's

`reference` is the definition (kernels/reference.py); `torch` is the fast way without a kernel of
our own. `impl="auto"` chooses; `resolve_impl` says what it chose and why. Nothing here imports
Triton, and nothing here knows of models or training.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from kernels import reference, torch_attention
from kernels.reference import DIVERGENCES

IMPLEMENTATIONS = {
    "attention": ("reference", "torch"),
    "attention_kl": ("reference", "torch"),
}


def resolve_impl(op: str, impl: str, device: torch.device) -> tuple[str, str]:
    """(implementation, reason) for `op` on `device`.

    Raises:
        ValueError: `op` has no such implementation.
    """
    if impl == "auto":
        return "torch", f"PyTorch's own attention (tensors on {device.type})"
    if impl not in IMPLEMENTATIONS[op]:
        raise ValueError(
            f"{op}: impl is {impl!r}, expected auto or one of {', '.join(IMPLEMENTATIONS[op])}"
        )
    return impl, "asked for"


def check_row(op: str, tensors: dict[str, Tensor], lengths: Sequence[int]) -> None:
    """Shapes, dtypes and devices that an operation on one row needs."""
    first, x = next(iter(tensors.items()))
    N, H = sum(lengths), x.shape[1] if x.dim() == 3 else None
    for name, y in tensors.items():
        if y.dim() != 3 or y.shape[0] != N:
            raise ValueError(
                f"{op}: {name} is {tuple(y.shape)}, expected (N, H, D) with N = {N}, "
                f"the sum of lengths"
            )
        if y.shape[1] != H:
            raise ValueError(f"{op}: {name} has {y.shape[1]} heads, expected {H} (as {first})")
        if y.device != x.device:
            raise ValueError(f"{op}: {name} is on {y.device}, expected {x.device} (as {first})")
    if any(T < 0 for T in lengths):
        raise ValueError(f"{op}: lengths has {min(lengths)}, expected none below 0")


def attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cu_seqlens: Tensor,
    lengths: Sequence[int],
    *,
    dropout: float = 0.0,
    impl: str = "auto",
) -> Tensor:
    """Attention of every sequence of the row to itself.

    Args:
        q, k, v:    (N, H, D), one dtype.
        cu_seqlens: (B+1,) integer, from 0 to N, on the tensors' device.
        lengths:    the same boundaries as B host integers, so that nothing waits for the device.
        dropout:    on the probabilities; drawn from torch's generator.
    Returns:
        (N, H, D).
    Raises:
        ValueError: shapes, devices or `impl` do not fit.
    """
    check_row("attention", {"q": q, "k": k, "v": v}, lengths)
    name, _ = resolve_impl("attention", impl, q.device)
    if name == "reference":
        return reference.attention(q, k, v, cu_seqlens, dropout=dropout)[0]
    return torch_attention.attention(q, k, v, lengths, dropout=dropout)


def attention_kl(
    q_s: Tensor,
    k_s: Tensor,
    v_s: Tensor,
    q_t: Tensor,
    k_t: Tensor,
    cu_seqlens: Tensor,
    lengths: Sequence[int],
    *,
    divergence: str,
    dropout: float = 0.0,
    impl: str = "auto",
) -> tuple[Tensor, Tensor]:
    """`attention` of the student, and the divergence of its map from the teacher's, row by row.

    Args:
        q_s, k_s, v_s: (N, H, D_s).
        q_t, k_t:      (N, H, D_t) of a frozen teacher; the widths may differ, the heads may not.
        divergence:    one of `DIVERGENCES`; see `reference.row_divergence`.
    Returns:
        out (N, H, D_s); row_loss (N, H), summed over keys, float32 (float64 for float64).
    Raises:
        ValueError: shapes, heads, devices, `divergence` or `impl` do not fit, or the teacher's
            tensors require a gradient, which they never receive.
    """
    if divergence not in DIVERGENCES:
        raise ValueError(
            f"attention_kl: divergence is {divergence!r}, expected one of {', '.join(DIVERGENCES)}"
        )
    teacher = {"q_t": q_t, "k_t": k_t}
    check_row("attention_kl", {"q_s": q_s, "k_s": k_s, "v_s": v_s, **teacher}, lengths)
    for name, x in teacher.items():
        if x.requires_grad:
            raise ValueError(
                f"attention_kl: {name} requires a gradient, expected a frozen teacher; detach it"
            )
    name, _ = resolve_impl("attention_kl", impl, q_s.device)
    if name == "reference":
        out, rows, _ = reference.attention_kl(
            q_s, k_s, v_s, q_t, k_t, cu_seqlens, divergence=divergence, dropout=dropout
        )
        return out, rows
    out = torch_attention.attention(q_s, k_s, v_s, lengths, dropout=dropout)
    return out, torch_attention.row_losses(q_s, k_s, q_t, k_t, lengths, divergence=divergence)
