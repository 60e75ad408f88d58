"""The command that fetches a model which is named where a directory is meant."""

import re
from pathlib import Path

from minibio.config import CHECKPOINTS
from minibio.run.errors import InputError
from minibio.run.files import real

NAME = re.compile(r"[\w-]+/[\w.-]+|[\w.-]*bert[\w.-]*", re.IGNORECASE)  # of the hub's models


def how_to_fetch(path: str | Path) -> str:
    """The end of a message for a directory that is not there: "" where no model is called so."""
    name = str(path)
    for published in CHECKPOINTS.values():
        if name in (published.source, published.source.split("/")[1]):
            what = "starts" if published.method == "mlm" else "biobert"
            return f"; python -m data.fetch {what} fetches it into downloads/{what}"
    if not NAME.fullmatch(name) or Path(name).parent.is_dir() != ("/" not in name):
        return ""
    into = Path(name).name
    return f"; if it is a model of the hub, fetch it: hf download {name} --local-dir {into}"


def check_directory(option: str, path: Path, out: Path) -> None:
    """Refuse a directory to read that is not there, or that is `out`; `option` begins the message.

    Raises:
        InputError: with the command that fetches it, where it is the name of a model.
    """
    if not path.is_dir():
        raise InputError(f"{option} {path} is not a directory{how_to_fetch(path)}")
    if real(path) == real(out):
        raise InputError(f"--out {out} is the directory of {option}; name another")
