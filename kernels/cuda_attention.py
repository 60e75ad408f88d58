"""Attention and the divergence of its maps in CUDA C++: kernels/cuda/attention_kl.cu, to be read.

It is the plain one: float32, no tensor cores. kernels/triton_attention.py is the fast one. float64
is compiled from the same source, for `gradcheck`. kernels/cuda_build.py compiles both.
"""

import ctypes
from functools import cache
from pathlib import Path

import torch
from torch import Tensor

from kernels import cuda_build
from kernels.reference import Call, Forward, drop_threshold

SOURCE = cuda_build.SOURCES / "attention_kl.cu"
FLAGS = {torch.float32: (), torch.float64: ("-DREAL=double",)}
DIVERGENCES = {"none": 0, "kl_st": 1, "kl_ts": 2, "mse_maps": 3}
VERSIONS = {"naive": 1, "warp": 2}
WIDEST = 256  # of a student's head
THREADS = 128  # of a block


class Heads(ctypes.Structure):
    """`struct Heads` of the source: one tensor (N, H, D)."""

    _fields_ = (("x", ctypes.c_void_p), ("s_n", ctypes.c_int64), ("s_h", ctypes.c_int64))

    @classmethod
    def of(cls, x: Tensor | None) -> "Heads":
        """The place and the strides of x; None = not there."""
        return cls() if x is None else cls(x.data_ptr(), x.stride(0), x.stride(1))


class Arguments(ctypes.Structure):
    """`struct Call` of the source, field by field."""

    HEADS = ("q", "k", "v", "q_t", "k_t")
    POINTERS = (
        "keep", "seed", "cu_seqlens", "lse_t", "stat", "dout", "g",
        "out", "row", "lse", "lse_t_out", "stat_out", "delta", "dq", "dk", "dv",
    )  # fmt: skip
    _fields_ = (
        [(name, Heads) for name in HEADS]
        + [(name, ctypes.c_void_p) for name in POINTERS]
        + [(name, ctypes.c_int64) for name in ("N", "B", "s_keep")]
        + [(name, ctypes.c_int32) for name in ("H", "D", "D_t", "divergence")]
        + [("threshold", ctypes.c_uint32)]
        + [(name, ctypes.c_double) for name in ("scale", "scale_t", "keep_scale")]
    )


def load(path: Path) -> ctypes.CDLL:
    """The library, its functions declared."""
    return cuda_build.load(path, "attention_forward", "attention_backward")


@cache
def library(arch: str, dtype: torch.dtype) -> ctypes.CDLL:
    """The library for `arch` and a type, built and loaded once a process."""
    return load(cuda_build.build(SOURCE, arch, *FLAGS[dtype]))


def place(device: torch.device, dtype: torch.dtype) -> tuple[ctypes.CDLL, int]:
    """The library for a device and a type, and the device's current stream."""
    arch = cuda_build.architecture(device)
    return library(arch, dtype), torch.cuda.current_stream(device).cuda_stream


def launch(name: str, x: Call, own: dict[str, Tensor | None], version: str = "warp") -> None:
    """Call a function of the library.

    Args:
        own: the pointers of `Arguments` that are not in x; an empty tensor is one that is absent.
    """
    N, H, D = x.q.shape
    dtype = x.q.dtype
    # Copies, where made, live until the launch; then the stream keeps their memory. A teacher in
    # another type is widened, which changes no value.
    tensors = {
        "q": x.q,
        "k": x.k,
        "v": x.v,
        "keep": x.keep,
        "seed": x.seed,
        "q_t": None if x.q_t is None else x.q_t.to(dtype),
        "k_t": None if x.k_t is None else x.k_t.to(dtype),
        "cu_seqlens": x.cu_seqlens.long(),
        **own,
    }
    contiguous = {
        key: y.contiguous()
        for key, y in tensors.items()
        if key in Arguments.POINTERS and y is not None and y.numel()
    }
    arguments = Arguments(
        **{key: Heads.of(tensors[key]) for key in Arguments.HEADS},
        **{key: y.data_ptr() for key, y in contiguous.items()},
        N=N, B=x.cu_seqlens.numel() - 1, s_keep=0 if x.keep is None else x.keep.shape[-1],
        H=H, D=D, D_t=0 if x.q_t is None else x.q_t.shape[-1],
        divergence=DIVERGENCES[x.divergence],
        threshold=drop_threshold(x.dropout),
        scale=x.scale, scale_t=x.scale_t, keep_scale=1 / (1 - x.dropout),
    )  # fmt: skip
    with torch.cuda.device_of(x.q):
        lib, stream = place(x.q.device, dtype)
        cuda_build.launch(
            lib,
            name,
            arguments,
            VERSIONS[version],
            THREADS,
            stream,
            f"{N} rows of {H} heads, {D} wide",
        )


def forward(x: Call, lse_t: Tensor | None) -> Forward:
    """(1)-(9). lse_t: (N, H) log-sum-exp of the teacher's rows; None = computed here.

    Raises:
        ValueError: heads are wider than `WIDEST`.
    """
    if x.q.shape[-1] > WIDEST:
        raise ValueError(
            f"attention: heads are {x.q.shape[-1]} wide, expected at most {WIDEST} with impl "
            f"'cuda'; use torch"
        )
    result = Forward.blank(x, lse_t)
    own = {"out": result.out, "row": result.row_loss, "lse": result.lse}
    own |= {"lse_t_out": result.lse_t, "stat_out": result.stat}
    launch("attention_forward", x, {**own, "lse_t": as_type(lse_t, x)})
    return result


def backward(
    x: Call,
    out: Tensor,
    lse: Tensor,
    lse_t: Tensor | None,
    stat: Tensor | None,
    dout: Tensor,
    g: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor]:
    """(10)-(15): gradients of q, k and v, each (N, H, D); arguments as in triton_attention.py."""
    grads = [torch.empty(x.q.shape, dtype=x.q.dtype, device=x.q.device) for _ in range(3)]
    delta = torch.empty(lse.shape, dtype=lse.dtype, device=lse.device)
    own = {"out": out, "lse": lse, "lse_t": as_type(lse_t, x), "stat": stat, "dout": dout, "g": g}
    results = dict(zip(("dq", "dk", "dv"), grads, strict=True))
    launch("attention_backward", x, {**own, "delta": delta, **results})
    return tuple(grads)


def as_type(x: Tensor | None, call: Call) -> Tensor | None:
    """Rows in the type that the kernels compute in."""
    return None if x is None else x.to(call.q.dtype)
