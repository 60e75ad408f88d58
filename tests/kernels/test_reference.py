"""The definitions: by hand, against the formulas written as loops, and by their properties."""

import math
from itertools import accumulate

import pytest
import torch

from helpers import assert_near
from kernels import reference
from kernels.reference import DIVERGENCES

F64 = torch.float64
LENGTHS = (3, 1, 0, 4)


def boundaries(lengths):
    return torch.tensor([0, *accumulate(lengths)], dtype=torch.int32)


def tensors(lengths=LENGTHS, H=2, D_s=3, D_t=5, dtype=F64):
    """q_s, k_s, v_s, q_t, k_t of one row."""
    N = sum(lengths)
    return [torch.randn(N, H, D, dtype=F64).to(dtype) for D in (D_s, D_s, D_s, D_t, D_t)]


def as_parameters(*xs):
    return [x.detach().clone().requires_grad_() for x in xs]


# ---- by hand


def test_attention_of_two_tokens():
    # one head of width 1, so scale 1;  z = [[0, 0], [0, ln 3]],  a = [[1/2, 1/2], [1/4, 3/4]]
    q = torch.tensor([0.0, math.log(3)], dtype=F64).view(2, 1, 1)
    k = torch.tensor([0.0, 1.0], dtype=F64).view(2, 1, 1)
    v = torch.tensor([4.0, 8.0], dtype=F64).view(2, 1, 1)
    out, lse = reference.attention(q, k, v, boundaries([2]))
    assert out.flatten().tolist() == pytest.approx([6, 7])  # 4/2 + 8/2,  4/4 + 3 * 8/4
    assert lse.flatten().tolist() == pytest.approx([math.log(2), math.log(4)])


def test_the_default_scale_is_one_over_the_root_of_the_width():
    q, k = torch.ones(1, 1, 4), torch.full((1, 1, 4), 3.0)
    assert reference.attention_scores(q, k).item() == pytest.approx(4 * 3 / 2)
    assert reference.attention_scores(q, k, scale=0.25).item() == pytest.approx(3)


@pytest.mark.parametrize(
    ("divergence", "expected"),
    [  # a_s = (1/4, 3/4), a_t = (1/2, 1/2)
        ("kl_st", 1 / 4 * math.log(1 / 2) + 3 / 4 * math.log(3 / 2)),  # 0.1308
        ("kl_ts", 1 / 2 * math.log(2) + 1 / 2 * math.log(2 / 3)),  # 0.1438
        ("mse_maps", 1 / 16 + 1 / 16),
    ],
)
def test_divergences_of_one_row(divergence, expected):
    z_s = torch.tensor([0, math.log(3)], dtype=F64)
    got = reference.row_divergence(z_s, torch.zeros(2, dtype=F64), divergence)
    assert got.item() == pytest.approx(expected)


def test_rows_over_the_vocabulary():
    # p_s = (1/4, 3/4), p_t = (1/2, 1/2)
    x_s, x_t = torch.tensor([[0, math.log(3)]], dtype=F64), torch.zeros(1, 2, dtype=F64)
    (rare,) = reference.cross_entropy_rows(x_s, torch.tensor([0]))
    (common,) = reference.cross_entropy_rows(x_s, torch.tensor([1]))
    assert rare.item() == pytest.approx(math.log(4))
    assert common.item() == pytest.approx(math.log(4 / 3))
    soft = reference.soft_cross_entropy_rows(x_s, x_t).item()
    assert soft == pytest.approx(math.log(4) / 2 + math.log(4 / 3) / 2)
    assert reference.kl_rows(x_s, x_t).item() == pytest.approx(soft - math.log(2))
    # doubled logits at T = 2 are the same distributions; T^2 = 4
    assert reference.kl_rows(2 * x_s, x_t, 2.0).item() == pytest.approx(4 * (soft - math.log(2)))
    assert reference.soft_cross_entropy_rows(2 * x_s, x_t, 2.0).item() == pytest.approx(4 * soft)


def test_ignored_labels_cost_nothing_and_teach_nothing():
    x = torch.randn(3, 5, dtype=F64, requires_grad=True)
    rows = reference.cross_entropy_rows(x, torch.tensor([-100, 2, -100]))
    assert rows[0] == rows[2] == 0 and rows[1] > 0
    (g,) = torch.autograd.grad(rows.sum(), x)
    assert (g[[0, 2]] == 0).all() and (g[1] != 0).all()


@pytest.mark.parametrize("label", [-1, 5])
def test_a_label_outside_the_vocabulary_is_no_class(label):
    with pytest.raises((IndexError, RuntimeError), match="out of bounds"):
        reference.cross_entropy_rows(torch.zeros(1, 5), torch.tensor([label]))


# ---- against loops over single numbers


def loops(q_s, k_s, v_s, q_t, k_t, lengths, divergence):
    """out, row_loss, lse from the formulas, one number at a time."""
    N, H, D = q_s.shape
    out = torch.zeros(N, H, D, dtype=F64)
    rows, lse = torch.zeros(N, H, dtype=F64), torch.zeros(N, H, dtype=F64)

    def scores(q, k, i, tokens, h):
        width = q.shape[2]
        return [
            sum(q[i, h, d].item() * k[j, h, d].item() for d in range(width)) / math.sqrt(width)
            for j in tokens
        ]

    def probabilities(z):
        total = sum(math.exp(x) for x in z)
        return [math.exp(x) / total for x in z], math.log(total)

    start = 0
    for T in lengths:
        tokens = range(start, start + T)
        for i in tokens:
            for h in range(H):
                z_s, z_t = scores(q_s, k_s, i, tokens, h), scores(q_t, k_t, i, tokens, h)
                (a_s, lse[i, h]), (a_t, _) = probabilities(z_s), probabilities(z_t)
                for d in range(D):
                    out[i, h, d] = sum(
                        a * v_s[j, h, d].item() for a, j in zip(a_s, tokens, strict=True)
                    )
                rows[i, h] = sum(
                    {
                        "kl_st": s * math.log(s / t),
                        "kl_ts": t * math.log(t / s),
                        "mse_maps": (s - t) ** 2,
                    }[divergence]
                    for s, t in zip(a_s, a_t, strict=True)
                )
        start += T
    return out, rows, lse


@pytest.mark.parametrize("divergence", DIVERGENCES)
def test_attention_equals_the_loops(divergence):
    xs = tensors()
    cu_seqlens = boundaries(LENGTHS)
    truth = loops(*xs, LENGTHS, divergence)
    got = reference.attention_kl(*xs, cu_seqlens, divergence=divergence)
    for name, x, y in zip(("out", "row_loss", "lse"), got, truth, strict=True):
        assert_near(name, x, y, 1e-12)
    out, lse = reference.attention(*xs[:3], cu_seqlens)
    assert torch.equal(out, got[0]) and torch.equal(lse, got[2])


@pytest.mark.parametrize("T", [1.0, 2.5])
def test_vocabulary_rows_equal_the_loops(T):
    x_s, x_t = torch.randn(4, 7, dtype=F64), torch.randn(4, 7, dtype=F64)
    for m in range(4):
        e_s, e_t = ([math.exp(x / T) for x in row[m].tolist()] for row in (x_s, x_t))
        p_s, p_t = [e / sum(e_s) for e in e_s], [e / sum(e_t) for e in e_t]
        pairs = list(zip(p_s, p_t, strict=True))
        soft = -T * T * sum(t * math.log(s) for s, t in pairs)
        kl = T * T * sum(t * math.log(t / s) for s, t in pairs)
        assert reference.soft_cross_entropy_rows(x_s, x_t, T)[m].item() == pytest.approx(soft)
        assert reference.kl_rows(x_s, x_t, T)[m].item() == pytest.approx(kl)


# ---- gradients


@pytest.mark.parametrize("divergence", DIVERGENCES)
def test_gradcheck_of_attention(divergence):
    *student, q_t, k_t = tensors((3, 1), H=2, D_s=2, D_t=3)
    cu_seqlens = boundaries((3, 1))

    def attention_kl(q_s, k_s, v_s):
        return reference.attention_kl(q_s, k_s, v_s, q_t, k_t, cu_seqlens, divergence=divergence)

    assert torch.autograd.gradcheck(attention_kl, as_parameters(*student))


@pytest.mark.parametrize(
    "rows",
    [
        lambda x: reference.cross_entropy_rows(x, torch.tensor([1, -100, 4])),
        lambda x: reference.soft_cross_entropy_rows(x, torch.linspace(-1, 2, 15).view(3, 5), 2.0),
        lambda x: reference.kl_rows(x, torch.linspace(-1, 2, 15).view(3, 5), 2.0),
    ],
    ids=["cross_entropy", "soft_cross_entropy", "kl"],
)
def test_gradcheck_of_vocabulary_rows(rows):
    assert torch.autograd.gradcheck(rows, as_parameters(torch.randn(3, 5, dtype=F64)))


@pytest.mark.parametrize("divergence", DIVERGENCES)
def test_gradients_are_those_of_the_readme(divergence):
    z_s, z_t = torch.randn(4, 6, dtype=F64, requires_grad=True), torch.randn(4, 6, dtype=F64)
    rows = reference.row_divergence(z_s, z_t, divergence)
    g = torch.randn(4, dtype=F64)
    (dz,) = torch.autograd.grad(rows, z_s, g)
    a_s, a_t = z_s.softmax(-1), z_t.softmax(-1)
    expected = {
        "kl_st": a_s * (a_s.log() - a_t.log() - rows[:, None]),
        "kl_ts": a_s - a_t,
        "mse_maps": 2 * a_s * (a_s - a_t - (a_s * (a_s - a_t)).sum(-1, keepdim=True)),
    }[divergence]
    assert_near("dz_s", dz, g[:, None] * expected, 1e-12)


# ---- properties


@pytest.mark.parametrize("divergence", DIVERGENCES)
def test_equal_maps_do_not_diverge_and_others_do(divergence):
    q, k, v, q_t, k_t = tensors()
    cu_seqlens = boundaries(LENGTHS)
    _, same, _ = reference.attention_kl(q, k, v, q, k, cu_seqlens, divergence=divergence)
    assert same.abs().max() < 1e-14
    _, rows, _ = reference.attention_kl(q, k, v, q_t, k_t, cu_seqlens, divergence=divergence)
    several = torch.tensor([T > 1 for T in LENGTHS for _ in range(T)])
    assert (rows[several] > 0).all()
    assert rows[~several].abs().max() < 1e-14  # a lone token looks at itself, whatever the model


@pytest.mark.parametrize("divergence", ["kl_st", "kl_ts", "mse_maps"])
def test_a_shift_of_a_row_of_scores_changes_nothing(divergence):
    z_s, z_t = torch.randn(2, 4, 6, dtype=F64), torch.randn(2, 4, 6, dtype=F64)
    moved = reference.row_divergence(z_s + 3, z_t - torch.randn(2, 4, 1), divergence)
    assert_near("rows", moved, reference.row_divergence(z_s, z_t, divergence), 1e-12)


def test_shifted_logits_change_no_row():
    x_s, x_t, shift = torch.randn(4, 7).double(), torch.randn(4, 7).double(), torch.randn(4, 1)
    labels = torch.tensor([0, 6, -100, 3])
    for rows in (reference.kl_rows, reference.soft_cross_entropy_rows):
        assert_near("rows", rows(x_s + shift, x_t - 2 * shift, 2.0), rows(x_s, x_t, 2.0), 1e-12)
    moved = reference.cross_entropy_rows(x_s + shift, labels)
    assert_near("rows", moved, reference.cross_entropy_rows(x_s, labels), 1e-12)
    assert reference.kl_rows(x_s, x_s, 2.0).abs().max() < 1e-14


@pytest.mark.parametrize("divergence", DIVERGENCES)
def test_scores_of_a_thousand_stay_finite(divergence):
    z_s = torch.tensor([[1000.0, -1000.0, 0.0]], requires_grad=True)
    row = reference.row_divergence(z_s, -z_s.detach(), divergence)
    (g,) = torch.autograd.grad(row.sum(), z_s)
    assert row.isfinite().all() and g.isfinite().all()


def test_sequences_do_not_see_each_other():
    xs = tensors((4, 3))
    whole = reference.attention_kl(*xs, boundaries((4, 3)), divergence="kl_st")
    swapped = [torch.cat([x[4:], x[:4]]) for x in xs]
    other = reference.attention_kl(*swapped, boundaries((3, 4)), divergence="kl_st")
    for x, y in zip(whole, other, strict=True):
        assert torch.equal(x, torch.cat([y[3:], y[:3]]))


@pytest.mark.parametrize("lengths", [(), (0,), (0, 0)])
def test_an_empty_row_has_a_result(lengths):
    out, rows, lse = reference.attention_kl(
        *tensors(lengths, dtype=torch.bfloat16), boundaries(lengths), divergence="kl_st"
    )
    assert out.shape == (0, 2, 3) and out.dtype == torch.bfloat16
    assert rows.shape == lse.shape == (0, 2)


# ---- precision


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_narrow_types_are_computed_in_float32(dtype):
    xs = tensors(dtype=dtype)
    got = reference.attention_kl(*xs, boundaries(LENGTHS), divergence="kl_st")
    wide = [x.float() for x in xs]
    expected = reference.attention_kl(*wide, boundaries(LENGTHS), divergence="kl_st")
    assert [x.dtype for x in got] == [dtype, torch.float32, torch.float32]
    assert torch.equal(got[0], expected[0].to(dtype))
    assert torch.equal(got[1], expected[1]) and torch.equal(got[2], expected[2])
    logits = torch.randn(3, 9).to(dtype)
    for rows in (
        lambda x: reference.kl_rows(x, x.flip(0)),
        lambda x: reference.soft_cross_entropy_rows(x, x.flip(0)),
        lambda x: reference.cross_entropy_rows(x, torch.tensor([1, 0, 2])),
    ):
        assert torch.equal(rows(logits), rows(logits.float()))


def test_float64_stays_float64():
    got = reference.attention_kl(*tensors(), boundaries(LENGTHS), divergence="mse_maps")
    assert all(x.dtype == F64 for x in got)
    teacher = [x.float() for x in tensors()]  # the student's type decides
    mixed = reference.attention_kl(
        *tensors()[:3], *teacher[3:], boundaries(LENGTHS), divergence="kl_ts"
    )
    assert mixed[1].dtype == F64


# ---- dropout


def test_dropout_falls_on_the_output_alone():
    xs = tensors((6,), D_s=6)
    xs[2] = torch.eye(6, dtype=F64)[:, None].repeat(1, 2, 1)  # v = 1: out is the map after dropout
    cu_seqlens = boundaries((6,))
    is_kept = torch.rand(6, 2, 6) < 0.5
    whole, rows, lse = reference.attention_kl(*xs, cu_seqlens, divergence="kl_st")
    out, rows_2, lse_2 = reference.attention_kl(
        *xs, cu_seqlens, divergence="kl_st", dropout=0.5, keep=reference.pack_bits(is_kept)
    )
    assert torch.equal(rows, rows_2) and torch.equal(lse, lse_2)
    assert_near("out", out, 2 * whole * is_kept, 1e-12)
    alone, _ = reference.attention(
        *xs[:3], cu_seqlens, dropout=0.5, keep=reference.pack_bits(is_kept)
    )
    assert torch.equal(alone, out)


@pytest.mark.parametrize("T", [1, 7, 8, 9, 17])
def test_bits_of_a_mask(T):
    is_kept = torch.rand(3, 2, T) < 0.5
    bits = reference.pack_bits(is_kept)
    assert bits.dtype == torch.uint8 and bits.shape == (3, 2, -(-T // 8))
    assert torch.equal(reference.unpack_bits(bits, T), is_kept)
    assert (bits[0, 0, 0].item() & 1) == is_kept[0, 0, 0]  # the first key is the lowest bit


def test_each_row_has_the_bits_of_its_own_sequence():
    xs = tensors((2, 3), D_s=3)
    is_kept = torch.zeros(5, 2, 3, dtype=torch.bool)
    is_kept[3, 1, 2] = True  # second token of the second sequence looks at its third, head 1
    out, _ = reference.attention(
        *xs[:3], boundaries((2, 3)), dropout=0.5, keep=reference.pack_bits(is_kept)
    )
    a = reference.attention_scores(xs[0][2:], xs[1][2:]).softmax(-1)
    expected = torch.zeros_like(out)
    expected[3, 1] = 2 * a[1, 1, 2] * xs[2][4, 1]
    assert_near("out", out, expected, 1e-12)


def test_an_unknown_divergence_is_refused():
    with pytest.raises(ValueError, match="expected one of .*kl_st.*mse_maps"):
        reference.row_divergence(torch.zeros(1, 2), torch.zeros(1, 2), "js")
