"""Places in a text that normalisation changes on the way to the model."""

import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from minibio.tasks.pieces import cut
from minibio.text.tokenizer import Tokenizer

TEXTS = ["The BRCA1 gene, Café naïve β-catenin; 中文 IL-2 receptor receptors a\u0301b İ 12"] * 3


@pytest.fixture(scope="module")
def tokenizers():
    return [Tokenizer.train(TEXTS, 130, cased) for cased in (True, False)]


def words(text, pieces):
    return [text[a:b] for a, b in pieces.word_spans]


@pytest.mark.parametrize(
    ("text", "want"),
    [
        ("The BRCA1 gene", ["The", "BRCA1", "gene"]),
        ("  IL-2\tx\n", ["IL", "-", "2", "x"]),
        ("re\u200bceptor", ["re\u200bceptor"]),
        ("\u200bIL\u200b-\ufeff2\x00", ["IL", "-", "2"]),
        ("\u200b \x07 \u00a0", []),
        ("", []),
        ("Café a\u0301b", ["Café", "a\u0301b"]),
        ("中文", ["中", "文"]),
        ("😀 β", ["😀", "β"]),
        ("a \ud800 b", ["a", "b"]),  # half a surrogate pair
        ("x" * 300 + " y", ["x" * 300, "y"]),
    ],
)
def test_words_of_a_text(tokenizers, text, want):
    for tokenizer in tokenizers:
        assert words(text, cut(text, tokenizer)) == want


CHARACTERS = st.sampled_from("aAbBIL12-,. é\u0301\u200b\x00\u00a0中İß😀\n") | st.characters()


@settings(derandomize=True, deadline=None)
@given(st.text(CHARACTERS, max_size=40))
def test_what_holds_of_any_text(tokenizers, text):
    for tokenizer in tokenizers:
        pieces = cut(text, tokenizer)
        valid = re.sub("[\ud800-\udfff]", "\ufffd", text)  # the package takes nothing else
        encoding = tokenizer.backend.encode(valid, add_special_tokens=False)
        assert pieces.ids == encoding.ids
        assert pieces.words == encoding.word_ids  # counted by the package
        assert len(pieces.word_spans) == len(set(pieces.words))
        for (a, b), w in zip(pieces.spans, pieces.words, strict=True):
            start, end = pieces.word_spans[w]
            assert 0 <= start <= a < b <= end <= len(text)
        for (_, b), (c, _) in zip(pieces.word_spans, pieces.word_spans[1:], strict=False):
            assert b <= c
        for start in range(len(text)):
            for end in (start + 1, start + 3, len(text)):
                want = [i for i, (a, b) in enumerate(pieces.spans) if a < end and b > start]
                assert list(pieces.inside(start, end)) == want
