"""How fast, on this machine: encoders against transformers, training steps against the authors'.

    python -m minibio bench encoder    one forward pass, ours and transformers' in the same run
    python -m minibio bench step       one training step, the authors' way and ours (step.py)

Weights and tokens are random, shapes are real: lengths as PubMed citations have them, a third bare
titles, the rest abstracts up to the limit; a batch of one is one text of just `--length` tokens.
transformers pads to a rectangle and uses PyTorch's scaled_dot_product_attention; we work on the row
of real tokens, with the same weights, and both results are compared before they are timed. Times
are medians with their 20th and 80th percentile, the two sides taking turns; the memory of a call is
what it needs at its peak above the weights. kernels/bench/timing.py has the clock. Every row
is printed and appended to the CSV as soon as it is known.
"""

import argparse
from functools import partial
from pathlib import Path

import numpy as np
import torch

from kernels.bench.timing import Table, extra_mib, milliseconds, ragged_lengths
from kernels.machine import describe, version
from minibio.batch import Batch
from minibio.bench import step as bench_step
from minibio.bench.step import LENGTHS, WAYS, random_batch
from minibio.config import MODELS
from minibio.distil.objectives import OBJECTIVES, TEACHER_PRECISIONS
from minibio.model.convert import config_to_hf
from minibio.model.heads import Model
from minibio.model.names import PREFIX, their_name
from minibio.run.dist import pick_device
from minibio.run.errors import InputError
from minibio.run.files import check_writable

# What is measured where nothing else is asked for.
DEFAULTS = {
    "cpu": {
        "models": ["tiny-biobert"], "precision": ["fp32"],
        "batch": {"encoder": 16, "step": 8}, "repeats": {"encoder": 7, "step": 3}, "warmup": 1,
        "by": ["authors", "minibio"],
    },
    "cuda": {
        "models": ["tiny-biobert", "distil-biobert", "biobert", "bio-mobilebert"],
        "precision": ["fp32", "bf16"],
        "batch": {"encoder": 128, "step": 192}, "repeats": {"encoder": 30, "step": 5}, "warmup": 2,
        "by": ["authors", "authors-bf16-compiled", "minibio", "minibio-bf16"],
    },
}  # fmt: skip


def open_table(out: Path | None, device: torch.device) -> Table:
    """The table at `out`, or a printed one."""
    return Table(None if out is None else check_writable(out), describe(device))


def add_row(table: Table, what: dict, batch: Batch, call, times: np.ndarray, baseline=None) -> None:
    """One measurement.

    Args:
        what:     the columns that name it.
        call:     run once more for its memory.
        times:    (repeats, 1) milliseconds.
        baseline: the same of what it is compared with, measured in turns.
    """
    p20, p50, p80 = np.percentile(times, (20, 50, 80))
    memory = extra_mib(call, batch.device)
    speedup = None if baseline is None else np.median(baseline) / p50
    row = {
        **what, "B": batch.B, "longest": batch.max_len, "N": batch.N, "ms_p50": round(p50, 3),
        "ms_p20": round(p20, 3), "ms_p80": round(p80, 3),
        "tokens_per_s": round(1000 * batch.N / p50), "extra_mib": round(memory, 1),
        "speedup": "" if speedup is None else round(speedup, 2),
    }  # fmt: skip
    table.add(
        row,
        f"{' '.join(f'{x:<15}' for x in what.values())}"
        f"{row['N']:>7,} tokens {p50:>9.2f} ms ({p20:.2f}-{p80:.2f})"
        f"{row['tokens_per_s']:>11,} tok/s{memory:>9,.0f} MiB"
        + ("" if speedup is None else f"   x {speedup:.2f}"),
    )


def padded_call(ours: Model, batch: Batch, device: torch.device, dtype: torch.dtype):
    """The same encoder in transformers, on the padded rectangle, as a call; None without it."""
    if ours.config.family == "ib-bert" or version("transformers") == "none":
        return None
    from transformers import AutoConfig, AutoModel, logging

    logging.set_verbosity_error()
    fields = config_to_hf(ours, dtype)
    theirs = AutoModel.from_config(
        AutoConfig.for_model(fields.pop("model_type"), **fields), attn_implementation="sdpa"
    )
    prefix = PREFIX[ours.config.family] + "."
    weights = {
        their_name(name, ours.config, "encoder").removeprefix(prefix): x
        for name, x in ours.state_dict().items()
    }
    lacks = theirs.load_state_dict(weights, strict=False)  # a pooler of theirs stays as it is
    assert not lacks.unexpected_keys and all("pooler" in name for name in lacks.missing_keys)
    inputs = {
        "input_ids": batch.pad(batch.tokens),  # (B, T)
        "attention_mask": batch.pad(torch.ones_like(batch.tokens)),  # (B, T)
    }
    return partial(theirs.to(device, dtype).eval(), **inputs)


def difference(ours, theirs) -> float:
    """The largest |a - b| / max(1, |b|) of two calls' hidden states, over all real tokens."""
    is_token = theirs.keywords["attention_mask"].bool()  # (B, T)
    a, b = ours().last.double(), theirs().last_hidden_state[is_token].double()  # (N, C)
    return float(((a - b).abs() / b.abs().clamp(min=1)).max())


@torch.inference_mode()
def encoder(args, device: torch.device) -> None:
    """Forward passes of `--models`, ours and transformers', at each `--precision`."""
    with open_table(args.out, device) as table:
        for name in args.models:
            config = MODELS[name]
            lengths = ragged_lengths(args.batch, args.length, args.seed)
            if args.batch == 1:
                lengths = [args.length]
            batch = random_batch(lengths, config.V, args.seed, device)
            for precision in args.precision:
                dtype = torch.bfloat16 if precision == "bf16" else torch.float32
                torch.manual_seed(args.seed)
                model = Model(config, "encoder").to(device, dtype).eval()
                ours, theirs = partial(model, batch), padded_call(model, batch, device, dtype)
                calls = [[ours]] if theirs is None else [[ours], [theirs]]
                times, *baseline = milliseconds(calls, device, args.repeats)
                what = {"model": name, "precision": precision}
                if theirs is not None:
                    print(f"{name} {precision}: results differ by {difference(ours, theirs):.1e}")
                    add_row(table, {**what, "by": "transformers"}, batch, theirs, *baseline)
                add_row(table, {**what, "by": "minibio"}, batch, ours, times, *baseline)
    print(
        "speed-up: transformers' median over ours, the same run; tokens are real ones, not padding"
    )


def parser() -> argparse.ArgumentParser:
    """Every option; None means the device's own value."""
    p = argparse.ArgumentParser("minibio bench", description=__doc__.split("\n")[0])
    p.add_argument("what", choices=("encoder", "step"))
    p.add_argument("--batch", type=int, help="sequences")
    p.add_argument("--length", type=int, default=256, help="tokens of the longest (default: 256)")
    p.add_argument("--repeats", type=int, help="timed calls of each kind")
    p.add_argument("--seed", type=int, default=0)
    p.add_argument("--device", help="cuda, cpu (default: cuda if there is one)")
    p.add_argument("--threads", type=int, help="of the CPU (default: all cores)")
    p.add_argument("--out", type=Path, help="CSV file")
    g = p.add_argument_group("encoder")
    g.add_argument("--models", nargs="+", choices=MODELS, metavar="NAME", help="rows of MODELS")
    g.add_argument("--precision", nargs="+", choices=("fp32", "bf16"))
    g = p.add_argument_group("step")
    g.add_argument("--methods", nargs="+", choices=OBJECTIVES,
                   default=["compact", "tiny", "distil", "mlm"])  # fmt: skip
    g.add_argument("--by", nargs="+", choices=WAYS, help="the ways to make a step")
    g.add_argument("--lengths", nargs="+", choices=LENGTHS, default=["pubmed"])
    g.add_argument("--fidelity", nargs="+", choices=("released", "paper"), default=["released"])
    g.add_argument("--student", choices=MODELS, metavar="NAME", help="(default: the method's own)")
    g.add_argument("--teacher", choices=MODELS, metavar="NAME", default="biobert")
    g.add_argument("--teacher-precision", nargs="+", choices=TEACHER_PRECISIONS,
                   default=["fp32", "auto"], help="under a student in fp32")  # fmt: skip
    g.add_argument("--teacher-dropout", action=argparse.BooleanOptionalAction, default=True,
                   help="of the authors' teacher, as in their code (default: yes)")  # fmt: skip
    g.add_argument("--warmup", type=int, help="calls of each kind before those that are timed")
    return p


def main(argv=None) -> None:
    args = parser().parse_args(argv)
    device = pick_device(args.device)
    asked = args.by
    for name, value in DEFAULTS[device.type].items():
        if getattr(args, name) is None:
            setattr(args, name, value[args.what] if isinstance(value, dict) else value)
    threads = torch.get_num_threads() if args.threads is None else args.threads
    if min(args.batch, args.length, args.repeats, args.warmup, threads) < 1:
        raise InputError(
            "--batch, --length, --repeats, --warmup and --threads are expected to be at least 1"
        )
    torch.set_num_threads(threads)
    if args.what == "encoder":
        encoder(args, device)
        return
    if asked is None and version("transformers") == "none":
        args.by = [name for name in args.by if WAYS[name].is_ours]
        print("without transformers, which is not installed: minibio alone")
    with open_table(args.out, device) as table:
        bench_step.step(args, table, device)
