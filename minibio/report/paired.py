"""Fine-tuned directories on one test set, side by side, and whether they differ: `eval.py score`.

    python eval.py score runs/tiny-ncbi --data NCBI-disease --precision fp32 bf16 int8
    python eval.py score runs/biobert-ncbi runs/tiny-ncbi --data BC5CDR-disease

Every directory is scored in every precision, on any set of its task, one it was not trained on
too; one of several seeds has the mean of theirs. The first is the baseline of the others. A
difference has a 95 % interval by a paired bootstrap: the test set's sentences (examples, questions)
are drawn again with replacement, the same for both and for every seed, `ROUNDS` times; p is twice
the share of draws in which it has the other sign. Seeds are not drawn: it is about these runs.
"""

import argparse
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from minibio.report.plot import labels
from minibio.report.scores import percent, table
from minibio.run.dist import pick_device
from minibio.run.errors import InputError
from minibio.run.files import check_apart, check_writable, write_json
from minibio.tasks import ner, qa, relation, tags
from minibio.tasks.metrics import UNTYPED, bioasq_scores
from minibio.tasks.predict import PRECISIONS, Predictor

ROUNDS = 10_000
CHUNK = 250  # draws at a time: (CHUNK, n) counts

Metric = Callable[[np.ndarray], np.ndarray]  # sums (..., k) -> (...)


class Scored(NamedTuple):
    """One system on the test set: S runs that differ in their seed."""

    counts: np.ndarray  # (S, n, k) of each sentence, example or question
    metric: Metric  # of their sum
    what: str  # the name of the figure
    tokens: int  # read by the model
    seconds: float

    @property
    def score(self) -> float:
        """The figure on the whole set, a fraction of 1; the mean over seeds."""
        return float(self.drawn(np.ones(self.counts.shape[1])))

    def drawn(self, weights: np.ndarray) -> np.ndarray:
        """The figure of a set in which each unit occurs so often: (..., n) -> (...)."""
        return np.mean([self.metric(weights @ counts) for counts in self.counts], axis=0)


class Difference(NamedTuple):
    """A system's score less the baseline's, fractions of 1."""

    value: float
    low: float  # of the 95 % interval
    high: float
    p: float  # two-sided


def f1(sums: np.ndarray) -> np.ndarray:
    """(..., 3) right, predicted, gold -> (...): 2 right / (predicted + gold); 0 for nothing."""
    right, predicted, gold = np.moveaxis(sums, -1, 0)
    return 2 * right / np.maximum(predicted + gold, 1)


def macro_f1(sums: np.ndarray) -> np.ndarray:
    """(..., 3 K) -> (...): the mean F1 of the classes that occur in gold or predictions."""
    of_class = sums.reshape(*sums.shape[:-1], -1, 3)  # (..., K, 3)
    n = (of_class[..., 1:].sum(-1) > 0).sum(-1)
    return f1(of_class).sum(-1) / np.maximum(n, 1)


def mean(sums: np.ndarray) -> np.ndarray:
    """(..., 2) sum of the scores, units -> (...)."""
    return sums[..., 0] / np.maximum(sums[..., 1], 1)


def compare(a: Scored, b: Scored, rounds: int = ROUNDS, seed: int = 0) -> Difference:
    """The paired bootstrap of b against the baseline a (Efron and Tibshirani, 1993, chapter 16).

    Raises:
        ValueError: the two were not scored on the same units.
    """
    n = a.counts.shape[1]
    if b.counts.shape[1] != n:
        raise ValueError(f"compare: {b.counts.shape[1]} units, expected {n}")
    rng = np.random.default_rng(seed)
    drawn = []
    for first in range(0, rounds, CHUNK):
        size = min(CHUNK, rounds - first)
        weights = rng.multinomial(n, np.full(n, 1 / n), size).astype(float)  # (size, n)
        drawn.append(b.drawn(weights) - a.drawn(weights))
    drawn = np.concatenate(drawn)
    low, high = np.percentile(drawn, (2.5, 97.5))
    p = 2 * min((drawn <= 0).mean(), (drawn >= 0).mean())
    return Difference(b.score - a.score, float(low), float(high), float(min(max(p, 1 / rounds), 1)))


# one system


def entities(p: Predictor, data: Path, columns: Sequence[str] | None) -> Scored:
    """F1 of entities over words, sentence by sentence."""
    path = data / "test.tsv" if data.is_dir() else data
    sentences = ner.read_tsv(path, columns=columns)
    strip = without_types(kinds(tag for s in sentences for tag in s.tags), kinds(p.tags), path)
    windows = ner.make_windows(sentences, p.tokenizer, p.length)
    began = time.perf_counter()
    found = ner.predict(p.model, windows, p.tags, p.B, p.device, p.context)
    seconds = time.perf_counter() - began
    words, _ = ner.rejoin(windows, found)
    counts = []
    for sentence, row in zip(sentences, words, strict=True):
        gold, said = (
            {e._replace(kind="" if strip else e.kind) for e in tags.entities(x)}
            for x in (sentence.tags, row)
        )
        counts.append((len(gold & said), len(said), len(gold)))
    return Scored(
        np.array([counts], float), f1, "F1 of entities by words", n_tokens(windows), seconds
    )


def kinds(names: Iterable[str]) -> set[str]:
    """The types that tags name; "" of those that name none, or `UNTYPED`."""
    found = {tag.partition("-")[2] for tag in names if tag != "O"}
    return {"" if kind == UNTYPED else kind for kind in found}


def without_types(gold: set[str], known: set[str], path: Path) -> bool:
    """Whether types are left out of the comparison: one side has none, the other at most one.

    Raises:
        InputError: no type of the file is one of the model's.
    """
    if not gold or gold & known - {""}:
        return False
    if "" in gold | known and len(gold) == len(known) == 1:
        return True
    said = (", ".join(sorted(x)) or "none" for x in (gold, known))
    raise InputError("{}: its types are {}, the model's {}".format(path, *said))


def relations(p: Predictor, data: Path, fold: int | None) -> Scored:
    """The main F1 of relations, example by example."""
    known = p.model.labels
    task = relation.RelationTask(
        data, fold=fold, anonymised=p.anonymise, classes=5 if {*known} <= {*relation.CPR} else None
    )
    examples = task.sets["test"]
    unknown = sorted({x.label for x in examples} - {*known})
    if len(unknown) == len({x.label for x in examples}):
        raise InputError(
            f"{data}: its labels are {', '.join(unknown)}, the model's {', '.join(known)}"
        )
    features = relation.make_features(examples, p.tokenizer, p.length)
    began = time.perf_counter()
    probabilities = relation.predict(p.model, features, p.B, p.device, p.context)  # (n, K)
    seconds = time.perf_counter() - began
    said = [known[k] for k in probabilities.argmax(1).tolist()]
    classes = [x for x in relation.label_names(examples) if x not in task.negative]
    classes += [x for x in known if x not in (*classes, *task.negative)]
    index = {label: k for k, label in enumerate(classes)}
    counts = np.zeros((len(examples), len(classes), 3))
    for row, example, label in zip(counts, examples, said, strict=True):
        for column, name in ((1, label), (2, example.label)):
            if name in index:
                row[index[name], column] = 1
                row[index[name], 0] = label == example.label
    if task.average == "micro":
        return Scored(counts.sum(1)[None], f1, "micro F1", n_tokens(features), seconds)
    counts = counts.reshape(1, len(examples), -1)
    return Scored(counts, macro_f1, "macro F1", n_tokens(features), seconds)


def questions(p: Predictor, data: Sequence[Path], golden: Sequence[Path]) -> Scored:
    """Mean reciprocal rank, question by question."""
    passages = [passage for path in data for passage in qa.read_squad(path)]
    right = {id: texts for path in golden for id, texts in qa.read_golden(path).items()}
    windows = qa.make_windows(passages, p.tokenizer, p.length, p.stride)
    began = time.perf_counter()
    logits = qa.predict(p.model, windows, p.B, p.device, p.context)
    seconds = time.perf_counter() - began
    ranked = qa.rank(passages, windows, logits, p.order)
    asked = sorted({*ranked} & {*right})
    if not asked:
        raise InputError(f"{golden[0]} has none of the questions of {data[0]}")
    counts = [
        (bioasq_scores({id: right[id]}, {id: [a.text for a in ranked[id]]})["mrr"], 1)
        for id in asked
    ]
    return Scored(np.array([counts]), mean, "MRR", n_tokens(windows), seconds)


def n_tokens(rows: Sequence) -> int:
    """Tokens of all windows."""
    return sum(len(row.tokens) for row in rows)


# the command


def run_score(args: argparse.Namespace) -> None:
    """`eval.py score`."""
    if args.out:
        check_apart(args.out, *args.data, *args.golden, *args.directories)
        check_writable(args.out)
    device, scored, head = pick_device(args.device), {}, None
    for directory, label in zip(args.directories, labels(args.directories), strict=True):
        for precision in args.precision:
            runs = []
            for place in runs_of(directory):
                p = Predictor(place, args.batch, device, precision)
                if head not in (None, p.head):
                    raise InputError(f"{place} is of another task than {args.directories[0]}")
                head, name = p.head, f"{label}, {p.precision}"
                if name in scored:
                    raise InputError(f"{name} is asked for twice")
                runs.append(score_of(p, args))
            scored[name] = together(runs)
    print(report(scored))
    if args.out:
        write_json(args.out, record(scored, args.data))


def score_of(p: Predictor, args: argparse.Namespace) -> Scored:
    """One run on the test set, by its task."""
    if p.head == "span":
        if not args.golden:
            raise InputError("--golden FILE is needed: the right answers, in BioASQ's form")
        return questions(p, args.data, args.golden)
    if len(args.data) > 1:
        raise InputError(f"--data has {len(args.data)} paths, expected one")
    if p.head == "token":
        return entities(p, args.data[0], args.columns)
    return relations(p, args.data[0], args.fold)


def runs_of(directory: Path) -> list[Path]:
    """The runs in the directory of an experiment, one for each seed; itself where it is a run."""
    seeds = [] if (directory / "config.json").exists() else directory.glob("seed-*/config.json")
    return sorted(path.parent for path in seeds) or [directory]


def together(runs: Sequence[Scored]) -> Scored:
    """Runs of several seeds as one system."""
    return runs[0]._replace(
        counts=np.concatenate([x.counts for x in runs]),
        tokens=sum(x.tokens for x in runs),
        seconds=sum(x.seconds for x in runs),
    )


def record(scored: dict[str, Scored], data: Sequence[Path]) -> dict:
    """All figures, fractions of 1."""
    first = next(iter(scored.values()))
    rows = {
        name: {
            "seeds": len(x.counts),
            "score": x.score,
            "difference": None if x is first else compare(first, x)._asdict(),
            "tokens_per_s": round(x.tokens / x.seconds),
        }
        for name, x in scored.items()
    }
    return {
        "data": [str(path) for path in data],
        "figure": first.what,
        "units": first.counts.shape[1],
        "systems": rows,
    }


def report(scored: dict[str, Scored]) -> str:
    """The table, differences in points of 100."""
    found = record(scored, [])
    rows = []
    for name, x in found["systems"].items():
        d = x["difference"]
        how = ["", ""]
        if d:
            low, high = (f"{100 * d[k]:+.2f}" for k in ("low", "high"))
            how = [f"{100 * d['value']:+.2f} ({low} to {high})", f"{d['p']:.4f}"]
        name += f", {x['seeds']} seeds" if x["seeds"] > 1 else ""
        rows.append([name, percent(x["score"]), *how, f"{x['tokens_per_s']:,}"])
    head = [f"{found['units']:,} units", found["figure"], "difference (95 %)", "p", "tokens/s"]
    return f"\n{table(head, rows)}\n"


def add_arguments(p: argparse.ArgumentParser) -> None:
    """The options of `eval.py score`, except --device and --threads, which all commands have."""
    p.set_defaults(run=run_score)
    add = p.add_argument
    add(
        "directories",
        nargs="+",
        type=Path,
        metavar="DIR",
        help="of ner, relation or qa, of a seed or of several; the first is the baseline",
    )
    add(
        "--data",
        type=Path,
        nargs="+",
        required=True,
        help="test.tsv or its directory; a set of relations; SQuAD-form files",
    )
    add("--golden", type=Path, nargs="+", default=[], help="BioASQ-form files of right answers")
    add("--fold", type=int, help="of a set of relations in folds")
    add(
        "--columns",
        type=tags.columns,
        metavar="NAME,NAME,...",
        help="of a file of tags, as for ner",
    )
    add("--precision", nargs="+", choices=PRECISIONS, default=["auto"], help="(auto)")
    add("--batch", type=int, default=32, help="texts (%(default)s)")
    add("--out", type=Path, metavar="FILE", help="all figures as JSON")
