"""What holds for every implementation of the masked-LM losses, on small chunks and blocks."""

import pytest
import torch
from mlm_cases import (
    B16,
    F16,
    F32,
    F64,
    SHAPES,
    SMALL,
    assert_as_truth,
    assert_rows_as_truth,
    case_of,
    compute,
    cut_small,
    doubled,
    gradients,
    rows_of,
)

import kernels
from helpers import DEVICE, LIMIT, assert_near
from kernels import mlm_ops

pytestmark = pytest.mark.usefixtures("banded_empty", "small_blocks")
IMPLS = ("torch", "triton", "triton-stream")
impls = pytest.mark.parametrize("impl", IMPLS)
shapes = pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
TWO_BLOCKS = SHAPES["M9-V21-d3+10"]
ODD = SHAPES["M11-V37-d13"]


@pytest.fixture
def small_blocks(monkeypatch):
    cut_small(monkeypatch)


# ---- values and gradients


@impls
@shapes
def test_float64_equals_the_definition(shape, impl):
    case = case_of(shape)
    assert_as_truth(impl, case, LIMIT[F64], weights=(0.7, 1.3), temperature=2.0)


@impls
@pytest.mark.parametrize(
    ("T", "losses", "divergence", "is_by_row"),
    [
        (1.0, "both", "kl_ts", True),
        (1.5, "both", "soft_ce", True),
        (1.5, "both", "kl_ts", False),
        (1.0, "kd", "soft_ce", False),
        (2.0, "kd", "kl_ts", True),
        (2.0, "ce", "kl_ts", False),
    ],
)
def test_every_loss_at_every_temperature(T, losses, divergence, is_by_row, impl):
    case = case_of(TWO_BLOCKS, losses=losses, has_bias=T != 1.5)
    compare = assert_rows_as_truth if is_by_row else assert_as_truth
    compare(impl, case, LIMIT[F64], temperature=T, divergence=divergence)


@impls
@pytest.mark.parametrize("dtypes", [(F32, F32), (F16, F16), (B16, B16), (F32, B16), (B16, F32)],
                         ids=lambda x: "-".join(str(t)[6:] for t in x))  # fmt: skip
def test_narrow_types_equal_the_definition(dtypes, impl):
    case = case_of(ODD, *dtypes)
    # `triton` has its logits rounded to the inputs' type, as a linear layer would
    rounded = max(LIMIT[x] for x in dtypes) if impl == "triton" else LIMIT[F32]
    options = {"temperature": 2.0}
    assert_as_truth(impl, case, max(LIMIT[x] for x in dtypes), rounded, **options)


@impls
@pytest.mark.parametrize("dtype", [F32, F16, B16], ids=str)
def test_three_ways_no_less_accurate_than_plain_pytorch(dtype, impl):
    """The truth in float64, plain PyTorch in the type at hand, the implementation: rows of each."""
    case = case_of(ODD, dtype)
    g = torch.ones(2, len(case.h_s), device=DEVICE)
    truth = rows_of("reference", doubled(case), *g)[:2]
    ours = rows_of(impl, case, *g)[:2]
    x_s, x_t = (
        h.detach() @ E[0].detach().T + b.detach()
        for h, E, b in ((case.h_s, case.E_s, case.b_s), (case.h_t, case.E_t, case.b_t))
    )
    is_counted = case.labels != -100
    ce = torch.nn.functional.cross_entropy(x_s, case.labels, reduction="none").double()
    p_t = x_t.log_softmax(-1)
    kd = torch.nn.functional.kl_div(x_s.log_softmax(-1), p_t, reduction="none", log_target=True)
    plain = ce, kd.double().sum(-1) * is_counted
    for name, x, y, z in zip(("ce", "kd"), ours, plain, truth, strict=True):
        error, of_plain = ((w - z).abs().max() / z.abs().max() for w in (x.double(), y))
        assert error <= 1.2 * of_plain + 4 * torch.finfo(F32).eps, f"{name}: {error}, {of_plain}"


GRADCHECKED = set()
GRADCHECKS = [
    (impl, T, divergence)
    for impl in IMPLS
    for T, divergence in ((1.0, "kl_ts"), (2.0, "soft_ce"))
    if T != 1 or impl != "triton-stream"  # which takes its time
]


@pytest.mark.parametrize(("impl", "T", "divergence"), GRADCHECKS)
def test_gradcheck(impl, T, divergence, monkeypatch):
    """Numerical derivatives in float64, across the edges of chunks and blocks."""
    cut_small(monkeypatch, 2)
    n = 17 if DEVICE == "cuda" else 3
    case = case_of((n, 2 * n - 1, (1, 2), (2,)))
    is_fast = impl != "torch"  # along random directions: the interpreter takes its time
    options = {"temperature": T, "divergence": divergence, "weights": (0.7, 1.3)}

    def function(h, E, X, b):
        return compute(impl, case._replace(h_s=h, E_s=[E, X], b_s=b), **options).loss

    assert torch.autograd.gradcheck(
        function, case.learning, fast_mode=is_fast, check_undefined_grad=not is_fast
    )
    GRADCHECKED.add((impl, T, divergence))


def test_every_gradcheck_ran(request):
    asked = [x for x in request.session.items if x.name.startswith("test_gradcheck[")]
    if len(asked) < len(GRADCHECKS):
        pytest.skip("a part of the tests was chosen")
    assert GRADCHECKED == set(GRADCHECKS)


@pytest.mark.parametrize("losses", ["both", "ce", "kd"])
@pytest.mark.parametrize("dtype", [F32, B16], ids=str)
def test_the_kernel_in_cuda_fits_into_the_loop(losses, dtype, cuda_on_cpu):
    """impl="cuda" on the emulator: its row step, several chunks of rows and their gradients."""
    case = case_of(ODD, dtype, losses=losses)
    assert_as_truth("cuda", case, LIMIT[dtype], max(LIMIT[dtype], LIMIT[F32]), temperature=2.0)


@impls
def test_equal_logits_cost_nothing_and_teach_nothing(impl):
    case = case_of(SMALL, losses="kd")
    same = [x.detach() for x in case.E_s]
    case = case._replace(h_t=case.h_s.detach(), E_t=same, b_t=case.b_s.detach())
    _, kd, *gradients = rows_of(
        impl, case, *torch.randn(2, 6, dtype=F64, device=DEVICE), temperature=2.0
    )
    assert kd.abs().max() < 1e-13
    for g in gradients:
        assert g.abs().max() < 1e-13


@pytest.mark.parametrize("impl", ["reference", *IMPLS, "cuda"])
@pytest.mark.parametrize("divergence", ["kl_ts", "soft_ce"])
@pytest.mark.parametrize("is_shared", [False, True], ids=["teacher", "both"])
def test_a_word_that_the_teacher_rules_out_adds_nothing(is_shared, divergence, impl, request):
    """By a bias of -inf: as if the word's p_t were 0 in a sum over the other words, by hand."""
    if impl == "cuda":
        request.getfixturevalue("cuda_on_cpu")
    case = case_of(SMALL, F32, losses="kd")
    out = torch.tensor([2, 5], device=DEVICE)
    with torch.no_grad():
        case.b_t[out] = -torch.inf
        if is_shared:
            case.b_s[out] = -torch.inf
    x_s, x_t = (
        (sum(y.double() @ E.double().T for y, E in kernels.Decoder(h, E, b).pairs()) + b) / 2
        for h, E, b in ((case.h_s, case.E_s, case.b_s), (case.h_t, case.E_t, case.b_t))
    )
    is_left = x_t[0] > -torch.inf
    p_t, log_p_s = x_t.softmax(-1)[:, is_left], x_s.log_softmax(-1)[:, is_left]
    target = p_t.log() if divergence == "kl_ts" else 0
    soft = 4 * (p_t * (target - log_p_s)).sum(-1).mean()
    dx = (2 * (x_s.softmax(-1) - x_t.softmax(-1)) / len(x_s)).detach()
    got = compute(impl, case, temperature=2.0, divergence=divergence)
    assert_near("soft", got.soft, soft, 1e-5)
    _, *_, db = gradients(got, case)
    assert_near("db", db, dx.sum(0), 1e-5)


@impls
def test_a_word_that_only_the_student_rules_out_costs_infinitely_much(impl):
    """And its gradient is finite: that of p_s - p_t."""
    case = case_of(SMALL, F32, losses="kd")
    with torch.no_grad():
        case.b_s[4] = -torch.inf
    got = compute(impl, case)
    assert got.soft == torch.inf
    assert all(g.isfinite().all() for g in gradients(got, case))


@impls
@pytest.mark.parametrize("of", ["h_s", "h_t"])
def test_a_number_that_is_none_is_not_hidden(of, impl):
    case = case_of(SMALL, F32, losses="kd")
    with torch.no_grad():
        getattr(case, of)[1, 0] = torch.nan
    assert compute(impl, case).soft.isnan()


@impls
@pytest.mark.parametrize("shift", [0.0, 1e4])
def test_large_logits_stay_finite(shift, impl):
    """Thousands apart, and all of them thousands from 0."""
    case = case_of(SMALL, F32)
    with torch.no_grad():
        case.h_s.mul_(100)
        case.h_t.mul_(-100)
        case.b_s.add_(shift)
    got = compute(impl, case)
    assert all(x.isfinite() for x in got)
    assert all(g.isfinite().all() for g in gradients(got, case))


@impls
def test_nothing_counted_costs_nothing(impl):
    case = case_of(SMALL)
    case.labels.fill_(-100)
    got = compute(impl, case)
    for x in (*got, *gradients(got, case)):
        assert not x.any() and not x.isnan().any()


@impls
def test_ignored_rows_do_not_matter(impl):
    """Whatever they hold, and their gradient is 0."""
    case = case_of(SMALL)
    is_ignored = case.labels == -100
    assert is_ignored.any()
    expected = compute(impl, case)
    other = doubled(case)
    with torch.no_grad():
        other.h_s[is_ignored] = 77.0
        other.h_t[is_ignored] = -55.0
    got = compute(impl, other)
    for x, y in zip(got, expected, strict=True):
        assert_near("loss", x, y, 1e-12)
    dh, *others = gradients(got, other)
    _, *truth = gradients(expected, case)
    assert not dh[is_ignored].any() and dh[~is_ignored].any(1).all()
    for x, y in zip(others, truth, strict=True):
        assert_near("gradient", x, y, 1e-12)


# ---- memory of any shape


@impls
def test_any_strides_will_do(impl):
    case = case_of(TWO_BLOCKS, losses="both")
    expected = compute(impl, case)
    g = gradients(expected, case)
    turned = case._replace(
        h_s=case.h_s.detach().T.contiguous().T.requires_grad_(),
        E_s=[x.detach().T.contiguous().T.requires_grad_() for x in case.E_s],
        labels=torch.stack([case.labels, case.labels], 1)[:, 0],
        h_t=torch.cat([case.h_t, case.h_t], 1)[:, : case.h_t.shape[1]],
        E_t=[x.T.contiguous().T for x in case.E_t],
    )
    assert not turned.h_s.is_contiguous() and not turned.labels.is_contiguous()
    got = compute(impl, turned)
    for x, y in zip((*got, *gradients(got, turned)), (*expected, *g),
                    strict=True):  # fmt: skip
        assert_near("result", x, y, 1e-12)


@impls
def test_inputs_are_left_as_they_were(impl):
    case = case_of(SMALL, F32)
    every = [case.h_s, *case.E_s, case.b_s, case.labels, case.h_t, *case.E_t, case.b_t]
    before = [x.detach().clone() for x in every]
    compute(impl, case).loss.backward()
    assert all(torch.equal(x, y) for x, y in zip(every, before, strict=True))


@impls
def test_results_repeat_bit_for_bit(impl):
    case = case_of(ODD, F32)
    runs = []
    for _ in range(2):
        got = compute(impl, case)
        runs.append([*got, *gradients(got, case, 0.3)])
    assert all(torch.equal(x, y) for x, y in zip(*runs, strict=True))


# ---- gradients


@impls
@pytest.mark.parametrize("factor", [1.0, 1024.0])
def test_backward_twice_gives_the_same_twice(factor, impl):
    case = case_of(SMALL, F32)
    loss = factor * compute(impl, case).loss
    loss.backward(retain_graph=True)
    first = [x.grad.clone() for x in case.learning]
    loss.backward()
    for x, once in zip(case.learning, first, strict=True):
        assert torch.equal(x.grad, 2 * once)


@impls
def test_only_what_learns_has_a_gradient(impl):
    full = case_of(SMALL)._replace(E_s=[x.detach().requires_grad_() for x in case_of(SMALL).E_s])
    expected = gradients(compute(impl, full), full)
    h, E, X, b = full.learning
    for learning in ([h], [E, X], [b], [h, b], [X]):
        for x in full.learning:
            x.requires_grad_(any(x is y for y in learning)).grad = None
        compute(impl, full).loss.backward()
        for x, y in zip(full.learning, expected, strict=True):
            assert (x.grad is not None) == x.requires_grad
            if x.requires_grad:
                assert_near("gradient", x.grad, y, 1e-12)


@impls
def test_nothing_is_worked_out_that_nobody_wants(impl, monkeypatch):
    asked = []
    original = mlm_ops.compute

    def watched(*args):
        asked.append((args[-1], args[-3] is not None))
        return original(*args)

    monkeypatch.setattr(mlm_ops, "compute", watched)
    case = case_of(SMALL)
    with torch.no_grad():
        loss, *_ = compute(impl, case)
    assert not loss.requires_grad
    case.h_s.requires_grad_(False)
    compute(impl, case)
    assert [wants for wants, _ in asked] == [[False] * 3, [False, True, True]]


def test_without_learners_no_gradient_reaches_the_rows(monkeypatch):
    """The step for the rows is told so too, and skips its second walk."""
    from kernels import torch_mlm

    seen = []
    step = torch_mlm.logit_rows
    monkeypatch.setattr(torch_mlm, "logit_rows", step)
    monkeypatch.setattr(
        torch_mlm.chunked, "__kwdefaults__",
        {**torch_mlm.chunked.__kwdefaults__,
         "row_step": lambda *x, **o: seen.append(x[5:7]) or step(*x, **o)},
    )  # fmt: skip
    with torch.no_grad():
        compute("torch", case_of(SMALL))
    assert seen and all(g == (None, None) for g in seen)


@impls
def test_a_second_derivative_is_refused(impl):
    case = case_of(SMALL)
    with pytest.raises(ValueError, match="create_graph=True.*impl='reference' has both"):
        torch.autograd.grad(compute(impl, case).loss, case.learning, create_graph=True)
