"""int8 products against float64's, on processors with and without instructions for them."""

import copy
import os
import subprocess
import sys

import pytest
import safetensors.torch
import torch
import torch.nn as nn

from helpers import ROOT, random_batch, tiny_config
from minibio.model import int8
from minibio.model.heads import Model
from minibio.model.products import NAMES, replace_linear


def rounded_weight(W):
    """Each row to a multiple of its own step, in float64; and the steps, (C_out, 1)."""
    step = W.double().abs().amax(1, keepdim=True) / int8.weight_range()
    return (W.double() / step).round() * step, step


def rounded_tokens(x):
    """Each row to one of 256 values between its least and its largest; and the steps, (N, 1)."""
    low, high = x.double().amin(1, keepdim=True), x.double().amax(1, keepdim=True)
    step = (high - low) / 255
    return low + ((x.double() - low) / step.clamp(min=1e-30)).round() * step, step


def made(linear):
    return int8.Int8Linear(linear.weight, linear.bias)


@pytest.fixture(params=["onednn", "float32"])
def by(request, monkeypatch):
    """Who multiplies: oneDNN, or float32 where it is not at hand."""
    if request.param == "onednn" and not int8.has_onednn():
        pytest.skip("oneDNN does not multiply int8 on this processor")
    monkeypatch.setattr(int8, "has_onednn", lambda: request.param == "onednn")
    int8.weight_range.cache_clear()
    yield request.param
    int8.weight_range.cache_clear()


@pytest.mark.parametrize(
    ("N", "C_in", "C_out"), [(1, 1, 1), (7, 26, 5), (int8.ROWS, 48, 3), (int8.ROWS + 1, 33, 70)]
)
@pytest.mark.parametrize("bias", [True, False])
def test_a_layer_is_its_definition(N, C_in, C_out, bias, by):
    if by == "float32":
        assert int8.weight_range() == 127
    linear = nn.Linear(C_in, C_out, bias=bias)
    x = torch.randn(N, C_in) * 10 ** torch.randn(N, 1)
    (x_8, step_x), (W_8, _) = rounded_tokens(x), rounded_weight(linear.weight)
    expected = x_8 @ W_8.T + (linear.bias.double() if bias else 0)
    with torch.no_grad():
        y = made(linear)(x)
    assert y.dtype == torch.float32
    # a quotient may lie so near to a half that float32 rounds it the other way: one step of x
    size = x.double().abs() @ linear.weight.double().abs().T + 1
    step = step_x * linear.weight.double().abs().amax(1)
    assert ((y - expected).abs() <= 1e-5 * size + 1.01 * step).all()
    assert ((y - expected).abs() > 1e-5 * size).float().mean() < 0.01
    truth = x.double() @ linear.weight.double().T + (linear.bias.double() if bias else 0)
    assert (y - truth).norm() < 0.02 * truth.norm()


def test_a_tokens_result_is_its_own():
    """A large activation elsewhere takes nothing from it, and nor does the number of tokens."""
    layer = made(nn.Linear(24, 8))
    x = torch.randn(int8.ROWS + 172, 24)
    other = x.clone()
    other[1:] *= 1e4
    assert torch.equal(layer(x)[0], layer(other)[0])
    assert torch.equal(layer(x)[:5], layer(x[:5]))
    assert torch.equal(layer(x.view(3, -1, 24)).flatten(0, 1), layer(x))


def test_every_byte_is_itself():
    q = torch.arange(256, dtype=torch.uint8).view(4, 64)
    assert torch.equal(int8.to_uint8(q.float()), q)


def test_rows_of_zeros_and_no_rows(by):
    linear = nn.Linear(6, 4)
    nn.init.zeros_(linear.weight[2])
    layer = made(linear)
    assert torch.equal(layer(torch.zeros(3, 6)), linear.bias.detach().expand(3, 4))
    assert torch.equal(layer(torch.randn(3, 6))[:, 2], linear.bias.detach()[2].expand(3))
    assert layer(torch.zeros(0, 6)).shape == (0, 4)


def test_what_is_loaded_is_multiplied():
    x, (a, b) = torch.randn(5, 6), (made(nn.Linear(6, 4)) for _ in range(2))
    expected = a(x)
    assert not torch.equal(b(x), expected)
    b.load_state_dict(a.state_dict())
    assert torch.equal(b(x), expected)


SUMS_IN_16_BITS = """
import torch
from minibio.model import int8
linear = torch.nn.Linear(64, 8, bias=False)
torch.nn.init.constant_(linear.weight, 0.5)  # the largest sums of two products that there are
x = torch.cat([torch.full((3, 63), 2.0), torch.zeros(3, 1)], 1)
y = int8.Int8Linear(linear.weight, linear.bias)(x)
print(int8.weight_range(), float((y - 63.0).abs().max()))
"""


@pytest.mark.parametrize("isa", ["AVX2", "DEFAULT"])
def test_sums_are_exact_on_every_processor(isa):
    env = os.environ | {"ONEDNN_MAX_CPU_ISA": isa, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", SUMS_IN_16_BITS], env=env, text=True,
                          capture_output=True, check=True)  # fmt: skip
    most, error = done.stdout.split()
    assert float(error) < 1e-4
    assert int(most) in ((63, 127) if isa == "AVX2" else (int8.weight_range(),))


@pytest.mark.parametrize("family", ["bert", "distilbert", "mobilebert"])
def test_an_encoder_has_only_its_linear_layers_changed(family):
    encoder = Model(tiny_config(family), "encoder").eval().encoder
    layers = {name for name, x in encoder.named_modules() if isinstance(x, nn.Linear)}
    three, small = copy.deepcopy(encoder), copy.deepcopy(encoder)
    replace_linear(three, int8.Int8Linear)
    assert int8.to_int8(small, torch.device("cpu")) is small
    assert small.fills is int8.has_onednn()
    kinds = {name: type(m) for name, m in small.named_modules()}
    for name, module in encoder.named_modules():
        assert name in layers or kinds[name] is type(module), name
    read_one = ("query", "key", "value") if family != "mobilebert" else ()
    apart = {name for name in layers if name.endswith(read_one)}
    joint = {name.rpartition(".")[0] + ".packed" for name in apart}
    assert len(apart) == 3 * len(joint)
    made_int8 = {name for name, kind in kinds.items() if kind is int8.Int8Linear}
    assert made_int8 == layers - apart | joint
    state = small.state_dict()
    names = {name for name in state if not name.endswith((".scale", ".total"))}
    kept = {n for n in encoder.state_dict() if n.rpartition(".")[0] not in apart}
    assert names == kept | {f"{name}.{x}" for name in joint for x in NAMES}
    read = safetensors.torch.load(safetensors.torch.save(state))
    assert all(torch.equal(read[name], x) for name, x in state.items())
    with torch.inference_mode():
        a, b, c = (m(random_batch()).last for m in (encoder, small, three))
    assert torch.equal(b, c)  # side by side, or one by one
    assert 0 < float((a - b).norm() / a.norm()) <= 0.05
