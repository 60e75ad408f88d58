"""Learning rates by hand, and which parameters decay."""

import pytest
import torch.nn as nn

from minibio.run.optim import lr_at, make_optimizer, parameter_groups


@pytest.mark.parametrize(
    ("schedule", "rates"),
    [
        ("linear", [0.5, 1.0, 1.0, 0.875, 0.75, 0.625, 0.5, 0.375, 0.25, 0.125]),
        ("cosine", {0: 0.5, 1: 1.0, 2: 1.0, 4: 0.8535533905932737, 6: 0.5, 8: 0.14644660940672627}),
        ("wsd", [0.5, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0]),
    ],
)
def test_ten_steps_by_hand(schedule, rates):
    for step, rate in enumerate(rates) if isinstance(rates, list) else rates.items():
        got = lr_at(step, peak=1.0, warmup=2, total=10, schedule=schedule)
        assert got == pytest.approx(rate, abs=1e-15)


def test_wsd_decays_over_the_last_tenth():
    rates = [lr_at(s, peak=2.0, warmup=0, total=100, schedule="wsd") for s in (89, 90, 95, 99)]
    assert rates == pytest.approx([2.0, 2.0, 1.0, 0.2])


@pytest.mark.parametrize("schedule", ["linear", "cosine", "wsd"])
@pytest.mark.parametrize(("warmup", "total"), [(0, 1), (0, 7), (7, 7), (5_000, 100_000)])
def test_rates_stay_between_0_and_the_peak(schedule, warmup, total):
    for step in {0, 1, warmup, total // 2, total - 1, total, total + 5}:
        assert 0 <= lr_at(step, peak=3e-4, warmup=warmup, total=total, schedule=schedule) <= 3e-4
    assert lr_at(0, peak=3e-4, warmup=warmup, total=total, schedule=schedule) > 0


def test_an_unknown_schedule_is_refused_at_the_first_step():
    with pytest.raises(ValueError, match="expected one of"):
        lr_at(0, peak=1.0, warmup=10, total=20, schedule="step")


def test_matrices_decay_biases_norms_and_frozen_parameters_do_not():
    module = nn.Sequential(nn.Embedding(5, 4), nn.Linear(4, 3), nn.LayerNorm(3), nn.Linear(3, 2))
    module[3].requires_grad_(False)
    decay, plain = parameter_groups(module, 0.01)
    assert [tuple(p.shape) for p in decay["params"]] == [(5, 4), (3, 4)]
    assert [tuple(p.shape) for p in plain["params"]] == [(3,), (3,), (3,)]
    assert (decay["weight_decay"], plain["weight_decay"]) == (0.01, 0.0)


def test_the_optimiser_takes_its_constants():
    optimizer = make_optimizer(nn.Linear(3, 3), 1e-3, 0.1, betas=(0.8, 0.95), eps=1e-6)
    for group in optimizer.param_groups:
        assert (group["lr"], group["betas"], group["eps"]) == (1e-3, (0.8, 0.95), 1e-6)
