"""Processes: who am I, and how do we add up? Raw torch.distributed, started by torchrun.

Without torchrun's environment there is one process and no group, and every function here still
works. Collectives are called by all ranks or by none.
"""

import ctypes
import json
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta

import torch
import torch.distributed as td
from torch import Tensor

from minibio.run.errors import InputError, RankGone

JOIN = timedelta(seconds=50)  # that ranks wait for each other at the start
BEAT, SILENCE = 2.0, 30.0  # seconds between beats; without one, until a rank is missed
TRIM_EVERY = 8  # steps, or batches
LEFT = 2**40  # beats of a rank that has come to its end
PULSE: list["Pulse"] = []  # this process's, while it is in a group


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
        InputError: no such device here, fewer GPUs than processes, or half an environment.
        RankGone: the others did not come.
    """
    world = number("WORLD_SIZE", "1")
    rank = number("RANK", "0" if world == 1 else None)
    local = number("LOCAL_RANK", "0")
    where = pick_device(device, local if world > 1 else None)
    if where.type == "cuda":
        torch.cuda.set_device(where)
    if world > 1:
        address, port = place()
        try:
            if rank > 0:
                wait_for_store(address, port)
            store, _, _ = next(td.rendezvous("env://", timeout=JOIN))
        except RuntimeError as error:
            raise RankGone(alone(error)) from None
        # an attempt of torchrun must not find the addresses that the last one left in its store
        is_alone = os.environ.get("LOCAL_WORLD_SIZE") == str(world)  # else attempts are not alike
        attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0") if is_alone else "0"
        is_gpu = where.type == "cuda"
        store = td.PrefixStore(f"attempt-{attempt}", store)
        try:
            pulse = Pulse(f"attempt-{attempt}", rank, world)  # a connection may take five seconds
            store.add("joined", 1)
            wait_for_all(store, world)
            PULSE.append(pulse)
            pulse.start()  # before the group: its ranks wait for each other without an end
            td.init_process_group(
                "cpu:gloo,cuda:nccl" if is_gpu else "gloo",  # what the host counts goes by gloo
                store=store,
                rank=rank,
                world_size=world,
                device_id=where if is_gpu else None,
            )
        except RuntimeError as error:
            raise RankGone(alone(error)) from None
    return Ranks(rank, local, world, where)


def of_torchrun(name: str, default: str | None = None) -> str:
    """A variable of torchrun's environment.

    Raises:
        InputError: it is not there, and there is no default.
    """
    if (text := os.environ.get(name, default)) is None:
        raise InputError(
            f"WORLD_SIZE is in the environment, but not {name}; start with torchrun, or without "
            f"WORLD_SIZE"
        )
    return text


def number(name: str, default: str | None = None) -> int:
    """A variable of torchrun's environment that is a number.

    Raises:
        InputError: it is not there or no number.
    """
    text = of_torchrun(name, default)
    try:
        return int(text)
    except ValueError:
        raise InputError(f"{name} is {text!r} in the environment, expected a number") from None


def place() -> tuple[str, int]:
    """Address and port of the rendezvous's store."""
    return of_torchrun("MASTER_ADDR"), number("MASTER_PORT")


def wait_for_store(address: str, port: int) -> None:
    """Wait until rank 0 or torchrun has opened the store of the rendezvous, at most `JOIN`.

    A `TCPStore` that waits as long in vain sleeps as long again before it says so.

    Raises:
        RuntimeError: it has not.
    """
    until = time.monotonic() + JOIN.total_seconds()
    while (left := until - time.monotonic()) > 0:
        try:
            return socket.create_connection((address, port), timeout=left).close()
        except (OSError, OverflowError):  # the latter of a port that cannot be
            time.sleep(0.05)
    raise RuntimeError(f"nothing answers at {address}:{port}")


def wait_for_all(store: td.Store, world: int) -> None:
    """Wait until every rank has joined, at most `JOIN`.

    Raises:
        RuntimeError: they have not.
    """
    until = time.monotonic() + JOIN.total_seconds()
    while (joined := store.add("joined", 0)) < world:
        if time.monotonic() > until:
            raise RuntimeError(f"{joined} of {world} ranks came")
        time.sleep(0.05)


def alone(error: RuntimeError) -> str:
    """A message for a rank that waited for the others in vain."""
    return (
        f"the other ranks did not come within {JOIN.total_seconds():g} s ({reason(error)}); see "
        f"what they printed, then re-run the same command"
    )


def reason(error: RuntimeError) -> str:
    """The first sentence of an error of torch's, without the frames of C++ behind it."""
    return str(error).split(". ")[0].split("\n")[0]


class Pulse(threading.Thread):
    """A beat that shows the other ranks that this one is alive, and ends it when another is gone.

    A collective that waits for a rank that was killed may wait for half an hour. Each rank watches
    the next one and rank 0, by counters in the store of the rendezvous, over a connection of its
    own.
    """

    def __init__(self, attempt: str, rank: int, world: int):
        super().__init__(name="pulse", daemon=True)
        store = td.TCPStore(*place(), None, False, JOIN, wait_for_workers=False)
        self.store = td.PrefixStore(f"{attempt}/pulse", store)
        self.rank, self.watched = rank, {(rank + 1) % world, 0} - {rank}
        self.is_over = threading.Event()

    def run(self) -> None:
        last = dict.fromkeys(self.watched, (0, time.monotonic()))  # rank -> beats, and since when
        try:
            while not self.is_over.wait(BEAT):
                self.store.add(str(self.rank), 1)
                for rank, (beats, since) in last.items():
                    now = self.store.add(str(rank), 0)
                    if now != beats or now >= LEFT:
                        last[rank] = now, time.monotonic()
                    elif time.monotonic() - since > SILENCE:
                        self.end(rank)
        except RuntimeError:  # the store went with the process that had it
            if not self.is_over.wait(2 * BEAT):  # unless this one is leaving, too
                self.end(0)

    def end(self, rank: int) -> None:
        text = (
            f"error: rank {rank} of this run is gone; see what it printed, then re-run the same "
            f"command to resume\n"
        )
        os.write(2, text.encode())
        os._exit(2)

    def stop(self) -> None:
        """Leave: a rank that has come to its end is not missed."""
        self.is_over.set()
        self.join()
        try:
            self.store.add(str(self.rank), LEFT)
        except RuntimeError:  # the store has left already
            pass


def trim_heap(n: int, device: torch.device) -> None:
    """On a CPU, give the gaps between live tensors back to the system every eighth step or batch.

    No two batches have the same number of tokens, so the next step's tensors do not fit the gaps
    that the last one's have left, and a process grows for hundreds of steps. Where the C library is
    not glibc nothing happens.

    Args:
        n: the step or batch, counted from 1.
    """
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if device.type == "cpu" and n % TRIM_EVERY == 0 and trim is not None:
        trim(0)


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


def stop(ranks: Ranks) -> None:
    """Leave the group."""
    while PULSE:
        PULSE.pop().stop()
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
        RankGone: so it is.
    """
    try:
        yield
    except RuntimeError as error:
        raise RankGone(
            f"another rank of this run is gone ({reason(error)}); "
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
