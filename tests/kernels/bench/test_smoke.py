"""kernels/bench/smoke.py on a CPU: what it calls right, what it calls wrong, and how it ends."""

import re

import pytest
import torch

from kernels import torch_attention
from kernels.bench import smoke
from kernels.reference import Forward

ONE = ["--device", "cpu", "--heads", "D26-D64", "--dtypes", "float32"]


def test_every_operation_is_compared_with_the_definition(capsys):
    assert smoke.main(ONE) == 0
    header, *lines = capsys.readouterr().out.splitlines()
    assert "torch" in header and [line.split()[0] for line in lines[:3]] == [
        "copy",
        "product",
        "product",
    ]
    assert [" ".join(line.split("worst")[0].split()) for line in lines[3:]] == [
        "attention torch float32 D26-D64 none",
        *(f"attention_kl torch float32 D26-D64 {x}" for x in ("kl_st", "kl_ts", "mse_maps")),
        *(f"masked_mlm torch float32 {x} blocks {y}".replace("one blocks", "one block")
          for x in ("one", "two") for y in ("kl_ts", "soft_ce")),
    ]  # fmt: skip
    assert all(re.search(r"worst \d\.\de-0[678] of max, \w+$", line) for line in lines[3:])


def test_types_and_heads_are_chosen(capsys):
    options = ["--device", "cpu", "--no-rates", "--heads", "D32-D256", "--dtypes", "bfloat16"]
    assert smoke.main(options) == 0
    lines = capsys.readouterr().out.splitlines()[1:]
    assert len(lines) == 8 and all("bfloat16" in line for line in lines)


@pytest.mark.parametrize(("fault", "found"), [
    ("wrong", r"wrong: worst \d.\de.\d\d of max, (out|dq|dk), expected <= 1e-05"),
    ("forgotten", "wrong: worst inf of max, (out|lse)"), ("raised", "failed: ValueError: oh"),
])  # fmt: skip
def test_a_fault_is_named_and_ends_in_status_1(monkeypatch, capsys, fault, found):
    right = torch_attention.forward

    def forward(x, lse_t):
        y = right(x, lse_t)
        if fault == "raised":
            raise ValueError("oh")
        if fault == "wrong":
            return y._replace(out=y.out * 1.001)
        return y._replace(out=Forward.blank(x, lse_t).out)  # never written to

    monkeypatch.setattr(torch_attention, "forward", forward)
    assert smoke.main([*ONE, "--no-rates"]) == 1
    lines = capsys.readouterr().out.splitlines()[1:]
    assert all(re.search(found, line) for line in lines[:4])
    assert all("wrong" not in line for line in lines[4:])


def test_a_cuda_error_ends_it(monkeypatch, capsys):
    def forward(x, lse_t):
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    monkeypatch.setattr(torch_attention, "forward", forward)
    with pytest.raises(SystemExit) as ended:
        smoke.main([*ONE, "--no-rates"])
    assert ended.value.code == 3 and "illegal memory access" in capsys.readouterr().err


def test_memory_is_poisoned_only_within(monkeypatch):
    monkeypatch.setattr(torch.utils.deterministic, "fill_uninitialized_memory", False)
    torch.use_deterministic_algorithms(False)
    with smoke.poisoned():
        assert torch.empty(1000).isnan().all()
        assert torch.are_deterministic_algorithms_enabled()
    assert not torch.are_deterministic_algorithms_enabled()
    assert not torch.utils.deterministic.fill_uninitialized_memory


def test_a_device_that_is_not_there_is_one_line(capsys):
    with pytest.raises(SystemExit) as ended:
        smoke.main(["--device", "tpu"])
    assert ended.value.code == 2 and "--device is 'tpu', expected cpu" in capsys.readouterr().err
