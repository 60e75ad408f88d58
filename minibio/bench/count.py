"""`python -m minibio bench count`: a training step on a GPU, counted on a machine without one.

The step is the second of train.py's own loop (training.py), run on tensors that have shapes and
types and no contents (`FakeTensorMode`). They lie on the CPU, since torch differentiates none on a
device that is not there; what torch and this project do differently on a GPU is set out in
`as_on_a_gpu`. Of every operation that reaches the device there are counted:

    launches     one for each operation, though some are several kernels
    TFLOP        of the matrix products outside of the fused operations
    GB           read and written, each tensor once: of products, of the operations of kernels/
                 (what goes in and comes out, not what is between), and of everything else
    waits        moments at which the host waits for the device, or copies to it what it holds

What a GPU would need the most time for is the third of the GB: it is pure memory traffic.
"""

from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from typing import NamedTuple
from unittest import mock

import torch
import torch.nn as nn
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

from kernels.bench.timing import Table
from minibio.bench.step import LENGTHS, WAYS, Settings, build, check, random_batch
from minibio.bench.training import steps_on
from minibio.distil.objectives import Objective
from minibio.model.heads import freeze
from minibio.model.transformer import Encoder

PARTS = ("teacher", "forward", "backward", "update")
KINDS = ("products", "fused", "other")
META = torch.device("meta")
WAITS = {"_local_scalar_dense", "lift_fresh", "nonzero", "masked_select", "equal"}
NO_LAUNCH = {"_unsafe_view", "empty", "empty_like", "new_empty", "empty_strided"}
GATHERS = {"embedding", "index", "index_select", "gather"}  # read what they give, no more
OVERWRITE = {
    "zero_",
    "fill_",
    "copy_",
    "_foreach_copy_",
    "normal_",
    "uniform_",
    "random_",
}  # unread


class Operation(NamedTuple):
    """One operation of a step."""

    part: str  # of PARTS
    kind: str  # of KINDS
    name: str
    flops: int
    n_bytes: int
    waits: int


class Counted(TorchDispatchMode):
    """Keeps an `Operation` of everything that is given to the device."""

    def __init__(self):
        super().__init__()
        self.part, self.operations = PARTS[0], []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        name, kwargs = function.overloadpacket.__name__, kwargs or {}
        if name in WAITS:
            self.wait(name)
        if name == "_local_scalar_dense":
            return 1.0
        result = function(*args, **kwargs)
        if is_launch(function):
            count = flop_registry.get(function.overloadpacket)
            flops = 0 if count is None else count(*args, **kwargs, out_val=result)
            is_ours = function.namespace == "minibio"
            kind = "fused" if is_ours else "products" if flops else "other"
            n_bytes = traffic(function, args, kwargs, result)
            self.operations.append(Operation(self.part, kind, name, flops, n_bytes, 0))
        return result

    def wait(self, name: str) -> None:
        """The host waits for the device."""
        self.operations.append(Operation(self.part, "other", name, 0, 0, 1))


def is_launch(function: torch._ops.OpOverload) -> bool:
    """Whether an operation works on contents; views, allocations and questions do not."""
    schema, name = function._schema, function.overloadpacket.__name__
    is_view = any(x.alias_info and not x.alias_info.is_write for x in schema.returns)
    has_result = any("Tensor" in str(x.type) for x in schema.returns) or schema.is_mutable
    return has_result and not is_view and name not in NO_LAUNCH


def traffic(function: torch._ops.OpOverload, args: tuple, kwargs: dict, result) -> int:
    """Bytes that an operation reads and writes, each tensor once for either."""
    name, inputs = function.overloadpacket.__name__, tensors((args, kwargs))
    known = {id(x) for x in inputs}
    new = [x for x in tensors(result) if id(x) not in known]
    given = zip(function._schema.arguments, args, strict=False)
    given = [*given, *((x, kwargs[x.name]) for x in function._schema.arguments if x.name in kwargs)]
    written = [y for x, value in given if x.alias_info for y in tensors(value)]
    if name in GATHERS:
        return 2 * size(new)
    unread = written if name in OVERWRITE or "out" in kwargs else []
    return size(inputs) - size(unread) + size(written) + size(new)


def tensors(tree) -> list[Tensor]:
    """The tensors among arguments."""
    return [x for x in tree_leaves(tree) if isinstance(x, Tensor)]


def size(xs: list[Tensor]) -> int:
    """Bytes of tensors; what is expanded lies in memory once."""
    total = 0
    for x in xs:
        n = x.element_size()
        for length, stride in zip(x.shape, x.stride(), strict=True):
            n *= length if stride else 1
        total += n
    return total


@contextmanager
def as_on_a_gpu(counted: Counted) -> Iterator[None]:
    """Tensors on the CPU are treated as a GPU's: everything that asks where a tensor lies."""

    def dropout(x, p=0.5, training=True, inplace=False):
        return torch.native_dropout(x, p, True)[0] if training and p else x

    def tolist(x):  # of one dimension; one copy to the host
        counted.wait("tolist")
        return [1.0] * len(x)

    foreach = [torch.Tensor, nn.Parameter, FakeTensor]
    with ExitStack() as stack:
        for name, stand_in in {
            "kernels.api.resolve_impl": lambda *_: ("triton", "as on a GPU"),
            "kernels.mlm_ops.is_one": lambda g: False,
            "minibio.model.attention.is_joint": lambda x: True,
            "minibio.model.transformer.is_row_better": lambda x: True,
            "torch.compiler.is_compiling": lambda: True,  # so no contents are checked
            "torch.nn.functional.dropout": dropout,
            "torch.utils._foreach_utils._foreach_supported_types": foreach,
        }.items():
            stack.enter_context(mock.patch(name, stand_in))
        stack.enter_context(mock.patch.object(Encoder, "check", lambda *_: None))
        stack.enter_context(mock.patch.object(FakeTensor, "tolist", tolist))
        yield


def count(
    method: str, way: str, fidelity: str, lengths: list[int], args: Settings
) -> list[Operation]:
    """All operations of one step.

    Args:
        way: a row of WAYS that is ours and not compiled.
    """
    with META, mock.patch("minibio.model.attention.is_joint", lambda x: True):
        objective, teacher = build(method, fidelity, args, META)
        if teacher is not None:
            freeze(teacher, WAYS[way].precision)
    batch = random_batch(lengths, objective.student.config.V, args.seed, torch.device("cpu"))
    counted = Counted()
    with FakeTensorMode() as fake, as_on_a_gpu(counted), counted:
        for model in filter(None, (objective, teacher)):
            without_contents(model)
        batch = replace(
            batch,
            **{k: fake.from_tensor(x) for k, x in vars(batch).items() if isinstance(x, Tensor)},
        )
        with parts(objective, counted):
            loop = steps_on(batch, objective, teacher, 2, WAYS[way].precision)
            next(loop)  # in the first step AdamW's moments are made: it is not counted
            counted.operations.clear()
            counted.part = PARTS[0]
            next(loop)
    return counted.operations


def without_contents(model: nn.Module) -> None:
    """Exchange the tensors, which lie nowhere, for such as `FakeTensorMode` makes."""
    for module in model.modules():
        for name, x in module.named_buffers(recurse=False):
            setattr(module, name, torch.empty(x.shape, dtype=x.dtype))
        for name, p in module.named_parameters(recurse=False):
            empty = torch.empty(p.shape, dtype=p.dtype)
            setattr(module, name, nn.Parameter(empty, requires_grad=p.requires_grad))


@contextmanager
def parts(objective: Objective, counted: Counted) -> Iterator[None]:
    """Tell the counter which part of the step it is in."""

    def begin(part):
        def hook(*_):
            counted.part = part

        return hook

    clip = nn.utils.clip_grad_norm_

    def clipping(*args):
        counted.part = "update"
        return clip(*args)

    with (
        objective.register_forward_pre_hook(begin("forward")),
        objective.register_forward_hook(begin("backward")),
        mock.patch.object(nn.utils, "clip_grad_norm_", clipping),
    ):
        yield


# ---- the table


def summary(operations: list[Operation], part: str | None = None) -> dict[str, float]:
    """The counts of a part of the step; None = of all of it."""
    own = [x for x in operations if part in (None, x.part)]
    gb = {kind: sum(x.n_bytes for x in own if x.kind == kind) / 1e9 for kind in KINDS}
    return {
        "launches": sum(not x.waits for x in own),
        "waits": sum(x.waits for x in own),
        "tflop": round(sum(x.flops for x in own) / 1e12, 3),
        **{f"{kind}_gb": round(gb[kind], 2) for kind in KINDS},
    }


def counts(args: Settings, top: int, table: Table) -> None:
    """Count everything in the settings: a row for each part of each step, and one for all.

    Args:
        top: operations that are listed with each step, the largest traffic first.
    Raises:
        InputError: mobile without IB-BERT, or a student that does not fit the teacher.
    """
    check(args)
    for method in args.methods:
        for kind in args.lengths:
            lengths = LENGTHS[kind](args.batch, args.length, args.seed)
            for fidelity in args.fidelity if method != "mlm" else ["released"]:
                for way in args.by:
                    operations = count(method, way, fidelity, lengths, args)
                    what = {"method": method, "lengths": kind, "fidelity": fidelity, "by": way}
                    size = {"B": args.batch, "longest": max(lengths), "N": sum(lengths)}
                    add_rows(table, what, size, operations)
                    print_largest(operations, top)


def add_rows(table: Table, what: dict, size: dict, operations: list[Operation]) -> None:
    """One row for each part that there is, and one for the step."""
    for part in (*PARTS, None):
        row = summary(operations, part)
        if not row["launches"]:
            continue
        line = (
            f"{' '.join(f'{x:<9}' for x in what.values()):<45}{part or 'step':<9}"
            f"{row['launches']:>6,} launches, waits: {row['waits']} {row['tflop']:>8.3f} TFLOP"
            + "".join(f" {row[f'{kind}_gb']:>7.2f} GB {kind}" for kind in KINDS)
        )
        table.add({**what, "part": part or "step", **size, **row}, line)


def print_largest(operations: list[Operation], top: int) -> None:
    """The operations outside of products with the largest traffic, over the step."""
    n_bytes, n = Counter(), Counter()
    for x in operations:
        if x.kind == "other" and not x.waits:
            n_bytes[x.part, x.name] += x.n_bytes
            n[x.part, x.name] += 1
    for (part, name), total in n_bytes.most_common(top):
        print(f"    {part:<9}{name:<36}{n[part, name]:>5} times {total / 1e9:>7.2f} GB")
