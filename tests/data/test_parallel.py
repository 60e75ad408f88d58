"""Results in the order of the tasks, errors in their place, and no process left behind."""

import multiprocessing
import os
import signal
import subprocess
import sys
import time
from contextlib import closing
from pathlib import Path

import pytest

from data.parallel import AHEAD, ordered
from minibio.run.errors import InputError

ROOT = Path(__file__).parents[2]  # not from helpers: the processes started here need no torch


class Power:
    """Built once in each process."""

    def __init__(self, exponent):
        self.exponent, self.built_in = exponent, os.getpid()

    def __call__(self, task):
        assert self.built_in == os.getpid()
        if task == "die":
            os.kill(os.getpid(), signal.SIGKILL)
        if task == "fail":
            raise InputError("line 3 is bad")
        time.sleep(0.002 * (5 - task % 6))  # later tasks are often done first
        return task**self.exponent


@pytest.mark.parametrize("workers", [1, 2])
def test_results_come_in_the_order_of_the_tasks(workers):
    assert list(ordered(Power, (2,), range(12), workers)) == [i * i for i in range(12)]


@pytest.mark.parametrize("workers", [1, 2])
def test_an_error_comes_in_the_place_of_its_result(workers):
    seen = []
    with pytest.raises(InputError, match="line 3 is bad"):
        for result in ordered(Power, (1,), [0, 1, 2, "fail", 4], workers):
            seen.append(result)
    assert seen == [0, 1, 2] and not multiprocessing.active_children()


def test_an_error_of_the_tasks_ends_the_processes():
    def tasks():
        yield 1
        raise InputError("the archive is damaged")

    with pytest.raises(InputError, match="archive"):
        list(ordered(Power, (1,), tasks(), 2))
    assert not multiprocessing.active_children()


def test_a_killed_process_is_an_error_and_no_wait_for_ever():
    with pytest.raises(InputError, match="a worker process was killed.*run again"):
        list(ordered(Power, (1,), [1, "die", 2, 3], 2))
    assert not multiprocessing.active_children()


def test_few_tasks_are_under_way_at_a_time():
    begun = []

    def tasks():
        for i in range(30):
            begun.append(i)
            yield i

    with closing(ordered(Power, (1,), tasks(), 2)) as results:
        for i, _ in enumerate(results):
            assert len(begun) <= i + 2 + AHEAD
            if i == 5:
                break
    assert len(begun) < 15 and not multiprocessing.active_children()


PARENT = """
from data.parallel import ordered
from test_parallel import Power
if __name__ == "__main__":
    for result in ordered(Power, (1,), [0] * 10**6, 2):
        print(result, flush=True)
"""


def test_workers_of_a_killed_parent_end(tmp_path):
    (tmp_path / "parent.py").write_text(PARENT)
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT / 'tests/data'}"}
    parent = subprocess.Popen(
        [sys.executable, tmp_path / "parent.py"], cwd=ROOT, stdout=subprocess.PIPE,
        env=environment,
    )  # fmt: skip
    with parent:
        assert parent.stdout.readline() == b"0\n"
        children = children_of(parent.pid)
        assert len(children) >= 2
        parent.kill()
    assert_gone(children)


@pytest.mark.parametrize("n_signals", [1, 2, 3])
@pytest.mark.parametrize("delay", [0.0, 0.1, 0.3, 0.6])
def test_interrupts_at_any_moment_end_the_run(tmp_path, delay, n_signals):
    """While processes start, work or end; a thread of the pool would be waited for for ever."""
    (tmp_path / "parent.py").write_text(f"print('begun', flush=True)\n{PARENT}")
    parent = subprocess.Popen(
        [sys.executable, tmp_path / "parent.py"], cwd=ROOT, stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env={**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT / 'tests/data'}"},
    )  # fmt: skip
    with parent:
        assert parent.stdout.readline() == b"begun\n"
        time.sleep(delay)
        children = children_of(parent.pid)
        for _ in range(n_signals):
            parent.send_signal(signal.SIGINT)
            time.sleep(0.02)
        parent.stdout.close()
        assert parent.wait(60) != 0
    assert_gone(children)


def assert_gone(children):
    last = time.monotonic() + 60
    while any(os.path.exists(f"/proc/{child}") for child in children):
        assert time.monotonic() < last, "a worker outlived its parent"
        time.sleep(0.05)


def children_of(pid):
    path = f"/proc/{pid}/task/{pid}/children"
    if not os.path.exists(path):
        pytest.skip("the system does not list children")
    with open(path) as file:
        return file.read().split()
