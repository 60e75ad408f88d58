"""PubMed's XML to JSON lines: `python -m data.pubmed XML... --out DIR`.

Each input, `pubmed25n0001.xml.gz`, gives one output, `DIR/pubmed25n0001.jsonl.gz`: one citation a
line (data/pubmed/citations.py says what is in it), of those that stand when all files are read
(data/pubmed/index.py says which do). `python -m data.shard DIR/*.jsonl.gz` reads them on. Inputs
with PubMed's own names count in the order of year and number, which puts updates after the
baseline; all others after those, in the order given.

Two passes. The first parses each file alone, into DIR/parsed: all its citations, and an index of
their PMIDs. The second settles the indexes, and leaves out of each file what no longer stands; a
file where everything does is the parsed one under another name. Nothing is done twice: what stands
in DIR of an input with the same size and time is kept, so that a run that was stopped, or met a
damaged file, is taken up by the same command, and so is one with new update files.
"""

import argparse
import fcntl
import json
import re
import shutil
import sys
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import asdict
from multiprocessing import get_context
from pathlib import Path

from data.parallel import follow_parent, n_cores
from data.pubmed.index import Fates
from data.pubmed.passes import Options, Source, is_parsed, is_selected, parse, select
from minibio.run.errors import InputError
from minibio.run.files import check_writable, read_json, write_json

FORMAT = 1  # of DIR; a change of what is written changes it
ENDINGS = {"plain": ".jsonl", "gz": ".jsonl.gz", "xz": ".jsonl.xz"}
STANDARD = re.compile(r"pubmed(\d\d)n(\d{4,})")
DEFAULT = Options()


def pubmed(inputs: list[str | Path], out: str | Path, options: Options = DEFAULT,
           workers: int = 1, progress: bool = True) -> tuple[dict, list[str]]:  # fmt: skip
    """Write the citations of `inputs` to the directory `out`, a file each.

    Returns:
        the count table, also in `out`/counts.json, and a message for each damaged file. Neither
        they nor the files depend on `workers`.
    Raises:
        InputError: an input that is not there, `out` in use for something else, a full disk.
    """
    if workers < 1:
        raise InputError(f"--workers is {workers}, expected at least 1")
    sources = in_order(inputs, Path(out), ENDINGS[options.format])
    with claimed(Path(out), options, sources):
        (Path(out) / "counts.json").unlink(missing_ok=True)  # is there when all is done
        with Work(workers, progress) as work:
            todo = [source for source in sources if not is_parsed(source)]
            damages = work.run("parsing", parse, [(source, options) for source in todo])
            damages = {source.stem: why for source, why in zip(todo, damages, strict=True) if why}
            whole = [source for source in sources if source.stem not in damages]
            with Fates([source.index for source in whole], Path(out) / "parsed") as fates:
                jobs = [(source, fates[i]) for i, source in enumerate(whole)]
                work.run("selecting", select, [job for job in jobs if not is_selected(*job)])
        counts = table(whole, sorted(damages))
        write_json(Path(out) / "counts.json", counts)
    return counts, list(damages.values())


# ---- the inputs and the directory ----


def in_order(inputs: list[str | Path], out: Path, ending: str) -> list[Source]:
    """The sources, those to be taken first first: PubMed's names by number, then all others.

    Raises:
        InputError: one is not there, has another ending, or would have another's output.
    """
    sources = {}
    for path in map(Path, inputs):
        stem = path.name.removesuffix(".gz").removesuffix(".xml")
        if not path.name.endswith((".xml", ".xml.gz")):
            raise InputError(f"{path}: expected a name that ends in .xml or .xml.gz")
        if not path.is_file():
            raise InputError(f"{path}: no such file")
        if stem in sources:
            raise InputError(f"{sources[stem].path} and {path} would have one output, {stem}")
        sources[stem] = Source(path, stem, out, ending)

    def place(source: Source) -> tuple[int, int, int]:
        found = STANDARD.fullmatch(source.stem)
        return (0, int(found[1]), int(found[2])) if found else (1, 0, 0)

    return sorted(sources.values(), key=place)  # stable: the others stay in the order given


@contextmanager
def claimed(out: Path, options: Options, sources: list[Source]):
    """`out` as the place of this run alone; what a stopped run left half done is removed.

    Raises:
        InputError: another run is writing there, or it holds something else: other files, the
            outputs of other options, or of an input that is not among `sources`.
    """
    parsed, settings = out / "parsed", out / "parsed" / ".options.json"
    if out.exists() and not out.is_dir():
        raise InputError(f"{out} is a file, expected a directory to write; choose another path")
    if out.is_dir() and any(out.iterdir()) and not parsed.is_dir():
        raise InputError(f"{out} already holds files; remove it or choose another path")
    check_writable(out)
    parsed.mkdir(parents=True, exist_ok=True)
    with (parsed / ".lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise InputError(f"{out}: another run is writing there") from None
        wanted = {"format of the directory": FORMAT, **json.loads(json.dumps(asdict(options)))}
        if settings.exists():
            for name, value in read_json(settings).items():
                if value != wanted.get(name):
                    raise InputError(
                        f"{out} was written with {name} {value}, not {wanted.get(name)}; choose "
                        "another directory"
                    )
        known = {source.parsed.name for source in sources}
        others = sorted({path.name for path in parsed.glob("*.parsed.json")} - known)
        if others:
            stem = others[0].removesuffix(".parsed.json")
            raise InputError(
                f"{out} holds {stem} and {len(others) - 1} more, which are not among the inputs; "
                "name all inputs, or choose another directory"
            )
        write_json(settings, wanted)
        for half in [*out.glob(".*.new-*"), *parsed.glob(".*.new-*")]:
            half.unlink()
        for half in parsed.glob(".index-*"):
            shutil.rmtree(half)
        yield


# ---- processes ----


class Work:
    """Calls of one function over many jobs, in `workers` processes, with a bar for who watches."""

    def __init__(self, workers: int, progress: bool):
        self.workers, self.progress = workers, progress
        self.pool = None

    def run(self, what: str, function: Callable, jobs: list[tuple]) -> list:
        """What each job gives, in the order of the jobs.

        Raises:
            InputError: a process died. What was done is kept.
        """
        from tqdm import tqdm

        is_watched = self.progress and sys.stderr.isatty()
        with tqdm(total=len(jobs), desc=what, unit=" files", disable=not is_watched) as bar:
            if self.workers == 1:
                found = []
                for job in jobs:
                    found.append(function(*job))
                    bar.update()
                return found
            if self.pool is None:  # started anew: a copy of this process might hold a lock
                self.pool = ProcessPoolExecutor(
                    self.workers, mp_context=get_context("spawn"), initializer=follow_parent
                )
            futures = [self.pool.submit(function, *job) for job in jobs]
            try:
                for future in as_completed(futures):
                    future.result()
                    bar.update()
            except BrokenProcessPool:
                raise InputError(
                    "a worker process died, killed or out of memory; run again, perhaps with fewer "
                    "--workers: what is done is kept"
                ) from None
            return [future.result() for future in futures]

    def __enter__(self):
        return self

    def __exit__(self, *_) -> None:
        if self.pool is not None:
            self.pool.shutdown(cancel_futures=True)  # files under way are finished, and kept


# ---- the command ----


def table(sources: list[Source], damaged: list[str]) -> dict:
    """The counts of all files: records = citations + skipped + dropped. Languages by number."""
    counts = Counter()
    for source in sources:
        counts.update(read_json(source.selected)["counts"])
    counts = {name: n for name, n in counts.items() if n}

    def rows(prefix: str) -> dict:
        named = [name for name in counts if name.startswith(prefix)]
        return {name: counts.pop(name) for name in sorted(named, key=lambda n: (-counts[n], n))}

    skipped, dropped, languages = rows("skipped: "), rows("dropped: "), rows("language: ")
    first = {"files": len(sources), "files damaged": damaged, "records": counts.pop("records", 0)}
    main = {
        name: counts.pop(name, 0)
        for name in ("citations", "title only", "sections", "characters", "deletions")
    }
    return {**first, **skipped, **dropped, **main, **dict(sorted(counts.items())), **languages}


def parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser("data.pubmed", description=__doc__.split("\n")[0])
    p.add_argument("inputs", nargs="+", type=Path, metavar="XML",
                   help="PubmedArticleSet XML, plain or gzip; all of them, each time")  # fmt: skip
    p.add_argument("--out", type=Path, required=True, metavar="DIR",
                   help="where the citations go, a file for each input")  # fmt: skip
    p.add_argument("--format", choices=ENDINGS, default="gz", help="of the JSON lines")
    p.add_argument("--workers", type=int, default=n_cores(),
                   help="processes, a file each at a time")  # fmt: skip
    p.add_argument("--title-only", action=argparse.BooleanOptionalAction, default=True,
                   help="keep citations with a title and no abstract")  # fmt: skip
    p.add_argument("--books", action=argparse.BooleanOptionalAction, default=True,
                   help="keep books and their chapters")  # fmt: skip
    p.add_argument("--language", nargs="+", default=[], metavar="CODE",
                   help="keep articles in these languages only (eng fre ...); else all: PubMed's "
                   "titles and abstracts are English whatever the article's is")  # fmt: skip
    return p


def main(argv=None) -> int:
    args = parser().parse_args(argv)
    began = time.perf_counter()
    options = Options(args.format, args.title_only, args.books, tuple(sorted(set(args.language))))
    counts, damages = pubmed(args.inputs, args.out, options, args.workers)
    for name, value in counts.items():
        print(f"{name:<40} {len(value) if isinstance(value, list) else value:>14,}")
    print(f"{'seconds':<40} {time.perf_counter() - began:>14,.1f}")
    for damage in damages:
        print(f"data.pubmed: error: {damage}", file=sys.stderr)
    return 1 if damages else 0
