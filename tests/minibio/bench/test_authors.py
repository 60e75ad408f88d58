"""The authors' step and ours as released: equal where there is no padding and no dropout."""

import sys
from dataclasses import replace

import pytest
import torch

from helpers import assert_near, random_batch, tiny_config
from minibio.batch import Counts
from minibio.bench.authors import Authors, direction, in_transformers, rectangle
from minibio.config import METHODS
from minibio.distil.objectives import OBJECTIVES, teach
from minibio.model.heads import Model
from minibio.model.names import their_name
from minibio.run.errors import InputError

METHODS_OF_THEIRS = ("mlm", "distil", "tiny", "compact")
NO_DROPOUT = {"dropout": 0.0, "attention_dropout": 0.0}
NARROW = {"tiny": {"C": 40, "F": 50}}  # the student whose hidden states are projected


@pytest.fixture(autouse=True)
def with_transformers():
    pytest.importorskip("transformers", reason="nothing to compare with")


def build(method, dtype=torch.float64, family="bert", **dropout):
    """Ours and theirs with the same weights, large enough for every path to matter."""
    torch.manual_seed(0)
    dropout = dropout or NO_DROPOUT
    teacher = Model(tiny_config(L=6, **dropout))
    student = Model(tiny_config(family, L=3, **dropout, **NARROW.get(method, {})))
    for model in (teacher, student):
        for p in model.parameters():
            p.data.normal_(std=0.25)
    teacher = None if method == "mlm" else teacher.to(dtype).eval().requires_grad_(False)
    run = replace(METHODS[method], fidelity="released")
    ours = OBJECTIVES[method](student, teacher, run).to(dtype).train()
    return ours, teacher, Authors(ours, teacher).train()


def losses(ours, teacher, theirs, batch):
    """Both, with their gradients left behind."""
    taught = None if teacher is None else teach(teacher, batch, ours.needs)
    a, b = ours(batch, taught, Counts.of([batch]))["loss"], theirs(**rectangle(batch, ours.student))
    a.backward()
    b.backward()
    return a, b


def gradients(ours, theirs):
    """name -> (ours, theirs); softmax is blind to the bias of the keys, whose gradient is noise."""
    named = dict(theirs.student.named_parameters())
    pairs = {
        name: (p.grad, named[their_name(name, ours.student.config, "mlm")].grad)
        for name, p in ours.student.named_parameters()
    }
    if theirs.fit is not None:
        pairs["W_h.weight"] = ours.W_h.weight.grad, theirs.fit.weight.grad
        pairs["W_h.bias"] = ours.W_h.bias.grad, theirs.fit.bias.grad
    return {name: pair for name, pair in pairs.items() if not name.endswith("key.bias")}


def norm(tensors):
    return torch.stack([x.norm() for x in tensors]).norm()


@pytest.mark.parametrize("method", METHODS_OF_THEIRS)
def test_float64_tensor_by_tensor(method):
    ours, teacher, theirs = build(method)
    batch = random_batch((9, 9, 9), n_predicted=6)
    a, b = losses(ours, teacher, theirs, batch)
    assert_near("loss", a, b, 1e-10)
    pairs = gradients(ours, theirs)
    assert len(pairs) >= 3 * 15 + 8
    for name, (x, y) in pairs.items():
        assert_near(name, x, y, 1e-9)


@pytest.mark.parametrize("method", METHODS_OF_THEIRS)
def test_float32(method):
    ours, teacher, theirs = build(method, torch.float32)
    a, b = losses(ours, teacher, theirs, random_batch((17, 17), n_predicted=6))
    assert_near("loss", a, b, 1e-5)
    x, y = zip(*gradients(ours, theirs).values(), strict=True)
    assert_near("gradient norm", norm(x), norm(y), 1e-4)


def test_a_student_without_token_types():
    ours, teacher, theirs = build("distil", family="distilbert")
    batch = random_batch((9, 9), n_segments=1, n_predicted=6)
    assert "token_type_ids" not in rectangle(batch, ours.student)
    ours, _, theirs = build("mlm", family="distilbert")
    a, b = losses(ours, None, theirs, batch)
    assert_near("loss", a, b, 1e-10)


def test_what_padding_adds():
    """Equal but for `tiny`, which compares it (F23), and `compact`, which divides by it (F30)."""
    batch = random_batch((5, 9, 12), n_predicted=6)
    apart = {}
    for method in METHODS_OF_THEIRS:
        a, b = losses(*build(method), batch)
        apart[method] = (abs(a - b) / b).item()
    assert apart["mlm"] < 1e-10 and apart["distil"] < 1e-10
    assert apart["tiny"] > 1e-4 and apart["compact"] > 1e-5


def test_the_rectangle():
    batch = random_batch((2, 4), n_predicted=3)
    x = rectangle(batch, Model(tiny_config()))
    assert x["input_ids"].shape == (2, 4)
    assert x["attention_mask"].tolist() == [[1, 1, 0, 0], [1, 1, 1, 1]]
    assert torch.equal(x["labels"][x["labels"] != -100], batch.labels)
    row = x["labels"][x["attention_mask"] > 0]
    assert torch.equal((row != -100).nonzero()[:, 0], batch.predict)


def test_the_teacher_drops_out_as_theirs_does_unless_told_not_to():
    """F32: with the same student and no dropout of its own, the loss is still random."""
    ours, teacher, theirs = build("compact", dropout=0.1, attention_dropout=0.1)
    inputs = rectangle(random_batch((9, 9), n_predicted=4), ours.student)
    assert theirs.teacher.training and theirs.student.training
    theirs.student.eval()
    assert theirs(**inputs) != theirs(**inputs)
    theirs = Authors(ours, teacher, teacher_dropout=False).train()
    assert theirs.student.training and not theirs.teacher.training
    theirs.student.eval()
    assert theirs(**inputs) == theirs(**inputs)


def test_the_teacher_has_no_gradient_and_its_weights_are_its_own():
    ours, teacher, theirs = build("tiny")
    losses(ours, teacher, theirs, random_batch((9, 9), n_predicted=4))
    assert all(p.grad is None and not p.requires_grad for p in theirs.teacher.parameters())
    own = [*ours.parameters(), *teacher.parameters()]
    before = [p.clone() for p in own]
    with torch.no_grad():
        for p in theirs.parameters():
            p.fill_(7)
    assert all(torch.equal(p, x) for p, x in zip(own, before, strict=True))


def test_maps_are_formed_where_they_are_compared():
    ours, teacher, theirs = build("compact")
    assert theirs.student.config._attn_implementation == "eager"
    assert theirs.has_maps and not build("distil")[2].has_maps
    batch = random_batch((9, 9), n_predicted=4)
    outputs = theirs.student(**rectangle(batch, ours.student), output_attentions=True)
    assert [a.shape for a in outputs.attentions] == [(2, 5, 9, 9)] * 3


def test_direction_leaves_padding_out():
    h = torch.eye(3)[None].double()  # (1, 3, 3)
    turned = h.roll(1, dims=-1)
    turned[0, 0] = h[0, 0]
    assert direction(h, turned, torch.tensor([[1, 0, 0]])) == pytest.approx(0, abs=1e-9)
    assert direction(h, turned, torch.tensor([[1, 1, 0]])) == pytest.approx(0.5)


def test_methods_that_they_have_no_code_for():
    teacher, student = Model(tiny_config(L=3)), Model(tiny_config(L=3))
    ours = OBJECTIVES["mobile"](student, teacher, METHODS["mobile"])
    with pytest.raises(InputError, match="no code for mobile, expected mlm, distil"):
        Authors(ours, teacher)
    with pytest.raises(InputError, match="no IB-BERT"):
        in_transformers(Model(tiny_config("ib-bert")))


def test_without_transformers(monkeypatch):
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(InputError, match="needs transformers, which is not installed"):
        in_transformers(Model(tiny_config()))
