"""`python -m minibio bench encoder`: one forward pass, ours and that of transformers.

Weights and tokens are random, shapes are real: lengths as PubMed citations have them, a third bare
titles, the rest abstracts up to the limit; a batch of one is one text of exactly `--length` tokens.
transformers pads to a rectangle and uses PyTorch's scaled_dot_product_attention; we work on the row
of real tokens, with the same weights, and both results are compared before they are timed. Times
are medians with their 20th and 80th percentile, the two sides taking turns; the memory of a call is
its peak above the weights. kernels/bench/timing.py has the clock. Every row is printed, and
appended to the CSV, as soon as it is known.
"""

from collections.abc import Sequence
from functools import partial

import numpy as np
import torch

from kernels.bench.timing import Spread, Table, extra_mib, milliseconds, ragged_lengths
from kernels.machine import version
from minibio.batch import Batch
from minibio.bench.step import columns, random_batch
from minibio.config import MODELS
from minibio.model.convert import config_to_hf
from minibio.model.heads import Model
from minibio.model.names import PREFIX, their_name


def add_row(table: Table, what: dict, batch: Batch, call, times: np.ndarray, baseline=None) -> None:
    """One measurement.

    Args:
        what:     the columns that name it.
        call:     run once more for its memory.
        times:    (repeats, 1) milliseconds.
        baseline: likewise, of the side it is compared with.
    """
    spread = Spread.of(times[:, 0])
    memory = extra_mib(call, batch.device)
    speedup = None if baseline is None else round(np.median(baseline) / spread.p50, 2)
    row = {**what, **columns(batch, spread), "extra_mib": round(memory, 1), "speedup": speedup}
    table.add(
        row,
        f"{' '.join(f'{x:<15}' for x in what.values())}"
        f"{row['N']:>7,} tokens  {spread!s:<28}"
        f"{row['tokens_per_s']:>11,} tok/s{memory:>9,.0f} MiB"
        + ("" if speedup is None else f"   x {speedup}"),
    )


def padded_call(ours: Model, batch: Batch, device: torch.device, dtype: torch.dtype):
    """A call of the same encoder in transformers on the padded rectangle; None without it."""
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
def encoder(
    models: Sequence[str],
    precisions: Sequence[str],
    batch: int,
    length: int,
    repeats: int,
    seed: int,
    device: torch.device,
    table: Table,
) -> None:
    """Forward passes of rows of MODELS, ours and transformers', in each precision.

    Args:
        batch:  sequences.
        length: tokens of the longest.
    """
    lengths = [length] if batch == 1 else ragged_lengths(batch, length, seed)
    for name in models:
        config = MODELS[name]
        x = random_batch(lengths, config.V, seed, device)
        for precision in precisions:
            dtype = torch.bfloat16 if precision == "bf16" else torch.float32
            torch.manual_seed(seed)
            model = Model(config, "encoder").to(device, dtype).eval()
            ours, theirs = partial(model, x), padded_call(model, x, device, dtype)
            calls = [[ours]] if theirs is None else [[ours], [theirs]]
            times, *baseline = milliseconds(calls, device, repeats)
            what = {"model": name, "precision": precision}
            if theirs is not None:
                print(f"{name} {precision}: results differ by {difference(ours, theirs):.1e}")
                add_row(table, {**what, "by": "transformers"}, x, theirs, *baseline)
            add_row(table, {**what, "by": "minibio"}, x, ours, times, *baseline)
    print(
        "speed-up: transformers' median over ours, the same run; tokens are real ones, not padding"
    )
