"""The measuring: turns, laps, peaks known by construction, rows written at once."""

import csv
import time

import numpy as np
import pytest
import torch

from helpers import DEVICE
from kernels.bench import timing
from kernels.bench.timing import (
    Contender,
    Spread,
    Table,
    cpu_peak,
    extra_mib,
    milliseconds,
    ragged_lengths,
    ratio,
)

CPU = torch.device("cpu")
MIB = 2**20


def test_lengths_are_pubmeds():
    lengths = ragged_lengths(300, 256, seed=1)
    assert lengths == sorted(lengths) == ragged_lengths(300, 256, seed=1)
    assert lengths != ragged_lengths(300, 256, seed=2)
    assert [T for T in lengths if T <= 30] == lengths[:100]
    assert min(lengths) >= 10 and 120 <= min(lengths[100:]) and max(lengths) <= 256
    assert max(ragged_lengths(300, 64, seed=1)) == 64


def test_calls_take_turns_after_the_warm_up():
    order = []
    calls = [[lambda: order.append("a")], [lambda: order.append("b")]]
    times = milliseconds(calls, CPU, repeats=4, warmup=2)
    assert order == ["a", "b"] * 6
    assert [x.shape for x in times] == [(4, 1), (4, 1)]


def test_each_stage_has_its_own_time_and_gets_what_the_one_before_returned():
    def first():
        time.sleep(0.01)
        return "x", 3

    def second(x, n):
        assert (x, n) == ("x", 3)
        time.sleep(0.03)

    (times,) = milliseconds([[first, second]], CPU, repeats=5, warmup=0)
    assert times.shape == (5, 2)
    assert (10 <= times[:, 0]).all() and (30 <= times[:, 1]).all()
    assert times[:, 0].min() < 25 and times[:, 1].min() < 60  # ms, not s, not us


def test_the_spread_of_times():
    """By hand: 0 to 10 ms."""
    spread = Spread.of(np.arange(11.0))
    assert spread == (5.0, 2.0, 8.0) and str(spread) == "5.000 ms (2.000-8.000)"
    assert spread.columns() == {"ms_p50": 5.0, "ms_p20": 2.0, "ms_p80": 8.0}
    assert str(Spread(1234.56, 1000, 2000.04)) == "1,234.6 ms (1,000.0-2,000.0)"
    assert Spread(1.23456789, 1, 2).columns()["ms_p50"] == 1.2346
    assert ratio(2.0, 3.0) == 0.667 and ratio(None, 3.0) is ratio(2.0, None) is None


def ones(mib, value=1.0):
    return torch.full((mib * MIB // 4,), value)


def climbs():
    """4, 8, 4, 8, 11 MiB at its highest, 1 at its end."""
    a = ones(4)
    b = a + 1
    del a
    c = b * 2
    d = ones(3)
    del b, c, d
    return ones(1)


@pytest.mark.parametrize(
    ("call", "mib"),
    [
        (climbs, 11),
        (lambda: ones(2), 2),
        (lambda: np.ones(3 * MIB, np.uint8), 3),  # not a tensor, and still memory
        (lambda: None, 0),
    ],
)
def test_the_peak_of_a_call_known_by_construction(call, mib):
    kept = ones(5)  # what was there before does not count
    assert mib <= cpu_peak(call) / MIB < mib + 0.05
    assert mib <= extra_mib(call, CPU) < mib + 0.05
    assert kept.sum() == 5 * MIB // 4


def test_what_was_there_before_makes_no_room():
    """The profiler does not see it go: too many rather than too few."""
    held = [ones(5)]

    def call():
        held.clear()
        held.append(ones(2))

    assert 2 <= cpu_peak(call) / MIB < 2.05


def test_the_peak_of_autograd_counts_what_forward_saved():
    x = ones(1).requires_grad_()
    g = ones(1)

    def both():  # saves 1 MiB each for two squares, returns 1; backward needs less beside
        y = x.exp().exp()
        return torch.autograd.grad(y, x, g)

    forward = cpu_peak(lambda: x.exp().exp()) / MIB
    assert 2 <= forward < 2.05
    assert 3 <= cpu_peak(both) / MIB < 4.05


@pytest.mark.gpu
def test_memory_and_time_on_a_gpu():
    device = torch.device(DEVICE)
    kept = torch.zeros(MIB, device=device)
    assert 8 <= extra_mib(lambda: torch.zeros(MIB, device=device) + kept, device) < 40
    stages = [lambda: (kept + 1,), lambda x: x.mul_(2)]
    (times,) = milliseconds([stages], device, repeats=5)
    assert times.shape == (5, 2) and (times > 0).all() and (times < 1000).all()


def test_free_memory(monkeypatch):
    assert 0 < timing.free_bytes()
    monkeypatch.setattr(timing.Path, "read_text", lambda *_: "MemTotal: 9 kB\nMemAvailable: 3 kB\n")
    assert timing.free_bytes() == 3 * 1024
    monkeypatch.setattr(timing.Path, "read_text", lambda *_: "MemTotal: 9 kB\n")
    assert timing.free_bytes() == float("inf")


def test_rows_are_on_disk_and_on_the_screen_at_once(tmp_path, capsys):
    out = tmp_path / "new" / "table.csv"
    with Table(out, "a machine") as table:
        assert capsys.readouterr().out == "a machine\n"
        table.add({"side": "ours", "ms": 1.5, "note": None}, "ours takes 1.5")
        assert out.read_text() == "# a machine\nside,ms,note\nours,1.5,\n"
        assert capsys.readouterr().out == "ours takes 1.5\n"
        table.add({"side": "theirs", "ms": None, "note": "a, b"}, "theirs")
    header, *lines = out.read_text().splitlines()
    assert [row["note"] for row in csv.DictReader(lines)] == ["", "a, b"]


def test_a_table_without_a_file(capsys):
    with Table(None, "a machine") as table:
        table.add({"a": 1}, "one")
    assert capsys.readouterr().out == "a machine\none\n"


def test_a_side_differentiates_its_inputs_alone():
    x, y = torch.tensor([2.0], requires_grad=True), torch.tensor([3.0], requires_grad=True)
    side = Contender("double", lambda: (x * x * y,), (x,), (torch.tensor([10.0]),))
    (out,), (dx,) = side.both()
    assert (out.item(), dx.item()) == (12.0, 120.0)
    assert x.grad is None and y.grad is None


def test_a_compiler_is_looked_for(monkeypatch):
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setattr(timing.shutil, "which", lambda name: None)
    assert timing.compiler_missing(CPU) == "no C++ compiler (g++, clang++)"
    monkeypatch.setattr(timing.shutil, "which", lambda name: name)
    assert timing.compiler_missing(CPU) == ""
    monkeypatch.setattr(timing, "find_spec", lambda name: None)
    assert timing.compiler_missing(torch.device("cuda")) == "Triton is not installed"
