"""The checkpoints of a run, so that nothing is ever lost: safetensors and JSON, no pickle.

    out/checkpoints/step-00001234/
        weights.safetensors     the objective: student and projections, tied tensors once
        optimizer.safetensors   AdamW's moments and counts, by the name of their parameter
        ranks.safetensors       (world, ...): each rank's random state
        state.json              step, samples, counters, configuration, length of the log, versions
        manifest.json           size and sha256 of the others

Python's and NumPy's random states are not among them: nothing here draws from either (samples and
masks follow from (seed, position): text/corpus.py). Everything is checked before anything is put
back. The newest few checkpoints are kept, and an older one is removed once the newer one is whole:
whenever a process is killed, at least one whole checkpoint is there.

Only rank 0 touches the disk; tensors of the other ranks travel to it and back. So no rank waits for
a file that another has yet to write, and of several machines only the first needs `out`. store.py
brings a checkpoint to disk; rundir.py is the directory around them.
"""

import json
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np
import torch
import torch.nn as nn
from torch import Tensor
from torch.optim import Optimizer

import minibio
from minibio.run import dist, files, store
from minibio.run.errors import InputError
from minibio.run.files import check_writable

PARTS = ("weights", "optimizer", "ranks")
FOLDER, LOG = "checkpoints", "log.jsonl"  # in the run's directory
MOMENTS = {"step", "exp_avg", "exp_avg_sq"}  # of AdamW, for each parameter
ANY_MACHINE = frozenset({"world"})  # of a configuration: the same run all the same
ADVICE = "resume with the options of the run that wrote it"
ABSENT = "not recorded"


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

    def changes(
        self, config: dict, may_differ: frozenset[str], ranks: dist.Ranks
    ) -> list[tuple[str, object, object]]:
        """[(name, then, now)] of what differs in the run that resumes from here, to be printed.

        Raises:
            InputError: something differs that makes it another run.
        """
        then = {"processes": self.world, "on": self.device, **self.versions}
        now = {"processes": ranks.world, "on": ranks.device.type, **versions()}
        around = [(name, then.get(name), now[name]) for name in now if then.get(name) != now[name]]
        return changes(self.config, config, may_differ, self.path) + around

    def restore(
        self, objective: nn.Module, optimizer: Optimizer, ranks: dist.Ranks, *, seed: int
    ) -> None:
        """Put everything back. All ranks call it, after whatever else draws random numbers.

        Random states are the checkpoint's where number of processes and kind of device are the
        same; otherwise they are drawn again from (seed, step, rank), and a line says so.

        Raises:
            InputError: names or shapes are not those here; nothing is changed then.
        """
        stored = {}
        dist.from_rank0(lambda: stored.update(store.read(self.path, PARTS)), ranks)
        parts = {part: {} for part in ("weights", "optimizer", "random")}
        for name, x in dist.tensors_from_rank0(stored, ranks).items():
            part, _, name = name.removeprefix("ranks/").partition("/")
            parts.setdefault(part, {})[name] = x
        if type(optimizer).__name__ != self.optimizer.get("class"):
            raise InputError(
                f"{self.path}: the optimiser was {self.optimizer.get('class')}, expected "
                f"{type(optimizer).__name__}"
            )
        check_weights(parts["weights"], objective, self.path)
        then = self.optimizer.get("groups", [])
        check_moments(parts["optimizer"], then, objective, optimizer, self.path)
        check_random_state(parts["random"], self.world, self.device, self.path)
        put_weights(objective, parts["weights"])
        put_moments(objective, optimizer, parts["optimizer"])
        if (self.world, self.device) == (ranks.world, ranks.device.type):
            mine = {name: x[ranks.rank] for name, x in parts["random"].items()}
            put_random_state(mine, ranks.device)
        else:
            fresh_random_state(seed, self.step, ranks.rank)
            dist.print0(
                f"random states are drawn again from (seed, step, rank): the checkpoint is of "
                f"{self.world} x {self.device}, this run of {ranks.world} x {ranks.device.type}"
            )

    def cut_log(self, ranks: dist.Ranks) -> None:
        """Drop the log's lines of later steps: the resumed run writes them again."""
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
        places = store.whole(Path(out) / FOLDER)
        for place in places:
            try:
                return [str(place), store.check(place, PARTS)]
            except (InputError, OSError) as error:
                warn(f"{error}: a damaged checkpoint; the one before it is tried")
        if places:
            names = ", ".join(place.name for place in places)
            raise InputError(f"{Path(out) / FOLDER}: every checkpoint is damaged: {names}")

    found = dist.from_rank0(find, ranks)
    if found is None:
        return None
    place, state = found
    check_fields(state, Path(place))
    return Checkpoint(Path(place), **state)


def check_fields(state: dict, place: Path) -> None:
    """Refuse a state.json of another version: other fields, or other types.

    Raises:
        InputError: naming the field.
    """
    types = {f.name: f.type for f in fields(Checkpoint) if f.name != "path"}
    for name in {**types, **state}:
        kind = types.get(name)
        if name not in state or kind is None:
            what = "has no" if kind else "has an unknown"
            raise InputError(f"{place / store.STATE} {what} {name!r}: {store.OTHER_VERSION}")
        if type(state[name]) is not kind:
            expected = f"expected {kind.__name__}: {store.OTHER_VERSION}"
            raise InputError(f"{place / store.STATE}: {name} is {state[name]!r}, {expected}")


class Checkpoints:
    """The checkpoints of the run in `out`, the newest few of them kept.

        checkpoints = Checkpoints(out, ranks, keep=3)
        checkpoints.save(step, objective, optimizer, samples=step * B, config=config)

    All ranks make one, and make the same calls.

    Raises:
        InputError: nothing can be written there, or `keep` is below 1.
    """

    def __init__(self, out: str | Path, ranks: dist.Ranks, keep: int = 3):
        if keep < 1:
            raise InputError(f"{keep} checkpoints to be kept, expected at least 1")
        self.folder, self.ranks, self.keep = Path(out) / FOLDER, ranks, keep
        dist.from_rank0(lambda: str(check_writable(self.folder)), ranks)

    def save(
        self,
        step: int,
        objective: nn.Module,
        optimizer: Optimizer,
        *,
        samples: int,
        config: dict,
        counters: dict | None = None,
        is_due: Callable[[int], bool] = lambda step: True,
    ) -> None:
        """Write the run as it is after `step` optimiser steps.

        One that is not due, of a stop, is kept beside the others until the next one is written:
        what a run leaves does not depend on its stops.

        Args:
            samples:  read so far by all ranks together.
            config:   the resolved configuration; fits JSON.
            counters: whatever else the loop counts; fits JSON. Rank 0's is kept.
            is_due:   whether a run that is never stopped writes one after that step.
        Raises:
            InputError: it cannot be written (the disk is full); the checkpoints before it are kept.
        """
        random = random_state(self.ranks.device)
        own = {f"random/{name}": dist.all_gather(x, self.ranks) for name, x in random.items()}
        known = {"step": step, "samples": samples, "counters": counters or {}, "config": config}

        def write():
            text = self.describe(known, objective, optimizer)
            tensors = (weights(objective), moments(objective, optimizer), own)
            self.write(step, dict(zip(PARTS, tensors, strict=True)), text, is_due)

        dist.from_rank0(write, self.ranks)

    def describe(self, known: dict, objective: nn.Module, optimizer: Optimizer) -> bytes:
        """The text of state.json."""
        log = self.folder.parent / LOG
        record = {
            **known,
            "log_bytes": log.stat().st_size if log.exists() else 0,
            "world": self.ranks.world,
            "device": self.ranks.device.type,
            "optimizer": {
                "class": type(optimizer).__name__,
                "groups": groups(objective, optimizer),
            },
            "versions": versions(),
        }
        return (json.dumps(record, indent=1, ensure_ascii=False) + "\n").encode()

    def write(
        self,
        step: int,
        parts: dict[str, dict[str, Tensor]],
        text: bytes,
        is_due: Callable[[int], bool],
    ) -> None:
        """Write one checkpoint, then remove those that are not to be kept."""
        try:
            store.write(self.folder, step, parts, text, also=self.folder.parent / LOG)
            places = store.whole(self.folder)
            later = [place for place in places if store.step_of(place) > step]
            for place in later:  # a future given up, when the run resumed from an older checkpoint
                store.remove(place)
            _, *older = [place for place in places if place not in later]
            if older and not is_due(store.step_of(older[0])):
                store.remove(older.pop(0))
            for place in older[self.keep - is_due(step) :]:
                store.remove(place)
        except OSError as error:
            kept = ", ".join(place.name for place in store.whole(self.folder)) or "none"
            raise InputError(
                f"{error.filename or self.folder}: {error.strerror}: step {step} was not saved, "
                f"checkpoints that are whole: {kept}; make room there and resume"
            ) from None

    def clear(self) -> None:
        """Remove all: a new run in a used directory must never resume the old one's."""
        dist.from_rank0(lambda: files.remove(self.folder), self.ranks)


# a run as named tensors


def plain(name: str) -> str:
    """A parameter's name without what torch.compile and DistributedDataParallel add to it."""
    return name.replace("_orig_mod.", "").removeprefix("module.")


def weights(objective: nn.Module) -> dict[str, Tensor]:
    """Name -> parameter or persistent buffer, the tensors themselves; a shared one comes once."""
    persistent = objective.state_dict(keep_vars=True)
    named = {**dict(objective.named_parameters()), **dict(objective.named_buffers())}
    return {plain(name): x.detach() for name, x in named.items() if name in persistent}


def groups(objective: nn.Module, optimizer: Optimizer) -> list[list[str]]:
    """The names of the parameters in each of the optimiser's groups, in its order."""
    names = {p: plain(name) for name, p in objective.named_parameters()}
    return [[names[p] for p in group["params"]] for group in optimizer.param_groups]


def moments(objective: nn.Module, optimizer: Optimizer) -> dict[str, Tensor]:
    """KEY:NAME -> that tensor of the optimiser's state; empty before its first step."""
    names = {p: plain(name) for name, p in objective.named_parameters()}
    return {
        f"{key}:{names[p]}": x for p, kept in optimizer.state.items() for key, x in kept.items()
    }


def check_weights(stored: dict[str, Tensor], objective: nn.Module, where: Path) -> None:
    """Refuse weights that are not those of this objective.

    Raises:
        InputError: a name is missing or unexpected, a shape or a precision differs.
    """
    present = weights(objective)
    for name, x in present.items():
        if name not in stored:
            raise InputError(f"{where}: no {name} in it, expected {tuple(x.shape)}; {ADVICE}")
        y = stored[name]
        if x.shape != y.shape:
            raise InputError(
                f"{where}: {name} is {tuple(y.shape)}, expected {tuple(x.shape)}; {ADVICE}"
            )
        if x.dtype != y.dtype:
            raise InputError(f"{where}: {name} is {y.dtype}, expected {x.dtype}; {ADVICE}")
    for name in stored:
        if name not in present:
            raise InputError(f"{where}: {name} is in it, but not in this run; {ADVICE}")


def check_moments(
    stored: dict[str, Tensor],
    stored_groups: list[list[str]],
    objective: nn.Module,
    optimizer: Optimizer,
    where: Path,
) -> None:
    """Refuse an optimiser's state that is of other parameters, or of other groups of them.

    Raises:
        InputError: it is.
    """
    present_groups = groups(objective, optimizer)
    then, now = (
        {name: f"group {i}" for i, names in enumerate(listed) for name in names}
        for listed in (stored_groups, present_groups)
    )
    for name in {**now, **then}:
        was, is_ = then.get(name, "no group"), now.get(name, "no group")
        if was != is_:
            raise InputError(
                f"{where}: {name} was in {was} of the optimiser, expected {is_}; {ADVICE}"
            )
    if stored_groups != present_groups:
        raise InputError(f"{where}: the optimiser had its parameters in another order; {ADVICE}")
    shapes = {name: x.shape for name, x in weights(objective).items()}
    keys: dict[str, set[str]] = {}
    for full, x in stored.items():
        key, _, name = full.partition(":")
        keys.setdefault(name, set()).add(key)
        if name not in now:
            raise InputError(f"{where}: {full} is of no parameter of this run; {ADVICE}")
        if x.dim() and x.shape != shapes[name]:
            raise InputError(
                f"{where}: {full} is {tuple(x.shape)}, expected {tuple(shapes[name])}; {ADVICE}"
            )
    for name, found in keys.items():
        if missing := MOMENTS - found:
            raise InputError(f"{where}: no {min(missing)}:{name} in it; {ADVICE}")


def check_random_state(stored: dict[str, Tensor], world: int, device: str, where: Path) -> None:
    """Refuse random states that are not one for each rank.

    Raises:
        InputError: they are not.
    """
    expected = {"cpu": (world, *torch.get_rng_state().shape)}
    if device == "cuda":
        expected["cuda"] = stored["cuda"].shape if "cuda" in stored else (world,)
    for name, shape in expected.items():
        found = tuple(stored[name].shape) if name in stored else "missing"
        if found != tuple(shape):
            raise InputError(f"{where}: the random state {name!r} is {found}, expected {shape}")


@torch.no_grad()
def put_weights(objective: nn.Module, stored: dict[str, Tensor]) -> None:
    """Fill the objective's tensors in place; `check_weights` comes before."""
    for name, x in weights(objective).items():
        x.copy_(stored[name])


def put_moments(objective: nn.Module, optimizer: Optimizer, stored: dict[str, Tensor]) -> None:
    """Fill the optimiser's state; `check_moments` comes before.

    Its options (lr, weight_decay, ...) stay what they are: they are the present run's.
    """
    kept = {}
    order = {name: i for i, name in enumerate(sum(groups(objective, optimizer), []))}
    for full, x in stored.items():
        key, name = full.split(":", 1)
        kept.setdefault(order[name], {})[key] = x.clone()  # what was read may be a mapped file
    optimizer.load_state_dict({**optimizer.state_dict(), "state": kept})


def random_state(device: torch.device) -> dict[str, Tensor]:
    """This process's generators, that of the CPU and, on a GPU, that one's: uint8."""
    kept = {"cpu": torch.get_rng_state()}
    if device.type == "cuda":
        kept["cuda"] = torch.cuda.get_rng_state(device)
    return kept


def put_random_state(kept: dict[str, Tensor], device: torch.device) -> None:
    """Set the generators as they were."""
    # copies: torch reads a view's storage from its start, wherever the view begins
    torch.set_rng_state(kept["cpu"].clone())
    if device.type == "cuda":
        torch.cuda.set_rng_state(kept["cuda"].clone(), device)


def fresh_random_state(seed: int, step: int, rank: int) -> None:
    """Seed the generators again, as a function of these three only."""
    (mixed,) = np.random.SeedSequence((seed, step, rank)).generate_state(1, np.uint64)
    torch.manual_seed(int(mixed))  # the GPUs' too


def changes(
    stored: dict, present: dict, may_differ: frozenset[str], where: Path
) -> list[tuple[str, object, object]]:
    """Fields in which a resumed run differs from the run it continues: [(name, then, now)].

    Args:
        stored, present: resolved configurations: `RunConfig` as a dict and whatever else fits JSON.
            A field that only one of them has (another version's) is listed, not refused.
        may_differ: fields that a resumed run may have otherwise (`options.may_differ`).
    Raises:
        InputError: they differ in what makes it the same run; every such field is named.
    """
    present = json.loads(json.dumps(present))  # tuples become lists, as they did in the file
    names = list({**stored, **present})
    both = [(name, stored.get(name, ABSENT), present.get(name, ABSENT)) for name in names]
    differ = [(name, then, now) for name, then, now in both if then != now]
    wrong = [
        difference(name, then, now)
        for name, then, now in differ
        if name not in may_differ and ABSENT not in (then, now)
    ]
    if wrong:
        raise InputError(
            f"{where} is of another run: {'; '.join(wrong)}; resume with these values, or start "
            f"a run of its own in another --out"
        )
    return differ


def difference(name: str, then: object, now: object) -> str:
    """`name is NOW, expected THEN`; of two tables only the entries that differ."""
    if isinstance(then, dict) and isinstance(now, dict):
        keys = [key for key in {**then, **now} if then.get(key) != now.get(key)]
        return ", ".join(difference(f"{name}.{key}", then.get(key), now.get(key)) for key in keys)
    return f"{name} is {now!r}, expected {then!r}"
