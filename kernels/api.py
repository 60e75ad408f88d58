"""`attention` and `attention_kl`: the operations on attention maps, and what they refuse."""

import torch
from torch import Tensor

from kernels import attention_ops, reference
from kernels.dispatch import FLOATS, resolve_impl
from kernels.reference import DIVERGENCES

# ---- what is refused


def check_heads(op: str, tensors: dict[str, Tensor]) -> None:
    """Refuse tensors that are not (N, H, D), or not of one shape, dtype and device."""
    (first, x), *others = tensors.items()
    if x.dim() != 3:
        raise ValueError(f"{op}: {first} is {tuple(x.shape)}, expected (N, H, D)")
    if x.dtype not in FLOATS:
        raise ValueError(f"{op}: {first} is {x.dtype}, expected a floating-point type")
    for name, y in others:
        pairs = ((tuple(y.shape), tuple(x.shape)), (y.dtype, x.dtype), (y.device, x.device))
        for got, expected in pairs:
            if got != expected:
                raise ValueError(f"{op}: {name} is {got}, expected {expected} (as {first})")


def check_boundaries(op: str, x: Tensor, cu_seqlens: Tensor, max_len: int) -> None:
    """Refuse boundaries that are none of a row of N tokens."""
    if cu_seqlens.dim() != 1 or not cu_seqlens.numel() or cu_seqlens.dtype not in (
        torch.int32, torch.int64,
    ):  # fmt: skip
        raise ValueError(
            f"{op}: cu_seqlens is {tuple(cu_seqlens.shape)} {cu_seqlens.dtype}, "
            f"expected (B+1,) int32 or int64: one place more than sequences"
        )
    if cu_seqlens.device != x.device:
        raise ValueError(f"{op}: cu_seqlens is on {cu_seqlens.device}, expected {x.device} (as q)")
    # Its values are read only where that does not wait for a device, and not while compiling.
    if torch.compiler.is_compiling() or cu_seqlens.device.type != "cpu":
        return
    places = cu_seqlens.tolist()
    if places[0] != 0 or places[-1] != x.shape[0]:
        raise ValueError(
            f"{op}: cu_seqlens runs from {places[0]} to {places[-1]}, expected from 0 to "
            f"{x.shape[0]}, the tokens of the row"
        )
    lengths = [b - a for a, b in zip(places, places[1:], strict=False)]
    if any(T < 0 for T in lengths):
        i = next(i for i, T in enumerate(lengths) if T < 0)
        raise ValueError(
            f"{op}: cu_seqlens falls from {places[i]} to {places[i + 1]} at {i + 1}, expected "
            f"places that never decrease"
        )
    if max(lengths, default=0) > max_len:
        raise ValueError(
            f"{op}: max_len is {max_len}, expected at least {max(lengths)}, the longest sequence"
        )


def check_dropout(op: str, x: Tensor, max_len: int, dropout: float, keep: Tensor | None) -> None:
    """Refuse a share that cannot be made good by scaling what is left, and bits that do not fit."""
    if not 0 <= dropout < 1:
        raise ValueError(f"{op}: dropout is {dropout}, expected at least 0 and below 1")
    if keep is None:
        return
    if keep.dtype != torch.uint8 or keep.device != x.device:
        raise ValueError(
            f"{op}: keep is {keep.dtype} on {keep.device}, expected torch.uint8 on {x.device}"
        )
    N, H, _ = x.shape
    if keep.dim() != 3 or keep.shape[:2] != (N, H) or keep.shape[2] < -(-max_len // 8):
        raise ValueError(
            f"{op}: keep is {tuple(keep.shape)}, expected ({N}, {H}, {-(-max_len // 8)}): "
            f"a bit for each key of the longest sequence, {max_len}"
        )


def check_teacher(op: str, x: Tensor, teacher: dict[str, Tensor], lse_t: Tensor | None) -> None:
    """Refuse a teacher whose maps are not the student's in shape, or that is not frozen."""
    check_heads(op, teacher)
    q_t = teacher["q_t"]
    if q_t.device != x.device:
        raise ValueError(f"{op}: q_t is on {q_t.device}, expected {x.device} (as q_s)")
    if q_t.shape[0] != x.shape[0]:
        raise ValueError(f"{op}: q_t has {q_t.shape[0]} tokens, expected {x.shape[0]} (as q_s)")
    if q_t.shape[1] != x.shape[1]:
        raise ValueError(
            f"{op}: q_t has {q_t.shape[1]} heads, expected {x.shape[1]} (as q_s); "
            f"maps are compared head by head"
        )
    if lse_t is not None and (lse_t.shape != x.shape[:2] or lse_t.device != x.device):
        raise ValueError(
            f"{op}: lse_t is {tuple(lse_t.shape)} on {lse_t.device}, "
            f"expected {tuple(x.shape[:2])} on {x.device}"
        )
    for what, y in (*teacher.items(), ("lse_t", lse_t)):
        if y is not None and y.requires_grad:
            raise ValueError(
                f"{op}: {what} requires a gradient, expected a frozen teacher; detach it"
            )


# ---- the operations


def attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cu_seqlens: Tensor,
    max_len: int,
    *,
    dropout: float = 0.0,
    keep: Tensor | None = None,
    scale: float | None = None,
    impl: str = "auto",
) -> tuple[Tensor, Tensor]:
    """Attention of every sequence of the row to itself: dropout(softmax(scale q k^T)) v.

    Args:
        q, k, v:    (N, H, D) float16, bfloat16, float32 or float64; any strides.
        cu_seqlens: (B+1,) integer, from 0 to N, on the tensors' device.
        max_len:    tokens of the longest sequence, on the host, so that nothing waits for the
                    device. On a GPU neither is checked against the other.
        dropout:    share of the probabilities set to zero, by torch's generator.
        keep:       (N, H, ceil(max_len / 8)) uint8, the probabilities that stay, bit by bit
                    (`reference.attention`), in place of ones drawn here; `dropout` then is the
                    share that the others are scaled by.
        scale:      of the scores; default 1 / sqrt(D).
    Returns:
        out (N, H, D) in the dtype of q; lse (N, H), the log-sum-exp of each row of scores in nats,
        float32 (float64 for float64), without a gradient.
    Raises:
        ValueError: shapes, dtypes, devices, boundaries, `dropout`, `keep` or `impl` do not fit.
    """
    op = "attention"
    impl, _ = resolve_impl(op, impl, q.device)
    check_heads(op, {"q": q, "k": k, "v": v})
    check_boundaries(op, q, cu_seqlens, max_len)
    check_dropout(op, q, max_len, dropout, keep)
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    seed = draw_seed(q, dropout, keep)
    if impl == "reference":
        keep = reference_mask(q, max_len, dropout, keep, seed)
        with torch.autocast(q.device.type, enabled=False):
            out, lse = reference.attention(
                q, k, v, cu_seqlens, scale=scale, dropout=dropout, keep=keep
            )
        return out, lse.detach()
    out, _, lse, _, _ = attention_ops.pick(q, k, v)(
        q, k, v, None, None, None, keep, seed, cu_seqlens, max_len, "none", dropout, scale, 1.0,
        impl,
    )  # fmt: skip
    return out, lse


def attention_kl(
    q_s: Tensor,
    k_s: Tensor,
    v_s: Tensor,
    q_t: Tensor,
    k_t: Tensor,
    cu_seqlens: Tensor,
    max_len: int,
    *,
    divergence: str,
    lse_t: Tensor | None = None,
    dropout: float = 0.0,
    keep: Tensor | None = None,
    scale_s: float | None = None,
    scale_t: float | None = None,
    impl: str = "auto",
) -> tuple[Tensor, Tensor, Tensor]:
    """`attention` of the student, and the divergence of its maps from the teacher's, row by row.

    Dropout falls on the probabilities that multiply V alone; the divergence is of the whole maps.

    Args:
        q_s, k_s, v_s:    (N, H, D_s), as for `attention`.
        q_t, k_t:         (N, H, D_t) of a frozen teacher; width and dtype may differ from the
                          student's, the number of heads may not.
        divergence:       one of `DIVERGENCES`; see `reference.row_divergence`.
        lse_t:            (N, H) what `attention` gave for the teacher's row, if it is at hand: it
                          saves an exponential for each entry of the map.
        scale_s, scale_t: of the scores; default 1 / sqrt(D) of each.
        cu_seqlens, max_len, dropout, keep: as for `attention`.
    Returns:
        out (N, H, D_s) in the dtype of q_s; row_loss (N, H), summed over keys, float32 (float64
        for float64), nats for the two KL, each row with a gradient of its own; lse_s (N, H).
    Raises:
        ValueError: shapes, heads, dtypes, devices, boundaries, `divergence`, `dropout`, `keep` or
            `impl` do not fit, or the teacher's tensors require a gradient, which they never
            receive.
    """
    op = "attention_kl"
    impl, _ = resolve_impl(op, impl, q_s.device)
    if divergence not in DIVERGENCES:
        raise ValueError(
            f"{op}: divergence is {divergence!r}, expected one of {', '.join(DIVERGENCES)}"
        )
    check_heads(op, {"q_s": q_s, "k_s": k_s, "v_s": v_s})
    check_teacher(op, q_s, {"q_t": q_t, "k_t": k_t}, lse_t)
    check_boundaries(op, q_s, cu_seqlens, max_len)
    check_dropout(op, q_s, max_len, dropout, keep)
    scale_s = q_s.shape[-1] ** -0.5 if scale_s is None else scale_s
    scale_t = q_t.shape[-1] ** -0.5 if scale_t is None else scale_t
    seed = draw_seed(q_s, dropout, keep)
    if impl == "reference":
        keep = reference_mask(q_s, max_len, dropout, keep, seed)
        with torch.autocast(q_s.device.type, enabled=False):
            out, rows, lse = reference.attention_kl(
                q_s, k_s, v_s, q_t, k_t, cu_seqlens, divergence=divergence, scale_s=scale_s,
                scale_t=scale_t, dropout=dropout, keep=keep,
            )  # fmt: skip
        return out, rows, lse.detach()
    out, rows, lse, _, _ = attention_ops.pick(q_s, k_s, v_s)(
        q_s, k_s, v_s, q_t, k_t, lse_t, keep, seed, cu_seqlens, max_len, divergence, dropout,
        scale_s, scale_t, impl,
    )  # fmt: skip
    return out, rows, lse


def draw_seed(x: Tensor, dropout: float, keep: Tensor | None) -> Tensor | None:
    """What this call's dropout follows from, (1,) int64 on the device; None = nothing is drawn."""
    if not dropout or keep is not None:
        return None
    return torch.randint(2**62, (1,), device=x.device)


def reference_mask(
    x: Tensor, max_len: int, dropout: float, keep: Tensor | None, seed: Tensor | None
) -> Tensor | None:
    """The bits of the reference's dropout: drawn whole, since there every map is formed whole."""
    if seed is None:
        return keep
    generator = torch.Generator(x.device).manual_seed(int(seed))
    numbers = torch.rand(*x.shape[:2], max_len, generator=generator, device=x.device)
    return reference.pack_bits(numbers >= dropout)
