"""The held-out loss: a literal case, and what it leaves behind."""

from dataclasses import replace

import pytest
import torch

from helpers import DEVICE, random_batch, tiny_config
from minibio.distil.measure import held_out
from minibio.model.heads import Model
from minibio.run.dist import Ranks
from minibio.run.precision import autocast

RANKS = Ranks(0, 0, 1, torch.device(DEVICE))


@pytest.fixture
def model():
    return Model(tiny_config("bert")).to(DEVICE)


def test_loss_and_accuracy_over_all_batches_together(model):
    batches = [random_batch(n_predicted=3), random_batch((4, 9), n_predicted=6, seed=1)]
    model.eval()
    loss = right = 0.0
    for batch in batches:
        log_p = model(batch.to(DEVICE)).logits.detach().cpu().double().log_softmax(1)
        for row, label in zip(log_p, batch.labels.tolist(), strict=True):
            loss -= row[label].item() / 9  # nine predicted tokens, not the mean of two means
            right += (row.argmax().item() == label) / 9
    got = held_out(model, batches, RANKS)
    assert got["mlm_loss"] == pytest.approx(loss, rel=1e-5)
    assert got["accuracy"] == pytest.approx(right)


def test_the_model_is_left_as_it_was(model):
    batches = [random_batch(n_predicted=3)]
    first = held_out(model.train(), batches, RANKS)  # without dropout all the same
    assert model.training and held_out(model, batches, RANKS) == first
    held_out(model.eval(), batches, RANKS)
    assert not model.training


def test_shares_of_the_processes_make_the_whole(model):
    batches = [random_batch(n_predicted=3, seed=s) for s in range(3)]
    whole = held_out(model, batches, RANKS)["mlm_loss"]
    parts = [held_out(model, [b], RANKS)["mlm_loss"] for b in batches]
    assert whole == pytest.approx(sum(parts) / 3, rel=1e-6)  # equally many targets in each


def test_precision(model):
    x = torch.randn(4, 60, device=DEVICE)
    layer = model.encoder.layers[0].attention.query
    with autocast("bf16", RANKS.device):
        assert layer(x).dtype == torch.bfloat16
    with autocast("fp32", RANKS.device):
        assert layer(x).dtype == torch.float32


def test_a_bar_of_its_own_on_a_terminal(model, monkeypatch, capsys):
    batches = [random_batch(n_predicted=3, seed=s) for s in range(3)]
    held_out(model, batches, RANKS)
    assert capsys.readouterr() == ("", "")
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    held_out(model, batches, RANKS)
    assert "held-out text:" in capsys.readouterr().err
    held_out(model, batches, replace(RANKS, rank=1))
    assert capsys.readouterr() == ("", "")
