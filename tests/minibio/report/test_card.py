"""The model card says what was trained and how to load it."""

import pytest

from helpers import tiny_config
from minibio.config import METHODS
from minibio.report.card import WHAT, model_card

RECORD = {
    "method": "tiny", "model": "tiny-biobert", "steps": 4, "teacher": "runs/teacher",
    "parameters": 1234567, "parameters_encoder": 1200000,
    "held_out_first": {"mlm_loss": 7.5, "accuracy": 0.0},
    "held_out": {"mlm_loss": 5.25, "accuracy": 0.125},
    "losses": {"loss": 3.25, "output": 1.125}, "samples": 32, "tokens": 4321, "skipped": 0,
    "versions": {"torch": "2.13.0", "minibio": "0.1.0"},
}  # fmt: skip


@pytest.mark.parametrize("family", ["bert", "mobilebert", "ib-bert"])
def test_card(family):
    card = model_card(RECORD, tiny_config(family))
    front, body = card.split("---\n")[1:3]
    assert "pipeline_tag: fill-mask" in front
    assert "1,234,567 parameters" in body and "Eq. 9" in body
    assert "7.5000 before, **5.2500**" in body and "12.50%" in body
    assert "at the end, by its terms: loss 3.25, output 1.125." in body
    assert "| samples | 32 |" in body and "| tokens | 4321 |" in body
    assert "| teacher | runs/teacher |" in body
    assert "minibio.load(directory)" in body
    # transformers has no IB-BERT
    assert ("AutoModelForMaskedLM" in body) == (family != "ib-bert")


def test_a_run_in_two_stages_is_not_called_one_by_equation_13():
    record = {**RECORD, "method": "mobile", "stages": 0.3}
    card = model_card(record, tiny_config("mobilebert"))
    assert "in two stages" in card and "Eq. 13" not in card
    assert "Eq. 13" in model_card({**record, "stages": 0.0}, tiny_config("mobilebert"))


def test_every_method_is_described():
    assert set(WHAT) == set(METHODS)
