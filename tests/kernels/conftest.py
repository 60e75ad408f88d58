"""The CUDA source on a CPU: g++ compiles it against tests/kernels/emulator (its header explains).

`emulator` is the library made of the row kernel, as `kernels.cuda_rows.load` gives it, and
`attention_emulators` those of attention; `cuda_on_cpu` and `cuda_attention_here` let the public
functions and their operators run on them. Without g++ such tests are skipped.
"""

import ctypes
import fcntl
import hashlib
import inspect
import os
import shutil
import subprocess

import pytest

from helpers import DEVICE, ROOT
from kernels import cuda_attention, cuda_build, cuda_rows

FLAGS = ("-std=c++17", "-O1", "-fno-strict-aliasing", "-Wall", "-Wextra", "-Werror",
         "-Wno-unknown-pragmas", f"-I{ROOT / 'tests' / 'kernels' / 'emulator'}")  # fmt: skip
LIBRARY = ("-shared", "-fPIC")


def patch_language_once_a_launch():
    """Triton's interpreter patches its language again in every function that a kernel calls, which
    is a third of its time. What is patched in a launch stays so until the launch ends."""
    try:
        from triton.runtime import interpreter

        patch, scope_type = interpreter._patch_lang, interpreter._LangPatchScope
    except (ImportError, AttributeError):  # no Triton, or another one: slower, and as right
        return
    patched = {}  # of the launch under way: modules -> True

    class Scope(scope_type):
        def restore(self):
            patched.clear()
            super().restore()

    def once(fn):
        modules = frozenset(id(x) for x in fn.__globals__.values() if inspect.ismodule(x))
        if modules in patched:
            return scope_type()
        scope = Scope() if not patched else scope_type()
        patched[modules] = True
        scope._changes = patch(fn)._changes
        return scope

    interpreter._patch_lang = once


patch_language_once_a_launch()


def shared(tmp_path_factory):
    """The folder of a session that all of its workers see."""
    base = tmp_path_factory.getbasetemp()
    return base.parent if "PYTEST_XDIST_WORKER" in os.environ else base


@pytest.fixture(scope="session")
def compile_for_cpu(tmp_path_factory):
    """(text, extra flags, its file name, main file) -> what g++ makes of it, once for all workers
    of a session."""
    gxx = shutil.which("g++")
    if gxx is None:
        pytest.skip("no g++")
    folder = shared(tmp_path_factory) / "emulator"

    def compile_(text, *flags, name="logit_rows.cu", main=None):
        key = hashlib.sha256(repr((text, flags, name, main)).encode()).hexdigest()[:16]
        source, out = folder / key / name, folder / key / "out"
        source.parent.mkdir(parents=True, exist_ok=True)
        with open(folder / key / "lock", "w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)  # another worker may be compiling it
            if not out.exists():
                source.write_text(text, "utf-8")
                what = ("-include", source, main) if main else ("-x", "c++", source, *LIBRARY)
                done = subprocess.run(
                    [gxx, *FLAGS, *flags, "-o", folder / key / "new", *what],
                    capture_output=True, text=True,
                )  # fmt: skip
                assert done.returncode == 0, done.stderr
                (folder / key / "new").rename(out)
        return out

    return compile_


@pytest.fixture(scope="session")
def load_for_cpu(compile_for_cpu):
    """Source text, extra flags, its module -> its library on the emulator."""

    def load(text, *flags, module=cuda_rows):
        library = module.load(compile_for_cpu(text, *flags, name=module.SOURCE.name))
        library.emulator_order.argtypes = [ctypes.c_uint]
        library.emulator_shared_limit.argtypes = [ctypes.c_int]
        return library

    return load


@pytest.fixture(scope="session")
def emulator(load_for_cpu):
    """The row kernel."""
    return load_for_cpu(cuda_rows.SOURCE.read_text("utf-8"))


@pytest.fixture(scope="session")
def attention_emulators(load_for_cpu):
    """The kernels of attention, by type."""
    text = cuda_attention.SOURCE.read_text("utf-8")
    return {
        dtype: load_for_cpu(text, *flags, module=cuda_attention)
        for dtype, flags in cuda_attention.FLAGS.items()
    }


@pytest.fixture
def nvcc_cache(tmp_path_factory, monkeypatch):
    """nvcc's libraries go to a cache of this session, and are compiled once for all tests."""
    if cuda_build.find_nvcc() is None:
        pytest.skip("no nvcc")
    folder = shared(tmp_path_factory) / "nvcc"
    monkeypatch.setenv("MINIBIO_CACHE", str(folder))


@pytest.fixture
def cuda_on_cpu(emulator, monkeypatch):
    """kernels.cuda_rows takes tensors on the CPU."""
    monkeypatch.setattr(cuda_build, "unavailable", lambda device: None)
    monkeypatch.setattr(cuda_rows, "place", lambda device: (emulator, None))
    return emulator


@pytest.fixture
def cuda_attention_here(request, monkeypatch):
    """kernels.cuda_attention takes tensors of this machine: without a GPU, on the emulator."""
    if DEVICE == "cuda":
        if cuda_build.find_nvcc() is None:
            pytest.skip("no nvcc")
        return
    emulators = request.getfixturevalue("attention_emulators")
    monkeypatch.setattr(cuda_build, "unavailable", lambda device: None)
    monkeypatch.setattr(cuda_attention, "place", lambda device, dtype: (emulators[dtype], None))
