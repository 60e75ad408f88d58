"""Bottlenecks: MobileBERT (Sun et al., 2020; section 4.4) and its teacher IB-BERT.

Both carry a stream of 512 between 24 layers. Inside a layer MobileBERT is narrow (128) and its
teacher wide (1,024), so that hidden states compare without a projection while the one is small and
the other strong:

              MobileBERT                                IB-BERT ("inverted bottleneck")
    stream    512 ------------------------+             512 ------------------------+
               | down                     |              | up                       |
    inside    128  attention, 4 ffn       |             1024  attention, 1 ffn      |
               | up                       |              | down                     |
    stream    512 <--- add, norm ---------+             512 <--- add, norm ---------+

Four more things are MobileBERT's own: a token table of 128 columns, widened by looking at both
neighbours (`TrigramEmbeddings`); `NoNorm`, a scale and a shift in place of LayerNorm; a second
bottleneck for queries and keys only, while values read the stream; and four small feed-forward
networks in place of a large one. Read transformer.py first: attention, feed-forward and the loop
over layers are shared.
"""

import torch
import torch.nn as nn
from torch import Tensor

from minibio.batch import Batch, Row
from minibio.config import ModelConfig
from minibio.model.attention import AttentionOutput, Match, SelfAttention
from minibio.model.transformer import Encoder, FeedForward, of_segments


class NoNorm(nn.Module):
    """x * weight + bias: what is left of LayerNorm without its statistics."""

    def __init__(self, C: int):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(C))
        self.bias = nn.Parameter(torch.zeros(C))

    def forward(self, x: Tensor) -> Tensor:
        if torch.is_grad_enabled():
            return x * self.weight + self.bias
        return torch.addcmul(self.bias, x, self.weight)  # the same in one pass


def make_norm(config: ModelConfig, C: int, ignores_eps: bool = False) -> nn.Module:
    """The configured norm over C channels.

    Args:
        ignores_eps: two of the original MobileBERT's norms have PyTorch's own epsilon whatever the
            configuration says. It shows only in models with LayerNorm.
    """
    if config.norm == "no_norm":
        return NoNorm(C)
    is_default = ignores_eps and config.family == "mobilebert"
    return nn.LayerNorm(C, eps=1e-5 if is_default else config.norm_eps)


class TrigramEmbeddings(nn.Module):
    """Three neighbours' token embeddings side by side, widened to the stream.

    The first and last token of a sequence have zeros for the neighbour they lack.
    """

    def __init__(self, config: ModelConfig):
        super().__init__()
        self.is_trigram = config.trigram
        self.token = nn.Embedding(config.V, config.E, padding_idx=config.pad_id)
        self.project = nn.Linear(config.E * (3 if config.trigram else 1), config.C)
        self.position = nn.Embedding(config.P, config.C)
        self.segment = nn.Embedding(config.n_segments, config.C)
        self.norm = make_norm(config, config.C, ignores_eps=True)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, batch: Batch) -> Tensor:
        x = self.token(batch.tokens)  # (N, E)
        if self.is_trigram and len(x):
            is_first = (batch.positions == 0)[:, None]  # (N, 1)
            is_last = torch.cat([is_first[1:], is_first.new_ones(1, 1)])  # the next one is a first
            following = torch.roll(x, -1, 0).masked_fill(is_last, 0)
            previous = torch.roll(x, 1, 0).masked_fill(is_first, 0)
            x = torch.cat([following, x, previous], dim=1)  # (N, 3 E)
        elif self.is_trigram:
            x = x.repeat(1, 3)  # an empty row
        x = self.project(x) + self.position(batch.positions) + of_segments(self.segment, batch)
        return self.dropout(self.norm(x))  # (N, C)


class Bottleneck(nn.Module):
    """norm(dense(x)): from one width to the other."""

    def __init__(self, config: ModelConfig, C_in: int, C_out: int):
        super().__init__()
        self.dense = nn.Linear(C_in, C_out)
        self.norm = make_norm(config, C_out)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.dense(x))


class ResidualFeedForward(nn.Module):
    """norm(x + ffn(x)), inside the bottleneck."""

    def __init__(self, config: ModelConfig, is_last: bool):
        super().__init__()
        self.ffn = FeedForward(config.C_intra, config.F, config.activation)
        self.norm = make_norm(config, config.C_intra, ignores_eps=is_last)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(x + self.ffn(x))


class BottleneckLayer(nn.Module):
    """Into the bottleneck, attention, feed-forward networks, and out onto the stream.

    The attention's residual is the bottleneck's input, not the stream: they differ in width.
    """

    def __init__(self, config: ModelConfig):
        super().__init__()
        C, C_intra = config.C, config.C_intra
        self.enter = Bottleneck(config, C, C_intra)
        # MobileBERT's queries and keys read a narrow stream of their own; IB-BERT's the wide one
        self.enter_qk = Bottleneck(config, C, C_intra) if config.shared_qk else None
        self.attention = SelfAttention(config, C_qk=C_intra if config.shared_qk else C, C_v=C)
        self.attention_norm = make_norm(config, C_intra)
        self.ffns = nn.ModuleList(
            ResidualFeedForward(config, is_last=i == config.n_ffn - 1) for i in range(config.n_ffn)
        )
        self.leave = nn.Linear(C_intra, C)
        self.output_norm = make_norm(config, C)
        self.dropout = nn.Dropout(config.dropout)

    def forward(
        self,
        x: Tensor,
        row: Row,
        match: Match | None = None,
        keep: bool = False,
        narrow: None = None,
    ) -> tuple[Tensor, AttentionOutput, None]:
        """x: (N, C) -> (N, C), what the attention knows, and no copy of another type."""
        inside = self.enter(x)  # (N, C_intra)
        x_qk = x if self.enter_qk is None else self.enter_qk(x)
        a = self.attention(x_qk, x, row, match, keep)
        inside = self.attention_norm(inside + a.out)  # (N, C_intra)
        for ffn in self.ffns:
            inside = ffn(inside)
        return self.output_norm(x + self.dropout(self.leave(inside))), a, None


class BottleneckEncoder(Encoder):
    """Trigram embeddings and L bottleneck layers."""

    def __init__(self, config: ModelConfig):
        super().__init__(config, TrigramEmbeddings, BottleneckLayer)
