"""Multi-head self-attention over a row of tokens (Vaswani et al., 2017; section 2.2 of the paper).

Each token asks (query), is found (key) and is read (value):

    a = softmax(q k^T / sqrt(D))     attention map of one head, (T, T), rows sum to 1
    out = dropout(a) v

Tokens see their own sequence only. The map itself is never handed out: what distillation wants from
it is a number per row, so a layer that is to be compared with a teacher's is given the teacher's
queries and keys (`Match`) and returns the divergence of each row of the two maps, from the very
call that computes its output. Everything that touches a map goes through the two functions of
`kernels`; read `kernels/reference.py` for what they compute.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import NamedTuple

import torch
import torch.nn as nn
import torch.nn.functional as F
from torch import Tensor

import kernels
from minibio.batch import Row
from minibio.config import ModelConfig
from minibio.model.products import NAMES, PackedLinear, joined, products


class Match(NamedTuple):
    """The part of a teacher's layer that the student's layer paired with it is compared with."""

    q_t: Tensor  # (N, H, D_t)
    k_t: Tensor  # (N, H, D_t)
    lse_t: Tensor  # (N, H) log-sum-exp of the rows of scores, nats
    divergence: str  # one of kernels.DIVERGENCES


class AttentionOutput(NamedTuple):
    """The output of a self-attention layer, with what distillation needs of it."""

    out: Tensor  # (N, width)
    rows: Tensor | None  # (N, H) divergence of each attention row from the teacher's
    # where they are kept:
    q: Tensor | None = None  # (N, H, D)
    k: Tensor | None = None  # (N, H, D)
    lse: Tensor | None = None  # (N, H) log-sum-exp of the rows of scores, nats; no gradient


class SelfAttention(nn.Module):
    """Queries and keys from one stream, values from a second (in BERT both are the same).

    Args:
        config:    heads, width and dropout.
        C_qk, C_v: widths of the two streams read; None = the layer's own width.
    """

    def __init__(self, config: ModelConfig, C_qk: int | None = None, C_v: int | None = None):
        super().__init__()
        self.H, self.D = config.H, config.D
        self.dropout = config.attention_dropout
        self.is_one_stream = C_qk is None and C_v is None
        self.op, self.impl = "attention", "auto"  # of kernels/; see `use_kernels`
        width = config.width
        self.query = nn.Linear(C_qk or width, width)
        self.key = nn.Linear(C_qk or width, width)
        self.value = nn.Linear(C_v or width, width)
        self.output = nn.Linear(width, width)
        for name in ("joint_weight", "joint_bias"):  # see `join`
            self.register_buffer(name, None, persistent=False)
        self.packed = None  # see `pack`

    def forward(
        self, x_qk: Tensor, x_v: Tensor, row: Row, match: Match | None = None, keep: bool = False
    ) -> AttentionOutput:
        """x_qk: (N, C_qk), x_v: (N, C_v) -> out (N, width).

        keep: hand out queries and keys too; else, without a gradient, their memory is free again.
        """
        (q, k, v), output = self.projected(x_qk, x_v)  # (N, H, D) each
        dropout = self.dropout if self.training else 0.0
        if match is None:
            a, lse = kernels.attention(q, k, v, *row, dropout=dropout, impl=self.impl)
            rows = None
        else:
            a, rows, lse = kernels.attention_kl(
                q,
                k,
                v,
                match.q_t,
                match.k_t,
                *row,
                divergence=match.divergence,
                lse_t=match.lse_t,
                dropout=dropout,
                impl=self.impl,
            )
        out = output(a.flatten(1))  # (N, width)
        return AttentionOutput(out, rows, q, k, lse) if keep else AttentionOutput(out, rows)

    def projected(
        self, x_qk: Tensor, x_v: Tensor
    ) -> tuple[Sequence[Tensor], Callable[[Tensor], Tensor]]:
        """Queries, keys and values, (N, H, D) each, and what is to be done with attention's output.

        Those of one stream are one product, where it pays.
        """
        if self.packed is not None:
            return self.packed(x_v).unflatten(-1, (3, self.H, self.D)).unbind(1), self.output
        layers = (self.query, self.key, self.value)
        if x_qk is x_v and is_joint(x_v) and all(type(x) is nn.Linear for x in layers):
            if self.joint_weight is None:
                project, output = products(layers, [self.output])
            else:
                project = partial(F.linear, weight=self.joint_weight, bias=self.joint_bias)
                output = self.output
            return project(x_v).unflatten(-1, (3, self.H, self.D)).unbind(1), output
        outputs = zip(layers, (x_qk, x_qk, x_v), strict=True)
        return [layer(x).unflatten(-1, (self.H, self.D)) for layer, x in outputs], self.output

    @torch.no_grad()
    def join(self) -> None:
        """Lay the matrices of `projected` side by side once, of a layer that is never trained.

        The three layers keep their names, as views. Where they read two streams nothing is done,
        nor where three products are better than one.
        """
        self.joint_weight = self.joint_bias = None
        layers = (self.query, self.key, self.value)
        if self.query.in_features != self.value.in_features or not is_joint(self.value.weight):
            return
        for name, joint in zip(NAMES, joined(layers), strict=True):  # (3 C, C), (3 C,)
            setattr(self, f"joint_{name}", joint)
            for layer, part in zip(layers, joint.chunk(3), strict=True):
                setattr(layer, name, nn.Parameter(part, requires_grad=False))

    def pack(self, make: Callable[[Tensor, Tensor], nn.Module] = PackedLinear) -> None:
        """Make queries, keys and values of one stream one layer; it only predicts from then on.

        Also where three products are as fast: each call has its price, and a short text many calls.

        Args:
            make: of the matrices and biases, one below the other, that layer.
        """
        if self.is_one_stream:
            self.packed = make(*joined((self.query, self.key, self.value)))
            self.query = self.key = self.value = None


def is_joint(x: Tensor) -> bool:
    """Whether three products of x are better one: on a GPU, and in bf16, where the gradients of x
    then add up unrounded. A CPU in float32 has nothing from it but the copy of the weights."""
    return x.is_cuda or x.dtype == torch.bfloat16 or torch.is_autocast_enabled(x.device.type)


def use_kernels(model: nn.Module, choice: str | Mapping[str, str]) -> None:
    """Set the implementation of kernels/ in every module of `model` that calls it.

    Args:
        choice: "auto", "triton", "attention=triton,mlm=cuda" ..., or `kernels.parse_choice` of it.
    """
    choice = kernels.parse_choice(choice) if isinstance(choice, str) else choice
    for module in model.modules():
        if hasattr(module, "op"):
            module.impl = choice[module.op]
