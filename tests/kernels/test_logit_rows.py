"""The CUDA source kernels/cuda/logit_rows.cu, on a CPU through the emulator, against float64.

Truth is kernels/reference.py on the same rounded inputs, and its autograd; with logits of -inf,
where that has 0 times infinity, the formulas with 0 ln 0 = 0. What the emulator cannot show is in
test_cuda_rows.py, for a GPU; what compilers and sanitizers have to say, in test_cuda_source.py.
"""

import itertools
import re

import pytest
import torch

from helpers import LIMIT, assert_near
from kernels import cuda_rows, reference

pytestmark = pytest.mark.usefixtures("banded_empty")

f32, b16 = torch.float32, torch.bfloat16
SOURCE = cuda_rows.SOURCE.read_text("utf-8")
VERSIONS = list(cuda_rows.VERSIONS)
PAIRS = {
    f"{a}-{b}".replace("torch.", "").replace("float", "f").replace("bf16", "b16"): (a, b)
    for a, b in itertools.product((f32, b16), (f32, b16))
}
NAMES = ("x_s", "b_s", "labels", "x_t", "b_t", "g_ce", "g_kd")
each_version = pytest.mark.parametrize("version", VERSIONS)
each_pair = pytest.mark.parametrize("pair", PAIRS.values(), ids=PAIRS)


def inputs(R, V, pair=(f32, f32), bias=(f32, b16), size=3.0):
    """Arguments of `logit_rows`; the second row is ignored, the last has its label at the end."""
    labels = torch.randint(V, (R,))
    labels[1::5] = -100
    labels[-1] = V - 1
    return {
        "x_s": (torch.randn(R, V) * size).to(pair[0]),
        "b_s": torch.randn(V).to(bias[0]),
        "labels": labels,
        "x_t": (torch.randn(R, V) * size).to(pair[1]),
        "b_t": torch.randn(V).to(bias[1]),
        "g_ce": torch.randn(R),
        "g_kd": torch.randn(R),
    }


def without(args, *names):
    return args | dict.fromkeys(names)


def run(library, args, T=1.0, divergence="kl_ts", version="fast", threads=64):
    """-> ce, kd, and the gradient in a copy of x_s: the very bytes, ends of its memory included."""
    base = args["x_s"]
    whole = base.as_strided((base.untyped_storage().nbytes() // base.element_size(),), (1,), 0)
    copy = whole.clone()
    x_s = copy.as_strided(base.shape, base.stride(), base.storage_offset())
    others = [args[name] for name in NAMES[1:]]
    ce, kd = cuda_rows.launch(
        library, None, x_s, *others, T, divergence, version=version, threads=threads
    )
    outside = torch.ones_like(whole, dtype=torch.bool)
    outside.as_strided(base.shape, base.stride(), base.storage_offset()).fill_(False)
    assert torch.equal(copy[outside].isnan(), whole[outside].isnan()), "written between the rows"
    return ce, kd, x_s


def truth(args, T=1.0, divergence="kl_ts"):
    """-> ce, kd, gradient, float64."""
    x_s, b_s, labels, x_t, b_t, g_ce, g_kd = (
        x if x is None or not x.is_floating_point() else x.double() for x in map(args.get, NAMES)
    )
    x_s = x_s.detach().clone().requires_grad_()
    s = x_s if b_s is None else x_s + b_s
    nothing = s.sum(-1) * 0
    is_counted = torch.ones(len(s), dtype=torch.bool) if labels is None else labels != -100
    ce = nothing if labels is None else reference.cross_entropy_rows(s, labels)
    kd = nothing
    if x_t is not None:
        rows = {"kl_ts": reference.kl_rows, "soft_ce": reference.soft_cross_entropy_rows}
        kd = rows[divergence](s, x_t if b_t is None else x_t + b_t, T).where(is_counted, 0.0)
    loss = sum(((g * y).sum() for g, y in ((g_ce, ce), (g_kd, kd)) if g is not None), nothing.sum())
    (dx,) = torch.autograd.grad(loss, x_s)
    return ce.detach(), kd.detach(), dx


def assert_rounded_once(dx, dx_truth):
    """float: 1e-5 of the largest. bfloat16: each element within half a unit in its last place."""
    if dx.dtype == f32:
        assert_near("dx", dx, dx_truth, LIMIT[f32])
        return
    error = (dx.double() - dx_truth).abs()
    allowed = 2**-8 * dx_truth.abs() + 1e-6 * dx_truth.abs().max()
    assert not dx.isnan().any() and (error <= allowed).all(), f"dx: {(error - allowed).max():.2e}"


def assert_true(got, expected):
    assert_near("ce", got[0], expected[0], LIMIT[f32])
    assert_near("kd", got[1], expected[1], LIMIT[f32])
    assert_rounded_once(got[2], expected[2])


# ---- values and gradients ------------------------------------------------------------------------


@each_version
@each_pair
@pytest.mark.parametrize("V", [1, 7, 257, 1000])
def test_value_and_gradient(emulator, version, pair, V):
    """64 threads of 8 logits: a thousand take each thread round again, the last time raggedly."""
    settings = itertools.product((1.0, 2.0, 1.5, 4.0), cuda_rows.DIVERGENCES)
    for k, (T, divergence) in enumerate(settings):
        bias = ((f32, b16), (b16, f32), (b16, b16))[k % 3]
        args = inputs(4, V, pair, bias)
        got = run(emulator, args, T, divergence, version)
        assert_true(got, truth(args, T, divergence))


@each_version
@pytest.mark.parametrize("threads", [32, 128, 1024])
def test_any_number_of_threads(emulator, version, threads):
    args = inputs(2, 500, (b16, f32))
    assert_true(run(emulator, args, 2.0, version=version, threads=threads), truth(args, 2.0))


@pytest.mark.parametrize("pair", [(b16, b16), (f32, f32)], ids=["b16-b16", "f32-f32"])
def test_a_real_vocabulary(emulator, pair):
    """Two rows of 30,522 bfloat16 are kept in shared memory; of floats, the teacher's is not."""
    args = inputs(3, 30_522, pair)
    assert_true(run(emulator, args, 2.0, threads=256), truth(args, 2.0))


@each_version
@pytest.mark.parametrize("left_out", [
    ("b_s",), ("b_t",), ("labels", "g_ce"), ("g_ce",), ("g_kd",), ("x_t", "b_t", "g_kd"),
    ("b_s", "labels", "g_ce", "x_t", "b_t", "g_kd"),
], ids="-".join)  # fmt: skip
def test_what_may_be_left_out(emulator, version, left_out):
    for T in (1.0, 1.5):
        args = without(inputs(4, 100), *left_out)
        got = run(emulator, args, T, version=version)
        ce, kd, dx = truth(args, T)
        if args["g_ce"] is None and args["g_kd"] is None:
            dx = args["x_s"]
        assert_true(got, (ce, kd, dx))


@each_version
@each_pair
def test_without_upstream_gradients_the_logits_stay(emulator, version, pair):
    args = inputs(3, 300, pair)
    ce, kd, _ = run(emulator, args, 2.0, version=version)
    got = run(emulator, without(args, "g_ce", "g_kd"), 2.0, version=version)
    assert torch.equal(got[0], ce) and torch.equal(got[1], kd)
    assert torch.equal(got[2], args["x_s"])


@each_version
def test_all_rows_ignored(emulator, version):
    args = inputs(3, 90) | {"labels": torch.full((3,), -100)}
    ce, kd, dx = run(emulator, args, 2.0, version=version)
    assert not ce.any() and not kd.any() and not dx.any()


@each_version
def test_an_ignored_row_may_hold_anything(emulator, version):
    args = inputs(3, 90)
    args["x_s"][1], args["x_t"][1], args["g_ce"][1], args["g_kd"][1] = torch.full((4,), torch.nan)
    ce, kd, dx = run(emulator, args, version=version)
    assert ce[1] == kd[1] == 0 and not dx[1].any()
    assert ce.isfinite().all() and kd.isfinite().all() and dx.isfinite().all()


@each_version
@pytest.mark.parametrize("label", [-1, 90, 2**32 + 5, -(2**62)])
def test_a_label_outside_the_vocabulary_is_seen(emulator, version, label):
    args = inputs(3, 90)
    args["labels"][0] = label
    ce, _, dx = run(emulator, args, version=version)
    assert ce[0].isnan() and dx[0].isnan().all()
    assert ce[1:].isfinite().all() and dx[1:].isfinite().all()


@each_version
@pytest.mark.parametrize("T", [1.0, 2.0, 1.5])
@pytest.mark.parametrize("divergence", cuda_rows.DIVERGENCES)
def test_gradient_is_the_slope(emulator, version, T, divergence):
    """Against the kernel's own losses, in a random direction: finite differences, to third order
    in the step."""
    args = inputs(5, 150)
    along, h = torch.randn_like(args["x_s"]), 2e-2
    losses = []
    for step in (h, -h):
        moved = without(args | {"x_s": args["x_s"] + step * along}, "g_ce", "g_kd")
        ce, kd, _ = run(emulator, moved, T, divergence, version)
        losses.append((args["g_ce"] * ce + args["g_kd"] * kd).double())
    dx = run(emulator, args, T, divergence, version)[2]
    slope = (losses[0] - losses[1]) / (2 * h)
    assert_near("slope", (dx * along).sum(-1), slope, 1e-3)


# ---- numbers at the edge -------------------------------------------------------------------------


def masked_truth(args, T, divergence):
    """As `truth`, with 0 ln 0 = 0; labels are there, no row is ignored."""
    s, t = (args[f"x_{k}"].double() + args[f"b_{k}"].double() for k in "st")
    p_s, p_t = (s / T).softmax(-1), (t / T).softmax(-1)
    term = -(s / T).log_softmax(-1) + ((t / T).log_softmax(-1) if divergence == "kl_ts" else 0)
    kd = (p_t * term).where(p_t > 0, 0.0).sum(-1) * T**2
    is_label = torch.nn.functional.one_hot(args["labels"], s.shape[1])
    ce = -s.log_softmax(-1).gather(1, args["labels"][:, None]).squeeze(1)
    dx = args["g_ce"][:, None] * (s.softmax(-1) - is_label)
    return ce, kd, dx + args["g_kd"][:, None] * T * (p_s - p_t)


@each_version
@each_pair
@pytest.mark.parametrize("divergence", cuda_rows.DIVERGENCES)
def test_words_taken_out_by_minus_infinity(emulator, version, pair, divergence):
    """The teacher's alone; both, in whole eights; the first and the last; all but the label."""
    V, inf = 700, torch.inf
    for T in (1.0, 2.0, 1.5):
        args = inputs(5, V, pair) | {"labels": torch.tensor([3, 3, 400, 699, 123])}
        args["x_t"][0, 5:200] = -inf
        args["x_t"][1, 8:600], args["x_s"][1, 8:600] = -inf, -inf
        args["x_t"][2, :300], args["x_s"][2, :300] = -inf, -inf
        args["x_t"][3, :699], args["x_s"][3, :699] = -inf, -inf
        args["x_t"][4, 0], args["x_t"][4, 699] = -inf, -inf
        expected = masked_truth(args, T, divergence)
        assert_true(run(emulator, args, T, divergence, version), expected)


@each_version
def test_infinite_losses_are_infinite(emulator, version):
    """The student rules out the label, or a word that the teacher does not."""
    args = inputs(3, 300) | {"labels": torch.tensor([7, 8, 9])}
    args["x_s"][0, 7] = args["x_s"][2, 200] = -torch.inf
    ce, kd, dx = run(emulator, args, version=version)
    assert ce.isposinf().tolist() == [True, False, False]
    assert kd.isposinf().tolist() == [True, False, True]
    assert_rounded_once(dx, masked_truth(args, 1.0, "kl_ts")[2])


@each_version
def test_what_the_teacher_all_but_rules_out_costs_nothing(emulator, version):
    """p_t = e^-400 is 0 in float: where the student has -inf there, 0 and not 0 times infinity.

    The words are all that one thread sees: to itself, they are as likely as any.
    """
    args = inputs(2, 600) | {"labels": torch.tensor([1, 2])}
    args["x_t"][:, 304:312] -= 400
    args["x_s"][:, 304:312] = -torch.inf
    _, kd, dx = run(emulator, args, version=version)
    is_left = torch.ones(600, dtype=torch.bool)
    is_left[304:312] = False
    without_them = {k: x[..., is_left] if x.shape[-1] == 600 else x for k, x in args.items()}
    assert_near("kd", kd, truth(without_them)[1], LIMIT[f32])
    assert dx.isfinite().all()


@each_version
def test_a_row_of_nothing_or_of_nan_is_nan(emulator, version):
    args = inputs(3, 90) | {"labels": torch.tensor([1, 2, 3])}
    args["x_s"][0], args["x_s"][1, 50] = -torch.inf, torch.nan
    ce, kd, dx = run(emulator, args, version=version)
    assert ce.isnan().tolist() == kd.isnan().tolist() == [True, True, False]
    assert dx.isnan().all(-1).tolist() == [True, True, False]


@each_version
@pytest.mark.parametrize("T", [1.0, 2.0, 1.5])
def test_huge_logits(emulator, version, T):
    """10,000 above, below and apart: no overflow, and the losses as good as the logits are."""
    args = without(inputs(4, 300), "b_s", "b_t")
    args["x_s"][0] += 1e4
    args["x_s"][2] -= 1e4
    args["x_t"][2] += 1e4
    args["x_s"][3, ::2] += 1e4
    args["x_t"][3, 1::2] += 1e4
    assert_true(run(emulator, args, T, version=version), truth(args, T))


@each_version
def test_equal_rows_have_no_distance(emulator, version):
    args = inputs(4, 1000)
    args |= {"x_t": args["x_s"], "b_t": args["b_s"], "labels": None, "g_ce": None}
    _, kd, dx = run(emulator, args, 2.0, version=version)
    assert kd.abs().max() < 2e-6 and dx.abs().max() < 1e-8


# ---- places --------------------------------------------------------------------------------------


def laid_out(x, offset, stride):
    """The same rows, `offset` elements into a memory of NaN, `stride` elements apart."""
    R, V = x.shape
    memory = torch.full((offset + R * stride + 64,), torch.nan, dtype=x.dtype)
    assert memory.data_ptr() % 16 == 0
    rows = memory.as_strided((R, V), (stride, 1), offset)
    return rows.copy_(x)


@each_pair
def test_rows_may_begin_anywhere(emulator, pair):
    """Every place relative to 16 bytes, for student and teacher, and rows that are not dense."""
    args = inputs(4, 203, pair)
    expected = truth(args, 2.0)
    for s, t in [(k, k) for k in range(8)] + [(0, 1), (1, 0), (4, 2), (3, 7)]:
        for stride_s, stride_t in ((203, 203), (208, 211)):
            moved = args | {
                "x_s": laid_out(args["x_s"], s, stride_s),
                "x_t": laid_out(args["x_t"], t, stride_t),
            }
            assert_true(run(emulator, moved, 2.0), expected)


def test_the_naive_version_takes_strides_too(emulator):
    args = inputs(4, 53)
    moved = args | {"x_s": laid_out(args["x_s"], 3, 61), "x_t": laid_out(args["x_t"], 5, 59)}
    assert_true(run(emulator, moved, 2.0, version="naive"), truth(args, 2.0))


@each_pair
def test_what_does_not_fit_is_read_again(emulator, pair):
    """Both rows in shared memory, the student's, or none: not a bit of difference."""
    args = inputs(3, 1001, pair)
    slots, bytes_s = 6 * 32 * 4, 127 * 8 * cuda_rows.WIDTHS[pair[0]]
    try:
        results = []
        for limit in (227 * 1024, slots + bytes_s, slots + bytes_s - 1):
            emulator.emulator_shared_limit(limit)
            results.append(run(emulator, args, 2.0))
    finally:
        emulator.emulator_shared_limit(227 * 1024)
    assert_true(results[0], truth(args, 2.0))
    for other in results[1:]:
        assert all(torch.equal(x, y) for x, y in zip(results[0], other, strict=True))


@each_version
def test_offsets_need_64_bits(emulator, version):
    """Two rows more than 2^31 elements apart; of the memory between them no page is touched."""
    apart, V = 2**31 + 64, 100
    args = inputs(2, V, (b16, b16))
    x_s, x_t = (torch.UntypedStorage(2 * (apart + V)) for _ in range(2))
    far = args | {
        name: torch.tensor([], dtype=b16).set_(x, 0, (2, V), (apart, 1)).copy_(args[name])
        for name, x in (("x_s", x_s), ("x_t", x_t))
    }
    others = [far[name] for name in NAMES[1:]]
    ce, kd = cuda_rows.launch(
        emulator, None, far["x_s"], *others, 2.0, "kl_ts", version=version, threads=32
    )
    assert_true((ce, kd, far["x_s"]), truth(args, 2.0))


# ---- order ---------------------------------------------------------------------------------------


@each_version
def test_no_order_of_threads_changes_a_bit(emulator, version):
    args = inputs(3, 900, (b16, f32))
    try:
        results = []
        for seed in (0, 0, 1, 2, 3):
            emulator.emulator_order(seed)
            results.append(run(emulator, args, 2.0, version=version, threads=128))
    finally:
        emulator.emulator_order(0)
    assert_true(results[0], truth(args, 2.0))
    for other in results[1:]:
        assert all(torch.equal(x, y) for x, y in zip(results[0], other, strict=True))


BARRIERS = [match.start() for match in re.finditer(r"__syncthreads\(\);", SOURCE)]


def test_the_barriers_of_both_versions_are_known():
    naive, fast = SOURCE.split("// ---- version 2")
    assert (naive.count("__syncthreads();"), fast.count("__syncthreads();")) == (3, 1)


@pytest.mark.parametrize("which", range(len(BARRIERS)))
def test_a_missing_barrier_is_found(load_for_cpu, which):
    """Without any one of them the result is wrong: the emulator sees what it is there for."""
    at = BARRIERS[which]
    library = load_for_cpu(SOURCE[:at] + SOURCE[at + len("__syncthreads();") :], "-O0")
    version = "naive" if at < SOURCE.index("// ---- version 2") else "fast"
    args = inputs(5, 900)
    with pytest.raises(AssertionError):
        assert_true(run(library, args, 2.0, version=version, threads=256), truth(args, 2.0))


def test_a_barrier_that_some_threads_pass_by_is_found(load_for_cpu):
    """The first thread of a warp goes on to a shuffle, at which the others never arrive."""
    at = BARRIERS[-1]
    library = load_for_cpu(SOURCE[:at] + "if (lane > 0) " + SOURCE[at:], "-O0")
    with pytest.raises(RuntimeError, match=r"CUDA error 719 \(some threads wait"):
        run(library, inputs(2, 900), threads=256)
