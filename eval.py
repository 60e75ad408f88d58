"""Fine-tune on the paper's tasks, score, predict, and compare models (section 5).

    python eval.py ner      --model runs/tiny --data NCBI-disease --out runs/tiny-ncbi --seeds 0 1 2
    python eval.py relation --model runs/tiny --data gad --fold all --out runs/tiny-gad
    python eval.py qa       --model runs/tiny --train BioASQ-train-factoid-7b.json \
        --test BioASQ-test-factoid-6b-1.json --golden 6B1_golden.json --out runs/tiny-bioasq
    python eval.py predict  runs/tiny-ncbi abstracts.txt > names.jsonl
    python eval.py compare  runs/teacher runs/tiny runs/scratch --ner runs/teacher-ner ...

A model learns from the training set and is scored on the test set once, at the end; nothing is
chosen by the test set, and by the development set only with --early-stopping. Re-run the same
command to resume a fine-tuning that was stopped. Under torchrun it runs on several ranks.

From the top: the options, read before torch is imported; `fine_tune`, the loop; `execute`, one
fine-tuning from its model to its scores; `experiment`, over seeds and folds; the commands. Options
of compare, speed and table are in the modules that `ELSEWHERE` names.
"""

import argparse
import dataclasses
import importlib
import math
import os
import re
import sys
import time
from contextlib import nullcontext
from pathlib import Path

from minibio.config import HOW, RECIPES, Recipe, recipe_of
from minibio.model.hub import check_directory
from minibio.run import errors, files, options
from minibio.run.errors import InputError
from minibio.tasks.tags import SCHEMES, columns

ELSEWHERE = {  # command -> its module, and its line of --help
    "compare": ("minibio.report.compare", "a table of runs: size, loss, entity F1, speed"),
    "score": ("minibio.report.paired", "fine-tuned directories on any set, side by side"),
    "speed": ("minibio.bench.speed", "Figure 2: latency, throughput, memory, size on disk"),
    "table": ("minibio.report.tables", "Tables 1 to 6, from runs of ner, relation and qa"),
}
OF_A_TEACHER = ("method", "alpha", "temperature", "layer_map")


def parser(command: str | None = None) -> argparse.ArgumentParser:
    """Every option; those of a command of `ELSEWHERE` only where it is `command`."""
    p = options.Parser("eval.py", description=__doc__)
    commands = p.add_subparsers(dest="command", required=True)
    add_ner(commands.add_parser("ner", help="named entities: fine-tune, score, save"))
    add_relation(commands.add_parser("relation", help="relations: fine-tune, score, save"))
    add_qa(commands.add_parser("qa", help="questions: fine-tune, answer, score, save"))
    add_predict(commands.add_parser("predict", help="apply a fine-tuned directory to text"))
    for name, (module, about) in ELSEWHERE.items():
        g = commands.add_parser(name, help=about)
        if name == command:
            importlib.import_module(module).add_arguments(g)
    for g in commands.choices.values():
        g.add_argument("--device", help="cuda, cpu (default: cuda if there is one)")
        g.add_argument(
            "--threads", type=options.threads, help="of the CPU (default: torch's own choice)"
        )
    return p


def add_ner(g: argparse.ArgumentParser) -> None:
    add = g.add_argument
    add("--data", type=Path, required=True, help="directory of train.tsv, test.tsv and devel.tsv")
    add("--type", type=kind, help="of the entities, where tags have none: Disease (entity)")
    add("--scheme", choices=SCHEMES, help="rewrite the tags (default: as train.tsv has them)")
    add(
        "--columns",
        type=columns,
        metavar="NAME,NAME,...",
        help="of the files: word and tag, _ for any other (default: word,_,...,tag)",
    )
    add_fine_tuning(g, "ner")


def add_relation(g: argparse.ArgumentParser) -> None:
    add = g.add_argument
    add("--data", type=Path, required=True, help="directory of train, test and dev; or of folds")
    add("--fold", type=fold, metavar="N|all", help="of a set in folds 1, 2, ...")
    add("--split", action="store_true", help="a random tenth of all is the test set (F54)")
    add("--classes", type=int, choices=(5, 13), help="of CHEMPROT: 13 relations, or CPR:3 to CPR:9")
    add("--anonymise", action="store_true", help="@ARG1$ and @ARG2$ in place of << >> and [[ ]]")
    add("--negative", nargs="+", metavar="LABEL", help="states no relation (default: by its name)")
    add("--skip-unmarked", action="store_true", help="leave out lines that mark no two entities")
    add_fine_tuning(g, "relation")


def add_qa(g: argparse.ArgumentParser) -> None:
    add = g.add_argument
    add("--train", type=Path, required=True, help="SQuAD-form file, or Hugging Face's rows")
    add("--test", type=Path, nargs="+", required=True, help="SQuAD-form files")
    add("--golden", type=Path, nargs="+", default=[], help="BioASQ-form files of right answers")
    add("--first", type=Path, help="SQuAD-form file of a first stage (F60)")
    add("--first-epochs", type=positive, default=2, help="of it (%(default)s)")
    add("--stride", type=positive, default=128, help="pieces between windows (%(default)s)")
    add("--released-order", action="store_true", help="one answer of each snippet, in order (F58)")
    add("--allow-overlap", action="store_true", help="learn questions that are in a test file too")
    add("--skip-misplaced", action="store_true", help="leave out answers not at their answer_start")
    add_fine_tuning(g, "qa")


def add_predict(g: argparse.ArgumentParser) -> None:
    add, g.is_mixed = g.add_argument, True
    add("directory", type=Path, help="of ner, relation or qa; its head says which")
    add("inputs", nargs="*", default=["-"], metavar="INPUT",
        help="a text or JSON a line, or CoNLL's words (default: standard input)")  # fmt: skip
    add("--json", action="store_true", help="refuse a line that is not JSON")
    add("--out", metavar="PATH",
        help="file to write; a directory for several inputs, with a / behind it for one, and for "
             "brat: resumed there (default: standard output)")  # fmt: skip
    add("--format", choices=("json", "pubtator", "brat"), default="json",
        help="of entities (%(default)s: a line for each document)")  # fmt: skip
    add("--threshold", type=probability, default=0.0, metavar="P",
        help="leave out entities and answers under this probability, and make such a relation's "
             "label null. An entity's is the least of its words', that of the tag chosen among all "
             "at the word's first piece")  # fmt: skip
    add("--all-labels", action="store_true", help="of a relation: the probability of each label")
    add("--batch", type=positive, default=32, help="texts; of entities 128 tokens each (32)")
    add("--precision", choices=("auto", "fp32", "bf16", "int8"), default="auto", help="(auto)")


def add_fine_tuning(g: argparse.ArgumentParser, task: str) -> None:
    """The options that the three tasks share; those of `Recipe` default to `RECIPES[task]`."""
    g.add_argument("--model", type=Path, required=True, metavar="DIR",
                   help="Hugging Face directory to start from")  # fmt: skip
    g.add_argument("--teacher", type=Path, metavar="DIR", help="fine-tuned on the same task")
    g.add_argument("--out", type=Path, metavar="DIR",
                   help=f"of the run (default: runs/{task}-DATA-MODEL)")  # fmt: skip
    g.add_argument("--overwrite", action="store_true", help="start again in a used --out")
    g.add_argument("--seeds", type=natural, nargs="+", metavar="SEED",
                   help="one run each, in --out/seed-SEED; mean and 95 %% interval")  # fmt: skip
    g = g.add_argument_group("fields of Recipe")
    options.add_options(g, Recipe, without=["patience"])
    g.add_argument("--early-stopping", type=positive, nargs="?", const=2, dest="patience",
                   metavar="EPOCHS", default=argparse.SUPPRESS,
                   help="take the model that is best on the development set, and stop after EPOCHS "
                        "without a better one (2)")  # fmt: skip


def kind(text: str) -> str:
    """An argparse type: a word, as tags have it behind B-."""
    if not re.fullmatch(r"[^\s-]\S*", text):
        raise argparse.ArgumentTypeError(f"{text!r}, expected a word: Disease")
    return text


def fold(text: str) -> int | str:
    """An argparse type: 1, 2, 3, ..., or `all`."""
    return text if text == "all" else positive(text)


def natural(text: str) -> int:
    """An argparse type: 0, 1, 2, ..."""
    if options.whole(text) < 0:
        raise ValueError
    return int(text)


def probability(text: str) -> float:
    """An argparse type: 0 to 1."""
    if not 0 <= float(text) <= 1:
        raise argparse.ArgumentTypeError(f"{text} is not between 0 and 1")
    return float(text)


def positive(text: str) -> int:
    """An argparse type: 1, 2, 3, ..."""
    if options.whole(text) < 1:
        raise ValueError
    return int(text)


def width_of(model: Path) -> int | None:
    """The width that a directory's config.json states; None where it states none."""
    file = model / "config.json"
    config = files.read_json(file) if file.is_file() else {}
    return config.get("hidden_size", config.get("dim"))


def read(argv: list[str] | None = None) -> tuple[argparse.Namespace, Recipe | None]:
    """The command line, and the recipe of a fine-tuning.

    Raises:
        InputError: an option is unknown, out of its range, or does not fit the others.
    """
    argv = sys.argv[1:] if argv is None else argv
    args = parser(next(iter(argv), None)).parse_args(argv)
    if args.command not in RECIPES:
        return args, None
    given = options.given(args, Recipe)
    recipe = dataclasses.replace(recipe_of(args.command, width_of(args.model)), **given)
    options.check(recipe)
    for seed in args.seeds or ():
        options.check(dataclasses.replace(recipe, seed=seed))
    if len(set(args.seeds or ())) < len(args.seeds or ()):
        raise InputError(f"--seeds has one twice: {' '.join(map(str, args.seeds))}")
    if args.command == "relation" and args.fold is not None and args.split:
        raise InputError("--split draws its own test set of all folds; drop --fold or --split")
    if args.teacher is None:
        for name in OF_A_TEACHER:
            if name in given:
                raise InputError(f"{options.flag(name)} needs --teacher DIR")
    data = args.train.stem if args.command == "qa" else files.real(args.data).name
    args.out = args.out or Path("runs", f"{args.command}-{data}-{files.real(args.model).name}")
    for name in ("model", "teacher", "data"):
        if getattr(args, name, None) is not None:
            check_directory(f"--{name}", getattr(args, name), args.out)
    return args, recipe


if __name__ == "__main__":
    errors.read_early(read, "eval.py")

import torch
import torch.nn as nn
from torch import Tensor

import minibio
from minibio.batch import Counts
from minibio.distil.objectives import Objective, teach
from minibio.model.convert import load, save
from minibio.model.heads import Model
from minibio.report import scores as report
from minibio.run import checkpoint, dist, fingerprint, log, optim, precision
from minibio.run.dist import Ranks
from minibio.run.gradients import Gradients, reduce_terms
from minibio.run.log import Progress
from minibio.run.precision import autocast
from minibio.run.rundir import RunDir, StopRequest
from minibio.tasks import finetune, formats, relation
from minibio.tasks.finetune import Best, Score, Task
from minibio.tasks.jobs import Bar, predict_all
from minibio.tasks.ner import NerTask
from minibio.tasks.objective import Labels, Taught
from minibio.tasks.predict import Predictor, predict
from minibio.tasks.qa import QaTask
from minibio.tasks.reading import name_of
from minibio.tasks.relation import RelationTask
from minibio.text.feed import Epochs, ahead
from minibio.text.tokenizer import Tokenizer

MAX_SKIPS = 10  # steps in a row that are not finite, before the run gives up
BEST = ".best"  # in the run's directory: the model that early stopping has found so far


def fine_tune(objective: Objective, teacher: Model | None, task: Task, tokenizer: Tokenizer,
              feed: Epochs, recipe: Recipe, run_dir: RunDir) -> Progress:  # fmt: skip
    """Train `objective` from its first step, or from the newest checkpoint, to the last.

    With early stopping the run ends `recipe.patience` epochs after the best score on the
    development set, and the student has that epoch's weights then. Read train.py's loop first.

    Raises:
        InputError: MAX_SKIPS steps in a row were not finite, a checkpoint cannot be written or does
            not fit, another rank is gone.
    """
    ranks = run_dir.ranks
    steps = recipe.epochs * feed.steps
    log_every = recipe.log_every or max(1, steps // 20)
    save_every = recipe.save_every or min(feed.steps, 500)
    optimizer = optim.make_optimizer(objective, recipe.lr, recipe.weight_decay)
    gradients = Gradients(objective.parameters(), ranks)
    best = Best(run_dir.out / BEST, ranks)
    torch.manual_seed(recipe.seed + ranks.rank)  # dropout; weights were drawn alike on all ranks
    progress = run_dir.resume(objective, optimizer, recipe.seed)
    if progress is None:
        progress = Progress()
        if recipe.patience:
            evaluate(task, objective, run_dir, 0)
    elif recipe.patience:
        best.read()

    def is_due(step: int) -> bool:  # a checkpoint
        return step == steps or step % save_every == 0

    bar = log.progress(steps, task.name, ranks)
    bar.update(progress.step)
    with bar, StopRequest() as stop, ahead(feed, progress.samples, steps - progress.step) as line:
        began = time.perf_counter()
        for span, batches in line:
            # 1. Denominators over all micro-batches and ranks.
            *totals, asked = dist.all_sum([*Counts.of(batches), stop.name is not None], ranks)
            counts = Counts(*totals)

            # 2. Forward and backward; the last backward sums the gradients over ranks on its way.
            gradients.clear()
            terms: dict[str, Tensor] = {}
            for i, batch in enumerate(batches):
                batch = batch.to(ranks.device)
                with gradients.summed() if i == len(batches) - 1 else nullcontext():
                    with autocast(recipe.precision, ranks.device):
                        taught = None if teacher is None else teach(teacher, batch, objective.needs)
                        parts = objective(batch, taught, counts)
                    parts["loss"].backward()
                for name, x in parts.items():
                    terms[name] = terms.get(name, 0) + x.detach()

            # 3. One wait for the device. All ranks see the same figures: all move, or all skip.
            norm = nn.utils.clip_grad_norm_(gradients.parameters, recipe.clip)
            figures = reduce_terms(terms, norm, ranks)
            lr = optim.lr_at(progress.step, peak=recipe.lr, warmup=recipe.warmup, total=steps,
                             schedule=recipe.schedule)  # fmt: skip
            if all(map(math.isfinite, figures.values())):
                for group in optimizer.param_groups:
                    group["lr"] = lr
                optimizer.step()

            # 4. Count, log, evaluate, save; stop early.
            now = time.perf_counter()
            progress.add(figures, samples=span.stop, tokens=int(counts.N), seconds=now - began,
                         max_skips=MAX_SKIPS)  # fmt: skip
            bar.update()
            is_last = progress.step == steps
            if log.is_due(progress.step, log_every, steps):
                run_dir.log_interval(progress, steps, lr)
            if recipe.patience and progress.step % feed.steps == 0:
                score = evaluate(task, objective, run_dir, progress.step)
                best.offer(objective.student, tokenizer, Score(progress.step, score))
            if asked or is_due(progress.step):
                run_dir.save(progress, objective, optimizer, is_due)
            if recipe.patience and progress.step - best.score.step >= recipe.patience * feed.steps:
                break
            if asked and not is_last:
                progress.stopped = stop.name or "a signal to another rank"
                break
            began = time.perf_counter()
    if recipe.patience and not progress.stopped:
        best.restore(objective.student)
        progress.held_out = {"best": best.score._asdict()}
    return progress


def evaluate(task: Task, objective: Objective, run_dir: RunDir, step: int) -> float:
    """The score on the development set, logged."""
    score = dist.from_rank0(lambda: float(task.devel(objective.student)), run_dir.ranks)
    objective.train()
    run_dir.log({"event": "held_out", "step": step, "devel": score})
    return score


def execute(task: Task, source: Path, recipe: Recipe, out: Path, ranks: Ranks, *,
            teacher_dir: Path | None = None, origin: Path | None = None,
            overwrite: bool = False) -> dict | None:  # fmt: skip
    """Fine-tune `source` on the task, score it, write `out`; resume, or read what is finished.

    Args:
        source:      Hugging Face directory to start from.
        teacher_dir: fine-tuned on the same task.
        origin:      the model's name in the record, where `source` is a stage on the way.
    Returns:
        The record, as in NAME.json (`write_scored`); None if a signal stopped the run.
    Raises:
        InputError: `out` holds another run or model, files or shapes do not fit, steps are not
            finite.
    """
    dist.from_rank0(lambda: str(files.check_writable(out)), ranks)
    encoder, tokenizer = load(source, head="encoder")
    if tokenizer is None:
        raise InputError(
            f"{source} has no tokenizer; put the vocab.txt or tokenizer.json of the model there"
        )
    if recipe.patience and not task.has_devel:
        raise InputError("--early-stopping needs a development set, and there is none")
    recipe = dataclasses.replace(recipe, length=min(recipe.length, encoder.config.P))
    dist.print0(
        f"{task.name}: {recipe.epochs} epochs, batch {recipe.batch}, peak rate {recipe.lr:g}, "
        f"windows of {recipe.length} tokens"
    )
    task.prepare(tokenizer, recipe)
    model = finetune.build_model(source, encoder, task, recipe.seed)
    teacher = None
    if teacher_dir is not None:
        teacher = finetune.load_teacher(teacher_dir, task, tokenizer, recipe.length)
    config = {
        **{name: x for name, x in vars(recipe).items() if name not in HOW},
        "task": task.name, "labels": task.labels, **task.facts,
        "model_is": fingerprint.of_weights(model), "teacher_is": fingerprint.of_weights(teacher),
        "examples_are": fingerprint.of_value(list(task.examples)),
        "shape": vars(model.config),
    }  # fmt: skip
    torch.manual_seed(recipe.seed)  # of projections
    objective = Labels(model, recipe) if teacher is None else Taught(model, teacher, recipe)
    objective.to(ranks.device).train()
    teacher = teacher and teacher.to(ranks.device)
    feed = Epochs(task.examples, task.lengths, task.collate, ranks, batch=recipe.batch,
                  seed=recipe.seed, accumulate=recipe.accumulate)  # fmt: skip
    with RunDir(
        out, ranks, config, may_differ=options.may_differ(Recipe), record=f"{task.name}.json",
        keep=2, temporary=(checkpoint.FOLDER, BEST), overwrite=overwrite,
    ) as run_dir:  # fmt: skip
        if run_dir.finished is not None:
            dist.print0(f"{out}: finished earlier, by this command; --overwrite starts again")
            with files.as_written(out / f"{task.name}.json", "pass --overwrite to start again"):
                report.scores(run_dir.finished)
                report.figures(run_dir.finished)
            return run_dir.finished
        began = time.perf_counter()
        progress = fine_tune(objective, teacher, task, tokenizer, feed, recipe, run_dir)
        if progress.stopped:
            dist.print0(
                f"\nstopped by {progress.stopped} after step {progress.step}, saved in "
                f"{out / checkpoint.FOLDER}; re-run the same command to resume"
            )
            return None
        run_dir.log({"event": "end", "step": progress.step, **progress.held_out})
        facts = {
            "task": task.name, "data": task.facts["data"], "model": str(origin or source),
            "teacher": None if teacher_dir is None else str(teacher_dir), "seed": recipe.seed,
            "steps": progress.step, "best": progress.held_out.get("best"),
        }  # fmt: skip
        return run_dir.finish(lambda staged: write_scored(
            model, tokenizer, task, facts, staged, began))  # fmt: skip


def write_scored(
    model: Model, tokenizer: Tokenizer, task: Task, facts: dict, out: Path, began: float
) -> dict:
    """Write the model and its predictions on the test set.

    Returns:
        The record, for NAME.json:
        task, data, seed: "ner", "NCBI-disease", 42
        model, teacher:   the directories that were named; None = without a teacher
        steps, best:      optimiser steps; where early stopping found its model, or None
        test:             the scores, as the task's functions in metrics.py return them
        parameters, parameters_encoder, versions, seconds
        and, of `RunDir`, config: recipe, labels, counts, and hashes of data and weights
    """
    model.eval()
    save(model, tokenizer, out, overwrite=True)
    return {
        **facts,
        "test": task.test(model, out),
        "parameters": model.n_parameters,
        "parameters_encoder": sum(p.numel() for p in model.encoder.parameters()),
        "versions": {"minibio": minibio.__version__, "torch": str(torch.__version__)},
        "seconds": round(time.perf_counter() - began, 1),
    }


def experiment(args: argparse.Namespace, recipe: Recipe, parts: dict[str, Task],
               first: Task | None = None) -> None:  # fmt: skip
    """Fine-tune for every seed and fold, print each score, and their mean at the end.

    Args:
        parts: name of a fold -> its task; {"": task} where there are no folds.
        first: learnt before, in a first stage.
    """
    ranks = dist.start(args.device)
    try:
        chosen, why = precision.resolve(recipe.precision, ranks)
        recipe = dataclasses.replace(recipe, precision=chosen)
        rows = {**vars(recipe), "device": ranks.device, "processes": ranks.world}
        rows["precision"] += f" ({why})"
        for name in OF_A_TEACHER if args.teacher is None else ():
            del rows[name]
        rows["seed"] = " ".join(map(str, args.seeds or [recipe.seed]))
        log.print_rows(f"{args.out}: {args.model} learns {args.command}", rows)
        records = {}
        for seed in args.seeds or [recipe.seed]:
            own = dataclasses.replace(recipe, seed=seed)
            for part, task in parts.items():
                out = args.out / part / (f"seed-{seed}" if args.seeds else "")
                heading = [part, f"seed {seed}" if args.seeds else ""]
                if any(heading):
                    dist.print0(f"\n{', '.join(filter(None, heading))}: {out}")
                source = args.model
                if first is not None:
                    source, stage = (
                        out / "first",
                        dataclasses.replace(own, epochs=args.first_epochs),
                    )
                    if execute(first, args.model, stage, source, ranks,
                               overwrite=args.overwrite) is None:  # fmt: skip
                        return  # a signal stopped it
                record = execute(task, source, own, out, ranks, teacher_dir=args.teacher,
                                 origin=args.model, overwrite=args.overwrite)  # fmt: skip
                if record is None:
                    return
                dist.print0(report.scores(record))
                dist.print0(f"{out}: a Hugging Face directory, with {task.name}.json and log.jsonl")
                records[seed, part] = record
        if len(records) > 1 and report.figures(record):
            summary = report.summary(records)
            facts = {"task": record["task"], "model": record["model"], "data": record["data"]}
            path = args.out / "summary.json"
            dist.from_rank0(lambda: files.write_json(path, {**facts, **summary}), ranks)
            dist.print0(report.means(summary))
    finally:
        dist.stop(ranks)


# the commands


def run_ner(args: argparse.Namespace, recipe: Recipe) -> None:
    """Named entities."""
    experiment(args, recipe, {"": NerTask(args.data, args.scheme, args.columns, args.type)})


def run_relation(args: argparse.Namespace, recipe: Recipe) -> None:
    """Relations: one set, one fold, all folds, or a split by seed."""
    how = {"at_random": args.split, "classes": args.classes, "anonymised": args.anonymise,
           "negative": args.negative, "skip_unmarked": args.skip_unmarked}  # fmt: skip
    if args.fold != "all":
        return experiment(args, recipe, {"": RelationTask(args.data, fold=args.fold, **how)})
    numbers = [int(path.name) for path in relation.folds(args.data)]
    if not numbers:
        raise InputError(f"{args.data} has no folds: directories 1, 2, ...; drop --fold")
    parts = {f"fold-{n}": RelationTask(args.data, fold=n, **how) for n in numbers}
    experiment(args, recipe, parts)


def run_qa(args: argparse.Namespace, recipe: Recipe) -> None:
    """Questions, after a first stage on others if wanted."""
    how = {"stride": args.stride, "order": "released" if args.released_order else "pooled",
           "allow_overlap": args.allow_overlap,
           "skip_misplaced": args.skip_misplaced}  # fmt: skip
    first = None if args.first is None else QaTask(args.first, args.test, args.golden, **how)
    experiment(args, recipe, {"": QaTask(args.train, args.test, args.golden, **how)}, first)


def run_predict(args: argparse.Namespace) -> int:
    """Answers to one input, or to each of several; returns the exit status."""
    to_dir = args.out is not None and (
        len(args.inputs) > 1
        or args.format == "brat"
        or args.out.endswith(os.sep)
        or os.path.isdir(args.out)
    )
    if args.out is None and (len(args.inputs) > 1 or args.format == "brat"):
        what = "brat" if args.format == "brat" else "several inputs"
        raise InputError(f"{what} needs a directory to write to: --out DIR")
    if args.out is None and sys.stdout is None:
        raise InputError("the standard output is closed; name a file: --out FILE")
    ranks = dist.start(args.device)
    try:
        if ranks.world > 1 and not to_dir:
            raise InputError("more ranks than one deal out inputs; name a directory: --out DIR/")
        predictor = Predictor(args.directory, args.batch, ranks.device, args.precision,
                              threshold=args.threshold, all_labels=args.all_labels)  # fmt: skip
        check_predict(args, predictor)
        if to_dir:
            how = {"format": args.format, "is_json": args.json}
            return 2 if predict_all(predictor, args.inputs, Path(args.out), ranks, **how) else 0
        (path,) = args.inputs
        if args.out is not None:
            files.check_apart(args.out, path)
        with formats.output(args.out and Path(args.out), args.format, name_of(path)) as write:
            is_file = os.path.isfile(path)
            is_seen = args.out is not None or not sys.stdout.isatty()
            with Bar(os.path.getsize(path) if is_file else None, ranks, not is_seen) as bar:
                for item, answer in predict(
                    predictor, path, args.json, bar.seen if is_file else None
                ):
                    write(item, answer)
                    bar.count()
        return 0
    finally:
        dist.stop(ranks)


def check_predict(args: argparse.Namespace, predictor: Predictor) -> None:
    """Refuse options of another head than the model has."""
    for is_given, flag, head, what in (
        (args.format != "json", f"--format {args.format}", "token", "entities"),
        (args.all_labels, "--all-labels", "sequence", "relations"),
    ):
        if is_given and predictor.head != head:
            raise InputError(f"{flag} is for {what}; {args.directory} has another head: drop it")


TASKS = {"ner": run_ner, "relation": run_relation, "qa": run_qa}


def main(argv: list[str] | None = None) -> int | None:
    """Read the command line and run the command; returns its exit status, None for 0."""
    args, recipe = read(argv)
    torch.set_deterministic_debug_mode("error")  # as in train.py, but does not import the compiler
    torch.utils.deterministic.fill_uninitialized_memory = False  # a debugging aid, not a need
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    if args.threads:
        torch.set_num_threads(args.threads)
    if recipe is not None:
        TASKS[args.command](args, recipe)
    elif args.command == "predict":
        return run_predict(args)
    else:
        args.run(args)


if __name__ == "__main__":
    errors.run(main, "eval.py")
