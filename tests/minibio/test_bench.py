"""The benchmarks at toy size: what is measured, what is written, and when."""

import csv

import pytest
import torch

from minibio import bench
from minibio.bench_step import LENGTHS
from minibio.config import MODELS
from minibio.heads import Model

SMALL = ["--device", "cpu", "--batch", "3", "--length", "40", "--repeats", "2"]


def read(path):
    header, *lines = path.read_text("utf-8").splitlines()
    assert header.startswith("# ") and "torch" in header
    return list(csv.DictReader(lines))


def test_encoders_in_a_table(tmp_path, capsys):
    pytest.importorskip("transformers", reason="nothing to compare with")
    out = tmp_path / "new" / "encoder.csv"
    bench.main(["encoder", "--models", "sample-tiny", "--out", str(out), *SMALL])
    theirs, ours = read(out)
    assert (theirs["by"], ours["by"]) == ("transformers", "minibio")
    assert theirs["N"] == ours["N"] == str(sum(LENGTHS["pubmed"](3, 40, 0)))
    speedup = float(theirs["ms_p50"]) / float(ours["ms_p50"])
    assert float(ours["speedup"]) == pytest.approx(speedup, rel=0.02)
    assert 0 < float(ours["extra_mib"]) < 50
    assert "tok/s" in capsys.readouterr().out


@pytest.mark.parametrize("name", ["tiny-biobert", "bio-distilbert-cased", "bio-mobilebert"])
def test_both_sides_compute_the_same_thing(name):
    """Same shapes and parameter counts: the comparison is between equals."""
    pytest.importorskip("transformers", reason="nothing to compare with")
    config = MODELS[name]
    batch = bench.random_batch([3, 5], config.V, 0, torch.device("cpu"))
    ours = Model(config, "encoder")
    theirs = bench.padded_call(ours, batch, torch.device("cpu"), torch.float32)
    states = theirs().last_hidden_state  # (B, T, C)
    assert states.shape == (2, 5, config.C)
    n_theirs = sum(p.numel() for n, p in theirs.func.named_parameters() if "pooler" not in n)
    assert n_theirs == sum(p.numel() for p in ours.encoder.parameters())


def test_without_transformers_ours_alone(tmp_path, monkeypatch):
    monkeypatch.setattr(bench, "version", lambda package: "none")
    out = tmp_path / "encoder.csv"
    bench.main(["encoder", "--models", "sample-tiny", "--out", str(out), *SMALL])
    (ours,) = read(out)
    assert (ours["by"], ours["speedup"]) == ("minibio", "")
