"""Scores by hand, and against conlleval, scikit-learn and BioASQ's own scorer."""

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from helpers import real_data
from minibio.tasks import metrics, qa
from toy_tasks import read_submission

# conlleval.pl of CoNLL-2000, line by line; it knows no S, and E only by halves


def split(tag):
    """Letter and type of a tag."""
    letter, _, kind = tag.partition("-")
    return letter, kind


def end_of_chunk(prev_tag, tag, prev_type, type_):
    end = False
    if prev_tag == "B" and tag == "B":
        end = True
    if prev_tag == "B" and tag == "O":
        end = True
    if prev_tag == "I" and tag == "B":
        end = True
    if prev_tag == "I" and tag == "O":
        end = True
    if prev_tag != "O" and prev_tag != "." and prev_type != type_:
        end = True
    return end


def start_of_chunk(prev_tag, tag, prev_type, type_):
    start = False
    if prev_tag == "B" and tag == "B":
        start = True
    if prev_tag == "I" and tag == "B":
        start = True
    if prev_tag == "O" and tag == "B":
        start = True
    if prev_tag == "O" and tag == "I":
        start = True
    if tag != "O" and tag != "." and prev_type != type_:
        start = True
    return start


def conlleval(gold, predicted):
    """{type: [correct chunks, found in gold, guessed]}"""
    lines = []
    for a, b in zip(gold, predicted, strict=True):
        lines += [*zip(a, b, strict=True), ("O", "O")]  # a blank line is a boundary
    counts = {}
    in_correct = False
    last_correct, last_correct_type, last_guessed, last_guessed_type = "O", "", "O", ""
    for a, b in lines:
        (correct, correct_type), (guessed, guessed_type) = split(a), split(b)
        gold_ends = end_of_chunk(last_correct, correct, last_correct_type, correct_type)
        guess_ends = end_of_chunk(last_guessed, guessed, last_guessed_type, guessed_type)
        if in_correct:
            if gold_ends and guess_ends and last_guessed_type == last_correct_type:
                in_correct = False
                counts[last_correct_type][0] += 1
            elif gold_ends != guess_ends or guessed_type != correct_type:
                in_correct = False
        gold_starts = start_of_chunk(last_correct, correct, last_correct_type, correct_type)
        guess_starts = start_of_chunk(last_guessed, guessed, last_guessed_type, guessed_type)
        if gold_starts and guess_starts and guessed_type == correct_type:
            in_correct = True
        if gold_starts:
            counts.setdefault(correct_type, [0, 0, 0])[1] += 1
        if guess_starts:
            counts.setdefault(guessed_type, [0, 0, 0])[2] += 1
        last_correct, last_correct_type = correct, correct_type
        last_guessed, last_guessed_type = guessed, guessed_type
    return counts


def row(right, gold, predicted):
    """Precision, recall, F1 and support."""
    p, r = right / predicted if predicted else 0.0, right / gold if gold else 0.0
    f1 = 2 * p * r / (p + r) if right else 0.0
    return {"precision": p, "recall": r, "f1": f1, "support": gold}


def assert_equal(got, want):
    assert {k: got[k] for k in want} == pytest.approx(want, abs=1e-12)


FORMS = {
    "untyped": ["O", "B", "I"],
    "typed": ["O", "B-a", "I-a", "B-b", "I-b", "B-c-d", "I-c-d"],
}


@pytest.mark.parametrize("form", FORMS)
def test_equal_to_conlleval_on_random_tags(form):
    rng, names = random.Random(form), FORMS[form]
    for gold, predicted in random_pairs(rng, names, 700):
        got = metrics.entity_scores(gold, predicted)
        counts = conlleval(gold, predicted)
        assert_equal(
            got, row(*map(sum, zip(*counts.values(), strict=True))) if counts else row(0, 0, 0)
        )
        assert set(got["per_type"]) == {kind or "entity" for kind in counts}
        for kind, one in counts.items():
            assert_equal(got["per_type"][kind or "entity"], row(*one))


def random_pairs(rng, names, n):
    """Gold tags, and the same with four in ten drawn again."""
    for _ in range(n):
        gold = [rng.choices(names, k=rng.randint(1, 9)) for _ in range(rng.randint(1, 3))]
        yield gold, [[t if rng.random() < 0.6 else rng.choice(names) for t in x] for x in gold]


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


def test_iobes_by_hand():
    gold = [["S-a", "O", "B-a", "I-a", "E-a"], ["B-b", "E-b", "S-a"]]
    predicted = [["B-a", "O", "B-a", "I-a", "O"], ["B-b", "E-b", "B-b"]]
    got = metrics.entity_scores(gold, predicted)
    # gold 4, predicted 4; right: the first a, whatever its letter, and the first b
    assert_equal(got, {"precision": 2 / 4, "recall": 2 / 4, "f1": 1 / 2, "support": 4})
    assert got["per_type"]["a"] == pytest.approx(row(right=1, gold=3, predicted=2))
    assert got["per_type"]["b"] == pytest.approx(row(right=1, gold=1, predicted=2))
    neighbours = [["S", "S", "E", "I", "E", "B", "E"]]  # 5: S, S, E, I E, B E
    assert metrics.entity_scores(neighbours, [["O"] * 7])["support"] == 5


def test_half_an_entity_is_none():
    got = metrics.entity_scores([["B", "I", "I"]], [["B", "I", "O"]])
    assert_equal(got, {"precision": 0.0, "recall": 0.0, "f1": 0.0, "support": 1})


def test_an_entity_ends_with_its_sentence():
    got = metrics.entity_scores([["O", "B"], ["I", "O"]], [["O", "B"], ["I", "O"]])
    assert_equal(got, {"precision": 1.0, "f1": 1.0, "support": 2})


def test_nothing_there():
    got = metrics.entity_scores([["O", "O"]], [["O", "O"]])
    assert got == {"precision": 0.0, "recall": 0.0, "f1": 0.0, "support": 0, "per_type": {}}


@pytest.mark.parametrize("predicted", [[["O"]], [["O"], ["O"]]])
def test_lists_that_do_not_fit(predicted):
    with pytest.raises(ValueError, match="inconsistent numbers of samples"):
        metrics.entity_scores([["O"], ["B", "I"]], predicted)


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
    # the mean of 1/2, 2/3 and 0; the negative class is not among them
    assert_equal(got["macro"], {"f1": (1 / 2 + 2 / 3) / 3, "recall": 0.5, "classes": 3})
    assert got["negative"] == ["false"] and got["only_answer"] is None


def test_one_answer_to_all():
    assert metrics.relation_scores("aab", "aaa")["only_answer"] == "a"
    assert metrics.only_answer(["O", "O"]) == "O"
    assert metrics.only_answer("ab") is metrics.only_answer("a") is metrics.only_answer("") is None


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
        got = metrics.bioasq_scores(golden, read_submission(directory / want["prediction"]))
        for name in ("strict_accuracy", "lenient_accuracy", "mrr"):
            assert got[name] == pytest.approx(float(want[name]), abs=1e-9, rel=0), row
