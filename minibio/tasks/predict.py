"""A fine-tuned directory applied to text: a line in, a line of JSON out, in the same order.

    head       a line of text                        a line of JSON (--json)
    token      any text                              text
    sequence   a text that marks two entities        text; and first, second: [start, end] each
    span       question TAB snippet TAB snippet ...  question, snippets

    {"text": "...", "entities": [{"type": "Disease", "start": 4, "end": 17, "text": "..."}]}
    {"text": "...", "label": "INHIBITOR", "probability": 0.98, "first": [3, 7], "second": [10, 18]}
    {"question": "...", "answers": [{"text": "...", "probability": 0.6, "snippet": 0,
     "start": 17, "end": 24}]}

A blank line is answered too: by no entities, a null label, no answers. Offsets are characters of
the text as it was given, end one behind the last. An "id" of a JSON line is handed on. A model
whose config.json says multi_label_classification has a sigmoid for each label: "label" is the
likeliest, and "probabilities" has them all. Lines are read a few at a time, so that a file's size
costs no memory.
"""

import json
from collections.abc import Iterable, Iterator
from functools import partial
from pathlib import Path

import torch

from minibio.model.convert import load, read_config
from minibio.model.int8 import to_int8
from minibio.model.names import head_of
from minibio.run.dist import Ranks
from minibio.run.errors import InputError
from minibio.run.files import read_json
from minibio.run.precision import autocast, resolve
from minibio.tasks import ner, qa, relation, tags
from minibio.tasks.metrics import UNTYPED
from minibio.tasks.reading import HALF, json_object, name_of, read_lines

PRECISIONS = ("auto", "fp32", "bf16", "int8")
CHUNK = 8  # batches that are read, sorted by length, and answered together
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
        B:         texts a batch; the answers do not depend on it, but for rounding.
        precision: of the products: auto | fp32 | bf16 (run/precision.py) | int8 (model/int8.py).
    Raises:
        InputError: it has another head, a regression's, no tokenizer, or labels that are no tags;
            int8 on a GPU.
    """

    def __init__(self, path: Path, B: int = 32, device="cpu", precision: str = "auto"):
        raw, where = read_config(path)
        self.head = head_of(raw)
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
        self.device, self.B = torch.device(device), B
        self.model.to(self.device)
        if precision == "int8":
            self.model.encoder = to_int8(self.model.encoder, self.device)
            self.precision, inside = "int8", "fp32"
        else:
            self.precision, _ = resolve(precision, Ranks(0, 0, 1, self.device))
            inside = self.precision
        self.context = partial(autocast, inside, self.device)
        found = settings(path / RECORDS[self.head], 384 if self.head == "span" else 512)
        self.length = min(found["length"], self.model.config.P)
        self.stride, self.order, self.anonymise = (
            found[name] for name in ("stride", "order", "anonymise")
        )

    def __call__(self, items: list[dict]) -> list[dict]:
        """Answers to lines that `parse` has read, in their order."""
        answer = {"token": self.entities, "sequence": self.relations, "span": self.answers}
        found = iter(answer[self.head]([item for item in items if item]))
        return [
            ({"id": item["id"]} if "id" in item else {}) | next(found)
            if item
            else dict(BLANK[self.head])
            for item in items
        ]

    def entities(self, items: list[dict]) -> list[dict]:
        """Names in each text."""
        cut = [ner.sentence_of(item["text"], self.tokenizer) for item in items]
        windows = ner.make_windows([s for s, _ in cut], self.tokenizer, self.length)
        found = ner.predict(self.model, windows, self.tags, self.B, self.device, self.context)
        words, _ = ner.rejoin(windows, found)
        return [
            {
                "text": text,
                "entities": [
                    {
                        "type": m.kind or UNTYPED,
                        "start": m.start,
                        "end": m.end,
                        "text": text[m.start : m.end],
                    }
                    for m in ner.mentions(row, spans)
                ],
            }
            for text, (_, spans), row in zip((x["text"] for x in items), cut, words, strict=True)
        ]

    def relations(self, items: list[dict]) -> list[dict]:
        """The likeliest label of each text."""
        read = [item["example"] for item in items]
        read = [relation.anonymise(x) for x in read] if self.anonymise else read
        features = relation.make_features(read, self.tokenizer, self.length)
        p = relation.predict(
            self.model, features, self.B, self.device, self.context, self.multi_label
        )  # (n, K)
        best = zip(p.argmax(1).tolist(), p.amax(1).tolist(), strict=True)
        answers = [
            {
                "text": item["text"],
                "label": self.model.labels[k],
                "probability": round(q, 6),
                "first": list(item["spans"][0]),
                "second": list(item["spans"][1]),
            }
            for item, (k, q) in zip(items, best, strict=True)
        ]
        for answer, row in zip(answers, p.tolist(), strict=self.multi_label):
            if self.multi_label:
                named = zip(self.model.labels, row, strict=True)
                answer["probabilities"] = {label: round(q, 6) for label, q in named}
        return answers

    def answers(self, items: list[dict]) -> list[dict]:
        """The five best answers to each question."""
        found = []
        for i, item in enumerate(items):
            found += qa.passages_of(item["question"], item["snippets"], i)
        windows = qa.make_windows(found, self.tokenizer, self.length, self.stride)
        logits = qa.predict(self.model, windows, self.B, self.device, self.context)
        ranked = qa.rank(found, windows, logits, self.order)
        return [
            {
                "question": item["question"],
                "answers": [
                    {
                        "text": a.text,
                        "probability": round(a.probability, 6),
                        "snippet": int(a.passage.rsplit("_", 1)[1]),
                        "start": a.start,
                        "end": a.end,
                    }
                    for a in ranked.get(f"{i:024x}", [])
                ],
            }
            for i, item in enumerate(items)
        ]


# lines in


def parse(line: str, where: str, head: str, is_json: bool) -> dict:
    """One line as what `Predictor` takes, {} for a blank one; `where` begins a complaint."""
    if not line.strip() and (is_json or head != "token"):
        return {}
    item = from_json(line, where) if is_json else {}
    if head == "span":
        if not is_json:
            item["question"], *item["snippets"] = line.split("\t")
        question, snippets = item.get("question"), item.get("snippets")
        is_list = isinstance(snippets, list) and snippets
        if not isinstance(question, str) or not is_list or not all_text(snippets):
            form = 'a "question" and a list "snippets"' if is_json else "question TAB snippet"
            raise InputError(f"{where} is {line[:40]!r}, expected {form}")
        return item
    text = item.get("text") if is_json else line
    if not isinstance(text, str):
        raise InputError(f"{where} is {line[:40]!r}, expected a text")
    item["text"] = text
    if head == "sequence":
        item["example"], item["spans"] = pair_in(item, text, where)
    return item


def all_text(values: list) -> bool:
    return all(isinstance(x, str) for x in values)


def from_json(line: str, where: str) -> dict:
    item = json_object(line, where)
    if HALF.search(json.dumps(item, ensure_ascii=False)):
        raise InputError(f"{where} has half a surrogate pair, which is no character")
    return item


def pair_in(item: dict, text: str, where: str) -> tuple[relation.Example, tuple]:
    """The text with its two entities marked, and where these stand in the text as it was given."""
    spans = item.get("first"), item.get("second")
    if spans == (None, None):
        example = relation.marked(text, where)
        return example, example.spans
    for span in spans:
        if not (isinstance(span, list) and len(span) == 2 and all(type(x) is int for x in span)):
            raise InputError(f"{where}: first and second are {spans}, expected [start, end] each")
    try:
        return relation.mark(text, tuple(spans[0]), tuple(spans[1])), spans
    except InputError as error:
        raise InputError(f"{where}: {error}") from None


# all together


def predict(predictor: Predictor, path: str | Path, is_json: bool) -> Iterator[dict]:
    """Answers to the lines of a file ("-": standard input), as they come.

    Raises:
        InputError: a line cannot be read; what came before it has been answered.
    """

    def items() -> Iterator[dict]:
        for number, line in read_lines(path, "text"):
            yield parse(line, f"{name_of(path)}: line {number}", predictor.head, is_json)

    for chunk in in_chunks(items(), CHUNK * predictor.B):
        yield from predictor(chunk)


def in_chunks(items: Iterable[dict], n: int) -> Iterator[list[dict]]:
    """Lists of n items, the last one shorter; an error comes behind what came before it."""
    chunk = []
    try:
        for item in items:
            chunk.append(item)
            if len(chunk) == n:
                yield chunk
                chunk = []
    except InputError:
        if chunk:
            yield chunk
        raise
    if chunk:
        yield chunk
