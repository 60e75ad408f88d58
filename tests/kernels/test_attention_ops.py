"""What holds for every implementation with a backward of its own, on blocks of eight."""

import pytest
import torch
from attention_cases import (
    B16,
    F16,
    F32,
    F64,
    SHAPES,
    assert_as_truth,
    boundaries,
    compute,
    gradients,
    mask_of,
    row_of,
    tensors,
)
from torch.utils._python_dispatch import TorchDispatchMode

import kernels
from helpers import DEVICE, LIMIT, assert_near
from kernels import torch_attention
from kernels.reference import DIVERGENCES

triton_attention = pytest.importorskip("kernels.triton_attention", reason="needs Triton")

pytestmark = pytest.mark.usefixtures("banded_empty", "small_blocks", "cuda_attention_here")
IMPLS = ("torch", "triton", "cuda")
EVERY = ("none", *DIVERGENCES)
impls = pytest.mark.parametrize("impl", IMPLS)
every = pytest.mark.parametrize("divergence", EVERY)
shapes = pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)


def cut_into(size, monkeypatch):
    """Blocks of `size` queries and keys; a GPU's products want sixteen."""
    size = max(size, 16) if DEVICE == "cuda" else size
    config = triton_attention.AttentionConfig(size, size, 4, 1)
    monkeypatch.setattr(triton_attention, "pick_config", lambda *_: config)
    monkeypatch.setattr(torch_attention, "MAP_ENTRIES", 2 * size**2)
    monkeypatch.setattr(torch_attention, "MAP_ENTRIES_GPU", 2 * size**2)
    return size


@pytest.fixture
def small_blocks(monkeypatch):
    """Blocks that seventeen tokens fill twice and a bit."""
    cut_into(8, monkeypatch)


@pytest.fixture
def blocks_that_draw(small_blocks, monkeypatch):
    """Sixteen keys at least, where Triton draws dropout's mask: two of them share a word."""
    cut_into(16, monkeypatch)


class Called(TorchDispatchMode):
    """Keeps the name and the arguments of every operation."""

    def __init__(self):
        super().__init__()
        self.calls = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.calls.append((function.overloadpacket.__name__, args))
        return function(*args, **kwargs or {})


def truth_of(qkv, teacher, lengths, divergence, **options):
    """The definition in float64 on the same rounded inputs -> results, inputs."""
    qkv_64 = [x.detach().double().requires_grad_() for x in qkv]
    teacher_64 = [x.double() for x in teacher]
    return compute("reference", qkv_64, teacher_64, lengths, divergence, **options), qkv_64


# ---- values and gradients


@impls
@every
@shapes
def test_float64_equals_the_definition(shape, divergence, impl):
    lengths, H = shape[:2]
    qkv, teacher = tensors(shape, F64)
    options = {"dropout": 0.3, "keep": mask_of(lengths, H, 0.3)}
    truth, qkv_64 = truth_of(qkv, teacher, lengths, divergence, **options)
    got = compute(impl, qkv, teacher, lengths, divergence, **options)
    assert_as_truth(got, qkv, truth, qkv_64, LIMIT[F64])


@impls
@every
@pytest.mark.parametrize(("dtype", "dtype_t"), [(F32, F32), (F16, F16), (B16, B16), (F32, B16)])
def test_narrow_types_equal_the_definition(dtype, dtype_t, divergence, impl):
    shape = SHAPES["T17,1,0,9-H2-D26"]
    (lengths, H), p = shape[:2], 0.25
    qkv, teacher = tensors(shape, dtype, dtype_t)
    options = {"dropout": p, "keep": mask_of(lengths, H, p)}
    if impl == "cuda" and dtype != F32:
        with pytest.raises(ValueError, match=f"impl is 'cuda', expected .*, not {dtype}.*triton$"):
            compute(impl, qkv, teacher, lengths, divergence, **options)
        return
    truth, qkv_64 = truth_of(qkv, teacher, lengths, divergence, **options)
    got = compute(impl, qkv, teacher, lengths, divergence, **options)
    assert [x.dtype for x in got] == [dtype, *[F32] * (len(got) - 1)]
    assert_as_truth(got, qkv, truth, qkv_64, LIMIT[dtype], LIMIT[F32])


@impls
@pytest.mark.parametrize("divergence", DIVERGENCES)
def test_a_given_lse_t_changes_nothing(divergence, impl):
    lengths, H = (17, 3), 2
    qkv, teacher = tensors((lengths, H, 4, 6), F64)
    _, lse_t = kernels.attention(*teacher, teacher[0], *row_of(lengths), impl=impl)
    truth, qkv_64 = truth_of(qkv, teacher, lengths, divergence)
    got = compute(impl, qkv, teacher, lengths, divergence, lse_t=lse_t)
    assert_as_truth(got, qkv, truth, qkv_64, LIMIT[F64])


@impls
def test_scales_are_what_one_says(impl):
    lengths = (9, 4)
    qkv, teacher = tensors((lengths, 2, 4, 6), F64)
    scaled = [2 * qkv[0], *qkv[1:]], [teacher[0] / 3, teacher[1]]
    expected = compute("reference", *scaled, lengths, "kl_ts")
    got = compute(impl, qkv, teacher, lengths, "kl_ts", scale_s=2 * 4**-0.5, scale_t=6**-0.5 / 3)
    for x, y in zip(got, expected, strict=True):
        assert_near("result", x, y, 1e-12)
    (out, lse), (out_2, lse_2) = (
        kernels.attention(*scaled[0], *row_of(lengths), impl="reference"),
        kernels.attention(*qkv, *row_of(lengths), scale=2 * 4**-0.5, impl=impl),
    )
    assert_near("out", out_2, out, 1e-12)
    assert_near("lse", lse_2, lse, 1e-12)


GRADCHECKED = set()


@impls
@every
@pytest.mark.parametrize("p", [0, 0.4])
def test_gradcheck(p, divergence, impl, monkeypatch):
    """Numerical derivatives in float64 of everything with a gradient, across a block's edge."""
    N, H = cut_into(2, monkeypatch) + 1, 1
    lengths = (N,)
    D = 2 if p else 1  # the interpreter takes its time
    qkv = [torch.randn(N, H, D, dtype=F64, device=DEVICE, requires_grad=True) for _ in range(3)]
    teacher = [torch.randn(N, H, 3, dtype=F64, device=DEVICE) for _ in range(2)]
    options = {"dropout": p, "keep": mask_of(lengths, H, p)}

    def function(*x):
        return compute(impl, x, teacher, lengths, divergence, **options)[:-1]

    assert torch.autograd.gradcheck(function, qkv)
    GRADCHECKED.add((impl, divergence, p))


def test_every_gradcheck_ran(request):
    asked = [x for x in request.session.items if x.name.startswith("test_gradcheck[")]
    if len(asked) < len(IMPLS) * len(EVERY) * 2:
        pytest.skip("a part of the tests was chosen")
    assert GRADCHECKED == {(i, d, p) for i in IMPLS for d in EVERY for p in (0, 0.4)}


@impls
@pytest.mark.parametrize("divergence", DIVERGENCES)
@pytest.mark.parametrize("which", [0, 1], ids=["output", "rows"])
def test_gradcheck_of_one_result(which, divergence, impl, monkeypatch):
    """The other result is used by nobody, and its gradient is None."""
    lengths = (cut_into(2, monkeypatch) + 1,)
    (q, k, v), teacher = tensors((lengths, 1, 1, 1), F64)

    def function(*x):
        return compute(impl, x, teacher, lengths, divergence)[which]

    assert torch.autograd.gradcheck(function, (q, k, v))


@impls
@pytest.mark.parametrize("divergence", DIVERGENCES)
def test_equal_maps_cost_nothing_and_teach_nothing(divergence, impl):
    lengths = (17, 2)
    qkv, _ = tensors((lengths, 2, 5, 5), F64)
    teacher = [x.detach() for x in qkv[:2]]
    _, rows, _ = compute(impl, qkv, teacher, lengths, divergence)
    assert rows.abs().max() < 1e-14
    for g in gradients([rows], qkv, [torch.randn_like(rows)]):
        assert g.abs().max() < 1e-14


@impls
def test_rows_alone_and_output_alone_have_gradients(impl):
    lengths = (9, 3)
    qkv, teacher = tensors((lengths, 2, 4, 6), F64)
    for which in (0, 1):
        results = []
        for name in (impl, "reference"):
            torch.manual_seed(1)
            y = compute(name, qkv, teacher, lengths, "kl_st")[which]
            results.append(gradients([y], qkv, [torch.randn_like(y)]))
        for name, x, y in zip(("dq", "dk", "dv"), *results, strict=True):
            assert_near(name, x, y, 1e-12)


@impls
@pytest.mark.parametrize("divergence", ["none", "mse_maps"])
def test_backward_makes_no_zeros(divergence, impl):
    """None for the results without a gradient; an output's own backward has no teacher."""
    qkv, teacher = tensors(((9, 3), 2, 4, 6), F64)
    for used in ([0], [0, 1]) if divergence != "none" else ([0],):
        y = compute(impl, qkv, teacher, (9, 3), divergence)
        outputs = [y[i] for i in used]
        with Called() as called:
            torch.autograd.grad(outputs, qkv, [torch.ones_like(x) for x in outputs])
        (args,) = (args for name, args in called.calls if name == "attention_backward")
        assert (args[1] is None) == (1 not in used)  # g
        named = next(x for x in args if isinstance(x, str))
        assert named == (divergence if 1 in used else "none")
        assert not [name for name, _ in called.calls if name in ("zeros", "zeros_like")]


@impls
def test_no_gradient_where_none_is_asked_for(impl):
    lengths = (9, 3)
    qkv, teacher = tensors((lengths, 2, 4, 6), F64)
    out, rows, lse = compute(impl, qkv, teacher, lengths, "mse_maps")
    assert out.requires_grad and rows.requires_grad and not lse.requires_grad
    qkv[2].requires_grad_(False)
    out, rows, _ = compute(impl, qkv, teacher, lengths, "mse_maps")
    with torch.no_grad():
        again, *_ = compute(impl, qkv, teacher, lengths, "mse_maps")
    assert not again.requires_grad and torch.equal(again, out)
    (rows.sum() + out.sum()).backward()
    assert qkv[2].grad is None and qkv[0].grad is not None


# ---- the row


@impls
@pytest.mark.parametrize("divergence", ["none", "kl_st"])
def test_any_strides_will_do(divergence, impl):
    lengths = (5, 9, 3)
    packed = torch.randn(17, 3, 2, 6, dtype=F64, device=DEVICE)  # (N, 3, H, D): one linear layer
    plain = [x.contiguous() for x in packed.unbind(1)]
    turned = [x.transpose(0, 1).contiguous().transpose(0, 1) for x in plain]  # H first
    last = [x.mT.contiguous().mT for x in plain]  # D not the fastest
    expanded = [x[:, :1].expand(-1, 2, -1) for x in plain]  # heads that share their memory
    for qkv in (packed.unbind(1), turned, last, expanded):
        assert not qkv[0].is_contiguous()
        teacher = [qkv[1].detach().flip(0), qkv[2].detach()]
        truth = compute("reference", [x.contiguous() for x in qkv], teacher, lengths, divergence)
        qkv = [x.requires_grad_() if x.is_leaf else x for x in qkv]
        got = compute(impl, qkv, teacher, lengths, divergence)
        for x, y in zip(got, truth, strict=True):
            assert_near("result", x, y, 1e-12)


@impls
def test_gradients_of_any_strides_are_read(impl):
    lengths = (9, 2)
    qkv, teacher = tensors((lengths, 2, 4, 4), F64)
    results = []
    for name in (impl, "reference"):
        out, rows, _ = compute(name, qkv, teacher, lengths, "kl_ts")
        g = torch.arange(1.0, 5.0, dtype=F64, device=DEVICE).expand(11, 2, 4)
        g_rows = torch.full((1, 1), 2.0, dtype=F64, device=DEVICE).expand(11, 2)
        results.append(torch.autograd.grad((out, rows), qkv, (g, g_rows)))
    for name, x, y in zip(("dq", "dk", "dv"), *results, strict=True):
        assert_near(name, x, y, 1e-12)


@pytest.mark.usefixtures("blocks_that_draw")
@impls
@every
def test_inputs_are_left_as_they_were(divergence, impl):
    qkv, teacher = tensors(((9, 3), 2, 6, 5), F32)
    before = [x.detach().clone() for x in (*qkv, *teacher)]
    out, *_ = compute(impl, qkv, teacher, (9, 3), divergence, dropout=0.2)
    out.sum().backward()
    assert all(torch.equal(x, y) for x, y in zip((*qkv, *teacher), before, strict=True))


@impls
@every
@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # numpy's, of the neighbours' own rows
def test_a_sequence_does_not_see_its_neighbours(divergence, impl):
    lengths = (6, 9, 4)
    qkv, teacher = tensors((lengths, 2, 6, 5), F64)
    alone = [x[6:15].detach().requires_grad_() for x in qkv], [x[6:15] for x in teacher]
    for x in (*qkv, *teacher):
        x.data[:6], x.data[15:] = float("inf"), float("nan")
    whole = compute(impl, qkv, teacher, lengths, divergence)
    single = compute(impl, *alone, (9,), divergence)
    for x, y in zip(whole, single, strict=True):
        assert_near("result", x[6:15], y, 1e-12)
    for x, y in zip(gradients(whole[:1], qkv, [torch.ones_like(whole[0])]),
                    gradients(single[:1], alone[0], [torch.ones_like(single[0])]),
                    strict=True):  # fmt: skip
        assert_near("gradient", x[6:15], y, 1e-12)


@impls
@pytest.mark.parametrize("index", [torch.int32, torch.int64])
def test_boundaries_of_either_type(index, impl):
    qkv, teacher = tensors(((9, 3), 2, 4, 4), F64)
    args = (boundaries((9, 3)).to(index), 20)  # max_len may be larger than need be
    got = kernels.attention_kl(*qkv, *teacher, *args, divergence="kl_st", impl=impl)
    truth = compute("reference", qkv, teacher, (9, 3), "kl_st")
    for x, y in zip(got, truth, strict=True):
        assert_near("result", x, y, 1e-12)


@impls
@every
def test_scores_of_a_thousand_stay_finite(divergence, impl):
    qkv, teacher = tensors(((17,), 1, 4, 4), F32)
    qkv = [(30 * x).detach().requires_grad_() for x in qkv]
    got = compute(impl, qkv, [-30 * x for x in teacher], (17,), divergence)
    outputs = got[:-1]
    assert all(x.isfinite().all() for x in got)
    for g in gradients(outputs, qkv, [torch.ones_like(x) for x in outputs]):
        assert g.isfinite().all()


@impls
@pytest.mark.parametrize("divergence", DIVERGENCES)
@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # numpy's, of what is not stored
def test_scores_far_below_zero_have_gradients(divergence, impl):
    """Of a key beyond the end, whose own score is 0, the probability would be infinite."""
    lengths = (5, 9)
    qkv, teacher = tensors((lengths, 2, 4, 4), F32)
    for x, shift in ((qkv[0], 9), (qkv[1], -9)):
        x.detach().add_(shift)
    truth, qkv_64 = truth_of(qkv, teacher, lengths, divergence)
    assert truth[-1].max() < -100  # exp(100) is no float32
    got = compute(impl, qkv, teacher, lengths, divergence)
    assert_as_truth(got, qkv, truth, qkv_64, 2e-2)


# ---- dropout


def dropped_maps(impl, divergence, p, n=40):
    """n draws of the maps of a sequence of 32, and the maps before dropout: v = 1 shows them."""
    lengths = (32,)
    q, k = torch.randn(2, 32, 2, 32, device=DEVICE)
    v = torch.eye(32, device=DEVICE)[:, None].repeat(1, 2, 1)
    args = impl, (q, k, v), (q.flip(0), k.flip(0)), lengths, divergence
    draws = [compute(*args, dropout=p)[0] for _ in range(n)]
    return torch.stack(draws), compute("reference", *args[1:])[0]


@pytest.mark.parametrize("impl", ["reference", *IMPLS])
@pytest.mark.parametrize("divergence", ["none", "kl_st"])
def test_dropout_drops_its_share_and_scales_the_rest(divergence, impl, monkeypatch):
    cut_into(32, monkeypatch)
    p = 0.3
    maps, whole = dropped_maps(impl, divergence, p)  # (n, 32, 2, 32)
    is_zero = maps == 0
    n = maps.numel()
    # within four standard deviations of a binomial share
    assert abs(is_zero.double().mean() - p) < 4 * (p * (1 - p) / n) ** 0.5
    assert_near("kept", (maps * ~is_zero), (whole / (1 - p) * ~is_zero), 1e-5)
    # draws, queries, heads and keys are dropped independently of each other
    share = is_zero.double()
    for dim in range(4):
        others = [d for d in range(4) if d != dim]
        spread = share.mean(others).std() / (p * (1 - p) / (n / maps.shape[dim])) ** 0.5
        assert spread < 3, f"dimension {dim}: {spread:.1f} times the spread of independent draws"
    # and neighbours say nothing of each other
    centred = share - p
    for dim in range(1, 4):
        a = centred.narrow(dim, 1, maps.shape[dim] - 1)
        b = centred.narrow(dim, 0, maps.shape[dim] - 1)
        correlation = (a * b).mean() / (p * (1 - p))
        assert abs(correlation) < 5 / a.numel() ** 0.5, f"dimension {dim}: {correlation:.4f}"


@pytest.mark.usefixtures("blocks_that_draw")
@pytest.mark.parametrize("impl", ["reference", *IMPLS])
def test_dropout_follows_the_seed(impl):
    qkv, teacher = tensors(((4, 9), 2, 6, 6), F32)

    def draw(seed):
        torch.manual_seed(seed)
        return compute(impl, qkv, teacher, (4, 9), "kl_st", dropout=0.4)

    one, again, other = draw(1), draw(1), draw(2)
    assert torch.equal(one[0], again[0]) and not torch.equal(one[0], other[0])
    assert torch.equal(one[1], other[1])  # the divergence is of the maps before dropout


@pytest.mark.usefixtures("blocks_that_draw")
@impls
@every
def test_backward_finds_the_mask_of_forward_again(divergence, impl):
    lengths = (17, 4)
    qkv, teacher = tensors((lengths, 2, 5, 5), F64)
    out, *_ = compute(impl, qkv, teacher, lengths, divergence, dropout=0.5)
    g = torch.randn_like(out)
    (dv,) = torch.autograd.grad(out, qkv[2], g)
    # out is linear in v, so <out, g> = <v, dv> holds for one and the same mask alone
    assert (out * g).sum().item() == pytest.approx((qkv[2] * dv).sum().item(), rel=1e-10)


# ---- repetition


@pytest.mark.usefixtures("blocks_that_draw")
@impls
def test_results_repeat_bit_for_bit(impl):
    lengths = (17, 17, 9)
    qkv, teacher = tensors((lengths, 2, 26, 16), F32)
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        runs = []
        for _ in range(2):
            torch.manual_seed(5)
            y = compute(impl, qkv, teacher, lengths, "kl_st", dropout=0.1)
            g = [torch.randn(x.shape, device=DEVICE) for x in y[:2]]
            runs.append([*y, *gradients(y[:2], qkv, g)])
    finally:
        torch.set_num_threads(threads)
    assert all(torch.equal(x, y) for x, y in zip(*runs, strict=True))


@pytest.mark.usefixtures("blocks_that_draw")
@impls
def test_nothing_is_copied_that_autograd_would_keep(impl):
    """What is saved between forward and backward: rows and inputs, never a map."""
    lengths = (40,)
    qkv, teacher = tensors((lengths, 2, 4, 4), F32)
    saved = []
    with torch.autograd.graph.saved_tensors_hooks(lambda x: saved.append(x) or x, lambda x: x):
        compute(impl, qkv, teacher, lengths, "kl_st", dropout=0.1)
    assert saved and max(x.numel() for x in saved) <= 40 * 2 * 4 < 2 * 40 * 40
