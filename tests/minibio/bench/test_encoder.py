"""The benchmarks at toy size: what is measured, what is written, and when."""

import csv
from functools import partial

import pytest
import torch

from minibio.bench import __main__ as command
from minibio.bench import encoder as bench
from minibio.bench.step import LENGTHS
from minibio.config import MODELS
from minibio.model.heads import Model

SMALL = ["--device", "cpu", "--batch", "3", "--length", "40", "--repeats", "2"]


def read(path):
    header, *lines = path.read_text("utf-8").splitlines()
    assert header.startswith("# ") and "torch" in header
    return list(csv.DictReader(lines))


def test_encoders_in_a_table(tmp_path, capsys):
    pytest.importorskip("transformers", reason="nothing to compare with")
    out = tmp_path / "new" / "encoder.csv"
    command.main(["encoder", "--models", "sample-tiny", "--out", str(out), *SMALL])
    theirs, ours = read(out)
    assert (theirs["by"], ours["by"]) == ("transformers", "minibio")
    assert theirs["N"] == ours["N"] == str(sum(LENGTHS["pubmed"](3, 40, 0)))
    speedup = float(theirs["ms_p50"]) / float(ours["ms_p50"])
    assert float(ours["speedup"]) == pytest.approx(speedup, rel=0.02)
    assert 0 < float(ours["extra_mib"]) < 50
    assert "tok/s" in capsys.readouterr().out


@pytest.mark.parametrize("name", ["tiny-biobert", "bio-distilbert-cased", "bio-mobilebert"])
def test_both_sides_compute_the_same_thing(name):
    """Same weights, shapes, parameter counts and results: the comparison is between equals."""
    pytest.importorskip("transformers", reason="nothing to compare with")
    config = MODELS[name]
    batch = bench.random_batch([3, 5], config.V, 0, torch.device("cpu"))
    ours = Model(config, "encoder").eval()
    for p in ours.parameters():  # not even biases are 0
        p.data.add_(0.01 * torch.randn_like(p))
    ours.encoder.embeddings.token.weight.data[config.pad_id] = 0  # MobileBERT reads a neighbour's
    theirs = bench.padded_call(ours, batch, torch.device("cpu"), torch.float32)
    states = theirs().last_hidden_state  # (B, T, C)
    assert states.shape == (2, 5, config.C)
    with torch.inference_mode():
        assert bench.difference(partial(ours, batch), theirs) <= 2e-5
        theirs.keywords["input_ids"][0, 1] += 1
        assert bench.difference(partial(ours, batch), theirs) > 1e-3
    n_theirs = sum(p.numel() for n, p in theirs.func.named_parameters() if "pooler" not in n)
    assert n_theirs == sum(p.numel() for p in ours.encoder.parameters())


def test_a_batch_of_one_is_as_long_as_asked(tmp_path, capsys):
    pytest.importorskip("transformers", reason="nothing to compare with")
    small = [*SMALL[:2], "--batch", "1", "--length", "300", "--repeats", "1"]
    command.main(["encoder", "--models", "sample-tiny", *small, "--out", str(tmp_path / "a.csv")])
    assert {row["N"] for row in read(tmp_path / "a.csv")} == {"300"}
    assert "sample-tiny fp32: results differ by" in capsys.readouterr().out


def test_without_transformers_ours_alone(tmp_path, monkeypatch):
    monkeypatch.setattr(bench, "version", lambda package: "none")
    out = tmp_path / "encoder.csv"
    command.main(["encoder", "--models", "sample-tiny", "--out", str(out), *SMALL])
    (ours,) = read(out)
    assert (ours["by"], ours["speedup"]) == ("minibio", "")
