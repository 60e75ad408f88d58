"""Scores of the tasks. Here: entity precision, recall and F1.

A named entity counts as found when type, first word and last word are all right; nothing is given
for a part. The counting is `seqeval`'s in its default mode, which reads tags as conlleval, the
script of CoNLL-2000, does: an I without a B before it, or after another type, opens an entity
rather than being an error. IOB1, IOB2 and IOBES mean the same entities there and can all be scored.

The unit matters as much as the formula. Over words this is the score of the published tables of
BioBERT; the paper's own code scores word pieces, where an entity of one word cut into three pieces
counts three times (F45). The two must never be set side by side, so whoever prints one names it.
"""

from minibio.errors import InputError

UNTYPED = "entity"  # the type of tags that carry none: B, I, O


def entity_scores(gold: list[list[str]], predicted: list[list[str]]) -> dict:
    """Precision, recall and F1 of entities, over all types and for each.

        precision = right / predicted     recall = right / gold     f1 = 2 p r / (p + r)

    Args:
        gold, predicted: one list of tags a sentence, "O", "B-Disease", "I-Disease" or untyped "B",
            "I"; IOBES's "E" and "S" are understood.
    Returns:
        {"precision", "recall", "f1": fractions of 1, "support": gold entities,
        "per_type": {type: the same four}}, counted over all sentences together (micro); 0 where
        there is nothing to divide by.
    Raises:
        ValueError: the two differ in sentences or in the tags of one.
        InputError: seqeval is not installed.
    """
    counter = seqeval()
    if len(gold) != len(predicted):
        raise ValueError(
            f"entity_scores: predicted has {len(predicted)} sentences, "
            f"expected {len(gold)} (as gold)"
        )
    for i, (a, b) in enumerate(zip(gold, predicted, strict=True)):
        if len(a) != len(b):
            raise ValueError(
                f"entity_scores: sentence {i} of predicted has {len(b)} tags, "
                f"expected {len(a)} (as gold)"
            )
    gold, predicted = (
        [[typed(tag) for tag in tags] for tags in x] or [[]] for x in (gold, predicted)
    )

    def scores(average):
        return counter.precision_recall_fscore_support(
            gold, predicted, average=average, zero_division=0
        )

    types = sorted({kind for x in (gold, predicted) for kind, _, _ in counter.get_entities(x)})
    rows = zip(*scores(None), strict=True)
    per_type = {kind: as_dict(row) for kind, row in zip(types, rows, strict=True)}
    return {**as_dict(scores("micro")), "per_type": per_type}


def seqeval():
    """The module that counts, imported where scores are asked for and nowhere else.

    Raises:
        InputError: it is not installed.
    """
    try:
        from seqeval.metrics import sequence_labeling
    except ImportError:
        raise InputError("scoring entities needs seqeval: pip install seqeval") from None
    return sequence_labeling


def typed(tag: str) -> str:
    """The tag with a type: "B" becomes "B-entity"; seqeval takes nothing else without a warning."""
    return tag if tag == "O" or "-" in tag else f"{tag}-{UNTYPED}"


def as_dict(row) -> dict:
    """One row of seqeval's figures, in Python's own numbers."""
    precision, recall, f1, support = row
    return {
        "precision": float(precision), "recall": float(recall), "f1": float(f1),
        "support": int(support),
    }  # fmt: skip
