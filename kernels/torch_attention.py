"""Attention over the row by PyTorch's own fused function, without padding.

`scaled_dot_product_attention` wants a rectangle, and a row of sequences is none. But neighbours of
equal length are: a run of n sequences of T tokens is a view (n, T, H, D) of the row. So each run is
one call, and nothing is gathered or padded. Batches that put equal lengths side by side
(`Corpus.batch` does) have few runs.
"""

from collections.abc import Iterator, Sequence
from itertools import groupby

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from kernels import reference


def runs(lengths: Sequence[int]) -> Iterator[tuple[int, int, int]]:
    """Neighbours of equal length: (first token, sequences, length) of each run."""
    start = 0
    for T, group in groupby(lengths):
        n = sum(1 for _ in group)
        yield start, n, T
        start += n * T


def attention(
    q: Tensor, k: Tensor, v: Tensor, lengths: Sequence[int], *, dropout: float = 0.0
) -> Tensor:
    """As `reference.attention`, its first result.  q, k, v: (N, H, D) -> (N, H, D)."""
    out = [q[:0]]
    for start, n, T in runs(lengths):
        if T == 0:
            continue
        part = (
            x[start : start + n * T].unflatten(0, (n, T)).transpose(1, 2)  # (n, H, T, D)
            for x in (q, k, v)
        )
        a = scaled_dot_product_attention(*part, dropout_p=dropout)  # (n, H, T, D)
        out.append(a.transpose(1, 2).flatten(0, 1))  # (n T, H, D)
    return torch.cat(out)


def row_losses(
    q_s: Tensor,
    k_s: Tensor,
    q_t: Tensor,
    k_t: Tensor,
    lengths: Sequence[int],
    *,
    divergence: str,
) -> Tensor:
    """As `reference.attention_kl`, its second result: the maps of one run at a time.

    q_s, k_s: (N, H, D_s), q_t, k_t: (N, H, D_t) -> (N, H).
    """
    rows = [reference.wide(q_s[:0, :, 0])]
    for start, n, T in runs(lengths):
        if T == 0:
            continue
        z_s, z_t = (
            torch.einsum(
                "nihd,njhd->nihj",
                reference.wide(q[start : start + n * T].unflatten(0, (n, T))),
                reference.wide(k[start : start + n * T].unflatten(0, (n, T))),
            )
            * q.shape[-1] ** -0.5  # (n, T, H, T)
            for q, k in ((q_s, k_s), (q_t, k_t))
        )
        rows.append(reference.row_divergence(z_s, z_t.to(z_s.dtype), divergence).flatten(0, 1))
    return torch.cat(rows)
