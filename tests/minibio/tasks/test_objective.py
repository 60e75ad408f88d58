"""The losses of the tasks, written out in float64; sums do not depend on how a step is cut."""

import math
from dataclasses import replace

import pytest
import torch

from helpers import assert_near, tiny_config
from minibio.batch import Batch, Counts
from minibio.config import METHODS, Recipe
from minibio.distil.objectives import teach
from minibio.model.heads import Model
from minibio.run.errors import InputError
from minibio.tasks.objective import ALPHA, Labels, Taught, questions, rows

HEADS = {"token": ("O", "B", "I"), "sequence": ("no", "yes"), "span": None}
LENGTHS = (7, 4, 9)


def test_the_weights_are_the_papers():
    assert (
        ALPHA["distil"] == METHODS["distil"].alpha and ALPHA["compact"] == METHODS["compact"].alpha
    )
    assert tuple(ALPHA) == Recipe.__dataclass_fields__["method"].metadata["choices"]
    assert ALPHA["distil"] == (2, 5, 1) and ALPHA["compact"] == (1, 5, 3)
    assert ALPHA["soft"] == (*METHODS["distil"].alpha[:2], 0) and ALPHA["tiny"] == (1, 1, 1)


def batch_for(head, part=slice(None)):
    """Three sequences with the targets of a head; or some of them."""
    rng = torch.Generator().manual_seed(3)
    sequences = [torch.randint(101, (T,), generator=rng) for T in LENGTHS]
    tags = [torch.randint(3, (T - 2,), generator=rng) for T in LENGTHS]
    classes = torch.tensor([1, 0, 1])
    spans = torch.tensor([[2, 3], [0, 0], [8, 8]])
    sequences, tags = sequences[part], tags[part]
    if head != "token":
        return Batch.from_sequences(
            sequences, labels={"sequence": classes, "span": spans}[head][part]
        )
    places, start = [], 0
    for x in sequences:
        places += range(start + 1, start + len(x) - 1)
        start += len(x)
    return Batch.from_sequences(sequences, predict=places, labels=torch.cat(tags))


def model(head, seed=0, **changes):
    torch.manual_seed(seed)
    off = {"dropout": 0.0, "attention_dropout": 0.0, "classifier_dropout": 0.0}
    return Model(tiny_config("bert", **off, **changes), head, HEADS[head]).double()


def by_hand(logits, batch, head):
    """[(row of logits, its label)], found without a padded rectangle."""
    if head == "token":
        return [(logits[i], y) for i, y in zip(batch.predict, batch.labels, strict=True)]
    if head == "sequence":
        return list(zip(logits, batch.labels, strict=True))
    parts = logits.split(batch.lengths)
    return [(x[:, k], y[k]) for x, y in zip(parts, batch.labels, strict=True) for k in (0, 1)]


@pytest.mark.parametrize("head", HEADS)
def test_the_labels_by_hand(head):
    student, batch = model(head), batch_for(head)
    got = Labels(student, Recipe())(batch, None, Counts.of([batch]))
    pairs = by_hand(student(batch).logits, batch, head)
    want = sum(-x.log_softmax(0)[y] for x, y in pairs) / len(pairs)
    assert_near(head, got["loss"], want, 1e-12)
    assert got["labels"] is got["loss"] and questions(Counts.of([batch]), head) == len(pairs)


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("method", ALPHA)
def test_the_terms_with_a_teacher_by_hand(head, method):
    student, teacher = model(head, L=2), model(head, seed=1, L=4).eval()
    recipe = Recipe(method=method, temperature=2.0)
    objective = Taught(student, teacher, recipe).double()
    batch = batch_for(head)
    counts = Counts.of([batch])
    taught = teach(teacher, batch, objective.needs)
    got = objective(batch, taught, counts)
    s, t = (m(batch, hidden=range(m.config.L + 1)) for m in (student, teacher))
    pairs = zip(by_hand(s.logits, batch, head), by_hand(t.logits, batch, head), strict=True)
    soft, n = 0.0, 0
    for (x, _), (y, _) in pairs:
        p = (y / 2).softmax(0)
        soft, n = soft + 4 * (p * (p.log() - (x / 2).log_softmax(0))).sum(), n + 1
    assert_near("soft", got["soft"], soft / n, 1e-11)
    a, b, c = ALPHA[method]
    layers = got["layers"] if method != "soft" else 0.0
    assert_near("loss", got["loss"], a * got["labels"] + b * got["soft"] + c * layers, 1e-12)
    h_s, h_t = s.hidden_states, t.hidden_states
    cosine = torch.nn.functional.cosine_similarity
    if method == "distil":
        assert_near("layers", got["layers"], (1 - cosine(h_s[2], h_t[4])).mean(), 1e-12)
    if method in ("tiny", "compact"):
        maps = attention_maps(student, batch), attention_maps(teacher, batch)
        want = 0.0
        if method == "tiny":
            assert objective.W_e is None  # equal widths: Eq. 6 and 7 need no projection
            want = (h_s[0] - h_t[0]).square().mean()
        for l, g in ((1, 2), (2, 4)):
            pairs = list(zip(maps[0][l], maps[1][g], strict=True))
            if method == "tiny":
                want = want + (h_s[l] - h_t[g]).square().mean()
                squares = sum((x - y).square().sum() for x, y in pairs)
                want = want + squares / (student.config.H * counts.n_pairs)
            else:
                want = want + (1 - cosine(h_s[l], h_t[g])).mean()
                kl = sum((x * (x.log() - y.log())).sum() for x, y in pairs)
                want = want + kl / (student.config.H * counts.N)
        assert_near("layers", got["layers"], want, 1e-10)


def attention_maps(m, batch):
    """{layer: [(H, T, T) of each sequence]}."""
    kept = m(batch, keep=range(1, m.config.L + 1)).kept
    return {
        l: [torch.einsum("ihd,jhd->hij", q, k).div(math.sqrt(m.config.D)).softmax(-1)
            for q, k in zip(a.q.split(batch.lengths), a.k.split(batch.lengths), strict=True)]
        for l, a in kept.items()
    }  # fmt: skip


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("method", [None, *ALPHA])
def test_parts_add_up_to_the_whole(head, method):
    student, teacher = model(head, L=2), model(head, seed=1).eval()
    recipe = Recipe(method=method or "soft", layer_map=(1, 3))
    objective = Labels(student, recipe) if method is None else Taught(student, teacher, recipe)
    objective.double()
    whole, parts = batch_for(head), [batch_for(head, slice(0, 1)), batch_for(head, slice(1, 3))]
    counts = Counts.of([whole])
    assert Counts.of(parts) == counts

    def terms(batch):
        return objective(batch, method and teach(teacher, batch, objective.needs), counts)

    want = terms(whole)
    for name in want:
        assert_near(name, sum(terms(part)[name] for part in parts), want[name], 1e-11)


def test_a_label_that_is_no_class_is_left_out():
    student, batch = model("sequence"), batch_for("sequence")
    labels = batch.labels.clone()
    labels[1] = -100
    other = replace(batch, labels=labels)
    counts = Counts.of([batch])
    got = Labels(student, Recipe())(other, None, counts)["loss"]
    pairs = by_hand(student(batch).logits, batch, "sequence")
    want = sum(-pairs[i][0].log_softmax(0)[pairs[i][1]] for i in (0, 2)) / 3
    assert_near("loss", got, want, 1e-12)


def test_places_outside_a_sequence_are_no_answer():
    """The rows of a span head carry no weight there, in values and gradients."""
    batch = batch_for("span")
    logits = torch.randn(sum(LENGTHS), 2, dtype=torch.float64, requires_grad=True)
    r = rows(logits, batch, "span")  # (2 B, T)
    assert r.shape == (6, 9)
    p = r.softmax(1)
    for i, T in enumerate(LENGTHS):
        assert (p[2 * i : 2 * i + 2, T:] == 0).all()
        assert p[2 * i, :T].sum().item() == pytest.approx(1)
    assert torch.isfinite(torch.autograd.grad(p.square().sum(), logits)[0]).all()


def test_gradients_reach_the_student_and_its_projections_alone():
    student, teacher = model("token", L=2, C=30), model("token", seed=1, L=4).eval()
    objective = Taught(student, teacher, Recipe(method="tiny")).double()
    assert objective.W_h.bias is None and objective.W_e.bias is None  # Eq. 6 and 7: matrices
    batch = batch_for("token")
    objective(batch, teach(teacher, batch, objective.needs), Counts.of([batch]))["loss"].backward()
    missing = [name for name, p in objective.named_parameters() if p.grad is None]
    assert not missing and all(p.grad is None for p in teacher.parameters())
    assert {name.split(".")[0] for name, _ in objective.named_parameters()} == {
        "student", "W_h", "W_e"
    }  # fmt: skip


def test_weights_of_ones_own():
    student, teacher = model("token"), model("token", seed=1).eval()
    objective = Taught(student, teacher, Recipe(method="tiny", alpha=(0.0, 1.0, 1.0))).double()
    batch = batch_for("token")
    got = objective(batch, teach(teacher, batch, objective.needs), Counts.of([batch]))
    assert_near("loss", got["loss"], got["soft"] + got["layers"], 1e-12)
    assert objective.equation == "0 labels + 1 soft + 1 layers"


def test_teachers_that_do_not_fit():
    def refused(message, teacher, student=None, **changes):
        with pytest.raises(InputError, match=message) as error:
            Taught(student or model("token"), teacher, Recipe(**changes))
        assert "\n" not in str(error.value)

    other = Model(tiny_config("bert"), "token", ("O", "I", "B"))
    refused("the teacher answers with .*expected .* fine-tune it", other)
    refused("the teacher answers with", model("sequence"))
    narrow = model("token", C=52, H=4)
    refused("60 wide, expected 52 .* Eq. 3", narrow, method="distil")
    refused("60 wide, expected 52 .* Eq. 10", narrow, method="compact")
    refused("5 heads, expected 4", narrow, method="tiny")
    refused("4 layers, expected a multiple", model("token", L=4), method="compact")
    refused("--layer-map is 1,9,2", model("token"), method="compact", layer_map=(1, 9, 2))
    refused("--alpha has 2 weights, expected 3", model("token"), alpha=(1.0, 2.0))
