"""Which implementation is chosen, why, and that what cannot run is refused."""

from importlib.util import find_spec

import pytest
import torch

import kernels
from kernels import api, cuda_build, dispatch

needs_triton = pytest.mark.skipif(
    find_spec("triton") is None, reason="needs Triton (tests/kernels/test_triton_present.py)"
)
CPU, CUDA = torch.device("cpu"), torch.device("cuda", 1)


@pytest.mark.parametrize("op", kernels.IMPLEMENTATIONS)
@pytest.mark.parametrize(
    ("impl", "device", "name", "reason"),
    [
        ("auto", CPU, "torch", "tensors on cpu"),
        ("auto", CUDA, "triton", "tensors on cuda"),
        ("torch", CUDA, "torch", "asked for"),
        ("triton", CUDA, "triton", "asked for"),
        ("reference", CPU, "reference", "asked for"),
    ],
)
@needs_triton
def test_which_implementation_and_why(op, impl, device, name, reason, monkeypatch):
    monkeypatch.setattr(dispatch, "HAS_NVCC", False)
    assert kernels.resolve_impl(op, impl, device) == (name, reason)


def test_without_triton_a_gpu_has_plain_pytorch(monkeypatch):
    monkeypatch.setattr(dispatch, "HAS_TRITON", False)
    name, reason = kernels.resolve_impl("attention", "auto", CUDA)
    assert name == "torch" and "Triton is not installed" in reason
    with pytest.raises(ValueError, match="impl is 'triton', expected Triton to be installed"):
        kernels.resolve_impl("attention", "triton", CUDA)


F16, B16, F32, F64 = torch.float16, torch.bfloat16, torch.float32, torch.float64


@needs_triton
@pytest.mark.parametrize(
    ("op", "dtype", "device", "name"),
    [
        ("masked_mlm", B16, CUDA, "cuda"), ("masked_mlm", F32, CUDA, "cuda"),
        ("masked_mlm", F16, CUDA, "triton"), ("masked_mlm", F64, CUDA, "triton"),
        ("masked_mlm", None, CUDA, "triton"), ("masked_mlm", B16, CPU, "torch"),
        ("attention_kl", F32, CUDA, "triton"), ("add_norm", B16, CUDA, "triton"),
    ],
)  # fmt: skip
def test_with_nvcc_a_gpu_has_the_row_kernel_in_cuda(op, dtype, device, name, monkeypatch):
    monkeypatch.setattr(dispatch, "HAS_NVCC", True)
    assert kernels.resolve_impl(op, "auto", device, dtype)[0] == name
    monkeypatch.setattr(dispatch, "HAS_NVCC", False)
    without = "torch" if device == CPU else "triton"
    assert kernels.resolve_impl(op, "auto", device, dtype)[0] == without


@needs_triton
@pytest.mark.parametrize(
    ("types", "name"),
    [((B16, F32, F32, F32), "cuda"), ((B16, F32, F16, F32), "triton"),
     ((F32, F64, F32, F32), "triton"), ((F32, F32, B16, None), "cuda")],
)  # fmt: skip
def test_every_type_of_a_call_counts(types, name, monkeypatch):
    """Of h and bias, the student's and the teacher's: what CUDA refuses, auto gives to Triton."""
    monkeypatch.setattr(dispatch, "HAS_NVCC", True)
    h_s, b_s, h_t, b_t = (None if x is None else torch.empty(1, dtype=x) for x in types)
    s, t = kernels.Decoder(h_s, [], b_s), kernels.Decoder(h_t, [], b_t)
    dtype = api.type_of_rows(s, t)
    assert kernels.resolve_impl("masked_mlm", "auto", CUDA, dtype)[0] == name


EVERY = kernels.IMPLEMENTATIONS


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("auto", ("auto", "auto", "auto", "auto")),
        ("triton", ("triton", "triton", "triton", "triton")),
        ("mlm=cuda", ("auto", "auto", "cuda", "auto")),
        ("attention=cuda", ("cuda", "cuda", "auto", "auto")),
        ("attention=triton", ("triton", "triton", "auto", "auto")),
        ("norm=triton", ("auto", "auto", "auto", "triton")),
        ("attention=torch, mlm=triton-stream", ("torch", "torch", "triton-stream", "auto")),
    ],
)
def test_a_choice_in_words(text, expected):
    assert kernels.parse_choice(text) == dict(zip(EVERY, expected, strict=True))


def test_every_implementation_can_be_chosen():
    for group, ops in dispatch.GROUPS.items():
        for op in ops:
            for impl in EVERY[op]:
                assert kernels.parse_choice(f"{group}={impl}")[op] == impl
    assert {op for ops in dispatch.GROUPS.values() for op in ops} == set(EVERY)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("cudnn", "attention has no implementation 'cudnn', expected auto, .*, triton, cuda"),
        ("triton-stream", "attention has no implementation 'triton-stream', expected auto"),
        ("mlm=cudnn", "mlm has no implementation 'cudnn', expected .*triton-stream, cuda"),
        ("", "attention has no implementation '', expected auto"),
        ("softmax=torch", "'softmax' is not an operation, expected attention or mlm or norm"),
        ("=torch", "'' is not an operation"),
        ("mlm=torch,mlm=triton", "names an implementation twice"),
        ("torch,mlm=triton", "names an implementation twice"),
        ("mlm=torch,triton", "names an implementation twice"),
    ],
)
def test_choices_that_are_refused(text, message):
    with pytest.raises(ValueError, match=message):
        kernels.parse_choice(text)


def test_what_a_choice_resolves_to():
    choice = kernels.parse_choice("mlm=reference")
    got = kernels.resolve_choice(choice, CPU)
    assert got["masked_mlm"] == ("reference", "asked for")
    assert got["attention_kl"] == got["attention"] == ("torch", "tensors on cpu")
    with pytest.raises(ValueError, match="masked_mlm: impl is 'cuda', which cannot run here"):
        kernels.resolve_choice(kernels.parse_choice("mlm=cuda"), CPU)


@needs_triton
def test_never_the_interpreter_unless_it_was_switched_on(monkeypatch):
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    assert kernels.resolve_impl("attention", "auto", CPU)[0] == "torch"
    assert kernels.resolve_impl("attention", "triton", CPU)[0] == "triton"
    monkeypatch.delenv("TRITON_INTERPRET")
    for op, impls in kernels.IMPLEMENTATIONS.items():
        for impl in impls:
            if impl.startswith("triton"):
                with pytest.raises(
                    ValueError, match="expected tensors on cuda, not cpu; use torch"
                ):
                    kernels.resolve_impl(op, impl, CPU)


def test_without_nvcc_the_kernel_in_cuda_is_refused(monkeypatch):
    for op in (op for op, impls in EVERY.items() if "cuda" in impls):
        with pytest.raises(ValueError, match=f"{op}: impl is 'cuda', .* tensors on cpu"):
            kernels.resolve_impl(op, "cuda", CPU)
    monkeypatch.setattr(cuda_build, "find_nvcc", lambda: None)
    with pytest.raises(ValueError, match="impl is 'cuda', which cannot run here: no nvcc in"):
        kernels.resolve_impl("masked_mlm", "cuda", CUDA)


def test_attention_in_cuda_is_of_float32(monkeypatch):
    monkeypatch.setattr(cuda_build, "find_nvcc", lambda: "nvcc")
    for dtype in (None, torch.float32, torch.float64):
        assert kernels.resolve_impl("attention_kl", "cuda", CUDA, dtype)[0] == "cuda"
    with pytest.raises(ValueError, match="expected torch.float32, not torch.bfloat16: .* triton$"):
        kernels.resolve_choice({"attention": "cuda"}, CUDA, torch.bfloat16)
    assert kernels.resolve_impl("masked_mlm", "cuda", CUDA, torch.bfloat16)[0] == "cuda"


def test_what_cannot_run_is_refused_and_never_replaced():
    with pytest.raises(ValueError, match="impl is 'cudnn', expected auto, reference, torch, tr"):
        kernels.resolve_impl("attention", "cudnn", CPU)
    with pytest.raises(
        ValueError, match="op is 'softmax', expected one of attention, attention_kl, masked_mlm"
    ):
        kernels.resolve_impl("softmax", "auto", CPU)
