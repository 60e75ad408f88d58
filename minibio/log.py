"""What a run tells: a progress bar for people, JSON lines for machines. Rank 0 alone speaks."""

import json
import sys
from pathlib import Path

from minibio.dist import Ranks


class RunLog:
    """One JSON object a line, flushed at once, so that a killed run leaves every line it wrote.

    with RunLog(out / "log.jsonl", ranks) as journal: ...   closed, whatever happens inside.
    """

    def __init__(self, path: str | Path, ranks: Ranks):
        self.file = open(path, "w", encoding="utf-8") if ranks.rank == 0 else None

    def write(self, event: dict) -> None:
        """Append one event; "event" names its kind."""
        if self.file is not None:
            self.file.write(json.dumps(event) + "\n")
            self.file.flush()

    def __enter__(self) -> "RunLog":
        return self

    def __exit__(self, *error) -> None:
        if self.file is not None:
            self.file.close()


def progress(total: int, description: str, ranks: Ranks, unit: str = "step"):
    """A tqdm bar, quiet where nobody watches: off the terminal and off rank 0."""
    from tqdm import tqdm

    is_quiet = ranks.rank != 0 or not sys.stderr.isatty()
    return tqdm(total=total, desc=description, unit=unit, disable=is_quiet, dynamic_ncols=True)
