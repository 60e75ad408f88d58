"""The row kernel by itself. What it is part of: test_mlm_ops.py; on a GPU: below."""

import pytest
import torch
from mlm_cases import B16, F16, F32, F64, LOSSES, case_of, compute, doubled, gradients

import kernels
from helpers import DEVICE, LIMIT, assert_near, guarded
from kernels import torch_mlm

triton_mlm = pytest.importorskip("kernels.triton_mlm", reason="needs Triton")
pytestmark = pytest.mark.usefixtures("banded_empty")
OPTIONS = {"temperature": 1.5, "divergence": "kl_ts"}


def cut_into(BLOCK_V, monkeypatch):
    monkeypatch.setattr(triton_mlm, "pick_config", lambda *_: triton_mlm.RowsConfig(BLOCK_V, 4))


@pytest.mark.parametrize("dtype", [F64, F32, F16, B16], ids=str)
@pytest.mark.parametrize("V", [1, 100, 28996, 30522, 250002])
def test_the_table_has_a_row_for_everything(dtype, V):
    c = triton_mlm.pick_config(V, dtype)
    assert 0 < c.BLOCK_V <= 4096 and c.BLOCK_V & (c.BLOCK_V - 1) == 0 and c.num_warps in (4, 8, 16)


@pytest.mark.parametrize("V", [1, 7, 8, 9, 16, 21])  # under a block, a block, two, and a rest
@pytest.mark.parametrize("losses", LOSSES)
def test_it_is_the_step_for_the_rows(losses, V, monkeypatch):
    """As torch_mlm.logit_rows, on rows with a stride; x_t is left alone."""
    cut_into(8, monkeypatch)
    R = 4
    x_s, x_t = (guarded(torch.randn(R, V + 3, dtype=F64, device=DEVICE))[:, :V] for _ in range(2))
    b_s, b_t = (guarded(torch.randn(V, device=DEVICE)) for _ in range(2))
    labels = torch.tensor([V - 1, 0, -100, V // 2], device=DEVICE) if losses != "kd" else None
    x_t = None if losses == "ce" else x_t
    g = torch.randn(2, R, dtype=F64, device=DEVICE)
    before = None if x_t is None else x_t.clone()
    results = []
    for step in (triton_mlm.logit_rows, torch_mlm.logit_rows):
        x, y = x_s.clone(), None if x_t is None else x_t.clone()
        results.append([*step(x, b_s, labels, y, b_t, *g, **OPTIONS), x])
    for name, x, y in zip(("ce", "kd", "dx"), *results, strict=True):
        assert_near(name, x, y, 1e-12)
    got = triton_mlm.logit_rows(x_s, b_s, labels, x_t, b_t, None, None, **OPTIONS)
    assert all(torch.equal(x, y) for x, y in zip(got, results[0], strict=False))
    triton_mlm.logit_rows(x_s, b_s, labels, x_t, b_t, *g, **OPTIONS)
    assert_near("dx in place", x_s, results[0][2], 1e-12)
    assert x_t is None or torch.equal(x_t, before)


def test_a_gradient_of_one_loss_alone(monkeypatch):
    cut_into(8, monkeypatch)
    x_s, x_t = torch.randn(2, 3, 13, dtype=F64, device=DEVICE)
    labels, g = torch.tensor([1, 2, 12], device=DEVICE), torch.randn(3, dtype=F64, device=DEVICE)
    for gs in ((g, None), (None, g)):
        results = []
        for step in (triton_mlm.logit_rows, torch_mlm.logit_rows):
            x = x_s.clone()
            results.append([*step(x, None, labels, x_t.clone(), None, *gs, **OPTIONS), x])
        for name, x, y in zip(("ce", "kd", "dx"), *results, strict=True):
            assert_near(name, x, y, 1e-12)


@pytest.mark.parametrize("label", [-1, 13, 2**40])
def test_a_label_that_is_no_word_shows(label, monkeypatch):
    """Not checked on a GPU, where that would wait for it: NaN, in that row alone."""
    cut_into(8, monkeypatch)
    x_s = torch.randn(2, 13, device=DEVICE)
    labels, g = torch.tensor([label, 3], device=DEVICE), torch.ones(2, device=DEVICE)
    ce, _ = triton_mlm.logit_rows(x_s, None, labels, None, None, g, None, **OPTIONS)
    assert ce.isnan().tolist() == [True, False]
    assert x_s[0].isnan().all() and not x_s[1].isnan().any()


@pytest.mark.parametrize("dtype", [F16, B16], ids=str)
def test_narrow_logits_are_rounded_once(dtype, monkeypatch):
    """A probability that the type cannot hold beside 1 is still subtracted from 1."""
    cut_into(8, monkeypatch)
    x_s = torch.zeros(1, 21, dtype=dtype, device=DEVICE)
    x_s[0, 3] = 12.0
    label, g = torch.tensor([3], device=DEVICE), torch.ones(1, device=DEVICE)
    p = x_s.double().softmax(-1)
    ce, _ = triton_mlm.logit_rows(x_s, None, label, None, None, g, None, **OPTIONS)
    p[0, 3] = -p[0, torch.arange(21) != 3].sum()
    assert abs(ce.item() + (p[0, 3] + 1).log().item()) < 4 * torch.finfo(F32).eps
    assert_near("dx", x_s, p, LIMIT[dtype])


def test_offsets_do_not_wrap_at_two_thousand_million(monkeypatch):
    """Rows that lie 2^30 elements apart: the interpreter wraps as a GPU does."""
    cut_into(8, monkeypatch)
    stride = 2**30 + 16  # the memory between is never touched
    storage = torch.zeros(0, dtype=F16, device=DEVICE).resize_(2 * stride + 16)
    big = storage.as_strided((3, 9), (stride, 1))
    small, g = torch.randn(3, 9, device=DEVICE).half(), torch.ones(3, device=DEVICE)
    labels = torch.tensor([0, 8, 4], device=DEVICE)
    expected = triton_mlm.logit_rows(small.clone(), None, labels, small, None, g, g, **OPTIONS)
    for place in (0, 3):
        big.copy_(small)
        x = [small.clone(), None, labels, small, None, g, g]
        x[place] = big
        got = triton_mlm.logit_rows(*x, **OPTIONS)
        assert all(torch.equal(y, z) for y, z in zip(got, expected, strict=True))


# ---- on a GPU

SIZES = {"paper-312": (922, 28996, (312,), (768,)), "odd": (517, 30521, (312,), (768,)),
         "mobile": (300, 30522, (128, 384), (768,))}  # fmt: skip


def inputs(size, dtype):
    """As a model's: logits of a size that a language model has."""
    case = case_of(size, dtype)
    with torch.no_grad():
        for E in (*case.E_s, *case.E_t):
            E.mul_(0.1)
    return case


@pytest.mark.gpu
@pytest.mark.parametrize("impl", ["triton", "triton-stream"])
@pytest.mark.parametrize("T", [1.0, 2.0])
@pytest.mark.parametrize("dtype", [F32, F16, B16], ids=str)
@pytest.mark.parametrize("size", SIZES.values(), ids=SIZES)
def test_on_the_gpu_no_less_accurate_than_plain_pytorch(size, dtype, T, impl):
    """Three ways: the truth in float64, plain PyTorch on the same inputs, the kernel."""
    case = inputs(size, dtype)
    wide = doubled(case)
    truth, ours = (compute(x, y, temperature=T) for x, y in (("reference", wide), (impl, case)))
    x_s, x_t = (
        kernels.Decoder(*x).logits()
        for x in ((case.h_s, case.E_s, case.b_s), (case.h_t, case.E_t, case.b_t))
    )
    is_counted = case.labels != -100
    ce = torch.nn.functional.cross_entropy(x_s.float(), case.labels)
    kd = torch.nn.functional.kl_div((x_s.float() / T).log_softmax(-1),
                                    (x_t.float() / T).log_softmax(-1),
                                    log_target=True, reduction="none").sum(-1)  # fmt: skip
    kd = T**2 * (kd * is_counted).sum() / is_counted.sum()
    plain = kernels.MaskedLMLosses(ce + kd, ce, kd)
    results = [[*x, *gradients(x, c)] for x, c in ((truth, wide), (ours, case), (plain, case))]
    for name, z, x, y in zip((*plain._fields, *case.names), *results, strict=True):
        error, of_plain = ((w.double() - z).abs().max() / z.abs().max() for w in (x, y))
        assert error <= max(2 * of_plain, 2 * LIMIT[dtype]), f"{name}: {error}, {of_plain}"


@pytest.mark.gpu
@pytest.mark.parametrize("impl", ["triton", "triton-stream"])
def test_on_the_gpu_results_repeat_bit_for_bit(impl):
    case = inputs(SIZES["odd"], B16)
    runs = []
    for _ in range(2):
        got = compute(impl, case, temperature=2.0)
        runs.append([*got, *gradients(got, case)])
    assert all(torch.equal(x, y) for x, y in zip(*runs, strict=True))


@pytest.mark.gpu
def test_nothing_waits_for_the_gpu():
    case = inputs(SIZES["odd"], B16)
    compute("triton", case).loss.backward()  # compiled
    count = torch.tensor(300.0, device=DEVICE)
    torch.cuda.set_sync_debug_mode("error")
    try:
        compute("auto", case, count=count).loss.backward()
        compute("triton-stream", case)
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.gpu
def test_on_the_gpu_memory_is_of_a_chunk():
    """Beside the gradients: two chunks of logits, the table's gradient in float32, little else."""
    case = inputs((7373, 28996, (312,), (768,)), B16)
    compute("triton", case).loss.backward()
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    compute("triton", case).loss.backward()
    assert torch.cuda.max_memory_allocated() - before < 200e6
    assert kernels.resolve_impl("masked_mlm", "auto", torch.device("cuda"))[0] == "triton"
