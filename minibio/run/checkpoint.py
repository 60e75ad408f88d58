"""The checkpoints of a run, so that nothing is ever lost: safetensors and JSON, no pickle.

    out/checkpoints/step-00001234/
        weights.safetensors     the objective: student and projections
        optimizer.safetensors   AdamW's moments and counts
        ranks.safetensors       (world, ...): each process's random state
        state.json              step, samples, counters, configuration, length of the log, versions
        manifest.json           size and sha256 of the others

The newest few are kept, and an older one goes after the newer one stands: whenever a process is
killed, at least one whole checkpoint is there.

Rank 0 alone touches the disk; what belongs to a rank goes there and comes back as tensors. So no
rank waits for a file that another has yet to write, success is for one process to tell, and of
several machines only the first needs `out`. Read state.py and store.py before this file.
"""

import json
import os
import sys
import threading
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn as nn
from torch import Tensor
from torch.optim import Optimizer

import minibio
from minibio.run import dist, state, store
from minibio.run.errors import InputError
from minibio.run.files import check_writable

PARTS = ("weights", "optimizer", "ranks")
FOLDER, LOG = "checkpoints", "log.jsonl"  # in the run's directory


def versions() -> dict[str, str]:
    return {"minibio": minibio.__version__, "torch": str(torch.__version__)}


def warn(message: str) -> None:
    print(f"warning: {message}", file=sys.stderr, flush=True)


@dataclass(frozen=True)
class Checkpoint:
    """One that is whole: its place, and what its state.json says."""

    path: Path
    step: int  # optimiser steps done
    samples: int  # of the corpus's line, by all processes together
    counters: dict  # the caller's: tokens, skipped steps, ...
    config: dict
    log_bytes: int  # length of log.jsonl at that step
    world: int  # processes
    device: str  # cpu | cuda
    optimizer: dict  # class, and the names of the parameters in each group
    versions: dict

    def changes(self, config: dict, ranks: dist.Ranks) -> list[tuple[str, object, object]]:
        """[(name, then, now)] of what differs in the run that goes on from here, to be printed.

        Raises:
            InputError: something differs that makes it another run (`state.MAY_DIFFER`).
        """
        then = {"processes": self.world, "on": self.device, **self.versions}
        now = {"processes": ranks.world, "on": ranks.device.type, **versions()}
        around = [(name, then.get(name), now[name]) for name in now if then.get(name) != now[name]]
        return state.changes(self.config, config, self.path) + around

    def restore(self, objective: nn.Module, optimizer: Optimizer, ranks: dist.Ranks, *,
                seed: int) -> None:  # fmt: skip
        """Put everything back. All ranks call it, after whatever else draws random numbers.

        Random states are the checkpoint's where number of processes and kind of device are the
        same; otherwise they start anew as a function of (seed, step, rank), and a line says so.

        Raises:
            InputError: names or shapes are not those here; nothing is changed then.
        """
        stored = {}
        dist.from_rank0(lambda: stored.update(store.read(self.path, PARTS)), ranks)
        parts = {part: {} for part in ("weights", "optimizer", "random")}
        for name, x in dist.tensors_from_rank0(stored, ranks).items():
            part, name = name.removeprefix("ranks/").split("/", 1)
            parts[part][name] = x
        if type(optimizer).__name__ != self.optimizer["class"]:
            raise InputError(
                f"{self.path}: the optimiser was {self.optimizer['class']}, expected "
                f"{type(optimizer).__name__}"
            )
        state.check_weights(parts["weights"], objective, self.path)
        state.check_moments(
            parts["optimizer"], self.optimizer["groups"], objective, optimizer, self.path
        )
        state.put_weights(objective, parts["weights"])
        state.put_moments(objective, optimizer, parts["optimizer"])
        if (self.world, self.device) == (ranks.world, ranks.device.type):
            mine = {name: x[ranks.rank] for name, x in parts["random"].items()}
            state.put_random_state(mine, ranks.device)
        else:
            state.fresh_random_state(seed, self.step, ranks.rank)
            dist.print0(
                f"random states start anew from (seed, step, rank): the checkpoint is of "
                f"{self.world} x {self.device}, this run of {ranks.world} x {ranks.device.type}"
            )

    def cut_log(self, ranks: dist.Ranks) -> None:
        """Drop the log's lines of later steps: the run that goes on writes them again."""
        log = self.path.parent.parent / LOG

        def cut():
            size = log.stat().st_size if log.exists() else 0
            if size < self.log_bytes:
                warn(f"{log} has {size} bytes, expected {self.log_bytes}: lines of it are lost")
            elif size > self.log_bytes:
                os.truncate(log, self.log_bytes)

        dist.from_rank0(cut, ranks)


def newest(out: str | Path, ranks: dist.Ranks) -> Checkpoint | None:
    """The newest whole checkpoint of the run in `out`; None where there is none, whole or not.

    A damaged one is named on stderr, and the one before it is taken. All ranks call this.

    Raises:
        InputError: there are checkpoints, and none is whole.
    """

    def find():
        places = store.standing(Path(out) / FOLDER)
        for place in places:
            try:
                return [str(place), store.check(place, PARTS)]
            except (InputError, OSError) as error:
                warn(f"{error}: a damaged checkpoint; the one before it is tried")
        if places:
            names = ", ".join(place.name for place in places)
            raise InputError(f"{Path(out) / FOLDER}: every checkpoint is damaged: {names}")

    found = dist.from_rank0(find, ranks)
    return None if found is None else Checkpoint(Path(found[0]), **found[1])


class Checkpoints:
    """What writes the checkpoints of the run in `out`.

        with Checkpoints(out, ranks, keep=3, background=True) as checkpoints:
            checkpoints.save(step, objective, optimizer, samples=step * B, config=config)

    All ranks make one, and make the same calls.

    Args:
        keep:       how many of the newest stay.
        background: `save` returns when the tensors are copied to host memory (as much again, held
                    from then on), and a thread writes them. The next `save`, `wait` or the end of
                    the block waits for it and raises its error; a process that ends finishes the
                    save under way.
    Raises:
        InputError: nothing can be written there, or `keep` is below 1.
    """

    def __init__(self, out: str | Path, ranks: dist.Ranks, keep: int = 3, background: bool = False):
        if keep < 1:
            raise InputError(f"{keep} checkpoints to be kept, expected at least 1")
        self.folder, self.ranks, self.keep = Path(out) / FOLDER, ranks, keep
        self.background, self.thread, self.failure = background, None, None
        self.copies: dict[str, dict[str, Tensor]] = {}
        dist.from_rank0(lambda: str(check_writable(self.folder)), ranks)

    def save(self, step: int, objective: nn.Module, optimizer: Optimizer, *, samples: int,
             config: dict, counters: dict | None = None) -> None:  # fmt: skip
        """Write the run as it stands after `step` optimiser steps.

        Args:
            samples:  read so far by all processes together.
            config:   the resolved configuration; fits JSON.
            counters: whatever else the loop counts; fits JSON. Rank 0's is kept.
        Raises:
            InputError: it cannot be written (the disk is full), and the checkpoints before it
                stand. In the background: the save before this one could not.
        """
        self.wait()
        random = state.random_state(self.ranks.device)
        own = {f"random/{name}": dist.all_gather(x, self.ranks) for name, x in random.items()}
        # as the interpreter exits, it has stopped waiting for threads
        background = self.background and threading.main_thread().is_alive()
        if self.ranks.rank == 0:
            known = {"step": step, "samples": samples, "counters": counters or {}, "config": config}
            try:
                text = self.describe(known, objective, optimizer)
                tensors = (state.weights(objective), state.moments(objective, optimizer), own)
                parts = dict(zip(PARTS, tensors, strict=True))
                if background:
                    parts = {part: self.copy(part, named) for part, named in parts.items()}
                    thread = threading.Thread(target=self.write, args=(step, parts, text))
                    thread.start()
                    self.thread = thread
                else:
                    self.write(step, parts, text)
            except Exception as error:  # for `wait` to raise on every rank
                self.failure = error
        if not background:
            self.wait()

    def copy(self, part: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        """The tensors in host memory, in the same places at every save: new ones cost more."""
        copies = self.copies.setdefault(part, {})
        for name, x in tensors.items():
            if name in copies:
                copies[name].copy_(x)
            else:
                copies[name] = x.to("cpu", copy=True)
        return {name: copies[name] for name in tensors}

    def describe(self, known: dict, objective: nn.Module, optimizer: Optimizer) -> bytes:
        """The text of state.json."""
        log = self.folder.parent / LOG
        groups = state.groups(objective, optimizer)
        record = {
            **known,
            "log_bytes": log.stat().st_size if log.exists() else 0,
            "world": self.ranks.world,
            "device": self.ranks.device.type,
            "optimizer": {"class": type(optimizer).__name__, "groups": groups},
            "versions": versions(),
        }
        return (json.dumps(record, indent=1, ensure_ascii=False) + "\n").encode()

    def write(self, step: int, parts: dict[str, dict[str, Tensor]], text: bytes) -> None:
        """Rank 0's part of a save, perhaps in a thread; an error is kept for `wait`."""
        try:
            store.write(self.folder, step, parts, text, also=self.folder.parent / LOG)
            places = store.standing(self.folder)
            later = [place for place in places if store.step_of(place) > step]
            for place in later:  # a future given up, when the run went on from an older checkpoint
                store.remove(place)
            for place in [place for place in places if place not in later][self.keep :]:
                store.remove(place)
        except OSError as error:
            stand = ", ".join(place.name for place in store.standing(self.folder)) or "none"
            self.failure = InputError(
                f"{error.filename or self.folder}: {error.strerror}: step {step} was not saved, "
                f"checkpoints that stand: {stand}; make room there and resume"
            )
        except Exception as error:
            self.failure = error

    def wait(self) -> None:
        """Until the save under way is on disk.

        Raises:
            InputError: it could not be written; on every rank.
        """
        if self.thread is not None:
            self.thread.join()
            self.thread = None
        failure, self.failure = self.failure, None

        def outcome():
            if failure is not None:
                raise failure

        dist.from_rank0(outcome, self.ranks)

    def clear(self) -> None:
        """Remove all: a new run in a used directory must never go on from the old one's."""

        def empty():
            for place in store.standing(self.folder):
                store.remove(place)

        self.wait()
        dist.from_rank0(empty, self.ranks)

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, kind, error, trace) -> None:
        if kind is None:
            self.wait()
        elif self.thread is not None:  # the run failed, perhaps on this rank alone: no collective
            self.thread.join()
