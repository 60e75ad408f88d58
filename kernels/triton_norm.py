"""`add_norm` in two Triton kernels: dropout, sum, norm and a copy in a narrower type in one pass.

A program of forward owns one token. Backward has a fixed number of programs, each of which walks
over its share of the tokens and keeps its part of the gradients of weight and bias in registers, so
that the parts add up in the same order every time. What forward leaves behind is two numbers a
token: the sum and its dropout are made again from x, a and the seed.

Names: i_ index, o_ offsets, m_ mask, b_ block in registers, ptr_ pointer.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.reference import drop_threshold, wide_dtype
from kernels.triton_attention import drawn, seed_words

SHARES = 512  # programs of backward: about four for each multiprocessor of a large GPU
CHANGING = ["N", "n_shares"]  # from batch to batch: another value must not compile again


@triton.jit
def load_sum(
    ptr_x, ptr_a, seed, i, o_c, m_c, C: tl.constexpr, KEEP_SCALE: tl.constexpr,
    THRESHOLD: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """x + dropout(a) of token i, and what dropout has kept.  seed: its two words, or None."""
    b_x = tl.load(ptr_x + i * C + o_c, mask=m_c, other=0.0).to(ACC)
    b_a = tl.load(ptr_a + i * C + o_c, mask=m_c, other=0.0).to(ACC)
    kept = m_c
    if seed is not None:
        o_word = o_c // 16 * 8 + o_c % 8
        kept = m_c & drawn(seed[0], seed[1], i, o_word, (o_c & 8) != 0, THRESHOLD)
        b_a = tl.where(kept, b_a * KEEP_SCALE, 0.0)
    return b_x + b_a, kept


@triton.jit
def forward_kernel(
    ptr_x, ptr_a, ptr_weight, ptr_bias, ptr_seed, ptr_y, ptr_narrow, ptr_mean, ptr_rstd,
    EPS: tl.constexpr, C: tl.constexpr, KEEP_SCALE: tl.constexpr, THRESHOLD: tl.constexpr,
    ACC: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """One token: y, its narrow copy, mean and 1 / deviation."""
    i = tl.program_id(0).to(tl.int64)  # token times width passes 2^31
    o_c = tl.arange(0, BLOCK_C)
    m_c = o_c < C
    seed = None
    if ptr_seed is not None:
        seed = seed_words(ptr_seed)
    b_z, _ = load_sum(ptr_x, ptr_a, seed, i, o_c, m_c, C, KEEP_SCALE, THRESHOLD, ACC)
    mean = tl.sum(b_z, 0) / C
    b_z = tl.where(m_c, b_z - mean, 0.0)
    rstd = 1.0 / tl.sqrt(tl.sum(b_z * b_z, 0) / C + EPS)
    b_weight = tl.load(ptr_weight + o_c, mask=m_c, other=0.0).to(ACC)
    b_bias = tl.load(ptr_bias + o_c, mask=m_c, other=0.0).to(ACC)
    b_y = b_z * rstd * b_weight + b_bias
    tl.store(ptr_y + i * C + o_c, b_y.to(ptr_y.dtype.element_ty), mask=m_c)
    if ptr_narrow is not None:
        tl.store(ptr_narrow + i * C + o_c, b_y.to(ptr_narrow.dtype.element_ty), mask=m_c)
    tl.store(ptr_mean + i, mean)
    tl.store(ptr_rstd + i, rstd)


@triton.jit(do_not_specialize=CHANGING)
def backward_kernel(
    ptr_dy, ptr_dnarrow, ptr_x, ptr_a, ptr_weight, ptr_seed, ptr_mean, ptr_rstd, ptr_dx, ptr_da,
    ptr_dweight, ptr_dbias, N, n_shares,
    C: tl.constexpr, KEEP_SCALE: tl.constexpr, THRESHOLD: tl.constexpr, ACC: tl.constexpr,
    BLOCK_C: tl.constexpr,
):  # fmt: skip
    """A share of the tokens: dx, da, and the share's part of the gradients of weight and bias."""
    i_share = tl.program_id(0)
    o_c = tl.arange(0, BLOCK_C)
    m_c = o_c < C
    b_weight = tl.load(ptr_weight + o_c, mask=m_c, other=0.0).to(ACC)
    b_dweight = tl.zeros((BLOCK_C,), ACC)
    b_dbias = tl.zeros((BLOCK_C,), ACC)
    seed = None
    if ptr_seed is not None:
        seed = seed_words(ptr_seed)
    for i_token in range(i_share, N, n_shares):
        i = i_token + tl.zeros((), tl.int64)  # token times width passes 2^31
        b_z, kept = load_sum(ptr_x, ptr_a, seed, i, o_c, m_c, C, KEEP_SCALE, THRESHOLD, ACC)
        rstd = tl.load(ptr_rstd + i)
        b_unit = tl.where(m_c, (b_z - tl.load(ptr_mean + i)) * rstd, 0.0)
        b_dy = tl.zeros((BLOCK_C,), ACC)
        if ptr_dy is not None:
            b_dy += tl.load(ptr_dy + i * C + o_c, mask=m_c, other=0.0).to(ACC)
        if ptr_dnarrow is not None:
            b_dy += tl.load(ptr_dnarrow + i * C + o_c, mask=m_c, other=0.0).to(ACC)
        b_g = b_dy * b_weight
        b_dz = (b_g - tl.sum(b_g, 0) / C - b_unit * (tl.sum(b_g * b_unit, 0) / C)) * rstd
        tl.store(ptr_dx + i * C + o_c, b_dz.to(ptr_dx.dtype.element_ty), mask=m_c)
        if ptr_da is not None:
            b_da = tl.where(kept, b_dz * KEEP_SCALE, 0.0)
            tl.store(ptr_da + i * C + o_c, b_da.to(ptr_da.dtype.element_ty), mask=m_c)
        b_dweight += b_dy * b_unit
        b_dbias += b_dy
    tl.store(ptr_dweight + i_share * C + o_c, b_dweight, mask=m_c)
    tl.store(ptr_dbias + i_share * C + o_c, b_dbias, mask=m_c)


# ---- launching


def constants(C: int, dropout: float, dtype: torch.dtype) -> dict:
    """The constants that the kernels are compiled for."""
    return {
        "C": C, "BLOCK_C": triton.next_power_of_2(C), "KEEP_SCALE": 1 / (1 - dropout),
        "THRESHOLD": drop_threshold(dropout) << 16,
        "ACC": tl.float64 if dtype == torch.float64 else tl.float32,
    }  # fmt: skip


def warps(C: int) -> int:
    """Warps of a program: eight numbers for each thread, and four warps at least."""
    return min(max(4, triton.next_power_of_2(C) // 256), 16)


def forward(
    x: Tensor, a: Tensor, weight: Tensor, bias: Tensor, seed: Tensor | None, eps: float,
    dropout: float, narrow: torch.dtype | None,
) -> tuple[Tensor, Tensor | None, Tensor, Tensor]:  # fmt: skip
    """y, its copy of type `narrow`, mean and 1 / deviation of each token."""
    N, C = x.shape
    y = torch.empty_like(x)
    copy = None if narrow is None else torch.empty_like(x, dtype=narrow)
    mean, rstd = (torch.empty(N, dtype=wide_dtype(x), device=x.device) for _ in range(2))
    if N:
        with torch.cuda.device_of(x):
            forward_kernel[(N,)](
                x, a, weight, bias, seed, y, copy, mean, rstd, EPS=eps,
                **constants(C, dropout, x.dtype), num_warps=warps(C),
            )  # fmt: skip
    return y, copy, mean, rstd


def backward(
    dy: Tensor | None, dnarrow: Tensor | None, x: Tensor, a: Tensor, weight: Tensor,
    seed: Tensor | None, mean: Tensor, rstd: Tensor, dropout: float, has_da: bool,
) -> tuple[Tensor, Tensor | None, Tensor, Tensor]:  # fmt: skip
    """dx; da, where it is another tensor than dx; dweight, dbias."""
    N, C = x.shape
    dx, da = torch.empty_like(x), torch.empty_like(a) if has_da else None
    n_shares = min(N, SHARES)
    parts = [torch.empty(n_shares, C, dtype=mean.dtype, device=x.device) for _ in range(2)]
    if N:
        with torch.cuda.device_of(x):
            backward_kernel[(n_shares,)](
                dy, dnarrow, x, a, weight, seed, mean, rstd, dx, da, *parts, N, n_shares,
                **constants(C, dropout, x.dtype), num_warps=warps(C),
            )  # fmt: skip
    return dx, da, *(part.sum(0).to(weight.dtype) for part in parts)
