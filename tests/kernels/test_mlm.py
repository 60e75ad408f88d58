"""The public function: what it divides by, what it refuses in which words, how PyTorch sees it."""

import re

import pytest
import torch
from mlm_cases import F32, F64, LOSSES, SMALL, case_of, compute, doubled, gradients, rows_of

import kernels
from helpers import DEVICE, ROOT, assert_near
from kernels import mlm_ops

IMPLS = ("torch", "triton", "triton-stream")
impls = pytest.mark.parametrize("impl", IMPLS)
everywhere = pytest.mark.parametrize("impl", ("reference", *IMPLS))


def test_auto_is_what_it_says(monkeypatch):
    asked = []
    original = mlm_ops.compute
    monkeypatch.setattr(mlm_ops, "compute", lambda *x: asked.append(x[9]) or original(*x))
    compute("auto", case_of(SMALL, F32))
    assert asked == [kernels.resolve_impl("masked_mlm", "auto", torch.device(DEVICE), F32)[0]]


# ---- numbers by hand


@everywhere
def test_two_words_by_hand(impl):
    """One row, two words, logits (ln 3, 0) and (0, 0): p_s = (3/4, 1/4), p_t = (1/2, 1/2)."""
    log = torch.log(torch.tensor(3.0, dtype=F64)).item()
    h = torch.tensor([[1.0]], dtype=F64, device=DEVICE)
    E_s, E_t = (torch.tensor([[x], [0.0]], dtype=F64, device=DEVICE) for x in (log, 0.0))
    label = torch.tensor([1], device=DEVICE)
    s, t = kernels.Decoder(h, [E_s], None), kernels.Decoder(h, [E_t], None)
    loss, mlm, soft = kernels.masked_mlm(s, label, t, weights=(2.0, 5.0), impl=impl)
    assert mlm.item() == pytest.approx(1.3862943611198906)  # ln 4
    assert soft.item() == pytest.approx(0.14384103622589045)  # ln(2 / sqrt 3)
    assert loss.item() == pytest.approx(2 * 1.3862943611198906 + 5 * 0.14384103622589045)
    soft = kernels.masked_mlm(s, None, t, divergence="soft_ce", impl=impl).soft
    assert soft.item() == pytest.approx(0.14384103622589045 + 0.6931471805599453)  # and ln 2
    s = kernels.Decoder(h, [2 * E_s], None)
    soft = kernels.masked_mlm(s, label, t, temperature=2.0, impl=impl).soft
    assert soft.item() == pytest.approx(4 * 0.14384103622589045)  # T^2


@everywhere
def test_means_are_of_what_is_counted(impl):
    case = case_of(SMALL)
    n = int((case.labels != -100).sum())
    assert n == 5
    weights = [torch.full((6,), w, dtype=F64, device=DEVICE) for w in (2.0, 3.0)]
    ce, kd, *truth = rows_of("reference", case, *weights)
    assert ce[3] == 0 and kd[3] == 0
    for count in (None, n, 8, 2.5, torch.tensor(8), torch.tensor([16.0])):
        divisor = n if count is None else float(count)
        got = compute(impl, case, weights=(2.0, 3.0), count=count)
        means = ce.sum() / divisor, kd.sum() / divisor
        for x, y in zip(got, (2 * means[0] + 3 * means[1], *means), strict=True):
            assert x.shape == ()
            assert_near("mean", x, y, 1e-12)
        for x, y in zip(gradients(got, case), truth, strict=True):
            assert_near("gradient", x, y / divisor, 1e-12)


@everywhere
@pytest.mark.parametrize("weights", [(0.0, 3.0), (2.0, 0.0), (0.0, 0.0)])
def test_a_term_with_a_weight_of_nought_is_nought(weights, impl):
    case = case_of(SMALL)
    loss, *terms = compute(impl, case, weights=weights)
    assert [x != 0 for x in terms] == [w != 0 for w in weights]
    assert_near("loss", loss, sum(w * x for w, x in zip(weights, terms, strict=True)), 1e-12)


@everywhere
def test_only_the_sum_has_a_gradient(impl):
    loss, mlm, soft = compute(impl, case_of(SMALL))
    assert loss.requires_grad and not mlm.requires_grad and not soft.requires_grad


@everywhere
def test_without_labels_every_row_counts(impl):
    case = case_of(SMALL, losses="kd")
    nothing = torch.zeros(6, dtype=F64, device=DEVICE)
    _, rows, *_ = rows_of("reference", case, nothing, nothing)
    _, mlm, soft = compute(impl, case)
    assert mlm == 0 and rows.all()
    assert_near("soft", soft, rows.mean(), 1e-12)


@everywhere
@pytest.mark.parametrize("count", [0, 0.0, torch.tensor(0)])
def test_a_count_of_nothing_gives_nothing(count, impl):
    got = compute(impl, case := case_of(SMALL), count=count)
    for x in (*got, *gradients(got, case)):
        assert not x.any() and not x.isnan().any()


@everywhere
def test_no_rows_are_part_of_the_graph_too(impl):
    case = case_of((0, 7, (3, 2), (2,)))
    got = compute(impl, case)
    assert got.loss.requires_grad and all(x.shape == () for x in got)
    assert not any(x.any() for x in got)
    for x, g in zip(case.learning, gradients(got, case), strict=True):
        assert g.shape == x.shape and not g.any() and not g.isnan().any()


def test_parts_add_up_to_the_whole():
    """Micro-batches with a count over all of them, one of it all ignored."""
    case = case_of((9, 13, (5,), (4,)))
    case.labels[6:] = -100
    whole = compute("torch", case)
    truth = gradients(whole, case)
    count = (case.labels != -100).sum()
    losses, total = torch.zeros(3, dtype=F64, device=DEVICE), None
    for rows in (slice(0, 2), slice(2, 6), slice(6, 9)):
        part = case._replace(h_s=case.h_s[rows], labels=case.labels[rows], h_t=case.h_t[rows])
        got = compute("torch", part, count=count)
        losses += torch.stack(got).detach()
        g = gradients(got, case)
        total = g if total is None else [x + y for x, y in zip(total, g, strict=True)]
    assert_near("losses", losses, torch.stack(whole), 1e-12)
    for x, y in zip(total, truth, strict=True):
        assert_near("gradient", x, y, 1e-12)


def test_a_table_used_twice_adds_up():
    """Tied weights: the lookup's gradient and the decoder's."""
    case = case_of((5, 9, (4,), (3,)))
    tied, ids = case.E_s[0], torch.tensor([0, 8, 8, 2, 4], device=DEVICE)
    grads = []
    for impl in ("torch", "reference"):
        grads += torch.autograd.grad(compute(impl, case._replace(h_s=tied[ids])).loss, tied)
    assert_near("dE", *grads, 1e-12)


@impls
def test_float16_gradients_are_no_mean_of_zeros(impl):
    """A mean over ten thousand rows: p / count is nothing in float16, its sum over rows is."""
    case = case_of((4, 40, (8,), (8,)), torch.float16)
    wide, scaled = doubled(case), 1e4  # as a loss scaler does
    got, truth = compute(impl, case, count=4e7), compute("reference", wide, count=4e7)
    grads = zip(gradients(got, case, scaled), gradients(truth, wide, scaled), strict=True)
    for x, y in grads:
        assert_near("gradient", x, y, 4e-3)


def test_the_derivation_in_the_readme_holds():
    """kernels/README.md compares its lines with autograd."""
    _, section = (ROOT / "kernels/README.md").read_text("utf-8").split("## Rows of logits")
    (code,) = re.findall(r"```python\n(.*?)```", section, re.S)
    exec(compile(code, "kernels/README.md", "exec"), {})


@pytest.mark.parametrize("impl", ["reference", "torch"])
def test_autocast_around_a_call_changes_nothing_inside(impl):
    case = case_of(SMALL, F32)
    plain = compute(impl, case)
    with torch.autocast(DEVICE, torch.bfloat16):
        cast = compute(impl, case)
    assert all(torch.equal(x, y) for x, y in zip(plain, cast, strict=True))
    assert all(x.dtype == F32 for x in cast)


@pytest.mark.parametrize("dtype", [torch.int32, torch.uint8, torch.float32])
def test_labels_are_int64(dtype):
    case = case_of(SMALL)
    labels = case.labels.clamp(min=0).to(dtype)
    with pytest.raises(ValueError, match=rf"labels is \(6,\) {dtype}, expected \(6,\) torch.int64"):
        compute("torch", case._replace(labels=labels))


# ---- what is refused

GOOD = {
    "h_s": (6, 4), "E_s": (13, 4), "b_s": (13,), "labels": None,
    "h_t": (6, 5), "E_t": (13, 5), "b_t": (13,),
}  # fmt: skip


def call(**changes):
    """A good call on the CPU, with some tensors or options changed."""
    x = {name: size and torch.randn(size) for name, size in GOOD.items()}
    x["labels"] = torch.randint(13, (6,))
    x |= changes
    decoders = []
    for of in "st":
        h, E, b = (x.pop(f"{name}_{of}") for name in "hEb")
        E = [E] if isinstance(E, torch.Tensor) else E
        decoders.append(None if h is None else kernels.Decoder(h, E, b))
    s, t = decoders
    return kernels.masked_mlm(s, x.pop("labels"), t, **x)


R = torch.randn


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"h_s": R(6)}, r"h_s is \(6,\) torch.float32, expected two dimensions"),
        ({"h_s": torch.ones(6, 4, dtype=torch.int64)}, "h_s is .* torch.int64, expected two"),
        ({"E_s": R(13)}, r"E_s is \(13,\) torch.float32, expected two dimensions"),
        ({"h_s": R(6, 3)}, "h_s is 3 wide, expected 4 .as the blocks of E_s together"),
        ({"E_s": (R(13, 1), R(13, 4))}, "h_s is 4 wide, expected 5 .as the blocks of E_s"),
        ({"E_s": (R(13, 1), R(3, 13))}, "h_s is 4 wide, expected 14"),
        ({"E_s": (R(13, 1), R(12, 3))}, "second block of E_s has 12 words, expected 13"),
        ({"E_s": (R(13, 1),) * 3}, r"E_s has 3 blocks, expected one or two of \(V, d\)"),
        ({"E_s": ()}, r"E_s has 0 blocks, expected one or two of \(V, d\)"),
        ({"E_s": R(13, 4).double()}, "E_s is torch.float64, expected torch.float32 .as h_s"),
        ({"E_t": R(13, 5).half()}, "E_t is torch.float16, expected torch.float32 .as h_t"),
        ({"b_s": R(12)}, r"b_s is \(12,\), expected \(13,\) \(as E_s\)"),
        ({"b_t": R(14)}, r"b_t is \(14,\), expected \(13,\) \(as E_t\)"),
        ({"b_s": torch.ones(13, dtype=torch.int64)}, "b_s is torch.int64, expected a floating"),
        ({"h_t": R(5, 5)}, "h_t has 5 rows, expected 6 .as h_s"),
        ({"h_t": R(6, 4)}, "h_t is 4 wide, expected 5 .as the blocks of E_t"),
        ({"E_t": R(12, 5), "b_t": None}, "E_t has 12 words, expected 13 .* share the vocabulary"),
        ({"h_t": R(6, 5, requires_grad=True)}, "h_t requires a gradient.*frozen.*detach"),
        ({"E_t": R(13, 5, requires_grad=True)}, "E_t requires a gradient.*frozen.*detach"),
        ({"b_t": R(13, requires_grad=True)}, "b_t requires a gradient.*frozen.*detach"),
        ({"E_s": R(13, 4, device="meta")}, "E_s is on meta, expected cpu .as h_s"),
        ({"h_t": R(6, 5, device="meta")}, "h_t is on meta, expected cpu .as h_s"),
        ({"b_t": R(13, device="meta")}, "b_t is on meta, expected cpu .as h_s"),
        ({"labels": torch.ones(6, dtype=torch.int64, device="meta")}, "labels is on meta, exp"),
        ({"labels": torch.ones(5, dtype=torch.int64)}, r"labels is \(5,\) torch.int64, .*\(6,\)"),
        ({"labels": torch.tensor([0, 1, 13, 2, 3, 4])}, r"labels\[2\] is 13, expected 0 to 12"),
        ({"labels": torch.tensor([0, 1, 2, 3, -1, 4])}, r"labels\[4\] is -1, expected .* -100 to"),
        (
            {"labels": None, "h_t": None, "E_t": None, "b_t": None},
            "labels and the teacher",
        ),
        ({"divergence": "js"}, "divergence is 'js', expected one of kl_ts, soft_ce"),
        ({"temperature": 0.0}, "temperature is 0.0, expected above 0 and finite"),
        ({"temperature": float("nan")}, "temperature is nan, expected above 0 and finite"),
        ({"count": -1}, "count is -1, expected at least 0 and finite"),
        ({"count": float("nan")}, "count is nan, expected at least 0 and finite"),
        ({"count": torch.ones(2)}, r"count is \(2,\), expected one number, detached"),
        ({"count": torch.ones((), requires_grad=True)}, "expected one number, detached"),
        ({"weights": (1.0, 2.0, 3.0)}, r"weights is \(1.0, 2.0, 3.0\), expected two"),
        ({"impl": "cudnn"}, "impl is 'cudnn', expected auto, reference, torch, triton"),
    ],
)
def test_what_does_not_fit(changes, message):
    with pytest.raises(ValueError, match=f"^masked_mlm: .*{message}"):
        call(**changes)


def test_what_does_fit():
    _, mlm, soft = call()
    assert mlm > 0 and soft > 0
    assert call(b_s=None, b_t=None)[0].isfinite()
    assert call(b_s=torch.randn(13).double(), h_t=R(6, 5).half(), E_t=R(13, 5).half())[0] > 0


# ---- as PyTorch sees it


@impls
def test_a_whole_step_compiles_without_a_break(impl):
    case = case_of(SMALL, F32)

    def loss(h, E, X, b):
        x = case._replace(h_s=2 * h, E_s=[E, X], b_s=b)
        return compute(impl, x, temperature=2.0, weights=(1.0, 0.5)).loss

    plain = torch.autograd.grad(loss(*case.learning), case.learning)
    torch._dynamo.reset()
    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    got = torch.autograd.grad(compiled(*case.learning), case.learning)
    for name, x, y in zip(case.names, got, plain, strict=True):
        assert_near(name, x, y, 1e-6)


@impls
@pytest.mark.parametrize("losses", LOSSES)
def test_registered_as_pytorch_wants_it(losses, impl):
    case = case_of(SMALL, F32, losses=losses)
    g = torch.rand(2, 6, device=DEVICE)
    blocks = [case.E_s[0], case.E_s[1].detach().requires_grad_()]
    args = (case.h_s, blocks, *case[2:5], case.E_t or [], case.b_t, 2.0, "kl_ts", impl, *g)
    checks = ("test_schema", "test_faketensor", "test_autograd_registration")
    for wants in ([True] * 3, [False] * 3, [False, True, False]):
        found = torch.library.opcheck(mlm_ops.masked_mlm, (*args, wants), test_utils=checks)
        assert set(found.values()) == {"SUCCESS"}
