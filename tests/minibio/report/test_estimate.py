"""The dry run's arithmetic: operations against torch's own count."""

from dataclasses import replace

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from helpers import FAMILIES, random_batch, tiny_config
from minibio.config import METHODS
from minibio.distil.objectives import OBJECTIVES
from minibio.model.attention import use_kernels
from minibio.model.heads import Model
from minibio.report.estimate import (
    activation_bytes,
    forward_flops,
    products_per_second,
    step_flops,
)


@pytest.mark.parametrize("family", FAMILIES)
def test_operations_are_those_that_torch_counts(family):
    config = tiny_config(family)
    model = Model(config).eval()
    batch = random_batch((7, 7, 7), n_segments=config.n_segments, n_predicted=5)
    use_kernels(model, "reference")  # torch counts the products in it, and none in the others
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(batch)
    mine = forward_flops(model, batch.N, batch.M, batch.n_pairs)
    # the embeddings' projection of the bottleneck families is left out of the estimate
    assert mine == pytest.approx(counter.get_total_flops(), rel=0.12 if config.C_intra else 1e-9)


@pytest.mark.parametrize("depth", [0, 1, 2])
def test_operations_of_a_pass_that_stops_early(depth):
    model = Model(tiny_config("bert")).eval()
    batch = random_batch((7, 7, 7), n_predicted=5)
    use_kernels(model, "reference")
    for predict in (False, True):
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            model(batch, depth=depth, predict=predict)
        mine = forward_flops(model, batch.N, batch.M, batch.n_pairs, depth, predict)
        assert mine == pytest.approx(counter.get_total_flops(), rel=1e-9)


def test_operations_of_a_step_follow_its_stage():
    teacher, student = Model(tiny_config("ib-bert")), Model(tiny_config("mobilebert"))
    sizes = {"N": 21, "M": 5, "n_pairs": 147}
    run = replace(METHODS["mobile"], stages=0.5, steps=12)
    staged, whole = (OBJECTIVES["mobile"](student, teacher, r) for r in (run, METHODS["mobile"]))
    steps = [step_flops(staged, teacher, **sizes, step=i) for i in range(12)]
    assert steps[0] == steps[1] < steps[2] < steps[4] < steps[6] == steps[11]
    maps = 4 * 147 * 60  # of one teacher layer, width 60
    one = 3 * forward_flops(student, **sizes, depth=1, predict=False)
    assert steps[0] == one + forward_flops(teacher, **sizes, depth=1, predict=False) + maps
    both = 3 * forward_flops(student, **sizes)
    assert steps[6] == both + forward_flops(teacher, **sizes)
    layers = forward_flops(teacher, **sizes, predict=False)
    assert step_flops(whole, teacher, **sizes, step=0) == both + layers + 3 * maps
    alone = OBJECTIVES["mlm"](student, None, METHODS["mlm"])
    assert step_flops(alone, None, **sizes, step=0) == both


def test_activations_grow_with_tokens_and_predictions():
    config = tiny_config("bert")
    one = activation_bytes(config, N=10, M=0)
    assert activation_bytes(config, N=20, M=0) == 2 * one
    assert activation_bytes(config, N=10, M=2) - one == 4 * 4 * 2 * config.C


def test_speed_is_measured():
    assert products_per_second(torch.device("cpu"), torch.float32, n=64) > 1e6
