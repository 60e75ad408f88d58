"""The operations on attention maps as PyTorch sees them: custom operators with their gradients.

An operator is opaque to `torch.compile`, which needs only the shapes of its results (the fake
implementation), and to autograd, which is given its backward. Both directions are pure functions of
their arguments: dropout's mask follows from a seed that is one of them. The computation itself:
`forward` and `backward` of torch_attention.py, triton_attention.py and cuda_attention.py.
"""

import torch
from torch import Tensor

from kernels import cuda_attention, torch_attention
from kernels.reference import Call, Forward


def implementation(impl: str):
    """The module of that name; Triton is imported when it is first asked for."""
    if impl == "torch":
        return torch_attention
    if impl == "cuda":
        return cuda_attention
    assert impl == "triton", impl
    from kernels import triton_attention

    return triton_attention


def call(q, k, v, q_t, k_t, *rest) -> Call:
    """The arguments as an implementation takes them: contiguous along a head's width."""
    tensors = (q, k, v, q_t, k_t)
    return Call(*(x if x is None or x.stride(-1) == 1 else x.contiguous() for x in tensors), *rest)


def compute(
    q: Tensor, k: Tensor, v: Tensor, q_t: Tensor | None, k_t: Tensor | None, lse_t: Tensor | None,
    keep: Tensor | None, seed: Tensor | None, cu_seqlens: Tensor, max_len: int, divergence: str,
    dropout: float, scale: float, scale_t: float, impl: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """`Forward` of a `Call`."""
    x = call(
        q, k, v, q_t, k_t, keep, seed, cu_seqlens, max_len, divergence, dropout, scale, scale_t
    )
    if not torch.is_autocast_enabled(q.device.type):  # entering the context takes a while itself
        return tuple(implementation(impl).forward(x, lse_t))
    with torch.autocast(q.device.type, enabled=False):
        return tuple(implementation(impl).forward(x, lse_t))


attention = torch.library.custom_op("minibio::attention", compute, mutates_args=())


def pick(*inputs: Tensor):
    """The operator or, where neither autograd nor a compiler looks, the cheaper function within.

    Args:
        inputs: what may require a gradient.
    """
    is_seen = torch.is_grad_enabled() and any(x.requires_grad for x in inputs)
    return attention if is_seen or torch.compiler.is_compiling() else compute


@attention.register_fake
def _(
    q, k, v, q_t, k_t, lse_t, keep, seed, cu_seqlens, max_len, divergence, dropout, scale, scale_t,
    impl,
):  # fmt: skip
    x = Call(
        q, k, v, q_t, k_t, keep, seed, cu_seqlens, max_len, divergence, dropout, scale, scale_t
    )
    return tuple(Forward.blank(x, lse_t))


@torch.library.custom_op("minibio::attention_backward", mutates_args=())
def attention_backward(
    dout: Tensor, g: Tensor | None, out: Tensor, lse: Tensor, lse_t: Tensor | None,
    stat: Tensor | None, q: Tensor, k: Tensor, v: Tensor, q_t: Tensor | None, k_t: Tensor | None,
    keep: Tensor | None, seed: Tensor | None, cu_seqlens: Tensor, max_len: int, divergence: str,
    dropout: float, scale: float, scale_t: float, impl: str,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """Gradients of q, k and v."""
    x = call(
        q, k, v, q_t, k_t, keep, seed, cu_seqlens, max_len, divergence, dropout, scale, scale_t
    )
    with torch.autocast(q.device.type, enabled=False):
        return implementation(impl).backward(x, out, lse, lse_t, stat, dout, g)


@attention_backward.register_fake
def _(dout, g, out, lse, lse_t, stat, q, k, v, *rest):
    return tuple(x.new_empty(x.shape) for x in (q, k, v))


def remember(ctx, inputs, output):
    """Save what backward starts from: rows of numbers, never a map."""
    q, k, v, q_t, k_t, lse_t, keep, seed, cu_seqlens, *ctx.options = inputs
    y = Forward(*output)
    divergence = ctx.options[1]
    ctx.mark_non_differentiable(y.lse, y.lse_t, y.stat)
    ctx.set_materialize_grads(False)  # else zeros would arrive for each of those, in every layer
    stat = {"kl_st": y.row_loss, "mse_maps": y.stat}.get(divergence)
    lse_t = y.lse_t if lse_t is None else lse_t
    ctx.save_for_backward(q, k, v, q_t, k_t, lse_t, keep, seed, cu_seqlens, y.out, y.lse, stat)


def differentiate(ctx, dout, g, *_):
    """Gradients of all arguments of `compute`. For a result that nobody used None arrives."""
    q, k, v, q_t, k_t, lse_t, keep, seed, cu_seqlens, out, lse, stat = ctx.saved_tensors
    max_len, divergence, *options = ctx.options
    if g is None or divergence == "none":  # as if there were no teacher
        g = q_t = k_t = lse_t = stat = None
        divergence = "none"
    if dout is None:
        dout = torch.zeros_like(out)
    grads = attention_backward(
        dout, g, out, lse, lse_t, stat, q, k, v, q_t, k_t, keep, seed, cu_seqlens, max_len,
        divergence, *options,
    )  # fmt: skip
    return *grads, *[None] * 12


attention.register_autograd(differentiate, setup_context=remember)
