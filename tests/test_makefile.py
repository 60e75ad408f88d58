"""`make gpu` on parts that need no GPU: budgets, crashes, tables, summary."""

import os
import re
import shutil
import subprocess

import pytest

from helpers import ROOT

pytestmark = pytest.mark.skipif(shutil.which("make") is None, reason="needs make")

# a Python that does in no time what the parts do: it says what it ran, is killed, hangs, fails
PYTHON = """#!/bin/sh
case "$*" in
-c*) exit 0;;
"-m pytest"*) echo 3 passed;;
"-m kernels.bench attention-kl"*) 
    echo "# a machine" >"$OUT/attention-kl.csv"; kill -KILL $$;;
"-m kernels.bench masked-mlm"*) echo why; exit 3;;
"-m minibio bench step"*) [ -z "$HANG" ] || sleep 60;;
*) echo "$*";;
esac
"""


def gpu(tmp_path, *options, **env):
    """`make gpu` with that Python -> (status, output, {file: text})."""
    python, out = tmp_path / "python", tmp_path / "out"
    python.write_text(PYTHON, "utf-8")
    python.chmod(0o755)
    done = subprocess.run(
        ["make", "--no-print-directory", "gpu", f"PYTHON={python}", f"OUT={out}", *options],
        cwd=ROOT, capture_output=True, text=True, env={**os.environ, "OUT": str(out), **env},
    )  # fmt: skip
    files = {path.name: path.read_text("utf-8") for path in out.iterdir()} if out.exists() else {}
    return done.returncode, done.stdout, files


def test_a_part_that_crashes_harms_no_other(tmp_path):
    status, shown, files = gpu(tmp_path)
    summary = re.sub(r", \d+ s$", "", files["summary.txt"], flags=re.MULTILINE).splitlines()
    assert summary.pop(1).lower().startswith("attention-kl: failed, status 137: ")
    assert summary == [
        "tests: done", "masked-mlm: failed, status 3: why", "step: done", "encoder: done",
        "speed: done", "sanitizer: done",
    ]  # fmt: skip
    assert status == 2 and shown.endswith(files["summary.txt"])  # make's own, for any failure
    assert files["tests.txt"] == "3 passed\n" and "3 passed\n" in shown
    assert files["attention-kl.csv"] == "# a machine\n" and "attention-kl.txt" not in files
    assert "minibio bench encoder --device cuda" in files["encoder.txt"]


def test_a_part_that_hangs_is_stopped_and_the_rest_has_no_time_left(tmp_path):
    status, _, files = gpu(tmp_path, "GPU_SECONDS=2", HANG="1")
    summary = files["summary.txt"].splitlines()
    assert status == 2 and len(summary) == 7
    assert re.fullmatch(r"step: out of time, [2-9] s", summary[3])
    assert summary[4:] == [f"{x}: no time left, 0 s" for x in ("encoder", "speed", "sanitizer")]


def test_one_part(tmp_path):
    status, _, files = gpu(tmp_path, "PART=tests")
    assert status == 0 and set(files) == {"summary.txt", "tests.txt"}
    status, shown, _ = gpu(tmp_path, "PART=nosuch")
    assert status == 2 and shown.strip() == "make gpu: no part nosuch"


def test_without_a_gpu_one_line(tmp_path):
    done = subprocess.run(
        ["make", "--no-print-directory", "gpu", "PYTHON=false", f"OUT={tmp_path / 'out'}"],
        cwd=ROOT, capture_output=True, text=True, env={"PATH": os.environ["PATH"]},
    )  # fmt: skip
    if os.path.exists("/dev/nvidiactl"):
        pytest.skip("there is a GPU")
    assert done.stdout == "make gpu: no NVIDIA GPU on this machine\n" and done.returncode == 2
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("versions", "name"),
    [
        ((), ".venv"),
        (("TORCH=torch==2.13.0 --index-url https://example.org",), ".venv"),
        (("TORCH=torch==2.11.0", "TRITON=triton==3.6.0"), ".venv-torch-2.11.0-triton-3.6.0"),
        (("TRITON=triton>=3.6",), ".venv-triton-3.6"),
    ],
)
def test_other_versions_have_an_environment_of_their_own(versions, name):
    done = subprocess.run(
        ["make", "-n", "--always-make", "test", *versions],
        cwd=ROOT, capture_output=True, text=True, check=True,
    )  # fmt: skip
    used = re.findall(r"(\S+)/bin/python -m (pip install|pytest)", done.stdout)
    assert {venv for venv, _ in used} == {name} and ("pytest" in {what for _, what in used})
    for version in versions:
        assert f"pip install -qq --disable-pip-version-check {version.partition('=')[2]}" in (
            done.stdout
        )


def test_all_tests_run_with_both_sets_of_versions():
    done = subprocess.run(
        ["make", "-n", "--always-make", "test-all"],
        cwd=ROOT, capture_output=True, text=True, check=True,
    )  # fmt: skip
    runs = re.findall(r"(\S+)/bin/python -m pytest .*", done.stdout)
    assert runs == [".venv", ".venv-torch-2.11.0-triton-3.6.0"]
