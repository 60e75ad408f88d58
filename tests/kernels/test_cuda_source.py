"""kernels/cuda/*.cu under nvcc, for GPUs that need not be here, the rows under the sanitizers too.

What they compute is in test_logit_rows.py and test_cuda_attention.py.
"""

import os
import re
import subprocess

import pytest
import torch

from helpers import ROOT
from kernels import cuda_attention, cuda_build, cuda_rows

SOURCE = cuda_rows.SOURCE.read_text("utf-8")

# ---- memory --------------------------------------------------------------------------------------

SANITIZE = ("-O0", "-g1", "-fsanitize=address,undefined", "-fno-sanitize-recover=all")
MAIN = ROOT / "tests" / "kernels" / "emulator" / "sanitized.cpp"


def sanitized(compile_for_cpu, text):
    program = compile_for_cpu(text, *SANITIZE, main=MAIN)
    options = {"ASAN_OPTIONS": "detect_leaks=0:detect_stack_use_after_return=0"}
    return subprocess.run(
        [program], env=os.environ | options, capture_output=True, text=True, timeout=60
    )


def test_the_source_is_clean_under_the_sanitizers(compile_for_cpu):
    done = sanitized(compile_for_cpu, SOURCE)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "clean\n"


@pytest.mark.parametrize(
    ("right", "wrong", "message"),
    [
        ("j + N <= V &&", "j + N <= V + 1 &&", "heap-buffer-overflow"),
        ("const int64_t n = (a.V + 2 * N - 2) / N", "const int64_t n = a.V / N",
         "use-after-poison"),
        ("return j >= 0 && j + N <= V && phase_of(row + j) == 0;",
         "return row != nullptr && j >= 0 && j + N <= V;", "misaligned address"),
    ],
    ids=["one logit too many", "shared memory too small", "misaligned"],
)  # fmt: skip
def test_a_planted_fault_of_memory_is_named(compile_for_cpu, right, wrong, message):
    assert SOURCE.count(right) == 1
    done = sanitized(compile_for_cpu, SOURCE.replace(right, wrong))
    assert done.returncode != 0
    assert message in done.stderr, done.stderr[-2000:]
    assert re.search(r"logit_rows\.cu:\d+", done.stderr), "no line of the source is named"


# ---- nvcc ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("module", [cuda_rows, cuda_attention], ids=lambda x: x.SOURCE.stem)
def test_the_source_opens_with_its_compile_line(module):
    text = module.SOURCE.read_text("utf-8")
    head = " ".join(line.removeprefix("//").strip() for line in text.splitlines()[:6])
    code = "-gencode=arch=compute_90a,code=sm_90a"
    assert " ".join(("nvcc", *cuda_build.FLAGS, code)) in head


def compiled(source, arch, *flags):
    """Names and registers of the kernels that nvcc makes; none spills, and nothing is warned of."""
    log = cuda_build.build(source, arch, *flags).with_suffix(".log").read_text("utf-8")
    found = re.findall(r"Compiling entry function '(\w+)' for '(\w+)'", log)
    spills = re.findall(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes", log)
    registers = [int(n) for n in re.findall(r"Used (\d+) registers", log)]
    assert {where for _, where in found} == {arch} and "warning" not in log
    assert spills == [("0", "0", "0")] * len(found) and len(registers) == len(found)
    return [name for name, _ in found], registers


@pytest.mark.parametrize("arch", ["sm_80", "sm_90a"])
def test_nvcc_compiles_the_rows_without_spilling(nvcc_cache, arch):
    """Two versions for four pairs of types; 64 registers is all that 1,024 threads can have."""
    names, registers = compiled(cuda_rows.SOURCE, arch)
    assert len(names) == 8 and sum("fast_rows" in name for name in names) == 4
    assert max(registers) <= 64


@pytest.mark.parametrize(("arch", "dtype"), [
    ("sm_80", torch.float32), ("sm_90a", torch.float32), ("sm_90a", torch.float64),
], ids=str)  # fmt: skip
def test_nvcc_compiles_attention_without_spilling(nvcc_cache, arch, dtype):
    """Three naive kernels, and three of the other version for each of three widths of heads."""
    names, registers = compiled(cuda_attention.SOURCE, arch, *cuda_attention.FLAGS[dtype])
    assert len(names) == 12 and sum("naive" in name for name in names) == 3
    # four blocks of 128 threads and more have room on a multiprocessor with 65,536
    assert max(registers) <= (128 if dtype == torch.float32 else 255)
