"""Gradients of several processes: their sums, in fixed buckets, in a fixed order, while one waits.

As a script this file is one process of a group: `test_gradients.py WHAT`.
"""

import ctypes
import os
import sys
from pathlib import Path

import pytest
import torch
import torch.nn as nn

from helpers import processes
from minibio.run import dist
from minibio.run.errors import InputError
from minibio.run.gradients import Gradients, in_parts

WORLD = 3
ALONE = dist.Ranks(0, 0, 1, torch.device("cpu"))


class Net(nn.Module):
    """Four layers, the last one tied to the first, and one that nothing uses."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.unused = nn.Linear(5, 5, dtype=torch.float64)  # in the bucket that goes last
        self.layers = nn.ModuleList(nn.Linear(6, 6, dtype=torch.float64) for _ in range(4))
        self.layers[3].weight = self.layers[0].weight
        self.frozen = nn.Parameter(torch.ones(3), requires_grad=False)

    def forward(self, x):
        for layer in self.layers:
            x = layer(x).tanh()
        return x.square().sum()


def inputs(rank, micro):
    return torch.randn(5, 6, generator=torch.Generator().manual_seed(10 * rank + micro)).double()


def backward(net, gradients, rank, micros=2):
    """One step's passes, with what was sent by the time the first layer had its gradient."""
    sent = []
    hook = net.layers[0].bias.register_post_accumulate_grad_hook(
        lambda p: sent.append(len(gradients.buckets) - len(gradients.unsent))
        if gradients.is_last else None
    )  # fmt: skip
    gradients.clear()
    for micro in range(micros - 1):
        net(inputs(rank, micro)).backward()
    with gradients.summed():
        net(inputs(rank, micros - 1)).backward()
    hook.remove()
    return sent


def expected():
    """The sum over all processes and micro-batches, by one process."""
    net = Net()
    sum(net(inputs(rank, micro)) for rank in range(WORLD) for micro in range(2)).backward()
    return {name: p.grad for name, p in net.named_parameters()}


def check(net, truth):
    for name, p in net.named_parameters():
        if truth[name] is None:
            assert p.grad is None, name
        else:
            assert torch.allclose(p.grad, truth[name], rtol=1e-13, atol=1e-14), name


def sums(ranks):
    net, truth = Net(), expected()
    gradients = Gradients(net.parameters(), ranks, bucket_bytes=350)
    assert len(gradients.buckets) == 5
    for _ in range(3):  # the second step's sums are not the first's twice
        sent = backward(net, gradients, ranks.rank)
        check(net, truth)
        assert sent == [3], "the sums were not under way before the pass had ended"
        norm = nn.utils.clip_grad_norm_(gradients.parameters, 1.0)
        norms = dist.all_sum([norm.item()], ranks)[0]
        assert norms == pytest.approx(WORLD * norm.item(), rel=1e-15)


def one_leaves(ranks):
    net = Net()
    gradients = Gradients(net.parameters(), ranks)
    backward(net, gradients, ranks.rank)
    if ranks.rank == 1:
        os._exit(0)
    try:
        for _ in range(3):
            backward(net, gradients, ranks.rank)
    except InputError as error:
        print(error)
        os._exit(0)


@pytest.mark.parametrize("what", ["sums", "one_leaves"])
def test_several_processes(what):
    told = processes(WORLD, [__file__, what], PYTHONPATH=os.pathsep.join(sys.path))
    for rank, (status, out, err) in enumerate(told):
        assert status == 0, err
        if what == "one_leaves" and rank != 1:
            assert "another rank of this run is gone" in out


def test_one_process_sends_and_copies_nothing():
    net, truth = Net(), Net()
    gradients = Gradients(net.parameters(), ALONE)
    assert backward(net, gradients, rank=0) == [0] and not gradients.buckets
    sum(truth(inputs(0, micro)) for micro in range(2)).backward()
    check(net, {name: p.grad for name, p in truth.named_parameters()})
    kept = [p.grad for p in net.parameters() if p.grad is not None]
    gradients.clear()
    assert kept and all(p.grad is None for p in net.parameters())


def test_buckets_are_neighbours_of_one_type():
    sizes = [(4, torch.float32), (4, torch.float32), (9, torch.float32), (1, torch.float32),
             (1, torch.float64), (2, torch.float64)]  # fmt: skip
    parameters = [nn.Parameter(torch.zeros(n, dtype=dtype)) for n, dtype in sizes]
    parts = [[p.numel() for p in part] for part in in_parts(parameters, 32)]
    assert parts == [[4, 4], [9], [1], [1, 2]]


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "malloc_trim"), reason="no glibc")
def test_gaps_between_tensors_are_given_back():
    def resident():
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")

    gradients = Gradients(Net().parameters(), ALONE)
    tensors = [torch.ones(4_000) for _ in range(8_000)]  # 16 kB each: on the heap, 128 MB
    full = resident()
    tensors = tensors[::40]  # what is left holds the gaps
    for _ in range(dist.TRIM_EVERY - 1):
        gradients.clear()
    assert resident() > full - 20 * 2**20
    gradients.clear()
    assert resident() < full - 80 * 2**20


if __name__ == "__main__":
    globals()[sys.argv[1]](ranks := dist.start("cpu"))
    dist.stop(ranks)
