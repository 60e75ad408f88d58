"""First signs of life: the machine's rates, and each kernel once against the definition.

    python -m kernels.bench.smoke                         all heads, all types
    python -m kernels.bench.smoke --heads D26-D64 --dtypes bfloat16 --no-rates

Lengths are ragged, dropout's mask is given, all outputs are NaN before the kernel writes them.
Errors are relative to the truth's largest magnitude, results and gradients alike; a line each, and
status 1 where one is too large. A CUDA error ends the command with status 3.
"""

import argparse
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from itertools import accumulate
from typing import NamedTuple

import torch
from torch import Tensor

import kernels
from kernels.bench.run import DTYPES, LIMIT, first_line, pick_device, pick_impls, stop_at_fault
from kernels.bench.timing import Table, milliseconds
from kernels.machine import describe
from kernels.reference import DIVERGENCES, Decoder, pack_bits, wide

HEADS = {  # of a student and its teacher: heads, widths
    "D26-D64": (12, 26, 64), "D32-D64": (12, 32, 64), "D64-D64": (12, 64, 64),
    "D32-D256": (4, 32, 256),
}  # fmt: skip
LENGTHS = (130, 31, 0, 1, 64)  # blocks are cut at none of them
DROPOUT = 0.1
WIDTHS = {"one block": (312,), "two blocks": (128, 384)}  # of a decoder
WORDS, PREDICTED, TEACHER = 3001, 97, 768
TYPES = ("float32", "float16", "bfloat16")
SIZE = {"cuda": (2**30, 8192), "cpu": (2**24, 512)}  # bytes of a copy, rows of a product


@contextmanager
def poisoned() -> Iterator[None]:
    """Memory that torch hands out is full of NaN: an output that a kernel forgets shows."""
    was, only_warns = (
        torch.are_deterministic_algorithms_enabled(),
        torch.is_deterministic_algorithms_warn_only_enabled(),
    )
    fills = torch.utils.deterministic.fill_uninitialized_memory  # train.py turns it off
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.utils.deterministic.fill_uninitialized_memory = True
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        torch.use_deterministic_algorithms(was, warn_only=only_warns)
        torch.utils.deterministic.fill_uninitialized_memory = fills


class Case(NamedTuple):
    """One call of an operation by one implementation."""

    op: str  # a row of kernels.IMPLEMENTATIONS
    impl: str
    dtype: str  # a row of DTYPES
    of: str  # a row of HEADS, of WIDTHS
    divergence: str

    def __str__(self) -> str:
        return f"{self.op:<14}{self.impl:<15}{self.dtype:<10}{self.of:<12}{self.divergence:<10}"

    def compute(self, device: torch.device, seed: int, exact: bool, **options) -> dict[str, Tensor]:
        """Results and gradients by their names.

        Args:
            exact:   by the definition, in float64, on the same rounded numbers.
            options: of the operation, in place of a given mask.
        """
        of = masked_mlm if self.op == "masked_mlm" else attention
        return of(self, device, torch.Generator().manual_seed(seed), exact, options)


def attention(case: Case, device, rng, exact: bool, options: dict) -> dict[str, Tensor]:
    """`Case.compute` of `kernels.attention` and `kernels.attention_kl`."""
    (H, D, D_t), N = HEADS[case.of], sum(LENGTHS)
    dtype = DTYPES[case.dtype]
    drawn = [
        torch.randn(N, H, width, generator=rng).to(device, dtype) for width in (D, D, D, D_t, D_t)
    ]
    keep = pack_bits(torch.rand(N, H, max(LENGTHS), generator=rng) >= DROPOUT).to(device)
    g_out, g_rows = (torch.randn(N, H, width, generator=rng) for width in (D, 1))
    cu_seqlens = torch.tensor([0, *accumulate(LENGTHS)], dtype=torch.int32, device=device)
    tensors = [x.double() for x in drawn] if exact else drawn
    inputs = [x.requires_grad_() for x in tensors[:3]]
    options = {"dropout": DROPOUT, **(options or {"keep": keep})}
    options["impl"] = "reference" if exact else case.impl
    row = cu_seqlens, max(LENGTHS)
    if case.op == "attention":
        (out, lse), rows = kernels.attention(*inputs, *row, **options), None
    else:
        options["divergence"] = case.divergence
        out, rows, lse = kernels.attention_kl(*tensors, *row, **options)
    outputs = {"out": out} | ({} if rows is None else {"rows": rows})
    g = [g_out.to(device, dtype).to(out.dtype), g_rows[..., 0].to(device, lse.dtype)]
    grads = torch.autograd.grad([*outputs.values()], inputs, g[: len(outputs)])
    return outputs | {"lse": lse} | dict(zip(("dq", "dk", "dv"), grads, strict=True))


def masked_mlm(case: Case, device, rng, exact: bool, options: dict) -> dict[str, Tensor]:
    """`Case.compute` of `kernels.masked_mlm`."""
    widths, dtype = WIDTHS[case.of], DTYPES[case.dtype]

    def draw(*shape):
        x = torch.randn(*shape, generator=rng).to(device, dtype)
        return x.double() if exact else x

    s = Decoder(draw(PREDICTED, sum(widths)), [0.1 * draw(WORDS, d) for d in widths], draw(WORDS))
    t = Decoder(draw(PREDICTED, TEACHER), [0.1 * draw(WORDS, TEACHER)], draw(WORDS))
    labels = torch.randint(WORDS, (PREDICTED,), generator=rng)
    labels[::9] = -100
    inputs = [x.requires_grad_() for x in (s.h, *s.E, s.bias)]
    loss, mlm, soft = kernels.masked_mlm(
        s,
        labels.to(device),
        t,
        temperature=2.0,
        divergence=case.divergence,
        impl="reference" if exact else case.impl,
    )
    grads = torch.autograd.grad(loss, inputs)
    names = ("mlm", "soft", "dh", *(f"dE_{i + 1}" for i in range(len(widths))), "db")
    return dict(zip(names, (mlm, soft, *grads), strict=True))


def cases(device: torch.device, heads, dtypes) -> list[Case]:
    """Every implementation that runs here but the definition, in every type that it serves."""
    found = []
    for op, rows, divergences in (
        ("attention", heads, ("none",)),
        ("attention_kl", heads, DIVERGENCES),
        ("masked_mlm", WIDTHS, ("kl_ts", "soft_ce")),
    ):
        for name in dtypes:
            for impl in pick_impls(op, None, device, DTYPES[name]):
                if impl != "reference" and not (impl == "cuda" and name == "float16"):
                    found += [Case(op, impl, name, x, d) for x in rows for d in divergences]
    return found


def fault(case: Case, device: torch.device, seed: int) -> tuple[str, bool]:
    """(what came of a case, in a few words; whether it is wrong)."""
    try:
        with poisoned():
            got = case.compute(device, seed, exact=False)
    except Exception as error:  # any at all: the other cases must not be lost
        stop_at_fault(error, str(case))
        return f"failed: {first_line(error)}", True
    truth = case.compute(device, seed, exact=True)
    errors = {}
    for name, x in got.items():
        error = ((wide(x) - truth[name]).abs().max() / truth[name].abs().max()).item()
        errors[name] = float("inf") if error != error else error  # NaN is larger than any
    worst = max(errors, key=errors.get)
    limit = LIMIT[case.dtype]
    text = f"worst {errors[worst]:.1e} of max, {worst}"
    if errors[worst] <= limit:
        return text, False
    return f"wrong: {text}, expected <= {limit:.0e}", True


def rates(device: torch.device) -> Iterator[str]:
    """Lines with what the machine can do at best: a copy, products of two matrices."""
    size, n = SIZE[device.type]
    x = torch.zeros(size, dtype=torch.uint8, device=device)
    y = torch.empty_like(x)
    (laps,) = milliseconds([[partial(y.copy_, x)]], device, 5, 1)
    yield f"copy of {size / 2**20:.0f} MiB: {2 * size / min(laps[:, 0]) / 1e6:.0f} GB/s"
    del x, y
    for dtype, tf32 in ((torch.float32, False), (torch.float32, True), (torch.bfloat16, False)):
        if tf32 and device.type != "cuda":
            continue
        was = torch.backends.cuda.matmul.allow_tf32
        torch.backends.cuda.matmul.allow_tf32 = tf32
        try:
            a = torch.randn(n, n, device=device).to(dtype)
            (laps,) = milliseconds([[partial(torch.matmul, a, a)]], device, 5, 1)
        finally:
            torch.backends.cuda.matmul.allow_tf32 = was
        name = "tf32" if tf32 else str(dtype).removeprefix("torch.")
        yield f"product of {n} by {n} in {name}: {2e-9 * n**3 / min(laps[:, 0]):.1f} TFLOP/s"


def main(argv=None) -> int:
    """1: something is wrong; 2: bad options."""
    p = argparse.ArgumentParser("kernels.bench.smoke", description=__doc__.split("\n")[0])
    p.add_argument("--device", help="cuda, cpu (default: cuda if there is one)")
    p.add_argument("--heads", nargs="+", choices=HEADS, default=[*HEADS], metavar="NAME")
    p.add_argument("--dtypes", nargs="+", choices=TYPES, default=TYPES)
    p.add_argument("--rates", action=argparse.BooleanOptionalAction, default=True)
    p.add_argument("--seed", type=int, default=0)
    args = p.parse_args(argv)
    try:
        device = pick_device(args.device)
    except ValueError as error:
        p.error(str(error))
    n_wrong = 0
    with Table(None, describe(device)):
        for line in rates(device) if args.rates else ():
            print(line, flush=True)
        for case in cases(device, args.heads, args.dtypes):
            text, is_wrong = fault(case, device, args.seed)
            n_wrong += is_wrong
            print(f"{case}{text}", flush=True)
    return int(n_wrong > 0)


if __name__ == "__main__":
    sys.exit(main())
