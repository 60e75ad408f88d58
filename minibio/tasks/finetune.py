"""The parts of a fine-tuning around the loop of eval.py: what a task is, what a run starts from.

`Task` is what the loop sees of named entities, relations and questions; `NerTask`, `RelationTask`
and `QaTask` are at the ends of ner.py, relation.py and qa.py.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch

from minibio.batch import Batch
from minibio.config import Recipe
from minibio.model.convert import load, load_with_report, read_config, save
from minibio.model.heads import Model
from minibio.model.names import head_of
from minibio.run import dist, files
from minibio.run.dist import Ranks
from minibio.run.errors import InputError
from minibio.run.precision import autocast
from minibio.tasks.reading import normalised
from minibio.text.tokenizer import Tokenizer

SETS = ("train", "devel", "test")


class Task:
    """A task: its examples, the batch that a step learns, its scores.

    Made from files, which are read and checked then; `prepare` cuts them into what a model reads,
    for one tokenizer, length and seed. It can be called again for another.
    """

    name: str  # ner | relation | qa; NAME.json is the file of the record
    head: str  # token | sequence | span
    has_devel = False  # there is a development set
    # from `prepare`
    recipe: Recipe
    labels: tuple[str, ...] | None  # of the K classes
    examples: Sequence  # of the training set
    lengths: Sequence[int]  # tokens of each
    facts: dict  # for the record; fits JSON
    printed = ""  # of `print_sets`

    def prepare(self, tokenizer: Tokenizer, recipe: Recipe) -> None:
        """Cut all sets for this tokenizer and `recipe.length`.

        Raises:
            InputError: the length is too short for any example.
        """
        raise NotImplementedError

    def collate(self, examples: Sequence) -> Batch:
        """These examples as one row, with labels."""
        raise NotImplementedError

    def test(self, model: Model, out: Path) -> dict:
        """The scores on the test set; the predictions are written into the directory `out`."""
        raise NotImplementedError

    def devel(self, model: Model) -> float:
        """The score on the development set that decides when to stop."""
        raise NotImplementedError

    def labels_as_here(self, labels: tuple[str, ...] | None) -> tuple[str, ...] | None:
        """The labels of a model that was fine-tuned earlier, under the names they have here."""
        return labels

    def print_sets(self, counts: str, texts: Mapping[str, Sequence[str]], what: str) -> None:
        """Print what the sets hold and what they have in common; once, if called again.

        Args:
            counts: the sets, in one line.
            texts:  of each set: train, test and, where there is one, devel.
            what:   they are: sentences.
        Raises:
            InputError: early stopping by a development set that is the training or the test set.
        """
        pairs = [("test", "train"), *[("devel", x) for x in ("train", "test") if "devel" in texts]]
        known = {name: [normalised(text) for text in each] for name, each in texts.items()}
        shared = {(a, b): in_common(known[a], known[b]) for a, b in pairs}
        for (a, b), n in shared.items():
            if self.recipe.patience and a == "devel" and n == len(texts[a]):
                raise InputError(
                    f"--early-stopping: all {n:,} {what} of devel are in {b}, so devel cannot say "
                    f"when to stop; give it {what} of its own, or leave out --early-stopping"
                )
        common = "; ".join(
            f"{n:,} of {len(texts[a]):,} {what} of {a} are in {b} too"
            for (a, b), n in shared.items()
            if n or b == "train"
        )
        text = f"{counts}\n{common}"
        if text != self.printed:
            dist.print0(text)
        self.printed = text

    def check_length(self, recipe: Recipe, least: int, what: str) -> None:
        if recipe.length < least:
            raise InputError(f"--length is {recipe.length}, expected at least {least}: {what}")

    def inference(self, model: Model) -> tuple[int, torch.device, Callable]:
        """The last arguments of a task's `predict`: examples a batch, device, autocast."""
        device = next(model.parameters()).device
        return 2 * self.recipe.batch, device, partial(autocast, self.recipe.precision, device)


def in_common(texts: Sequence[str], others: Sequence[str]) -> int:
    """Number of texts that are among the others; blank ones are not."""
    others = set(others) - {""}
    return sum(text in others for text in texts)


# the start


def build_model(source: Path, encoder: Model, task: Task, seed: int) -> Model:
    """A trained encoder under a head drawn from the seed.

    A classifier is always fresh: one that the directory may hold has learnt other labels, or these
    in another order. BERT's pooler below it is kept where there is one, and so is a span head: it
    knows no labels, and may come from a first stage on other questions (F60).
    """
    torch.manual_seed(seed)
    if task.head == "span":
        model, _, report = load_with_report(source, "span", new_head=True)
        dist.print0(f"{source}: its span head is {'fresh' if report.missing else 'kept'}")
        return model.float()
    model = Model(encoder.config, task.head, task.labels)
    model.encoder = encoder.encoder
    pooler = encoder.head.pooler
    if task.head == "sequence" and pooler is not None:
        model.head.pooler = pooler
    return model.float()


def load_teacher(path: Path, task: Task, tokenizer: Tokenizer, length: int) -> Model:
    """A model fine-tuned on the same task, frozen.

    Raises:
        InputError: it has another vocabulary, reads fewer than `length` tokens, or has no such
            head.
    """
    if head_of(read_config(path)[0]) != task.head:
        raise InputError(f"--teacher {path} is not fine-tuned for {task.name}; do that first")
    teacher, theirs = load(path, head=task.head)
    teacher.labels = task.labels_as_here(teacher.labels)
    if theirs is None or theirs.fingerprint != tokenizer.fingerprint:
        raise InputError(f"--teacher {path} has another vocabulary than --model: share one")
    if teacher.config.P < length:
        raise InputError(
            f"--teacher {path} reads {teacher.config.P} tokens, expected {length}; pass "
            f"--length {teacher.config.P}"
        )
    return teacher.float().eval().requires_grad_(False)


# early stopping


class Score(NamedTuple):
    """A score on the development set, and the step after which a model had it."""

    step: int
    score: float


class Best:
    """The model with the best score on the development set so far, in a directory of the run.

    A run that resumes from a checkpoint needs nothing else: a step made again gives the same score
    again, and only a better one takes its place.
    """

    def __init__(self, path: Path, ranks: Ranks):
        self.path, self.ranks = path, ranks
        self.score = Score(0, -1.0)

    def read(self) -> None:
        """The score of the model that is there, if one is."""

        def read():
            files.recover(self.path)
            record = self.path / "best.json"
            if not record.exists():
                return list(self.score)
            found = files.read_json(record)
            with files.as_written(record, "start again with --overwrite"):
                return [int(found["step"]), float(found["score"])]

        self.score = Score(*dist.from_rank0(read, self.ranks))

    def offer(self, model: Model, tokenizer: Tokenizer, score: Score) -> None:
        """Keep this model if it is the best."""
        if score.score <= self.score.score:
            return
        self.score = score

        def write():
            with files.staged_dir(self.path, overwrite=True) as staged:
                save(model, tokenizer, staged / "model")
                files.write_json(staged / "best.json", score._asdict())

        dist.from_rank0(write, self.ranks)

    def restore(self, model: Model) -> None:
        """Put the best weights into the model."""
        best = {}

        def read():
            best.update(load(self.path / "model", head=model.head_name)[0].state_dict())

        dist.from_rank0(read, self.ranks)
        model.load_state_dict(dist.tensors_from_rank0(best, self.ranks))
