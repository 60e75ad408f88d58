"""Which implementation of an operation runs, and why."""

import os
from importlib.util import find_spec

import torch

from kernels import cuda_rows

IMPLEMENTATIONS = {
    "attention": ("reference", "torch", "triton"),
    "attention_kl": ("reference", "torch", "triton"),
    "masked_mlm": ("reference", "torch", "triton", "triton-stream", "cuda"),
}
FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def resolve_impl(op: str, impl: str, device: torch.device) -> tuple[str, str]:
    """(implementation, reason) for `op` on `device`.

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
        if find_spec("triton") is None:
            return "torch", "tensors on cuda, but Triton is not installed"
        return "triton", "tensors on cuda"
    if impl not in IMPLEMENTATIONS[op]:
        raise ValueError(f"{op}: impl is {impl!r}, expected auto, {', '.join(IMPLEMENTATIONS[op])}")
    if impl.startswith("triton"):
        if find_spec("triton") is None:
            raise ValueError(f"{op}: impl is {impl!r}, expected Triton to be installed; use torch")
        if device.type != "cuda" and os.environ.get("TRITON_INTERPRET") != "1":
            raise ValueError(
                f"{op}: impl is {impl!r}, expected tensors on cuda, not {device.type}; use torch "
                f"(or set TRITON_INTERPRET=1 to step through the kernels, slowly)"
            )
    if impl == "cuda":
        reason = cuda_rows.unavailable(device)
        if reason is not None:
            raise ValueError(f"{op}: impl is 'cuda', which cannot run here: {reason}")
    return impl, "asked for"
