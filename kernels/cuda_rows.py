"""The row kernel in CUDA C++: compiled by nvcc when first needed, called on torch's stream.

kernels/cuda/logit_rows.cu says what is computed; read it first. It knows nothing of PyTorch: a C
function takes pointers and strides, ctypes calls it, and `torch.library` makes an operator of the
call, so that `torch.compile` goes through it. kernels/cuda_build.py compiles it.
"""

import ctypes
import math
from functools import cache
from pathlib import Path

import torch
from torch import Tensor

from kernels import cuda_build

SOURCE = cuda_build.SOURCES / "logit_rows.cu"
DIVERGENCES = ("kl_ts", "soft_ce")
VERSIONS = {"naive": 1, "fast": 2}
WIDTHS = {torch.float32: 4, torch.bfloat16: 2}  # bytes


class Rows(ctypes.Structure):
    """`struct Rows` of the source, field by field."""

    _fields_ = (
        [(name, ctypes.c_void_p) for name in ("x_s", "x_t", "b_s", "b_t", "labels")]
        + [(name, ctypes.c_void_p) for name in ("g_ce", "g_kd", "ce", "kd")]
        + [(name, ctypes.c_int64) for name in ("stride_s", "stride_t", "R", "V")]
        + [(f"bytes_{name}", ctypes.c_int32) for name in ("s", "t", "b_s", "b_t")]
        + [("temperature", ctypes.c_float), ("is_kl", ctypes.c_int32)]
    )


def load(path: Path) -> ctypes.CDLL:
    """The library, its functions declared."""
    return cuda_build.load(path, "logit_rows")


@cache
def library(arch: str) -> ctypes.CDLL:
    """The library for `arch`, built and loaded once a process."""
    return load(cuda_build.build(SOURCE, arch))


def pick_threads(V: int) -> int:
    """Threads a block: enough that each takes eight logits, 32 to 1024, a power of 2."""
    return min(max(1 << (-(-V // 8) - 1).bit_length(), 32), 1024)


def launch(
    lib: ctypes.CDLL,
    stream: int | None,
    x_s: Tensor,
    b_s: Tensor | None,
    labels: Tensor | None,
    x_t: Tensor | None,
    b_t: Tensor | None,
    g_ce: Tensor | None,
    g_kd: Tensor | None,
    temperature: float,
    divergence: str,
    *,
    version: str = "fast",
    threads: int | None = None,
) -> tuple[Tensor, Tensor]:
    """`logit_rows` without its checks, by any version and number of threads."""
    R, V = x_s.shape
    # copies, where made, live until the launch; then the stream keeps their memory
    small = [None if x is None else x.contiguous() for x in (b_s, b_t, labels, g_ce, g_kd)]
    ce = torch.empty(R, dtype=torch.float32, device=x_s.device)
    kd = torch.empty(R, dtype=torch.float32, device=x_s.device)
    pointers = (None if x is None else x.data_ptr() for x in (x_s, x_t, *small, ce, kd))
    strides = (0 if x is None else x.stride(0) for x in (x_s, x_t))
    widths = (0 if x is None else WIDTHS[x.dtype] for x in (x_s, x_t, b_s, b_t))
    rows = Rows(*pointers, *strides, R, V, *widths, temperature, divergence == "kl_ts")
    cuda_build.launch(
        lib,
        "logit_rows",
        rows,
        VERSIONS[version],
        threads or pick_threads(V),
        stream,
        f"{R} rows of {V} {x_s.dtype} logits",
    )
    return ce, kd


def place(device: torch.device) -> tuple[ctypes.CDLL, int]:
    """The library for a device, and its current stream."""
    return library(cuda_build.architecture(device)), torch.cuda.current_stream(device).cuda_stream


@torch.library.custom_op("minibio::logit_rows", mutates_args=("x_s",))
def _logit_rows(
    x_s: Tensor,
    b_s: Tensor | None,
    labels: Tensor | None,
    x_t: Tensor | None,
    b_t: Tensor | None,
    g_ce: Tensor | None,
    g_kd: Tensor | None,
    temperature: float,
    divergence: str,
) -> tuple[Tensor, Tensor]:
    with torch.cuda.device_of(x_s):
        return launch(
            *place(x_s.device),
            x_s, b_s, labels, x_t, b_t, g_ce, g_kd, temperature, divergence,
        )  # fmt: skip


@_logit_rows.register_fake
def _(x_s, b_s, labels, x_t, b_t, g_ce, g_kd, temperature, divergence):
    ce = torch.empty(x_s.shape[:1], dtype=torch.float32, device=x_s.device)
    return ce, torch.empty_like(ce)


def check(
    x_s: Tensor,
    others: dict[str, tuple[Tensor | None, tuple[int, ...], tuple[torch.dtype, ...]]],
    temperature: float,
    divergence: str,
) -> None:
    """Refuse tensors that are not rows of one size, type and device, and meaningless settings."""
    op = "logit_rows"
    if x_s.dim() != 2 or x_s.shape[1] == 0:
        raise ValueError(f"{op}: x_s is {tuple(x_s.shape)}, expected (R, V) with V > 0")
    for name, (x, shape, dtypes) in others.items():
        if x is None:
            continue
        if tuple(x.shape) != shape:
            raise ValueError(f"{op}: {name} is {tuple(x.shape)}, expected {shape}")
        if x.dtype not in dtypes:
            raise ValueError(
                f"{op}: {name} is {x.dtype}, expected {' or '.join(str(t) for t in dtypes)}"
            )
        if x.device != x_s.device:
            raise ValueError(f"{op}: {name} is on {x.device}, expected {x_s.device} (as x_s)")
        if x.requires_grad and torch.is_grad_enabled():
            raise ValueError(f"{op}: {name} requires a gradient, expected none; detach it")
        if len(shape) == 2 and x.stride(1) != 1 and shape[1] > 1:
            raise ValueError(
                f"{op}: {name} has strides {x.stride()}, expected 1 from one logit to the next"
            )
    if not (math.isfinite(temperature) and temperature > 0):
        raise ValueError(f"{op}: temperature is {temperature}, expected a number above 0")
    if divergence not in DIVERGENCES:
        raise ValueError(f"{op}: divergence is {divergence!r}, expected {' or '.join(DIVERGENCES)}")


def logit_rows(
    x_s: Tensor,
    b_s: Tensor | None,
    labels: Tensor | None,
    x_t: Tensor | None,
    b_t: Tensor | None,
    g_ce: Tensor | None = None,
    g_kd: Tensor | None = None,
    *,
    temperature: float,
    divergence: str,
) -> tuple[Tensor, Tensor]:
    """Cross-entropy and divergence of every row, and in place of the logits their gradient.

        ce = -ln softmax(z_s)[label]                              z = x + b
        kd = T^2 sum p_t ln(p_t / p_s)   or  -T^2 sum p_t ln p_s  p = softmax(z / T)
        x_s <- g_ce (softmax(z_s) - onehot(label)) + g_kd T (p_s - p_t)

    Fastest where rows begin 16 bytes apart: give x_s and x_t a stride that is a multiple of 8.

    Args:
        x_s:         (R, V) float32 or bfloat16, rows at any stride. Overwritten by its gradient,
                     rounded once, if there is g_ce or g_kd; else left as it is.
        b_s, b_t:    (V,) float32 or bfloat16, or None.
        labels:      (R,) int64, or None: ce is 0. -100: ce, kd and gradient of the row are 0; any
                     other number outside 0 .. V-1 makes them NaN.
        x_t:         (R, V) float32 or bfloat16 of the teacher, or None: kd is 0.
        g_ce, g_kd:  (R,) float32, what the gradients of ce[r] and kd[r] are multiplied with.
        temperature: T > 0.
        divergence:  "kl_ts" or "soft_ce".
    Returns:
        ce, kd: (R,) float32, nats. A teacher's logit of -inf adds nothing (0 ln 0 = 0).
    Raises:
        ValueError: the kernel cannot run here, or shapes, dtypes, devices, strides or settings do
            not fit.
        RuntimeError: nvcc or the launch failed.
    """
    op = "logit_rows"
    # while torch.compile traces, nothing is looked up on disk: the operator reports what is missing
    reason = None if torch.compiler.is_compiling() else cuda_build.unavailable(x_s.device)
    if reason is not None:
        raise ValueError(f"{op}: {reason}")
    R, V = (*x_s.shape, 0, 0)[:2]  # `check` has the last word on x_s
    logits, numbers = tuple(WIDTHS), (torch.float32,)
    others = {
        "x_s": (x_s, (R, V), logits),
        "b_s": (b_s, (V,), logits),
        "labels": (labels, (R,), (torch.int64,)),
        "x_t": (x_t, (R, V), logits),
        "b_t": (b_t, (V,), logits),
        "g_ce": (g_ce, (R,), numbers),
        "g_kd": (g_kd, (R,), numbers),
    }
    check(x_s, others, temperature, divergence)
    if x_t is None and (b_t is not None or g_kd is not None):
        raise ValueError(f"{op}: there is b_t or g_kd without x_t, expected the teacher's logits")
    if labels is None and g_ce is not None:
        raise ValueError(f"{op}: there is g_ce without labels, expected both or neither")
    if (g_ce is not None or g_kd is not None) and R > 1 and x_s.stride(0) < V:
        raise ValueError(
            f"{op}: x_s has strides {x_s.stride()}, expected rows apart: each gets its gradient"
        )
    return _logit_rows(x_s, b_s, labels, x_t, b_t, g_ce, g_kd, temperature, divergence)
