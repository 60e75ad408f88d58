"""Named entities (section 5.1): from a TSV of tagged words to a model's tokens, and back.

    The      O                      [CLS] The  BR  ##CA  ##1  gene  [SEP]
    BRCA1    B          pieces  ->         0    1   1    1     2            word of each piece
    gene     O                             O    B   B    B     O            what is learnt
                                           O    B              O            what is read out

Words are cut into word pieces; all pieces of a word learn its tag (F46), and its first piece's
prediction is the word's. No word is ever lost on the way, or the tags behind it would shift (F51,
F52): a word that leaves no piece, such as a lone zero-width space, becomes [UNK]; a sentence longer
than the model is cut between words into several windows and rejoined; of a word longer than the
model the first pieces are read.
"""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn as nn

from minibio.batch import Batch
from minibio.errors import InputError
from minibio.tokenizer import Tokenizer

# IOB2; seqeval reads an I without a B as IOB1 means it, and IOBES's E and S too
TAG = re.compile(r"O|[BIES](-\S+)?")


class Sentence(NamedTuple):
    """Words and their tags, one to one."""

    words: list[str]
    tags: list[str]


class Window(NamedTuple):
    """A sentence as the model reads it, or a part of one too long for it."""

    sentence: int  # which one
    tokens: list[int]  # (T,) [CLS] pieces [SEP]
    words: list[int]  # (T-2,) which word of the sentence each piece belongs to
    tags: list[str]  # (T-2,) the tag of that word


def read_tsv(path: str | Path) -> list[Sentence]:
    """Sentences of a file of `token TAB tag` lines, with blank lines between sentences.

    Where a line has more columns the first is the token, the last the tag. `-DOCSTART-` lines are
    left out, and any number of blank lines is one; CRLF, a byte-order mark and a missing last
    newline make no difference.

    Raises:
        InputError: the file cannot be read, is not UTF-8, lacks a column, has a tag that is none of
            O, B, I, E, S, mixes tags with and without a type, or holds no sentence.
    """
    path = Path(path)
    try:
        lines = path.read_bytes().removeprefix(b"\xef\xbb\xbf").split(b"\n")
    except OSError as error:
        raise InputError(f"{path}: {error.strerror}, expected lines of token TAB tag") from None
    sentences, words, tags = [], [], []
    first = None  # the first tag that is not O
    for number, line in enumerate([*lines, b""], start=1):  # b"" ends the last sentence
        where = f"{path}: line {number}"
        try:
            text = line.decode("utf-8").removesuffix("\r")
        except UnicodeDecodeError as error:
            raise InputError(f"{where}, byte {error.start + 1} is not UTF-8") from None
        if text.strip() and text.split("\t")[0].split(" ")[0] != "-DOCSTART-":
            word, tag = read_line(text, where)
            first = first or (tag if tag != "O" else None)
            if tag != "O" and ("-" in tag) != ("-" in first):
                raise InputError(
                    f"{where} has the tag {tag!r}, expected one like {first!r} above, "
                    "with a type everywhere or nowhere"
                )
            words.append(word)
            tags.append(tag)
        elif words:
            sentences.append(Sentence(words, tags))
            words, tags = [], []
    if not sentences:
        raise InputError(f"{path} holds no sentence, expected lines of token TAB tag")
    return sentences


def read_line(text: str, where: str) -> tuple[str, str]:
    """Token and tag of one line."""
    word, *rest = text.split("\t")
    if not word or not rest:
        raise InputError(f"{where} is {text[:40]!r}, expected token TAB tag")
    tag = rest[-1].strip(" ")
    if not TAG.fullmatch(tag):
        raise InputError(
            f"{where} has the tag {tag[:40]!r}, expected O, B, I, E or S, "
            "the last four with a type (B-protein) or without"
        )
    return word, tag


def label_names(sentences: Sequence[Sentence]) -> tuple[str, ...]:
    """The tags that occur, O first, then in alphabetical order: the same in every run (F50)."""
    return ("O", *sorted({tag for s in sentences for tag in s.tags} - {"O"}))


def make_windows(sentences: Sequence[Sentence], tokenizer: Tokenizer, length: int) -> list[Window]:
    """Sentences as token ids, in order; each word is in exactly one window.

    Args:
        length: tokens of the longest window, [CLS] and [SEP] included; 3 or more.
    """
    room = length - 2
    pieces = iter(tokenizer.encode_words([word for s in sentences for word in s.words]))
    windows = []
    for i, sentence in enumerate(sentences):
        parts = [([], [])]  # pieces, and the word of each
        for w in range(len(sentence.words)):
            ids = (next(pieces) or [tokenizer.unk_id])[:room]
            if len(parts[-1][0]) + len(ids) > room:
                parts.append(([], []))
            parts[-1][0].extend(ids)
            parts[-1][1].extend([w] * len(ids))
        for ids, words in parts:
            tokens = [tokenizer.cls_id, *ids, tokenizer.sep_id]
            windows.append(Window(i, tokens, words, [sentence.tags[w] for w in words]))
    return windows


def collate(windows: Sequence[Window], labels: Sequence[str] | None = None) -> Batch:
    """Windows as one row; `predict` names the places of the M pieces, all but [CLS] and [SEP].

    Args:
        labels: names of the K classes, to fill `Batch.labels` with the pieces' tags; None = leave
            it empty, as for text whose tags nobody knows.
    """
    places, start = [], 0
    for window in windows:
        places.extend(range(start + 1, start + 1 + len(window.words)))
        start += len(window.tokens)
    ids = None
    if labels is not None:
        index = {name: k for k, name in enumerate(labels)}
        ids = [index[tag] for window in windows for tag in window.tags]
    return Batch.from_sequences([w.tokens for w in windows], predict=places, labels=ids)


@torch.no_grad()
def predict(
    model: nn.Module, windows: Sequence[Window], labels: Sequence[str], B: int, device, autocast
) -> list[list[str]]:
    """The likeliest tag of every piece: (T-2,) names a window, in the windows' order.

    Args:
        labels:   names of the K classes.
        B:        windows a batch; the result does not depend on it.
        autocast: makes the context the model runs in.
    """
    model.eval()
    order = sorted(range(len(windows)), key=lambda i: len(windows[i].tokens))
    found = [[] for _ in windows]
    for first in range(0, len(order), B):
        chosen = order[first : first + B]
        batch = collate([windows[i] for i in chosen]).to(device)
        with autocast():
            logits = model(batch).logits[batch.predict]  # (M, K)
        classes = iter(logits.argmax(1).tolist())
        for i in chosen:
            found[i] = [labels[next(classes)] for _ in windows[i].words]
    return found


def rejoin(
    windows: Sequence[Window], tags: Sequence[Sequence[str]]
) -> tuple[list[list[str]], list[list[str]]]:
    """Tags of pieces, window by window -> tags of words and tags of pieces, sentence by sentence.

    A word has its first piece's tag.

    Args:
        windows: all of them, in order.
        tags:    (T-2,) names for each window.
    """
    words, pieces = [], []
    for window, row in zip(windows, tags, strict=True):
        if window.sentence == len(words):  # its first window
            words.append([])
            pieces.append([])
        pieces[-1].extend(row)
        for word, tag in zip(window.words, row, strict=True):
            if word == len(words[-1]):  # its first piece
                words[-1].append(tag)
    return words, pieces
