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

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

import torch.nn as nn

from minibio.batch import Batch
from minibio.config import Recipe
from minibio.model.heads import Model
from minibio.run.dist import print0
from minibio.run.errors import InputError
from minibio.run.files import staged_file
from minibio.tasks import tags as schemes
from minibio.tasks.finetune import Task, fingerprint
from minibio.tasks.metrics import entity_scores
from minibio.tasks.reading import cut, forward, read_lines
from minibio.text.tokenizer import Tokenizer

EXPECTED = "lines of token TAB tag"
CHUNK = 8192  # words given to the tokenizer at a time


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


class Mention(NamedTuple):
    """A name found in a text: characters start .. end-1 of it."""

    kind: str  # "" where the labels carry no type
    start: int
    end: int


# reading


def read_tsv(path: str | Path, scheme: str | None = None) -> list[Sentence]:
    """Sentences of a file of `token TAB tag` lines, with blank lines between sentences.

    Where a line has more columns the first is the token, the last the tag. `-DOCSTART-` lines are
    left out, and any number of blank lines is one; CRLF, a byte-order mark and a missing last
    newline make no difference. The tags stay as they are.

    Args:
        scheme: None = IOB1, IOB2, IOBES or a mixture: an I without a B opens an entity. One of
            these names = every tag must be as this scheme writes it.
    Raises:
        InputError: the file cannot be read, is not UTF-8, lacks a column, has a tag that is none of
            O, B, I, E, S, mixes tags with and without a type, breaks `scheme`, or holds no
            sentence.
    """
    if scheme not in (None, *schemes.SCHEMES):
        raise InputError(f"scheme is {scheme!r}, expected one of {', '.join(schemes.SCHEMES)}")
    sentences, current = [], Sentence([], [])
    like = None  # the first tag that is not O
    number = 0
    for number, text in read_lines(path, EXPECTED):
        if text.strip() and text.split("\t")[0].split(" ")[0] != "-DOCSTART-":
            word, tag = read_line(text, path, number)
            like = like or (tag if tag != "O" else None)
            if tag != "O" and ("-" in tag) != ("-" in like):
                raise InputError(
                    f"{path}: line {number} has the tag {tag!r}, expected one like {like!r} above, "
                    "with a type everywhere or nowhere"
                )
            current.words.append(word)
            current.tags.append(tag)
        elif current.words:
            check_scheme(current, scheme, path, number)
            sentences.append(current)
            current = Sentence([], [])
    if current.words:  # no blank line behind the last
        check_scheme(current, scheme, path, number + 1)
        sentences.append(current)
    if not sentences:
        raise InputError(f"{path} holds no sentence, expected {EXPECTED}")
    if all(word.isdecimal() for s in sentences for word in s.words):
        raise InputError(f"{path}: the first column has only numbers, expected {EXPECTED}")
    return sentences


def read_line(text: str, path, number: int) -> tuple[str, str]:
    """Token and tag of one line."""
    word, *rest = text.split("\t")
    if not word or not rest:
        raise InputError(f"{path}: line {number} is {text[:40]!r}, expected token TAB tag")
    tag = rest[-1].strip(" ")
    if not schemes.TAG.fullmatch(tag):
        raise InputError(
            f"{path}: line {number} has the tag {tag[:40]!r}, expected O, B, I, E or S, "
            "the last four with a type (B-protein) or without"
        )
    return word, tag


def check_scheme(sentence: Sentence, scheme: str | None, path, behind: int) -> None:
    """Refuse a sentence, which ends before line `behind`, that breaks the scheme."""
    fault = scheme and schemes.fault(sentence.tags, scheme)
    if fault:
        i, right = fault
        raise InputError(
            f"{path}: line {behind - len(sentence.tags) + i} has the tag {sentence.tags[i]!r} "
            f"where {scheme} has {right!r}; mend it, or let the scheme be detected"
        )


def read_sets(
    directory: str | Path, scheme: str | None = None
) -> tuple[dict[str, list[Sentence]], str, int]:
    """train, test and, where there is one, devel (or dev), all with tags of one scheme.

    Args:
        scheme: what the tags are rewritten to; None = the scheme that most of train keeps. The
            entities stay what they are.
    Returns:
        the sets, the scheme that train keeps, and how many sentences of train did not keep it.
    Raises:
        InputError: a file is missing or damaged, train holds no entity, or the tags of one file
            carry types and those of another do not.
    """
    directory = Path(directory)
    names = ["train", "test"]
    found = [x for x in ("devel", "dev") if (directory / f"{x}.tsv").exists()]
    if found:
        names.insert(1, "devel")
    stems = {name: found[0] if name == "devel" else name for name in names}
    sets = {name: read_tsv(directory / f"{stem}.tsv") for name, stem in stems.items()}
    like = {name: next((t for t in label_names(x) if t != "O"), None) for name, x in sets.items()}
    if like["train"] is None:
        raise InputError(f"{directory / 'train.tsv'} tags no entity, so there is nothing to learn")
    for name, tag in like.items():
        if tag is not None and ("-" in tag) != ("-" in like["train"]):
            raise InputError(
                f"{directory / name}.tsv has the tag {tag!r}, train.tsv {like['train']!r}: "
                "expected types in both or in neither"
            )
    found, broken = schemes.detect(s.tags for s in sets["train"])
    scheme = scheme or found
    return {name: in_scheme(x, scheme) for name, x in sets.items()}, found, broken


def in_scheme(sentences: Iterable[Sentence], scheme: str) -> list[Sentence]:
    """The same entities with the tags of another scheme: what a model is to learn, or a file."""
    return [
        Sentence(s.words, schemes.write(schemes.entities(s.tags), len(s.tags), scheme))
        for s in sentences
    ]


def label_names(sentences: Sequence[Sentence]) -> tuple[str, ...]:
    """The tags that occur, O first, then in alphabetical order: the same in every run (F50)."""
    return ("O", *sorted({tag for s in sentences for tag in s.tags} - {"O"}))


# words to pieces


def make_windows(sentences: Sequence[Sentence], tokenizer: Tokenizer, length: int) -> list[Window]:
    """Sentences as token ids, in order; each word is in exactly one window.

    Args:
        length: tokens of the longest window, [CLS] and [SEP] included; 3 or more.
    """
    room = length - 2
    pieces = encode_distinct((word for s in sentences for word in s.words), tokenizer)
    windows = []
    for i, sentence in enumerate(sentences):
        parts = [([], [])]  # pieces, and the word of each
        for w, word in enumerate(sentence.words):
            ids = pieces[word][:room]
            if len(parts[-1][0]) + len(ids) > room:
                parts.append(([], []))
            parts[-1][0].extend(ids)
            parts[-1][1].extend([w] * len(ids))
        for ids, words in parts:
            tokens = [tokenizer.cls_id, *ids, tokenizer.sep_id]
            windows.append(Window(i, tokens, words, [sentence.tags[w] for w in words]))
    return windows


def encode_distinct(words: Iterable[str], tokenizer: Tokenizer) -> dict[str, list[int]]:
    """The pieces of every word, each word cut once; [UNK] for one that leaves no piece."""
    distinct = list(dict.fromkeys(words))
    pieces = {}
    for first in range(0, len(distinct), CHUNK):
        chunk = distinct[first : first + CHUNK]
        for word, ids in zip(chunk, tokenizer.encode_words(chunk), strict=True):
            pieces[word] = ids or [tokenizer.unk_id]
    return pieces


def collate(windows: Sequence[Window], labels: Sequence[str] | None = None) -> Batch:
    """Windows as one row; `predict` names the places of the M pieces, all but [CLS] and [SEP].

    Args:
        labels: names of the K classes, to fill `Batch.labels` with the pieces' tags, -100 (left
            out of the loss) for a tag that is none of them; None = leave it empty, as for text
            whose tags are unknown.
    """
    places, start = [], 0
    for window in windows:
        places.extend(range(start + 1, start + 1 + len(window.words)))
        start += len(window.tokens)
    ids = None
    if labels is not None:
        index = {name: k for k, name in enumerate(labels)}
        ids = [index.get(tag, -100) for window in windows for tag in window.tags]
    return Batch.from_sequences([w.tokens for w in windows], predict=places, labels=ids)


# pieces to words


def predict(
    model: nn.Module, windows: Sequence[Window], labels: Sequence[str], B: int, device, autocast
) -> list[list[str]]:
    """The likeliest tag of every piece: (T-2,) names a window, in the windows' order.

    Args:
        labels:   names of the K classes.
        B:        windows a batch; the result does not depend on it.
        autocast: makes the context the model runs in.
    """
    found = [[] for _ in windows]
    for chosen, batch, logits in forward(model, windows, collate, B, device, autocast):
        classes = iter(logits[batch.predict].argmax(1).tolist())  # of (M, K)
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


def score(sentences: Sequence[Sentence], windows: Sequence[Window], found) -> dict:
    """Entity scores over words, and over pieces as the released code counts (F45).

    Args:
        found: the tags of all pieces, as `predict` returns them.
    """
    words, pieces = rejoin(windows, found)
    _, gold_pieces = rejoin(windows, [window.tags for window in windows])
    return {
        "word": entity_scores([s.tags for s in sentences], words),
        "piece": entity_scores(gold_pieces, pieces),
    }


# out


def write_conll(
    path: str | Path, sentences: Sequence[Sentence], predicted: Sequence[Sequence[str]]
) -> None:
    """A file for conlleval: `word gold predicted` lines, a blank line behind each sentence.

    conlleval splits at spaces and takes the word -X- for a boundary, so that white space within a
    word becomes an underscore, and -X- becomes -X_.

    Args:
        predicted: the tags of the words, as `rejoin` returns them.
    """
    with staged_file(path) as staged, open(staged, "w", encoding="utf-8", newline="\n") as file:
        for sentence, found in zip(sentences, predicted, strict=True):
            for word, gold, tag in zip(sentence.words, sentence.tags, found, strict=True):
                word = "".join("_" if char.isspace() else char for char in word)
                file.write(f"{'-X_' if word == '-X-' else word} {gold} {tag}\n")
            file.write("\n")


# text without tags


def sentence_of(text: str, tokenizer: Tokenizer) -> tuple[Sentence, list[tuple[int, int]]]:
    """A text as a sentence for `make_windows`, and the characters (start, end) of each word.

    Words are the tokenizer's: runs of letters and digits, and single marks, as the published files
    have them. A text of white space has no word, and its window no piece.
    """
    spans = cut(text, tokenizer).word_spans
    return Sentence([text[a:b] for a, b in spans], ["O"] * len(spans)), spans


def mentions(tags: Sequence[str], spans: Sequence[tuple[int, int]]) -> list[Mention]:
    """The names in a text from the tags of its words.

    Names of one type that touch, with no character between, are one: sets like JNLPBA take "IL-2"
    for a word, and all three pieces of it learn B (F46).

    Args:
        tags, spans: of the words, one to one.
    """
    found = []
    for kind, first, last in schemes.entities(tags):
        start, end = spans[first][0], spans[last][1]
        if found and (found[-1].kind, found[-1].end) == (kind, start):
            start = found.pop().start
        found.append(Mention(kind, start, end))
    return found


# the task


class NerTask(Task):
    """Entities of a directory of TSV files.

    Args:
        scheme: the tags that are learnt; None = the scheme of train.tsv.
    Raises:
        InputError: the sets are not as `read_sets` wants them.
    """

    name, head = "ner", "token"

    def __init__(self, directory: Path, scheme: str | None = None):
        self.data, self.scheme = directory.resolve().name, scheme
        self.sets, self.found, broken = read_sets(directory, scheme)
        self.has_devel = "devel" in self.sets
        print0(
            f"{directory}: tags in {self.found}" + f", {broken} sentences otherwise" * bool(broken)
        )
        labels = label_names(self.sets["train"])
        for name, sentences in self.sets.items():
            new = sorted(set(label_names(sentences)) - set(labels))
            if new:
                print0(f"{name}.tsv has tags that train.tsv lacks, which count as missed: {new}")

    def prepare(self, tokenizer: Tokenizer, recipe: Recipe) -> None:
        self.check_length(recipe, 3, "[CLS], a piece, [SEP]")
        self.recipe, self.labels = recipe, label_names(self.sets["train"])
        self.windows = {
            name: make_windows(sentences, tokenizer, recipe.length)
            for name, sentences in self.sets.items()
        }
        self.examples = self.windows["train"]
        self.lengths = [len(w.tokens) for w in self.examples]
        counts = {
            name: {
                "sentences": len(sentences),
                "words": sum(len(s.words) for s in sentences),
                "windows": len(self.windows[name]),
                "pieces": sum(len(w.words) for w in self.windows[name]),
            }
            for name, sentences in self.sets.items()
        }
        self.facts = {
            "data": self.data,
            "scheme": self.scheme or self.found,
            "counts": counts,
            "data_is": fingerprint(self.sets),
        }

    def collate(self, examples: Sequence[Window]) -> Batch:
        return collate(examples, self.labels)

    def predict(self, name: str, model: Model) -> list[list[str]]:
        """The tags of all pieces of the set `name`."""
        return predict(model, self.windows[name], self.labels, *self.inference(model))

    def test(self, model: Model, out: Path) -> dict:
        found = self.predict("test", model)
        words, _ = rejoin(self.windows["test"], found)
        write_conll(out / "test.conll", self.sets["test"], words)
        return score(self.sets["test"], self.windows["test"], found)

    def devel(self, model: Model) -> float:
        found = self.predict("devel", model)
        return score(self.sets["devel"], self.windows["devel"], found)["word"]["f1"]
