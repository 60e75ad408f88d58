"""kernels/cuda_build.py: finding nvcc and the cache. nvcc is a script here."""

import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

from kernels import cuda_build

SOURCE = cuda_build.SOURCES / "logit_rows.cu"

FAKE = """#!/bin/sh
[ "$1" = --version ] && { echo "release $FAKE_VERSION"; exit 0; }
echo "$@" >> "$FAKE_CALLS"
while [ "$1" != -o ]; do shift; done
echo half > "$2"; sleep "${FAKE_SLEEP:-0}"; echo whole > "$2"
echo "first line"; echo "ptxas: this is wrong"; echo "and that is why"
exit "${FAKE_STATUS:-0}"
"""


@pytest.fixture
def fake_nvcc(tmp_path, monkeypatch):
    """A CUDA_HOME whose nvcc notes its calls; a cache of its own. -> function: the calls so far."""
    nvcc, calls = tmp_path / "home" / "bin" / "nvcc", tmp_path / "calls"
    nvcc.parent.mkdir(parents=True)
    nvcc.write_text(FAKE)
    nvcc.chmod(0o755)
    for name, value in {"CUDA_HOME": nvcc.parent.parent, "MINIBIO_CACHE": tmp_path / "cache",
                        "FAKE_CALLS": calls, "FAKE_VERSION": "1"}.items():  # fmt: skip
        monkeypatch.setenv(name, str(value))
    cuda_build.nvcc_version.cache_clear()
    yield lambda: calls.read_text().splitlines() if calls.exists() else []
    cuda_build.nvcc_version.cache_clear()


def test_cuda_home_goes_first_then_the_path(fake_nvcc, tmp_path, monkeypatch):
    on_path = tmp_path / "path" / "nvcc"
    on_path.parent.mkdir()
    on_path.write_text(FAKE)
    on_path.chmod(0o755)
    monkeypatch.setenv("PATH", f"{on_path.parent}:{os.environ['PATH']}")
    assert cuda_build.find_nvcc() == tmp_path / "home" / "bin" / "nvcc"
    monkeypatch.setenv("CUDA_HOME", str(tmp_path / "nothing here"))
    assert cuda_build.find_nvcc() == on_path
    monkeypatch.delenv("CUDA_HOME")
    assert cuda_build.find_nvcc() == on_path


def test_a_build_is_kept(fake_nvcc, tmp_path):
    path = cuda_build.build(SOURCE, "sm_90a")
    assert path.parent == tmp_path / "cache" and path.name.startswith("logit_rows-sm_90a-")
    assert path.read_text() == "whole\n"
    assert "this is wrong" in path.with_suffix(".log").read_text()
    assert cuda_build.build(SOURCE, "sm_90a") == path
    (call,) = fake_nvcc()
    assert "-gencode=arch=compute_90a,code=sm_90a" in call and str(SOURCE) in call
    assert all(flag in call for flag in cuda_build.FLAGS)
    assert {p.suffix for p in path.parent.iterdir()} == {".so", ".log"}, "something was left behind"


def test_the_cache_is_in_the_home_folder(monkeypatch, tmp_path):
    monkeypatch.delenv("MINIBIO_CACHE", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cuda_build.cache_dir() == tmp_path / ".cache" / "minibio"


def test_whatever_makes_another_library_makes_another_name(fake_nvcc, tmp_path, monkeypatch):
    names = [cuda_build.build(SOURCE, "sm_90a"), cuda_build.build(SOURCE, "sm_80")]
    monkeypatch.setattr(cuda_build, "FLAGS", (*cuda_build.FLAGS, "-lineinfo"))
    names.append(cuda_build.build(SOURCE, "sm_90a"))
    monkeypatch.setenv("FAKE_VERSION", "2")
    cuda_build.nvcc_version.cache_clear()
    names.append(cuda_build.build(SOURCE, "sm_90a"))
    names.append(cuda_build.build(SOURCE, "sm_90a", "-DREAL=double"))
    changed = tmp_path / "logit_rows.cu"
    changed.write_text(SOURCE.read_text("utf-8") + "\n")
    names.append(cuda_build.build(changed, "sm_90a"))
    assert len(set(names)) == len(fake_nvcc()) == 6


def test_a_failure_is_one_line(fake_nvcc, monkeypatch):
    monkeypatch.setenv("FAKE_STATUS", "1")
    with pytest.raises(RuntimeError, match="nvcc failed on logit_rows.cu for sm_80") as raised:
        cuda_build.build(SOURCE, "sm_80")
    text = str(raised.value)
    assert "this is wrong | and that is why" in text and "\n" not in text
    log = text.split("all of it: ")[1].rstrip(")")
    assert "first line" in Path(log).read_text()
    monkeypatch.setenv("FAKE_STATUS", "0")
    assert cuda_build.build(SOURCE, "sm_80").read_text() == "whole\n"


def test_a_cache_that_cannot_be_written_is_named(fake_nvcc, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("MINIBIO_CACHE", str(tmp_path / "file"))
    with pytest.raises(RuntimeError, match="cannot build in .*file: .*; set MINIBIO_CACHE"):
        cuda_build.build(SOURCE, "sm_80")


def test_builds_at_once_do_not_meet(fake_nvcc, monkeypatch):
    """Each of three compiles slowly, half a file first; none sees anything but a whole one."""
    monkeypatch.setenv("FAKE_SLEEP", "0.3")
    with ThreadPoolExecutor(3) as pool:
        paths = list(pool.map(cuda_build.build, [SOURCE] * 3, ["sm_80"] * 3))
    assert [path.read_text() for path in paths] == ["whole\n"] * 3 and len(fake_nvcc()) == 3
    names = os.listdir(cuda_build.cache_dir())
    assert sorted(name.split(".")[-1] for name in names) == ["log", "so"]


def test_why_it_cannot_run(monkeypatch):
    cpu, cuda = torch.device("cpu"), torch.device("cuda")
    assert "tensors on cpu" in cuda_build.unavailable(cpu)
    monkeypatch.setattr(cuda_build, "find_nvcc", lambda: None)
    assert "no nvcc" in cuda_build.unavailable(cuda)
    with pytest.raises(RuntimeError, match="no nvcc"):
        cuda_build.build(SOURCE, "sm_80")
    monkeypatch.setattr(cuda_build, "find_nvcc", lambda: "nvcc")
    assert cuda_build.unavailable(cuda) is None
    monkeypatch.setattr(torch.version, "hip", "7")
    assert "ROCm" in cuda_build.unavailable(cuda)
