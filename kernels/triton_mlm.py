"""One kernel between the products of the masked-LM losses: a row of logits in, its gradient out.

A program owns one row. It walks over the words once for the row's losses, and once more to
overwrite the student's logits by their gradient; the second walk finds them in the L2 cache, where
the products left them (`torch_mlm.chunked` is the loop around). Nothing is shared between programs:
no atomics, and results repeat bit for bit.

Read kernels/README.md first ("Rows of logits"); numbers in brackets are its lines. Names: i_ index,
o_ offsets, m_ mask, b_ block in registers, s_ stride, ptr_ pointer. Powers are of base 2 inside,
since the hardware has exp2 and no exp.
"""

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.reference import wide_dtype

LOG2E = tl.constexpr(1.4426950408889634)
# Minus infinity for logits beyond the vocabulary: finite, so that no inf - inf gives NaN.
NEVER = tl.constexpr(-1.0e30)
IGNORED = tl.constexpr(-100)


class RowsConfig(NamedTuple):
    """Block size and launch option of the kernel."""

    BLOCK_V: int
    num_warps: int


def pick_config(V: int, dtype: torch.dtype) -> RowsConfig:
    """The configuration for rows of V logits of the student's type.

    Chosen so that nothing spills on sm_90 and two programs or three fit on a multiprocessor, by
    Triton 3.6 and by 3.9 (tests/kernels/test_triton_mlm_sm90.py); not yet timed.
    """
    if dtype == torch.float64:
        return RowsConfig(512, 4)
    num_warps = 8 if dtype == torch.float32 else 4
    return RowsConfig(min(max(triton.next_power_of_2(V), 256), 1024), num_warps)


def lanes(config: RowsConfig) -> int:
    """Threads of a program that have words of their own: all, unless a block is very small."""
    return min(32 * config.num_warps, config.BLOCK_V)


@triton.jit
def load_words(ptr, ptr_b, o_v, V, IS_WHOLE: tl.constexpr, ACC: tl.constexpr):
    """(16) Logits with their bias; NEVER beyond the vocabulary, where no whole block reaches."""
    if IS_WHOLE:
        b_x = tl.load(ptr + o_v).to(ACC)
        if ptr_b is not None:
            b_x += tl.load(ptr_b + o_v).to(ACC)
    else:
        b_x = tl.load(ptr + o_v, mask=o_v < V, other=0.0).to(ACC)
        if ptr_b is not None:
            b_x += tl.load(ptr_b + o_v, mask=o_v < V, other=0.0).to(ACC)
        b_x = tl.where(o_v < V, b_x, NEVER)
    return b_x


@triton.jit
def see_words(
    b_max, b_max_t, b_1, b_T, b_t, b_d, b_y, ptr_x_s, ptr_b_s, ptr_x_t, ptr_b_t, y, i_v, V,
    HAS_CE: tl.constexpr, TWO_SUMS: tl.constexpr, T: tl.constexpr, IS_KL: tl.constexpr,
    IS_WHOLE: tl.constexpr, ACC: tl.constexpr, BLOCK_V: tl.constexpr, LANES: tl.constexpr,
):  # fmt: skip
    """The lanes' maxima and sums (below), with one more block of words."""
    o_v = i_v + tl.arange(0, BLOCK_V)
    SHAPE: tl.constexpr = (LANES, BLOCK_V // LANES)
    b_s = tl.reshape(load_words(ptr_x_s, ptr_b_s, o_v, V, IS_WHOLE, ACC), SHAPE)
    b_new = tl.maximum(b_max, tl.max(b_s, 1))
    b_z, b_shrink = (b_s - b_new[:, None]) * LOG2E, (b_max - b_new) * LOG2E
    b_max = b_new
    b_T = b_T * tl.exp2(b_shrink * (1.0 / T)) + tl.sum(tl.exp2(b_z * (1.0 / T)), 1)
    if TWO_SUMS:
        b_1 = b_1 * tl.exp2(b_shrink) + tl.sum(tl.exp2(b_z), 1)
    if HAS_CE:
        b_y += tl.sum(tl.where(tl.reshape(o_v, SHAPE) == y, b_s, 0.0), 1)
    if ptr_x_t is not None:
        b_x_t = tl.reshape(load_words(ptr_x_t, ptr_b_t, o_v, V, IS_WHOLE, ACC), SHAPE)
        b_new = tl.maximum(b_max_t, tl.max(b_x_t, 1))
        b_shrink = tl.exp2((b_max_t - b_new) * (LOG2E / T))
        b_e = tl.exp2((b_x_t - b_new[:, None]) * (LOG2E / T))
        b_max_t = b_new
        b_t = b_t * b_shrink + tl.sum(b_e, 1)
        b_apart = b_x_t - b_s if IS_KL else -b_s
        b_apart = tl.where(b_e > 0, b_e * b_apart, 0.0)  # 0 ln 0 = 0
        b_d = b_d * b_shrink + tl.sum(b_apart, 1)
    return b_max, b_max_t, b_1, b_T, b_t, b_d, b_y


@triton.jit
def replace_words(
    ptr_x_s, ptr_b_s, ptr_x_t, ptr_b_t, y, m_s, m_t, f_1, f_T, f_t, g_1, i_v, V,
    TWO_SUMS: tl.constexpr, T: tl.constexpr,
    IS_WHOLE: tl.constexpr, ACC: tl.constexpr, BLOCK_V: tl.constexpr,
):  # fmt: skip
    """(20), (21): a block of logits becomes its gradient; everything in ACC, rounded once."""
    o_v = i_v + tl.arange(0, BLOCK_V)
    b_z = (load_words(ptr_x_s, ptr_b_s, o_v, V, IS_WHOLE, ACC) - m_s) * LOG2E
    b_g = tl.exp2(b_z * (1.0 / T)) * f_T
    if TWO_SUMS:
        b_g += tl.exp2(b_z) * f_1
    if ptr_x_t is not None:
        b_x_t = load_words(ptr_x_t, ptr_b_t, o_v, V, IS_WHOLE, ACC)
        b_g -= tl.exp2((b_x_t - m_t) * (LOG2E / T)) * f_t
    b_g = tl.where(o_v == y, b_g - g_1, b_g).to(ptr_x_s.dtype.element_ty)
    if IS_WHOLE:
        tl.store(ptr_x_s + o_v, b_g)
    else:
        tl.store(ptr_x_s + o_v, b_g, mask=o_v < V)


@triton.jit
def rows_kernel(
    ptr_x_s, ptr_b_s, ptr_labels, ptr_x_t, ptr_b_t, ptr_g_ce, ptr_g_kd, ptr_ce, ptr_kd,
    s_s, s_t, V,
    T: tl.constexpr, IS_KL: tl.constexpr, ACC: tl.constexpr, BLOCK_V: tl.constexpr,
    LANES: tl.constexpr,
):  # fmt: skip
    """(17)-(21) of one row.

    Blocks of words are walked over without a mask, so that loads are as wide as they come; what is
    left over after them has one.
    """
    i = tl.program_id(0).to(tl.int64)  # row times stride passes 2^31
    HAS_CE: tl.constexpr = ptr_labels is not None
    HAS_KD: tl.constexpr = ptr_x_t is not None
    HAS_GRADIENT: tl.constexpr = (ptr_g_ce is not None) or (ptr_g_kd is not None)
    TWO_SUMS: tl.constexpr = HAS_CE and HAS_KD and T != 1  # of the student, at 1 and at T
    V_whole = V - V % BLOCK_V
    ptr_x_s += i * s_s
    y = tl.full((), -1, tl.int64)
    if HAS_KD:
        ptr_x_t += i * s_t
    if HAS_CE:
        y = tl.load(ptr_labels + i)
        if y == IGNORED:
            tl.store(ptr_ce + i, 0.0)
            tl.store(ptr_kd + i, 0.0)
            if HAS_GRADIENT:
                b_zero = tl.zeros((BLOCK_V,), ptr_x_s.dtype.element_ty)
                for i_v in range(0, V, BLOCK_V):
                    o_v = i_v + tl.arange(0, BLOCK_V)
                    tl.store(ptr_x_s + o_v, b_zero, mask=o_v < V)
            return

    # Maxima and sums have a number for each thread, a lane, and run over the lanes at the end: a
    # walk in which no thread waits for another. A lane without words has the maximum NEVER, and
    # what it has summed is multiplied by 0.
    b_max = tl.full((LANES,), NEVER, ACC)
    b_max_t = tl.full((LANES,), NEVER, ACC)
    b_1 = tl.zeros((LANES,), ACC)  # sum of e^(x_s - max)
    b_T = tl.zeros((LANES,), ACC)  # the same at T
    b_t = tl.zeros((LANES,), ACC)  # the teacher's, at T
    b_d = tl.zeros((LANES,), ACC)  # sum of e^((x_t - max_t) / T) (x_t - x_s), or (-x_s)
    b_y = tl.zeros((LANES,), ACC)  # the label's logit
    for i_v in range(0, V_whole, BLOCK_V):
        b_max, b_max_t, b_1, b_T, b_t, b_d, b_y = see_words(
            b_max, b_max_t, b_1, b_T, b_t, b_d, b_y, ptr_x_s, ptr_b_s, ptr_x_t, ptr_b_t, y, i_v, V,
            HAS_CE, TWO_SUMS, T, IS_KL, True, ACC, BLOCK_V, LANES,
        )  # fmt: skip
    b_max, b_max_t, b_1, b_T, b_t, b_d, b_y = see_words(
        b_max, b_max_t, b_1, b_T, b_t, b_d, b_y, ptr_x_s, ptr_b_s, ptr_x_t, ptr_b_t, y, V_whole, V,
        HAS_CE, TWO_SUMS, T, IS_KL, False, ACC, BLOCK_V, LANES,
    )  # fmt: skip

    m_s = tl.max(b_max, 0)
    b_shrink = (b_max - m_s) * LOG2E
    l_T = tl.sum(b_T * tl.exp2(b_shrink * (1.0 / T)), 0)
    l_1 = l_T
    if TWO_SUMS:
        l_1 = tl.sum(b_1 * tl.exp2(b_shrink), 0)
    l_t = tl.full((), 1.0, ACC)
    ce = tl.zeros((), ACC)
    kd = tl.zeros((), ACC)
    m_t = tl.max(b_max_t, 0)
    is_wrong = False  # a label outside the vocabulary shows as NaN
    if HAS_CE:
        is_wrong = (y < 0) | (y >= V)
        ce = tl.log(l_1) + (m_s - tl.sum(b_y, 0))  # (17), nothing large added
        ce = tl.where(is_wrong, float("nan"), ce)
    if HAS_KD:
        b_shrink = tl.exp2((b_max_t - m_t) * (LOG2E / T))
        l_t, d = tl.sum(b_t * b_shrink, 0), tl.sum(b_d * b_shrink, 0)
        if IS_KL:  # (18)
            b_apart = d / l_t - (m_t - m_s)
            kd = T * b_apart + (T * T) * (tl.log(l_T) - tl.log(l_t))
        else:  # (19)
            kd = T * (d / l_t + m_s) + (T * T) * tl.log(l_T)
    tl.store(ptr_ce + i, ce)
    tl.store(ptr_kd + i, kd)

    if HAS_GRADIENT:
        g_1 = tl.zeros((), ACC)
        g_T = tl.zeros((), ACC)
        if HAS_CE and ptr_g_ce is not None:
            g_1 = tl.where(is_wrong, float("nan"), tl.load(ptr_g_ce + i).to(ACC))
        if HAS_KD and ptr_g_kd is not None:
            g_T = tl.load(ptr_g_kd + i).to(ACC) * T
        f_1, f_T, f_t = g_1 / l_1, g_T / l_T, g_T / l_t
        if not TWO_SUMS:
            f_T = (g_1 + g_T) / l_T
        for i_v in range(0, V_whole, BLOCK_V):
            replace_words(
                ptr_x_s, ptr_b_s, ptr_x_t, ptr_b_t, y, m_s, m_t, f_1, f_T, f_t, g_1, i_v, V,
                TWO_SUMS, T, True, ACC, BLOCK_V,
            )  # fmt: skip
        replace_words(
            ptr_x_s, ptr_b_s, ptr_x_t, ptr_b_t, y, m_s, m_t, f_1, f_T, f_t, g_1, V_whole, V,
            TWO_SUMS, T, False, ACC, BLOCK_V,
        )  # fmt: skip


def logit_rows(
    x_s: Tensor,
    b_s: Tensor | None,
    labels: Tensor | None,
    x_t: Tensor | None,
    b_t: Tensor | None,
    g_ce: Tensor | None,
    g_kd: Tensor | None,
    *,
    temperature: float,
    divergence: str,
) -> tuple[Tensor, Tensor]:
    """As `torch_mlm.logit_rows`, with logits of any two floating-point types.

    A label that is neither a word nor -100 makes the row's ce, and its gradient, NaN. x_t stays as
    it is, and so does x_s without g_ce and g_kd.
    """
    R, V = x_s.shape
    dtype = wide_dtype(x_s)
    ce, kd = (torch.empty(R, dtype=dtype, device=x_s.device) for _ in range(2))
    config = pick_config(V, x_s.dtype)
    with torch.cuda.device_of(x_s):
        rows_kernel[(R,)](
            x_s, b_s, labels, x_t, b_t, g_ce, g_kd, ce, kd,
            x_s.stride(0), 0 if x_t is None else x_t.stride(0), V,
            T=1.0 if x_t is None else float(temperature), IS_KL=divergence == "kl_ts",
            ACC=tl.float64 if dtype == torch.float64 else tl.float32,
            BLOCK_V=config.BLOCK_V, LANES=lanes(config), num_warps=config.num_warps,
        )  # fmt: skip
    return ce, kd
