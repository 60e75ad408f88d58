"""Names of weights and fields of configurations: complete, both ways, and checked."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from helpers import FAMILIES, tiny_config
from minibio.model.convert import config_to_hf
from minibio.model.heads import Model
from minibio.model.names import FIELDS, HEADS, REQUIRED, TABLES, config_from_hf, head_of, their_name
from minibio.run.errors import InputError

WHERE = Path("config.json")


def build(config, head="mlm"):
    with torch.device("meta"):
        labels = 3 if head in ("token", "sequence") else None
        return Model(config, head, labels, has_pooler=True)


def raw_of(config):
    """config.json as it is read back."""
    return json.loads(json.dumps(config_to_hf(build(config), torch.float32)))


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("family", FAMILIES)
def test_every_parameter_has_a_name_of_its_own(family, head):
    config = tiny_config(family)
    ours = [*build(config, head).state_dict()]
    theirs = [their_name(name, config, head) for name in ours]
    assert len(set(theirs)) == len(ours)


@pytest.mark.parametrize("family", TABLES)
def test_every_line_of_a_table_is_used(family):
    """By the models with all that the family can have."""
    config, used = tiny_config(family, tanh_pooler=True), set()
    if family == "ib-bert":
        config = replace(config, shared_qk=True, n_ffn=2)
    for head in HEADS:
        for name in build(config, head).state_dict():
            stem = their_name(name, config, head).rsplit(".", 1)[0]
            used.add(".".join("{}" if part.isdigit() else part for part in stem.split(".")))
    assert used == set(TABLES[family])


def test_the_last_feed_forward_network_stands_outside_the_list():
    config = tiny_config("mobilebert", n_ffn=3)
    stem = "encoder.layers.2.ffns"
    start = "mobilebert.encoder.layer.2"
    name = [their_name(f"{stem}.{i}.ffn.up.weight", config, "mlm") for i in range(3)]
    assert name == [f"{start}.{x}intermediate.dense.weight" for x in ("ffn.0.", "ffn.1.", "")]


@pytest.mark.parametrize("family", FAMILIES)
def test_every_field_goes_there_and_back(family):
    config = tiny_config(
        family, activation="gelu_new", dropout=0.13, attention_dropout=0.17, init_std=0.05,
        pad_id=3, P=23,
    )  # fmt: skip
    if family != "distilbert":  # its epsilon is fixed, its dropouts have other names
        config = replace(config, norm_eps=1e-5, classifier_dropout=0.19, n_segments=3)
    if family in ("mobilebert", "ib-bert"):
        config = replace(
            config, shared_qk=not config.shared_qk, trigram=False, n_ffn=2,
            norm="layer_norm" if config.norm == "no_norm" else "no_norm",
            tanh_pooler=not config.tanh_pooler,
        )  # fmt: skip
    assert config_from_hf(raw_of(config), WHERE) == config


def test_a_table_as_wide_as_the_stream():
    assert raw_of(tiny_config("mobilebert", C_embed=None))["embedding_size"] == 44


def test_distilberts_dropout_of_a_sequence_head_is_written():
    raw = raw_of(tiny_config("distilbert", classifier_dropout=0.35))
    assert raw["seq_classif_dropout"] == 0.35


@pytest.mark.parametrize("family", ["bert", "distilbert", "mobilebert"])
def test_a_silent_file_means_what_transformers_takes_it_for(family):
    transformers = pytest.importorskip("transformers")
    raw = raw_of(tiny_config(family))
    silent = {name: raw[name] for name, ours in FIELDS[family].items() if ours in REQUIRED}
    full = transformers.AutoConfig.for_model(family, **silent).to_dict()
    assert config_from_hf({"model_type": family, **silent}, WHERE) == config_from_hf(full, WHERE)


def test_a_silent_ib_bert_has_trigrams_and_layer_norm():
    raw = raw_of(tiny_config("ib-bert"))
    silent = {name: raw[name] for name, ours in FIELDS["ib-bert"].items() if ours in REQUIRED}
    assert config_from_hf({"model_type": "ib-bert", **silent}, WHERE) == tiny_config("ib-bert")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"hidden_size": None, "vocab_size": None}, "no vocab_size, hidden_size; complete"),
        ({"model_type": "roberta"}, "model_type is 'roberta', expected one of bert, distilbert"),
        ({"model_type": ["bert"]}, r"model_type is \['bert'\]"),
        ({"hidden_act": "swish"}, "hidden_act is 'swish', expected one of gelu"),
        ({"hidden_act": ["gelu"]}, r"hidden_act is \['gelu'\]"),
        ({"is_decoder": True}, "is_decoder is True, expected False"),
        ({"add_cross_attention": True}, "add_cross_attention is True"),
        ({"position_embedding_type": "relative_key"}, "position_embedding_type is 'relative_key'"),
        ({"hidden_size": "many"}, "hidden_size is 'many', expected a whole number above 0"),
        ({"hidden_size": 10**30}, "hidden_size is 10+, expected a whole number"),
        ({"vocab_size": 101.0}, "vocab_size is 101.0"),
        ({"num_hidden_layers": True}, "num_hidden_layers is True"),
        ({"type_vocab_size": 0}, "type_vocab_size is 0"),
        ({"num_attention_heads": 7}, ".*width 60 is not a multiple of 7 heads"),
        ({"hidden_dropout_prob": "0.1"}, "hidden_dropout_prob is '0.1', expected a number from 0"),
        ({"classifier_dropout": 3}, "classifier_dropout is 3"),
        ({"layer_norm_eps": "1e-12"}, "layer_norm_eps is '1e-12', expected a number, 0 or above"),
        ({"layer_norm_eps": float("nan")}, "layer_norm_eps is nan"),
        ({"initializer_range": -1}, "initializer_range is -1"),
        ({"pad_token_id": -1}, "pad_token_id is -1, expected a token id"),
        ({"pad_token_id": 101}, "pad_token_id is 101, expected below vocab_size, 101"),
    ],
)
def test_fields_that_no_model_here_can_have(changes, message):
    raw = {k: v for k, v in (raw_of(tiny_config()) | changes).items() if v is not None}
    with pytest.raises(InputError, match=f"^config.json: {message}"):
        config_from_hf(raw, WHERE)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"embedding_size": 60}, "embedding_size is 60, expected at most hidden_size, 44"),
        ({"intra_bottleneck_size": None}, "no intra_bottleneck_size"),
        ({"num_feedforward_networks": 0}, "num_feedforward_networks is 0"),
        ({"key_query_shared_bottleneck": "no"}, ".* is 'no', expected true or false"),
        ({"normalization_type": "rms"}, "normalization_type is 'rms', expected one of no_norm"),
        ({"use_bottleneck": False}, "use_bottleneck is False, expected True"),
        ({"use_bottleneck_attention": True}, "use_bottleneck_attention is True"),
        ({"model_type": None}, "model_type is None"),
    ],
)
def test_bottlenecks_that_are_not_built(changes, message):
    raw = {k: v for k, v in (raw_of(tiny_config("mobilebert")) | changes).items() if v is not None}
    with pytest.raises(InputError, match=f"^config.json: {message}"):
        config_from_hf(raw, WHERE)


def test_old_files_that_do_not_name_their_model():
    for family in ("bert", "distilbert"):
        raw = raw_of(tiny_config(family))
        del raw["model_type"]
        assert config_from_hf(raw, WHERE).family == family


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("family", FAMILIES)
def test_the_head_that_a_file_names(family, head):
    labels = 3 if head in ("token", "sequence") else None
    with torch.device("meta"):
        model = Model(tiny_config(family), head, labels)
    assert head_of(config_to_hf(model, torch.float32)) == head


@pytest.mark.parametrize("value", [5, True, "BertForMaskedLM", [5], {"a": "BertModel"}, [None]])
def test_architectures_of_another_type(value):
    with pytest.raises(InputError, match="config.json: architectures is .* expected a list"):
        head_of({"architectures": value}, WHERE)


def test_the_first_class_of_ours_counts():
    assert head_of({"architectures": ["BertForMaskedLM", "BertForPreTraining"]}) == "mlm"


def test_no_head_of_ours():
    assert head_of({}) is None and head_of({"architectures": ["GPT2ForCausalLM"]}) is None
