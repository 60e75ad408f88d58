"""PubMed's XML to JSON lines: `python -m data.pubmed XML... --out DIR`.

Each input, `pubmed25n0001.xml.gz`, gives one output, `DIR/pubmed25n0001.jsonl.gz`: one citation a
line (data/pubmed/citations.py has its fields), of those that count when all files are read
(data/pubmed/index.py has the rule). `python -m data.shard DIR/*.jsonl.gz` reads them. Inputs with
PubMed's own names count in the order of year and number, which puts updates after the baseline; all
others after those, in the order given.

Two passes. The first parses each file by itself, into DIR/parsed: all its citations, and an index
of their PMIDs. The second sorts the indexes, and leaves out of each file what does not count; a
file where everything does is the parsed one under another name. Nothing is done twice: what DIR
holds of an input with the same size and time is kept, so the same command resumes a run that was
stopped or met a damaged file, and adds new update files. counts.json is written last.
"""

import argparse
import json
import re
import sys
import time
from collections import Counter
from collections.abc import Callable
from contextlib import closing, contextmanager
from dataclasses import asdict
from functools import partial
from pathlib import Path

from data.parallel import check_workers, n_cores, ordered
from data.pubmed.index import line_fates
from data.pubmed.passes import Options, Source, parse, select
from minibio.run.errors import InputError
from minibio.run.files import as_written, check_writable, locked, read_json, write_json
from minibio.run.options import Parser

FORMAT = 2  # of DIR; a change of what is written changes it
ENDINGS = {"plain": ".jsonl", "gz": ".jsonl.gz", "xz": ".jsonl.xz"}
STANDARD = re.compile(r"(?:medline|pubmed)([0-9]{2})n([0-9]{4,})")  # NLM's prefix until 2017, since
DEFAULT = Options()


def pubmed(
    inputs: list[str | Path],
    out: str | Path,
    options: Options = DEFAULT,
    workers: int = 1,
    progress: bool = True,
    overwrite: bool = False,
) -> tuple[dict, list[str]]:
    """Write the citations of `inputs` to the directory `out`, a file each.

    Args:
        overwrite: nothing of an earlier run is kept.
    Returns:
        the count table, also in `out`/counts.json, and a message for each damaged file. Neither
        they nor the files depend on `workers`.
    Raises:
        InputError: an input that is not there, `out` in use for something else, a full disk.
    """
    check_workers(workers)
    out = Path(out)
    sources = in_order(inputs, out, ENDINGS[options.format])
    with claimed(out, options, sources, overwrite):
        (out / "counts.json").unlink(missing_ok=True)
        todo = [source for source in sources if not source.is_parsed()]
        messages = each("parsing", partial(parse, options), todo, workers, progress)
        damages = {source.stem: why for source, why in zip(todo, messages, strict=True) if why}
        whole = [source for source in sources if source.stem not in damages]
        fates = line_fates([source.index for source in whole])
        jobs = [job for job in zip(whole, fates, strict=True) if not job[0].is_selected(job[1])]
        each("selecting", select, jobs, workers, progress)
        counts = table(whole, sorted(damages))
        write_json(out / "counts.json", counts)
    return counts, list(damages.values())


def each(what: str, function: Callable, jobs: list, workers: int, progress: bool) -> list:
    """The results of a function for all jobs, in their order, with a bar on a terminal."""
    from tqdm import tqdm

    is_watched = progress and sys.stderr.isatty()
    with closing(ordered(partial, (function,), jobs, workers)) as results:
        bar = tqdm(results, what, len(jobs), unit=" files", disable=not is_watched)
        return list(bar)


def finished(inputs: list[str | Path], out: str | Path, options: Options) -> dict | None:
    """The count table of a directory where the same command has done all; None elsewhere."""
    out = Path(out)
    sources = in_order(inputs, out, ENDINGS[options.format])
    if not (out / "counts.json").exists():
        return None
    check_same(out, options, sources)
    if not all(source.is_parsed() and source.is_selected() for source in sources):
        return None
    return read_json(out / "counts.json")


# ---- the inputs and the directory ----


def in_order(inputs: list[str | Path], out: Path, ending: str) -> list[Source]:
    """The sources in the order in which they count: PubMed's names by number, then all others.

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
def claimed(out: Path, options: Options, sources: list[Source], overwrite: bool = False):
    """Exclusive use of `out`; what a stopped run left half done is removed.

    Raises:
        InputError: another run is writing there, or it holds something else: other files, the
            outputs of other options, or of an input that is not among `sources`.
    """
    parsed = out / "parsed"
    if out.exists() and not out.is_dir():
        raise InputError(f"{out} is a file, expected a directory to write; choose another path")
    if out.is_dir() and any(out.iterdir()) and not parsed.is_dir():
        raise InputError(f"{out} already holds files; remove it or choose another path")
    check_writable(out)
    parsed.mkdir(parents=True, exist_ok=True)
    with locked(parsed / ".lock"):
        if overwrite:
            for old in parsed.glob("[!.]*"):
                (out / old.name).unlink(missing_ok=True)
                old.unlink()
            (parsed / ".options.json").unlink(missing_ok=True)
        check_same(out, options, sources)
        write_json(parsed / ".options.json", wanted(options))
        for half in [*out.glob(".*.new"), *parsed.glob(".*.new")]:
            half.unlink()
        yield


def wanted(options: Options) -> dict:
    """The options as a directory notes them."""
    return {"format of the directory": FORMAT, **json.loads(json.dumps(asdict(options)))}


def check_same(out: Path, options: Options, sources: list[Source]) -> None:
    """Refuse a directory of other options, or of an input that is not among `sources`.

    Raises:
        InputError: it names what differs.
    """
    settings = out / "parsed" / ".options.json"
    if settings.exists():
        for name, value in read_json(settings).items():
            if value != wanted(options).get(name):
                raise InputError(
                    f"{out} was written with {name} {value}, not {wanted(options).get(name)}; "
                    "choose another directory, or --overwrite"
                )
    known = {source.note.name for source in sources}
    others = sorted({path.name for path in (out / "parsed").glob("[!.]*.json")} - known)
    if others:
        raise InputError(
            f"{out} holds {others[0].removesuffix('.json')} and {len(others) - 1} more, which are "
            "not among the inputs; name all inputs, or choose another directory"
        )


# ---- the command ----


def table(sources: list[Source], damaged: list[str]) -> dict:
    """The counts of all files: records = citations + skipped + dropped. Languages by number."""
    counts = Counter()
    for source in sources:
        counts.update(source.noted()["totals"])
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


def parser() -> Parser:
    p = Parser("data.pubmed", description=__doc__)
    p.add_argument(
        "inputs",
        nargs="+",
        type=Path,
        metavar="XML",
        help="PubmedArticleSet XML, plain or gzip; all of them, each time",
    )
    p.add_argument(
        "--out",
        type=Path,
        required=True,
        metavar="DIR",
        help="where the citations go, a file for each input",
    )
    p.add_argument("--format", choices=ENDINGS, default="gz", help="of the JSON lines")
    p.add_argument(
        "--workers", type=int, default=n_cores(), help="processes, a file each at a time"
    )
    p.add_argument(
        "--title-only",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="keep citations with a title and no abstract",
    )
    p.add_argument(
        "--books",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="keep books and their chapters",
    )
    p.add_argument(
        "--language",
        nargs="+",
        default=[],
        metavar="CODE",
        help="keep articles in these languages only (eng fre ...); otherwise all: PubMed's titles "
        "and abstracts are English whatever the article's language is",
    )
    p.add_argument("--overwrite", action="store_true", help="start again in a DIR of this command")
    return p


def main(argv=None) -> int:
    args = parser().parse_args(argv)
    began = time.perf_counter()
    options = Options(args.format, args.title_only, args.books, tuple(sorted(set(args.language))))
    counts = None if args.overwrite else finished(args.inputs, args.out, options)
    if counts:
        with as_written(args.out / "counts.json", "--overwrite starts again"):
            print(
                f"{args.out} is complete: {counts['citations']:,} citations of "
                f"{counts['files']:,} files; --overwrite starts again"
            )
        return 0
    counts, damages = pubmed(args.inputs, args.out, options, args.workers, overwrite=args.overwrite)
    for name, value in counts.items():
        print(f"{name:<40} {len(value) if isinstance(value, list) else value:>14,}")
    print(f"{'seconds':<40} {time.perf_counter() - began:>14,.1f}")
    for damage in damages:
        print(f"data.pubmed: error: {damage}", file=sys.stderr)
    return 1 if damages else 0
