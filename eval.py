"""Fine-tune on the paper's tasks, score, predict, and set models side by side (section 5).

    python eval.py ner      --model runs/tiny --data NCBI-disease --out runs/tiny-ncbi --seeds 0 1 2
    python eval.py relation --model runs/tiny --data gad --fold all --out runs/tiny-gad
    python eval.py qa       --model runs/tiny --train BioASQ-train-factoid-7b.json \
        --test BioASQ-test-factoid-6b-1.json --golden 6B1_golden.json --out runs/tiny-bioasq
    python eval.py predict  runs/tiny-ncbi abstracts.txt > names.jsonl
    python eval.py compare  runs/teacher runs/tiny runs/scratch --ner runs/teacher-ner ...

A fine-tuning learns from the training set, chooses nothing by the others, and scores the test set
once, at the end. Stopped by a signal or a crash, it goes on when the same command is given again;
under torchrun it runs on several processes. Read `experiment` first, then tasks/finetune.py.
"""

import argparse
import dataclasses
import json
import os
import sys
from pathlib import Path

import torch

from minibio.bench.speed import add_arguments as add_speed
from minibio.report import scores as report
from minibio.report.compare import add_arguments as add_compare
from minibio.report.tables import add_arguments as add_table
from minibio.run import dist, errors, files, optim
from minibio.run.errors import InputError
from minibio.tasks import relation
from minibio.tasks.experiments import ner_task, qa_task, relation_task
from minibio.tasks.finetune import RECIPES, MakeTask, Recipe, Way, fine_tune
from minibio.tasks.objective import ALPHA
from minibio.tasks.predict import Predictor, predict
from minibio.tasks.tags import SCHEMES


def experiment(args, parts: dict[str, MakeTask], first: MakeTask | None = None) -> None:
    """Fine-tune for every seed and fold, print each score, and their mean at the end.

    Args:
        parts: name of a fold -> its task; {"": task} where there are no folds.
        first: what is learnt before, in a first stage.
    """
    args.out = args.out or default_place(args)
    if args.teacher is None and (args.alpha or args.layer_map or args.method != Recipe.method):
        raise InputError("--method, --alpha and --layer-map are of a teacher; pass --teacher DIR")
    recipe = Recipe(**{f.name: getattr(args, f.name) for f in dataclasses.fields(Recipe)})
    ranks = dist.start(args.device)
    try:
        show(args, recipe, ranks)
        records = {}
        for seed in args.seeds or [args.seed]:
            for part, make in parts.items():
                out = args.out / part / (f"seed-{seed}" if args.seeds else "")
                own = dataclasses.replace(recipe, seed=seed)
                record = learn(args, make, first, own, out, ranks)
                if record is None:  # a signal stopped it
                    return
                records[seed, part] = record
        if len(records) > 1 and report.figures(record):
            summary = report.summary(records)
            facts = {"task": record["task"], "model": record["model"], "data": record["data"]}
            path = args.out / "summary.json"
            dist.from_rank0(lambda: files.write_json(path, {**facts, **summary}), ranks)
            dist.print0(report.means(summary))
    finally:
        dist.stop(ranks)


def learn(args, make: MakeTask, first: MakeTask | None, recipe: Recipe, out: Path,
          ranks: dist.Ranks) -> dict | None:  # fmt: skip
    """One fine-tuning, after its first stage if it has one -> its record; None if stopped."""
    way = Way(ranks, args.overwrite, args.accumulate, args.log_every, args.save_every)
    source = args.model
    if first is not None:
        source, stage = out / "first", dataclasses.replace(recipe, epochs=args.first_epochs)
        if fine_tune(args.model, first, stage, source, way) is None:
            return None
    record = fine_tune(source, make, recipe, out, way, args.teacher, origin=args.model)
    if record is not None:
        dist.print0(report.scores(record))
        dist.print0(f"{out}: a Hugging Face directory, with {record['task']}.json and log.jsonl")
    return record


def default_place(args) -> Path:
    data = args.train.stem if args.command == "qa" else args.data.resolve().name
    return Path("runs") / f"{args.command}-{data}-{args.model.resolve().name}"


def show(args, recipe: Recipe, ranks: dist.Ranks) -> None:
    """What is about to be done."""
    rows = {**dataclasses.asdict(recipe), "device": ranks.device, "processes": ranks.world}
    for name in ("method", "alpha", "temperature", "layer_map") if args.teacher is None else ():
        del rows[name]
    dist.print0(report.columns(f"{args.out}: {args.model} learns {args.command}", rows))


def run_ner(args) -> None:
    """Named entities."""
    experiment(args, {"": ner_task(args.data, args.scheme)})


def run_relation(args) -> None:
    """Relations: one set, one fold, all folds, or a split by seed."""
    how = {"at_random": args.split, "classes": args.classes, "anonymise": args.anonymise}
    if args.fold != "all":
        return experiment(args, {"": relation_task(args.data, fold=args.fold, **how)})
    folds = [int(path.name) for path in relation.folds(args.data)]
    if not folds:
        raise InputError(f"{args.data} has no folds: directories 1, 2, ...; drop --fold")
    experiment(args, {f"fold-{n}": relation_task(args.data, fold=n, **how) for n in folds})


def run_qa(args) -> None:
    """Questions, after a first stage on others if wanted."""
    how = {"stride": args.stride, "order": "released" if args.released_order else "pooled",
           "allow_overlap": args.allow_overlap}  # fmt: skip
    tests = (args.test, args.golden)
    first = None if args.first is None else qa_task(args.first, *tests, **how)
    experiment(args, {"": qa_task(args.train, *tests, **how)}, first)


def run_predict(args) -> None:
    """A line of JSON for each line of text."""
    device = dist.pick_device(args.device)
    predictor = Predictor(args.directory, args.batch, device, args.precision)
    if args.out is None:
        write_lines(sys.stdout, predict(predictor, args.text, args.json))
    else:
        with files.staged_file(args.out) as staged, open(staged, "w", encoding="utf-8") as file:
            write_lines(file, predict(predictor, args.text, args.json))


def write_lines(file, values) -> None:
    for value in values:
        file.write(json.dumps(value, ensure_ascii=False) + "\n")
        file.flush()


# the command line


def parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser("eval.py", description=__doc__.split("\n")[0])
    commands = p.add_subparsers(dest="command", required=True)

    g = commands.add_parser("ner", help="named entities: fine-tune, score, save")
    g.set_defaults(run=run_ner)
    g.add_argument("--data", type=Path, required=True,
                   help="directory of train.tsv, test.tsv and, if wanted, devel.tsv")  # fmt: skip
    g.add_argument(
        "--scheme",
        choices=SCHEMES,
        help="rewrite the tags that are learnt (default: as train.tsv has them)",
    )
    add_fine_tuning(g, "ner")

    g = commands.add_parser("relation", help="relations: fine-tune, score, save")
    g.set_defaults(run=run_relation)
    g.add_argument(
        "--data",
        type=Path,
        required=True,
        help="directory of train, test and, if wanted, dev; or of folds 1, 2, ...",
    )
    g.add_argument("--fold", type=fold, metavar="N|all", help="of a set in folds")
    g.add_argument(
        "--split",
        action="store_true",
        help="a tenth of all examples, drawn from the seed, is the test set (F54)",
    )
    g.add_argument(
        "--classes",
        type=int,
        choices=(5, 13),
        help="of CHEMPROT: its 13 relations, or the five groups CPR:3 to CPR:9",
    )
    g.add_argument("--anonymise", action="store_true",
                   help="@ARG1$ and @ARG2$ in place of << >> and [[ ]]")  # fmt: skip
    add_fine_tuning(g, "relation")

    g = commands.add_parser("qa", help="questions: fine-tune, answer, score, save")
    g.set_defaults(run=run_qa)
    g.add_argument("--train", type=Path, required=True, help="SQuAD-form file")
    g.add_argument("--test", type=Path, nargs="+", required=True, help="SQuAD-form files")
    g.add_argument("--golden", type=Path, nargs="+", default=[],
                   help="BioASQ-form files of the right answers")  # fmt: skip
    g.add_argument("--first", type=Path, help="SQuAD-form file of a first stage (F60)")
    g.add_argument("--first-epochs", type=positive, default=2, help="of it (%(default)s)")
    g.add_argument("--stride", type=positive, default=128,
                   help="pieces from one window to the next (%(default)s)")  # fmt: skip
    g.add_argument(
        "--released-order",
        action="store_true",
        help="the best answer of each snippet, in the snippets' order (F58)",
    )
    g.add_argument("--allow-overlap", action="store_true",
                   help="learn questions of train that stand in a test file too")  # fmt: skip
    add_fine_tuning(g, "qa")

    g = commands.add_parser("predict", help="apply a fine-tuned directory to text")
    g.set_defaults(run=run_predict)
    g.add_argument("directory", type=Path, help="of ner, relation or qa; its head says which")
    g.add_argument("text", nargs="?", default="-", help="a text a line (default: standard input)")
    g.add_argument("--json", action="store_true", help="the lines are JSON (tasks/predict.py)")
    g.add_argument("--out", type=Path, help="file to write (default: standard output)")
    g.add_argument("--batch", type=positive, default=32, help="texts (%(default)s)")
    g.add_argument("--precision", choices=("fp32", "bf16"), default="fp32")

    g = commands.add_parser("compare", help="a table of runs: size, loss, entity F1, speed")
    add_compare(g)

    g = commands.add_parser("speed", help="Figure 2: latency, throughput, memory, size on disk")
    add_speed(g)

    g = commands.add_parser("table", help="Tables 1 to 6, from runs of ner, relation and qa")
    add_table(g)

    for g in commands.choices.values():
        g.add_argument("--device", help="cuda, cpu (default: cuda if there is one)")
        g.add_argument("--threads", type=positive, help="of the CPU (default: torch's own choice)")
    return p


def add_fine_tuning(g: argparse.ArgumentParser, task: str) -> None:
    """The options of fine-tuning; defaults are the paper's."""
    r = RECIPES[task]
    g.add_argument("--model", type=Path, required=True, help="Hugging Face directory to start from")
    g.add_argument("--out", type=Path, help=f"directory to write (default: runs/{task}-DATA-MODEL)")
    g.add_argument("--overwrite", action="store_true", help="do anew what is finished in --out")
    g.add_argument("--seeds", type=natural, nargs="+", metavar="SEED",
                   help="one run each, in --out/seed-SEED; mean and 95 %% interval")  # fmt: skip
    g.add_argument("--epochs", type=positive, default=r.epochs, help="default %(default)s")
    g.add_argument("--batch", type=positive, default=r.batch, help="examples (%(default)s)")
    g.add_argument("--lr", type=float, default=r.lr, help="peak learning rate (%(default)s)")
    g.add_argument("--schedule", choices=optim.SCHEDULES, default=r.schedule)
    g.add_argument("--warmup", type=natural, default=r.warmup, help="steps (%(default)s)")
    g.add_argument("--weight-decay", type=float, default=r.weight_decay)
    g.add_argument("--clip", type=float, default=r.clip, help="largest gradient norm (%(default)s)")
    g.add_argument("--length", type=int, default=r.length,
                   help="tokens of the longest window (%(default)s)")  # fmt: skip
    g.add_argument("--seed", type=natural, default=r.seed)
    g.add_argument("--precision", choices=("fp32", "bf16"), default=r.precision)
    g.add_argument("--early-stopping", type=positive, nargs="?", const=2, default=0,
                   dest="patience", metavar="EPOCHS",
                   help="take the model that is best on the development set, and stop after EPOCHS "
                        "without a better one (2)")  # fmt: skip
    g.add_argument("--accumulate", type=positive, default=1, help="micro-batches a step")
    g.add_argument("--log-every", type=positive, default=0, help="steps")
    g.add_argument("--save-every", type=positive, default=0,
                   help="steps (default: an epoch, at most 500)")  # fmt: skip
    t = g.add_argument_group("with a teacher", "weights and their sources: task_objective.py")
    t.add_argument("--teacher", type=Path, help="directory fine-tuned on the same task")
    t.add_argument("--method", choices=ALPHA, default=r.method, help="what is learnt of it")
    t.add_argument("--alpha", type=numbers(float), default=(), metavar="A,B,C",
                   help="weights of labels, soft labels and layers")  # fmt: skip
    t.add_argument("--temperature", type=float, default=r.temperature, help="of the soft labels")
    t.add_argument("--layer-map", type=numbers(int), default=(), help="teacher layers, from 1")


def numbers(kind):
    """An argparse type: `1,5,3`."""

    def parse(text):
        return tuple(kind(x) for x in text.split(","))

    parse.__name__ = "numbers"
    return parse


def fold(text: str) -> int | str:
    """An argparse type: 1, 2, 3, ..., or `all`."""
    return text if text == "all" else positive(text)


def natural(text: str) -> int:
    """An argparse type: 0, 1, 2, ..."""
    if int(text) < 0:
        raise ValueError
    return int(text)


def positive(text: str) -> int:
    """An argparse type: 1, 2, 3, ..."""
    if int(text) < 1:
        raise ValueError
    return int(text)


def main(argv=None) -> None:
    args = parser().parse_args(argv)
    torch.use_deterministic_algorithms(True)
    torch.utils.deterministic.fill_uninitialized_memory = False  # a debugging aid, not a need
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    if args.threads:
        torch.set_num_threads(args.threads)
    args.run(args)


if __name__ == "__main__":
    errors.run(main, "eval.py")
