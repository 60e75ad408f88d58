"""The choice of the implementation that runs, and its reason."""

import os
from collections.abc import Mapping
from importlib.util import find_spec

import torch

from kernels import cuda_attention, cuda_build, cuda_rows

IMPLEMENTATIONS = {
    "attention": ("reference", "torch", "triton", "cuda"),
    "attention_kl": ("reference", "torch", "triton", "cuda"),
    "masked_mlm": ("reference", "torch", "triton", "triton-stream", "cuda"),
    "add_norm": ("reference", "torch", "triton"),
}
# Names on a command line -> their operations.
GROUPS = {"attention": ("attention", "attention_kl"), "mlm": ("masked_mlm",), "norm": ("add_norm",)}
# Constants: what is asked at every call, torch.compile would have to trace.
HAS_TRITON = find_spec("triton") is not None
HAS_NVCC = torch.version.hip is None and cuda_build.find_nvcc() is not None


def resolve_impl(
    op: str, impl: str, device: torch.device, dtype: torch.dtype | None = None
) -> tuple[str, str]:
    """(implementation, reason) for `op` on `device`.

    Args:
        dtype: of the student's tensors; None = not asked about. "auto" takes the row kernel in CUDA
               only for a type that it is known to serve.
    Raises:
        ValueError: there is no such operation, it has no such implementation, or the one asked
            for cannot run here. Nothing is ever replaced by something else.
    """
    if op not in IMPLEMENTATIONS:
        raise ValueError(
            f"resolve_impl: op is {op!r}, expected one of {', '.join(IMPLEMENTATIONS)}"
        )
    if impl == "auto":
        if device.type != "cuda":
            return "torch", f"tensors on {device.type}"
        if not HAS_TRITON:
            return "torch", "tensors on cuda, but Triton is not installed"
        if op == "masked_mlm" and HAS_NVCC and dtype in cuda_rows.WIDTHS:
            return "cuda", "tensors on cuda, and nvcc is here"
        return "triton", "tensors on cuda"
    if impl not in IMPLEMENTATIONS[op]:
        raise ValueError(f"{op}: impl is {impl!r}, expected auto, {', '.join(IMPLEMENTATIONS[op])}")
    if impl.startswith("triton"):
        if not HAS_TRITON:
            raise ValueError(f"{op}: impl is {impl!r}, expected Triton to be installed; use torch")
        if device.type != "cuda" and os.environ.get("TRITON_INTERPRET") != "1":
            raise ValueError(
                f"{op}: impl is {impl!r}, expected tensors on cuda, not {device.type}; use torch "
                f"(or set TRITON_INTERPRET=1 to step through the kernels, slowly)"
            )
    if impl == "cuda":
        reason = cuda_build.unavailable(device)
        if reason is not None:
            raise ValueError(f"{op}: impl is 'cuda', which cannot run here: {reason}")
        if op in GROUPS["attention"] and dtype not in (None, *cuda_attention.FLAGS):
            raise ValueError(
                f"{op}: impl is 'cuda', expected torch.float32, not {dtype}: it is the plain one; "
                f"use triton"
            )
    return impl, "asked for"


def parse_choice(text: str) -> dict[str, str]:
    """Operation -> implementation, from "triton" (of all) or "attention=triton,mlm=cuda".

    Raises:
        ValueError: no such operation or implementation, or an operation is named twice.
    """
    choice = dict.fromkeys(IMPLEMENTATIONS, "auto")
    named: set[str] = set()
    for part in text.split(","):
        group, is_named, impl = part.strip().rpartition("=")
        if is_named and group not in GROUPS:
            raise ValueError(f"{group!r} is not an operation, expected {' or '.join(GROUPS)}")
        if named & {group, ""} or named and not is_named:
            raise ValueError(
                f"{text!r} names an implementation twice, expected one for all operations, or one "
                f"for each of {', '.join(GROUPS)}"
            )
        named.add(group)
        for one in [group] if is_named else GROUPS:
            for op in GROUPS[one]:
                if impl not in ("auto", *IMPLEMENTATIONS[op]):
                    raise ValueError(
                        f"{one} has no implementation {impl!r}, expected auto, "
                        f"{', '.join(IMPLEMENTATIONS[op])}"
                    )
                choice[op] = impl
    return choice


def resolve_choice(
    choice: Mapping[str, str], device: torch.device, dtype: torch.dtype | None = None
) -> dict[str, tuple[str, str]]:
    """Operation -> `resolve_impl` of what was chosen for it."""
    return {op: resolve_impl(op, impl, device, dtype) for op, impl in choice.items()}
