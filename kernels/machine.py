"""What a measurement was made on, in one line: the header of every table of figures."""

import platform
import subprocess
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parent.parent  # of the repository


def output_of(*command: str) -> str:
    """The first line a command prints; "" where it is missing, fails or prints nothing."""
    try:
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=20)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.strip().split("\n")[0] if done.returncode == 0 else ""


def version(package: str) -> str:
    """The installed version of a package, which is not imported for it; "none" without one."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "none"


def commit() -> str:
    """The short hash of the checkout, with + where files differ from it; "unknown" without git."""
    name = output_of("git", "rev-parse", "--short", "HEAD")
    return (name + "+" * bool(output_of("git", "status", "--porcelain"))) or "unknown"


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
    """GPU | driver | CUDA | torch | triton | git | date, or the same for a CPU.

    Args:
        device: where the measured tensors lie.
    """
    if device.type == "cuda":
        driver = output_of("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader")
        where = [
            torch.cuda.get_device_name(device),
            f"driver {driver or 'unknown'}",
            f"CUDA {torch.version.cuda}",
        ]
    else:
        where = [processor(), f"{torch.get_num_threads()} threads"]
    return " | ".join(
        [
            *where,
            f"torch {torch.__version__}",
            f"triton {version('triton')}",
            f"git {commit()}",
            datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        ]
    )
