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
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

import torch.nn as nn

from minibio.batch import Batch
from minibio.config import Recipe
from minibio.model.heads import Model
from minibio.run import fingerprint
from minibio.run.dist import print0
from minibio.run.errors import InputError
from minibio.run.files import real, staged_file
from minibio.tasks import tags as schemes
from minibio.tasks.finetune import SETS, Task
from minibio.tasks.metrics import UNTYPED, entity_scores, only_answer
from minibio.tasks.reading import forward, read_lines
from minibio.text.tokenizer import Tokenizer

EXPECTED = "lines of token TAB tag"
BOUNDARY = re.compile(r"-DOCSTART-([ \t]|$)|###MEDLINE:\d+\s*$")  # of documents
CHUNK = 8192  # words given to the tokenizer at a time
LINE_ENDS = "expected lines that end in LF or CRLF"
LONGEST = 1000  # words of a sentence, in a file that has a single one


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
    probability: float = 1.0  # the least of its words'


# reading


def read_tsv(
    path: str | Path, scheme: str | None = None, columns: Sequence[str] | None = None
) -> list[Sentence]:
    """Sentences of a file of `token TAB tag` lines, or of CoNLL's columns apart by spaces.

    Blank lines are between sentences, any number of them, and lines of -DOCSTART- or ###MEDLINE:
    are like them; CRLF, a byte-order mark and a missing last newline make no difference.

    Args:
        scheme:  None = IOB1, IOB2, IOBES or a mixture, whose tags stay as they are: an I without a
                 B opens an entity. BILOU, BMES and tags such as Disease-B are rewritten, in the
                 letters of IOBES. A name of `tags.SCHEMES` = every tag must be as it writes it.
        columns: the names of all columns, "word" and "tag" once, "_" for any other; None = the
                 first is the word and the last the tag, which is printed unless the file has two,
                 apart by a tab.
    Raises:
        InputError: the file cannot be read, is not UTF-8, a line has more or fewer columns than the
            first, a tag is of no known scheme, tags are with and without a type, one breaks
            `scheme`, words are only numbers, or there is no sentence.
    """
    return read_tagged(path, scheme, columns)[0]


def read_tagged(
    path: str | Path, scheme: str | None = None, columns: Sequence[str] | None = None
) -> tuple[list[Sentence], str | None]:
    """`read_tsv`, and the name in `tags.LETTER_SETS` of tags that were rewritten; else None."""
    if scheme not in (None, *schemes.SCHEMES):
        raise InputError(f"scheme is {scheme!r}, expected one of {', '.join(schemes.SCHEMES)}")
    sentences, starts = [], []  # and the number of each one's first line
    layout, is_open = None, False
    for number, text in read_lines(path, EXPECTED):
        if not text.strip() or BOUNDARY.match(text):
            is_open = False
            continue
        layout = layout or Layout.of(text, columns, path, number)
        if not is_open:
            sentences.append(Sentence([], []))
            starts.append(number)
            is_open = True
        word, tag = layout.read(text, path, number)
        sentences[-1].words.append(word)
        sentences[-1].tags.append(tag)
    if not sentences:
        raise InputError(f"{path} holds no sentence, expected {EXPECTED}")
    sentences, name = with_known_tags(sentences, starts, scheme, layout, path)
    if all(word.isdecimal() for s in sentences for word in s.words):
        column = f"column {layout.word + 1}" if layout.word else "the first column"
        raise InputError(f"{path}: {column} has only numbers, expected {EXPECTED}{layout.hint}")
    if not layout.is_plain:
        print0(f"{path}: {layout}")
    return sentences, name


class Layout(NamedTuple):
    """The columns of a file, as its first line has them."""

    by_tabs: bool  # else by any number of spaces
    n: int
    word: int  # which column, from 0
    tag: int
    first: int  # number of the line that has them

    @staticmethod
    def of(text: str, columns: Sequence[str] | None, path, number: int) -> "Layout":
        """That of a file with this line; with names for its columns, or by guess."""
        by_tabs = "\t" in text
        n = len(split(text, by_tabs))
        if "\r" in text:
            raise InputError(f"{path}: line {number} has a carriage return in it; {LINE_ENDS}")
        if n == 1:
            raise InputError(f"{path}: line {number} is {text[:40]!r}, expected token TAB tag")
        if columns is None:
            return Layout(by_tabs, n, 0, n - 1, number)
        if len(columns) != n:
            raise InputError(
                f"{path}: line {number} is {text[:40]!r}, of {n} columns, "
                f"expected {len(columns)}: {','.join(columns)}"
            )
        return Layout(by_tabs, n, columns.index("word"), columns.index("tag"), number)

    @property
    def is_plain(self) -> bool:
        """Whether it is token TAB tag."""
        return self.by_tabs and (self.n, self.word) == (2, 0)

    @property
    def hint(self) -> str:
        """Advice for the end of a message: how to name columns that are others."""
        return "" if self.is_plain else f" ({self}; --columns names them: word,_,tag)"

    def __str__(self) -> str:
        by = "tabs" if self.by_tabs else "spaces"
        return (
            f"{self.n} columns apart by {by}: word from column {self.word + 1}, "
            f"tag from column {self.tag + 1}"
        )

    def read(self, text: str, path, number: int) -> tuple[str, str]:
        """Word and tag of a line."""
        cells = split(text, self.by_tabs)
        if len(cells) != self.n or not cells[self.word]:
            by = "tabs" if self.by_tabs else "spaces"
            columns = f"{self.n} columns apart by {by}, as line {self.first} has"
            expected = "token TAB tag" if self.is_plain else columns
            raise InputError(f"{path}: line {number} is {text[:40]!r}, expected {expected}")
        return cells[self.word], cells[self.tag].strip(" ")


def split(text: str, by_tabs: bool) -> list[str]:
    """The columns of a line. Other white space, such as a no-break space, is part of a word."""
    return text.split("\t") if by_tabs else re.split("[ \t]+", text.strip(" \t"))


def with_known_tags(
    sentences: list[Sentence], starts: Sequence[int], scheme: str | None, layout: Layout, path
) -> tuple[list[Sentence], str | None]:
    """The sentences with tags of O, B, I, E and S, and the name of the letters they had, if others.

    Args:
        starts: number of the first line of each.
    Raises:
        InputError: a tag is of no known scheme, breaks `scheme`, or has a type where others do not.
    """
    distinct = dict.fromkeys(tag for s in sentences for tag in s.tags)
    like = next((tag for tag in distinct if tag != "O"), "O")
    unknown = {tag for tag in distinct if not schemes.TAG.fullmatch(tag)}
    if unknown and scheme is None and (meaning := schemes.of_file(distinct)):
        tags, name = meaning
        return [Sentence(s.words, [tags[tag] for tag in s.tags]) for s in sentences], name
    if unknown:
        number, tag = first_line(unknown, sentences, starts)
        raise InputError(
            f"{path}: line {number} has the tag {tag[:40]!r}, expected O, B, I, E or S, "
            f"the last four with a type (B-protein) or without{layout.hint}"
        )
    unlike = {tag for tag in distinct if tag != "O" and ("-" in tag) != ("-" in like)}
    if unlike:
        number, tag = first_line(unlike, sentences, starts)
        raise InputError(
            f"{path}: line {number} has the tag {tag!r}, expected one like {like!r} above, "
            "with a type everywhere or nowhere"
        )
    for number, sentence in zip(starts, sentences, strict=True) if scheme else ():
        if fault := schemes.fault(sentence.tags, scheme):
            i, right = fault
            raise InputError(
                f"{path}: line {number + i} has the tag {sentence.tags[i]!r} "
                f"where {scheme} has {right!r}; mend it, or let the scheme be detected"
            )
    return sentences, None


def first_line(wanted: set[str], sentences, starts: Sequence[int]) -> tuple[int, str]:
    """Number and tag of the first line with one of the tags."""
    return next(
        (number + i, tag)
        for number, sentence in zip(starts, sentences, strict=True)
        for i, tag in enumerate(sentence.tags)
        if tag in wanted
    )


def read_sets(
    directory: str | Path, scheme: str | None = None, columns: Sequence[str] | None = None
) -> tuple[dict[str, list[Sentence]], str, int, str]:
    """train, test and, where there is one, devel (or dev), all with tags of one scheme.

    Args:
        scheme: what the tags are rewritten to; None = the scheme that most of train keeps. The
            entities stay what they are.
        columns: of the files, as for `read_tsv`.
    Returns:
        the sets, the scheme that train keeps, how many sentences of train did not keep it, and the
        scheme's name as train writes it: BILOU and BMES are kept as IOBES.
    Raises:
        InputError: a file is missing or damaged, has no blank line between sentences, train holds
            no entity, or the tags of one file carry types and those of another do not.
    """
    directory = Path(directory)
    names = ["train", "test"]
    found = [x for x in ("devel", "dev") if (directory / f"{x}.tsv").exists()]
    if found:
        names.insert(1, "devel")
    stems = {name: found[0] if name == "devel" else name for name in names}
    sets, written = {}, {}
    for name, stem in stems.items():
        path = directory / f"{stem}.tsv"
        sets[name], written[name] = read_tagged(path, columns=columns)
        if len(sets[name]) == 1 and len(sets[name][0].words) > LONGEST:
            raise InputError(
                f"{path} has no blank line: one sentence of {len(sets[name][0].words):,} words; "
                "put a blank line behind each sentence"
            )
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
    sets = {name: in_scheme(x, scheme or found) for name, x in sets.items()}
    has_own = found == "IOBES" and written["train"] in schemes.LETTER_SETS
    return sets, found, broken, written["train"] if has_own else found


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
    Returns:
        {"word", "piece": of `entity_scores`, "only_answer": the tag of every word, if all have one}
    """
    words, pieces = rejoin(windows, found)
    _, gold_pieces = rejoin(windows, [window.tags for window in windows])
    return {
        "word": entity_scores([s.tags for s in sentences], words),
        "piece": entity_scores(gold_pieces, pieces),
        "only_answer": only_answer(tag for row in words for tag in row),
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


def mentions(
    tags: Sequence[str], spans: Sequence[tuple[int, int]], p: Sequence[float] | None = None
) -> list[Mention]:
    """The names in a text from the tags of its words.

    Names of one type that touch, with no character between, are one: sets like JNLPBA take "IL-2"
    for a word, and all three pieces of it learn B (F46).

    Args:
        tags, spans, p: of the words, one to one; p the probability of each tag, None = 1.
    """
    p, found = p or [1.0] * len(tags), []
    for kind, first, last in schemes.entities(tags):
        start, end, least = spans[first][0], spans[last][1], min(p[first : last + 1])
        if found and (found[-1].kind, found[-1].end) == (kind, start):
            before = found.pop()
            start, least = before.start, min(least, before.probability)
        found.append(Mention(kind, start, end, least))
    return found


# the task


class NerTask(Task):
    """Entities of a directory of TSV files.

    Args:
        scheme:  the tags that are learnt; None = the scheme of train.tsv.
        columns: of the files, as for `read_tsv`.
        kind:    the type of entities in files whose tags have none; None = `UNTYPED`.
    Raises:
        InputError: the sets are not as `read_sets` wants them; `kind` is given and tags have types.
    """

    name, head = "ner", "token"

    def __init__(
        self,
        directory: Path,
        scheme: str | None = None,
        columns: Sequence[str] | None = None,
        kind: str | None = None,
    ):
        self.data, self.scheme, self.kind = real(directory).name, scheme, kind or UNTYPED
        sets, self.found, broken, written = read_sets(directory, scheme, columns)
        self.data_is = fingerprint.of_value((sets,))
        is_typed = any("-" in tag for tag in label_names(sets["train"]))
        if kind and is_typed:
            raise InputError(f"--type {kind}: the tags of {directory} have types of their own")
        self.sets = {
            name: [Sentence(s.words, list(self.labels_as_here(s.tags))) for s in sentences]
            for name, sentences in sets.items()
        }
        learnt = f", learnt as {scheme or self.found}" * (written != self.found)
        self.has_devel = "devel" in self.sets
        print0(
            f"{directory}: tags in {written}"
            + f", {broken} sentences otherwise" * bool(broken)
            + learnt
        )
        labels = label_names(self.sets["train"])
        for name, sentences in self.sets.items():
            new = sorted(set(label_names(sentences)) - set(labels))
            if new:
                print0(f"{name}.tsv has tags that train.tsv lacks, which count as missed: {new}")

    def labels_as_here(self, labels: Sequence[str]) -> tuple[str, ...]:
        """Tags, those of B and I as B-entity and I-entity: transformers takes B for a type."""
        return tuple(x if x == "O" or "-" in x else f"{x}-{self.kind}" for x in labels)

    def prepare(self, tokenizer: Tokenizer, recipe: Recipe) -> None:
        self.check_length(recipe, 3, "[CLS], a piece, [SEP]")
        self.recipe, self.labels = recipe, label_names(self.sets["train"])
        self.describe()
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
            "data_is": self.data_is,
        }

    def describe(self) -> None:
        """Print the sets."""
        sizes, kinds = [], Counter()
        for name in sorted(self.sets, key=SETS.index):
            found = [e.kind for s in self.sets[name] for e in schemes.entities(s.tags)]
            sizes.append(f"{name} {len(self.sets[name]):,} with {len(found):,} entities")
            kinds.update(found if name == "train" else ())
        types = ", ".join(f"{kind}: {n:,}" for kind, n in kinds.most_common())
        texts = {name: [" ".join(s.words) for s in x] for name, x in self.sets.items()}
        counts = f"sentences: {', '.join(sizes)}; types of train: {types}"
        self.print_sets(counts, texts, "sentences")

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
