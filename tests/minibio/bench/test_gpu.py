"""The driver of `make gpu` on parts that need no GPU: budgets, deadline, tables, what is told."""

import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from helpers import ROOT
from minibio.bench import gpu
from minibio.bench.gpu import PARTS, SUMMARY, Part
from minibio.run.errors import InputError


def part(name, code, budget_s=20, file=None, **more):
    return Part(name, ("{python}", "-c", code, "{file}"), budget_s, file or f"{name}.txt", **more)


WRITE = "import sys, pathlib; pathlib.Path(sys.argv[1]).write_text('ms\\n1.5\\n')"
SLEEP = "import time; time.sleep(60)"
HALF = f"{WRITE}; {SLEEP}"
CHILD = f"import subprocess, sys; subprocess.run([sys.executable, '-c', '{SLEEP}'])"


def test_tables_statuses_and_summary(tmp_path, capsys):
    parts = [
        part("says", "print('hello')", uses=("no_such_package",)),
        part("writes", WRITE, file="writes.csv"),
        part("fails", "print('why'); raise SystemExit(3)"),
        part("lacks", "print('never')", needs=("no_such_package",)),
        part("has", "print('there')", programs=("sh",)),
        part("alone", "print('never')", programs=("sh", "no-such-program")),
    ]
    results = gpu.run_parts(parts, tmp_path, "a machine", deadline_s=60)
    assert [r.status for r in results] == ["done", "done", "failed", "left out", "done", "left out"]
    assert results[0].note == "without no_such_package"
    assert results[2].note == "exit status 3: why"
    assert results[3].note == "no_such_package cannot be imported here"
    assert results[5].note == "there is no no-such-program here"
    assert (tmp_path / "says.txt").read_text() == "# a machine\nhello\n"
    assert (tmp_path / "writes.csv").read_text() == "# a machine\nms\n1.5\n"
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        "fails.txt", "has.txt", "says.txt", SUMMARY, "writes.csv",
    ]  # fmt: skip
    told = (tmp_path / SUMMARY).read_text()
    assert told.startswith("# a machine\nsays ")
    assert told.endswith("not done: fails (failed), lacks (left out), alone (left out)\n")
    assert "  hello\n" in capsys.readouterr().out


def test_a_part_stops_at_its_budget_with_its_children_and_keeps_its_table(tmp_path):
    parts = [part("half", HALF, 2, "half.csv"), part("child", CHILD, 1), part("after", "print(1)")]
    began = time.monotonic()
    results = gpu.run_parts(parts, tmp_path, "a machine", deadline_s=60)
    assert time.monotonic() - began < 20
    assert [r.status for r in results] == ["out of time", "out of time", "done"]
    assert (tmp_path / "half.csv").read_text() == "# a machine\nms\n1.5\n"


def test_no_part_starts_or_runs_past_the_deadline(tmp_path, monkeypatch):
    monkeypatch.setattr(gpu, "LEAST_S", 1)
    parts = [part("long", SLEEP), part("late", "print(1)")]
    began = time.monotonic()
    results = gpu.run_parts(parts, tmp_path, "a machine", deadline_s=2)
    assert time.monotonic() - began < 10
    assert [r.status for r in results] == ["out of time", "no time left"]
    assert "not done: long (out of time), late (no time left)" in (tmp_path / SUMMARY).read_text()


def test_the_table_of_parts():
    assert len({p.name for p in PARTS}) == len({p.file for p in PARTS}) == len(PARTS)
    assert len(PARTS) < gpu.MOST_FILES
    for p in PARTS:
        assert p.file == Path(p.file).name and p.file.endswith((".csv", ".txt"))
        command = gpu.fill_in(p.command, Path("table.csv"))
        assert sys.executable in " ".join(command) and not any("{" in word for word in command)


def test_the_kernels_come_right_after_the_tests():
    assert [p.name for p in PARTS][:2] == ["tests", "attention-kl"]


def test_only_files_with_gpu_tests_are_collected():
    for name in gpu.gpu_tests():
        assert "mark.gpu" in (ROOT / name).read_text("utf-8")


def test_without_a_gpu_one_line_and_status_2(monkeypatch, tmp_path):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(InputError, match="no GPU"):
        gpu.main(["--out", str(tmp_path)])
    done = subprocess.run(
        [sys.executable, "-m", "minibio.bench.gpu", "--out", str(tmp_path / "out")],
        cwd=ROOT, capture_output=True, text=True, env={"CUDA_VISIBLE_DEVICES": "", "PATH": ""},
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "make gpu: error: torch sees no GPU on this machine\n"
    assert not (tmp_path / "out").exists()
