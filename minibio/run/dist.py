"""Processes: who am I, and how do we add up? Raw torch.distributed, started by torchrun.

Without torchrun's environment there is one process and no group, and every function here still
works. Collectives are called by all ranks or by none.
"""

import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.distributed as td
from torch import Tensor

from minibio.run.errors import InputError


@dataclass(frozen=True)
class Ranks:
    """This process among `world`."""

    rank: int
    local: int  # rank on this machine
    world: int
    device: torch.device


def start(device: str | None = None) -> Ranks:
    """Read torchrun's environment and join the other processes: nccl on GPUs, gloo on CPUs.

    Args:
        device: "cpu", "cuda", "cuda:1"; None = cuda where there is one.
    Raises:
        InputError: no such device here, or fewer GPUs than processes.
    """
    rank, local, world = (
        int(os.environ.get(name, default))
        for name, default in (("RANK", 0), ("LOCAL_RANK", 0), ("WORLD_SIZE", 1))
    )
    where = pick_device(device, local if world > 1 else None)
    if where.type == "cuda":
        torch.cuda.set_device(where)
    if world > 1:
        # an attempt of torchrun must not find the addresses that the last one left in its store
        store, _, _ = next(td.rendezvous("env://"))
        is_alone = os.environ.get("LOCAL_WORLD_SIZE") == str(world)  # else attempts are not alike
        attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0") if is_alone else "0"
        is_gpu = where.type == "cuda"
        td.init_process_group(
            "cpu:gloo,cuda:nccl" if is_gpu else "gloo",  # what the host counts goes by gloo
            store=td.PrefixStore(f"attempt-{attempt}", store), rank=rank, world_size=world,
            device_id=where if is_gpu else None,
        )  # fmt: skip
    return Ranks(rank, local, world, where)


def pick_device(name: str | None, local: int | None = None) -> torch.device:
    """The device called `name`; of several processes number `local` gets GPU number `local`."""
    name = name or ("cuda" if torch.cuda.is_available() else "cpu")
    try:
        where = torch.device(name)
    except RuntimeError:
        where = None
    if where is None or where.type not in ("cpu", "cuda"):
        raise InputError(f"--device is {name!r}, expected cpu, cuda or cuda:NUMBER")
    if where.type == "cpu":
        return where
    if not torch.cuda.is_available():
        raise InputError(f"--device is {name!r}, but torch sees no GPU here; use --device cpu")
    index = local if local is not None else where.index or 0
    if index >= torch.cuda.device_count():
        raise InputError(
            f"--device is {name!r}, process {local or 0} needs GPU {index}, but torch sees "
            f"{torch.cuda.device_count()}; start no more processes than there are GPUs"
        )
    return torch.device("cuda", index)


def autocast(precision: str, device: torch.device):
    """The context of a forward pass: bf16 products under fp32 weights and losses, or plain fp32."""
    return torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16")


def stop(ranks: Ranks) -> None:
    """Leave the group."""
    if ranks.world > 1 and td.is_initialized():
        td.destroy_process_group()


def barrier(ranks: Ranks) -> None:
    """Wait for all."""
    if ranks.world > 1:
        with together():
            td.barrier()


@contextmanager
def together() -> Iterator[None]:
    """Around a collective: that it failed means that another rank is gone.

    Raises:
        InputError: so it is.
    """
    try:
        yield
    except RuntimeError as error:
        raise InputError(
            f"another rank of this run is gone ({str(error).split('. ')[0]}); "
            f"see what it printed, then re-run the same command to resume"
        ) from error


def all_sum(values: list[float], ranks: Ranks) -> list[float]:
    """Element by element over all processes, in float64; the same list on every rank."""
    if ranks.world == 1:
        return [float(x) for x in values]
    x = torch.tensor(values, dtype=torch.float64)  # in host memory: no step waits for its device
    with together():
        td.all_reduce(x)
    return x.tolist()


def all_gather(x: Tensor, ranks: Ranks) -> Tensor:
    """(world, ...) in host memory: every rank's `x`, in order; all of one shape and dtype."""
    if ranks.world == 1:
        return x[None].cpu()
    x = x.to(ranks.device).contiguous()
    parts = [torch.empty_like(x) for _ in range(ranks.world)]
    with together():
        td.all_gather(parts, x)
    return torch.stack(parts).cpu()


def from_rank0(action: Callable, ranks: Ranks):
    """Run `action` only on rank 0 -> the JSON value that it returns, on every rank.

    An error of it is raised on every rank, so that none is left waiting in the next collective.
    (Objects cross as JSON: torch's own collectives for them unpickle what they receive.)
    """
    if ranks.world == 1:
        return action()
    text, failure = b"", None
    if ranks.rank == 0:
        try:
            text = json.dumps({"value": action(), "error": None}).encode()
        except Exception as error:
            text, failure = json.dumps({"value": None, "error": str(error)}).encode(), error
    size = torch.tensor([len(text)])
    with together():
        td.broadcast(size, 0)
    letters = torch.tensor(list(text) or [0] * int(size), dtype=torch.uint8)
    with together():
        td.broadcast(letters, 0)
    outcome = json.loads(bytes(letters.tolist()))
    if failure is not None:
        raise failure
    if outcome["error"] is not None:
        raise InputError(outcome["error"])
    return outcome["value"]


def tensors_from_rank0(tensors: dict[str, Tensor], ranks: Ranks) -> dict[str, Tensor]:
    """Rank 0's tensors by name, on every rank, in host memory; what the others pass is ignored."""
    if ranks.world == 1:
        return tensors
    outline = from_rank0(
        lambda: {name: [str(x.dtype), list(x.shape)] for name, x in tensors.items()}, ranks
    )
    result = {}
    for name, (dtype, shape) in outline.items():
        dtype = getattr(torch, dtype.removeprefix("torch."))
        x = tensors[name] if ranks.rank == 0 else torch.empty(shape, dtype=dtype)
        x = x.to(ranks.device).contiguous()
        with together():
            td.broadcast(x, 0)
        result[name] = x.cpu()
    return result


def print0(*parts) -> None:
    """Print on rank 0 only."""
    if int(os.environ.get("RANK", 0)) == 0:
        print(*parts, flush=True)
