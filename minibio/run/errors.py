"""Bad input, in one line.

`InputError` is raised where bad input is found: a file, an option, a shape. The message follows one
form: what was wrong, where (file, line, tensor), what was expected, what to do. `run` is the last
frame of every command: it turns such an error into one line and exit status 2, and lets a bug in
this repository keep its traceback.
"""

import os
import signal
import sys
from contextlib import contextmanager


class InputError(ValueError):
    """Bad input, with a message of one line that tells the user what to do."""


@contextmanager
def in_one_line(name: str):
    """Around the work of command `name`: bad input is one line on stderr and exit status 2.

    `MINIBIO_TRACEBACK=1` in the environment shows the traceback of an `InputError` too.
    """
    try:
        yield
    except BrokenPipeError:  # the reader of a pipe went away: `... | head`
        os._exit(0)  # leaves without flushing into the closed pipe
    except (InputError, OSError) as error:
        if os.environ.get("MINIBIO_TRACEBACK"):
            raise
        print(f"{name}: error: {' '.join(str(error).split())}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print(f"{name}: interrupted", file=sys.stderr)
        sys.exit(130)


def read_early(read, name: str) -> None:
    """Run `read(arguments)` of command `name` before the slow imports.

    So `--help` and refused options answer at once. From here to `run`, Ctrl-C ends the process with
    status 130 and without a traceback.
    """
    signal.signal(signal.SIGINT, lambda *_: os._exit(130))
    with in_one_line(name):
        read(sys.argv[1:])


def run(main, name: str) -> None:
    """Run `main()` as the command `name` and exit with the status that it returns, or 0."""
    if signal.getsignal(signal.SIGINT) not in (signal.SIG_IGN, signal.default_int_handler):
        signal.signal(signal.SIGINT, signal.default_int_handler)
    with in_one_line(name):
        status = main()
    sys.exit(status or 0)
