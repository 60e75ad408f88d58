"""Bottleneck layers: against a literal transcription (IB-BERT), and piece by piece.

MobileBERT itself is held against transformers in test_parity.py.
"""

import dataclasses

import pytest
import torch

from helpers import tiny_config
from ib_bert_literal import ib_bert
from minibio.batch import Batch, Counts
from minibio.config import METHODS
from minibio.distil.objectives import OBJECTIVES, teach
from minibio.model.heads import Model
from minibio.model.mobilebert import NoNorm, TrigramEmbeddings
from minibio.run.optim import make_optimizer


def randomised(model):
    """Every weight random, norms and biases too: a constant one hides errors."""
    for p in model.parameters():
        torch.nn.init.normal_(p, std=0.3)
    return model.double().eval()


@pytest.mark.parametrize("lengths", [(7, 1, 13), (4,), (2, 2, 2)])
def test_ib_bert_equals_its_literal_transcription(lengths):
    config = tiny_config("ib-bert")
    model = randomised(Model(config))
    mask = torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]
    ids = torch.randint(1, config.V, mask.shape) * mask
    types = torch.randint(0, 2, mask.shape) * mask
    out = model(Batch.from_padded(ids, mask, types), hidden=range(config.L + 1))
    states, logits = ib_bert(model.state_dict(), ids, types, mask, config.L, config.H)
    assert len(states) == len(out.hidden_states) == config.L + 1
    for h, h_literal in zip(out.hidden_states.values(), states, strict=True):
        torch.testing.assert_close(h, h_literal[mask], rtol=0, atol=1e-10)
    torch.testing.assert_close(out.logits, logits[mask], rtol=0, atol=1e-10)


def test_trigrams_stop_at_the_ends_of_a_sequence():
    embeddings = randomised(TrigramEmbeddings(tiny_config("mobilebert")))
    a, b = [5, 6, 7], [8]
    together = embeddings(Batch.from_sequences([a, b, a]))
    torch.testing.assert_close(together[:3], embeddings(Batch.from_sequences([a])))
    torch.testing.assert_close(together[3:4], embeddings(Batch.from_sequences([b])))
    torch.testing.assert_close(together[4:], together[:3])
    assert embeddings(Batch.from_sequences([])).shape == (0, 44)


def test_trigrams_see_the_next_the_current_and_the_previous_token():
    embeddings = randomised(TrigramEmbeddings(tiny_config("mobilebert", trigram=True)))
    seen = {}
    embeddings.project.register_forward_pre_hook(lambda _, x: seen.update(x=x[0]))
    embeddings(Batch.from_sequences([[5, 6, 7]]))
    e = embeddings.token.weight
    expected = torch.cat([e[7], e[6], e[5]])
    torch.testing.assert_close(seen["x"][1], expected)
    zeros = torch.zeros_like(e[5])
    torch.testing.assert_close(seen["x"][0], torch.cat([e[6], e[5], zeros]))
    torch.testing.assert_close(seen["x"][2], torch.cat([zeros, e[7], e[6]]))


def test_no_norm_is_a_scale_and_a_shift():
    norm = NoNorm(3)
    norm.weight.data, norm.bias.data = torch.tensor([1.0, 2, 3]), torch.tensor([0.5, 0, -1])
    assert norm(torch.tensor([[2.0, 2, 2]])).tolist() == [[2.5, 4.0, 5.0]]


def test_values_read_the_stream_and_queries_their_own_bottleneck():
    layer = Model(tiny_config("mobilebert")).encoder.layers[0]
    assert layer.attention.value.in_features == 44  # C
    assert layer.attention.query.in_features == layer.attention.key.in_features == 30  # C_intra
    assert Model(tiny_config("ib-bert")).encoder.layers[0].enter_qk is None
    assert len(layer.ffns) == 3


def test_bottlenecks_have_gradients():
    model = randomised(Model(tiny_config("mobilebert")))
    model(Batch.from_sequences([[5, 6, 7], [8]])).logits.square().sum().backward()
    assert all(
        p.grad is not None and p.grad.abs().sum() > 0 for p in model.encoder.layers.parameters()
    )


# ---- bf16: without a norm's statistics nothing keeps the stream in range


@pytest.mark.parametrize("family", ["mobilebert", "ib-bert"])
def test_the_stream_stays_wide_in_autocast(family):
    """bf16 products, but sums, scales and shifts in float32: 24 layers add up in one stream."""
    model = Model(tiny_config(family))
    seen = {}
    for name, m in model.named_modules():
        if name.rsplit(".")[-1].endswith("norm") and not name.startswith("head"):
            m.register_forward_hook(lambda _m, _x, y, name=name: seen.update({name: y.dtype}))
    with torch.autocast("cpu", torch.bfloat16):
        out = model(Batch.from_sequences([[5, 6, 7], [8]]))
    stream = {dtype for name, dtype in seen.items() if "output_norm" in name or "embed" in name}
    assert stream == {torch.float32} and out.last.dtype == torch.float32


def losses_of(method, precision, steps=24, **changes):
    """A student of 3 layers trained on one batch: the loss of each step."""
    torch.manual_seed(0)
    teacher = Model(tiny_config("ib-bert", H=2)).eval().requires_grad_(False)
    student = Model(tiny_config("mobilebert", H=2, attention_dropout=0.0))
    run = dataclasses.replace(METHODS[method], steps=steps, **changes)
    objective = OBJECTIVES[method](student, teacher, run)
    optimizer = make_optimizer(objective, 1e-3, 0.01)
    rng = torch.Generator().manual_seed(1)
    rows = [torch.randint(1, 101, (T,), generator=rng) for T in (17, 9, 23, 5)]
    batch = Batch.from_sequences(rows, None, torch.arange(0, 54, 5), torch.arange(11))
    values = []
    for step in range(steps):
        objective.set_step(step)
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
            taught = teach(teacher, batch, objective.needs)
            loss = objective(batch, taught, Counts.of([batch]))["loss"]
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(objective.parameters(), 1.0)
        assert loss.isfinite() and norm.isfinite(), f"step {step}: loss {loss}, norm {norm}"
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        values.append(loss.item())
    return values


@pytest.mark.parametrize("fidelity", ["paper", "released"])
@pytest.mark.parametrize("stages", [0.0, 0.6])
def test_mobilebert_trains_in_bf16_as_in_fp32(fidelity, stages):
    narrow, wide = (
        losses_of("mobile", p, fidelity=fidelity, stages=stages) for p in ("bf16", "fp32")
    )
    assert narrow == pytest.approx(wide, rel=0.02)
    if stages:  # of 4 steps for each of 3 layers: the first, and then the predictions
        assert narrow[3] < narrow[0] and narrow[23] < 0.95 * narrow[12]
    else:
        assert narrow[-1] < 0.9 * narrow[0]


def test_mobilebert_s_masked_lm_trains_in_bf16():
    narrow, wide = (losses_of("mlm", p) for p in ("bf16", "fp32"))
    assert narrow == pytest.approx(wide, rel=0.02) and narrow[-1] < 0.8 * narrow[0]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_no_norm_in_one_pass_is_the_same(dtype):
    norm = NoNorm(6).to(dtype)
    torch.nn.init.normal_(norm.weight)
    torch.nn.init.normal_(norm.bias)
    x = torch.randn(5, 6, dtype=dtype)
    truth = norm(x)
    with torch.no_grad():
        got = norm(x)
    limit = 1e-2 if dtype == torch.bfloat16 else 1e-6
    assert got.dtype == truth.dtype and got.isclose(truth, rtol=limit, atol=limit).all()
    with torch.no_grad():  # under autocast: a bf16 product, fp32 weights
        assert NoNorm(6)(x.bfloat16()).dtype == torch.float32
