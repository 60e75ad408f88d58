"""Text as the model reads it, with the place of every piece and word in the text.

    IL-2  re\\u200bceptors       text; the zero-width space is nothing to the model
    IL - 2  re ##ceptors        pieces
    0  1 2  3  3                the word of each: runs of letters and digits, or single marks
    (0, 2) ... (6, 15)          characters of each word

A piece or word reaches from its first to its last character in the text as given, whatever
normalisation removed in between; what it removed at the edges (spaces, controls, zero-width
characters, lone accents) belongs to none.
"""

from bisect import bisect_left, bisect_right
from typing import NamedTuple

from minibio.tasks.lines import HALF
from minibio.text.tokenizer import Tokenizer


class Pieces(NamedTuple):
    """The P pieces and W words of a text, without [CLS] and [SEP]."""

    ids: list[int]  # (P,) token ids
    spans: list[tuple[int, int]]  # (P,) characters of each piece: first, one behind the last
    words: list[int]  # (P,) the word of each piece, 0 .. W-1
    word_spans: list[tuple[int, int]]  # (W,) characters of each word

    def inside(self, start: int, end: int) -> range:
        """The pieces with a character among start .. end-1; empty where those leave no piece."""
        first = bisect_right(self.spans, start, key=lambda span: span[1])
        return range(first, max(first, bisect_left(self.spans, end, key=lambda span: span[0])))


def cut(text: str, tokenizer: Tokenizer) -> Pieces:
    """The pieces of a text; linear in its length."""
    ids, spans = tokenizer.encode_offsets(HALF.sub("\ufffd", text))  # as long as before
    words, word_spans = [], []
    for i, (start, end) in zip(ids, spans, strict=True):
        if word_spans and tokenizer.pieces[i].startswith("##"):
            word_spans[-1] = (word_spans[-1][0], end)
        else:
            word_spans.append((start, end))
        words.append(len(word_spans) - 1)
    return Pieces(ids, spans, words, word_spans)
