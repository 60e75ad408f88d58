"""The public functions: which implementation is chosen, and what is refused in which words."""

import subprocess
import sys
from itertools import accumulate

import pytest
import torch

import kernels
from helpers import ROOT, assert_near

CPU, CUDA = torch.device("cpu"), torch.device("cuda", 1)
LENGTHS = (3, 1, 2)
CU_SEQLENS = torch.tensor([0, 3, 4, 6], dtype=torch.int32)


def student(H=2, D=4, dtype=torch.float32, N=6):
    return {name: torch.randn(N, H, D).to(dtype) for name in ("q_s", "k_s", "v_s")}


def teacher(H=2, D=5, dtype=torch.float32, N=6):
    return {name: torch.randn(N, H, D).to(dtype) for name in ("q_t", "k_t")}


def call(divergence="kl_st", cu_seqlens=CU_SEQLENS, lengths=LENGTHS, **changes):
    """attention_kl of a good row, with some tensors or options changed."""
    tensors = {**student(), **teacher()}
    options = {name: changes.pop(name) for name in ("dropout", "impl") if name in changes}
    return kernels.attention_kl(
        *{**tensors, **changes}.values(), cu_seqlens, lengths, divergence=divergence, **options
    )


# ---- the choice


@pytest.mark.parametrize(
    ("op", "impl", "device", "name", "reason"),
    [
        ("attention", "auto", CPU, "torch", "no padding (tensors on cpu)"),
        ("attention", "auto", CUDA, "padded", "(tensors on cuda)"),
        ("attention", "reference", CUDA, "reference", "asked for"),
        ("attention_kl", "auto", CPU, "torch", "(tensors on cpu)"),
        ("attention_kl", "auto", CUDA, "torch", "(tensors on cuda)"),
        ("attention_kl", "reference", CPU, "reference", "asked for"),
    ],
)
def test_which_implementation_and_why(op, impl, device, name, reason):
    got, why = kernels.resolve_impl(op, impl, device)
    assert got == name and reason in why and "\n" not in why


def test_what_cannot_run_is_refused_and_never_replaced():
    with pytest.raises(ValueError, match="impl is 'padded', expected auto, reference, torch$"):
        call(impl="padded")
    with pytest.raises(ValueError, match="impl is 'cuda', expected auto, reference, torch, padded"):
        kernels.attention(*student().values(), CU_SEQLENS, LENGTHS, impl="cuda")
    with pytest.raises(
        ValueError, match="op is 'softmax', expected one of attention, attention_kl"
    ):
        kernels.resolve_impl("softmax", "auto", CPU)


@pytest.mark.parametrize("op", kernels.IMPLEMENTATIONS)
def test_every_implementation_gives_the_same(op):
    tensors = [*student().values(), *teacher().values()]
    results = {}
    for impl in ("auto", *kernels.IMPLEMENTATIONS[op]):
        if op == "attention":
            results[impl] = [kernels.attention(*tensors[:3], CU_SEQLENS, LENGTHS, impl=impl)]
        else:
            results[impl] = kernels.attention_kl(
                *tensors, CU_SEQLENS, LENGTHS, divergence="kl_ts", impl=impl
            )
    for impl, result in results.items():
        for x, y in zip(result, results["reference"], strict=True):
            assert_near(impl, x, y, 1e-5)


@pytest.mark.parametrize("impl", ["reference", "torch"])
def test_autocast_around_a_call_changes_nothing_inside(impl):
    tensors = {**student(), **teacher()}
    plain = call(impl=impl, **tensors)
    with torch.autocast("cpu", torch.bfloat16):
        cast = call(impl=impl, **tensors)
        alone = kernels.attention(*list(tensors.values())[:3], CU_SEQLENS, LENGTHS, impl=impl)
    assert all(torch.equal(x, y) for x, y in zip(plain, cast, strict=True))
    assert_near("out", alone, plain[0], 1e-6)


# ---- what is refused


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"q_s": torch.randn(7, 2, 4)}, r"q_s is \(7, 2, 4\), expected .* N = 6"),
        ({"q_s": torch.randn(6, 8)}, r"q_s is \(6, 8\), expected \(N, H, D\)"),
        ({"k_s": torch.randn(6, 2, 3)}, r"k_s is \(6, 2, 3\), expected \(6, 2, 4\) \(as q_s\)"),
        ({"v_s": torch.randn(5, 2, 4)}, r"v_s is \(5, 2, 4\), expected \(6, 2, 4\) \(as q_s\)"),
        ({"k_t": torch.randn(6, 2, 4)}, r"k_t is \(6, 2, 4\), expected \(6, 2, 5\) \(as q_t\)"),
        ({"q_t": torch.randn(5, 2, 5)}, r"q_t is \(5, 2, 5\), expected .* N = 6"),
        (teacher(H=3), "q_t has 3 heads, expected 2 .as q_s.; maps are compared head by head"),
        ({"v_s": torch.randn(6, 2, 4).double()}, r"v_s is torch.float64, expected torch.float32"),
        ({"k_t": torch.randn(6, 2, 5).half()}, r"k_t is torch.float16, expected torch.float32"),
        ({"k_s": torch.empty(6, 2, 4, device="meta")}, r"k_s is meta, expected cpu \(as q_s\)"),
        (teacher() | {n: torch.empty(6, 2, 5, device="meta") for n in ("q_t", "k_t")},
         r"q_t is on meta, expected cpu \(as q_s\)"),
        ({"q_s": torch.ones(6, 2, 4, dtype=torch.int64)}, "torch.int64, expected a floating"),
        ({"q_t": torch.randn(6, 2, 5, requires_grad=True)}, "q_t requires a gradient.*detach"),
        ({"k_t": torch.randn(6, 2, 5, requires_grad=True)}, "k_t requires a gradient.*detach"),
        ({"divergence": "js"}, "divergence is 'js', expected one of kl_st, kl_ts, mse_maps"),
        ({"lengths": (3, 1, -1, 3)}, "lengths has -1, expected none below 0"),
        ({"lengths": (3, 3)}, r"cu_seqlens is \(4,\) torch.int32, expected \(3,\)"),
        ({"cu_seqlens": CU_SEQLENS.float()}, r"cu_seqlens is \(4,\) torch.float32, expected"),
        ({"cu_seqlens": torch.tensor([0, 2, 4, 6])}, r"\[0, 2, 4, 6\], expected \[0, 3, 4, 6\]"),
        ({"dropout": 1.0}, "dropout is 1.0, expected at least 0 and below 1"),
        ({"dropout": -0.1}, "dropout is -0.1, expected at least 0"),
    ],
)  # fmt: skip
def test_rows_that_do_not_fit(changes, message):
    with pytest.raises(ValueError, match=f"^attention_kl: .*{message}"):
        call(**changes)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"k_s": torch.randn(6, 3, 4)}, r"k is \(6, 3, 4\), expected \(6, 2, 4\) \(as q\)"),
        ({"v_s": torch.randn(6, 2, 4).bfloat16()}, "v is torch.bfloat16, expected torch.float32"),
    ],
)
def test_attention_names_its_own_arguments(changes, message):
    with pytest.raises(ValueError, match=f"^attention: {message}"):
        kernels.attention(*{**student(), **changes}.values(), CU_SEQLENS, LENGTHS)


def test_boundaries_on_another_device():
    on_meta = {name: torch.empty(6, 2, 4, device="meta") for name in ("q_s", "k_s", "v_s")}
    with pytest.raises(ValueError, match=r"cu_seqlens is on cpu, expected meta \(as q_s\)"):
        call(**on_meta)


def test_boundaries_may_be_int64():
    out, rows = call(cu_seqlens=CU_SEQLENS.long())
    assert out.shape == (6, 2, 4) and rows.shape == (6, 2)


@pytest.mark.parametrize("lengths", [(), (0,), (0, 0)])
@pytest.mark.parametrize("impl", ["auto", "reference"])
def test_an_empty_row(lengths, impl):
    cu_seqlens = torch.tensor([0, *accumulate(lengths)], dtype=torch.int32)
    tensors = {**student(N=0), **teacher(N=0)}
    out, rows = call(cu_seqlens=cu_seqlens, lengths=lengths, impl=impl, **tensors)
    assert out.shape == (0, 2, 4) and rows.shape == (0, 2)


def test_importing_kernels_loads_no_triton():
    code = "import sys, kernels; assert not {'triton', 'minibio'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)
