"""A fine-tuned directory applied to text: an answer for each line of the input, in its order.

    {"id": 7, "text": "...", "entities": [
        {"type": "Disease", "start": 4, "end": 17, "text": "...", "probability": 0.98}]}
    {"text": "...", "label": "INHIBITOR", "probability": 0.98, "first": [3, 7], "second": [10, 18]}
    {"question": "...", "answers": [{"text": "...", "probability": 0.6, "snippet": 0,
     "start": 17, "end": 24}]}

documents.py says what a line may be, formats.py how answers are written otherwise. A blank line is
answered too: by no entities, a null label, no answers. Offsets are characters of the text as it was
given, end one behind the last; a title and an abstract are one text, with a space between them.

    probability  of an entity: the least of its words', each that of the chosen tag among all tags
                 at the word's first piece (softmax)
                 of a relation: the label's, among all labels (softmax); where config.json says
                 multi_label_classification, by itself (sigmoid), and "probabilities" has them all
                 of an answer: as `qa.rank` pools it over snippets

Taggers learn sentences, so a text is cut at sentences (text/sentences.py), and each is a sequence
of its own. One longer than the model is read in windows that overlap by a quarter, and handed from
one to the next where neither has a name. Items are read some hundred at a time and put into batches
by length; a file's size costs no memory.
"""

from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from itertools import chain, groupby, islice, pairwise
from pathlib import Path
from typing import NamedTuple

import torch

from minibio.batch import Batch
from minibio.model.convert import load, read_config
from minibio.model.heads import freeze
from minibio.model.int8 import to_int8
from minibio.model.names import head_of
from minibio.run.dist import Ranks
from minibio.run.errors import InputError
from minibio.run.files import read_json
from minibio.run.precision import autocast, resolve
from minibio.tasks import ner, qa, relation, tags
from minibio.tasks.documents import Document, Item, Pair, Question, Words, read_items
from minibio.tasks.metrics import UNTYPED
from minibio.tasks.reading import Pieces, cut_all, forward
from minibio.text import sentences

PRECISIONS = ("auto", "fp32", "bf16", "int8")
CHUNK = 8  # batches that are read, sorted by length, and answered together
CHARACTERS = 1 << 20  # of documents, after which no more are read for them
TOKENS = {"cpu": 32, "cuda": 128}  # of sentences, for each text of a batch
DIGITS = 4  # of an entity's probability
BLANK = {  # what a blank line gets
    "token": {"text": "", "entities": []},
    "sequence": {"text": "", "label": None},
    "span": {"question": "", "answers": []},
}
RECORDS = {"token": "ner.json", "sequence": "relation.json", "span": "qa.json"}


def settings(record: Path, length: int) -> dict:
    """The settings of a fine-tuning that its answers depend on, from the record beside the model.

    Args:
        length: tokens of a window where there is no record.
    Raises:
        InputError: a setting of another type, or out of its range.
    """
    found = {"length": length, "stride": 128, "order": "pooled", "anonymise": False}
    expected = {
        "length": (lambda x: type(x) is int and x >= 5, "a whole number of 5 or more"),
        "stride": (lambda x: type(x) is int and x >= 1, "a whole number of 1 or more"),
        "order": (lambda x: x in ("pooled", "released"), "pooled or released"),
        "anonymise": (lambda x: isinstance(x, bool), "true or false"),
    }
    config = read_json(record).get("config", {}) if record.exists() else {}
    if not isinstance(config, dict):
        raise InputError(f"{record}: config is {config!r}, expected an object {{...}}")
    for name, (is_right, what) in expected.items():
        found[name] = config.get(name, found[name])
        if not is_right(found[name]):
            raise InputError(f"{record}: config.{name} is {found[name]!r}, expected {what}")
    return found


class Predictor:
    """A model with its head, and how its texts were prepared when it was trained.

    Args:
        path:      a directory of `eval.py ner`, `relation` or `qa`, or any other Hugging Face
                   directory with such a head.
        B:         texts a batch, or `TOKENS` of sentences for each; the answers do not depend on
                   it, but for rounding.
        precision: of the products: auto | fp32 | bf16 (run/precision.py) | int8 (model/int8.py).
        threshold: entities and answers of a lower probability, rounded as it is given, are left
                   out; a relation's label is None there.
        all_labels: whether a relation has the probabilities of all labels.
    Raises:
        InputError: it has another head, a regression's, no tokenizer, or labels that are no tags;
            int8 on a GPU.
    """

    def __init__(
        self,
        path: str | Path,
        B: int = 32,
        device="cpu",
        precision: str = "auto",
        *,
        threshold: float = 0.0,
        all_labels: bool = False,
    ):
        path = Path(path)
        raw, where = read_config(path)
        self.head = head_of(raw, where)
        if self.head not in RECORDS:
            raise InputError(
                f"{where} names {raw.get('architectures')}, expected a model for tokens, sequences "
                f"or questions: a directory of `eval.py ner`, `relation` or `qa`"
            )
        self.model, self.tokenizer = load(path, head=self.head)
        if self.tokenizer is None:
            raise InputError(f"{path} has no tokenizer; put the model's vocab.txt there")
        if self.head == "token":
            self.tags = tags.of_labels(self.model.labels, str(where))
        self.multi_label = False
        if self.head == "sequence":
            kind = raw.get("problem_type")
            self.multi_label = kind == "multi_label_classification"
            if kind == "regression" or (len(self.model.labels) == 1 and not self.multi_label):
                raise InputError(f"{where} is of a regression, expected a classifier of 2 labels")
        self.path, self.threshold = path, threshold
        self.all_labels = all_labels or self.multi_label
        self.device, self.B = torch.device(device), B
        self.model.float().to(self.device)
        if precision == "int8":
            to_int8(self.model.encoder, self.device)
            self.precision, inside = "int8", "fp32"
        else:
            self.precision, _ = resolve(precision, Ranks(0, 0, 1, self.device))
            inside = self.precision
            freeze(self.model, inside, is_packed=True)
        self.context = partial(autocast, inside, self.device)
        found = settings(path / RECORDS[self.head], 384 if self.head == "span" else 512)
        self.length = min(found["length"], self.model.config.P)
        self.stride, self.order, self.anonymise = (
            found[name] for name in ("stride", "order", "anonymise")
        )

    def __call__(self, items: Sequence[Item | None]) -> list[dict]:
        """Answers to items that `read_items` has read, in their order."""
        makers = {
            Document: self.entities,
            Words: self.tags_of_words,
            Pair: self.relations,
            Question: self.answers,
        }
        made = {}
        with self.context():  # keeps what it casts of the weights from one batch to the next
            for kind, make in makers.items():
                chosen = [item for item in items if isinstance(item, kind)]
                made[kind] = iter(make(chosen) if chosen else ())
        return [
            dict(BLANK[self.head]) if item is None else next(made[type(item)]) for item in items
        ]

    def entities(self, items: list[Document]) -> list[dict]:
        """Names in each text."""
        spans, parts = [], []  # of the words of each sentence: characters, pieces
        owners = []  # of each sentence: which item
        cut = cut_all([item.text for item in items], self.tokenizer)
        for i, (item, pieces) in enumerate(zip(items, cut, strict=True)):
            for words, of_words in sentences_of(item, pieces):
                owners.append(i)
                spans.append(words)
                parts.append(of_words)
        found = [[] for _ in items]
        for i, words, (names, p) in zip(owners, spans, self.tag_sentences(parts), strict=True):
            text = items[i].text
            for m in ner.mentions(names, words, p):
                if (probability := round(m.probability, DIGITS)) >= self.threshold:
                    found[i].append(
                        {
                            "type": m.kind or UNTYPED,
                            "start": m.start,
                            "end": m.end,
                            "text": text[m.start : m.end],
                            "probability": probability,
                        }
                    )
        return [
            {**item.given, "text": item.text, "entities": row}
            for item, row in zip(items, found, strict=True)
        ]

    def tags_of_words(self, items: list[Words]) -> list[dict]:
        """The tag of each word of each sentence."""
        pieces = ner.encode_distinct((w for item in items for w in item.words), self.tokenizer)
        parts = [[pieces[word] for word in item.words] for item in items]
        answers = []
        for names, p in self.tag_sentences(parts):
            for _, first, last in tags.entities(names) if self.threshold else ():
                if round(min(p[first : last + 1]), DIGITS) < self.threshold:
                    names[first : last + 1] = ["O"] * (last + 1 - first)
            answers.append({"tags": names})
        return answers

    def tag_sentences(self, parts: list[list[list[int]]]) -> list[tuple[list[str], list[float]]]:
        """The likeliest tag of each word, and its probability, sentence by sentence.

        Args:
            parts: the pieces of each word of each sentence.
        """
        room, rows = self.length - 2, []
        for i, words in enumerate(parts):
            sizes = [min(len(pieces), room) for pieces in words]
            for window in windows(sizes, room):
                row = SentenceWindow(i, window, [self.tokenizer.cls_id], [])
                for w in window:
                    row.places.append(len(row.tokens))
                    row.tokens.extend(words[w][:room])
                row.tokens.append(self.tokenizer.sep_id)
                rows.append(row)
        found = [None] * len(rows)
        batches = forward(
            self.model,
            rows,
            collate,
            len(rows),
            self.device,
            self.context,
            TOKENS[self.device.type] * self.B,
        )
        for chosen, batch, logits in batches:
            p, k = logits[batch.predict].float().softmax(1).max(1)  # (M,) of (M, K)
            tagged = zip((self.tags[x] for x in k.tolist()), p.tolist(), strict=True)
            for i in chosen:
                found[i] = list(islice(tagged, len(rows[i].places)))
        joined = [[] for _ in parts]
        for row, tagged in zip(rows, found, strict=True):
            joined[row.sentence] = join(joined[row.sentence], tagged, row.words.start)
        return [([tag for tag, _ in row], [p for _, p in row]) for row in joined]

    def relations(self, items: list[Pair]) -> list[dict]:
        """The likeliest label of each text."""
        read = [item.example for item in items]
        read = [relation.anonymise(x) for x in read] if self.anonymise else read
        features = relation.make_features(read, self.tokenizer, self.length)
        p = relation.predict(
            self.model, features, self.B, self.device, self.context, self.multi_label
        )  # (n, K)
        best = zip(p.argmax(1).tolist(), p.amax(1).tolist(), strict=True)
        answers = [
            {
                **item.given,
                "text": item.text,
                "label": self.model.labels[k] if round(q, 6) >= self.threshold else None,
                "probability": round(q, 6),
                "first": list(item.spans[0]),
                "second": list(item.spans[1]),
            }
            for item, (k, q) in zip(items, best, strict=True)
        ]
        for answer, row in zip(answers, p.tolist(), strict=True):
            if self.all_labels:
                named = zip(self.model.labels, row, strict=True)
                answer["probabilities"] = {label: round(q, 6) for label, q in named}
        return answers

    def answers(self, items: list[Question]) -> list[dict]:
        """The five best answers to each question."""
        found = []
        for i, item in enumerate(items):
            found += qa.passages_of(item.question, item.snippets, i)
        windows = qa.make_windows(found, self.tokenizer, self.length, self.stride)
        logits = qa.predict(self.model, windows, self.B, self.device, self.context)
        ranked = qa.rank(found, windows, logits, self.order)
        return [
            {
                **item.given,
                "question": item.question,
                "answers": [
                    {
                        "text": a.text,
                        "probability": round(a.probability, 6),
                        "snippet": int(a.passage.rsplit("_", 1)[1]),
                        "start": a.start,
                        "end": a.end,
                    }
                    for a in ranked.get(f"{i:024x}", [])
                    if round(a.probability, 6) >= self.threshold
                ],
            }
            for i, item in enumerate(items)
        ]


# sentences


class SentenceWindow(NamedTuple):
    """A sentence as the model reads it, or a window of one too long for it."""

    sentence: int  # which one
    words: range  # of it
    tokens: list[int]  # (T,) [CLS] pieces [SEP]
    places: list[int]  # (words,) of each word's first piece, in `tokens`


def collate(rows: Sequence[SentenceWindow]) -> Batch:
    """Rows as one; `predict` names the places of the M words' first pieces."""
    places, start = [], 0
    for row in rows:
        places.extend(start + place for place in row.places)
        start += len(row.tokens)
    tokens = list(chain.from_iterable(row.tokens for row in rows))  # (N,)
    return Batch.from_row(tokens, [len(row.tokens) for row in rows], predict=places)


def sentences_of(
    item: Document, pieces: Pieces
) -> Iterator[tuple[list[tuple[int, int]], list[list[int]]]]:
    """For each sentence of a text the characters (start, end) of its words, and their pieces.

    Words are the tokenizer's: runs of letters and digits, and single marks, as the published files
    have them. A title ends a sentence, with a full stop or without.
    """
    text, split = item.text, item.title
    ends = [end for _, end in sentences.spans(text if split is None else text[:split])]
    if split is not None:
        ends += [split + 1 + end for _, end in sentences.spans(text[split + 1 :])]
    starts = [i for i, (a, b) in enumerate(pairwise([-1, *pieces.words])) if a != b]  # of words
    parts = [pieces.ids[a:b] for a, b in pairwise([*starts, len(pieces.ids)])]
    words = zip(pieces.word_spans, parts, strict=True)
    for _, sentence in groupby(words, lambda word: bisect_right(ends, word[0][0])):
        spans, ids = zip(*sentence, strict=True)
        yield list(spans), list(ids)


def windows(sizes: Sequence[int], room: int) -> list[range]:
    """The words of each window of a sentence: as many as fit, the next a quarter back.

    Args:
        sizes: pieces of each word, none more than `room`.
        room:  pieces of a window.
    """
    found, first, end = [], 0, 0
    while first < len(sizes):
        n = 0
        for end in range(first, len(sizes) + 1):
            if end == len(sizes) or n + sizes[end] > room:
                break
            n += sizes[end]
        found.append(range(first, end))
        if end == len(sizes):
            break
        back, after = 0, first + 1
        first = end
        while first > after and back + sizes[first - 1] <= room // 4:
            first -= 1
            back += sizes[first]
    return found


Tagged = list[tuple[str, float]]  # the tag of each word, and its probability


def join(before: Tagged, window: Tagged, start: int) -> Tagged:
    """The tags of a sentence so far, and those of a window whose first word is `start`.

    One hands over to the other within the words that both have, as near to their middle as there is
    a place where no name of either is cut, and none of one touches one of the other.
    """
    middle = (start + len(before)) // 2
    crossed = {
        shift + i
        for shift, row in ((0, before), (start, window))
        for _, first, last in tags.entities([tag for tag, _ in row])
        for i in range(first + 1, last + 1)
    }

    def is_apart(seam: int) -> bool:
        left = before[seam - 1][0] if seam else "O"
        right = window[seam - start][0] if seam - start < len(window) else "O"
        return seam not in crossed and "O" in (left, right)

    seams = filter(is_apart, range(start, len(before) + 1))
    seam = min(seams, key=lambda x: abs(x - middle), default=middle)
    return before[:seam] + window[seam - start :]


# all together


def predict(
    predictor: Predictor,
    path: str | Path,
    is_json: bool = False,
    seen: Callable[[int], None] | None = None,
) -> Iterator[tuple[Item | None, dict]]:
    """The items of an input ("-": standard input) and their answers, in order, as they come.

    Args:
        is_json, seen: as for `read_items`.
    Raises:
        InputError: a line cannot be read; what came before it has been answered.
    """
    items = read_items(path, predictor.head, is_json, seen)
    for chunk in in_chunks(items, CHUNK * predictor.B):
        yield from zip(chunk, predictor(chunk), strict=True)


def in_chunks(items: Iterable[Item | None], n: int) -> Iterator[list[Item | None]]:
    """Lists of n items, or of `CHARACTERS`; an error comes behind what came before it."""
    chunk, size = [], 0
    try:
        for item in items:
            chunk.append(item)
            size += len(getattr(item, "text", ""))
            if len(chunk) == n or size >= CHARACTERS:
                yield chunk
                chunk, size = [], 0
    except InputError:
        if chunk:
            yield chunk
        raise
    if chunk:
        yield chunk
