"""Ahead of time, in order, never too far; errors arrive, and nothing is left running."""

import subprocess
import sys
import threading
import time

import pytest

from helpers import ROOT
from minibio.text.prefetch import Prefetch


def threads():
    return [t for t in threading.enumerate() if t.name == "prefetch"]


@pytest.mark.parametrize("depth", [1, 3, 50])
def test_results_are_those_of_the_tasks_in_order(depth):
    with Prefetch(lambda i: i * i, range(20), depth) as results:
        assert list(results) == [i * i for i in range(20)]
    assert threads() == []


def test_none_is_a_result():
    with Prefetch(lambda i: None, range(3)) as results:
        assert list(results) == [None] * 3


def test_asking_again_when_all_is_over_gives_nothing_and_does_not_wait():
    with Prefetch(lambda i: 1 // (2 - i), range(9)) as results:
        with pytest.raises(ZeroDivisionError):
            list(results)
        assert list(results) == []
    with Prefetch(lambda i: i, range(3)) as results:
        assert list(results) == [0, 1, 2] and list(results) == []
    assert list(results) == []


def test_the_thread_lives_in_the_block_alone():
    with pytest.raises(AssertionError, match="no thread"):
        list(Prefetch(str, range(3)))


INTERRUPTED = """
import os, signal, threading
from minibio.text.prefetch import Prefetch
try:
    with Prefetch(lambda i: i if i < 3 else threading.Event().wait(0.2), range(10**9)) as results:
        for result in results:
            if result == 2:
                threading.Timer(0.05, os.kill, (os.getpid(), signal.SIGINT)).start()
except KeyboardInterrupt:
    print([t.name for t in threading.enumerate() if t.name == "prefetch"])
"""


def test_an_interrupt_while_it_waits_ends_the_thread():
    done = subprocess.run(
        [sys.executable, "-c", INTERRUPTED], cwd=ROOT, capture_output=True, text=True, timeout=60
    )
    assert (done.returncode, done.stdout) == (0, "[]\n"), done.stderr


def wait_until(condition):
    last = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < last, "nothing happened for 10 s"
        time.sleep(0.001)


def test_it_runs_ahead_as_far_as_depth_and_no_further():
    made = []
    with Prefetch(made.append, range(100), depth=3) as results:
        wait_until(lambda: len(made) == 4)  # three wait, one has no room yet
        time.sleep(0.05)
        assert len(made) == 4
        next(iter(results))
        wait_until(lambda: len(made) == 5)
    assert len(made) == 5 and threads() == []


def test_who_uses_the_results_does_not_wait():
    """Steps of 20 ms, batches of 10 ms: made in turn 30 ms a step, ahead 20."""
    with Prefetch(lambda i: time.sleep(0.01), range(10), depth=4) as results:
        waits = []
        ready = iter(results)
        next(ready)
        for _ in range(8):
            time.sleep(0.02)
            since = time.perf_counter()
            next(ready)
            waits.append(time.perf_counter() - since)
    assert sorted(waits)[4] < 0.005  # the median: a busy machine may stop any one of them


@pytest.mark.parametrize("error", [ValueError("step 3"), KeyboardInterrupt(), StopIteration(3)])
def test_an_error_is_raised_in_the_place_of_its_result(error):
    def make(i):
        if i == 3:
            raise error
        return i

    seen = []
    with pytest.raises((type(error), RuntimeError)) as caught:  # StopIteration inside a generator
        with Prefetch(make, range(9)) as results:
            for result in results:
                seen.append(result)
    assert error in (caught.value, caught.value.__cause__) and seen == [0, 1, 2]
    assert threads() == []


def test_an_error_of_the_tasks_is_raised_too():
    def tasks():
        yield 1
        raise OSError("disk")

    with pytest.raises(OSError, match="disk"), Prefetch(lambda i: i, tasks()) as results:
        list(results)


def test_leaving_early_stops_the_thread():
    with pytest.raises(KeyError), Prefetch(lambda i: i, range(10**9), depth=2) as results:
        for result in results:
            if result == 5:
                raise KeyError
    assert threads() == []


def test_a_block_that_takes_nothing_ends():
    with Prefetch(lambda i: i, range(10**9), depth=1):
        pass
    assert threads() == []


def test_depth_is_checked():
    with pytest.raises(ValueError, match="depth is 0"):
        Prefetch(str, [], 0)
