"""kernels/cuda/logit_rows.cu under nvcc, for GPUs that need not be here, and under the sanitizers.

What it computes is in test_logit_rows.py.
"""

import os
import re
import subprocess

import pytest

from helpers import ROOT
from kernels import cuda_rows

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


def test_the_source_opens_with_its_compile_line():
    head = " ".join(line.removeprefix("//").strip() for line in SOURCE.splitlines()[:6])
    code = "-gencode=arch=compute_90a,code=sm_90a"
    assert " ".join(("nvcc", *cuda_rows.FLAGS, code)) in head


@pytest.mark.parametrize("arch", ["sm_80", "sm_90a"])
def test_nvcc_compiles_it_without_spilling(nvcc_cache, arch):
    """Two versions for four pairs of types; 64 registers is all that 1,024 threads can have."""
    log = cuda_rows.build(arch).with_suffix(".log").read_text("utf-8")
    kernels = re.findall(r"Compiling entry function '(\w+)' for '(\w+)'", log)
    assert len(kernels) == 8 and {where for _, where in kernels} == {arch}
    assert sum("fast_rows" in name for name, _ in kernels) == 4
    spills = re.findall(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes", log)
    assert spills == [("0", "0", "0")] * 8
    registers = [int(n) for n in re.findall(r"Used (\d+) registers", log)]
    assert len(registers) == 8 and max(registers) <= 64
    assert "warning" not in log
