"""Students, teachers and labels, and comparisons with the definition, for the masked-LM losses."""

from typing import NamedTuple

import pytest
import torch

import kernels
from helpers import DEVICE, assert_near, guarded
from kernels import mlm_ops, reference, torch_mlm

F64, F32, F16, B16 = torch.float64, torch.float32, torch.float16, torch.bfloat16
# M, V, widths of the student's blocks and of the teacher's: on blocks of 8 and 16; rows off;
# everything off; two blocks; fewer than a block; one; none
SHAPES = {
    "M16-V32-d16": (16, 32, (16,), (8,)),
    "M17-V32-d8": (17, 32, (8,), (16,)),
    "M11-V37-d13": (11, 37, (13,), (9,)),
    "M9-V21-d3+10": (9, 21, (3, 10), (9, 5)),
    "M3-V5-d2": (3, 5, (2,), (3,)),
    "M1-V1-d1": (1, 1, (1,), (1,)),
    "M0-V7-d3": (0, 7, (3,), (2,)),
}
LOSSES = ("both", "ce", "kd")
SMALL = (6, 13, (2, 3), (4,))  # for what does not depend on blocks


class Case(NamedTuple):
    """The arguments of one call, of a loss that is "both", "ce" or "kd"."""

    h_s: torch.Tensor
    E_s: list  # (V, d), or (V, d_1) and (V, d_2)
    b_s: torch.Tensor | None
    labels: torch.Tensor | None
    h_t: torch.Tensor | None
    E_t: list | None
    b_t: torch.Tensor | None

    @property
    def learning(self):
        return [x for x in (self.h_s, *self.E_s, self.b_s) if x is not None]

    @property
    def names(self):
        return ["dh", "dE", "dE2", "db"][: len(self.E_s) + 1] + ["db"] * (self.b_s is not None)


def case_of(shape, dtype=F64, dtype_t=None, losses="both", has_bias=True):
    """Rounded to their types, each between two NaN bands; one row of seven ignored, and the last
    word among the labels."""
    M, V, d, d_t = shape

    def of(*size, scale=1.0, type_=dtype):
        return guarded((scale * torch.randn(*size, dtype=F64)).to(type_).to(DEVICE))

    def side(d, type_):
        # MobileBERT's own columns lie in memory as (d_2, V)
        E = [of(V, d[0], type_=type_), *(of(n, V, type_=type_).T for n in d[1:])]
        return of(M, sum(d), type_=type_), E, of(V, type_=type_) if has_bias else None

    h, E, b = side(d, dtype)
    labels = torch.randint(V, (M,), device=DEVICE) if losses != "kd" else None
    if labels is not None:
        labels[:1] = V - 1
        labels[3::7] = -100
    teacher = side(d_t, dtype_t or dtype) if losses != "ce" else (None, None, None)
    for x in (h, *E, *([] if b is None else [b])):
        x.requires_grad_()
    return Case(h, E, b, labels, *teacher)


def doubled(case):
    """The same numbers in float64, with gradients of their own."""

    def wide(x):
        return x.detach().double().requires_grad_(x.requires_grad)

    return Case(*(
        x if x is None or isinstance(x, torch.Tensor) and not x.is_floating_point()
        else [wide(y) for y in x] if isinstance(x, list) else wide(x) for x in case
    ))  # fmt: skip


def compute(impl, case, **options):
    """loss, mlm, soft."""
    s = kernels.Decoder(case.h_s, case.E_s, case.b_s)
    t = None if case.h_t is None else kernels.Decoder(case.h_t, case.E_t, case.b_t)
    return kernels.masked_mlm(s, case.labels, t, impl=impl, **options)


def gradients(got, case, factor=1.0):
    """Of factor times the loss."""
    return torch.autograd.grad(factor * got.loss, case.learning)


def cut_small(monkeypatch, size=8):
    """Chunks of a few rows, and blocks that seventeen of anything fill twice and a bit; a GPU's
    products want sixteen."""
    monkeypatch.setattr(torch_mlm, "rows_at_a_time", lambda M, *_: max(1, min(M, size - 1)))
    monkeypatch.setattr(torch_mlm, "GROUP_BYTES", 1000)
    pytest.importorskip("triton", reason="needs Triton")
    from kernels import triton_mlm, triton_stream

    n = max(size, 16) if DEVICE == "cuda" else size
    monkeypatch.setattr(triton_mlm, "pick_config", lambda *_: triton_mlm.RowsConfig(2 * n, 4))
    config = triton_stream.StreamConfig(n, 2 * n, n, n, 4, 1)
    monkeypatch.setattr(triton_stream, "pick_config", lambda *_: config)


def rows_of(impl, case, g_ce, g_kd, *, temperature=1.0, divergence="kl_ts"):
    """ce and kd of each row, then the gradients of sum(g_ce ce + g_kd kd)."""
    s, t = (case.h_s, case.E_s, case.b_s), (case.h_t, case.E_t or [], case.b_t)
    if impl == "reference":
        ce, kd = reference.masked_mlm_rows(
            kernels.Decoder(*s), None if case.h_t is None else kernels.Decoder(*t), case.labels,
            temperature=temperature, divergence=divergence,
        )  # fmt: skip
        loss = (g_ce.to(ce.dtype) * ce + g_kd.to(kd.dtype) * kd).sum()
        return ce, kd, *torch.autograd.grad(loss, case.learning)
    wants = [True, True, case.b_s is not None]
    x = mlm_ops.compute(*s, case.labels, *t, temperature, divergence, impl, g_ce, g_kd, wants)
    return x.ce, x.kd, x.dh, *x.dE, *([] if x.db is None else [x.db])


def assert_rows_as_truth(impl, case, limit, limit_losses=None, **options):
    """As `assert_as_truth`, row by row under random cotangents: a sum would hide which is which."""
    wide, dtype = doubled(case), reference.wide_dtype(case.h_s)
    g = torch.randn(2, len(case.h_s), dtype=dtype, device=DEVICE)
    got, truth = (rows_of(x, c, *g, **options) for x, c in ((impl, case), ("reference", wide)))
    for name, x, y in zip(("ce", "kd", *case.names), got, truth, strict=True):
        assert_near(name, x, y, limit_losses or limit if name in ("ce", "kd") else limit)


def assert_as_truth(impl, case, limit, limit_losses=None, **options):
    """Losses, and the gradients under an upstream factor of 3, against the definition in float64 on
    the same rounded inputs.

    limit: of what is rounded to the inputs' type; limit_losses: of what is summed in float32.
    """
    wide = doubled(case)
    truth = compute("reference", wide, **options)
    got = compute(impl, case, **options)
    for name in got._fields:
        assert_near(name, getattr(got, name), getattr(truth, name), limit_losses or limit)
    grads = zip(gradients(got, case, 3.0), gradients(truth, wide, 3.0), strict=True)
    for name, z, (x, y) in zip(case.names, case.learning, grads, strict=True):
        assert x.dtype == z.dtype
        assert_near(name, x, y, limit)
