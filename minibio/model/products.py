"""Matrices made ready for their products, all at once: side by side, and in the products' type.

Under autocast every linear layer casts its weight and its bias itself, and the gradients back
again: on a GPU a hundred small launches a step. `products` casts all that it is given by one
operation, and lays the layers that read the same input side by side, so that they are one product.

On a CPU every product first copies its matrix into the blocks that the processor's registers take:
for a few rows that is half the work. `PackedLinear` has it done once, where nothing trains it.
"""

from collections.abc import Callable, Sequence
from functools import partial
from itertools import islice

import torch
import torch.nn as nn
import torch.nn.functional as F
from torch import Tensor

NAMES = ("weight", "bias")  # of a linear layer
FEW = 128  # tokens: of more, `PackedLinear` may multiply otherwise, and rows are filled up
IN_PLACE = {  # activations, over their own input
    None: lambda x: x,
    "gelu": torch.ops.aten.gelu_,
    "gelu_new": lambda x: torch.ops.aten.gelu_(x, approximate="tanh"),
    "relu": F.relu_,
}
FUSED = {  # the same, as oneDNN names them
    None: ("none", ""),
    "gelu": ("gelu", "none"),
    "gelu_new": ("gelu", "tanh"),
    "relu": ("relu", ""),
}


class Rounded(torch.autograd.Function):
    """Groups of parameters, each joined along the first dimension, in a narrower type.

    As `torch.cat(group).to(dtype)` of each, bit for bit, in both directions.
    """

    @staticmethod
    def forward(
        ctx, dtype: torch.dtype, counts: Sequence[int], *parameters: Tensor
    ) -> tuple[Tensor, ...]:
        """counts: parameters of each group -> a tensor for each group."""
        rest, ctx.lengths, ctx.wide = iter(parameters), [], parameters[0].dtype
        joint, parts = [], []
        for n in counts:
            group = list(islice(rest, n))
            ctx.lengths.append([len(p) for p in group])
            shape = (sum(ctx.lengths[-1]), *group[0].shape[1:])
            joint.append(group[0].new_empty(shape, dtype=dtype))
            parts += joint[-1].split(ctx.lengths[-1])
        torch._foreach_copy_(parts, parameters)
        return tuple(joint)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, *narrow: Tensor) -> tuple[Tensor | None, ...]:
        grads = [g.new_empty(g.shape, dtype=ctx.wide) for g in narrow]
        torch._foreach_copy_(grads, narrow)
        parts = (g.split(n) for g, n in zip(grads, ctx.lengths, strict=True))
        return None, None, *(g for group in parts for g in group)


def products(*groups: Sequence[nn.Module]) -> list[Callable[[Tensor], Tensor]]:
    """One function for each group of linear layers: x -> their outputs side by side.

    A group of one is the layer itself where nothing has to be cast, and may be of any type then.
    """
    if not is_mixed(groups):
        return [group[0] if len(group) == 1 else side_by_side(group) for group in groups]
    parameters = [[getattr(x, name) for x in group] for group in groups for name in NAMES]
    tensors = Rounded.apply(
        torch.get_autocast_dtype(groups[0][0].weight.device.type),
        tuple(map(len, parameters)),
        *(p for group in parameters for p in group),
    )
    pairs = zip(tensors[::2], tensors[1::2], strict=True)
    return [partial(F.linear, weight=weight, bias=bias) for weight, bias in pairs]


def is_mixed(groups: Sequence[Sequence[nn.Module]]) -> bool:
    """Whether there is anything to cast here: float32 under autocast, in PyTorch's own layers.

    A compiler merges the casts itself.
    """
    if torch.compiler.is_dynamo_compiling():
        return False
    layers = [x for group in groups for x in group]
    if not all(type(x) is nn.Linear and x.weight.dtype == torch.float32 for x in layers):
        return False
    return torch.is_autocast_enabled(layers[0].weight.device.type)


def side_by_side(group: Sequence[nn.Linear]) -> Callable[[Tensor], Tensor]:
    """The layers of a group as one product, their matrices copied."""
    weight, bias = joined(group)
    return partial(F.linear, weight=weight, bias=bias)


def joined(group: Sequence[nn.Linear]) -> tuple[Tensor, Tensor]:
    """Weight and bias of the layers of a group, one below the other."""
    weight, bias = (torch.cat([getattr(x, name) for x in group]) for name in NAMES)
    return weight, bias


class PackedLinear(nn.Module):
    """A trained linear layer whose matrix lies as oneDNN multiplies it, for inference on a CPU.

    PyTorch's operations for that are those that its compiler calls; see `can_pack`. It cannot be
    converted, moved or loaded into. Where MKL is better at many rows, the matrix is kept for it
    too: more than `FEW` are multiplied as `nn.Linear` does.

    Args:
        weight:     (C_out, C_in)
        bias:       (C_out,), or None.
        activation: of `FUSED`, applied to each part of the product while it is in the cache;
                    None = the product itself.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None, activation: str | None = None):
        super().__init__()
        self.dtype = weight.dtype
        self.activation = activation
        self.plain = weight.detach() if is_mkl_better(self.dtype) else None
        self.weight = torch.ops.mkldnn._reorder_linear_weight(weight.detach())
        self.bias = None if bias is None else bias.detach()

    def forward(self, x: Tensor) -> Tensor:
        """x: (..., C_in) -> (..., C_out) in the matrix's type."""
        x = x.to(self.dtype)
        if self.plain is not None and x.shape[:-1].numel() > FEW:
            return IN_PLACE[self.activation](F.linear(x, self.plain, self.bias))
        name, form = FUSED[self.activation]
        return torch.ops.mkldnn._linear_pointwise(x, self.weight, self.bias, name, [], form)


def can_pack(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether `PackedLinear` runs there: on a CPU, by a PyTorch that has what it calls.

    Where oneDNN does not multiply bfloat16 (on x86, a processor with AVX2 alone), it lays out none.
    """
    names = ("_reorder_linear_weight", "_linear_pointwise", "_is_mkldnn_bf16_supported")
    if device.type != "cpu" or not has_operations(torch.ops.mkldnn, *names):
        return False
    return dtype != torch.bfloat16 or torch.ops.mkldnn._is_mkldnn_bf16_supported()


def has_operations(space, *names: str) -> bool:
    """Whether PyTorch comes with oneDNN, and with these of its operations in `torch.ops`' space."""
    return torch.backends.mkldnn.is_available() and all(hasattr(space, name) for name in names)


def is_mkl_better(dtype: torch.dtype) -> bool:
    """Whether MKL multiplies many rows faster than oneDNN: float32 by a processor with AVX2 alone.

    By a tenth to a third, from about 128 rows on (an AMD EPYC, one thread and two); of fewer rows
    MKL lays out the matrix for longer than it gains.
    """
    is_avx2 = torch.backends.cpu.get_cpu_capability() == "AVX2"
    return is_avx2 and dtype == torch.float32 and torch.backends.mkl.is_available()


def replace_linear(module: nn.Module, make: Callable[[Tensor, Tensor | None], nn.Module]) -> None:
    """Put `make(weight, bias)` in the place of each linear layer within `module`.

    One by one: of none but the layer at hand are there two.
    """
    for parent in [x for x in module.modules() if not isinstance(x, nn.Linear)]:
        for name, child in parent.named_children():
            if isinstance(child, nn.Linear):
                setattr(parent, name, make(child.weight, child.bias))
