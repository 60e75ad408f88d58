"""Models side by side, one row each, all measured here and alike: `eval.py compare`.

Size, masked-LM loss on the same held-out documents, entity scores of a fine-tuned directory of each
model, and the encoder's speed on the same batches, the models taking turns.
"""

import argparse
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np
import torch

from kernels.bench.timing import milliseconds
from kernels.machine import describe
from minibio.distil.measure import held_out
from minibio.model.convert import load
from minibio.model.heads import Model
from minibio.report import plot
from minibio.report.scores import percent, table
from minibio.run import dist, files
from minibio.run.errors import InputError
from minibio.text.corpus import Corpus


def read_ner(directory: Path, run: Path) -> dict:
    """The word-level scores of a directory that was fine-tuned from `run`.

    Raises:
        InputError: it holds none, or was fine-tuned from another directory.
    """
    record = files.read_json(directory / "ner.json")
    try:
        source, scores = files.real(record["model"]).name, record["test"]["word"]
        scores = {name: float(scores[name]) for name in ("precision", "recall", "f1")}
        if not all(0 <= x <= 1 for x in scores.values()):
            raise ValueError
    except (KeyError, OverflowError, TypeError, ValueError):
        raise InputError(f"{directory / 'ner.json'} holds no scores of `eval.py ner`") from None
    if source != files.real(run).name:
        raise InputError(
            f"{directory} was fine-tuned from {source!r}, expected {files.real(run).name!r}; "
            "name the --ner directories in the order of the runs"
        )
    return {f"ner_{name}": x for name, x in scores.items()}


def read_record(path: Path) -> dict:
    """A run.json; {} if there is none.

    Raises:
        InputError: its corpus or its length is of another type.
    """
    record = files.read_json(path) if path.exists() else {}
    for name, (kind, what) in {"corpus": (str, "a directory"), "length": (int, "tokens")}.items():
        if name in record and type(record[name]) is not kind:
            raise InputError(f"{path}: {name} is {str(record[name])[:60]}, expected {what}")
    return record


def compare(
    runs: Sequence[Path],
    out: Path,
    *,
    ner: Sequence[Path] = (),
    corpus: Path | None = None,
    documents: int = 1024,
    length: int | None = None,
    repeats: int = 5,
    device: str | None = None,
) -> None:
    """Write compare.json and compare.md, and print the table.

    Args:
        runs:      directories of train.py.
        out:       directory to write.
        ner:       directories of `eval.py ner`, in the order of `runs`.
        corpus:    token shards; None = those of the first run.
        documents: held-out documents to measure on, at most.
        length:    tokens of the longest document; None = the shortest that a run was trained on.
        repeats:   timed passes of each model.
    Raises:
        InputError: entity scores are not those of the runs, no corpus is known, or vocabularies
            differ.
    """
    if ner and len(ner) != len(runs):
        raise InputError(f"{len(ner)} --ner directories for {len(runs)} runs")
    for name, x in {"documents": documents, "length": length, "repeats": repeats}.items():
        if x is not None and x < 1:
            raise InputError(f"--{name} is {x}, expected at least 1")
    for name in ("compare.json", "compare.md"):
        files.check_writable(out / name)
    where = dist.pick_device(device)
    records = [read_record(run / "run.json") for run in runs]
    rows = [
        {"name": name, "method": record.get("method")}
        for name, record in zip(plot.labels(runs), records, strict=True)
    ]
    for row, directory, run in zip(rows, ner, runs, strict=False):
        row.update(read_ner(directory, run))
    loaded = [load(run, head="mlm") for run in runs]
    models = [model.to(where) for model, _ in loaded]
    texts = common_corpus(corpus, length, records, models)
    for _, tokenizer in loaded:
        if tokenizer is not None:
            texts.check_tokenizer(tokenizer)
    batches = texts.held_out_batches(32, limit=documents)
    speeds = tokens_per_second(models, batches, where, repeats)
    for row, model, speed in zip(rows, models, speeds, strict=True):
        row["parameters"] = model.n_parameters
        row["parameters_encoder"] = sum(p.numel() for p in model.encoder.parameters())
        row.update(held_out(model, batches, dist.Ranks(0, 0, 1, where)))
        row["tokens_per_s"] = round(speed)
    write_comparison(
        out,
        rows,
        {
            "machine": describe(where),
            "corpus": str(texts.path),
            "length": texts.length,
            "documents": sum(batch.B for batch in batches),
        },
    )


def common_corpus(
    corpus: Path | None, length: int | None, records: list[dict], models: list[Model]
) -> Corpus:
    """The held-out documents that all models are measured on, cut to what all of them can read.

    Raises:
        InputError: no run says what it was trained on, and `corpus` is None.
    """
    named = [record["corpus"] for record in records if "corpus" in record]
    if corpus is None and not named:
        raise InputError("no run names a corpus to measure on; pass --corpus DIR")
    lengths = [record["length"] for record in records if "length" in record]
    longest = min(length or min(lengths, default=256), *(model.config.P for model in models))
    return Corpus(corpus or named[0], "held-out", seed=0, length=longest)


def tokens_per_second(models: list[Model], batches, device, repeats: int) -> list[float]:
    """Inference speed of each encoder by its median pass over the same batches, in turns."""
    few = [batch.to(device) for batch in batches[:: max(1, len(batches) // 8)]]  # of every length
    calls = [[partial(encode, model, few)] for model in models]
    N = sum(batch.N for batch in few)
    return [
        1000 * N / float(np.median(milli))
        for milli in milliseconds(calls, device, repeats, warmup=1)
    ]


@torch.no_grad()
def encode(model: Model, batches) -> None:
    """One pass of the encoder over the batches."""
    for batch in batches:
        model.encoder(batch)


def write_comparison(out: Path, rows: list[dict], facts: dict) -> None:
    """Write compare.json and compare.md, and print the same table."""
    head = ["model", "parameters", "of the encoder", "held-out loss", "NER P", "NER R", "NER F1",
            "tokens/s"]  # fmt: skip
    body = [
        [
            row["name"],
            f"{row['parameters']:,}",
            f"{row['parameters_encoder']:,}",
            f"{row['mlm_loss']:.4f}",
            *(percent(row.get(f"ner_{name}")) for name in ("precision", "recall", "f1")),
            f"{row['tokens_per_s']:,}",
        ]
        for row in rows
    ]
    text = table(head, body)
    note = (
        f"Masked-LM loss in nats per predicted token, on {facts['documents']:,} held-out documents "
        f"of {facts['corpus']}; entity scores over words, in per cent; speed of the encoder, "
        f"inference, fp32.\n{facts['machine']}"
    )
    files.write_json(out / "compare.json", {**facts, "rows": rows})
    with files.staged_file(out / "compare.md") as staged:
        staged.write_text(f"{text}\n\n{note}\n", "utf-8")
    print(f"\n{text}\n\n{note}")


def run_compare(args: argparse.Namespace) -> None:
    """`eval.py compare`."""
    compare(
        args.runs,
        args.out,
        ner=args.ner,
        corpus=args.corpus,
        documents=args.documents,
        length=args.length,
        repeats=args.repeats,
        device=args.device,
    )


def add_arguments(p: argparse.ArgumentParser) -> None:
    """The options of `eval.py compare`, except --device, which all commands have."""
    p.set_defaults(run=run_compare)
    p.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="directory of train.py")
    p.add_argument(
        "--ner",
        nargs="+",
        type=Path,
        default=[],
        metavar="DIR",
        help="directories of `eval.py ner`, in the order of the runs",
    )
    p.add_argument("--corpus", type=Path, help="token shards (default: those of the first run)")
    p.add_argument(
        "--documents", type=int, default=1024, help="held-out documents to measure on (%(default)s)"
    )
    p.add_argument("--length", type=int, help="tokens of the longest document (default: the runs')")
    p.add_argument(
        "--repeats", type=int, default=5, help="timed passes of each model (%(default)s)"
    )
    p.add_argument(
        "--out",
        type=Path,
        default=Path("runs/compare"),
        help="directory for compare.json and compare.md (%(default)s)",
    )
