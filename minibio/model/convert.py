"""Models in and out: Hugging Face directories to our modules and back, by safetensors only.

names.py says which name of theirs is which of ours, weights.py reads the files. `load` reads
config.json, the weights and the tokenizer; `save` writes what transformers loads without a word.
What would go wrong silently is refused: a file of which nothing fits, a head that it lacks, classes
in another order.

    python -m minibio convert SRC DST --head mlm
"""

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch.overrides import TorchFunctionMode

from minibio.model.heads import Model
from minibio.model.hub import how_to_fetch
from minibio.model.names import (
    CLASSES,
    FIELDS,
    FIXED,
    HEADS,
    PREFIX,
    SUFFIXES,
    config_from_hf,
    head_of,
    their_name,
)
from minibio.model.weights import Stored, check_numbers, clean, read_weights, tie
from minibio.run.errors import InputError
from minibio.run.files import read_json, real, staged_dir, write_json
from minibio.run.options import Parser
from minibio.run.store import write_tensors
from minibio.text.tokenizer import Tokenizer

# ---- reading


@dataclass
class Report:
    """The fate of every name: read, missing, or left over."""

    loaded: list[str] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)  # started fresh
    unexpected: list[str] = field(default_factory=list)  # in the file, not in the model
    widened: list[str] = field(default_factory=list)  # stored as float16 or bfloat16
    narrowed: list[str] = field(default_factory=list)  # float64 in the file, float32 here

    def __str__(self) -> str:
        rows = [f"loaded      {len(self.loaded)} tensors"]
        for name in ("missing", "unexpected", "widened", "narrowed"):
            names = getattr(self, name)
            if names:
                rows.append(f"{name:<11} {len(names)}: {', '.join(names)}")
        return "\n".join(rows)


class NothingDrawn(TorchFunctionMode):
    """A mode in which weights are not drawn: a file's take their place.

    On the device "meta" drawing one imports PyTorch's compiler, too, which takes seconds.
    """

    def __torch_function__(self, function, types, args=(), kwargs=None):
        if function.__name__ in ("normal_", "uniform_", "kaiming_uniform_"):
            return None
        return function(*args, **(kwargs or {}))


def match(
    model: Model, tensors: dict[str, Stored], where: Path, new_head: bool, dtype: torch.dtype
) -> tuple[dict[str, str], Report]:
    """{their name: our name} of what the file has for the model; no numbers are read yet.

    Args:
        model: needs no memory of its own (device "meta"): its names and shapes are looked at.
        dtype: the precision that the weights will have.
    Raises:
        InputError: nothing matches, the encoder lacks a tensor, the head does and `new_head` is
            False, or shapes differ.
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
        x, expected = tensors[theirs], tuple(state[ours].shape)
        if x.shape != expected:
            raise InputError(
                f"{where}: {theirs} is {tuple(x.shape)}, expected {expected} (config.json)"
            )
        if x.dtype.itemsize > dtype.itemsize:
            report.narrowed.append(theirs)
        elif x.dtype.itemsize < torch.float32.itemsize:
            report.widened.append(theirs)
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
            f"choose another head, or start a fresh one: new_head=True in Python, "
            f"python -m minibio convert --new-head"
        )
    return {theirs: names[theirs] for theirs in report.loaded}, report


def fill(model: Model, tensors: dict[str, Stored], names: dict[str, str], where: Path) -> None:
    """Copy the numbers of the file into the model, tensor by tensor.

    Args:
        names: as `match` gives them.
    Raises:
        InputError: weights are of no floating-point type, or not finite in the model's.
    """
    state = model.state_dict()
    for theirs, ours in names.items():
        x = tensors[theirs].read()
        check_numbers(theirs, x, where)
        state[ours].copy_(x)
        if x.dtype != state[ours].dtype:
            check_numbers(theirs, state[ours], where)  # 1e300 is not a float32


def read_config(path: Path) -> tuple[dict, Path]:
    """config.json, or bert_config.json of the older BioBERT releases."""
    if not path.is_dir():
        expected = "expected a Hugging Face directory"
        raise InputError(f"{path}: no such directory, {expected}{how_to_fetch(path)}")
    for name in ("config.json", "bert_config.json"):
        if (path / name).is_file():
            return read_json(path / name), path / name
    raise InputError(f"{path}: no config.json; expected a Hugging Face directory")


def labels_of(
    raw: dict, tensors: dict[str, Stored], where: Path, given: Sequence[str] | int | None
) -> Sequence[str] | int:
    """The classes of a classifier, in the order of their ids: the caller's names, or config.json's.

    Of config.json id2label is read, or, where there is none, label2id.

    Raises:
        InputError: neither names them, names are not distinct, or the caller has those of the file
            in another order, which would exchange the classes.
    """
    stored, name = raw.get("id2label"), "id2label"
    try:
        if not stored:
            stored, name = raw.get("label2id") or {}, "label2id"
            stored = {str(i): label for label, i in stored.items()}
        order = [str(stored[str(i)]) for i in range(len(stored))]
    except (AttributeError, KeyError, TypeError):
        order = None
    has_classifier = "classifier.weight" in tensors
    if isinstance(given, int):
        return given
    if given is None and order is None:
        raise InputError(f"{where}: {name} does not number its labels 0, 1, ...")
    if given is None and not order and has_classifier:
        return tensors["classifier.weight"].shape[0]
    if given is None and not order:
        raise InputError(
            f"{where}: no id2label; name the classes: --labels, labels=[...] in Python"
        )
    names = order if given is None else [given] if isinstance(given, str) else list(given)
    if not all(isinstance(n, str) for n in names) or len(set(names)) < len(names):
        raise InputError(f"{where}: labels are {names}, expected distinct names")
    if has_classifier and order and names != order and sorted(names) == sorted(order):
        raise InputError(
            f"{where}: labels are {', '.join(names)}, expected the order of id2label: "
            f"{', '.join(order)}"
        )
    return names


def load_with_report(
    path: str | Path,
    head: str | None = None,
    labels: Sequence[str] | int | None = None,
    new_head: bool = False,
) -> tuple[Model, Tokenizer | None, Report]:
    """As `load`, and what became of every name."""
    path = Path(path)
    raw, where = read_config(path)
    head = head_of(raw, where) or "mlm" if head is None else head
    if head not in HEADS:
        raise InputError(f"head is {head!r}, expected one of {', '.join(HEADS)}")
    config = config_from_hf(raw, where)
    tokenizer = Tokenizer.find(path)
    if tokenizer is not None:
        tokenizer.check_vocab(config.V, str(path))
    tensors = clean(read_weights(path), config.family, path)
    tie(tensors, config.family, path)
    if config.L * config.n_ffn > max(len(tensors), 100):  # even an outline of them takes hours
        raise InputError(
            f"{where}: {config.L:,} layers of {config.n_ffn:,} feed-forward networks, and "
            f"{len(tensors)} tensors beside it; the file is damaged"
        )
    if head in ("token", "sequence"):
        labels = labels_of(raw, tensors, where, labels)
    has_pooler = f"{PREFIX[config.family]}.pooler.dense.weight" in tensors
    types = {x.dtype for x in tensors.values() if x.dtype.is_floating_point}
    dtype = torch.float64 if types <= {torch.float64} else torch.float32
    # only shapes: a wrong config.json must not ask for a terabyte
    with torch.device("meta"), NothingDrawn():
        outline = Model(config, head, labels, has_pooler)
    names, report = match(outline, tensors, path, new_head, dtype)
    # with a new head, drawn whether or not the file lacks it: later draws do not depend on the file
    with nullcontext() if new_head else NothingDrawn():
        model = Model(config, head, labels, has_pooler).to(dtype)
    fill(model, tensors, names, path)
    return model.eval(), tokenizer, report


def load(
    path: str | Path,
    head: str | None = None,
    labels: Sequence[str] | int | None = None,
    new_head: bool = False,
) -> tuple[Model, Tokenizer | None]:
    """A model and its tokenizer from a Hugging Face directory.

    Args:
        path:     a directory with config.json and model.safetensors (or its shards).
        head:     "mlm" | "encoder" | "token" | "sequence" | "span"; None = the one that config.json
                  names under `architectures`, "mlm" where it names none of these.
        labels:   names (or the number) of a classifier's labels; None = config.json's.
        new_head: start a new head where the file lacks it (torch's generator draws it).
    Returns:
        The model in eval mode, in float32 (float64 where every tensor is float64); the tokenizer,
        or None where the directory has none.
    Raises:
        InputError: one line for anything that is missing, damaged or does not fit.
    """
    model, tokenizer, _ = load_with_report(path, head, labels, new_head)
    return model, tokenizer


# ---- writing


def config_to_hf(model: Model, dtype: torch.dtype) -> dict:
    """A config.json that transformers reads without a word."""
    config = model.config
    raw = {
        "architectures": [CLASSES[config.family] + SUFFIXES[model.head_name]],
        "model_type": config.family,
        **{theirs: getattr(config, ours) for theirs, ours in FIELDS[config.family].items()},
        **FIXED[config.family],
    }
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


def save(
    model: Model, tokenizer: Tokenizer | None, path: str | Path, overwrite: bool = False
) -> None:
    """Write a directory that transformers loads without a warning.

    The decoder is never written: newer versions of transformers leave it untied when they find it.
    (Only IB-BERT is ours: transformers has no such model.)

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
        write_tensors(staged / "model.safetensors", tensors, {"format": "pt"})
        if tokenizer is not None:
            tokenizer.save(staged)


def main(argv=None) -> None:
    p = Parser("minibio convert", description=__doc__)
    p.add_argument("src", type=Path, metavar="SRC", help="Hugging Face directory")
    p.add_argument("dst", type=Path, metavar="DST", help="new directory")
    p.add_argument("--head", choices=HEADS, help="default: the one that SRC's config.json names")
    p.add_argument("--labels", nargs="+", help="names of a classifier's labels")
    p.add_argument("--new-head", action="store_true", help="start a new head where SRC lacks it")
    p.add_argument("--overwrite", action="store_true", help="replace what is at DST")
    args = p.parse_args(argv)
    if real(args.src) == real(args.dst):
        raise InputError(f"{args.dst} is SRC too; name another DST")
    model, tokenizer, report = load_with_report(args.src, args.head, args.labels, args.new_head)
    save(model, tokenizer, args.dst, overwrite=args.overwrite)
    config = model.config
    print(
        f"{args.src} -> {args.dst}: {config.family}, {config.L} layers of {config.C}, "
        f"{model.n_parameters:,} parameters, {model.head_name} head, "
        f"{'no tokenizer' if tokenizer is None else f'{tokenizer.V:,} word pieces'}\n{report}"
    )
