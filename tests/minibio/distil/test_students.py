"""What a run starts from: tensors are where they are said to come from, misfits are refused."""

import dataclasses
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file, save_file

from minibio.config import METHODS, MODELS, ModelConfig
from minibio.distil.objectives import OBJECTIVES
from minibio.distil.students import build_student, describe, initialise_from, load_teacher
from minibio.model.convert import save
from minibio.model.heads import Model
from minibio.run.errors import InputError

TEACHER = ModelConfig(V=31, L=4, C=24, H=2, F=32, P=16)
SAME = dataclasses.replace(TEACHER, L=2)
NARROW = dataclasses.replace(SAME, C=12)
IB_BERT = dataclasses.replace(
    MODELS["ib-bert"], V=31, L=3, C=24, H=2, F=40, P=16, C_embed=8, C_intra=32
)
MOBILE = dataclasses.replace(
    MODELS["bio-mobilebert"], V=31, L=3, C=24, H=2, F=16, P=16, C_embed=8, C_intra=12
)
CORPUS = SimpleNamespace(V=31, check_tokenizer=lambda tokenizer: None)


def randomised(config, head="mlm"):
    """Norms and biases too: two fresh ones are equal and prove nothing."""
    model = Model(config, head)
    for p in model.parameters():
        torch.nn.init.normal_(p, std=0.3)
    return model


def same(a, b):
    """Whether two modules hold the same numbers under the same names."""
    a, b = a.state_dict(), b.state_dict()
    return set(a) == set(b) and all(torch.equal(x, b[name]) for name, x in a.items())


def run(method="compact", **changes):
    return dataclasses.replace(METHODS[method], init_layers=(), **changes)


@pytest.fixture
def directory(tmp_path):
    """A teacher on disk, and the same without its head."""
    teacher = randomised(TEACHER)
    save(teacher, None, tmp_path / "whole")
    save(teacher, None, tmp_path / "headless")
    weights = load_file(tmp_path / "headless" / "model.safetensors")
    kept = {name: x for name, x in weights.items() if not name.startswith("cls.")}
    save_file(kept, tmp_path / "headless" / "model.safetensors", metadata={"format": "pt"})
    return tmp_path


# ---- from a teacher


def test_nothing_is_taken_where_nothing_is_named():
    teacher, student = randomised(TEACHER), randomised(SAME)
    before = {name: x.clone() for name, x in student.state_dict().items()}
    initialise_from(student, teacher, run())
    assert all(torch.equal(x, before[name]) for name, x in student.state_dict().items())


def test_the_named_layers_and_the_embeddings_are_copied_and_the_head_is_not():
    teacher, student = randomised(TEACHER), randomised(SAME)
    initialise_from(student, teacher, dataclasses.replace(run(), init_layers=(3, 1)))
    for mine, l in zip(student.encoder.layers, (3, 1), strict=True):
        assert same(mine, teacher.encoder.layers[l])
    assert same(student.encoder.embeddings, teacher.encoder.embeddings)
    assert not same(student.head, teacher.head)
    # a copy, not the same tensor: the teacher must not move with its student
    mine, theirs = student.encoder.embeddings.token.weight, teacher.encoder.embeddings.token.weight
    assert mine.data_ptr() != theirs.data_ptr()


def test_the_head_is_copied_where_that_is_asked_for():
    teacher, student = randomised(TEACHER), randomised(SAME)
    initialise_from(student, teacher, run(init_head="copy"))
    assert same(student.head, teacher.head)
    # its decoder is the embedding table
    assert same(student.encoder.embeddings, teacher.encoder.embeddings)
    assert not same(student.encoder.layers[0], teacher.encoder.layers[0])


@pytest.mark.parametrize(
    ("init_head", "is_copied"), [(None, True), ("copy", True), ("fresh", False)]
)
def test_mobilebert_s_stages_start_from_the_teacher_s_embeddings_and_head(init_head, is_copied):
    teacher, student = randomised(IB_BERT), randomised(MOBILE)
    norm = {name: x.clone() for name, x in student.encoder.embeddings.norm.state_dict().items()}
    initialise_from(student, teacher, run("mobile", stages=0.5, init_head=init_head))
    mine, theirs = student.encoder.embeddings, teacher.encoder.embeddings
    for part in ("token", "project", "position", "segment"):
        assert same(getattr(mine, part), getattr(theirs, part)), part
    # NoNorm has a LayerNorm's names, not its meaning
    assert all(torch.equal(x, norm[name]) for name, x in mine.norm.state_dict().items())
    assert same(student.head, teacher.head) == is_copied


def test_mobilebert_s_stages_without_their_teacher_start_from_the_same_weights():
    """`--alpha 1 --init-head copy`: what the stages are compared with."""
    teacher, a = randomised(IB_BERT), randomised(MOBILE)
    b = Model(MOBILE)
    b.load_state_dict(a.state_dict())
    initialise_from(a, teacher, run("mobile", stages=0.5))
    initialise_from(b, teacher, run("mobile", alpha=(1.0,), init_head="copy"))
    assert same(a, b)


def test_equation_13_as_printed_starts_from_scratch():
    """Section 4.4.1."""
    teacher, student = randomised(IB_BERT), randomised(MOBILE)
    before = {name: x.clone() for name, x in student.state_dict().items()}
    initialise_from(student, teacher, METHODS["mobile"])
    assert all(torch.equal(x, before[name]) for name, x in student.state_dict().items())


@pytest.mark.parametrize(
    ("student", "changes", "message"),
    [
        (SAME, {"init_layers": (1,)}, "--init-layers is 1, expected 2 layers"),
        (SAME, {"init_layers": (0, 4)}, r"is 0,4, expected 2 layers \(the student's\) of 0\.\.3"),
        (SAME, {"init_layers": (-1, 1)}, r"of 0\.\.3"),
        (NARROW, {"init_layers": (0, 1)}, "12 wide.*embeddings.*24 wide.*pass --init-layers none"),
        (dataclasses.replace(SAME, F=30), {"init_layers": (0, 1)}, "layers .*--init-layers none"),
        (dataclasses.replace(SAME, family="distilbert", n_segments=0), {"init_layers": (0, 1)},
         "distilbert, 24 wide.*kind"),
        (NARROW, {"init_head": "copy"}, "12 wide.*embeddings.*24 wide.*pass --init-head fresh"),
        (dataclasses.replace(SAME, V=30), {"init_head": "copy"}, "30 word pieces.*31 word pieces"),
        (NARROW, {"stages": 0.5}, "embeddings.*pass no --stages"),
    ],
)  # fmt: skip
def test_starts_that_do_not_fit(student, changes, message):
    with pytest.raises(InputError, match=message) as error:
        initialise_from(Model(student), Model(TEACHER), dataclasses.replace(run(), **changes))
    assert "\n" not in str(error.value)


# ---- teachers


@pytest.mark.parametrize(
    ("method", "changes"),
    [("distil", {}), ("tiny", {}), ("compact", {}), ("mobile", {"stages": 0.5}),
     ("mobile", {"init_head": "copy"})],
)  # fmt: skip
def test_a_teacher_without_its_head_is_refused_where_its_predictions_are_wanted(
    directory, method, changes
):
    wanted = run(method, **changes)
    assert load_teacher(directory / "whole", wanted)[0].head_name == "mlm"
    with pytest.raises(InputError, match=r"headless has no masked-LM head .*cls\.") as error:
        load_teacher(directory / "headless", wanted)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", ["whole", "headless"])
def test_equation_13_needs_no_head_of_its_teacher(directory, name):
    teacher, _ = load_teacher(directory / name, METHODS["mobile"])
    assert teacher.head_name == "encoder" and teacher.config.L == TEACHER.L


def test_a_teacher_is_frozen_and_in_eval_mode(directory):
    teacher, _ = load_teacher(directory / "whole", METHODS["tiny"])
    assert not teacher.training and not any(p.requires_grad for p in teacher.parameters())


# ---- students


def test_students_are_drawn_from_the_seed_alone():
    a = build_student(run(model="sample-tiny", seed=1), CORPUS)
    torch.rand(7)
    b = build_student(run(model="sample-tiny", seed=1), CORPUS)
    assert same(a, b) and a.config.V == 31 and a.training
    assert not same(a, build_student(run(model="sample-tiny", seed=2), CORPUS))


def test_a_student_s_shape_can_be_named():
    shape = {"layers": 1, "width": 12, "heads": 3, "ffn": 20}
    config = build_student(run(model="sample-tiny", **shape), CORPUS).config
    assert (config.L, config.C, config.H, config.F) == (1, 12, 3, 20)
    with pytest.raises(InputError, match=r"not a multiple of 5 heads.*\(--width, --heads\)"):
        build_student(run(model="sample-tiny", heads=5), CORPUS)


def test_the_same_student_with_and_without_a_teacher():
    """What a comparison rests on: the teacher's presence draws nothing."""
    alone = build_student(run(model="sample-tiny"), CORPUS)
    taught = build_student(run(model="sample-tiny"), CORPUS, Model(TEACHER))
    assert same(alone, taught)


def test_further_training_starts_from_a_directory(directory):
    a, b = (build_student(run("mlm"), CORPUS, start=directory / "whole") for _ in range(2))
    whole = load_teacher(directory / "whole", METHODS["tiny"])[0]
    assert same(a, whole) and a.training
    assert all(p.requires_grad for p in a.parameters())
    fresh = run("mlm", init_head="fresh")
    a, b = (build_student(fresh, CORPUS, start=directory / x) for x in ("whole", "headless"))
    assert same(a, b) and same(a.encoder, whole.encoder) and not same(a.head, whole.head)
    assert a.head.bias.eq(0).all() and a.head.norm.weight.eq(1).all()
    assert a.head.transform.bias.eq(0).all() and a.head.transform.weight.std() < 0.03
    with pytest.raises(InputError, match="--from .*headless has no masked-LM.*--init-head fresh"):
        build_student(run("mlm"), CORPUS, start=directory / "headless")


def test_a_start_of_another_vocabulary_is_refused(directory, monkeypatch):
    def refuse(tokenizer):
        raise InputError("another vocabulary")

    corpus = SimpleNamespace(V=31, check_tokenizer=refuse)
    build_student(run("mlm"), corpus, start=directory / "whole")  # it has no tokenizer to look at
    monkeypatch.setattr(
        "minibio.distil.students.load_with_report", lambda *a, **k: (Model(SAME), object(), None)
    )
    with pytest.raises(InputError, match="another vocabulary"):
        build_student(run("mlm"), corpus, start=directory / "whole")


# ---- what is said of it


def described(method, student, teacher, start=None, **changes):
    row = dataclasses.replace(METHODS[method], **changes)
    teacher = None if teacher is None else Model(teacher)
    return describe(OBJECTIVES[method](Model(student), teacher, row), teacher, row, start)


def test_a_description_of_compact():
    rows = described("compact", SAME, TEACHER, init_layers=(1, 3), fidelity="released")
    assert rows == {
        "embeddings": "teacher's embeddings",
        "layer 1": "teacher's layer 2; compared with the teacher's layer 2",
        "layer 2": "teacher's layer 4; compared with the teacher's layer 4",
        "masked-LM head": "fresh",
        "loss": "1 mlm + 5 soft + 3 layers",
        "temperature": "1",
        "fidelity": "released",
    }


def test_descriptions_of_the_others():
    rows = described("tiny", NARROW, TEACHER, layer_map=(1, 4))
    assert rows["embeddings"] == "random; compared with the teacher's embeddings"
    assert rows["layer 2"] == "random; compared with the teacher's layer 4"
    rows = described("distil", SAME, TEACHER, init_layers=(0, 2), init_head="copy",
                     fidelity="released")  # fmt: skip
    assert (rows["layer 2"], rows["masked-LM head"]) == ("teacher's layer 3", "teacher's")
    assert (rows["loss"], rows["temperature"]) == ("2 mlm + 5 soft + 1 align", "2")
    rows = described("mlm", SAME, None, start="there")
    assert set(rows.values()) == {"from there", "mlm"} and "temperature" not in rows
    rows = described("mlm", SAME, None, start="there", init_head="fresh")
    assert (rows["layer 1"], rows["masked-LM head"]) == ("from there", "fresh")
    rows = described("mlm", SAME, None)
    assert (rows["embeddings"], rows["masked-LM head"]) == ("random", "fresh")


def test_descriptions_of_mobile():
    rows = described("mobile", MOBILE, IB_BERT)
    assert rows["embeddings"] == "random" and rows["masked-LM head"] == "fresh"
    assert rows["layer 3"] == "random; compared with the teacher's layer 3"
    assert rows["loss"] == "0.5 mlm + 0.5 layers" and "stage 1" not in rows
    rows = described("mobile", MOBILE, IB_BERT, stages=0.5, steps=20)
    assert rows["embeddings"] == "teacher's embeddings" and rows["masked-LM head"] == "teacher's"
    assert rows["stage 1"] == "steps 1 to 9: layers 1 to 3 in turn, 3 steps each"
    assert rows["stage 2"] == "steps 10 to 20: predictions"
