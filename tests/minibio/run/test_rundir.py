"""Asked to stop: after the step, together, and at once when asked twice."""

import os
import signal
import subprocess
import sys
import time

import pytest
import torch

from helpers import ROOT, processes
from minibio.run.dist import Ranks
from minibio.run.errors import InputError, leave
from minibio.run.log import Progress
from minibio.run.optim import make_optimizer
from minibio.run.rundir import RunDir, StopRequest

ALONE = Ranks(0, 0, 1, torch.device("cpu"))

LOOP = """
import os, signal, time
from minibio.run import dist
from minibio.run.rundir import StopRequest
ranks = dist.start("cpu")
done = 0
with StopRequest() as stop:
    while not dist.all_sum([float(stop.name is not None)], ranks)[0]:
        done += 1
        if done == 3 and ranks.rank == 1:
            os.kill(os.getpid(), signal.SIGTERM)
        assert done < 100
print(f"rank {ranks.rank} stops after {done}, itself asked: {stop.name}")
dist.stop(ranks)
"""
STUCK = """
import time
from minibio.run.rundir import StopRequest
with StopRequest() as stop:
    print("ready", flush=True)
    while True:
        time.sleep(0.01)
        if stop.name: print("asked", flush=True)
"""


def send(number):
    os.kill(os.getpid(), number)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_is_noted_and_the_step_goes_on(number, capfd):
    before = [signal.getsignal(n) for n in (signal.SIGTERM, signal.SIGINT)]
    with StopRequest() as stop:
        assert stop.name is None
        send(number)
        assert stop.name == number.name
        send(signal.SIGTERM)  # however often
        send(signal.SIGTERM)
        assert stop.name == number.name
    assert [signal.getsignal(n) for n in (signal.SIGTERM, signal.SIGINT)] == before
    told = capfd.readouterr().err
    assert f"{number.name}: stopping after this step" in told
    assert ("once more to stop at once" in told) == (number == signal.SIGINT)


def test_a_second_interrupt_stops_at_once():
    with pytest.raises(KeyboardInterrupt), StopRequest() as stop:
        send(signal.SIGINT)
        assert stop.name == "SIGINT"
        send(signal.SIGINT)
        raise AssertionError("the second one must have stopped this")
    assert signal.getsignal(signal.SIGINT) is leave  # for the third


def test_an_interrupt_after_a_sigterm_is_the_first_of_its_kind():
    with StopRequest() as stop:
        send(signal.SIGTERM)
        send(signal.SIGINT)
        assert stop.name == "SIGTERM"


def test_afterwards_a_signal_does_what_it_did():
    with StopRequest():
        pass
    with pytest.raises(KeyboardInterrupt):
        send(signal.SIGINT)
        time.sleep(1)


def test_handlers_set_outside_python_are_survived(monkeypatch):
    """signal.signal answers None for those, and takes no None."""
    real = signal.signal
    monkeypatch.setattr(signal, "signal", lambda n, h: real(n, h) and None)
    before = signal.getsignal(signal.SIGTERM)
    with StopRequest():
        pass
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
    real(signal.SIGTERM, before)
    real(signal.SIGINT, signal.default_int_handler)


def test_a_stuck_process_ends_with_the_second_interrupt():
    process = subprocess.Popen(
        [sys.executable, "-c", STUCK], cwd=ROOT, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    try:
        assert process.stdout.readline() == "ready\n"
        process.send_signal(signal.SIGINT)
        assert process.stdout.readline() == "asked\n"
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=30)
    finally:
        process.kill()
    assert process.returncode == -signal.SIGINT and "KeyboardInterrupt" in err


def test_two_processes_stop_after_the_same_step():
    told = processes(2, ["-c", LOOP])
    assert [status for status, *_ in told] == [0, 0], told
    assert told[0][1] == "rank 0 stops after 3, itself asked: None\n"
    assert told[1][1] == "rank 1 stops after 3, itself asked: SIGTERM\n"
    assert "SIGTERM" not in told[1][2]  # rank 0 alone speaks


@pytest.mark.parametrize("moment", ["before it resumes", "before a step", "after a step"])
def test_a_run_that_is_refused_before_its_first_step_leaves_no_directory(tmp_path, moment):
    out = tmp_path / "a" / "b"
    model = torch.nn.Linear(2, 1)
    with pytest.raises(InputError, match="a shard is damaged"), RunDir(out, ALONE, {}) as run_dir:
        if moment != "before it resumes":
            assert run_dir.resume(model, make_optimizer(model, 0.1, 0.0), 0) is None
            run_dir.log({"event": "held_out", "step": 0})
        if moment == "after a step":
            progress = Progress()
            progress.add({"loss": 1.0, "grad_norm": 1.0}, samples=1, tokens=1, seconds=1.0,
                         max_skips=1)  # fmt: skip
            run_dir.log_interval(progress, 5, 0.1)
        raise InputError("a shard is damaged")
    kept = ["a", "a/b", "a/b/log.jsonl"] if moment == "after a step" else []
    assert sorted(str(p.relative_to(tmp_path)) for p in tmp_path.rglob("*")) == kept


def test_what_was_there_before_a_refused_run_stays(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    model = torch.nn.Linear(2, 1)
    with pytest.raises(InputError), RunDir(tmp_path, ALONE, {}) as run_dir:
        run_dir.resume(model, make_optimizer(model, 0.1, 0.0), 0)
        raise InputError("a shard is damaged")
    assert [p.name for p in tmp_path.iterdir()] == ["notes.txt"]
