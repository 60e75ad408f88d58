"""Tasks for several processes, results in the order of the tasks: the one pool of this folder.

    with closing(ordered(Maker, (recipe,), tasks, workers=3)) as results:
        for result in results: ...

Each process builds its own `Maker(recipe)` once and calls it for task after task. The results do
not depend on the number of processes: the same calls are made, and come back in the same order.
Each process has a few tasks at any time, so that memory does not grow with their number.
"""

import multiprocessing
import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool

from minibio.run.errors import InputError

WAITING = 2  # tasks beyond one a process: submitted, not yet begun

work = None  # in a worker process: its `build(*arguments)`


def ordered(build: Callable, arguments: tuple, tasks: Iterable, workers: int) -> Iterator:
    """`build(*arguments)(task)` for each task, in order; with one worker, in this process.

    An exception of a task is raised here, in the place of its result.

    Raises:
        InputError: a process was killed.
    """
    if workers == 1:
        yield from map(build(*arguments), tasks)
        return
    # A fresh interpreter: a copy of this one (fork) would copy locks that its threads hold.
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(workers, context, begin, (build, arguments))
    try:
        waiting = deque()
        for task in tasks:
            waiting.append(pool.submit(call, task))
            if len(waiting) == workers + WAITING:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    except BrokenProcessPool:
        raise InputError(
            "a worker process was killed, perhaps for lack of memory; run again, with fewer "
            "--workers if need be: finished work is kept"
        ) from None
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def begin(build: Callable, arguments: tuple) -> None:
    """Prepare a worker process."""
    global work
    follow_parent()
    os.environ["TOKENIZERS_PARALLELISM"] = (
        "false"  # one thread a process: the others have the other cores
    )
    work = build(*arguments)


def follow_parent() -> None:
    """End this worker process with its parent, and not before.

    An interrupt reaches the parent too, which ends its workers. A killed parent cannot: without the
    thread its workers would wait for ever.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=end_with_parent, daemon=True).start()


def end_with_parent() -> None:
    multiprocessing.parent_process().join()
    os._exit(1)


def call(task):
    return work(task)


def n_cores() -> int:
    """Cores that this process may use, or those of the machine where the system does not say."""
    ask = getattr(os, "sched_getaffinity", None)
    return len(ask(0)) if ask else os.cpu_count() or 1
