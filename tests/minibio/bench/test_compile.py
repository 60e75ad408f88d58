"""minibio/bench/compile.py without a GPU: what is asked for, and that nothing is launched."""

import pytest
import torch

from kernels import cuda_build
from kernels.bench import smoke
from minibio.bench import compile as bench_compile

CPU, CUDA = torch.device("cpu"), torch.device("cuda")


class Kernel:
    """What a launch does of Triton's JITFunction."""

    def __init__(self):
        self.runs = []

    def run(self, *args, grid, warmup, **options):
        self.runs.append((args, grid, warmup, options))


def test_a_launch_compiles_and_no_more():
    kernel = Kernel()
    with bench_compile.unlaunched(Kernel):
        kernel.run(1, 2, grid=(3,), warmup=False, num_warps=4)
    kernel.run(1, grid=(3,), warmup=False)
    assert kernel.runs == [((1, 2), (3,), True, {"num_warps": 4}), ((1,), (3,), False, {})]


def test_tritons_launches_are_what_is_patched():
    """By the very names; an interpreted kernel, which has none of them, runs."""
    jit = pytest.importorskip("triton.runtime.jit")
    run = jit.JITFunction.run
    with bench_compile.unlaunched(jit.JITFunction):
        assert jit.JITFunction.run is not run
    assert jit.JITFunction.run is run
    names = run.__code__.co_varnames[: run.__code__.co_argcount + run.__code__.co_kwonlyargcount]
    assert {"grid", "warmup"} <= set(names)


def test_every_kernel_is_asked_for(monkeypatch):
    monkeypatch.setattr(cuda_build, "find_nvcc", lambda: "nvcc")
    names = [*bench_compile.jobs(CUDA)]
    assert names[:2] == ["logit_rows.cu", "attention_kl.cu"]
    steps = [f"step {m} {p}" for m in ("compact", "tiny") for p in ("fp32", "bf16")]
    assert names[2:6] == steps
    cases = [name.split() for name in names[6:]]
    for op, impl in (("attention", "triton"), ("attention_kl", "triton"),
                     ("masked_mlm", "triton"), ("masked_mlm", "triton-stream")):  # fmt: skip
        of = [x for x in cases if x[:2] == [op, impl]]
        assert {x[2] for x in of} == set(smoke.TYPES)
    assert {x[3] for x in cases if x[0] == "attention_kl"} == set(smoke.HEADS)


def test_the_work_runs(monkeypatch):
    """By plain PyTorch: the shapes, the options and the models are right."""
    calls = []
    real = smoke.kernels.attention_kl
    monkeypatch.setattr(
        smoke.kernels, "attention_kl",
        lambda *x, **options: calls.append(options) or real(*x, **options),
    )  # fmt: skip
    case = smoke.Case("attention_kl", "torch", "float32", "D26-D64", "kl_st")
    bench_compile.operation(case, CPU)
    assert [x["keep"] is None for x in calls] == [False, True]
    bench_compile.step("tiny", "fp32", CPU)


def test_what_does_not_compile_is_named():
    pytest.importorskip("triton")

    def work():
        raise ValueError("too large")

    name, seconds, error = bench_compile.compile_one("a kernel", work)
    assert (name, error) == ("a kernel", "ValueError: too large") and seconds >= 0


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_one_line(capsys):
    assert bench_compile.main() == 2
    assert capsys.readouterr().out == "minibio.bench.compile: torch sees no GPU on this machine\n"
