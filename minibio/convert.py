"""Weights in and out: Hugging Face directories to our modules and back, by safetensors alone.

One table a family says which name of theirs is which of ours; `{}` is the layer's index. `load`
reads config.json, the weights (sharded or not) and the tokenizer; `save` writes what transformers
loads without a word. Checkpoints met in the wild carry old names, wrappers' prefixes and heads that
nobody asked for; `clean` brings them to today's names. What would go wrong silently is refused:
a decoder that is not the embeddings, a file of which nothing fits, weights that are no numbers.

    python -m minibio.convert SRC DST --head mlm
"""

import argparse
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from minibio import errors
from minibio.config import ModelConfig
from minibio.errors import InputError
from minibio.files import read_json, staged_dir, write_json
from minibio.heads import Model
from minibio.tokenizer import Tokenizer
from minibio.transformer import ACTIVATIONS

HEADS = ("mlm", "encoder", "token", "sequence", "span")

# ---- names: theirs -> ours, one table a family

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
    # the last feed-forward network stands outside the list
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
DECODER = {"distilbert": "vocab_projector"}  # where the tied decoder stands; others:
DECODER_ELSE = "cls.predictions.decoder"

WRAPPERS = ("module.", "student.", "_orig_mod.")  # DDP, the authors' own class, torch.compile
OLD_NAMES = ((r"\.gamma$", ".weight"), (r"\.beta$", ".bias"))
# what other heads and trainings leave in a file; harmless
EXPECTED_EXTRAS = (
    "pooler.",
    "cls.seq_relationship.",
    "fit_dense",
    "position_ids",
    "token_type_ids",
)


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


# ---- configurations: their field -> ours, one table a family

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
# what holds where a file is silent and Hugging Face's default is not ours
DEFAULTS = {
    "distilbert": {"n_segments": 0},
    "mobilebert": {
        "n_ffn": 4, "norm": "no_norm", "shared_qk": True, "trigram": True, "tanh_pooler": True,
        "activation": "relu", "dropout": 0.0,
    },
    "ib-bert": {"trigram": True},
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
    if named not in FIELDS:
        raise InputError(
            f"{where}: model_type is {named!r}, expected one of {', '.join(FIELDS)}; "
            f"no other architecture is built here"
        )
    return named


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
        if raw.get(name, ours) != ours:
            raise InputError(f"{where}: {name} is {raw[name]!r}, expected {ours!r}: not built here")
    fields = {"family": family, **DEFAULTS.get(family, {})}
    for theirs, ours in FIELDS[family].items():
        value = raw.get(theirs)
        if value is None:
            continue
        is_count = isinstance(value, int) and not isinstance(value, bool) and value > 0
        if ours in REQUIRED and not is_count:
            raise InputError(f"{where}: {theirs} is {value!r}, expected a number above 0")
        fields[ours] = value
    if fields.get("activation", "gelu") not in ACTIVATIONS:
        raise InputError(
            f"{where}: activation is {fields['activation']!r}, expected one of "
            f"{', '.join(ACTIVATIONS)}"
        )
    if fields.get("norm", "no_norm") not in ("no_norm", "layer_norm"):
        raise InputError(
            f"{where}: normalization_type is {fields['norm']!r}, expected no_norm or layer_norm"
        )
    try:
        return ModelConfig(**fields)
    except ValueError as error:
        raise InputError(f"{where}: {error}") from None


def config_to_hf(model: Model, dtype: torch.dtype) -> dict:
    """A config.json that transformers reads without a word."""
    config = model.config
    raw = {
        "architectures": [CLASSES[config.family] + SUFFIXES[model.head_name]],
        "model_type": config.family,
        **{theirs: getattr(config, ours) for theirs, ours in FIELDS[config.family].items()},
        **FIXED[config.family],
    }
    raw.pop("position_embedding_type", None)  # newer versions know no other
    if "embedding_size" in raw:
        raw["embedding_size"] = config.E
    if config.family == "distilbert":
        raw |= {"sinusoidal_pos_embds": False}
        if config.classifier_dropout is not None:
            raw |= {"seq_classif_dropout": config.classifier_dropout}
    if model.labels and model.head_name in ("token", "sequence"):
        raw["id2label"] = {str(i): name for i, name in enumerate(model.labels)}
        raw["label2id"] = {name: i for i, name in enumerate(model.labels)}
    return {**raw, "tie_word_embeddings": True, "dtype": str(dtype).removeprefix("torch.")}


# ---- reading


@dataclass
class Report:
    """What became of every name."""

    loaded: list[str] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)  # started fresh
    unexpected: list[str] = field(default_factory=list)  # in the file, not in the model
    widened: list[str] = field(default_factory=list)  # stored narrower than float32

    def __str__(self) -> str:
        rows = [f"loaded      {len(self.loaded)} tensors"]
        for name in ("missing", "unexpected", "widened"):
            names = getattr(self, name)
            if names:
                rows.append(f"{name:<11} {len(names)}: {', '.join(names)}")
        return "\n".join(rows)


def weight_files(path: Path) -> list[Path]:
    """The safetensors files of a directory, one or many.

    Raises:
        InputError: none; a shard that the index names is missing.
    """
    single, index = path / "model.safetensors", path / "model.safetensors.index.json"
    if single.is_file():
        return [single]
    if index.is_file():
        mapping = read_json(index).get("weight_map")
        if not isinstance(mapping, dict) or not mapping:
            raise InputError(f"{index}: no weight_map; the file is damaged")
        files = [path / name for name in sorted(set(mapping.values()))]
        for file in files:
            if not file.is_file():
                raise InputError(f"{file}: no such file, though {index.name} names it")
        return files
    if (path / "pytorch_model.bin").is_file():
        raise InputError(
            f"{path}: only pytorch_model.bin, a pickle that can run code; convert it where you "
            f"trust it: transformers.AutoModelForMaskedLM.from_pretrained({str(path)!r})"
            f".save_pretrained(NEW_DIR)"
        )
    raise InputError(f"{path}: no model.safetensors; expected a Hugging Face directory")


def read_weights(path: Path) -> dict[str, Tensor]:
    """Every tensor of a directory, by the names in its files.

    Raises:
        InputError: truncated or damaged files.
    """
    tensors = {}
    for file in weight_files(path):
        try:
            with safe_open(file, framework="pt") as f:
                tensors |= {name: f.get_tensor(name) for name in f.keys()}  # noqa: SIM118
        except (SafetensorError, ValueError, KeyError, RuntimeError) as error:
            raise InputError(f"{file}: {error}: truncated or damaged; fetch it again") from None
    return tensors


def clean(tensors: dict[str, Tensor], family: str) -> dict[str, Tensor]:
    """Today's names for what is met in the wild: wrappers, gamma and beta, a missing prefix."""
    prefix, result = PREFIX[family] + ".", {}
    own = [theirs for theirs in TABLES[family] if theirs.startswith(prefix)]
    inner = tuple({theirs.split(".")[1] + "." for theirs in own})
    for name, x in tensors.items():
        while name.startswith(WRAPPERS):
            name = name.split(".", 1)[1]
        for old, new in OLD_NAMES:
            name = re.sub(old, new, name)
        result[prefix + name if name.startswith(inner) else name] = x
    return result


def drop_decoder(tensors: dict[str, Tensor], family: str, where: Path) -> None:
    """Take the tied decoder out, in place.

    Raises:
        InputError: it differs from the embeddings it should be tied to.
    """
    stem = DECODER.get(family, DECODER_ELSE)
    bias = tensors.pop(f"{stem}.bias", None) if stem == DECODER_ELSE else None
    if bias is not None:  # the same as cls.predictions.bias, which some files lack
        tensors.setdefault("cls.predictions.bias", bias)
    decoder = tensors.pop(f"{stem}.weight", None)
    table = tensors.get(f"{PREFIX[family]}.embeddings.word_embeddings.weight")
    if decoder is None or table is None:
        return
    if decoder.shape != table.shape or not torch.equal(decoder, table):
        by = (
            f"by up to {(decoder.float() - table.float()).abs().max():.3g}"
            if decoder.shape == table.shape
            else f"in shape, {tuple(decoder.shape)} and {tuple(table.shape)}"
        )
        raise InputError(
            f"{where}: {stem}.weight differs from the token embeddings {by}: an untied decoder, "
            f"which no model here has; tie it before"
        )


def fill(model: Model, tensors: dict[str, Tensor], where: Path, new_head: bool) -> Report:
    """Copy `tensors`, by their names, into the model.

    Raises:
        InputError: nothing matches, the encoder lacks a tensor, the head does and `new_head` is
            False, shapes differ, or weights are not finite.
    """
    report, state = Report(), model.state_dict()
    names = {their_name(ours, model.config, model.head_name): ours for ours in state}
    if not set(names) & set(tensors):
        raise InputError(
            f"{where}: no tensor in it belongs to a {model.config.family}: it has "
            f"{', '.join(sorted(tensors)[:3]) or 'nothing'}, expected {next(iter(names))}, ..."
        )
    for theirs, ours in names.items():
        if theirs not in tensors:
            report.missing.append(theirs)
            continue
        x, mine = tensors[theirs], state[ours]
        if x.shape != mine.shape:
            raise InputError(
                f"{where}: {theirs} is {tuple(x.shape)}, expected {tuple(mine.shape)} (config.json)"
            )
        if not x.is_floating_point() or not torch.isfinite(x).all():
            raise InputError(f"{where}: {theirs} has NaN or infinite weights; fetch it again")
        if x.dtype in (torch.float16, torch.bfloat16):
            report.widened.append(theirs)
        mine.copy_(x)
        report.loaded.append(theirs)
    report.unexpected = sorted(set(tensors) - set(names))
    lacks_encoder = [n for n in report.missing if names[n].startswith("encoder.")]
    if lacks_encoder:
        raise InputError(
            f"{where}: {len(lacks_encoder)} of the encoder's tensors are missing: "
            f"{', '.join(lacks_encoder[:3])}{', ...' * (len(lacks_encoder) > 3)}"
        )
    if report.missing and not new_head:
        raise InputError(
            f"{where}: no {model.head_name} head in it (missing: {', '.join(report.missing[:4])}); "
            f"choose another head, or start a fresh one with new_head=True"
        )
    return report


def read_config(path: Path) -> tuple[dict, Path]:
    """config.json, or bert_config.json of the older BioBERT releases."""
    if not path.is_dir():
        raise InputError(f"{path}: no such directory, expected a Hugging Face directory")
    for name in ("config.json", "bert_config.json"):
        if (path / name).is_file():
            raw = read_json(path / name)
            if name == "bert_config.json":
                raw.setdefault("model_type", "bert")
            return raw, path / name
    raise InputError(f"{path}: no config.json; expected a Hugging Face directory")


def labels_of(raw: dict, tensors: dict[str, Tensor], where: Path) -> list[str] | None:
    """Label names in the order of their ids; bare numbers where the file has a classifier alone."""
    names = raw.get("id2label")
    if names:
        try:
            return [names[str(i)] for i in range(len(names))]
        except (KeyError, TypeError):
            raise InputError(f"{where}: id2label does not number its labels 0, 1, ...") from None
    K = raw.get("num_labels") or (
        len(tensors["classifier.weight"]) if "classifier.weight" in tensors else 0
    )
    return [f"LABEL_{i}" for i in range(K)] or None


def load_with_report(
    path: str | Path,
    head: str = "mlm",
    labels: Sequence[str] | int | None = None,
    new_head: bool = False,
) -> tuple[Model, Tokenizer | None, Report]:
    """As `load`, and what became of every name."""
    path = Path(path)
    if head not in HEADS:
        raise InputError(f"head is {head!r}, expected one of {', '.join(HEADS)}")
    raw, where = read_config(path)
    config = config_from_hf(raw, where)
    tensors = clean(read_weights(path), config.family)
    drop_decoder(tensors, config.family, path)
    if labels is None and head in ("token", "sequence"):
        labels = labels_of(raw, tensors, where)
        if labels is None:
            raise InputError(f"{where}: no id2label; name the labels of the {head} head")
    has_pooler = f"{PREFIX[config.family]}.pooler.dense.weight" in tensors
    model = Model(config, head, labels, has_pooler=has_pooler)
    if all(x.dtype == torch.float64 for x in tensors.values()):
        model = model.double()
    with torch.no_grad():
        report = fill(model, tensors, path, new_head)
    tokenizer = Tokenizer.find(path)
    if tokenizer is not None:
        tokenizer.check_vocab(config.V, str(path))
    return model.eval(), tokenizer, report


def load(
    path: str | Path,
    head: str = "mlm",
    labels: Sequence[str] | int | None = None,
    new_head: bool = False,
) -> tuple[Model, Tokenizer | None]:
    """A model and its tokenizer from a Hugging Face directory.

    Args:
        path:     a directory with config.json and model.safetensors (or its shards).
        head:     "mlm" | "encoder" | "token" | "sequence" | "span".
        labels:   names (or the number) of a classifier's labels; None = config.json's.
        new_head: start the head afresh where the file lacks it (torch's generator draws it).
    Returns:
        The model in eval mode, in float32 (float64 where every tensor is float64); the tokenizer,
        or None where the directory has none.
    Raises:
        InputError: one line for anything that is missing, damaged or does not fit.
    """
    model, tokenizer, _ = load_with_report(path, head, labels, new_head)
    return model, tokenizer


# ---- writing


def save(
    model: Model, tokenizer: Tokenizer | None, path: str | Path, overwrite: bool = False
) -> None:
    """Write a directory that transformers loads without a warning.

    The decoder is never written: newer versions of transformers leave it untied when they find it.
    (IB-BERT alone is ours: transformers has no such model.)

    Raises:
        InputError: `path` cannot be written or is in use, the tokenizer has another vocabulary, or
            a weight is not finite.
    """
    if tokenizer is not None:
        tokenizer.check_vocab(model.config.V, str(path))
    tensors = {}
    for ours, x in model.state_dict().items():
        theirs = their_name(ours, model.config, model.head_name)
        if not torch.isfinite(x).all():
            raise InputError(f"{path}: {theirs} has NaN or infinite weights; nothing is written")
        tensors[theirs] = x.detach().cpu().contiguous()
    dtype = model.encoder.embeddings.token.weight.dtype
    with staged_dir(path, overwrite=overwrite) as staged:
        write_json(staged / "config.json", config_to_hf(model, dtype))
        save_file(tensors, staged / "model.safetensors", metadata={"format": "pt"})
        if tokenizer is not None:
            tokenizer.save(staged)


def main(argv=None) -> None:
    p = argparse.ArgumentParser("minibio.convert", description=__doc__.split("\n")[0])
    p.add_argument("src", type=Path, metavar="SRC", help="Hugging Face directory")
    p.add_argument("dst", type=Path, metavar="DST", help="new directory")
    p.add_argument("--head", choices=HEADS, default="mlm")
    p.add_argument("--labels", nargs="+", help="names of a classifier's labels")
    p.add_argument("--new-head", action="store_true", help="start a head that SRC lacks afresh")
    p.add_argument("--overwrite", action="store_true", help="replace what stands at DST")
    args = p.parse_args(argv)
    model, tokenizer, report = load_with_report(args.src, args.head, args.labels, args.new_head)
    save(model, tokenizer, args.dst, overwrite=args.overwrite)
    config = model.config
    print(
        f"{args.src} -> {args.dst}: {config.family}, {config.L} layers of {config.C}, "
        f"{model.n_parameters:,} parameters, {args.head} head, "
        f"{'no tokenizer' if tokenizer is None else f'{tokenizer.V:,} word pieces'}\n{report}"
    )


if __name__ == "__main__":
    errors.run(main, "minibio.convert")
