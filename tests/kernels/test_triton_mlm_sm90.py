"""Every shipped configuration becomes machine code for sm_90 and spills nothing.

Compiled here, without a device, by Triton itself (tests/kernels/mlm_sm90.py); what the interpreter
cannot show.
"""

from pathlib import Path

import pytest
from test_triton_present import HAS_WHEELS

from helpers import in_shares

pytestmark = pytest.mark.skipif(not HAS_WHEELS, reason="Triton has wheels for Linux x86-64 alone")


@pytest.fixture(
    scope="module",
    params=[pytest.param(2, id="half"), pytest.param(1, id="all", marks=pytest.mark.slow)],
)
def every(request):
    """One case in so many is compiled. Half of them has each kernel."""
    return request.param


@pytest.fixture(scope="module")
def compiled(every):
    return in_shares(Path(__file__).with_name("mlm_sm90.py"), every)


def test_all_were_compiled(compiled, every):
    cases = {x["case"] for x in compiled}
    assert len(cases) == len(compiled) == len(range(0, 25, every))
    for kernel in ("rows ", "stream statistics ", "stream dE ", "stream dh ", "norm "):
        assert sum(case.startswith(kernel) for case in cases) >= 3 // every


def test_nothing_spills(compiled):
    spilling = [f"{x['case']}: {x['stack']} bytes" for x in compiled if x["stack"]]
    assert not spilling, "\n".join(spilling)


def test_products_run_on_tensor_cores(compiled):
    """bfloat16: only warp-group instructions; float32: tensor cores of some kind."""
    for x in compiled:
        if x["case"].startswith("stream"):
            assert x["HGMMA"] + x["HMMA"] if "float32" in x["case"] else x["HGMMA"], x


def test_rows_are_read_sixteen_bytes_at_a_time(compiled):
    """Whole blocks of words, that is; the rest of a row has a mask."""
    for x in compiled:
        if x["case"].startswith("rows"):
            assert x["wide"], x


def test_no_thread_waits_for_another_while_a_row_is_read(compiled):
    """Maxima are the threads' own, and are compared once, after the walk."""
    for x in compiled:
        if x["case"].startswith("rows"):
            assert x["loop"] and not x["barriers"], x


def test_blocks_leave_room_for_a_second_one(compiled):
    """228 KB of shared memory are there for each processor, and 65,536 registers; a row's program
    has 128 threads, 256 in float32."""
    for x in compiled:
        assert x["shared"] <= 228 * 1024 // 2, x
        if x["case"].startswith("rows"):
            assert x["registers"] <= (128 if "float32" in x["case"] else 168), x


def test_a_batch_of_another_size_compiles_nothing(compiled):
    """Neither the predicted tokens nor the shares that follow from their number are specialised."""
    for x in compiled:
        assert not {"M", "N", "n_shares", "s_share"} & set(x["special"]), x
