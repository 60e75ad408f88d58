"""Heads on the encoder, masked-LM, token, sequence and span, and the whole `Model`.

    mlm        which token stood here?        (M, V), or (N, V) where the batch names no targets
    token      which label has this token?    (N, K)     named entities
    sequence   which label has this text?     (B, K)     relations
    span       where does the answer start and end?  (N, 2)     question answering
    encoder    nothing                        None

The masked-LM head runs only on the M predicted tokens: 6.7 times less work than on all N at 15 %.
Its decoder is the token embedding table (tied). Each family has its own habit for sequences:
BERT pools the first token through a tanh layer, DistilBERT through a ReLU layer of its own,
MobileBERT through tanh or, as published, not at all.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.nn as nn
from torch import Tensor

from kernels import Decoder
from minibio.batch import Batch
from minibio.config import ModelConfig
from minibio.model.attention import Match, SelfAttention
from minibio.model.mobilebert import BottleneckEncoder
from minibio.model.products import PackedLinear, can_pack, is_mkl_better, replace_linear
from minibio.model.transformer import ACTIVATIONS, Encoder, EncoderOutput, FeedForward, initialise

ENCODERS = {
    "bert": Encoder,
    "distilbert": Encoder,
    "mobilebert": BottleneckEncoder,
    "ib-bert": BottleneckEncoder,
}


@dataclass
class Output(EncoderOutput):
    """The encoder's output and the head's."""

    logits: Tensor | None = None
    decoder: Decoder | None = None  # in place of a masked-LM head's logits, where asked for


class MaskedLMHead(nn.Module):
    """logits = norm(activation(transform(h))) E^T + bias, with E the token embedding table.

    MobileBERT's table is narrower than its stream: the first E columns of the transformed state
    meet the tied table, the C - E others a matrix of the head's own.
    """

    def __init__(self, config: ModelConfig):
        super().__init__()
        self.transform = nn.Linear(config.C, config.C)
        self.activation = ACTIVATIONS[config.activation]
        self.norm = nn.LayerNorm(config.C, eps=config.norm_eps)  # a real one in MobileBERT too
        n_own = config.C - config.E
        # kept (C-E, V) as in the published files: the transpose of a decoder's block
        self.extra = nn.Linear(config.V, n_own, bias=False) if n_own else None
        self.bias = nn.Parameter(torch.zeros(config.V))
        self.op, self.impl = "masked_mlm", "auto"  # of kernels/; see `use_kernels`

    def forward(self, h: Tensor) -> Tensor:
        """h: (M, C) -> (M, C), ready for the decoder."""
        return self.norm(self.activation(self.transform(h)))

    def decoder(self, h: Tensor, table: Tensor) -> Decoder:
        """h: (M, C), table: (V, E) -> the logits (M, V), not multiplied out yet."""
        E = [table] if self.extra is None else [table, self.extra.weight.T]
        return Decoder(self(h), E, self.bias)


class TokenHead(nn.Module):
    """A linear classifier on every token."""

    def __init__(self, config: ModelConfig, K: int):
        super().__init__()
        self.dropout = nn.Dropout(first_set(config.classifier_dropout, config.dropout))
        self.classifier = nn.Linear(config.C, K)

    def forward(self, h: Tensor) -> Tensor:
        """h: (N, C) -> (N, K)."""
        return self.classifier(self.dropout(h))


class SpanHead(nn.Module):
    """Scores of every token as the first and as the last of an answer."""

    def __init__(self, config: ModelConfig):
        super().__init__()
        # only DistilBERT drops here: its qa_dropout
        self.dropout = nn.Dropout(0.1 if config.family == "distilbert" else 0.0)
        self.classifier = nn.Linear(config.C, 2)

    def forward(self, h: Tensor) -> Tensor:
        """h: (N, C) -> (N, 2)."""
        return self.classifier(self.dropout(h))


class SequenceHead(nn.Module):
    """A linear classifier on each sequence's first token, pooled as its family does."""

    def __init__(self, config: ModelConfig, K: int):
        super().__init__()
        if config.family == "distilbert":
            self.pre_classifier = nn.Linear(config.C, config.C)
            default = 0.2  # DistilBERT's seq_classif_dropout
        else:
            self.pooler = nn.Linear(config.C, config.C) if config.tanh_pooler else None
            default = config.dropout
        self.dropout = nn.Dropout(first_set(config.classifier_dropout, default))
        self.classifier = nn.Linear(config.C, K)
        self.is_distilbert = config.family == "distilbert"

    def forward(self, h: Tensor, batch: Batch) -> Tensor:
        """h: (N, C) -> (B, K)."""
        x = h[batch.firsts()]  # (B, C)
        if self.is_distilbert:
            x = self.pre_classifier(x).relu()
        elif self.pooler is not None:
            x = self.pooler(x).tanh()
        return self.classifier(self.dropout(x))


class EncoderHead(nn.Module):
    """No output of its own; carries a pooler through a conversion where the source has one."""

    def __init__(self, config: ModelConfig, has_pooler: bool):
        super().__init__()
        can_have = config.family != "distilbert" and config.tanh_pooler
        self.pooler = nn.Linear(config.C, config.C) if has_pooler and can_have else None


class Model(nn.Module):
    """An encoder and a head.

    Args:
        config: the architecture, a row of `MODELS` or one's own.
        head:   "mlm" | "token" | "sequence" | "span" | "encoder".
        labels: names of the K classes of a token or sequence head (or K itself).
        has_pooler: an "encoder" keeps BERT's pooler, for files that carry one.
    Raises:
        ValueError: unknown head or family; a classifier without labels.
    """

    def __init__(
        self,
        config: ModelConfig,
        head: str = "mlm",
        labels: Sequence[str] | int | None = None,
        has_pooler: bool = False,
    ):
        super().__init__()
        if config.family not in ENCODERS:
            raise ValueError(f"Model: family is {config.family!r}, expected one of {[*ENCODERS]}")
        if isinstance(labels, int):
            labels = [f"LABEL_{i}" for i in range(labels)]
        if head in ("token", "sequence") and not labels:
            raise ValueError(f"Model: labels is {labels!r}, expected names for the {head} head")
        self.config, self.head_name = config, head
        self.labels = tuple(labels) if labels else None
        self.encoder = ENCODERS[config.family](config)
        if head == "mlm":
            self.head = MaskedLMHead(config)
        elif head == "token":
            self.head = TokenHead(config, len(self.labels))
        elif head == "sequence":
            self.head = SequenceHead(config, len(self.labels))
        elif head == "span":
            self.head = SpanHead(config)
        elif head == "encoder":
            self.head = EncoderHead(config, has_pooler)
        else:
            raise ValueError(
                f"Model: head is {head!r}, expected mlm, token, sequence, span or encoder"
            )
        initialise(self, config.init_std)

    def forward(
        self,
        batch: Batch,
        match: Mapping[int, Match] | None = None,
        keep: Collection[int] = (),
        hidden: Collection[int] = (),
        depth: int | None = None,
        frozen: int | None = None,
        multiply: bool = True,
        predict: bool = True,
    ) -> Output:
        """The last hidden state and the logits; `match` to `frozen` as in `Encoder`.

        multiply: False = a masked-LM head stops before its last product, the largest tensor of the
            step, and hands out what `kernels.masked_mlm` makes its losses of.
        predict:  False = the head is not run at all.
        """
        encoded = Output(**vars(self.encoder(batch, match, keep, hidden, depth, frozen)))
        return self.with_head(encoded, batch, multiply) if predict else encoded

    def with_head(self, encoded: Output, batch: Batch, multiply: bool = True) -> Output:
        """`encoded`, with what the head makes of its last hidden state."""
        if self.head_name != "mlm":
            encoded.logits = self.logits(encoded.last, batch)
            return encoded
        encoded.decoder = self.decoder(encoded.last, batch)
        if multiply:
            encoded.logits, encoded.decoder = encoded.decoder.logits(), None
        return encoded

    def decoder(self, h: Tensor, batch: Batch) -> Decoder:
        """The masked-LM head on the predicted tokens, all of them if the batch names none."""
        if batch.predict is not None:
            h = h[batch.predict]  # (M, C)
        return self.head.decoder(h, self.encoder.embeddings.token.weight)

    def logits(self, h: Tensor, batch: Batch) -> Tensor | None:
        """The other heads on the last hidden state. h: (N, C)."""
        if self.head_name == "encoder":
            return None
        if self.head_name == "sequence":
            return self.head(h, batch)
        return self.head(h)

    @property
    def n_parameters(self) -> int:
        """Parameters, tied ones once."""
        return sum(p.numel() for p in self.parameters())


FROZEN_PRECISIONS = ("fp32", "bf16")


def freeze(model: Model, precision: str = "fp32", is_packed: bool = False) -> Model:
    """The model as it is while nothing trains it: evaluation mode, no gradients, products ready.

    Its encoder's matrices are rounded once, here, rather than in every step, and those of queries,
    keys and values joined where they are one product. Sums, norms, hidden states and predictions
    stay float32: a teacher's losses differ from float32's by less than 1e-4. Under autocast the
    results are those of the matrices before, bit for bit.

    Args:
        precision: of the encoder's products: "fp32" (as the context's) | "bf16".
        is_packed: whether its linear layers become `PackedLinear`, where those run, and rows are
                   `filled` for oneDNN: for prediction alone, since nothing could be saved or moved
                   then.
    """
    if precision not in FROZEN_PRECISIONS:
        raise ValueError(
            f"freeze: precision is {precision!r}, expected one of {', '.join(FROZEN_PRECISIONS)}"
        )
    model.eval().requires_grad_(False)
    if precision == "bf16":
        for module in model.encoder.modules():
            if isinstance(module, nn.Linear):
                module.to(torch.bfloat16)
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    is_packed = is_packed and can_pack(next(model.parameters()).device, dtype)
    for module in model.encoder.modules():
        if isinstance(module, SelfAttention):
            (module.pack if is_packed else module.join)()
        elif isinstance(module, FeedForward) and is_packed:
            module.pack()
    model.encoder.fills = is_packed and not is_mkl_better(dtype)
    if is_packed:
        replace_linear(model.encoder, PackedLinear)
    return model


def first_set(*values):
    """The first value that is not None."""
    return next(v for v in values if v is not None)
