"""The one training loop. Read it from `main` at the bottom up, or `train` first.

    torchrun train.py --method tiny                          the built-in sample, start to end
    torchrun train.py --method mlm --model biobert --corpus DIR --out DIR
    torchrun --nproc-per-node 8 train.py --method tiny --teacher DIR --corpus DIR --out DIR

A method is a row of `METHODS` (minibio/config.py); any of its fields can be overridden here. With
no corpus named, the run uses the built-in sample: its texts, tokenizer, token shards and teacher
are made first if they are not there yet, and kept.
"""

import argparse
import dataclasses
import os
import time
from contextlib import nullcontext
from pathlib import Path

import torch
from torch.nn.parallel import DistributedDataParallel

import kernels
import minibio
from minibio import card, dist, errors, estimate, files, log, optim, students
from minibio.attention import use_kernels
from minibio.batch import Counts
from minibio.config import METHODS, MODELS, SAMPLE, SAMPLE_TEACHERS, STAGE_1, RunConfig
from minibio.convert import load, save
from minibio.corpus import Corpus
from minibio.distil import OBJECTIVES, teach
from minibio.errors import InputError
from minibio.heads import Model
from minibio.measure import autocast, held_out


def train_step(model, teacher, batches, optimizer, run, ranks):
    """One optimiser step over its micro-batches -> (terms of the loss, gradient norm, tokens).

    Denominators are counted over all micro-batches and processes before the first backward, so
    that the step does not depend on how its sequences are cut up.
    """
    totals = dist.all_sum(list(Counts.of(batches)), ranks)
    # / world: DistributedDataParallel takes the mean of the gradients, we want their sum
    counts = Counts(*(total / ranks.world for total in totals))
    objective = model.module if ranks.world > 1 else model
    terms = {}
    for i, batch in enumerate(batches):
        batch = batch.to(ranks.device)
        is_last = i == len(batches) - 1  # gradients are reduced once, with the last micro-batch
        with nullcontext() if is_last or ranks.world == 1 else model.no_sync():
            with autocast(run.precision, ranks.device):
                taught = None if teacher is None else teach(teacher, batch, objective)
                parts = model(batch, taught, counts)
            parts["loss"].backward()
        for name, x in parts.items():
            terms[name] = terms.get(name, 0) + x.detach()
    norm = torch.nn.utils.clip_grad_norm_(model.parameters(), run.clip)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return terms, norm, int(totals[0])


def train(run: RunConfig, corpus: Corpus, student: Model, teacher: Model | None,
          journal: log.RunLog, ranks: dist.Ranks, *, every: int, eval_every: int,
          accumulate: int) -> dict:  # fmt: skip
    """Train `student` and return what became of it: held-out figures, counts, seconds."""
    objective = OBJECTIVES[run.method](student, teacher, run).to(ranks.device).train()
    model = objective
    if ranks.world > 1:
        ids = [ranks.local] if ranks.device.type == "cuda" else None
        model = DistributedDataParallel(objective, device_ids=ids)
    optimizer = optim.make_optimizer(
        objective, run.lr, run.weight_decay, betas=run.betas, eps=run.adam_eps
    )
    batches_held_out = corpus.held_out_batches(run.batch, limit=256)
    if not batches_held_out:
        raise InputError(
            f"{corpus.path} has no held-out document to measure on; build the shards from more "
            f"documents, or with a larger --held-out"
        )
    torch.manual_seed(run.seed + ranks.rank)  # dropout; weights were drawn alike on all ranks
    journal.write({"event": "start", **dataclasses.asdict(run), "world": ranks.world})
    began = time.perf_counter()
    sums, n_tokens, all_tokens, training = {}, 0, 0, 0.0
    first = held_out(student, batches_held_out, ranks, run.precision)
    journal.write({"event": "held_out", "step": 0, **first})
    since = time.perf_counter()
    bar = log.progress(run.steps, run.method, ranks)
    for step in range(run.steps):
        lr = optim.lr_at(
            step, peak=run.lr, warmup=run.warmup, total=run.steps, schedule=run.schedule
        )
        for group in optimizer.param_groups:
            group["lr"] = lr
        batches = [
            corpus.batch(step, run.batch, ranks.rank, ranks.world, accumulate, micro)
            for micro in range(accumulate)
        ]
        terms, norm, n = train_step(model, teacher, batches, optimizer, run, ranks)
        n_tokens, all_tokens = n_tokens + n, all_tokens + n
        for name, x in {**terms, "grad_norm": norm}.items():
            sums[name] = sums.get(name, 0) + x  # stays on the device until the interval ends
        done = step + 1
        bar.update()
        if done % every == 0 or done == run.steps:
            now, k = time.perf_counter(), (done - 1) % every + 1
            means = dist.all_sum([float(x) for x in sums.values()], ranks)
            line = {n: x / k / ranks.world for n, x in zip(sums, means, strict=True)}
            if not all(map(torch.isfinite, map(torch.tensor, line.values()))):
                raise InputError(
                    f"the loss is not finite near step {done}: {line}; lower --lr or raise --warmup"
                )
            training += now - since
            rate = n_tokens / (now - since)
            journal.write(
                {"event": "train", "step": done, **line, "lr": lr, "tokens_per_s": round(rate)}
            )
            bar.set_postfix_str(f"loss {line['loss']:.4g}, lr {lr:.2e}, {rate:,.0f} tok/s")
            sums, n_tokens, since = {}, 0, now
        if done % eval_every == 0 and done < run.steps:
            figures = held_out(student, batches_held_out, ranks, run.precision)
            journal.write({"event": "held_out", "step": done, **figures})
            since = time.perf_counter()
    bar.close()
    last = held_out(student, batches_held_out, ranks, run.precision)
    seconds = time.perf_counter() - began
    journal.write({"event": "held_out", "step": run.steps, **last})
    journal.write({"event": "end", "seconds": round(seconds, 1), "tokens": all_tokens})
    return {
        "held_out_first": first, "held_out": last, "tokens": all_tokens,
        "seconds": round(seconds, 1), "tokens_per_s": round(all_tokens / training),
    }  # fmt: skip


def finish(student: Model, run: RunConfig, corpus: Corpus, out: Path, facts: dict) -> None:
    """The trained model as a Hugging Face directory, with its card, its record and its curves."""
    student = student.cpu().eval()
    with files.staged_dir(out / ".model", overwrite=True) as staged:
        save(student, corpus.tokenizer, staged, overwrite=True)
        record = {
            **dataclasses.asdict(run), **facts, "parameters": student.n_parameters,
            "parameters_encoder": sum(p.numel() for p in student.encoder.parameters()),
            "versions": {"torch": torch.__version__, "minibio": minibio.__version__},
        }  # fmt: skip
        files.write_json(staged / "run.json", record)
        (staged / "README.md").write_text(card.model_card(record, student.config), "utf-8")
    # config.json last: a directory without it is no model, so a killed move leaves none half there
    names = sorted(os.listdir(out / ".model"), key=lambda name: name == "config.json")
    for name in names:
        os.replace(out / ".model" / name, out / name)
    (out / ".model").rmdir()
    try:
        from minibio.plot import loss_curves

        loss_curves({out.name: out / "log.jsonl"}, out / "loss.png")
    except InputError as error:  # matplotlib is an extra
        print(f"no loss.png: {error}")


def report(name: str, rows: dict, changed: set[str] = frozenset()) -> None:
    """Two columns on rank 0's terminal; `*` marks what differs from the method's row."""
    dist.print0(f"\n{name}")
    for key, value in rows.items():
        dist.print0(f"  {'*' if key in changed else ' '} {key:<16} {value}")


def prepare_sample(directory: Path, ranks: dist.Ranks) -> Path:
    """The built-in sample's texts, tokenizer and token shards; made once, kept in `directory`."""
    shards = directory / "shards"
    if ranks.rank == 0 and not (shards / "meta.json").exists():
        from data.sample import make_sample
        from data.shard import shard

        dist.print0(f"sample: making texts and token shards in {directory}")
        make_sample(directory / "text", force=True)
        shard(
            [directory / "text" / "corpus.jsonl"], None, shards,
            length=SAMPLE["mlm"]["length"], train_tokenizer=MODELS["sample-teacher"].V,
        )  # fmt: skip
    dist.barrier(ranks)
    return shards


def sample_teacher(directory: Path, args, ranks: dist.Ranks) -> Path:
    """The sample's teacher: trained by masked LM if there is none yet, kept in `directory`."""
    row = SAMPLE_TEACHERS[args.method]
    name = "ib-teacher" if MODELS[row.model].family == "ib-bert" else "teacher"
    path = directory / f"{name}-{args.seed if args.seed is not None else row.seed}"
    if (path / "config.json").exists():
        dist.print0(f"teacher: {path}, trained earlier (remove the directory to train it anew)")
    else:
        dist.print0(f"teacher: there is none yet; training one by masked LM in {path}")
        options = argparse.Namespace(**{**vars(args), **NO_OVERRIDES, "seed": args.seed})
        options.method, options.teacher, options.out, options.start = "mlm", None, path, None
        options.model, options.overwrite, options.accumulate = None, True, 1
        execute(row, options, ranks)
    return path


def resolve(args, row: RunConfig) -> RunConfig:
    """A row of the table with the command line's overrides."""
    given = {f.name: getattr(args, f.name, None) for f in dataclasses.fields(RunConfig)}
    given = {name: value for name, value in given.items() if value is not None}
    if "steps" in given and "warmup" not in given:  # the same share of a shorter run
        given["warmup"] = round(row.warmup * given["steps"] / row.steps)
    if given.get("model", row.model) not in MODELS:
        raise InputError(f"--model is {given['model']!r}, expected one of {', '.join(MODELS)}")
    run = dataclasses.replace(row, **given)
    for name in ("steps", "batch", "length"):
        if getattr(run, name) < 1:
            raise InputError(f"--{name} is {getattr(run, name)}, expected at least 1")
    return run


def build_student(run: RunConfig, args, corpus: Corpus, teacher: Model | None) -> Model:
    """The model to be trained, in the shape that the command line asks for."""
    shape = {"L": args.layers, "C": args.width, "H": args.heads, "F": args.ffn}
    shape = {k: v for k, v in shape.items() if v is not None}
    return students.build_student(run, corpus, teacher, start=args.start, shape=shape)


def execute(row: RunConfig, args, ranks: dist.Ranks) -> None:
    """One run from its row of the table to its directory."""
    run = resolve(args, row)
    if args.start is not None:
        run = dataclasses.replace(run, model=args.start.resolve().name)
    out = args.out
    if not args.dry_run:
        if (out / "config.json").exists() and not args.overwrite:
            raise InputError(f"{out} already holds a model; name another --out or pass --overwrite")
        files.check_writable(out)
    corpus = Corpus(args.corpus, "train", seed=run.seed, length=run.length)
    teacher = None
    if run.method != "mlm":
        teacher, tokenizer = load(args.teacher, head="mlm")
        if tokenizer is not None:
            corpus.check_tokenizer(tokenizer)
        teacher.requires_grad_(False).to(ranks.device)
    student = build_student(run, args, corpus, teacher)
    changed = {f.name for f in dataclasses.fields(RunConfig)
               if getattr(run, f.name) != getattr(METHODS[run.method], f.name)}  # fmt: skip
    report(f"run (* differs from METHODS[{run.method!r}])", dataclasses.asdict(run), changed)
    facts = {
        "corpus": str(args.corpus), "documents": corpus.n_documents, "teacher": str(args.teacher),
        "start": str(args.start), "processes": ranks.world, "accumulate": args.accumulate,
    }  # fmt: skip
    for model in (student, teacher) if teacher is not None else (student,):
        use_kernels(model, args.kernels)
    chosen = {
        op: "{} ({})".format(*kernels.resolve_impl(op, args.kernels, ranks.device))
        for op in kernels.IMPLEMENTATIONS
    }
    report("data and device", {**facts, "device": ranks.device, **chosen, "out": out})
    if args.dry_run:
        objective = OBJECTIVES[run.method](student, teacher, run)
        report("estimate", estimate.estimate(objective, teacher, run, corpus, ranks))
        return
    out.mkdir(parents=True, exist_ok=True)
    with log.RunLog(out / "log.jsonl", ranks) as journal:
        facts |= train(
            run, corpus, student.to(ranks.device), teacher, journal, ranks,
            every=args.log_every or max(1, run.steps // 100),
            eval_every=args.eval_every or max(1, run.steps // 10), accumulate=args.accumulate,
        )  # fmt: skip
    if ranks.rank == 0:
        finish(student, run, corpus, out, facts)
    dist.barrier(ranks)
    report(f"{out}: a Hugging Face directory", {
        "held-out loss": f"{facts['held_out_first']['mlm_loss']:.4f} -> "
                         f"{facts['held_out']['mlm_loss']:.4f} nats per masked token",
        "held-out accuracy": f"{facts['held_out']['accuracy']:.2%}",
        "tokens per second": f"{facts['tokens_per_s']:,}",
        "seconds": facts["seconds"],
    })  # fmt: skip


def numbers(kind):
    """An argparse type: `1,5,3`, or `none` for ()."""

    def parse(text):
        return () if text == "none" else tuple(kind(x) for x in text.split(","))

    parse.__name__ = "numbers"
    return parse


def parser() -> argparse.ArgumentParser:
    """Every option; None means the method's own value."""
    p = argparse.ArgumentParser("train.py", description=__doc__.split("\n")[0])
    p.add_argument("--method", choices=METHODS, required=True, help="row of METHODS")
    g = p.add_argument_group("what")
    g.add_argument("--corpus", type=Path, help="token shards of `python -m data.shard`")
    g.add_argument("--teacher", type=Path, help="Hugging Face directory with a masked-LM head")
    g.add_argument("--out", type=Path, help="directory of the run (default: runs/METHOD)")
    g.add_argument("--overwrite", action="store_true", help="replace the model in --out")
    g.add_argument("--model", help=f"architecture: {', '.join(MODELS)}")
    g.add_argument("--from", dest="start", type=Path, help="directory to start the weights from")
    g.add_argument("--layers", type=int, help="of the model, instead of its row's")
    g.add_argument("--width", type=int, help="likewise")
    g.add_argument("--heads", type=int, help="likewise")
    g.add_argument("--ffn", type=int, help="likewise")
    g.add_argument("--sample", type=Path, default=Path("runs/sample"),
                   help="where the built-in sample and its teacher are kept")  # fmt: skip
    g = p.add_argument_group("objective")
    g.add_argument("--fidelity", choices=("paper", "released"))
    g.add_argument("--alpha", type=numbers(float), help="weights of Eq. 4, 11 or 13: 2,5,1")
    g.add_argument("--temperature", type=float, help="of the soft labels")
    g.add_argument("--layer-map", type=numbers(int), help="teacher layers, from 1: 3,6,9,12")
    g.add_argument("--init-layers", type=numbers(int), help="teacher layers, from 0, or none")
    g.add_argument("--init-head", choices=("copy", "fresh"),
                   help="masked-LM head: the teacher's, or a fresh one")  # fmt: skip
    g.add_argument("--stages", type=float, nargs="?", const=STAGE_1, metavar="SHARE",
                   help="mobile in MobileBERT's own two stages; SHARE of the steps goes to the "
                        f"first, layer by layer (default: {STAGE_1:.3f})")  # fmt: skip
    g = p.add_argument_group("training")
    g.add_argument("--steps", type=int, help="optimiser steps")
    g.add_argument("--batch", type=int, help="sequences a step, all processes together")
    g.add_argument("--accumulate", type=int, default=1, help="micro-batches a step")
    g.add_argument("--length", type=int, help="tokens of the longest sequence")
    g.add_argument("--lr", type=float, help="peak learning rate")
    g.add_argument("--warmup", type=int, help="steps")
    g.add_argument("--schedule", choices=("linear", "cosine", "wsd"))
    g.add_argument("--weight-decay", type=float)
    g.add_argument("--clip", type=float, help="largest gradient norm")
    g.add_argument("--seed", type=int)
    g.add_argument("--precision", choices=("fp32", "bf16"))
    g.add_argument("--device", help="cuda, cpu (default: cuda if there is one)")
    g.add_argument("--kernels", choices=("auto", "reference", "torch", "triton"), default="auto",
                   help="of attention and the losses (default: auto)")  # fmt: skip
    g.add_argument("--log-every", type=int, help="steps (default: a hundredth of the run)")
    g.add_argument("--eval-every", type=int, help="steps (default: a tenth of the run)")
    g.add_argument("--dry-run", action="store_true",
                   help="print parameters, operations, time and memory; train nothing")  # fmt: skip
    return p


# what the sample's teacher does not take from the command line of its student's run
NO_OVERRIDES = {
    name: None for name in (
        "steps", "batch", "length", "lr", "warmup", "schedule", "weight_decay", "clip", "fidelity",
        "alpha", "temperature", "layer_map", "init_layers", "init_head", "stages", "layers",
        "width", "heads", "ffn",
    )
}  # fmt: skip


def check(args) -> None:
    """What can be refused before anything is read."""
    needs_teacher = args.method != "mlm"
    if args.teacher and not needs_teacher:
        raise InputError("--method mlm has no teacher; drop --teacher, or choose another method")
    if needs_teacher and args.corpus and not args.teacher:
        raise InputError(f"--method {args.method} needs --teacher DIR (or no --corpus: the sample)")
    for name in ("corpus", "teacher", "start"):
        path = getattr(args, name)
        if path is not None and not path.is_dir():
            option = "from" if name == "start" else name
            raise InputError(f"--{option} {path} is no directory")
    shaped = [
        n for n in ("model", "layers", "width", "heads", "ffn") if getattr(args, n) is not None
    ]
    if args.start is not None and shaped:
        raise InputError(f"--from DIR has a shape of its own; drop --{shaped[0]}")
    if args.start is not None and (args.init_layers or args.init_head == "copy"):
        option = "init-layers" if args.init_layers else "init-head copy"
        raise InputError(f"--from DIR has weights of its own; drop --{option}")
    if args.stages is not None and args.method != "mobile":
        raise InputError(f"--method {args.method} has no stages; drop --stages")
    for name in ("init_layers", "layer_map", "temperature") if not needs_teacher else ():
        if getattr(args, name):
            raise InputError(f"--method mlm has no teacher; drop --{name.replace('_', '-')}")
    if not needs_teacher and args.init_head == "copy":
        raise InputError("--method mlm has no teacher; drop --init-head copy")
    if args.accumulate < 1:
        raise InputError(f"--accumulate is {args.accumulate}, expected at least 1")


def check_kernels(impl: str, device: torch.device) -> None:
    """Refuse an implementation that cannot run on `device`."""
    for op in kernels.IMPLEMENTATIONS:
        try:
            kernels.resolve_impl(op, impl, device)
        except ValueError as error:
            raise InputError(f"--kernels {impl}: {error}") from None


def main(argv=None) -> None:
    args = parser().parse_args(argv)
    check(args)
    args.out = args.out or Path("runs") / args.method
    torch.use_deterministic_algorithms(True)
    torch.utils.deterministic.fill_uninitialized_memory = False  # a debugging aid, not a need
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    ranks = dist.start(args.device)
    try:
        check_kernels(args.kernels, ranks.device)
        row = METHODS[args.method]
        if args.corpus is None:
            row = dataclasses.replace(row, **SAMPLE[args.method])
            args.corpus = prepare_sample(args.sample, ranks)
            if args.teacher is None and args.method != "mlm":
                args.teacher = sample_teacher(args.sample, args, ranks)
        execute(row, args, ranks)
    finally:
        dist.stop(ranks)


if __name__ == "__main__":
    errors.run(main, "train.py")
