"""The fast ways in plain PyTorch: values and gradients against the definition in float64."""

from itertools import accumulate

import pytest
import torch

import kernels
from helpers import LIMIT, assert_near, guarded
from kernels import reference, torch_attention
from kernels.reference import DIVERGENCES

F64, F32, F16, B16 = torch.float64, torch.float32, torch.float16, torch.bfloat16
# (lengths, heads, student's width, teacher's): on the eights; off; runs; nothing or next to it
SHAPES = {
    "T8,16-H4-D32": ((8, 16), 4, 32, 64),
    "T17,1,0,9-H3-D26": ((17, 1, 0, 9), 3, 26, 64),
    "T5,5,5,3,3,17,5-H2-D26": ((5, 5, 5, 3, 3, 17, 5), 2, 26, 20),
    "T8,8,8-H2-D8": ((8, 8, 8), 2, 8, 8),
    "T1-H1-D1": ((1,), 1, 1, 1),
    "T0,2,0-H1-D5": ((0, 2, 0), 1, 5, 3),
    "T0,0-H2-D3": ((0, 0), 2, 3, 4),
    "empty-H2-D3": ((), 2, 3, 4),
}
shapes = pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
IMPLS = ("torch", "padded")


def boundaries(lengths):
    return torch.tensor([0, *accumulate(lengths)], dtype=torch.int32)


def tensors(shape, dtype, dtype_t=None):
    """q_s, k_s, v_s, q_t, k_t rounded to their types, each between two NaN bands."""
    lengths, H, D_s, D_t = shape
    N = sum(lengths)
    student = [guarded(torch.randn(N, H, D_s).to(dtype)) for _ in range(3)]
    teacher = [guarded(torch.randn(N, H, D_t).to(dtype_t or dtype)) for _ in range(2)]
    return [x.requires_grad_() for x in student], teacher


def gradients(outputs, inputs, cotangents):
    """Zeros where an empty row leaves nothing in the graph."""
    g = [c.to(x.dtype) for c, x in zip(cotangents, outputs, strict=True)]
    return torch.autograd.grad(outputs, inputs, g, materialize_grads=True)


def assert_as_truth(got, inputs, truth, inputs_64, limits):
    """Outputs and, under random cotangents, the gradients of q, k and v."""
    # not .sum(): the gradient of a sum of probabilities is 0 whatever the code does
    cotangents = [3.0 * torch.randn_like(x) for x in truth]
    cotangents = [g.to(x.dtype).double() for g, x in zip(cotangents, got, strict=True)]
    for name, x, y, limit in zip(("out", "row_loss"), got, truth, limits, strict=False):
        assert_near(name, x, y, limit)
    g = gradients(got, inputs, cotangents)
    g_64 = gradients(truth, inputs_64, cotangents)
    for name, x, y in zip(("dq", "dk", "dv"), g, g_64, strict=True):
        assert_near(name, x, y, limits[0])


# ---- attention


@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize("dtype", [F64, F32, F16, B16], ids=str)
@shapes
def test_attention_equals_the_definition(shape, dtype, impl):
    lengths = shape[0]
    qkv, _ = tensors(shape, dtype)
    qkv_64 = [x.detach().double().requires_grad_() for x in qkv]
    truth, _ = reference.attention(*qkv_64, boundaries(lengths))
    got = kernels.attention(*qkv, boundaries(lengths), lengths, impl=impl)
    assert got.dtype == dtype
    assert_as_truth([got], qkv, [truth], qkv_64, [LIMIT[dtype]])


@pytest.mark.parametrize("impl", IMPLS)
def test_gradcheck(impl):
    lengths = (3, 1, 2)
    qkv = [torch.randn(6, 2, 2, dtype=F64, requires_grad=True) for _ in range(3)]
    assert torch.autograd.gradcheck(
        lambda *x: kernels.attention(*x, boundaries(lengths), lengths, impl=impl), qkv
    )


@pytest.mark.parametrize("impl", IMPLS)
def test_any_strides_will_do(impl):
    lengths = (5, 3, 3)
    packed = torch.randn(11, 3, 2, 6, dtype=F64)  # (N, 3, H, D): one linear layer for all three
    turned = [x.transpose(0, 1).contiguous().transpose(0, 1) for x in packed.unbind(1)]  # H first
    last = [x.mT.contiguous().mT for x in packed.unbind(1)]  # D not the fastest
    truth = kernels.attention(
        *(x.contiguous() for x in packed.unbind(1)), boundaries(lengths), lengths, impl="reference"
    )
    for qkv in (packed.unbind(1), turned, last):
        assert not qkv[0].is_contiguous()
        got = kernels.attention(*qkv, boundaries(lengths), lengths, impl=impl)
        assert_near("out", got, truth, 1e-12)


@pytest.mark.parametrize("impl", IMPLS)
def test_inputs_are_left_as_they_were(impl):
    qkv = [torch.randn(7, 2, 6) for _ in range(3)]
    before = [x.clone() for x in qkv]
    kernels.attention(*qkv, boundaries((4, 3)), (4, 3), impl=impl)
    assert all(torch.equal(x, y) for x, y in zip(qkv, before, strict=True))


@pytest.mark.parametrize("impl", IMPLS)
def test_a_sequence_does_not_see_its_neighbours(impl):
    lengths = (6, 4, 4)
    qkv = [torch.randn(14, 2, 6) for _ in range(3)]
    out = kernels.attention(*qkv, boundaries(lengths), lengths, impl=impl)
    for x in qkv:
        x[6:10] = 1e4
    again = kernels.attention(*qkv, boundaries(lengths), lengths, impl=impl)
    assert torch.equal(out[:6], again[:6]) and torch.equal(out[10:], again[10:])


# ---- how the row is cut


@pytest.mark.parametrize(
    ("lengths", "limit", "expected"),
    [
        ((), None, []),
        ((0, 0), None, []),
        ((5, 5, 3, 5), None, [(2, 5), (1, 3), (1, 5)]),
        ((4, 0, 4, 7), None, [(2, 4), (1, 7)]),  # nothing stands between the two fours
        ((2, 2, 2, 2, 2), 8, [(2, 2), (2, 2), (1, 2)]),  # two maps of 4 entries in 8
        ((9, 9), 8, [(1, 9), (1, 9)]),  # a sequence is never cut
    ],
)
def test_runs(lengths, limit, expected):
    assert torch_attention.runs(lengths, limit) == expected


def test_rectangles_are_views_of_the_row():
    x = torch.randn(19, 2, 3)
    parts = torch_attention.runs((5, 5, 3, 3, 3))
    blocks = torch_attention.rectangles(x, parts)
    assert [tuple(b.shape) for b in blocks] == [(2, 2, 5, 3), (3, 2, 3, 3)]
    assert all(b.untyped_storage().data_ptr() == x.untyped_storage().data_ptr() for b in blocks)
    assert torch.equal(blocks[0][1, 1, 4], x[9, 1]) and torch.equal(blocks[1][2, 0, 1], x[17, 0])
    assert torch.equal(torch_attention.row(blocks), x)


def test_the_padded_way_takes_a_rectangle_as_it_is(monkeypatch):
    monkeypatch.setattr(torch.Tensor, "index_copy_", None)  # padding would call it
    qkv = [torch.randn(12, 2, 8) for _ in range(3)]
    kernels.attention(*qkv, boundaries((6, 0, 6)), (6, 0, 6), impl="padded")
    with pytest.raises(TypeError):
        kernels.attention(*qkv, boundaries((7, 5)), (7, 5), impl="padded")


def test_the_padded_way_asks_what_a_gpu_can_do(monkeypatch):
    """One call, on sizes in eights, and no query without a key: some kernels give NaN for it."""
    asked = []

    def attend(q, k, v, attn_mask, dropout_p, scale):
        asked.append((k.shape, attn_mask))
        return v

    monkeypatch.setattr(torch_attention, "scaled_dot_product_attention", attend)
    qkv = [torch.randn(10, 2, 26) for _ in range(3)]
    out = kernels.attention(*qkv, boundaries((9, 0, 1)), (9, 0, 1), impl="padded")
    ((shape, is_seen),) = asked
    assert shape == (3, 2, 16, 32)
    assert is_seen.sum(-1).flatten().tolist() == [9, 1, 1]
    assert torch.equal(out, qkv[2])  # each token came back from its own cell


# ---- attention_kl


@pytest.mark.parametrize("divergence", DIVERGENCES)
@pytest.mark.parametrize(
    ("dtype", "dtype_t"), [(F64, F64), (F32, F32), (F16, F16), (B16, B16), (F32, B16), (F64, F32)]
)
@shapes
def test_attention_kl_equals_the_definition(shape, dtype, dtype_t, divergence):
    lengths = shape[0]
    qkv, teacher = tensors(shape, dtype, dtype_t)
    qkv_64 = [x.detach().double().requires_grad_() for x in qkv]
    teacher_64 = [x.double() for x in teacher]
    truth = reference.attention_kl(
        *qkv_64, *teacher_64, boundaries(lengths), divergence=divergence
    )[:2]
    got = kernels.attention_kl(
        *qkv, *teacher, boundaries(lengths), lengths, divergence=divergence, impl="torch"
    )
    assert (got[0].dtype, got[1].dtype) == (dtype, F64 if dtype == F64 else F32)
    # whatever is narrower than float64 is read and accumulated in float32: a teacher's scores too
    limit_rows = LIMIT[F64] if dtype_t == F64 else LIMIT[F32]
    limit = max(LIMIT[dtype], limit_rows)
    assert_as_truth(got, qkv, truth, qkv_64, (limit, limit_rows))


@pytest.mark.parametrize("divergence", DIVERGENCES)
def test_gradcheck_of_attention_kl(divergence):
    lengths = (3, 1, 3)
    qkv = [torch.randn(7, 2, 2, dtype=F64, requires_grad=True) for _ in range(3)]
    teacher = [torch.randn(7, 2, 3, dtype=F64) for _ in range(2)]

    def attention_kl(*x):
        return kernels.attention_kl(
            *x, *teacher, boundaries(lengths), lengths, divergence=divergence, impl="torch"
        )

    assert torch.autograd.gradcheck(attention_kl, qkv)


@pytest.mark.parametrize("entries", [1, 60, 10**6])
def test_maps_formed_few_at_a_time_are_the_same_maps(entries, monkeypatch):
    monkeypatch.setattr(torch_attention, "MAP_ENTRIES", entries)
    lengths = (4, 4, 4, 6, 6)
    qkv = [torch.randn(24, 2, 5, dtype=F64) for _ in range(3)]
    teacher = [torch.randn(24, 2, 5, dtype=F64) for _ in range(2)]
    args = (*qkv, *teacher, boundaries(lengths), lengths)
    truth = kernels.attention_kl(*args, divergence="kl_st", impl="reference")
    got = kernels.attention_kl(*args, divergence="kl_st", impl="torch")
    for x, y in zip(got, truth, strict=True):
        assert_near("result", x, y, 1e-12)


# ---- dropout


def dropped_maps(impl, p, n=200):
    """n draws of the maps of two sequences of 16: (n, 32, 2, 16), and the maps before dropout.

    v = 1 makes the output the map.
    """
    lengths = (16, 16)
    q, k = torch.randn(32, 2, 16), torch.randn(32, 2, 16)
    v = torch.eye(16)[:, None].expand(16, 2, 16).repeat(2, 1, 1)
    args = (q, k, v, boundaries(lengths), lengths)
    whole = kernels.attention(*args, impl="reference")
    if impl == "attention_kl":

        def draw():
            teacher = (q.flip(0), k.flip(0))
            return kernels.attention_kl(
                *args[:3], *teacher, *args[3:], divergence="kl_st", dropout=p
            )[0]
    else:

        def draw():
            return kernels.attention(*args, dropout=p, impl=impl)

    return torch.stack([draw() for _ in range(n)]), whole


@pytest.mark.parametrize("impl", ["reference", "torch", "padded", "attention_kl"])
def test_dropout_drops_its_share_and_scales_the_rest(impl):
    p = 0.3
    maps, whole = dropped_maps(impl, p)
    is_zero = maps == 0
    n = maps.numel()
    # within four standard deviations of a binomial share
    assert abs(is_zero.double().mean() - p) < 4 * (p * (1 - p) / n) ** 0.5
    assert_near("kept", (maps * ~is_zero), (whole / (1 - p) * ~is_zero), 1e-5)
    # each entry's mean over the draws: the standard deviation is a sqrt(p / ((1 - p) n))
    error = (maps.mean(0) - whole).abs() / (whole * (p / (1 - p) / len(maps)) ** 0.5)
    assert error.max() < 5
    # heads, queries and draws are dropped independently of each other
    share = is_zero.double()
    for dim in range(4):
        others = [d for d in range(4) if d != dim]
        spread = share.mean(others).std() / (p * (1 - p) / (n / maps.shape[dim])) ** 0.5
        assert spread < 3, f"dimension {dim}: {spread:.1f} times the spread of independent draws"


@pytest.mark.parametrize("impl", ["reference", "torch", "padded"])
def test_dropout_follows_the_seed(impl):
    qkv = [torch.randn(9, 2, 6) for _ in range(3)]

    def draw(seed):
        torch.manual_seed(seed)
        return kernels.attention(*qkv, boundaries((4, 5)), (4, 5), dropout=0.4, impl=impl)

    assert torch.equal(draw(1), draw(1)) and not torch.equal(draw(1), draw(2))


def test_divergences_are_of_the_maps_before_dropout():
    lengths = (6, 3)
    qkv, teacher = tensors((lengths, 2, 4, 4), F32)
    args = (*qkv, *teacher, boundaries(lengths), lengths)
    whole, rows = kernels.attention_kl(*args, divergence="kl_st")
    out, rows_2 = kernels.attention_kl(*args, divergence="kl_st", dropout=0.5)
    assert torch.equal(rows, rows_2) and not torch.equal(out, whole)


def test_the_gradient_of_dropout_uses_the_mask_of_the_forward():
    lengths = (4, 4, 3)
    q, k, v = (torch.randn(11, 2, 5, dtype=F64) for _ in range(3))
    for impl in IMPLS:
        v_ = v.clone().requires_grad_()
        torch.manual_seed(3)
        out = kernels.attention(q, k, v_, boundaries(lengths), lengths, dropout=0.5, impl=impl)
        g = torch.randn_like(out)
        (dv,) = torch.autograd.grad(out, v_, g)
        # out is linear in v, so <out, g> = <v, dv> holds for one and the same mask alone
        assert (out * g).sum().item() == pytest.approx((v * dv).sum().item(), rel=1e-10)


# ---- repetition


@pytest.mark.parametrize("impl", ["torch", "padded", "attention_kl"])
def test_results_repeat_bit_for_bit_on_two_threads(impl):
    lengths = (70, 70, 33, 9)
    qkv, teacher = tensors((lengths, 4, 26, 16), F32)
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        runs = []
        for _ in range(3):
            torch.manual_seed(5)
            if impl == "attention_kl":
                outs = kernels.attention_kl(
                    *qkv, *teacher, boundaries(lengths), lengths, divergence="kl_st", dropout=0.1
                )
            else:
                outs = [kernels.attention(*qkv, boundaries(lengths), lengths, impl=impl)]
            g = [torch.randn(x.shape) for x in outs]
            runs.append([*outs, *gradients(outs, qkv, g)])
    finally:
        torch.set_num_threads(threads)
    for again in runs[1:]:
        assert all(torch.equal(x, y) for x, y in zip(again, runs[0], strict=True))


# ---- on a GPU


@pytest.mark.gpu
@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize("dtype", [F32, B16], ids=str)
@pytest.mark.parametrize("shape", [((200, 31, 0, 1, 256), 12, 26, 64), ((128, 128), 4, 32, 64)])
def test_attention_on_the_gpu_equals_the_definition(shape, dtype, impl):
    lengths = shape[0]
    qkv = [x.detach().cuda().requires_grad_() for x in tensors(shape, dtype)[0]]
    cu_seqlens = boundaries(lengths).cuda()
    qkv_64 = [x.detach().double().requires_grad_() for x in qkv]
    truth, _ = reference.attention(*qkv_64, cu_seqlens)
    got = kernels.attention(*qkv, cu_seqlens, lengths, impl=impl)
    # fp32 attention on a GPU may split its products into three of 10 bits
    limit = 1e-4 if dtype == F32 else LIMIT[dtype]
    assert_as_truth([got], qkv, [truth], qkv_64, [limit])


@pytest.mark.gpu
def test_nothing_waits_for_the_gpu():
    lengths = (200, 31, 0, 1, 256)
    qkv, teacher = tensors((lengths, 12, 26, 64), B16)
    qkv, teacher = ([x.detach().cuda() for x in xs] for xs in (qkv, teacher))
    cu_seqlens = boundaries(lengths).cuda()
    torch.cuda.set_sync_debug_mode("error")
    try:
        kernels.attention(*qkv, cu_seqlens, lengths, dropout=0.1)
        kernels.attention_kl(*qkv, *teacher, cu_seqlens, lengths, divergence="kl_st", dropout=0.1)
    finally:
        torch.cuda.set_sync_debug_mode("default")
