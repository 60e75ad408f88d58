"""Models side by side: the table's figures, and what cannot be compared."""

import json
import random

import pytest
import torch

import eval as evaluation
import minibio
from data.shard.shard import shard
from helpers import tiny_config
from minibio.model.heads import Model
from minibio.run.errors import InputError
from minibio.text.corpus import Corpus
from minibio.text.tokenizer import Tokenizer
from toy_tasks import FAST, FILLERS, make_tokenizer, tagged, write_ner


@pytest.fixture(scope="module")
def tokenizer():
    return make_tokenizer()


def refused(message, *arguments):
    with pytest.raises(InputError, match=message) as error:
        evaluation.main([*map(str, arguments), "--device", "cpu"])
    assert "\n" not in str(error.value)


@pytest.fixture(scope="module")
def runs(tmp_path_factory, tokenizer):
    """Two runs as train.py leaves them, and the shards they name."""
    base = tmp_path_factory.mktemp("runs")
    rng = random.Random(0)
    text = [" ".join(tagged(rng)[0]) for _ in range(150)]
    (base / "text.txt").write_text("\n".join(text), "utf-8")
    shard([base / "text.txt"], tokenizer, base / "shards", length=30, held_out=0.3, progress=False)
    for seed, name in enumerate(("teacher", "student")):
        torch.manual_seed(seed)
        config = tiny_config("bert", V=tokenizer.V, L=2 - seed)
        minibio.save(Model(config), tokenizer, base / name)
        record = {"method": ["mlm", "tiny"][seed], "corpus": str(base / "shards"), "length": 24}
        (base / name / "run.json").write_text(json.dumps(record), "utf-8")
    return base


@pytest.fixture(scope="module")
def tuned_runs(runs):
    data = write_ner(runs / "toy")
    for name in ("teacher", "student"):
        given = ["--model", runs / name, "--data", data, "--out", runs / f"{name}-ner"]
        evaluation.main(["ner", *map(str, given), *FAST, "--epochs", "1"])
    return runs


def compare(base, out, *options):
    evaluation.main(["compare", str(base / "teacher"), str(base / "student"), "--out", str(out),
                     "--repeats", "2", "--threads", "1", "--device", "cpu", *options])  # fmt: skip
    return json.loads((out / "compare.json").read_text("utf-8"))


def test_the_table_of_runs(tuned_runs, tmp_path, capsys):
    base = tuned_runs
    got = compare(base, tmp_path, "--ner", str(base / "teacher-ner"), str(base / "student-ner"))
    corpus = Corpus(base / "shards", "held-out", seed=3, length=24)
    batches = corpus.held_out_batches(7)
    for name, row in zip(("teacher", "student"), got["rows"], strict=True):
        model, _ = minibio.load(base / name, head="mlm")
        assert row["name"] == name and row["parameters"] == model.n_parameters
        assert row["parameters_encoder"] == sum(p.numel() for p in model.encoder.parameters())
        total = M = 0
        for batch in batches:
            logits = model(batch).logits.double()
            loss = torch.nn.functional.cross_entropy(logits, batch.labels, reduction="sum")
            total, M = total + loss.item(), M + batch.M
        assert row["mlm_loss"] == pytest.approx(total / M, rel=1e-5)
        scores = json.loads((base / f"{name}-ner" / "ner.json").read_text("utf-8"))["test"]["word"]
        assert row["ner_f1"] == scores["f1"] and row["ner_precision"] == scores["precision"]
        assert row["tokens_per_s"] > 0
    assert got["documents"] == len(corpus.shards)
    text = (tmp_path / "compare.md").read_text("utf-8")
    lines = text.splitlines()
    assert len({len(line) for line in lines[:4]}) == 1 and lines[2].startswith("| teacher")
    assert text.strip() in capsys.readouterr().out


def test_a_table_without_entity_scores(runs, tmp_path):
    got = compare(runs, tmp_path, "--documents", "5")
    assert got["documents"] == 5 and "ner_f1" not in got["rows"][0]
    assert "| -" in (tmp_path / "compare.md").read_text("utf-8").replace("  ", "")


def test_tables_that_cannot_be_made(tuned_runs, tmp_path):
    base = tuned_runs
    pair = ("compare", base / "teacher", base / "student", "--out", tmp_path / "out")
    refused("1 --ner directories for 2 runs", *pair, "--ner", base / "teacher-ner")
    swapped = (base / "student-ner", base / "teacher-ner")
    refused("fine-tuned from 'student', expected 'teacher'", *pair, "--ner", *swapped)
    refused("ner.json", *pair, "--ner", base / "teacher", base / "student")
    bare = base / "bare"
    minibio.save(Model(tiny_config("bert", V=7)), None, bare)
    refused("no run names a corpus", "compare", bare, "--out", tmp_path / "out")
    for field in ({"corpus": 5}, {"corpus": None}, {"length": "x"}, {"length": [1]}):
        (bare / "run.json").write_text(json.dumps(field), "utf-8")
        refused(rf"run\.json: {next(iter(field))} is", "compare", bare, "--out", tmp_path / "out")
    (bare / "ner.json").write_text(
        json.dumps(
            {"model": "x", "test": {"word": dict.fromkeys(("precision", "recall", "f1"), 10**400)}}
        )
    )
    refused("holds no scores", *pair, "--ner", bare, bare)
    refused("shards", *pair, "--corpus", tmp_path)
    (tmp_path / "file").write_text("")
    refused("cannot write", *pair[:3], "--out", tmp_path / "file" / "out")
    assert not (tmp_path / "out").exists()


def test_runs_of_different_vocabularies_are_not_compared(runs, tmp_path):
    other = Tokenizer.train([" ".join(FILLERS).lower()] * 3, 90, cased=False)
    minibio.save(Model(tiny_config("bert", V=90)), other, tmp_path / "other")
    refused("another vocabulary", "compare", runs / "teacher", tmp_path / "other",
            "--out", tmp_path / "out")  # fmt: skip
