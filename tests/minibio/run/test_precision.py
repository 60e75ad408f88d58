"""The type of products: `auto` by the processor, on all ranks alike; bf16 at a loss is said."""

import pytest
import torch

from minibio.run import dist, precision
from minibio.run.dist import Ranks
from minibio.run.precision import autocast, resolve

CPU = torch.device("cpu")
ALONE = Ranks(0, 0, 1, CPU)


@pytest.mark.parametrize(
    ("asked", "has_it", "expected"),
    [
        ("auto", True, "bf16"),
        ("auto", False, "fp32"),
        ("fp32", True, "fp32"),
        ("bf16", True, "bf16"),
        ("bf16", False, "bf16"),
        ("fp64", True, "fp64"),
    ],
)
def test_the_precision_and_its_reason(monkeypatch, capsys, asked, has_it, expected):
    monkeypatch.setattr(precision, "has_bf16_products", lambda device: has_it)
    found, reason = resolve(asked, ALONE)
    assert found == expected
    what = "multiplies" if has_it else "does not multiply"
    assert reason == (f"auto: the processor {what} bfloat16" if asked == "auto" else "as asked for")
    said = capsys.readouterr()
    at_a_loss = asked == "bf16" and not has_it
    assert said.out == "" and ("15 times with AVX2" in said.err) is at_a_loss
    assert said.err.count("\n") == at_a_loss


def test_auto_is_one_for_all_ranks(monkeypatch):
    """A single rank without such products keeps all of them from it."""
    monkeypatch.setattr(precision, "has_bf16_products", lambda device: True)
    for others, expected in ((2, "bf16"), (1, "fp32")):
        monkeypatch.setattr(dist, "all_sum", lambda x, ranks, n=others: [x[0] + n])
        assert resolve("auto", Ranks(1, 1, 3, CPU))[0] == expected


def test_autocast_takes_no_auto():
    with autocast("bf16", CPU):
        assert torch.is_autocast_enabled("cpu")
    for name in ("fp32", "fp64"):
        with autocast(name, CPU):
            assert not torch.is_autocast_enabled("cpu")
    with pytest.raises(ValueError, match="precision is 'auto', expected fp32, bf16, fp64"):
        autocast("auto", CPU)
