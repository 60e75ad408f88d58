"""Blocks become pieces: every token once, and a table that fits."""

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data.shard import pieces
from data.shard.leakage import Sentences
from data.shard.pieces import (
    COUNTED,
    Maker,
    Piece,
    PieceRecipe,
    key_hash,
    split,
    text_hash,
)
from data.shard.records import Block
from minibio.run.errors import InputError
from minibio.text import sentences as sentence_rule
from minibio.text.tokenizer import Tokenizer

RECORDS = [
    {"id": "a", "title": "Zinc in mice.", "abstract": "It helps. " * 6, "version": 2},
    {"id": "b", "title": "Out.", "in_eval_corpus": True},
    {"title": "\u200b"},  # no token is left of it
    {"title": "Mice alone"},
]


@pytest.fixture(scope="module")
def tokenizer_dir(tmp_path_factory):
    path = tmp_path_factory.mktemp("tokenizer")
    words = "zinc in mice it helps alone unbelievably".split()
    letters = "abcdefghijklmnopqrstuvwxyz.!?"
    Tokenizer.train([" ".join([*words, *letters])] * 3, 150, cased=False).save(path)
    return path


def recipe(path, **changes):
    options = {"length": 12, "split_long": False, "keep_eval": False, "duplicates": "keep",
               "sentences": None}  # fmt: skip
    return PieceRecipe(tokenizer=path, **{**options, **changes})


def make(tokenizer_dir, tmp_path, records=RECORDS, **changes):
    """The piece of some records, and its maker."""
    data = "".join(json.dumps(r) + "\n" for r in records).encode()
    maker = Maker(recipe(tokenizer_dir, **changes))
    read = maker((Block(Path("in.jsonl"), 0, 1, data, len(data)), tmp_path / "000000"))
    assert read == len(records)
    return Piece(tmp_path / "000000"), maker.tokenizer


def sequences(piece, V):
    offsets, tokens = piece.sequences(V)
    return [tokens[a:b].tolist() for a, b in zip(offsets, offsets[1:], strict=False)]


def test_a_piece_holds_the_documents_of_its_block(tokenizer_dir, tmp_path):
    piece, t = make(tokenizer_dir, tmp_path)
    long = "zinc in mice. " + "it helps. " * 6
    assert sequences(piece, t.V) == [t.encode(long, 12), t.encode("mice alone")]
    assert dict(zip(COUNTED, piece.column("counts").tolist(), strict=True)) == {
        "read": 4, "in_eval_corpus": 1, "eval_test_overlap": 0, "empty": 1,
    }  # fmt: skip
    assert piece.column("key").tolist() == [key_hash("a"), key_hash("Mice alone")]
    assert piece.column("version").tolist() == [2, 0]
    assert piece.column("windows").tolist() == [1, 1]
    assert piece.column("cut").tolist() == [len(t.encode(long)) - 12, 0]


def test_windows_hold_every_token_once(tokenizer_dir, tmp_path):
    piece, t = make(tokenizer_dir, tmp_path, split_long=True)
    found = sequences(piece, t.V)
    whole = t.encode("zinc in mice. " + "it helps. " * 6)[1:-1]
    n = piece.column("windows")[0]
    assert n == 3 and sum((ids[1:-1] for ids in found[:n]), []) == whole
    assert all(len(ids) <= 12 and (ids[0], ids[-1]) == (t.cls_id, t.sep_id) for ids in found)
    assert t.decode(found[0]) == "zinc in mice. it helps. it helps."
    assert piece.column("windows").tolist() == [3, 1] and not piece.column("cut").any()


def test_chunks_follow_one_another(tokenizer_dir, tmp_path, monkeypatch):
    """Tables and signatures of many chunks are those of one."""
    records = [{"id": i, "title": "zinc in mice " * (i % 9 + 1)} for i in range(40)]
    sentences = Sentences.read([write(tmp_path, "zinc in mice " * 7)])
    options = {"records": records, "duplicates": "exact", "sentences": sentences, "length": 64}
    names = ("key", "version", "text", "windows", "cut", "leaks", "names", "counts")
    found = []
    for chunk in (512, 7):
        monkeypatch.setattr(pieces, "CHUNK", chunk)
        (tmp_path / str(chunk)).mkdir()
        piece, t = make(tokenizer_dir, tmp_path / str(chunk), **options)
        found.append([piece.column(name).tolist() for name in names] + sequences(piece, t.V))
    assert found[0] == found[1]
    leaks = piece.leaks
    assert leaks.tolist() == [[6, 7, 8, 15, 16, 17, 24, 25, 26, 33, 34, 35], [0] * 12]
    assert piece.names[15] == "15"


def write(path, text):
    (path / "set.txt").write_text(text)
    return path / "set.txt"


def test_a_block_without_documents_is_a_piece(tokenizer_dir, tmp_path):
    for options in ({}, {"duplicates": "exact", "sentences": Sentences.read([write(tmp_path,
                    "x" * 50)])}):  # fmt: skip
        piece, t = make(tokenizer_dir, tmp_path, RECORDS[1:3], **options)
        assert sequences(piece, t.V) == [] and len(piece.column("key")) == 0


def test_a_damaged_table_is_named(tokenizer_dir, tmp_path):
    piece, _ = make(tokenizer_dir, tmp_path)
    file = tmp_path / "000000.npz"
    whole = file.read_bytes()
    for raw in (whole[:-30], b"", b"x" * 50, whole.replace(b"\x01", b"\x07")):
        file.write_bytes(raw)
        with pytest.raises(InputError, match="000000.npz: .*remove .* and run again"):
            [piece.column(name) for name in ("key", "windows", "cut", "counts")]


@pytest.mark.parametrize("at", [0, 30, 70, -1])
def test_damaged_tokens_are_named(tokenizer_dir, tmp_path, at):
    piece, t = make(tokenizer_dir, tmp_path)
    file = tmp_path / "000000.bin"
    raw = bytearray(file.read_bytes())
    raw[at] ^= 1
    file.write_bytes(raw)
    with pytest.raises(InputError, match="000000.bin: .*remove .* and run again"):
        piece.sequences(t.V)


@settings(derandomize=True, deadline=None, max_examples=200)
@given(
    texts=st.lists(
        st.text(alphabet=st.sampled_from("abz  .!\t\u2003é中\u0301[]SEP"), max_size=80), max_size=5
    ),
    length=st.integers(3, 14),
)
def test_heads_and_windows_are_those_of_the_whole_text(tokenizer_dir, texts, length):
    maker, room = Maker(recipe(tokenizer_dir, length=length)), length - 2
    texts = [*texts, "zinc [SEP] mice " * 9, "it. " * 2 * length]
    whole = maker.tokenizer.encode_words(texts)
    heads, windows = list(maker.heads(texts)), list(maker.windows(texts))
    assert [found for found, _ in heads] == [[ids[:room]] if ids else [] for ids in whole]
    assert [n > 0 for _, n in heads] == [len(ids) > room for ids in whole]
    for text, ids, (found, n_cut) in zip(texts, whole, windows, strict=True):
        sentences = maker.tokenizer.encode_words(sentence_rule.split(text))
        expected = split(sentences, room, maker.is_start) if len(ids) > room else [ids] * bool(ids)
        assert found == expected and sum(found, []) == ids and n_cut == 0


def test_text_beyond_the_cut_is_not_read(tokenizer_dir, monkeypatch):
    maker, read = Maker(recipe(tokenizer_dir, length=12)), []
    encode = maker.tokenizer.encode_words
    monkeypatch.setattr(maker.tokenizer, "encode_words", lambda t: read.append(t) or encode(t))
    dense, sparse = "it " * 100, "unbelievably " * 7  # the latter has one piece a word
    found = list(maker.heads([dense, sparse, "x" * 90]))
    assert [len(text) for text in read[0]] == [59, 51, 90] and read[1:] == [[sparse]]
    # of 100 tokens in 300 characters: 20 in the first 59, so 101.7 in all, of which 10 are kept
    assert found[:2] == [([encode([dense])[0][:10]], 92), ([encode([sparse])[0]], 0)]


def test_a_short_text_of_many_tokens_is_split_between_sentences_too(tokenizer_dir):
    maker = Maker(recipe(tokenizer_dir, length=12))
    text = "a.b. 3.d. 5.f."  # 12 tokens in fewer characters than are split to begin with
    [(windows, _)] = maker.windows([text])
    assert [len(ids) for ids in windows] == [8, 4]


def test_long_texts_are_tokenised_once(tokenizer_dir, monkeypatch):
    maker, read = Maker(recipe(tokenizer_dir, length=12)), []
    encode = maker.tokenizer.encode_words
    monkeypatch.setattr(maker.tokenizer, "encode_words", lambda t: read.append(t) or encode(t))
    list(maker.windows(["It helps. " * 30, "It."]))
    assert read == [["It helps."] * 30 + ["It."]]


# windows


IS_START = [True] * 6 + [False] * 4  # pieces 6 to 9 go on a word


@settings(derandomize=True, deadline=None, max_examples=300)
@given(
    st.lists(st.lists(st.integers(0, 9), max_size=12), max_size=6), st.integers(1, 8)
)  # fmt: skip
def test_windows_are_full_of_whole_sentences(sentences, room):
    windows = split(sentences, room, IS_START)
    assert sum(windows, []) == sum(sentences, [])
    assert all(0 < len(window) <= room for window in windows)
    ends = set(np.cumsum([len(s) for s in sentences]).tolist())
    at = 0
    for window, after in zip(windows, windows[1:], strict=False):
        at += len(window)
        if at in ends:  # between sentences: the next one would not have fitted
            length = next((e for e in sorted(ends) if e > at), at) - at
            assert len(window) + min(length, room + 1) > room
        elif any(IS_START[i] for i in [*window[1:], after[0]]):  # inside one: between words
            assert IS_START[after[0]] or len(window) == room


@pytest.mark.parametrize("is_start", [True, False])
def test_a_document_without_a_sentence_end_is_split_in_linear_time(is_start):
    """Ids counted as they are read: slicing off the rest each time would read n^2 / 2 room."""

    class Ids(list):
        n_copied = 0

        def __getitem__(self, key):
            found = super().__getitem__(key)
            Ids.n_copied += len(found) if isinstance(key, slice) else 1
            return found

    windows = split([Ids([0] * 20_000)], 10, [is_start])
    assert [len(window) for window in windows] == [10] * 2000
    assert Ids.n_copied <= 20_000 * (1 + 1)


def test_a_long_sentence_is_cut_between_words():
    assert split([[1, 6, 7, 2, 8, 3]], 4, IS_START) == [[1, 6, 7], [2, 8, 3]]
    assert split([[1, 6, 7, 8, 9, 3]], 4, IS_START) == [[1, 6, 7, 8], [9, 3]]  # a word of five
    assert split([[1], [2, 3, 4, 5, 0], [1]], 3, IS_START) == [[1], [2, 3, 4], [5, 0, 1]]


# hashes


def test_texts_are_equal_whatever_their_case_and_white_space():
    assert text_hash("Zinc  in\tMICE ") == text_hash("zinc in mice") != text_hash("zinc in mice.")


def test_hashes_are_those_of_yesterday():
    assert (key_hash("12"), text_hash("zinc")) == LITERAL


LITERAL = (7733195345837784852, 11078392020354415102)


def test_the_recipe_changes_with_all_that_pieces_depend_on(tokenizer_dir, tmp_path):
    one = Sentences.read([write(tmp_path, "a" * 50)])
    other = Sentences.read([write(tmp_path, "b" * 50)])
    Tokenizer.train(["Other words"] * 3, 60).save(tmp_path / "t")
    recipes = [
        recipe(tokenizer_dir), recipe(tmp_path / "t"), recipe(tokenizer_dir, length=13),
        recipe(tokenizer_dir, split_long=True), recipe(tokenizer_dir, keep_eval=True),
        recipe(tokenizer_dir, duplicates="exact"), recipe(tokenizer_dir, sentences=one),
        recipe(tokenizer_dir, sentences=other),
    ]  # fmt: skip
    assert len({r.fingerprint for r in recipes}) == len(recipes)
    assert recipe(tokenizer_dir).fingerprint == recipes[0].fingerprint
