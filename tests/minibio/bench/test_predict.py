"""Predictions timed from file to file: every system answers the same texts, and all are scored."""

import csv
import json
import sys
from types import SimpleNamespace

import pytest
import torch

from minibio.batch import Batch
from minibio.bench import __main__ as command
from minibio.bench import predict as bench
from minibio.report import paired
from minibio.run.errors import InputError
from minibio.tasks.predict import Predictor
from toy_tasks import make_heads, write_ner


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return make_heads(tmp_path_factory.mktemp("models"))


@pytest.fixture(scope="module")
def ner(tmp_path_factory):
    return write_ner(tmp_path_factory.mktemp("sets") / "ner")


def run(directory, data, tmp_path, *more):
    """Rows of the table."""
    out = tmp_path / "new" / "predict.csv"
    command.main(["predict", str(directory), "--data", str(data), "--out", str(out),
                  "--device", "cpu", *more])  # fmt: skip
    header, *lines = out.read_text("utf-8").splitlines()
    assert header.startswith("# ") and "torch" in header
    return list(csv.DictReader(lines))


def test_every_system_in_a_table(base, ner, tmp_path, monkeypatch, capsys):
    """On documents of one sentence each, the pipeline finds what ours does, and F1 is `score`'s."""
    pytest.importorskip("transformers", reason="nothing to compare with")
    monkeypatch.setattr(bench, "JOINED", 1)
    rows = run(base / "token", ner, tmp_path, "--by", "transformers",
               "--precision", "fp32", "int8")  # fmt: skip
    assert [(r["by"], r["precision"]) for r in rows] == [
        ("minibio", "fp32"), ("minibio", "int8"), ("transformers", "fp32"),
    ]  # fmt: skip
    ours, int8, theirs = rows
    assert {r["documents"] for r in rows} == {"24"} and int8["f1"] != ""
    for r in rows:
        seconds = float(r["seconds"])
        assert float(r["documents_per_s"]) == pytest.approx(24 / seconds, rel=0.01)
        assert float(r["speedup"]) == pytest.approx(float(theirs["seconds"]) / seconds, rel=0.01)
    assert ours["same"] == theirs["same"] == "1.0" and ours["f1"] == theirs["f1"]
    score = paired.entities(Predictor(base / "token", precision="fp32"), ner, None).score
    assert float(ours["f1"]) == pytest.approx(score, abs=1e-6) and score > 0
    assert "batches of" in capsys.readouterr().out


def test_lines_of_text_and_rivals_that_are_not_there(base, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(bench, "find_spec", lambda name: None)
    texts = [f"The patient had Gout {i}. No sign." for i in range(5)]
    (tmp_path / "a.jsonl").write_text("\n\n".join(json.dumps({"text": x}) for x in texts))
    (row,) = run(base / "token", tmp_path / "a.jsonl", tmp_path, "--documents", "3",
                 "--precision", "fp32")  # fmt: skip
    assert (row["documents"], row["speedup"], row["f1"], row["same"]) == ("3", "", "", "1.0")
    printed = capsys.readouterr().out
    assert "without transformers: transformers is not installed\n" in printed
    assert "without onnxruntime: onnxruntime is not installed\n" in printed


def test_sentences_become_documents_of_ten_with_their_entities(ner):
    lines, gold = bench.read_set(ner)
    texts = [json.loads(line)["text"] for line in lines]
    blocks = (ner / "test.tsv").read_text("utf-8").strip().split("\n\n")
    words = [[line.split("\t") for line in block.split("\n")] for block in blocks]
    assert len(texts) == 3
    assert texts[1] == " ".join(word for block in words[10:20] for word, _ in block)
    assert len(gold) == sum(tag == "B" for block in words for _, tag in block)
    names = {texts[i][start:end] for i, start, end, _ in gold}
    assert "Gout" in names and all(name.split()[0] in "Ulcer Sepsis Gout Colic" for name in names)


def test_a_graph_answers_for_each_token_of_a_row(monkeypatch):
    """What it is given is padded; what it returns is not."""
    seen = []

    class Session:
        def __init__(self, path, options, providers):
            assert options.intra_op_num_threads == torch.get_num_threads()

        def run(self, names, given):
            seen.append(given)
            return [given["input_ids"][..., None] * torch.tensor([1.0, -1.0]).numpy()]

    fake = SimpleNamespace(InferenceSession=Session, SessionOptions=SimpleNamespace)
    monkeypatch.setitem(sys.modules, "onnxruntime", fake)
    graph = bench.Graph("x.onnx")
    logits = graph(Batch.from_sequences([[5, 6, 7], [8]])).logits
    assert logits.tolist() == [[5, -5], [6, -6], [7, -7], [8, -8]]
    assert seen[0]["attention_mask"].tolist() == [[1, 1, 1], [1, 0, 0]]


@pytest.mark.slow
def test_graphs_compute_the_same(base, ner, tmp_path):
    for name in bench.NEEDED["onnxruntime"]:
        pytest.importorskip(name, reason="the graphs are made and run by these")
    pytest.importorskip("transformers", reason="the graph is of its model")
    rows = run(base / "token", ner, tmp_path, "--precision", "fp32", "--by", "onnxruntime")
    assert [(r["by"], r["precision"]) for r in rows] == [
        ("minibio", "fp32"), ("onnxruntime", "fp32"), ("onnxruntime", "int8"),
    ]  # fmt: skip
    assert rows[1]["same"] == "1.0" and rows[1]["speedup"] == ""


@pytest.mark.parametrize(
    ("head", "text", "more", "message"),
    [
        ("span", "a", [], "is not a tagger, expected a directory of `eval.py ner`"),
        ("token", "\n \n", [], "has no text"),
        ("token", "a", ["--documents", "0"], "--documents is 0, expected at least 1"),
        ("token", "a\tB-x\n", [], "its types are x, the model's d"),
    ],
)
def test_refusals(base, tmp_path, head, text, more, message):
    (tmp_path / "text").write_text(text)
    with pytest.raises(InputError, match=message):
        run(base / head, tmp_path / "text", tmp_path, "--by", *more)
