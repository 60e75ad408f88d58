"""Train a model: its row of the table, its data, its teacher, its loop.

    torchrun train.py --method tiny                          the built-in sample, start to end
    torchrun train.py --checkpoint tiny-biobert --corpus DIR
    torchrun --nproc-per-node 8 train.py --method tiny --teacher DIR --corpus DIR --out DIR

A method is a row of `METHODS` (minibio/config.py), a checkpoint one of `CHECKPOINTS`; any field of
`RunConfig` is an option. Without --corpus the run uses the built-in sample: its texts, tokenizer,
token shards and teacher are made first, once, and kept. Re-run the same command to resume from the
newest checkpoint, whatever stopped the run: a signal, a crash, a power cut.

From the top: the options, read before torch is imported; `train`, the loop; `execute`, which builds
what the loop is given; `main`.
"""

import argparse
import dataclasses
import math
import os
import time
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

from minibio.config import CHECKPOINTS, METHODS, MODELS, SAMPLE, SAMPLE_TEACHERS, RunConfig
from minibio.distil import plan
from minibio.model.hub import check_directory
from minibio.run import errors, options
from minibio.run.errors import InputError


@dataclass(frozen=True)
class Paths:
    """The directories that a run reads and writes."""

    corpus: Path  # token shards
    teacher: Path | None
    start: Path | None  # --from: weights to start from
    out: Path
    overwrite: bool = False


def parser() -> argparse.ArgumentParser:
    """Every option."""
    p = options.Parser("train.py", description=__doc__)
    what = p.add_mutually_exclusive_group(required=True)
    what.add_argument("--method", choices=METHODS, help="row of METHODS")
    what.add_argument("--checkpoint", choices=CHECKPOINTS, help="published model: CHECKPOINTS")
    p.add_argument(
        "--corpus", type=options.directory, metavar="DIR", help="token shards of data.shard"
    )
    p.add_argument(
        "--teacher", type=options.directory, metavar="DIR", help="Hugging Face directory"
    )
    p.add_argument("--from", dest="start", type=options.directory, metavar="DIR",
                   help="directory to start the weights from")  # fmt: skip
    p.add_argument("--out", type=options.directory, metavar="DIR", help="of the run (runs/METHOD)")
    p.add_argument("--overwrite", action="store_true", help="start again in a used --out")
    p.add_argument("--sample", type=options.directory, metavar="DIR", default=Path("runs/sample"),
                   help="where the built-in sample and its teacher are kept")  # fmt: skip
    p.add_argument("--device", help="cuda, cpu (default: cuda if there is one)")
    p.add_argument("--dry-run", action="store_true",
                   help="print parameters, operations, time and memory; train nothing")  # fmt: skip
    options.add_options(p.add_argument_group("fields of RunConfig"), RunConfig)
    return p


def read(argv: list[str] | None) -> tuple[argparse.Namespace, RunConfig]:
    """The command line, and the run that it asks for; the paths that it leaves out are filled in.

    Raises:
        InputError: an option is unknown, out of its range, or does not fit the others.
    """
    args = parser().parse_args(argv)
    given = options.given(args, RunConfig)
    if args.checkpoint is not None:
        published = CHECKPOINTS[args.checkpoint]
        args.method = published.method
        row = dataclasses.replace(METHODS[args.method], model=published.model)
        source = Path(published.source.split("/")[1])  # as data.fetch names it
        if args.method == "mlm":
            args.start = args.start or source
        else:
            args.teacher = args.teacher or source
        if args.corpus is None:
            raise InputError(f"--checkpoint {args.checkpoint} needs --corpus DIR, of data.shard")
    else:
        row = METHODS[args.method]
        if args.corpus is None:
            row = dataclasses.replace(row, **SAMPLE[args.method])
    if args.start is not None:  # its weights, in place of the teacher's
        row = dataclasses.replace(row, init_layers=())
    args.out = args.out or Path("runs") / (args.checkpoint or args.method)
    if args.out.exists() and not args.out.is_dir():
        raise InputError(f"--out {args.out} is a file, expected a directory")
    run = plan.resolve(row, given)
    for name, path in (("corpus", args.corpus), ("teacher", args.teacher), ("from", args.start)):
        if path is not None:
            check_directory(f"--{name}", path, args.out)
    has_teacher = args.teacher is not None or args.corpus is None and args.method != "mlm"
    plan.check(run, given, has_teacher, args.start is not None)
    return args, run


if __name__ == "__main__":
    errors.read_early(read, "train.py")

import torch
import torch.nn as nn
from torch import Tensor

import kernels
from data.sample.shards import sample_shards
from minibio.batch import Batch, Counts
from minibio.distil import students
from minibio.distil.measure import held_out
from minibio.distil.objectives import OBJECTIVES, Objective, teach
from minibio.model.attention import use_kernels
from minibio.model.heads import Model, freeze
from minibio.model.transformer import compile_layers
from minibio.report import card, estimate
from minibio.run import dist, files, fingerprint, log, optim, precision
from minibio.run.dist import Ranks
from minibio.run.gradients import Gradients, reduce_terms
from minibio.run.log import Progress
from minibio.run.precision import autocast
from minibio.run.rundir import RunDir, StopRequest
from minibio.text.corpus import Corpus
from minibio.text.feed import Feed, ahead


def train(objective: Objective, teacher: Model | None, feed: Feed, held_out_batches: list[Batch],
          run: RunConfig, run_dir: RunDir, stop: StopRequest) -> Iterator[Progress]:  # fmt: skip
    """Train `objective` from its first step, or from the newest checkpoint, to the last.

    A generator: it yields before the first step and after each one, so a benchmark can take the
    steps one by one, beside another's.

    Which samples a step takes, and how they are masked, follows from (run.seed, position); weights,
    moments, random states and counts are in the checkpoint. So a resumed run makes the very steps
    that the unbroken run would have made.

    Raises:
        InputError: `run.max_skips` steps in a row were not finite, a checkpoint cannot be written
            or does not fit, another rank is gone.
    """
    ranks = run_dir.ranks
    optimizer = optim.make_optimizer(
        objective, run.lr, run.weight_decay, betas=run.betas, eps=run.adam_eps
    )
    gradients = Gradients(objective.parameters(), ranks)
    torch.manual_seed(run.seed + ranks.rank)  # dropout; weights were drawn alike on all ranks
    progress = run_dir.resume(objective, optimizer, run.seed)
    is_new = progress is None
    progress = progress or Progress()
    started = time.perf_counter() - progress.seconds  # as if it had never been stopped
    if is_new:
        evaluate(objective.student, held_out_batches, run, run_dir, progress)
        progress.held_out_first = progress.held_out

    def is_due(step: int) -> bool:  # a checkpoint
        return step == run.steps or step % run.save_every == 0

    bar = log.progress(run.steps, run.method, ranks)
    bar.update(progress.step)
    steps_left = max(0, run.steps - progress.step)
    with bar, ahead(feed, progress.samples, steps_left) as steps:
        yield progress
        began = time.perf_counter()
        for span, batches in steps:
            objective.set_step(progress.step)

            # 1. Denominators over all micro-batches and ranks, known before the forward pass: a
            #    loss is a sum divided by them, so neither of these two numbers changes the step.
            *totals, asked = dist.all_sum([*Counts.of(batches), stop.name is not None], ranks)
            counts = Counts(*totals)

            # 2. Forward and backward; the last backward sums the gradients over ranks on its way.
            gradients.clear()
            terms: dict[str, Tensor] = {}
            for i, batch in enumerate(batches):
                batch = batch.to(ranks.device)
                with gradients.summed() if i == len(batches) - 1 else nullcontext():
                    with autocast(run.precision, ranks.device):
                        taught = None if teacher is None else teach(teacher, batch, objective.needs)
                        parts = objective(batch, taught, counts)
                    parts["loss"].backward()
                for name, x in parts.items():
                    terms[name] = terms[name] + x.detach() if i else x.detach()

            # 3. One wait for the device. All ranks see the same figures: all move, or all skip.
            norm = nn.utils.clip_grad_norm_(gradients.parameters, run.clip)
            figures = reduce_terms(terms, norm, ranks)
            lr = optim.lr_at(progress.step, peak=run.lr, warmup=run.warmup, total=run.steps,
                             schedule=run.schedule)  # fmt: skip
            if all(map(math.isfinite, figures.values())):
                for group in optimizer.param_groups:
                    group["lr"] = lr
                optimizer.step()

            # 4. Count, log, evaluate, save.
            now = time.perf_counter()
            progress.add(figures, samples=span.stop, tokens=int(counts.N), seconds=now - began,
                         max_skips=run.max_skips)  # fmt: skip
            bar.update()
            is_last = progress.step == run.steps
            if log.is_due(progress.step, run.log_every, run.steps):
                measures = -(-run.steps // run.eval_every) - (progress.step - 1) // run.eval_every
                run_dir.log_interval(progress, run.steps, lr, measures)
            if is_last or progress.step % run.eval_every == 0:
                evaluate(objective.student, held_out_batches, run, run_dir, progress)
            progress.seconds = time.perf_counter() - started
            if asked or is_due(progress.step):
                run_dir.save(progress, objective, optimizer, is_due)
                progress.seconds = time.perf_counter() - started
            if asked and not is_last:
                progress.stopped = stop.name or "a signal to another rank"
            yield progress
            if progress.stopped:
                break
            began = time.perf_counter()


def evaluate(student: Model, batches: list[Batch], run: RunConfig, run_dir: RunDir,
             progress: Progress) -> None:  # fmt: skip
    """Measure masked-LM loss and accuracy on held-out documents; logged and printed."""
    began = time.perf_counter()
    progress.held_out = held_out(student, batches, run_dir.ranks, run.precision)
    progress.measure_seconds = time.perf_counter() - began
    run_dir.log({"event": "held_out", "step": progress.step, **progress.held_out})
    log.say(
        f"step {progress.step}/{run.steps}  held-out loss {progress.held_out['mlm_loss']:.4f}  "
        f"accuracy {progress.held_out['accuracy']:.2%}  in "
        f"{log.duration(progress.measure_seconds)}",
        run_dir.ranks,
    )


def execute(run: RunConfig, paths: Paths, ranks: Ranks, dry_run: bool = False) -> bool:
    """Build what `run` names, train it and write `paths.out`; False if a signal stopped it."""
    files.check_writable(paths.out)
    row = METHODS[run.method]
    changed = {name for name, x in vars(run).items() if x != getattr(row, name)}
    own, taught, why_precision = precision.resolve_both(run.precision, run.teacher_precision, ranks)
    run = dataclasses.replace(run, precision=own, teacher_precision=taught)
    dist.print0(f"{paths.out}: {students.summary(run, paths.teacher, paths.start)}")
    chosen = resolve_kernels(run, ranks.device)
    corpus = Corpus(paths.corpus, "train", seed=run.seed, length=run.length)
    teacher = None
    if run.method != "mlm":
        teacher, tokenizer = students.load_teacher(paths.teacher, run)
        if tokenizer is not None:
            corpus.check_tokenizer(tokenizer)
        freeze(teacher.to(ranks.device), run.teacher_precision)
        if run.precision == "fp64":
            teacher.double()
    student = students.build_student(run, corpus, teacher, start=paths.start)
    for model in filter(None, (student, teacher)):
        use_kernels(model, run.kernels)
        if run.compile:
            compile_layers(model)
    feed = Feed(corpus, ranks, batch=run.batch, tokens=run.batch_tokens, accumulate=run.accumulate)
    batches = corpus.held_out_batches(min(run.batch, 32), limit=run.eval_documents)
    objective = OBJECTIVES[run.method](student, teacher, run).to(ranks.device).train()
    if run.precision == "fp64":
        objective = objective.double()
    facts = {
        "corpus": str(paths.corpus), "documents": corpus.n_documents,
        "teacher": str(paths.teacher), "start": str(paths.start), "processes": ranks.world,
    }  # fmt: skip
    rows = {**vars(run), "precision": f"{run.precision} ({why_precision})"}
    log.print_rows(f"run (* differs from METHODS[{run.method!r}])", rows, changed)
    chosen = {op: f"{impl} ({why})" for op, (impl, why) in chosen.items()}
    log.print_rows("data and device", {**facts, "device": ranks.device, **chosen, "out": paths.out})
    log.print_rows("student", students.describe(objective, teacher, run, paths.start))
    if dry_run:
        log.print_rows("estimate", estimate.estimate(objective, teacher, run, corpus, ranks))
        return True
    config = {
        **vars(run), "world": ranks.world, "shape": vars(student.config),
        "phase_steps": getattr(objective, "phase_steps", None),  # more steps would move the phases
        # directories move; their contents may not change
        "corpus_is": contents(paths.corpus, ranks),
        "teacher_is": contents(paths.teacher, ranks),
    }  # fmt: skip
    with RunDir(
        paths.out, ranks, config, may_differ=options.may_differ(RunConfig), keep=run.keep,
        overwrite=paths.overwrite,
    ) as run_dir:  # fmt: skip
        if run_dir.finished is None:
            with StopRequest() as stop:
                *_, progress = train(objective, teacher, feed, batches, run, run_dir, stop)
            if progress.stopped:
                dist.print0(
                    f"\nstopped by {progress.stopped} after step {progress.step} of {run.steps}, "
                    f"saved in {paths.out / 'checkpoints'}; re-run the same command to resume"
                )
                return False
            progress.check_outcome(run.steps, paths.out)
            run_dir.log({"event": "end", "seconds": round(progress.seconds, 1),
                         "tokens": progress.tokens})  # fmt: skip
            facts = {**vars(run), **facts, **progress.outcome()}
            figures = run_dir.finish(lambda out: card.write_model(
                student, corpus.tokenizer, facts, out, paths.out / "log.jsonl"))  # fmt: skip
            title = f"{paths.out}: a Hugging Face directory"
        else:
            figures = run_dir.finished
            title = f"{paths.out}: finished earlier, by this command; --overwrite starts again"
    with files.as_written(paths.out / "run.json", "pass --overwrite to start again"):
        log.print_rows(title, {
            "held-out loss": f"{figures['held_out_first']['mlm_loss']:.4f} -> "
                             f"{figures['held_out']['mlm_loss']:.4f} nats per masked token",
            "held-out accuracy": f"{figures['held_out']['accuracy']:.2%}",
            "tokens per second": f"{figures['tokens_per_s']:,}",
            "seconds": figures["seconds"],
        })  # fmt: skip
    return True


def resolve_kernels(run: RunConfig, device: torch.device) -> dict[str, tuple[str, str]]:
    """Fused operation -> its implementation, and why that one."""
    is_bf16 = "bf16" in (run.precision, run.teacher_precision if run.method != "mlm" else "")
    dtype = torch.bfloat16 if is_bf16 else torch.float32  # float64 runs wherever float32 does
    try:
        return kernels.resolve_choice(kernels.parse_choice(run.kernels), device, dtype)
    except ValueError as error:
        raise InputError(f"--kernels {run.kernels}: {error}") from None


def contents(directory: Path | None, ranks: Ranks) -> str | None:
    """The fingerprint of a directory of weights or of token shards."""
    if directory is None:
        return None
    paths = sorted(directory.glob("*.safetensors")) or [directory / "meta.json"]
    return dist.from_rank0(lambda: fingerprint.of_files(paths), ranks)


# the built-in sample


def sample_teacher(run: RunConfig, directory: Path, corpus: Path, ranks: Ranks) -> Path | None:
    """The sample's teacher, trained by masked LM once; None if a signal stopped that."""
    same = ("seed", "kernels", "compile", "tf32", "precision")
    row = plan.resolve(SAMPLE_TEACHERS[run.method], {name: getattr(run, name) for name in same})
    name = "ib-teacher" if MODELS[row.model].family == "ib-bert" else "teacher"
    path = directory / f"{name}-{row.seed}"
    if (path / "config.json").exists():
        dist.print0(f"teacher: {path}, trained earlier (remove the directory to train it again)")
        return path
    dist.print0(f"teacher: there is none yet; training one by masked LM in {path}")
    return path if execute(row, Paths(corpus, None, None, path), ranks) else None


def main(argv: list[str] | None = None) -> None:
    """Read the command line, make the sample where no corpus is named, and execute the run."""
    args, run = read(argv)
    torch.use_deterministic_algorithms(True)
    torch.utils.deterministic.fill_uninitialized_memory = False  # a debugging aid, not a need
    torch.backends.cuda.matmul.allow_tf32 = run.tf32
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    ranks = dist.start(args.device)
    try:
        corpus, teacher = args.corpus, args.teacher
        if corpus is None:
            corpus = sample_shards(args.sample, ranks)
            if teacher is None and run.method != "mlm":
                teacher = sample_teacher(run, args.sample, corpus, ranks)
                if teacher is None:  # a signal stopped its training
                    return
        if args.start is not None:
            run = dataclasses.replace(run, model=args.start.resolve().name)
        paths = Paths(corpus, teacher, args.start, args.out, args.overwrite)
        execute(run, paths, ranks, args.dry_run)
    finally:
        dist.stop(ranks)


if __name__ == "__main__":
    errors.run(main, "train.py")
