"""kernels/cuda/attention_kl.cu: both versions on a CPU through the emulator, or on the GPU.

What holds for every implementation is in test_attention_ops.py. Here are rows that take a warp
round more than once, the naive version, faults planted in the source, and what is refused.
"""

from functools import partial

import pytest
import torch
from attention_cases import (
    B16,
    F32,
    F64,
    GPU_SHAPES,
    accuracy,
    assert_as_truth,
    compute,
    mask_of,
    row_of,
    tensors,
)

import kernels
from helpers import DEVICE, LIMIT
from kernels import cuda_attention, cuda_build
from kernels.reference import DIVERGENCES

pytestmark = pytest.mark.usefixtures("banded_empty", "cuda_attention_here")
SOURCE = cuda_attention.SOURCE.read_text("utf-8")
every = pytest.mark.parametrize("divergence", ["none", *DIVERGENCES])
# a lane has one column of the results, two, eight; sequences of more and of fewer than 32 tokens
SHAPES = {
    "T70,32,0,1,33-H2-D26": ((70, 32, 0, 1, 33), 2, 26, 64),
    "T40,5-H1-D40": ((40, 5), 1, 40, 24),
    "T33-H3-D90-wide": ((33,), 3, 90, 256),
}
shapes = pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)


@pytest.fixture(params=cuda_attention.VERSIONS)
def version(request, monkeypatch):
    """Every launch takes this version."""
    use = partial(cuda_attention.launch, version=request.param)
    monkeypatch.setattr(cuda_attention, "launch", use)
    return request.param


def check(shape, divergence, p=0.3, bits=None):
    """Results and gradients against the definition, both in float64."""
    lengths, H = shape[:2]
    qkv, teacher = tensors(shape, F64)
    qkv_64 = [x.detach().requires_grad_() for x in qkv]
    options = {"dropout": p, "keep": mask_of(lengths, H, p) if bits is None else bits}
    truth = compute("reference", qkv_64, teacher, lengths, divergence, **options)
    got = compute("cuda", qkv, teacher, lengths, divergence, **options)
    assert_as_truth(got, qkv, truth, qkv_64, LIMIT[F64])


@shapes
@every
def test_both_versions_equal_the_definition(shape, divergence, version):
    check(shape, divergence)


@every
def test_gradcheck_of_rows_longer_than_a_warp(divergence, version):
    """Numerical derivatives in float64, in a random direction, of rows of 34 keys."""
    qkv, teacher = tensors(((34,), 1, 2, 3), F64)
    options = {"dropout": 0.4, "keep": mask_of((34,), 1, 0.4)}

    def function(*x):
        return compute("cuda", x, teacher, (34,), divergence, **options)[:-1]

    assert torch.autograd.gradcheck(function, qkv, fast_mode=True)


@every
def test_no_less_accurate_than_plain_pytorch(divergence, version):
    """Three ways: the truth in float64, plain PyTorch on the same inputs, the kernel."""
    lengths, H = (70, 33), 2
    qkv, teacher = tensors((lengths, H, 26, 64), F32)
    options = {"dropout": 0.1, "keep": mask_of(lengths, H, 0.1)}
    ours = accuracy(qkv, teacher, lengths, divergence, "cuda", options)
    plain = accuracy(qkv, teacher, lengths, divergence, "torch", options)
    for i, (x, y) in enumerate(zip(ours, plain, strict=True)):
        assert x <= max(3 * y, 4 * torch.finfo(F32).eps), f"result {i}: {x:.1e}, plain {y:.1e}"


@every
def test_a_row_that_dropout_takes_whole_is_zero(divergence, version):
    """Its divergence and their gradients are still those of the map before dropout."""
    bits = torch.zeros(36, 2, 5, dtype=torch.uint8, device=DEVICE)
    check(((34, 2), 2, 4, 6), divergence, p=0.5, bits=bits)
    bits[3::7] = 255
    check(((34, 2), 2, 4, 6), divergence, p=0.5, bits=bits)


@pytest.mark.parametrize("divergence", DIVERGENCES)
def test_a_given_lse_t_changes_nothing(divergence, version):
    lengths, H = (40, 3), 2
    qkv, teacher = tensors((lengths, H, 4, 6), F64)
    _, lse_t = kernels.attention(*teacher, teacher[0], *row_of(lengths), impl="cuda")
    results = [compute("cuda", qkv, teacher, lengths, divergence, lse_t=x) for x in (lse_t, None)]
    for x, y in zip(*results, strict=True):
        assert (x - y).abs().max() < 1e-12


def test_a_teacher_in_another_type_is_widened(version):
    """No value changes by it: the results are those of the widened teacher, bit for bit."""
    qkv, teacher = tensors(((40,), 2, 4, 6), F32, B16)
    results = [
        compute("cuda", qkv, [x.to(dtype) for x in teacher], (40,), "kl_st") for dtype in (B16, F32)
    ]
    assert all(torch.equal(x, y) for x, y in zip(*results, strict=True))


@pytest.mark.skipif(DEVICE == "cuda", reason="the emulator's")
def test_no_order_of_threads_changes_a_bit(attention_emulators, version):
    library, results = attention_emulators[F32], []
    qkv, teacher = tensors(((40, 9), 2, 26, 16), F32)
    try:
        for seed in (0, 1, 2, 3):
            library.emulator_order(seed)
            torch.manual_seed(1)
            y = compute("cuda", qkv, teacher, (40, 9), "mse_maps", dropout=0.2)
            results.append([*y, *torch.autograd.grad([x.sum() for x in y[:2]], qkv)])
    finally:
        library.emulator_order(0)
    for other in results[1:]:
        assert all(torch.equal(x, y) for x, y in zip(results[0], other, strict=True))


# ---- planted faults ------------------------------------------------------------------------------

FAULTS = {
    "sums that do not shrink": ("r.l_s *= shrink_s;", ""),
    "a product that does not shrink": ("out.multiply(shrink_s);", ""),
    "a square that shrinks once": ("r.tt *= shrink_t * shrink_t;", "r.tt *= shrink_t;"),
    "a key too many": ("const bool is_key = j < span.last;", "const bool is_key = j <= span.last;"),
    "the neighbours' keys": ("return {a.cu_seqlens[low],", "return {low ? low - low : 0,"),
    "a column too few": ("if (d < D) x[c] +=", "if (d + 1 < D) x[c] +="),
    "a mask a key too far": (
        "keep = kept(a, r, j - span.first);",
        "keep = kept(a, r, j - span.first + 1);",
    ),
    "the map before dropout in dv": ("return {keep * a_s, dz};", "return {a_s, dz};"),
    "no divergence in delta": ("return a.g[r] * a.stat[r];", "return 0;"),
    "the teacher's gradient upside down": ("dz += g * (a_s - a_t)", "dz += g * (a_t - a_s)"),
    "a row that is not written": ("return;\n  a.row[r] = row;", "return;\n  (void)row;"),
}


@pytest.mark.skipif(DEVICE == "cuda", reason="the emulator's")
@pytest.mark.parametrize("fault", FAULTS)
def test_a_planted_fault_is_seen(load_for_cpu, monkeypatch, fault):
    right, wrong = FAULTS[fault]
    assert SOURCE.count(right) == 1
    flags = ("-O0", *cuda_attention.FLAGS[F64])
    library = load_for_cpu(SOURCE.replace(right, wrong), *flags, module=cuda_attention)
    monkeypatch.setattr(cuda_attention, "place", lambda device, dtype: (library, None))
    with pytest.raises(AssertionError):
        for divergence in DIVERGENCES:
            check(((40, 34), 1, 3, 4), divergence)


# ---- what is refused -----------------------------------------------------------------------------


def test_what_is_not_served_is_refused_by_name():
    qkv, teacher = tensors(((3,), 1, 257, 4), F32)
    with pytest.raises(ValueError, match="heads are 257 wide, expected at most 256 .*; use torch$"):
        compute("cuda", qkv, teacher, (3,), "none")
    qkv, teacher = tensors(((3,), 1, 4, 4), B16)
    message = "attention_kl: impl is 'cuda', expected torch.float32, not torch.bfloat16.*triton$"
    with pytest.raises(ValueError, match=message):
        compute("cuda", qkv, teacher, (3,), "kl_st")


@pytest.mark.skipif(DEVICE == "cuda", reason="the emulator's")
@pytest.mark.parametrize("threads", [16, 48, 512])
def test_other_numbers_of_threads_are_refused(monkeypatch, threads):
    monkeypatch.setattr(cuda_attention, "THREADS", threads)
    qkv, teacher = tensors(((3,), 2, 4, 4), F32)
    message = r"attention_forward: CUDA error 1 \(invalid argument\) at the launch of 3 rows of 2 "
    with pytest.raises(RuntimeError, match=message):
        compute("cuda", qkv, teacher, (3,), "none")


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_what_nvcc_makes_loads_without_a_gpu_and_says_so(nvcc_cache, monkeypatch):
    library = cuda_attention.load(cuda_build.build(cuda_attention.SOURCE, "sm_90a"))
    monkeypatch.setattr(cuda_attention, "place", lambda device, dtype: (library, None))
    qkv, teacher = tensors(((3,), 2, 4, 4), F32)
    with pytest.raises(
        RuntimeError, match=r"CUDA error \d+ \(.*driver.*\) at the launch of 3 rows"
    ):
        compute("cuda", qkv, teacher, (3,), "none")


# ---- on a GPU ------------------------------------------------------------------------------------


@pytest.mark.gpu
@every
@pytest.mark.parametrize("shape", GPU_SHAPES, ids=["ragged-D26", "wide-teacher", "D64"])
def test_on_the_gpu_no_less_accurate_than_plain_pytorch(shape, divergence, version):
    lengths, H = shape[:2]
    qkv, teacher = tensors(shape, F32)
    options = {"dropout": 0.1, "keep": mask_of(lengths, H, 0.1)}
    ours = accuracy(qkv, teacher, lengths, divergence, "cuda", options)
    plain = accuracy(qkv, teacher, lengths, divergence, "torch", options)
    for i, (x, y) in enumerate(zip(ours, plain, strict=True)):
        assert x <= max(3 * y, 4 * torch.finfo(F32).eps), f"result {i}: {x:.1e}, plain {y:.1e}"


@pytest.mark.gpu
@every
def test_on_the_gpu_results_repeat_bit_for_bit(divergence, version):
    lengths = (256, 200, 131, 90, 17)
    qkv, teacher = tensors((lengths, 12, 32, 64), F32)
    runs = []
    for _ in range(2):
        torch.manual_seed(3)
        *y, lse = compute("cuda", qkv, teacher, lengths, divergence, dropout=0.1)
        runs.append([*y, lse, *torch.autograd.grad(y, qkv, [torch.ones_like(x) for x in y])])
    assert all(torch.equal(x, y) for x, y in zip(*runs, strict=True))


@pytest.mark.gpu
def test_on_the_gpu_dropout_is_that_of_triton():
    """One seed, one mask: the hash is the same in both."""
    lengths = (256, 77)
    qkv, teacher = tensors((lengths, 4, 32, 64), F32)
    results = []
    for impl in ("cuda", "triton"):
        torch.manual_seed(3)
        results.append(compute(impl, qkv, teacher, lengths, "none", dropout=0.1)[0])
    assert (results[0] - results[1]).abs().max() < 1e-4
