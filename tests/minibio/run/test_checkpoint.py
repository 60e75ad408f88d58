"""A run that was cut and went on is the run that was never cut: byte by byte.

As a script, `test_checkpoint.py MODE OUT`, this file is what its tests start in other processes.
"""

import dataclasses
import errno
import hashlib
import json
import os
import random
import signal
import sys
import time
from pathlib import Path

import pytest
import torch
import torch.nn as nn
from safetensors.torch import load_file

from helpers import ROOT, processes, random_batch, tiny_config
from minibio.batch import Counts
from minibio.config import METHODS, RunConfig
from minibio.distil.objectives import OBJECTIVES, Tiny, teach
from minibio.model.heads import Model
from minibio.run import checkpoint, dist, options, store
from minibio.run.checkpoint import FOLDER, LOG, PARTS, Checkpoints, newest
from minibio.run.errors import InputError
from minibio.run.log import Progress
from minibio.run.optim import lr_at, make_optimizer

ALONE = dist.Ranks(0, 0, 1, torch.device("cpu"))
SEED, B = 5, 3
MAY_DIFFER = options.may_differ(RunConfig)
CONFIG = {**dataclasses.asdict(METHODS["tiny"]), "seed": SEED, "batch": B, "accumulate": 1}


# ---- a small run of the real thing: Tiny with dropout


class Run:
    """Student, teacher and optimiser; `train` goes on from wherever it stands."""

    def __init__(self, ranks=ALONE, width=12, fidelity="released"):
        torch.manual_seed(0)
        self.ranks, self.done = ranks, 0
        student = Model(tiny_config(L=2, C=width, H=2, F=20, dropout=0.1, attention_dropout=0.1))
        self.teacher = Model(tiny_config(L=4, C=16, H=2, F=20)).eval().requires_grad_(False)
        run = dataclasses.replace(METHODS["tiny"], fidelity=fidelity)
        self.objective = OBJECTIVES["tiny"](student, self.teacher, run).train()
        self.model = self.objective
        if ranks.world > 1:
            self.model = nn.parallel.DistributedDataParallel(self.objective)
        self.optimizer = make_optimizer(self.objective, lr=0, weight_decay=0.01)
        torch.manual_seed(SEED + ranks.rank)

    def train(self, steps):
        """The terms of the loss in each of the steps, to the last bit."""
        told = []
        for step in range(self.done, self.done + steps):
            for group in self.optimizer.param_groups:
                group["lr"] = lr_at(step, peak=1e-2, warmup=3, total=20)
            seed = step * self.ranks.world + self.ranks.rank
            batch = random_batch((5, 9, 2), n_predicted=4, seed=seed)
            taught = teach(self.teacher, batch, self.objective.needs)
            terms = self.model(batch, taught, Counts.of([batch]))
            terms["loss"].backward()
            self.optimizer.step()
            self.optimizer.zero_grad(set_to_none=True)
            told.append({name: x.item().hex() for name, x in terms.items()})
        self.done += steps
        return told

    def tensors(self):
        moments = checkpoint.moments(self.objective, self.optimizer)
        return {**checkpoint.weights(self.objective), **moments}

    def fingerprint(self):
        """sha256 of every weight and of the optimiser's whole checkpoint."""
        return {
            name: hashlib.sha256(x.numpy().tobytes()).hexdigest()
            for name, x in self.tensors().items()
        }

    def save(self, checkpoints, **more):
        checkpoints.save(
            self.done, self.objective, self.optimizer, samples=self.done * B, config=CONFIG, **more
        )

    def resume(self, out):
        found = newest(out, self.ranks)
        found.restore(self.objective, self.optimizer, self.ranks, seed=SEED)
        self.done = found.step
        return found


def names(out):
    return sorted(os.listdir(out / FOLDER))


# ---- what its tests start


def go_on(out):
    """A fresh process that resumes and trains three steps, from each of two checkpoints."""
    runs = Run(), Run()
    for run, name in zip(runs, ("front", "back"), strict=True):
        run.resume(out / name)
        told = run.train(3)
        print(json.dumps([told, run.fingerprint()]))


def two_processes(out):
    """Save, go on, resume, go on: the same. Then a full disk on rank 0, known to both."""
    ranks = dist.start("cpu")
    run = Run(ranks)
    checkpoints = Checkpoints(out, ranks)
    run.train(2)
    run.save(checkpoints, counters={"tokens": 7})
    first = run.train(2)
    other = Run(ranks)
    with torch.no_grad():
        next(other.objective.parameters()).fill_(9)
    found = other.resume(out)
    assert (found.step, found.samples, found.world) == (2, 2 * B, 2)
    again = other.train(2)
    states = dist.all_gather(checkpoint.random_state(ranks.device)["cpu"], ranks)
    assert not torch.equal(*states)  # each rank's own
    assert first == again and run.fingerprint() == other.fingerprint()

    def full(*args, **kwargs):
        raise OSError(errno.ENOSPC, "No space left on device")

    write, store.write = store.write, full
    try:
        other.save(checkpoints)
        raise AssertionError("the disk was full")
    except InputError as error:
        assert "No space left on device: step 4 was not saved" in str(error), error
    store.write = write
    other.save(checkpoints)
    if ranks.rank == 0:  # damaged for everybody
        os.truncate(out / FOLDER / "step-00000004" / "weights.safetensors", 100)
    dist.barrier(ranks)
    assert newest(out, ranks).step == 2
    narrow = Run(ranks, width=14)
    try:
        narrow.resume(out)
        raise AssertionError("another width")
    except InputError as error:
        assert "expected (101, 14)" in str(error), error
    if ranks.rank == 0:
        os.truncate(out / FOLDER / "step-00000002" / "state.json", 100)
    dist.barrier(ranks)
    try:
        newest(out, ranks)
        raise AssertionError("all are damaged")
    except InputError as error:
        assert "every checkpoint is damaged" in str(error), error
    checkpoints.clear()
    assert newest(out, ranks) is None
    other.save(checkpoints)
    dist.barrier(ranks)
    print(json.dumps(f"rank {ranks.rank}: ok"))
    del run.model, other.model, narrow.model
    dist.stop(ranks)


def told_by(world, mode, out):
    """The lines that each process printed, as JSON; they end well."""
    path = f"{ROOT}:{ROOT / 'tests'}"
    told = processes(world, [__file__, mode, out], PYTHONPATH=path)
    for status, _, err in told:
        assert status == 0, err
    return [[json.loads(line) for line in out.splitlines()] for _, out, _ in told]


# ---- the same run


def test_resumed_in_a_fresh_process_it_is_the_unbroken_run(tmp_path):
    before, run = Run(), Run()
    before.train(1)
    run.train(4)
    run.save(Checkpoints(tmp_path / "front", ALONE))
    checkpoints = Checkpoints(tmp_path / "back", ALONE, keep=1)
    before.save(checkpoints)  # other weights, of an earlier step
    run.save(checkpoints)
    told = run.train(3)  # what was saved is what was
    (lines,) = told_by(1, "go_on", tmp_path)
    assert lines == [[told, run.fingerprint()]] * 2
    assert len({terms["loss"] for terms in told}) == 3
    fingerprint = run.fingerprint()
    assert sum(name.startswith("exp_avg_sq:") for name in fingerprint) > 20


@pytest.mark.parametrize("fidelity", ["paper", "released"])
def test_without_any_one_part_it_is_another_run(tmp_path, fidelity):
    """Weights, moments, counts and random state: each is needed, so each was saved."""
    run = Run(fidelity=fidelity)
    run.train(2)
    run.save(Checkpoints(tmp_path, ALONE))
    told = run.train(1)
    same = Run(fidelity=fidelity)
    same.resume(tmp_path)
    assert same.train(1) == told and same.fingerprint() == run.fingerprint()
    for spoil in (
        lambda run: torch.rand(1),
        lambda run: next(iter(run.optimizer.state.values()))["step"].add_(1),
        lambda run: next(iter(run.optimizer.state.values()))["exp_avg"].mul_(1.1),
        lambda run: run.objective.W_h.weight.data.mul_(1.1),
    ):
        other = Run(fidelity=fidelity)
        other.resume(tmp_path)
        spoil(other)
        assert other.train(1) != told or other.fingerprint() != run.fingerprint()


def test_what_is_known_of_a_checkpoint(tmp_path):
    run = Run()
    run.train(2)
    (tmp_path / LOG).write_text("one line\n")
    counters = {"tokens": 123, "skipped": 0, "since": 0.1}
    run.save(Checkpoints(tmp_path, ALONE), counters=counters)
    found = Run().resume(tmp_path)
    assert found.path == tmp_path / FOLDER / "step-00000002"
    assert (found.step, found.samples, found.log_bytes, found.world) == (2, 2 * B, 9, 1)
    assert found.counters == {"tokens": 123, "skipped": 0, "since": 0.1}
    assert found.config == json.loads(json.dumps(CONFIG))
    assert found.optimizer["class"] == "AdamW" and found.versions["torch"] == torch.__version__
    assert sorted(os.listdir(found.path)) == [
        "manifest.json", "optimizer.safetensors", "ranks.safetensors", "state.json",
        "weights.safetensors",
    ]  # fmt: skip


def test_the_log_is_cut_to_where_the_checkpoint_was(tmp_path, capsys):
    run, log = Run(), tmp_path / LOG
    run.save(Checkpoints(tmp_path, ALONE))  # there is no log yet
    newest(tmp_path, ALONE).cut_log(ALONE)
    assert not log.exists()
    log.write_text("one\n")
    newest(tmp_path, ALONE).cut_log(ALONE)
    assert log.read_text() == ""
    log.write_text("one\ntwo\n")
    run.train(1)
    run.save(Checkpoints(tmp_path, ALONE))
    log.write_text("one\ntwo\nthree\nfo")
    newest(tmp_path, ALONE).cut_log(ALONE)
    newest(tmp_path, ALONE).cut_log(ALONE)
    assert log.read_text() == "one\ntwo\n" and not capsys.readouterr().err
    log.write_text("one\n")
    newest(tmp_path, ALONE).cut_log(ALONE)
    assert "has 4 bytes, expected 8: lines of it are lost" in capsys.readouterr().err
    assert log.read_text() == "one\n"


def test_configurations_are_compared(tmp_path):
    run = Run()
    run.save(Checkpoints(tmp_path, ALONE))
    found = newest(tmp_path, ALONE)
    assert found.changes(CONFIG, MAY_DIFFER, ALONE) == []
    two = dist.Ranks(0, 0, 2, torch.device("cuda"))
    assert found.changes({**CONFIG, "lr": 1.0, "accumulate": 2}, MAY_DIFFER, two) == [
        ("accumulate", 1, 2), ("lr", CONFIG["lr"], 1.0), ("processes", 1, 2), ("on", "cpu", "cuda"),
    ]  # fmt: skip
    with pytest.raises(InputError, match="step-00000000 is of another run: seed is 6, expected 5"):
        found.changes({**CONFIG, "seed": 6}, MAY_DIFFER, ALONE)
    later = dataclasses.replace(found, versions={**found.versions, "torch": "2.0"})
    assert later.changes(CONFIG, MAY_DIFFER, ALONE) == [("torch", "2.0", torch.__version__)]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"width": 14}, r"token.weight is \(101, 12\), expected \(101, 14\)"),
        ({"fidelity": "paper"}, "no W_e.weight in it"),
    ],
)
def test_a_run_of_another_shape_is_refused_untouched(tmp_path, change, message):
    run = Run()
    run.train(1)
    run.save(Checkpoints(tmp_path, ALONE))
    other = Run(**change)
    before, drawn = other.fingerprint(), torch.get_rng_state()
    with pytest.raises(InputError, match=message):
        other.resume(tmp_path)
    assert other.fingerprint() == before and torch.equal(torch.get_rng_state(), drawn)


def test_another_optimizer_is_refused_untouched(tmp_path):
    run = Run()
    run.train(1)
    run.save(Checkpoints(tmp_path, ALONE))
    other = Run()
    before = other.fingerprint()
    other.optimizer = torch.optim.SGD(other.objective.parameters(), lr=0.1)
    with pytest.raises(InputError, match="the optimiser was AdamW, expected SGD"):
        other.resume(tmp_path)
    other.optimizer = make_optimizer(other.objective.student, lr=0.1, weight_decay=0)
    with pytest.raises(InputError, match="W_h.weight was in group 0 of the .*, expected no group"):
        other.resume(tmp_path)
    other.optimizer = make_optimizer(other.objective, lr=0.1, weight_decay=0)
    assert other.fingerprint() == before


def test_a_resumed_run_outlives_the_checkpoint_it_came_from(tmp_path):
    run = Run()
    run.train(1)
    run.save(Checkpoints(tmp_path, ALONE))
    told = run.train(1)
    other = Run()
    other.resume(tmp_path)
    for path in (tmp_path / FOLDER).rglob("*.safetensors"):
        with open(path, "r+b") as file:  # in place: a mapped tensor would see it
            file.write(b"\xff" * path.stat().st_size)
    assert other.train(1) == told and other.fingerprint() == run.fingerprint()


# ---- which ones are kept


def test_the_newest_are_kept(tmp_path):
    run, checkpoints = Run(), Checkpoints(tmp_path, ALONE, keep=2)
    for _ in range(4):
        run.train(1)
        run.save(checkpoints)
        run.save(checkpoints)  # twice at the same step: the later one stays
    assert names(tmp_path) == ["step-00000003", "step-00000004"]
    run.save(checkpoints, counters={"tokens": 2})
    assert newest(tmp_path, ALONE).counters == {"tokens": 2}
    with pytest.raises(InputError, match="0 checkpoints to be kept"):
        Checkpoints(tmp_path, ALONE, keep=0)


def test_what_is_left_does_not_depend_on_stops(tmp_path):
    """A stop's is one more, until the next one is written, and then as if it had never been."""

    def is_due(step):
        return step % 2 == 0

    run, checkpoints = Run(), Checkpoints(tmp_path, ALONE, keep=2)
    kept = {}
    for step in range(1, 9):
        run.train(1)
        if is_due(step) or step in (1, 5, 7):
            run.save(checkpoints, is_due=is_due)
        kept[step] = [int(name[-1]) for name in names(tmp_path)]
    assert kept == {1: [1], 2: [2], 3: [2], 4: [2, 4], 5: [2, 4, 5], 6: [4, 6], 7: [4, 6, 7],
                    8: [6, 8]}  # fmt: skip


def test_going_on_from_an_older_one_gives_up_the_later(tmp_path, capsys):
    """The damaged future is not counted among those to be kept."""
    run, checkpoints = Run(), Checkpoints(tmp_path, ALONE, keep=3)
    for _ in range(3):
        run.train(2)
        run.save(checkpoints)
    for step in (4, 6):
        os.truncate(tmp_path / FOLDER / f"step-{step:08d}" / "weights.safetensors", 50)
    again = Run()
    again.resume(tmp_path)
    assert again.done == 2
    told = capsys.readouterr().err.splitlines()
    assert len(told) == 2 and all("its 50 bytes are not those that were written" in x for x in told)
    assert "step-00000006" in told[0] and "step-00000004" in told[1]
    again.train(1)
    again.save(Checkpoints(tmp_path, ALONE, keep=1))
    assert names(tmp_path) == ["step-00000003"]


def test_none_and_none_whole(tmp_path, capsys):
    assert newest(tmp_path, ALONE) is None
    assert newest(tmp_path / "nowhere", ALONE) is None
    run, checkpoints = Run(), Checkpoints(tmp_path, ALONE)
    for _ in range(2):
        run.save(checkpoints)
        run.train(1)
    for place in store.whole(tmp_path / FOLDER):
        (place / "manifest.json").unlink()
    with pytest.raises(InputError, match="every checkpoint is damaged: step-00000001, step-0000"):
        newest(tmp_path, ALONE)
    assert capsys.readouterr().err.count("warning: ") == 2
    checkpoints.clear()
    assert newest(tmp_path, ALONE) is None and not (tmp_path / FOLDER).exists()


# ---- faults


def test_a_full_disk_is_one_line_and_leaves_what_stood(tmp_path, monkeypatch):
    run, checkpoints = Run(), Checkpoints(tmp_path, ALONE)
    run.save(checkpoints)
    run.train(1)
    write = store.write_file

    def full(path, content):
        if path.name == "optimizer.safetensors":
            write(path, b"half of it")
            raise OSError(errno.ENOSPC, "No space left on device", str(path))
        return write(path, content)

    monkeypatch.setattr(store, "write_file", full)
    message = (
        "optimizer.safetensors: No space .* step 1 was not saved, .*whole: step-00000000; make"
    )
    with pytest.raises(InputError, match=message) as caught:
        run.save(checkpoints)
    assert "\n" not in str(caught.value)
    assert names(tmp_path) == ["step-00000000"] and newest(tmp_path, ALONE).step == 0
    monkeypatch.undo()
    run.save(checkpoints)
    assert newest(tmp_path, ALONE).step == 1


def test_what_fits_no_json_is_refused_and_nothing_written(tmp_path):
    checkpoints = Checkpoints(tmp_path, ALONE)
    with pytest.raises(TypeError, match="not JSON serializable"):
        Run().save(checkpoints, counters={"loss": torch.ones(1)})
    assert newest(tmp_path, ALONE) is None


def test_a_place_that_cannot_be_written_is_refused_at_once(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="is not a directory"):
        Checkpoints(tmp_path / "file", ALONE)


def test_killed_at_any_instant_there_is_a_whole_one(tmp_path):
    """kill -9 of a process that only saves, again and again."""
    rng, leftovers, last, round_ = random.Random(0), set(), 0, 0
    run = Run()
    run.train(1)
    run.save(Checkpoints(tmp_path, ALONE, keep=2))
    begun = time.monotonic()
    run.save(Checkpoints(tmp_path, ALONE, keep=2))
    seconds = time.monotonic() - begun  # of a save, on this machine
    while round_ < 30 or last < 15 or not leftovers:  # until some were killed in the midst of it
        round_ += 1
        assert round_ < 300, (last, leftovers)
        saved, said = os.pipe()
        child = os.fork()
        if child == 0:
            try:
                run.done = newest(tmp_path, ALONE).step
                checkpoints = Checkpoints(tmp_path, ALONE, keep=2)
                while True:
                    run.done += 1
                    run.save(checkpoints)
                    os.write(said, b".")
            finally:
                os._exit(1)
        os.close(said)
        for _ in range(rng.randint(0, 2)):  # whole ones, however slow the machine is now
            assert os.read(saved, 1)
        time.sleep(1.5 * seconds * rng.random())
        os.kill(child, signal.SIGKILL)
        assert os.WIFSIGNALED(os.waitpid(child, 0)[1])
        os.close(saved)
        leftovers |= {name.rsplit(".", 1)[1] for name in names(tmp_path) if name[0] == "."}
        places = store.whole(tmp_path / FOLDER)
        steps = [store.check(place, PARTS)["step"] for place in places]  # all of them are whole
        assert steps[0] >= last
        last = steps[0]
    other = Run()
    other.resume(tmp_path)
    assert other.fingerprint() == run.fingerprint()
    other.save(Checkpoints(tmp_path, ALONE, keep=2))
    assert names(tmp_path)[-1] == f"step-{last:08d}" and len(names(tmp_path)) == 2


# ---- of another version


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda state, parts: state.pop("counters"), "state.json has no 'counters'"),
        (lambda state, parts: state.update(loss=1), "state.json has an unknown 'loss'"),
        (lambda state, parts: state.update(config=[]), r"config is \[\], expected dict"),
        (lambda state, parts: state.update(log_bytes="9"), "log_bytes is '9', expected int"),
        (lambda state, parts: state.update(optimizer=None), "optimizer is None, expected dict"),
        (lambda state, parts: state["optimizer"].pop("class"), "the optimiser was None"),
        (lambda state, parts: parts["ranks"].clear(), "random state 'cpu' is missing"),
        (lambda state, parts: parts["ranks"].update({"random/cpu": torch.zeros(1, 9)}),
         r"random state 'cpu' is \(1, 9\), expected \(1, \d+\)"),
        (lambda state, parts: parts["optimizer"].pop("step:W_h.weight"), "no step:W_h.weight in"),
        (lambda state, parts: parts["optimizer"].update({"strange": torch.ones(1)}),
         "strange is of no parameter of this run"),
    ],
)  # fmt: skip
def test_a_checkpoint_of_another_version_is_one_line_and_changes_nothing(tmp_path, change, message):
    """With sums that fit: not damaged, only other."""
    run = Run()
    run.train(1)
    run.save(Checkpoints(tmp_path, ALONE))
    (place,) = store.whole(tmp_path / FOLDER)
    state = store.check(place, PARTS)
    parts = {part: load_file(place / f"{part}.safetensors") for part in PARTS}
    change(state, parts)
    store.write(tmp_path / FOLDER, state.get("step", 1), parts, json.dumps(state).encode())
    other = Run()
    before = other.fingerprint()
    with pytest.raises(InputError, match=message) as caught:
        other.resume(tmp_path)
    assert "\n" not in str(caught.value) and other.fingerprint() == before


@pytest.mark.parametrize(
    "change", [{"tokens": "7"}, {"mark": 3}, {"terms": None}, {"of_a_later_version": 1}]
)
def test_counts_of_another_version_are_one_line(change):
    counters = dataclasses.asdict(Progress(step=3, mark=(1, 2, 3.5)))
    known = json.loads(json.dumps(counters))
    assert Progress.read(known, "out/step-3").step == 3
    with pytest.raises(InputError, match=f"out/step-3: the counter '{[*change][0]}' is"):
        Progress.read({**known, **change}, "out/step-3")


# ---- several processes


def test_two_processes_save_fail_and_resume_together(tmp_path, capsys):
    assert told_by(2, "two_processes", tmp_path) == [["rank 0: ok"], ["rank 1: ok"]]
    drawn = []
    for _ in range(2):  # one process goes on where two were: same weights, a stated new state
        run = Run()
        torch.rand(len(drawn))
        found = run.resume(tmp_path)
        assert (found.step, found.world) == (4, 2)
        assert "the checkpoint is of 2 x cpu, this run of 1 x cpu" in capsys.readouterr().out
        drawn.append(torch.rand(3).tolist())
    checkpoint.fresh_random_state(SEED, 4, 0)
    assert drawn == [torch.rand(3).tolist()] * 2


# ---- a run as named tensors


TEACHER = tiny_config(L=4)
CPU = torch.device("cpu")


def objective(fidelity="released", **shape):
    torch.manual_seed(0)
    student = Model(tiny_config(L=2, **{"C": 30, "F": 20, **shape}))
    run = dataclasses.replace(METHODS["tiny"], fidelity=fidelity)
    return Tiny(student, Model(TEACHER), run)


def optimizer(module, steps=1):
    made = make_optimizer(module, lr=1e-3, weight_decay=0.01)
    for step in range(steps):
        for i, p in enumerate(module.parameters()):
            p.grad = torch.full_like(p, (i % 7 - 3) / (step + 1))
        made.step()
    return made


def test_a_shared_tensor_comes_once():
    module = objective("released")  # one projection under two names
    assert module.W_e is module.W_h
    named = checkpoint.weights(module)
    assert "W_h.weight" in named and "W_e.weight" not in named
    assert len({x.data_ptr() for x in named.values()}) == len(named)
    assert sum(x.numel() for x in named.values()) == sum(p.numel() for p in module.parameters())
    assert {"W_h.weight", "W_e.weight"} < set(checkpoint.weights(objective("paper")))


def test_buffers_that_are_saved_come_too():
    module = nn.BatchNorm1d(3)
    module.register_buffer("scratch", torch.zeros(2), persistent=False)
    assert list(checkpoint.weights(module)) == [
        "weight", "bias", "running_mean", "running_var", "num_batches_tracked"
    ]  # fmt: skip


def test_names_are_those_of_the_module_without_its_wrappers():
    module = nn.Sequential(nn.Linear(2, 2))
    module[0] = torch.compile(module[0])  # nothing is compiled before it is called
    assert list(checkpoint.weights(module)) == ["0.weight", "0.bias"]
    assert checkpoint.groups(module, optimizer(module)) == [["0.weight"], ["0.bias"]]
    assert checkpoint.plain("module._orig_mod.a.module.b") == "a.module.b"


def test_put_back_into_another_run_every_tensor_is_the_same():
    module = objective()
    made = optimizer(module, steps=3)
    stored = {name: x.clone() for name, x in checkpoint.weights(module).items()}
    kept = {name: x.clone() for name, x in checkpoint.moments(module, made).items()}
    n = len(list(module.parameters()))
    assert len(kept) == 3 * n and kept["step:W_h.bias"] == 3
    other = objective()
    anew = optimizer(other, steps=0)
    assert checkpoint.moments(other, anew) == {}
    anew.param_groups[0]["weight_decay"] = 0.25  # the present run's options stay
    checkpoint.check_weights(stored, other, "x")
    checkpoint.check_moments(kept, checkpoint.groups(module, made), other, anew, "x")
    checkpoint.put_weights(other, stored)
    checkpoint.put_moments(other, anew, kept)
    for then, now in ((stored, checkpoint.weights(other)), (kept, checkpoint.moments(other, anew))):
        assert list(then) == list(now)
        assert all(torch.equal(x, now[name]) for name, x in then.items())
    assert [g["weight_decay"] for g in anew.param_groups] == [0.25, 0.0]
    assert other.W_e.weight is other.W_h.weight
    before = {name: x.clone() for name, x in kept.items()}
    for p in other.parameters():
        p.grad = torch.ones_like(p)
    anew.step()
    assert all(torch.equal(x, before[name]) for name, x in kept.items())  # copies, not the same


def test_an_optimizer_before_its_first_step():
    module = objective()
    made = optimizer(module, steps=0)
    groups = checkpoint.groups(module, made)
    assert sum(map(len, groups)) == len(list(module.parameters()))
    checkpoint.check_moments({}, groups, module, made, "x")
    checkpoint.put_moments(module, made, {})
    assert checkpoint.moments(module, made) == {}


def without(named, name):
    return {n: x for n, x in named.items() if n != name}


def test_weights_of_another_shape_are_refused_by_name():
    wide, narrow = objective(C=40), objective()
    stored = checkpoint.weights(wide)
    table = "student.encoder.embeddings.token.weight"
    with pytest.raises(InputError, match=rf"run/7: {table} is \(101, 40\), expected \(101, 30\)"):
        checkpoint.check_weights(stored, narrow, "run/7")
    stored = checkpoint.weights(narrow)
    with pytest.raises(InputError, match=rf"no W_h.bias in it, expected \({TEACHER.C},\)"):
        checkpoint.check_weights(without(stored, "W_h.bias"), narrow, "x")
    with pytest.raises(InputError, match="W_x is in it, but not in this run"):
        checkpoint.check_weights({**stored, "W_x": torch.ones(1)}, narrow, "x")
    with pytest.raises(InputError, match="float64, expected torch.float32"):
        checkpoint.check_weights({**stored, "W_h.bias": stored["W_h.bias"].double()}, narrow, "x")


def test_an_optimizer_of_other_parameters_is_refused_by_name():
    module = objective()
    made = optimizer(module)
    kept, groups = checkpoint.moments(module, made), checkpoint.groups(module, made)
    name = groups[0][1]

    def check(stored, stored_groups):
        checkpoint.check_moments(stored, stored_groups, module, made, "run/7")

    with pytest.raises(InputError, match=f"{name} was in no group of .*, expected group 0"):
        check(kept, [[n for n in groups[0] if n != name], groups[1]])
    with pytest.raises(InputError, match=f"{name} was in group 1 .*, expected group 0"):
        check(kept, [[n for n in groups[0] if n != name], [*groups[1], name]])
    with pytest.raises(InputError, match="extra was in group 1 .*, expected no group"):
        check(kept, [groups[0], [*groups[1], "extra"]])
    with pytest.raises(InputError, match="in another order"):
        check(kept, [groups[0][::-1], groups[1]])
    with pytest.raises(InputError, match=f"run/7: exp_avg:{name} is .2,., expected"):
        check({**kept, f"exp_avg:{name}": torch.ones(2)}, groups)
    module.W_h.requires_grad_(False)  # trained then, frozen now
    frozen = optimizer(module, steps=0)
    with pytest.raises(InputError, match="W_h.weight was in group 0 .*, expected no group"):
        checkpoint.check_moments(kept, groups, module, frozen, "x")


def test_random_numbers_go_on():
    torch.randn(3)  # an odd number of normal draws leaves half a pair behind
    kept = checkpoint.random_state(CPU)
    assert set(kept) == {"cpu"}
    first = torch.randn(5), torch.rand(2)
    torch.manual_seed(9)
    rows = torch.stack([torch.get_rng_state(), kept["cpu"]])
    for x in (kept["cpu"], rows[1]):  # a row of all processes' states too
        checkpoint.put_random_state({"cpu": x}, CPU)
        again = torch.randn(5), torch.rand(2)
        assert all(map(torch.equal, first, again))


@pytest.mark.gpu
def test_random_numbers_of_a_gpu_go_on():
    device = torch.device("cuda", 0)
    torch.rand(7, device=device)
    kept = checkpoint.random_state(device)
    first = torch.rand(5, device=device), torch.rand(5)
    torch.manual_seed(9)
    checkpoint.put_random_state(kept, device)
    again = torch.rand(5, device=device), torch.rand(5)
    assert all(map(torch.equal, first, again))


def test_a_fresh_random_state_follows_from_seed_step_and_rank():
    drawn = {}
    for key in [(1, 10, 0), (2, 10, 0), (1, 11, 0), (1, 10, 1), (2**63 + 1, 0, 0)]:
        for _ in range(2):
            torch.rand(3)
            checkpoint.fresh_random_state(*key)
            drawn.setdefault(key, []).append(tuple(torch.rand(4).tolist()))
    assert all(first == again for first, again in drawn.values())
    assert len({first for first, _ in drawn.values()}) == len(drawn)


COMPACT = dataclasses.asdict(METHODS["compact"])
THEN = json.loads(json.dumps(COMPACT))  # as a file has it: lists for tuples
SAME = {  # what makes it the same run
    "layers": 3, "width": 24, "heads": 2, "ffn": 20,
    "method": "tiny", "model": "x", "fidelity": "released", "alpha": (1.0, 5.0, 2.0),
    "temperature": 2.0, "layer_map": (1, 2), "init_layers": (), "init_head": "copy", "stages": 0.5,
    "length": 128, "batch": 191, "batch_tokens": 99, "seed": 43, "eval_documents": 99,
}  # fmt: skip
OTHERWISE = {
    "steps": 7, "lr": 1e-5, "warmup": 2, "schedule": "cosine", "weight_decay": 0.5,
    "betas": (0.8, 0.9), "adam_eps": 1e-6, "clip": 2.0, "precision": "bf16", "accumulate": 2,
    "teacher_precision": "auto", "tf32": True, "compile": True, "kernels": "torch",
    "log_every": 3, "eval_every": 3, "save_every": 3, "keep": 9, "max_skips": 2,
}  # fmt: skip


def test_every_field_of_a_run_is_decided():
    fields = {f.name for f in dataclasses.fields(RunConfig)}
    assert set(SAME) | set(OTHERWISE) >= fields - MAY_DIFFER
    assert set(OTHERWISE) == fields & MAY_DIFFER
    assert not set(SAME) & MAY_DIFFER


@pytest.mark.parametrize("name", SAME)
def test_another_run_is_refused(name):
    with pytest.raises(InputError) as caught:
        checkpoint.changes(THEN, {**COMPACT, name: SAME[name]}, MAY_DIFFER, "out/step-7")
    now = list(SAME[name]) if isinstance(SAME[name], tuple) else SAME[name]
    assert f"out/step-7 is of another run: {name} is {now!r}, expected {THEN[name]!r}; resume" in (
        str(caught.value)
    )


def test_all_that_is_wrong_is_named_at_once():
    with pytest.raises(InputError, match="batch is 16, expected 192; seed is 1, expected 42; res"):
        checkpoint.changes(THEN, {**COMPACT, "seed": 1, "batch": 16, "lr": 1.0}, MAY_DIFFER, "x")
    with pytest.raises(InputError, match="tokenizer is 'b', expected 'a'"):  # unknown: must agree
        checkpoint.changes({"tokenizer": "a"}, {"tokenizer": "b"}, MAY_DIFFER, "x")


@pytest.mark.parametrize("name", OTHERWISE)
def test_what_may_differ_is_told(name):
    now = list(OTHERWISE[name]) if isinstance(OTHERWISE[name], tuple) else OTHERWISE[name]
    present = {**COMPACT, name: OTHERWISE[name]}
    assert checkpoint.changes(THEN, present, MAY_DIFFER, "x") == [(name, THEN[name], now)]


def test_the_same_configuration_and_fields_of_another_version():
    assert checkpoint.changes(THEN, COMPACT, MAY_DIFFER, "x") == []
    assert checkpoint.changes({**THEN, "old": 1}, {**COMPACT, "new": 2}, MAY_DIFFER, "x") == [
        ("old", 1, "not recorded"), ("new", "not recorded", 2)
    ]  # fmt: skip


if __name__ == "__main__":
    torch.set_num_threads(1)
    {f.__name__: f for f in (go_on, two_processes)}[sys.argv[1]](Path(sys.argv[2]))
