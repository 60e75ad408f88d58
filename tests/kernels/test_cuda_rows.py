"""kernels/cuda_rows.py: the checks, the operator; and the GPU itself.

What the kernel computes is tested in test_logit_rows.py, on a CPU. Here the public function runs on
the emulator too (the fixture `cuda_on_cpu`).
"""

import pytest
import torch

from helpers import LIMIT, assert_near
from kernels import cuda_build, cuda_rows, reference

f32, b16 = torch.float32, torch.bfloat16


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_what_nvcc_makes_loads_without_a_gpu_and_says_so(nvcc_cache):
    lib = cuda_rows.load(cuda_build.build(cuda_rows.SOURCE, "sm_90a"))
    x = torch.randn(2, 9)
    with pytest.raises(
        RuntimeError, match=r"CUDA error \d+ \(.*driver.*\) at the launch of 2 rows of 9"
    ):
        cuda_rows.launch(lib, None, x, *[None] * 6, 1.0, "kl_ts")


@pytest.mark.parametrize(("V", "threads"), [(1, 32), (256, 32), (257, 64), (4096, 512),
                                            (8000, 1024), (30_522, 1024)])  # fmt: skip
def test_pick_threads(V, threads):
    assert cuda_rows.pick_threads(V) == threads


@pytest.mark.parametrize("threads", [16, 33, 96, 2048])
def test_other_numbers_of_threads_are_refused(emulator, threads):
    x = torch.randn(2, 9)
    with pytest.raises(RuntimeError, match=r"CUDA error 1 \(invalid argument\)"):
        cuda_rows.launch(emulator, None, x, *[None] * 6, 1.0, "kl_ts", threads=threads)


# ---- the public function -------------------------------------------------------------------------


def arguments(R=4, V=21, device="cpu", types=(f32, b16)):
    labels = torch.randint(V, (R,))
    labels[1] = -100
    args = {
        "x_s": torch.randn(R, V).to(types[0]), "b_s": torch.randn(V), "labels": labels,
        "x_t": torch.randn(R, V).to(types[1]), "b_t": torch.randn(V).to(b16),
        "g_ce": torch.rand(R), "g_kd": torch.rand(R),
    }  # fmt: skip
    return {name: x.to(device) for name, x in args.items()}


def expected(args, T=2.0):
    """-> ce, kd, gradient in float64."""
    x_s = args["x_s"].detach().double().requires_grad_()
    s, t = x_s + args["b_s"].double(), args["x_t"].double() + args["b_t"].double()
    ce = reference.cross_entropy_rows(s, args["labels"])
    kd = reference.kl_rows(s, t, T).where(args["labels"] != -100, 0.0)
    (dx,) = torch.autograd.grad((args["g_ce"] * ce + args["g_kd"] * kd).sum(), x_s)
    return ce.detach(), kd.detach(), dx


def call(args, T=2.0):
    return cuda_rows.logit_rows(**args, temperature=T, divergence="kl_ts")


def test_the_public_function(cuda_on_cpu):
    args = arguments()
    ce, kd, dx = expected(args)
    got = call(args)
    assert got[0].dtype == got[1].dtype == f32
    for name, x, y in (("ce", got[0], ce), ("kd", got[1], kd), ("dx", args["x_s"], dx)):
        assert_near(name, x, y, LIMIT[f32])


def test_upstream_gradients_of_any_stride(cuda_on_cpu):
    """`g.expand(R)` of one number, a bias that is a column: what is small is made contiguous."""
    args = arguments()
    R, V = args["x_s"].shape
    args |= {
        "g_ce": torch.tensor(0.3).expand(R),
        "b_s": torch.randn(V, 2)[:, 1],
        "labels": torch.stack([args["labels"]] * 2, 1)[:, 0],
    }
    ce, kd, dx = expected(args)
    got = call(args)
    for name, x, y in (("ce", got[0], ce), ("kd", got[1], kd), ("dx", args["x_s"], dx)):
        assert_near(name, x, y, LIMIT[f32])


def test_no_rows(cuda_on_cpu):
    args = arguments()
    args = {name: x[:0] if name[0] != "b" else x for name, x in args.items()}
    ce, kd = call(args)
    assert ce.shape == kd.shape == (0,)


def test_neither_teacher_nor_labels(cuda_on_cpu):
    ce, kd = call(dict.fromkeys(arguments()) | {"x_s": torch.randn(3, 5)})
    assert not ce.any() and not kd.any()


def test_inside_no_grad_a_gradient_may_be_required(cuda_on_cpu):
    """As in the forward pass of an autograd function."""
    args = arguments()
    args["b_s"].requires_grad_()
    with torch.no_grad():
        call(args)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"x_s": torch.randn(4)}, r"x_s is \(4,\), expected \(R, V\)"),
        ({"x_s": torch.randn(4, 0)}, r"x_s is \(4, 0\), expected \(R, V\) with V > 0"),
        ({"x_s": torch.randn(4, 21).double()}, "x_s is torch.float64, expected torch.float32 or"),
        ({"x_s": torch.randn(21, 4).T}, r"x_s has strides \(1, 4\), expected 1"),
        ({"x_s": torch.randn(21).expand(4, 21)}, "x_s has strides .*, expected rows apart"),
        ({"x_s": torch.randn(4, 21).requires_grad_()}, "x_s requires a gradient, expected none"),
        ({"x_t": torch.randn(4, 22)}, r"x_t is \(4, 22\), expected \(4, 21\)"),
        ({"x_t": torch.randn(4, 21).half()}, "x_t is torch.float16, expected"),
        ({"x_t": torch.randn(4, 42)[:, ::2]}, r"x_t has strides \(42, 2\), expected 1"),
        ({"b_s": torch.randn(20)}, r"b_s is \(20,\), expected \(21,\)"),
        ({"b_t": torch.randn(21).double()}, "b_t is torch.float64"),
        ({"labels": torch.zeros(4, dtype=torch.int32)}, "labels is torch.int32, expected"),
        ({"labels": torch.zeros(3, dtype=torch.int64)}, r"labels is \(3,\), expected \(4,\)"),
        ({"g_ce": torch.rand(4).double()}, "g_ce is torch.float64, expected torch.float32"),
        ({"g_kd": torch.rand(1)}, r"g_kd is \(1,\), expected \(4,\)"),
        ({"g_kd": torch.rand(4, device="meta")}, "g_kd is on meta, expected cpu"),
        ({"x_t": None}, "b_t or g_kd without x_t"),
        ({"labels": None}, "g_ce without labels"),
        ({"temperature": 0.0}, "temperature is 0.0, expected a number above 0"),
        ({"temperature": float("nan")}, "temperature is nan"),
        ({"temperature": float("inf")}, "temperature is inf"),
        ({"divergence": "kl_st"}, "divergence is 'kl_st', expected kl_ts or soft_ce"),
    ],
    ids=lambda x: x if isinstance(x, str) else "+".join(x),
)
def test_what_does_not_fit_is_refused(cuda_on_cpu, changes, message):
    settings = {"temperature": 1.0, "divergence": "kl_ts"}
    with pytest.raises(ValueError, match=f"^logit_rows: .*{message}"):
        cuda_rows.logit_rows(**(arguments() | settings | changes))


def test_on_a_cpu_the_reason_is_given():
    with pytest.raises(ValueError, match="^logit_rows: tensors on cpu"):
        call(arguments())


# ---- the operator --------------------------------------------------------------------------------


@pytest.mark.parametrize("left_out", [(), ("g_ce", "g_kd"), ("x_t", "b_t", "g_kd"),
                                      ("labels", "g_ce", "b_s")], ids=str)  # fmt: skip
def test_opcheck(cuda_on_cpu, left_out):
    """Schema, what is changed in place, shapes without values, tracing with shapes of any size."""
    args = arguments(types=(b16, f32)) | dict.fromkeys(left_out)
    torch.library.opcheck(cuda_rows._logit_rows, (*args.values(), 2.0, "kl_ts"))


def test_compile_goes_through(cuda_on_cpu):
    """In one graph, checks and all; what is written in place is seen after it."""

    def step(h, weight, labels, x_t, g):
        x = h @ weight
        ce, kd = cuda_rows.logit_rows(
            x, None, labels, x_t, None, g, g, temperature=2.0, divergence="kl_ts"
        )
        return ce.sum() + kd.sum(), x.T @ h

    args = arguments()
    inputs = (torch.randn(4, 6), torch.randn(6, 21), args["labels"], args["x_t"], args["g_ce"])
    compiled = torch.compile(step, backend="aot_eager", fullgraph=True)
    for x, y in zip(compiled(*inputs), step(*inputs), strict=True):
        assert torch.equal(x, y)


# ---- on a GPU ------------------------------------------------------------------------------------


@pytest.fixture
def needs_nvcc():
    if cuda_build.find_nvcc() is None:
        pytest.skip("no nvcc")


on_gpu = pytest.mark.usefixtures("needs_nvcc")


def moved(args, device="cuda"):
    return {name: None if x is None else x.to(device) for name, x in args.items()}


@pytest.mark.gpu
@on_gpu
@pytest.mark.parametrize("types", [(f32, f32), (b16, b16), (f32, b16), (b16, f32)], ids=str)
@pytest.mark.parametrize("V", [7, 1000, 28_996, 30_522])
@pytest.mark.parametrize("T", [1.0, 2.0, 1.5])
def test_gpu_three_ways(types, V, T):
    """Kernel, PyTorch in float32, and float64: the kernel no worse than PyTorch, up to a limit."""
    args = arguments(6, V, types=types)
    truth = expected(args, T)
    plain = moved(args)
    x_s = plain["x_s"].float().requires_grad_()
    s, t = x_s + plain["b_s"].float(), plain["x_t"].float() + plain["b_t"].float()
    ce = reference.cross_entropy_rows(s, plain["labels"])
    kd = reference.kl_rows(s, t, T).where(plain["labels"] != -100, 0.0)
    (dx,) = torch.autograd.grad((plain["g_ce"] * ce + plain["g_kd"] * kd).sum(), x_s)
    got = moved(args)
    ours = (*call(got, T), got["x_s"])
    torches = (ce, kd, dx.to(types[0]))
    for name, x, y, z in zip(("ce", "kd", "dx"), ours, torches, truth, strict=True):
        scale = z.abs().max().item()
        error = (y.cpu().double() - z).abs().max().item() / scale
        assert_near(name, x.cpu(), z, max(2 * error, LIMIT[f32]))


@pytest.mark.gpu
@on_gpu
@pytest.mark.parametrize("version", cuda_rows.VERSIONS)
def test_gpu_bit_identical_over_two_runs(version):
    args = moved(arguments(512, 30_522, types=(b16, b16)))
    lib, stream = cuda_rows.place(torch.device("cuda"))
    results = []
    for _ in range(2):
        x_s = args["x_s"].clone()
        others = list(args.values())[1:]
        ce, kd = cuda_rows.launch(lib, stream, x_s, *others, 2.0, "kl_ts", version=version)
        results.append((ce, kd, x_s))
    assert all(torch.equal(x, y) for x, y in zip(*results, strict=True))


@pytest.mark.gpu
@on_gpu
def test_gpu_versions_agree_where_a_row_does_not_fit():
    """Two rows of 30,522 floats are more shared memory than there is."""
    args = moved(arguments(32, 30_522, types=(f32, f32)))
    lib, stream = cuda_rows.place(torch.device("cuda"))
    results = []
    for version in cuda_rows.VERSIONS:
        x_s = args["x_s"].clone()
        others = list(args.values())[1:]
        ce, kd = cuda_rows.launch(lib, stream, x_s, *others, 2.0, "kl_ts", version=version)
        results.append((ce, kd, x_s))
    for name, x, y in zip(("ce", "kd", "dx"), *results, strict=True):
        assert_near(name, x, y, LIMIT[f32])


@pytest.mark.gpu
@on_gpu
def test_gpu_runs_on_the_current_stream():
    """The logits come late, on a side stream: a launch on another would see zeros."""
    args = arguments(8, 1000)
    truth = expected(args)
    ready, got = moved(args), moved(args)
    call(moved(args))  # compiled and loaded before it matters
    got["x_s"].zero_()
    torch.cuda.synchronize()
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        torch.cuda._sleep(200_000_000)  # about 0.1 s
        got["x_s"].copy_(ready["x_s"])
        ce, kd = call(got)
    stream.synchronize()
    for name, x, y in (("ce", ce, truth[0]), ("kd", kd, truth[1]), ("dx", got["x_s"], truth[2])):
        assert_near(name, x.cpu(), y, LIMIT[f32])


@pytest.mark.gpu
@on_gpu
@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
def test_gpu_runs_on_the_device_of_the_tensors():
    args = arguments(8, 1000)
    truth, got = expected(args), moved(args, "cuda:1")
    ce, kd = call(got)
    assert torch.cuda.current_device() == 0 and ce.device == torch.device("cuda:1")
    for name, x, y in (("ce", ce, truth[0]), ("kd", kd, truth[1]), ("dx", got["x_s"], truth[2])):
        assert_near(name, x.cpu(), y, LIMIT[f32])


@pytest.mark.gpu
@on_gpu
def test_gpu_opcheck_and_compile():
    args = moved(arguments())
    torch.library.opcheck(cuda_rows._logit_rows, (*args.values(), 2.0, "kl_ts"))
    ours, theirs = args | {"x_s": args["x_s"].clone()}, args | {"x_s": args["x_s"].clone()}
    eager = call(ours)
    compiled = torch.compile(call, fullgraph=True, backend="aot_eager")(theirs)
    assert torch.equal(ours["x_s"], theirs["x_s"])
    assert all(torch.equal(x, y) for x, y in zip(eager, compiled, strict=True))
