"""Scores as people read them: tables that line up, one record's scores, means over seeds and folds.

Figures are fractions of 1 in files and per cent on the terminal. Where two ways of counting give
two figures, both are named, and the one that other publications give comes first.
"""

import math
import statistics
from collections.abc import Mapping, Sequence

# 97.5 % points of Student's t for 1, 2, ... degrees of freedom
T_975 = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179,
         2.160, 2.145, 2.131, 2.120, 2.110, 2.101, 2.093, 2.086, 2.080, 2.074, 2.069, 2.064,
         2.060, 2.056, 2.052, 2.048, 2.045, 2.042)  # fmt: skip

ONE_ANSWER = {
    "ner": "every word is tagged {!r}",
    "relation": "every example is labelled {!r}",
    "qa": "every question is answered {!r}",
}


def percent(x: float | None) -> str:
    """0.8793 -> 87.93; None, a missing figure, -> -."""
    return "-" if x is None else f"{100 * x:.2f}"


def table(head: Sequence[str], body: Sequence[Sequence[str]]) -> str:
    """A Markdown table that lines up on a terminal too: first column left, numbers right."""
    widths = [max(len(row[i]) for row in [head, *body]) for i in range(len(head))]

    def line(row):
        first, *rest = zip(row, widths, strict=True)
        cells = [f"{first[0]:<{first[1]}}", *(f"{cell:>{w}}" for cell, w in rest)]
        return f"| {' | '.join(cells)} |"

    rule = ["-" * widths[0], *("-" * (w - 1) + ":" for w in widths[1:])]
    return "\n".join(map(line, [head, rule, *body]))


def columns(title: str, rows: Mapping[str, object]) -> str:
    """Two columns under a title."""
    return "\n".join([f"\n{title}", *(f"  {name:<16} {value}" for name, value in rows.items())])


def scores(record: dict) -> str:
    """The scores in a fine-tuning's record, as a table and the notes that it needs."""
    test = record["test"]
    text = {"ner": ner, "relation": relation, "qa": qa}[record["task"]](test)
    if test.get("only_answer") is not None:
        said = ONE_ANSWER[record["task"]].format(test["only_answer"])
        text += f"* {said}: these are the scores of a constant\n"
    return text


def row(name: str, figures: Mapping[str, float]) -> list[str]:
    """One line: name, precision, recall, F1, support."""
    support = figures.get("support")
    return [
        name,
        *(percent(figures[k]) for k in ("precision", "recall", "f1")),
        "-" if support is None else f"{support:,}",
    ]


def ner(test: dict) -> str:
    """Entities by words, by type where there are several, and by word pieces."""
    word, piece = test["word"], test["piece"]
    body = [row("entities by words", word)]
    if len(word["per_type"]) > 1:
        body += [row(f"  {kind}", figures) for kind, figures in word["per_type"].items()]
    body.append(row("by word pieces *", piece))
    head = ["test.tsv", "precision", "recall", "F1", "entities"]
    return (
        f"\n{table(head, body)}\n"
        "* as the paper's code counts; differs by tokenizer, never comparable with words (F45)\n"
    )


def relation(test: dict) -> str:
    """Both averages, the published one first, and each class; none counts those of no relation."""
    n = len(test["per_class"]) - len(test.get("negative", ()))
    names = {
        "micro": "micro, over the relations",
        "macro": f"macro, the mean of {n} class{'es' * (n != 1)}",
    }
    main = test["main"]
    other = "macro" if main == "micro" else "micro"
    body = [row(f"{names[main]} *", test[main]), row(names[other], test[other])]
    for label, figures in test["per_class"].items():
        is_negative = label in test.get("negative", ())
        body.append(row(f"  {label}{', no relation' * is_negative}", figures))
    head = ["test", "precision", "recall", "F1", "examples"]
    accuracy = f"accuracy {percent(test['accuracy'])}"
    is_published = test.get("published", True)
    what = "figure that is published for this set (F57)" if is_published else "main figure"
    return f"\n{table(head, body)}\n* the {what}; {accuracy}\n"


def qa(test: dict) -> str:
    """Strict and lenient accuracy and MRR, of all questions and of each test file."""
    if "mrr" not in test:
        return "\nno --golden, so no score; the answers are in submission.json and n_best.json\n"
    names = ("strict_accuracy", "lenient_accuracy", "mrr")
    parts = {"all": test, **(test["per_file"] if len(test["per_file"]) > 1 else {})}
    body = [
        [name, *(percent(x[k]) for k in names), f"{x['questions']:,}"] for name, x in parts.items()
    ]
    return f"\n{table(['test', 'strict', 'lenient', 'MRR', 'questions'], body)}\n"


def figures(record: dict) -> dict[str, float]:
    """The scores of a record that are averaged over runs, by name, the main one first."""
    test = record["test"]
    if record["task"] == "ner":
        named = {f"word {k}": test["word"][k] for k in ("f1", "precision", "recall")}
        return named | {"piece f1": test["piece"]["f1"]}
    if record["task"] == "relation":
        other = "macro" if test["main"] == "micro" else "micro"
        named = {
            f"{test['main']} {k}": test[test["main"]][k] for k in ("f1", "precision", "recall")
        }
        return named | {f"{other} f1": test[other]["f1"], "accuracy": test["accuracy"]}
    return {k: test[k] for k in ("mrr", "strict_accuracy", "lenient_accuracy") if k in test}


def interval(values: Sequence[float]) -> tuple[float, float | None]:
    """Mean, and half the width of its 95 % interval by Student's t; None of a single value."""
    n = len(values)
    if n < 2:
        return statistics.fmean(values), None
    # beyond the table: the first term of the expansion around the normal's 1.96
    t = T_975[n - 2] if n - 2 < len(T_975) else 1.96 * (1 + (1.96**2 + 1) / (4 * (n - 1)))
    return statistics.fmean(values), t * statistics.stdev(values) / math.sqrt(n)


def summary(records: Mapping[tuple[int, str], dict]) -> dict:
    """Mean and interval of each figure over the seeds, a seed's figure being its folds' mean.

    With one seed the interval is over the folds.

    Args:
        records: (seed, fold) -> record; "" where there are no folds.
    """
    seeds = sorted({seed for seed, _ in records})
    folds = list(dict.fromkeys(fold for _, fold in records))
    groups = [[records[seed, fold] for fold in folds] for seed in seeds]
    over = "seeds"
    if len(seeds) == 1:
        groups, over = [[record] for record in groups[0]], "folds"
    means = {}
    for name in figures(groups[0][0]):
        values = [statistics.fmean(figures(record)[name] for record in group) for group in groups]
        mean, half = interval(values)
        means[name] = {"mean": mean, "half_width": half, "values": values}
    return {"over": over, "seeds": seeds, "folds": [fold for fold in folds if fold], "test": means}


def means(known: dict) -> str:
    """The table of a `summary`."""
    n = len(known[known["over"]])
    body = [
        [name, percent(x["mean"]), percent(x["half_width"]), *map(percent, x["values"])]
        for name, x in known["test"].items()
    ]
    each = [f"seed {x}" if known["over"] == "seeds" else x for x in known[known["over"]]]
    head = [f"over {n} {known['over']}", "mean", "± (95 %)", *each]
    return f"\n{table(head, body)}\n"
