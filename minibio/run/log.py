"""What a run tells: a progress bar for people, JSON lines for machines. Rank 0 alone speaks."""

import json
import resource
import sys
from pathlib import Path

import torch

from minibio.run.dist import Ranks


class RunLog:
    """One JSON object a line, flushed at once, so that a killed run leaves every line it wrote.

    with RunLog(out / "log.jsonl", ranks) as journal: ...   closed, whatever happens inside.

    Args:
        goes_on: write after what is there, instead of anew.
    """

    def __init__(self, path: str | Path, ranks: Ranks, goes_on: bool = False):
        mode = "a" if goes_on else "w"
        self.file = open(path, mode, encoding="utf-8") if ranks.rank == 0 else None

    def write(self, event: dict) -> None:
        """Append one event; "event" names its kind."""
        if self.file is not None:
            self.file.write(json.dumps(event) + "\n")
            self.file.flush()

    def __enter__(self) -> "RunLog":
        return self

    def __exit__(self, *error) -> None:
        if self.file is not None:
            self.file.close()


def progress(total: int, description: str, ranks: Ranks, unit: str = "step"):
    """A tqdm bar, quiet where nobody watches: off the terminal and off rank 0."""
    from tqdm import tqdm

    is_quiet = ranks.rank != 0 or not sys.stderr.isatty()
    return tqdm(total=total, desc=description, unit=unit, disable=is_quiet, dynamic_ncols=True)


def say(text: str, ranks: Ranks) -> None:
    """A line of text on rank 0, above the progress bar if there is one."""
    if ranks.rank == 0:
        from tqdm import tqdm

        tqdm.write(text)
        sys.stdout.flush()


def interval_line(line: dict, steps: int) -> str:
    """One logged interval for people: every term of the loss, and how it goes."""
    known = {"event", "step", "loss", "lr", "grad_norm", "samples", "tokens", "tokens_per_s",
             "memory_gib", "eta_s", "skipped"}  # fmt: skip
    terms = [f"{name} {x:.4g}" for name, x in line.items() if name not in known]
    if "loss" in line:
        terms = [f"loss {line['loss']:.4f}", *terms, f"norm {line['grad_norm']:.3g}"]
    tail = [f"lr {line['lr']:.2e}", f"{line['tokens_per_s']:,} tokens/s",
            f"{line['memory_gib']:.2f} GiB", f"eta {duration(line['eta_s'])}"]  # fmt: skip
    if line["skipped"]:
        tail.append(f"skipped {line['skipped']}")
    return "  ".join([f"step {line['step']}/{steps}", *terms, *tail])


def duration(seconds: float) -> str:
    """12 ms, 3.4 s, 5 min, 7 h, 2 days."""
    for unit, size, until in (("ms", 1e-3, 1), ("s", 1, 120), ("min", 60, 7200), ("h", 3600, 2e5)):
        if seconds < until:
            return f"{seconds / size:.3g} {unit}"
    return f"{seconds / 86400:.3g} days"


def peak_bytes(device: torch.device) -> int:
    """The most memory that this process has held so far: the device's, or on a CPU its own."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    unit = 1 if sys.platform == "darwin" else 1024  # of ru_maxrss
    return unit * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
