"""The Makefile: which Python, which environment. The parts of `make gpu` are in test_gpu.py."""

import os
import re
import shutil
import subprocess

import pytest

from helpers import ROOT

pytestmark = pytest.mark.skipif(shutil.which("make") is None, reason="needs make")


def test_gpu_starts_the_parts_with_the_machines_own_python(tmp_path):
    """One that has the packages; a status of its own is a failure of make."""
    python = tmp_path / "python"
    python.write_text('#!/bin/sh\n[ "$1" = -c ] && exit; echo "$@"; [ "$PART" != bad ]\n', "utf-8")
    python.chmod(0o755)
    for part, status in (("smoke step", 0), ("bad", 2)):
        done = subprocess.run(
            ["make", "--no-print-directory", "gpu", f"PYTHON={python}", f"OUT={tmp_path}",
             f"PART={part}", "GPU_SECONDS=7"],
            cwd=ROOT, capture_output=True, text=True, env={**os.environ, "PART": part},
        )  # fmt: skip
        expected = f"-m minibio.bench.gpu --out {tmp_path} --seconds 7 {part}"
        assert done.stdout.splitlines()[0] == expected and done.returncode == status


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
