"""Whole runs in several processes: that they agree, and that nothing ends one for good.

As a script, `test_resume.py FAULT train.py's options`, this file is train.py with a fault in it.
"""

import functools
import json
import os
import random
import signal
import subprocess
import sys
import time

import pytest
import torch
from safetensors.torch import load_file

import train
from data.shard.shard import shard
from helpers import ROOT, processes
from minibio.run import errors, store
from minibio.run.log import Progress

SHAPE = ["--layers", 2, "--width", 24, "--heads", 2, "--ffn", 32]
STEPS = 20
RUN = ["--steps", STEPS, "--batch", 8, "--length", 24, "--log-every", 3, "--eval-every", 10,
       "--lr", 3e-3, "--warmup", 4, "--clip", 0.5, "--device", "cpu",
       "--precision", "fp32"]  # fmt: skip


# ---- faults, by name


def kill_at(step):
    """kill -9 of this process in the middle of a step."""
    add = Progress.add

    def die(progress, *args, **counts):
        if progress.step == step:
            os.kill(os.getpid(), signal.SIGKILL)
        add(progress, *args, **counts)

    Progress.add = die


def kill_in_save(step):
    """kill -9 of the process that saves, when half of the step's checkpoint is on disk."""
    write, seen = store.write_file, []

    def die(path, content):
        seen.append(f"{step:08d}" in str(path))
        if sum(seen) == 2:
            os.kill(os.getpid(), signal.SIGKILL)
        return write(path, content)

    store.write_file = die


def kill_once(step):
    """Rank 1 dies at a step of the first attempt, as torchrun counts them."""
    if (os.environ["RANK"], os.environ["TORCHELASTIC_RESTART_COUNT"]) == ("1", "0"):
        kill_at(step)


def ask_to_stop(step):
    """SIGTERM to the last process alone, in the middle of a step."""
    add = Progress.add

    def ask(progress, *args, **counts):
        if progress.step == step and int(os.environ.get("RANK", 0)) == int(
            os.environ.get("WORLD_SIZE", 1)
        ) - 1:  # fmt: skip
            os.kill(os.getpid(), signal.SIGTERM)
        add(progress, *args, **counts)

    Progress.add = ask


def full_disk(step):
    """No room is left when the step's checkpoint is written."""
    write = store.write_file

    def fail(path, content):
        if f"{step:08d}" in str(path):
            raise OSError(28, os.strerror(28), str(path))
        return write(path, content)

    store.write_file = fail


def slow(seconds):
    """A rest in the middle of each step."""
    add = Progress.add

    def rest(progress, *args, **counts):
        time.sleep(seconds)
        add(progress, *args, **counts)

    Progress.add = rest


def no_fault():
    pass


# ---- runs


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    """Token shards of 70 documents of 3 to 24 tokens."""
    directory = tmp_path_factory.mktemp("corpus")
    rng, words = random.Random(1), "the gene protein of in tumour BRCA1 p53 binds acute".split()
    lines = [" ".join(rng.choices(words, k=rng.randint(1, 30))) for _ in range(80)]
    (directory / "text.txt").write_text("\n".join(lines) + "\n")
    shard([directory / "text.txt"], None, directory / "shards", length=24, held_out=0.1,
          train_tokenizer=90, progress=False)  # fmt: skip
    return directory / "shards"


@pytest.fixture(scope="module")
def teacher(corpus, tmp_path_factory):
    """A directory with a teacher of 4 layers."""
    out = tmp_path_factory.mktemp("teacher") / "out"
    options = ["--method", "mlm", "--model", "sample-teacher", "--corpus", corpus, "--out", out,
               *SHAPE, "--layers", 4, "--steps", 2, "--batch", 4, "--length", 24]  # fmt: skip
    train.main(list(map(str, options)))
    return out


def command(corpus, teacher, out, *options, fault="no_fault", method="tiny"):
    """`tiny` with dropout: TinyBioBERT's row has 0.1."""
    return [__file__, fault, "--method", method, "--model", f"{method}-biobert", "--corpus", corpus,
            "--teacher", teacher, "--out", out, *SHAPE, *RUN, *options]  # fmt: skip


def run(world, command, statuses=(0,)):
    """Start the processes; what they printed, by rank."""
    told = processes(world, command, PYTHONPATH=os.pathsep.join(sys.path))
    for status, out, err in told:
        assert status in statuses, (status, out[-500:], err[-2000:])
    return told


@pytest.fixture(scope="module")
def unbroken(corpus, teacher, tmp_path_factory):
    """The directory of a run that nothing stops, of (processes, options); made once."""

    @functools.cache
    def make(world, *options):
        out = tmp_path_factory.mktemp("unbroken") / "out"
        run(world, command(corpus, teacher, out, *options))
        return out

    return make


def log(out):
    """The log's losses: every term, rate, norm and count, not speed and memory."""
    lines = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    timed = {"tokens_per_s", "memory_gib", "eta_s"}
    return [
        {name: x for name, x in line.items() if name not in timed}
        for line in lines if line["event"] in ("train", "held_out")
    ]  # fmt: skip


def tensors(out):
    """The final weights and AdamW's state, as bytes."""
    last = out / "checkpoints" / f"step-{STEPS:08d}"
    parts = [load_file(last / f"{part}.safetensors") for part in ("weights", "optimizer")]
    return [{name: x.numpy().tobytes() for name, x in part.items()} for part in parts]


def near(a, b, rel):
    assert len(a) == len(b)
    for x, y in zip(a, b, strict=True):
        assert x == {
            name: pytest.approx(value, rel=rel) if isinstance(value, float) else value
            for name, value in y.items()
        }


@pytest.mark.parametrize(("precision", "limit"), [("fp32", 2e-5), ("fp64", 1e-10)])
def test_one_two_and_four_processes_agree(corpus, teacher, tmp_path, precision, limit):
    """20 steps without dropout; the issue's bound of the loss, and every other figure with it."""
    logs = {}
    for world, accumulate in ((1, 1), (2, 2), (4, 1)):
        out = tmp_path / str(world)
        run(world, command(corpus, teacher, out, "--model", "sample-tiny", "--precision", precision,
                           "--accumulate", accumulate))  # fmt: skip
        logs[world] = log(out)
    for world in (2, 4):
        near(logs[world], logs[1], limit)
        losses = [[x["loss"] for x in log if "loss" in x] for log in (logs[world], logs[1])]
        assert losses[0] == pytest.approx(losses[1], rel=limit / 2)


@pytest.mark.parametrize(
    ("world", "fault", "step", "options"),
    [
        (1, "kill_at", 11, ()),
        (2, "kill_in_save", 12, ()),
        (2, "kill_at", 7, ("--batch-tokens", 150)),
        (4, "kill_at", random.Random(5).randint(2, 18), ("--accumulate", 2)),
    ],
)
def test_a_killed_run_goes_on_to_the_last_bit(
    corpus, teacher, unbroken, tmp_path, world, fault, step, options
):
    """With dropout: every figure of the joined log, the weights and AdamW's state."""
    whole, cut = unbroken(world, *options), tmp_path / "cut"
    options = ("--save-every", 3, *options)
    broken = command(corpus, teacher, cut, *options, fault=f"{fault}({step})")
    run(world, broken, statuses=(-signal.SIGKILL, 2))
    assert not (cut / "config.json").exists()
    told = run(world, command(corpus, teacher, cut, *options))
    assert "resumed" in told[0][1] and f"step-{(step - (step % 3 or 3)):08d}" in told[0][1]
    assert log(cut) == log(whole)
    assert tensors(cut) == tensors(whole)


@pytest.mark.slow
def test_mobilebert_s_stages_go_on_to_the_last_bit(corpus, tmp_path):
    """Killed in the second layer's phase, when the head and most of AdamW have no state yet."""
    ib_bert = tmp_path / "teacher"
    shape = ["--width", 40, "--model"]
    make = ["--method", "mlm", "--corpus", corpus, "--out", ib_bert, *SHAPE, *shape,
            "sample-ib-bert", "--steps", 2, "--batch", 4, "--length", 24]  # fmt: skip
    train.main(list(map(str, make)))
    options = (*shape, "sample-mobile", "--stages", 0.5, "--save-every", 3, "--log-every", 1)
    whole, cut, one = tmp_path / "whole", tmp_path / "cut", tmp_path / "one"
    run(2, command(corpus, ib_bert, whole, *options, method="mobile"))
    broken = command(corpus, ib_bert, cut, *options, method="mobile", fault="kill_at(7)")
    run(2, broken, statuses=(-signal.SIGKILL, 2))
    told = run(2, command(corpus, ib_bert, cut, *options, method="mobile"))
    assert "step-00000006" in told[0][1]
    assert log(cut) == log(whole) and tensors(cut) == tensors(whole)
    terms = [{"layers", "mlm", "soft"} & set(x) for x in log(whole) if "lr" in x]
    assert terms == [{"layers"}] * 10 + [{"mlm", "soft"}] * 10
    # and two processes agree with one, phases in which most parameters rest included
    run(1, command(corpus, ib_bert, one, *options, method="mobile"))
    near(log(one), log(whole), 2e-5)


def test_another_number_of_processes_reads_the_same_samples(corpus, teacher, tmp_path):
    """Stopped as one process, gone on as two, then as four; without dropout."""
    whole, out = tmp_path / "whole", tmp_path / "out"
    options = ("--model", "sample-tiny", "--log-every", 1)
    run(1, command(corpus, teacher, whole, *options))
    for world, step in ((1, 5), (2, 11)):
        told = run(world, command(corpus, teacher, out, *options, fault=f"ask_to_stop({step})"))
        assert "stopped by" in told[0][1] and "re-run the same command to resume" in told[0][1]
    told = run(4, command(corpus, teacher, out, *options))
    assert "2 -> 4" in told[0][1], "the change of processes is not told"
    near(log(out), log(whole), 2e-5)


def test_torchrun_restarts_a_group_that_lost_a_process(corpus, teacher, unbroken, tmp_path):
    whole, out = unbroken(2), tmp_path / "out"
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", 2,
              "--max-restarts", 1]  # fmt: skip
    options = command(corpus, teacher, out, "--save-every", 4, fault="kill_once(10)")
    done = subprocess.run(
        [*map(str, [*launch, *options])], cwd=ROOT, capture_output=True, text=True, timeout=120,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path)},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    assert "step-00000008" in done.stdout
    assert log(out) == log(whole) and tensors(out) == tensors(whole)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_stops_and_the_same_command_goes_on(corpus, teacher, unbroken, tmp_path, number):
    """Sent from outside, at no chosen moment, seconds before the run would end; exit status 0."""
    options = ("--steps", 80, "--log-every", 1, "--save-every", 1000)
    whole, out = unbroken(1, *options), tmp_path / "out"
    broken = command(corpus, teacher, out, *options, fault="slow(0.06)")
    process = subprocess.Popen(
        [sys.executable, *map(str, broken)], cwd=ROOT, text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path)},
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    while not (out / "log.jsonl").exists() or (out / "log.jsonl").read_text().count("\n") < 5:
        assert process.poll() is None
        time.sleep(0.01)
    process.send_signal(number)
    told, err = process.communicate(timeout=60)
    assert process.returncode == 0, err
    assert f"stopped by {signal.Signals(number).name} after step" in told
    run(1, command(corpus, teacher, out, *options))
    assert log(out) == log(whole)


def test_a_damaged_checkpoint_is_named_and_the_one_before_it_taken(
    corpus, teacher, unbroken, tmp_path
):
    whole, out = unbroken(1), tmp_path / "out"
    run(1, command(corpus, teacher, out, "--save-every", 3, fault="kill_at(10)"), (-9,))
    newest = out / "checkpoints" / "step-00000009" / "optimizer.safetensors"
    newest.write_bytes(newest.read_bytes()[:-100])
    _, printed, said = run(1, command(corpus, teacher, out, "--save-every", 3))[0]
    assert "step-00000009" in said and "damaged" in said and "step-00000006" in printed
    assert log(out) == log(whole) and tensors(out) == tensors(whole)


def test_another_run_is_refused_and_overwrite_starts_anew(corpus, teacher, tmp_path):
    out = tmp_path / "out"
    run(1, command(corpus, teacher, out, fault="kill_at(10)"), (-9,))
    for options, what in (
        (["--seed", 7], "seed is 7, expected 42"),
        (["--fidelity", "released"], "fidelity is 'released', expected 'paper'"),
        (["--ffn", 40], "ffn is 40, expected 32"),
        (["--batch-tokens", 100], "batch_tokens is 100, expected 0"),
    ):
        ((_, _, said),) = run(1, command(corpus, teacher, out, *options), (2,))
        assert what in said and len(said.strip().splitlines()) == 1, said
    told = run(1, command(corpus, teacher, out, "--seed", 7, "--overwrite"))
    assert "resumed" not in told[0][1] and log(out)[0]["step"] == 0


def test_steps_that_are_not_finite_are_skipped_by_all(corpus, teacher, tmp_path):
    """A rate so high that weights overflow; both processes give up at the same step."""
    options = ("--lr", 1e30, "--clip", 1e30, "--max-skips", 3, "--warmup", 0)
    told = run(2, command(corpus, teacher, tmp_path / "out", *options), (2,))
    for _, _, said in told:
        assert "the last 3 steps" in said and "lower --lr" in said, said


def test_a_full_disk_leaves_the_checkpoints_before_it(corpus, teacher, tmp_path):
    told = run(2, command(corpus, teacher, tmp_path / "out", "--save-every", 4,
                          fault="full_disk(8)"), (2,))  # fmt: skip
    for _, _, said in told:
        assert "step 8 was not saved, checkpoints that are whole: step-00000004" in said, said
    told = run(2, command(corpus, teacher, tmp_path / "out", "--save-every", 4))
    assert "step-00000004" in told[0][1]


if __name__ == "__main__":
    torch.set_num_threads(1)
    eval(sys.argv[1] if "(" in sys.argv[1] else f"{sys.argv[1]}()")
    errors.run(lambda: train.main(sys.argv[2:]), "train.py")
