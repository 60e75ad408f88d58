"""Joined and rounded matrices against autocast's own casts, one layer at a time."""

import copy

import pytest
import torch
import torch.nn as nn
import torch.nn.functional as F

from helpers import tiny_config
from minibio.batch import Batch
from minibio.model.heads import Model, freeze
from minibio.model.products import PackedLinear, Rounded, can_pack, is_mkl_better, products
from minibio.model.transformer import ACTIVATIONS

BF16 = torch.bfloat16


def layers(*shapes, seed=0):
    torch.manual_seed(seed)
    return [nn.Linear(*shape) for shape in shapes]


def run(groups, xs, functions):
    """Outputs of each group, and the gradients of all parameters."""
    for p in (p for group in groups for x in group for p in x.parameters()):
        p.grad = None
    with torch.autocast("cpu", BF16):
        ys = [f(x) for f, x in zip(functions(), xs, strict=True)]
    torch.autograd.backward(ys, [torch.linspace(-1, 2, y.numel()).view_as(y).to(BF16) for y in ys])
    return ys, [p.grad for group in groups for x in group for p in x.parameters()]


def test_the_bits_are_those_of_autocast():
    """Autocast casts what `torch.cat` has joined, and its gradient back."""
    q, k, v, out = layers((12, 5), (12, 7), (12, 3), (9, 12))
    groups, xs = [[q, k, v], [out]], [torch.randn(11, 12), torch.randn(11, 9)]
    ys, grads = run(groups, xs, lambda: products(*groups))

    def by_itself():
        weight, bias = (
            torch.cat(x) for x in zip(*(x.parameters() for x in (q, k, v)), strict=True)
        )
        return [lambda x: F.linear(x, weight, bias), out]

    expected_ys, expected = run(groups, xs, by_itself)
    assert all(map(torch.equal, ys, expected_ys))
    assert all(map(torch.equal, grads, expected))
    assert {y.dtype for y in ys} == {BF16} and {g.dtype for g in grads} == {torch.float32}


def test_one_operation_each_way(monkeypatch):
    """On a GPU copies are one kernel only where both sides' types and strides agree."""
    seen, copy = [], torch._foreach_copy_

    def watched(into, from_):
        seen.append((len(into), {x.dtype for x in into}, {x.dtype for x in from_}))
        assert all(a.stride() == b.stride() for a, b in zip(into, from_, strict=True))
        copy(into, from_)

    monkeypatch.setattr(torch, "_foreach_copy_", watched)
    groups = [layers((12, 5), (12, 7)), layers((9, 12))]
    run(groups, [torch.randn(11, 12), torch.randn(11, 9)], lambda: products(*groups))
    wide = {torch.float32}
    assert seen == [(6, {BF16}, wide), (4, wide, {BF16})]


def test_frozen_and_unused_parameters():
    a, b = layers((4, 4), (4, 4))
    a.weight.requires_grad_(False)
    with torch.autocast("cpu", BF16):
        used, _ = products([a], [b])
        y = used(torch.randn(3, 4))
    y.float().sum().backward()
    assert a.weight.grad is None and torch.equal(a.bias.grad, torch.full((4,), 3.0))
    assert not b.weight.grad.any()  # a group that is not used


class Own(nn.Linear):
    """A layer of another kind."""


@pytest.mark.parametrize("case", ["no autocast", "float64", "bfloat16", "of another kind"])
def test_nothing_to_cast(case, monkeypatch):
    """A single layer is itself, so that its own forward and its hooks run."""
    monkeypatch.setattr(Rounded, "apply", lambda *_: pytest.fail("cast"))
    (a,) = [Own(4, 3)] if case == "of another kind" else layers((4, 3))
    a = {"float64": a.double, "bfloat16": a.bfloat16}.get(case, lambda: a)()
    with torch.autocast("cpu", BF16, enabled=case != "no autocast"):
        assert products([a]) == [a]
        (both,) = products([a, a])
        x = torch.randn(2, 4, dtype=a.weight.dtype)
        torch.testing.assert_close(both(x), torch.cat([a(x), a(x)], -1))


@pytest.mark.parametrize("dtype", [torch.float32, BF16])
@pytest.mark.parametrize("has_bias", [True, False])
@pytest.mark.parametrize("activation", [None, "gelu", "gelu_new", "relu"])
@pytest.mark.parametrize("keeps", [True, False])
def test_a_packed_matrix_multiplies_as_before(dtype, has_bias, activation, keeps, monkeypatch):
    """Off the blocks of registers, of one row and of none, of any number of dimensions.

    More than 128 rows too, by the matrix as it was where that is kept.
    """
    if not can_pack(torch.device("cpu"), dtype):
        pytest.skip("oneDNN does not multiply bfloat16 on this processor")
    monkeypatch.setattr("minibio.model.products.is_mkl_better", lambda dtype: keeps)
    torch.manual_seed(0)
    layer = nn.Linear(37, 19, bias=has_bias).to(dtype).requires_grad_(False)
    packed = PackedLinear(layer.weight, layer.bias, activation)
    applied = ACTIVATIONS[activation] if activation else nn.Identity()
    for shape in ((11, 37), (1, 37), (0, 37), (2, 3, 37), (128, 37), (130, 37), (3, 43, 37)):
        x = torch.randn(shape, dtype=dtype)
        given = x.clone()
        got, expected = packed(x), layer(x)
        assert torch.equal(x, given)
        assert got.shape == expected.shape and got.dtype == dtype
        exact = applied(F.linear(x.double(), *(p.double() for p in layer.parameters())))
        if x.numel():
            unit = torch.finfo(dtype).eps * exact.abs().max()
            assert (got - exact).abs().max() <= 8 * unit


def test_packed_layers_are_for_prediction_alone(monkeypatch):
    """Every linear layer of the encoder; queries, keys and values of one stream are one.

    A feed-forward network's first product applies the activation, once.
    """
    for family in ("bert", "mobilebert"):
        torch.manual_seed(0)
        model = Model(tiny_config(family), "token", labels=3).eval()
        batch = Batch.from_sequences([[1, 2, 3, 4], [5, 6]])
        with torch.no_grad():
            expected = model(batch).logits
            layers = [n for n, x in model.encoder.named_modules() if isinstance(x, nn.Linear)]
            freeze(model, is_packed=True)
            named = dict(model.encoder.named_modules())
            assert not any(isinstance(x, nn.Linear) for x in named.values())
            packed = {n for n, x in named.items() if isinstance(x, PackedLinear)}
            one = {n for n in packed if n.endswith(".packed")}  # of queries, keys and values
            assert len(one) == (model.config.L if family == "bert" else 0)
            assert len(packed) + 2 * len(one) == len(layers) >= 6
            active = {n for n in packed if named[n].activation}
            assert active == {n for n in packed if n.endswith("ffn.up")} != set()
            assert (model(batch).logits - expected).abs().max() < 1e-5
    monkeypatch.setattr("minibio.model.heads.can_pack", lambda device, dtype: False)
    model = freeze(Model(tiny_config("bert"), "token", labels=3), is_packed=True)
    assert not any(isinstance(x, PackedLinear) for x in model.modules())
    assert not can_pack(torch.device("cuda"), torch.float32)


@pytest.mark.skipif(not torch.backends.mkl.is_available(), reason="this PyTorch has no MKL")
def test_mkl_multiplies_many_rows_of_float32_by_avx2(monkeypatch):
    """Not where the processor has wider instructions, and none but float32."""
    for capability, is_better in (("AVX2", True), ("AVX512", False), ("DEFAULT", False)):
        monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda c=capability: c)
        assert is_mkl_better(torch.float32) is is_better
        assert not is_mkl_better(BF16)


def test_bfloat16_is_packed_only_where_it_is_multiplied(monkeypatch):
    """Elsewhere PyTorch refuses to lay the matrix out: the model predicts without, the same."""
    torch.manual_seed(0)
    model = Model(tiny_config("bert"), "token", labels=3)
    batch = Batch.from_sequences([[1, 2, 3, 4], [5, 6]])
    with torch.autocast("cpu", BF16):
        expected = freeze(copy.deepcopy(model), "bf16")(batch).logits
    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: False)
    for precision, is_packed in (("bf16", False), ("fp32", True)):
        frozen = freeze(copy.deepcopy(model), precision, is_packed=True)
        assert any(isinstance(x, PackedLinear) for x in frozen.modules()) is is_packed
        if precision == "bf16":
            with torch.autocast("cpu", BF16):
                assert torch.equal(frozen(batch).logits, expected)


@pytest.mark.parametrize("family", ["bert", "mobilebert"])
@pytest.mark.parametrize("fills", [True, False])
def test_a_row_of_many_tokens_is_filled_up(family, fills, monkeypatch):
    """So that few numbers of rows are seen; the added ones never come out.

    Not where MKL multiplies rows of that many tokens: to it all numbers are alike.
    """
    for module in ("heads", "products"):
        monkeypatch.setattr(f"minibio.model.{module}.is_mkl_better", lambda dtype: not fills)
    torch.manual_seed(0)
    model = Model(tiny_config(family), "token", labels=3).eval()
    sizes = [[5] * 20, [5] * 25 + [3], [16] * 9 + [2], [8] * 20, [16] * 12 + [1]]  # N 100 ... 193
    batches = [Batch.from_sequences([torch.randint(20, (T,)) for T in T_s]) for T_s in sizes]
    with torch.no_grad():
        expected = [model.encoder(batch, hidden={0, 1}) for batch in batches]
        logits = [model(batch).logits for batch in batches]
        freeze(model, is_packed=True)
        seen = set()
        for x in model.encoder.modules():
            if isinstance(x, PackedLinear):
                x.register_forward_pre_hook(lambda _, args: seen.add(len(args[0])))
        for batch, before, z in zip(batches, expected, logits, strict=True):
            after = model.encoder(batch, hidden={0, 1})
            for name, x in (("last", before.last), *before.hidden_states.items()):
                y = after.last if name == "last" else after.hidden_states[name]
                assert x.shape == y.shape and (x - y).abs().max() < 1e-5, name
            assert (model(batch).logits - z).abs().max() < 1e-5
    N_s = {100, 128, 146, 160, 193}
    assert {batch.N for batch in batches} == N_s
    if not fills:
        assert seen == N_s
        return
    of_embeddings = N_s if family == "mobilebert" else set()
    assert seen - of_embeddings | {100, 128, 160} == {100, 128, 160, 224}
