"""One process without a group, two with one; devices that are not there."""

import re

import pytest
import torch

from helpers import processes
from minibio.run import dist
from minibio.run.errors import InputError

TWO = """
import torch
from minibio.run import dist
from minibio.run.errors import InputError
ranks = dist.start("cpu")
dist.print0("one line")
sums = dist.all_sum([ranks.rank + 1, 0.1, 2.0**53 - 2], ranks)
dist.barrier(ranks)
parts = dist.all_gather(torch.full((1, 2), ranks.rank, dtype=torch.uint8).t(), ranks)
assert parts.tolist() == [[[0], [0]], [[1], [1]]] and parts.dtype == torch.uint8, parts
told = dist.from_rank0(lambda: {"β": [1.5, None]} if ranks.rank == 0 else 1 / 0, ranks)
assert told == {"β": [1.5, None]}, told
assert dist.from_rank0(lambda: None, ranks) is None
mine = {
    "a": torch.tensor(2.0**-60 + 1, dtype=torch.float64),
    "β": torch.arange(6, dtype=torch.bfloat16).view(2, 3).t(),
}
got = dist.tensors_from_rank0(mine if ranks.rank == 0 else {}, ranks)
assert list(got) == ["a", "β"] and all(torch.equal(got[n], x) for n, x in mine.items()), got
assert all(got[n].dtype == x.dtype for n, x in mine.items())
for broken, kind in (
    (lambda: [][1], IndexError),
    (lambda: object(), TypeError),
    (lambda: dist.pick_device("x"), InputError),
):
    try:
        dist.from_rank0(broken, ranks)
        raise AssertionError("an error on rank 0 is one on every rank")
    except Exception as error:
        assert type(error) is (kind if ranks.rank == 0 else InputError), error
        assert str(error)
assert sums == [3.0, 0.2, 2.0**54 - 4], sums
print(f"rank {ranks.rank} of {ranks.world} local {ranks.local}: ok")
dist.stop(ranks)
"""


def test_alone_there_is_no_group():
    ranks = dist.start("cpu")
    assert ranks == dist.Ranks(0, 0, 1, torch.device("cpu"))
    assert dist.all_sum([1, 0.5], ranks) == [1.0, 0.5]
    dist.barrier(ranks)
    x = torch.arange(3)
    assert torch.equal(dist.all_gather(x, ranks), x[None])
    assert dist.from_rank0(lambda: (1, "a"), ranks) == (1, "a")
    with pytest.raises(KeyError):
        dist.from_rank0(lambda: {}["a"], ranks)
    assert dist.tensors_from_rank0({"x": x}, ranks) == {"x": x}
    dist.stop(ranks)
    assert not torch.distributed.is_initialized()


def test_two_processes_add_up_in_float64():
    for rank, (_, out, err) in enumerate(processes(2, ["-c", TWO], timeout=60, own_end=True)):
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


GONE = """
import os, signal, sys, time
from datetime import timedelta
from minibio.run import dist, errors
rank, who, when = int(os.environ["RANK"]), *sys.argv[1:]
# waited for in full where a rank never joins, and nowhere else
dist.JOIN = timedelta(seconds=4 if when == "before it joins" else 30)
dist.BEAT, dist.SILENCE = 0.5, 4.0

def die(moment):
    if (str(rank), moment) == (who, when):
        os.kill(os.getpid(), signal.SIGKILL)

init = dist.td.init_process_group

def join(*args, **named):
    die("when all have come")
    init(*args, **named)

dist.td.init_process_group = join

def main():
    die("before it joins")
    ranks = dist.start("cpu")
    die("between two collectives")
    dist.barrier(ranks)
    def write():
        die("while the others wait for it")
        time.sleep(6)  # longer than the silence of a rank that is gone: this one is at work
    dist.from_rank0(write, ranks)
    dist.stop(ranks)

errors.run(main, "x")
"""


@pytest.mark.parametrize(
    ("who", "when"),
    [
        *((who, "before it joins") for who in range(3)),
        *((who, "when all have come") for who in range(3)),
        *((who, "between two collectives") for who in range(3)),
        (0, "while the others wait for it"),  # they wait for no other
        (0, "never"),
    ],
)
def test_no_rank_waits_for_one_that_is_gone(who, when):
    """And a rank that is long at work is not one that is gone."""
    told = processes(3, ["-c", GONE, str(who), when], timeout=100, own_end=True)
    for rank, (status, _, err) in enumerate(told):
        if when == "never":
            assert (status, err) == (0, "")
        elif rank == who:
            assert status == -9
        else:
            assert status == 2 and "re-run the same command" in err, (rank, err)
            assert "Traceback" not in err
            [line] = [x for x in err.splitlines() if "re-run the same command" in x]
            assert "frame #" not in line and len(line) < 250, line
            if when == "before it joins":  # nor does torch try again, after twice the time
                assert err.splitlines() == [line]


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"WORLD_SIZE": "two"}, "WORLD_SIZE is 'two'"),
        ({"WORLD_SIZE": "2"}, "not RANK"),
        ({"WORLD_SIZE": "2", "RANK": "1"}, "not MASTER_ADDR"),
        ({"WORLD_SIZE": "2", "RANK": "0", "MASTER_ADDR": "127.0.0.1"}, "not MASTER_PORT"),
    ],
)
def test_half_an_environment_is_refused(monkeypatch, given, said):
    for name in ("WORLD_SIZE", "RANK", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    for name, text in given.items():
        monkeypatch.setenv(name, text)
    with pytest.raises(InputError, match=re.escape(said)):
        dist.start("cpu")
