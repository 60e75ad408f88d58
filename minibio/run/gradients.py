"""The gradients of all ranks added up, while the backward pass is still under way.

Parameters lie in buckets of some megabytes, the last layers' first, as a backward pass reaches
them; a parameter's gradient is a view into its bucket. When the last micro-batch's backward has
filled a bucket, its sum over the processes starts, and runs beside what is left of the pass:

    gradients = Gradients(objective.parameters(), ranks)
    gradients.clear()
    for batch in batches[:-1]:
        loss(batch).backward()
    with gradients.summed():
        loss(batches[-1]).backward()
    # parameter.grad is the sum over all processes

Sums, not means: every loss is divided by the counts of all processes. The buckets are the same in
every step and are sent in the same order, so a resumed run adds up in the same order too, bit for
bit. (DistributedDataParallel overlaps its sums with backward in the same way. It rebuilds its
buckets after a process's first step, so a resumed run adds up in another order, and it averages.)
On one process nothing is copied and nothing is sent.
"""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
import torch.distributed as td
from torch import Tensor, nn

from minibio.run import dist

BUCKET_BYTES = 25 * 2**20  # large enough for the network's full rate, small enough to overlap


class Bucket:
    """Gradients that travel together: one flat tensor, and each parameter's view into it."""

    def __init__(self, parameters: list[nn.Parameter]):
        self.flat = torch.zeros(
            sum(p.numel() for p in parameters),
            dtype=parameters[0].dtype,
            device=parameters[0].device,
        )
        parts = self.flat.split([p.numel() for p in parameters])
        self.views: dict[nn.Parameter, Tensor] = {
            p: part.view_as(p) for p, part in zip(parameters, parts, strict=True)
        }
        self.waits_for: set[nn.Parameter] = set()  # gradients that are not in it yet
        self.sum: td.Work | None = None  # under way


class Gradients:
    """The gradients of `parameters`, summed over the processes of `ranks`.

    Args:
        parameters: those trained; the same on every process. Frozen ones are left out.
        bucket_bytes: of one message; a larger parameter has a bucket of its own.
    """

    def __init__(
        self,
        parameters: Iterable[nn.Parameter],
        ranks: dist.Ranks,
        bucket_bytes: int = BUCKET_BYTES,
    ):
        self.parameters = [p for p in parameters if p.requires_grad]
        self.ranks = ranks
        self.buckets: list[Bucket] = []
        self.reached: set[nn.Parameter] = set()  # by a backward pass of this step
        self.is_last = False
        self.steps = 0  # that this process has begun
        if ranks.world > 1:
            self.buckets = [Bucket(part) for part in in_parts(self.parameters[::-1], bucket_bytes)]
            self.home = {p: bucket for bucket in self.buckets for p in bucket.views}
            for p in self.parameters:
                p.register_post_accumulate_grad_hook(self.on_grad_ready)

    def clear(self) -> None:
        """Before the first backward of a step."""
        self.reached.clear()
        self.steps += 1
        dist.trim_heap(self.steps, self.ranks.device)
        if not self.buckets:
            for p in self.parameters:
                p.grad = None
        for bucket in self.buckets:
            bucket.flat.zero_()
            for p, view in bucket.views.items():
                p.grad = view  # backward adds to what is there, in place

    @contextmanager
    def summed(self) -> Iterator[None]:
        """Around the step's last backward: sums start in it and have ended when the block ends.

        A parameter that no backward of the step has reached has no gradient (None) afterwards, so
        that an optimiser skips it; every rank has to reach the same ones.

        Raises:
            InputError: a rank is gone.
        """
        self.is_last, self.unsent = True, list(self.buckets)
        for bucket in self.buckets:
            bucket.waits_for = set(bucket.views)
        try:
            yield
        finally:
            self.is_last = False
        with dist.together():
            self.start_full_buckets(force=True)
            for bucket in self.buckets:
                bucket.sum.wait()
        for p in self.parameters if self.buckets else ():
            if p not in self.reached:
                p.grad = None

    def on_grad_ready(self, p: nn.Parameter) -> None:
        """Called by autograd when `p`'s gradient of one backward is complete."""
        self.reached.add(p)
        if self.is_last:
            self.home[p].waits_for.discard(p)
            self.start_full_buckets()

    def start_full_buckets(self, force: bool = False) -> None:
        """Start the sums of the buckets that are full, in the order that all ranks keep to."""
        while self.unsent and (force or not self.unsent[0].waits_for):
            bucket = self.unsent.pop(0)
            bucket.sum = td.all_reduce(bucket.flat, async_op=True)


def reduce_terms(terms: dict[str, Tensor], norm: Tensor, ranks: dist.Ranks) -> dict[str, float]:
    """The terms of the loss over all ranks and the norm of the gradient, the same on every rank.

    One wait for the device. The norm is of the summed gradients, hence the same everywhere but for
    the NaN of one rank, which the sum of all norms brings to all.

    Returns:
        Name -> value, "grad_norm" last.
    """
    values = torch.stack([*terms.values(), norm]).double().tolist()
    *values, norms = dist.all_sum(values, ranks)
    return dict(zip(terms, values, strict=True)) | {"grad_norm": norms / ranks.world}


def in_parts(parameters: list[nn.Parameter], n_bytes: int) -> Iterator[list[nn.Parameter]]:
    """Neighbours together, up to `n_bytes`, of one type and device."""
    part, size = [], 0
    for p in parameters:
        own = p.numel() * p.element_size()
        is_other = part and (p.dtype, p.device) != (part[0].dtype, part[0].device)
        if part and (is_other or size + own > n_bytes):
            yield part
            part, size = [], 0
        part.append(p)
        size += own
    if part:
        yield part
