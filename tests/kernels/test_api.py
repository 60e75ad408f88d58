"""The operations on attention maps: implementations agree, and what is refused in which words."""

from importlib.util import find_spec
from itertools import accumulate

import pytest
import torch

import kernels
from helpers import assert_near
from kernels import attention_ops, norm_ops

needs_triton = pytest.mark.skipif(
    find_spec("triton") is None, reason="needs Triton (tests/kernels/test_triton_present.py)"
)
CPU, CUDA = torch.device("cpu"), torch.device("cuda", 1)
MAX_LEN = 3
CU_SEQLENS = torch.tensor([0, 3, 4, 6], dtype=torch.int32)


def student(H=2, D=4, dtype=torch.float32, N=6):
    return {name: torch.randn(N, H, D).to(dtype) for name in ("q_s", "k_s", "v_s")}


def teacher(H=2, D=5, dtype=torch.float32, N=6):
    return {name: torch.randn(N, H, D).to(dtype) for name in ("q_t", "k_t")}


def call(divergence="kl_st", cu_seqlens=CU_SEQLENS, max_len=MAX_LEN, **changes):
    """attention_kl of a good row, with some tensors or options changed."""
    tensors = {**student(), **teacher()}
    names = ("dropout", "impl", "keep", "lse_t")
    options = {name: changes.pop(name) for name in names if name in changes}
    return kernels.attention_kl(
        *{**tensors, **changes}.values(), cu_seqlens, max_len, divergence=divergence, **options
    )


@needs_triton
@pytest.mark.usefixtures("cuda_attention_here")
@pytest.mark.parametrize("op", ["attention", "attention_kl"])
def test_every_implementation_gives_the_same(op):
    tensors = [*student().values(), *teacher().values()]
    results = {}
    for impl in ("auto", *kernels.IMPLEMENTATIONS[op]):
        if op == "attention":
            results[impl] = kernels.attention(*tensors[:3], CU_SEQLENS, MAX_LEN, impl=impl)
        else:
            results[impl] = kernels.attention_kl(
                *tensors, CU_SEQLENS, MAX_LEN, divergence="kl_ts", impl=impl
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
        alone, _ = kernels.attention(*list(tensors.values())[:3], CU_SEQLENS, MAX_LEN, impl=impl)
    assert all(torch.equal(x, y) for x, y in zip(plain, cast, strict=True))
    assert_near("out", alone, plain[0], 1e-6)


# ---- what is refused


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"q_s": torch.randn(7, 2, 4)}, r"k_s is \(6, 2, 4\), expected \(7, 2, 4\) \(as q_s\)"),
        ({"q_s": torch.randn(6, 8)}, r"q_s is \(6, 8\), expected \(N, H, D\)"),
        ({"k_s": torch.randn(6, 2, 3)}, r"k_s is \(6, 2, 3\), expected \(6, 2, 4\) \(as q_s\)"),
        ({"v_s": torch.randn(5, 2, 4)}, r"v_s is \(5, 2, 4\), expected \(6, 2, 4\) \(as q_s\)"),
        ({"k_t": torch.randn(6, 2, 4)}, r"k_t is \(6, 2, 4\), expected \(6, 2, 5\) \(as q_t\)"),
        ({"q_t": torch.randn(5, 2, 5)}, r"k_t is \(6, 2, 5\), expected \(5, 2, 5\) \(as q_t\)"),
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
        (teacher(N=5), r"q_t has 5 tokens, expected 6 \(as q_s\)"),
        ({"cu_seqlens": CU_SEQLENS.float()}, r"cu_seqlens is \(4,\) torch.float32, expected"),
        ({"cu_seqlens": CU_SEQLENS[:0]}, r"cu_seqlens is \(0,\) torch.int32, expected \(B\+1,\)"),
        ({"cu_seqlens": torch.tensor([0, 3, 4, 5])}, "runs from 0 to 5, expected from 0 to 6"),
        ({"cu_seqlens": torch.tensor([0, 3, 7])}, "runs from 0 to 7, expected from 0 to 6"),
        ({"cu_seqlens": torch.tensor([1, 3, 6])}, "runs from 1 to 6, expected from 0 to 6"),
        ({"cu_seqlens": torch.tensor([0, 4, 3, 6])}, "falls from 4 to 3 at 2, expected places"),
        ({"max_len": 2}, "max_len is 2, expected at least 3, the longest sequence"),
        ({"lse_t": torch.randn(6, 3)}, r"lse_t is \(6, 3\) on cpu, expected \(6, 2\) on cpu"),
        ({"lse_t": torch.randn(6, 2, requires_grad=True)}, "lse_t requires a gradient.*detach"),
        ({"keep": torch.ones(6, 2, 1)}, "keep is torch.float32 on cpu, expected torch.uint8"),
        ({"keep": torch.ones(6, 3, 1, dtype=torch.uint8)},
         r"keep is \(6, 3, 1\), expected \(6, 2, 1\): a bit for each key .* 3$"),
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
        kernels.attention(*{**student(), **changes}.values(), CU_SEQLENS, MAX_LEN)


def test_boundaries_on_another_device():
    on_meta = {name: x.to("meta") for name, x in {**student(), **teacher()}.items()}
    with pytest.raises(ValueError, match=r"cu_seqlens is on cpu, expected meta \(as q\)"):
        call(**on_meta)


def test_boundaries_may_be_int64():
    out, rows, lse = call(cu_seqlens=CU_SEQLENS.long())
    assert out.shape == (6, 2, 4) and rows.shape == lse.shape == (6, 2)


@pytest.mark.parametrize("lengths", [(), (0,), (0, 0)])
@pytest.mark.parametrize("impl", ["auto", "reference"])
def test_an_empty_row(lengths, impl):
    cu_seqlens = torch.tensor([0, *accumulate(lengths)], dtype=torch.int32)
    tensors = {**student(N=0), **teacher(N=0)}
    out, rows, lse = call(cu_seqlens=cu_seqlens, max_len=0, impl=impl, **tensors)
    assert out.shape == (0, 2, 4) and rows.shape == lse.shape == (0, 2)


# ---- as PyTorch sees it


@needs_triton
@pytest.mark.parametrize("impl", ["torch", "triton"])
@pytest.mark.parametrize("divergence", ["none", "kl_st", "mse_maps"])
def test_a_whole_step_compiles_without_a_break(divergence, impl):
    q, k, v = (x.requires_grad_() for x in student().values())
    q_t, k_t = teacher().values()

    def loss(q, k, v):
        if divergence == "none":
            out, _ = kernels.attention(2 * q, k, v, CU_SEQLENS, MAX_LEN, impl=impl)
            return out.square().sum()
        out, rows, _ = kernels.attention_kl(
            2 * q, k, v, q_t, k_t, CU_SEQLENS, MAX_LEN, divergence=divergence, dropout=0.0,
            impl=impl,
        )  # fmt: skip
        return out.square().sum() + rows.sum()

    plain = torch.autograd.grad(loss(q, k, v), (q, k, v))
    torch._dynamo.reset()
    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    got = torch.autograd.grad(compiled(q, k, v), (q, k, v))
    for name, x, y in zip(("dq", "dk", "dv"), got, plain, strict=True):
        assert_near(name, x, y, 1e-6)


@needs_triton
@pytest.mark.parametrize("impl", ["torch", "triton"])
@pytest.mark.parametrize("divergence", ["none", "kl_ts", "mse_maps"])
def test_registered_as_pytorch_wants_it(divergence, impl):
    qkv = [x.requires_grad_() for x in student().values()]
    taught = (None, None) if divergence == "none" else teacher().values()
    seed = torch.tensor([5])
    args = (*qkv, *taught, None, None, seed, CU_SEQLENS, MAX_LEN, divergence, 0.1, 0.5, 0.5, impl)
    checks = ("test_schema", "test_faketensor", "test_autograd_registration")
    found = torch.library.opcheck(attention_ops.attention, args, test_utils=checks)
    assert set(found.values()) == {"SUCCESS"}


@needs_triton
def test_add_norm_is_registered_as_pytorch_wants_it():
    for seed, narrow in ((None, None), (torch.tensor([3]), torch.bfloat16)):
        x, a = torch.randn(2, 3, 5)
        inputs = (x, a.to(narrow or x.dtype), *torch.randn(2, 5))
        args = (*(z.requires_grad_() for z in inputs), seed, 1e-5, 0.5 if narrow else 0.0, narrow)
        checks = ("test_schema", "test_faketensor", "test_autograd_registration")
        found = torch.library.opcheck(norm_ops.add_norm, args, test_utils=checks)
        assert set(found.values()) == {"SUCCESS"}


@pytest.mark.parametrize("divergence", ["none", "kl_st"])
def test_the_operator_is_passed_over_only_where_nobody_sees_it(divergence, monkeypatch):
    seen, operator = [], attention_ops.attention

    def watched(*args):
        seen.append(args)
        return operator(*args)

    monkeypatch.setattr(attention_ops, "attention", watched)
    q, k, v = student().values()

    def run():
        if divergence == "none":
            return kernels.attention(q, k, v, CU_SEQLENS, MAX_LEN)
        taught = teacher().values()
        return kernels.attention_kl(q, k, v, *taught, CU_SEQLENS, MAX_LEN, divergence=divergence)

    run()
    with torch.inference_mode():
        run()
    v.requires_grad_()
    with torch.no_grad():
        run()
    assert not seen
    run()
    assert len(seen) == 1
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    with torch.no_grad():
        run()
    assert len(seen) == 2


def test_without_the_operator_autocast_stays_outside():
    q, k, v = student().values()
    out, _ = kernels.attention(q, k, v, CU_SEQLENS, MAX_LEN, impl="torch")
    with torch.autocast("cpu", torch.bfloat16):
        again, _ = kernels.attention(q, k, v, CU_SEQLENS, MAX_LEN, dropout=0.0, impl="torch")
        rows = call(**student())[1]
    assert torch.equal(out, again) and rows.dtype == torch.float32
