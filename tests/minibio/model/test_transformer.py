"""The encoder on the row: nothing leaks between sequences, and layers are numbered from 1."""

from dataclasses import replace

import pytest
import torch
import torch.nn as nn

from helpers import assert_near, random_batch, tiny_config
from kernels.bench.timing import compiler_missing
from minibio.batch import Batch
from minibio.config import ModelConfig
from minibio.model import transformer as transformer_module
from minibio.model.attention import Match, use_kernels
from minibio.model.heads import Model
from minibio.model.transformer import (
    ACTIVATIONS,
    Encoder,
    FeedForward,
    compile_layers,
    initialise,
    of_segments,
)

CONFIG = ModelConfig(V=31, L=3, C=20, H=2, F=24, P=12)


@pytest.fixture
def encoder():
    encoder = Encoder(CONFIG).double().eval()
    initialise(encoder, std=0.3)
    return encoder


def sequences(*lengths):
    return [torch.randint(1, CONFIG.V, (T,)).tolist() for T in lengths]


def test_a_sequence_does_not_see_its_neighbours(encoder):
    alone, *others = sequences(5, 3, 1, 12)
    every = range(CONFIG.L + 1)
    together = encoder(Batch.from_sequences([others[0], alone, *others[1:]]), hidden=every)
    single = encoder(Batch.from_sequences([alone]), hidden=every)
    for l in every:
        h, h_single = together.hidden_states[l], single.hidden_states[l]
        torch.testing.assert_close(h[3:8], h_single, rtol=0, atol=1e-12)


def test_order_of_sequences_does_not_matter(encoder):
    a, b, c = sequences(4, 4, 7)
    one = encoder(Batch.from_sequences([a, b, c])).last
    two = encoder(Batch.from_sequences([c, b, a])).last
    torch.testing.assert_close(one[8:], two[:7], rtol=0, atol=1e-12)
    torch.testing.assert_close(one[:4], two[11:], rtol=0, atol=1e-12)


def test_layers_are_numbered_from_one_and_hidden_state_0_is_the_embeddings(encoder):
    batch = Batch.from_sequences(sequences(5))
    out = encoder(batch, keep=(1, 3), hidden=(0, 2, CONFIG.L))
    assert set(out.hidden_states) == {0, 2, CONFIG.L}
    assert out.hidden_states[CONFIG.L] is out.last
    assert set(out.kept) == {1, 3}
    torch.testing.assert_close(out.hidden_states[0], encoder.embeddings(batch))
    query = encoder.layers[2].attention.query(out.hidden_states[2])
    torch.testing.assert_close(out.kept[3].q.flatten(1), query)


def test_a_match_with_itself_costs_nothing_and_changes_no_output(encoder):
    batch = Batch.from_sequences(sequences(5, 2))
    with torch.no_grad():
        plain = encoder(batch, keep=(1, 2))
    match = {l: Match(a.q, a.k, a.lse, "kl_st") for l, a in plain.kept.items()}
    matched = encoder(batch, match)
    assert set(matched.row_losses) == {1, 2} and not matched.hidden_states
    for rows in matched.row_losses.values():
        assert rows.shape == (7, CONFIG.H) and rows.abs().max() < 1e-12
    torch.testing.assert_close(matched.last, plain.last)


def test_a_pass_stops_at_its_depth(encoder):
    batch = Batch.from_sequences(sequences(5, 2))
    whole = encoder(batch, keep=(1, 2), hidden=range(CONFIG.L + 1))
    calls = []
    for l, layer in enumerate(encoder.layers, start=1):
        layer.register_forward_pre_hook(lambda *_, l=l: calls.append(l))
    for depth in range(CONFIG.L + 1):
        calls.clear()
        out = encoder(batch, keep=range(1, depth), hidden=range(depth + 1), depth=depth)
        assert calls == [*range(1, depth + 1)]
        assert torch.equal(out.last, whole.hidden_states[depth])
        assert set(out.hidden_states) == {*range(depth + 1)} and set(out.kept) == {*range(1, depth)}
    encoder(batch)
    assert calls[-CONFIG.L :] == [1, 2, 3]


@pytest.mark.parametrize(
    "options",
    [{"depth": 4}, {"depth": -1}, {"depth": 1, "hidden": (2,)}, {"depth": 1, "keep": (2,)},
     {"hidden": (4,)}, {"depth": 0, "match": {1: None}}],
)  # fmt: skip
def test_layers_that_are_not_run_cannot_be_asked_for(encoder, options):
    with pytest.raises(ValueError, match="Encoder: layers .* at most the model's 3"):
        encoder(Batch.from_sequences(sequences(5)), **options)


@pytest.mark.parametrize("frozen", [None, 0, 1, 2, 3])
def test_what_is_frozen_has_no_gradient_and_the_same_output(encoder, frozen):
    batch = Batch.from_sequences(sequences(5, 2))
    out = encoder(batch, hidden=(1, 2, 3), frozen=frozen)
    torch.testing.assert_close(out.last, encoder(batch).last)
    assert [h.requires_grad for h in out.hidden_states.values()] == [
        frozen is None or l > frozen for l in (1, 2, 3)
    ]
    assert torch.is_grad_enabled()
    if frozen == 3:
        return
    out.last.square().sum().backward()
    for l, layer in enumerate(encoder.layers, start=1):
        assert all((p.grad is None) == (frozen is not None and l <= frozen)
                   for p in layer.parameters())  # fmt: skip
    assert all((p.grad is None) == (frozen is not None) for p in encoder.embeddings.parameters())


def test_freezing_does_not_switch_gradients_on(encoder):
    batch = Batch.from_sequences(sequences(5))
    with torch.no_grad():
        for frozen in (None, 0):
            out = encoder(batch, hidden=range(4), frozen=frozen)
            assert not any(h.requires_grad for h in out.hidden_states.values())
            assert not torch.is_grad_enabled()


def test_empty_batch(encoder):
    out = encoder(Batch.from_sequences([]), hidden=(0, 1))
    assert {h.shape for h in (out.last, *out.hidden_states.values())} == {(0, CONFIG.C)}


def test_too_long_and_unknown_tokens_are_refused(encoder):
    with pytest.raises(ValueError, match="13 tokens, expected at most 12"):
        encoder(Batch.from_sequences(sequences(13)))
    with pytest.raises(ValueError, match="token id is 31, expected below 31"):
        encoder(Batch.from_sequences([[1, 31]]))


def test_a_token_type_beyond_the_model_s_is_refused():
    batch = Batch.from_sequences([[1, 2, 3]], segments=[[0, 1, 2]])
    encoder = Encoder(replace(CONFIG, n_segments=2))
    with pytest.raises(ValueError, match="token type is 2, expected below 2"):
        encoder(batch)
    Encoder(replace(CONFIG, n_segments=3))(batch)
    Encoder(replace(CONFIG, n_segments=1))(batch)  # all of the only type
    Encoder(replace(CONFIG, family="distilbert", n_segments=0))(batch)  # it has none


@pytest.mark.parametrize("n_segments", [1, 2])
def test_a_single_token_type_is_one_row(n_segments, monkeypatch):
    """The bits of a lookup for each token, and its gradient; two types are looked up as ever."""
    torch.manual_seed(0)
    table = nn.Embedding(n_segments, 8, dtype=torch.float64)
    x, g = torch.randn(2, 7, 8, dtype=torch.float64)
    one, two = [[1, 2, 3], [4, 5, 6, 7]], [[0, 0, 1], [0, 1, 1, 1]]
    for types in (None, two):
        batch = Batch.from_sequences(one, types)
        is_row = types is None or n_segments == 1
        monkeypatch.setattr(transformer_module, "is_row_better", lambda weight: True)
        found = of_segments(table, batch)
        monkeypatch.undo()
        assert len(found) == (1 if is_row else 7)
        assert len(of_segments(table, batch)) == 7  # a CPU trains it
        with torch.no_grad():
            assert len(of_segments(table, batch)) == len(found)
        ids = torch.zeros(7, dtype=torch.int64) if is_row else batch.segments
        assert torch.equal(x + found, x + table.weight[ids])
        (grad,) = torch.autograd.grad(x + found, table.weight, g)
        rows = [g[ids == i].sum(0) for i in range(n_segments)]
        assert_near("gradient", grad, torch.stack(rows), 1e-12)
    empty = Batch.from_sequences([])
    assert (torch.zeros(0, 8) + of_segments(table.requires_grad_(False), empty)).shape == (0, 8)


def test_initial_weights():
    encoder = Encoder(ModelConfig(V=500, L=1, C=64, H=2, F=256))
    initialise(encoder, std=0.02)
    assert 0.0195 < encoder.layers[0].ffn.up.weight.std() < 0.0205
    assert encoder.layers[0].ffn.up.bias.abs().max() == 0
    assert encoder.embeddings.token.weight[0].abs().max() == 0  # the padding row
    assert encoder.embeddings.norm.weight.eq(1).all()


@pytest.mark.parametrize(
    ("family", "backend"),
    [
        ("bert", "aot_eager"), ("mobilebert", "aot_eager"),
        pytest.param("bert", "inductor", marks=pytest.mark.slow),
        pytest.param("mobilebert", "inductor", marks=pytest.mark.slow),
    ],
)  # fmt: skip
def test_compiled_layers_are_the_layers(family, backend):
    """One code for all layers and lengths, the same results and gradients, the same names."""
    if missing := compiler_missing(torch.device("cpu")) if backend == "inductor" else "":
        pytest.skip(missing)
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    model = Model(tiny_config(family, dropout=0.0, attention_dropout=0.0), "encoder").eval()
    names = list(model.state_dict())
    expected, results = [], []
    for kept in (expected, results):
        for lengths in ((7, 1, 13), (5, 9), (3, 3, 8, 20)):
            model.zero_grad()
            out = model(random_batch(lengths)).last
            (out * torch.linspace(-1, 1, out.shape[1])).sum().backward()
            gradients = [p.grad.flatten() for p in model.parameters() if p.grad is not None]
            kept += [out.detach(), torch.cat(gradients)]
        compile_layers(model, backend)
    assert list(model.state_dict()) == names
    for i, (got, truth) in enumerate(zip(results, expected, strict=True)):
        assert_near(str(i), got, truth, 1e-5)
    counters = torch._dynamo.utils.counters
    assert not counters["graph_break"], counters["graph_break"]
    assert counters["stats"]["unique_graphs"] <= 2, "compiled anew for every length"


@pytest.mark.parametrize("impl", ["torch", "triton"])
@pytest.mark.parametrize("divergence", [None, "kl_ts"])
def test_a_layer_is_one_graph(divergence, impl):
    """Also where attention is a kernel of ours: the choice of one is nothing to be traced."""
    if impl == "triton":
        pytest.importorskip("triton")
    torch._dynamo.reset()
    model = Model(tiny_config("bert", dropout=0.0, attention_dropout=0.0), "encoder").eval()
    use_kernels(model, impl)
    batch, match = random_batch((7, 3)), {}
    if divergence:
        kept = model(batch, keep=(1,)).kept[1]
        match = {1: Match(kept.q.detach(), kept.k.detach(), kept.lse, divergence)}
    layer, x = model.encoder.layers[0], model.encoder.embeddings(batch)
    found = torch._dynamo.explain(layer)(x, batch.row, match.get(1))
    assert (found.graph_count, found.graph_break_count) == (1, 0), found.break_reasons


@pytest.mark.parametrize("activation", list(ACTIVATIONS))
def test_activations_in_place_are_the_same_bits_and_touch_no_input(activation):
    ffn = FeedForward(8, 12, activation)
    x = torch.randn(5, 8)
    kept, truth = x.clone(), ffn(x)
    assert truth.requires_grad
    with torch.inference_mode():
        assert torch.equal(ffn(x), truth)
    frozen = FeedForward(8, 12, activation).requires_grad_(False)
    frozen.load_state_dict(ffn.state_dict())
    assert torch.equal(frozen(x), truth) and torch.equal(x, kept)
    (dx,) = torch.autograd.grad(frozen(x.requires_grad_()).sum(), x)  # its input is trained
    (dx_truth,) = torch.autograd.grad(ffn(x).sum(), x)
    assert torch.equal(dx, dx_truth)
