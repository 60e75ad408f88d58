"""Scores against the fine-tuning's own record, differences against scipy's paired bootstrap."""

import json

import numpy as np
import pytest

import eval as command
from minibio.report import paired
from minibio.run.errors import InputError
from toy_tasks import make_encoder, make_tokenizer, write_chemprot, write_gad, write_ner, write_qa

SMALL = ["--epochs", "3", "--batch", "8", "--length", "64", "--lr", "3e-3", "--device", "cpu",
         "--threads", "1", "--precision", "fp32"]  # fmt: skip


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A random encoder, and a set of each task."""
    base = tmp_path_factory.mktemp("paired")
    make_encoder(base / "model", make_tokenizer())
    for name, write in (("ner", write_ner), ("gad", write_gad), ("chemprot", write_chemprot),
                        ("qa", write_qa)):  # fmt: skip
        write(base / name)
    write_ner(base / "typed", is_typed=True, seed=5)
    write_ner(base / "other", seed=6)
    return base


def fine_tune(place, task, data, name, *more):
    """The record of a run of eval.py, and its directory."""
    out = place / name
    words = [task, "--model", place / "model", "--out", out, *data, *SMALL, *more]
    command.main([*map(str, words)])
    return json.loads((out / f"{task}.json").read_text("utf-8")), out


def score(*words):
    """The record of `eval.py score`."""
    out = str(words[0]) + ".score.json"
    command.main(["score", "--out", out, *map(str, words), "--device", "cpu", "--threads", "1"])
    with open(out, encoding="utf-8") as file:
        return json.load(file)


@pytest.fixture(scope="module")
def tagger(place):
    return fine_tune(place, "ner", ["--data", place / "ner"], "ner-run", "--epochs", "1")


def test_entities_in_every_precision(place, tagger, capsys):
    trained, out = tagger
    precisions = ["fp32", "bf16", "int8"]
    found = score(out, "--data", place / "ner", "--precision", *precisions)
    assert [*found["systems"]] == [f"{out.name}, {p}" for p in precisions]
    first, *others = found["systems"].values()
    assert trained["test"]["word"]["f1"] > 0.2  # it has learnt something
    assert first["score"] == pytest.approx(trained["test"]["word"]["f1"])
    assert first["difference"] is None and found["units"] == 24
    for x in others:
        assert x["difference"]["value"] == pytest.approx(x["score"] - first["score"])
        assert x["difference"]["low"] <= x["difference"]["value"] <= x["difference"]["high"]
    shown = capsys.readouterr().out
    assert "F1 of entities by words" in shown and f"{100 * first['score']:.2f}" in shown
    alone = score(out, "--data", place / "ner" / "test.tsv", "--precision", "fp32")
    assert alone["systems"][f"{out.name}, fp32"]["score"] == first["score"]


def test_a_set_it_was_not_trained_on(place, tagger):
    _, out = tagger
    other = score(out, "--data", place / "other", "--precision", "fp32")
    assert 0 < other["systems"][f"{out.name}, fp32"]["score"] < 1
    with pytest.raises(InputError, match=r"test\.tsv: its types are joint, skin, the model's none"):
        score(out, "--data", place / "typed")


def test_seeds_are_one_system(place):
    """Its score is their mean, a difference that of the means."""
    data = ["--data", place / "ner", "--precision", "fp32"]
    out, other = place / "seeds", place / "others"
    for directory, lr in ((out, "3e-3"), (other, "2e-3")):
        words = ["ner", "--model", place / "model", "--out", directory, *SMALL, *data,
                 "--epochs", "1", "--lr", lr, "--seeds", "3", "4"]  # fmt: skip
        command.main([*map(str, words)])
    a, b = score(out, other, *data)["systems"].values()
    singly = [
        [*score(out / f"seed-{seed}", other / f"seed-{seed}", *data)["systems"].values()]
        for seed in (3, 4)
    ]
    assert (a["seeds"], b["seeds"]) == (2, 2) and singly[0][0]["seeds"] == 1
    for i, x in enumerate((a, b)):
        assert x["score"] == pytest.approx(np.mean([run[i]["score"] for run in singly]))
    assert singly[0][1]["score"] != singly[1][1]["score"]
    d = b["difference"]
    assert d["value"] == pytest.approx(np.mean([run[1]["difference"]["value"] for run in singly]))
    assert d["low"] < d["value"] < d["high"]


@pytest.mark.parametrize(("name", "what"), [("gad", "micro F1"), ("chemprot", "macro F1")])
def test_relations(place, name, what):
    trained, out = fine_tune(
        place, "relation", ["--data", place / name], f"{name}-run", "--epochs", "8"
    )
    found = score(out, "--data", place / name, "--precision", "fp32")
    assert found["figure"] == what
    main = trained["test"][what.split()[0]]["f1"]
    assert main > 0.1
    assert found["systems"][f"{out.name}, fp32"]["score"] == pytest.approx(main)


def test_questions_of_two_systems(place):
    data = ["--train", place / "qa/train.json", "--test", place / "qa/test.json",
            "--golden", place / "qa/golden.json"]  # fmt: skip
    first, out = fine_tune(place, "qa", data, "qa-run")
    second, other = fine_tune(place, "qa", data, "qa-other", "--lr", "1e-6")
    found = score(out, other, "--data", place / "qa/test.json", "--golden",
                  place / "qa/golden.json", "--precision", "fp32")  # fmt: skip
    a, b = (found["systems"][f"{x.name}, fp32"] for x in (out, other))
    assert a["score"] == pytest.approx(first["test"]["mrr"])
    assert b["score"] == pytest.approx(second["test"]["mrr"]) and b["score"] < a["score"]
    assert b["difference"]["value"] == pytest.approx(b["score"] - a["score"])
    with pytest.raises(InputError, match="--golden FILE is needed"):
        score(out, "--data", place / "qa/test.json")


@pytest.mark.parametrize("metric", [paired.f1, paired.macro_f1, paired.mean])
def test_the_bootstrap_is_scipys(metric):
    scipy = pytest.importorskip("scipy.stats", reason="an oracle that the tests install")
    rng, n = np.random.default_rng(1), 150
    if metric is paired.mean:
        a, b = (np.stack([rng.random(n) < p, np.ones(n)], 1).astype(float) for p in (0.6, 0.7))
    else:
        k = 2 if metric is paired.macro_f1 else 1
        gold = rng.integers(0, 3, (n, k))
        a, b = (np.stack([rng.binomial(gold, p), gold, gold], -1).reshape(n, -1).astype(float)
                for p in (0.6, 0.75))  # fmt: skip
    mine = paired.compare(*(paired.Scored(x[None], metric, "", 1, 1.0) for x in (a, b)))

    def difference(index):
        return metric(b[index].sum(-2)) - metric(a[index].sum(-2))

    theirs = scipy.bootstrap((np.arange(n),), difference, n_resamples=10_000, method="percentile",
                             vectorized=False, random_state=0)  # fmt: skip
    low, high = theirs.confidence_interval
    width = high - low
    assert mine.value == difference(np.arange(n))
    assert abs(mine.low - low) < 0.06 * width and abs(mine.high - high) < 0.06 * width
    below = (theirs.bootstrap_distribution <= 0).mean()
    assert abs(mine.p - max(2 * min(below, 1 - below), 1e-4)) < 0.01


def test_the_mean_over_seeds_is_drawn():
    """Against a loop over draws and seeds."""
    rng = np.random.default_rng(2)
    gold = rng.integers(1, 4, (2, 30))
    a, b = (paired.Scored(np.stack([rng.binomial(gold, p), gold, gold], -1).astype(float),
                          paired.f1, "", 1, 1.0) for p in (0.5, 0.6))  # fmt: skip
    found = paired.compare(a, b, rounds=40, seed=9)
    weights = np.random.default_rng(9).multinomial(30, np.full(30, 1 / 30), 40)
    drawn = [
        np.mean([paired.f1((y * w[:, None]).sum(0)) - paired.f1((x * w[:, None]).sum(0))
                 for x, y in zip(a.counts, b.counts, strict=True)])
        for w in weights
    ]  # fmt: skip
    assert (found.low, found.high) == pytest.approx(np.percentile(drawn, (2.5, 97.5)))
    assert found.value == pytest.approx(
        np.mean([paired.f1(y.sum(0)) - paired.f1(x.sum(0))
                 for x, y in zip(a.counts, b.counts, strict=True)])
    )  # fmt: skip


def test_a_system_does_not_differ_from_itself():
    counts = np.tile([[1.0, 2, 2], [0, 1, 1]], (20, 1))
    same = paired.Scored(counts[None], paired.f1, "", 1, 1.0)
    assert paired.compare(same, same) == (0, 0, 0, 1)
    with pytest.raises(ValueError, match="39 units, expected 40"):
        paired.compare(same, same._replace(counts=counts[None, 1:]))


def test_macro_leaves_out_classes_that_do_not_occur():
    sums = np.array([2.0, 4, 4, 0, 0, 0, 0, 1, 0])  # F1 of 0.5, none, and 0
    assert paired.macro_f1(sums) == 0.25


def test_refusals(place, tagger, tmp_path):
    _, out = tagger
    data = ["--data", place / "ner"]
    relations = fine_tune(place, "relation", ["--data", place / "gad"], "gad-second")[1]
    with pytest.raises(InputError, match=r"gad-second is of another task than .*ner-run"):
        score(out, relations, *data)
    with pytest.raises(InputError, match="fp32 is asked for twice"):
        score(out, *data, "--precision", "fp32", "fp32")
    with pytest.raises(InputError, match="--data has 2 paths, expected one"):
        score(out, *data, place / "typed")
    with pytest.raises(InputError, match="its labels are .*, the model's 0, 1"):
        score(relations, "--data", place / "chemprot")
    text = (place / "ner/test.tsv").read_bytes()
    with pytest.raises(InputError, match=r"test\.tsv is what is read; name another place"):
        score(out, "--data", place / "ner/test.tsv", "--out", place / "ner/test.tsv")
    assert (place / "ner/test.tsv").read_bytes() == text
    with pytest.raises(InputError, match=r"nowhere"):
        score(out, "--data", tmp_path / "nowhere")
