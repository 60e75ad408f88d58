"""The rivals compute what the definition says: the second, independent oracle of the kernels.

`stock` shares no formula with the kernels: it is PyTorch's fused attention and algebra. `eager` is
autograd's gradient of the plain equations. All against kernels/reference.py, in float64.
"""

from itertools import pairwise

import pytest
import torch

from helpers import LIMIT, assert_near
from kernels import reference
from kernels.bench import attention as bench_attention
from kernels.bench.attention import (
    CHECKED,
    SHAPES,
    TUNED_SHAPES,
    AttentionShape,
    problem,
    sides,
    work,
)
from kernels.bench.timing import compiler_missing
from kernels.reference import DIVERGENCES

CPU = torch.device("cpu")
F64 = torch.float64
every_divergence = pytest.mark.parametrize("divergence", DIVERGENCES)
every_shape = pytest.mark.parametrize("name", [*CHECKED, "B3-R33-H1-D64-D32", "B1-T1-H2-D3-D5"])


def one_side(p, name, divergence="kl_st", dropout=0.0):
    (side,) = sides(p, (name,), (), divergence=divergence, dropout=dropout)
    return side


def definition(p, divergence):
    """out, row_loss and the three gradients, from the reference directly."""
    leaves = [x.clone().requires_grad_() for x in p.tensors[:3]]
    cu_seqlens = torch.tensor([0, *p.lengths]).cumsum(0)
    out, rows, _ = reference.attention_kl(
        *leaves, *p.tensors[3:], cu_seqlens, divergence=divergence
    )
    return out, rows, *torch.autograd.grad((out, rows), leaves, p.gradients)


@every_divergence
@every_shape
@pytest.mark.parametrize("rival", ["eager", "stock"])
def test_rivals_equal_the_definition_in_value_and_gradient(rival, name, divergence):
    p = problem(AttentionShape.parse(name), CPU, F64, seed=1)
    side = one_side(p, rival, divergence)
    outputs, gradients = side.both()
    got = [side.to_row(x) for x in (*outputs, *gradients)]
    for what, x, y in zip(("out", "row_loss", "dq", "dk", "dv"), got, definition(p, divergence)):  # noqa: B905
        assert_near(f"{what} of {rival}", x, y, LIMIT[F64])


@every_divergence
@pytest.mark.parametrize("impl", ["reference", "torch", "triton"])
def test_ours_equal_stock(impl, divergence):
    """Kernel against decomposition, without the reference between them."""
    p = problem(AttentionShape.parse("B3-R17-H2-D8-D12"), CPU, F64, seed=2)
    stock = one_side(p, "stock", divergence)
    (ours,) = sides(p, (), [impl], divergence=divergence, dropout=0.0)
    for x, y in zip(ours.both(), stock.both(), strict=True):
        for mine, theirs in zip(x, y, strict=True):
            assert_near(impl, mine, stock.to_row(theirs), 1e-11)


@every_divergence
@pytest.mark.parametrize("rival", ["eager", "stock"])
def test_dropout_falls_on_the_output_alone(rival, divergence):
    p = problem(AttentionShape.parse("B2-R40-H2-D8-D8"), CPU, F64, seed=3)
    side = one_side(p, rival, divergence, dropout=0.5)
    out, rows = side.forward()
    true_out, true_rows, *_ = definition(p, divergence)
    assert_near("row_loss", side.to_row(rows), true_rows, LIMIT[F64])
    assert not torch.allclose(side.to_row(out), true_out)
    drawn = torch.stack([side.forward()[0].detach() for _ in range(400)])
    error = (side.to_row(drawn.mean(0)) - true_out).abs().max() / true_out.abs().max()
    assert error < 0.2  # of 400 draws; without the factor 1 / (1 - p) it is 0.5


@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_the_floor_is_attention_alone(dropout):
    p = problem(AttentionShape.parse("B3-R40-H2-D8-D16"), CPU, F64, seed=4)
    side = one_side(p, "floor", dropout=dropout)  # on a CPU without it
    (out,), gradients = side.both()
    leaves = [x.clone().requires_grad_() for x in p.tensors[:3]]
    truth, _ = reference.attention(*leaves, torch.tensor([0, *p.lengths]).cumsum(0))
    assert_near("out", side.to_row(out), truth, LIMIT[F64])
    for got, true in zip(
        gradients, torch.autograd.grad(truth, leaves, p.gradients[0]), strict=True
    ):
        assert_near("gradient", side.to_row(got), true, LIMIT[F64])


def test_the_floor_runs_the_teacher_too(monkeypatch):
    p = problem(AttentionShape.parse("B2-T9-H2-D8-D16"), CPU, F64, seed=4)
    widths, fused = [], bench_attention.fused_attention
    monkeypatch.setattr(
        bench_attention,
        "fused_attention",
        lambda q, *rest, **more: widths.append(q.shape[-1]) or fused(q, *rest, **more),
    )
    one_side(p, "floor").forward()
    assert widths == [16, 8]


def test_sides_share_numbers_and_not_tensors():
    p = problem(AttentionShape.parse("B3-R40-H2-D8-D16"), CPU, torch.float32, seed=5)
    found = sides(p, ("eager", "stock"), ["reference", "torch"], divergence="kl_st", dropout=0.0)
    assert [s.name for s in found] == ["eager", "stock", "reference", "torch"]
    assert [s.is_ours for s in found] == [False, False, True, True]
    for side in found:
        for x, y in zip(side.inputs, p.tensors, strict=False):
            assert x.requires_grad and torch.equal(side.to_row(x.detach()), y)
            assert x.data_ptr() != y.data_ptr()
        for x, y in zip(side.gradients, p.gradients, strict=True):
            assert torch.equal(side.to_row(x), y)
    again = problem(AttentionShape.parse("B3-R40-H2-D8-D16"), CPU, torch.float32, seed=5)
    assert all(torch.equal(x, y) for x, y in zip(p.tensors, again.tensors, strict=True))


def test_the_rectangle_of_a_ragged_row_is_in_eights_and_its_padding_zero():
    p = problem(AttentionShape.parse("B4-R27-H2-D8-D8"), CPU, torch.float32, seed=0)
    side = one_side(p, "eager")
    q = side.inputs[0]
    assert q.shape == (4, -(-max(p.lengths) // 8) * 8, 2, 8)
    assert q.count_nonzero() == p.tensors[0].count_nonzero()


def test_double_is_the_same_numbers():
    p = problem(AttentionShape.parse("B2-T5-H2-D4-D6"), CPU, torch.bfloat16, seed=0)
    assert p.gradients[1].dtype == torch.float32  # losses are never in half precision
    for x, y in zip((*p.tensors, *p.gradients), (*p.double().tensors, *p.double().gradients)):  # noqa: B905
        assert y.dtype == F64 and torch.equal(x.double(), y)


def test_shapes_have_names():
    shape = AttentionShape.parse("B24-R256-H12-D26-D64")
    assert (
        shape == AttentionShape(24, 256, True, 12, 26, 64) and str(shape) == "B24-R256-H12-D26-D64"
    )
    for name in (*SHAPES["cuda"], *SHAPES["cpu"], *CHECKED, *TUNED_SHAPES):
        assert str(AttentionShape.parse(name)) == name
    assert AttentionShape.parse("B3-T5-H2-D4-D4").lengths(0) == [5, 5, 5]
    assert AttentionShape.parse("B3-T5-H2-D4-D4").pairs(0) == 150


@pytest.mark.parametrize(
    "name", ["", "B2", "B2-X5-H1-D1-D1", "B0-T5-H1-D1-D1", "B2-T5-H1-D1-D1-", "b2-t5-h1-d1-d1"]
)
def test_other_names_are_refused(name):
    with pytest.raises(ValueError, match=r"--shapes has .*expected B24-T256-H12-D32-D64"):
        AttentionShape.parse(name)


def test_the_shapes_of_the_paper_are_measured():
    found = {AttentionShape.parse(name) for name in SHAPES["cuda"]}
    for B in (24, 192):
        for longest, is_ragged in ((128, False), (256, False), (512, False), (256, True)):
            for widths in ((12, 32, 64), (12, 64, 64), (4, 32, 256)):
                assert AttentionShape(B, longest, is_ragged, *widths) in found
    assert any(s.B % 2 and s.longest == 250 and s.D_s == 26 for s in found)
    assert AttentionShape(8, 256, False, 12, 64, 64) in map(AttentionShape.parse, SHAPES["cpu"])


def test_work_by_hand():
    """The budget of BERT-base's layer at B = 192 in half precision: 58 and 116 GFLOP."""
    got = work(AttentionShape.parse("B192-T256-H12-D64-D64"), torch.bfloat16, 0)
    pairs, row = 192 * 12 * 256**2, 192 * 256 * 12
    assert got["forward"] == (pairs * 384, row * (6 * 64 * 2 + 3 * 4))
    assert got["backward"] == (pairs * 768, row * (10 * 64 * 2 + 4 * 4))
    assert got["both"] == tuple(map(sum, zip(got["forward"], got["backward"], strict=True)))
    assert [round(got[name][0] / 1e9) for name in ("forward", "backward")] == [58, 116]


def test_without_a_compiler_it_says_so(monkeypatch):
    monkeypatch.setattr(bench_attention, "compiler_missing", lambda device: "no C++ compiler")
    p = problem(AttentionShape.parse("B2-T5-H2-D4-D4"), CPU, torch.float32, 0)
    assert one_side(p, "compile").missing == "no C++ compiler"


@pytest.mark.slow
@pytest.mark.skipif(bool(compiler_missing(CPU)), reason="needs a C++ compiler")
@pytest.mark.parametrize("name", CHECKED)
def test_the_compiled_rival_equals_the_definition(name):
    p = problem(AttentionShape.parse(name), CPU, F64, seed=1)
    side = one_side(p, "compile")
    outputs, gradients = side.both()
    got = [side.to_row(x) for x in (*outputs, *gradients)]
    for x, y in zip(got, definition(p, "kl_st"), strict=True):
        assert_near("compile", x, y, LIMIT[F64])


def test_block_sizes_are_tried_for_one_kernel_and_given_back():
    triton_attention = pytest.importorskip("kernels.triton_attention")
    own, shape = triton_attention.pick_config, AttentionShape.parse("B2-T5-H2-D8-D8")
    usual = {k: bench_attention.chosen(k, shape, "kl_st", F64, CPU) for k in bench_attention.TUNED}
    tried = bench_attention.candidates("dq", None)
    assert len(set(tried)) == len(tried) > 20
    with pytest.raises(RuntimeError), bench_attention.using("dq", tried[-1]):
        for kernel, config in usual.items():
            got = bench_attention.chosen(kernel, shape, "kl_st", F64, CPU)
            assert got == (tried[-1] if kernel == "dq" else config)
        raise RuntimeError
    assert triton_attention.pick_config is own


def test_the_most_important_shape_of_a_gpu_comes_first():
    first = AttentionShape.parse(SHAPES["cuda"][0])
    assert (first.is_ragged, first.longest, first.D_s) == (True, 256, 26)


def test_dropout_drawn_on_the_host_is_not_timed(monkeypatch):
    """On a GPU `torch` waits for its seed; without dropout it is timed, and so it is checked."""
    cuda = torch.device("cuda")
    asked = [("torch", cuda, 0.1), ("torch", cuda, 0.0), ("torch", CPU, 0.1), ("triton", cuda, 0.1)]
    assert [bench_attention.draws_on_host(*x) for x in asked] == [True, False, False, False]
    monkeypatch.setattr(bench_attention, "draws_on_host", lambda impl, device, dropout: dropout > 0)
    p = problem(AttentionShape.parse("B2-T9-H2-D8-D8"), CPU, torch.float32, seed=0)
    for dropout, why in ((0.1, "its dropout is drawn on the host; --dropout 0 times it"), (0, "")):
        (side,) = sides(p, (), ["torch"], divergence="kl_st", dropout=dropout)
        assert side.missing == why


def by_sequence(q, k, v, cu_q, cu_k, max_q, max_k):
    """PyTorch's attention on the row, as its page describes it, one sequence at a time."""
    assert q.shape[-1] % 8 == v.shape[-1] % 8 == 0 and cu_q is cu_k and max_q == max_k
    places = cu_q.tolist()
    assert max(b - a for a, b in pairwise(places)) == max_q
    parts = [[x[a:b].transpose(0, 1) for x in (q, k, v)] for a, b in pairwise(places)]
    return torch.cat([bench_attention.fused_attention(*x).transpose(0, 1) for x in parts])


@pytest.mark.skipif(not bench_attention.HAS_VARLEN, reason="this PyTorch has no varlen_attn")
@pytest.mark.parametrize("name", ["B3-R40-H2-D26-D64", "B2-T9-H2-D8-D16"])
def test_attention_on_the_row_is_a_rival(name, monkeypatch):
    """The student's attention with its own scale, whatever width the kernel is given."""
    from torch.nn.attention import varlen

    monkeypatch.setattr(varlen, "varlen_attn", by_sequence)
    p = problem(AttentionShape.parse(name), CPU, F64, seed=4)
    side = one_side(p, "varlen", dropout=0.1)
    (out,), gradients = side.both()
    leaves = [x.clone().requires_grad_() for x in p.tensors[:3]]
    truth, _ = reference.attention(*leaves, torch.tensor([0, *p.lengths]).cumsum(0))
    assert_near("out", out, truth, LIMIT[F64])
    for got, true in zip(
        gradients, torch.autograd.grad(truth, leaves, p.gradients[0]), strict=True
    ):
        assert_near("gradient", got, true, LIMIT[F64])
    assert side.missing == "only for CUDA"
