"""Objectives: every term of Eq. 4, 9, 11 and 13 equals the equation composed by hand."""

import dataclasses

import pytest
import torch

import kernels
from helpers import assert_near, random_batch, tiny_config
from kernels import reference
from minibio.batch import Batch, Counts
from minibio.config import METHODS, STAGE_1, ModelConfig
from minibio.distil import losses
from minibio.distil.objectives import OBJECTIVES, phase_steps, teach
from minibio.model.attention import use_kernels
from minibio.model.heads import Model, freeze
from minibio.run.errors import InputError
from minibio.run.optim import make_optimizer

TEACHER = ModelConfig(V=31, L=4, C=24, H=2, F=32, P=16, dropout=0.0, attention_dropout=0.0)
SAME = dataclasses.replace(TEACHER, L=2)
NARROW = dataclasses.replace(SAME, C=12)
MOBILE = ModelConfig(
    family="mobilebert", V=31, L=4, C=24, H=2, F=16, P=16, C_embed=8, C_intra=12, n_ffn=2,
    norm="no_norm", activation="relu", shared_qk=True, trigram=True, dropout=0.0,
    attention_dropout=0.0,
)  # fmt: skip
IB_BERT = ModelConfig(
    family="ib-bert", V=31, L=4, C=24, H=2, F=32, P=16, C_embed=8, C_intra=32, trigram=True
)
STUDENTS = {"mlm": NARROW, "distil": SAME, "tiny": NARROW, "compact": SAME, "mobile": TEACHER}


def batch(*lengths):
    rows = [torch.randint(1, 31, (T,)).tolist() for T in lengths]
    n = sum(lengths)
    return Batch.from_sequences(rows, predict=[1, n - 2], labels=[5, 6])


def build(method, teacher=TEACHER, student=None, **changes):
    teacher = Model(teacher).double().eval().requires_grad_(False)
    student = Model(student or STUDENTS[method]).double()
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
        taught = None if teacher is None else teach(teacher, b, objective.needs)
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
    terms = objective(b, teach(teacher, b, objective.needs), Counts.of([b]))
    for name in set(terms) - {"mlm", "loss"}:
        assert abs(terms[name].item()) < 1e-12, name


# ---- by hand, from full maps and full logits


def maps(a, lengths):
    """The attention maps of each sequence: [(H, T, T)]."""
    pieces = zip(a.q.split(lengths), a.k.split(lengths), strict=True)
    return [reference.attention_scores(q, k).softmax(-1) for q, k in pieces]


def kl(p, q):
    """sum_k p ln(p / q): (H, T, T) twice -> (H, T)."""
    return (p * (p / q).log()).sum(-1)


def sides(objective, teacher, b, g):
    """Student's and teacher's whole outputs, with nothing left out and nothing cut short."""
    row = b.without_targets() if objective.needs.every_token else b
    student, n = objective.student, objective.student.config.L
    s = student(row, keep=range(1, n + 1), hidden=range(n + 1))
    t = teacher(row, keep=g, hidden=(0, *g))
    return s, t


def cosine(h_s, h_t):
    """Mean over tokens of 1 - phi."""
    return (1 - (h_s * h_t).sum(-1) / (h_s.norm(dim=-1) * h_t.norm(dim=-1))).mean()


def check(objective, teacher, b, expected, loss):
    """The terms and their sum, and that nothing else is among them."""
    terms = objective(b, teach(teacher, b, objective.needs), Counts.of([b]))
    assert set(terms) == {*expected, "loss"}
    for name, value in {**expected, "loss": loss}.items():
        torch.testing.assert_close(
            terms[name], value, rtol=1e-10, atol=1e-12, msg=lambda m, n=name: f"{n}: {m}"
        )


@pytest.mark.parametrize("fidelity", ["paper", "released"])
def test_distil_equals_equation_4_composed_by_hand(fidelity):
    objective, teacher = build("distil", fidelity=fidelity)
    b = batch(5, 3)
    s, t = sides(objective, teacher, b, (4,))
    T = 2.0 if fidelity == "released" else 1.0
    log_s, log_t = ((x.logits / T).log_softmax(-1) for x in (s, t))
    mlm = -s.logits.log_softmax(-1)[range(2), b.labels].mean()
    soft = T * T * (log_t.exp() * (log_t - log_s)).sum(-1).mean()
    align = cosine(s.last, t.last)
    check(objective, teacher, b, {"mlm": mlm, "soft": soft, "align": align},
          2 * mlm + 5 * soft + 1 * align)  # fmt: skip


@pytest.mark.parametrize("fidelity", ["paper", "released"])
def test_tiny_equals_equation_9_composed_by_hand(fidelity):
    objective, teacher = build("tiny", fidelity=fidelity)
    b = batch(5, 3)
    s, t = sides(objective, teacher, b, (2, 4))
    W_e, W_h = objective.W_e, objective.W_h
    embed = ((W_e(s.hidden_states[0]) - t.hidden_states[0]) ** 2).mean()
    layers = 0
    for l, g_l in ((1, 2), (2, 4)):
        layers += ((W_h(s.hidden_states[l]) - t.hidden_states[g_l]) ** 2).mean()
        pairs = zip(maps(s.kept[l], b.lengths), maps(t.kept[g_l], b.lengths), strict=True)
        squares = sum(((a_s - a_t) ** 2).sum() for a_s, a_t in pairs)
        layers += squares / (2 * (25 + 9))  # H sum_b T_b^2
    # all N tokens as printed, the M masked ones as released
    assert len(s.logits) == (8 if fidelity == "paper" else 2)
    output = -(t.logits.softmax(1) * s.logits.log_softmax(1)).sum(1).mean()
    check(objective, teacher, b, {"embed": embed, "layers": layers, "output": output},
          embed + layers + output)  # fmt: skip


@pytest.mark.parametrize("fidelity", ["paper", "released"])
def test_compact_equals_equation_11_composed_by_hand(fidelity):
    objective, teacher = build("compact", fidelity=fidelity)
    b = batch(5, 3)
    s, t = sides(objective, teacher, b, (2, 4))
    log_s, log_t = s.logits.log_softmax(-1), t.logits.log_softmax(-1)
    mlm = -log_s[range(2), b.labels].mean()
    soft = (log_t.exp() * (log_t - log_s)).sum(-1).mean()
    layers = 0
    for l, g_l in ((1, 2), (2, 4)):
        layers += cosine(s.hidden_states[l], t.hidden_states[g_l])
        for a_s, a_t in zip(maps(s.kept[l], b.lengths), maps(t.kept[g_l], b.lengths), strict=True):
            rows = kl(a_s, a_t) if fidelity == "paper" else kl(a_t, a_s) / a_s.shape[-1]
            layers += rows.sum() / (2 * 8)  # H N
    check(objective, teacher, b, {"mlm": mlm, "soft": soft, "layers": layers},
          1 * mlm + 5 * soft + 3 * layers)  # fmt: skip


def mobile_layer(s, t, l, g_l, b, fidelity):
    """Eq. 12 of one layer, by hand."""
    h_s, h_t = s.hidden_states[l], t.hidden_states[g_l]
    attention = 0
    for a_s, a_t in zip(maps(s.kept[l], b.lengths), maps(t.kept[g_l], b.lengths), strict=True):
        rows = kl(a_s, a_t) if fidelity == "paper" else kl(a_t, a_s)
        attention += rows.sum() / (2 * b.N)  # H N
    if fidelity == "paper":
        return ((h_s - h_t) ** 2).mean() + attention
    mean_s, mean_t = h_s.mean(-1, keepdim=True), h_t.mean(-1, keepdim=True)
    var_s, var_t = (h.var(-1, unbiased=False, keepdim=True) for h in (h_s, h_t))
    normed = (h_s - mean_s) / (var_s + 1e-12).sqrt() - (h_t - mean_t) / (var_t + 1e-12).sqrt()
    return (
        100 * (normed**2).mean() + attention
        + 5000 * ((mean_s - mean_t) ** 2).mean() + 5 * (var_s - var_t).abs().mean()
    )  # fmt: skip


@pytest.mark.parametrize("fidelity", ["paper", "released"])
@pytest.mark.parametrize("alpha", [0.5, 0.2])
def test_mobile_equals_equation_13_composed_by_hand(fidelity, alpha):
    objective, teacher = build("mobile", fidelity=fidelity, alpha=(alpha,))
    b = batch(5, 3)
    s, t = sides(objective, teacher, b, (1, 2, 3, 4))
    mlm = -s.logits.log_softmax(-1)[range(2), b.labels].mean()
    layers = sum(mobile_layer(s, t, l, l, b, fidelity) for l in (1, 2, 3, 4)) / 4
    check(objective, teacher, b, {"mlm": mlm, "layers": layers},
          alpha * mlm + (1 - alpha) * layers)  # fmt: skip


@pytest.mark.parametrize("fidelity", ["paper", "released"])
@pytest.mark.parametrize("g", [(), (2, 1, 4, 3)])
def test_the_two_stages_composed_by_hand(fidelity, g):
    objective, teacher = build(
        "mobile", fidelity=fidelity, stages=0.5, steps=16, layer_map=g, alpha=(0.3,)
    )
    g = g or (1, 2, 3, 4)
    b = batch(5, 3)
    s, t = sides(objective, teacher, b, g)
    for l in (1, 2, 3, 4):
        for step in (2 * l - 2, 2 * l - 1):  # two steps a phase
            objective.set_step(step)
            layer = mobile_layer(s, t, l, g[l - 1], b, fidelity)
            loss = layer if fidelity == "paper" else layer / 4
            check(objective, teacher, b, {"layers": layer}, loss)
    for step in (8, 15):
        objective.set_step(step)
        log_s = s.logits.log_softmax(-1)
        mlm = -log_s[range(2), b.labels].mean()
        soft = -(t.logits.softmax(-1) * log_s).sum(-1).mean()
        check(objective, teacher, b, {"mlm": mlm, "soft": soft}, 0.3 * mlm + 0.7 * soft)


# ---- MobileBERT's own stages


def staged(fidelity="paper", **changes):
    return build("mobile", **{"fidelity": fidelity, "stages": 0.5, "steps": 16, **changes})


def touched(objective, teacher, step):
    """The parameters that step `step` gives a gradient, by the part of the model they are in."""
    objective.set_step(step)
    b = batch(5, 3)
    objective.zero_grad(set_to_none=True)
    objective(b, teach(teacher, b, objective.needs), Counts.of([b]))["loss"].backward()
    parts, untouched = set(), set()
    for name, p in objective.student.named_parameters():
        words = name.split(".")
        part = int(words[2]) + 1 if words[1] == "layers" else words[0 if words[0] == "head" else 1]
        assert p.requires_grad  # an optimiser and a reducer made at any step know all of them
        (untouched if p.grad is None else parts).add(part)
    assert not parts & untouched  # all of a part or nothing
    return parts


@pytest.mark.parametrize("fidelity", ["paper", "released"])
def test_which_parameters_a_phase_touches(fidelity):
    """As in MobileBERT's paper the layer alone; as in its code those below it too."""
    objective, teacher = staged(fidelity, student=MOBILE, teacher=IB_BERT)
    for l in (1, 2, 3, 4):
        expected = {l} if fidelity == "paper" else set(range(1, l + 1))
        assert touched(objective, teacher, 2 * l - 1) == expected
    assert touched(objective, teacher, 8) == {1, 2, 3, 4, "embeddings", "head"}


def test_a_phase_leaves_every_other_parameter_as_it_was():
    """AdamW moves and decays what has a gradient alone, whatever it remembers."""
    objective, teacher = staged()
    optimizer = make_optimizer(objective, 1e-2, 0.1)
    b = batch(5, 3)

    def step(n):
        objective.set_step(n)
        before = {name: p.detach().clone() for name, p in objective.student.named_parameters()}
        objective(b, teach(teacher, b, objective.needs), Counts.of([b]))["loss"].backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        after = dict(objective.student.named_parameters())
        return {name for name, x in before.items() if not torch.equal(x, after[name])}

    step(15)  # stage 2: moments everywhere
    for l in (1, 2, 3, 4):
        assert {name.split(".")[2] for name in step(2 * l - 1)} == {str(l - 1)}


def test_phases_are_equally_long_and_a_function_of_the_step_alone():
    objective, _ = staged(steps=30, stages=0.5)  # 15 steps over 4 layers: 3 each

    def state(step):
        objective.set_step(step)
        return (
            objective.needs.keep,
            objective.needs.hidden,
            objective.needs.depth,
            objective.needs.head,
        )

    forwards = [state(step) for step in range(30)]
    assert [s[2] for s in forwards] == [1] * 3 + [2] * 3 + [3] * 3 + [4] * 3 + [None] * 18
    assert [s[3] for s in forwards] == [False] * 12 + [True] * 18
    assert [s[0] for s in forwards[:12:3]] == [s[1] for s in forwards[:12:3]]
    assert forwards[12][:2] == ((), ())
    order = torch.randperm(30).tolist()
    assert [state(step) for step in order] == [forwards[step] for step in order]
    assert state(0) == forwards[0]


def test_the_default_share_is_mobilebert_s_own():
    objective, _ = staged(stages=STAGE_1, steps=740_000)
    assert objective.phase_steps == 240_000 // 4
    assert phase_steps(dataclasses.replace(METHODS["mobile"], stages=STAGE_1, steps=740_000),
                       24) == 10_000  # fmt: skip


@pytest.mark.parametrize(("stages", "steps"), [(0.5, 6), (1, 100), (1.5, 100), (-0.5, 100)])
def test_shares_without_a_step_for_each_layer(stages, steps):
    with pytest.raises(InputError, match=rf"--stages is {stages} of {steps} steps.*4 layers"):
        staged(stages=stages, steps=steps)


def test_stage_2_with_the_true_labels_alone_does_not_run_the_teacher():
    objective, teacher = staged(alpha=(1.0,))
    objective.set_step(15)
    assert (objective.needs.depth, objective.needs.head) == (0, False)
    b = batch(5, 3)
    terms = objective(b, teach(teacher, b, objective.needs), Counts.of([b]))
    assert terms["soft"] == 0
    torch.testing.assert_close(terms["loss"], terms["mlm"])


def counted_calls(model):
    """[layers run, times the head was run], counted while it lives."""
    calls = {"layers": [], "head": 0}
    for l, layer in enumerate(model.encoder.layers, start=1):
        layer.register_forward_pre_hook(lambda *_, l=l: calls["layers"].append(l))
    if hasattr(model.head, "transform"):
        model.head.register_forward_pre_hook(lambda *_: calls.update(head=calls["head"] + 1))
    return calls


@pytest.mark.parametrize(
    ("method", "changes", "step", "teacher_runs", "student_runs"),
    [
        # (layers, head)
        ("distil", {}, 0, (4, 1), (2, 1)),
        ("distil", {"alpha": (2.0, 0.0, 1.0)}, 0, (4, 0), (2, 1)),
        ("tiny", {"layer_map": (1, 2)}, 0, (4, 1), (2, 1)),
        ("compact", {"layer_map": (1, 3)}, 0, (4, 1), (2, 1)),
        ("compact", {"layer_map": (1, 3), "alpha": (1.0, 0.0, 3.0)}, 0, (3, 0), (2, 1)),
        ("mobile", {}, 0, (4, 0), (4, 1)),
        ("mobile", {"layer_map": (1, 3, 2, 1)}, 0, (3, 0), (4, 1)),
        ("mobile", {"stages": 0.5, "steps": 8}, 0, (1, 0), (1, 0)),
        ("mobile", {"stages": 0.5, "steps": 8}, 2, (3, 0), (3, 0)),
        ("mobile", {"stages": 0.5, "steps": 8, "layer_map": (1, 2, 2, 4)}, 2, (2, 0), (3, 0)),
        ("mobile", {"stages": 0.5, "steps": 8}, 4, (4, 1), (4, 1)),
    ],
)
def test_no_layer_and_no_head_is_run_that_the_equation_does_not_need(
    method, changes, step, teacher_runs, student_runs
):
    objective, teacher = build(method, **changes)
    of_teacher = counted_calls(teacher)
    of_student = counted_calls(objective.student)
    objective.set_step(step)
    b = batch(5, 3)
    loss = objective(b, teach(teacher, b, objective.needs), Counts.of([b]))["loss"]
    for calls, (layers, head) in ((of_teacher, teacher_runs), (of_student, student_runs)):
        assert calls == {"layers": [*range(1, layers + 1)], "head": head}
    assert loss.isfinite()


def test_equation_13_from_a_teacher_without_its_head():
    objective, teacher = build("mobile")
    headless = Model(TEACHER, "encoder").double().eval()
    headless.encoder.load_state_dict(teacher.encoder.state_dict())
    b = batch(5, 3)
    same = [objective(b, teach(t, b, objective.needs), Counts.of([b])) for t in (teacher, headless)]
    assert all(torch.equal(x, same[1][name]) for name, x in same[0].items())


@pytest.mark.parametrize("method", OBJECTIVES)
def test_every_objective_says_its_equation(method):
    """The printed sum is the sum: evaluated on the terms it gives the loss."""
    objective, teacher = build(method)
    b = batch(5, 3)
    taught = None if teacher is None else teach(teacher, b, objective.needs)
    terms = objective(b, taught, Counts.of([b]))
    said = sum(
        float(weight or 1) * terms[name]
        for weight, name in (([None, *term.split()])[-2:] for term in objective.equation.split("+"))
    )
    torch.testing.assert_close(said, terms["loss"])


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
    taught = None if teacher is None else teach(teacher, b, objective.needs)
    terms = objective(b, taught, counts)
    got = torch.autograd.grad(terms["loss"], objective.student.parameters())
    row = b.without_targets() if objective.needs.every_token else b
    x_s = objective.student(row).logits
    x_t = None if teacher is None else teacher(row).logits
    T, alpha = objective.temperature, objective.run.alpha
    expected = {"mlm": losses.mlm(x_s, b.labels, M=2.5)} if method != "tiny" else {}
    if method in ("distil", "compact"):
        expected["soft"] = losses.soft_mlm(x_s, x_t, temperature=T, M=2.5)
    if method == "tiny":
        N = 13.0 if objective.needs.every_token else 2.5
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


@pytest.mark.parametrize("fidelity", ["paper", "released"])
def test_with_reference_kernels_every_equation_is_entered(fidelity, monkeypatch):
    """A breakpoint in any function of losses.py stops in a training step; kernels/ make no loss."""
    entered = {}

    def counted(equation):
        def call(*args, **options):
            entered.setdefault(equation.number, set()).add(method)
            return equation.function(*args, **options)

        monkeypatch.setattr(losses, equation.function.__name__, call)

    for equation in losses.EQUATIONS:
        counted(equation)
    monkeypatch.setattr(kernels, "masked_mlm", None)
    for method in OBJECTIVES:
        objective, teacher = build(method, fidelity=fidelity)
        use_kernels(objective, "reference")
        loss(objective, teacher, batch(5, 3))
    assert entered == {
        1: {"mlm", "distil", "compact", "mobile"}, 2: {"distil", "compact"}, 3: {"distil"},
        4: {"distil"}, 5: {"tiny", "compact", "mobile"}, 6: {"tiny"}, 7: {"tiny"}, 8: {"tiny"},
        9: {"tiny"}, 10: {"compact"}, 11: {"compact"}, 12: {"mobile"}, 13: {"mobile"},
    }  # fmt: skip


@pytest.mark.parametrize("impl", ["reference", "torch"])
@pytest.mark.parametrize("method", ["distil", "compact"])
def test_the_gradient_is_that_of_the_printed_sum(method, impl):
    """Eq. 4 and 11 give the loss and its gradient from the terms, however they are computed."""
    objective, teacher = build(method, alpha=(0.7, 1.9, 0.4))
    b = batch(5, 3)
    use_kernels(objective, "reference")
    truth, of_truth = loss(objective, teacher, b)
    terms = objective(b, teach(teacher, b, objective.needs), Counts.of([b]))
    third = terms["align" if method == "distil" else "layers"]
    by_hand = 0.7 * terms["mlm"] + 1.9 * terms["soft"] + 0.4 * third
    grads = torch.autograd.grad(by_hand, objective.parameters())
    use_kernels(objective, impl)
    got, of_got = loss(objective, teacher, b)
    assert got == pytest.approx(by_hand.item(), rel=1e-12) == truth
    flat = [
        torch.cat([x.flatten() for x in g]) for g in (of_got.values(), of_truth.values(), grads)
    ]
    assert_near("gradient", flat[0], flat[2], 1e-10)
    assert_near("gradient", flat[1], flat[2], 1e-10)


def test_an_implementation_for_each_operation():
    objective, _ = build("compact")
    use_kernels(objective, kernels.parse_choice("attention=reference,mlm=torch,norm=torch"))
    impls = {type(m).__name__: m.impl for m in objective.modules() if hasattr(m, "op")}
    assert impls == {
        "SelfAttention": "reference", "MaskedLMHead": "torch", "AddNorm": "torch"
    }  # fmt: skip
    use_kernels(objective, "mlm=triton-stream")
    impls = {type(m).__name__: m.impl for m in objective.modules() if hasattr(m, "op")}
    assert impls == {
        "SelfAttention": "auto", "MaskedLMHead": "triton-stream", "AddNorm": "auto"
    }  # fmt: skip


@pytest.mark.parametrize("weights", [(0.0, 5.0, 1.0), (2.0, 0.0, 1.0), (0.0, 0.0, 1.0)])
def test_a_weight_of_nought_leaves_its_term_out(weights):
    objective, teacher = build("distil", alpha=weights)
    b = batch(5, 3)
    terms = objective(b, teach(teacher, b, objective.needs), Counts.of([b]))
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
    taught = teach(teacher, b, objective.needs)
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
    assert not objective.needs.every_token
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


def test_a_narrow_teacher_teaches_nearly_the_same():
    """Its encoder multiplies in bf16; its norms, hidden states and predictions stay float32."""
    objective, teacher = build("compact")
    objective, teacher = objective.float(), teacher.float()
    b = batch(5, 9)
    exact, wide = objective(b, teach(teacher, b, objective.needs), Counts.of([b])), teacher.head
    assert freeze(teacher, "bf16") is teacher
    kinds = {name: p.dtype for name, p in teacher.named_parameters()}
    assert {x for name, x in kinds.items() if "norm" in name or "head" in name} == {torch.float32}
    assert kinds["encoder.embeddings.token.weight"] == torch.float32
    assert kinds["encoder.layers.3.attention.key.weight"] == torch.bfloat16
    taught = teach(teacher, b, objective.needs)
    assert taught.last.dtype == taught.decoder.h.dtype == taught.hidden_states[4].dtype
    assert taught.last.dtype == torch.float32 and wide is teacher.head
    near = objective(b, taught, Counts.of([b]))
    for name, x in exact.items():
        assert_near(name, near[name], x, 2e-2)
    assert not torch.equal(near["loss"], exact["loss"])
    with torch.autocast("cpu", torch.bfloat16):  # and under a student that is narrow itself
        objective(b, teach(teacher, b, objective.needs), Counts.of([b]))["loss"].backward()


@pytest.mark.parametrize("method", ["distil", "tiny", "compact"])
def test_under_autocast_a_teacher_rounded_once_teaches_the_same_bits(method):
    found = []
    for precision in ("fp32", "bf16"):
        torch.manual_seed(1)
        objective, teacher = build(method)
        objective, teacher, b = objective.float(), freeze(teacher.float(), precision), batch(5, 9)
        with torch.autocast("cpu", torch.bfloat16):
            found.append(objective(b, teach(teacher, b, objective.needs), Counts.of([b])))
    assert all(torch.equal(x, found[1][name]) for name, x in found[0].items())


def test_freezing_rests_the_teacher():
    for precision, dtype in (("bf16", torch.bfloat16), ("fp32", torch.float32)):
        teacher = freeze(Model(TEACHER).train(), precision)
        assert not teacher.training and not any(p.requires_grad for p in teacher.parameters())
        assert teacher.encoder.layers[0].ffn.up.weight.dtype == dtype
    with pytest.raises(ValueError, match="expected one of fp32, bf16"):
        freeze(Model(TEACHER), "fp16")


# Eq. 6, 7 and 9 as printed


def test_projections_are_matrices_and_only_where_widths_differ():
    """A bias on W_e or W_h is the release's (F24); between equal widths the paper has neither."""
    for width, fidelity in ((30, "paper"), (60, "paper"), (30, "released"), (60, "released")):
        teacher = Model(tiny_config(L=4, dropout=0.0, attention_dropout=0.0)).eval()
        student = Model(tiny_config(L=2, C=width, dropout=0.0, attention_dropout=0.0))
        run = dataclasses.replace(METHODS["tiny"], fidelity=fidelity)
        objective = OBJECTIVES["tiny"](student, teacher, run)
        W_h, W_e = objective.W_h, objective.W_e
        if fidelity == "released":
            assert W_e is W_h and W_h.bias is not None
        elif width == 60:  # as its teacher
            assert W_h is None and W_e is None
        else:
            assert W_h is not W_e and W_h.bias is None and W_e.bias is None
            assert not torch.equal(W_h.weight, W_e.weight)


def test_the_lambdas_of_equation_9_weigh_its_terms():
    teacher = Model(tiny_config(L=4, dropout=0.0, attention_dropout=0.0)).eval()
    student = Model(tiny_config(L=2, dropout=0.0, attention_dropout=0.0))
    b = random_batch((5, 9, 2), n_predicted=4)
    losses_ = {}
    for alpha in ((), (1.0,) * 4, (1.0, 0, 0, 0), (0, 1.0, 0, 0), (0, 0, 1.0, 0), (0, 0, 0, 1.0),
                  (2.0, 3.0, 5.0, 7.0)):  # fmt: skip
        run = dataclasses.replace(METHODS["tiny"], alpha=alpha)
        objective = OBJECTIVES["tiny"](student, teacher, run)
        terms = objective(b, teach(teacher, b, objective.needs), Counts.of([b]))
        losses_[alpha] = terms["loss"].item()
    alone = [losses_[tuple(float(i == j) for j in range(4))] for i in range(4)]
    assert losses_[()] == pytest.approx(sum(alone), rel=1e-6) == losses_[(1.0,) * 4]
    weighed = sum(w * x for w, x in zip((2, 3, 5, 7), alone, strict=True))
    assert losses_[2.0, 3.0, 5.0, 7.0] == pytest.approx(weighed, rel=1e-6)
    with pytest.raises(InputError, match="--alpha has 3 weights, expected 0 or 4 for tiny"):
        OBJECTIVES["tiny"](student, teacher, dataclasses.replace(run, alpha=(1.0, 1.0, 1.0)))


@pytest.mark.parametrize("stages", [0.0, 0.5])
def test_a_student_has_no_dropout_while_mobilebert_distils(stages):
    teacher = Model(tiny_config("ib-bert", L=2)).eval()
    student = Model(tiny_config("mobilebert", L=2, attention_dropout=0.5))
    run = dataclasses.replace(METHODS["mobile"], stages=stages, steps=40)
    objective = OBJECTIVES["mobile"](student, teacher, run).train()
    b = random_batch((5, 9, 2), n_predicted=4)
    for step in (0, 39):
        objective.set_step(step)
        taught = teach(teacher, b, objective.needs)
        a, c = (objective(b, taught, Counts.of([b]))["loss"] for _ in range(2))
        assert torch.equal(a, c)
