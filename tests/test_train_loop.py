"""The loop of train.py: steps computed, skipped, counted, logged, saved and resumed."""

import dataclasses
import json
import os
import re
import signal
import threading
import time
from dataclasses import replace

import pytest
import torch
import torch.nn as nn

import train as script
from helpers import DEVICE
from minibio.batch import Batch
from minibio.config import RunConfig
from minibio.distil.objectives import TeacherNeeds
from minibio.run import dist
from minibio.run.checkpoint import newest
from minibio.run.errors import InputError
from minibio.run.log import Progress
from minibio.run.optim import lr_at, make_optimizer
from minibio.run.rundir import RunDir, StopRequest

ALONE = dist.Ranks(0, 0, 1, torch.device(DEVICE))
PLAN = RunConfig("mlm", steps=12, lr=1e-2, warmup=3, weight_decay=0.1, clip=0.05, seed=1,
                 log_every=3, eval_every=100, save_every=100, precision="fp32")  # fmt: skip


class Line:
    """Steps of two sequences each, which say their positions; in `n` micro-batches."""

    def __init__(self, n=1):
        self.n, self.n_made = n, 0

    def spans(self, position):
        while True:
            yield range(position, position + 2)
            position += 2

    def make(self, span):
        rows = [[i % 7, (3 * i) % 7, 5][: 2 + i % 2] for i in span]
        self.n_made += self.n
        return [Batch.from_sequences(rows[i :: self.n]) for i in range(self.n)]


class Objective(nn.Module):
    """The mean of a dropped-out score over tokens, and every other step a second term."""

    needs = TeacherNeeds()

    def __init__(self, p=0.0, bad=()):
        super().__init__()
        self.student = nn.Identity()
        torch.manual_seed(0)
        self.table = nn.Embedding(7, 4)
        self.out = nn.Linear(4, 1)
        self.drop = nn.Dropout(p)
        self.bad, self.step = bad, -1

    def set_step(self, step):
        self.step = step

    def forward(self, batch, taught, counts):
        score = self.out(self.drop(self.table(batch.tokens)).tanh()).square().sum() / counts.N
        if self.step in self.bad:
            score = score * float("nan")
        extra = {"even": 0.25 * score} if self.step % 2 == 0 else {}
        if taught is not None:
            extra["taught"] = 0 * score + taught / counts.N
        return {"score": score, **extra, "loss": score + sum(extra.values())}


def train(out, objective=None, plan=PLAN, feed=None, teacher=None):
    """The loop of train.py on a toy, in a directory that it may resume."""
    objective = (objective or Objective()).to(DEVICE)
    config = {"seed": plan.seed, "steps": plan.steps}
    run_dir = RunDir(out, ALONE, config, may_differ=frozenset({"steps"}), keep=50)
    with run_dir, StopRequest() as stop:
        *_, progress = script.train(objective, teacher, feed or Line(), [], plan, run_dir, stop)
    lines = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    return objective, progress, lines


def figures(lines):
    """What must not depend on when and where: everything but speed and memory."""
    timed = {"event", "tokens_per_s", "memory_gib", "eta_s"}
    return [
        {name: x for name, x in line.items() if name not in timed}
        for line in lines if line["event"] == "train"
    ]  # fmt: skip


def by_hand(plan=PLAN, bad=()):
    """The same run, written out."""
    objective, feed, lines, sums = Objective(bad=bad).to(DEVICE), Line(), [], {}
    optimizer = make_optimizer(objective, 0.0, plan.weight_decay)
    tokens = skipped = 0
    for step in range(plan.steps):
        batch = feed.make(range(2 * step, 2 * step + 2))[0].to(DEVICE)
        objective.set_step(step)
        lr = lr_at(step, peak=plan.lr, warmup=plan.warmup, total=plan.steps)
        optimizer.zero_grad()
        x = objective.out(objective.table(batch.tokens).tanh()).square().mean()
        loss = x * (1.25 if step % 2 == 0 else 1.0)
        loss.backward()
        norm = torch.sqrt(sum(p.grad.square().sum() for p in objective.parameters()))
        tokens += batch.N
        if step in bad:
            skipped += 1
        else:
            for p in objective.parameters():
                p.grad *= min(1.0, plan.clip / (norm + 1e-6))
            for group in optimizer.param_groups:
                group["lr"] = lr
            optimizer.step()
            terms = {"score": x, "loss": loss, "grad_norm": norm}
            terms |= {"even": 0.25 * x} if step % 2 == 0 else {}
            for name, value in terms.items():
                sums.setdefault(name, []).append(value.item())
        if step + 1 in (1, 2, 3, 5, 6, 9, 10, 12):  # the first few, then every third
            means = {name: sum(values) / len(values) for name, values in sums.items()}
            lines.append({"step": step + 1, **means, "lr": lr, "samples": 2 * step + 2,
                          "tokens": tokens, "skipped": skipped})  # fmt: skip
            sums = {}
    return objective, lines


@pytest.mark.parametrize("bad", [(), (3, 4, 9), (6, 7, 8)], ids=["all finite", "some", "interval"])
def test_the_loop_is_the_one_written_out(tmp_path, bad):
    """A step that is not finite moves neither weights nor moments, and is counted."""
    expected, lines = by_hand(bad=bad)
    objective, progress, told = train(tmp_path / "out", Objective(bad=bad))
    told = figures(told)
    assert len(told) == len(lines) == 8
    for got, truth in zip(told, lines, strict=True):
        assert got == {name: pytest.approx(x, rel=1e-5) for name, x in truth.items()}
    for p, q in zip(objective.parameters(), expected.parameters(), strict=True):
        assert torch.allclose(p, q, rtol=1e-5, atol=1e-7)
    assert (progress.step, progress.samples, progress.skipped) == (12, 24, len(bad))


def test_micro_batches_change_nothing_but_rounding(tmp_path):
    feeds = Line(1), Line(2)
    (_, _, a), (_, _, b) = (train(tmp_path / str(feed.n), feed=feed) for feed in feeds)
    assert [feed.n_made for feed in feeds] == [12, 24]
    for x, y in zip(figures(a), figures(b), strict=True):
        assert x == {name: pytest.approx(value, rel=1e-5) for name, value in y.items()}


def test_the_teacher_is_asked_for_every_batch(tmp_path, monkeypatch):
    asked = []

    def teach(teacher, batch, needs):
        asked.append(batch.N)
        return torch.tensor(float(batch.N))

    monkeypatch.setattr(script, "teach", teach)
    _, _, lines = train(tmp_path, teacher="a teacher")
    assert len(asked) == 12 and all(line["taught"] == 1.0 for line in figures(lines))


def test_a_run_that_is_never_finite_gives_up(tmp_path):
    plan = replace(PLAN, max_skips=3)
    objective = Objective(bad=range(5, 12))
    with pytest.raises(InputError, match=r"last 3 steps, to step 8, .*score nan.*lower --lr"):
        train(tmp_path / "a", objective, plan)
    train(tmp_path / "b", Objective(bad=(3, 4, 6, 7)), plan)  # never three in a row


def test_one_infinite_gradient_is_enough(tmp_path):
    """The loss is finite, a gradient is not: the square root's at 0."""

    class Root(Objective):
        def forward(self, batch, taught, counts):
            zero = (0 * self.out.bias).abs().sqrt().sum()
            return {"loss": super().forward(batch, taught, counts)["loss"] + zero}

    end = Root()
    with pytest.raises(InputError, match="grad_norm nan"):
        train(tmp_path, end)
    assert all(map(torch.equal, Root().parameters(), end.cpu().parameters()))


def test_measures_at_both_ends_and_at_intervals(tmp_path, monkeypatch):
    calls = []

    def held_out(student, batches, ranks, precision):
        calls.append(len(calls))
        return {"mlm_loss": float(calls[-1]), "accuracy": 0.0}

    monkeypatch.setattr(script, "held_out", held_out)
    _, progress, lines = train(tmp_path / "5", plan=replace(PLAN, eval_every=5))
    told = [(line["step"], line["mlm_loss"]) for line in lines if line["event"] == "held_out"]
    assert told == [(0, 0.0), (5, 1.0), (10, 2.0), (12, 3.0)]
    assert progress.held_out_first == {"mlm_loss": 0.0, "accuracy": 0.0}
    assert progress.held_out == {"mlm_loss": 3.0, "accuracy": 0.0}
    calls.clear()
    train(tmp_path / "6", plan=replace(PLAN, eval_every=6))
    assert len(calls) == 3, "the last step was measured twice"


def test_dropout_is_the_seed_s(tmp_path):
    runs = [
        train(tmp_path / str(i), Objective(p=0.5), replace(PLAN, seed=seed))[0]
        for i, seed in enumerate((1, 1, 2))
    ]
    a, b, c = (run.table.weight for run in runs)
    assert torch.equal(a, b) and not torch.equal(a, c)


# going on


def final(objective, progress):
    return [p.tolist() for p in objective.parameters()], progress.samples, progress.skipped


@pytest.mark.parametrize("cut", range(1, 12))
def test_a_run_cut_anywhere_goes_on_to_the_last_bit(tmp_path, cut):
    """In the middle of a logged interval too, with dropout and with skipped steps."""
    plan = replace(PLAN, save_every=1, max_skips=3)
    bad = (4, 5, 10)
    whole = train(tmp_path / "whole", Objective(0.5, bad), plan)
    out = tmp_path / "cut"

    class Cut(Line):
        def make(self, span):
            if span.start == 2 * cut:
                raise KeyboardInterrupt
            return super().make(span)

    with pytest.raises(KeyboardInterrupt):
        train(out, Objective(0.5, bad), plan, Cut())
    found = newest(out, ALONE)
    assert found.step == cut and found.samples == 2 * cut
    torch.manual_seed(99)
    rest = train(out, Objective(0.5, bad), plan)
    assert final(*rest[:2]) == final(*whole[:2])
    assert figures(rest[2]) == figures(whole[2])
    assert newest(out, ALONE).step == plan.steps


def test_a_signal_ends_the_run_after_the_step_and_saves(tmp_path):
    class Ask(Objective):
        def forward(self, batch, taught, counts):
            if self.step == 5:
                os.kill(os.getpid(), signal.SIGTERM)
            return super().forward(batch, taught, counts)

    whole = train(tmp_path / "whole", Objective(0.5))
    out = tmp_path / "cut"
    _, progress, lines = train(out, Ask(0.5))
    assert progress.stopped == "SIGTERM" and progress.step in (6, 7)
    assert [line["step"] for line in figures(lines)] == [
        1,
        2,
        3,
        5,
        6,
    ]  # the stop writes no line of its own
    assert newest(out, ALONE).step == progress.step
    rest = train(out, Objective(0.5))
    assert final(*rest[:2]) == final(*whole[:2]) and not rest[1].stopped
    assert figures(rest[2]) == figures(whole[2])


def test_a_run_at_its_last_step_has_nothing_left_to_do(tmp_path):
    whole = train(tmp_path)
    feed = Line()
    rest = train(tmp_path, feed=feed)
    assert final(*rest[:2]) == final(*whole[:2]) and feed.n_made == 0


def test_a_run_is_not_ended_at_a_step_that_it_has_passed(tmp_path):
    """The weights would be those of step 12, the record would say 5."""
    train(tmp_path)
    for steps in (5, 11):
        with pytest.raises(InputError, match=f"--steps is {steps}, but .* has done 12 of 12 steps"):
            train(tmp_path, plan=replace(PLAN, steps=steps))
    assert train(tmp_path, plan=replace(PLAN, steps=14))[1].step == 14


def test_no_thread_is_left_by_a_run_that_failed(tmp_path):
    class Broken(Line):
        def make(self, span):
            if span.start == 6:
                raise InputError("a shard is damaged")
            return super().make(span)

    before = threading.active_count()
    with pytest.raises(InputError, match="a shard is damaged"):
        train(tmp_path, feed=Broken())
    assert threading.active_count() == before
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL


# what is told


def test_a_line_for_people_has_it_all(tmp_path, capsys):
    train(tmp_path, Objective(bad=(6, 7, 8)))
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[1] for line in lines] == [
        f"{n}/12" for n in (0, 1, 2, 3, 5, 6, 9, 10, 12, 12)
    ]
    number = r"[\d.,e+-]+"
    assert re.fullmatch(rf"step 0/12  held-out loss {number}  accuracy {number}%  in .+", lines[0])
    assert re.fullmatch(
        rf"step 3/12  loss {number}  score {number}  even {number}  norm {number}  lr {number}  "
        rf"{number} tokens/s  {number} GiB  eta .+", lines[3],
    ), lines[3]  # fmt: skip
    assert lines[6].startswith("step 9/12  lr ") and lines[6].endswith("skipped 3")


def test_measuring_counts_in_seconds_and_eta_but_not_in_speed(tmp_path, monkeypatch):
    """Half a second each time, at steps 0, 5, 10 and 12; a step takes next to nothing."""

    def held_out(student, batches, ranks, precision):
        time.sleep(0.5)
        return {"mlm_loss": 1.0, "accuracy": 0.5}

    monkeypatch.setattr(script, "held_out", held_out)
    _, progress, lines = train(tmp_path, plan=replace(PLAN, eval_every=5))
    etas = {line["step"]: line["eta_s"] for line in lines if line["event"] == "train"}
    for step, left in ((1, 3), (5, 3), (6, 2), (10, 2), (12, 1)):
        assert 0.5 * left <= etas[step] < 0.5 * left + 0.5 + 12 * progress.step_seconds, step
    assert 2.0 <= progress.step_seconds + 2.0 <= progress.seconds
    assert progress.outcome()["seconds"] == round(progress.seconds, 1)
    speed = progress.tokens / progress.step_seconds
    assert progress.outcome()["tokens_per_s"] == round(speed)


def test_all_counts_of_progress_fit_json():
    progress = Progress(terms={"loss": [1.5, 2]}, mark=(1, 2, 3.5))
    text = json.dumps(dataclasses.asdict(progress))
    assert json.dumps(dataclasses.asdict(Progress(**json.loads(text)))) == text
