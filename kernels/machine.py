"""The machine and versions of a measurement, in one line: the header of every table of figures."""

import os
import platform
import re
import subprocess
from datetime import UTC, datetime
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parent.parent  # of the repository


def output_of(*command: str) -> str:
    """The output of a command; "" where it is missing, fails or prints nothing."""
    try:
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=20)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""


def version(package: str) -> str:
    """The installed version of a package, which is not imported for it; "none" without one."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "none"


def ptxas_version() -> str:
    """The release of the assembler that Triton calls: its own, or that of $TRITON_PTXAS_PATH."""
    path = os.environ.get("TRITON_PTXAS_PATH")
    if path is None:
        found = find_spec("triton")
        if found is None:
            return "none"
        path = str(Path(found.origin).parent / "backends" / "nvidia" / "bin" / "ptxas")
    release = re.search(r"V(\d+\.\d+\.\d+)", output_of(path, "--version"))
    return release[1] if release else "unknown"


def is_cuda_fault(error: BaseException) -> bool:
    """Whether a CUDA error stopped a kernel, so that this process can use its GPU no more."""
    return bool(re.search(r"CUDA error:|Triton Error \[CUDA\]", str(error)))


def commit(*besides: str) -> str:
    """The short hash of the checkout, with + where files differ from it; "unknown" without git.

    Args:
        besides: names of files that may differ, since the command itself writes them.
    """
    name = output_of("git", "rev-parse", "--short", "HEAD")
    others = [f":(exclude,glob)**/{file}" for file in besides]
    changed = output_of("git", "status", "--porcelain", ":/", *others)
    return (name + "+" * bool(changed)) or "unknown"


def processor() -> str:
    """The name of the CPU."""
    try:
        lines = Path("/proc/cpuinfo").read_text("utf-8").splitlines()
    except OSError:
        lines = []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def has_bf16_products(device: torch.device) -> bool:
    """Whether the processor itself multiplies bfloat16, rather than be made to at a loss."""
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    try:
        lines = Path("/proc/cpuinfo").read_text("utf-8").splitlines()
    except OSError:
        return False
    flags = [line.split(":", 1)[1].split() for line in lines if line.startswith(("flags", "Feat"))]
    return bool(flags) and bool({"avx512_bf16", "amx_bf16", "bf16"} & set(flags[0]))


def describe(device: torch.device) -> str:
    """GPU and its size | driver | CUDA | torch | triton and its ptxas | git | date, or of a CPU.

    Args:
        device: where the measured tensors lie.
    """
    if device.type == "cuda":
        driver = output_of("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader")
        driver = driver.split("\n")[0]  # a line for each GPU
        gpu = torch.cuda.get_device_properties(device)
        where = [
            f"{gpu.name}, {gpu.multi_processor_count} multiprocessors, "
            f"L2 {gpu.L2_cache_size / 2**20:.0f} MiB",
            f"driver {driver or 'unknown'}",
            f"CUDA {torch.version.cuda}",
        ]
    else:
        where = [processor(), f"{torch.get_num_threads()} threads"]
    return " | ".join(
        [
            *where,
            f"torch {torch.__version__}",
            f"triton {version('triton')}" + f" (ptxas {ptxas_version()})" * (device.type == "cuda"),
            f"git {commit()}",
            datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        ]
    )
