"""The operations that touch attention maps, and the choice of implementation.

    attention       what a layer computes
    attention_kl    the same, and how far each row of its maps is from a teacher's

`reference` is the definition (kernels/reference.py); `torch` and `padded` are the fast ways in
plain PyTorch (kernels/torch_attention.py). `impl="auto"` chooses; `resolve_impl` says what it chose
and why. Nothing here imports Triton, and nothing here knows of models or training.

Precision is that of the tensors given: an autocast region around a call changes nothing inside it.
"""

from collections.abc import Sequence
from itertools import accumulate

import torch
from torch import Tensor

from kernels import reference, torch_attention
from kernels.reference import DIVERGENCES

IMPLEMENTATIONS = {
    "attention": ("reference", "torch", "padded"),
    "attention_kl": ("reference", "torch"),
}


def resolve_impl(op: str, impl: str, device: torch.device) -> tuple[str, str]:
    """(implementation, reason) for `op` on `device`.

    Raises:
        ValueError: there is no such operation, or it has no such implementation.
    """
    if op not in IMPLEMENTATIONS:
        raise ValueError(
            f"resolve_impl: op is {op!r}, expected one of {', '.join(IMPLEMENTATIONS)}"
        )
    if impl != "auto":
        if impl not in IMPLEMENTATIONS[op]:
            raise ValueError(
                f"{op}: impl is {impl!r}, expected auto, {', '.join(IMPLEMENTATIONS[op])}"
            )
        return impl, "asked for"
    if op == "attention_kl":
        return "torch", f"maps of a few sequences at a time (tensors on {device.type})"
    if device.type == "cuda":
        return "padded", "one call a batch, since calls cost more than padding (tensors on cuda)"
    return "torch", f"one call a run of equal lengths, no padding (tensors on {device.type})"


def check_row(
    op: str, tensors: dict[str, Tensor], cu_seqlens: Tensor, lengths: Sequence[int]
) -> None:
    """Refuse tensors that are no row of these sequences, all of one shape, dtype and device."""
    (first, x), *others = tensors.items()
    if any(T < 0 for T in lengths):
        raise ValueError(f"{op}: lengths has {min(lengths)}, expected none below 0")
    if x.dim() != 3 or x.shape[0] != sum(lengths):
        raise ValueError(
            f"{op}: {first} is {tuple(x.shape)}, expected (N, H, D) with N = {sum(lengths)}, "
            f"the sum of lengths"
        )
    if not x.is_floating_point():
        raise ValueError(f"{op}: {first} is {x.dtype}, expected a floating-point type")
    for name, y in others:
        pairs = ((tuple(y.shape), tuple(x.shape)), (y.dtype, x.dtype), (y.device, x.device))
        for got, expected in pairs:
            if got != expected:
                raise ValueError(f"{op}: {name} is {got}, expected {expected} (as {first})")
    if cu_seqlens.shape != (len(lengths) + 1,) or cu_seqlens.is_floating_point():
        raise ValueError(
            f"{op}: cu_seqlens is {tuple(cu_seqlens.shape)} {cu_seqlens.dtype}, "
            f"expected ({len(lengths) + 1},) of an integer type: one place more than sequences"
        )
    if cu_seqlens.device != x.device:
        raise ValueError(
            f"{op}: cu_seqlens is on {cu_seqlens.device}, expected {x.device} (as {first})"
        )
    # only where reading it does not wait for the device
    if x.device.type == "cpu" and cu_seqlens.tolist() != [0, *accumulate(lengths)]:
        raise ValueError(
            f"{op}: cu_seqlens is {cu_seqlens.tolist()}, expected {[0, *accumulate(lengths)]}, "
            f"the running sum of lengths"
        )


def check_dropout(op: str, dropout: float) -> None:
    """Refuse a share that cannot be made good by scaling what is left."""
    if not 0 <= dropout < 1:
        raise ValueError(f"{op}: dropout is {dropout}, expected at least 0 and below 1")


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
    """Attention of every sequence of the row to itself: dropout(softmax(q k^T / sqrt(D))) v.

    Args:
        q, k, v:    (N, H, D) float16, bfloat16, float32 or float64; any strides.
        cu_seqlens: (B+1,) integer, from 0 to N, on the tensors' device.
        lengths:    the same boundaries as B host integers, so that nothing waits for the device.
        dropout:    share of the probabilities set to zero, drawn from torch's generator.
    Returns:
        (N, H, D) in the dtype of q.
    Raises:
        ValueError: shapes, dtypes, devices, boundaries, `dropout` or `impl` do not fit.
    """
    name, _ = resolve_impl("attention", impl, q.device)
    check_row("attention", {"q": q, "k": k, "v": v}, cu_seqlens, lengths)
    check_dropout("attention", dropout)
    with torch.autocast(q.device.type, enabled=False):
        if name == "reference":
            return reference.attention(q, k, v, cu_seqlens, dropout=dropout)[0]
        if name == "padded":
            return torch_attention.padded_attention(q, k, v, cu_seqlens, lengths, dropout=dropout)
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
    """`attention` of the student, and the divergence of its maps from the teacher's, row by row.

    Dropout falls on the probabilities that multiply V alone; the divergence is of the whole maps.

    Args:
        q_s, k_s, v_s: (N, H, D_s), as for `attention`.
        q_t, k_t:      (N, H, D_t) of a frozen teacher; width and dtype may differ from the
                       student's, the number of heads may not.
        cu_seqlens, lengths, dropout: as for `attention`.
        divergence:    one of `DIVERGENCES`; see `reference.row_divergence`.
    Returns:
        out (N, H, D_s) in the dtype of q_s; row_loss (N, H), summed over keys, float32 (float64
        for float64), nats for the two KL.
    Raises:
        ValueError: shapes, heads, dtypes, devices, boundaries, `divergence`, `dropout` or `impl`
            do not fit, or the teacher's tensors require a gradient, which they never receive.
    """
    op, teacher = "attention_kl", {"q_t": q_t, "k_t": k_t}
    name, _ = resolve_impl(op, impl, q_s.device)
    if divergence not in DIVERGENCES:
        raise ValueError(
            f"{op}: divergence is {divergence!r}, expected one of {', '.join(DIVERGENCES)}"
        )
    check_row(op, {"q_s": q_s, "k_s": k_s, "v_s": v_s}, cu_seqlens, lengths)
    if q_t.device != q_s.device:
        raise ValueError(f"{op}: q_t is on {q_t.device}, expected {q_s.device} (as q_s)")
    check_row(op, teacher, cu_seqlens, lengths)
    check_dropout(op, dropout)
    if q_t.shape[1] != q_s.shape[1]:
        raise ValueError(
            f"{op}: q_t has {q_t.shape[1]} heads, expected {q_s.shape[1]} (as q_s); "
            f"maps are compared head by head"
        )
    for what, x in teacher.items():
        if x.requires_grad:
            raise ValueError(
                f"{op}: {what} requires a gradient, expected a frozen teacher; detach it"
            )
    tensors = (q_s, k_s, v_s, q_t, k_t)
    with torch.autocast(q_s.device.type, enabled=False):
        if name == "reference":
            out, rows, _ = reference.attention_kl(
                *tensors, cu_seqlens, divergence=divergence, dropout=dropout
            )
            return out, rows
        return torch_attention.attention_kl(
            *tensors, lengths, divergence=divergence, dropout=dropout
        )
