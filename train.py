"""Train a model: its row of the table, its data, its teacher. The loop is distil/engine.py.

    torchrun train.py --method tiny                          the built-in sample, start to end
    torchrun train.py --method mlm --model biobert --corpus DIR --out DIR
    torchrun --nproc-per-node 8 train.py --method tiny --teacher DIR --corpus DIR --out DIR

A method is a row of `METHODS` (minibio/config.py); any of its fields can be overridden here. With
no corpus named, the run uses the built-in sample: its texts, tokenizer, token shards and teacher
are made first if they are not there yet, and kept. A run that was stopped, by a signal, a crash or
a power cut, goes on from its newest checkpoint when the same command is given again. Read `execute`
first.
"""

import argparse
import dataclasses
import hashlib
import os
from functools import partial
from pathlib import Path

import torch

import kernels
import minibio
from minibio.config import METHODS, MODELS, SAMPLE, SAMPLE_TEACHERS, STAGE_1, RunConfig
from minibio.distil import engine, students
from minibio.distil.engine import Plan, Progress
from minibio.distil.measure import held_out
from minibio.distil.objectives import OBJECTIVES, freeze, teach
from minibio.model.attention import use_kernels
from minibio.model.convert import save
from minibio.model.heads import Model
from minibio.model.transformer import compile_layers
from minibio.report import card, estimate
from minibio.run import dist, errors, files, log
from minibio.run.checkpoint import Checkpoint, Checkpoints, newest
from minibio.run.errors import InputError
from minibio.text.corpus import Corpus
from minibio.text.feed import Feed


def train(run: RunConfig, corpus: Corpus, student: Model, teacher: Model | None, args,
          ranks: dist.Ranks) -> Progress:  # fmt: skip
    """Train `student`, from the start or from where the run in `args.out` was left."""
    objective = OBJECTIVES[run.method](student, teacher, run).to(ranks.device).train()
    report("student", students.describe(objective, teacher, run, args.start))
    if run.precision == "fp64":
        objective = objective.double()
    feed = Feed(corpus, ranks, batch=run.batch, tokens=run.batch_tokens,
                accumulate=args.accumulate)  # fmt: skip
    batches_held_out = corpus.held_out_batches(run.batch, limit=256)
    if not batches_held_out:
        raise InputError(
            f"{corpus.path} has no held-out document to measure on; build the shards from more "
            f"documents, or with a larger --held-out"
        )
    config = {
        **dataclasses.asdict(run), "world": ranks.world, "accumulate": args.accumulate,
        "kernels": args.kernels, "compile": args.compile, "tf32": args.tf32,
        "teacher_precision": args.teacher_precision,
        "shape": dataclasses.asdict(student.config),
        "phase_steps": getattr(objective, "phase_steps", None),  # more steps would move the phases
        # directories move, what is in them may not change
        "corpus_is": fingerprint(args.corpus, ranks),
        "teacher_is": fingerprint(args.teacher, ranks),
    }  # fmt: skip
    plan = Plan(
        **{f.name: getattr(run, f.name) for f in dataclasses.fields(Plan) if hasattr(run, f.name)},
        log_every=args.log_every or max(1, run.steps // 100),
        eval_every=args.eval_every or max(1, run.steps // 10),
        save_every=args.save_every or max(1, min(1000, run.steps // 10)),
        max_skips=args.max_skips,
    )
    with Checkpoints(args.out, ranks, args.keep, args.save_in_background) as checkpoints:
        resume = None if args.overwrite else newest(args.out, ranks)
        if resume is None:
            checkpoints.clear()
        else:
            show_resumption(resume, config, ranks)
            resume.cut_log(ranks)
        with log.RunLog(args.out / "log.jsonl", ranks, goes_on=resume is not None) as journal:
            if resume is None:
                journal.write({"event": "start", **config})
            progress = engine.fit(
                objective, feed, plan, ranks, journal,
                teach=None if teacher is None else partial(teach, teacher, objective=objective),
                measure=partial(held_out, student, batches_held_out, ranks, run.precision),
                checkpoints=checkpoints, resume=resume, config=config, name=run.method,
            )  # fmt: skip
            if not progress.stopped:
                journal.write({"event": "end", "seconds": round(progress.seconds, 1),
                               "tokens": progress.tokens})  # fmt: skip
    return progress


def fingerprint(directory: Path | None, ranks: dist.Ranks) -> str | None:
    """What tells a directory of weights or of shards from another one: a hash of its files."""

    def read():
        digest = hashlib.sha256()
        for file in sorted(directory.glob("*.safetensors")) or [directory / "meta.json"]:
            with open(file, "rb") as opened:
                digest.update(hashlib.file_digest(opened, "sha256").digest())
        return digest.hexdigest()

    return None if directory is None else dist.from_rank0(read, ranks)


def show_resumption(resume: Checkpoint, config: dict, ranks: dist.Ranks) -> None:
    """Say where the run goes on, and what is otherwise than before.

    Raises:
        InputError: it is another run.
    """
    changed = resume.changes(config, ranks)
    rows = {"from": resume.path, "step": resume.step, "samples": resume.samples}
    report("resumed", rows | {name: f"{then} -> {now}" for name, then, now in changed})


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
        from minibio.report.plot import loss_curves

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
        from data.sample.sample import make_sample
        from data.shard.shard import shard

        dist.print0(f"sample: making texts and token shards in {directory}")
        make_sample(directory / "text", force=True)
        shard(
            [directory / "text" / "corpus.jsonl"], None, shards,
            length=SAMPLE["mlm"]["length"], train_tokenizer=MODELS["sample-teacher"].V,
        )  # fmt: skip
    dist.barrier(ranks)
    return shards


def sample_teacher(directory: Path, args, ranks: dist.Ranks) -> Path | None:
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
        options.model, options.overwrite, options.accumulate = None, False, 1
        if not execute(row, options, ranks):
            return None
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


def execute(row: RunConfig, args, ranks: dist.Ranks) -> bool:
    """One run from its row of the table to its directory; False if a signal stopped it before."""
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
        teacher, tokenizer = students.load_teacher(args.teacher, run)
        if tokenizer is not None:
            corpus.check_tokenizer(tokenizer)
        freeze(teacher.to(ranks.device), args.teacher_precision)
        if run.precision == "fp64":
            teacher.double()
    student = build_student(run, args, corpus, teacher)
    changed = {f.name for f in dataclasses.fields(RunConfig)
               if getattr(run, f.name) != getattr(METHODS[run.method], f.name)}  # fmt: skip
    report(f"run (* differs from METHODS[{run.method!r}])", dataclasses.asdict(run), changed)
    facts = {
        "corpus": str(args.corpus), "documents": corpus.n_documents, "teacher": str(args.teacher),
        "start": str(args.start), "processes": ranks.world, "accumulate": args.accumulate,
    }  # fmt: skip
    for model in (student, teacher) if teacher is not None else (student,):
        use_kernels(model, kernels.parse_choice(args.kernels))
        if args.compile:
            compile_layers(model)
    chosen = {
        op: "{} ({})".format(*chosen)
        for op, chosen in check_kernels(args.kernels, ranks.device).items()
    }
    report("data and device", {**facts, "device": ranks.device, **chosen, "out": out})
    if args.dry_run:
        objective = OBJECTIVES[run.method](student, teacher, run)
        report("student", students.describe(objective, teacher, run, args.start))
        report("estimate", estimate.estimate(objective, teacher, run, corpus, ranks))
        return True
    out.mkdir(parents=True, exist_ok=True)
    progress = train(run, corpus, student.to(ranks.device), teacher, args, ranks)
    if progress.stopped:
        dist.print0(
            f"\nstopped by {progress.stopped} after step {progress.step} of {run.steps}, saved in "
            f"{out / 'checkpoints'}; the same command goes on from there"
        )
        return False
    facts |= {
        "held_out_first": progress.held_out_first, "held_out": progress.held_out,
        "losses": progress.last,
        "tokens": progress.tokens, "samples": progress.samples, "skipped": progress.skipped,
        "seconds": round(progress.seconds, 1),
        "tokens_per_s": round(progress.tokens / max(progress.seconds, 1e-9)),
    }  # fmt: skip
    dist.from_rank0(lambda: finish(student, run, corpus, out, facts), ranks)
    report(f"{out}: a Hugging Face directory", {
        "held-out loss": f"{facts['held_out_first']['mlm_loss']:.4f} -> "
                         f"{facts['held_out']['mlm_loss']:.4f} nats per masked token",
        "held-out accuracy": f"{facts['held_out']['accuracy']:.2%}",
        "tokens per second": f"{facts['tokens_per_s']:,}",
        "seconds": facts["seconds"],
    })  # fmt: skip
    return True


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
    g.add_argument("--batch-tokens", type=int,
                   help="the most tokens of a step, in place of --batch")  # fmt: skip
    g.add_argument("--length", type=int, help="tokens of the longest sequence")
    g.add_argument("--lr", type=float, help="peak learning rate")
    g.add_argument("--warmup", type=int, help="steps")
    g.add_argument("--schedule", choices=("linear", "cosine", "wsd"))
    g.add_argument("--weight-decay", type=float)
    g.add_argument("--clip", type=float, help="largest gradient norm")
    g.add_argument("--seed", type=int)
    g.add_argument("--precision", choices=("fp32", "bf16", "fp64"))
    g.add_argument("--teacher-precision", choices=("fp32", "bf16", "auto"), default="fp32",
                   help="its products; auto: bf16 where the processor has them")  # fmt: skip
    g.add_argument("--tf32", action="store_true", help="products of fp32 in TF32, on GPUs")
    g.add_argument("--compile", action="store_true", help="the layers, by torch.compile")
    g.add_argument("--device", help="cuda, cpu (default: cuda if there is one)")
    g.add_argument("--kernels", default="auto",
                   help="of attention and the losses: auto, reference, torch, triton, or one of "
                        "each, attention=triton,mlm=cuda (default: auto)")  # fmt: skip
    g.add_argument("--log-every", type=int, help="steps (default: a hundredth of the run)")
    g.add_argument("--eval-every", type=int, help="steps (default: a tenth of the run)")
    g.add_argument("--save-every", type=int,
                   help="steps (default: a tenth of the run, at most 1000)")  # fmt: skip
    g.add_argument("--keep", type=int, default=3, help="checkpoints (default: 3)")
    g.add_argument("--save-in-background", action="store_true",
                   help="train on while a checkpoint is written")  # fmt: skip
    g.add_argument("--max-skips", type=int, default=10,
                   help="steps in a row, not finite, to give up after (default: 10)")  # fmt: skip
    g.add_argument("--dry-run", action="store_true",
                   help="print parameters, operations, time and memory; train nothing")  # fmt: skip
    return p


# what the sample's teacher does not take from the command line of its student's run
NO_OVERRIDES = {
    name: None for name in (
        "steps", "batch", "batch_tokens", "length", "lr", "warmup", "schedule", "weight_decay",
        "clip", "fidelity", "alpha", "temperature", "layer_map", "init_layers", "init_head",
        "stages", "layers", "width", "heads", "ffn",
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
    if args.precision == "fp64" and args.teacher_precision != "fp32":
        raise InputError("--precision fp64 is to check against; drop --teacher-precision")
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
    for name in ("accumulate", "keep", "max_skips", "log_every", "eval_every", "save_every"):
        x = getattr(args, name)
        if x is not None and x < 1:
            raise InputError(f"--{name.replace('_', '-')} is {x}, expected at least 1")


def check_kernels(text: str, device: torch.device) -> dict[str, tuple[str, str]]:
    """Operation -> implementation and reason; InputError where one cannot run."""
    try:
        return kernels.resolve_choice(kernels.parse_choice(text), device)
    except ValueError as error:
        raise InputError(f"--kernels {text}: {error}") from None


def main(argv=None) -> None:
    args = parser().parse_args(argv)
    check(args)
    args.out = args.out or Path("runs") / args.method
    torch.use_deterministic_algorithms(True)
    torch.utils.deterministic.fill_uninitialized_memory = False  # a debugging aid, not a need
    torch.backends.cuda.matmul.allow_tf32 = args.tf32
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
                if args.teacher is None:  # a signal stopped its training
                    return
        execute(row, args, ranks)
    finally:
        dist.stop(ranks)


if __name__ == "__main__":
    errors.run(main, "train.py")
