"""What `eval.py ner`, `relation` and `qa` leave of a run, read back for tables.

A run is a directory that holds a record, ner.json, relation.json or qa.json, one JSON object:

    "task"    "ner" | "relation" | "qa"
    "model"   directory that was fine-tuned; its name decides the column
    "data"    name of the data set; it decides the row (of qa, "tests" in "config" does)
    "seed"    of the fine-tuning (older records: "seed" in "config")
    "config"  with "fold" (null or a number) and "classes" for relation, "tests" for qa
    "test"    the scores, fractions of 1:
              ner       {"word": {"precision", "recall", "f1"}, "piece": the same}
              relation  {"main": "micro" | "macro", that name: {"precision", "recall", "f1"}}
              qa        {"strict_accuracy", "lenient_accuracy", "mrr", "questions"}

Names become the paper's where they mean the same: tiny-biobert is TinyBioBERT, NCBI_disease is
NCBI-disease. BioASQ is the paper's set only when all 162 questions of 7b were asked, CHEMPROT only
with its 13 classes; other editions and classes get a name of their own.
"""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from minibio.report import paper_tables as paper
from minibio.run.errors import InputError
from minibio.run.files import read_json

PRF = {"P": "precision", "R": "recall", "F": "f1"}
SLM = {"S": "strict_accuracy", "L": "lenient_accuracy", "M": "mrr"}
METRICS = {
    "ner": (*PRF, *(f"{name} words" for name in PRF)), "relation": tuple(PRF), "qa": tuple(SLM),
}  # fmt: skip
QUESTIONS_7B = 162

# what else a model and a set are called; letters and digits alone count
MODEL_NAMES = {
    "biobert": paper.TEACHER, "biobertbasecasedv11": paper.TEACHER,
    "biodistilbertcased": "BioDistilBERT", "biodistilbertuncased": "BioDistilBERT",
    "mobilebiobert": "BioMobileBERT",
}  # fmt: skip
SET_NAMES = {"ncbi": "NCBI-disease", "bc4chem": "BC4CHEMD", "s800": "Species-800"}


class Run(NamedTuple):
    """One record."""

    path: Path
    kind: str  # "ner" | "relation" | "qa"
    model: str  # column
    row: str
    seed: int
    fold: int | None
    scores: dict[str, float]  # metric -> fraction of 1


def plain(name: str) -> str:
    """A name's letters and digits: Tiny-BioBERT is tinybiobert."""
    return re.sub(r"[^a-z0-9]", "", name.lower())


def known_as(name: str, known: Sequence[str], others: Mapping[str, str]) -> str:
    """The one of `known` that `name` means, or `name` itself."""
    return {plain(x): x for x in known}.get(plain(name)) or others.get(plain(name), name)


def row_of(kind: str, record: dict) -> str:
    """The row that a record belongs to: the paper's where data and counting are the paper's."""
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


def read_run(path: Path, columns: Mapping[str, str]) -> Run:
    """One record.

    Args:
        columns: name of a model's directory -> its column, where the name does not say it.
    Raises:
        InputError: it is no record of these commands.
    """
    record = read_json(path)
    try:
        kind, name, config = record["task"], Path(record["model"]).name, record.get("config", {})
        seed, fold = record.get("seed", config.get("seed")), config.get("fold")
        if kind not in METRICS or not name or type(seed) is not int:
            raise ValueError
        models = (*paper.DISTILLED, *paper.CONTINUED)
        model = columns.get(name) or known_as(name, models, MODEL_NAMES)
        return Run(path, kind, model, row_of(kind, record), seed, fold,
                   scores_of(kind, record["test"]))  # fmt: skip
    except (AttributeError, KeyError, TypeError, ValueError):
        raise InputError(
            f"{path} holds no scores of `eval.py {path.stem}`; run it again, or leave it out"
        ) from None


def find_runs(places: Sequence[Path], columns: Mapping[str, str]) -> list[Run]:
    """Every record in these directories and below, each once.

    Raises:
        InputError: a place holds none, a record cannot be read, two are of the same run.
    """
    names = {f"{kind}.json" for kind in METRICS}
    paths = []
    for place in places:
        found = sorted(p for p in place.rglob("*.json") if p.name in names)
        if not found:
            raise InputError(
                f"{place} holds no {', '.join(sorted(names))}; name directories of runs"
            )
        paths += found
    runs = [read_run(path, columns) for path in dict.fromkeys(p.resolve() for p in paths)]
    first = {}
    for run in runs:
        other = first.setdefault((run.kind, run.model, run.row, run.seed, run.fold), run)
        if other is not run:
            raise InputError(
                f"{run.path} and {other.path} are both {run.model} on {run.row} with seed "
                f"{run.seed}; leave one out, or tell the models apart by --as"
            )
    return runs
