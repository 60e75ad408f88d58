"""Hugging Face's names and ours: of weights, and of the fields of config.json. One table a family.

`{}` is a layer's index. What a table does not name does not exist here. Read it beside
convert.py, which reads and writes the files.
"""

import re
from pathlib import Path

from minibio.config import ModelConfig
from minibio.model.transformer import ACTIVATIONS
from minibio.run.errors import InputError

HEADS = ("mlm", "encoder", "token", "sequence", "span")

# ---- weights: theirs -> ours

BERT = {
    "bert.embeddings.word_embeddings": "encoder.embeddings.token",
    "bert.embeddings.position_embeddings": "encoder.embeddings.position",
    "bert.embeddings.token_type_embeddings": "encoder.embeddings.segment",
    "bert.embeddings.LayerNorm": "encoder.embeddings.norm",
    "bert.encoder.layer.{}.attention.self.query": "encoder.layers.{}.attention.query",
    "bert.encoder.layer.{}.attention.self.key": "encoder.layers.{}.attention.key",
    "bert.encoder.layer.{}.attention.self.value": "encoder.layers.{}.attention.value",
    "bert.encoder.layer.{}.attention.output.dense": "encoder.layers.{}.attention.output",
    "bert.encoder.layer.{}.attention.output.LayerNorm": "encoder.layers.{}.attention_norm",
    "bert.encoder.layer.{}.intermediate.dense": "encoder.layers.{}.ffn.up",
    "bert.encoder.layer.{}.output.dense": "encoder.layers.{}.ffn.down",
    "bert.encoder.layer.{}.output.LayerNorm": "encoder.layers.{}.output_norm",
    "bert.pooler.dense": "head.pooler",
    "cls.predictions.transform.dense": "head.transform",
    "cls.predictions.transform.LayerNorm": "head.norm",
    "cls.predictions": "head",  # its bias
    "classifier": "head.classifier",
    "qa_outputs": "head.classifier",
}

DISTILBERT = {
    "distilbert.embeddings.word_embeddings": "encoder.embeddings.token",
    "distilbert.embeddings.position_embeddings": "encoder.embeddings.position",
    "distilbert.embeddings.LayerNorm": "encoder.embeddings.norm",
    "distilbert.transformer.layer.{}.attention.q_lin": "encoder.layers.{}.attention.query",
    "distilbert.transformer.layer.{}.attention.k_lin": "encoder.layers.{}.attention.key",
    "distilbert.transformer.layer.{}.attention.v_lin": "encoder.layers.{}.attention.value",
    "distilbert.transformer.layer.{}.attention.out_lin": "encoder.layers.{}.attention.output",
    "distilbert.transformer.layer.{}.sa_layer_norm": "encoder.layers.{}.attention_norm",
    "distilbert.transformer.layer.{}.ffn.lin1": "encoder.layers.{}.ffn.up",
    "distilbert.transformer.layer.{}.ffn.lin2": "encoder.layers.{}.ffn.down",
    "distilbert.transformer.layer.{}.output_layer_norm": "encoder.layers.{}.output_norm",
    "vocab_transform": "head.transform",
    "vocab_layer_norm": "head.norm",
    "vocab_projector": "head",  # its bias
    "pre_classifier": "head.pre_classifier",
    "classifier": "head.classifier",
    "qa_outputs": "head.classifier",
}

MOBILEBERT = {
    "mobilebert.embeddings.word_embeddings": "encoder.embeddings.token",
    "mobilebert.embeddings.position_embeddings": "encoder.embeddings.position",
    "mobilebert.embeddings.token_type_embeddings": "encoder.embeddings.segment",
    "mobilebert.embeddings.embedding_transformation": "encoder.embeddings.project",
    "mobilebert.embeddings.LayerNorm": "encoder.embeddings.norm",
    "mobilebert.encoder.layer.{}.bottleneck.input.dense": "encoder.layers.{}.enter.dense",
    "mobilebert.encoder.layer.{}.bottleneck.input.LayerNorm": "encoder.layers.{}.enter.norm",
    "mobilebert.encoder.layer.{}.bottleneck.attention.dense": "encoder.layers.{}.enter_qk.dense",
    "mobilebert.encoder.layer.{}.bottleneck.attention.LayerNorm": "encoder.layers.{}.enter_qk.norm",
    "mobilebert.encoder.layer.{}.attention.self.query": "encoder.layers.{}.attention.query",
    "mobilebert.encoder.layer.{}.attention.self.key": "encoder.layers.{}.attention.key",
    "mobilebert.encoder.layer.{}.attention.self.value": "encoder.layers.{}.attention.value",
    "mobilebert.encoder.layer.{}.attention.output.dense": "encoder.layers.{}.attention.output",
    "mobilebert.encoder.layer.{}.attention.output.LayerNorm": "encoder.layers.{}.attention_norm",
    "mobilebert.encoder.layer.{}.ffn.{}.intermediate.dense": "encoder.layers.{}.ffns.{}.ffn.up",
    "mobilebert.encoder.layer.{}.ffn.{}.output.dense": "encoder.layers.{}.ffns.{}.ffn.down",
    "mobilebert.encoder.layer.{}.ffn.{}.output.LayerNorm": "encoder.layers.{}.ffns.{}.norm",
    # the last feed-forward network is outside the list
    "mobilebert.encoder.layer.{}.intermediate.dense": "encoder.layers.{}.ffns.LAST.ffn.up",
    "mobilebert.encoder.layer.{}.output.dense": "encoder.layers.{}.ffns.LAST.ffn.down",
    "mobilebert.encoder.layer.{}.output.LayerNorm": "encoder.layers.{}.ffns.LAST.norm",
    "mobilebert.encoder.layer.{}.output.bottleneck.dense": "encoder.layers.{}.leave",
    "mobilebert.encoder.layer.{}.output.bottleneck.LayerNorm": "encoder.layers.{}.output_norm",
    "mobilebert.pooler.dense": "head.pooler",
    "cls.predictions.transform.dense": "head.transform",
    "cls.predictions.transform.LayerNorm": "head.norm",
    "cls.predictions.dense": "head.extra",
    "cls.predictions": "head",  # its bias
    "classifier": "head.classifier",
    "qa_outputs": "head.classifier",
}

TABLES = {
    "bert": BERT,
    "distilbert": DISTILBERT,
    "mobilebert": MOBILEBERT,
    # transformers has no such model: the names are MobileBERT's, under a prefix of its own
    "ib-bert": {re.sub("^mobilebert", "ib_bert", k): v for k, v in MOBILEBERT.items()},
}
PREFIX = {name: name.replace("-", "_") for name in TABLES}


def their_name(name: str, config: ModelConfig, head: str) -> str:
    """The Hugging Face name of one of our parameters."""
    stem, leaf = name.rsplit(".", 1)
    last = f".{config.n_ffn - 1}."
    stem = re.sub(rf"(\.ffns){re.escape(last)}", r"\1.LAST.", stem)
    pattern = re.sub(r"\.\d+(?=\.|$)", ".{}", stem)
    indices = re.findall(r"\.(\d+)(?=\.|$)", stem)
    inverse = {
        ours: theirs
        for theirs, ours in TABLES[config.family].items()
        # one classifier here, two names there
        if theirs != ("classifier" if head == "span" else "qa_outputs")
    }
    return f"{inverse[pattern].format(*indices)}.{leaf}"


# ---- configurations: their field -> ours

SHARED_FIELDS = {
    "vocab_size": "V", "hidden_size": "C", "num_hidden_layers": "L", "num_attention_heads": "H",
    "intermediate_size": "F", "max_position_embeddings": "P", "hidden_act": "activation",
    "hidden_dropout_prob": "dropout", "attention_probs_dropout_prob": "attention_dropout",
    "type_vocab_size": "n_segments", "layer_norm_eps": "norm_eps", "initializer_range": "init_std",
    "pad_token_id": "pad_id", "classifier_dropout": "classifier_dropout",
}  # fmt: skip
BOTTLENECK_FIELDS = {
    **SHARED_FIELDS, "embedding_size": "C_embed", "intra_bottleneck_size": "C_intra",
    "num_feedforward_networks": "n_ffn", "normalization_type": "norm",
    "key_query_shared_bottleneck": "shared_qk", "trigram_input": "trigram",
    "classifier_activation": "tanh_pooler",
}  # fmt: skip
FIELDS = {
    "bert": SHARED_FIELDS,
    "distilbert": {
        "vocab_size": "V", "dim": "C", "n_layers": "L", "n_heads": "H", "hidden_dim": "F",
        "max_position_embeddings": "P", "activation": "activation", "dropout": "dropout",
        "attention_dropout": "attention_dropout", "initializer_range": "init_std",
        "pad_token_id": "pad_id",
    },
    "mobilebert": BOTTLENECK_FIELDS,
    "ib-bert": BOTTLENECK_FIELDS,
}  # fmt: skip
REQUIRED = {"V", "C", "L", "H", "F", "P", "C_intra", "C_embed"}
COUNTS = REQUIRED | {"n_segments", "n_ffn"}
FRACTIONS = {"dropout", "attention_dropout", "classifier_dropout"}
SWITCHES = {"shared_qk", "trigram", "tanh_pooler"}
CHOICES = {"activation": tuple(ACTIVATIONS), "norm": ("no_norm", "layer_norm")}
# what holds where a file is silent and Hugging Face's default is not ours
DEFAULTS = {
    "distilbert": {"n_segments": 0},
    "mobilebert": {
        "n_ffn": 4, "norm": "no_norm", "shared_qk": True, "trigram": True, "tanh_pooler": True,
        "activation": "relu", "dropout": 0.0,
    },
    "ib-bert": {"trigram": True, "activation": "gelu_new"},
}  # fmt: skip
# options that would change the model and that we do not have: field -> the value we do have
FIXED = {
    "bert": {"position_embedding_type": "absolute", "is_decoder": False,
             "add_cross_attention": False},
    "distilbert": {},
    "mobilebert": {"use_bottleneck": True, "use_bottleneck_attention": False},
    "ib-bert": {"use_bottleneck": True, "use_bottleneck_attention": False},
}  # fmt: skip
CLASSES = {
    "bert": "Bert", "distilbert": "DistilBert", "mobilebert": "MobileBert", "ib-bert": "IBBert",
}  # fmt: skip
SUFFIXES = {
    "mlm": "ForMaskedLM", "encoder": "Model", "token": "ForTokenClassification",
    "sequence": "ForSequenceClassification", "span": "ForQuestionAnswering",
}  # fmt: skip


def family_of(raw: dict, where: Path) -> str:
    """The family a config.json speaks of; old TinyBERT files do not name it.

    Raises:
        InputError: another architecture.
    """
    named = raw.get("model_type")
    if named is None and "hidden_size" in raw and "embedding_size" not in raw:
        return "bert"
    if named is None and "dim" in raw and "n_layers" in raw:
        return "distilbert"
    if not isinstance(named, str) or named not in FIELDS:
        raise InputError(
            f"{where}: model_type is {named!r}, expected one of {', '.join(FIELDS)}; "
            f"no other architecture is built here"
        )
    return named


def check_field(ours: str, value, label: str) -> None:
    """Refuse a value that no model can have.

    Raises:
        InputError: it is of another kind or out of range; `label` says the place.
    """
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    is_whole = is_number and isinstance(value, int)
    if ours in COUNTS:
        ok, expected = is_whole and 0 < value < 2**24, "a whole number above 0"
    elif ours == "pad_id":
        ok, expected = is_whole and value >= 0, "a token id"
    elif ours in FRACTIONS:
        ok, expected = is_number and 0 <= value <= 1, "a number from 0 to 1"
    elif ours in SWITCHES:
        ok, expected = isinstance(value, bool), "true or false"
    elif ours in CHOICES:
        ok = isinstance(value, str) and value in CHOICES[ours]
        expected = f"one of {', '.join(CHOICES[ours])}"
    else:  # norm_eps, init_std
        ok, expected = is_number and 0 <= value < float("inf"), "a number, 0 or above"
    if not ok:
        raise InputError(f"{label} is {value!r}, expected {expected}")


def config_from_hf(raw: dict, where: Path) -> ModelConfig:
    """Our configuration from a config.json; fields that we do not know are passed over.

    Raises:
        InputError: a field that shapes the model is missing or has a value that we do not build.
    """
    family = family_of(raw, where)
    missing = [t for t, ours in FIELDS[family].items() if ours in REQUIRED and raw.get(t) is None]
    if missing:
        raise InputError(f"{where}: no {', '.join(missing)}; complete the file")
    for name, ours in FIXED[family].items():
        if raw.get(name) not in (None, ours):
            raise InputError(f"{where}: {name} is {raw[name]!r}, expected {ours!r}: not built here")
    fields = {"family": family, **DEFAULTS.get(family, {})}
    for theirs, ours in FIELDS[family].items():
        if raw.get(theirs) is not None:
            check_field(ours, raw[theirs], f"{where}: {theirs}")
            fields[ours] = raw[theirs]
    if fields.get("pad_id", 0) >= fields["V"]:
        raise InputError(
            f"{where}: pad_token_id is {fields['pad_id']}, expected below vocab_size, {fields['V']}"
        )
    if fields.get("C_embed", 0) > fields["C"]:
        raise InputError(
            f"{where}: embedding_size is {fields['C_embed']}, expected at most hidden_size, "
            f"{fields['C']}"
        )
    try:
        return ModelConfig(**fields)
    except ValueError as error:
        raise InputError(f"{where}: {error}") from None


def head_of(raw: dict, where: Path | str = "config.json") -> str | None:
    """Our head for the class that a config.json names; None where it names another or none.

    Raises:
        InputError: `architectures` is not a list of names.
    """
    named = raw.get("architectures") or []
    if not isinstance(named, list) or not all(isinstance(name, str) for name in named):
        raise InputError(
            f"{where}: architectures is {named!r:.60}, expected a list of names such as "
            f'["BertForMaskedLM"]'
        )
    return next((h for name in named for h in HEADS if name.endswith(SUFFIXES[h])), None)
