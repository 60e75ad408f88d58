"""Self-attention on the row against the formula written out."""

import pytest
import torch

from helpers import assert_near
from minibio.batch import Batch
from minibio.config import ModelConfig
from minibio.model import attention as attention_module
from minibio.model.attention import SelfAttention

CONFIG = ModelConfig(C=12, H=3, attention_dropout=0.0)


def test_equals_the_formula_sequence_by_sequence():
    attention = SelfAttention(CONFIG).double()
    batch = Batch.from_sequences([[1] * 4, [1] * 1, [1] * 6])
    x = torch.randn(11, 12, dtype=torch.float64)
    out = attention(x, x, batch.row).out
    start = 0
    for T in batch.lengths:
        part = x[start : start + T]
        heads = []
        for h in range(3):
            w = slice(4 * h, 4 * h + 4)
            q, k, v = (
                part @ linear.weight[w].T + linear.bias[w]
                for linear in (attention.query, attention.key, attention.value)
            )
            heads.append((q @ k.T / 4**0.5).softmax(-1) @ v)  # (T, 4)
        expected = attention.output(torch.cat(heads, 1))
        torch.testing.assert_close(out[start : start + T], expected)
        start += T


def test_two_streams_of_their_own_width():
    config = ModelConfig(family="ib-bert", C=10, C_intra=12, H=3, C_embed=4, attention_dropout=0.0)
    attention = SelfAttention(config, C_qk=12, C_v=10)
    batch = Batch.from_sequences([[1, 1], [1]])
    result = attention(torch.randn(3, 12), torch.randn(3, 10), batch.row, keep=True)
    assert result.out.shape == (3, 12)
    assert result.q.shape == result.k.shape == (3, 3, 4)
    assert result.lse.shape == (3, 3) and result.rows is None


def test_dropout_acts_in_training_alone():
    attention = SelfAttention(ModelConfig(C=12, H=3, attention_dropout=0.5))
    batch, x = Batch.from_sequences([[1] * 8]), torch.randn(8, 12)
    attention.eval()
    assert torch.equal(attention(x, x, batch.row).out, attention(x, x, batch.row).out)
    attention.train()
    assert not torch.equal(attention(x, x, batch.row).out, attention(x, x, batch.row).out)


def test_one_product_for_queries_keys_and_values(monkeypatch):
    """The same as three products, and the gradient of every parameter under its own name."""
    torch.manual_seed(0)
    layer = SelfAttention(CONFIG).double()
    row = Batch.from_sequences([[1] * 7, [1] * 3]).row
    x = torch.randn(10, 12, dtype=torch.float64, requires_grad=True)
    seen = []
    for is_joint in (False, True):
        monkeypatch.setattr(attention_module, "is_joint", lambda x, is_joint=is_joint: is_joint)
        a = layer(x, x, row, keep=True)
        loss = a.out.square().sum() + (a.q * a.k).sum()
        grads = torch.autograd.grad(loss, [x, *layer.parameters()])
        seen.append([a.out, a.q, a.k, *grads])
    for got, expected in zip(*seen, strict=True):
        assert_near("out, q, k or a gradient", got, expected, 1e-12)
    monkeypatch.undo()
    assert not attention_module.is_joint(x)
    with torch.autocast("cpu", torch.bfloat16):
        assert attention_module.is_joint(x)


@pytest.mark.parametrize("family", ["bert", "mobilebert"])
def test_matrices_joined_once(family, monkeypatch):
    """The same bits as when they are joined in each call; the names, and what is kept, stay."""
    torch.manual_seed(0)
    widths = {} if family == "bert" else {"C_qk": 6, "C_v": 12}
    layer = SelfAttention(CONFIG, **widths).requires_grad_(False)
    row = Batch.from_sequences([[1] * 7, [1] * 3]).row
    x, state = torch.randn(10, 12), {k: v.clone() for k, v in layer.state_dict().items()}
    x_qk = x if family == "bert" else x[:, :6]
    layer.join()
    assert layer.joint_weight is None  # float32 on a CPU
    monkeypatch.setattr(attention_module, "is_joint", lambda x: True)
    expected = layer(x_qk, x, row, keep=True)
    layer.join()
    assert (layer.joint_weight is None) == (family == "mobilebert")
    got = layer(x_qk, x, row, keep=True)
    assert all(torch.equal(getattr(got, k), getattr(expected, k)) for k in ("out", "q", "k", "lse"))
    assert layer.state_dict().keys() == state.keys()
    assert all(torch.equal(v, state[k]) for k, v in layer.state_dict().items())
    layer.load_state_dict({k: 2 * v for k, v in state.items()})  # and what is loaded later is read
    with torch.no_grad():
        q = layer(x_qk, x, row, keep=True).q.flatten(1)
    assert torch.allclose(q, torch.nn.functional.linear(x_qk, *layer.query.parameters()))
    wide = layer.double()(x_qk.double(), x.double(), row, keep=True).q
    assert wide.dtype == torch.float64
    assert torch.allclose(wide.flatten(1), q.double(), atol=1e-5)
