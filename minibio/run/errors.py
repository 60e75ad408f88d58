"""Bad input, in one line.

`InputError` is raised where bad input is found: a file, an option, a shape. The message follows one
form: what was wrong, where (file, line, tensor), what was expected, what to do. `run` is the last
frame of every command: it turns such an error into one line and exit status 2, and lets a bug in
this repository keep its traceback.
"""

import json
import os
import re
import signal
import sys
import time
from contextlib import contextmanager, suppress
from pathlib import Path


class InputError(ValueError):
    """Bad input, with a message of one line that tells the user what to do."""

    status = 2  # that the command exits with


class RunFailed(InputError):
    """A run whose input was good and that came to no result."""

    status = 1


class RankGone(InputError):
    """Another rank ended first: its reason is the one that counts."""


@contextmanager
def in_one_line(name: str, is_common: bool = False):
    """Around the work of command `name`: bad input is one line on stderr and exit status 2.

    `MINIBIO_TRACEBACK=1` in the environment shows the traceback of an `InputError` too.

    Args:
        is_common: all ranks do the same, so only rank 0 prints what was wrong. The others stay for
            ten seconds or until they are ended: torchrun ends the rest as soon as one has failed,
            and rank 0 would not always have printed by then.
    """
    try:
        yield
    except BrokenPipeError:  # the reader of a pipe went away: `... | head`
        os._exit(128 + signal.SIGPIPE)  # leaves without flushing into the closed pipe
    except (InputError, OSError) as error:
        if os.environ.get("MINIBIO_TRACEBACK"):
            raise
        record(name, error)
        if not is_common or os.environ.get("RANK", "0") == "0":
            say(name, error)
        else:
            time.sleep(10)
        if isinstance(error, RankGone):  # threads that wait for it would abort Python's own end
            with suppress(OSError):
                flush()
            os._exit(error.status)
        sys.exit(getattr(error, "status", 2))
    except (MemoryError, RuntimeError) as error:  # torch's is a RuntimeError
        text = str(error)
        if not isinstance(error, MemoryError) and not re.search(
            r"out of memory|allocate memory", text
        ):
            raise
        failed = RunFailed(f"not enough memory ({text.split(chr(10))[0]}); use smaller batches")
        say(name, failed)
        record(name, failed)
        sys.exit(failed.status)
    except KeyboardInterrupt:
        print(f"{name}: interrupted", file=sys.stderr)
        sys.exit(130)


def line(name: str, error: Exception) -> str:
    return f"{name}: error: {' '.join(str(error).split())}"


def say(name: str, error: Exception) -> None:
    """An error of command `name` as one line on stderr."""
    print(line(name, error), file=sys.stderr, flush=True)


def record(name: str, error: Exception) -> None:
    """Leave the reason of a failure where torchrun looks for it: its report then ends in it.

    The report is printed after all that the ranks print. It takes the failure of the earliest
    second for the cause, and a rank that it had to end itself for one of the same second: so a
    cause is a second older than its consequences.
    """
    path = os.environ.get("TORCHELASTIC_ERROR_FILE")
    if path:
        when = int(time.time()) - (not isinstance(error, RankGone))
        text = json.dumps({"message": line(name, error), "timestamp": when})
        with suppress(OSError):  # whole or not there: torchrun may end this process meanwhile
            Path(path + ".new").write_text(text, "utf-8")
            os.replace(path + ".new", path)


def hold_streams() -> None:
    """Open the null device where a standard stream is closed (`>&-`).

    A file opened later would get the closed one's descriptor, and what libraries print there would
    end up in that file. `sys.stdin` and `sys.stdout` stay None, so that `print` does nothing and a
    command that needs them can refuse; of `sys.stderr` nobody reads.
    """
    while (descriptor := os.open(os.devnull, os.O_RDWR)) < 3:
        os.set_inheritable(descriptor, True)
    os.close(descriptor)
    if sys.stderr is None:  # print(file=None) would write to stdout
        sys.stderr = open(os.devnull, "w")


def flush() -> None:
    """Write out what was printed. Raises `OSError` (a full disk) here, not at Python's exit."""
    if sys.stdout is not None:
        try:
            sys.stdout.flush()
        except BrokenPipeError:
            raise
        except OSError:
            sys.stdout = None  # or Python would try again, with a message and a status of its own
            raise


def leave(*_) -> None:
    """The handler of Ctrl-C that ends the process with status 130 and without a word."""
    os._exit(130)


def interrupt(*_) -> None:
    """The handler of Ctrl-C while a command works: KeyboardInterrupt, and `leave` for the next.

    Where the first one is not answered yet another would be a traceback, as it would while Python
    itself is ending.
    """
    signal.signal(signal.SIGINT, leave)
    raise KeyboardInterrupt


def share_cores() -> None:
    """Tell OpenMP, not loaded yet, that threads sleep where they wait, after some microseconds.

    Where processes share the cores, spinning threads cost several times the time; to wake one at
    each operation costs a tenth of a training step.
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    os.environ.setdefault("GOMP_SPINCOUNT", "1000")  # of GCC's OpenMP, whatever the policy


def spare_memory() -> None:
    """Tell oneDNN, not used yet, to keep 64 products instead of 1,024.

    It keeps each with what was compiled for its shape, about a MiB, in the heap between tensors.
    Ragged batches have 20 shapes a step that no other step has: training grows by gigabytes.
    """
    os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "64")


def read_early(read, name: str) -> None:
    """Run `read(arguments)` of command `name` before the slow imports.

    So `--help` and refused options answer at once. From here to `run`, Ctrl-C ends the process with
    status 130 and without a traceback.
    """
    hold_streams()
    share_cores()
    spare_memory()
    # a rank that is gone is one line (dist.Pulse), not what C++ says of its connections besides
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    signal.signal(signal.SIGINT, leave)
    with in_one_line(name, is_common=True):
        read(sys.argv[1:])


def run(main, name: str) -> None:
    """Run `main()` as the command `name` and exit with the status that it returns, or 0.

    Where the reader of its output has gone away the status is 141, as after SIGPIPE.
    """
    hold_streams()
    is_heard = signal.getsignal(signal.SIGINT) != signal.SIG_IGN
    if is_heard:
        signal.signal(signal.SIGINT, interrupt)
    with in_one_line(name):
        try:
            status = main()
            flush()
        finally:
            if is_heard:
                signal.signal(signal.SIGINT, leave)
    sys.exit(status or 0)
