"""The choices around the Triton kernels. What they compute: test_ops.py; on a GPU: below."""

import numpy as np
import pytest
import torch
from attention_cases import (
    B16,
    F16,
    F32,
    F64,
    GPU_SHAPES,
    accuracy,
    assert_as_truth,
    compute,
    hashed,
    mask_of,
    row_of,
    tensors,
)

import kernels
from helpers import DEVICE, LIMIT, assert_near
from kernels import api as maps
from kernels import attention_ops, reference
from kernels.reference import DIVERGENCES

triton_attention = pytest.importorskip("kernels.triton_attention", reason="needs Triton")
AttentionConfig = triton_attention.AttentionConfig


def cut_into(config, monkeypatch):
    monkeypatch.setattr(triton_attention, "pick_config", lambda *_: config)


@pytest.mark.parametrize("kernel", ["forward", "dq", "dkdv"])
@pytest.mark.parametrize("dtype", [F64, F32, F16, B16], ids=str)
@pytest.mark.parametrize("D_T", [1, 26, 64, 256])
def test_the_table_has_a_row_for_everything(kernel, dtype, D_T):
    for divergence in ("none", *DIVERGENCES):
        c = triton_attention.pick_config(kernel, 26, D_T, divergence, dtype)
        for size in (c.BLOCK_Q, c.BLOCK_K):
            assert size >= 16 and size & (size - 1) == 0  # what tensor cores and tl.arange take
        assert c == triton_attention.pick_config(kernel, 26, D_T, divergence, dtype)


@pytest.mark.parametrize(("D", "padded"), [(1, 16), (16, 16), (26, 32), (33, 64), (256, 256)])
def test_padded_width(D, padded):
    assert triton_attention.padded_width(D) == padded


@pytest.mark.parametrize("blocks", [(8, 16), (16, 8), (32, 8)])
@pytest.mark.parametrize("divergence", ["kl_st", "mse_maps"])
def test_blocks_need_not_be_square(divergence, blocks, monkeypatch):
    if DEVICE == "cuda":
        blocks = tuple(2 * n for n in blocks)
    cut_into(AttentionConfig(*blocks, 4, 1), monkeypatch)
    lengths = (17, 9)
    qkv, teacher = tensors((lengths, 1, 4, 6), F64)
    qkv_64 = [x.detach().requires_grad_() for x in qkv]
    options = {"dropout": 0.3, "keep": mask_of(lengths, 1, 0.3)}
    truth = compute("reference", qkv_64, teacher, lengths, divergence, **options)
    got = compute("triton", qkv, teacher, lengths, divergence, **options)
    assert_as_truth(got, qkv, truth, qkv_64, LIMIT[F64])


@pytest.mark.parametrize(("dtype", "bits"), [(F64, torch.int64), (B16, torch.uint8)], ids=str)
def test_a_given_mask_is_wide_where_products_are_of_float64(dtype, bits):
    """Triton 3.6 compiles no product of float64 that follows from bytes (test_triton_sm90.py)."""
    given = {}

    class Kernel:
        def __getitem__(self, grid):
            return lambda **arguments: given.update(arguments)

    (q, k, v), _ = tensors(((9,), 2, 4, 6), dtype)
    row, keep = row_of((9,)), mask_of((9,), 2, 0.3)
    x = reference.Call(q, k, v, None, None, keep, None, *row, "none", 0.3, 0.5, 0.5)
    triton_attention.launch(Kernel(), "forward", x, {})
    assert given["ptr_keep"].dtype == bits and torch.equal(given["ptr_keep"].to(keep.dtype), keep)


@pytest.mark.parametrize("impl", ["triton", "cuda"])
@pytest.mark.parametrize("divergence", ["none", "kl_ts"])
@pytest.mark.usefixtures("cuda_attention_here")
def test_the_drawn_mask_is_the_hash_of_seed_row_and_key(divergence, impl, monkeypatch):
    """The same bits given and drawn, in forward and backward, whatever the blocks."""
    lengths, H, p = (17, 5), 2, 0.4
    seed = 0x123456789ABCDEF
    monkeypatch.setattr(
        maps, "draw_seed",
        lambda x, p, keep: None if keep is not None else torch.tensor([seed], device=DEVICE),
    )  # fmt: skip
    words = np.stack(
        [[hashed(seed, n * H + h, 17) for h in range(H)] for n in range(sum(lengths))]
    )  # (N, H, 17)
    keep = reference.pack_bits(torch.from_numpy(words >= round(p * 2**16))).to(DEVICE)
    qkv, teacher = tensors((lengths, H, 4, 6), F64)
    qkv_64 = [x.detach().requires_grad_() for x in qkv]
    for size in (16, 32):
        truth = compute("reference", qkv_64, teacher, lengths, divergence, dropout=p, keep=keep)
        cut_into(AttentionConfig(size, size, 4, 1), monkeypatch)
        got = compute(impl, qkv, teacher, lengths, divergence, dropout=p)
        assert_as_truth(got, qkv, truth, qkv_64, LIMIT[F64])


def test_the_hash_is_fair():
    """Shares of keys, of rows, and of pairs of entries over a million of them, p = 0.1; also of the
    two that share a word, and of two seeds with a bit between them."""
    threshold, seed = round(0.1 * 2**16), 77 + (5 << 40)
    drop, *others = (
        np.stack([hashed(x, row, 256) < threshold for row in range(n)])
        for x, n in ((seed, 4096), (seed ^ 1, 1024), (seed ^ 1 << 62, 1024))
    )
    p, n = 0.1, drop.size
    sigma = (p * (1 - p)) ** 0.5
    assert abs(drop.mean() - p) < 4 * sigma / n**0.5
    for axis in (0, 1):
        shares = drop.mean(axis)
        expected = sigma / drop.shape[axis] ** 0.5
        assert abs(shares.std() / expected - 1) < 0.1 if axis else shares.std() / expected < 1.2
    pairs = [(drop[k:], drop[:-k]) for k in (1, 12, 2048)]
    pairs += [(drop[:, k:], drop[:, :-k]) for k in (1, 7, 8, 9, 16)]
    pairs += [(drop[: len(x)], x) for x in others]
    for a, b in pairs:
        correlation = ((a - p) * (b - p)).mean() / sigma**2
        assert abs(correlation) < 5 / a.size**0.5


@pytest.mark.parametrize(("impl", "dtype"), [("triton", F16), ("cuda", F32)])
@pytest.mark.usefixtures("cuda_attention_here")
def test_offsets_do_not_wrap_at_two_thousand_million(impl, dtype, monkeypatch):
    """A row whose tensors reach past 2^31 elements: the interpreter wraps as a GPU does."""
    N, H, D = 3, 1, 4
    stride = 2**30 + 16  # elements from token to token; the memory between is never touched
    storage = torch.empty(2 * stride + 16, dtype=dtype, device=DEVICE)
    big = storage.as_strided((N, H, D), (stride, D, 1))
    small = torch.randn(N, H, D, device=DEVICE).to(dtype)
    big.copy_(small)
    cut_into(AttentionConfig(16, 16, 4, 1), monkeypatch)
    for place in range(5):
        tensors = [small] * 5
        tensors[place] = big
        got = kernels.attention_kl(*tensors, *row_of((3,)), divergence="kl_st", impl=impl)
        for name, x in zip(("out", "rows", "lse"), got, strict=True):
            assert_near(name, x, expected_of(small)[name], 2e-3)


@pytest.mark.usefixtures("banded_empty", "cuda_attention_here")
@pytest.mark.parametrize("impl", ["triton", "cuda"])
@pytest.mark.parametrize("places", [(0, 5, 12), (0, 5, 30), (0, 20, 30)])
def test_boundaries_beyond_the_row_are_cut_to_it(places, impl):
    """A GPU's are not read back to be checked, so the kernels see to it that nothing is harmed."""
    (q, k, v), (q_t, k_t) = tensors(((9,), 2, 4, 6), F32)
    cu_seqlens = torch.tensor(places, dtype=torch.int32, device=DEVICE)
    out, *_ = attention_ops.attention(
        q, k, v, q_t, k_t, None, None, None, cu_seqlens, 30, "kl_st", 0.0, 0.5, 0.5, impl
    )
    g = torch.autograd.grad(out.sum(), (q, k, v))  # the bands around them are checked at the end
    first = min(places[1], 9)
    expected, _ = reference.attention(
        *(x[:first] for x in (q, k, v)), torch.tensor([0, first]), scale=0.5
    )
    assert_near("out", out[:first], expected, 1e-5)
    assert all(x.isfinite().all() for x in g)


def expected_of(x):
    """Attention of a tensor to itself, and no divergence from itself."""
    out, rows, lse = kernels.attention_kl(
        *[x] * 5, *row_of((len(x),)), divergence="kl_st", impl="reference"
    )
    return {"out": out, "rows": rows, "lse": lse}


# ---- on a GPU


@pytest.mark.gpu
@pytest.mark.parametrize("divergence", ["none", *DIVERGENCES])
@pytest.mark.parametrize("dtype", [F32, F16, B16], ids=str)
@pytest.mark.parametrize("shape", GPU_SHAPES, ids=["ragged-D26", "wide-teacher", "D64"])
def test_on_the_gpu_no_less_accurate_than_plain_pytorch(shape, dtype, divergence):
    """Three ways: the truth in float64, plain PyTorch on the same inputs, the kernel."""
    lengths, H = shape[:2]
    qkv, teacher = tensors(shape, dtype)
    options = {"dropout": 0.1, "keep": mask_of(lengths, H, 0.1)}
    ours = accuracy(qkv, teacher, lengths, divergence, "triton", options)
    plain = accuracy(qkv, teacher, lengths, divergence, "torch", options)
    # Maps and their gradients are rounded to the inputs' type too, as in FlashAttention, by half an
    # eps at most, to the nearest. float32 multiplies three pairs of 10-bit halves.
    limit = (4 if dtype == F32 else 1) * torch.finfo(dtype).eps
    for i, (x, y) in enumerate(zip(ours, plain, strict=True)):
        assert x <= max(3 * y, limit), f"result {i}: {x:.1e}, plain {y:.1e}"


@pytest.mark.gpu
@pytest.mark.parametrize("divergence", ["none", *DIVERGENCES])
def test_on_the_gpu_results_repeat_bit_for_bit(divergence):
    lengths = (256, 200, 131, 90, 17)
    qkv, teacher = tensors((lengths, 12, 32, 64), B16)
    runs = []
    for _ in range(2):
        torch.manual_seed(3)
        *y, lse = compute("triton", qkv, teacher, lengths, divergence, dropout=0.1)
        runs.append([*y, lse, *torch.autograd.grad(y, qkv, [torch.ones_like(x) for x in y])])
    assert all(torch.equal(x, y) for x, y in zip(*runs, strict=True))


@pytest.mark.gpu
def test_nothing_waits_for_the_gpu():
    lengths = (200, 31, 0, 1, 256)
    qkv, teacher = tensors((lengths, 12, 26, 64), B16)
    row = row_of(lengths)
    args = {"divergence": "kl_st", "dropout": 0.1}
    kernels.attention_kl(*qkv, *teacher, *row, **args)[0].sum().backward()  # compiled
    torch.cuda.set_sync_debug_mode("error")
    try:
        kernels.attention_kl(*qkv, *teacher, *row, **args)[0].sum().backward()
        kernels.attention(*qkv, *row, dropout=0.1)[0].sum().backward()
    finally:
        torch.cuda.set_sync_debug_mode("default")
