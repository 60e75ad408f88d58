"""Fine-tune on the paper's tasks, score, and set models side by side (section 5).

    python eval.py ner --model runs/tiny --data runs/sample/text/ner --out runs/tiny-ner
    python eval.py compare runs/teacher runs/tiny runs/scratch --ner runs/teacher-ner ...

`ner` learns from train.tsv, watches devel.tsv, chooses nothing, and scores test.tsv once, at the
end. Read `run_ner` first: it is the whole experiment, top to bottom.
"""

import argparse
import dataclasses
import math
import os
import time
from functools import partial
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

import minibio
from kernels.machine import describe, version
from minibio import dist, errors, files, log, optim, plot
from minibio.bench import milliseconds
from minibio.convert import load, save
from minibio.corpus import Corpus
from minibio.errors import InputError
from minibio.heads import Model
from minibio.measure import autocast, held_out
from minibio.metrics import entity_scores, seqeval
from minibio.speed import add_arguments as add_speed
from minibio.tables import add_arguments as add_table
from minibio.tasks import ner


@dataclasses.dataclass(frozen=True)
class Recipe:
    """How a task is learnt: section 5, and where it is silent the released ner.py (F48, F49)."""

    epochs: int = 5
    batch: int = 16  # sentences
    lr: float = 5e-5  # "in a few cases" 3e-5; which ones is not recorded
    schedule: str = "cosine"  # without warm-up
    weight_decay: float = 0.01
    clip: float = 1.0  # largest gradient norm: the authors' trainer's default
    length: int = 512  # tokens of the longest window
    seed: int = 42
    precision: str = "fp32"


def fine_tune(model: Model, windows, recipe: Recipe, device, journal, watch) -> None:
    """AdamW on the tags of all pieces, windows shuffled anew each epoch.

    Args:
        windows: of the training sentences.
        watch:   () -> figures to log after each epoch; nothing is chosen by them.
    Raises:
        InputError: the loss is not finite.
    """
    n_batches = math.ceil(len(windows) / recipe.batch)
    total = recipe.epochs * n_batches
    optimizer = optim.make_optimizer(model, recipe.lr, recipe.weight_decay)
    torch.manual_seed(recipe.seed)  # dropout
    bar = log.progress(total, "ner", dist.Ranks(0, 0, 1, device))
    for epoch in range(recipe.epochs):
        began, loss_sum = time.perf_counter(), 0.0
        rng = np.random.Generator(np.random.Philox(key=[recipe.seed, epoch]))
        order = rng.permutation(len(windows))
        model.train()
        for i in range(n_batches):
            chosen = [windows[j] for j in order[i * recipe.batch : (i + 1) * recipe.batch]]
            chosen.sort(key=lambda window: len(window.tokens))  # equal lengths are neighbours
            batch = ner.collate(chosen, model.labels).to(device)
            lr = optim.lr_at(
                epoch * n_batches + i,
                peak=recipe.lr, warmup=0, total=total, schedule=recipe.schedule,
            )  # fmt: skip
            for group in optimizer.param_groups:
                group["lr"] = lr
            with autocast(recipe.precision, device):
                logits = model(batch).logits[batch.predict]  # (M, K)
            loss = F.cross_entropy(logits.float(), batch.labels)  # nats per piece
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), recipe.clip)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            loss_sum += loss.detach()  # stays on the device until the epoch ends
            bar.update()
        mean = float(loss_sum) / n_batches
        if not math.isfinite(mean):
            raise InputError(f"the loss is {mean} in epoch {epoch + 1}; lower --lr")
        figures = watch()
        bar.set_postfix_str(f"loss {mean:.4f}")
        journal.write(
            {"event": "epoch", "epoch": epoch + 1, "step": (epoch + 1) * n_batches, "loss": mean,
             **figures, "seconds": round(time.perf_counter() - began, 2)}
        )  # fmt: skip
    bar.close()


# named entities


def read_sets(directory: Path) -> dict[str, list[ner.Sentence]]:
    """train, test and, where there is one, devel.

    Raises:
        InputError: a file is missing or damaged, train holds no entity, or the tags of one file
            carry types and those of another do not.
    """
    names = ["train", "devel", "test"] if (directory / "devel.tsv").exists() else ["train", "test"]
    sets = {name: ner.read_tsv(directory / f"{name}.tsv") for name in names}
    labels = ner.label_names(sets["train"])
    if len(labels) == 1:
        raise InputError(f"{directory / 'train.tsv'} tags no entity, so there is nothing to learn")
    for name in names[1:]:
        new = sorted(set(ner.label_names(sets[name])) - set(labels))
        if any(("-" in tag) != ("-" in labels[1]) for tag in new):
            raise InputError(
                f"{directory / name}.tsv has the tag {new[0]!r}, train.tsv {labels[1]!r}: "
                "expected types in both or in neither"
            )
        if new:
            print(f"{name}.tsv has tags that train.tsv lacks, which count as missed: {new}")
    return sets


def start_from(directory: Path, labels: tuple[str, ...], seed: int):
    """A trained encoder under a token head drawn from the seed, and its tokenizer.

    The head is always fresh: one that the directory may hold has learnt other labels, or these in
    another order.
    """
    source, tokenizer = load(directory, head="encoder")
    if tokenizer is None:
        raise InputError(
            f"{directory} has no tokenizer; put the vocab.txt or tokenizer.json of the model there"
        )
    torch.manual_seed(seed)
    model = Model(source.config, "token", labels)
    model.encoder = source.encoder
    return model.float(), tokenizer


def score(model: Model, windows, sentences, recipe: Recipe, device) -> dict:
    """Entity scores over words, and over pieces as the released code counts (F45)."""
    context = partial(autocast, recipe.precision, device)
    found = ner.predict(model, windows, model.labels, 2 * recipe.batch, device, context)
    words, pieces = ner.rejoin(windows, found)
    _, gold_pieces = ner.rejoin(windows, [window.tags for window in windows])
    return {
        "word": entity_scores([s.tags for s in sentences], words),
        "piece": entity_scores(gold_pieces, pieces),
    }


def run_ner(args) -> None:
    """Fine-tune on train.tsv, score test.tsv, write a directory that transformers loads."""
    fields = [field.name for field in dataclasses.fields(Recipe)]
    recipe = Recipe(**{name: getattr(args, name) for name in fields})
    if recipe.length < 3:
        raise InputError(f"--length is {recipe.length}, expected at least 3: [CLS], a piece, [SEP]")
    seqeval()  # asked for now rather than after the training
    device = dist.pick_device(args.device)
    sets = read_sets(args.data)
    labels = ner.label_names(sets["train"])
    model, tokenizer = start_from(args.model, labels, recipe.seed)
    recipe = dataclasses.replace(recipe, length=min(recipe.length, model.config.P))
    windows = {name: ner.make_windows(x, tokenizer, recipe.length) for name, x in sets.items()}
    counts = {
        name: {"sentences": len(x), "words": sum(len(s.words) for s in x),
               "windows": len(windows[name]), "pieces": sum(len(w.words) for w in windows[name])}
        for name, x in sets.items()
    }  # fmt: skip
    out = args.out or Path("runs") / f"ner-{args.data.resolve().name}-{args.model.resolve().name}"
    began = time.perf_counter()
    with files.staged_dir(out, overwrite=args.overwrite) as staged:
        facts = {"task": "ner", "model": str(args.model), "data": str(args.data)}
        facts |= {"config": dataclasses.asdict(recipe), "labels": labels, "counts": counts}
        show(f"{out}: {args.model} learns {args.data}", {**facts["config"], "device": device})
        show("counts", {name: ", ".join(f"{n:,} {what}" for what, n in row.items())
                        for name, row in counts.items()})  # fmt: skip
        model.to(device)

        def watch():
            if "devel" not in sets:
                return {}
            scores = score(model, windows["devel"], sets["devel"], recipe, device)
            return {"devel_word_f1": scores["word"]["f1"], "devel_piece_f1": scores["piece"]["f1"]}

        with log.RunLog(staged / "log.jsonl", dist.Ranks(0, 0, 1, device)) as journal:
            journal.write({"event": "start", **facts})
            fine_tune(model, windows["train"], recipe, device, journal, watch)
            scores = score(model, windows["test"], sets["test"], recipe, device)
            seconds = round(time.perf_counter() - began, 1)
            journal.write({"event": "end", "test": scores, "seconds": seconds})
        save_with(model.cpu().eval(), tokenizer, staged)
        versions = {"minibio": minibio.__version__, "torch": torch.__version__}
        versions |= {name: version(name) for name in ("seqeval", "tokenizers")}
        record = {**facts, "test": scores, "versions": versions, "seconds": seconds}
        files.write_json(staged / "ner.json", record)
    print_scores(scores)
    print(f"{out}: a Hugging Face directory, with ner.json and log.jsonl; {seconds} s")


def save_with(model: Model, tokenizer, directory: Path) -> None:
    """The model's files into a directory that holds others."""
    save(model, tokenizer, directory / "model")
    for file in sorted((directory / "model").iterdir()):
        os.replace(file, directory / file.name)
    (directory / "model").rmdir()


def print_scores(scores: dict) -> None:
    """The main figure first; what must not be set beside it is named so."""
    word, piece = scores["word"], scores["piece"]
    rows = [("entities by words", word)]
    if len(word["per_type"]) > 1:
        rows += [(f"  {kind}", row) for kind, row in word["per_type"].items()]
    rows += [("by word pieces *", piece)]
    head = ["test.tsv", "precision", "recall", "F1", "entities"]
    body = [[name, *(percent(row[k]) for k in ("precision", "recall", "f1")),
             f"{row['support']:,}"] for name, row in rows]  # fmt: skip
    print("\n" + table(head, body))
    print("* as the paper's code counts; differs by tokenizer, never comparable with words (F45)\n")


# models side by side


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


def run_compare(args) -> None:
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


# the terminal


def percent(x: float | None) -> str:
    return "-" if x is None else f"{100 * x:.2f}"


def table(head: list[str], body: list[list[str]]) -> str:
    """Markdown that lines up on a terminal too: first column left, numbers right."""
    widths = [max(len(row[i]) for row in [head, *body]) for i in range(len(head))]

    def line(row):
        first, *rest = zip(row, widths, strict=True)
        cells = [f"{first[0]:<{first[1]}}", *(f"{cell:>{w}}" for cell, w in rest)]
        return f"| {' | '.join(cells)} |"

    rule = ["-" * widths[0], *("-" * (w - 1) + ":" for w in widths[1:])]
    return "\n".join(map(line, [head, rule, *body]))


def show(title: str, rows: dict) -> None:
    """Two columns."""
    print(f"\n{title}")
    for name, value in rows.items():
        print(f"  {name:<16} {value}", flush=True)


def parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser("eval.py", description=__doc__.split("\n")[0])
    commands = p.add_subparsers(dest="command", required=True)

    g = commands.add_parser("ner", help="named entities: fine-tune, score, save")
    g.set_defaults(run=run_ner)
    g.add_argument("--model", type=Path, required=True, help="Hugging Face directory to start from")
    g.add_argument("--data", type=Path, required=True,
                   help="directory of train.tsv, test.tsv and, if wanted, devel.tsv")  # fmt: skip
    g.add_argument("--out", type=Path, help="directory to write (default: runs/ner-DATA-MODEL)")
    g.add_argument("--overwrite", action="store_true", help="replace --out")
    add_recipe(g)

    g = commands.add_parser("compare", help="a table of runs: size, loss, entity F1, speed")
    g.set_defaults(run=run_compare)
    g.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="directory of train.py")
    g.add_argument("--ner", nargs="+", type=Path, default=[], metavar="DIR",
                   help="directories of `eval.py ner`, in the order of the runs")  # fmt: skip
    g.add_argument("--corpus", type=Path, help="token shards (default: those of the first run)")
    g.add_argument(
        "--documents", type=positive, default=1024, help="held-out documents to measure on"
    )
    g.add_argument(
        "--length", type=positive, help="tokens of the longest document (default: the runs')"
    )
    g.add_argument(
        "--repeats", type=positive, default=5, help="timed passes of each model, in turns"
    )
    g.add_argument("--out", type=Path, default=Path("runs/compare"),
                   help="directory for compare.json and compare.md")  # fmt: skip
    g = commands.add_parser("speed", help="Figure 2: latency, throughput, memory, size on disk")
    add_speed(g)

    g = commands.add_parser("table", help="Tables 1 to 6, from runs of ner, relation and qa")
    add_table(g)

    for g in commands.choices.values():
        g.add_argument("--device", help="cuda, cpu (default: cuda if there is one)")
        g.add_argument("--threads", type=positive, help="of the CPU (default: torch's own choice)")
    return p


def add_recipe(g: argparse.ArgumentParser) -> None:
    """The options of fine-tuning; defaults are the paper's."""
    r = Recipe()
    g.add_argument("--epochs", type=positive, default=r.epochs, help="default %(default)s")
    g.add_argument("--batch", type=positive, default=r.batch, help="sentences (%(default)s)")
    g.add_argument("--lr", type=float, default=r.lr, help="peak learning rate (%(default)s)")
    g.add_argument("--schedule", choices=optim.SCHEDULES, default=r.schedule)
    g.add_argument("--weight-decay", type=float, default=r.weight_decay)
    g.add_argument("--clip", type=float, default=r.clip, help="largest gradient norm (%(default)s)")
    g.add_argument(
        "--length", type=int, default=r.length,
        help="tokens of the longest window (%(default)s); a longer sentence takes several",
    )  # fmt: skip
    g.add_argument("--seed", type=natural, default=r.seed)
    g.add_argument("--precision", choices=("fp32", "bf16"), default=r.precision)


def natural(text: str) -> int:
    """An argparse type: 0, 1, 2, ..."""
    if int(text) < 0:
        raise ValueError
    return int(text)


def positive(text: str) -> int:
    """An argparse type: 1, 2, 3, ..."""
    if int(text) < 1:
        raise ValueError
    return int(text)


def main(argv=None) -> None:
    args = parser().parse_args(argv)
    torch.use_deterministic_algorithms(True)
    torch.utils.deterministic.fill_uninitialized_memory = False  # a debugging aid, not a need
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    if args.threads:
        torch.set_num_threads(args.threads)
    args.run(args)


if __name__ == "__main__":
    errors.run(main, "eval.py")
