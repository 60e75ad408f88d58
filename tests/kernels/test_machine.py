"""The header of tables: every field is there, and what is missing is said."""

import os
import re
import shutil
import subprocess
import sys
from importlib.util import find_spec
from types import SimpleNamespace

import pytest
import torch

from helpers import DEVICE, ROOT
from kernels import machine

CUDA = torch.device("cuda")
GPU = SimpleNamespace(name="NVIDIA X", multi_processor_count=132, L2_cache_size=50 * 2**20)


def test_the_header_has_its_fields():
    line = machine.describe(torch.device(DEVICE))
    assert re.search(r"torch \S+ \| triton \S+ \| git \S+ \| \d{4}-\d\d-\d\d \d\d:\d\d UTC$", line)
    assert "\n" not in line


def test_a_gpu_is_named_with_its_driver(monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: GPU)
    monkeypatch.setattr(machine, "output_of", lambda *command: "")
    line = machine.describe(torch.device("cuda"))
    assert line.startswith(
        f"NVIDIA X, 132 multiprocessors, L2 50 MiB | driver unknown | CUDA {torch.version.cuda} | "
    )
    assert "git unknown" in line


@pytest.mark.skipif(shutil.which("git") is None, reason="no git")
def test_a_checkout_with_changes_is_marked(monkeypatch, tmp_path):
    """But for the files that the command writes itself, wherever they are."""
    git = ["git", "-c", "user.name=x", "-c", "user.email=x@y"]
    (tmp_path / "in").mkdir()
    for name in ("code.py", "in/kept.jsonl"):
        (tmp_path / name).write_text("1")
    for words in (["init", "-q"], ["add", "."], ["commit", "-qm", "first"]):
        subprocess.run([*git, *words], cwd=tmp_path, check=True)
    monkeypatch.setattr(machine, "ROOT", tmp_path)
    clean = machine.commit()
    assert re.fullmatch("[0-9a-f]{7,}", clean) and machine.commit("kept.jsonl") == clean
    (tmp_path / "in/kept.jsonl").write_text("2")
    assert machine.commit() == f"{clean}+" and machine.commit("kept.jsonl") == clean
    (tmp_path / "code.py").write_text("2")
    assert machine.commit("kept.jsonl") == f"{clean}+"


def test_tables_of_a_gpu_name_the_assembler(monkeypatch, tmp_path):
    """Triton's own, or the one that $TRITON_PTXAS_PATH puts in its place."""
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: GPU)
    monkeypatch.delenv("TRITON_PTXAS_PATH", raising=False)
    if find_spec("triton"):
        assert re.search(r"triton \S+ \(ptxas \d+\.\d+\.\d+\)", machine.describe(CUDA))
    other = tmp_path / "ptxas"
    other.write_text("#!/bin/sh\necho ptxas: NVIDIA\necho Cuda compilation tools, V13.3.7\n")
    other.chmod(0o755)
    monkeypatch.setenv("TRITON_PTXAS_PATH", str(other))
    assert "(ptxas 13.3.7) | git" in machine.describe(CUDA)
    monkeypatch.setenv("TRITON_PTXAS_PATH", str(tmp_path / "none"))
    assert "(ptxas unknown) | git" in machine.describe(CUDA)
    assert "ptxas" not in machine.describe(torch.device("cpu"))


@pytest.mark.parametrize(
    ("error", "is_one"),
    [
        (RuntimeError("CUDA error: an illegal memory access was encountered"), True),
        (RuntimeError("Triton Error [CUDA]: misaligned address"), True),
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"), False),
        (AssertionError("dq: error 2e-2 of max"), False),
    ],
)
def test_which_errors_end_a_process(error, is_one):
    assert machine.is_cuda_fault(error) is is_one


def test_tests_stop_at_the_first_cuda_error(tmp_path):
    """The summary names it, and nothing that it poisoned is run, let alone blamed."""
    shutil.copy(ROOT / "tests" / "conftest.py", tmp_path)
    tmp_path.joinpath("test_x.py").write_text(
        "import torch\n"
        "def test_one(): assert False\n"
        "def test_two(): raise RuntimeError('CUDA error: misaligned address')\n"
        "def test_three(): raise RuntimeError('CUDA error: misaligned address')\n"
    )
    path = os.pathsep.join([str(ROOT), str(ROOT / "tests")])  # conftest.py imports helpers
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", tmp_path],
        cwd=tmp_path, env={**os.environ, "PYTHONPATH": path}, capture_output=True, text=True,
    )  # fmt: skip
    assert "stopped at the first CUDA error, in test_x.py::test_two" in done.stdout
    assert "2 failed" in done.stdout and "test_three" not in done.stdout
    assert done.returncode


def test_commands_that_fail_say_nothing():
    assert machine.output_of("no-such-command-here") == ""
    assert machine.output_of("git", "no-such-verb") == ""
    assert machine.version("no-such-package-here") == "none"


@pytest.mark.parametrize(
    ("text", "has_it"),
    [
        ("processor\t: 0\nflags\t\t: fpu avx512f avx512_bf16\n", True),
        ("flags\t\t: fpu amx_bf16\n", True),
        ("Features\t: fp asimd bf16\n", True),
        ("flags\t\t: fpu avx512f\n", False),
        ("", False),
    ],
)
def test_which_cpus_multiply_bfloat16(monkeypatch, text, has_it):
    monkeypatch.setattr(machine.Path, "read_text", lambda self, encoding: text)
    assert machine.has_bf16_products(torch.device("cpu")) is has_it


def test_which_gpus_multiply_bfloat16(monkeypatch):
    for capability, has_it in (((7, 5), False), ((8, 0), True), ((9, 0), True)):
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device, c=capability: c)
        assert machine.has_bf16_products(torch.device("cuda")) is has_it


def test_where_nothing_tells_there_are_no_such_products(monkeypatch):
    def missing(self, encoding):
        raise FileNotFoundError(self)

    monkeypatch.setattr(machine.Path, "read_text", missing)
    assert machine.has_bf16_products(torch.device("cpu")) is False
