"""The loop over rows in plain PyTorch: how it cuts, what it holds. What it computes:
test_mlm_ops.py."""

import pytest
import torch
from mlm_cases import B16, F16, F32, F64, LOSSES, case_of, compute
from torch.utils._python_dispatch import TorchDispatchMode

from helpers import DEVICE, assert_near, guarded
from kernels import reference, torch_mlm


@pytest.mark.parametrize("M", [0, 1, 127, 128, 307, 922, 7373, 24576])
@pytest.mark.parametrize("V", [1, 28996, 30522, 10**8])
@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_rows_at_a_time(device, V, M):
    limit = torch_mlm.CHUNK_BYTES_GPU if device == "cuda" else torch_mlm.CHUNK_BYTES
    R = torch_mlm.rows_at_a_time(M, 4 * V, device)
    assert R >= 1
    assert R == 1 or 4 * V * R <= limit
    if device == "cuda" and 128 * 4 * V <= limit and M:
        assert R % 128 == 0
    if device == "cpu" and M:  # all chunks about the same: none is a few rows at the end
        n = -(-M // R)
        assert R - (M - (n - 1) * R) < n


def test_rows_at_a_time_where_it_was_designed():
    """Two logits of two bytes, on a GPU; two of four, on a CPU."""
    assert torch_mlm.rows_at_a_time(7373, 2 * 2 * 28996, "cuda") == 512
    assert torch_mlm.rows_at_a_time(307, 2 * 4 * 28996, "cpu") == 103


@pytest.mark.parametrize("losses", LOSSES)
@pytest.mark.parametrize("divergence", reference.ROW_DIVERGENCES)
@pytest.mark.parametrize("dtype", [F32, F64])
def test_the_step_for_the_rows(dtype, divergence, losses, monkeypatch, banded_empty):
    """By itself, as a kernel of its form is called: rows with a stride, groups with a rest."""
    R, V, T = 7, 11, 1.5
    monkeypatch.setattr(torch_mlm, "GROUP_BYTES", 2 * V * 8)
    x_s, x_t = (torch.randn(R, V + 5, dtype=dtype, device=DEVICE)[:, :V] for _ in range(2))
    b_s, b_t = (guarded(torch.randn(V, device=DEVICE)) for _ in range(2))
    labels = torch.tensor([10, 0, -100, 3, 4, 5, 6], device=DEVICE) if losses != "kd" else None
    x_t = None if losses == "ce" else x_t
    g_ce, g_kd = torch.randn(2, R, dtype=dtype, device=DEVICE)
    s = reference.Decoder(x_s.clone().double(), [torch.eye(V, dtype=F64, device=DEVICE)], b_s)
    t = None if x_t is None else reference.Decoder(x_t.double(), s.E, b_t)
    s.h.requires_grad_()
    options = {"temperature": T, "divergence": divergence}
    truth = reference.masked_mlm_rows(s, t, labels, **options)
    (dx,) = torch.autograd.grad((g_ce * truth[0] + g_kd * truth[1]).sum(), s.h)
    for gradient in (False, True):
        x, y = x_s.clone(), None if x_t is None else x_t.clone()
        g = (g_ce, g_kd) if gradient else (None, None)
        got = torch_mlm.logit_rows(x, b_s, labels, y, b_t, *g, **options)
        for name, z, z_64 in zip(("ce", "kd"), got, truth, strict=True):
            assert_near(name, z, z_64, 1e-5 if dtype == F32 else 1e-12)
        if gradient:
            assert_near("dx", x, dx, 1e-5 if dtype == F32 else 1e-12)


@pytest.mark.parametrize("dtype", [F64, F32, F16, B16], ids=str)
def test_products_are_summed_in_a_wide_type(dtype, banded_empty):
    """Whatever is multiplied: 2,048 and 1, which float16 and bfloat16 cannot add."""
    x, y = (torch.tensor(z, dtype=dtype, device=DEVICE) for z in ([[2048.0, 1.0]], [[1.0], [1.0]]))
    out = torch.empty(1, 1, dtype=F64 if dtype == F64 else F32, device=DEVICE)
    torch_mlm.add_product(out, x, y, is_first=True)
    assert out.item() == 2049
    torch_mlm.add_product(out, x, y, is_first=False)
    assert out.item() == 4098


class Largest(TorchDispatchMode):
    """The most elements of any tensor that an operation gave."""

    def __init__(self, excepted):
        super().__init__()
        self.excepted, self.n = excepted, 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        for x in result if isinstance(result, (tuple, list)) else [result]:
            if isinstance(x, torch.Tensor) and tuple(x.shape) not in self.excepted:
                self.n = max(self.n, x.numel())
        return result


@pytest.mark.parametrize("losses", LOSSES)
@pytest.mark.parametrize("T", [1.0, 2.0])
def test_no_logits_of_all_rows_are_ever_there(T, losses, monkeypatch):
    M, V, d = 300, 500, 8
    monkeypatch.setattr(torch_mlm, "CHUNK_BYTES", 20 * 2 * 4 * V)
    monkeypatch.setattr(torch_mlm, "CHUNK_BYTES_GPU", 20 * 2 * 4 * V)
    case = case_of((M, V, (d,), (d,)), F32, losses=losses)
    largest = {}
    for impl in ("reference", "torch"):
        with Largest({(V, d), (d, V), (M, d)}) as watched:
            with torch.autograd.set_multithreading_enabled(False):
                compute(impl, case, temperature=T).loss.backward()
        largest[impl] = watched.n
    assert largest["reference"] == M * V  # what watches can see
    assert largest["torch"] <= 41 * (V + 16)


def test_the_gradient_of_the_table_is_there_once():
    """Under an upstream factor of 1 the gradient computed in forward is handed over as it is."""
    case = case_of((5, 40, (8,), (8,)), F32)
    with torch.autograd.graph.saved_tensors_hooks(lambda x: saved.append(x) or x, lambda x: x):
        saved = []
        loss = compute("torch", case).loss
    worked_out = next(x for x in saved if x.shape == case.E_s[0].shape)
    (dE,) = torch.autograd.grad(loss, case.E_s[0])
    is_same = dE.data_ptr() == worked_out.data_ptr()
    assert is_same or DEVICE == "cuda"  # there the factor is not looked at


@pytest.mark.parametrize("factor", [1.0, 3.0])
def test_what_was_handed_over_is_never_written_to(factor):
    case = case_of((5, 40, (8,), (8,)), F32)
    loss = factor * compute("torch", case).loss
    (once,) = torch.autograd.grad(loss, case.E_s[0], retain_graph=True)
    expected = once.clone()
    (again,) = torch.autograd.grad(3 * loss, case.E_s[0], retain_graph=True)
    assert torch.equal(once, expected)
    assert_near("dE", again, 3 * expected, 1e-6)


@pytest.mark.slow
def test_as_fast_as_the_products_allow():
    """A tenth of the issue's shape; a generous limit, since other work may share the machine."""
    from time import perf_counter

    case = case_of((307, 2900, (768,), (768,)), F32)
    times = {}
    for impl in ("reference", "torch", "reference", "torch"):
        for _ in range(3):
            start = perf_counter()
            compute(impl, case).loss.backward()
            times[impl] = min(times.get(impl, 9.0), perf_counter() - start)
    assert times["torch"] < 1.1 * times["reference"], times
