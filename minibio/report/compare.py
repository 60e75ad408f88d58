"""Models side by side: one row a model, all measured here, alike (`eval.py compare`).

Size, masked-LM loss on the same held-out documents, entity scores of a fine-tuned directory of each
model, and the encoder's speed on the same batches, in turns.
"""

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
from minibio.report.figures import percent, table
from minibio.run import dist, files
from minibio.run.errors import InputError
from minibio.text.corpus import Corpus


def read_ner(directory: Path, run: Path) -> dict:
    """The word-level scores of a fine-tuned directory, which must have come from `run`."""
    record = files.read_json(directory / "ner.json")
    try:
        source, scores = Path(record["model"]).resolve().name, record["test"]["word"]
        scores = {name: float(scores[name]) for name in ("precision", "recall", "f1")}
    except (KeyError, TypeError, ValueError):
        raise InputError(f"{directory / 'ner.json'} holds no scores of `eval.py ner`") from None
    if source != run.resolve().name:
        raise InputError(
            f"{directory} was fine-tuned from {source!r}, expected {run.resolve().name!r}; "
            "name the --ner directories in the order of the runs"
        )
    return {f"ner_{name}": x for name, x in scores.items()}


def compare(args) -> None:
    """One row a model: size, held-out loss, entity scores, speed; all measured here, alike."""
    if args.ner and len(args.ner) != len(args.runs):
        raise InputError(f"{len(args.ner)} --ner directories for {len(args.runs)} runs")
    for name in ("compare.json", "compare.md"):
        files.check_writable(args.out / name)
    device = dist.pick_device(args.device)
    paths = [run / "run.json" for run in args.runs]
    records = [files.read_json(path) if path.exists() else {} for path in paths]
    rows = [
        {"name": name, "method": record.get("method")}
        for name, record in zip(plot.labels(args.runs), records, strict=True)
    ]
    for row, directory, run in zip(rows, args.ner, args.runs, strict=False):
        row.update(read_ner(directory, run))
    loaded = [load(run, head="mlm") for run in args.runs]
    models = [model.to(device) for model, _ in loaded]
    corpus = common_corpus(args, records, models)
    for _, tokenizer in loaded:
        if tokenizer is not None:
            corpus.check_tokenizer(tokenizer)
    batches = corpus.held_out_batches(32, limit=args.documents)
    speeds = tokens_per_second(models, batches, device, args.repeats)
    for row, model, speed in zip(rows, models, speeds, strict=True):
        row["parameters"] = model.n_parameters
        row["parameters_encoder"] = sum(p.numel() for p in model.encoder.parameters())
        row.update(held_out(model, batches, dist.Ranks(0, 0, 1, device)))
        row["tokens_per_s"] = round(speed)
    write_comparison(args.out, rows, {
        "machine": describe(device), "corpus": str(corpus.path), "length": corpus.length,
        "documents": sum(batch.B for batch in batches),
    })  # fmt: skip


def common_corpus(args, records: list[dict], models: list[Model]) -> Corpus:
    """The held-out documents that all models are measured on, cut to what all of them can read.

    Raises:
        InputError: no run says what it was trained on, and --corpus is not given.
    """
    named = [record["corpus"] for record in records if "corpus" in record]
    if args.corpus is None and not named:
        raise InputError("no run names a corpus to measure on; pass --corpus DIR")
    lengths = [record["length"] for record in records if "length" in record]
    length = args.length or min(lengths, default=256)
    length = min(length, *(model.config.P for model in models))
    return Corpus(args.corpus or named[0], "held-out", seed=0, length=length)


def tokens_per_second(models: list[Model], batches, device, repeats: int) -> list[float]:
    """Inference speed of each encoder on the same batches, by the median pass, in turns."""
    few = [batch.to(device) for batch in batches[:: max(1, len(batches) // 8)]]  # all lengths
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
    """compare.json for programs, compare.md for people, and the same table on the terminal."""
    head = ["model", "parameters", "of the encoder", "held-out loss", "NER P", "NER R", "NER F1",
            "tokens/s"]  # fmt: skip
    body = [
        [row["name"], f"{row['parameters']:,}", f"{row['parameters_encoder']:,}",
         f"{row['mlm_loss']:.4f}",
         *(percent(row.get(f"ner_{name}")) for name in ("precision", "recall", "f1")),
         f"{row['tokens_per_s']:,}"]
        for row in rows
    ]  # fmt: skip
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
