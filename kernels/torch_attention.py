"""Attention over the row in plain PyTorch, fast without a kernel of our own.

PyTorch's `scaled_dot_product_attention` wants a rectangle, and a row of sequences is none. Two ways
out, and each is the faster one somewhere:

    attention          n neighbours of T tokens each are a view (n, H, T, D) of the row: one call
                       for each run of equal lengths, nothing padded, nothing gathered. For CPUs,
                       where work costs more than calls.
    padded_attention   every sequence padded to the longest, one call. For GPUs, where a hundred
                       calls cost more than the padding.

`attention_kl` has to see the maps, so it forms them itself, some sequences at a time. Read
kernels/reference.py first: it says what is computed here.
"""

from collections.abc import Sequence
from itertools import groupby

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from kernels.reference import wide

# Entries of the maps that are formed at once on a CPU: a few MB, which stay in its cache.
MAP_ENTRIES = 2**20


def runs(lengths: Sequence[int], limit: int | None = None) -> list[tuple[int, int]]:
    """Neighbours of equal length, as (sequences, length); empty sequences are left out.

    Args:
        limit: entries of the maps of one run, for one head. A longer run is cut between sequences,
            a single sequence never. None = no limit.
    """
    found = []
    for T, group in groupby(T for T in lengths if T):
        n = len(list(group))
        most = n if limit is None else max(1, limit // T**2)
        found += [(min(most, n - i), T) for i in range(0, n, most)]
    return found


def rectangles(x: Tensor, parts: list[tuple[int, int]]) -> list[Tensor]:
    """The row (N, H, D) as views (n, H, T, D), one for each run."""
    # split, not slices: its backward writes the gradient once, theirs once for each slice
    pieces = x.split([n * T for n, T in parts])
    return [y.unflatten(0, part).transpose(1, 2) for y, part in zip(pieces, parts, strict=True)]


def row(parts: list[Tensor]) -> Tensor:
    """Back to one row: (n, H, T, ...) of each run -> (N, H, ...)."""
    return torch.cat([y.transpose(1, 2).flatten(0, 1) for y in parts])


def map_limit(x: Tensor) -> int | None:
    """What `runs` is to stay below where maps of x (N, H, D) are formed."""
    return MAP_ENTRIES // x.shape[1] if x.device.type == "cpu" else None


def attention(
    q: Tensor, k: Tensor, v: Tensor, lengths: Sequence[int], *, dropout: float = 0.0
) -> Tensor:
    """As `reference.attention`, its first result: one call for each run of equal lengths.

    q, k, v: (N, H, D) -> (N, H, D).
    """
    if not q.shape[0]:
        return q + k + v  # empty, and still part of the graph
    # with dropout the CPU's fused kernel steps aside for one that forms the maps
    parts = runs(lengths, map_limit(q) if dropout else None)
    blocks = zip(*(rectangles(x, parts) for x in (q, k, v)), strict=True)
    return row([scaled_dot_product_attention(*block, dropout_p=dropout) for block in blocks])


def padded_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cu_seqlens: Tensor,
    lengths: Sequence[int],
    *,
    dropout: float = 0.0,
) -> Tensor:
    """As `attention`, by one call on the rectangle padded to the longest sequence.

    Nothing here waits for the device: sizes come from `lengths`, places from `cu_seqlens`. Every
    token has its own cell `b T + position`, so gradients repeat bit for bit.
    """
    N, H, D = q.shape
    if not N:
        return q + k + v  # empty, and still part of the graph
    if D % 8 == 0 and len(runs(lengths)) == 1:  # a rectangle already
        return attention(q, k, v, lengths, dropout=dropout)
    # The GPU's kernel that takes a mask wants keys and head width in eights; others form the maps.
    B, T, D_8 = len(lengths), max(lengths) + -max(lengths) % 8, D + -D % 8
    counts = cu_seqlens.diff()  # (B,)
    shift = T * torch.arange(B, device=q.device) - cu_seqlens[:-1]  # (B,)
    cells = shift.repeat_interleave(counts, output_size=N) + torch.arange(
        N, device=q.device
    )  # (N,)

    def rectangle(x):  # (N, H, D) -> (B, H, T, D_8), zeros where there is no token
        blank = x.new_zeros(B * T, H, D_8)
        filled = blank.index_copy_(0, cells, F.pad(x, (0, D_8 - D)))
        return filled.unflatten(0, (B, T)).transpose(1, 2)

    is_token = torch.arange(T, device=q.device) < counts[:, None]  # (B, T)
    is_token[:, 0] = True  # an empty sequence sees one zero key: no key at all would give NaN
    out = scaled_dot_product_attention(
        rectangle(q),
        rectangle(k),
        rectangle(v),
        attn_mask=is_token[:, None, None],  # (B, 1, 1, T)
        dropout_p=dropout,
        scale=D**-0.5,
    )  # (B, H, T, D_8)
    return out.transpose(1, 2).flatten(0, 1).index_select(0, cells)[..., :D]  # (N, H, D)


def map_and_divergence(z_s: Tensor, z_t: Tensor, divergence: str) -> tuple[Tensor, Tensor]:
    """The student's map and its rows' divergence, sharing one softmax.

    z_s, z_t: (..., T) scaled scores -> a_s (..., T) and `reference.row_divergence` (...).
    """
    if divergence == "mse_scores":
        return z_s.softmax(-1), (z_s - z_t).square().sum(-1)
    if divergence == "mse_maps":
        a_s = z_s.softmax(-1)
        return a_s, (a_s - z_t.softmax(-1)).square().sum(-1)
    log_a_s, log_a_t = z_s.log_softmax(-1), z_t.log_softmax(-1)
    a_s = log_a_s.exp()
    if divergence == "kl_st":
        return a_s, (a_s * (log_a_s - log_a_t)).sum(-1)
    assert divergence == "kl_ts", divergence
    return a_s, (log_a_t.exp() * (log_a_t - log_a_s)).sum(-1)


def attention_kl(
    q_s: Tensor,
    k_s: Tensor,
    v_s: Tensor,
    q_t: Tensor,
    k_t: Tensor,
    lengths: Sequence[int],
    *,
    divergence: str,
    dropout: float = 0.0,
) -> tuple[Tensor, Tensor]:
    """As `reference.attention_kl`, its first two results.

    One softmax serves both, and the maps of a few sequences are formed at a time; without a
    gradient to come they are gone before the next, with one autograd keeps them all.
    """
    tensors = (q_s, k_s, v_s, q_t, k_t)
    if not q_s.shape[0]:
        return q_s + k_s + v_s, wide(q_s * k_s).sum(-1)  # empty, and still part of the graph
    parts = runs(lengths, map_limit(q_s))
    outs, rows = [], []
    for block in zip(*(rectangles(x, parts) for x in tensors), strict=True):
        q_s, k_s, v_s, q_t, k_t = (wide(x) for x in block)  # (n, H, T, D)
        z_s = q_s * q_s.shape[-1] ** -0.5 @ k_s.mT  # (n, H, T, T)
        z_t = q_t * q_t.shape[-1] ** -0.5 @ k_t.mT  # (n, H, T, T)
        a_s, divergences = map_and_divergence(z_s, z_t.to(z_s.dtype), divergence)
        outs.append(F.dropout(a_s, dropout) @ v_s)  # (n, H, T, D_s)
        rows.append(divergences)  # (n, H, T)
    return row(outs).to(tensors[0].dtype), row(rows)
