"""The public functions: `attention`, `attention_kl`, `masked_mlm` and `add_norm`."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from kernels import attention_ops, checks, cuda_rows, mlm_ops, norm_ops, reference
from kernels.dispatch import resolve_impl
from kernels.reference import Decoder, wide_dtype

# ---- attention maps


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
    impl, _ = resolve_impl(op, impl, q.device, q.dtype)
    checks.check_attention(op, {"q": q, "k": k, "v": v}, cu_seqlens, max_len, dropout, keep)
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

    Dropout falls only on the probabilities that multiply V; the divergence is of the whole maps.

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
    impl, _ = resolve_impl(op, impl, q_s.device, q_s.dtype)
    checks.check_attention_kl(
        op, {"q_s": q_s, "k_s": k_s, "v_s": v_s}, {"q_t": q_t, "k_t": k_t}, lse_t,
        divergence, cu_seqlens, max_len, dropout, keep,
    )  # fmt: skip
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
    """The seed of this call's dropout, (1,) int64 on the device; None = nothing is drawn."""
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


# ---- rows of logits


class MaskedLMLosses(NamedTuple):
    """The losses of one call of `masked_mlm`; () each, float32 (float64 for float64)."""

    loss: Tensor  # a_mlm mlm + a_soft soft: the only one with a gradient
    mlm: Tensor  # nats
    soft: Tensor  # nats times T^2


def masked_mlm(
    s: Decoder,
    labels: Tensor | None,
    t: Decoder | None = None,
    *,
    weights: Sequence[float] = (1.0, 1.0),
    temperature: float = 1.0,
    divergence: str = "kl_ts",
    count: float | Tensor | None = None,
    impl: str = "auto",
) -> MaskedLMLosses:
    """Eq. 1 and 2 (or 8), weighted and summed, without ever storing the logits x = h E^T + b.

        loss = a_mlm mlm + a_soft soft
        mlm  = 1 / count  sum_m -ln softmax(x_s)[label]
        soft = 1 / count  sum_m T^2 KL(softmax(x_t / T) || softmax(x_s / T))

    Gradients go to the student's h, E and bias. They are computed in forward, for the sum, so mlm
    and soft are for the log: they have none.

    Args:
        s, t:    `Decoder(h, E, bias)` of student and teacher: h (M, d) float16, bfloat16, float32
                 or float64, the predicted tokens' hidden states, ready for the decoder; E one block
                 (V, d) or two that add up to d, in the type of h; bias (V,) of any floating-point
                 type, or None. Only V is the same on both sides. t None = soft is 0.
        labels:  (M,) int64; -100 = the row counts neither in mlm nor in soft. None = mlm is 0, and
                 every row counts in soft.
        weights: a_mlm, a_soft. With a weight of 0 the term is 0.
        temperature: T of soft, above 0.
        divergence:  "kl_ts" as above (Eq. 2), or "soft_ce", -T^2 sum p_t ln p_s (Eq. 8).
        count:   what the sums are divided by: the rows of all micro-batches and processes, as a
                 number or a tensor of one element. None = this call's rows whose label is not
                 -100. 0 gives 0.
        impl:    "auto", "reference", "torch", "triton", "triton-stream" or "cuda"
                 (`kernels.resolve_impl`).
    Returns:
        `MaskedLMLosses`. M = 0, or nothing counted: 0, with gradients of 0.
    Raises:
        ValueError: shapes, types, devices, labels or options do not fit, or the teacher's tensors
            require a gradient, which they never receive.
    Precision: losses and the gradients of E and bias are summed in float32 (float64 for float64).
        `torch` and `triton-stream` keep logits in float32 as well; `triton` has them rounded to the
        type of h, as a model's own linear layer would.
    """
    op = "masked_mlm"
    impl, _ = resolve_impl(op, impl, s.h.device, type_of_rows(s, t))
    checks.check_mlm(op, s, labels, t, temperature, divergence, weights, count)
    h, dtype = s.h, wide_dtype(s.h)
    is_counted = torch.ones(len(h), dtype=dtype, device=h.device)  # (M,)
    if labels is not None:
        labels = labels.contiguous()
        is_counted = (labels != -100).to(dtype)
    share = share_of(is_counted.sum() if count is None else count, dtype)
    g_ce, g_kd = (weight * is_counted for weight in weights)  # (M,)
    # A gradient of a mean has entries of p / count, which float16 would round to 0: there the
    # division waits until the sums are over.
    is_late = h.dtype == torch.float16
    if not is_late:
        g_ce, g_kd = g_ce * share, g_kd * share
    if impl == "reference":
        with torch.autocast(h.device.type, enabled=False):
            ce, kd = reference.masked_mlm_rows(
                s, t, labels, temperature=temperature, divergence=divergence
            )
        ce, kd = (g_ce * ce).sum(), (g_kd * kd).sum()
        loss = ce + kd
    else:
        loss, ce, kd, *_ = mlm_ops.masked_mlm(
            s.h, [*s.E], s.bias, labels, *((t.h, [*t.E], t.bias) if t else (None, [], None)),
            temperature, divergence, impl, g_ce, g_kd, wanted(s),
        )  # fmt: skip
    if is_late:
        loss, ce, kd = loss * share, ce * share, kd * share
    a_mlm, a_soft = weights
    return MaskedLMLosses(loss, ce.detach() / (a_mlm or 1), kd.detach() / (a_soft or 1))


def type_of_rows(s: Decoder, t: Decoder | None) -> torch.dtype:
    """The type of h, or one of the others' that the row kernel in CUDA does not serve."""
    tensors = (s.h, s.bias, *((t.h, t.bias) if t else ()))
    types = [x.dtype for x in tensors if x is not None]
    return next((dtype for dtype in types if dtype not in cuda_rows.WIDTHS), types[0])


def wanted(s: Decoder) -> list[bool]:
    """Whether gradients are asked for: of h, of E, of bias."""
    parts = ([s.h], s.E, [] if s.bias is None else [s.bias])
    return [torch.is_grad_enabled() and any(x.requires_grad for x in xs) for xs in parts]


def share_of(count: float | Tensor, dtype: torch.dtype) -> float | Tensor:
    """1 / count, or 0 where there is nothing to count; a tensor stays on its device."""
    if isinstance(count, Tensor):
        count = count.to(dtype).reshape(())
        return torch.where(count > 0, 1 / count, 0.0)
    return 1 / count if count else 0.0


# ---- residual sums


def add_norm(
    x: Tensor,
    a: Tensor,
    weight: Tensor,
    bias: Tensor,
    *,
    eps: float,
    dropout: float = 0.0,
    narrow: torch.dtype | None = None,
    impl: str = "auto",
) -> tuple[Tensor, Tensor]:
    """norm(x + dropout(a)), and the same in the type that the next product takes.

    Args:
        x, a:         (N, C) float16, bfloat16, float32 or float64, a no wider than x.
        weight, bias: (C,) of the norm.
        dropout:      share of the entries of a set to zero, by torch's generator.
        narrow:       type of the copy; None = none is made.
        impl:         "auto", "reference", "torch" or "triton" (`kernels.resolve_impl`).
    Returns:
        y (N, C) in the type of x; the copy (N, C), y itself where `narrow` is None. Both have
        gradients.
    Raises:
        ValueError: shapes, devices, `dropout` or `impl` do not fit.
    """
    op = "add_norm"
    impl, _ = resolve_impl(op, impl, x.device)
    checks.check_norm(op, x, a, weight, bias, dropout)
    if impl == "torch":
        return norm_ops.composed(x, a, weight, bias, eps, dropout, narrow)
    if impl == "triton":
        seed = draw_seed(x, dropout, None)
        return norm_ops.fused(x, a, weight, bias, seed, eps, dropout, narrow)
    keep = torch.rand(a.shape, device=a.device) >= dropout if dropout else None
    y = reference.add_norm(x, a, weight, bias, eps=eps, dropout=dropout, keep=keep)
    return y, y if narrow is None else y.to(narrow)
