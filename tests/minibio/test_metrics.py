"""Entity scores against a count of our own, by hand and by the thousand."""

import random
import warnings

import pytest

from minibio import metrics


def chunks(tags):
    """Entities as (type, first, last), by the rules of conlleval, one tag after the other."""
    found, open_ = set(), None  # open_: (type, first)
    for i, tag in enumerate([*tags, "O"]):
        prefix, _, kind = tag.partition("-")
        before = tags[i - 1].split("-")[0] if i else "O"
        begins = prefix in "BS" or before in "OES" or (open_ and open_[0] != kind)
        if open_ and (prefix == "O" or begins):
            found.add((*open_, i - 1))
            open_ = None
        if prefix != "O" and begins:
            open_ = (kind, i)
    return found


def count(gold, predicted, kind=None):
    """Precision, recall, F1 and support of one type, or of all together."""

    def entities(x):
        return {(n, *c) for n, tags in enumerate(x) for c in chunks(tags) if kind in (None, c[0])}

    a, b = entities(gold), entities(predicted)
    right = len(a & b)
    p, r = right / len(b) if b else 0.0, right / len(a) if a else 0.0
    f1 = 2 * p * r / (p + r) if right else 0.0
    return {"precision": p, "recall": r, "f1": f1, "support": len(a)}


def assert_equal(got, want):
    assert {k: got[k] for k in want} == pytest.approx(want, abs=1e-12)


SCHEMES = {
    "untyped": ["O", "B", "I"],
    "iob": ["O", "B-a", "I-a", "B-b", "I-b", "B-c-d", "I-c-d"],
    "iobes": ["O"] + [f"{prefix}-{kind}" for prefix in "BIES" for kind in ("a", "b")],
    "untyped-iobes": ["O", "B", "I", "E", "S"],
}


@pytest.mark.parametrize("scheme", SCHEMES)
def test_equal_to_a_count_of_our_own_on_random_tags(scheme):
    rng, tags = random.Random(scheme), SCHEMES[scheme]
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # seqeval warns of tags that it does not know
        for _ in range(700):
            gold = [rng.choices(tags, k=rng.randint(1, 9)) for _ in range(rng.randint(1, 3))]
            predicted = [[t if rng.random() < 0.6 else rng.choice(tags) for t in x] for x in gold]
            got = metrics.entity_scores(gold, predicted)
            assert_equal(got, count(gold, predicted))
            types = {c[0] for x in (*gold, *predicted) for c in chunks(x)}
            assert set(got["per_type"]) == {kind or "entity" for kind in types}
            for kind in types:
                assert_equal(got["per_type"][kind or "entity"], count(gold, predicted, kind))


def test_by_hand():
    gold = [["B-gene", "I-gene", "O", "B-drug"], ["O", "B-gene"]]
    predicted = [["B-gene", "I-gene", "O", "B-gene"], ["O", "I-gene"]]
    got = metrics.entity_scores(gold, predicted)
    # predicted 3, gold 3, right 2: the first gene, and the I without a B, which opens an entity
    assert_equal(got, {"precision": 2 / 3, "recall": 2 / 3, "f1": 2 / 3, "support": 3})
    assert got["per_type"] == {
        "drug": {"precision": 0.0, "recall": 0.0, "f1": 0.0, "support": 1},
        "gene": pytest.approx({"precision": 2 / 3, "recall": 1.0, "f1": 0.8, "support": 2}),
    }


def test_half_an_entity_is_none():
    got = metrics.entity_scores([["B", "I", "I"]], [["B", "I", "O"]])
    assert_equal(got, {"precision": 0.0, "recall": 0.0, "f1": 0.0, "support": 1})


def test_an_entity_ends_with_its_sentence():
    got = metrics.entity_scores([["O", "B"], ["I", "O"]], [["O", "B"], ["I", "O"]])
    assert_equal(got, {"precision": 1.0, "f1": 1.0, "support": 2})


def test_nothing_there():
    got = metrics.entity_scores([["O", "O"]], [["O", "O"]])
    assert got == {"precision": 0.0, "recall": 0.0, "f1": 0.0, "support": 0, "per_type": {}}
    assert metrics.entity_scores([], []) == got


@pytest.mark.parametrize(
    ("predicted", "message"),
    [([["O"]], "1 sentences, expected 2"), ([["O"], ["O"]], "sentence 1 of predicted has 1 tags")],
)
def test_lists_that_do_not_fit(predicted, message):
    with pytest.raises(ValueError, match=message):
        metrics.entity_scores([["O"], ["B", "I"]], predicted)
