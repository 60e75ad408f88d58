"""The header of tables: every field is there, and what is missing is said."""

import re

import pytest
import torch

from helpers import DEVICE
from kernels import machine


def test_the_header_has_its_fields():
    line = machine.describe(torch.device(DEVICE))
    assert re.search(r"torch \S+ \| triton \S+ \| git \S+ \| \d{4}-\d\d-\d\d \d\d:\d\d UTC$", line)
    assert "\n" not in line


def test_a_gpu_is_named_with_its_driver(monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "NVIDIA X")
    monkeypatch.setattr(machine, "output_of", lambda *command: "")
    line = machine.describe(torch.device("cuda"))
    assert line.startswith(f"NVIDIA X | driver unknown | CUDA {torch.version.cuda} | torch ")
    assert "git unknown" in line


def test_commands_that_fail_say_nothing():
    assert machine.output_of("no-such-command-here") == ""
    assert machine.output_of("git", "no-such-verb") == ""
    assert machine.version("no-such-package-here") == "none"


@pytest.mark.parametrize(
    ("text", "has_it"),
    [
        ("processor\t: 0\nflags\t\t: fpu avx512f avx512_bf16\n", True),
        ("flags\t\t: fpu amx_bf16\n", True),
        ("Features\t: fp asimd bf16\n", True),
        ("flags\t\t: fpu avx512f\n", False),
        ("", False),
    ],
)
def test_which_cpus_multiply_bfloat16(monkeypatch, text, has_it):
    monkeypatch.setattr(machine.Path, "read_text", lambda self, encoding: text)
    assert machine.has_bf16_products(torch.device("cpu")) is has_it


def test_which_gpus_multiply_bfloat16(monkeypatch):
    for capability, has_it in (((7, 5), False), ((8, 0), True), ((9, 0), True)):
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device, c=capability: c)
        assert machine.has_bf16_products(torch.device("cuda")) is has_it


def test_where_nothing_tells_there_are_no_such_products(monkeypatch):
    def missing(self, encoding):
        raise FileNotFoundError(self)

    monkeypatch.setattr(machine.Path, "read_text", missing)
    assert machine.has_bf16_products(torch.device("cpu")) is False
