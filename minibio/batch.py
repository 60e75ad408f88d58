"""One row of real tokens: the form every batch has here.

A batch is not a padded rectangle but one row of N tokens, sequence after sequence:

    tokens      [CLS] a b c [SEP] [CLS] d [SEP] [CLS] e f [SEP]      (N,)
    cu_seqlens   0                 5             8             12    (B+1,)

Every linear layer, norm and loss works on (N, C), and "the mean over the N tokens" is `.mean()`.
Only attention and MobileBERT's trigram embedding look at where sequences begin. Nothing can depend
on padding, because there is none. `Batch.from_padded` and `Batch.pad` are the doors to the padded
world of Hugging Face.

All counts are known on the host (`lengths`, N, M), so that a step never waits for the device.
"""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate
from typing import NamedTuple

import torch
from torch import Tensor


class Row(NamedTuple):
    """Bounds of the sequences: all that attention knows of a batch."""

    cu_seqlens: Tensor  # (B+1,) int32
    max_len: int  # tokens of the longest sequence


@dataclass(frozen=True, eq=False)
class Batch:
    """B sequences as one row of N tokens; for pre-training also the M tokens to be predicted."""

    tokens: Tensor  # (N,) int64  token ids
    positions: Tensor  # (N,) int64  place of each token in its sequence
    segments: Tensor  # (N,) int64  token types: 0, or 1 in the second of two texts
    cu_seqlens: Tensor  # (B+1,) int32  where each sequence begins; cu_seqlens[B] = N
    lengths: tuple[int, ...]  # B host integers: tokens of each sequence
    predict: Tensor | None = None  # (M,) int64  places in the row to be predicted, ascending
    labels: Tensor | None = None  # (M,) int64  what stood there
    is_one_text: bool = False  # known on the host: every token's type is 0

    @property
    def B(self) -> int:
        """Sequences."""
        return len(self.lengths)

    @cached_property
    def N(self) -> int:
        """Tokens in the row."""
        return sum(self.lengths)

    @property
    def M(self) -> int:
        """Predicted tokens; N where the batch names none."""
        return self.N if self.predict is None else self.predict.numel()

    @property
    def max_len(self) -> int:
        """Tokens of the longest sequence; 0 in an empty batch."""
        return max(self.lengths, default=0)

    @property
    def row(self) -> Row:
        return Row(self.cu_seqlens, self.max_len)

    @cached_property
    def n_pairs(self) -> int:
        """sum_b T_b^2: (query, key) pairs of one head, the denominator of Eq. 6."""
        return sum(T * T for T in self.lengths)

    @cached_property
    def own_lengths(self) -> Tensor:
        """(N,) int64: tokens of each token's own sequence; made on the device, without a wait."""
        T = self.cu_seqlens.diff().long()  # (B,)
        return T.repeat_interleave(T, output_size=self.N)

    @property
    def device(self) -> torch.device:
        return self.tokens.device

    @staticmethod
    def from_row(tokens, lengths, segments=None, predict=None, labels=None) -> "Batch":
        """A batch from a row of token ids and the lengths of its sequences.

        Args:
            tokens:   (N,) token ids.
            lengths:  B integers, N in all.
            segments: (N,) token types; None = all 0.
            predict:  (M,) places in the row; with `labels` (M,).
        """
        tokens = torch.as_tensor(tokens, dtype=torch.int64)  # (N,)
        ends = list(accumulate(lengths, initial=0))
        starts = torch.tensor(ends[:-1], dtype=torch.int64)  # (B,)
        T = torch.tensor(lengths, dtype=torch.int64)  # (B,)

        def integers(x):
            return None if x is None else torch.as_tensor(x, dtype=torch.int64)

        return Batch(
            tokens=tokens,
            positions=torch.arange(len(tokens)) - starts.repeat_interleave(T),  # (N,)
            segments=torch.zeros_like(tokens) if segments is None else integers(segments),
            cu_seqlens=torch.tensor(ends, dtype=torch.int32),
            lengths=tuple(lengths),
            predict=integers(predict),
            labels=integers(labels),
            is_one_text=segments is None,
        )

    @staticmethod
    def from_sequences(sequences, segments=None, predict=None, labels=None) -> "Batch":
        """A batch from B lists (or 1-D arrays) of token ids.

        Args:
            sequences: B lists of token ids.
            segments:  B lists of token types, same lengths; None = all 0.
            predict:   (M,) places in the row; with `labels` (M,).
        """

        def row(lists):  # B lists -> (N,)
            parts = [torch.as_tensor(ids, dtype=torch.int64) for ids in lists]
            return torch.cat(parts) if parts else torch.zeros(0, dtype=torch.int64)

        lengths = [len(ids) for ids in sequences]
        return Batch.from_row(
            row(sequences), lengths, None if segments is None else row(segments), predict, labels
        )

    @staticmethod
    def from_padded(
        input_ids: Tensor, attention_mask: Tensor, token_type_ids: Tensor | None = None
    ) -> "Batch":
        """The row of real tokens of a padded rectangle, as Hugging Face tokenisers make it.

        Args:
            input_ids:      (B, T) integer.
            attention_mask: (B, T) bool or 0/1.  1 = real token; each row is real tokens first, then
                            padding.
            token_type_ids: (B, T) integer, or None for all 0.
        Raises:
            ValueError: shapes differ, or a sequence has padding before or between its tokens (its
                positions in the padded model would not be 0, 1, 2, ...).
        """
        if input_ids.dim() != 2:
            raise ValueError(
                f"Batch.from_padded: input_ids is {tuple(input_ids.shape)}, expected (B, T)"
            )
        for name, x in (("attention_mask", attention_mask), ("token_type_ids", token_type_ids)):
            if x is not None and x.shape != input_ids.shape:
                raise ValueError(
                    f"Batch.from_padded: {name} is {tuple(x.shape)}, "
                    f"expected {tuple(input_ids.shape)} (as input_ids)"
                )
        is_token = attention_mask.bool()  # (B, T)
        lengths = is_token.sum(1)  # (B,)
        B, T = input_ids.shape
        position = torch.arange(T, device=input_ids.device).expand(B, T)  # (B, T)
        if not torch.equal(is_token, position < lengths[:, None]):
            raise ValueError(
                "Batch.from_padded: attention_mask has padding before a token, "
                "expected padding on the right; set the tokeniser's padding side to right"
            )
        tokens = input_ids[is_token].long()  # (N,)
        ends = lengths.cumsum(0)  # (B,)
        return Batch(
            tokens=tokens,
            positions=position[is_token],  # (N,)
            segments=(
                torch.zeros_like(tokens)
                if token_type_ids is None
                else token_type_ids[is_token].long()  # (N,)
            ),
            cu_seqlens=torch.cat([ends.new_zeros(1), ends]).int(),  # (B+1,)
            lengths=tuple(lengths.tolist()),
            is_one_text=token_type_ids is None,
        )

    def pad(self, x: Tensor, value: float = 0) -> Tensor:
        """Back to a rectangle: (N, ...) -> (B, max_len, ...), `value` where there is no token."""
        sequences = list(x.split(self.lengths))
        if not sequences:
            return x.new_zeros((0, 0, *x.shape[1:]))
        return torch.nn.utils.rnn.pad_sequence(sequences, batch_first=True, padding_value=value)

    def firsts(self) -> Tensor:
        """(B,) int64: the place of each sequence's first token, its [CLS], in the row."""
        return self.cu_seqlens[:-1].long()

    def without_targets(self) -> "Batch":
        """The same tokens with nothing named for prediction: a head then works on all N."""
        return dataclasses.replace(self, predict=None, labels=None)

    def to(self, device, non_blocking: bool = True) -> "Batch":
        """The same batch on `device`."""
        moved = {
            f.name: getattr(self, f.name).to(device, non_blocking=non_blocking)
            for f in dataclasses.fields(self)
            if isinstance(getattr(self, f.name), Tensor)
        }
        return dataclasses.replace(self, **moved)


class Counts(NamedTuple):
    """The denominators of one step, over all its micro-batches and processes."""

    N: float  # tokens
    M: float  # predicted tokens
    n_pairs: float  # sum_b T_b^2
    B: float  # sequences

    @staticmethod
    def of(batches: Sequence[Batch]) -> "Counts":
        """The counts of these batches together."""
        return Counts(*(sum(getattr(b, name) for b in batches) for name in Counts._fields))
