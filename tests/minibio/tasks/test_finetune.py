"""One fine-tuning: the recipe by hand, what goes on after a stop, what is kept, what is refused."""

import json
import math
import os
import signal
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch

import minibio
from helpers import assert_near, tiny_config
from minibio.model.heads import Model
from minibio.run.dist import Ranks
from minibio.run.errors import InputError
from minibio.tasks import finetune, ner
from minibio.tasks.experiments import ner_task, qa_task, relation_task
from minibio.tasks.finetune import Recipe, Task, Way, fine_tune
from toy_tasks import make_encoder, make_tokenizer, write_chemprot, write_ner, write_qa

ALONE = Ranks(0, 0, 1, torch.device("cpu"))
WAY = Way(ALONE, log_every=5)
RECIPE = Recipe(epochs=2, batch=8, lr=3e-3, seed=5)


@pytest.fixture(scope="module")
def tokenizer():
    return make_tokenizer()


@pytest.fixture(scope="module")
def encoder(tmp_path_factory, tokenizer):
    return make_encoder(tmp_path_factory.mktemp("models") / "random", tokenizer)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_ner(tmp_path_factory.mktemp("sets") / "toy", n=(40, 8, 16))


@pytest.fixture(scope="module")
def done(encoder, data, tmp_path_factory):
    """A finished run, and its record."""
    out = tmp_path_factory.mktemp("out") / "ner"
    return out, fine_tune(encoder, ner_task(data), RECIPE, out, WAY)


def weights(directory):
    return (directory / "model.safetensors").read_bytes()


def events(out, kind):
    lines = [json.loads(x) for x in (out / "log.jsonl").read_text("utf-8").splitlines()]
    return [x for x in lines if x["event"] == kind]


def interrupted(make, at):
    """The same task; SIGTERM comes when the batch number `at` is made."""

    def made(tokenizer, recipe):
        task, n = make(tokenizer, recipe), [0]

        def collate(examples):
            n[0] += 1
            if n[0] == at:
                os.kill(os.getpid(), signal.SIGTERM)
            return task.collate(examples)

        return replace(task, collate=collate)

    return made


# how it is learnt


def test_the_recipe_by_hand(tokenizer, data, tmp_path):
    """AdamW, cosine from the peak to 0 without warm-up, decay on matrices alone, clipped to 1."""
    off = {"dropout": 0.0, "attention_dropout": 0.0}
    encoder = make_encoder(tmp_path / "model", tokenizer, **off)
    source, _ = minibio.load(encoder, head="encoder")
    fine_tune(encoder, ner_task(data), replace(RECIPE, lr=1e-2), tmp_path / "out", WAY)
    torch.manual_seed(5)
    model = Model(source.config, "token", ["O", "B", "I"])
    model.encoder = source.encoder
    windows = ner.make_windows(ner.read_tsv(data / "train.tsv"), tokenizer, source.config.P)
    steps = [
        [windows[i] for i in part]
        for epoch in range(2)
        for part in np.array_split(
            np.random.Generator(np.random.Philox(key=[5, epoch])).permutation(40), 40 / 8
        )
    ]
    matrices = [p for p in model.parameters() if p.dim() > 1]
    others = [p for p in model.parameters() if p.dim() == 1]
    adam = torch.optim.AdamW([{"params": matrices, "weight_decay": 0.01},
                              {"params": others, "weight_decay": 0.0}])  # fmt: skip
    norms = []
    for step, chosen in enumerate(steps):
        rows = []
        for window in chosen:  # one after the other: pieces between [CLS] and [SEP]
            logits = model(minibio.Batch.from_sequences([window.tokens])).logits[1:-1]
            truth = torch.tensor(["OBI".index(tag) for tag in window.tags])
            rows.append(-logits.log_softmax(1)[torch.arange(len(truth)), truth])
        adam.zero_grad()
        torch.cat(rows).mean().backward()
        norms.append(torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0).item())
        for group in adam.param_groups:
            group["lr"] = 1e-2 * (1 + math.cos(math.pi * step / len(steps))) / 2
        adam.step()
    assert max(norms) > 1  # something was clipped
    got, _ = minibio.load(tmp_path / "out", head="token")
    for (name, a), b in zip(got.named_parameters(), model.parameters(), strict=True):
        if not name.endswith("key.bias"):  # its gradient is 0 but for rounding, which Adam blows up
            assert_near(name, a, b, 1e-3)


def test_what_is_drawn_before_changes_nothing(done, encoder, data, tmp_path):
    torch.rand(7)
    fine_tune(encoder, ner_task(data), RECIPE, tmp_path / "out", WAY)
    assert weights(tmp_path / "out") == weights(done[0])


def test_another_seed_gives_another_model(done, encoder, data, tmp_path):
    fine_tune(encoder, ner_task(data), replace(RECIPE, seed=6), tmp_path / "out", WAY)
    assert weights(tmp_path / "out") != weights(done[0])


def test_nothing_is_chosen_on_devel_or_test(done, encoder, data, tmp_path):
    other = write_ner(tmp_path / "other", n=(1, 3, 5), seed=9)
    (other / "train.tsv").write_bytes((data / "train.tsv").read_bytes())
    (other / "devel.tsv").unlink()
    fine_tune(encoder, ner_task(other), RECIPE, tmp_path / "out", WAY)
    assert weights(tmp_path / "out") == weights(done[0])


def test_micro_batches_change_nothing_but_rounding(tokenizer, data, tmp_path):
    encoder = make_encoder(tmp_path / "model", tokenizer, dropout=0.0, attention_dropout=0.0)
    recipe = replace(RECIPE, epochs=1, lr=1e-3)
    losses = []
    for n in (1, 3):
        out = tmp_path / f"out-{n}"
        fine_tune(encoder, ner_task(data), recipe, out, Way(ALONE, accumulate=n, log_every=1))
        losses.append([x["loss"] for x in events(out, "train")])
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)


def test_an_encoder_keeps_what_it_had_and_the_head_is_drawn(tokenizer, tmp_path):
    def task(head, labels=None):
        return Task("x", head, labels, [], [], None, None)

    path = make_encoder(tmp_path / "a", tokenizer, head="span")
    model, _ = minibio.load(path, head="span")
    encoder, _ = minibio.load(path, head="encoder")
    kept = finetune.start(path, encoder, task("span"), 1)
    assert torch.equal(kept.head.classifier.weight, model.head.classifier.weight)
    one, two, other = (
        finetune.start(path, encoder, task("sequence", ("a", "b")), seed) for seed in (1, 1, 2)
    )
    assert torch.equal(one.head.classifier.weight, two.head.classifier.weight)
    assert not torch.equal(one.head.classifier.weight, other.head.classifier.weight)
    table = model.encoder.embeddings.token.weight
    assert torch.equal(one.encoder.embeddings.token.weight, table)


def test_a_pooler_is_kept(tokenizer, tmp_path):
    torch.manual_seed(3)
    source = Model(tiny_config("bert", V=tokenizer.V), "sequence", ["x", "y", "z"])
    minibio.save(source, tokenizer, tmp_path / "a")
    encoder, _ = minibio.load(tmp_path / "a", head="encoder")
    task = Task("x", "sequence", ("a", "b"), [], [], None, None)
    model = finetune.start(tmp_path / "a", encoder, task, 1)
    assert torch.equal(model.head.pooler.weight, source.head.pooler.weight)
    assert model.head.classifier.weight.shape[0] == 2


# what comes out


def test_the_record_and_the_directory(done, encoder, data):
    out, record = done
    assert record == json.loads((out / "ner.json").read_text("utf-8"))
    assert record["task"] == "ner" and record["data"] == "toy" and record["seed"] == 5
    assert record["model"] == str(encoder) and record["teacher"] is None
    assert record["config"]["labels"] == ["O", "B", "I"] and record["config"]["length"] == 40
    assert record["config"]["counts"]["test"]["sentences"] == 16 and record["steps"] == 10
    assert sorted(p.name for p in out.iterdir()) == [
        "config.json", "log.jsonl", "model.safetensors", "ner.json", "test.conll",
        "tokenizer.json", "tokenizer_config.json", "vocab.txt",
    ]  # fmt: skip
    losses = [x["loss"] for x in events(out, "train")]
    assert len(losses) == 2 and losses[-1] < losses[0]
    assert len(events(out, "start")) == len(events(out, "end")) == 1


def test_a_finished_run_tells_its_scores_again(done, encoder, data, capsys, monkeypatch):
    out, record = done
    monkeypatch.setattr(finetune, "fit", None)
    before = {p.name: p.stat().st_mtime_ns for p in out.iterdir()}
    (out / "checkpoints").mkdir()  # as a kill at the very end leaves it
    assert fine_tune(encoder, ner_task(data), RECIPE, out, WAY) == record
    assert "finished earlier" in capsys.readouterr().out
    assert before == {p.name: p.stat().st_mtime_ns for p in out.iterdir()}


def test_another_run_in_the_same_place_is_refused(done, encoder, data, tokenizer, tmp_path):
    out, _ = done

    def refused(message, out=out, source=encoder, data=data, **changes):
        with pytest.raises(InputError, match=message) as error:
            fine_tune(source, ner_task(data), replace(RECIPE, **changes), out, WAY)
        assert "\n" not in str(error.value)

    refused("holds another run: lr is 0.003 there, here 0.1; name another --out or", lr=0.1)
    changed = write_ner(tmp_path / "toy", n=(40, 8, 16))
    test = changed / "test.tsv"
    test.write_text(test.read_text("utf-8").replace("Gout\tB", "Gout\tO", 1), "utf-8")
    refused("another run: data_is", data=changed)
    refused("another run: data is 'toy'", data=write_ner(tmp_path / "short", n=(9, 2, 2)))
    other = make_encoder(tmp_path / "other", tokenizer, seed=8)
    refused("another run: model_is", source=other)
    refused("already holds a model; name another --out", out=other)


def test_overwriting_starts_anew_and_leaves_nothing_old(encoder, data, tmp_path):
    out = tmp_path / "out"
    fine_tune(encoder, ner_task(data), replace(RECIPE, epochs=1), out, WAY)
    anew = replace(WAY, overwrite=True)
    fine_tune(encoder, ner_task(data), replace(RECIPE, epochs=1, seed=2), out, anew)
    first = weights(out)
    # stopped while it overwrites: what was there is no longer taken for finished
    assert fine_tune(encoder, interrupted(ner_task(data), 3), RECIPE, out, anew) is None
    assert not (out / "config.json").exists() and not (out / "ner.json").exists()
    assert fine_tune(encoder, ner_task(data), RECIPE, out, WAY)["steps"] == 10
    assert weights(out) != first


# what goes on


def write_questions(directory):
    qa = write_qa(directory)
    return qa / "train.json", [qa / "test.json"], [qa / "golden.json"]


TASKS = {
    "ner": (write_ner, ner_task),
    "relation": (write_chemprot, relation_task),
    "qa": (write_questions, lambda files: qa_task(*files, stride=8)),
}


@pytest.mark.parametrize("at", [2, 9])
def test_a_stopped_run_goes_on_bit_for_bit(at, done, encoder, data, tmp_path, capsys):
    out = tmp_path / "out"
    assert fine_tune(encoder, interrupted(ner_task(data), at), RECIPE, out, WAY) is None
    assert "the same command goes on from there" in capsys.readouterr().out
    assert not (out / "config.json").exists()
    record = fine_tune(encoder, ner_task(data), RECIPE, out, WAY)
    assert "goes on from" in capsys.readouterr().out
    assert weights(out) == weights(done[0])
    assert {**record, "seconds": 0} == {**done[1], "seconds": 0}
    assert [x["loss"] for x in events(out, "train")][-1] == events(done[0], "train")[-1]["loss"]


class Crash(Exception):
    """What stands for a kill: nobody catches it."""


def test_the_log_of_a_crashed_run_tells_every_step_once(encoder, data, tmp_path):
    """Lines written since the last checkpoint are of steps that are made again."""

    def make(tokenizer, recipe, at=9):
        task, n = ner_task(data)(tokenizer, recipe), [0]

        def collate(examples):
            n[0] += 1
            if n[0] == at:
                raise Crash
            return task.collate(examples)

        return replace(task, collate=collate)

    way = replace(WAY, log_every=1, save_every=3)
    whole, out = tmp_path / "whole", tmp_path / "out"
    fine_tune(encoder, ner_task(data), RECIPE, whole, way)
    with pytest.raises(Crash):
        fine_tune(encoder, make, RECIPE, out, way)
    assert len(events(out, "train")) > 6  # beyond the checkpoint of step 6
    fine_tune(encoder, ner_task(data), RECIPE, out, way)
    told = [[(x["step"], x["loss"]) for x in events(run, "train")] for run in (whole, out)]
    assert told[0] == told[1] and [step for step, _ in told[0]] == list(range(1, 11))


@pytest.mark.parametrize("moves", [1, 4])
def test_a_run_killed_as_its_files_are_moved_is_not_finished(
    moves, done, encoder, data, tmp_path, monkeypatch
):
    n, move = [0], os.replace

    def crash(source, target):
        n[0] += os.path.basename(os.path.dirname(source)) == ".model"
        if n[0] == moves:
            raise Crash
        move(source, target)

    monkeypatch.setattr(os, "replace", crash)
    with pytest.raises(Crash):
        fine_tune(encoder, ner_task(data), RECIPE, tmp_path, WAY)
    assert not (tmp_path / "config.json").exists()
    monkeypatch.undo()
    record = fine_tune(encoder, ner_task(data), RECIPE, tmp_path, WAY)
    assert {**record, "seconds": 0} == {**done[1], "seconds": 0}
    assert weights(tmp_path) == weights(done[0])
    assert sorted(os.listdir(tmp_path)) == sorted(os.listdir(done[0]))


def test_every_kind_of_task_goes_on(encoder, tmp_path):
    makers = {name: make(write(tmp_path / name)) for name, (write, make) in TASKS.items()}
    teacher = make_encoder(tmp_path / "teacher", make_tokenizer(), seed=4)
    for name, make in makers.items():
        recipe = replace(RECIPE, epochs=1)
        fine_tune(teacher, make, recipe, tmp_path / f"{name}-t", WAY)
        taught = replace(recipe, method="tiny")
        whole, parts = tmp_path / f"{name}-a", tmp_path / f"{name}-b"
        run = partial(
            fine_tune, encoder, recipe=taught, way=WAY, teacher_dir=tmp_path / f"{name}-t"
        )
        record = run(make, out=whole)
        assert run(interrupted(make, 6), out=parts) is None
        again = run(make, out=parts)
        assert weights(whole) == weights(parts)
        assert {**record, "seconds": 0} == {**again, "seconds": 0}
        assert "layers" in events(whole, "train")[0] and record["teacher"].endswith(f"{name}-t")


def test_a_stopped_run_refuses_to_become_another(encoder, data, tmp_path):
    out = tmp_path / "out"
    fine_tune(encoder, interrupted(ner_task(data), 5), RECIPE, out, WAY)
    with pytest.raises(InputError, match="seed is 9, expected 5"):
        fine_tune(encoder, ner_task(data), replace(RECIPE, seed=9), out, WAY)


@pytest.mark.gpu
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_every_kind_of_task_on_a_gpu(precision, encoder, tmp_path):
    """Deterministic there too, with a teacher and without."""
    way = replace(WAY, ranks=Ranks(0, 0, 1, torch.device("cuda", 0)))
    torch.use_deterministic_algorithms(True)
    try:
        for name, (write, make) in TASKS.items():
            task, recipe = make(write(tmp_path / name)), replace(RECIPE, precision=precision)
            run = partial(fine_tune, encoder, task, way=way)
            run(recipe=recipe, out=tmp_path / f"{name}-t")
            for out in ("a", "b"):
                run(recipe=replace(recipe, method="tiny"), out=tmp_path / f"{name}-{out}",
                    teacher_dir=tmp_path / f"{name}-t")  # fmt: skip
            assert weights(tmp_path / f"{name}-a") == weights(tmp_path / f"{name}-b")
    finally:
        torch.use_deterministic_algorithms(False)


# early stopping


def scored(make, scores):
    """The same task, its development scores given one after the other."""
    given = iter(scores)

    def made(tokenizer, recipe):
        return replace(make(tokenizer, recipe), devel=lambda model: next(given))

    return made


def test_the_best_epoch_is_kept_and_patience_ends_the_run(encoder, data, tmp_path):
    make = ner_task(data)
    recipe = replace(RECIPE, epochs=6, patience=2)
    # before training, then after each epoch
    record = fine_tune(
        encoder, scored(make, [0.9, 0.1, 0.4, 0.3, 0.4]), recipe, tmp_path / "a", WAY
    )
    assert record["steps"] == 20 and record["best"] == {"step": 10, "score": 0.4}
    looks = [(x["step"], x["devel"]) for x in events(tmp_path / "a", "held_out")]
    assert looks == [(0, 0.9), (5, 0.1), (10, 0.4), (15, 0.3)]  # the next look ended it
    assert not (tmp_path / "a" / ".best").exists()
    # the model is that of step 10 of the same schedule
    seen = {}

    def looks(tokenizer, recipe):
        task = make(tokenizer, recipe)

        def devel(model):
            seen[len(seen)] = {k: x.clone() for k, x in model.state_dict().items()}
            return 1.0 if len(seen) == 3 else 0.0

        return replace(task, devel=devel)

    fine_tune(encoder, looks, replace(recipe, patience=9), tmp_path / "b", WAY)
    assert len(seen) == 7 and weights(tmp_path / "b") == weights(tmp_path / "a")
    got, _ = minibio.load(tmp_path / "a", head="token")
    for name, x in got.state_dict().items():
        assert torch.equal(x, seen[2][name])


@pytest.mark.parametrize("at", [9])
def test_early_stopping_goes_on_bit_for_bit(at, encoder, data, tmp_path):
    recipe = replace(RECIPE, epochs=4, patience=1)
    record = fine_tune(encoder, ner_task(data), recipe, tmp_path / "a", WAY)
    fine_tune(encoder, interrupted(ner_task(data), at), recipe, tmp_path / "b", WAY)
    again = fine_tune(encoder, ner_task(data), recipe, tmp_path / "b", WAY)
    assert {**record, "seconds": 0} == {**again, "seconds": 0}
    assert weights(tmp_path / "a") == weights(tmp_path / "b")


def test_the_best_before_a_stop_is_remembered_after_it(encoder, tmp_path):
    make = ner_task(write_ner(tmp_path / "set"))
    recipe = replace(RECIPE, epochs=3, patience=3)
    early = interrupted(scored(make, [0.0, 0.8]), 17)  # after the first epoch, in the second
    assert fine_tune(encoder, early, recipe, tmp_path / "a", WAY) is None
    late = scored(make, [0.2, 0.3])
    record = fine_tune(encoder, late, recipe, tmp_path / "a", WAY)
    assert record["best"] == {"step": 10, "score": 0.8} and record["steps"] == 30
    fine_tune(encoder, scored(make, [0.0, 0.8, 0.2, 0.3]), recipe, tmp_path / "b", WAY)
    assert weights(tmp_path / "a") == weights(tmp_path / "b")


# what is refused


def test_directories_that_do_not_fit(encoder, data, tokenizer, tmp_path):
    make, out = ner_task(data), tmp_path / "out"

    def refused(message, source=encoder, teacher=None, **changes):
        with pytest.raises(InputError, match=message) as error:
            fine_tune(source, make, replace(RECIPE, **changes), out, WAY, teacher)
        assert "\n" not in str(error.value) and not out.exists()

    refused("nowhere", source=tmp_path / "nowhere")
    bare = tmp_path / "bare"
    minibio.save(Model(tiny_config("bert", V=tokenizer.V)), None, bare)
    refused("bare has no tokenizer; put the vocab.txt", source=bare)
    refused("is not fine-tuned for ner; do that first", teacher=encoder)
    other = type(tokenizer).train(["The patient had Gout"] * 3, tokenizer.V)
    labels = ("O", "B", "I")

    def teacher(name, tokenizer, **changes):
        minibio.save(Model(tiny_config("bert", **changes), "token", labels), tokenizer,
                     tmp_path / name)  # fmt: skip
        return tmp_path / name

    refused("other-words has another vocabulary than --model",
            teacher=teacher("other-words", other, V=other.V))  # fmt: skip
    short = teacher("short", tokenizer, V=tokenizer.V, P=30)
    refused("short reads 30 tokens, expected 40; pass --length 30", teacher=short)
    refused("--length is 2, expected at least 3", length=2)


def test_too_few_examples_for_the_micro_batches(encoder, data, tmp_path):
    with pytest.raises(InputError, match="a batch of 8 examples, expected at least 9"):
        fine_tune(encoder, ner_task(data), RECIPE, tmp_path / "out", Way(ALONE, accumulate=9))


def test_no_development_set_to_watch(encoder, data, tmp_path):
    other = write_ner(tmp_path / "other")
    (other / "devel.tsv").unlink()
    with pytest.raises(InputError, match="--early-stopping needs a development set"):
        fine_tune(encoder, ner_task(other), replace(RECIPE, patience=1), tmp_path / "out", WAY)
