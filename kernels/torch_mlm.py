"""Cross-entropy and distillation of the masked-LM head in plain PyTorch, some rows at a time.

The logits of a few hundred rows are formed, used and overwritten by their own gradient, which is
multiplied with the hidden states and the table at once: no (M, V) tensor ever exists. This is the
implementation for CPUs; with another step for the rows (`row_step`) it is that for GPUs too:

    logit_rows   one chunk of logits -> losses of its rows, and the logits' gradient in their place
    chunked      the loop around it, with the products before and after

Read kernels/README.md first ("Rows of logits"); numbers in brackets are its lines.
"""

from collections.abc import Callable
from math import inf

import torch
from torch import Tensor

from kernels.reference import Decoder, Result, wide_dtype

# Bytes of all the logits at hand at a time. On a GPU what its L2 cache keeps, on a CPU little
# beside the gradient of the table, which every chunk reads and writes once.
CHUNK_BYTES = 2**25
CHUNK_BYTES_GPU = 2**26
GROUP_BYTES = 2**21  # of the logits that one element-wise pass runs over: a core's own cache


# ---- the rows


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
    """(17)-(21): the losses of R rows of logits, and the logits' gradient in their place.

    Args:
        x_s:        (R, V) float32 or float64, before the bias. Overwritten: by the gradient of
                    sum(g_ce ce + g_kd kd) where there is g_ce or g_kd, else by scratch values.
        x_t:        (R, V) of the teacher, in x_s's type, or None. Overwritten as well.
        b_s, b_t:   (V,) or None.
        labels:     (R,) int64 or None; -100 = losses and gradient of the row are 0.
        g_ce, g_kd: (R,) the gradients that arrive at ce and kd, or None.
    Returns:
        ce, kd: (R,) nats, kd times T^2; 0 without labels, without a teacher.
    """
    R, V = x_s.shape
    ce, kd = x_s.new_zeros(R), x_s.new_zeros(R)
    n = max(1, GROUP_BYTES // (V * x_s.element_size()))
    scratch = [torch.empty(min(n, R), V, dtype=x_s.dtype, device=x_s.device) for _ in range(2)]
    b_s, b_t = (b if b is None else b.to(x_s.dtype) for b in (b_s, b_t))
    for first in range(0, R, n):
        rows = slice(first, min(first + n, R))
        y, x, g, g_t = (None if z is None else z[rows] for z in (labels, x_t, g_ce, g_kd))
        ce[rows], kd[rows] = some_rows(
            x_s[rows], b_s, y, x, b_t, g, g_t,
            scratch=[z[: rows.stop - first] for z in scratch], T=temperature, divergence=divergence,
        )  # fmt: skip
    return ce, kd


def some_rows(
    s: Tensor, b_s: Tensor | None, labels: Tensor | None, t: Tensor | None, b_t: Tensor | None,
    g_ce: Tensor | None, g_kd: Tensor | None, *, scratch: list[Tensor], T: float, divergence: str,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """`logit_rows` of a few rows, which stay in the cache. Each line is one pass over them."""
    e_1, e_t = scratch
    is_kl = divergence == "kl_ts"
    ce = kd = s.new_zeros(len(s), 1)
    centre(s, b_s)
    if t is not None:
        centre(t, b_t)
        l_t = exponentials(t, T, out=e_t)  # (R, 1)
        apart = (t.sub_(s) if is_kl else torch.neg(s, out=t)).mul_(e_t)
        # 0 ln 0 = 0; any other NaN is in l_t or l_T too
        d = apart.nan_to_num_(0.0, inf, -inf).sum(1, keepdim=True)  # (R, 1)
    if labels is not None:
        is_counted = (labels != -100)[:, None]  # (R, 1)
        y = labels[:, None].where(is_counted, 0)  # (R, 1)
        l_1 = exponentials(s, 1.0, out=e_1)  # (R, 1)
        ce = (l_1.log() - s.gather(1, y)).where(is_counted, 0.0)  # (17)
    if t is not None:
        # t has served; at T = 1 the two softmax of the student are one
        e_T, l_T = (e_1, l_1) if T == 1 and labels is not None else (t, exponentials(s, T, out=t))
        kd = T * d / l_t + T**2 * (l_T.log() - l_t.log() if is_kl else l_T.log())  # (18), (19)
        if labels is not None:
            kd = kd.where(is_counted, 0.0)
    if g_ce is None and g_kd is None:
        return ce[:, 0], kd[:, 0]

    zero = s.new_zeros(len(s))
    g_ce, g_kd = ((zero if g is None else g.to(s.dtype))[:, None] for g in (g_ce, g_kd))
    if labels is not None:
        g_ce, g_kd = g_ce * is_counted, g_kd * is_counted
        torch.mul(e_1, g_ce / l_1, out=s)  # (20)
    if t is not None:
        is_first = labels is None
        torch.addcmul(zero[:, None] if is_first else s, e_T, T * g_kd / l_T, out=s)  # (21)
        s.addcmul_(e_t, T * g_kd / l_t, value=-1)
    if labels is not None:
        s.scatter_add_(1, y, -g_ce)
    return ce[:, 0], kd[:, 0]


def centre(x: Tensor, b: Tensor | None) -> None:
    """x + b, less the largest of each row, so that no power overflows."""
    if b is not None:
        x.add_(b)
    x.sub_(x.amax(1, keepdim=True))


def exponentials(x: Tensor, T: float, *, out: Tensor) -> Tensor:
    """e^(x / T) into `out`; their sum over each row, (R, 1)."""
    torch.exp(x if T == 1 else torch.mul(x, 1 / T, out=out), out=out)
    return out.sum(1, keepdim=True)


# ---- the loop around them


def chunked(
    s: Decoder,
    t: Decoder | None,
    labels: Tensor | None,
    g_ce: Tensor | None,
    g_kd: Tensor | None,
    *,
    wants: tuple[bool, bool, bool],
    temperature: float,
    divergence: str,
    row_step: Callable = logit_rows,
) -> Result:
    """(22)-(24): every row's loss, and the gradients of sum(g_ce ce + g_kd kd), chunk by chunk.

    Products run in the type of what they multiply, and the table's gradient is summed in float32
    (float64 for float64) whatever that is.

    Args:
        labels, g_ce, g_kd: (M,), contiguous, or None.
        wants:    whether dh, dE and db are asked for; none of them without g_ce and g_kd.
        row_step: the step for a chunk of logits: `logit_rows`, or a kernel of its form.
    """
    (M, d), V, x = s.h.shape, s.E[0].shape[0], s.h
    acc = wide_dtype(x)
    wants_h, wants_E, wants_b = wants
    R = rows_at_a_time(M, V * (x.element_size() + (t.h.element_size() if t else 0)), x.device.type)
    ce, kd = (torch.empty(M, dtype=acc, device=x.device) for _ in range(2))
    # rows begin where the widest loads may; products like that too
    x_s = torch.empty(R, V + -V % 16, dtype=x.dtype, device=x.device)[:, :V]
    x_t = torch.empty(R, V + -V % 16, dtype=t.h.dtype, device=x.device)[:, :V] if t else None
    dh = torch.empty(M, d, dtype=x.dtype, device=x.device) if wants_h else None
    dE = [torch.empty_like(E, dtype=acc) for E in s.E] if wants_E else []
    db = torch.zeros(V, dtype=acc, device=x.device) if wants_b else None
    for first in range(0, M, R):
        rows = slice(first, min(first + R, M))
        part_s = logits(s, rows, x_s)
        part_t = logits(t, rows, x_t) if t else None
        y, g, g_t = (None if z is None else z[rows] for z in (labels, g_ce, g_kd))
        ce[rows], kd[rows] = row_step(
            part_s, s.bias, y, part_t, t.bias if t else None, g, g_t,
            temperature=temperature, divergence=divergence,
        )  # fmt: skip
        if wants_h:
            for out, E in Decoder(dh, s.E, None).pairs():
                torch.mm(part_s, E, out=out[rows])  # (22)
        for out, (h, _) in zip(dE, s.pairs(), strict=False):
            add_product(out, part_s.T, h[rows], is_first=not first)  # (23)
        if wants_b:
            db += part_s.sum(0, dtype=acc)  # (24)
    if not M:
        dE = [out.zero_() for out in dE]
    return Result(ce, kd, dh, [out.to(x.dtype) for out in dE], db)


def widened(
    s: Decoder, t: Decoder | None, *args, wants: tuple[bool, bool, bool], **options
) -> Result:
    """`chunked`, with products and logits in float32 (float64 for float64) whatever comes in."""
    dtype = wide_dtype(s.h)
    x = chunked(s.to(dtype), t and t.to(dtype), *args, wants=wants, **options)
    dh = x.dh.to(s.h.dtype) if wants[0] else None
    return x._replace(dh=dh, dE=[out.to(s.h.dtype) for out in x.dE])


def rows_at_a_time(M: int, bytes_of_a_row: int, device: str) -> int:
    """Rows of a chunk: as many as its bytes allow, all chunks about equally many."""
    limit = CHUNK_BYTES_GPU if device == "cuda" else CHUNK_BYTES
    most = max(1, limit // max(bytes_of_a_row, 1))
    unit = 128 if device == "cuda" and most >= 128 else 1  # what tiles of products come in
    n_chunks = max(1, -(-M // (most - most % unit)))
    R = -(-M // n_chunks)
    return max(1, R + -R % unit)


def logits(x: Decoder, rows: slice, out: Tensor) -> Tensor:
    """(16) without the bias, of some rows, into the first of `out`: (R, V)."""
    out = out[: rows.stop - rows.start]
    for i, (h, E) in enumerate(x.pairs()):
        torch.addmm(out, h[rows], E.T, beta=min(i, 1), out=out)
    return out


def add_product(out: Tensor, x: Tensor, y: Tensor, *, is_first: bool) -> None:
    """out + x y into out, or only x y; a narrow x and y are summed in the type of out."""
    beta = 0 if is_first else 1
    if x.dtype == out.dtype:
        torch.addmm(out, x, y, beta=beta, out=out)
    elif x.device.type == "cuda":
        torch.addmm(out, x, y, out_dtype=out.dtype, beta=beta, out=out)
    else:  # a CPU has no product of narrow numbers with a wide result
        torch.addmm(out, x.to(out.dtype), y.to(out.dtype), beta=beta, out=out)
