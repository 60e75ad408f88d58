"""`add_norm` as PyTorch sees it: a custom operator with its gradient, around triton_norm.py.

Opaque to `torch.compile`, which needs only the shapes of the results, and to autograd, which is
given the backward. The mask of dropout follows from a seed that is an argument of both. A tensor
without elements marks one that is absent. Plain PyTorch needs no operator: it has a backward.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from kernels.reference import wide_dtype


def composed(
    x: Tensor,
    a: Tensor,
    weight: Tensor,
    bias: Tensor,
    eps: float,
    dropout: float,
    narrow: torch.dtype | None,
) -> tuple[Tensor, Tensor]:
    """`torch`: PyTorch's own operations, one after the other."""
    a = F.dropout(a, dropout) if dropout else a
    y = F.layer_norm(x + a, weight.shape, weight, bias, eps)
    return y, y if narrow is None else y.to(narrow)


def compute(
    x: Tensor,
    a: Tensor,
    weight: Tensor,
    bias: Tensor,
    seed: Tensor | None,
    eps: float,
    dropout: float,
    narrow: torch.dtype | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """y, its narrow copy, mean and 1 / deviation."""
    from kernels import triton_norm  # Triton is imported when it is first asked for

    y, copy, *rest = triton_norm.forward(
        x.contiguous(), a.contiguous(), weight, bias, seed, eps, dropout, narrow
    )
    return y, y.new_empty(0) if copy is None else copy, *rest


add_norm = torch.library.custom_op("minibio::add_norm", compute, mutates_args=())


@add_norm.register_fake
def _(x, a, weight, bias, seed, eps, dropout, narrow):
    y = x.new_empty(x.shape)
    copy = y.new_empty(0) if narrow is None else x.new_empty(x.shape, dtype=narrow)
    mean, rstd = (x.new_empty(x.shape[0], dtype=wide_dtype(x)) for _ in range(2))
    return y, copy, mean, rstd


@torch.library.custom_op("minibio::add_norm_backward", mutates_args=())
def add_norm_backward(
    dy: Tensor | None, dnarrow: Tensor | None, x: Tensor, a: Tensor, weight: Tensor,
    seed: Tensor | None, mean: Tensor, rstd: Tensor, dropout: float, has_da: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """dx, da, dweight, dbias."""
    from kernels import triton_norm

    dy, dnarrow = (None if g is None else g.contiguous() for g in (dy, dnarrow))
    dx, da, *rest = triton_norm.backward(
        dy, dnarrow, x.contiguous(), a.contiguous(), weight, seed, mean, rstd, dropout, has_da
    )
    return dx, dx.new_empty(0) if da is None else da, *rest


@add_norm_backward.register_fake
def _(dy, dnarrow, x, a, weight, seed, mean, rstd, dropout, has_da):
    da = a.new_empty(a.shape if has_da else 0)
    return x.new_empty(x.shape), da, weight.new_empty(weight.shape), weight.new_empty(weight.shape)


def remember(ctx, inputs, output):
    """Save the inputs and two numbers a token."""
    x, a, weight, _, seed, _, ctx.dropout, _ = inputs
    _, _, mean, rstd = output
    ctx.mark_non_differentiable(mean, rstd)
    ctx.set_materialize_grads(False)  # else zeros would arrive for a result that nobody used
    ctx.save_for_backward(x, a, weight, seed, mean, rstd)


def differentiate(ctx, dy, dnarrow, *_):
    """Gradients of all arguments of `compute`."""
    x, a, weight, seed, mean, rstd = ctx.saved_tensors
    if dnarrow is not None and not dnarrow.numel():  # of the copy that is absent
        dnarrow = None
    has_da = seed is not None or a.dtype != x.dtype
    dx, da, dweight, dbias = add_norm_backward(
        dy, dnarrow, x, a, weight, seed, mean, rstd, ctx.dropout, has_da
    )
    return dx, da if has_da else dx, dweight, dbias, *[None] * 4


add_norm.register_autograd(differentiate, setup_context=remember)


def fused(*inputs) -> tuple[Tensor, Tensor]:
    """`triton`: y, and its copy in the narrow type, which is y itself where none is asked for."""
    x, a, weight, bias, *_ = inputs
    is_seen = torch.is_grad_enabled() and any(z.requires_grad for z in (x, a, weight, bias))
    run = add_norm if is_seen or torch.compiler.is_compiling() else compute
    y, copy, *_ = run(*inputs)
    return y, y if inputs[-1] is None else copy
