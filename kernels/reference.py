"""The definitions: what every kernel has to compute, in a dozen lines each. Read this first.

Plain PyTorch, nothing clever: the test of every faster implementation, and the first thing taught.
float64 stays float64, which is what makes `gradcheck` mean something; everything narrower is
computed in float32 and rounded once at the end.

A row of N tokens holds B sequences; `cu_seqlens (B+1,)` says where each begins. Attention never
crosses a boundary, so every function here walks over the sequences one by one.
"""

from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

DIVERGENCES = ("kl_st", "kl_ts", "mse_maps")


def wide(x: Tensor) -> Tensor:
    """float64 as it is, anything narrower as float32."""
    return x if x.dtype == torch.float64 else x.float()


def attention_scores(q: Tensor, k: Tensor, scale: float | None = None) -> Tensor:
    """Scaled scores of one sequence, z = scale q k^T.

    Args:
        q, k:  (T, H, D).
        scale: default 1 / sqrt(D).
    Returns:
        (H, T, T); row i holds query i's score of every key.
    """
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    return torch.einsum("ihd,jhd->hij", wide(q), wide(k)) * scale


def row_divergence(z_s: Tensor, z_t: Tensor, divergence: str) -> Tensor:
    """Divergence of two attention rows, summed over keys.

        kl_st      sum_j a_s ln(a_s / a_t)     Eq. 10, 12     nats
        kl_ts      sum_j a_t ln(a_t / a_s)     as released    nats
        mse_maps   sum_j (a_s - a_t)^2         Eq. 6          no unit

    with a = softmax(z).

    Args:
        z_s, z_t: (..., T) scaled scores of student and teacher.
    Returns:
        (...): one number a row.
    """
    log_a_s, log_a_t = z_s.log_softmax(-1), z_t.log_softmax(-1)
    if divergence == "kl_st":
        return (log_a_s.exp() * (log_a_s - log_a_t)).sum(-1)
    if divergence == "kl_ts":
        return (log_a_t.exp() * (log_a_t - log_a_s)).sum(-1)
    if divergence == "mse_maps":
        return (log_a_s.exp() - log_a_t.exp()).square().sum(-1)
    raise ValueError(f"row_divergence: divergence is {divergence!r}, expected one of {DIVERGENCES}")


def spans(cu_seqlens: Tensor) -> list[slice]:
    """The sequences of a row, as slices of it."""
    return [slice(a, b) for a, b in pairwise(cu_seqlens.tolist())]


def pack_bits(is_kept: Tensor) -> Tensor:
    """(..., T) bool -> (..., ceil(T / 8)) uint8; bit j % 8 of byte j // 8 is entry j."""
    T = is_kept.shape[-1]
    x = F.pad(is_kept, (0, -T % 8)).unflatten(-1, (-1, 8)).to(torch.uint8)
    return (x << torch.arange(8, dtype=torch.uint8, device=x.device)).sum(-1, dtype=torch.uint8)


def unpack_bits(bits: Tensor, T: int) -> Tensor:
    """Inverse of `pack_bits`: (..., at least ceil(T / 8)) uint8 -> (..., T) bool."""
    shifts = torch.arange(8, dtype=torch.uint8, device=bits.device)
    return ((bits[..., None] >> shifts) & 1).flatten(-2)[..., :T] != 0


def drop(a: Tensor, keep: Tensor | None, s: slice, dropout: float) -> Tensor:
    """Dropout on one sequence's map: (H, T, T), with the bits of the whole row -> (H, T, T)."""
    if keep is None:
        return a
    is_kept = unpack_bits(keep[s], a.shape[-1]).transpose(0, 1)  # (H, T, T)
    return a * is_kept / (1 - dropout)


def attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cu_seqlens: Tensor,
    *,
    scale: float | None = None,
    dropout: float = 0.0,
    keep: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """out = dropout(softmax(scale q k^T)) v, sequence by sequence (Vaswani et al., 2017).

    Args:
        q, k, v:    (N, H, D).
        cu_seqlens: (B+1,) integer, from 0 to N.
        dropout:    share of the probabilities set to zero; the others grow by 1 / (1 - dropout).
        keep:       (N, H, ceil(T_max / 8)) uint8, the bits of the probabilities that stay: byte
                    j // 8, bit j % 8 is key j of the row's own sequence. None = all of them.
    Returns:
        out (N, H, D) in q's dtype; lse (N, H), the log-sum-exp of each row of scores, in nats.
    """
    out, lse = [wide(q[:0])], [wide(q[:0, :, 0])]  # an empty row has a result too
    for s in spans(cu_seqlens):
        z = attention_scores(q[s], k[s], scale)  # (H, T, T)
        a = drop(z.softmax(-1), keep, s, dropout)  # (H, T, T)
        out.append(torch.einsum("hij,jhd->ihd", a, wide(v[s])))  # (T, H, D)
        lse.append(z.logsumexp(-1).T)  # (T, H)
    return torch.cat(out).to(q.dtype), torch.cat(lse)


def attention_kl(
    q_s: Tensor,
    k_s: Tensor,
    v_s: Tensor,
    q_t: Tensor,
    k_t: Tensor,
    cu_seqlens: Tensor,
    *,
    divergence: str,
    scale_s: float | None = None,
    scale_t: float | None = None,
    dropout: float = 0.0,
    keep: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """The student's attention, and how far each row of its maps is from the teacher's.

    Dropout falls only on the probabilities that multiply V; the divergence is of the maps before
    it, else two equal models would differ.

    Args:
        q_s, k_s, v_s: (N, H, D_s).
        q_t, k_t:      (N, H, D_t); the widths may differ, the heads may not.
        divergence:    one of `DIVERGENCES`.
    Returns:
        out (N, H, D_s); row_loss (N, H), summed over keys; lse_s (N, H) in nats.
    """
    out, rows, lse = [wide(q_s[:0])], [wide(q_s[:0, :, 0])], [wide(q_s[:0, :, 0])]
    for s in spans(cu_seqlens):
        z_s = attention_scores(q_s[s], k_s[s], scale_s)  # (H, T, T)
        z_t = attention_scores(q_t[s], k_t[s], scale_t).to(z_s.dtype)  # (H, T, T)
        a_s = drop(z_s.softmax(-1), keep, s, dropout)  # (H, T, T)
        out.append(torch.einsum("hij,jhd->ihd", a_s, wide(v_s[s])))  # (T, H, D_s)
        rows.append(row_divergence(z_s, z_t, divergence).T)  # (T, H)
        lse.append(z_s.logsumexp(-1).T)  # (T, H)
    return torch.cat(out).to(q_s.dtype), torch.cat(rows), torch.cat(lse)


def drop_threshold(p: float) -> int:
    """Dropout takes an entry whose 16 random bits are below this, so p is exact to 1/65536."""
    return min(round(p * 2**16), 2**16 - 1)


class Call(NamedTuple):
    """One call of attention, as the implementations with a backward of their own are given it.

    Strides are any, but for the last, which is 1.
    """

    q: Tensor  # (N, H, D)
    k: Tensor  # (N, H, D)
    v: Tensor  # (N, H, D)
    q_t: Tensor | None  # (N, H, D_t), the teacher's
    k_t: Tensor | None  # (N, H, D_t)
    keep: Tensor | None  # (N, H, ceil(T_max / 8)) uint8: dropout's mask, or
    seed: Tensor | None  # (1,) int64: what it follows from
    cu_seqlens: Tensor  # (B+1,)
    max_len: int  # tokens of the longest sequence
    divergence: str  # one of DIVERGENCES, or "none"
    dropout: float
    scale: float
    scale_t: float

    @property
    def has_teacher(self) -> bool:
        """Whether there is a divergence to compute."""
        return self.divergence != "none"


class Forward(NamedTuple):
    """Results of a forward pass; a tensor without elements means that there is none."""

    out: Tensor  # (N, H, D)
    row_loss: Tensor  # (N, H), with a divergence
    lse: Tensor  # (N, H) nats
    lse_t: Tensor  # (N, H), where it was needed and not given
    stat: Tensor  # (N, H) sum_j a_s (a_s - a_t), for "mse_maps": what its backward needs

    @classmethod
    def blank(cls, x: Call, lse_t: Tensor | None) -> "Forward":
        """Memory for the results of `x`; rows are float32, float64 for float64."""
        dtype = torch.float64 if x.q.dtype == torch.float64 else torch.float32

        def rows(is_there):
            shape = x.q.shape[:2] if is_there else (0,)
            return torch.empty(shape, dtype=dtype, device=x.q.device)

        return cls(
            out=torch.empty(x.q.shape, dtype=x.q.dtype, device=x.q.device),
            row_loss=rows(x.has_teacher),
            lse=rows(True),
            lse_t=rows(x.has_teacher and lse_t is None),
            stat=rows(x.divergence == "mse_maps"),
        )


def cross_entropy_rows(x: Tensor, labels: Tensor) -> Tensor:
    """-ln softmax(x)[label], nats.  x: (M, V), labels: (M,), -100 = ignored, 0 -> (M,)."""
    log_p = wide(x).log_softmax(-1)  # (M, V)
    is_counted = labels != -100  # (M,)
    picked = log_p.gather(1, labels.where(is_counted, 0)[:, None]).squeeze(1)  # (M,)
    return -picked.where(is_counted, 0.0)


def soft_cross_entropy_rows(x_s: Tensor, x_t: Tensor, temperature: float = 1.0) -> Tensor:
    """-T^2 sum_v p_t ln p_s, with p = softmax(x / T), nats.  (M, V) twice -> (M,).

    A word with p_t = 0 adds nothing, as in `kl_rows`.
    """
    p_t = (wide(x_t) / temperature).softmax(-1)  # (M, V)
    log_p_s = (wide(x_s) / temperature).log_softmax(-1)  # (M, V)
    return -(p_t * log_p_s.where(p_t > 0, 0.0)).sum(-1) * temperature**2


def kl_rows(x_s: Tensor, x_t: Tensor, temperature: float = 1.0) -> Tensor:
    """T^2 KL(p_t || p_s), with p = softmax(x / T), nats.  (M, V) twice -> (M,).

    T^2 keeps the gradient's size whatever the temperature (Hinton et al., 2015). Words with p_t = 0
    add nothing (0 ln 0 = 0): a teacher's logit of -inf takes its word out of the sum.
    """
    log_p_t = (wide(x_t) / temperature).log_softmax(-1)  # (M, V)
    log_p_s = (wide(x_s) / temperature).log_softmax(-1)  # (M, V)
    p_t = log_p_t.exp()
    return (p_t * (log_p_t - log_p_s).where(p_t > 0, 0.0)).sum(-1) * temperature**2


ROW_DIVERGENCES = ("kl_ts", "soft_ce")  # of rows of logits: Eq. 2, Eq. 8


class Decoder(NamedTuple):
    """A masked-LM head before its last product: logits x = h [E_1 | E_2]^T + bias.

    MobileBERT's decoder has two blocks, the tied table and columns of its own; the others have one.
    """

    h: Tensor  # (M, d)
    E: Sequence[Tensor]  # (V, d), or (V, d_1) and (V, d_2) with d_1 + d_2 = d
    bias: Tensor | None  # (V,)

    def pairs(self) -> list[tuple[Tensor, Tensor]]:
        """h cut as the blocks are, and the blocks: (M, d_i) and (V, d_i)."""
        return [*zip(self.h.split([E.shape[1] for E in self.E], dim=1), self.E, strict=True)]

    def to(self, dtype: torch.dtype) -> "Decoder":
        """The operands of the product in another type; the bias is added to its result."""
        return Decoder(self.h.to(dtype), [E.to(dtype) for E in self.E], self.bias)

    def detach(self) -> "Decoder":
        """The same without a gradient: a teacher's."""
        bias = None if self.bias is None else self.bias.detach()
        return Decoder(self.h.detach(), [E.detach() for E in self.E], bias)

    def logits(self) -> Tensor:
        """(M, V), all of them at once."""
        (h, E), *others = self.pairs()
        bias = None if self.bias is None else self.bias.to(h.dtype)
        x = F.linear(h, E, bias)  # (M, d_1) x (d_1, V) -> (M, V)
        for h, E in others:
            x = x + h @ E.T
        return x


class Result(NamedTuple):
    """Loss of each row, and the gradients asked for of sum(g_ce ce + g_kd kd)."""

    ce: Tensor  # (M,) nats
    kd: Tensor  # (M,) nats
    dh: Tensor | None  # (M, d)
    dE: list[Tensor]  # as the student's E; empty if not wanted
    db: Tensor | None  # (V,)


def wide_dtype(x: Tensor) -> torch.dtype:
    """The type of `wide(x)`, in which losses and sums over rows are kept."""
    return torch.float64 if x.dtype == torch.float64 else torch.float32


def masked_mlm_rows(
    s: Decoder, t: Decoder | None, labels: Tensor | None, *, temperature: float, divergence: str
) -> tuple[Tensor, Tensor]:
    """Loss of each predicted token: cross-entropy of its label, divergence from the teacher.

    Args:
        s, t:       student and teacher; t None = kd is 0.
        labels:     (M,), None = ce is 0; where one is -100 both are 0.
        divergence: "kl_ts" (`kl_rows`) or "soft_ce" (`soft_cross_entropy_rows`).
    Returns:
        ce, kd: (M,) each, nats.
    """
    dtype = wide_dtype(s.h)
    x_s = s.to(dtype).logits()  # (M, V)
    ce = kd = x_s.new_zeros(len(x_s))
    if labels is not None:
        ce = cross_entropy_rows(x_s, labels)
    if t is not None:
        rows = {"kl_ts": kl_rows, "soft_ce": soft_cross_entropy_rows}[divergence]
        kd = rows(x_s, t.to(dtype).logits(), temperature)
        if labels is not None:
            kd = kd.where(labels != -100, 0.0)
    return ce, kd


# ---- a residual sum


def add_norm(
    x: Tensor,
    a: Tensor,
    weight: Tensor,
    bias: Tensor,
    *,
    eps: float,
    dropout: float = 0.0,
    keep: Tensor | None = None,
) -> Tensor:
    """norm(x + dropout(a)) of each token (Ba et al., 2016).

        z = x + keep a / (1 - p)        y = (z - mean z) / sqrt(var z + eps) weight + bias

    Args:
        x, a: (N, C); weight, bias: (C,).
        keep: (N, C) bool, the entries of a that stay; None = all of them.
    Returns:
        (N, C) in x's dtype.
    """
    z = wide(x) + (wide(a) if keep is None else wide(a) * keep / (1 - dropout))  # (N, C)
    d = z - z.mean(-1, keepdim=True)
    y = d / (d.square().mean(-1, keepdim=True) + eps).sqrt() * weight + bias
    return y.to(x.dtype)
