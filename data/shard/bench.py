"""How fast text becomes samples on this machine, each part beside what it cannot do without.

    python -m data.shard.bench parse XML...                   the parser beside bare iterparse
    python -m data.shard.bench shard JSONL --tokenizer DIR    data.shard beside encode_batch_fast
    python -m data.shard.bench sample                         batches, masks and all, in one process
    python -m data.shard.bench memory JSONL --tokenizer DIR   data.shard's peak on 1 and 10 copies

The sides take turns, so that a change of the clock's speed meets them all; rates are medians with
their 20th and 80th percentile, shares medians over the rounds. Inputs are unpacked beforehand.
Every row is printed, and with `--out` written to a CSV, as soon as it is known.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from functools import partial
from itertools import count, islice
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import torch

from data.parallel import n_cores
from data.pubmed.citations import citation, elements, unpacked
from data.shard.records import blocks, check_inputs, documents
from kernels.bench.timing import Table, ragged_lengths
from kernels.machine import describe
from minibio.run import errors
from minibio.run.errors import InputError
from minibio.run.files import check_writable, write_json
from minibio.text.corpus import Corpus
from minibio.text.shards import FORMAT, SPLITS, ShardWriter
from minibio.text.tokenizer import SPECIAL, Tokenizer

CHUNK = 512  # texts that encode_batch_fast is given at once
LENGTH = 256  # tokens of the longest document
UNCUT = 10_000  # no abstract is as long: every token is kept
COPIES = 10  # of the input, for the peak of memory
STEP, STEPS = 64, 64  # sequences of a sampled batch, batches of a round
TICK = 0.01  # seconds: finer the system does not count the work of processes
EVERY = 0.05  # seconds between two looks at the memory


def race(table: Table, what: str, unit: str, sides: dict[str, Callable], rounds: int,
         against: str = "") -> None:  # fmt: skip
    """Rows of the rates of `sides`, the calls taking turns.

    Args:
        unit:    of what each call returns: how much it got through.
        against: the side that the others are compared with, round by round.
    """
    rates = {name: np.zeros((rounds, 2)) for name in sides}  # a second of the clock, of work
    for k in range(rounds):
        for name, call in sides.items():
            began, worked = time.perf_counter(), cpu_seconds()
            n = call()
            seconds = time.perf_counter() - began, max(cpu_seconds() - worked, TICK)
            rates[name][k] = np.divide(n, seconds)
    for name, found in rates.items():
        p20, p50, p80 = np.percentile(found[:, 0], (20, 50, 80))
        row = {"what": what, "side": name, "unit": f"{unit}/s", "p50": p50, "p20": p20, "p80": p80,
               "p50_cpu": np.median(found[:, 1]), "share": None, "share_cpu": None,
               "rounds": rounds}  # fmt: skip
        line = f"{what:<8}{name:<30}{p50:>7.2f} ({p20:.2f}-{p80:.2f}) {unit}/s"
        if against:
            shares = np.median(found / rates[against], axis=0)  # (2,)
            row |= dict(zip(("share", "share_cpu"), shares.tolist(), strict=True))
            line += f"   {shares[0]:.2f} of {against} ({shares[1]:.2f} by processor time)"
        else:
            line += f"   {row['p50_cpu']:.2f} by processor time"
        table.add(row, line)


def cpu_seconds() -> float:
    """Seconds that processors worked for this process, its threads, and its children that ended.

    Other programs on the machine make a call slow, and leave this as it is.
    """
    return sum(os.times()[:4])


# the parser


def bare(path: Path) -> float:
    """The least that any parser of a file has to do; its megabytes."""
    for _, element in ElementTree.iterparse(path):
        element.clear()
    return path.stat().st_size / 1e6


def parse(path: Path) -> float:
    """What data.pubmed does before it writes; the megabytes of the file."""
    counts = Counter()
    for element in elements(path):
        citation(element, counts)
    return path.stat().st_size / 1e6


def bench_parse(args, table: Table, place: Path) -> None:
    """The records of all files, over and over, as one uncompressed file."""
    path, bodies = place / "all.xml", []
    for file in args.xml:
        text = b"".join(unpacked(file))
        begin, end = text.find(b"<PubmedArticle>"), text.rfind(b"</PubmedArticle>")
        if end < 0:
            raise InputError(f"{file}: no PubmedArticle in it")
        bodies.append(text[begin : end + len(b"</PubmedArticle>")])
    body = b"\n".join(bodies)
    with open(path, "wb") as out:
        out.write(b"<?xml version='1.0' encoding='utf-8'?>\n<PubmedArticleSet>\n")
        for _ in range(-(-args.megabytes * 10**6 // len(body))):
            out.write(body)
        out.write(b"</PubmedArticleSet>\n")
    sides = {"bare iterparse": partial(bare, path), "data.pubmed": partial(parse, path)}
    race(table, "parse", "MB", sides, args.rounds, "bare iterparse")


# the shards


def unpack(path: Path, place: Path) -> tuple[Path, list[str]]:
    """An input as plain JSON lines, and its texts."""
    check_inputs([path])
    plain, texts = place / "input.jsonl", []
    with open(plain, "wb") as out:
        for block in blocks(path):
            texts += [document.text for document in documents(block, Counter(), keep_eval=True)]
            out.write(block.data)
    return plain, texts


def command(plain: Path, args, out: Path, *options) -> list[str]:
    """data.shard as a user starts it."""
    options = [*options, "--tokenizer", args.tokenizer, "--out", out, "--workers", args.workers]
    options += ["--overwrite", "--keep-eval", "--held-out", 0.1]
    words = [sys.executable, "-m", "data.shard", plain, *options]
    return list(map(str, words))


def bench_shard(args, table: Table, place: Path) -> None:
    """Whole commands, from the file to the shards, on as many processes as there are cores."""
    plain, texts = unpack(args.jsonl, place)
    tokenizer = Tokenizer.from_dir(args.tokenizer)
    chunks = [texts[first : first + CHUNK] for first in range(0, len(texts), CHUNK)]
    # all tokens of the texts, also those that data.shard cuts off
    millions = sum(len(ids) for chunk in chunks for ids in tokenizer.encode_words(chunk)) / 1e6

    def alone() -> float:
        for chunk in chunks:
            tokenizer.backend.encode_batch_fast(chunk, add_special_tokens=False)
        return millions

    def run(*options) -> float:
        words = command(plain, args, place / "out", *options)
        subprocess.run(words, check=True, stdout=subprocess.DEVNULL)
        return millions

    exact = ["--duplicates", "exact"]
    sides = {
        "encode_batch_fast": alone,
        "data.shard": run,
        f"--length {UNCUT}": partial(run, "--length", UNCUT),
        "--split-long": partial(run, "--split-long"),
        " ".join(exact): partial(run, *exact),
    }
    if args.exclude:
        sides["--duplicates exact --exclude"] = partial(run, *exact, "--exclude", *args.exclude)
    mean = 1e6 * millions / len(texts)
    print(f"{len(texts):,} documents of {mean:.1f} tokens, {args.workers} processes")
    race(table, "shard", "million tokens", sides, args.rounds, "encode_batch_fast")


def bench_memory(args, table: Table, place: Path) -> None:
    """The peak of all processes of data.shard together, on the input and on COPIES of it.

    A copy has other PMIDs, and the words of each abstract in another order, so that no two texts
    are equal.
    """
    plain, _ = unpack(args.jsonl, place)
    rows = plain.read_bytes().splitlines()
    many = place / "many.jsonl"
    with open(many, "w", encoding="utf-8") as out:
        for copy in range(COPIES):
            rng = np.random.Generator(np.random.Philox(key=[copy, 0]))
            for i, row in enumerate(rows):
                record = json.loads(row)
                words = record["abstract"].split()
                rng.shuffle(words)
                record = {"title": record["title"], "abstract": " ".join(words)}
                record["pmid"] = str(copy * 10**7 + i)
                out.write(json.dumps(record, ensure_ascii=False) + "\n")
    del rows
    for name, path in (("once", plain), (f"{COPIES} copies", many)):
        began, peak, largest = time.perf_counter(), 0, 0
        words = command(path, args, place / "out", "--duplicates", "exact")
        with subprocess.Popen(words, stdout=subprocess.DEVNULL) as run:
            while run.poll() is None:
                each = [resident(pid) for pid in family(run.pid)]
                peak, largest = max(peak, sum(each)), max(largest, *each)
                time.sleep(EVERY)
        seconds, size = time.perf_counter() - began, path.stat().st_size
        row = {
            "what": "memory", "side": name, "bytes": size, "workers": args.workers,
            "all_mib": peak / 2**20, "one_mib": largest / 2**20, "seconds": seconds,
        }  # fmt: skip
        table.add(
            row,
            f"memory  {name:<12}{size / 1e6:>9,.0f} MB in {seconds:,.0f} s: all {args.workers + 1} "
            f"processes {peak / 2**20:,.0f} MiB, the largest {largest / 2**20:,.0f} MiB",
        )


def family(pid: int) -> list[int]:
    """A process, its children, theirs."""
    try:
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    except OSError:
        return [pid]
    return [pid, *(each for child in children for each in family(int(child)))]


def resident(pid: int) -> int:
    """Bytes of memory that a process holds, mapped files included; 0 where it is gone."""
    try:
        pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    except OSError:
        return 0
    return pages * os.sysconf("SC_PAGE_SIZE")


# the samples


def bench_sample(args, table: Table, place: Path) -> None:
    """Batches of `Corpus`, of documents as long as PubMed's, and of `--shards` where named."""
    torch.set_num_threads(1)
    for path in (synthetic(place / "shards"), *filter(None, [args.shards])):
        corpus = Corpus(path, seed=0, length=LENGTH)
        firsts = count(0, STEP)

        def batches(corpus=corpus, firsts=firsts) -> float:
            spans = [range(first, first + STEP) for first in islice(firsts, STEPS)]
            return sum(corpus.take(span).N for span in spans) / 1e6

        name = f"mean of {corpus.n_tokens / corpus.n_documents:.0f}"
        race(table, "sample", "million tokens", {name: batches}, 10 * args.rounds)


def synthetic(path: Path, n: int = 30_000, V: int = 28_996) -> Path:
    """Shards of random tokens in documents as long as PubMed's, a third of them bare titles."""
    rng = np.random.Generator(np.random.Philox(key=[0, 0]))
    lengths = np.array(ragged_lengths(n, LENGTH, 0))
    path.mkdir()
    vocab = [*SPECIAL, *(f"Piece{i}" for i in range(V - len(SPECIAL)))]
    (path / "vocab.txt").write_text("\n".join(vocab) + "\n", "utf-8")
    tokenizer = Tokenizer.from_dir(path)
    ids = rng.integers(len(SPECIAL), V, lengths.sum(), np.uint16)
    ends = np.cumsum(lengths)
    ids[ends - lengths], ids[ends - 1] = tokenizer.cls_id, tokenizer.sep_id
    writers = {split: ShardWriter(path, split, V) for split in SPLITS}
    writers["train"].extend(ids, lengths)
    write_json(path / "meta.json", {
        "format": FORMAT, "V": V, "cased": True, "tokenizer": tokenizer.fingerprint,
        "length": LENGTH, "held_out": 0,
        "splits": {split: writer.close() for split, writer in writers.items()},
    })  # fmt: skip
    return path


# the command


def parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser("data.shard.bench", description=__doc__.split("\n")[0])
    whats = p.add_subparsers(required=True, metavar="WHAT")
    shared = argparse.ArgumentParser(add_help=False)
    shared.add_argument("--rounds", type=int, default=5, help="timed calls of each kind")
    shared.add_argument("--out", type=Path, metavar="CSV")
    for name, bench in (("parse", bench_parse), ("shard", bench_shard), ("memory", bench_memory),
                        ("sample", bench_sample)):  # fmt: skip
        what = whats.add_parser(name, parents=[shared], help=bench.__doc__.split("\n")[0])
        what.set_defaults(bench=bench)
        if name == "parse":
            what.add_argument("xml", nargs="+", type=Path, metavar="XML")
            what.add_argument("--megabytes", type=int, default=50, help="of the file to parse")
        elif name == "sample":
            what.add_argument("--shards", type=Path, metavar="DIR", help="sample from these too")
        else:
            what.add_argument("jsonl", type=Path, metavar="JSONL")
            what.add_argument("--tokenizer", type=Path, required=True, metavar="DIR")
            what.add_argument("--workers", type=int, default=n_cores(), help="default: one a core")
        if name == "shard":
            what.add_argument("--exclude", nargs="+", type=Path, metavar="PATH",
                              help="evaluation sets: a run that looks for them too")  # fmt: skip
    return p


def main(argv=None) -> None:
    args = parser().parse_args(argv)
    if args.rounds < 1:
        raise InputError(f"--rounds is {args.rounds}, expected at least 1")
    header = f"{describe(torch.device('cpu'))} | {n_cores()} cores"
    with (
        tempfile.TemporaryDirectory(prefix="minibio-") as place,
        Table(None if args.out is None else check_writable(args.out), header) as table,
    ):
        args.bench(args, table, Path(place))


if __name__ == "__main__":
    errors.run(main, "data.shard.bench")
