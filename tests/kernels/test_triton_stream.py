"""The choices around the streaming kernels. What they compute: test_mlm_ops.py; on a GPU:
test_triton_mlm.py."""

import pytest
import torch
from mlm_cases import B16, F16, F32, F64, assert_as_truth, case_of

from helpers import DEVICE, LIMIT
from kernels import Decoder

triton_stream = pytest.importorskip("kernels.triton_stream", reason="needs Triton")
pytestmark = pytest.mark.usefixtures("banded_empty")


@pytest.mark.parametrize("kernel", ["statistics", "dE", "dh"])
@pytest.mark.parametrize("dtype", [F64, F32, F16, B16], ids=str)
def test_the_table_has_a_row_for_everything(kernel, dtype):
    c = triton_stream.pick_config(kernel, dtype)
    for size in c[:4]:
        assert size >= 16 and size & (size - 1) == 0  # what tensor cores and tl.arange take


@pytest.mark.parametrize("V", [1, 64, 65, 28996, 30522])
@pytest.mark.parametrize("n_programs", [0, 1, 15, 100, 1000])
def test_shares_cover_every_word_once(V, n_programs):
    share, n_shares = triton_stream.shares_of(V, n_programs, 64)
    assert share % 64 == 0
    assert (n_shares - 1) * share < V <= n_shares * share  # none is empty, ceiling and all
    if n_programs == 15 and V > 20000:
        assert 264 <= n_programs * n_shares < 2 * 264


@pytest.mark.parametrize("programs", [1, 100])
def test_shares_and_blocks_of_any_size(programs, monkeypatch):
    """One share or one a block; blocks that are not square; two pieces of every gradient."""
    monkeypatch.setattr(triton_stream, "PROGRAMS", programs)
    n = 16 if DEVICE == "cuda" else 4
    config = triton_stream.StreamConfig(2 * n, n, 4 * n, n, 4, 1)
    monkeypatch.setattr(triton_stream, "pick_config", lambda *_: config)
    case = case_of((9, 11, (3, 6), (5,)))
    assert_as_truth("triton-stream", case, LIMIT[F64], temperature=1.5)


def test_a_label_that_is_no_word_shows(monkeypatch):
    """Not checked on a GPU, where that would wait for it: NaN, in that row alone."""
    case = case_of((3, 5, (2,), (2,)), F32)
    s, t = (
        Decoder(h.detach(), [E[0].detach()], None)
        for h, E in ((case.h_s, case.E_s), (case.h_t, case.E_t))
    )
    labels, g = torch.tensor([2, 5, -100], device=DEVICE), torch.ones(3, device=DEVICE)
    x = triton_stream.streamed(
        s, t, labels, g, g, wants=(True, True, True), temperature=1.0, divergence="kl_ts"
    )
    assert x.ce.isnan().tolist() == [False, True, False]
    assert x.dh.isnan().any(1).tolist() == [False, True, False]


def test_offsets_do_not_wrap_at_two_thousand_million():
    """A table whose words, or columns, lie 2^29 elements apart."""
    stride = 2**29 + 8
    n = triton_stream.pick_config("dE", F32).BLOCK_V
    assert n >= 16
    storage = torch.zeros(0, dtype=F16, device=DEVICE).resize_(5 * stride + 16)
    small = torch.randn(6, 3, device=DEVICE).half()
    h, labels = torch.randn(4, 3, device=DEVICE).half(), torch.tensor([5, 0, 2, 1], device=DEVICE)
    g = torch.ones(4, device=DEVICE)
    results = []
    for E in (small, storage.as_strided((6, 3), (stride, 1)), storage[:0]):
        if not len(E):
            E = storage.as_strided((6, 3), (1, stride))
        E.copy_(small)
        decoder = Decoder(h, [E], None)
        x = triton_stream.streamed(
            decoder, decoder, labels, g, g, wants=(True, False, True), temperature=1.0,
            divergence="soft_ce",
        )  # fmt: skip
        results.append([x.ce, x.kd, x.dh, x.db])
    for result in results[1:]:
        assert all(torch.equal(x, y) for x, y in zip(result, results[0], strict=True))
