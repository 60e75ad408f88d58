"""Scores of the tasks, counted as the official scorers count.

*Entities.* A named entity counts as found when type, first word and last word are all right;
nothing is given for a part. Tags are read as conlleval, the script of CoNLL-2000, and `seqeval` in
its default mode read them: an I without a B before it, or after another type, opens an entity
rather than being an error. Over words this is the score of the published tables of BioBERT; the
paper's own code scores word pieces, where an entity of one word cut into three pieces counts three
times (F45). The two must never be set side by side, so whoever prints one names it.

*Relations.* One label an example; precision, recall and F1 for each class, together (micro) and as
the mean of the classes (macro, F57).

*Answers.* BioASQ's factoid questions: how often the first answer is right (strict accuracy), how
often any is (lenient), and the mean of 1 / rank of the first right one (MRR).

All figures are fractions of 1, and 0 where there is nothing to divide by.
"""

from collections import Counter
from collections.abc import Mapping, Sequence

from minibio.tasks import tags as schemes

UNTYPED = "entity"  # the type of tags that carry none: B, I, O


def entity_scores(
    gold: Sequence[Sequence[str]], predicted: Sequence[Sequence[str]], scheme: str | None = None
) -> dict:
    """Precision, recall and F1 of entities, over all types and for each.

        precision = right / predicted     recall = right / gold     f1 = 2 p r / (p + r)

    Args:
        gold, predicted: one list of tags a sentence, "O", "B-Disease", "I-Disease" or untyped "B",
            "I"; IOBES's "E" and "S" are understood.
        scheme: None = every scheme is read, as conlleval does. "IOB1", "IOB2" or "IOBES" = only
            entities that keep its rules count, seqeval's strict mode; lower, and seldom published.
    Returns:
        {"precision", "recall", "f1", "support": gold entities, "per_type": {type: the same four}},
        counted over all sentences together (micro).
    Raises:
        ValueError: the two differ in sentences or in the tags of one, or `scheme` is no scheme.
    """
    if scheme not in (None, *schemes.SCHEMES):
        raise ValueError(
            f"entity_scores: scheme is {scheme!r}, expected None or one of {schemes.SCHEMES}"
        )
    if len(gold) != len(predicted):
        raise ValueError(
            f"entity_scores: predicted has {len(predicted)} sentences, "
            f"expected {len(gold)} (as gold)"
        )
    counts = {"gold": Counter(), "predicted": Counter(), "right": Counter()}
    for i, (a, b) in enumerate(zip(gold, predicted, strict=True)):
        if len(a) != len(b):
            raise ValueError(
                f"entity_scores: sentence {i} of predicted has {len(b)} tags, "
                f"expected {len(a)} (as gold)"
            )
        a, b = (
            set(schemes.strict_entities(tags, scheme) if scheme else schemes.entities(tags))
            for tags in (a, b)
        )
        for name, found in (("gold", a), ("predicted", b), ("right", a & b)):
            counts[name].update(entity.kind or UNTYPED for entity in found)
    return {**precision_recall(**{k: x.total() for k, x in counts.items()}),
            "per_type": per_kind(**counts)}  # fmt: skip


def precision_recall(right: int, predicted: int, gold: int) -> dict:
    """The four figures of one row of a table, from counts."""
    precision = right / predicted if predicted else 0.0
    recall = right / gold if gold else 0.0
    f1 = 2 * precision * recall / (precision + recall) if right else 0.0
    return {"precision": precision, "recall": recall, "f1": f1, "support": gold}


def per_kind(right: Counter, predicted: Counter, gold: Counter) -> dict[str, dict]:
    """Such a row for everything that occurs on either side, in alphabetical order."""
    return {
        kind: precision_recall(right[kind], predicted[kind], gold[kind])
        for kind in sorted(gold.keys() | predicted.keys())
    }


def relation_scores(
    gold: Sequence[str], predicted: Sequence[str], negative: Sequence[str] = ()
) -> dict:
    """Accuracy, and precision, recall and F1 over the classes that state a relation.

    Micro sums right, predicted and gold over these classes. With one such class it is the binary
    score (GAD, negative "0"); over CPR:3, 4, 5, 6 and 9 against "false" it is BioCreative VI's and
    the field's score of ChemProt; with no negative class, as in CHEMPROT's 13, all three equal the
    accuracy. Macro is the plain mean of the classes' own precision, recall and F1, over the classes
    that occur in gold or predictions, scikit-learn's default: the paper's score of CHEMPROT (its
    printed F is no harmonic mean, F57).

    Args:
        gold, predicted: one label an example.
        negative: labels that state no relation; they count in the accuracy alone.
    Returns:
        {"accuracy", "micro": {"precision", "recall", "f1", "support"}, "macro": {"precision",
        "recall", "f1", "classes": how many}, "per_class": {label: the four, negative ones too}}.
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
