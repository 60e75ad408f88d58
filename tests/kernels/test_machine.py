"""The header of tables: every field is there, and what is missing is said."""

import re

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
