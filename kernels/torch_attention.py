"""Attention over the row in plain PyTorch, forward and backward: the implementation for CPUs.

Plain attention without dropout is PyTorch's own fused kernel, one call for each run of neighbours
with equal length: n of T tokens each are a view (n, H, T, D) of the row, with nothing padded and
nothing gathered. Sequences sorted by length make few runs.

Dropout and divergences need the maps. They are formed a block at a time, some heads of one sequence
or some short sequences, small enough to stay in the processor's cache, in buffers that the next
block uses again; backward forms them once more. So the memory is one block's, and the element-wise
passes, which are half of the work where maps are stored, run at the cache's speed. Read
kernels/reference.py first: it says what is computed; numbers in brackets are lines of
kernels/README.md.
"""

from collections.abc import Iterator
from itertools import groupby, pairwise

import numpy as np
import torch
from torch import Tensor

from kernels.reference import Call, Forward, drop_threshold, unpack_bits, wide

# Entries of the maps of one block: two to four buffers of so many stay in the cache, and a pass
# over them still takes far longer than the call that starts it.
MAP_ENTRIES = 2**19
MAP_ENTRIES_GPU = 2**26


def runs(lengths: list[int], limit: int | None = None) -> list[tuple[int, int]]:
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


def blocks(lengths: list[int], H: int, limit: int) -> Iterator[tuple[slice, int, slice]]:
    """The row in pieces whose maps have at most `limit` entries: (tokens, T, heads).

    Several whole sequences of T tokens with all their heads, or some heads of one sequence; one
    head of one sequence is never cut.
    """
    first = 0
    for n, T in runs(lengths, limit // H):
        n_heads = H if n > 1 else min(H, max(1, limit // T**2))
        n_heads = -(-H // -(-H // n_heads))  # all about the same
        for h in range(0, H, n_heads):
            yield slice(first, first + n * T), T, slice(h, min(h + n_heads, H))
        first += n * T


def rectangle(x: Tensor, T: int) -> Tensor:
    """(n T, h, ...) -> (n h, T, ...); a view where n or h is 1."""
    return x.unflatten(0, (-1, T)).transpose(1, 2).flatten(0, 1)


def row(x: Tensor, T: int, h: int) -> Tensor:
    """Inverse of `rectangle`: (n h, T, ...) -> (n T, h, ...)."""
    return x.unflatten(0, (-1, h)).transpose(1, 2).flatten(0, 1)


class Buffers:
    """Memory for the maps of one block, reused by the next."""

    def __init__(self, x: Call, parts: list[tuple[slice, int, slice]], n: int):
        sizes = ((t.stop - t.start) * T * (h.stop - h.start) for t, T, h in parts)
        dtype = torch.float64 if x.q.dtype == torch.float64 else torch.float32
        self.memory = torch.empty(n, max(sizes, default=0), dtype=dtype, device=x.q.device)

    def maps(self, n: int, T: int) -> list[Tensor]:
        """As many tensors (n, T, T)."""
        return [m[: n * T * T].view(n, T, T) for m in self.memory]


def parts_of(x: Call) -> list[tuple[slice, int, slice]]:
    """The call's blocks."""
    limit = MAP_ENTRIES if x.q.device.type == "cpu" else MAP_ENTRIES_GPU
    return [*blocks(lengths_of(x), x.q.shape[1], limit)]


def lengths_of(x: Call) -> list[int]:
    """Tokens of each sequence, on the host."""
    return [end - first for first, end in pairwise(x.cu_seqlens.tolist())]


def needs_a_t(x: Call, lse_t: Tensor | None = None) -> bool:
    """Whether the teacher's maps are needed, rather than only its scores."""
    return x.has_teacher and (lse_t is None or x.divergence != "kl_st")


def kept(x: Call, tokens: slice, T: int, heads: slice) -> Tensor | None:
    """A block's mask of dropout as uint8 zeros and ones, (n h, T, T); None = everything stays."""
    if x.keep is not None:
        bits = unpack_bits(x.keep[tokens, heads], T)  # (n T, h, T)
        return rectangle(bits, T).view(torch.uint8)
    if x.seed is None:
        return None
    n = (tokens.stop - tokens.start) // T * (heads.stop - heads.start)
    words = np.random.SFC64([int(x.seed), tokens.start, heads.start])
    numbers = words.random_raw(-(-n * T * T // 4)).view(np.uint16)[: n * T * T]
    is_kept = torch.from_numpy(numbers >= drop_threshold(x.dropout))
    return is_kept.view(torch.uint8).view(n, T, T).to(x.q.device)


def log_sum_exp(z: Tensor, a: Tensor) -> Tensor:
    """ln sum_j exp(z_j) of rows whose softmax `a` is known: no second exponential."""
    return z.amax(-1) - a.amax(-1).log()


def dot(x: Tensor, y: Tensor) -> Tensor:
    """Sum over the last dimension of the products."""
    return torch.linalg.vecdot(x, y)


def forward(x: Call, lse_t: Tensor | None) -> Forward:
    """(1)-(9). lse_t: (N, H) log-sum-exp of the teacher's rows; None = computed here."""
    if is_plain(x):
        return plain_forward(x)
    y = Forward.blank(x, lse_t)
    parts = parts_of(x)
    buffers = Buffers(x, parts, 4 if needs_a_t(x, lse_t) else 2)
    for tokens, T, heads in parts:
        forward_block(x, lse_t, y, buffers, tokens, T, heads)
    return y


def forward_block(
    x: Call, lse_t: Tensor | None, y: Forward, buffers: Buffers, tokens: slice, T: int, heads: slice
) -> None:
    """`forward` of one block, into its places in `y`."""
    h = heads.stop - heads.start
    q, k, v = (wide(rectangle(p[tokens, heads], T)) for p in (x.q, x.k, x.v))  # (n h, T, D)
    z, a, *others = buffers.maps(len(q), T)

    def put(place, values):
        place[tokens, heads] = row(values, T, h)

    torch.bmm(q * x.scale, k.mT, out=z)  # (1)
    torch.softmax(z, -1, out=a)  # (2)
    lse = log_sum_exp(z, a)  # (n h, T)
    put(y.lse, lse)
    if x.has_teacher:
        q_t, k_t = (p[tokens, heads].to(q.dtype) for p in (x.q_t, x.k_t))
        q_t, k_t = rectangle(q_t, T) * x.scale_t, rectangle(k_t, T)  # (n h, T, D_t)
    if needs_a_t(x, lse_t):
        z_t, a_t = others
        torch.bmm(q_t, k_t.mT, out=z_t)
        torch.softmax(z_t, -1, out=a_t)
    if x.has_teacher:
        if lse_t is None:
            block_lse_t = log_sum_exp(z_t, a_t)
            put(y.lse_t, block_lse_t)
        else:
            block_lse_t = rectangle(lse_t[tokens, heads].to(q.dtype), T)
    if x.divergence == "kl_st":  # (5)
        put(y.row_loss, dot(a, z.baddbmm_(q_t, k_t.mT, alpha=-1)) - lse + block_lse_t)
    elif x.divergence == "kl_ts":  # (6)
        put(y.row_loss, dot(a_t, z_t.sub_(z)) - block_lse_t + lse)
    elif x.divergence == "mse_maps":  # (7), (9)
        a_t.sub_(a)
        put(y.row_loss, dot(a_t, a_t))
        put(y.stat, -dot(a, a_t))
    is_kept = kept(x, tokens, T, heads)
    if is_kept is not None:  # (3)
        a.mul_(is_kept)
        v = v / (1 - x.dropout)
    put(y.out, torch.bmm(a, v))  # (4)


def backward(
    x: Call,
    out: Tensor,
    lse: Tensor,
    lse_t: Tensor | None,
    stat: Tensor | None,
    dout: Tensor,
    g: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor]:
    """(10)-(15): gradients of q, k and v, each (N, H, D); arguments as in triton_attention.py."""
    grads = tuple(torch.empty(p.shape, dtype=p.dtype, device=p.device) for p in (x.q, x.k, x.v))
    if is_plain(x):
        plain_backward(x, out, lse, dout, grads)
        return grads
    delta = torch.linalg.vecdot(wide(out), wide(dout))  # (N, H), (10)
    if x.divergence == "kl_st":
        delta += g * (stat + lse - lse_t)
    elif x.divergence == "mse_maps":
        delta += 2 * g * stat
    parts = parts_of(x)
    buffers = Buffers(x, parts, 4 if x.divergence in ("kl_ts", "mse_maps") else 3)
    for tokens, T, heads in parts:
        backward_block(x, delta, dout, g, grads, buffers, tokens, T, heads)
    return grads


def backward_block(
    x: Call, delta: Tensor, dout: Tensor, g: Tensor | None, grads: tuple[Tensor, Tensor, Tensor],
    buffers: Buffers, tokens: slice, T: int, heads: slice,
) -> None:  # fmt: skip
    """`backward` of one block, into its places in `grads`."""
    q, k, v, do = (wide(rectangle(p[tokens, heads], T)) for p in (x.q, x.k, x.v, dout))
    delta = rectangle(delta[tokens, heads], T)[..., None]  # (n h, T, 1)
    q = q * x.scale
    z, a, w, *others = buffers.maps(len(q), T)
    torch.bmm(q, k.mT, out=z)
    torch.softmax(z, -1, out=a)
    is_kept, a_kept = kept(x, tokens, T, heads), a
    if is_kept is not None:
        do = do / (1 - x.dropout)
        a_kept = torch.mul(a, is_kept, out=w)
    dv = torch.bmm(a_kept.mT, do)  # (15)
    torch.bmm(do, v.mT, out=w)  # the gradient of the map, (11)
    if is_kept is not None:
        w.mul_(is_kept)
    w.sub_(delta)
    if x.has_teacher:
        g = rectangle(g[tokens, heads].to(q.dtype), T)[..., None]  # (n h, T, 1)
        q_t, k_t = (p[tokens, heads].to(q.dtype) for p in (x.q_t, x.k_t))
        q_t, k_t = rectangle(q_t, T) * x.scale_t, rectangle(k_t, T)
    if x.divergence == "kl_st":
        z.baddbmm_(q_t, k_t.mT, alpha=-1)  # z_s - z_t; what is left of ln a_s - ln a_t is in delta
    elif x.has_teacher:
        (a_t,) = others
        torch.bmm(q_t, k_t.mT, out=z)
        torch.softmax(z, -1, out=a_t)
    if x.divergence == "kl_st":
        w.addcmul_(z, g)
    elif x.divergence == "mse_maps":
        w.addcmul_(torch.sub(a, a_t, out=z), g, value=2)
    w.mul_(a)  # (12)
    if x.divergence == "kl_ts":
        w.addcmul_(a.sub_(a_t), g)
    dq, dk = torch.bmm(w, k).mul_(x.scale), torch.bmm(w.mT, q)  # (13), (14)
    for place, values in zip(grads, (dq, dk, dv), strict=True):
        place[tokens, heads] = row(values, T, heads.stop - heads.start)


# ---- without dropout and without a teacher


def is_plain(x: Call) -> bool:
    """Whether PyTorch's own CPU kernel does it all."""
    has_dropout = x.keep is not None or x.seed is not None
    return x.q.device.type == "cpu" and not x.has_teacher and not has_dropout


def views(x: Tensor, parts: list[tuple[int, int]]) -> Iterator[Tensor]:
    """The row (N, H, ...) as views (n, H, T, ...), one for each run."""
    pieces = x.split([n * T for n, T in parts])
    return (y.unflatten(0, part).transpose(1, 2) for y, part in zip(pieces, parts, strict=True))


def plain_forward(x: Call) -> Forward:
    """`forward` by the kernel behind `scaled_dot_product_attention`, which also gives lse.

    The kernel's results lie in memory as the row does: of a single run nothing is copied.
    """
    parts = runs(lengths_of(x))
    flash = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
    if len(parts) == 1:
        q, k, v = (p.view(*parts[0], *p.shape[1:]).transpose(1, 2) for p in x[:3])
        out, lse = (y.transpose(1, 2).flatten(0, 1) for y in flash(q, k, v, scale=x.scale))
        row_loss, lse_t, stat = (torch.empty(0, dtype=lse.dtype) for _ in range(3))
        return Forward(out, row_loss, lse, lse_t, stat)
    y = Forward.blank(x, None)
    for q, k, v, out, lse in zip(*(views(p, parts) for p in (x.q, x.k, x.v, y.out, y.lse))):  # noqa: B905
        o, l = flash(q, k, v, scale=x.scale)
        out.copy_(o)
        lse.copy_(l)
    return y


def plain_backward(x: Call, out: Tensor, lse: Tensor, dout: Tensor, grads) -> None:
    """`backward` by the same kernel's."""
    parts = runs(lengths_of(x))
    tensors = (dout, x.q, x.k, x.v, out, lse)
    for *block, dq, dk, dv in zip(*(views(p, parts) for p in (*tensors, *grads))):  # noqa: B905
        got = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward(
            *block, 0.0, False, scale=x.scale
        )
        for place, values in zip((dq, dk, dv), got, strict=True):
            place.copy_(values)
