"""The norm of a residual sum: definition, plain PyTorch and Triton's kernels."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from attention_cases import hashed
from torch.autograd.gradcheck import GradcheckError

import kernels
from helpers import DEVICE, assert_near
from kernels import norm_ops, reference

triton_norm = pytest.importorskip("kernels.triton_norm", reason="needs Triton")
pytestmark = pytest.mark.usefixtures("banded_empty")
F64, F32, F16, B16 = torch.float64, torch.float32, torch.float16, torch.bfloat16
EPS = 1e-12
# of the result's own size; a narrow result is rounded once
LIMIT = {F64: 1e-13, F32: 2e-6, F16: 2e-3, B16: 1.6e-2}


def case_of(N, C, dtype=F64, dtype_a=None):
    """x, a, weight, bias, none of them centred."""
    x = (torch.randn(N, C, dtype=F64, device=DEVICE) + 1).to(dtype)
    a = (2 * torch.randn(N, C, dtype=F64, device=DEVICE) - 0.5).to(dtype_a or dtype)
    wide = torch.float64 if dtype == F64 else torch.float32
    weight, bias = torch.randn(2, C, dtype=wide, device=DEVICE)
    return [z.clone().requires_grad_() for z in (x, a, weight, bias)]


def mask_of(seed, N, C, dropout):
    """The entries that the kernels keep: of ones beside zeros, those that come out above 0."""
    zero, one = torch.zeros(2, N, C, dtype=F64, device=DEVICE)
    unit = torch.ones(C, dtype=F64, device=DEVICE)
    y, *_ = triton_norm.forward(zero, one + 1, unit, 0 * unit, seed, EPS, dropout, None)
    return y > 0


@pytest.mark.parametrize("narrow", [None, B16], ids=str)
@pytest.mark.parametrize("dtype_a", [F32, B16], ids=str)
@pytest.mark.parametrize("C", [1, 13, 32])
@pytest.mark.parametrize("impl", ["torch", "triton"])
def test_forward_is_the_definition(impl, C, dtype_a, narrow):
    x, a, weight, bias = case_of(5, C, F32, dtype_a)
    y, copy = kernels.add_norm(x, a, weight, bias, eps=1e-3, narrow=narrow, impl=impl)
    expected = reference.add_norm(*(z.double() for z in (x, a, weight, bias)), eps=1e-3)
    assert (y.dtype, copy.dtype) == (F32, narrow or F32)
    assert_near("y", y, expected, LIMIT[F32])
    if narrow is None:
        assert copy is y
    else:  # the interpreter cuts bits off where a GPU rounds
        assert ((copy.double() - y.double()).abs() <= 2**-7 * y.double().abs()).all()


@pytest.mark.parametrize("dtype_a, dropout", [(F64, 0.0), (F64, 0.3), (F32, 0.0), (F32, 0.3)])
@pytest.mark.parametrize("N", [1, 2, 7])
def test_backward_is_that_of_the_definition(N, dtype_a, dropout, monkeypatch):
    """Every argument's gradient, through y and through the copy, with more tokens than programs."""
    monkeypatch.setattr(triton_norm, "SHARES", 3)
    C, seed = 13, torch.tensor([7**17], device=DEVICE) if dropout else None
    inputs = case_of(N, C, F64, dtype_a)
    keep = mask_of(seed, N, C, dropout) if dropout else None
    g_y, g_copy = torch.randn(2, N, C, dtype=F64, device=DEVICE)
    for uses in ((1, 1), (1, 0), (0, 1)):
        y, copy = norm_ops.fused(*inputs, seed, EPS, dropout, F32)
        terms = [(y * g_y).sum(), (copy * g_copy).sum()]
        got = torch.autograd.grad(sum(t for t, n in zip(terms, uses, strict=True) if n), inputs)
        z = reference.add_norm(*inputs, eps=EPS, dropout=dropout, keep=keep)
        terms = [(z * g_y).sum(), (z * g_copy.float()).sum()]
        # the copy's own gradient arrives in its own type
        expected = torch.autograd.grad(
            sum(t for t, n in zip(terms, uses, strict=True) if n), inputs
        )
        for name, u, v in zip(("dx", "da", "dweight", "dbias"), got, expected, strict=True):
            assert u.dtype == v.dtype
            assert_near(name, u, v, 1e-6 if uses[1] or dtype_a == F32 else 1e-11)


@pytest.mark.parametrize("dropout", [0.0, 0.25])
def test_gradcheck(dropout):
    """Differences of the kernels themselves, in float64."""
    seed = torch.tensor([3], device=DEVICE) if dropout else None
    inputs = case_of(3, 5)

    def run(*xs):
        return norm_ops.fused(*xs, seed, 1e-3, dropout, None)[0]

    assert torch.autograd.gradcheck(run, inputs)


def test_a_planted_fault_is_seen(monkeypatch):
    """Backward under another seed than forward's is another function's gradient."""
    inputs, remember = case_of(3, 5), norm_ops.add_norm_backward

    def other(dy, dn, x, a, weight, seed, *rest):
        return remember(dy, dn, x, a, weight, seed + 1, *rest)

    monkeypatch.setattr(norm_ops, "add_norm_backward", other)
    seed = torch.tensor([3], device=DEVICE)
    with pytest.raises(GradcheckError):
        torch.autograd.gradcheck(lambda *xs: norm_ops.fused(*xs, seed, 1e-3, 0.5, None)[0], inputs)


@pytest.mark.parametrize("dtype, dtype_a", [(F32, F32), (F32, B16), (B16, B16), (F16, F16)])
def test_three_ways(dtype, dtype_a):
    """Triton and PyTorch against float64: neither is further away than its type allows."""
    inputs = case_of(6, 31, dtype, dtype_a)
    g = torch.randn(6, 31, device=DEVICE).to(dtype)
    exact = [z.detach().double().requires_grad_() for z in inputs]
    y = reference.add_norm(*exact, eps=EPS)
    expected = y, *torch.autograd.grad(y, exact, g.double())
    for impl in ("torch", "triton"):
        if impl == "torch" and dtype != F32:
            continue  # PyTorch's norm has no narrow input under weights in float32
        y, _ = kernels.add_norm(*inputs, eps=EPS, impl=impl)
        got = y, *torch.autograd.grad(y, inputs, g)
        for name, u, v in zip(("y", "dx", "da", "dweight", "dbias"), got, expected, strict=True):
            off = (u.double() - v).norm() / v.norm()
            assert off <= LIMIT[u.dtype], (impl, name, off)


def test_dropout():
    """Its share, another mask for another seed, and rows that do not repeat each other."""
    one, two = (torch.tensor([n], device=DEVICE) for n in (1, 2**40 + 1))
    keep = mask_of(one, 64, 100, 0.3)
    assert abs(keep.double().mean().item() - 0.7) < 4 * (0.3 * 0.7 / 6400) ** 0.5
    words = np.stack([hashed(1, token, 100) for token in range(64)])
    assert torch.equal(keep.cpu(), torch.from_numpy(words >= round(0.3 * 2**16)))
    for other in (mask_of(two, 64, 100, 0.3), keep.roll(1, 0), keep.roll(1, 1)):
        assert abs((keep == other).double().mean().item() - 0.58) < 0.03
    torch.manual_seed(0)
    x, a, weight, bias = case_of(64, 100, F32)
    runs = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        runs.append(kernels.add_norm(x, a, weight, bias, eps=EPS, dropout=0.5, impl="triton")[0])
    assert torch.equal(runs[0], runs[1]) and not torch.equal(runs[0], runs[2])


def test_torch_is_what_pytorch_composes():
    """To the bit, dropout included."""
    x, a, weight, bias = case_of(6, 31, F32)
    torch.manual_seed(1)
    y, copy = kernels.add_norm(x, a, weight, bias, eps=EPS, dropout=0.4, narrow=B16, impl="torch")
    torch.manual_seed(1)
    expected = F.layer_norm(x + F.dropout(a, 0.4), (31,), weight, bias, EPS)
    assert torch.equal(y, expected) and torch.equal(copy, expected.to(B16))


def test_the_reference_can_be_chosen():
    x, a, weight, bias = case_of(64, 31, F32)
    y, copy = kernels.add_norm(x, a, weight, bias, eps=EPS, narrow=B16, impl="reference")
    assert_near("y", y, F.layer_norm(x + a, (31,), weight, bias, EPS), LIMIT[F32])
    assert copy.dtype == B16
    zero, unit = torch.zeros(64, 31, device=DEVICE), torch.ones(31, device=DEVICE)
    y, _ = kernels.add_norm(zero, zero + 1, unit, 0 * unit, eps=EPS, dropout=0.4, impl="reference")
    assert abs((y > 0).double().mean().item() - 0.6) < 4 * (0.24 / 1984) ** 0.5


@pytest.mark.parametrize("impl", ["torch", "triton", "reference"])
def test_no_token(impl):
    inputs = case_of(0, 4, F32)
    y, copy = kernels.add_norm(*inputs, eps=EPS, narrow=B16, impl=impl)
    assert y.shape == copy.shape == (0, 4)
    for grad in torch.autograd.grad(y.sum() + copy.sum(), inputs):
        assert not grad.any()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"x": torch.zeros(4)}, r"x is \(4,\) torch.float32, expected \(N, C\)"),
        ({"a": torch.zeros(3, 5)}, r"a is \(3, 5\) on cpu, expected \(3, 4\) on cpu"),
        ({"weight": torch.zeros(5)}, r"weight is \(5,\) on cpu, expected \(4,\)"),
        ({"bias": torch.zeros(4, 1)}, r"bias is \(4, 1\) on cpu, expected \(4,\)"),
        ({"a": torch.zeros(3, 4, dtype=F64)}, "a is torch.float64, expected no wider a type"),
        ({"dropout": 1.0}, "dropout is 1.0, expected at least 0 and below 1"),
        ({"impl": "cuda"}, "impl is 'cuda', expected auto, reference, torch, triton"),
    ],
)
def test_what_does_not_fit(change, message):
    given = {"x": torch.zeros(3, 4), "a": torch.zeros(3, 4), "weight": torch.zeros(4),
             "bias": torch.zeros(4), "eps": EPS}  # fmt: skip
    with pytest.raises(ValueError, match=f"^add_norm: {message}"):
        kernels.add_norm(**given | change)
