"""The directory of one run: opened, resumed, logged, saved and finished; train.py's and eval.py's.

    OUT/checkpoints/    the newest few (checkpoint.py)
    OUT/log.jsonl       one JSON object a line
    OUT/...             what a finished run leaves: the model, its card, its pictures
    OUT/RECORD          run.json, ner.json, ...: written last. With it, the run is finished

One rule for every command. Without the record, the same command resumes from the newest checkpoint
and trains to the end. With it, there is nothing left to do. Another command is refused, and the
message names what differs. `--overwrite` starts again.
"""

import json
import os
import signal
from collections.abc import Callable, Collection
from contextlib import ExitStack, suppress
from dataclasses import asdict
from pathlib import Path

import torch.nn as nn
from torch.optim import Optimizer

from minibio.run import checkpoint, dist, files, log, store
from minibio.run.checkpoint import FOLDER, LOG, Checkpoints
from minibio.run.errors import InputError, interrupt
from minibio.run.log import Progress, RunLog

STAGED = ".model"  # what a run leaves, while it is being written
REMEDY = "name another --out or pass --overwrite"


class RunDir:
    """One run's directory, locked while the block runs. All ranks make one, with the same calls.

        with RunDir(out, ranks, config) as run_dir:
            progress = run_dir.resume(objective, optimizer) or Progress()
            for ... in ...:
                run_dir.log({"event": "train", ...})
                run_dir.save(progress, objective, optimizer, is_due)
            run_dir.finish(write)

    Args:
        config:     the resolved configuration; fits JSON. Kept in checkpoints and in the record.
        may_differ: fields of it that a resumed run may have otherwise.
        record:     name of the file that says that the run is finished.
        keep:       how many of the newest checkpoints are kept.
        temporary:  names in it that a finished run no longer needs, removed then.
        overwrite:  start again, whatever is there.
    Raises:
        InputError: nothing can be written there, another process writes there, or `out` holds
            another run or a model that no run of ours has left. From the `with` statement.
    """

    def __init__(
        self,
        out: Path,
        ranks: dist.Ranks,
        config: dict,
        *,
        may_differ: frozenset[str] = frozenset(),
        record: str = "run.json",
        keep: int = 3,
        temporary: Collection[str] = (),
        overwrite: bool = False,
    ):
        self.out, self.ranks, self.record = Path(out), ranks, record
        self.temporary = temporary
        self.config = json.loads(json.dumps(config))  # tuples become lists, as in the files
        self.may_differ = may_differ | checkpoint.ANY_MACHINE
        self.keep, self.overwrite = keep, overwrite
        self.finished: dict | None = None  # the record of the run, where it is finished
        self.journal: RunLog | None = None
        self.made: list[Path] = []  # directories that were not there, the innermost first
        self.is_blank = False  # a new run without a step

    def __enter__(self) -> "RunDir":
        self.stack = ExitStack()
        try:
            self.finished = dist.from_rank0(self.open, self.ranks)
        except BaseException:
            self.close()
            raise
        self.checkpoints = Checkpoints(self.out, self.ranks, self.keep)
        return self

    def __exit__(self, kind=None, *error) -> None:
        """Close it; a run that was refused before its first step leaves no trace."""
        self.close()
        if kind is not None and issubclass(kind, InputError) and self.ranks.rank == 0:
            if self.is_blank:
                files.remove(self.out / LOG)
            self.remove_empty()

    def remove_empty(self) -> None:
        """Remove the directories that this run has made, as far as nothing is in them."""
        with suppress(OSError):
            for place in self.made:
                place.rmdir()

    def close(self) -> None:
        if self.journal is not None:
            self.journal.__exit__()
        self.stack.close()

    def open(self) -> dict | None:
        """Lock the directory, remove what a killed run left half-written -> the record, if any."""
        files.check_writable(self.out)
        self.made = [x for x in (self.out, *self.out.parents) if not x.exists()]
        self.out.mkdir(parents=True, exist_ok=True)
        try:
            self.stack.enter_context(files.locked(self.out / ".lock"))
            if self.overwrite:  # a run that is killed from here on must never look finished
                files.remove(self.out / self.record)
                files.remove(self.out / "config.json")
                files.remove(self.out / FOLDER)
            files.remove_staged(self.out / STAGED)
            store.tidy(self.out / FOLDER)
            record = self.read_record()
            if record is not None:  # it may have been killed before it removed them
                self.remove_temporary()
            return record
        except BaseException:
            self.stack.close()
            self.remove_empty()
            raise

    def read_record(self) -> dict | None:
        path = self.out / self.record
        if not path.exists():
            if (self.out / "config.json").exists() and not (self.out / FOLDER).is_dir():
                raise InputError(f"{self.out} already holds a model; {REMEDY}")
            return None
        record = files.read_json(path)
        with files.as_written(path, REMEDY):
            then = dict(record["config"])
        differ = [
            checkpoint.difference(name, then.get(name), self.config.get(name))
            for name in {**then, **self.config}
            if then.get(name) != self.config.get(name) and name not in checkpoint.ANY_MACHINE
        ]
        if differ:
            raise InputError(f"{self.out} holds another run: {'; '.join(differ)}; {REMEDY}")
        return record

    def resume(self, objective: nn.Module, optimizer: Optimizer, seed: int) -> Progress | None:
        """Put back the newest checkpoint and cut the log to its length; None = a new run.

        Raises:
            InputError: it is of another run, or of a later step than this run has.
        """
        found = checkpoint.newest(self.out, self.ranks)
        if found is not None:
            changed = found.changes(self.config, self.may_differ, self.ranks)
            self.check_steps(found)
            dist.print0(f"\nresumed from {found.path}, step {found.step:,}")
            for name, then, now in changed:
                dist.print0(f"    {name:<16} {then} -> {now}")
            progress = Progress.read(found.counters, found.path)
            found.restore(objective, optimizer, self.ranks, seed=seed)
            found.cut_log(self.ranks)
        self.journal = RunLog(self.out / LOG, self.ranks, resumed=found is not None)
        if found is None:
            self.is_blank = True
            self.log({"event": "start", **self.config})
            return None
        self.log({"event": "resume", "step": found.step, "processes": self.ranks.world})
        return progress

    def check_steps(self, found: checkpoint.Checkpoint) -> None:
        """Refuse to end a run at a step that it has passed: its weights are of a later one."""
        then, now = found.config.get("steps"), self.config.get("steps")
        if now is not None and now <= found.step and now != then:
            raise InputError(
                f"--steps is {now}, but {found.path} has done {found.step} of {then} steps; pass "
                f"more steps, or --overwrite to start again"
            )

    def log(self, event: dict) -> None:
        """Append a line to the log; "event" names its kind."""
        self.journal.write(event)

    def log_interval(self, progress: Progress, steps: int, lr: float, measures: int = 0) -> None:
        """Log and print the steps since the last line; arguments as in `Progress.interval`."""
        self.is_blank = False
        line = progress.interval(steps, lr, self.ranks.device, measures)
        self.log(line)
        log.say(log.interval_line(line, steps), self.ranks)

    def save(
        self,
        progress: Progress,
        objective: nn.Module,
        optimizer: Optimizer,
        is_due: Callable[[int], bool],
    ) -> None:
        """Write a checkpoint of the run as it is now; `is_due` as in `Checkpoints.save`."""
        self.checkpoints.save(
            progress.step,
            objective,
            optimizer,
            samples=progress.samples,
            config=self.config,
            counters=asdict(progress),
            is_due=is_due,
        )

    def remove_temporary(self) -> None:
        for name in self.temporary:
            files.remove_staged(self.out / name)

    def finish(self, write: Callable[[Path], dict]) -> dict:
        """Move all that the run leaves into place, the record last.

        Args:
            write: fills a directory, on rank 0, and returns the record; it fits JSON.
        Returns:
            The record, with the configuration.
        """

        def move():
            with files.staged_dir(self.out / STAGED, overwrite=True) as staged:
                record = {**write(staged), "config": self.config}
                files.write_json(staged / self.record, record)
            names = sorted(os.listdir(self.out / STAGED), key=lambda name: name == self.record)
            for name in names:
                os.replace(self.out / STAGED / name, self.out / name)
            (self.out / STAGED).rmdir()
            self.remove_temporary()
            return record

        return dist.from_rank0(move, self.ranks)


class StopRequest:
    """SIGTERM and SIGINT ask for the end of the run after the step under way.

        with StopRequest() as stop:
            for step in range(run.steps):
                ...
                if dist.all_sum([float(stop.name is not None)], ranks)[0]:  # any rank was asked
                    break  # save, say how to resume, exit 0

    A second SIGINT stops at once, with the usual KeyboardInterrupt, and a third ends the process.
    Outside the block signals do what they did before. (torchrun passes a signal on to every
    process, and kills those that are still there 30 s later.)
    """

    CAUGHT = (signal.SIGTERM, signal.SIGINT)

    def __init__(self):
        self.name = None  # of the first signal that came

    def __enter__(self) -> "StopRequest":
        self.before = {number: signal.signal(number, self.on_signal) for number in self.CAUGHT}
        return self

    def __exit__(self, kind, *_) -> None:
        for number, handler in self.before.items():
            if number == signal.SIGINT and kind is KeyboardInterrupt:
                continue  # it is on its way out: see `errors.interrupt`
            signal.signal(number, signal.SIG_DFL if handler is None else handler)

    def on_signal(self, number: int, frame) -> None:
        """The handler: it does not touch the step."""
        self.name = self.name or signal.Signals(number).name
        text = f"\n{self.name}: stopping after this step"
        if number == signal.SIGINT:
            signal.signal(signal.SIGINT, interrupt)
            text += "; once more to stop at once"
        if int(os.environ.get("RANK", 0)) == 0:
            os.write(2, f"{text}\n".encode())  # print may be what the signal interrupted
