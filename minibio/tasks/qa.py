"""Questions (section 5.3): the passage of a text that answers, and BioASQ's way of asking.

A BioASQ question comes with several snippets; each is a passage of a SQuAD-form file whose id is
<question>_<snippet>, the question's id being 24 hexadecimal digits. Any other id is a question's
own, `q_1` too. A passage becomes windows,

    [CLS] which gene ... ? [SEP] part of the context [SEP]
    0     0                0     1                   1        segments

one window a passage where it fits, else several that begin `stride` pieces apart. The model gives
every piece a logit for being the answer's first and one for its last. `decode` scores every span of
words of a passage, over all its windows at once; `rank` pools the snippets of a question. The
official scorer sees at most the first string of each list it is given; `submission` writes so.

Paper/code: the released script hands in the best answer of each snippet in the snippets' order
(F58); `rank(..., order="released")` does that. BERT's and BioBERT's stride is a step, as here; that
of the released code, 128 pieces shared by neighbours, is a step of `length - 128` or less.
"""

import json
import re
from collections.abc import Iterable, Iterator, Sequence
from itertools import groupby
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch.nn as nn

from minibio.batch import Batch
from minibio.config import Recipe
from minibio.model.heads import Model
from minibio.run import fingerprint
from minibio.run.dist import print0
from minibio.run.errors import InputError
from minibio.run.files import read_json, write_json
from minibio.tasks.finetune import Task
from minibio.tasks.metrics import bioasq_scores, only_answer
from minibio.tasks.reading import Node, cut, forward, json_object, normalised, read_lines
from minibio.text.tokenizer import Tokenizer

MAX_QUESTION = 64  # pieces, as in BERT's run_squad.py; the rest of a longer one is not read
SNIPPET = re.compile(r"([0-9a-f]{24})_[0-9]+", re.IGNORECASE)  # id of a BioASQ passage
MAX_NAMED = 20  # ids in a message
FORM = "SQuAD's form: data, paragraphs, qas; or rows of id, question, context, answers"


class Passage(NamedTuple):
    """A question and a text that may answer it."""

    id: str
    question: str
    context: str
    answers: list[tuple[int, int]]  # characters (start, end) in the context; [] if unknown

    @property
    def group(self) -> str:
        """The id of the question, which its snippets have in common."""
        match = SNIPPET.fullmatch(self.id)
        return match[1] if match else self.id


class PassageWindow(NamedTuple):
    """A passage as the model reads it, or a part of one too long for it."""

    passage: int  # which one
    tokens: list[int]  # (T,) [CLS] question [SEP] context [SEP]
    first: int  # place of the first context piece; what is before is of segment 0
    words: list[int]  # (T - first - 1,) the word of the context that each context piece belongs to
    word_spans: list[tuple[int, int]]  # of all words of the context, in characters; shared
    answers: list[tuple[int, int]]  # places of first and last token of each answer inside


class Span(NamedTuple):
    """Words first..last of a context, both included."""

    first: int
    last: int
    score: float  # sum of two logits
    probability: float  # among the best of its passage


class Answer(NamedTuple):
    """A candidate answer, with where it was found."""

    text: str
    probability: float
    passage: str  # id of the passage it was likeliest in
    start: int  # characters of that context
    end: int


# reading


def read_squad(path: str | Path) -> list[Passage]:
    """The passages of a file in SQuAD's form (1.1 or 2.0), answers in it or not.

    Rows as Hugging Face's datasets have them are read as well, in a list or a line each:

        {"id": "7", "question": "...", "context": "...",
         "answers": {"text": ["IL-2"], "answer_start": [4]}}

    Raises:
        InputError: the file is not JSON, lacks a part, answers are misplaced, one id has two
            questions, or there is no question. File and place are named.
    """
    passages, misplaced = read_placed(path)
    if misplaced:
        ids = list(dict.fromkeys(repr(passages[i].id) for i, _ in misplaced))
        more = f" and {len(ids) - MAX_NAMED} more" if len(ids) > MAX_NAMED else ""
        raise InputError(
            f"{misplaced[0][1]}; misplaced answers: {len(misplaced)}, of "
            f"{', '.join(ids[:MAX_NAMED])}{more}; mend answer_start, or leave these answers out: "
            f"--skip-misplaced"
        )
    return passages


def read_placed(path: str | Path) -> tuple[list[Passage], list[tuple[int, InputError]]]:
    """The passages with the answers that are where the file says, letter case aside.

    Returns:
        passages, as of `read_squad`.
        (passage, complaint) for each answer that is left out: blank, or not the text at its
            answer_start.
    Raises:
        InputError: as `read_squad`, misplaced answers aside.
    """
    passages, misplaced, asked = [], [], {}
    for qa, context in read_questions(path):
        answers = set()
        for node in answers_of(qa):
            text, start = node.get("text", str), node.get("answer_start", int)
            end = start + len(text)
            if text.strip() and start >= 0 and context[start:end].lower() == text.lower():
                answers.add((start, end))
                continue
            there = f"{context[max(0, start) : max(0, end)][:40]!r} is at character {start}"
            complaint = f"the answer is {text[:40]!r}, but {there} of the context"
            misplaced.append((len(passages), node.error(complaint)))
        last = Passage(qa.id(), qa.get("question", str), context, sorted(answers))
        passages.append(last)
        first = asked.setdefault(last.group, last.question)
        if normalised(first) != normalised(last.question):
            raise qa.error(
                f"{last.group} asks {last.question[:60]!r}, and {first[:60]!r} before; "
                f"give each question its own id"
            )
    if not passages:
        raise InputError(f"{path} holds no question, expected {FORM}")
    return passages, misplaced


def read_questions(path: str | Path) -> Iterator[tuple[Node, str]]:
    """The object that has id, question and answers, and its context; of each form a file may have.

    Raises:
        InputError: the file is not JSON, or lacks a part.
    """
    for node in read_articles(path):
        if is_row(node.value):
            yield node, node.get("context", str)
            continue
        for paragraph in node.children("paragraphs"):
            context = paragraph.get("context", str)
            for qa in paragraph.children("qas"):
                yield qa, context


def read_articles(path: str | Path) -> Iterator[Node]:
    """The objects under "data", in a list that is the whole file, or on a line each."""
    first = next((line for _, line in read_lines(path, FORM) if line.strip()), "")
    try:
        value = json.loads(first)
    except (ValueError, RecursionError):
        value = None
    if isinstance(value, dict) and is_row(value):
        for number, line in read_lines(path, FORM):
            if line.strip():
                where = f"line {number}"
                yield Node(json_object(line, f"{path}: {where}"), Path(path), (where,))
        return
    value = read_json(path, (dict, list))
    if isinstance(value, list):
        yield from Node({"": value}, Path(path)).children("")  # places are [0], [1], ...
    else:
        yield from Node(value, Path(path)).children("data")


def is_row(value: dict) -> bool:
    """True for a question with its context; False for what holds questions in SQuAD's form."""
    keys = value.keys()
    return not keys & {"data", "paragraphs"} and bool(keys & {"question", "context"})


def answers_of(node: Node) -> Iterator[Node]:
    """The answers of a question, each with text and answer_start; Hugging Face's are two lists."""
    if not isinstance(node.value.get("answers"), dict):
        yield from node.children("answers", [])
        return
    both = Node(node.value["answers"], node.path, (*node.keys, "answers"))
    texts, starts = both.get("text", list), both.get("answer_start", list)
    if len(texts) != len(starts):
        raise both.error(f"'text' has {len(texts)} items, 'answer_start' {len(starts)}")
    for i, (text, start) in enumerate(zip(texts, starts, strict=True)):
        yield Node({"text": text, "answer_start": start}, node.path, (*both.keys, i))


def passages_of(question: str, contexts: Iterable[str], id: int = 0) -> list[Passage]:
    """A question and its snippets, as somebody asks it who has no file; `id` becomes 24 digits."""
    return [Passage(f"{id:024x}_{i:03d}", question, text, []) for i, text in enumerate(contexts)]


def read_golden(path: str | Path) -> dict[str, list[str]]:
    """Question -> every golden string, synonyms included, for the factoid questions of a file.

    Raises:
        InputError: the file is not JSON, lacks a part, or has no factoid question.
    """
    golden = {
        node.id(): [text for texts in read_exact(node) for text in texts]
        for node in Node.read(path).children("questions")
        if node.value.get("type") == "factoid"
    }
    if not golden:
        raise InputError(f"{path} holds no factoid question, expected BioASQ's form: questions")
    return golden


def read_exact(node: Node) -> list[list[str]]:
    """exact_answer: a list of lists of synonyms; in old files a list of strings, or one string."""
    value = node.value.get("exact_answer")
    value = [value] if isinstance(value, str) else value
    if isinstance(value, list):
        value = [[x] if isinstance(x, str) else x for x in value]
        if all(isinstance(x, list) and all(isinstance(y, str) for y in x) for x in value):
            return value
    raise node.error("'exact_answer' is missing or wrong, expected lists of strings")


# what train and test share


def without_overlap(
    train: Sequence[Passage], test: Sequence[Passage]
) -> tuple[list[Passage], int, int]:
    """The passages of train whose question is not in test, by id or by normalised text.

    Returns:
        the passages that stay, how many questions went, how many passages went.
    """
    ids, texts = {p.group for p in test}, {normalised(p.question) for p in test}
    kept, gone = [], []
    for p in train:
        (gone if p.group in ids or normalised(p.question) in texts else kept).append(p)
    return kept, len({p.group for p in gone}), len(gone)


# to pieces


def make_windows(
    passages: Sequence[Passage], tokenizer: Tokenizer, length: int = 384, stride: int = 128
) -> list[PassageWindow]:
    """Passages as token ids, in order; every piece of a context is in some window.

    Args:
        length: tokens of the longest window; 5 or more. Of a question the first 64 pieces are read,
            and at most half of what [CLS] and both [SEP] leave.
        stride: context pieces from the beginning of one window to that of the next.
    Raises:
        ValueError: a number is too small.
    """
    if length < 5 or stride < 1:
        raise ValueError(
            f"make_windows: length {length} and stride {stride}, expected at least 5 and 1"
        )
    windows = []
    for i, passage in enumerate(passages):
        question = cut(passage.question, tokenizer).ids[: min(MAX_QUESTION, (length - 3) // 2)]
        head = [tokenizer.cls_id, *question, tokenizer.sep_id]
        pieces = cut(passage.context, tokenizer)
        inside = [pieces.inside(*answer) for answer in passage.answers]
        room = length - len(head) - 1
        for a, b in cuts(len(pieces.ids), room, min(stride, room)):
            move = len(head) - a
            answers = [
                (x.start + move, x.stop - 1 + move)
                for x in inside
                if x and a <= x.start and x.stop <= b
            ]
            tokens = [*head, *pieces.ids[a:b], tokenizer.sep_id]
            windows.append(
                PassageWindow(i, tokens, len(head), pieces.words[a:b], pieces.word_spans, answers)
            )
    return windows


def cuts(n: int, room: int, stride: int) -> list[tuple[int, int]]:
    """(first, one behind the last) of each window over n pieces; none over no pieces."""
    n_steps = max(0, -(-(n - room) // stride))  # until the end is reached
    starts = [i * stride for i in range(n_steps + 1)] if n else []
    return [(a, min(n, a + room)) for a in starts]


def training_pairs(windows: Sequence[PassageWindow]) -> list[tuple[PassageWindow, tuple[int, int]]]:
    """Each window with each of its answers; with (0, 0), [CLS], where it has none (F61)."""
    return [(window, answer) for window in windows for answer in window.answers or [(0, 0)]]


def collate(
    windows: Sequence[PassageWindow], answers: Sequence[tuple[int, int]] | None = None
) -> Batch:
    """Windows as one row.

    Args:
        answers: places (first, last) in each window, to fill `Batch.labels` (B, 2) with them; None
            = leave it empty.
    """
    segments = [[0] * w.first + [1] * (len(w.tokens) - w.first) for w in windows]
    return Batch.from_sequences([w.tokens for w in windows], segments, labels=answers)


def predict(
    model: nn.Module, windows: Sequence[PassageWindow], B: int, device, autocast
) -> list[np.ndarray]:
    """(P, 2) float32 a window: the logits of its P context pieces, for first and for last.

    Args:
        B:        windows a batch.
        autocast: makes the context the model runs in.
    """
    found = [None] * len(windows)
    for chosen, batch, logits in forward(model, windows, collate, B, device, autocast):  # (N, 2)
        for i, rows in zip(chosen, logits.float().cpu().split(batch.lengths), strict=True):
            found[i] = rows[windows[i].first : -1].numpy()
    return found


# pieces to answers


def decode(
    windows: Sequence[PassageWindow], logits: Sequence[np.ndarray], n: int = 20, longest: int = 30
) -> list[Span]:
    """The n best spans of words of one passage, the best first.

    A word's logits are the highest of its pieces', so that an answer never ends within a word. The
    score of a span is its first word's first logit plus its last word's last, the highest over the
    windows that hold both. Among equal scores the earlier and shorter span is the better.

    Args:
        windows: all of one passage.
        logits:  (P, 2) for each.
        longest: words of an answer. A word is a run of letters and digits, or a single mark.
    Returns:
        at most n spans; probabilities are the softmax over these, as in BERT's run_squad.py.
    """
    W = len(windows[0].word_spans)
    longest = min(longest, W)
    scores = np.full((W, longest), -np.inf)  # [a, j]: words a .. a + j
    for window, rows in zip(windows, logits, strict=True):
        words = np.asarray(window.words)
        begins = np.flatnonzero(np.diff(words, prepend=-1))  # (w,) first piece of each word
        first, last = np.maximum.reduceat(rows.astype(np.float64), begins).T  # (w,) each
        behind = np.concatenate([last, np.full(longest - 1, -np.inf)])
        ends = np.lib.stride_tricks.sliding_window_view(behind, longest)  # (w, longest)
        held = scores[words[0] : words[0] + len(first)]
        np.maximum(held, first[:, None] + ends, out=held)
    flat = scores.ravel()
    n = min(n, int(np.isfinite(flat).sum()))
    if not n:
        return []
    limit = np.partition(flat, -n)[-n]  # the n-th best
    places = np.flatnonzero(flat >= limit)
    places = places[np.argsort(-flat[places], kind="stable")][:n]
    best = flat[places]
    weights = np.exp(best - best[0])
    return [
        Span(int(i // longest), int(i // longest + i % longest), float(score), float(p))
        for i, score, p in zip(places, best, weights / weights.sum(), strict=True)
    ]


def rank(
    passages: Sequence[Passage],
    windows: Sequence[PassageWindow],
    logits: Sequence[np.ndarray],
    order: str = "pooled",
    n: int = 5,
    n_best: int = 20,
    longest: int = 30,
) -> dict[str, list[Answer]]:
    """Question -> answers, the best first; [] for a question whose snippets hold no word.

    Args:
        windows: of all passages, in order, with their logits.
        order: "pooled" = the answers of all snippets together, each with the mean over the snippets
            of its probability; the n best. "released" = the best answer of each snippet, in the
            snippets' order, as many as there are snippets (F58).
        n_best, longest: of each passage, as in `decode`.
    """
    if order not in ("pooled", "released"):
        raise ValueError(f"rank: order is {order!r}, expected 'pooled' or 'released'")
    found: dict[str, list[list[Answer]]] = {p.group: [] for p in passages}
    pairs = zip(windows, logits, strict=True)
    for i, group in groupby(pairs, key=lambda pair: pair[0].passage):
        mine, rows = zip(*group, strict=True)
        spans = decode(mine, rows, n_best, longest)
        answers = [answer_of(passages[i], mine[0].word_spans, span) for span in spans]
        found[passages[i].group].append(answers)
    if order == "released":
        return {question: [best[0] for best in lists if best] for question, lists in found.items()}
    return {question: pool(lists)[:n] for question, lists in found.items()}


def answer_of(passage: Passage, word_spans: list[tuple[int, int]], span: Span) -> Answer:
    """The text of a span, as the context has it."""
    start, end = word_spans[span.first][0], word_spans[span.last][1]
    return Answer(passage.context[start:end], span.probability, passage.id, start, end)


def pool(lists: Sequence[Sequence[Answer]]) -> list[Answer]:
    """The answers of several snippets as one list, the likeliest first.

    Answers that differ only in letter case or spacing are one, written as where it was likeliest.
    """
    best, total = {}, {}
    for answer in (answer for answers in lists for answer in answers):
        key = " ".join(answer.text.lower().split())
        total[key] = total.get(key, 0.0) + answer.probability / len(lists)
        if key not in best or answer.probability > best[key].probability:
            best[key] = answer
    order = sorted(total, key=total.get, reverse=True)  # stable: the first found leads
    return [best[key]._replace(probability=total[key]) for key in order]


# out


def submission(passages: Sequence[Passage], answers: dict[str, list[Answer]]) -> dict:
    """BioASQ's form (phase B, exact answers): one list of one string for each answer."""
    bodies = {p.group: p.question for p in reversed(passages)}
    return {
        "questions": [
            {
                "id": question,
                "type": "factoid",
                "body": bodies[question],
                "exact_answer": [[answer.text] for answer in ranked],
                "ideal_answer": "",
            }
            for question, ranked in answers.items()
        ]
    }


def n_best(answers: dict[str, list[Answer]]) -> dict:
    """Question -> its answers with probability, passage and characters: where each comes from."""
    return {question: [a._asdict() for a in ranked] for question, ranked in answers.items()}


# the task


class QaTask(Task):
    """Questions in SQuAD's form; several test files are answered one by one and scored together.

    Args:
        golden: files of the right answers, in BioASQ's form; none = no score.
        stride: pieces from one window to the next.
        order: of the answers: "pooled" over a question's snippets, or "released" (F58).
        allow_overlap: questions of train that are in a test file too are learnt all the same.
        skip_misplaced: misplaced answers are left out, and passages of train that have no other.
    Raises:
        InputError: a file is damaged, a test question has no golden answer in any file, or nothing
            is left to learn.
    """

    name, head, labels = "qa", "span", None

    def __init__(
        self,
        train: Path,
        tests: Sequence[Path],
        golden: Sequence[Path],
        *,
        stride: int = 128,
        order: str = "pooled",
        allow_overlap: bool = False,
        skip_misplaced: bool = False,
    ):
        self.data, self.stride, self.order = train.stem, stride, order
        self.n_misplaced = 0 if skip_misplaced else None  # None = they are refused
        passages = self.read(train, learnt=True)
        self.tests = {path: self.read(path) for path in tests}
        self.golden = {id: texts for path in golden for id, texts in read_golden(path).items()}
        self.every_test = [p for x in self.tests.values() for p in x]
        self.asked = {p.group for p in self.every_test}
        if self.golden and not self.asked & set(self.golden):
            raise InputError(
                f"{golden[0]} has none of the questions of {tests[0]}; name the golden file of the "
                f"same batch"
            )
        kept, n_questions, n_passages = without_overlap(passages, self.every_test)
        if n_questions:
            what = f"{n_questions} questions ({n_passages} passages) of {train} are in a test file"
            print0(
                f"{what} too: {'learnt all the same' if allow_overlap else 'removed from train'}"
            )
        self.passages = passages if allow_overlap else kept
        self.n_removed = 0 if allow_overlap else n_questions
        if not any(p.answers for p in self.passages):
            raise InputError(f"{train} has no question with an answer to learn")

    def read(self, path: Path, learnt: bool = False) -> list[Passage]:
        """The passages of a file; of those to be learnt, none that lost all its answers."""
        if self.n_misplaced is None:
            return read_squad(path)
        passages, misplaced = read_placed(path)
        places = {i for i, _ in misplaced}
        kept = [p for i, p in enumerate(passages) if not learnt or p.answers or i not in places]
        if misplaced:
            of_none = f", and {len(passages) - len(kept)} passages that have no other"
            what = f"{path}: {len(misplaced)} misplaced answers are left out"
            print0(f"{what}{of_none if learnt else ''}")
        self.n_misplaced += len(misplaced)
        return kept

    def prepare(self, tokenizer: Tokenizer, recipe: Recipe) -> None:
        self.check_length(recipe, 5, "[CLS], a piece of question and context, two [SEP]")
        self.recipe, self.tokenizer = recipe, tokenizer
        self.examples = training_pairs(self.windows(self.passages))
        self.lengths = [len(window.tokens) for window, _ in self.examples]
        self.describe()
        self.facts = {
            "data": self.data,
            "tests": [path.stem for path in self.tests],
            "stride": self.stride,
            "order": self.order,
            "counts": {
                "questions": len({p.group for p in self.passages}),
                "passages": len(self.passages),
                "examples": len(self.examples),
                "removed": self.n_removed,
                "test_questions": len(self.asked),
                **({} if self.n_misplaced is None else {"misplaced": self.n_misplaced}),
            },
            "data_is": fingerprint.of_value(
                (self.passages, list(self.tests.values()), self.golden)
            ),
        }

    def describe(self) -> None:
        """Print the sets."""
        sets = {"train": self.passages, "test": self.every_test}
        sizes = ", ".join(
            f"{name} {len({p.group for p in x}):,} in {len(x):,} passages"
            for name, x in sets.items()
        )
        n = sum(len(p.answers) for p in self.passages)
        counts = f"questions: {sizes}; answers of train: {n:,}"
        self.print_sets(counts, {k: [p.context for p in x] for k, x in sets.items()}, "passages")

    def windows(self, passages: Sequence[Passage]) -> list[PassageWindow]:
        return make_windows(passages, self.tokenizer, self.recipe.length, self.stride)

    def collate(self, examples: Sequence[tuple[PassageWindow, tuple[int, int]]]) -> Batch:
        return collate([window for window, _ in examples], [answer for _, answer in examples])

    def test(self, model: Model, out: Path) -> dict:
        answers, per_file, found = {}, {}, ([], [])
        stems = [path.stem for path in self.tests]
        before = 0  # passages of the files before
        for path, passages in self.tests.items():
            windows = self.windows(passages)
            logits = predict(model, windows, *self.inference(model))
            ranked = rank(passages, windows, logits, self.order)
            answers |= ranked
            name = path.stem if stems.count(path.stem) == 1 else str(path)
            per_file[name] = self.score(ranked)
            found[0].extend(w._replace(passage=w.passage + before) for w in windows)
            found[1].extend(logits)
            before += len(passages)
        if sum(len({p.group for p in x}) for x in self.tests.values()) > len(self.asked):
            answers = rank(self.every_test, *found, self.order)  # questions in several files
        write_json(out / "submission.json", submission(self.every_test, answers))
        write_json(out / "n_best.json", n_best(answers))
        first = only_answer(ranked[0].text if ranked else "" for ranked in answers.values())
        return {**self.score(answers), "per_file": per_file, "only_answer": first}

    def score(self, ranked: dict[str, list[Answer]]) -> dict:
        """The scores of these answers; {} without golden ones."""
        if not self.golden:
            return {}
        return bioasq_scores(self.golden, {id: [a.text for a in x] for id, x in ranked.items()})
