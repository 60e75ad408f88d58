"""Linear layers that multiply int8 by int8, for inference on a CPU.

    y = x W^T + b,   W ~ s_W q_W          with s_W = max |W| / 127
                     x ~ low + s_x q_x    with s_x = (high - low) / 255

Each output (a row of W) has a scale of its own, fixed when the layer is made; each token (a row of
x) too, between its lowest and highest entry as they come. With one scale for all tokens, as
PyTorch's dynamic quantisation has it, a single large activation takes the others' digits away.
Sums of products are exact, in int32. Everything else of a model stays float32: embeddings, norms,
softmax, attention, heads.

oneDNN multiplies, by the operations that PyTorch's compiler calls; where those are not at hand the
same integers are multiplied as float32, for the same result at that type's speed. A processor
without VNNI instructions adds pairs of products in 16 bits, and what does not fit is cut off
without a word. There W has 6 bits and a sign, so that it fits: `weight_range` tries it out.
"""

from functools import cache

import torch
import torch.nn as nn
from torch import Tensor

from minibio.model.attention import SelfAttention
from minibio.model.products import has_operations, replace_linear
from minibio.run.errors import InputError

ROWS = 512  # of x at a time, so that what lies between two passes stays in the cache


@cache
def has_onednn() -> bool:
    """Whether oneDNN multiplies int8 here: on x86 from AVX2 on, by a PyTorch that has its products.

    `torch._int_mm` is not enough: with AVX2 alone it multiplies one pair of numbers at a time.
    """
    is_wide = torch.backends.cpu.get_cpu_capability() in ("AVX2", "AVX512")
    return is_wide and has_operations(torch.ops.onednn, "qlinear_prepack", "qlinear_pointwise")


@cache
def weight_range() -> int:
    """The largest |q_W|: 127, or 63 where sums of two products are kept in 16 bits."""
    q = torch.full((64, 64), 255, dtype=torch.uint8)
    product = Product(torch.full((64, 64), 127, dtype=torch.int8), torch.ones(64))
    return 127 if float(product(q)[0, 0]) == 64 * 255 * 127 else 63


class Product:
    """The product of uint8 by a matrix of int8 that is laid out for it.

    Args:
        weight: (C_out, C_in) int8
        scale:  (C_out,) float32, of each row.
    """

    def __init__(self, weight: Tensor, scale: Tensor):
        self.scale = scale
        self.zero = torch.zeros_like(scale, dtype=torch.int32)
        self.weight = torch.ops.onednn.qlinear_prepack(weight, None) if has_onednn() else weight

    def __call__(self, q: Tensor) -> Tensor:
        """q: (N, C_in) uint8 -> q weight^T scale, (N, C_out) float32."""
        if not has_onednn():
            return (q.float() @ self.weight.float().T).mul_(self.scale)
        factors = (q, 1.0, 0, self.weight, self.scale, self.zero)  # each, its scale, its zero
        output = (1.0, 0, torch.float32, "none", [], "")
        return torch.ops.onednn.qlinear_pointwise(*factors, None, *output)


def to_uint8(q: Tensor) -> Tensor:
    """Integers from 0 to 255 as bytes; q is overwritten.

    PyTorch converts float32 to int8 six times as fast as to uint8.
    """
    return q.sub_(128).to(torch.int8).view(torch.uint8).bitwise_xor_(128)


class Int8Linear(nn.Module):
    """A trained linear layer, its matrix in int8.

    Args:
        weight: (C_out, C_in); it stays as it is.
        bias:   (C_out,), or None.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None):
        super().__init__()
        W = weight.detach().float()  # (C_out, C_in)
        scale = W.abs().amax(1).clamp(min=torch.finfo(W.dtype).tiny) / weight_range()  # (C_out,)
        self.register_buffer("weight", (W / scale[:, None]).round().to(torch.int8))
        self.register_buffer("scale", scale)
        self.register_buffer("total", self.weight.sum(1) * scale)  # (C_out,) of each row
        bias = torch.zeros_like(scale) if bias is None else bias.detach().float()
        self.register_buffer("bias", bias.clone())
        self.pack()
        self.register_load_state_dict_post_hook(Int8Linear.pack)

    def pack(self, *_) -> None:
        """Lay the matrix out for its product: at once, and when another is loaded."""
        self.product = Product(self.weight, self.scale)

    def forward(self, x: Tensor) -> Tensor:
        """x: (..., C_in) float32 -> (..., C_out) float32."""
        rows = x.flatten(0, -2)  # (N, C_in)
        out = rows.new_empty(len(rows), len(self.scale))  # (N, C_out)
        for part, y in zip(rows.split(ROWS), out.split(ROWS), strict=True):
            # PyTorch's aminmax takes 15 times as long as these two
            low, high = part.amin(1, keepdim=True), part.amax(1, keepdim=True)  # (N, 1)
            step = (high - low).clamp_(min=torch.finfo(x.dtype).tiny) / 255
            q = to_uint8((part - low).div_(step).round_())
            torch.mul(self.product(q), step, out=y).addcmul_(low, self.total).add_(self.bias)
        return out.unflatten(0, x.shape[:-1])


def check_device(device: torch.device) -> None:
    """Refuse a GPU, whose fast type is bf16.

    Raises:
        InputError: the device is one.
    """
    if device.type != "cpu":
        raise InputError(
            f"--precision int8 runs on CPUs only, the device is {device}; pass --device cpu"
        )


def to_int8(encoder: nn.Module, device: torch.device) -> nn.Module:
    """The encoder itself, with `Int8Linear` in the place of its linear layers; rows are `filled`.

    Queries, keys and values of one stream are one layer: their tokens are rounded once.

    Raises:
        InputError: as `check_device`.
    """
    check_device(device)
    for module in encoder.modules():
        if isinstance(module, SelfAttention):
            module.pack(Int8Linear)
    replace_linear(encoder, Int8Linear)
    encoder.fills = has_onednn()
    return encoder
