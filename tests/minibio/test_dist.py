"""One process without a group, two with one; devices that are not there."""

import os
import socket
import subprocess
import sys

import pytest
import torch

from helpers import ROOT
from minibio import dist
from minibio.errors import InputError

TWO = """
from minibio import dist
ranks = dist.start("cpu")
dist.print0("one line")
sums = dist.all_sum([ranks.rank + 1, 0.1, 2.0**53 - 2], ranks)
dist.barrier(ranks)
assert sums == [3.0, 0.2, 2.0**54 - 4], sums
print(f"rank {ranks.rank} of {ranks.world} local {ranks.local}: ok")
dist.stop(ranks)
"""


def test_alone_there_is_no_group():
    ranks = dist.start("cpu")
    assert ranks == dist.Ranks(0, 0, 1, torch.device("cpu"))
    assert dist.all_sum([1, 0.5], ranks) == [1.0, 0.5]
    dist.barrier(ranks)
    dist.stop(ranks)
    assert not torch.distributed.is_initialized()


def test_two_processes_add_up_in_float64():
    with socket.socket() as s:  # a port that is free now
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    common = {
        **os.environ, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": "2",
        "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1",
    }  # fmt: skip
    both = [
        subprocess.Popen(
            [sys.executable, "-c", TWO], cwd=ROOT, text=True,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE,
            env={**common, "RANK": str(rank), "LOCAL_RANK": str(rank)},
        )
        for rank in range(2)
    ]  # fmt: skip
    try:
        told = [process.communicate(timeout=60) for process in both]
    finally:
        for process in both:
            process.kill()
    for rank, (out, err) in enumerate(told):
        assert f"rank {rank} of 2 local {rank}: ok" in out, err
        assert ("one line" in out) == (rank == 0)


@pytest.mark.parametrize("name", ["gpu", "mps", "meta", "cpu:x", ""])
def test_a_device_of_another_kind_is_refused(name):
    if name:
        with pytest.raises(InputError, match="expected cpu, cuda or cuda:NUMBER"):
            dist.pick_device(name)
    else:
        assert dist.pick_device(name).type in ("cpu", "cuda")


def test_cuda_without_a_gpu_is_refused(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(InputError, match="use --device cpu"):
        dist.start("cuda")


def test_each_process_needs_a_gpu_of_its_own(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert dist.pick_device(None) == torch.device("cuda", 0)
    assert dist.pick_device("cuda:1") == torch.device("cuda", 1)
    assert dist.pick_device("cuda:0", local=1) == torch.device("cuda", 1)
    with pytest.raises(InputError, match="needs GPU 2, but torch sees 2"):
        dist.pick_device("cuda", local=2)
