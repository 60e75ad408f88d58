"""The parts of `make gpu` as stand-ins that need no GPU: hang, crash, fail, find a CUDA error."""

import re
import time

import pytest
import torch

from minibio.bench import gpu
from minibio.bench.gpu import Part


def part(name, code, seconds=60, **options):
    """A part that runs a line of Python."""
    return Part(name, seconds, f'python -c "{code}"', **options)


def statuses(results):
    return [x.status for x in results]


def is_gone(pid):
    """Whether a process has ended, or is only waited for."""
    try:
        with open(f"/proc/{pid}/stat", encoding="utf-8") as file:
            return file.read().rsplit(")", 1)[1].split()[0] == "Z"
    except FileNotFoundError:
        return True


def test_a_part_that_crashes_harms_no_other(tmp_path, capfd):
    results = gpu.run_parts([
        part("crash", "import os; print('then', flush=True); os.abort()"),
        part("fail", "import sys; print('why'); sys.exit(3)"),
        part("done", "print('3 passed')"),
    ], tmp_path, 60)  # fmt: skip
    assert statuses(results) == [
        "failed, signal 6: then", "failed, status 3: why", "done",
    ]  # fmt: skip
    assert (tmp_path / "done.txt").read_text() == "3 passed\n"
    assert "3 passed\n" in capfd.readouterr().out
    shown = re.sub(r", \d+ s$", "", (tmp_path / "summary.txt").read_text(), flags=re.MULTILINE)
    assert shown == (
        "crash: failed, signal 6: then\nfail: failed, status 3: why\ndone: done\n"
    )  # fmt: skip
    assert [x.is_failure for x in results] == [True, True, False]


def test_a_part_that_hangs_is_interrupted_and_says_what_it_has_found(tmp_path):
    code = """
import time
print('a row', flush=True)
try:
    time.sleep(60)
except KeyboardInterrupt:
    print('FAILED tests/a.py::test_b - wrong')
"""
    began = time.monotonic()
    (result,) = gpu.run_parts([part("hang", code, seconds=4)], tmp_path, 60)
    assert result.status == "out of time" and result.is_failure
    assert time.monotonic() - began < 50
    assert (tmp_path / "hang.txt").read_text() == "a row\nFAILED tests/a.py::test_b - wrong\n"
    assert result.firsts == {"first failing test": "tests/a.py::test_b - wrong"}


def test_one_that_does_not_listen_is_killed_with_all_that_it_started(tmp_path, monkeypatch):
    monkeypatch.setattr(gpu, "GRACE", 1)
    code = """
import os, signal, time
signal.signal(signal.SIGINT, signal.SIG_IGN)
os.fork()
os.write(1, b'%d\\n' % os.getpid())
time.sleep(60)
"""
    began = time.monotonic()
    (result,) = gpu.run_parts([part("deaf", code, seconds=4)], tmp_path, 60)
    assert result.status == "out of time" and time.monotonic() - began < 50
    pids = [int(x) for x in (tmp_path / "deaf.txt").read_text().split()]
    assert len(set(pids)) == 2
    for _ in range(100):  # a killed process takes a moment to end
        if all(is_gone(pid) for pid in pids):
            return
        time.sleep(0.1)
    pytest.fail(f"one of {pids} is still there")


def test_each_line_is_in_the_file_as_soon_as_it_is_printed(tmp_path):
    """A part reads its own file, while it runs."""
    code = f"""
import time
print('first')
for _ in range(100):
    if 'first' in open('{tmp_path}/own.txt').read(): break
    time.sleep(0.1)
else: raise SystemExit(1)
"""
    (result,) = gpu.run_parts([part("own", code)], tmp_path, 60)
    assert result.status == "done"


def test_the_rest_has_no_time_left(tmp_path):
    slow, later = part("slow", "import time; time.sleep(60)"), part("later", "print(1)")
    results = gpu.run_parts([slow, later], tmp_path, 1)
    assert statuses(results) == ["out of time", "no time left"]
    assert not results[1].is_failure and not (tmp_path / "later.txt").exists()


def test_the_first_failing_test_and_the_first_cuda_error_are_repeated(tmp_path):
    """Of all parts; what comes later follows from them, or is hidden in the log."""
    lines = (
        "E   RuntimeError: CUDA error: an illegal memory access was encountered",
        "E   RuntimeError: CUDA error: device-side assert triggered",
        "FAILED tests/kernels/test_a.py::test_b[one two] - RuntimeError",
        "FAILED tests/kernels/test_a.py::test_c",
    )
    code = "import sys; " + "; ".join(f"print('{x}')" for x in lines) + "; sys.exit(1)"
    gpu.run_parts([
        part("quiet", "print(1)"), part("tests", code),
        part("later", "print('RuntimeError: Triton Error [CUDA]: misaligned address')"),
    ], tmp_path, 60)  # fmt: skip
    assert (tmp_path / "summary.txt").read_text().splitlines()[3:] == [
        "first failing test: tests/kernels/test_a.py::test_b[one two] - RuntimeError (tests)",
        "first CUDA error: E   RuntimeError: CUDA error: an illegal memory access was encountered "
        "(tests)",
    ]


@pytest.mark.parametrize("workers", ["-n 1", "-p no:xdist"])
def test_out_of_time_the_tests_have_named_what_failed(tmp_path, workers):
    """Even killed at once: with workers pytest reaches its own summary too late."""
    if workers == "-n 1":
        pytest.importorskip("xdist")
    (tmp_path / "tests").mkdir()
    (tmp_path / "tests" / "test_it.py").write_text(f"""
import os, signal, time
def test_a():
    raise RuntimeError('CUDA error: misaligned address')
def test_b():
    for _ in range(300):  # a worker's report takes a moment to be shown
        if 'FAILED' in open('{tmp_path}/out/tests.txt').read(): break
        time.sleep(0.1)
    os.killpg(os.getpgid(0), signal.SIGKILL)
""")
    command = f"python -m pytest -q -p no:cacheprovider -p minibio.bench.at_once {workers}"
    place = f"--rootdir {tmp_path} {tmp_path / 'tests'}"
    (result,) = gpu.run_parts([Part("tests", 60, f"{command} {place}")], tmp_path / "out", 60)
    assert result.status.startswith("failed, signal 9")
    wrong = "tests/test_it.py::test_a - RuntimeError: CUDA error: misaligned address"
    assert result.firsts == {
        "first failing test": wrong, "first CUDA error": f"FAILED {wrong}",
    }  # fmt: skip


def test_the_part_of_the_tests_names_them_at_once():
    (tests,) = (x for x in gpu.PARTS if x.name == "tests")
    assert "-p minibio.bench.at_once {workers}" in tests.command


@pytest.mark.parametrize("line", [
    "========= Invalid __global__ read of size 4 bytes", "========= Error: process didn't end",
    "========= Race reported between Write access", "RuntimeError: Triton Error [CUDA]: context",
])  # fmt: skip
def test_what_a_cuda_error_looks_like(line):
    assert gpu.FIRSTS["first CUDA error"].search(line)[1] == line
    quiet = "========= ERROR SUMMARY: 0 errors", "========= COMPUTE-SANITIZER", "0 CUDA errors"
    assert not any(gpu.FIRSTS["first CUDA error"].search(x) for x in quiet)


def test_a_report_fails_nothing(tmp_path):
    (result,) = gpu.run_parts([part("race", "raise SystemExit(1)", is_report=True)], tmp_path, 60)
    assert result.status.startswith("failed") and not result.is_failure


def test_a_table_of_an_earlier_run_is_not_taken_for_one_of_this(tmp_path):
    (tmp_path / "step.csv").write_text("old")
    gpu.run_parts([part("step", "raise SystemExit(1)")], tmp_path, 60)
    assert not (tmp_path / "step.csv").exists()


def test_without_the_sanitizer_its_parts_say_so(tmp_path, monkeypatch):
    monkeypatch.setattr(gpu.shutil, "which", lambda name: None)
    (result,) = gpu.run_parts([x for x in gpu.PARTS if x.name == "memcheck"], tmp_path, 60)
    assert result.status == "not here: no compute-sanitizer" and not result.is_failure


def test_the_command(tmp_path, monkeypatch, capsys):
    parts = [part("good", "print(1)"), part("bad", "raise SystemExit(1)")]
    args = ["--out", str(tmp_path / "out")]
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert gpu.main(args, parts) == 2 and not (tmp_path / "out").exists()
    assert capsys.readouterr().out == "make gpu: torch sees no GPU on this machine\n"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert gpu.main(["nosuch", *args], parts) == 2
    assert capsys.readouterr().out == "make gpu: no part nosuch, expected good, bad\n"
    assert gpu.main(args, parts) == 1
    assert capsys.readouterr().out.endswith((tmp_path / "out" / "summary.txt").read_text())
    assert gpu.main(["good", *args], parts) == 0
    assert (tmp_path / "out" / "summary.txt").read_text().startswith("good: done")


def test_the_parts_fill_nine_minutes():
    assert sum(x.seconds for x in gpu.PARTS) == 540
    assert [x.name for x in gpu.PARTS][:4] == ["compile", "smoke", "memcheck", "profile"]
    assert gpu.PARTS[-1].name == "racecheck" and gpu.PARTS[-1].is_report
