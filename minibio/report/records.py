"""Records of `eval.py ner`, `relation` and `qa`, read back for tables: which runs are alike.

A run is a directory that holds a record, ner.json, relation.json or qa.json, one JSON object:

    "task"     "ner" | "relation" | "qa"
    "model"    directory that was fine-tuned; its name decides the column
    "teacher"  directory of the teacher on the task, or null
    "data"     name of the data set; it decides the row (for qa, "tests" in "config" does)
    "seed"     of the fine-tuning (older records: "seed" in "config")
    "config"   every other setting; "fold" is null or a number
    "test"     the scores, fractions of 1:
               ner       {"word": {"precision", "recall", "f1"}, "piece": the same}
               relation  {"main": "micro" | "macro", that name: {"precision", "recall", "f1"}}
               qa        {"strict_accuracy", "lenient_accuracy", "mrr", "questions"}

Rows and columns are the paper's where names mean the same: tiny-biobert is TinyBioBERT, s800 is
Species-800. BioASQ is the paper's set only when all 162 questions of 7b were asked, CHEMPROT only
with its 13 classes. Runs that share row and column differ in seed and fold and in nothing else:
any other setting in which they differ is added to the name, of the row if it belongs to the data or
the counting, else of the column.
"""

import dataclasses
import json
import os
import re
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from minibio.config import RECIPES
from minibio.report import paper_tables as paper
from minibio.run.errors import InputError
from minibio.run.files import as_written, read_json

PRF = {"P": "precision", "R": "recall", "F": "f1"}
SLM = {"S": "strict_accuracy", "L": "lenient_accuracy", "M": "mrr"}
METRICS = {
    "ner": (*PRF, *(f"{name} words" for name in PRF)), "relation": tuple(PRF), "qa": tuple(SLM),
}  # fmt: skip
QUESTIONS_7B = 162

# other names of models and sets; only letters and digits count
MODEL_NAMES = {
    "biobert": paper.TEACHER, "biobertbasecasedv11": paper.TEACHER,
    "biobertbasecasedv12": "BioBERT-v1.2", "biobertv12": "BioBERT-v1.2",
    "distilbertbasecased": "DistilBERT", "distilbertbaseuncased": "DistilBERT",
    "tinybertgeneral4l312d": "TinyBERT", "mobilebertuncased": "MobileBERT",
    "biodistilbertcased": "BioDistilBERT", "biodistilbertuncased": "BioDistilBERT",
    "mobilebiobert": "BioMobileBERT",
}  # fmt: skip
SET_NAMES = {
    "ncbi": "NCBI-disease", "bc4chem": "BC4CHEMD", "s800": "Species-800", "chemprot13": "CHEMPROT",
}  # fmt: skip

# settings of the data and of the counting: where they differ, they name the row
OF_THE_DATA = ("data", "tests", "scheme", "classes", "at_random", "folds", "anonymise", "stride",
               "order", "allow_overlap", "negative")  # fmt: skip
# what follows from model, seed and fold, or is summed up in the other digests
FOLLOWS = ("task", "seed", "fold", "model_is", "teacher_is", "counts", "labels")
DIGESTS = ("data_is", "examples_are")  # compared last: most of their differences have a name
OPTIONS = {"patience": "early-stopping", "at_random": "split", "data_is": "data",
           "examples_are": "examples"}  # fmt: skip


class Run(NamedTuple):
    """One record."""

    path: Path
    kind: str  # "ner" | "relation" | "qa"
    model: str  # column
    row: str
    seed: int
    fold: int | None
    scores: dict[str, float]  # metric -> fraction of 1
    directory: Path = Path()  # the model's
    source: dict = {}  # which model it is: directory, shape
    training: dict = {}  # settings that name the column where they differ
    data: dict = {}  # settings that name the row where they differ
    digests: dict = {}  # of data and examples; {} where they change with the seed


def plain(name: str) -> str:
    """A name's letters and digits: Tiny-BioBERT is tinybiobert."""
    return re.sub(r"[^a-z0-9]", "", name.lower())


def known_as(name: str, known: Sequence[str], others: Mapping[str, str]) -> str:
    """The one of `known` that `name` means, or `name` itself."""
    return {plain(x): x for x in known}.get(plain(name)) or others.get(plain(name), name)


def ends_in(path: Path, name: str) -> bool:
    """Whether `name` is the end of a path, in whole parts."""
    parts = Path(name).parts
    return path.parts[-len(parts) :] == parts


def column_of(directory: str, columns: Mapping[str, str]) -> tuple[str, bool]:
    """The column of a model's directory, and whether `columns` names it.

    Args:
        columns: name of a directory, or the end of its path -> column.
    """
    path = Path(directory)
    for name in sorted(columns, key=len, reverse=True):
        if ends_in(path, name):
            return columns[name], True
    return known_as(path.name, (*paper.DISTILLED, *paper.CONTINUED), MODEL_NAMES), False


def row_of(kind: str, record: dict) -> str:
    """The row of a record: the paper's where data and counting are the paper's."""
    config = record.get("config", {})
    name = known_as(record["data"], (*paper.NER, *paper.RELATION), SET_NAMES)
    if kind == "relation" and name == "CHEMPROT" and config.get("classes", 13) != 13:
        return f"CHEMPROT, {config['classes']} classes"
    if kind != "qa":
        return name
    editions = {tuple(re.findall(r"(\d+)b", stem.lower())[-1:]) for stem in config["tests"]}
    if len(editions) != 1 or () in editions:
        return f"{name} ({', '.join(config['tests'])})"
    ((edition,),) = editions
    questions = record["test"]["questions"]
    is_whole = edition == "7" and questions == QUESTIONS_7B
    return f"BioASQ {edition}b" + ("" if is_whole else f", {questions} questions")


def scores_of(kind: str, test: dict) -> dict[str, float]:
    """Every metric of a record's "test"."""
    if kind == "ner":
        scores = {name: test["piece"][key] for name, key in PRF.items()}
        scores |= {f"{name} words": test["word"][key] for name, key in PRF.items()}
    elif kind == "relation":
        scores = {name: test[test["main"]][key] for name, key in PRF.items()}
    else:
        scores = {name: test[key] for name, key in SLM.items()}
    if not all(0 <= float(x) <= 1 for x in scores.values()):
        raise ValueError
    return {name: float(x) for name, x in scores.items()}


def defaults(kind: str) -> dict:
    """The default settings of a task, as JSON holds them."""
    return json.loads(json.dumps(dataclasses.asdict(RECIPES[kind])))


def settings(record: dict, path: Path, columns: Mapping[str, str]) -> dict[str, dict]:
    """Everything in which one run can differ from another: the last four fields of `Run`."""
    kind, config = record["task"], record.get("config", {})
    given = {**defaults(kind), **config, "folds": config.get("fold") is not None, "teacher": None}
    if record.get("teacher"):
        given["teacher"] = column_of(record["teacher"], columns)[0]
    first = path.parent / "first" / path.name  # an earlier stage, on other data
    if first.exists():
        given["first"] = read_json(first).get("data")
    source = given.pop("shape", None) or {}
    if not column_of(record["model"], columns)[1]:
        source = {"model": os.path.relpath(record["model"]), **source}
    of_the_data = {k: given.get(k) for k in OF_THE_DATA if kind == "qa" or k != "data"}
    rest = (*OF_THE_DATA, *FOLLOWS, *DIGESTS)
    return {
        "source": source,
        "training": {k: x for k, x in given.items() if k not in rest},
        "data": of_the_data,
        "digests": {} if given.get("at_random") else {k: given.get(k) for k in DIGESTS},
    }


def read_run(path: Path, columns: Mapping[str, str]) -> Run:
    """One record.

    Args:
        columns: name of a model's directory -> its column, where the name does not say it.
    Raises:
        InputError: it is not a record of these commands.
    """
    record = read_json(path)
    try:
        kind, config = record["task"], record.get("config", {})
        seed, fold = record.get("seed", config.get("seed")), config.get("fold")
        if kind not in METRICS or not Path(record["model"]).name or type(seed) is not int:
            raise ValueError
        if fold is not None and type(fold) is not int:
            raise ValueError
        model, _ = column_of(record["model"], columns)
        return Run(
            path,
            kind,
            model,
            row_of(kind, record),
            seed,
            fold,
            scores_of(kind, record["test"]),
            Path(record["model"]),
            **settings(record, path, columns),
        )
    except (AttributeError, KeyError, OverflowError, TypeError, ValueError):
        raise InputError(
            f"{path} holds no scores of `eval.py {path.stem}`; run it again, or leave it out"
        ) from None


def record_paths(places: Sequence[Path]) -> list[Path]:
    """Every record in these directories and below, each once; not those of first stages.

    Raises:
        InputError: a place holds none.
    """
    names = {f"{kind}.json" for kind in METRICS}
    paths = []
    for place in places:
        found = sorted(
            p
            for p in place.rglob("*.json")
            if p.name in names
            and not (p.parent.name == "first" and (p.parent.parent / p.name).exists())
        )
        if not found:
            raise InputError(
                f"{place} holds no {', '.join(sorted(names))}; name directories of runs"
            )
        paths += found
    return list(dict.fromkeys(p.resolve() for p in paths))


def read_lines(path: Path) -> list[dict]:
    """The lines of a measured.jsonl, of `make results`; none if it is missing."""
    if not path.exists():
        return []
    with as_written(path, "remove its last line"):
        lines = [json.loads(line) for line in path.read_text("utf-8").splitlines()]
        return [
            line | {"name": str(line["name"]), "command": str(line["command"])} for line in lines
        ]


def find_runs(places: Sequence[Path], columns: Mapping[str, str]) -> list[Run]:
    """Every run in these directories and below, sharing row and column only with its like.

    Raises:
        InputError: a place holds none, a record cannot be read, two are of the same run, a name in
            `columns` is of no run.
    """
    runs = [read_run(path, columns) for path in record_paths(places)]
    for name, column in columns.items():
        if not any(ends_in(run.directory, name) for run in runs):
            there = ", ".join(sorted({run.directory.name for run in runs}))
            raise InputError(f"--as {name}={column}: no run is of {name!r}; there are {there}")
    runs = name_apart(runs, "model", "source", lambda run: run.model)
    runs = name_apart(runs, "model", "training", lambda run: (run.kind, run.model))
    runs = name_apart(runs, "row", "data", lambda run: (run.kind, run.row))
    runs = name_apart(runs, "row", "digests", lambda run: (run.kind, run.row, run.model, run.fold))
    first = {}
    for run in runs:
        other = first.setdefault((run.kind, run.model, run.row, run.seed, run.fold), run)
        if other is not run:
            raise InputError(
                f"{run.path} and {other.path} are both {run.model} on {run.row} with seed "
                f"{run.seed}; leave one out, or name the models apart with --as"
            )
    return runs


def name_apart(runs: Sequence[Run], name: str, fields: str, like: Callable) -> list[Run]:
    """The runs, with the settings in which those of one group differ added to their names.

    A setting at its default adds nothing, so that plain runs keep the paper's row and column.

    Args:
        name:   field that holds the name: "model" or "row".
        fields: field that holds the settings.
        like:   run -> its group.
    """
    groups = defaultdict(list)
    for run in runs:
        groups[like(run)].append(getattr(run, fields))
    differ = {}
    for group, each in groups.items():
        keys = dict.fromkeys(key for one in each for key in one)
        values = {key: {json.dumps(one.get(key) or None) for one in each} for key in keys}
        differ[group] = [key for key in keys if len(values[key]) > 1]
    return [
        run._replace(
            **{
                name: ", ".join(
                    [
                        getattr(run, name),
                        *filter(
                            None,
                            (
                                said(run.kind, key, getattr(run, fields).get(key))
                                for key in differ[like(run)]
                            ),
                        ),
                    ]
                )
            }
        )
        for run in runs
    ]


def said(kind: str, key: str, value) -> str:
    """A setting in a name: `epochs 20`, `early-stopping 2`, `anonymise`; "" for the default."""
    known = defaults(kind)
    if value == known[key] if key in known else not value:
        return ""
    option = OPTIONS.get(key, key.replace("_", "-"))
    if value is True:
        return option
    if key in DIGESTS:
        value = value[:6]
    return f"{option} {' '.join(map(str, value)) if isinstance(value, list) else value}"
