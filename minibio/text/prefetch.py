"""Results made ahead of time, in a thread, so that the one who uses them does not wait.

    with Prefetch(make, tasks, depth=4) as results:
        for result in results: ...    make(task) for each task, in order

While a step runs on the device its host is idle: the thread makes the next batches meanwhile. The
results are the same calls in the same order, so nothing depends on how far ahead the thread is. No
more than `depth` of them wait at a time.
"""

import queue
import threading
from collections.abc import Callable, Iterable, Iterator
from itertools import islice

END = object()  # no result, no error: the tasks are over


def ahead(feed, position: int, steps: int) -> "Prefetch":
    """(span, this rank's micro-batches) of each of the next steps, made ahead of time.

        with ahead(feed, progress.samples, run.steps - progress.step) as steps:
            for span, batches in steps: ...

    Args:
        feed:     a `Feed` or `Epochs`: `spans(position)` and `make(span)`.
        position: of the first step's first sample.
        steps:    how many; none below 1.
    """
    spans = islice(feed.spans(position), max(0, steps))
    return Prefetch(lambda span: (span, feed.make(span)), spans)


class Prefetch:
    """`make(task)` for each task, up to `depth` of them ahead; closed by its `with` block."""

    def __init__(self, make: Callable, tasks: Iterable, depth: int = 4):
        if depth < 1:
            raise ValueError(f"Prefetch: depth is {depth}, expected 1 or more")
        self.make, self.tasks = make, tasks
        self.ready = queue.Queue(depth)
        self.is_closed = threading.Event()
        self.thread = threading.Thread(target=self.run, name="prefetch", daemon=True)

    def run(self) -> None:
        """In the thread: make and hand over, until the tasks are over, one fails, or it is
        closed."""
        try:
            for task in self.tasks:
                if self.is_closed.is_set():
                    return
                self.put((self.make(task), None))
            self.put((END, None))
        except BaseException as error:  # raised again where the result is asked for
            self.put((END, error))

    def put(self, item: tuple) -> None:
        """Wait for room, but not for ever: nobody takes from a closed one."""
        while not self.is_closed.is_set():
            try:
                return self.ready.put(item, timeout=0.1)
            except queue.Full:
                continue

    def __enter__(self) -> "Prefetch":
        self.thread.start()
        return self

    def __iter__(self) -> Iterator:
        """The results, once. What `make` raised is raised here, in the place of its result."""
        assert self.thread.ident is not None, "outside of the with block there is no thread"
        while not self.is_closed.is_set():
            result, error = self.ready.get()
            if result is END:
                self.is_closed.set()  # nothing more will come, whoever asks
            if error is not None:
                raise error
            if result is not END:
                yield result

    def __exit__(self, *error) -> None:
        self.is_closed.set()
        self.thread.join()
