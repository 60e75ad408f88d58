"""Work shared out to processes, results in the order of the tasks.

    with closing(ordered(Maker, (recipe,), tasks, workers=3)) as results:
        for result in results: ...

Each process builds its own `Maker(recipe)` once and calls it for task after task. The results do
not depend on the number of processes: the same calls are made, and come back in the same order.
A few tasks a process are under way at any time, so that memory does not grow with their number.
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

WAITING = 2  # tasks beyond one a process: handed over, not yet begun

work = None  # of this process: what was built for it


def ordered(build: Callable, arguments: tuple, tasks: Iterable, workers: int) -> Iterator:
    """`build(*arguments)(task)` for each task, in order; with one worker, in this process.

    What a task raises is raised here, in the place of its result.

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
            waiting.append(pool.submit(go_on, task))
            if len(waiting) == workers + WAITING:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    except BrokenProcessPool:
        raise InputError(
            "a worker process was killed, perhaps for want of memory; run again, with fewer "
            "--workers if need be: what was finished is kept"
        ) from None
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def begin(build: Callable, arguments: tuple) -> None:
    """The first thing a process does."""
    global work
    follow_parent()
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # one thread a process: the cores are taken
    work = build(*arguments)


def follow_parent() -> None:
    """Of a worker: it ends with its parent, and not before.

    An interrupt meets the parent too, which ends its workers. A killed parent tells nobody: without
    the thread its workers would wait for ever.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=end_with_parent, daemon=True).start()


def end_with_parent() -> None:
    multiprocessing.parent_process().join()
    os._exit(1)


def go_on(task):
    return work(task)


def n_cores() -> int:
    """Cores that this process may use; where the system does not say, those of the machine."""
    ask = getattr(os, "sched_getaffinity", None)
    return len(ask(0)) if ask else os.cpu_count() or 1
