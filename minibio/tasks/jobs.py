"""Many inputs to a directory: an output for each, whole or not there, dealt out to ranks, resumed.

    OUT/abstracts.jsonl    the answers to abstracts.jsonl.gz, and so on; under brat a folder
    OUT/predict.json       what made them: model, options, and a fingerprint of each input

The same command again makes what is missing. Another model or option is refused, and so is an
output whose input has changed. The outputs do not depend on the number of ranks.
"""

import time
from collections.abc import Sequence
from contextlib import ExitStack
from functools import partial
from itertools import islice
from pathlib import Path
from typing import NamedTuple

from minibio.run import dist, errors, files, fingerprint, log
from minibio.run.dist import Ranks
from minibio.run.errors import InputError
from minibio.run.files import read_json
from minibio.tasks import documents, ner
from minibio.tasks.formats import FORMATS, TAGGED, output
from minibio.tasks.predict import Predictor, predict
from minibio.tasks.reading import read_lines

RECORD = "predict.json"


class Job(NamedTuple):
    """An input and its output."""

    path: str
    out: str
    size: int  # bytes of the input


def predict_all(
    predictor: Predictor,
    inputs: Sequence[str],
    out: Path,
    ranks: Ranks,
    *,
    format: str = "json",
    is_json: bool = False,
) -> int:
    """Write the answers to each input to a file, or brat's folder, of `out`. Resumes.

    Inputs are dealt out to the ranks by size. One that is wrong is named on stderr, and the others
    are answered all the same.

    Returns:
        How many inputs were wrong, over all ranks.
    Raises:
        InputError: two inputs have one output, or `out` has answers of another model, options or
            inputs.
    """
    config = {
        "model": fingerprint.of_files(files_of(predictor.path)),
        "format": format,
        "precision": predictor.precision,
        "threshold": predictor.threshold,
        "all_labels": predictor.all_labels,
    }
    began, n, wrong = time.monotonic(), 0, 0
    with ExitStack() as stack:
        action = partial(plan, inputs, out, config, predictor.head, stack)
        todo = [Job(*job) for job in dist.from_rank0(action, ranks)]
        if len(todo) < len(inputs):
            dist.print0(f"{out}: {len(inputs) - len(todo)} of {len(inputs)} outputs are there")
        mine = deal(todo, ranks.world)[ranks.rank]
        bar = Bar(sum(job.size for job in mine), ranks)
        stack.enter_context(bar)
        for job in mine:
            try:
                with output(Path(job.out), format, job.path) as write:
                    for item, answer in predict(predictor, job.path, is_json, bar.seen):
                        write(item, answer)
                        bar.count()
            except InputError as error:
                errors.say("eval.py", error)
                wrong += 1
            bar.end(job.size)
        n, wrong = map(int, dist.all_sum([bar.n, wrong], ranks))
    if todo:
        seconds = time.monotonic() - began
        done = len(todo) - wrong
        dist.print0(
            f"{out}: wrote {done} of {len(todo)} outputs, {n:,} items, {n / seconds:,.1f} a second"
        )
    return wrong


def files_of(path: Path) -> list[Path]:
    """The files of a model's directory that its answers depend on."""
    kinds = (".json", ".txt", ".safetensors")
    return sorted(x for x in path.iterdir() if x.suffix in kinds and x.is_file())


def plan(inputs: Sequence[str], out: Path, config: dict, head: str, stack: ExitStack) -> list[Job]:
    """Lock `out` and write its record -> the jobs that are left. On rank 0."""
    outputs = {}  # name -> input
    for path in inputs:
        if not Path(path).is_file():
            raise InputError(f"{path}: no such file; with --out DIR each input is a file")
        name = name_of_output(path, head, config["format"])
        if name in outputs:
            raise InputError(f"{outputs[name]} and {path} both have the output {out / name}")
        outputs[name] = path
    files.check_writable(out)
    out.mkdir(parents=True, exist_ok=True)
    stack.enter_context(files.locked(out / ".lock"))
    record = out / RECORD
    found = read_json(record) if record.exists() else {"config": config, "inputs": {}}
    with files.as_written(record, "remove it, or name another --out"):
        config_then, inputs_then = dict(found["config"]), dict(found["inputs"])
    for name, now in config.items():
        then = config_then.get(name)
        if then != now:
            raise InputError(
                f"{out} holds answers of another run: {name} is {then}, now {now}; name another "
                f"--out"
            )
    states = {name: fingerprint.of_state(Path(path)) for name, path in outputs.items()}
    there = {name for name in outputs if (out / name).exists()}
    for name in sorted(there):
        if inputs_then.get(name) != states[name]:
            raise InputError(
                f"{out / name} is not of {outputs[name]} as it is now; remove it, or name another "
                f"--out"
            )
    files.write_json(record, {"config": config, "inputs": {**inputs_then, **states}})
    return [
        Job(path, str(out / name), Path(path).stat().st_size)
        for name, path in outputs.items()
        if name not in there
    ]


def name_of_output(path: str, head: str, format: str) -> str:
    """abstracts.jsonl.gz -> abstracts.jsonl; test.tsv of words -> test.conll."""
    ending = FORMATS[format]
    try:
        sample = [line for _, line in islice(read_lines(path, "text"), documents.SAMPLE)]
        if isinstance(documents.kind_of(sample, head, path), ner.Layout):
            ending = TAGGED
    except InputError:  # is named when its turn comes
        pass
    return Path(Path(path).name.removesuffix(".gz").removesuffix(".xz")).stem + ending


def deal(jobs: Sequence[Job], world: int) -> list[list[Job]]:
    """The jobs of each rank: the largest first, each to the rank that has the least to read."""
    hands, sizes = [[] for _ in range(world)], [0] * world
    for job in sorted(jobs, key=lambda job: (-job.size, job.path)):
        rank = sizes.index(min(sizes))
        hands[rank].append(job)
        sizes[rank] += job.size
    return hands


class Bar:
    """Progress by bytes of the inputs, with items a second; on rank 0, on a terminal."""

    def __init__(self, total: int | None, ranks: Ranks, is_quiet: bool = False):
        what = f"1 of {ranks.world} ranks" if ranks.world > 1 else "predict"
        self.bar = log.progress(total, what, ranks, "B", is_quiet=is_quiet)
        self.bar.unit_scale = True
        self.n, self.done, self.began = 0, 0, time.monotonic()

    def __enter__(self) -> "Bar":
        return self

    def __exit__(self, *error) -> None:
        self.bar.close()

    def seen(self, n: int) -> None:
        """Called with the bytes of the input under way that have been read."""
        self.bar.n = self.done + n

    def count(self) -> None:
        """One more item is answered."""
        self.n += 1
        rate = self.n / max(time.monotonic() - self.began, 1e-9)
        if not self.bar.disable:
            self.bar.set_postfix_str(f"{self.n:,} items, {rate:,.1f}/s", refresh=False)
            self.bar.update(0)

    def end(self, size: int) -> None:
        """An input of `size` bytes is done."""
        self.done += size
        self.bar.n = self.done
        self.bar.refresh()
