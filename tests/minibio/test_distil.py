"""Objectives: every term of Eq. 4, 9, 11 and 13 equals the equation composed by hand."""

import dataclasses

import pytest
import torch

import kernels
from helpers import assert_near
from kernels import reference
from minibio import losses
from minibio.attention import use_kernels
from minibio.batch import Batch, Counts
from minibio.config import METHODS, ModelConfig
from minibio.distil import OBJECTIVES, teach
from minibio.errors import InputError
from minibio.heads import Model

TEACHER = ModelConfig(V=31, L=4, C=24, H=2, F=32, P=16, dropout=0.0, attention_dropout=0.0)
SAME = dataclasses.replace(TEACHER, L=2)
NARROW = dataclasses.replace(SAME, C=12)
STUDENTS = {"mlm": NARROW, "distil": SAME, "tiny": NARROW, "compact": SAME, "mobile": TEACHER}


def batch(*lengths):
    rows = [torch.randint(1, 31, (T,)).tolist() for T in lengths]
    n = sum(lengths)
    return Batch.from_sequences(rows, predict=[1, n - 2], labels=[5, 6])


def build(method, **changes):
    teacher = Model(TEACHER).double().eval().requires_grad_(False)
    student = Model(STUDENTS[method]).double()
    for p in (*teacher.parameters(), *student.parameters()):
        torch.nn.init.normal_(p, std=0.3)
    run = dataclasses.replace(METHODS[method], **changes)
    objective = OBJECTIVES[method](student, None if method == "mlm" else teacher, run).double()
    return objective, None if method == "mlm" else teacher


def loss(objective, teacher, *batches):
    """The step's loss over its micro-batches, and the gradients it leaves."""
    counts, total = Counts.of(batches), 0
    objective.zero_grad()
    for b in batches:
        taught = None if teacher is None else teach(teacher, b, objective)
        part = objective(b, taught, counts)["loss"]
        part.backward()
        total += part.item()
    return total, {name: p.grad.clone() for name, p in objective.named_parameters()}


@pytest.mark.parametrize("fidelity", ["paper", "released"])
@pytest.mark.parametrize("method", OBJECTIVES)
def test_a_step_does_not_depend_on_how_it_is_cut(method, fidelity):
    objective, teacher = build(method, fidelity=fidelity)
    a, b = batch(5, 3), batch(7)
    whole = Batch.from_sequences(
        [r.tolist() for x in (a, b) for r in x.tokens.split(x.lengths)],
        predict=torch.cat([a.predict, b.predict + a.N]),
        labels=torch.cat([a.labels, b.labels]),
    )
    one, grads_one = loss(objective, teacher, whole)
    two, grads_two = loss(objective, teacher, a, b)
    assert one == pytest.approx(two, rel=1e-12)
    for name, g in grads_one.items():
        torch.testing.assert_close(g, grads_two[name], rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("method", ["distil", "tiny", "compact", "mobile"])
def test_every_parameter_is_trained_and_the_teacher_never(method):
    objective, teacher = build(method)
    _, grads = loss(objective, teacher, batch(5, 3))
    assert all(g.abs().sum() > 0 for g in grads.values()), [
        name for name, g in grads.items() if g.abs().sum() == 0
    ]
    assert all(p.grad is None for p in teacher.parameters())


@pytest.mark.parametrize("method", ["distil", "compact", "mobile"])
def test_a_student_equal_to_its_teacher_has_nothing_to_learn_from_it(method):
    objective, teacher = build(method, layer_map=())
    objective.student.load_state_dict(
        teacher.state_dict() if method == "mobile" else objective.student.state_dict()
    )
    if method != "mobile":  # the same depth, so that the student can be the teacher
        objective, teacher = build("mobile")
        run = dataclasses.replace(METHODS[method], layer_map=())
        objective = OBJECTIVES[method](objective.student, teacher, run).double()
        objective.student.load_state_dict(teacher.state_dict())
    b = batch(5, 3)
    terms = objective(b, teach(teacher, b, objective), Counts.of([b]))
    for name in set(terms) - {"mlm", "loss"}:
        assert abs(terms[name].item()) < 1e-12, name


def test_tiny_equals_equation_9_composed_by_hand():
    objective, teacher = build("tiny")
    b = batch(5, 3)
    terms = objective(b, teach(teacher, b, objective), Counts.of([b]))
    s = objective.student(b.without_targets(), keep=(1, 2), hidden=(0, 1, 2))
    t = teacher(b.without_targets(), keep=(2, 4), hidden=(0, 2, 4))
    embed = ((s.hidden_states[0] @ objective.W_e.weight.T - t.hidden_states[0]) ** 2).mean()
    layers = 0
    for l, g_l in ((1, 2), (2, 4)):
        hidden = s.hidden_states[l] @ objective.W_h.weight.T - t.hidden_states[g_l]
        layers += (hidden**2).mean()
        squares = 0
        for part in (slice(0, 5), slice(5, 8)):
            a_s, a_t = (
                reference.attention_rows(a.q[part], a.k[part]) for a in (s.kept[l], t.kept[g_l])
            )
            squares += ((a_s - a_t) ** 2).sum()
        layers += squares / (2 * (25 + 9))  # H sum_b T_b^2
    output = -(t.logits.softmax(1) * s.logits.log_softmax(1)).sum(1).mean()  # all N tokens
    for name, expected in {"embed": embed, "layers": layers, "output": output}.items():
        torch.testing.assert_close(terms[name], expected, msg=lambda m, n=name: f"{n}: {m}")
    torch.testing.assert_close(terms["loss"], embed + layers + output)


@pytest.mark.parametrize("impl", ["reference", "torch"])
@pytest.mark.parametrize("fidelity", ["paper", "released"])
@pytest.mark.parametrize("method", OBJECTIVES)
def test_losses_without_logits_equal_the_equations_on_them(method, fidelity, impl):
    """Eq. 1, 2 and 8 in one pass over the decoder, against `losses` on all logits: value, gradient.

    A count that is no number of rows: what several processes divide by.
    """
    objective, teacher = build(method, fidelity=fidelity)
    use_kernels(objective, impl)
    b, counts = batch(5, 3), Counts(13.0, 2.5, 99.0, 2.0)
    taught = None if teacher is None else teach(teacher, b, objective)
    terms = objective(b, taught, counts)
    got = torch.autograd.grad(terms["loss"], objective.student.parameters())
    row = b.without_targets() if objective.every_token else b
    x_s = objective.student(row).logits
    x_t = None if teacher is None else teacher(row).logits
    T, alpha = objective.temperature, objective.run.alpha
    expected = {"mlm": losses.mlm(x_s, b.labels, M=2.5)} if method != "tiny" else {}
    if method in ("distil", "compact"):
        expected["soft"] = losses.soft_mlm(x_s, x_t, temperature=T, M=2.5)
    if method == "tiny":
        N = 13.0 if objective.every_token else 2.5
        expected["output"] = losses.output(x_s, x_t, temperature=T, N=N)
    for name, value in expected.items():
        torch.testing.assert_close(terms[name], value)
    weights = {
        "mlm": (1.0,), "tiny": (1.0,), "mobile": alpha, "distil": alpha[:2], "compact": alpha[:2]
    }[method]  # fmt: skip
    rest = terms["loss"] - sum(
        w * x.detach() for w, x in zip(weights, expected.values(), strict=True)
    )
    total = sum(w * x for w, x in zip(weights, expected.values(), strict=True))
    # what the other terms ask for is the same on both sides, so the difference tells
    others = [
        x - y for x, y in zip(got, torch.autograd.grad(total, objective.student.parameters(),
                                                       allow_unused=True, materialize_grads=True),
                              strict=True)
    ]  # fmt: skip
    if method == "mlm":
        assert abs(rest.item()) < 1e-12 and all(x.abs().max() < 1e-12 for x in others)
    decoder_bias = [n for n, _ in objective.student.named_parameters()].index("head.bias")
    assert others[decoder_bias].abs().max() < 1e-12  # nothing else reaches the decoder's bias


@pytest.mark.parametrize("weights", [(0.0, 5.0, 1.0), (2.0, 0.0, 1.0), (0.0, 0.0, 1.0)])
def test_a_weight_of_nought_leaves_its_term_out(weights):
    objective, teacher = build("distil", alpha=weights)
    b = batch(5, 3)
    terms = objective(b, teach(teacher, b, objective), Counts.of([b]))
    assert (terms["mlm"] == 0) == (weights[0] == 0) and (terms["soft"] == 0) == (weights[1] == 0)
    composed = sum(
        w * terms[name] for w, name in zip(weights, ("mlm", "soft", "align"), strict=True)
    )
    torch.testing.assert_close(terms["loss"], composed)


@pytest.mark.parametrize("method", ["tiny", "compact", "mobile"])
def test_one_attention_call_for_each_layer(method, monkeypatch):
    """Row losses come from the very calls that compute the layers' outputs."""
    objective, teacher = build(method)
    calls = []

    def counted(name, function):
        def call(*args, **options):
            calls.append(name)
            return function(*args, **options)

        monkeypatch.setattr(kernels, name, call)

    counted("attention", kernels.attention)
    counted("attention_kl", kernels.attention_kl)
    b = batch(5, 3)
    taught = teach(teacher, b, objective)
    assert calls == ["attention"] * TEACHER.L
    assert set(taught.kept) == set(objective.g)  # the mapped layers alone
    calls.clear()
    objective(b, taught, Counts.of([b]))
    assert calls == ["attention_kl"] * objective.student.config.L
    # and the rows alone need no hidden state
    alone = objective.student(b, match=objective.matches(taught))
    assert not alone.hidden_states and len(alone.row_losses) == objective.student.config.L


@pytest.mark.parametrize("method", ["tiny", "compact", "mobile"])
@pytest.mark.parametrize("impl", ["torch", "triton"])
def test_float32_gradients_equal_the_composed_equation(method, impl):
    if impl == "triton":
        pytest.importorskip("triton")
    objective, teacher = build(method)
    b = batch(9, 3)
    use_kernels(objective, "reference"), use_kernels(teacher, "reference")
    _, truth = loss(objective, teacher, b)
    objective, teacher = objective.float(), teacher.float()
    use_kernels(objective, impl), use_kernels(teacher, impl)
    _, got = loss(objective, teacher, b)
    flat, flat_64 = (torch.cat([x.flatten().double() for x in g.values()]) for g in (got, truth))
    assert_near("gradient", flat, flat_64, 1e-5)
    assert (flat - flat_64).norm() <= 1e-5 * flat_64.norm()


def test_one_shared_projection_with_bias_as_released():
    objective, _ = build("tiny", fidelity="released")
    assert objective.W_e is objective.W_h and objective.W_h.bias is not None
    assert not objective.every_token
    objective, _ = build("tiny")
    assert objective.W_e is not objective.W_h and objective.W_h.bias is None


def test_temperature_of_the_released_distil_is_two():
    assert build("distil", fidelity="released")[0].temperature == 2.0
    assert build("distil")[0].temperature == 1.0
    assert build("distil", temperature=3.0)[0].temperature == 3.0


@pytest.mark.parametrize(
    ("method", "changes", "message"),
    [
        ("tiny", {"H": 3}, "3 heads, expected 2"),
        ("tiny", {"V": 30}, "31 word pieces, expected 30"),
        ("tiny", {"L": 3}, "--layer-map"),
        ("distil", {"C": 12}, "12 wide, expected 24"),
        ("compact", {"C": 12}, "12 wide, expected 24"),
    ],
)
def test_teachers_that_do_not_fit(method, changes, message):
    student = Model(dataclasses.replace(STUDENTS[method], **changes))
    with pytest.raises(InputError, match=message):
        OBJECTIVES[method](student, Model(TEACHER), METHODS[method])


@pytest.mark.parametrize(("method", "alpha"), [("distil", (1.0, 2.0)), ("tiny", (1.0,))])
def test_a_wrong_number_of_weights(method, alpha):
    with pytest.raises(InputError, match=f"--alpha has {len(alpha)} weights, expected"):
        build(method, alpha=alpha)


def test_a_layer_map_of_the_wrong_length_or_range():
    for g in ((4,), (2, 5), (0, 4)):
        with pytest.raises(InputError, match=r"expected 2 layers .* of 1\.\.4"):
            build("tiny", layer_map=g)


def test_equations_come_from_losses():
    """The table of equations and the objectives speak of the same functions."""
    used = {name for row in losses.EQUATIONS for name in [row.function]}
    assert {"mlm", "distil", "tiny", "compact", "mobile"} <= {
        getattr(f, "__name__", f) for f in used
    }
