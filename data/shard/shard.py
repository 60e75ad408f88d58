"""Text to token shards: `python -m data.shard INPUT... --tokenizer DIR --out DIR`.

INPUT is `.txt`, a document a line, or `.jsonl`, also packed as `.jsonl.gz` or `.jsonl.xz`, a record
a line with `title` and `abstract`. One record is one example: title (without the brackets around
the whole of a translated one), a space, the abstract, cut to `--length` tokens (F35), or with
`--split-long` split into several examples. Records flagged `in_eval_corpus` or `eval_test_overlap`
are left out: what a model is scored on later it must not have read. With `--train-tokenizer V` in
place of a tokenizer, a vocabulary is learnt from the documents first.

First every block of text becomes a piece (pieces.py, workplace.py), on as many processes as there
are `--workers` (parallel.py). Then duplicates (duplicates.py) and citations that hold a sentence of
an evaluation set (leakage.py) are found, and what is left is written as shards, in the order of the
input. The bytes do not depend on the number of processes, memory does not grow with the input, and
a run that was stopped goes on from the pieces that are whole.
"""

import argparse
import bisect
import math
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np

from data.parallel import n_cores
from data.shard import duplicates, leakage
from data.shard.duplicates import EXACT, KEPT, LEAKED, NEARLY, OLDER
from data.shard.pieces import COUNTED, Piece, Recipe, bare_tokens, key_hash
from data.shard.records import FLAGS, blocks, check_inputs, documents
from data.shard.workplace import all_pieces, prepare, tokenise, workplace
from minibio.run.errors import InputError
from minibio.run.files import check_dir, read_json, staged_dir, write_json
from minibio.text.shards import FORMAT, ShardWriter, verify
from minibio.text.tokenizer import Tokenizer

DUPLICATES = ("keep", "exact", "near")


def shard(inputs: list[str | Path], tokenizer: str | Path | Tokenizer | None, out: str | Path,
          length: int = 256, held_out: float = 0.01, keep_eval: bool = False,
          progress: bool = True, train_tokenizer: int | None = None, cased: bool = True,
          overwrite: bool = False, workers: int = 1, split_long: bool = False,
          duplicates: str = "keep", exclude: list[str | Path] = ()) -> dict:  # fmt: skip
    """Write the token shards of `inputs` to the directory `out`; returns the count table.

    Args:
        tokenizer:       a tokenizer or its directory; None with `train_tokenizer`.
        length:          tokens of the longest example, [CLS] and [SEP] included.
        held_out:        share of the documents kept back to measure on; which ones follows from
                         their id, or their text where they have none.
        keep_eval:       keep the records flagged as part of an evaluation set.
        train_tokenizer: pieces of a vocabulary to learn from the documents to train on.
        workers:         processes that tokenise; 1 = this one.
        split_long:      split longer documents into several examples instead of cutting them.
        duplicates:      "keep" them, or leave out "exact" ones, "near" ones too.
        exclude:         evaluation files; citations that hold a sentence of theirs are left out.
    Raises:
        InputError: bad input, with its file and line. What is whole of the work stays in a hidden
            directory, and the next run with the same options goes on from there.
    """
    began = time.perf_counter()
    inputs, exclude = [Path(path) for path in inputs], [Path(path) for path in exclude]
    check_inputs(inputs)
    check_options(length, held_out, tokenizer, train_tokenizer, workers, duplicates)
    out = check_dir(out, overwrite)
    sentences = leakage.Sentences.read(exclude) if exclude else None
    if train_tokenizer is not None:
        texts = TrainTexts(inputs, held_out, keep_eval)
        tokenizer = Tokenizer.train(texts, train_tokenizer, cased)
    elif not isinstance(tokenizer, Tokenizer):
        tokenizer = Tokenizer.from_dir(tokenizer)
    with workplace(out) as place:
        tokenizer.save(place / "tokenizer")
        recipe = Recipe(place / "tokenizer", length, split_long, keep_eval,
                        duplicates, sentences)  # fmt: skip
        folders = prepare(place, inputs, recipe)
        tokenise(inputs, folders, recipe, workers, progress)
        pieces = all_pieces(inputs, folders)
        fate, report = decide(place, pieces, tokenizer, sentences, duplicates)
        with staged_dir(out, overwrite=overwrite) as staged:
            splits, counts = write_splits(pieces, fate, tokenizer, staged, held_out)
            tokenizer.save(staged)
            write_json(staged / "meta.json", {
                "format": FORMAT, "V": tokenizer.V, "cased": tokenizer.cased,
                "tokenizer": tokenizer.fingerprint, "length": length, "held_out": held_out,
                "splits": splits,
            })  # fmt: skip
            write_json(staged / "counts.json", {
                **counts, "options": {"split_long": split_long, "duplicates": duplicates,
                                      "keep_eval": keep_eval, "exclude": list(map(str, exclude))},
            })  # fmt: skip
            if report:
                write_json(staged / "leakage.json", {"sets": report})
    return {**counts, "seconds": round(time.perf_counter() - began, 1)}


def check_options(length, held_out, tokenizer, train_tokenizer, workers, duplicates) -> None:
    """Refuse what can be seen to be wrong before any work.

    Raises:
        InputError: an option outside its range, no tokenizer or two.
    """
    if length < 3:
        raise InputError(f"--length is {length}, expected at least 3: [CLS], a token, [SEP]")
    if not 0 <= held_out < 1:
        raise InputError(f"--held-out is {held_out}, expected a share from 0 to below 1")
    if (tokenizer is None) == (train_tokenizer is None):
        raise InputError("expected one of --tokenizer DIR and --train-tokenizer V")
    if workers < 1:
        raise InputError(f"--workers is {workers}, expected 1 or more")
    if duplicates not in DUPLICATES:
        raise InputError(f"--duplicates is {duplicates}, expected one of {', '.join(DUPLICATES)}")


@dataclass
class TrainTexts:
    """The texts a tokenizer may learn from; each walk reads the files anew."""

    inputs: list[Path]
    held_out: float
    keep_eval: bool

    def __iter__(self) -> Iterator[str]:
        for path in self.inputs:
            for block in blocks(path):
                for document in documents(block, Counter(), self.keep_eval):
                    if not is_held_out(document.key, self.held_out):
                        yield document.text


def is_held_out(key: str, share: float) -> bool:
    """Whether a document is kept back: the same answer everywhere, in any order of documents."""
    return key_hash(key) < share * 2**64


# what is left out, and what is written


def decide(place: Path, pieces: list[Piece], tokenizer: Tokenizer,
           sentences: leakage.Sentences | None, mode: str) -> tuple[np.ndarray, list]:  # fmt: skip
    """What becomes of each document, (documents,) uint8, and the leakage report, a set a row."""
    n = sum(len(piece.column("key")) for piece in pieces)
    fate, report = np.full(n, KEPT, np.uint8), []
    if mode != "keep":
        ids = collect(pieces, place / "id", lambda p: p.column("key") * (p.column("version") > 0))
        versions = collect(pieces, place / "version", lambda p: p.column("version"))
        texts = collect(pieces, place / "text", lambda p: p.column("text"))
        duplicates.drop_older(ids[0], versions[0], fate)
        duplicates.drop_exact(texts[0], fate)
    if mode == "near":
        bands = collect(pieces, place / "band", lambda p: p.column("bands"))
        duplicates.drop_near(bands, fate, Tokens(pieces, tokenizer), tokenizer.unk_id)
    if sentences:
        is_leaked, report = leakage.mark(pieces, sentences, fate != KEPT)
        fate[is_leaked] = LEAKED
    return fate, report


def collect(pieces: list[Piece], file: Path, column) -> list[Path]:
    """A column of all pieces, (n,) or (k, n), as one file or k files."""
    with ExitStack() as stack:
        files, opened = [], []
        for piece in pieces:
            rows = np.atleast_2d(column(piece))
            for k in range(len(files), len(rows)):
                files.append(file.with_name(f"{file.name}-{k}"))
                opened.append(stack.enter_context(open(files[k], "wb")))
            for row, out in zip(rows, opened, strict=True):
                out.write(np.ascontiguousarray(row))
    return files


class Tokens:
    """The tokens of any document of all pieces, without [CLS] and [SEP], its windows joined."""

    def __init__(self, pieces: list[Piece], tokenizer: Tokenizer):
        self.firsts, self.tokenizer = [piece.first for piece in pieces], tokenizer
        self.open = lru_cache(16)(lambda k: opened(pieces[k], tokenizer.V))

    def __call__(self, document: int) -> np.ndarray:
        k = bisect.bisect_right(self.firsts, document) - 1
        begins, tokens = self.open(k)
        i = document - self.firsts[k]
        ids = tokens[begins[i] : begins[i + 1]]
        return ids[bare_tokens(ids, self.tokenizer)]


def opened(piece: Piece, V: int) -> tuple[np.ndarray, np.ndarray]:
    """(n + 1,) where each document of a piece begins, and its tokens, memory-mapped."""
    offsets, tokens = piece.sequences(V)
    return offsets[np.append(0, np.cumsum(piece.column("windows"), dtype=np.int64))], tokens


def write_splits(pieces: list[Piece], fate: np.ndarray, tokenizer: Tokenizer, out: Path,
                 held_out: float) -> tuple[dict, dict]:  # fmt: skip
    """Write the shards of both splits: what meta.json says of them, and the count table.

    Raises:
        InputError: no document to train on is left.
    """
    writers = {split: ShardWriter(out, split, tokenizer.V) for split in ("train", "held-out")}
    threshold, n = np.uint64(math.ceil(held_out * 2**64)), Counter()
    for piece in pieces:
        offsets, tokens = piece.sequences(tokenizer.V)
        lengths, windows = np.diff(offsets.astype(np.int64)), piece.column("windows")
        is_kept = fate[piece.first : piece.first + len(windows)] == KEPT
        is_held_out = piece.column("key") < threshold
        n.update(dict(zip(COUNTED, piece.column("counts").tolist(), strict=True)))
        n["cut"] += int((is_kept & piece.column("is_cut")).sum())
        for split, wanted in (("train", ~is_held_out), ("held-out", is_held_out)):
            is_in = np.repeat(is_kept & wanted, windows)  # (sequences,)
            n[split] += int((is_kept & wanted).sum())
            ids = tokens[np.repeat(is_in, lengths)]
            writers[split].extend(ids, lengths[is_in])
            n["unknown"] += int((ids == tokenizer.unk_id).sum())
            n["longest"] = max(n["longest"], int(lengths[is_in].max(initial=0)))
    splits = {split: writer.close() for split, writer in writers.items()}
    drops = dict(enumerate(np.bincount(fate, minlength=5).tolist()))
    flagged = sum(n[flag] for flag in FLAGS)
    if not n["train"]:
        left_out = sum(drops[k] for k in (OLDER, EXACT, NEARLY, LEAKED))
        raise InputError(
            f"no document to train on: {n['read']} read, {flagged} flagged, {n['empty']} empty, "
            f"{n['held-out']} held out, {left_out} duplicates or leaks"
        )
    examples, n_tokens = (sum(s[key] for s in splits.values()) for key in ("documents", "tokens"))
    return splits, {
        "documents read": n["read"],
        **{f"dropped: {flag}": n[flag] for flag in FLAGS},
        "dropped: empty": n["empty"],
        "dropped: older version": drops[OLDER],
        "dropped: exact duplicate": drops[EXACT],
        "dropped: near-duplicate": drops[NEARLY],
        "dropped: holds a test sentence": drops[LEAKED],
        "documents to train on": n["train"],
        "documents held out": n["held-out"],
        "documents cut short": n["cut"],
        "examples": examples,
        "tokens": n_tokens,
        "mean length": round(n_tokens / examples, 1),
        "longest": n["longest"],
        "[UNK] share": n["unknown"] / n_tokens,
        "bytes on disk": sum(file.stat().st_size for file in out.glob("*.bin")),
    }


# the command


def parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser("data.shard", description=__doc__.split("\n")[0])
    p.add_argument("inputs", nargs="*", type=Path, metavar="INPUT",
                   help="documents: .txt, .jsonl, .jsonl.gz, .jsonl.xz")  # fmt: skip
    p.add_argument("--tokenizer", type=Path, metavar="DIR", help="directory with its vocabulary")
    p.add_argument("--train-tokenizer", type=int, metavar="V",
                   help="learn a vocabulary of V pieces from the documents instead")  # fmt: skip
    p.add_argument("--uncased", action="store_true", help="of the learnt vocabulary")
    p.add_argument("--out", type=Path, metavar="DIR", help="new directory")
    p.add_argument("--length", type=int, default=256, help="tokens of the longest example")
    p.add_argument(
        "--split-long",
        action="store_true",
        help="split longer documents into examples of whole sentences, do not cut them",
    )
    p.add_argument("--held-out", type=float, default=0.01, help="share kept back to measure on")
    p.add_argument("--keep-eval", action="store_true",
                   help="keep records flagged as part of an evaluation set")  # fmt: skip
    p.add_argument(
        "--duplicates",
        choices=DUPLICATES,
        default="keep",
        help="exact: leave out equal texts and older versions; near: near-duplicates too",
    )
    p.add_argument(
        "--exclude",
        nargs="+",
        type=Path,
        default=[],
        metavar="PATH",
        help="evaluation sets: leave out what holds a sentence of theirs, and report it",
    )
    p.add_argument("--workers", type=int, default=n_cores(),
                   help="processes that tokenise (default: one a core)")  # fmt: skip
    p.add_argument("--overwrite", action="store_true", help="replace what stands in --out")
    p.add_argument("--verify", type=Path, metavar="DIR",
                   help="read a directory of shards again: is it whole?")  # fmt: skip
    return p


def main(argv=None) -> int:
    p = parser()
    args = p.parse_args(argv)
    if args.verify:
        return report_faults(args.verify)
    if not args.inputs or not args.out:
        p.error("expected INPUT... and --out DIR, or --verify DIR")
    if args.uncased and args.train_tokenizer is None:
        raise InputError("--uncased goes with --train-tokenizer; a tokenizer has its own casing")
    counts = shard(
        args.inputs, args.tokenizer, args.out, args.length, args.held_out, args.keep_eval,
        train_tokenizer=args.train_tokenizer, cased=not args.uncased, overwrite=args.overwrite,
        workers=args.workers, split_long=args.split_long, duplicates=args.duplicates,
        exclude=args.exclude,
    )  # fmt: skip
    for name, value in counts.items():
        shown = f"{value:.4%}" if name == "[UNK] share" else f"{value:,}"
        print(f"{name:<30} {shown:>14}")
    if args.exclude:
        print(f"\n{leakage.table(read_json(args.out / 'leakage.json')['sets'])}")
    return 0


def report_faults(path: Path) -> int:
    """Print every fault of a directory of shards and a verdict; 1 where there is a fault."""
    n = 0
    for n, fault in enumerate(verify(path), 1):  # noqa: B007  counts them
        print(fault)
    print(f"{path}: damaged, {n} fault(s)" if n else f"{path}: whole")
    return int(n > 0)
