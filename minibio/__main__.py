"""The commands of the library: `python -m minibio NAME ...`, or `minibio NAME ...`."""

import sys
from importlib import import_module

from minibio.run import errors

COMMANDS = {  # name -> where its main(argv) is, and what it does
    "convert": ("minibio.model.convert", "Hugging Face directories, in and out"),
    "plot": ("minibio.report.plot", "loss curves of runs in one picture"),
    "look": ("minibio.report.look", "a sentence through teacher and student, drawn"),
    "pictures": ("minibio.report.pictures", "the pictures of the pages"),
    "results": ("minibio.report.results", "the paper at half scale, from texts to tables"),
    "equations": ("minibio.distil.losses", "Equations 1 to 13 and their denominators"),
    "bench": ("minibio.bench.__main__", "speed and memory: one training step, one forward pass"),
}


def main(argv: list[str]) -> int | None:
    """Run a command, or list them all.

    Returns:
        The exit status: 2 for a name that is not a command.
    """
    name, *rest = argv or ["--help"]
    if name in COMMANDS:
        return import_module(COMMANDS[name][0]).main(rest)
    known = "\n".join(f"  {name:<10} {what}" for name, (_, what) in COMMANDS.items())
    usage = f"usage: python -m minibio COMMAND ...\n\n{known}"
    if name in ("-h", "--help"):
        print(usage)
        return 0
    names = ", ".join(COMMANDS)
    print(f"minibio: error: no command {name!r}; expected {names}", file=sys.stderr)
    return 2


def run() -> None:
    """The command `minibio`, of an installed library."""
    errors.share_cores()
    command = f"minibio {sys.argv[1]}" if len(sys.argv) > 1 else "minibio"
    errors.run(lambda: main(sys.argv[1:]), command)


if __name__ == "__main__":
    run()
