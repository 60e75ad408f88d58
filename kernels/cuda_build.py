"""CUDA C++ of this folder: compiled by nvcc when it is first needed, loaded as a C library.

The sources in kernels/cuda know nothing of PyTorch: a C function takes a structure of pointers and
numbers, and ctypes calls it. So nothing here depends on the version of PyTorch, and compiling takes
seconds.

The libraries are in $MINIBIO_CACHE, or ~/.cache/minibio, under names with a hash of source, flags,
architecture and compiler: a change of any of these is another file. The compiler's log, with the
registers of every kernel, is beside each.
"""

import ctypes
import hashlib
import os
import shutil
import subprocess
import tempfile
from functools import cache
from pathlib import Path

import torch

SOURCES = Path(__file__).parent / "cuda"
# -ftz: 2^x is one instruction; what it flushes to zero, below 1e-38, is a logit's gradient or less
FLAGS = ("-O3", "-std=c++17", "-ftz=true", "-Xptxas=-v", "-Xcompiler=-fPIC", "-shared")


def find_nvcc() -> Path | None:
    """nvcc of $CUDA_HOME, of the PATH, or of /usr/local/cuda, in this order."""
    homes = [os.environ["CUDA_HOME"]] if os.environ.get("CUDA_HOME") else []
    on_path = shutil.which("nvcc")
    found = [Path(home, "bin", "nvcc") for home in homes]
    found += [Path(on_path)] if on_path else []
    found += [Path("/usr/local/cuda/bin/nvcc")]
    return next((path for path in found if os.access(path, os.X_OK)), None)


@cache
def nvcc_version(nvcc: Path) -> str:
    """The output of `nvcc --version`."""
    return subprocess.run([nvcc, "--version"], capture_output=True, text=True).stdout


def unavailable(device: torch.device) -> str | None:
    """The reason why the kernels cannot run on tensors of this device; None: they can."""
    if device.type != "cuda":
        return f"tensors on {device.type}, and the kernel needs a CUDA device"
    if torch.version.hip is not None:
        return "this PyTorch is built for ROCm, and the kernel needs CUDA"
    if find_nvcc() is None:
        return "no nvcc in $CUDA_HOME/bin, on the PATH or in /usr/local/cuda/bin"
    return None


def cache_dir() -> Path:
    """The directory in which libraries are kept."""
    return Path(os.environ.get("MINIBIO_CACHE") or Path.home() / ".cache" / "minibio")


def architecture(device: torch.device) -> str:
    """nvcc's name for a device: sm_80, sm_90a."""
    major, minor = torch.cuda.get_device_capability(device)
    return f"sm_{major}{minor}" + ("a" if (major, minor) == (9, 0) else "")


def build(source: Path, arch: str, *more_flags: str) -> Path:
    """The library of `source` for `arch` ("sm_80", "sm_90a"), compiled unless the cache has it.

    Several processes may build at once: each writes a directory of its own, and renames.

    Raises:
        RuntimeError: nvcc is missing or failed (with its last lines and the place of its log), or
            the cache cannot be written.
    """
    nvcc = find_nvcc()
    if nvcc is None:
        raise RuntimeError(
            f"{source.name}: no nvcc in $CUDA_HOME/bin, the PATH or /usr/local/cuda/bin"
        )
    flags = (*FLAGS, *more_flags, f"-gencode=arch={arch.replace('sm_', 'compute_')},code={arch}")
    key = hashlib.sha256()
    for part in (source.read_bytes(), *flags, nvcc_version(nvcc)):
        part = part if isinstance(part, bytes) else part.encode()
        key.update(len(part).to_bytes(8, "little") + part)
    path = cache_dir() / f"{source.stem}-{arch}-{key.hexdigest()[:16]}.so"
    if path.exists():
        return path
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=path.parent, prefix=f".{path.stem}-") as place:
            made = Path(place, path.name)
            done = subprocess.run(
                [nvcc, *flags, "-o", made, source],
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
            )
            made.with_suffix(".log").write_text(done.stdout, "utf-8")
            os.replace(made.with_suffix(".log"), path.with_suffix(".log"))
            if done.returncode == 0:
                os.replace(made, path)
    except OSError as error:
        raise RuntimeError(
            f"{source.name}: cannot build in {path.parent}: {error.strerror}; set MINIBIO_CACHE"
        ) from None
    if done.returncode != 0:
        last = " | ".join(done.stdout.strip().splitlines()[-3:])
        raise RuntimeError(
            f"nvcc failed on {source.name} for {arch}: {last} "
            f"(all of it: {path.with_suffix('.log')})"
        )
    return path


def load(path: Path, *functions: str) -> ctypes.CDLL:
    """A library with its functions declared: (structure by reference, ..., stream) -> an error."""
    library = ctypes.CDLL(str(path))
    for name in functions:
        getattr(library, name).argtypes = (
            ctypes.c_void_p,
            ctypes.c_int,
            ctypes.c_int,
            ctypes.c_void_p,
        )
        getattr(library, name).restype = ctypes.c_int
    library.error_text.argtypes = (ctypes.c_int,)
    library.error_text.restype = ctypes.c_char_p
    return library


def launch(
    library: ctypes.CDLL,
    name: str,
    arguments: ctypes.Structure,
    version: int,
    threads: int,
    stream: int | None,
    what: str,
) -> None:
    """Call a function of a library.

    Args:
        version: 1 = the naive one, 2 = the fast one.
        threads: of a block.
        what:    that is computed, for the message.
    Raises:
        RuntimeError: CUDA refuses the launch.
    """
    error = getattr(library, name)(ctypes.byref(arguments), version, threads, stream)
    if error:
        raise RuntimeError(
            f"{name}: CUDA error {error} ({library.error_text(error).decode()}) at the launch of "
            f"{what}"
        )
