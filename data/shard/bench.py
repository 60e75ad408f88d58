"""Speed of the way from text to samples on this machine, each part beside what it builds on.

    python -m data.shard.bench parse XML...                   the parser beside bare iterparse
    python -m data.shard.bench shard JSONL --tokenizer DIR    data.shard beside encode_batch_fast
    python -m data.shard.bench memory JSONL --tokenizer DIR   data.shard's peak on 1 and 10 copies
    python -m data.shard.bench sample SHARDS...               batches, masks and all, in one process

The sides take turns. Rates are medians, shares medians over the rounds: by the clock, and by
processor time, which is the same however busy the machine is. Inputs are unpacked beforehand.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial
from itertools import count
from pathlib import Path
from typing import NamedTuple
from xml.etree import ElementTree

import numpy as np
import torch

from data.parallel import n_cores
from data.pubmed.citations import citation, elements, unpacked
from data.shard.records import blocks, check_inputs, documents
from kernels.bench.timing import Spread, Table, milliseconds
from kernels.machine import describe
from minibio.run import errors
from minibio.run.errors import InputError
from minibio.run.files import check_writable
from minibio.run.options import Parser
from minibio.text.corpus import Corpus
from minibio.text.tokenizer import Tokenizer

CHUNK = 512  # texts that encode_batch_fast is given at once
LENGTH, UNCUT = 256, 10_000  # tokens of the longest document; no abstract is as long
COPIES = 10  # of the input, for the peak of memory
STEP, STEPS = 64, 64  # sequences of a sampled batch, batches of a round
TICK = 0.01  # seconds: the system counts the work of processes no finer
EVERY = 0.05  # seconds between two readings of the memory


class BenchOptions(NamedTuple):
    """The options of a measurement."""

    inputs: list[Path]
    tokenizer: Path | None
    exclude: list[Path]  # evaluation sets
    workers: int
    rounds: int  # timed calls of each side


def race(what: str, unit: str, sides: dict[str, Callable], rounds: int) -> Iterator[dict]:
    """A row for each side: its rate, and its share of the first one's.

    Args:
        sides: name -> call, which returns how much of `unit` it got through.
    """
    done = {name: [] for name in sides}  # of each round: (amount, seconds of work)

    def counted(name: str) -> None:
        before = cpu_seconds()
        amount = sides[name]()
        done[name].append((amount, max(cpu_seconds() - before, TICK)))

    calls, base = [[partial(counted, name)] for name in sides], None
    times = milliseconds(calls, torch.device("cpu"), rounds, warmup=0)
    for name, clock in zip(sides, times, strict=True):
        amount, work = np.array(done[name]).T  # (rounds,) each
        rates = np.stack([1000 * amount / clock[:, 0], amount / work])  # (2, rounds)
        base = rates if base is None else base
        share, share_cpu = np.median(rates / base, axis=1).tolist()
        yield {
            "what": what,
            "side": name,
            "unit": f"{unit}/s",
            **Spread.of(rates[0])._asdict(),
            "p50_cpu": np.median(rates[1]),
            "share": share,
            "share_cpu": share_cpu,
        }


def cpu_seconds() -> float:
    """Seconds of work for this process, its threads, and its children that ended."""
    return sum(os.times()[:4])


def bench_parse(place: Path, given: BenchOptions) -> Iterator[dict]:
    """All that data.pubmed does with a file before it writes."""
    files = [place / f"{i}.xml" for i in range(len(given.inputs))]
    for file, path in zip(files, given.inputs, strict=True):
        file.write_bytes(b"".join(unpacked(path)))
    megabytes = sum(file.stat().st_size for file in files) / 1e6

    def bare() -> float:
        for file in files:
            for _, element in ElementTree.iterparse(file):
                element.clear()
        return megabytes

    def ours() -> float:
        for file in files:
            for element in elements(file):
                citation(element, Counter())
        return megabytes

    return race("parse", "MB", {"bare iterparse": bare, "data.pubmed": ours}, given.rounds)


def unpack(path: Path, place: Path) -> tuple[Path, list[str]]:
    """An input as plain JSON lines, and its texts."""
    check_inputs([path])
    plain, texts = place / "input.jsonl", []
    with open(plain, "wb") as out:
        for block in blocks(path):
            texts += [document.text for document in documents(block, Counter(), keep_eval=True)]
            out.write(block.data)
    return plain, texts


def command(plain: Path, given: BenchOptions, *options) -> list[str]:
    """data.shard as a user starts it, into a directory beside its input."""
    options = [*options, "--tokenizer", given.tokenizer, "--workers", given.workers]
    options += ["--out", plain.parent / "out", "--overwrite", "--keep-eval", "--held-out", 0.1]
    return [sys.executable, "-m", "data.shard", *map(str, [plain, *options])]


def bench_shard(place: Path, given: BenchOptions) -> Iterator[dict]:
    """Whole commands, from the file to the shards; rates are of all tokens, cut off ones too."""
    plain, texts = unpack(given.inputs[0], place)
    encoder = Tokenizer.from_dir(given.tokenizer)
    chunks = [texts[first : first + CHUNK] for first in range(0, len(texts), CHUNK)]
    millions = sum(len(ids) for chunk in chunks for ids in encoder.encode_words(chunk)) / 1e6

    def encode() -> float:
        for chunk in chunks:
            encoder.backend.encode_batch_fast(chunk, add_special_tokens=False)
        return millions

    def run(*options) -> float:
        subprocess.run(command(plain, given, *options), check=True, stdout=subprocess.DEVNULL)
        return millions

    several = [[], ["--length", UNCUT], ["--split-long"], ["--duplicates", "exact"]]
    if given.exclude:
        several.append(["--duplicates", "exact", "--exclude", *given.exclude])
    names = [" ".join(map(str, options[:3])) or "data.shard" for options in several]
    sides = {name: partial(run, *options) for name, options in zip(names, several, strict=True)}
    return race("shard", "million tokens", {"encode_batch_fast": encode, **sides}, given.rounds)


def bench_memory(place: Path, given: BenchOptions) -> Iterator[dict]:
    """The peak of all processes of data.shard together, on the input and on COPIES of it.

    A copy has other PMIDs, and the words of each abstract in another order: no two texts are equal.
    """
    plain, _ = unpack(given.inputs[0], place)
    many = place / "many.jsonl"
    rng = np.random.Generator(np.random.Philox(key=[0, 0]))
    with open(plain, encoding="utf-8") as file, open(many, "w", encoding="utf-8") as out:
        for i, line in enumerate(file):
            record = json.loads(line)
            words = (record.get("abstract") or "").split()
            for copy in range(COPIES):
                rng.shuffle(words)
                record |= {"abstract": " ".join(words), "pmid": str(copy * 10**7 + i)}
                out.write(json.dumps(record, ensure_ascii=False) + "\n")
    for name, path in (("once", plain), (f"{COPIES} copies", many)):
        began, peaks = time.perf_counter(), np.zeros(2)  # of all together, of one
        words = command(path, given, "--duplicates", "exact")
        with subprocess.Popen(words, stdout=subprocess.DEVNULL) as run:
            while run.poll() is None:
                each = resident(run.pid) or [0]
                peaks = np.maximum(peaks, (sum(each), max(each)))
                time.sleep(EVERY)
        all_mib, one_mib = (peaks / 2**20).tolist()
        yield {
            "what": "memory",
            "side": name,
            "bytes": path.stat().st_size,
            "all_mib": all_mib,
            "one_mib": one_mib,
            "seconds": time.perf_counter() - began,
        }


def resident(pid: int) -> list[int]:
    """Bytes of memory, mapped files included, of a process and of each of its descendants."""
    try:
        pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    except OSError:  # it ended
        return []
    own = pages * os.sysconf("SC_PAGE_SIZE")
    return [own, *(size for child in children for size in resident(int(child)))]


def bench_sample(place: Path, given: BenchOptions) -> Iterator[dict]:
    """Batches of `Corpus`."""
    torch.set_num_threads(1)
    for path in given.inputs:
        corpus, firsts = Corpus(path, seed=0, length=LENGTH), count(0, STEP)

        def batches(corpus=corpus, firsts=firsts) -> float:
            first = [next(firsts) for _ in range(STEPS)]
            return sum(corpus.take(range(n, n + STEP)).N for n in first) / 1e6

        name = f"mean of {corpus.n_tokens / corpus.n_documents:.0f}"
        yield from race("sample", "million tokens", {name: batches}, 10 * given.rounds)


BENCHES = dict(parse=bench_parse, shard=bench_shard, memory=bench_memory, sample=bench_sample)


def main(argv=None) -> None:
    p = Parser(
        "data.shard.bench",
        description=__doc__,
        epilog=__doc__.partition("\n\n")[2],
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    p.add_argument("what", choices=BENCHES)
    p.add_argument("inputs", nargs="+", type=Path, metavar="INPUT")
    p.add_argument("--tokenizer", type=Path, metavar="DIR")
    p.add_argument(
        "--exclude", nargs="+", default=[], metavar="PATH", help="shard: evaluation sets"
    )
    p.add_argument("--workers", type=int, default=n_cores(), help="default: one a core")
    p.add_argument("--rounds", type=int, default=5, help="timed calls of each kind")
    p.add_argument("--out", type=Path, metavar="CSV")
    args = vars(p.parse_args(argv))
    what, out = args.pop("what"), args.pop("out")
    given = BenchOptions(**args)
    if min(given.rounds, given.workers) < 1:
        raise InputError("--rounds and --workers: expected at least 1")
    if what in ("shard", "memory") and (given.tokenizer is None or len(given.inputs) > 1):
        raise InputError(f"{what} needs one INPUT and --tokenizer DIR")
    header = f"{describe(torch.device('cpu'))} | {n_cores()} cores, {given.workers} workers"
    out = None if out is None else check_writable(out)
    with tempfile.TemporaryDirectory(prefix="minibio-") as place, Table(out, header) as table:
        for row in BENCHES[what](Path(place), given):
            line = (f"{k} {v:.2f}" if isinstance(v, float) else f"{k} {v}" for k, v in row.items())
            table.add(row, "  ".join(line))


if __name__ == "__main__":
    errors.run(main, "data.shard.bench")
