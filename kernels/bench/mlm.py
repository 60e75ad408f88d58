"""`masked_mlm` and its rivals, for `python -m kernels.bench masked-mlm`.

    eager      PyTorch with stored logits, gradients by autograd: two linear layers, cross-entropy,
               and the divergence by log-softmax and softmax at the temperature
    compile    the same under torch.compile
    linear-ce  torch.nn.functional.linear_cross_entropy, where this PyTorch has it: only
               cross-entropy, so it is compared with --loss ce
    liger      Liger-Kernel's fused linear cross-entropy (CUDA, --loss ce), if it is installed
    cce        Apple's cut cross-entropy (CUDA, --loss ce), if it is installed
    floor      only the matrix products: the logits of both models, and from a tensor in the place
               of their gradient those of the hidden states and of the table; no loss
    others     `kernels.masked_mlm`, by the implementation's name

All sides have the same loss: that of `masked_mlm` with weights of 1, means over the rows.
"""

import re
from argparse import ArgumentParser, ArgumentTypeError, Namespace
from contextlib import ExitStack, contextmanager
from functools import partial
from importlib.util import find_spec
from itertools import product
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

import kernels
from kernels import torch_mlm
from kernels.bench.timing import Contender, compiled, compiler_missing
from kernels.reference import ROW_DIVERGENCES, wide

KERNEL = "masked_mlm"  # what `kernels.resolve_impl` calls it
RIVALS = ("eager", "compile", "linear-ce", "liger", "cce", "floor")
BASELINES = ("eager", "floor")
OPTIONS = ("loss", "divergence", "temperature")  # of `sides`
EXACT = {}  # nothing is random
LOSSES = ("both", "ce", "kd")
SAVED = 20  # bytes that eager holds for a logit at its peak, in float32


class MLMShape(NamedTuple):
    """Predicted tokens, word pieces, widths of student and teacher: `M922-V28996-d312-d768`."""

    M: int
    V: int
    d_s: int
    d_t: int

    @classmethod
    def parse(cls, name: str) -> "MLMShape":
        """The shape called `name`.

        Raises:
            ValueError: it is not such a name, or a number in it is 0.
        """
        found = re.fullmatch(r"M(\d+)-V(\d+)-d(\d+)-d(\d+)", name)
        numbers = [int(x) for x in found.groups()] if found else [0]
        if min(numbers) < 1:
            raise ValueError(
                f"--shapes has {name!r}, expected M922-V28996-d312-d768: rows, word pieces, widths "
                f"of the student's and the teacher's hidden states"
            )
        return cls(*numbers)

    def __str__(self) -> str:
        return f"M{self.M}-V{self.V}-d{self.d_s}-d{self.d_t}"


parse_shape = MLMShape.parse

# The paper's masked tokens at 24 and 192 sequences of 256; Eq. 8 scores every token. The most
# important first: time may run out.
SHAPES = {
    "cuda": [f"M{M}-V{V}-d{d}-d768" for M, V in ((7373, 30522), (922, 28996), (24576, 28996))
             for d in (312, 768, 512)],
    "cpu": ["M307-V28996-d768-d768", "M307-V28996-d312-d768", "M922-V30522-d512-d768",
            "M2048-V28996-d312-d768"],
}  # fmt: skip
CHECKED = ("M11-V53-d13-d9", "M40-V257-d32-d48")  # cheap


# ---- rivals


def eager(h_s, E_s, b_s, labels, h_t, E_t, b_t, *, loss, divergence, temperature):
    """Stored logits -> (the loss,). In half precision what autocast does: losses in float32."""
    x_s = wide(F.linear(h_s, E_s, b_s.to(h_s.dtype)))  # (M, V)
    terms = []
    if loss != "kd":
        terms.append(F.cross_entropy(x_s, labels))
    if loss != "ce":
        x_t = wide(F.linear(h_t, E_t, b_t.to(h_t.dtype)))  # (M, V)
        log_p_s = (x_s / temperature).log_softmax(-1)
        if divergence == "kl_ts":
            log_p_t = (x_t / temperature).log_softmax(-1)
            rows = F.kl_div(log_p_s, log_p_t, reduction="batchmean", log_target=True)
        else:
            rows = -((x_t / temperature).softmax(-1) * log_p_s).sum(-1).mean()
        terms.append(temperature**2 * rows)
    return (sum(terms),)


def linear_ce(h_s, E_s, b_s, labels, *_, **__):
    """PyTorch's own, only cross-entropy."""
    return (F.linear_cross_entropy(h_s, E_s, labels, linear_bias=b_s.to(h_s.dtype)),)


def liger(h_s, E_s, b_s, labels, *_, **__):
    """Liger-Kernel's, only cross-entropy."""
    from liger_kernel.transformers import LigerFusedLinearCrossEntropyLoss

    return (LigerFusedLinearCrossEntropyLoss()(E_s, h_s, labels, b_s.to(h_s.dtype)),)


def cce(h_s, E_s, b_s, labels, *_, **__):
    """Apple's, only cross-entropy."""
    from cut_cross_entropy import linear_cross_entropy

    return (linear_cross_entropy(h_s, E_s, labels, bias=b_s.to(h_s.dtype)),)


class Products(torch.autograd.Function):
    """The four products and nothing else; the student's logits serve as their own gradient."""

    @staticmethod
    def forward(ctx, h_s, E_s, h_t, E_t):
        x = h_s @ E_s.T  # (M, V)
        if h_t is not None:
            h_t @ E_t.T
        ctx.save_for_backward(h_s, E_s, x)
        return x[0, 0].clone()

    @staticmethod
    def backward(ctx, g):
        h_s, E_s, x = ctx.saved_tensors
        return x @ E_s, x.T @ h_s, None, None


def floor(h_s, E_s, b_s, labels, h_t, E_t, b_t, *, loss, **_):
    """Less than the operation: a number without a meaning."""
    teacher = (None, None) if loss == "ce" else (h_t, E_t)
    return (Products.apply(h_s, E_s, *teacher) + 0 * b_s.sum(),)


FUNCTIONS = {
    "eager": eager, "compile": eager, "linear-ce": linear_ce, "liger": liger, "cce": cce,
    "floor": floor,
}  # fmt: skip


def missing(name: str, device: torch.device, loss: str) -> str:
    """The reason why a rival cannot run here; "" where it can."""
    if name == "compile":
        return compiler_missing(device)
    if name in ("eager", "floor"):
        return ""
    if loss != "ce":
        return "only cross-entropy: --loss ce"
    if name == "linear-ce":
        has_it = hasattr(F, "linear_cross_entropy")
        return "" if has_it else f"not in PyTorch {torch.__version__}"
    package = {"liger": "liger_kernel", "cce": "cut_cross_entropy"}[name]
    if find_spec(package) is None:
        return f"{package} is not installed"
    return "" if device.type == "cuda" else "only for CUDA"


# ---- all of them


class MLMProblem(NamedTuple):
    """The numbers that every side works on."""

    shape: MLMShape
    tensors: tuple[Tensor, ...]  # h_s (M, d_s), E_s (V, d_s), b_s (V,), h_t, E_t, b_t
    labels: Tensor  # (M,)

    def double(self) -> "MLMProblem":
        """The same numbers in float64."""
        return self._replace(tensors=tuple(x.double() for x in self.tensors))


def problem(shape: MLMShape, device: torch.device, dtype: torch.dtype, seed: int) -> MLMProblem:
    """Random numbers of that shape; logits of a deviation of about 1. The last word is a label."""
    rng = torch.Generator().manual_seed(seed)

    def of(*size, scale=1.0):
        return (scale * torch.randn(*size, generator=rng)).to(device, dtype)

    tensors = [
        x
        for d in (shape.d_s, shape.d_t)
        for x in (of(shape.M, d), of(shape.V, d, scale=d**-0.5), wide(of(shape.V)))
    ]
    labels = torch.randint(shape.V, (shape.M,), generator=rng)
    labels[0] = shape.V - 1
    return MLMProblem(shape, tuple(tensors), labels.to(device))


def sides(p: MLMProblem, names, impls, **options) -> list[Contender]:
    """Every way of `names` (of RIVALS) and `impls` to compute the same from the same numbers."""
    device, dtype = p.tensors[0].device, p.tensors[2].dtype
    tensors = [x.clone().requires_grad_(i < 3) for i, x in enumerate(p.tensors)]
    args = (*tensors[:3], p.labels, *tensors[3:])
    one = (torch.ones((), dtype=dtype, device=device),)
    held = SAVED * p.shape.M * p.shape.V
    found = []
    for name in names:
        why = missing(name, device, options["loss"])
        function = FUNCTIONS[name]
        if name == "compile" and not why:
            function = compiled(eager)
        found.append(
            Contender(
                name,
                partial(function, *args, **options),
                tuple(tensors[:3]),
                one,
                bytes_needed=0 if name == "floor" else held,
                missing=why,
                is_equal=name != "floor",
            )
        )

    def forward(impl, *, loss, divergence, temperature):
        h_s, E_s, b_s, labels, h_t, E_t, b_t = args
        s, t = kernels.Decoder(h_s, [E_s], b_s), kernels.Decoder(h_t, [E_t], b_t)
        found = kernels.masked_mlm(
            s,
            None if loss == "kd" else labels,
            None if loss == "ce" else t,
            temperature=temperature,
            divergence=divergence,
            impl=impl,
        )
        return (found.loss,)

    return found + [
        Contender(
            impl,
            partial(forward, impl, **options),
            tuple(tensors[:3]),
            one,
            bytes_needed=held if impl == "reference" else 0,
            is_ours=True,
        )
        for impl in impls
    ]


def work(shape: MLMShape, dtype: torch.dtype, seed: int) -> dict[str, tuple[float, float]]:
    """{pass: (floating-point operations, bytes)} that the operation cannot do without.

    The products: logits of both models, gradients of the student's hidden states and table. Bytes
    are those of arguments and results, each moved once.
    """
    M, V, d_s, d_t = shape
    student, teacher = (dtype.itemsize * (M * d + V * d) for d in (d_s, d_t))
    forward = 2.0 * M * V * (d_s + d_t), student + teacher
    backward = 4.0 * M * V * d_s, 2 * student
    both = forward[0] + backward[0], forward[1] + backward[1]
    return {"forward": forward, "backward": backward, "both": both}


# ---- the command's


def add_options(p: ArgumentParser) -> None:
    """Options of this operation only."""
    p.add_argument("--shapes", nargs="+", metavar="NAME", help=MLMShape.__doc__)
    p.add_argument("--loss", choices=LOSSES, default="both", help="(default: both)")
    p.add_argument("--divergence", choices=ROW_DIVERGENCES, default="kl_ts")
    p.add_argument("--temperature", type=float, default=2.0, help="of kd (default: 2)")
    p.add_argument(
        "--chunk-bytes", nargs="+", type=at_least_one, metavar="BYTES",
        help="with --tune: of the logits at hand at a time (default: 2^24 to 2^29)",
    )  # fmt: skip


def at_least_one(text: str) -> int:
    """A number of bytes on the command line.

    Raises:
        ArgumentTypeError: it is not an integer of at least 1.
    """
    if not text.isdecimal() or int(text) < 1:
        raise ArgumentTypeError(f"{text!r} is not an integer of at least 1")
    return int(text)


def check_options(loss: str, divergence: str, temperature: float) -> None:
    """Refuse options that `sides` cannot work with.

    Raises:
        ValueError: --temperature is not above 0 and finite.
    """
    if not 0 < temperature < float("inf"):
        raise ValueError(f"--temperature is {temperature}, expected above 0 and finite")


# ---- blocks of the Triton row kernel, and bytes of a chunk of logits, for --tune

TUNE = "time block sizes of the Triton row kernel, and sizes of a chunk of logits"
TUNED = {"chunk": "forward", "logit_rows": "forward"}  # -> its pass: gradients are made in forward
TUNED_SHAPES = ["M7373-V30522-d312-d768", "M922-V28996-d312-d768"]
CHUNK_BYTES = [2**k for k in range(24, 30)]


class MLMConfig(NamedTuple):
    """One configuration of the row kernel and the loop around it."""

    BLOCK_V: int | None  # these two are of Triton's kernel; None: as in use
    num_warps: int | None
    chunk_bytes: int | None  # of the logits at hand at a time; None: as in use


def tuned_impls(device: torch.device, dtype: torch.dtype) -> dict[str, str]:
    """Kernel -> the implementation that it is timed in; a CPU has only the loop.

    The chunk comes first: it compiles nothing.

    Raises:
        ValueError: it does not run on the device.
    """
    found = {"chunk": kernels.resolve_impl(KERNEL, "auto", device, dtype)[0]}
    if device.type == "cuda":
        found["logit_rows"] = kernels.resolve_impl(KERNEL, "triton", device, dtype)[0]
    return found


def candidates(kernel: str, args: Namespace) -> list[MLMConfig]:
    """The configurations tried: blocks at the chunk in use, or chunks at the blocks in use."""
    if kernel == "chunk":
        return [MLMConfig(None, None, size) for size in args.chunk_bytes or CHUNK_BYTES]
    blocks, warps = (512, 1024, 2048, 4096, 8192), (4, 8, 16)
    return [MLMConfig(*pair, None) for pair in product(blocks, warps)]


@contextmanager
def using(kernel: str, config: MLMConfig):
    """A context in which the row kernel and the loop around it have that configuration."""
    with ExitStack() as stack:
        for name in ("CHUNK_BYTES", "CHUNK_BYTES_GPU"):
            if config.chunk_bytes is not None:
                stack.enter_context(patched(torch_mlm, name, config.chunk_bytes))
        if config.BLOCK_V is not None:
            from kernels import triton_mlm

            picked = triton_mlm.RowsConfig(config.BLOCK_V, config.num_warps)
            stack.enter_context(patched(triton_mlm, "pick_config", lambda *_: picked))
        yield


@contextmanager
def patched(module, name: str, value):
    """A context in which a module has another value of that name."""
    own = getattr(module, name)
    setattr(module, name, value)
    try:
        yield
    finally:
        setattr(module, name, own)


def chosen(
    kernel: str, shape: MLMShape, divergence: str, dtype: torch.dtype, device: torch.device
) -> MLMConfig:
    """The configuration in use."""
    if kernel == "chunk":
        is_gpu = device.type == "cuda"
        return MLMConfig(None, None, getattr(torch_mlm, "CHUNK_BYTES" + "_GPU" * is_gpu))
    from kernels.triton_mlm import pick_config

    return MLMConfig(*pick_config(shape.V, dtype), None)
