"""Scores by hand, against counts of our own, and against seqeval, scikit-learn and BioASQ's jar."""

import random
import warnings

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from helpers import real_data
from minibio.tasks import metrics, qa
from minibio.tasks.tags import LETTERS, SCHEMES


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


FORMS = {
    "untyped": ["O", "B", "I"],
    "iob": ["O", "B-a", "I-a", "B-b", "I-b", "B-c-d", "I-c-d"],
    "iobes": ["O"] + [f"{prefix}-{kind}" for prefix in "BIES" for kind in ("a", "b")],
    "untyped-iobes": ["O", "B", "I", "E", "S"],
}


@pytest.mark.parametrize("form", FORMS)
def test_equal_to_a_count_of_our_own_on_random_tags(form):
    rng, names = random.Random(form), FORMS[form]
    for gold, predicted in random_pairs(rng, names, 700):
        got = metrics.entity_scores(gold, predicted)
        assert_equal(got, count(gold, predicted))
        types = {c[0] for x in (*gold, *predicted) for c in chunks(x)}
        assert set(got["per_type"]) == {kind or "entity" for kind in types}
        for kind in types:
            assert_equal(got["per_type"][kind or "entity"], count(gold, predicted, kind))


def random_pairs(rng, names, n):
    """Gold tags, and the same with four in ten drawn anew."""
    for _ in range(n):
        gold = [rng.choices(names, k=rng.randint(1, 9)) for _ in range(rng.randint(1, 3))]
        yield gold, [[t if rng.random() < 0.6 else rng.choice(names) for t in x] for x in gold]


def seqeval_scores(gold, predicted, **options):
    """The same figures from the package."""
    from seqeval.metrics import sequence_labeling, v1

    counter = v1 if options else sequence_labeling

    def scores(average):
        return counter.precision_recall_fscore_support(
            gold, predicted, average=average, zero_division=0, **options
        )

    def row(values):
        return dict(zip(("precision", "recall", "f1", "support"), values, strict=True))

    types = sorted({c[0] for x in (*gold, *predicted) for c in chunks(x)})
    rows = [row(values) for values in zip(*scores(None), strict=True)]
    return row(scores("micro")), dict(zip(types, rows, strict=True)) if not options else rows


@pytest.mark.parametrize("form", ["iob", "iobes"])
def test_equal_to_seqeval_on_random_tags(form):
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # seqeval warns of tags that it does not know
        for gold, predicted in random_pairs(random.Random(7), FORMS[form], 500):
            overall, per_type = seqeval_scores(gold, predicted)
            got = metrics.entity_scores(gold, predicted)
            assert_equal(got, overall)
            assert got["per_type"].keys() == per_type.keys()
            for kind, row in per_type.items():
                assert_equal(got["per_type"][kind], row)


@pytest.mark.parametrize("name", SCHEMES)
def test_equal_to_seqeval_in_strict_mode(name):
    from seqeval import scheme

    letters = LETTERS[name].replace("O", "")
    names = ["O"] + [f"{letter}-{kind}" for letter in letters for kind in "ab"]
    different = 0
    for gold, predicted in random_pairs(random.Random(name), names, 400):
        overall, rows = seqeval_scores(gold, predicted, scheme=getattr(scheme, name))
        got = metrics.entity_scores(gold, predicted, scheme=name)
        assert_equal(got, overall)
        assert [row for row in got["per_type"].values()] == [pytest.approx(r) for r in rows]
        different += got != metrics.entity_scores(gold, predicted)
    assert different > 200  # strict is another score


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


def test_a_scheme_nobody_knows():
    with pytest.raises(ValueError, match="scheme is 'BILOU', expected None or one of"):
        metrics.entity_scores([["O"]], [["O"]], scheme="BILOU")


# relations


def test_relations_by_hand():
    gold = ["CPR:3", "CPR:3", "CPR:4", "false", "false", "CPR:9"]
    predicted = ["CPR:3", "CPR:4", "CPR:4", "CPR:3", "false", "false"]
    got = metrics.relation_scores(gold, predicted, negative=["false"])
    assert got["accuracy"] == 3 / 6
    # right: one CPR:3, one CPR:4; predicted 4 relations; gold 4
    assert_equal(got["micro"], {"precision": 0.5, "recall": 0.5, "f1": 0.5, "support": 4})
    assert list(got["per_class"]) == ["CPR:3", "CPR:4", "CPR:9", "false"]
    assert_equal(got["per_class"]["CPR:4"], {"precision": 0.5, "recall": 1, "f1": 2 / 3})
    assert_equal(got["per_class"]["CPR:9"], {"precision": 0, "recall": 0, "f1": 0, "support": 1})
    # the mean of 1/2, 2/3 and 0; the negative class is no part of it
    assert_equal(got["macro"], {"f1": (1 / 2 + 2 / 3) / 3, "recall": 0.5, "classes": 3})


@settings(derandomize=True, deadline=None)
@given(st.lists(st.tuples(st.sampled_from("abcd"), st.sampled_from("abcd")), max_size=20),
       st.sampled_from(["", "a", "ab"]))  # fmt: skip
def test_equal_to_scikit_learn(pairs, negative):
    from sklearn.metrics import accuracy_score, precision_recall_fscore_support

    gold, predicted = [a for a, _ in pairs], [b for _, b in pairs]
    got = metrics.relation_scores(gold, predicted, negative=negative)
    labels = sorted({*gold, *predicted} - set(negative))
    assert got["macro"]["classes"] == len(labels)
    if not labels:
        assert got["micro"] == {"precision": 0.0, "recall": 0.0, "f1": 0.0, "support": 0}
        return
    assert got["accuracy"] == pytest.approx(accuracy_score(gold, predicted))
    for average in ("micro", "macro"):
        want = precision_recall_fscore_support(
            gold, predicted, labels=labels, average=average, zero_division=0
        )
        assert_equal(got[average], dict(zip(("precision", "recall", "f1"), want, strict=False)))
    if not negative:
        assert got["micro"]["f1"] == pytest.approx(got["accuracy"])


def test_lists_of_labels_that_do_not_fit():
    with pytest.raises(ValueError, match="predicted has 1 labels, expected 2"):
        metrics.relation_scores(["1", "0"], ["1"])


# answers


def test_answers_by_hand():
    golden = {"a": ["BRCA1", "brca1 gene"], "b": ["Zika virus"], "c": ["p53"], "d": ["x"]}
    submitted = {
        "a": ["TP53", "BRCA1 gene"],  # second, letter case aside: 1/2
        "b": ["ZIKA VIRUS"],  # first
        "c": [],  # wrong
        "e": ["y"],  # nobody asked
    }  # "d" was not submitted and leaves the denominator
    assert metrics.bioasq_scores(golden, submitted) == {
        "strict_accuracy": 1 / 3, "lenient_accuracy": 2 / 3, "mrr": (1 / 2 + 1) / 3, "questions": 3,
    }  # fmt: skip
    assert metrics.bioasq_scores(golden, {})["questions"] == 0


def test_nothing_but_letter_case_is_forgiven():
    golden = {"a": ["Zika virus"]}
    for text in ("Zika  virus", "Zika virus.", " Zika virus", "Zika", "Zika-virus"):
        assert metrics.bioasq_scores(golden, {"a": [text]})["mrr"] == 0.0


def test_an_answer_behind_the_fifth_counts_unless_cut_off():
    golden, submitted = {"a": ["x"]}, {"a": list("bcdefx")}
    assert metrics.bioasq_scores(golden, submitted)["mrr"] == pytest.approx(1 / 6)
    assert metrics.bioasq_scores(golden, submitted, cutoff=5)["lenient_accuracy"] == 0.0
    assert metrics.bioasq_scores(golden, submitted, cutoff=6)["lenient_accuracy"] == 1.0


def test_equal_to_the_official_scorer():
    directory = real_data("bioasq_eval")
    header, *rows = (directory / "expected.tsv").read_text().splitlines()
    assert len(rows) == 12
    for row in rows:
        want = dict(zip(header.split("\t"), row.split("\t"), strict=True))
        golden = qa.read_golden(real_data("qa") / want["golden"])
        got = metrics.bioasq_scores(golden, qa.read_submission(directory / want["prediction"]))
        for name in ("strict_accuracy", "lenient_accuracy", "mrr"):
            assert got[name] == pytest.approx(float(want[name]), abs=1e-9, rel=0), row
