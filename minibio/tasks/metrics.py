"""Scores of the tasks, counted as the official scorers count.

*Entities.* A named entity counts as found when type, first word and last word are all right;
nothing is given for a part. `seqeval` in its default mode reads the tags as conlleval does, the
script of CoNLL-2000: an I without a B before it, or after another type, opens an entity. Over words
this is the score of the published tables of BioBERT; the paper's own code scores word pieces, where
an entity of one word cut into three pieces counts three times (F45). The two must never be set side
by side, so whoever prints one names it.

*Relations.* One label an example; precision, recall and F1 for each class, together (micro) and as
the mean of the classes (macro, F57).

*Answers.* BioASQ's factoid questions: how often the first answer is right (strict accuracy), how
often any is (lenient), and the mean of 1 / rank of the first right one (MRR).

All figures are fractions of 1, and 0 where there is nothing to divide by.
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

UNTYPED = "entity"  # the type of tags that carry none: B, I, O


def entity_scores(gold: Sequence[Sequence[str]], predicted: Sequence[Sequence[str]]) -> dict:
    """Precision, recall and F1 of entities, over all types and for each, by `seqeval`.

        precision = right / predicted     recall = right / gold     f1 = 2 p r / (p + r)

    Args:
        gold, predicted: one list of tags a sentence, "O", "B-Disease", "I-Disease" or untyped "B",
            "I"; IOBES's "E" and "S" are understood.
    Returns:
        {"precision", "recall", "f1", "support": gold entities, "per_type": {type: the same four}},
        counted over all sentences together (micro).
    Raises:
        ValueError: the two differ in sentences or in the tags of one.
    """
    from seqeval.metrics import sequence_labeling as seqeval  # 2 s: it imports scikit-learn

    def scores(average: str | None):
        return seqeval.precision_recall_fscore_support(
            gold, predicted, average=average, zero_division=0
        )

    kinds = sorted({kind for tags in (gold, predicted) for kind, *_ in seqeval.get_entities(tags)})
    named = (UNTYPED if kind == "_" else kind for kind in kinds)
    return {
        **figures(*scores("micro")),
        "per_type": dict(zip(named, map(figures, *scores(None)), strict=True)),
    }


def figures(precision: float, recall: float, f1: float, support: int) -> dict:
    """One row of a table."""
    return {
        "precision": float(precision),
        "recall": float(recall),
        "f1": float(f1),
        "support": int(support),
    }


def precision_recall(right: int, predicted: int, gold: int) -> dict:
    """The same row from counts."""
    precision = right / predicted if predicted else 0.0
    recall = right / gold if gold else 0.0
    return figures(
        precision, recall, 2 * precision * recall / (precision + recall) if right else 0.0, gold
    )


def per_kind(right: Counter, predicted: Counter, gold: Counter) -> dict[str, dict]:
    """Such a row for everything that occurs on either side, in alphabetical order."""
    return {
        kind: precision_recall(right[kind], predicted[kind], gold[kind])
        for kind in sorted(gold.keys() | predicted.keys())
    }


def only_answer(answers: Iterable[str]) -> str | None:
    """The answer that a model gives to every one of several examples; None where it has two."""
    counts = Counter(answers)
    return next(iter(counts)) if len(counts) == 1 and counts.total() > 1 else None


def relation_scores(
    gold: Sequence[str], predicted: Sequence[str], negative: Sequence[str] = ()
) -> dict:
    """Accuracy, and precision, recall and F1 over the classes that state a relation.

    Micro sums right, predicted and gold over these classes. With one such class it is the binary
    score (GAD, negative "0"); over CPR:3, 4, 5, 6 and 9 against "false" it is BioCreative VI's and
    the field's score of ChemProt; with no negative class, as in CHEMPROT's 13, all three equal the
    accuracy. Macro is the plain mean of the classes' own precision, recall and F1, over the classes
    that occur in gold or predictions, scikit-learn's default: the paper's score of CHEMPROT (its
    printed F is not a harmonic mean, F57).

    Args:
        gold, predicted: one label an example.
        negative: labels that state no relation; they count in the accuracy only.
    Returns:
        {"accuracy", "micro": {"precision", "recall", "f1", "support"}, "macro": {"precision",
        "recall", "f1", "classes": how many}, "per_class": {label: the four, negative ones too},
        "negative": those of them that state no relation, "only_answer": of `only_answer`}.
    Raises:
        ValueError: the two differ in length.
    """
    if len(gold) != len(predicted):
        raise ValueError(
            f"relation_scores: predicted has {len(predicted)} labels, "
            f"expected {len(gold)} (as gold)"
        )
    hits = [a for a, b in zip(gold, predicted, strict=True) if a == b]
    counts = {"gold": Counter(gold), "predicted": Counter(predicted), "right": Counter(hits)}
    per_class = per_kind(**counts)
    positive = [label for label in per_class if label not in negative]
    sums = {name: sum(x[label] for label in positive) for name, x in counts.items()}
    macro = {
        name: sum(per_class[label][name] for label in positive) / max(1, len(positive))
        for name in ("precision", "recall", "f1")
    }
    return {
        "accuracy": len(hits) / max(1, len(gold)),
        "micro": precision_recall(**sums),
        "macro": {**macro, "classes": len(positive)},
        "per_class": per_class,
        "negative": [label for label in per_class if label in negative],
        "only_answer": only_answer(predicted),
    }


def bioasq_scores(
    golden: Mapping[str, Sequence[str]],
    submitted: Mapping[str, Sequence[str]],
    cutoff: int | None = None,
) -> dict:
    """Strict accuracy, lenient accuracy and mean reciprocal rank, as BioASQ's own scorer has them.

    An answer is right when it is one of the golden strings, letter case aside and nothing else
    aside. A question that was not submitted leaves the denominator; one submitted without an answer
    counts as wrong. BioASQ asks for five answers, but its scorer counts those behind too (F58).

    Args:
        golden:    question -> all strings that are right, synonyms included.
        submitted: question -> answers, the best first. Questions that golden lacks are left out.
        cutoff:    answers of a question that are looked at; None = all, as the official scorer.
    Returns:
        {"strict_accuracy", "lenient_accuracy", "mrr", "questions": the denominator}.
    """
    ranks = []  # of the first right answer, or None
    for question, answers in submitted.items():
        if question in golden:
            right = {text.lower() for text in golden[question]}
            hits = (i for i, text in enumerate(answers[:cutoff], start=1) if text.lower() in right)
            ranks.append(next(hits, None))
    n = max(1, len(ranks))
    return {
        "strict_accuracy": sum(rank == 1 for rank in ranks) / n,
        "lenient_accuracy": sum(rank is not None for rank in ranks) / n,
        "mrr": sum(1 / rank for rank in ranks if rank) / n,
        "questions": len(ranks),
    }
