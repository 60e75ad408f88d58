"""Every shipped configuration becomes machine code for sm_90, spills nothing, uses tensor cores.

Compiled here, without a device, by Triton itself (tests/kernels/sm90.py); what the interpreter
cannot show.
"""

from pathlib import Path

import pytest
from test_triton_present import HAS_WHEELS

from helpers import in_shares

pytestmark = pytest.mark.skipif(not HAS_WHEELS, reason="Triton has wheels for Linux x86-64 alone")


@pytest.fixture(
    scope="module",
    params=[pytest.param(5, id="a fifth"), pytest.param(1, id="all", marks=pytest.mark.slow)],
)
def every(request):
    """One case in so many is compiled. A fifth of them has each kernel, divergence and dtype."""
    return request.param


@pytest.fixture(scope="module")
def compiled(every):
    return in_shares(Path(__file__).with_name("sm90.py"), every)


def test_all_were_compiled(compiled, every):
    cases = {x["case"] for x in compiled}
    assert len(cases) == len(compiled) == len(range(0, 78, every))
    for kernel in ("forward", "dq", "dkdv"):
        assert sum(case.startswith(f"{kernel} ") for case in cases) >= 24 // every


def test_nothing_spills(compiled):
    spilling = [f"{x['case']}: {x['stack']} bytes" for x in compiled if x["stack"]]
    assert not spilling, "\n".join(spilling)


def test_products_run_on_tensor_cores(compiled):
    """bfloat16 and float16: only warp-group instructions; float32: tensor cores of some kind."""
    for x in compiled:
        if "float64" in x["case"]:
            continue
        if "float32" in x["case"]:
            assert x["HGMMA"] + x["HMMA"], x
        else:
            assert x["HGMMA"] and not x["HMMA"], x


def test_nothing_is_loaded_two_bytes_at_a_time(compiled):
    """Heads of 26 neither, whose rows begin 52 bytes apart: strides are known when compiling."""
    assert not [x["case"] for x in compiled if x["narrow"]]


def test_a_batch_of_another_size_compiles_nothing(compiled):
    """The number of heads is all that is specialised, and it is the model's."""
    assert all(x["special"] == ["H"] for x in compiled)


@pytest.mark.parametrize(("kernel", "most"), [("forward", 23.6), ("dq", 23), ("dkdv", 41.5)])
def test_an_entry_takes_few_instructions(compiled, kernel, most):
    """The loop's instructions in all threads for each entry of its tile, by the worse of Triton 3.6
    and 3.9: with dropout, whose word two entries share."""
    (x,) = (x for x in compiled if x["case"] == f"{kernel} 32 64 kl_st seed True torch.bfloat16")
    assert x["per_entry"] <= most, x


def test_two_blocks_fit_on_a_processor(compiled):
    """228 KB of shared memory and 65,536 registers are there for each."""
    for x in compiled:
        assert x["shared"] <= 228 * 1024 // 2, x
