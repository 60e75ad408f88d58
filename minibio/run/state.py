"""A run as named tensors: what has to be kept so that the next step is the step it would have been.

    weights    parameters and buffers of the objective: student and projections, tied ones once
    optimizer  AdamW's moments and counts, by the name of the parameter they belong to
    ranks      what each process has for itself: random state, sums of the interval under way

Python's and NumPy's random states are not among them: nothing here draws from either (samples and
masks follow from (seed, position): corpus.py). Everything is checked before anything is put back.
checkpoint.py brings all this to disk.
"""

import json
from pathlib import Path

import numpy as np
import torch
import torch.nn as nn
from torch import Tensor
from torch.optim import Optimizer

from minibio.run.errors import InputError

# What a resumed run may have otherwise than the run it continues. Everything else has to agree:
# the model, the equation and its weights, and seed, length and batch, since step n reads the
# samples n batch to (n + 1) batch of the line that seed and length make.
MAY_DIFFER = frozenset({
    # pure functions of the step, from here on; `steps` lengthens a run
    "steps", "lr", "warmup", "schedule", "weight_decay", "betas", "adam_eps", "clip",
    # how the same sums are computed: equal to rounding. The global batch is cut otherwise by
    # another number of processes or micro-batches, its samples and its denominators are the same
    "precision", "accumulate", "world", "device", "kernels", "compile", "tf32", "teacher_precision",
    # what is looked at and what is kept
    "log_every", "eval_every", "save_every", "keep", "background",
    # directories move; that their contents are the same, other fields say
    "out", "corpus", "teacher", "start", "sample",
})  # fmt: skip

ADVICE = "resume with the options of the run that wrote it"
ABSENT = "not recorded"


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


def check_moments(stored: dict[str, Tensor], stored_groups: list[list[str]],
                  objective: nn.Module, optimizer: Optimizer, where: Path) -> None:  # fmt: skip
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
    for full, x in stored.items():
        name = full.split(":", 1)[1]
        if x.dim() and x.shape != shapes[name]:
            raise InputError(
                f"{where}: {full} is {tuple(x.shape)}, expected {tuple(shapes[name])}; {ADVICE}"
            )


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
    """Start the generators anew, as a function of these three alone."""
    (mixed,) = np.random.SeedSequence((seed, step, rank)).generate_state(1, np.uint64)
    torch.manual_seed(int(mixed))  # the GPUs' too


def changes(stored: dict, present: dict, where: Path) -> list[tuple[str, object, object]]:
    """What a resumed run has otherwise than the run it continues: [(name, then, now)].

    Args:
        stored, present: resolved configurations: `RunConfig` as a dict and whatever else fits JSON.
            A field that only one of them has (another version's) is told, not refused.
    Raises:
        InputError: they differ in what makes it the same run; every such field is named.
    """
    present = json.loads(json.dumps(present))  # tuples become lists, as they did in the file
    names = list({**stored, **present})
    both = [(name, stored.get(name, ABSENT), present.get(name, ABSENT)) for name in names]
    differ = [(name, then, now) for name, then, now in both if then != now]
    wrong = [
        f"{name} is {now!r}, expected {then!r}"
        for name, then, now in differ
        if name not in MAY_DIFFER and ABSENT not in (then, now)
    ]
    if wrong:
        raise InputError(
            f"{where} is of another run: {'; '.join(wrong)}; resume with these values, or start "
            f"a run of its own in another --out"
        )
    return differ
