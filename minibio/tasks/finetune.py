"""One fine-tuning (section 5): from a pre-trained directory to a scored one.

    start        the encoder of a directory under a head drawn from the seed
    fit          some epochs of the task by the one training loop (engine.py)
    score        on the test set, once, at the end
    finish       model, tokenizer, predictions and record, all moved into place together

Nothing is chosen by the test set, and by the development set only where `patience` asks for it. A
fine-tuning that was stopped goes on when the same command is given again; one that is finished
tells its scores again. What a task is stands in `Task`; experiments.py makes them. Read `fine_tune`
first.
"""

import dataclasses
import hashlib
import json
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import torch

import minibio
from minibio.batch import Batch
from minibio.distil import engine
from minibio.distil.engine import Plan
from minibio.distil.objectives import teach
from minibio.model.convert import load, load_with_report, read_config, save
from minibio.model.heads import Model
from minibio.model.names import head_of
from minibio.run import dist, files, log
from minibio.run.checkpoint import FOLDER, Checkpoint, Checkpoints, newest
from minibio.run.errors import InputError
from minibio.tasks.objective import Labels, Taught
from minibio.text.feed import Epochs
from minibio.text.tokenizer import Tokenizer


@dataclass(frozen=True)
class Recipe:
    """How a task is learnt: section 5, and where it is silent the released scripts (F48, F49)."""

    epochs: int = 5
    batch: int = 16  # examples
    lr: float = 5e-5  # "in a few cases" 3e-5; which ones is not recorded
    schedule: str = "cosine"
    warmup: int = 0  # steps
    weight_decay: float = 0.01
    clip: float = 1.0  # largest gradient norm: the authors' trainer's default
    length: int = 512  # tokens of the longest window
    seed: int = 42
    precision: str = "fp32"
    patience: int = 0  # epochs without a better score on the development set; 0: all are trained
    # with a teacher (task_objective.py)
    method: str = "soft"
    alpha: tuple[float, ...] = ()
    temperature: float = 1.0
    layer_map: tuple[int, ...] = ()


# section 5.2: three epochs (F57b); the released README: windows of 384 (F61)
RECIPES = {"ner": Recipe(), "relation": Recipe(epochs=3), "qa": Recipe(length=384)}

BEST = ".best"  # in the run's directory: the model that early stopping has found so far

MAY_DIFFER = frozenset({
    "steps", "lr", "warmup", "schedule", "weight_decay", "clip", "precision", "world",
})  # fmt: skip

Scorer = Callable[[Model, Path], dict]  # model, directory for the predictions -> scores


@dataclass(frozen=True)
class Task:
    """What the commands of eval.py differ in: made for one tokenizer, length and seed."""

    name: str  # ner | relation | qa; NAME.json is the record's file
    head: str  # token | sequence | span
    labels: tuple[str, ...] | None  # of the K classes
    examples: Sequence  # of the training set
    lengths: Sequence[int]  # tokens of each
    collate: Callable[[Sequence], Batch]  # examples -> what a step learns
    test: Scorer
    devel: Callable[[Model], float] | None = None  # the score that decides when to stop
    facts: dict = field(default_factory=dict)  # what is learnt, for the record; fits JSON


MakeTask = Callable[[Tokenizer, Recipe], Task]


@dataclass(frozen=True)
class Way:
    """How a run is carried out: nothing here changes what is learnt, but for rounding."""

    ranks: dist.Ranks
    overwrite: bool = False
    accumulate: int = 1  # micro-batches a step
    log_every: int = 0  # steps; 0: a twentieth of the run
    save_every: int = 0  # steps; 0: an epoch, at most 500


class Enough(Exception):
    """The development set has had no better score for `patience` epochs."""


def fine_tune(
    source: Path, make: MakeTask, recipe: Recipe, out: Path, way: Way,
    teacher_dir: Path | None = None, origin: Path | None = None,
) -> dict | None:  # fmt: skip
    """Learn a task, score it, write `out`; or go on, or read what is finished.

    Args:
        source:      Hugging Face directory to start from.
        make:        tokenizer and recipe -> the task.
        out:         directory of the run.
        teacher_dir: fine-tuned on the same task.
        origin:      what the record calls the model, where `source` is a stage on the way.
    Returns:
        the record, as written to NAME.json; None if a signal stopped the run before its end.
    Raises:
        InputError: `out` holds another run or model, files or shapes do not fit, steps are not
            finite.
    """
    ranks = way.ranks
    dist.from_rank0(lambda: str(files.check_writable(out)), ranks)
    encoder, tokenizer = load(source, head="encoder")
    if tokenizer is None:
        raise InputError(
            f"{source} has no tokenizer; put the vocab.txt or tokenizer.json of the model there"
        )
    recipe = dataclasses.replace(recipe, length=min(recipe.length, encoder.config.P))
    task = make(tokenizer, recipe)
    model = start(source, encoder, task, recipe.seed)
    teacher = None if teacher_dir is None else load_teacher(teacher_dir, task, tokenizer, recipe)
    config = {
        **dataclasses.asdict(recipe), "task": task.name, "labels": task.labels, **task.facts,
        "model_is": digest(model), "teacher_is": None if teacher is None else digest(teacher),
        "examples_are": hashlib.sha256(repr(list(task.examples)).encode()).hexdigest(),
        "shape": dataclasses.asdict(model.config),
    }  # fmt: skip
    finished = None if way.overwrite else standing(out, task, config, ranks)
    if finished is not None:
        dist.print0(f"{out}: finished earlier, with the same options; --overwrite does it anew")
        return finished
    began = time.perf_counter()
    progress = fit(model, teacher, task, tokenizer, recipe, config, out, way)
    if progress.stopped:
        dist.print0(
            f"\nstopped by {progress.stopped} after step {progress.step}, saved in {out / FOLDER}; "
            f"the same command goes on from there"
        )
        return None
    facts = {
        "task": task.name, "data": task.facts.get("data"), "model": str(origin or source),
        "teacher": None if teacher_dir is None else str(teacher_dir), "seed": recipe.seed,
        "steps": progress.step, "best": progress.held_out.get("best"),
    }  # fmt: skip
    return dist.from_rank0(lambda: finish(model, tokenizer, task, facts, config, out, began), ranks)


# what is started from


def start(source: Path, encoder: Model, task: Task, seed: int) -> Model:
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


def load_teacher(path: Path, task: Task, tokenizer: Tokenizer, recipe: Recipe) -> Model:
    """A model fine-tuned on the same task, frozen.

    Raises:
        InputError: it reads other pieces or shorter texts, or has no such head.
    """
    if head_of(read_config(path)[0]) != task.head:
        raise InputError(f"--teacher {path} is not fine-tuned for {task.name}; do that first")
    teacher, theirs = load(path, head=task.head)
    if theirs is None or theirs.fingerprint != tokenizer.fingerprint:
        raise InputError(f"--teacher {path} has another vocabulary than --model: share one")
    if teacher.config.P < recipe.length:
        raise InputError(
            f"--teacher {path} reads {teacher.config.P} tokens, expected {recipe.length}; pass "
            f"--length {teacher.config.P}"
        )
    return teacher.float().requires_grad_(False)


@torch.no_grad()
def digest(model: Model) -> str:
    """What tells a model's weights from another's."""
    total = hashlib.sha256()
    for name, x in sorted(model.state_dict().items()):
        total.update(name.encode())
        total.update(x.cpu().contiguous().numpy().tobytes())
    return total.hexdigest()


# the training


def fit(model: Model, teacher: Model | None, task: Task, tokenizer: Tokenizer, recipe: Recipe,
        config: dict, out: Path, way: Way) -> engine.Progress:  # fmt: skip
    """Train the model, from the start or from where the run in `out` was left."""
    ranks = way.ranks
    torch.manual_seed(recipe.seed)  # of projections
    objective = Labels(model, recipe) if teacher is None else Taught(model, teacher, recipe)
    objective.to(ranks.device).train()
    feed = Epochs(task.examples, task.lengths, task.collate, ranks, batch=recipe.batch,
                  seed=recipe.seed, accumulate=way.accumulate)  # fmt: skip
    steps = recipe.epochs * feed.steps
    plan = Plan(
        steps=steps, lr=recipe.lr, warmup=recipe.warmup, schedule=recipe.schedule,
        weight_decay=recipe.weight_decay, clip=recipe.clip, precision=recipe.precision,
        seed=recipe.seed, log_every=way.log_every or max(1, steps // 20),
        eval_every=feed.steps, save_every=way.save_every or min(feed.steps, 500),
    )  # fmt: skip
    teach_one = None
    if teacher is not None:
        teach_one = partial(teach, teacher.to(ranks.device).eval(), objective=objective)
    if True:
        checkpoints = Checkpoints(out, ranks, keep=2)
        resume = None if way.overwrite else newest(out, ranks)
        if resume is None:
            dist.from_rank0(lambda: clear(out, task), ranks)
            checkpoints.clear()
        else:
            changed = resume.changes(config, MAY_DIFFER, ranks)
            dist.print0(f"goes on from {resume.path}, {resume.step} of {steps} steps")
            for name, then, now in changed:
                dist.print0(f"  {name}: {then} -> {now}")
            resume.cut_log(ranks)
        measure = None
        if recipe.patience:
            measure = Watch(model, tokenizer, task, recipe, out, ranks, feed.steps, resume)
        with log.RunLog(out / "log.jsonl", ranks, resumed=resume is not None) as journal:
            if resume is None:
                journal.write({"event": "start", **config})
            try:
                progress = engine.fit(
                    objective, feed, plan, ranks, journal, teach=teach_one, measure=measure,
                    checkpoints=checkpoints, resume=resume, config=config, name=task.name,
                )  # fmt: skip
            except Enough:
                progress = engine.Progress(step=measure.step)
            if measure is not None and not progress.stopped:
                progress.held_out = measure.take_best()
            if not progress.stopped:
                journal.write({"event": "end", "step": progress.step, **progress.held_out})
    return progress


class Watch:
    """Looks at the development set after each epoch, keeps the best model, ends the run in time.

    The best model so far is a directory in the run's, with its step and score: a run that goes on
    from a checkpoint needs nothing else, since a step done anew gives the same score again.

    Raises:
        InputError: the task has no development set.
        Enough:     from a call, when it is time.
    """

    def __init__(self, model: Model, tokenizer: Tokenizer, task: Task, recipe: Recipe, out: Path,
                 ranks: dist.Ranks, epoch_steps: int, resume: Checkpoint | None):  # fmt: skip
        if task.devel is None:
            raise InputError("--early-stopping needs a development set, and there is none")
        self.model, self.tokenizer, self.task, self.ranks = model, tokenizer, task, ranks
        self.place, self.patience, self.epoch_steps = out / BEST, recipe.patience, epoch_steps
        self.step = -epoch_steps if resume is None else resume.step // epoch_steps * epoch_steps
        self.best = {"step": 0, "score": -1.0}
        if resume is not None:
            self.best = dist.from_rank0(self.read, ranks)

    def read(self) -> dict:
        path = self.place / "best.json"
        return files.read_json(path) if path.exists() else self.best

    def __call__(self) -> dict:
        self.step += self.epoch_steps
        score = dist.from_rank0(lambda: float(self.task.devel(self.model)), self.ranks)
        self.model.train()
        if self.step and score > self.best["score"]:
            self.best = {"step": self.step, "score": score}
            dist.from_rank0(self.keep, self.ranks)
        if self.step - self.best["step"] >= self.patience * self.epoch_steps and self.step:
            raise Enough
        return {"devel": score}

    def keep(self) -> None:
        with files.staged_dir(self.place, overwrite=True) as staged:
            save(self.model, self.tokenizer, staged / "model")
            files.write_json(staged / "best.json", self.best)

    def take_best(self) -> dict:
        """Put the best weights into the model."""
        best = {}

        def read():
            best.update(load(self.place / "model", head=self.task.head)[0].state_dict())

        dist.from_rank0(read, self.ranks)
        self.model.load_state_dict(dist.tensors_from_rank0(best, self.ranks))
        return {"best": self.best}


# the directory


def standing(out: Path, task: Task, config: dict, ranks: dist.Ranks) -> dict | None:
    """The record of a finished run in `out`, None where there is none.

    Raises:
        InputError: it is of another run, or `out` holds a model that is not of this command.
    """

    def look():
        record = out / f"{task.name}.json"
        if not (out / "config.json").exists():
            return None
        if not record.exists():
            raise InputError(f"{out} already holds a model; name another --out or pass --overwrite")
        known = files.read_json(record)
        now, then = json.loads(json.dumps(config)), known.get("config", {})
        for name in {**now, **then}:
            if now.get(name) != then.get(name):
                raise InputError(
                    f"{out} holds another run: {name} is {then.get(name)!r} there, here "
                    f"{now.get(name)!r}; name another --out or pass --overwrite"
                )
        tidy(out)  # a run may have been killed between its last two steps
        return known

    return dist.from_rank0(look, ranks)


def clear(out: Path, task: Task) -> None:
    """Take away what an older run left: a killed one must never look finished."""
    for name in ("config.json", f"{task.name}.json"):
        (out / name).unlink(missing_ok=True)
    files.remove(out / BEST)
    out.mkdir(parents=True, exist_ok=True)


def finish(model: Model, tokenizer: Tokenizer, task: Task, facts: dict, config: dict, out: Path,
           began: float) -> dict:  # fmt: skip
    """Score the test set, write all there is to write, and return the record (NAME.json).

    Returns:
        task, data, seed: "ner", "NCBI-disease", 42
        model, teacher:   the directories that were named; None = without a teacher
        steps, best:      optimiser steps; where early stopping found its model, or None
        test:             the scores, as the task's functions in metrics.py return them
        config:           recipe, labels, counts, and what tells this run from another
        parameters, parameters_encoder, versions, seconds
    """
    model.eval()
    with files.staged_dir(out / ".model", overwrite=True) as staged:
        save(model, tokenizer, staged, overwrite=True)
        scores = task.test(model, staged)
        record = {
            **facts, "test": scores, "config": config,
            "parameters": model.n_parameters,
            "parameters_encoder": sum(p.numel() for p in model.encoder.parameters()),
            "versions": {"minibio": minibio.__version__, "torch": str(torch.__version__)},
            "seconds": round(time.perf_counter() - began, 1),
        }  # fmt: skip
        files.write_json(staged / f"{task.name}.json", record)
    # config.json last: a directory without it is not finished
    names = sorted(os.listdir(out / ".model"), key=lambda name: name == "config.json")
    for name in names:
        os.replace(out / ".model" / name, out / name)
    tidy(out)
    return files.read_json(out / f"{task.name}.json")


def tidy(out: Path) -> None:
    """Remove what only an unfinished run needs."""
    for left in (".model", BEST, FOLDER):
        files.remove(out / left)
