"""SIGTERM and SIGINT ask for the end of the run after the step under way.

with StopRequest() as stop:
    for step in range(run.steps):
        ...
        if dist.all_sum([float(stop.name is not None)], ranks)[0]:  # any process was asked
            break  # save, say how to go on, exit 0

A second SIGINT stops at once, with the usual KeyboardInterrupt. Outside the block signals do what
they did before. (torchrun passes a signal on to every process, and kills what is still there 30 s
later.)
"""

import os
import signal

CAUGHT = (signal.SIGTERM, signal.SIGINT)


class StopRequest:
    """Whether somebody asked this process to stop; of the main thread, as signals are."""

    def __init__(self):
        self.name = None  # of the first signal that came

    def __enter__(self) -> "StopRequest":
        self.before = {number: signal.signal(number, self.note) for number in CAUGHT}
        return self

    def __exit__(self, *error) -> None:
        for number, handler in self.before.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)

    def note(self, number: int, frame) -> None:
        """The handler: it notes, and leaves the step alone."""
        self.name = self.name or signal.Signals(number).name
        text = f"\n{self.name}: stopping after this step"
        if number == signal.SIGINT:
            signal.signal(signal.SIGINT, signal.default_int_handler)
            text += "; once more to stop at once"
        if int(os.environ.get("RANK", 0)) == 0:
            os.write(2, f"{text}\n".encode())  # print may be what the signal interrupted
