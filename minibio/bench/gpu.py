"""Everything worth running on a machine with a GPU, inside nine minutes: `make gpu`.

    python -m minibio.bench.gpu --out bench-results              all parts, in order of worth
    python -m minibio.bench.gpu --out bench-results --part step  one

Each part is a process with a time budget of its own; its table is on disk as soon as it is done,
and as far as it came if time ran out. What did not fit, failed, or lacked a package is listed at
the end and in summary.txt. A new benchmark is a new row of PARTS.
"""

import argparse
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

import torch

from kernels.machine import ROOT, describe
from minibio.run import errors
from minibio.run.errors import InputError
from minibio.run.files import check_writable

DEADLINE_S = 540  # of all parts together
LEAST_S = 15  # with less left, a part is not started: importing torch alone takes seconds
MOST_FILES = 8  # flat, the summary among them
SUMMARY = "summary.txt"
CUDA_PROGRAMS = "/usr/local/cuda/bin"  # where the toolkit has them, often not on the PATH


class Part(NamedTuple):
    """One thing to run."""

    name: str
    command: tuple[str, ...]  # {python}, {file} and its {folder} are filled in
    budget_s: int
    file: str  # .csv: written by the command; .txt: what the command prints
    needs: tuple[str, ...] = ()  # packages it cannot do without
    uses: tuple[str, ...] = ()  # packages without which it does less
    programs: tuple[str, ...] = ()  # commands it cannot do without


PARTS = (
    Part("tests", ("{python}", "-m", "pytest", "-q", "-p", "no:cacheprovider",
                   "-m", "gpu", "{gpu_tests}"), 240, "gpu-tests.txt",
         needs=("pytest",), uses=("triton", "hypothesis", "transformers")),
    Part("attention-kl", ("{python}", "-m", "kernels.bench", "attention-kl", "--device", "cuda",
                          "--out", "{file}"), 180, "attention-kl.csv", needs=("triton",)),
    Part("masked-mlm", ("{python}", "-m", "kernels.bench", "masked-mlm", "--device", "cuda",
                        "--out", "{file}"), 120, "masked-mlm.csv", needs=("triton",)),
    Part("step", ("{python}", "-m", "minibio", "bench", "step", "--device", "cuda",
                  "--fidelity", "released", "paper", "--out", "{file}"), 240, "step.csv",
         uses=("transformers",)),
    Part("encoder", ("{python}", "-m", "minibio", "bench", "encoder", "--device", "cuda",
                     "--out", "{file}"), 150, "encoder.csv", uses=("transformers",)),
    Part("speed", ("{python}", "eval.py", "speed", "--device", "cuda", "--precision", "fp32",
                   "bf16", "--seconds", "3", "--no-picture", "--out", "{folder}"), 90,
         "speed.csv"),
    Part("sanitizer", ("make", "--no-print-directory", "sanitize", "PYTHON={python}"), 200,
         "sanitizer.txt", needs=("pytest", "triton"), programs=("make", "compute-sanitizer")),
)  # fmt: skip


class Result(NamedTuple):
    """What became of a part."""

    name: str
    status: str  # done | failed | out of time | no time left | left out
    seconds: float
    note: str


def gpu_tests() -> list[str]:
    """The test files with tests for a GPU. Others may import what this machine does not have."""
    files = sorted((ROOT / "tests").rglob("test_*.py"))
    return [str(path.relative_to(ROOT)) for path in files if "mark.gpu" in path.read_text("utf-8")]


def fill_in(command: tuple[str, ...], file: Path) -> list[str]:
    """The command as it is run."""
    words = []
    for word in command:
        words += gpu_tests() if word == "{gpu_tests}" else [word]
    names = {"python": sys.executable, "file": file, "folder": file.parent}
    return [word.format(**names) for word in words]


def stop(process: subprocess.Popen) -> None:
    """End a part's process and the processes it started."""
    with suppress(ProcessLookupError):  # it ended by itself at this very moment
        os.killpg(process.pid, signal.SIGKILL)


def run_part(part: Part, out: Path, seconds: float, header: str) -> Result:
    """Run one part for at most `seconds`, showing what it prints; its file begins with `header`."""
    missing = [name for name in part.needs if find_spec(name) is None]
    if missing:
        return Result(part.name, "left out", 0, f"{', '.join(missing)} cannot be imported here")
    path = f"{os.environ.get('PATH', '')}:{CUDA_PROGRAMS}"
    missing = [name for name in part.programs if shutil.which(name, path=path) is None]
    if missing:
        return Result(part.name, "left out", 0, f"there is no {', '.join(missing)} here")
    without = [name for name in part.uses if find_spec(name) is None]
    note = f"without {', '.join(without)}" if without else ""
    file = out / part.file
    file.unlink(missing_ok=True)
    began = time.monotonic()
    lines = []
    with subprocess.Popen(
        fill_in(part.command, file), cwd=ROOT, text=True, errors="replace",
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        start_new_session=True,  # a group of its own, so that its children stop with it
    ) as process:  # fmt: skip
        timer = threading.Timer(seconds, stop, [process])
        timer.start()
        for line in process.stdout:
            print(f"  {line}", end="", flush=True)
            lines.append(line)
        status = process.wait()
        timer.cancel()
    took = time.monotonic() - began
    if file.suffix == ".txt":
        file.write_text(f"# {header}\n{''.join(lines)}", "utf-8")
    elif file.exists() and not file.read_text("utf-8").startswith("# "):
        file.write_text(f"# {header}\n{file.read_text('utf-8')}", "utf-8")
    if status == -signal.SIGKILL and took >= seconds:
        return Result(part.name, "out of time", took, f"stopped after {seconds:.0f} s")
    if status:
        said = " / ".join(line.strip() for line in lines[-2:])
        return Result(part.name, "failed", took, f"exit status {status}: {said}")
    return Result(part.name, "done", took, note)


def summary(results: list[Result], parts, header: str) -> str:
    """The table of parts, and below it what did not come to its end."""
    files = {part.name: part.file for part in parts}
    rows = [f"# {header}"]
    for r in results:
        rows.append(f"{r.name:<16} {r.status:<12} {r.seconds:6.1f} s  {files[r.name]}  {r.note}")
    undone = [f"{r.name} ({r.status})" for r in results if r.status != "done"]
    rows.append(f"not done: {', '.join(undone) or 'nothing'}")
    return "\n".join(row.rstrip() for row in rows) + "\n"


def run_parts(parts, out: Path, header: str, deadline_s: float = DEADLINE_S) -> list[Result]:
    """Run the parts in their order until the deadline; the summary is written after each of them.

    Args:
        parts:      rows of PARTS.
        out:        directory of the tables.
        header:     first line of each table.
        deadline_s: seconds for all parts together.
    """
    out.mkdir(parents=True, exist_ok=True)
    end = time.monotonic() + deadline_s
    results = []
    for part in parts:
        left = end - time.monotonic()
        if left < min(LEAST_S, part.budget_s):
            results.append(Result(part.name, "no time left", 0, f"{max(left, 0):.0f} s were left"))
        else:
            print(f"{part.name}: at most {min(part.budget_s, left):.0f} s", flush=True)
            results.append(run_part(part, out, min(part.budget_s, left), header))
        (out / SUMMARY).write_text(summary(results, parts, header), "utf-8")
    return results


def main(argv=None) -> int:
    p = argparse.ArgumentParser("minibio.bench.gpu", description=__doc__.split("\n")[0])
    p.add_argument("--out", type=Path, default=Path("bench-results"), help="directory of tables")
    p.add_argument("--part", choices=[part.name for part in PARTS], help="this part alone")
    args = p.parse_args(argv)
    if not torch.cuda.is_available():
        raise InputError("torch sees no GPU on this machine")
    out = check_writable(args.out).resolve()
    parts = [part for part in PARTS if args.part in (None, part.name)]
    header = describe(torch.device("cuda"))
    results = run_parts(parts, out, header)
    print("\n" + summary(results, parts, header), end="")
    return int(any(r.status in ("failed", "out of time") for r in results))


if __name__ == "__main__":
    errors.run(main, "make gpu")
