"""The masked-LM losses without any logits in memory: tiles of them live only in registers.

    statistics   a program owns BLOCK_M rows and a share of the words: each row's maxima and sums,
                 combined afterwards in a fixed order
    dE           a program owns BLOCK_V words and BLOCK_O columns, and walks over all rows
    dh           a program owns BLOCK_M rows, BLOCK_O columns and a share of the words; the shares'
                 results are summed in a fixed order

The other end of the design space from triton_mlm.py: the least memory, and the tiles formed again
for every BLOCK_O columns of each gradient. Each result has one owner, so there are no atomics and
results repeat bit for bit. Read kernels/README.md first; numbers in brackets are its lines. Names
are those of triton_mlm.py. Arguments that change from batch to batch are not specialised, as in
triton_attention.py.
"""

import os
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.reference import Decoder, Result, wide_dtype

# The interpreter's arithmetic on bfloat16 is wrong, its loads, stores and casts are right.
IS_INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"

LOG2E = tl.constexpr(1.4426950408889634)
# Minus infinity for logits beyond the vocabulary: finite, so that no inf - inf gives NaN.
NEVER = tl.constexpr(-1.0e30)

N_STATISTICS = 7  # of a row and a share of the words


class StreamConfig(NamedTuple):
    """Block sizes and launch options of one kernel."""

    BLOCK_M: int
    BLOCK_V: int
    BLOCK_D: int  # columns multiplied at a time to form a tile
    BLOCK_O: int  # columns of a gradient that one program owns
    num_warps: int
    num_stages: int


def pick_config(kernel: str, dtype: torch.dtype) -> StreamConfig:
    """The configuration of `kernel` ("statistics", "dE" or "dh") for the student's type.

    Chosen so that nothing spills on sm_90, by Triton 3.6 and by 3.9
    (tests/kernels/test_triton_mlm_sm90.py); not yet timed.
    """
    if dtype == torch.float64:
        return StreamConfig(16, 16, 16, 16, 4, 1)
    if dtype == torch.float32:
        return StreamConfig(32, 64, 32, 64, 8, 2)
    if kernel == "statistics":
        return StreamConfig(64, 128, 64, 64, 8, 3)
    return StreamConfig(64, 64, 64, 128, 8, 2)


PROGRAMS = 264  # at least, where there is that much to do: two for each processor of an H200


# ---- parts of a tile


@triton.jit
def dot(b_x, b_y, b_sum, ACC: tl.constexpr, UP: tl.constexpr, PRECISION: tl.constexpr):
    """b_sum + x y.  UP: widen the operands first, which changes no value."""
    if UP:
        b_x = b_x.to(ACC)
        b_y = b_y.to(ACC)
    return tl.dot(b_x, b_y, b_sum, input_precision=PRECISION, out_dtype=ACC)


@triton.jit
def load_tile(ptr, o_i, m_i, s_i, o_j, m_j, s_j):
    """Elements (i, j) by their strides; 0, which adds nothing to a product, where there is none."""
    return tl.load(
        ptr + o_i[:, None] * s_i + o_j[None, :] * s_j, mask=m_i[:, None] & m_j[None, :], other=0.0
    )


@triton.jit
def logits_tile(
    ptr_h, ptr_E, ptr_E2, ptr_b, o_m, m_m, o_v, m_v, s_h, s_v, s_d, s_v2, s_d2,
    D: tl.constexpr, D2: tl.constexpr, BLOCK_D: tl.constexpr,
    ACC: tl.constexpr, UP: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """(16) of rows o_m and words o_v, from one block or two; NEVER beyond the vocabulary."""
    b_x = tl.zeros((o_m.shape[0], o_v.shape[0]), ACC)
    for i_d in range(0, D, BLOCK_D):
        o_d = i_d + tl.arange(0, BLOCK_D)
        b_h = load_tile(ptr_h, o_m, m_m, s_h, o_d, o_d < D, 1)
        b_E = load_tile(ptr_E, o_d, o_d < D, s_d, o_v, m_v, s_v)
        b_x = dot(b_h, b_E, b_x, ACC, UP, PRECISION)
    if D2 > 0:
        for i_d in range(0, D2, BLOCK_D):
            o_d = i_d + tl.arange(0, BLOCK_D)
            b_h = load_tile(ptr_h + D, o_m, m_m, s_h, o_d, o_d < D2, 1)
            b_E = load_tile(ptr_E2, o_d, o_d < D2, s_d2, o_v, m_v, s_v2)
            b_x = dot(b_h, b_E, b_x, ACC, UP, PRECISION)
    if ptr_b is not None:
        b_x += tl.load(ptr_b + o_v, mask=m_v, other=0.0).to(ACC)[None, :]
    return tl.where(m_v[None, :], b_x, NEVER)


# ---- forward


@triton.jit(do_not_specialize=["M", "n_shares"])
def statistics_kernel(
    ptr_h_s, ptr_E_s, ptr_E2_s, ptr_b_s, s_h_s, s_v_s, s_d_s, s_v2_s, s_d2_s,
    ptr_h_t, ptr_E_t, ptr_E2_t, ptr_b_t, s_h_t, s_v_t, s_d_t, s_v2_t, s_d2_t,
    ptr_labels, ptr_out, M, V, share, n_shares,
    D_S: tl.constexpr, D2_S: tl.constexpr, D_T: tl.constexpr, D2_T: tl.constexpr,
    T: tl.constexpr, IS_KL: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_V: tl.constexpr,
    BLOCK_D: tl.constexpr, ACC: tl.constexpr, UP: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Maxima and sums for (17)-(19): BLOCK_M rows, `share` words -> (shares, N_STATISTICS, M)."""
    i = tl.program_id(0).to(tl.int64)
    i_share = i % n_shares
    o_m = (i // n_shares) * BLOCK_M + tl.arange(0, BLOCK_M)
    m_m = o_m < M
    b_max = tl.full((BLOCK_M,), NEVER, ACC)
    b_max_t = tl.full((BLOCK_M,), NEVER, ACC)
    b_1 = tl.zeros((BLOCK_M,), ACC)
    b_T = tl.zeros((BLOCK_M,), ACC)
    b_t = tl.zeros((BLOCK_M,), ACC)
    b_d = tl.zeros((BLOCK_M,), ACC)
    b_y = tl.zeros((BLOCK_M,), ACC)
    for i_v in range(i_share * share, tl.minimum((i_share + 1) * share, V), BLOCK_V):
        o_v = (i_v + tl.arange(0, BLOCK_V)).to(tl.int64)
        m_v = o_v < V
        b_s = logits_tile(
            ptr_h_s, ptr_E_s, ptr_E2_s, ptr_b_s, o_m, m_m, o_v, m_v, s_h_s, s_v_s, s_d_s, s_v2_s,
            s_d2_s, D_S, D2_S, BLOCK_D, ACC, UP, PRECISION,
        )  # fmt: skip
        b_new = tl.maximum(b_max, tl.max(b_s, 1))
        b_z, b_shrink = (b_s - b_new[:, None]) * LOG2E, (b_max - b_new) * LOG2E
        b_max = b_new
        b_T = b_T * tl.exp2(b_shrink * (1.0 / T)) + tl.sum(tl.exp2(b_z * (1.0 / T)), 1)
        if T != 1:
            b_1 = b_1 * tl.exp2(b_shrink) + tl.sum(tl.exp2(b_z), 1)
        if ptr_labels is not None:
            y = tl.load(ptr_labels + o_m, mask=m_m, other=-1)
            b_y += tl.sum(tl.where(o_v[None, :] == y[:, None], b_s, 0.0), 1)
        if ptr_h_t is not None:
            b_x_t = logits_tile(
                ptr_h_t, ptr_E_t, ptr_E2_t, ptr_b_t, o_m, m_m, o_v, m_v, s_h_t, s_v_t, s_d_t,
                s_v2_t, s_d2_t, D_T, D2_T, BLOCK_D, ACC, UP, PRECISION,
            )  # fmt: skip
            b_new = tl.maximum(b_max_t, tl.max(b_x_t, 1))
            b_shrink = tl.exp2((b_max_t - b_new) * (LOG2E / T))
            b_e = tl.exp2((b_x_t - b_new[:, None]) * (LOG2E / T))
            b_max_t = b_new
            b_t = b_t * b_shrink + tl.sum(b_e, 1)
            b_apart = b_x_t - b_s if IS_KL else -b_s
            b_d = b_d * b_shrink + tl.sum(tl.where(b_e > 0, b_e * b_apart, 0.0), 1)  # 0 ln 0 = 0
    if T == 1:
        b_1 = b_T
    ptr_out += i_share * 7 * M + o_m
    tl.store(ptr_out, b_max, mask=m_m)
    tl.store(ptr_out + M, b_1, mask=m_m)
    tl.store(ptr_out + 2 * M, b_T, mask=m_m)
    tl.store(ptr_out + 3 * M, b_max_t, mask=m_m)
    tl.store(ptr_out + 4 * M, b_t, mask=m_m)
    tl.store(ptr_out + 5 * M, b_d, mask=m_m)
    tl.store(ptr_out + 6 * M, b_y, mask=m_m)


# ---- backward


@triton.jit
def gradient_tile(
    ptr_h_s, ptr_E_s, ptr_E2_s, ptr_b_s, s_h_s, s_v_s, s_d_s, s_v2_s, s_d2_s,
    ptr_h_t, ptr_E_t, ptr_E2_t, ptr_b_t, s_h_t, s_v_t, s_d_t, s_v2_t, s_d2_t,
    ptr_labels, ptr_rows, o_m, m_m, o_v, m_v, M,
    D_S: tl.constexpr, D2_S: tl.constexpr, D_T: tl.constexpr, D2_T: tl.constexpr,
    T: tl.constexpr, BLOCK_D: tl.constexpr,
    ACC: tl.constexpr, UP: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """(20), (21): the gradient of rows o_m and words o_v of logits; 0 where there is none.

    ptr_rows: (5, M): g_ce, T g_kd, and the log-sum-exp of the student at 1 and at T, of the
    teacher at T.
    """
    ptr_rows += o_m
    g_1 = tl.load(ptr_rows, mask=m_m, other=0.0)[:, None]
    g_T = tl.load(ptr_rows + M, mask=m_m, other=0.0)[:, None]
    # a row beyond the end has a log-sum-exp that makes all its probabilities 0
    lse_1 = tl.load(ptr_rows + 2 * M, mask=m_m, other=-NEVER)[:, None]
    b_s = logits_tile(
        ptr_h_s, ptr_E_s, ptr_E2_s, ptr_b_s, o_m, m_m, o_v, m_v, s_h_s, s_v_s, s_d_s, s_v2_s,
        s_d2_s, D_S, D2_S, BLOCK_D, ACC, UP, PRECISION,
    )  # fmt: skip
    if T == 1:
        b_g = (g_1 + g_T) * tl.exp2((b_s - lse_1) * LOG2E)
    else:
        lse_T = tl.load(ptr_rows + 3 * M, mask=m_m, other=-NEVER)[:, None]
        b_g = g_1 * tl.exp2((b_s - lse_1) * LOG2E) + g_T * tl.exp2(
            (b_s * (1.0 / T) - lse_T) * LOG2E
        )
    if ptr_labels is not None:
        y = tl.load(ptr_labels + o_m, mask=m_m, other=-1)
        b_g = tl.where(o_v[None, :] == y[:, None], b_g - g_1, b_g)
    if ptr_h_t is not None:
        lse_t = tl.load(ptr_rows + 4 * M, mask=m_m, other=-NEVER)[:, None]
        b_x_t = logits_tile(
            ptr_h_t, ptr_E_t, ptr_E2_t, ptr_b_t, o_m, m_m, o_v, m_v, s_h_t, s_v_t, s_d_t, s_v2_t,
            s_d2_t, D_T, D2_T, BLOCK_D, ACC, UP, PRECISION,
        )  # fmt: skip
        b_g -= g_T * tl.exp2((b_x_t * (1.0 / T) - lse_t) * LOG2E)
    return tl.where(m_m[:, None] & m_v[None, :], b_g, 0.0)


@triton.jit(do_not_specialize=["M"])
def dE_kernel(
    ptr_h_s, ptr_E_s, ptr_E2_s, ptr_b_s, s_h_s, s_v_s, s_d_s, s_v2_s, s_d2_s,
    ptr_h_t, ptr_E_t, ptr_E2_t, ptr_b_t, s_h_t, s_v_t, s_d_t, s_v2_t, s_d2_t,
    ptr_labels, ptr_rows, ptr_h_o, ptr_dE, ptr_db, s_v_o, s_d_o, M, V, n_pieces,
    D_S: tl.constexpr, D2_S: tl.constexpr, D_T: tl.constexpr, D2_T: tl.constexpr,
    D_O: tl.constexpr, T: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_V: tl.constexpr,
    BLOCK_D: tl.constexpr, BLOCK_O: tl.constexpr,
    ACC: tl.constexpr, UP: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """(23), and (24) where there is db: BLOCK_V words of one block, BLOCK_O of its D_O columns."""
    i = tl.program_id(0).to(tl.int64)
    o_v = (i // n_pieces) * BLOCK_V + tl.arange(0, BLOCK_V)
    o_o = (i % n_pieces) * BLOCK_O + tl.arange(0, BLOCK_O)
    m_v = o_v < V
    b_dE = tl.zeros((BLOCK_V, BLOCK_O), ACC)
    b_db = tl.zeros((BLOCK_V,), ACC)
    for i_m in range(0, M, BLOCK_M):
        o_m = (i_m + tl.arange(0, BLOCK_M)).to(tl.int64)
        m_m = o_m < M
        b_g = gradient_tile(
            ptr_h_s, ptr_E_s, ptr_E2_s, ptr_b_s, s_h_s, s_v_s, s_d_s, s_v2_s, s_d2_s,
            ptr_h_t, ptr_E_t, ptr_E2_t, ptr_b_t, s_h_t, s_v_t, s_d_t, s_v2_t, s_d2_t,
            ptr_labels, ptr_rows, o_m, m_m, o_v, m_v, M,
            D_S, D2_S, D_T, D2_T, T, BLOCK_D, ACC, UP, PRECISION,
        )  # fmt: skip
        b_db += tl.sum(b_g, 0)
        b_h = load_tile(ptr_h_o, o_m, m_m, s_h_s, o_o, o_o < D_O, 1)
        b_dE = dot(tl.trans(b_g.to(b_h.dtype)), b_h, b_dE, ACC, UP, PRECISION)
    tl.store(
        ptr_dE + o_v[:, None] * s_v_o + o_o[None, :] * s_d_o,
        b_dE.to(ptr_dE.dtype.element_ty),
        mask=m_v[:, None] & (o_o < D_O)[None, :],
    )
    if ptr_db is not None:
        if i % n_pieces == 0:
            tl.store(ptr_db + o_v, b_db, mask=m_v)


@triton.jit(do_not_specialize=["M", "n_shares", "s_share"])
def dh_kernel(
    ptr_h_s, ptr_E_s, ptr_E2_s, ptr_b_s, s_h_s, s_v_s, s_d_s, s_v2_s, s_d2_s,
    ptr_h_t, ptr_E_t, ptr_E2_t, ptr_b_t, s_h_t, s_v_t, s_d_t, s_v2_t, s_d2_t,
    ptr_labels, ptr_rows, ptr_E_o, ptr_dh, s_v_o, s_d_o, s_dh, s_share, M, V, share, n_shares,
    n_pieces,
    D_S: tl.constexpr, D2_S: tl.constexpr, D_T: tl.constexpr, D2_T: tl.constexpr,
    D_O: tl.constexpr, T: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_V: tl.constexpr,
    BLOCK_D: tl.constexpr, BLOCK_O: tl.constexpr,
    ACC: tl.constexpr, UP: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """(22): BLOCK_M rows, BLOCK_O of the D_O columns of one block, the part of `share` words."""
    i = tl.program_id(0).to(tl.int64)
    i_share = (i // n_pieces) % n_shares
    o_m = (i // n_pieces // n_shares) * BLOCK_M + tl.arange(0, BLOCK_M)
    o_o = (i % n_pieces) * BLOCK_O + tl.arange(0, BLOCK_O)
    m_m = o_m < M
    b_dh = tl.zeros((BLOCK_M, BLOCK_O), ACC)
    for i_v in range(i_share * share, tl.minimum((i_share + 1) * share, V), BLOCK_V):
        o_v = (i_v + tl.arange(0, BLOCK_V)).to(tl.int64)
        m_v = o_v < V
        b_g = gradient_tile(
            ptr_h_s, ptr_E_s, ptr_E2_s, ptr_b_s, s_h_s, s_v_s, s_d_s, s_v2_s, s_d2_s,
            ptr_h_t, ptr_E_t, ptr_E2_t, ptr_b_t, s_h_t, s_v_t, s_d_t, s_v2_t, s_d2_t,
            ptr_labels, ptr_rows, o_m, m_m, o_v, m_v, M,
            D_S, D2_S, D_T, D2_T, T, BLOCK_D, ACC, UP, PRECISION,
        )  # fmt: skip
        b_E = load_tile(ptr_E_o, o_v, m_v, s_v_o, o_o, o_o < D_O, s_d_o)
        b_dh = dot(b_g.to(b_E.dtype), b_E, b_dh, ACC, UP, PRECISION)
    tl.store(
        ptr_dh + i_share * s_share + o_m[:, None] * s_dh + o_o[None, :],
        b_dh,
        mask=m_m[:, None] & (o_o < D_O)[None, :],
    )


# ---- launching


def side_arguments(of: str, x: Decoder | None) -> dict:
    """Pointers and strides of one side; nothing and 0 where there is none."""
    h, blocks, b = (None, [], None) if x is None else x
    first, second = [*blocks, None, None][:2]
    pointers = {f"ptr_h_{of}": h, f"ptr_E_{of}": first, f"ptr_E2_{of}": second, f"ptr_b_{of}": b}
    strides = {f"s_h_{of}": 0 if h is None else h.stride(0)}
    for n, E in (("", first), ("2", second)):
        s_v, s_d = (0, 0) if E is None else E.stride()
        strides |= {f"s_v{n}_{of}": s_v, f"s_d{n}_{of}": s_d}
    return pointers | strides


def side_constants(s: Decoder, t: Decoder | None, temperature: float) -> dict:
    """The constants that the kernels are compiled for, beside their blocks."""
    widths = [[E.shape[1] for E in (x.E if x else [])] + [0, 0] for x in (s, t)]
    is_double = torch.float64 in (s.h.dtype, t.h.dtype if t else None)
    return {
        "D_S": widths[0][0],
        "D2_S": widths[0][1],
        "D_T": widths[1][0],
        "D2_T": widths[1][1],
        "T": float(temperature),
        "UP": IS_INTERPRETED or is_double,
        "ACC": tl.float64 if wide_dtype(s.h) == torch.float64 else tl.float32,
        # three products of 10-bit halves: float32's accuracy on tensor cores; others have no choice
        "PRECISION": "ieee" if is_double else "tf32x3",
    }


def shares_of(V: int, n_programs: int, block: int) -> tuple[int, int]:
    """(words of a share, shares): as many as make PROGRAMS programs, in whole blocks of words."""
    n_blocks = triton.cdiv(V, block)
    n_shares = max(1, min(n_blocks, triton.cdiv(PROGRAMS, max(n_programs, 1))))
    share = triton.cdiv(n_blocks, n_shares) * block
    return share, triton.cdiv(V, share)


def streamed(
    s: Decoder,
    t: Decoder | None,
    labels: Tensor | None,
    g_ce: Tensor | None,
    g_kd: Tensor | None,
    *,
    wants: tuple[bool, bool, bool],
    temperature: float,
    divergence: str,
) -> Result:
    """As `torch_mlm.chunked`, from tiles."""
    s = s._replace(h=s.h.contiguous())
    t = t and t._replace(h=t.h.contiguous())
    M, V, T = len(s.h), s.E[0].shape[0], temperature
    acc, device = wide_dtype(s.h), s.h.device
    sides = side_arguments("s", s) | side_arguments("t", t) | {"ptr_labels": labels}
    constants = side_constants(s, t, T)

    c = pick_config("statistics", s.h.dtype)
    n_m = triton.cdiv(M, c.BLOCK_M)
    share, n_shares = shares_of(V, n_m, c.BLOCK_V)
    partial = torch.empty(n_shares, N_STATISTICS, M, dtype=acc, device=device)
    launch(
        statistics_kernel, n_m * n_shares, c, ("BLOCK_M", "BLOCK_V", "BLOCK_D"), s.h,
        **sides, **constants, ptr_out=partial, M=M, V=V, share=share, n_shares=n_shares,
        IS_KL=divergence == "kl_ts",
    )  # fmt: skip
    ce, kd, lses = combine(partial, t is not None, labels, V, T, divergence)
    if not any(wants):
        return Result(ce, kd, None, [], None)

    zero = torch.zeros(M, dtype=acc, device=device)
    g_1, g_T = zero if g_ce is None else g_ce, zero if g_kd is None else T * g_kd
    if labels is not None:
        g_1, g_T = (x.where(labels != -100, 0.0) for x in (g_1, g_T))
        g_1 = g_1 + 0.0 * ce  # NaN where the label is outside the vocabulary
    sides["ptr_rows"] = torch.stack([g_1, g_T, *lses])  # (5, M)
    wants_h, wants_E, wants_b = wants
    dh = stream_dh(s, sides, constants) if wants_h else None
    dE, db = stream_dE(s, sides, constants) if wants_E or wants_b else ([], None)
    return Result(ce, kd, dh, dE if wants_E else [], db if wants_b else None)


def combine(
    partial: Tensor, is_taught: bool, labels: Tensor | None, V: int, T: float, divergence: str
) -> tuple[Tensor, Tensor, list[Tensor]]:
    """(17)-(19) from all shares of the words: ce, kd, and the log-sum-exps that (20), (21) need."""
    m_s, l_1, l_T, m_t, l_t, d, x_y = partial.unbind(1)  # (shares, M) each
    top_s, top_t = m_s.amax(0), m_t.amax(0)  # (M,)
    l_1 = (l_1 * (m_s - top_s).exp()).sum(0)
    l_T = (l_T * ((m_s - top_s) / T).exp()).sum(0)
    shrink = ((m_t - top_t) / T).exp()
    l_t, d = (l_t * shrink).sum(0), (d * shrink).sum(0)
    lses = [top_s + l_1.log(), top_s / T + l_T.log(), top_t / T + l_t.log()]
    ce = kd = torch.zeros_like(l_1)
    if labels is not None:
        is_word = (labels >= 0) & (labels < V)
        ce = (
            (l_1.log() + (top_s - x_y.sum(0)))
            .where(is_word, float("nan"))
            .where(labels != -100, 0.0)
        )
    if is_taught:
        kd = T * (d / l_t + top_s) + T**2 * l_T.log()
        if divergence == "kl_ts":
            kd = T * (d / l_t - (top_t - top_s)) + T**2 * (l_T.log() - l_t.log())
        if labels is not None:
            kd = kd.where(labels != -100, 0.0)
    return ce, kd, lses


def stream_dE(s: Decoder, sides: dict, constants: dict) -> tuple[list[Tensor], Tensor]:
    """(23) and (24): a launch for each block of the table; the first has the bias too."""
    c, (M, _), V = pick_config("dE", s.h.dtype), s.h.shape, s.E[0].shape[0]
    db = torch.empty(V, dtype=wide_dtype(s.h), device=s.h.device)
    dE = [torch.empty_like(E) for E in s.E]
    for i, (out, (h, E)) in enumerate(zip(dE, s.pairs(), strict=True)):
        n_pieces = triton.cdiv(E.shape[1], c.BLOCK_O)
        s_v, s_d = out.stride()
        launch(
            dE_kernel, triton.cdiv(V, c.BLOCK_V) * n_pieces, c, c._fields[:4], s.h,
            **sides, **constants, ptr_h_o=h, ptr_dE=out, ptr_db=None if i else db, s_v_o=s_v,
            s_d_o=s_d, M=M, V=V, n_pieces=n_pieces, D_O=E.shape[1],
        )  # fmt: skip
    return dE, db


def stream_dh(s: Decoder, sides: dict, constants: dict) -> Tensor:
    """(22): the parts of all shares of the words, and their sum."""
    c, (M, d), V = pick_config("dh", s.h.dtype), s.h.shape, s.E[0].shape[0]
    n_m = triton.cdiv(M, c.BLOCK_M)
    share, n_shares = shares_of(V, n_m * triton.cdiv(d, c.BLOCK_O), c.BLOCK_V)
    partial = torch.empty(n_shares, M, d, dtype=wide_dtype(s.h), device=s.h.device)
    outs = partial.split([E.shape[1] for E in s.E], dim=2)
    for out, E in zip(outs, s.E, strict=True):
        n_pieces = triton.cdiv(E.shape[1], c.BLOCK_O)
        launch(
            dh_kernel, n_m * n_shares * n_pieces, c, c._fields[:4], s.h,
            **sides, **constants, ptr_E_o=E, ptr_dh=out, s_v_o=E.stride(0), s_d_o=E.stride(1),
            s_dh=d, s_share=M * d, M=M, V=V, share=share, n_shares=n_shares, n_pieces=n_pieces,
            D_O=E.shape[1],
        )  # fmt: skip
    return partial.sum(0).to(s.h.dtype)


def launch(
    kernel, n_programs: int, c: StreamConfig, blocks: tuple, like: Tensor, **arguments
) -> None:
    """Start the programs, if there are any."""
    if not n_programs:
        return
    with torch.cuda.device_of(like):
        kernel[(n_programs,)](
            **arguments,
            **{name: getattr(c, name) for name in blocks},
            num_warps=c.num_warps,
            num_stages=c.num_stages,
        )
