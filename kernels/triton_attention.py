"""Attention and the divergence of its maps in Triton: tiles of the maps live in registers, no map
is ever stored.

    forward    a program owns BLOCK_Q queries of one head and walks over the keys
    dq         the same walk again, for the gradient of the queries
    dkdv       a program owns BLOCK_K keys and walks over the queries

Each result has one owner, so there are no atomics and results repeat bit for bit. Read
kernels/README.md first; numbers in brackets are its lines. Names: i_ index, o_ offsets, m_ mask,
b_ block in registers, s_ stride, ptr_ pointer. Scores are in base 2 inside (log2 e is folded into
their scale), since the hardware has exp2 and no exp; what is stored is in nats.

Everything works for float64 too, slowly: that is for `gradcheck`.
"""

import os
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.reference import Call, Forward, drop_threshold

# The interpreter's arithmetic on bfloat16 is wrong, its loads, stores and casts are right.
IS_INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"

LOG2E = tl.constexpr(1.4426950408889634)
LN2 = tl.constexpr(0.6931471805599453)
# Minus infinity for scores of keys beyond the end: finite, so that no inf - inf gives NaN, and so
# large that adding any score leaves it as it is.
NEVER = tl.constexpr(-1.0e30)
# Arguments that change from batch to batch: without this Triton compiles a second time where one of
# them happens to be a multiple of 16. Strides, the same in all batches, are constants: rows of 26
# numbers are then known to begin where two can be loaded at once.
CHANGING = ["N", "n_blocks", "s_keep"]


# ---- parts of a tile


@triton.jit
def dot(b_x, b_y, ACC: tl.constexpr, UP: tl.constexpr, PRECISION: tl.constexpr):
    """x y with sums in ACC.  UP: widen the operands first, which changes no value."""
    if UP:
        b_x = b_x.to(ACC)
        b_y = b_y.to(ACC)
    return tl.dot(b_x, b_y, input_precision=PRECISION, out_dtype=ACC)


@triton.jit
def load_rows(ptr, o_n, m_n, s_n, D: tl.constexpr, BLOCK_D: tl.constexpr, FIRST: tl.constexpr):
    """Rows o_n of (N, D), their columns from FIRST on; zeros outside.  -> (rows, BLOCK_D)"""
    o_d = FIRST + tl.arange(0, BLOCK_D)
    m = m_n[:, None] & (o_d < D)[None, :]
    return tl.load(ptr + o_n[:, None] * s_n + o_d[None, :], mask=m, other=0.0)


@triton.jit
def teacher_scores(
    b_x, ptr_x, o_x, m_x, s_x, ptr_y, o_y, m_y, s_y,
    SCALE_T: tl.constexpr, D_T: tl.constexpr, BLOCK_D_T: tl.constexpr,
    ACC: tl.constexpr, UP: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """(rows of x, rows of y) scores of the teacher, base 2.

    b_x: the first BLOCK_D_T columns of x, read once by the caller; a wider head is summed in
    pieces, and the further ones are read here each time.
    """
    b_y = load_rows(ptr_y, o_y, m_y, s_y, D_T, BLOCK_D_T, 0)
    b_z = dot(b_x, tl.trans(b_y), ACC, UP, PRECISION)
    for FIRST in tl.static_range(BLOCK_D_T, D_T, BLOCK_D_T):
        b_x = load_rows(ptr_x, o_x, m_x, s_x, D_T, BLOCK_D_T, FIRST)
        b_y = load_rows(ptr_y, o_y, m_y, s_y, D_T, BLOCK_D_T, FIRST)
        b_z += dot(b_x, tl.trans(b_y), ACC, UP, PRECISION)
    return b_z * (SCALE_T * LOG2E)


@triton.jit
def mix(x):
    """A 32-bit hash: every bit of x reaches every bit of the result (Wellons' lowbias32)."""
    x ^= x >> 16
    x *= 0x7FEB352D
    x ^= x >> 15
    x *= 0x846CA68B
    return x ^ (x >> 16)


@triton.jit
def seed_words(ptr_seed):
    """Two words of the seed, each of which depends on all its bits."""
    seed = tl.load(ptr_seed)
    low, high = seed.to(tl.uint32), (seed >> 32).to(tl.uint32)
    first = mix(low ^ mix(high))
    return first, mix(first ^ high)


@triton.jit
def drawn(first, second, o_row, o_word, is_high, THRESHOLD: tl.constexpr):
    """Mask of what dropout keeps of rows o_row, from a hash of (seed, row, word): the same whatever
    the blocks, so that backward finds the mask of forward again.

    Two entries share a word, 16 bits each: entry j has the high half of word 8 (j // 16) + j % 8
    where j has the bit 8, else the low one.
    """
    x = o_row.to(tl.uint32) * 0xE35E67B1 + first  # the golden ratio's square, modulo 2^32
    x += o_word.to(tl.uint32) * 0x9E3779B9  # a Weyl sequence along the words
    x ^= x >> 16
    x *= 0x7FEB352D
    x ^= (x >> 15) ^ second
    x *= 0x846CA68B
    return tl.where(is_high, x, x << 16) >= THRESHOLD


@triton.jit
def is_kept(
    ptr_keep, first, second, o_row, m_row, i_j, o_j, m_j, s_keep, THRESHOLD: tl.constexpr,
    DROPOUT: tl.constexpr, BLOCK_ROW: tl.constexpr, BLOCK_J: tl.constexpr, IS_DOWN: tl.constexpr,
):  # fmt: skip
    """Mask of the probabilities that dropout keeps, rows of the maps against keys j, from i_j on.

    From bits, or drawn; then i_j is a multiple of 16, and each word is computed once: tensor cores
    leave entries j and j + 8 of a tile to one thread, whether keys lie across or down (IS_DOWN).
    """
    if DROPOUT == "bits":
        if IS_DOWN:
            o_row, m_row, o_j, m_j = o_row[None, :], m_row[None, :], o_j[:, None], m_j[:, None]
        else:
            o_row, m_row, o_j, m_j = o_row[:, None], m_row[:, None], o_j[None, :], m_j[None, :]
        b_bits = tl.load(ptr_keep + o_row * s_keep + o_j // 8, mask=m_row & m_j, other=0)
        kept = ((b_bits >> (o_j % 8)) & 1) != 0
    else:
        # keys as (16s of keys, half, word)
        o_word = i_j // 2 + tl.arange(0, BLOCK_J // 16)[:, None] * 8 + tl.arange(0, 8)[None, :]
        o_word, is_high = o_word[:, None, :], tl.arange(0, 2)[None, :, None] != 0
        if IS_DOWN:
            o_row, o_word = o_row[None, None, None, :], o_word[:, :, :, None]
            is_high = is_high[:, :, :, None]
        else:
            o_row, o_word = o_row[:, None, None, None], o_word[None, :, :, :]
            is_high = is_high[None, :, :, :]
        kept = drawn(first, second, o_row, o_word, is_high, THRESHOLD)
        SHAPE: tl.constexpr = (BLOCK_J, BLOCK_ROW) if IS_DOWN else (BLOCK_ROW, BLOCK_J)
        kept = tl.reshape(kept, SHAPE)
    return kept


@triton.jit
def sequence(ptr_cu_seqlens, i_b, N):
    """First token and length of sequence i_b; a boundary beyond the row is cut to it."""
    first = tl.load(ptr_cu_seqlens + i_b).to(tl.int64)
    last = tl.load(ptr_cu_seqlens + i_b + 1).to(tl.int64)
    last = tl.minimum(last, N)
    return first, (last - first).to(tl.int32)


# ---- forward


@triton.jit(do_not_specialize=CHANGING)
def forward_kernel(
    ptr_q, ptr_k, ptr_v, ptr_q_t, ptr_k_t, ptr_lse_t, ptr_keep, ptr_seed, ptr_cu_seqlens,
    ptr_out, ptr_row, ptr_lse, ptr_lse_t_out, ptr_stat,
    N, H, n_blocks, s_keep,
    s_q: tl.constexpr, s_q_h: tl.constexpr, s_k: tl.constexpr, s_k_h: tl.constexpr,
    s_v: tl.constexpr, s_v_h: tl.constexpr, s_q_t: tl.constexpr, s_q_t_h: tl.constexpr,
    s_k_t: tl.constexpr, s_k_t_h: tl.constexpr,
    SCALE: tl.constexpr, SCALE_T: tl.constexpr, KEEP_SCALE: tl.constexpr, THRESHOLD: tl.constexpr,
    D: tl.constexpr, BLOCK_D: tl.constexpr, D_T: tl.constexpr, BLOCK_D_T: tl.constexpr,
    DIVERGENCE: tl.constexpr, DROPOUT: tl.constexpr,
    BLOCK_Q: tl.constexpr, BLOCK_K: tl.constexpr,
    ACC: tl.constexpr, UP: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """(1)-(9): one program, BLOCK_Q queries of one head of one sequence."""
    i = tl.program_id(0).to(tl.int64)
    i_b, i_h = (i // n_blocks) // H, (i // n_blocks) % H
    first, T = sequence(ptr_cu_seqlens, i_b, N)
    i_q = ((i % n_blocks) * BLOCK_Q).to(tl.int32)
    if i_q >= T:
        return
    o_i = i_q + tl.arange(0, BLOCK_Q)
    m_q = o_i < T
    o_q = first + o_i  # tokens of the row, int64
    o_row = o_q * H + i_h  # rows of the maps
    b_q = load_rows(ptr_q + i_h * s_q_h, o_q, m_q, s_q, D, BLOCK_D, 0)
    first_word, second_word = 0, 0
    if DROPOUT == "seed":
        first_word, second_word = seed_words(ptr_seed)
    b_max = tl.full((BLOCK_Q,), NEVER, ACC)
    b_sum = tl.zeros((BLOCK_Q,), ACC)
    b_out = tl.zeros((BLOCK_Q, BLOCK_D), ACC)
    if DIVERGENCE != "none":
        b_q_t = load_rows(ptr_q_t + i_h * s_q_t_h, o_q, m_q, s_q_t, D_T, BLOCK_D_T, 0)
        b_x = tl.zeros((BLOCK_Q,), ACC)  # what the divergence sums over the keys
        if ptr_lse_t is not None:  # as if lse_t had been the maximum and the sum 1: no rescaling
            b_max_t = tl.load(ptr_lse_t + o_row, mask=m_q, other=0.0).to(ACC) * LOG2E
            b_sum_t = tl.full((BLOCK_Q,), 1.0, ACC)
        else:
            b_max_t = tl.full((BLOCK_Q,), NEVER, ACC)
            b_sum_t = tl.zeros((BLOCK_Q,), ACC)
    if DIVERGENCE == "mse_maps":
        b_ss = tl.zeros((BLOCK_Q,), ACC)
        b_st = tl.zeros((BLOCK_Q,), ACC)
        b_tt = tl.zeros((BLOCK_Q,), ACC)

    for i_k in range(0, T, BLOCK_K):
        o_j = i_k + tl.arange(0, BLOCK_K)
        m_k = o_j < T
        o_k = first + o_j
        b_bias = tl.where(m_k, 0.0, NEVER).to(ACC)
        b_k = load_rows(ptr_k + i_h * s_k_h, o_k, m_k, s_k, D, BLOCK_D, 0)
        b_z = dot(b_q, tl.trans(b_k), ACC, UP, PRECISION) * (SCALE * LOG2E) + b_bias[None, :]  # (1)
        b_max_new = tl.maximum(b_max, tl.max(b_z, 1))
        b_shrink = tl.exp2(b_max - b_max_new)
        b_p = tl.exp2(b_z - b_max_new[:, None])  # (2) up to the row's factor
        b_sum = b_sum * b_shrink + tl.sum(b_p, 1)
        b_max = b_max_new
        if DIVERGENCE != "none":
            b_z_t = teacher_scores(
                b_q_t, ptr_q_t + i_h * s_q_t_h, o_q, m_q, s_q_t, ptr_k_t + i_h * s_k_t_h, o_k, m_k,
                s_k_t, SCALE_T, D_T, BLOCK_D_T, ACC, UP, PRECISION,
            )  # fmt: skip
            b_d = b_z - b_z_t  # where there is no key some number, and the probability is 0
            if DIVERGENCE != "kl_st" or ptr_lse_t is None:
                b_z_t += b_bias[None, :]
                if ptr_lse_t is None:
                    b_max_t_new = tl.maximum(b_max_t, tl.max(b_z_t, 1))
                    b_shrink_t = tl.exp2(b_max_t - b_max_t_new)
                    b_max_t = b_max_t_new
                b_p_t = tl.exp2(b_z_t - b_max_t[:, None])
                if ptr_lse_t is None:
                    b_sum_t = b_sum_t * b_shrink_t + tl.sum(b_p_t, 1)
            if DIVERGENCE == "kl_st":  # (5)
                b_x = b_x * b_shrink + tl.sum(b_p * b_d, 1)
            if DIVERGENCE == "kl_ts":  # (6)
                if ptr_lse_t is None:
                    b_x = b_x * b_shrink_t
                b_x -= tl.sum(b_p_t * b_d, 1)
            if DIVERGENCE == "mse_maps":  # (7)
                if ptr_lse_t is None:
                    b_st = b_st * b_shrink_t
                    b_tt = b_tt * b_shrink_t * b_shrink_t
                b_ss = b_ss * b_shrink * b_shrink + tl.sum(b_p * b_p, 1)
                b_st = b_st * b_shrink + tl.sum(b_p * b_p_t, 1)
                b_tt += tl.sum(b_p_t * b_p_t, 1)
        if DROPOUT != "none":  # (3)
            kept = is_kept(
                ptr_keep, first_word, second_word, o_row, m_q, i_k, o_j, m_k, s_keep,
                THRESHOLD, DROPOUT, BLOCK_Q, BLOCK_K, False,
            )  # fmt: skip
            b_p = tl.where(kept, b_p, 0.0)
        b_v = load_rows(ptr_v + i_h * s_v_h, o_k, m_k, s_v, D, BLOCK_D, 0)
        b_out = b_out * b_shrink[:, None] + dot(b_p.to(b_v.dtype), b_v, ACC, UP, PRECISION)  # (4)

    b_lse = b_max + tl.log2(b_sum)
    tl.store(ptr_lse + o_row, b_lse * LN2, mask=m_q)
    b_out = b_out * (KEEP_SCALE / b_sum)[:, None]
    o_d = tl.arange(0, BLOCK_D)
    m = m_q[:, None] & (o_d < D)[None, :]
    tl.store(
        ptr_out + o_row[:, None] * D + o_d[None, :], b_out.to(ptr_out.dtype.element_ty), mask=m
    )
    if DIVERGENCE != "none":
        b_lse_t = b_max_t + tl.log2(b_sum_t)
        if ptr_lse_t is None:
            tl.store(ptr_lse_t_out + o_row, b_lse_t * LN2, mask=m_q)
        if DIVERGENCE == "kl_st":
            b_x = (b_x / b_sum - b_lse + b_lse_t) * LN2
        if DIVERGENCE == "kl_ts":
            b_x = (b_x / b_sum_t - b_lse_t + b_lse) * LN2
        if DIVERGENCE == "mse_maps":
            b_ss = b_ss / (b_sum * b_sum)
            b_st = b_st / (b_sum * b_sum_t)
            b_x = b_ss - 2.0 * b_st + b_tt / (b_sum_t * b_sum_t)
            tl.store(ptr_stat + o_row, b_ss - b_st, mask=m_q)  # (9)
        tl.store(ptr_row + o_row, b_x, mask=m_q)


# ---- backward


@triton.jit
def tile_gradient(
    b_z, b_z_t, b_dp, kept, b_lse, b_lse_t, b_delta, b_g,
    KEEP_SCALE: tl.constexpr, DIVERGENCE: tl.constexpr, DROPOUT: tl.constexpr,
):  # fmt: skip
    """(11)-(12): a tile's probabilities after dropout, without its factor KEEP_SCALE, and the
    gradient of its scores in nats.

    Args:
        b_z, b_z_t:     a tile of scores, base 2, in either orientation.
        b_dp:           the gradient of its probabilities after dropout.
        b_lse, b_lse_t: of its rows, base 2; b_delta: as `dq` leaves it; b_g: the gradient of its
                        rows' divergence; all along the tile's axis of queries.
    """
    b_p = tl.exp2(b_z - b_lse)
    b_kept = b_p
    if DROPOUT != "none":
        b_dp = tl.where(kept, b_dp, 0.0)
        b_kept = tl.where(kept, b_p, 0.0)
    b_dp = b_dp * KEEP_SCALE - b_delta
    if DIVERGENCE == "kl_st":
        b_dp += b_g * LN2 * (b_z - b_z_t)
    if DIVERGENCE == "mse_maps":
        b_dp += 2.0 * b_g * (b_p - tl.exp2(b_z_t - b_lse_t))
    b_dz = b_p * b_dp
    if DIVERGENCE == "kl_ts":
        b_dz += b_g * (b_p - tl.exp2(b_z_t - b_lse_t))
    return b_kept, b_dz


@triton.jit(do_not_specialize=CHANGING)
def dq_kernel(
    ptr_q, ptr_k, ptr_v, ptr_q_t, ptr_k_t, ptr_lse, ptr_lse_t, ptr_keep, ptr_seed, ptr_cu_seqlens,
    ptr_out, ptr_dout, ptr_g, ptr_stat, ptr_dq, ptr_delta,
    N, H, n_blocks, s_keep,
    s_q: tl.constexpr, s_q_h: tl.constexpr, s_k: tl.constexpr, s_k_h: tl.constexpr,
    s_v: tl.constexpr, s_v_h: tl.constexpr, s_q_t: tl.constexpr, s_q_t_h: tl.constexpr,
    s_k_t: tl.constexpr, s_k_t_h: tl.constexpr,
    SCALE: tl.constexpr, SCALE_T: tl.constexpr, KEEP_SCALE: tl.constexpr, THRESHOLD: tl.constexpr,
    D: tl.constexpr, BLOCK_D: tl.constexpr, D_T: tl.constexpr, BLOCK_D_T: tl.constexpr,
    DIVERGENCE: tl.constexpr, DROPOUT: tl.constexpr,
    BLOCK_Q: tl.constexpr, BLOCK_K: tl.constexpr,
    ACC: tl.constexpr, UP: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Gradient of BLOCK_Q queries (13), and each row's DELTA (10), which `dkdv` needs too.

    For "kl_st" it has g (lse_s - lse_t) of (11) besides: all of the row's that a tile subtracts.
    """
    i = tl.program_id(0).to(tl.int64)
    i_b, i_h = (i // n_blocks) // H, (i // n_blocks) % H
    first, T = sequence(ptr_cu_seqlens, i_b, N)
    i_q = ((i % n_blocks) * BLOCK_Q).to(tl.int32)
    if i_q >= T:
        return
    o_i = i_q + tl.arange(0, BLOCK_Q)
    m_q = o_i < T
    o_q = first + o_i
    o_row = o_q * H + i_h
    b_q = load_rows(ptr_q + i_h * s_q_h, o_q, m_q, s_q, D, BLOCK_D, 0)
    b_dout = load_rows(ptr_dout, o_row, m_q, D, D, BLOCK_D, 0)
    b_o = load_rows(ptr_out, o_row, m_q, D, D, BLOCK_D, 0)
    b_lse = tl.load(ptr_lse + o_row, mask=m_q, other=0.0).to(ACC) * LOG2E
    b_delta = tl.sum(b_o.to(ACC) * b_dout.to(ACC), 1)
    b_g = tl.zeros((BLOCK_Q,), ACC)
    b_lse_t = tl.zeros((BLOCK_Q,), ACC)
    b_q_t = b_q
    if DIVERGENCE != "none":
        b_g = tl.load(ptr_g + o_row, mask=m_q, other=0.0).to(ACC)
        b_q_t = load_rows(ptr_q_t + i_h * s_q_t_h, o_q, m_q, s_q_t, D_T, BLOCK_D_T, 0)
        b_lse_t = tl.load(ptr_lse_t + o_row, mask=m_q, other=0.0).to(ACC) * LOG2E
        if DIVERGENCE == "kl_st":
            b_stat = tl.load(ptr_stat + o_row, mask=m_q, other=0.0).to(ACC)
            b_delta += b_g * (b_stat + LN2 * (b_lse - b_lse_t))
        if DIVERGENCE == "mse_maps":
            b_delta += 2.0 * b_g * tl.load(ptr_stat + o_row, mask=m_q, other=0.0).to(ACC)
    tl.store(ptr_delta + o_row, b_delta, mask=m_q)
    first_word, second_word = 0, 0
    if DROPOUT == "seed":
        first_word, second_word = seed_words(ptr_seed)
    b_dq = tl.zeros((BLOCK_Q, BLOCK_D), ACC)

    for i_k in range(0, T, BLOCK_K):
        o_j = i_k + tl.arange(0, BLOCK_K)
        m_k = o_j < T
        o_k = first + o_j
        b_bias = tl.where(m_k, 0.0, NEVER).to(ACC)
        b_k = load_rows(ptr_k + i_h * s_k_h, o_k, m_k, s_k, D, BLOCK_D, 0)
        b_v = load_rows(ptr_v + i_h * s_v_h, o_k, m_k, s_v, D, BLOCK_D, 0)
        b_z = dot(b_q, tl.trans(b_k), ACC, UP, PRECISION) * (SCALE * LOG2E) + b_bias[None, :]
        b_z_t = b_z
        if DIVERGENCE != "none":
            b_z_t = b_bias[None, :] + teacher_scores(
                b_q_t, ptr_q_t + i_h * s_q_t_h, o_q, m_q, s_q_t, ptr_k_t + i_h * s_k_t_h, o_k, m_k,
                s_k_t, SCALE_T, D_T, BLOCK_D_T, ACC, UP, PRECISION,
            )  # fmt: skip
        b_dp = dot(b_dout, tl.trans(b_v), ACC, UP, PRECISION)
        kept = m_k[None, :]
        if DROPOUT != "none":
            kept = is_kept(
                ptr_keep, first_word, second_word, o_row, m_q, i_k, o_j, m_k, s_keep,
                THRESHOLD, DROPOUT, BLOCK_Q, BLOCK_K, False,
            )  # fmt: skip
        _, b_dz = tile_gradient(
            b_z, b_z_t, b_dp, kept, b_lse[:, None], b_lse_t[:, None], b_delta[:, None],
            b_g[:, None], KEEP_SCALE, DIVERGENCE, DROPOUT,
        )  # fmt: skip
        b_dq += dot(b_dz.to(b_k.dtype), b_k, ACC, UP, PRECISION)

    o_d = tl.arange(0, BLOCK_D)
    m = m_q[:, None] & (o_d < D)[None, :]
    tl.store(
        ptr_dq + o_row[:, None] * D + o_d[None, :],
        (b_dq * SCALE).to(ptr_dq.dtype.element_ty),
        mask=m,
    )


@triton.jit(do_not_specialize=CHANGING)
def dkdv_kernel(
    ptr_q, ptr_k, ptr_v, ptr_q_t, ptr_k_t, ptr_lse, ptr_lse_t, ptr_keep, ptr_seed, ptr_cu_seqlens,
    ptr_dout, ptr_g, ptr_delta, ptr_dk, ptr_dv,
    N, H, n_blocks, s_keep,
    s_q: tl.constexpr, s_q_h: tl.constexpr, s_k: tl.constexpr, s_k_h: tl.constexpr,
    s_v: tl.constexpr, s_v_h: tl.constexpr, s_q_t: tl.constexpr, s_q_t_h: tl.constexpr,
    s_k_t: tl.constexpr, s_k_t_h: tl.constexpr,
    SCALE: tl.constexpr, SCALE_T: tl.constexpr, KEEP_SCALE: tl.constexpr, THRESHOLD: tl.constexpr,
    D: tl.constexpr, BLOCK_D: tl.constexpr, D_T: tl.constexpr, BLOCK_D_T: tl.constexpr,
    DIVERGENCE: tl.constexpr, DROPOUT: tl.constexpr,
    BLOCK_Q: tl.constexpr, BLOCK_K: tl.constexpr,
    ACC: tl.constexpr, UP: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Gradient of BLOCK_K keys (14) and values (15)."""
    i = tl.program_id(0).to(tl.int64)
    i_b, i_h = (i // n_blocks) // H, (i // n_blocks) % H
    first, T = sequence(ptr_cu_seqlens, i_b, N)
    i_k = ((i % n_blocks) * BLOCK_K).to(tl.int32)
    if i_k >= T:
        return
    o_j = i_k + tl.arange(0, BLOCK_K)
    m_k = o_j < T
    o_k = first + o_j
    b_k = load_rows(ptr_k + i_h * s_k_h, o_k, m_k, s_k, D, BLOCK_D, 0)
    b_v = load_rows(ptr_v + i_h * s_v_h, o_k, m_k, s_v, D, BLOCK_D, 0)
    if DIVERGENCE != "none":
        b_k_t = load_rows(ptr_k_t + i_h * s_k_t_h, o_k, m_k, s_k_t, D_T, BLOCK_D_T, 0)
    first_word, second_word = 0, 0
    if DROPOUT == "seed":
        first_word, second_word = seed_words(ptr_seed)
    b_dk = tl.zeros((BLOCK_K, BLOCK_D), ACC)
    b_dv = tl.zeros((BLOCK_K, BLOCK_D), ACC)

    for i_q in range(0, T, BLOCK_Q):
        o_i = i_q + tl.arange(0, BLOCK_Q)
        m_q = o_i < T
        o_q = first + o_i
        o_row = o_q * H + i_h
        b_q = load_rows(ptr_q + i_h * s_q_h, o_q, m_q, s_q, D, BLOCK_D, 0)
        b_dout = load_rows(ptr_dout, o_row, m_q, D, D, BLOCK_D, 0)
        # a query beyond the end has lse = infinity, so probability 0
        b_lse = tl.load(ptr_lse + o_row, mask=m_q, other=-NEVER).to(ACC) * LOG2E
        b_delta = tl.load(ptr_delta + o_row, mask=m_q, other=0.0)
        # the tile lies on its side, keys down: the products below then take it as it is. Whatever a
        # key beyond the end gets reaches its own gradients only, which are not stored
        b_z = dot(b_k, tl.trans(b_q), ACC, UP, PRECISION) * (SCALE * LOG2E)
        b_z_t, b_g, b_lse_t = b_z, b_delta, b_lse
        if DIVERGENCE != "none":
            b_g = tl.load(ptr_g + o_row, mask=m_q, other=0.0).to(ACC)
            b_z_t = teacher_scores(
                b_k_t, ptr_k_t + i_h * s_k_t_h, o_k, m_k, s_k_t, ptr_q_t + i_h * s_q_t_h, o_q, m_q,
                s_q_t, SCALE_T, D_T, BLOCK_D_T, ACC, UP, PRECISION,
            )  # fmt: skip
            if DIVERGENCE != "kl_st":
                b_lse_t = tl.load(ptr_lse_t + o_row, mask=m_q, other=-NEVER).to(ACC) * LOG2E
        b_dp = dot(b_v, tl.trans(b_dout), ACC, UP, PRECISION)
        kept = m_q[None, :]
        if DROPOUT != "none":
            kept = is_kept(
                ptr_keep, first_word, second_word, o_row, m_q, i_k, o_j, m_k, s_keep,
                THRESHOLD, DROPOUT, BLOCK_Q, BLOCK_K, True,
            )  # fmt: skip
        b_kept, b_dz = tile_gradient(
            b_z, b_z_t, b_dp, kept, b_lse[None, :], b_lse_t[None, :], b_delta[None, :],
            b_g[None, :], KEEP_SCALE, DIVERGENCE, DROPOUT,
        )  # fmt: skip
        b_dv += dot(b_kept.to(b_dout.dtype), b_dout, ACC, UP, PRECISION)
        b_dk += dot(b_dz.to(b_q.dtype), b_q, ACC, UP, PRECISION)

    o_d = tl.arange(0, BLOCK_D)
    m = m_k[:, None] & (o_d < D)[None, :]
    o = (o_k * H + i_h)[:, None] * D + o_d[None, :]
    tl.store(ptr_dk + o, (b_dk * SCALE).to(ptr_dk.dtype.element_ty), mask=m)
    tl.store(ptr_dv + o, (b_dv * KEEP_SCALE).to(ptr_dv.dtype.element_ty), mask=m)


# ---- launching


WIDEST = 64  # of a teacher's head, in one product; a wider one is summed in pieces


class AttentionConfig(NamedTuple):
    """Block sizes and launch options of one kernel."""

    BLOCK_Q: int
    BLOCK_K: int
    num_warps: int
    num_stages: int


def pick_config(
    kernel: str, D: int, D_T: int, divergence: str, dtype: torch.dtype
) -> AttentionConfig:
    """The configuration of `kernel` ("forward", "dq" or "dkdv") for heads of D and D_T.

    Chosen so that nothing spills on sm_90 and two programs fit on a multiprocessor, by Triton 3.6
    and by 3.9 (tests/kernels/test_triton_sm90.py); not yet timed.
    """
    is_wide = D_T > WIDEST
    if dtype == torch.float64:
        return AttentionConfig(16, 16, 4, 1)
    if dtype == torch.float32 and is_wide:
        return AttentionConfig(16, 16, 8, 1)
    if dtype == torch.float32 and (kernel, divergence) == ("dq", "mse_maps") and D > 32:
        return AttentionConfig(16, 32, 4, 2)
    if dtype == torch.float32 and (kernel, divergence) == ("dkdv", "kl_st") and D > 32:
        return AttentionConfig(32, 32, 8, 1)
    if dtype == torch.float32:
        return AttentionConfig(32, 32, 8 if kernel == "dkdv" else 4, 2)
    if kernel == "dkdv":
        return AttentionConfig(32, 64, 4, 2)
    return AttentionConfig(64, 32 if is_wide else 64, 4, 2)


def padded_width(D: int) -> int:
    """The next power of two, 16 at least: what a product on tensor cores takes."""
    return max(16, triton.next_power_of_2(D))


def constants(
    D: int,
    D_T: int,
    divergence: str,
    dropout: str,
    p: float,
    scale: float,
    scale_t: float,
    dtype: torch.dtype,
) -> dict:
    """The constants that the kernels are compiled for, beside their blocks.

    dropout: "none", "bits" or "seed"; p: its share.
    """
    is_double = dtype == torch.float64
    return {
        "D": D,
        "BLOCK_D": padded_width(D),
        "D_T": D_T,
        "BLOCK_D_T": min(padded_width(D_T), WIDEST),
        "DIVERGENCE": divergence,
        "DROPOUT": dropout,
        "SCALE": scale,
        "SCALE_T": scale_t,
        "KEEP_SCALE": 1 / (1 - p),
        "THRESHOLD": drop_threshold(p) << 16,
        "UP": IS_INTERPRETED or is_double,
        "ACC": tl.float64 if is_double else tl.float32,
        # three products of 10-bit halves: float32's accuracy on tensor cores
        "PRECISION": "tf32x3" if dtype == torch.float32 else "ieee",
    }


def launch(kernel, name: str, x: Call, own: dict[str, Tensor | None]) -> None:
    """Start one program for each block of each head of each sequence.

    own: the pointers that this kernel has beside those of all three.
    """
    N, H, D = x.q.shape
    D_T = x.q_t.shape[-1] if x.q_t is not None else 1
    config = pick_config(name, D, D_T, x.divergence, x.q.dtype)
    n_blocks = triton.cdiv(x.max_len, config.BLOCK_K if name == "dkdv" else config.BLOCK_Q)
    n_programs = n_blocks * H * (x.cu_seqlens.numel() - 1)
    if not n_programs or not N:
        return
    rows = {"q": x.q, "k": x.k, "v": x.v, "q_t": x.q_t, "k_t": x.k_t}
    keep = x.keep
    if keep is not None and x.q.dtype == torch.float64:
        keep = keep.long()  # Triton 3.6 cannot lay out products of float64 that follow from bytes
    pointers = {**rows, **own, "keep": keep, "seed": x.seed, "cu_seqlens": x.cu_seqlens}
    strides = {f"s_{y_name}": 0 if y is None else y.stride(0) for y_name, y in rows.items()}
    strides |= {f"s_{y_name}_h": 0 if y is None else y.stride(1) for y_name, y in rows.items()}
    dropout = "bits" if x.keep is not None else "seed" if x.seed is not None else "none"
    with torch.cuda.device_of(x.q):
        kernel[(n_programs,)](
            **{f"ptr_{y_name}": y for y_name, y in pointers.items()}, **strides,
            s_keep=0 if x.keep is None else x.keep.shape[-1], N=N, H=H, n_blocks=n_blocks,
            BLOCK_Q=config.BLOCK_Q, BLOCK_K=config.BLOCK_K, num_warps=config.num_warps,
            num_stages=config.num_stages,
            **constants(D, D_T, x.divergence, dropout, x.dropout, x.scale, x.scale_t, x.q.dtype),
        )  # fmt: skip


def forward(x: Call, lse_t: Tensor | None) -> Forward:
    """(1)-(9). lse_t: (N, H) log-sum-exp of the teacher's rows; None = computed here."""
    result = Forward.blank(x, lse_t)
    own = {"out": result.out, "row": result.row_loss, "lse": result.lse, "stat": result.stat}
    launch(forward_kernel, "forward", x, {**own, "lse_t": lse_t, "lse_t_out": result.lse_t})
    return result


def backward(
    x: Call,
    out: Tensor,
    lse: Tensor,
    lse_t: Tensor | None,
    stat: Tensor | None,
    dout: Tensor,
    g: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor]:
    """(10)-(15): gradients of q, k and v, each (N, H, D).

    Args:
        out, lse, lse_t: results of `forward`.
        stat:            (N, H) the divergence itself for "kl_st", `forward`'s for "mse_maps".
        dout:            (N, H, D) gradient of out.
        g:               (N, H) gradient of the rows' divergence.
    """
    grads = [torch.empty(x.q.shape, dtype=x.q.dtype, device=x.q.device) for _ in range(3)]
    delta = torch.empty(lse.shape, dtype=lse.dtype, device=lse.device)
    g = None if g is None else g.contiguous()
    own = {"lse": lse, "lse_t": lse_t, "dout": dout.contiguous(), "g": g, "delta": delta}
    launch(dq_kernel, "dq", x, {**own, "out": out, "stat": stat, "dq": grads[0]})
    launch(dkdv_kernel, "dkdv", x, {**own, "dk": grads[1], "dv": grads[2]})
    return tuple(grads)
