"""Tasks for several processes, results in the order of the tasks: the one pool of this folder.

    with closing(ordered(Maker, (recipe,), tasks, workers=3)) as results:
        for result in results: ...

Each process builds its own `Maker(recipe)` once and calls it for task after task, which it gets
through a pipe of its own. The results do not depend on the number of processes: the same calls are
made, and come back in the same order. Few tasks are under way at any time, so that memory does not
grow with their number. No thread of this process takes part, so an interrupt at any moment ends it.
"""

import multiprocessing
import os
import signal
import threading
import traceback
from collections.abc import Callable, Iterable, Iterator
from itertools import chain, count, islice
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess

from minibio.run.errors import InputError

MOST = 1024  # processes
AHEAD = 2  # tasks begun beyond one a process, before the result that is waited for


def ordered(build: Callable, arguments: tuple, tasks: Iterable, workers: int) -> Iterator:
    """`build(*arguments)(task)` for each task, in order; with one worker, in this process.

    An exception of a task is raised here, in the place of its result.

    Raises:
        InputError: a process was killed.
    """
    if workers == 1:
        yield from map(build(*arguments), tasks)
        return
    tasks = iter(tasks)
    first = list(islice(tasks, workers))
    numbered = enumerate(chain(first, tasks))
    processes, idle, busy, found, n_begun = [], [], {}, {}, 0  # busy: connection -> its task
    try:
        for _ in first:
            process, connection = start(build, arguments)
            processes.append(process)
            idle.append(connection)
        for i in count():
            while i not in found:
                while idle and n_begun < i + workers + AHEAD:
                    number, task = next(numbered, (None, None))
                    if number is None:
                        break
                    busy[idle[-1]] = number
                    exchange(idle.pop().send, task)
                    n_begun = number + 1
                if not busy:
                    return
                for connection in wait(busy):
                    found[busy[connection]] = exchange(connection.recv)
                    del busy[connection]
                    idle.append(connection)
            result, error = found.pop(i)
            if error is not None:
                raise error
            yield result
    finally:
        for connection in (*idle, *busy):
            connection.close()  # the process ends when its task does
        for process in processes:
            process.join()


def exchange(call: Callable, *arguments):
    """A call of one end of a pipe.

    Raises:
        InputError: the other end is gone.
    """
    try:
        return call(*arguments)
    except (EOFError, OSError):
        raise InputError(
            "a worker process was killed, perhaps for lack of memory; run again, with fewer "
            "--workers if need be: finished work is kept"
        ) from None


# ---- a worker process ----


def start(build: Callable, arguments: tuple) -> tuple[BaseProcess, Connection]:
    """A started process, and this end of its pipe."""
    # A fresh interpreter: a copy of this one (fork) would copy locks that its threads hold.
    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe()
    process = context.Process(target=serve, args=(there, build, arguments), daemon=True)
    # An interrupt here would leave a process that does not know what to do. It inherits the mask.
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        process.start()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
    there.close()
    return process, here


def serve(connection: Connection, build: Callable, arguments: tuple) -> None:
    """Answer each task with (result, None) or (None, error) until the pipe is closed."""
    follow_parent()
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # one thread a process: the others have a core
    work = None
    try:
        while True:
            task = connection.recv()
            try:
                work = work or build(*arguments)
                answer = work(task), None
            except Exception as error:
                error.add_note(traceback.format_exc())
                answer = None, error
            connection.send(answer)
    except (EOFError, OSError):  # closed, or in the middle of a message
        return


def follow_parent() -> None:
    """End this worker process with its parent, and not before.

    An interrupt reaches the parent too, which ends its workers. A killed parent cannot: without the
    thread they would finish their tasks beside the next run.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=end_with_parent, daemon=True).start()


def end_with_parent() -> None:
    multiprocessing.parent_process().join()
    os._exit(1)


def check_workers(workers: int) -> None:
    """Refuse a number of processes that cannot be meant.

    Raises:
        InputError: it is not 1 to MOST.
    """
    if not 1 <= workers <= MOST:
        raise InputError(f"--workers is {workers}, expected 1 to {MOST}")


def n_cores() -> int:
    """Cores that this process may use, or those of the machine where the system does not say."""
    ask = getattr(os, "sched_getaffinity", None)
    return len(ask(0)) if ask else os.cpu_count() or 1
