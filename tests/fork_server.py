"""Starts Python commands as forks of a process that has imported torch and this repository.

`helpers.processes` keeps one for the tests of a session: a command then begins in hundredths of a
second, not in three. Each is a process of its own, with its own memory, signals and exit status.

    request, one line of JSON   [{"argv", "env", "cwd", "out", "err", "own_end"}, ...], at once
    answers, one line each      [pid, ...]; then [pid, status] as each one ends
"""

import atexit
import contextlib
import gc
import importlib
import json
import os
import runpy
import signal
import sys
import threading
import traceback
from typing import NoReturn

# torch._dynamo: optimisers import it at their first step
PRELOADED = ("torch", "torch._dynamo", "numpy", "tokenizers", "safetensors.torch", "pytest",
             "helpers", "train", "eval", "data.shard.shard", "data.sample.sample")  # fmt: skip
IF_THERE = ("triton",)


def become(job: dict) -> int:
    """Run a command in this process, as `python ARGV` would -> its exit status."""
    os.chdir(job["cwd"])
    for name, number in (("out", 1), ("err", 2)):
        os.dup2(os.open(job[name], os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.environ.clear()
    os.environ.update(job["env"])
    signal.signal(signal.SIGINT, signal.default_int_handler)
    head, *rest = job["argv"]
    folders = [x for x in os.environ.get("PYTHONPATH", "").split(os.pathsep) if x]
    sys.path[:] = [*folders, *(x for x in sys.path if x not in folders)]
    sys.argv = job["argv"]
    try:
        if head == "-c":
            sys.argv = ["-c", *rest[1:]]
            exec(compile(rest[0], "<string>", "exec"), {"__name__": "__main__"})
        elif head == "-m":
            sys.argv = rest
            runpy.run_module(rest[0], run_name="__main__", alter_sys=True)
        else:
            runpy.run_path(head, run_name="__main__")
    except SystemExit as leaving:
        if isinstance(leaving.code, str):
            print(leaving.code, file=sys.stderr)
            return 1
        return leaving.code or 0
    except BaseException:
        traceback.print_exc()
        return 1
    return 0


def leave(status: int, own_end: bool = False) -> NoReturn:
    """End as Python does, by its own end or without taking apart torch's modules: a second less."""
    if own_end:
        gc.unfreeze()
        sys.exit(status)
    threading._shutdown()  # waits for threads that are not daemons
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


def serve() -> NoReturn:
    """Answer requests until standard input ends."""
    for name in PRELOADED:
        importlib.import_module(name)
    for name in IF_THERE:
        with contextlib.suppress(ImportError):
            importlib.import_module(name)
    sys.modules["helpers"].without_pictures()
    gc.collect()
    gc.freeze()  # what is imported is never garbage: forks need not look at it, nor copy its pages
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    for line in iter(sys.stdin.readline, ""):
        pids = []
        for job in json.loads(line):
            if (pid := os.fork()) == 0:
                leave(become(job), job["own_end"])
            pids.append(pid)
        print(json.dumps(pids), file=answers)
        for _ in pids:
            pid, status = os.wait()
            print(json.dumps([pid, os.waitstatus_to_exitcode(status)]), file=answers)
    leave(0)


if __name__ == "__main__":
    serve()
