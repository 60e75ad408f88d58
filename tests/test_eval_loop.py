"""One fine-tuning: the recipe by hand, resuming after a stop, what is kept, what is refused."""

import copy
import json
import math
import os
import shutil
import signal
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch

import eval as evaluation
import minibio
from helpers import assert_near, tiny_config
from minibio.config import Recipe
from minibio.model.heads import Model
from minibio.run.dist import Ranks
from minibio.run.errors import InputError
from minibio.tasks import ner
from minibio.tasks.ner import NerTask
from minibio.tasks.qa import QaTask
from minibio.tasks.relation import RelationTask
from toy_tasks import make_encoder, make_tokenizer, write_chemprot, write_ner, write_qa

ALONE = Ranks(0, 0, 1, torch.device("cpu"))
RECIPE = Recipe(epochs=2, batch=8, lr=3e-3, seed=5, log_every=5, precision="fp32")


def execute(source, task, recipe, out, ranks=ALONE, **options):
    """One fine-tuning -> its record."""
    return evaluation.execute(task, source, recipe, out, ranks, **options)


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
    return out, execute(encoder, NerTask(data), RECIPE, out)


def weights(directory):
    return (directory / "model.safetensors").read_bytes()


def events(out, kind):
    lines = [json.loads(x) for x in (out / "log.jsonl").read_text("utf-8").splitlines()]
    return [x for x in lines if x["event"] == kind]


def interrupted(task, at):
    """The same task; SIGTERM comes when the batch number `at` is made."""
    return hooked(task, at, lambda: os.kill(os.getpid(), signal.SIGTERM))


def hooked(task, at, hook):
    """A copy of the task that calls `hook` when the batch number `at` is made."""
    task, n = copy.copy(task), [0]
    collate = task.collate

    def hooking(examples):
        n[0] += 1
        if n[0] == at:
            hook()
        return collate(examples)

    task.collate = hooking
    return task


# how it is learnt


def test_the_recipe_by_hand(tokenizer, data, tmp_path):
    """AdamW, cosine from the peak to 0 without warm-up, decay only on matrices, clipped to 1."""
    off = {"dropout": 0.0, "attention_dropout": 0.0}
    encoder = make_encoder(tmp_path / "model", tokenizer, **off)
    source, _ = minibio.load(encoder, head="encoder")
    execute(encoder, NerTask(data), replace(RECIPE, lr=1e-2), tmp_path / "out")
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
    execute(encoder, NerTask(data), RECIPE, tmp_path / "out")
    assert weights(tmp_path / "out") == weights(done[0])


def test_another_seed_gives_another_model(done, encoder, data, tmp_path):
    execute(encoder, NerTask(data), replace(RECIPE, seed=6), tmp_path / "out")
    assert weights(tmp_path / "out") != weights(done[0])


def test_nothing_is_chosen_on_devel_or_test(done, encoder, data, tmp_path):
    other = write_ner(tmp_path / "other", n=(1, 3, 5), seed=9)
    (other / "train.tsv").write_bytes((data / "train.tsv").read_bytes())
    (other / "devel.tsv").unlink()
    execute(encoder, NerTask(other), RECIPE, tmp_path / "out")
    assert weights(tmp_path / "out") == weights(done[0])


def test_micro_batches_change_nothing_but_rounding(tokenizer, data, tmp_path):
    encoder = make_encoder(tmp_path / "model", tokenizer, dropout=0.0, attention_dropout=0.0)
    recipe = replace(RECIPE, epochs=1, lr=1e-3, log_every=1)
    losses = []
    for n in (1, 3):
        out = tmp_path / f"out-{n}"
        execute(encoder, NerTask(data), replace(recipe, accumulate=n), out)
        losses.append([x["loss"] for x in events(out, "train")])
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)


# what comes out


def test_the_record_and_the_directory(done, encoder, data):
    out, record = done
    assert record == json.loads((out / "ner.json").read_text("utf-8"))
    assert record["task"] == "ner" and record["data"] == "toy" and record["seed"] == 5
    assert record["model"] == str(encoder) and record["teacher"] is None
    assert (
        record["config"]["labels"] == ["O", "B-entity", "I-entity"]
        and record["config"]["length"] == 40
    )
    assert record["config"]["counts"]["test"]["sentences"] == 16 and record["steps"] == 10
    assert sorted(p.name for p in out.iterdir()) == [
        "config.json", "log.jsonl", "model.safetensors", "ner.json", "test.conll",
        "tokenizer.json", "tokenizer_config.json", "vocab.txt",
    ]  # fmt: skip
    losses = [x["loss"] for x in events(out, "train")]
    assert len(losses) == 4 and losses[-1] < losses[0]
    assert len(events(out, "start")) == len(events(out, "end")) == 1


def test_a_finished_run_prints_its_scores_again(done, encoder, data, capsys, monkeypatch):
    out, record = done
    monkeypatch.setattr(evaluation, "fine_tune", None)
    before = {p.name: p.stat().st_mtime_ns for p in out.iterdir()}
    (out / "checkpoints").mkdir()  # as a kill at the very end leaves it
    assert execute(encoder, NerTask(data), RECIPE, out) == record
    assert "finished earlier" in capsys.readouterr().out
    assert before == {p.name: p.stat().st_mtime_ns for p in out.iterdir()}


@pytest.mark.parametrize("damage", [{"test": []}, {"test": {"word": 5}}, {"config": [1]}])
def test_a_damaged_record_of_a_finished_run_is_one_line(done, encoder, data, tmp_path, damage):
    out, record = done
    shutil.copytree(out, tmp_path / "out")
    (tmp_path / "out" / "ner.json").write_text(json.dumps({**record, **damage}))
    with pytest.raises(InputError, match="ner.json is not as it was written"):
        execute(encoder, NerTask(data), RECIPE, tmp_path / "out")


def test_another_run_in_the_same_place_is_refused(done, encoder, data, tokenizer, tmp_path):
    out, _ = done

    def refused(message, out=out, source=encoder, data=data, **changes):
        with pytest.raises(InputError, match=message) as error:
            execute(source, NerTask(data), replace(RECIPE, **changes), out)
        assert "\n" not in str(error.value)

    refused("holds another run: lr is 0.1, expected 0.003; name another --out or", lr=0.1)
    changed = write_ner(tmp_path / "toy", n=(40, 8, 16))
    test = changed / "test.tsv"
    test.write_text(test.read_text("utf-8").replace("Gout\tB", "Gout\tO", 1), "utf-8")
    refused("another run: data_is", data=changed)
    refused(
        "another run: data is 'short', expected 'toy'",
        data=write_ner(tmp_path / "short", n=(9, 2, 2)),
    )
    other = make_encoder(tmp_path / "other", tokenizer, seed=8)
    refused("another run: model_is", source=other)
    refused("already holds a model; name another --out", out=other)


def test_overwriting_starts_again_and_leaves_nothing_old(encoder, data, tmp_path):
    out = tmp_path / "out"
    execute(encoder, NerTask(data), replace(RECIPE, epochs=1), out)
    execute(encoder, NerTask(data), replace(RECIPE, epochs=1, seed=2), out, overwrite=True)
    first = weights(out)
    # stopped while it overwrites: what was there is no longer taken for finished
    early = interrupted(NerTask(data), 3)
    assert execute(encoder, early, RECIPE, out, overwrite=True) is None
    assert not (out / "config.json").exists() and not (out / "ner.json").exists()
    assert execute(encoder, NerTask(data), RECIPE, out)["steps"] == 10
    assert weights(out) != first


# resuming


def write_questions(directory):
    qa = write_qa(directory)
    return qa / "train.json", [qa / "test.json"], [qa / "golden.json"]


TASKS = {
    "ner": (write_ner, NerTask),
    "relation": (write_chemprot, RelationTask),
    "qa": (write_questions, lambda files: QaTask(*files, stride=8)),
}


@pytest.mark.parametrize("at", [2, 9])
def test_a_stopped_run_resumes_bit_for_bit(at, done, encoder, data, tmp_path, capsys):
    out = tmp_path / "out"
    assert execute(encoder, interrupted(NerTask(data), at), RECIPE, out) is None
    assert "re-run the same command to resume" in capsys.readouterr().out
    assert not (out / "config.json").exists()
    record = execute(encoder, NerTask(data), RECIPE, out)
    assert "resumed from" in capsys.readouterr().out
    assert weights(out) == weights(done[0])
    assert {**record, "seconds": 0} == {**done[1], "seconds": 0}
    assert [x["loss"] for x in events(out, "train")][-1] == events(done[0], "train")[-1]["loss"]


class Crash(Exception):
    """In place of a kill: nothing catches it."""


def test_the_log_of_a_crashed_run_has_every_step_once(encoder, data, tmp_path):
    """Lines written since the last checkpoint are of steps that are made again."""

    def crash():
        raise Crash

    recipe = replace(RECIPE, log_every=1, save_every=3)
    whole, out = tmp_path / "whole", tmp_path / "out"
    execute(encoder, NerTask(data), recipe, whole)
    with pytest.raises(Crash):
        execute(encoder, hooked(NerTask(data), 9, crash), recipe, out)
    assert len(events(out, "train")) > 6  # beyond the checkpoint of step 6
    execute(encoder, NerTask(data), recipe, out)
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
        execute(encoder, NerTask(data), RECIPE, tmp_path)
    assert not (tmp_path / "ner.json").exists()
    monkeypatch.undo()
    record = execute(encoder, NerTask(data), RECIPE, tmp_path)
    assert {**record, "seconds": 0} == {**done[1], "seconds": 0}
    assert weights(tmp_path) == weights(done[0])
    assert sorted(os.listdir(tmp_path)) == sorted(os.listdir(done[0]))


def test_every_kind_of_task_resumes(encoder, tmp_path):
    tasks = {name: make(write(tmp_path / name)) for name, (write, make) in TASKS.items()}
    teacher = make_encoder(tmp_path / "teacher", make_tokenizer(), seed=4)
    for name, task in tasks.items():
        recipe = replace(RECIPE, epochs=1)
        execute(teacher, task, recipe, tmp_path / f"{name}-t")
        taught = replace(recipe, method="tiny")
        whole, parts = tmp_path / f"{name}-a", tmp_path / f"{name}-b"
        run = partial(execute, encoder, recipe=taught, teacher_dir=tmp_path / f"{name}-t")
        record = run(task, out=whole)
        assert run(interrupted(task, 6), out=parts) is None
        again = run(task, out=parts)
        assert weights(whole) == weights(parts)
        assert {**record, "seconds": 0} == {**again, "seconds": 0}
        assert "layers" in events(whole, "train")[0] and record["teacher"].endswith(f"{name}-t")


def test_a_stopped_run_refuses_to_become_another(encoder, data, tmp_path):
    out = tmp_path / "out"
    execute(encoder, interrupted(NerTask(data), 5), RECIPE, out)
    with pytest.raises(InputError, match="seed is 9, expected 5"):
        execute(encoder, NerTask(data), replace(RECIPE, seed=9), out)


@pytest.mark.gpu
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_every_kind_of_task_on_a_gpu(precision, encoder, tmp_path):
    """Deterministic there too, with a teacher and without."""
    ranks = Ranks(0, 0, 1, torch.device("cuda", 0))
    torch.use_deterministic_algorithms(True)
    try:
        for name, (write, make) in TASKS.items():
            task, recipe = make(write(tmp_path / name)), replace(RECIPE, precision=precision)
            run = partial(execute, encoder, task, ranks=ranks)
            run(recipe=recipe, out=tmp_path / f"{name}-t")
            for out in ("a", "b"):
                run(recipe=replace(recipe, method="tiny"), out=tmp_path / f"{name}-{out}",
                    teacher_dir=tmp_path / f"{name}-t")  # fmt: skip
            assert weights(tmp_path / f"{name}-a") == weights(tmp_path / f"{name}-b")
    finally:
        torch.use_deterministic_algorithms(False)


# early stopping


def scored(task, scores):
    """The same task, its development scores given one after the other."""
    task, given = copy.copy(task), iter(scores)
    task.devel = lambda model: next(given)
    return task


def test_the_best_epoch_is_kept_and_patience_ends_the_run(encoder, data, tmp_path):
    task = NerTask(data)
    recipe = replace(RECIPE, epochs=6, patience=2)
    # before training, then after each epoch
    record = execute(encoder, scored(task, [0.9, 0.1, 0.4, 0.3, 0.4]), recipe, tmp_path / "a")
    assert record["steps"] == 20 and record["best"] == {"step": 10, "score": 0.4}
    scores = [(x["step"], x["devel"]) for x in events(tmp_path / "a", "held_out")]
    assert scores == [(0, 0.9), (5, 0.1), (10, 0.4), (15, 0.3), (20, 0.4)]
    assert not (tmp_path / "a" / ".best").exists()
    # the model is that of step 10 of the same schedule
    seen = {}

    def devel(model):
        seen[len(seen)] = {k: x.clone() for k, x in model.state_dict().items()}
        return 1.0 if len(seen) == 3 else 0.0

    task.devel = devel
    execute(encoder, task, replace(recipe, patience=9), tmp_path / "b")
    assert len(seen) == 7 and weights(tmp_path / "b") == weights(tmp_path / "a")
    got, _ = minibio.load(tmp_path / "a", head="token")
    for name, x in got.state_dict().items():
        assert torch.equal(x, seen[2][name])


@pytest.mark.parametrize("at", [9])
def test_early_stopping_resumes_bit_for_bit(at, encoder, data, tmp_path):
    recipe = replace(RECIPE, epochs=4, patience=1)
    record = execute(encoder, NerTask(data), recipe, tmp_path / "a")
    execute(encoder, interrupted(NerTask(data), at), recipe, tmp_path / "b")
    again = execute(encoder, NerTask(data), recipe, tmp_path / "b")
    assert {**record, "seconds": 0} == {**again, "seconds": 0}
    assert weights(tmp_path / "a") == weights(tmp_path / "b")


def test_the_best_before_a_stop_is_remembered_after_it(encoder, tmp_path):
    task = NerTask(write_ner(tmp_path / "set"))
    recipe = replace(RECIPE, epochs=3, patience=3)
    early = interrupted(scored(task, [0.0, 0.8]), 17)  # after the first epoch, in the second
    assert execute(encoder, early, recipe, tmp_path / "a") is None
    late = scored(task, [0.2, 0.3])
    record = execute(encoder, late, recipe, tmp_path / "a")
    assert record["best"] == {"step": 10, "score": 0.8} and record["steps"] == 30
    execute(encoder, scored(task, [0.0, 0.8, 0.2, 0.3]), recipe, tmp_path / "b")
    assert weights(tmp_path / "a") == weights(tmp_path / "b")


# what is refused


def test_directories_that_do_not_fit(encoder, data, tokenizer, tmp_path):
    task, out = NerTask(data), tmp_path / "out"

    def refused(message, source=encoder, teacher=None, **changes):
        with pytest.raises(InputError, match=message) as error:
            execute(source, task, replace(RECIPE, **changes), out, teacher_dir=teacher)
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
        execute(encoder, NerTask(data), replace(RECIPE, accumulate=9), tmp_path / "out")


def test_no_development_set_to_watch(encoder, data, tmp_path):
    other = write_ner(tmp_path / "other")
    (other / "devel.tsv").unlink()
    with pytest.raises(InputError, match="--early-stopping needs a development set"):
        execute(encoder, NerTask(other), replace(RECIPE, patience=1), tmp_path / "out")
