"""The dry run's arithmetic: operations against torch's own count, and readable durations."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from helpers import FAMILIES, random_batch, tiny_config
from minibio.attention import use_kernels
from minibio.estimate import activation_bytes, duration, forward_flops, products_per_second
from minibio.heads import Model


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


def test_activations_grow_with_tokens_and_predictions():
    config = tiny_config("bert")
    one = activation_bytes(config, N=10, M=0)
    assert activation_bytes(config, N=20, M=0) == 2 * one
    assert activation_bytes(config, N=10, M=2) - one == 4 * 4 * 2 * config.C


def test_speed_is_measured():
    assert products_per_second(torch.device("cpu"), torch.float32, n=64) > 1e6


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.0123, "12.3 ms"), (3.4, "3.4 s"), (300, "5 min"), (36000, "10 h"), (864000, "10 days")],
)
def test_durations_have_a_unit(seconds, text):
    assert duration(seconds) == text
