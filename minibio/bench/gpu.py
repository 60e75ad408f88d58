"""`make gpu`: everything that only a GPU can say, in the order of its worth, in nine minutes.

    python -m minibio.bench.gpu                 all parts
    python -m minibio.bench.gpu smoke step      these

Each part is a process of its own, so that one that hangs or crashes harms no other. One that takes
longer than it may is interrupted, so that it can still say what it has found, and killed if that
does not help. Each line goes to the part's file in --out as soon as it is printed; tables are
beside it. The summary repeats what a long log hides: the first test that failed, the first CUDA
error.
"""

import argparse
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

import torch

from kernels.machine import ROOT

GRACE = 5  # seconds from the interrupt to the kill
SANITIZER = "compute-sanitizer"
FIRSTS = {  # what the summary repeats -> a line that has it
    "first failing test": re.compile(r"^(?:FAILED|ERROR) (tests/\S+.*)"),
    "first CUDA error": re.compile(
        r"(.*(?:CUDA error\b|Triton Error \[CUDA\]).*|========= (?:Invalid|Error|Race).*)"
    ),
}


class Part(NamedTuple):
    """One process."""

    name: str
    seconds: int  # at most
    command: str  # {out}: the directory of results; {tests}: the files with GPU tests
    is_report: bool = False  # its failure is not one of the whole


def sanitized(tool: str, heads: str) -> str:
    """The smallest of the smoke test: every access is watched, which takes a hundredfold longer."""
    return (
        f"env PYTORCH_NO_CUDA_MEMORY_CACHING=1 {SANITIZER} --tool {tool} --report-api-errors no "
        f"--error-exitcode 1 python -m kernels.bench.smoke --device cuda --no-rates "
        f"--dtypes bfloat16 --heads {heads}"
    )


PARTS = (
    Part("compile", 30, "python -m minibio.bench.compile"),
    Part("smoke", 40, "python -m kernels.bench.smoke --device cuda"),
    Part("memcheck", 50, sanitized("memcheck", "D26-D64 D32-D64 D64-D64")),
    Part("profile", 70, "python -m minibio.bench.profiled"),
    Part(
        "step", 130,
        "python -m minibio bench step --device cuda --methods compact tiny "
        "--out {out}/step.csv",
    ),
    Part("tests", 70, "python -m pytest -q -p no:cacheprovider -p minibio.bench.at_once "
         "{workers} -m gpu {tests}"),
    Part(
        "attention-kl", 60, "python -m kernels.bench attention-kl --device cuda "
        "--out {out}/attention-kl.csv",
    ),
    Part("masked-mlm", 18, "python -m kernels.bench masked-mlm --device cuda "
         "--out {out}/masked-mlm.csv"),
    # the loss that the rivals have too
    Part("masked-mlm-ce", 12, "python -m kernels.bench masked-mlm --device cuda --loss ce "
         "--shapes M7373-V30522-d312-d768 --sides eager linear-ce liger cce floor "
         "--out {out}/masked-mlm-ce.csv"),
    Part("sweep-attention", 20, "python -m kernels.bench attention-kl --device cuda --tune "
         "--out {out}/sweep-attention.csv"),
    Part("sweep-mlm", 20, "python -m kernels.bench masked-mlm --device cuda --tune "
         "--out {out}/sweep-mlm.csv"),
    Part("racecheck", 20, sanitized("racecheck", "D32-D64"), is_report=True),
)  # fmt: skip


class PartResult(NamedTuple):
    """Outcome of a part."""

    part: Part
    status: str  # "done", or what else happened
    seconds: float
    firsts: dict[str, str]  # of FIRSTS, those that were found

    @property
    def is_failure(self) -> bool:
        """Whether the whole has failed with it."""
        return self.status.startswith(("failed", "out of time")) and not self.part.is_report

    def __str__(self) -> str:
        return f"{self.part.name}: {self.status}, {self.seconds:.0f} s"


def words(command: str, out: Path) -> list[str]:
    """A part's command, ready to be started; a program that is not there keeps its bare name."""
    tests = (p for p in sorted((ROOT / "tests").rglob("test_*.py")) if "mark.gpu" in p.read_text())
    known = {
        "{tests}": [str(p.relative_to(ROOT)) for p in tests] if "{tests}" in command else [],
        "{workers}": ["-n", "8"] if find_spec("xdist") else [],
        "python": [sys.executable],
    }
    found = shutil.which(SANITIZER) or shutil.which("/usr/local/cuda/bin/" + SANITIZER)
    if found:
        known[SANITIZER] = [found]
    return [y for x in shlex.split(command) for y in known.get(x, [x.replace("{out}", str(out))])]


def copy_lines(lines, path: Path, last: list[str], firsts: dict[str, str]) -> None:
    """Print what a part prints, and write it to its file, line by line; keep what FIRSTS asks for.

    Args:
        last: its only element becomes the last line.
    """
    with path.open("w", encoding="utf-8") as file:
        for line in lines:
            print(line, end="", flush=True)
            file.write(line)
            file.flush()
            last[0] = line.strip() or last[0]
            for name, pattern in FIRSTS.items():
                if name not in firsts and (found := pattern.search(line)):
                    firsts[name] = found[1].strip()


def stop(process: subprocess.Popen, number: int) -> None:
    """Send a signal to a part and to all processes that it has started."""
    try:
        os.killpg(process.pid, number)
    except ProcessLookupError:
        pass  # all of them have ended


def run_part(part: Part, out: Path, seconds: float) -> PartResult:
    """Run one part for `seconds` at most."""
    command = words(part.command, out)
    if SANITIZER in command:
        return PartResult(part, f"not here: no {SANITIZER}", 0, {})
    began, last, firsts = time.monotonic(), [""], {}
    path = out / f"{part.name}.txt"
    path.touch()  # it is there before the part is
    process = subprocess.Popen(
        command,
        cwd=ROOT,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        start_new_session=True,
        env={**os.environ, "PYTHONUNBUFFERED": "1"},
    )
    reader = threading.Thread(target=copy_lines, args=(process.stdout, path, last, firsts))
    reader.start()
    is_late = False
    try:
        try:
            process.wait(seconds)
        except subprocess.TimeoutExpired:
            is_late = True
            stop(process, signal.SIGINT)
            process.wait(GRACE)
    except subprocess.TimeoutExpired:
        pass  # killed below
    finally:
        stop(process, signal.SIGKILL)
        process.wait()
        reader.join()
        process.stdout.close()
    status = process.returncode
    how = f"status {status}" if status >= 0 else f"signal {-status}"
    text = "out of time" if is_late else "done" if status == 0 else f"failed, {how}: {last[0]}"
    return PartResult(part, text, time.monotonic() - began, firsts)


def run_parts(parts: Sequence[Part], out: Path, seconds: float) -> list[PartResult]:
    """Run the parts one after the other, for `seconds` in all; the summary grows with each."""
    out.mkdir(parents=True, exist_ok=True)
    end, results = time.monotonic() + seconds, []
    for part in parts:
        for path in (out / f"{part.name}.txt", out / f"{part.name}.csv"):
            path.unlink(missing_ok=True)
        most = min(part.seconds, end - time.monotonic())
        if most > 0:
            print(f"{part.name}: at most {most:.0f} s", flush=True)
            results.append(run_part(part, out, most))
        else:
            results.append(PartResult(part, "no time left", 0, {}))
        (out / "summary.txt").write_text(summary(results), "utf-8")
    return results


def summary(results: Sequence[PartResult]) -> str:
    """A line for each part, then the first of each of FIRSTS."""
    lines = [str(x) for x in results]
    for name in FIRSTS:
        found = next((x for x in results if name in x.firsts), None)
        if found is not None:
            lines.append(f"{name}: {found.firsts[name]} ({found.part.name})")
    return "\n".join(lines) + "\n"


def main(argv: Sequence[str] | None = None, parts: Sequence[Part] = PARTS) -> int:
    """1: a part failed; 2: there is no GPU, or no such part."""
    p = argparse.ArgumentParser("make gpu", description=__doc__.split("\n")[0])
    p.add_argument("only", nargs="*", metavar="PART", help=", ".join(x.name for x in parts))
    p.add_argument("--out", type=Path, default=Path("bench-results"), help="directory of results")
    p.add_argument("--seconds", type=float, default=540, help="for all parts together")
    args = p.parse_args(argv)
    unknown = [name for name in args.only if name not in {x.name for x in parts}]
    if unknown:
        print(f"make gpu: no part {unknown[0]}, expected {', '.join(x.name for x in parts)}")
        return 2
    if not torch.cuda.is_available():
        print("make gpu: torch sees no GPU on this machine")
        return 2
    chosen = [x for x in parts if x.name in args.only or not args.only]
    results = run_parts(chosen, args.out.absolute(), args.seconds)
    print(f"\n{summary(results)}", end="")
    return int(any(x.is_failure for x in results))


if __name__ == "__main__":
    sys.exit(main())
