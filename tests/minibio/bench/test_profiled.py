"""minibio/bench/profiled.py without a GPU: what is made of the events of a profile."""

import pytest
import torch

from minibio.bench import profiled
from minibio.bench.profiled import Event

CPU = torch.device("cpu")


def test_the_busy_time_counts_overlaps_once():
    events = [Event("a", 0, 10, True), Event("b", 5, 10, True), Event("c", 6, 2, True),
              Event("d", 20, 5, True)]  # fmt: skip
    assert profiled.busy(events) == profiled.busy(events[::-1]) == 15 + 5
    assert profiled.busy([]) == 0


def test_the_table():
    ms = 1_000_000
    events = [
        Event("cudaLaunchKernel", 0, 5, False), Event("cuLaunchKernelEx", 5, 5, False),
        Event("cudaLaunchKernelExC", 10, 5, False), Event("cudaGraphLaunch", 15, 5, False),
        Event("cudaStreamSynchronize", 20, 5, False), Event("aten::add", 0, ms, False),
        Event("add", 0, 1 * ms, True), Event("add", 2 * ms, 1 * ms, True),
        Event("product", 4 * ms, 6 * ms, True), Event("cudaMemcpyAsync", 30, 5, False),
    ]  # fmt: skip
    assert profiled.report(events, 20 * ms, 2) == [
        "10.0 ms a step, GPU busy 40%, 2 launches, 0.5 waits a step",
        "      3.000 ms  75.0%     0.5 x  product",
        "      1.000 ms  25.0%       1 x  add",
    ]


def test_only_the_longest_are_shown():
    events = [Event(f"k{i}", i, i, True) for i in range(40)]
    lines = profiled.report(events, 1000, 1)
    assert len(lines) == 1 + 25 and lines[1].endswith("k39") and lines[-1].endswith("k15")


def test_the_events_of_a_profile_are_read():
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profiler:
        torch.ones(3) + 1
    events = list(profiled.events_of(profiler))
    assert {"aten::add", "aten::ones"} <= {x.name for x in events}
    assert all(x.duration >= 0 and x.start > 0 and not x.on_device for x in events)


def test_a_step_at_each_turn():
    """The loop that is profiled trains: its settings are those of the benchmark of steps."""
    settings = profiled.Settings(
        ["tiny"], ["minibio"], [], [], [], None, "tiny-biobert", 2, 12, 3, 3
    )
    loop = profiled.steps_of("mlm", "minibio", settings, CPU)
    assert [x.step for x in loop] == [1, 2, 3, 4, 5, 6]


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_one_line(capsys):
    assert profiled.main([]) == 2
    assert capsys.readouterr().out == "minibio.bench.profiled: torch sees no GPU on this machine\n"
