"""The post-norm transformer encoder: BERT, DistilBERT and TinyBERT, by configuration.

    x = norm(token + position + segment)
    L times:   x = norm(x + attention(x))
               x = norm(x + ffn(x))

DistilBERT is the same without segments; TinyBERT is the same, narrower. Read attention.py before
this file and heads.py after it. MobileBERT, whose layer is another, is in mobilebert.py; it shares
`Encoder`, the loop over layers. Left out: the next-sentence head, decoders, relative positions.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field

import torch
import torch.nn as nn
import torch.nn.functional as F
from torch import Tensor

import kernels
from minibio.batch import Batch, Row
from minibio.config import ModelConfig
from minibio.model.attention import AttentionOutput, Match, SelfAttention
from minibio.model.products import FEW, IN_PLACE, PackedLinear, products

ACTIVATIONS = {
    "gelu": F.gelu,  # the exact one, by erf
    "gelu_new": lambda x: F.gelu(x, approximate="tanh"),
    "relu": F.relu,
}
MULTIPLE = 32  # tokens; see `filled`


@dataclass
class EncoderOutput:
    """The encoder's output; of its layers, numbered 1..L, only what was asked for."""

    last: Tensor  # (N, C) hidden state after the last layer that was run
    hidden_states: dict[int, Tensor] = field(default_factory=dict)  # (N, C); 0: the embeddings'
    kept: dict[int, AttentionOutput] = field(default_factory=dict)  # the teacher's side of a Match
    row_losses: dict[int, Tensor] = field(default_factory=dict)  # (N, H)


class Embeddings(nn.Module):
    """norm(token + position + segment), then dropout."""

    def __init__(self, config: ModelConfig):
        super().__init__()
        self.token = nn.Embedding(config.V, config.C, padding_idx=config.pad_id)
        self.position = nn.Embedding(config.P, config.C)
        self.segment = nn.Embedding(config.n_segments, config.C) if config.n_segments else None
        self.norm = nn.LayerNorm(config.C, eps=config.norm_eps)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, batch: Batch) -> Tensor:
        x = self.token(batch.tokens) + self.position(batch.positions)  # (N, C)
        if self.segment is not None:
            x = x + of_segments(self.segment, batch)
        return self.dropout(self.norm(x))


def of_segments(table: nn.Embedding, batch: Batch) -> Tensor:
    """The embedding of each token's type, (N, C), or of the only one that there is, (1, C)."""
    is_single = table.num_embeddings == 1  # a model's only one is all tokens'
    types = torch.zeros_like(batch.segments) if is_single else batch.segments  # (N,)
    is_row = is_single or batch.is_one_text
    return table(types[:1] if is_row and is_row_better(table.weight) else types)


def is_row_better(weight: Tensor) -> bool:
    """Whether one row is added to all tokens rather than looked up for each: (N, C) less to move.

    Not where a CPU trains the table: its gradient would add up in another order.
    """
    return weight.is_cuda or not (torch.is_grad_enabled() and weight.requires_grad)


class FeedForward(nn.Module):
    """down(activation(up(x))), on each token by itself."""

    def __init__(self, C: int, width: int, activation: str):
        super().__init__()
        self.up = nn.Linear(C, width)
        self.down = nn.Linear(width, C)
        self.activation = activation

    def forward(self, x: Tensor) -> Tensor:
        if isinstance(self.up, PackedLinear):
            return self.down(self.up(x))
        up, down = products([self.up], [self.down])
        h = up(x)  # (N, F)
        if h.requires_grad:
            return down(ACTIVATIONS[self.activation](h))
        return down(IN_PLACE[self.activation](h))  # h is not needed again: its memory is reused

    def pack(self) -> None:
        """Make the first product a `PackedLinear` with the activation; the layer only predicts."""
        self.up = PackedLinear(self.up.weight, self.up.bias, self.activation)


class AddNorm(nn.LayerNorm):
    """norm(x + dropout(a)), and the same in the type that the next product takes.

    Under autocast that is bfloat16, cast once here rather than by every product that reads it;
    else both results are one tensor.
    """

    def __init__(self, config: ModelConfig):
        super().__init__(config.C, eps=config.norm_eps)
        self.dropout = config.dropout
        self.op, self.impl = "add_norm", "auto"  # of kernels/; see `use_kernels`

    def forward(self, x: Tensor, a: Tensor) -> tuple[Tensor, Tensor]:
        """x: (N, C), a: (N, C) -> (N, C) twice."""
        device = x.device.type
        is_mixed = torch.is_autocast_enabled(device)
        return kernels.add_norm(
            x,
            a,
            self.weight,
            self.bias,
            eps=self.eps,
            dropout=self.dropout if self.training else 0.0,
            narrow=torch.get_autocast_dtype(device) if is_mixed else None,
            impl=self.impl,
        )


class Layer(nn.Module):
    """Attention, then feed-forward; each is added to its input and the sum is normalised."""

    def __init__(self, config: ModelConfig):
        super().__init__()
        self.attention = SelfAttention(config)
        self.attention_norm = AddNorm(config)
        self.ffn = FeedForward(config.C, config.F, config.activation)
        self.output_norm = AddNorm(config)

    def forward(
        self,
        x: Tensor,
        row: Row,
        match: Match | None = None,
        keep: bool = False,
        narrow: Tensor | None = None,
    ) -> tuple[Tensor, AttentionOutput, Tensor]:
        """x: (N, C), and the same as the layer below has cast it; so are the results."""
        narrow = x if narrow is None else narrow
        a = self.attention(narrow, narrow, row, match, keep)
        x, narrow = self.attention_norm(x, a.out)  # (N, C)
        x, narrow = self.output_norm(x, self.ffn(narrow))  # (N, C)
        return x, a, narrow


class Encoder(nn.Module):
    """Embeddings and L layers."""

    def __init__(self, config: ModelConfig, embeddings: type = Embeddings, layer: type = Layer):
        super().__init__()
        self.config = config
        self.embeddings = embeddings(config)
        self.layers = nn.ModuleList(layer(config) for _ in range(config.L))
        self.fills = False  # see `filled`

    def forward(
        self,
        batch: Batch,
        match: Mapping[int, Match] | None = None,
        keep: Collection[int] = (),
        hidden: Collection[int] = (),
        depth: int | None = None,
        frozen: int | None = None,
    ) -> EncoderOutput:
        """The last hidden state, and what distillation asks for.

        Args:
            batch:  the row of tokens.
            match:  student: {layer: the teacher's queries and keys}; the divergence of each row of
                    the two attention maps comes back in `row_losses`.
            keep:   teacher: the layers whose queries, keys and log-sum-exp are handed out.
            hidden: the layers whose hidden states are handed out; 0 is the embeddings'.
            depth:  the last layer that is run; None = all of them.
            frozen: everything up to this layer is run without a gradient, 0 being the embeddings;
                    None = nothing is frozen.
        Raises:
            ValueError: as `check`.
        """
        match = match or {}
        depth = self.config.L if depth is None else depth
        self.check(batch, depth, {*match, *keep, *hidden})
        is_training = torch.is_grad_enabled()
        with torch.set_grad_enabled(is_training and frozen is None):
            x = self.embeddings(batch)  # (N, C)
        result = EncoderOutput(x, {0: x} if 0 in hidden else {})
        x, row = filled(x, batch.row) if self.fills else (x, batch.row)
        narrow = None  # x in the type of the products, where a layer has cast it
        for l, layer in zip(range(1, depth + 1), self.layers, strict=False):
            with torch.set_grad_enabled(is_training and (frozen is None or l > frozen)):
                x, a, narrow = layer(x, row, match.get(l), l in keep, narrow)
            if l in hidden:
                result.hidden_states[l] = x
            if l in keep:
                result.kept[l] = a
            if a.rows is not None:
                result.row_losses[l] = a.rows
        result.last = x
        if len(x) > batch.N:
            result.last = x[: batch.N]
            result.hidden_states = {l: h[: batch.N] for l, h in result.hidden_states.items()}
        return result

    def check(self, batch: Batch, depth: int, asked: Collection[int]) -> None:
        """Refuse a batch that the model cannot read, and layers that are not run.

        Raises:
            ValueError: a sequence is longer than the positions; a token id is beyond the
                vocabulary, or a token type beyond the model's (seen on a CPU only: looking would
                make a GPU wait); a layer is asked for that is not run.
        """
        config = self.config
        if batch.max_len > config.P:
            raise ValueError(
                f"Encoder: a sequence has {batch.max_len} tokens, expected at most {config.P} "
                f"(the model's positions); cut it"
            )
        if batch.device.type == "cpu" and batch.N and int(batch.tokens.max()) >= config.V:
            raise ValueError(
                f"Encoder: token id is {int(batch.tokens.max())}, expected below {config.V} "
                f"(the model's vocabulary); use the model's own tokenizer"
            )
        is_typed = config.n_segments > 1 and batch.device.type == "cpu" and batch.N
        if is_typed and int(batch.segments.max()) >= config.n_segments:
            raise ValueError(
                f"Encoder: token type is {int(batch.segments.max())}, expected below "
                f"{config.n_segments} (the model's token types)"
            )
        if not 0 <= depth <= config.L or max(asked, default=0) > depth:
            raise ValueError(
                f"Encoder: layers {sorted(asked)} are asked for and {depth} run, expected at most "
                f"the model's {config.L}, and none asked for that is not run"
            )


def filled(x: Tensor, row: Row) -> tuple[Tensor, Row]:
    """The row with a sequence of zeros at its end that makes N a multiple of `MULTIPLE`.

    For each new N oneDNN writes new code for each of the products, which takes as long as half of
    such a product, and keeps it: no two batches of a prediction would have the same N.

    Args:
        x: (N, C); N of `FEW` or less is left as it is.
    """
    missing = -len(x) % MULTIPLE
    if len(x) <= FEW or not missing:
        return x, row
    ends = torch.cat([row.cu_seqlens, row.cu_seqlens[-1:] + missing])  # (B+2,)
    return F.pad(x, (0, 0, 0, missing)), Row(ends, max(row.max_len, missing))


def compile_layers(model: nn.Module, backend: str = "inductor") -> None:
    """Have torch.compile write the layers of `model`: one code for all of them, for all lengths.

    Between its matrix products a layer is a chain of small operations on (N, C), which then become
    a few. Weights, their names and the results, to rounding, stay what they were.
    """
    for module in model.modules():
        if isinstance(module, Encoder):
            for layer in module.layers:
                layer.compile(dynamic=True, backend=backend)


@torch.no_grad()
def initialise(module: nn.Module, std: float) -> None:
    """BERT's initial weights: normal with deviation `std`, biases 0, norms the identity."""
    for m in module.modules():
        if isinstance(m, nn.Linear | nn.Embedding):
            m.weight.normal_(std=std)
        if isinstance(m, nn.Linear) and m.bias is not None:
            m.bias.zero_()
        if isinstance(m, nn.Embedding) and m.padding_idx is not None:
            m.weight[m.padding_idx].zero_()
