"""Linear layers that multiply int8 by int8, for inference on a CPU.

    y = x W^T + b,   W ~ s_W q_W   with s_W = max |W| / 127
                     x ~ low + s_x (q_x + 128)   with s_x = (high - low) / 255

Each output (a row of W) has a scale of its own, fixed when the layer is made; each token (a row of
x) too, between its lowest and highest entry as they come. With one scale for all tokens, as
PyTorch's dynamic quantisation has it, a single large activation takes the others' digits away.
Sums of products are exact, in int32. Everything else of a model stays float32: embeddings, norms,
softmax, attention, heads.

A processor without VNNI instructions adds pairs of products in 16 bits, and what does not fit is
cut off without a word. There W has 6 bits and a sign, so that it fits: `weight_range` tries it out.
"""

from functools import cache

import torch
import torch.nn as nn
from torch import Tensor

from minibio.model.products import replace_linear
from minibio.run.errors import InputError

ROWS = 128  # of x at a time, so that what lies between two passes stays in the cache


@cache
def weight_range() -> int:
    """The largest |q_W|: 127, or 63 where sums of two products are kept in 16 bits."""
    x = torch.full((64, 64), 127, dtype=torch.int8)
    return 127 if int(torch._int_mm(x, x)[0, 0]) == 64 * 127 * 127 else 63


class Int8Linear(nn.Module):
    """A trained linear layer, its matrix in int8.

    Args:
        linear: the layer; it stays as it is.
    """

    def __init__(self, linear: nn.Linear):
        super().__init__()
        W = linear.weight.detach().float()  # (C_out, C_in)
        scale = W.abs().amax(1).clamp(min=torch.finfo(W.dtype).tiny) / weight_range()  # (C_out,)
        self.register_buffer("weight", (W / scale[:, None]).round().to(torch.int8))
        self.register_buffer("scale", scale)
        self.register_buffer("total", self.weight.sum(1) * scale)  # (C_out,) of each row
        bias = torch.zeros_like(scale) if linear.bias is None else linear.bias.detach().float()
        self.register_buffer("bias", bias.clone())

    def forward(self, x: Tensor) -> Tensor:
        """x: (..., C_in) float32 -> (..., C_out) float32."""
        rows = x.flatten(0, -2)  # (N, C_in)
        out = rows.new_empty(len(rows), len(self.scale))  # (N, C_out)
        for part, y in zip(rows.split(ROWS), out.split(ROWS), strict=True):
            low, high = part.aminmax(dim=1, keepdim=True)  # (N, 1)
            step = (high - low).clamp_(min=torch.finfo(x.dtype).tiny) / 255
            q = (part - low).div_(step).round_().sub_(128).to(torch.int8)
            torch.mul(torch._int_mm(q, self.weight.T), step, out=y)
            y.mul_(self.scale).addcmul_(low + 128 * step, self.total).add_(self.bias)
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
    """The encoder itself, with `Int8Linear` in the place of its linear layers.

    Raises:
        InputError: as `check_device`.
    """
    check_device(device)
    replace_linear(encoder, Int8Linear)
    return encoder
