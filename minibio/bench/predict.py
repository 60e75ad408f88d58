"""`python -m minibio bench predict`: documents a second from file to file, beside other ways.

    minibio       what `eval.py predict` does: sentences by length in batches of real tokens
    transformers  its token-classification pipeline on whole documents, in windows where one is too
                  long; a word has its first piece's tag, as ours do (aggregation "first"); batches
                  of the size that was fastest on the first documents
    onnxruntime   ours with its model replaced by the graph of transformers' in fp32, and in the
                  int8 of quantize_dynamic; batches are padded, and hardly: they are by length

All have the same weights, read the same lines and write the same form; a rival that is not
installed is left out. Loading is not timed. The documents are dealt out in parts, and all systems
answer one before the next, so that a change of the machine's speed meets them all.

    f1    of entities by their characters, where the input is a set of tagged words; its sentences
          are joined by tens into documents
    same  F1 of a system's entities against those of the first row
"""

import json
import logging
import tempfile
from collections.abc import Callable, Collection, Iterator, Sequence
from importlib.util import find_spec
from itertools import chain, islice, pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import NamedTuple

import numpy as np
import torch
import torch.nn as nn

from kernels.bench.timing import Table, milliseconds, rounded
from minibio.batch import Batch
from minibio.report.paired import f1, kinds, without_types
from minibio.report.scores import percent
from minibio.run.errors import InputError
from minibio.tasks import ner, tags
from minibio.tasks.documents import SAMPLE, kind_of, read_items
from minibio.tasks.formats import output
from minibio.tasks.predict import Predictor, predict
from minibio.tasks.reading import read_lines

JOINED = 10  # sentences of a document, where the input is a set of sentences
PARTS = 8  # at most; each is answered by every system before the next
WARM = 16  # documents of the call before those that are timed
SIZES = (1, 4, WARM)  # of the pipeline's batches; the fastest is taken
STRIDE = 128  # tokens that the pipeline's windows share
NEEDED = {"transformers": ("transformers",), "onnxruntime": ("onnxruntime", "onnx", "onnxscript")}

Entity = tuple[int, int, int, str]  # which document, its characters from and to, type


class System(NamedTuple):
    """A way from a file of lines to a file of answers."""

    by: str
    precision: str
    answer: Callable[[Path, Path], object]  # input, output


# texts


def read_set(path: Path) -> tuple[list[str], set[Entity] | None]:
    """Lines that `predict` reads, and the entities that are in them; None where none are tagged.

    Args:
        path: a file of lines, or of tagged words; or a directory with such a test.tsv.
    """
    path = path / "test.tsv" if path.is_dir() else path
    lines = (line for _, line in read_lines(path, "text"))
    sample = list(islice(lines, SAMPLE))
    if not isinstance(kind_of(sample, "token", str(path)), ner.Layout):
        return [line for line in chain(sample, lines) if line.strip()], None
    sentences, texts, gold = ner.read_tsv(path), [], set()
    for first in range(0, len(sentences), JOINED):
        spans, at = [], 0
        ten = sentences[first : first + JOINED]
        for word in (word for s in ten for word in s.words):
            spans.append((at, at + len(word)))
            at += len(word) + 1
        shift = 0
        for s in ten:
            for kind, a, b in tags.entities(s.tags):
                gold.add((len(texts), spans[shift + a][0], spans[shift + b][1], kind))
            shift += len(s.words)
        texts.append(json.dumps({"text": " ".join(word for s in ten for word in s.words)}))
    return texts, gold


def entities_in(paths: Sequence[Path]) -> set[Entity]:
    """The entities in answers, the documents of all files in a row."""
    lines = chain.from_iterable(path.read_text("utf-8").splitlines() for path in paths)
    return {
        (i, e["start"], e["end"], e["type"])
        for i, line in enumerate(lines)
        for e in json.loads(line)["entities"]
    }


def overlap(found: set, gold: set) -> float:
    """F1 of the entities found; 0 of nothing."""
    return float(f1(np.array([len(found & gold), len(found), len(gold)])))


# systems


def ours(p: Predictor, path: Path, out: Path) -> None:
    """Predict as `eval.py predict PATH --out OUT`."""
    with output(out, "json", str(path)) as write:
        for item, answer in predict(p, path):
            write(item, answer)


def missing(by: str) -> str:
    """The package that keeps a rival from being measured; "" where none does."""
    return next((name for name in NEEDED[by] if find_spec(name) is None), "")


def their_model(p: Predictor) -> nn.Module:
    """The same model as transformers loads it, with our names of its tags."""
    from transformers import AutoModelForTokenClassification, utils

    utils.logging.set_verbosity_error()
    utils.logging.disable_progress_bar()
    model = AutoModelForTokenClassification.from_pretrained(p.path, dtype=torch.float32)
    typed = {k: tag if tag == "O" or "-" in tag else f"{tag}-{ner.UNTYPED}"
             for k, tag in enumerate(p.tags)}  # fmt: skip
    model.config.id2label = typed  # its pipeline groups no others
    return model.eval()


class TheirPipeline:
    """transformers' pipeline from file to file."""

    def __init__(self, p: Predictor):
        from transformers import AutoTokenizer, pipeline

        tokenizer = AutoTokenizer.from_pretrained(
            p.path, model_max_length=p.length, model_input_names=["input_ids", "attention_mask"]
        )
        self.pipe = pipeline(
            "token-classification",
            model=their_model(p),
            tokenizer=tokenizer,
            aggregation_strategy="first",
            stride=min(STRIDE, p.length // 4),
            device=p.device,
        )
        self.batch = 1

    def __call__(self, path: Path, out: Path) -> None:
        with output(out, "json", str(path)) as write:
            items = list(read_items(path, "token"))
            texts = [item.text for item in items]
            for item, found in zip(items, self.pipe(texts, batch_size=self.batch), strict=True):
                entities = [
                    {"type": e["entity_group"], "start": (start := int(e["start"])),
                     "end": (end := int(e["end"])), "text": item.text[start:end],
                     "probability": float(e["score"])}
                    for e in found
                ]  # fmt: skip
                write(item, {**item.given, "text": item.text, "entities": entities})

    def choose_batch(self, path: Path, out: Path, device: torch.device) -> None:
        """Take the size of `SIZES` that is fastest on a file."""

        def call(size: int) -> list[Callable]:
            def answer() -> None:
                self.batch = size
                self(path, out)

            return [answer]

        times = milliseconds([call(size) for size in SIZES], device, 1, warmup=0)
        self.batch = SIZES[int(np.argmin([laps.sum() for laps in times]))]


class Graph(nn.Module):
    """A graph of onnxruntime in the place of the model: a batch to logits, padded within."""

    def __init__(self, path: Path):
        super().__init__()
        from onnxruntime import InferenceSession, SessionOptions

        options = SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        self.session = InferenceSession(path, options, providers=["CPUExecutionProvider"])

    def forward(self, batch: Batch) -> SimpleNamespace:
        mask = batch.pad(torch.ones_like(batch.tokens))  # (B, T)
        given = {"input_ids": batch.pad(batch.tokens).numpy(), "attention_mask": mask.numpy()}
        (logits,) = self.session.run(None, given)  # (B, T, K)
        return SimpleNamespace(logits=torch.from_numpy(logits)[mask.bool()])  # (N, K)


class Logits(nn.Module):
    """transformers' model as a function of two tensors, for the exporter."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model

    def forward(self, input_ids, attention_mask):
        return self.model(input_ids=input_ids, attention_mask=attention_mask).logits


def graphs(p: Predictor, folder: Path) -> dict[str, Path]:
    """{precision: graph} of transformers' model, written to `folder`."""
    from onnxruntime.quantization import quantize_dynamic

    paths = {precision: folder / f"{precision}.onnx" for precision in ("fp32", "int8")}
    tokens = torch.full((2, 8), p.tokenizer.cls_id)  # (B, T)
    any_size = {0: torch.export.Dim.DYNAMIC, 1: torch.export.Dim.DYNAMIC}
    logging.disable(logging.WARNING)  # of what the graph does without
    try:
        torch.onnx.export(
            Logits(their_model(p)).eval(),
            (tokens, torch.ones_like(tokens)),
            paths["fp32"],
            input_names=["input_ids", "attention_mask"],
            dynamic_shapes=[any_size, any_size],
            dynamo=True,
            verbose=False,
        )
        quantize_dynamic(paths["fp32"], paths["int8"])
    finally:
        logging.disable(logging.NOTSET)
    return paths


def rivals(p: Predictor, names: Collection[str], warm: Path, folder: Path) -> Iterator[System]:
    """Those that are asked for and installed; a line for each that is not."""
    for by in names:
        reason = f"{lacks} is not installed" if (lacks := missing(by)) else ""
        if by == "onnxruntime" and p.device.type != "cpu":
            reason = "it is compared on a CPU only"
        if reason:
            print(f"without {by}: {reason}")
        elif by == "transformers":
            pipeline = TheirPipeline(p)
            pipeline.choose_batch(warm, folder / "warm.out", p.device)
            print(f"transformers: batches of {pipeline.batch}, the fastest of {SIZES}")
            yield System(by, "fp32", pipeline)
        else:
            for precision, path in graphs(p, folder).items():
                replaced = Predictor(p.path, p.B, p.device, "fp32")
                replaced.model = Graph(path)
                yield System(by, precision, lambda *x, q=replaced: ours(q, *x))


# all together


def speeds(
    directory: Path,
    data: Path,
    documents: int | None,
    precisions: Sequence[str],
    by: Collection[str],
    B: int,
    device: torch.device,
    table: Table,
) -> None:
    """Measure every system and add a row for each.

    Args:
        directory: a fine-tuned tagger.
        documents: the first of `data`; None = all.
        by:        rivals, of `NEEDED`.
    Raises:
        InputError: it is not a tagger, `data` holds nothing, or types that the model lacks.
    """
    mine = [Predictor(directory, B, device, precision) for precision in precisions]
    if mine[0].head != "token":
        raise InputError(f"{directory} is not a tagger, expected a directory of `eval.py ner`")
    lines, gold = read_set(data)
    lines = lines[:documents]
    if not lines:
        raise InputError(f"{data} has no text, expected a line for each document")
    strip = False
    if gold is not None:
        gold = {e for e in gold if e[0] < len(lines)}
        strip = without_types(kinds(f"B-{e[3]}" for e in gold), kinds(mine[0].tags), data)
    with tempfile.TemporaryDirectory() as name:
        folder, n = Path(name), min(PARTS, len(lines))
        parts = [folder / f"part-{i}.jsonl" for i in range(n)]
        warm = folder / "warm.jsonl"
        cuts = [(0, WARM), *pairwise(len(lines) * i // n for i in range(n + 1))]
        for path, (start, end) in zip([warm, *parts], cuts, strict=True):
            path.write_text("".join(line + "\n" for line in lines[start:end]), "utf-8")
        systems = [System("minibio", p.precision, lambda *x, p=p: ours(p, *x)) for p in mine]
        systems += rivals(Predictor(directory, B, device, "fp32"), by, warm, folder)
        outs = [[folder / f"{i}-{k}.out" for i in range(n)] for k in range(len(systems))]
        calls = [
            in_turn(system.answer, [(warm, folder / "warm.out"), *zip(parts, own, strict=True)])
            for system, own in zip(systems, outs, strict=True)
        ]
        times = milliseconds([[call] for call in calls], device, n, warmup=1)
        found = [entities_in(own) for own in outs]
    seconds = {k: laps.sum() / 1000 for k, laps in enumerate(times)}
    baseline = next((s for k, s in seconds.items() if systems[k].by == "transformers"), None)
    for k, system in enumerate(systems):
        said = {(*e[:3], "") for e in found[k]} if strip else found[k]
        right = {(*e[:3], "") for e in gold} if strip else gold
        row = {
            "model": directory.name,
            "by": system.by,
            "precision": system.precision,
            "documents": len(lines),
            "seconds": rounded(seconds[k]),
            "documents_per_s": rounded(len(lines) / seconds[k]),
            "speedup": None if baseline is None else rounded(baseline / seconds[k], 3),
            "f1": None if gold is None else round(overlap(said, right), 6),
            "same": round(overlap(found[k], found[0]), 6),
        }
        table.add(row, line_of(row))


def in_turn(answer: Callable, pairs: Sequence[tuple[Path, Path]]) -> Callable[[], None]:
    """A call that answers the next of the files each time."""
    left = iter(pairs)

    def call() -> None:
        answer(*next(left))

    return call


def line_of(row: dict) -> str:
    """One row, for the terminal."""
    said = f"   F1 {percent(row['f1'])}" if row["f1"] is not None else ""
    speedup = "" if row["speedup"] is None else f"   x {row['speedup']}"
    return (
        f"{row['by']:<14}{row['precision']:<6}{row['documents']:>8,} documents"
        f"{row['seconds']:>10,.1f} s{row['documents_per_s']:>9,.1f} /s{speedup}{said}"
        f"   same {percent(row['same'])}"
    )
