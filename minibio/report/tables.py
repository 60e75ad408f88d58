"""Runs of `eval.py ner`, `relation` and `qa`, gathered into the paper's Tables 1 to 6.

    python eval.py table runs --out runs/tables --as tiny=TinyBioBERT teacher=BioBERT-v1.1

Rows and columns are the paper's; records.py says which runs belong to them. Other sets and models
come after the paper's, and a cell without a run is empty. A score is the mean over seeds (a seed's:
over its folds) with a 95 % interval by Student's t. Entities are compared with the paper by word
pieces, as it counted (F45), and given by words below. A share of the teacher's score is taken seed
by seed where both have the seed, else of the teacher's mean.
"""

import argparse
import csv
import statistics
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from minibio.report import paper_tables as paper
from minibio.report import plot
from minibio.report.records import METRICS, Run, find_runs
from minibio.report.scores import interval, percent, table
from minibio.run.errors import InputError
from minibio.run.files import check_writable, staged_file

KINDS = {"ner": (1, 2), "relation": (3, 4), "qa": (5, 6)}  # -> numbers of its tables
MAIN = {"ner": "F words", "relation": "F", "qa": "M"}


class MeanScore(NamedTuple):
    """A mean over seeds."""

    mean: float
    half_width: float | None  # of its 95 % interval; None of one seed
    seeds: tuple[int, ...]


# means

Seeds = dict[int, float]  # seed -> score
Cells = dict[tuple[str, str, str], Seeds]  # (row, metric, column)


def by_seed(runs: Sequence[Run]) -> Cells:
    """Each seed's score, the mean over its folds.

    Raises:
        InputError: one seed has folds that another lacks: their means would not compare.
    """
    folds = defaultdict(lambda: defaultdict(dict))
    for run in runs:
        for metric, x in run.scores.items():
            folds[run.row, metric, run.model][run.seed][run.fold] = x
    for (row, _, model), seeds in folds.items():
        (first, expected), *others = seeds.items()
        for seed, found in others:
            if set(found) != set(expected):
                raise InputError(
                    f"{model} on {row}: seed {seed} has folds {list(found)}, seed {first} "
                    f"{list(expected)}; run what is missing"
                )
    return {
        cell: {seed: statistics.fmean(seeds[seed].values()) for seed in sorted(seeds)}
        for cell, seeds in folds.items()
    }


def score(seeds: Seeds) -> MeanScore | None:
    """Mean and interval; None without a seed."""
    return MeanScore(*interval(list(seeds.values())), tuple(seeds)) if seeds else None


def share(student: Seeds, teacher: Seeds) -> Seeds:
    """The student's share of the teacher's score, seed by seed; {} where it is not defined."""
    if not student or not teacher:
        return {}
    common = [seed for seed in student if seed in teacher]
    mean = statistics.fmean(teacher.values())
    by = {seed: teacher[seed] if common else mean for seed in common or student}
    return {seed: student[seed] / x for seed, x in by.items()} if all(by.values()) else {}


def together(shares: Sequence[Seeds]) -> Seeds:
    """Mean over sets, for the seeds that all of them have."""
    common = set.intersection(*map(set, shares)) if shares else set()
    return {seed: statistics.fmean(x[seed] for x in shares) for seed in sorted(common)}


# cells


class Cell(NamedTuple):
    """One number of a table, ours and the paper's."""

    table: int  # 1 to 6; 0 of the shares taken together
    row: str
    metric: str
    model: str
    ours: MeanScore | None
    paper: float | None  # fraction of 1
    share: MeanScore | None  # of the teacher's
    paper_share: float | None


def paper_cell(row: str, metric: str, model: str) -> tuple[float | None, float | None]:
    """The paper's figure and its share of the paper's teacher's, fractions of 1."""
    x, teacher = paper.figure(model, row, metric), paper.figure(paper.TEACHER, row, metric)
    return (None if x is None else x / 100), (x / teacher if x and teacher else None)


def layout(runs: Sequence[Run], number: int) -> tuple[list[str], list[str], tuple[str, ...]]:
    """Rows, columns and metrics of one table: the paper's, then what only we have.

    A model that is in none of the paper's tables goes into the first table of its kind.
    """
    kind = next(kind for kind, numbers in KINDS.items() if number in numbers)
    own = paper.TABLES[number]
    rows, columns = list(own.rows), list(own.models)
    known = {model for n in KINDS[kind] for model in paper.TABLES[n].models}
    for run in runs:
        if run.kind == kind:
            if number == KINDS[kind][0] and run.model not in known:
                columns.append(run.model)
                known.add(run.model)
            if run.model in columns and run.row not in rows:
                rows.append(run.row)
    return rows, columns, METRICS[kind]


def cells(runs: Sequence[Run], teacher: str) -> list[Cell]:
    """Every cell of the six tables, in reading order."""
    ours, found = by_seed(runs), []
    for number in paper.TABLES:
        rows, columns, metrics = layout(runs, number)
        for row in rows:
            for metric in metrics:
                base = ours.get((row, metric, teacher), {})
                for model in columns:
                    seeds = ours.get((row, metric, model), {})
                    x, paper_share = paper_cell(row, metric, model)
                    shares = score(share(seeds, base)), paper_share
                    found.append(Cell(number, row, metric, model, score(seeds), x, *shares))
    return found


GROUPS = {  # means of shares: name -> kind -> metric
    "entities, F by pieces": {"ner": "F"}, "entities, F by words": {"ner": "F words"},
    "relations, F": {"relation": "F"}, "answers, MRR": {"qa": "M"}, "all": MAIN,
}  # fmt: skip


def overall(runs: Sequence[Run], teacher: str) -> list[Cell]:
    """Share of the teacher that each model retains: the mean over the sets both were scored on.

    The paper's share is over the same sets, and missing where it lacks one of them.
    """
    ours, found = by_seed(runs), []
    for name, metrics in GROUPS.items():
        rows = list(
            dict.fromkeys((run.row, metrics[run.kind]) for run in runs if run.kind in metrics)
        )
        for model in dict.fromkeys(run.model for run in runs):
            parts = {
                (row, metric): share(
                    ours.get((row, metric, model), {}), ours.get((row, metric, teacher), {})
                )
                for row, metric in rows
            }
            parts = {place: seeds for place, seeds in parts.items() if seeds}
            theirs = [paper_cell(row, metric, model)[1] for row, metric in parts]
            mean = statistics.fmean(theirs) if theirs and None not in theirs else None
            sets = f"{name}: {', '.join(row for row, _ in parts) or 'no set'}"
            shares = score(together(list(parts.values()))), mean
            found.append(Cell(0, sets, "share", model, None, None, *shares))
    return found


def both(ours: MeanScore | None, theirs: float | None) -> str:
    """`87.93 ± 0.41 [88.67]`: ours, its interval, the paper's."""
    half = None if ours is None else ours.half_width
    return (
        percent(None if ours is None else ours.mean)
        + ("" if half is None else f" ± {percent(half)}")
        + ("" if theirs is None else f" [{percent(theirs)}]")
    )


def markdown(found: Sequence[Cell], totals: Sequence[Cell], teacher: str) -> str:
    """The six tables, each with the shares of the teacher's below, and the shares together."""
    parts = [
        "Per cent: ours ± half the 95 % interval over seeds [the paper's, one run]. - is missing. "
        "P, R and F of entities are by word pieces, as in the paper; words is the count of other "
        f"publications. Shares are of {teacher}'s score, ours [in the paper].\n"
    ]
    for number in paper.TABLES:
        own = [cell for cell in found if cell.table == number]
        columns = list(dict.fromkeys(cell.model for cell in own))
        grid = {(cell.row, cell.metric, cell.model): cell for cell in own}
        body, shares = [], []
        for row, metric in dict.fromkeys((cell.row, cell.metric) for cell in own):
            line = [grid[row, metric, model] for model in columns]
            body.append([row, metric, *(both(cell.ours, cell.paper) for cell in line)])
            if metric in ("F", "F words", "M"):
                parts_of = (both(cell.share, cell.paper_share) for cell in line)
                shares.append([row, f"{metric}, share", *parts_of])
        parts.append(f"## Table {number}\n\n{table(['set', 'metric', *columns], body + shares)}\n")
    body = [
        [cell.model, cell.row, both(cell.share, cell.paper_share)]
        for cell in totals
        if cell.share is not None
    ]
    if body:
        text = table(["model", "mean over", "share"], body)
        parts.append(f"## Retained of {teacher}\n\n{text}\n")
    return "\n".join(parts)


def write_csv(path: Path, found: Sequence[Cell]) -> None:
    """A line a cell; fractions of 1, empty where missing."""
    head = ["table", "row", "metric", "model", "mean", "half_width", "seeds", "paper",
            "share", "share_half_width", "share_seeds", "paper_share"]  # fmt: skip

    def columns(x: MeanScore | None) -> list:
        if x is None:
            return ["", "", ""]
        half = "" if x.half_width is None else f"{x.half_width:.6f}"
        return [f"{x.mean:.6f}", half, " ".join(map(str, x.seeds))]

    def number(x: float | None) -> str:
        return "" if x is None else f"{x:.6f}"

    with staged_file(path) as staged, staged.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(head)
        for c in found:
            place = [c.table or "overall", c.row, c.metric, c.model]
            ours = [*columns(c.ours), number(c.paper)]
            writer.writerow([*place, *ours, *columns(c.share), number(c.paper_share)])


def panels(found: Sequence[Cell]) -> list[plot.Panel]:
    """One panel a kind: the main figure of every model of ours on every set of ours, in per cent,
    and the paper's as marks (of entities by pieces, since the paper has no other)."""
    result = []
    for kind, metric, title in (
        ("ner", "F", "entities: F1 by word pieces (%)"),
        ("relation", "F", "relations: F1 (%)"),
        ("qa", "M", "answers: MRR (%)"),
    ):
        own = {
            (c.row, c.model): c
            for c in found
            if c.table in KINDS[kind] and c.metric == metric and c.ours is not None
        }
        rows, models = (list(dict.fromkeys(place[i] for place in own)) for i in (0, 1))
        if not own:
            continue

        def values(of, own=own, rows=rows, models=models):
            return {
                model: [of(own[row, model]) if (row, model) in own else None for row in rows]
                for model in models
            }

        result.append(
            plot.Panel(
                title,
                rows,
                values(lambda c: 100 * c.ours.mean),
                values(lambda c: c.ours.half_width and (100 * c.ours.half_width,) * 2),
                values(lambda c: c.paper and 100 * c.paper),
            )
        )
    return result


def tables(
    places: Sequence[Path],
    out: Path,
    columns: Mapping[str, str] | None = None,
    teacher: str | None = None,
) -> str:
    """Write tables.md, tables.csv and tables.png.

    Args:
        places:  directories of runs, or above them.
        out:     directory to write.
        columns: name of a model's directory -> its column.
        teacher: column whose score is the whole; None = BioBERT's, v1.1 or else v1.2.
    Returns:
        the text of tables.md.
    Raises:
        InputError: as `find_runs`; no run is of the teacher that is named; matplotlib is missing.
    """
    paths = {kind: out / f"tables.{kind}" for kind in ("md", "csv", "png")}
    for path in paths.values():
        check_writable(path)
    plot.new_figure(paths["png"], 1, 1)  # what it would refuse at the end
    runs = find_runs(places, columns or {})
    models = dict.fromkeys(run.model for run in runs)
    if teacher is None:
        teacher = next((x for x in (paper.TEACHER, "BioBERT-v1.2") if x in models), paper.TEACHER)
    elif teacher not in models:
        raise InputError(f"--teacher {teacher}: no such column, expected {', '.join(models)}")
    found, totals = cells(runs, teacher), overall(runs, teacher)
    text = markdown(found, totals, teacher)
    with staged_file(paths["md"]) as staged:
        staged.write_text(text, "utf-8")
    write_csv(paths["csv"], [*found, *totals])
    plot.scores(panels(found), paths["png"])
    return text


def run_table(args: argparse.Namespace) -> None:
    """`eval.py table`."""
    print(tables(args.runs, args.out, dict(map(pair, args.columns)), args.teacher))
    print(*(args.out / f"tables.{kind}" for kind in ("md", "csv", "png")), sep="\n")


def pair(text: str) -> tuple[str, str]:
    """NAME=COLUMN -> both."""
    name, _, column = text.partition("=")
    if not name or not column:
        raise InputError(f"--as {text!r}: expected NAME=COLUMN, as in tiny=TinyBioBERT")
    return name, column


def add_arguments(p: argparse.ArgumentParser) -> None:
    """The options of `eval.py table`."""
    p.set_defaults(run=run_table)
    p.add_argument(
        "runs",
        nargs="+",
        type=Path,
        metavar="DIR",
        help="directories of ner, relation or qa, or above them",
    )
    p.add_argument(
        "--as",
        nargs="+",
        default=[],
        dest="columns",
        metavar="NAME=COLUMN",
        help="the column of a model, by the end of its directory's path",
    )
    p.add_argument(
        "--teacher", metavar="COLUMN", help=f"whose score is the whole (default: {paper.TEACHER})"
    )
    p.add_argument(
        "--out",
        type=Path,
        default=Path("runs/tables"),
        help="directory of tables.md, .csv and .png (%(default)s)",
    )
