"""Tables that line up; means and intervals by hand."""

import statistics

import pytest

from minibio.report import scores as report

WORD = {"precision": 0.5, "recall": 0.25, "f1": 1 / 3, "support": 1200}


def test_numbers_line_up_under_their_heads():
    text = report.table(["a", "long head"], [["first", "1"], ["b", "22"]])
    lines = text.splitlines()
    assert lines[1] == "| ----- | --------: |" and lines[2] == "| first |         1 |"
    assert len({len(line) for line in lines}) == 1
    assert report.columns("title", {"name": 3}) == "\ntitle\n  name             3"


def test_entity_scores_name_what_they_count():
    piece = {**WORD, "f1": 0.5}
    one = {"word": {**WORD, "per_type": {"entity": WORD}}, "piece": piece}
    text = report.scores({"task": "ner", "test": one})
    assert "| entities by words |     50.00 |  25.00 | 33.33 |    1,200 |" in text
    assert "by word pieces *" in text and "never comparable" in text and "entity" not in text
    two = {"word": {**WORD, "per_type": {"gene": WORD, "drug": WORD}}, "piece": piece}
    assert "|   gene " in report.scores({"task": "ner", "test": two})


def test_the_published_average_stands_first():
    test = {"accuracy": 0.9, "micro": WORD, "macro": {**WORD, "f1": 0.125, "classes": 2},
            "per_class": {"A": WORD, "B": WORD, "no": WORD}, "negative": ["no"],
            "main": "macro"}  # fmt: skip
    text = report.scores({"task": "relation", "test": test})
    assert text.index("macro, the mean") < text.index("micro, over") and "12.50" in text
    assert "accuracy 90.00" in text and "|   B  " in text and "constant" not in text
    assert "| macro, the mean of 2 classes * |" in text and "|   no, no relation  " in text
    assert list(report.figures({"task": "relation", "test": test})) == [
        "macro f1", "macro precision", "macro recall", "micro f1", "accuracy"
    ]  # fmt: skip


def test_answers():
    x = {"strict_accuracy": 0.1, "lenient_accuracy": 0.2, "mrr": 0.15, "questions": 20}
    text = report.scores({"task": "qa", "test": {**x, "per_file": {"a": x, "b": x}}})
    assert "| all  |  10.00 |   20.00 | 15.00 |        20 |" in text and "| b " in text
    assert "| a " not in report.scores({"task": "qa", "test": {**x, "per_file": {"a": x}}})
    assert "no --golden" in report.scores({"task": "qa", "test": {"per_file": {}}})
    assert report.figures({"task": "qa", "test": {"per_file": {}}}) == {}


def test_intervals():
    assert report.interval([3.0]) == (3.0, None)
    mean, half = report.interval([1.0, 2.0, 3.0, 4.0, 5.0])  # s = 1.5811, t(4) = 2.776
    assert mean == 3 and half == pytest.approx(2.776 * 1.58114 / 5**0.5, rel=1e-5)
    assert report.interval([0.0, 1.0])[1] == pytest.approx(12.706 * 0.5**0.5 / 2**0.5, rel=1e-6)
    many = [float(i % 7) for i in range(41)]
    _, half = report.interval(many)  # t(40) = 2.021
    assert half == pytest.approx(2.021 * statistics.stdev(many) / 41**0.5, rel=1e-3)
    assert all(a > b for a, b in zip(report.T_975, report.T_975[1:], strict=False))


def record(f1):
    return {"task": "ner", "test": {"word": {**WORD, "f1": f1}, "piece": {**WORD, "f1": 0.9}}}


def test_a_mean_over_seeds_of_means_over_folds():
    keys = [(seed, fold) for seed in (0, 1) for fold in ("fold-1", "fold-2")]
    f1s = [0.1, 0.3, 0.5, 0.9]
    got = report.summary({key: record(x) for key, x in zip(keys, f1s, strict=True)})
    assert got["over"] == "seeds" and got["seeds"] == [0, 1]
    assert got["folds"] == ["fold-1", "fold-2"]
    f1 = got["test"]["word f1"]
    assert f1["values"] == pytest.approx([0.2, 0.7]) and f1["mean"] == pytest.approx(0.45)
    assert f1["half_width"] == pytest.approx(12.706 * 0.25)
    assert "| over 2 seeds " in report.means(got) and "45.00" in report.means(got)


def test_one_seed_is_averaged_over_its_folds():
    got = report.summary({(7, "fold-1"): record(0.1), (7, "fold-2"): record(0.3)})
    assert got["over"] == "folds" and got["test"]["word f1"]["values"] == [0.1, 0.3]
    assert "fold fold-2" not in report.means(got) and "fold-2" in report.means(got)


def test_seeds_without_folds():
    got = report.summary({(s, ""): record(0.1 * s) for s in (0, 1, 2)})
    assert got["folds"] == [] and len(got["test"]["word f1"]["values"]) == 3
    assert "seed 2" in report.means(got)
