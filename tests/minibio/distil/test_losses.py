"""Equations 1 to 13: by hand, as the released code has them, and by their properties."""

import inspect
import math
from itertools import accumulate
from types import SimpleNamespace

import pytest
import torch
import torch.nn as nn
import torch.nn.functional as F

import kernels
from helpers import ROOT, assert_near
from kernels import reference
from minibio.distil import losses
from minibio.distil.losses import DIVERGENCE, EQUATIONS, MOBILE_FACTORS

F64 = torch.float64
ln = math.log


def tensor(rows, dtype=F64):
    return torch.tensor(rows, dtype=dtype)


def near(x, expected):
    assert x.shape == ()
    assert x.item() == pytest.approx(expected, rel=1e-12, abs=1e-12)


# ---- by hand

# softmax of (0, ln 3) is (1/4, 3/4), of (0, 0) it is (1/2, 1/2)
LOGITS = tensor([[0, ln(3)], [0, ln(3)], [0, 0]])
LOGITS_T = tensor([[0, 0], [0, ln(3)], [0, ln(3)]])
KL_1 = ln(2) / 2 + ln(2 / 3) / 2  # of rows 1: 1/2 ln(1/2 / 1/4) + 1/2 ln(1/2 / 3/4)
KL_3 = ln(1 / 2) / 4 + 3 / 4 * ln(3 / 2)  # of rows 3: 1/4 ln(1/4 / 1/2) + 3/4 ln(3/4 / 1/2)


def test_equation_1():
    labels = torch.tensor([0, 1, 0])  # -ln 1/4, -ln 3/4, -ln 1/2
    near(losses.mlm(LOGITS, labels), (ln(4) + ln(4 / 3) + ln(2)) / 3)
    near(losses.mlm(LOGITS, labels, M=10), (ln(4) + ln(4 / 3) + ln(2)) / 10)
    near(losses.mlm(LOGITS, labels, M=1), ln(4) + ln(4 / 3) + ln(2))
    near(losses.mlm(LOGITS, torch.tensor([0, -100, -100])), ln(4))  # one is left to count


def test_equation_2():
    near(losses.soft_mlm(LOGITS, LOGITS_T), (KL_1 + 0 + KL_3) / 3)
    near(losses.soft_mlm(LOGITS, LOGITS_T, M=10), (KL_1 + KL_3) / 10)
    # twice the logits at T = 2 are the same probabilities; the loss is T^2 = 4 times as large
    near(losses.soft_mlm(2 * LOGITS, 2 * LOGITS_T, temperature=2.0), 4 * (KL_1 + KL_3) / 3)


def test_equation_3():
    h_s = tensor([[1, 0], [0, 2], [1, 1], [5, 0]])
    h_t = tensor([[3, 0], [4, 0], [-1, -1], [1, 1]])
    distances = [0, 1, 2, 1 - 1 / math.sqrt(2)]
    near(losses.align(h_s, h_t), sum(distances) / 4)
    near(losses.align(h_s, h_t, N=8), sum(distances) / 8)


def test_equation_4():
    near(losses.distil(tensor(1), tensor(10), tensor(100)), 2 * 1 + 5 * 10 + 1 * 100)
    near(losses.distil(tensor(1), tensor(10), tensor(100), alpha=(1, 0, 0.5)), 51)


@pytest.mark.parametrize(
    ("L_s", "L_t", "g"),
    [(4, 12, (3, 6, 9, 12)), (6, 12, (2, 4, 6, 8, 10, 12)), (24, 24, tuple(range(1, 25))),
     (1, 12, (12,)), (2, 4, (2, 4))],
)  # fmt: skip
def test_equation_5(L_s, L_t, g):
    assert losses.layer_map(L_s, L_t) == g


@pytest.mark.parametrize(("L_s", "L_t"), [(5, 12), (12, 6), (0, 12)])
def test_layers_that_do_not_divide(L_s, L_t):
    with pytest.raises(ValueError, match=f"the teacher has {L_t} layers, expected .* {L_s}$"):
        losses.layer_map(L_s, L_t)


W = tensor([[1], [2]])  # x -> (x, 2x)
H_S, H_T = tensor([[1], [2]]), tensor([[0, 0], [2, 2]])  # differences (1, 2) and (0, 2)
ROWS = tensor([[1, 2, 3], [4, 5, 6]])  # N = 2 tokens, H = 3 heads, sum 21


def project(x):
    return x @ W.T


def test_equation_6():
    hidden = (1 + 4 + 0 + 4) / (2 * 2)  # N C_t
    near(losses.tiny_layer(H_S, H_T, project, ROWS, n_pairs=4), hidden + 21 / (3 * 4))
    near(losses.tiny_layer(H_S, H_T, project, ROWS, n_pairs=2), hidden + 21 / (3 * 2))
    near(losses.tiny_layer(H_S, H_T, project, ROWS, n_pairs=40, N=6), hidden / 3 + 21 / 120)
    near(losses.tiny_layer(H_T + 1, H_T, None, ROWS, n_pairs=7), 1 + 1)


def test_equation_7():
    near(losses.embed(H_S, H_T, project), 9 / 4)
    near(losses.embed(H_S, H_T, project, N=6), 9 / 12)
    near(losses.embed(H_T - 3, H_T, None), 9)


def test_equation_8():
    # rows: 1/2 ln 4 + 1/2 ln 4/3;  1/4 ln 4 + 3/4 ln 4/3;  1/4 ln 2 + 3/4 ln 2
    total = (ln(4) + ln(4 / 3)) / 2 + ln(4) / 4 + 3 / 4 * ln(4 / 3) + ln(2)
    near(losses.output(LOGITS, LOGITS_T), total / 3)
    near(losses.output(LOGITS, LOGITS_T, N=10), total / 10)
    near(losses.output(2 * LOGITS, 2 * LOGITS_T, temperature=2.0), 4 * total / 3)


def test_equation_9():
    terms = (tensor(1), [tensor(10), tensor(100)], tensor(1000))
    near(losses.tiny(*terms), 1111)
    near(losses.tiny(*terms, lambdas=(1, 2, 3, 4)), 1 + 20 + 300 + 4000)
    near(losses.tiny(*terms, lambdas=(0, 0, 0, 0)), 0)


def own_lengths(lengths):
    """Tokens of each token's own sequence."""
    return torch.tensor([T for T in lengths for _ in range(T)])


def test_equation_10():
    h_s, h_t = tensor([[1, 0], [0, 2]]), tensor([[3, 0], [4, 0]])  # distances 0 and 1
    near(losses.compact_layer(h_s, h_t, ROWS), 1 / 2 + 21 / (3 * 2))
    near(losses.compact_layer(h_s, h_t, ROWS, N=10), 1 / 10 + 21 / (3 * 10))
    released = {"fidelity": "released"}
    # one sequence of 2: each row also / 2; two of 1: / 1
    near(losses.compact_layer(h_s, h_t, ROWS, T=own_lengths([2]), **released), 1 / 2 + 21 / 2 / 6)
    near(losses.compact_layer(h_s, h_t, ROWS, T=own_lengths([1, 0, 1]), **released), 1 / 2 + 21 / 6)
    h_s, h_t, rows = (torch.cat([x, x[:1]]) for x in (h_s, h_t, ROWS))
    # two sequences, of 1 and 2: rows 6 / 1, then (15 + 6) / 2; H N = 9
    expected = 1 / 3 + (6 + 21 / 2) / 9
    near(losses.compact_layer(h_s, h_t, rows, T=own_lengths([1, 2]), **released), expected)


def test_equation_11():
    layers = [tensor(100), tensor(1000)]
    near(losses.compact(tensor(1), tensor(10), layers), 1 * 1 + 5 * 10 + 3 * 1100)
    near(losses.compact(tensor(1), tensor(10), layers, alpha=(2, 1, 0.1)), 2 + 10 + 110)


def test_equation_12():
    h_s, h_t = tensor([[1, 2], [0, 4]]), tensor([[0, 0], [0, 2]])
    near(losses.mobile_layer(h_s, h_t, ROWS), 9 / 4 + 21 / (3 * 2))
    near(losses.mobile_layer(h_s, h_t, ROWS, N=8), 9 / 16 + 21 / (3 * 8))


def test_equation_12_as_released():
    # means 2, 1; variances 1, 9, so layer-normed (-1, 1) and (1, -1): squares 4, 4
    # means of the second token 5, 5; variances 4, 0; layer-normed (1, -1), (0, 0): squares 1, 1
    h_s, h_t = tensor([[1, 3], [7, 3]]), tensor([[4, -2], [5, 5]])
    hidden, mean, variance = (4 + 1) / 2, (1 + 0) / 2, (8 + 4) / 2
    expected = 100 * hidden + 1 * 21 / 6 + 5000 * mean + 5 * variance
    got = losses.mobile_layer(h_s, h_t, ROWS, fidelity="released")
    assert got.item() == pytest.approx(expected, rel=1e-9)  # a layer norm has its epsilon


def test_equation_13():
    near(losses.mobile(tensor(1), [tensor(10), tensor(30)], alpha=0.25), 0.25 + 0.75 * 20)
    near(losses.mobile(tensor(1), [tensor(10), tensor(30)]), 10.5)


# ---- a whole step, of which any sequences can be taken

LENGTHS = (3, 1, 4, 2)


class Step:
    """What Eq. 1 to 13 read, for some sequences of one row; float64, seeded."""

    student = ("h_s", "e_s", "logits_s", "every_s", "rows")

    def __init__(self, sequences=range(4), shift=0.0, dtype=F64, like_teacher=False):
        rng = torch.Generator().manual_seed(1)

        def random(*shape):
            return torch.randn(*shape, dtype=F64, generator=rng).to(dtype)

        N, M = sum(LENGTHS), 6
        owner = [0, 0, 2, 2, 2, 3]  # of each predicted token
        starts = [0, *accumulate(LENGTHS)]
        tokens = [i for b in sequences for i in range(starts[b], starts[b + 1])]
        tokens = torch.tensor(tokens, dtype=torch.int64)  # places in the whole row
        picked = [m for b in sequences for m in range(M) if owner[m] == b]
        picked = torch.tensor(picked, dtype=torch.int64)  # and among its predicted tokens
        self.places = {name: tokens for name in self.student} | {"logits_s": picked}
        self.lengths = tuple(LENGTHS[b] for b in sequences)
        self.N, self.M, self.n_pairs = len(tokens), len(picked), sum(T * T for T in self.lengths)
        self.h_s, self.h_t = random(N, 5)[tokens], random(N, 5)[tokens]
        self.e_s, self.e_t = random(N, 3)[tokens], random(N, 5)[tokens]
        self.W = random(5, 3)
        self.labels = torch.tensor([0, 6, 3, 2, 2, 5])[picked]
        self.logits_s, self.logits_t = random(M, 7)[picked], random(M, 7)[picked]
        self.every_s, self.every_t = random(N, 7)[tokens], random(N, 7)[tokens]
        self.rows = random(N, 2).square()[tokens]
        if like_teacher:
            self.h_s, self.logits_s, self.every_s = self.h_t, self.logits_t, self.every_t
            self.e_s, self.W = self.e_t, torch.eye(5, dtype=dtype)
            self.rows = torch.zeros_like(self.rows)
        for name in ("logits_s", "logits_t", "every_s", "every_t"):
            setattr(self, name, getattr(self, name) + shift)

    @property
    def counts(self):
        return SimpleNamespace(N=self.N, M=self.M, n_pairs=self.n_pairs)


def terms(x, n):
    """Every equation that is a loss, over the counts n."""

    def project(y):
        return y @ x.W.T

    mlm = losses.mlm(x.logits_s, x.labels, M=n.M)
    soft = losses.soft_mlm(x.logits_s, x.logits_t, M=n.M)
    align = losses.align(x.h_s, x.h_t, N=n.N)
    layer = losses.tiny_layer(x.e_s, x.e_t, project, x.rows, n_pairs=n.n_pairs, N=n.N)
    embed = losses.embed(x.e_s, x.e_t, project, N=n.N)
    output = losses.output(x.every_s, x.every_t, N=n.N)
    compact_layer = losses.compact_layer(x.h_s, x.h_t, x.rows, N=n.N)
    mobile_layer = losses.mobile_layer(x.h_s, x.h_t, x.rows, N=n.N)
    return {
        "1": mlm,
        "2": soft,
        "2 released": losses.soft_mlm(x.logits_s, x.logits_t, temperature=2.0, M=n.M),
        "3": align,
        "4": losses.distil(mlm, soft, align),
        "6": layer,
        "7": embed,
        "8": output,
        "8 released": losses.output(x.logits_s, x.logits_t, N=n.M),
        "9": losses.tiny(embed, [layer, layer], output),
        "10": compact_layer,
        "10 released": losses.compact_layer(
            x.h_s, x.h_t, x.rows, T=own_lengths(x.lengths), N=n.N, fidelity="released"
        ),
        "11": losses.compact(mlm, soft, [compact_layer, compact_layer]),
        "12": mobile_layer,
        "12 released": losses.mobile_layer(x.h_s, x.h_t, x.rows, N=n.N, fidelity="released"),
        "13": losses.mobile(mlm, [mobile_layer, mobile_layer]),
    }


TERMS = list(terms(Step(), Step().counts))
# what is 0 where the student equals its teacher; Eq. 8 then is the teacher's entropy
DISTANCES = ["2", "2 released", "3", "6", "7", "10", "10 released", "12", "12 released"]
NONE = SimpleNamespace(N=None, M=None, n_pairs=Step().n_pairs)


def gradients(x, name, n):
    """The term and its gradients; zeros where it does not read a tensor."""
    leaves = [getattr(x, field).detach().requires_grad_() for field in Step.student]
    for field, leaf in zip(Step.student, leaves, strict=True):
        setattr(x, field, leaf)
    value = terms(x, n)[name]
    return value, torch.autograd.grad(value, leaves, materialize_grads=True)


def test_every_equation_is_tested():
    numbers = {int(name.split()[0]) for name in TERMS}
    assert numbers == {e.number for e in EQUATIONS} - {5}


@pytest.mark.parametrize("name", TERMS)
def test_gradcheck(name):
    _, read = gradients(Step(), name, NONE)
    fields = [f for f, g in zip(Step.student, read, strict=True) if g.any()]
    assert fields

    def loss(*leaves):
        x = Step()
        for field, leaf in zip(fields, leaves, strict=True):
            setattr(x, field, leaf)
        return terms(x, NONE)[name]

    leaves = [getattr(Step(), f).requires_grad_() for f in fields]
    # 5000 times a squared difference of means: the numeric gradient has rounding of its own
    assert torch.autograd.gradcheck(loss, leaves, rtol=1e-4 if name == "12 released" else 1e-5)


@pytest.mark.parametrize("name", TERMS)
def test_no_denominator_means_the_batch_s_own(name):
    x = Step()
    assert_near(name, terms(x, NONE)[name], terms(x, x.counts)[name], 1e-14)


@pytest.mark.parametrize("parts", [((0, 1), (2, 3)), ((2,), (0, 1, 3)), ((1,), (3,), (0,), (2,))])
@pytest.mark.parametrize("name", TERMS)
def test_parts_over_global_counts_add_up_to_the_whole(name, parts):
    """Micro-batches and processes: one sum over one count, however the batch is cut."""
    n = Step().counts
    whole, g_whole = gradients(Step(), name, n)
    g_sum = [torch.zeros_like(g) for g in g_whole]
    value_sum = 0
    for part in parts:
        x = Step(part)
        value, g_part = gradients(x, name, n)
        value_sum += value
        for total, g, field in zip(g_sum, g_part, Step.student, strict=True):
            total[x.places[field]] += g
    assert_near(name, value_sum, whole, 1e-12)
    for total, g, field in zip(g_sum, g_whole, Step.student, strict=True):
        assert_near(f"{name}: d {field}", total, g, 1e-12)


def test_means_of_means_are_something_else():
    """Why counts are passed: sequences of 3 and 1 tokens do not weigh the same."""
    a, b = Step((0, 1)), Step((2, 3))
    mean = (terms(a, a.counts)["1"] + terms(b, b.counts)["1"]) / 2
    assert abs(mean - terms(Step(), NONE)["1"]) > 1e-3


@pytest.mark.parametrize("name", TERMS)
def test_the_order_of_sequences_does_not_matter(name):
    assert_near(name, terms(Step((2, 0, 3, 1)), NONE)[name], terms(Step(), NONE)[name], 1e-13)


@pytest.mark.parametrize("name", TERMS)
def test_shifted_logits_change_nothing(name):
    assert_near(name, terms(Step(shift=3.5), NONE)[name], terms(Step(), NONE)[name], 1e-12)


@pytest.mark.parametrize("name", DISTANCES)
def test_a_student_equal_to_its_teacher_is_at_no_distance(name):
    assert abs(terms(Step(like_teacher=True), NONE)[name].item()) < 1e-14
    assert terms(Step(), NONE)[name].item() > 0.01


def test_equation_8_at_its_least_is_the_teacher_s_entropy():
    value, g = gradients(Step(like_teacher=True), "8", NONE)
    p = Step().every_t.softmax(-1)
    near(value, -(p * p.log()).sum(-1).mean().item())
    assert all(x.abs().max() < 1e-15 for x in g)
    assert terms(Step(), NONE)["8"] > value


@pytest.mark.parametrize("name", TERMS)
def test_nothing_to_count_is_a_loss_of_zero(name):
    """A micro-batch with no predicted token, or no token: 0, and gradients are 0, not absent."""
    x = Step(())
    value, g = gradients(x, name, x.counts)
    assert value.item() == 0 and value.requires_grad
    assert all(y.shape == getattr(x, f).shape for f, y in zip(Step.student, g, strict=True))
    if name == "1":
        logits = torch.randn(2, 7, requires_grad=True)
        ignored = losses.mlm(logits, torch.tensor([-100, -100]))
        assert ignored.item() == 0
        assert not torch.autograd.grad(ignored, logits)[0].any()


@pytest.mark.parametrize("name", TERMS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_narrow_inputs_are_summed_in_float32(name, dtype):
    narrow, wide = Step(dtype=dtype), Step(dtype=dtype)
    for field, x in vars(wide).items():
        if isinstance(x, torch.Tensor) and x.is_floating_point():
            setattr(wide, field, x.float())
    if name in ("6", "7", "9"):  # the projection is the caller's, in the caller's precision
        for x in (narrow, wide):
            x.W, x.e_s = torch.eye(5, dtype=x.W.dtype), x.h_s
    got = terms(narrow, NONE)[name]
    assert got.dtype == torch.float32
    assert torch.equal(got, terms(wide, NONE)[name])


@pytest.mark.parametrize("name", TERMS)
def test_autocast_around_a_loss_changes_nothing(name):
    x = Step(dtype=torch.float32)
    x.W, x.e_s = torch.eye(5), x.h_s
    plain = terms(x, NONE)[name]
    x.W = torch.eye(5)
    with torch.autocast("cpu", torch.bfloat16):
        if name in ("6", "7", "9"):  # a projection is cast, which rounds its result
            assert_near(name, terms(x, NONE)[name], plain, 1e-2)
        else:
            assert torch.equal(terms(x, NONE)[name], plain)


def test_a_count_that_lies_on_the_device():
    x = Step()
    got = losses.align(x.h_s, x.h_t, N=torch.tensor(20))
    near(got, losses.align(x.h_s, x.h_t, N=20).item())


# ---- as released: the authors' loss functions on the padded form, where all lengths are equal

B, T, C, H, D, V = 2, 3, 6, 2, 3, 7


def rectangle():
    """States, logits, labels and maps of student and teacher: (B, T, ...) and (B, H, T, T)."""
    rng = torch.Generator().manual_seed(2)
    x = SimpleNamespace()
    for side in ("s", "t"):
        for name, shape in (("h", (B, T, C)), ("logits", (B, T, V)), ("q", (B, T, H, D)),
                            ("k", (B, T, H, D))):  # fmt: skip
            setattr(x, f"{name}_{side}", torch.randn(*shape, dtype=F64, generator=rng))
        q, k = getattr(x, f"q_{side}"), getattr(x, f"k_{side}")
        scores = torch.einsum("bihd,bjhd->bhij", q, k) / math.sqrt(D)
        setattr(x, f"scores_{side}", scores)
        setattr(x, f"a_{side}", scores.softmax(-1))
    x.labels = torch.full((B, T), -100)
    x.labels[0, 1], x.labels[1, 0], x.labels[1, 2] = 4, 0, 6
    return x


def row_losses(x, divergence):
    """rows (N, H) as the student's layer hands them out."""
    q_s, k_s, q_t, k_t = (y.flatten(0, 1) for y in (x.q_s, x.k_s, x.q_t, x.k_t))
    cu_seqlens = torch.tensor([0, T, 2 * T], dtype=torch.int32)
    return kernels.attention_kl(q_s, k_s, q_s, q_t, k_t, cu_seqlens, T, divergence=divergence)[1]


def predicted(x):
    is_predicted = x.labels != -100
    return x.logits_s[is_predicted], x.logits_t[is_predicted], x.labels[is_predicted]


def test_released_distil():
    """D: CrossEntropyLoss, KLDivLoss("batchmean") at T = 2 times T^2, CosineEmbeddingLoss."""
    x = rectangle()
    logits_s, logits_t, labels = predicted(x)
    flat_s, flat_t = x.h_s.flatten(0, 1), x.h_t.flatten(0, 1)
    mlm = nn.CrossEntropyLoss()(x.logits_s.flatten(0, 1), x.labels.flatten())
    soft = 4 * nn.KLDivLoss(reduction="batchmean")(
        (logits_s / 2).log_softmax(-1), (logits_t / 2).softmax(-1)
    )
    cosine = nn.CosineEmbeddingLoss()(flat_s, flat_t, torch.ones(B * T))
    got = (
        losses.mlm(logits_s, labels),
        losses.soft_mlm(logits_s, logits_t, temperature=2.0),
        losses.align(flat_s, flat_t),
    )
    for a, b in zip(got, (mlm, soft, cosine), strict=True):
        assert_near("term", a, b, 1e-10)
    assert_near("Eq. 4", losses.distil(*got), 2 * mlm + 5 * soft + cosine, 1e-10)


def test_released_tiny():
    """T: MSELoss on maps and on projected hidden states, CrossEntropyLoss with soft targets."""
    x = rectangle()
    logits_s, logits_t, _ = predicted(x)
    W_h = nn.Linear(C, C).double()
    attention = nn.MSELoss()(x.a_s, x.a_t)
    hidden = nn.MSELoss()(W_h(x.h_s), x.h_t)
    output = nn.CrossEntropyLoss()(logits_s, logits_t.softmax(-1))
    flat_s, flat_t = x.h_s.flatten(0, 1), x.h_t.flatten(0, 1)
    rows = row_losses(x, DIVERGENCE["tiny", "released"])
    layer = losses.tiny_layer(flat_s, flat_t, W_h, rows, n_pairs=B * T * T)
    assert_near("Eq. 6", layer, attention + hidden, 1e-12)
    assert_near("Eq. 7", losses.embed(flat_s, flat_t, W_h), hidden, 1e-12)
    assert_near("Eq. 8", losses.output(logits_s, logits_t), output, 1e-12)


@pytest.mark.filterwarnings("ignore:reduction. 'mean' divides")  # just what is wanted here
def test_released_compact():
    """C: KLDivLoss("mean") on maps, which divides by keys too, and CosineEmbeddingLoss."""
    x = rectangle()
    flat_s, flat_t = x.h_s.flatten(0, 1), x.h_t.flatten(0, 1)
    attention = nn.KLDivLoss(reduction="mean")(x.a_s.log(), x.a_t)
    cosine = nn.CosineEmbeddingLoss()(flat_s, flat_t, torch.ones(B * T))
    rows = row_losses(x, DIVERGENCE["compact", "released"])
    layer = losses.compact_layer(flat_s, flat_t, rows, T=own_lengths((T, T)), fidelity="released")
    assert_near("Eq. 10", layer, attention + cosine, 1e-10)


def test_released_mobile():
    """MG, with its slip mended: one layer's teacher state in the last two terms."""
    x = rectangle()
    hidden = F.mse_loss(F.layer_norm(x.h_s, (C,), eps=1e-12), F.layer_norm(x.h_t, (C,), eps=1e-12))
    mean = ((x.h_s.mean(-1) - x.h_t.mean(-1)) ** 2).mean()
    variance = (x.h_s.var(-1, unbiased=False) - x.h_t.var(-1, unbiased=False)).abs().mean()
    cross_entropy = -(x.a_t * x.scores_s.log_softmax(-1)).sum(-1).mean()
    entropy = -(x.a_t * x.a_t.log()).sum(-1).mean()  # the teacher's, no matter to the student
    expected = 100 * hidden + (cross_entropy - entropy) + 5000 * mean + 5 * variance
    rows = row_losses(x, DIVERGENCE["mobile", "released"])
    flat_s, flat_t = x.h_s.flatten(0, 1), x.h_t.flatten(0, 1)
    layer = losses.mobile_layer(flat_s, flat_t, rows, fidelity="released")
    assert_near("Eq. 12", layer, expected, 1e-12)


def test_paper_forms_of_the_same_maps():
    """Eq. 10 and 12 as printed: KL(a_s || a_t), summed over keys, a mean over heads and tokens."""
    x = rectangle()
    flat_s, flat_t = x.h_s.flatten(0, 1), x.h_t.flatten(0, 1)
    kl = (x.a_s * (x.a_s / x.a_t).log()).sum(-1).mean()
    for method in ("compact", "mobile"):
        rows = row_losses(x, DIVERGENCE[method, "paper"])
        layer = getattr(losses, f"{method}_layer")(flat_s, flat_t, rows)
        first = {"compact": losses.align(flat_s, flat_t), "mobile": F.mse_loss(flat_s, flat_t)}
        assert_near(method, layer, first[method] + kl, 1e-12)


# ---- what is refused


X = Step()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: losses.soft_mlm(X.logits_s, X.logits_t[:, :5]), r"soft_mlm: .*6, 7.*6, 5"),
        (lambda: losses.output(X.logits_s[:1], X.logits_t), r"output: .*\(1, 7\).*\(6, 7\)"),
        (lambda: losses.align(X.h_s[:1], X.h_t), r"align: .*\(1, 5\), expected \(10, 5\)"),
        (lambda: losses.embed(X.e_s, X.e_t, None), r"embed: .*\(10, 3\), expected \(10, 5\)"),
        (lambda: losses.tiny_layer(X.e_s, X.e_t, None, X.rows, n_pairs=1), "tiny_layer: .*10, 3"),
        (lambda: losses.tiny_layer(X.h_s, X.h_t, None, X.rows[:4], n_pairs=1),
         r"tiny_layer: rows is \(4, 2\), expected \(10, H\)"),
        (lambda: losses.compact_layer(X.h_s, X.h_t[:, :1], X.rows), "compact_layer: .*10, 1"),
        (lambda: losses.compact_layer(X.h_s, X.h_t, X.rows.mean(1)), r"rows is \(10,\), expected"),
        (lambda: losses.compact_layer(X.h_s, X.h_t, X.rows, fidelity="released"),
         r"T is None, expected \(10,\)"),
        (lambda: losses.compact_layer(X.h_s, X.h_t, X.rows, T=X.rows[:9, 0], fidelity="released"),
         r"T is \(9,\), expected \(10,\)"),
        (lambda: losses.compact_layer(X.h_s, X.h_t, X.rows, fidelity="Paper"),
         "compact_layer: fidelity is 'Paper', expected paper or released"),
        (lambda: losses.mobile_layer(X.h_s, X.h_t, X.rows, fidelity="code"), "fidelity is 'code'"),
        (lambda: losses.mobile_layer(X.h_s, X.h_t[:1], X.rows), "mobile_layer: .*1, 5"),
        (lambda: losses.mobile_layer(X.h_s, X.h_t, X.rows[1:]), r"mobile_layer: rows is \(9, 2\)"),
        (lambda: losses.distil(*[tensor(1)] * 3, alpha=(1, 2)), "distil: alpha has 2.*expected 3"),
        (lambda: losses.compact(tensor(1), tensor(1), [], alpha=(1,)), "compact: alpha has 1"),
        (lambda: losses.tiny(tensor(1), [tensor(1)], tensor(1), lambdas=(1, 1)),
         r"tiny: lambdas has 2 weights, expected 3 \(embeddings, layer 1, output\)"),
        (lambda: losses.mobile(tensor(1), []), "mobile: l_layers is empty"),
    ],
)  # fmt: skip
def test_what_does_not_fit(call, message):
    with pytest.raises(ValueError, match=message):
        call()


# ---- the tables


def test_the_table_of_equations_is_complete_and_in_order():
    assert [e.number for e in EQUATIONS] == list(range(1, 14))
    equations = {
        name: f
        for name, f in inspect.getmembers(losses, inspect.isfunction)
        if f.__module__ == losses.__name__ and (f.__doc__ or "").startswith("Eq. ")
    }
    assert {e.function.__name__: e.function for e in EQUATIONS} == equations
    lines = [inspect.getsourcelines(e.function)[1] for e in EQUATIONS]
    assert lines == sorted(lines), "the functions stand in the paper's order"
    for e in EQUATIONS:
        assert e.function.__doc__.startswith(f"Eq. {e.number}"), e.function
        assert e.terms and all(what and denominator for what, denominator in e.terms)
        assert e.section.startswith("4.")


def test_what_differs_is_named_where_there_is_a_choice():
    for e in EQUATIONS:
        if "fidelity" in inspect.signature(e.function).parameters:
            assert "code" in e.differs
            assert "Paper/code" in e.function.__doc__


def test_the_printed_table():
    table = losses.denominators().splitlines()
    assert len(table) == 1 + sum(len(e.terms) for e in EQUATIONS)
    for e in EQUATIONS:
        (line,) = [x for x in table if x.split()[:2] == [str(e.number), e.function.__name__]]
        assert e.terms[0][1] in line and e.differs in line
    column = table[0].index("divided by")
    assert all(line[column - 1] == " " and line[column] != " " for line in table)


def test_readme_links_every_equation():
    readme = (ROOT / "README.md").read_text("utf-8")
    for e in EQUATIONS:
        assert f"| {e.number} | {e.section} |" in readme, e.number
        assert f"`losses.{e.function.__name__}`" in readme, e.function.__name__


def test_each_form_has_its_divergence():
    methods, forms = ("tiny", "compact", "mobile"), ("paper", "released")
    assert set(DIVERGENCE) == {(m, f) for m in methods for f in forms}
    assert set(DIVERGENCE.values()) <= set(reference.DIVERGENCES)
    # F29, F32c: the paper prints KL(s || t), the code has KL(t || s)
    assert [DIVERGENCE[m, "paper"] for m in methods] == ["mse_maps", "kl_st", "kl_st"]
    assert [DIVERGENCE[m, "released"] for m in methods] == ["mse_maps", "kl_ts", "kl_ts"]


def test_mobilebert_s_own_factors():
    assert MOBILE_FACTORS == {"hidden": 100, "attention": 1, "mean": 5000, "variance": 5}  # F32c


def test_the_cosine_has_the_gradient_of_its_formula():
    """Of both sides, of a vector of zeros and of one below the least length; and PyTorch's."""
    h = torch.randn(2, 5, 7, dtype=torch.float64)
    h[0, 1], h[1, 2], h[0, 3], h[1, 4] = 0, 0, h[0, 3] * 1e-10, h[0, 4]
    h_s, h_t = (x.clone().requires_grad_() for x in h)
    g = torch.randn(5, dtype=torch.float64)

    def formula(h_s, h_t):
        lengths = [torch.linalg.vector_norm(x, dim=-1).clamp(min=1e-8) for x in (h_s, h_t)]
        return (h_s * h_t).sum(-1) / lengths[0] / lengths[1]

    results = []
    for phi in (losses.Cosine.apply(h_s, h_t), formula(h_s, h_t)):
        results.append((phi, *torch.autograd.grad(phi, (h_s, h_t), g)))
    for name, x, y in zip(("phi", "dh_s", "dh_t"), *results, strict=True):
        assert_near(name, x, y, 1e-12)
    own = [x[[0, 4]].detach().requires_grad_() for x in (h_s, h_t)]
    assert torch.autograd.gradcheck(losses.Cosine.apply, own)
    for a, b in zip(
        torch.autograd.grad(losses.Cosine.apply(*own).sum(), own),
        torch.autograd.grad(F.cosine_similarity(*own).sum(), own),
        strict=True,
    ):
        assert_near("PyTorch's", a, b, 1e-12)
    phi = losses.Cosine.apply(h_s, h_t.detach())  # a teacher has no gradient
    assert torch.equal(torch.autograd.grad(phi, h_s, g)[0], results[0][1])
