"""What a user can get wrong, said in one line.

`InputError` is raised where bad input is found: a file, an option, a shape. The message follows one
form: what was wrong, where (file, line, tensor), what was expected, what to do. `run` is the last
frame of every command: it turns such an error into one line and exit status 2, and lets a bug in
this repository keep its traceback.
"""

import os
import sys


class InputError(ValueError):
    """Bad input, with a message of one line that tells the user what to do."""


def run(main, name: str) -> None:
    """Run `main()` as the command `name`: exit 0, or one line on stderr and exit 2 on bad input.

    `MINIBIO_TRACEBACK=1` in the environment shows the traceback of an `InputError` too.
    """
    try:
        status = main()
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
    sys.exit(status or 0)
