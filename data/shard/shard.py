"""Text to token shards: `python -m data.shard INPUT... --tokenizer DIR --out DIR`.

INPUT is `.txt`, a document a line, or `.jsonl`, a record a line with `title` and `abstract`; either
may be packed by gzip or xz. One record is one example: title (without the brackets around the whole
of a translated one), a space, the abstract, cut to `--length` tokens (F35), or with `--split-long`
split into several examples. Records flagged `in_eval_corpus` or `eval_test_overlap` are left out:
a model must not have read the text that it is scored on. With `--train-tokenizer V` in place of a
tokenizer, a vocabulary is learnt from the documents first.

First every block of text becomes a piece (pieces.py, workplace.py), on as many processes as there
are `--workers` (data/parallel.py). Then duplicates (duplicates.py) and citations that hold a
sentence of an evaluation set (leakage.py) are found, and what is left is written as shards, in the
order of the input. The bytes do not depend on the number of processes, no text is held in memory,
and the same command again resumes a run that was stopped from its complete pieces.
"""

import math
import os
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from data.parallel import check_workers, n_cores
from data.shard import leakage
from data.shard.duplicates import EXACT, KEPT, LEAKED, OLDER, drop_exact, drop_older
from data.shard.pieces import COUNTED, Piece, PieceRecipe, key_hash
from data.shard.records import FLAGS, blocks, check_inputs, documents
from data.shard.workplace import TooFew, all_pieces, prepare, tokenise, workplace
from minibio.run import fingerprint
from minibio.run.errors import InputError
from minibio.run.files import (
    as_written,
    beside,
    check_apart,
    check_dir,
    locked,
    read_json,
    staged_dir,
    write_json,
)
from minibio.run.options import Parser
from minibio.text.shards import FORMAT, ShardWriter, verify
from minibio.text.tokenizer import SPECIAL, Tokenizer

DUPLICATES = ("keep", "exact")
LARGEST = 1_000_000  # pieces of a learnt vocabulary


def shard(
    inputs: list[str | Path],
    tokenizer: str | Path | Tokenizer | None,
    out: str | Path,
    length: int = 256,
    held_out: float = 0.01,
    keep_eval: bool = False,
    progress: bool = True,
    train_tokenizer: int | None = None,
    cased: bool = True,
    overwrite: bool = False,
    workers: int = 1,
    split_long: bool = False,
    duplicates: str = "keep",
    exclude: list[str | Path] = (),
) -> dict:
    """Write the token shards of `inputs` to the directory `out`.

    Args:
        tokenizer:       a tokenizer or its directory; None with `train_tokenizer`.
        length:          tokens of the longest example, [CLS] and [SEP] included.
        held_out:        share of the documents kept back to measure on, chosen by their id, or by
                         their text where they have none; 0 = none.
        keep_eval:       keep the records flagged as part of an evaluation set.
        train_tokenizer: pieces of a vocabulary to learn from the documents to train on.
        overwrite:       replace what `out` holds.
        workers:         processes that tokenise; 1 = this one.
        split_long:      split longer documents into several examples instead of cutting them.
        duplicates:      "keep" them, or leave out "exact" ones.
        exclude:         evaluation files; citations that hold a sentence of theirs are left out.
    Returns:
        the count table; without "seconds" where `out` holds these shards already.
    Raises:
        InputError: bad input, with its file and line; `out` holds something else, and what differs.
            Complete pieces are kept in a hidden directory, and the next run with the same options
            resumes from them.
    """
    began = time.perf_counter()
    inputs, exclude = [Path(path) for path in inputs], [Path(path) for path in exclude]
    check_inputs(inputs)
    check_apart(out, *inputs, *exclude, *([tokenizer] if isinstance(tokenizer, str | Path) else []))
    check_options(length, held_out, tokenizer, train_tokenizer, workers, duplicates)
    sentences = leakage.Sentences.read(exclude) if exclude else None
    if train_tokenizer is None and not isinstance(tokenizer, Tokenizer):
        tokenizer = Tokenizer.from_dir(tokenizer)
    learnt = f"learnt, {train_tokenizer} pieces, {'cased' if cased else 'uncased'}"
    options = {
        "tokenizer": learnt if tokenizer is None else tokenizer.fingerprint,
        "length": length,
        "held_out": held_out,
        "split_long": split_long,
        "duplicates": duplicates,
        "keep_eval": keep_eval,
        "exclude": [str(path) for path in exclude],
        "sentences": sentences.fingerprint if sentences else None,
        "inputs": [f"{path.name} {fingerprint.of_state(path)}" for path in inputs],
    }
    if not overwrite and (counts := finished(out, options)):
        return counts
    out = check_dir(out, overwrite)
    if train_tokenizer is not None:
        texts = TrainTexts(inputs, held_out, keep_eval)
        tokenizer = Tokenizer.train(texts, train_tokenizer, cased)
    with workplace(out) as place:
        tokenizer.save(place / "tokenizer")
        recipe = PieceRecipe(
            place / "tokenizer", length, split_long, keep_eval, duplicates, sentences
        )
        folders = prepare(place, inputs, recipe)
        tokenise(inputs, folders, recipe, workers, progress)
        with staged_dir(out, overwrite=overwrite) as staged:
            counts = write_shards(all_pieces(inputs, folders), recipe, tokenizer, staged, held_out)
            write_json(staged / "counts.json", {**counts, "options": options})
    return {**counts, "seconds": round(time.perf_counter() - began, 1)}


def finished(out: str | Path, options: dict) -> dict | None:
    """The count table of shards that were made with the same options; None where there are none.

    Raises:
        InputError: `out` holds shards of another command; the message names what differs.
    """
    out = Path(os.path.realpath(out))
    if not (out / "counts.json").is_file():
        return None
    counts = read_json(out / "counts.json")
    made = counts.pop("options", None)
    if not isinstance(made, dict) or made.keys() != options.keys():
        return None
    for name, value in options.items():
        if made[name] != value:
            what = f"with {name} {made[name]}, not {value}"
            if name == "inputs":
                names = " ".join(str(item).split()[0] for item in made[name])
                what = f"of other inputs, or of these before they changed: {names}"
            raise InputError(f"{out} holds shards {what}; choose another directory, or --overwrite")
    if beside(out, "pieces").exists():  # a run killed at its very end left them
        with workplace(out):
            pass
    if beside(out, "lock").exists():
        with locked(beside(out, "lock")):
            pass
    return counts


def check_options(length, held_out, tokenizer, train_tokenizer, workers, duplicates) -> None:
    """Refuse options that are wrong whatever the input.

    Raises:
        InputError: an option outside its range, no tokenizer or two.
    """
    if not 3 <= length < 2**31:
        raise InputError(f"--length is {length}, expected at least 3: [CLS], a token, [SEP]")
    if not 0 <= held_out < 1:
        raise InputError(f"--held-out is {held_out}, expected a share from 0 to below 1")
    if (tokenizer is None) == (train_tokenizer is None):
        raise InputError("expected one of --tokenizer DIR and --train-tokenizer V")
    check_workers(workers)
    if train_tokenizer is not None and not 2 * len(SPECIAL) <= train_tokenizer <= LARGEST:
        raise InputError(
            f"--train-tokenizer is {train_tokenizer}, expected {2 * len(SPECIAL)} to {LARGEST:,}"
        )
    if duplicates not in DUPLICATES:
        raise InputError(f"--duplicates is {duplicates}, expected one of {', '.join(DUPLICATES)}")


@dataclass
class TrainTexts:
    """The texts a tokenizer may learn from; each walk reads the files again."""

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


# fates, and the shards


def decide(
    pieces: list[Piece], sentences: leakage.Sentences | None, duplicates: str
) -> tuple[np.ndarray, list]:
    """The fate of each document, (documents,) uint8, and the leakage report, a set a row."""

    def column(name: str) -> np.ndarray:
        return np.concatenate([piece.column(name) for piece in pieces])

    fate, report = np.full(sum(len(piece.column("key")) for piece in pieces), KEPT, np.uint8), []
    if duplicates == "exact":
        drop_older(column("key"), column("version"), fate)
        drop_exact(column("text"), fate)
    if sentences:
        is_leaked, report = leakage.mark(pieces, sentences, fate != KEPT)
        fate[is_leaked] = LEAKED
    return fate, report


def write_shards(
    pieces: list[Piece], recipe: PieceRecipe, tokenizer: Tokenizer, out: Path, held_out: float
) -> dict:
    """Write everything of a directory of shards but counts.json, which it returns.

    Raises:
        TooFew: no document to train on, or none to measure on.
    """
    fate, report = decide(pieces, recipe.sentences, recipe.duplicates)
    splits, n = write_splits(pieces, fate, tokenizer, out, held_out)
    drops = np.bincount(fate, minlength=LEAKED + 1).tolist()
    check_enough(n, drops, held_out)
    tokenizer.save(out)
    meta = {
        "format": FORMAT,
        "V": tokenizer.V,
        "cased": tokenizer.cased,
        "tokenizer": tokenizer.fingerprint,
        "length": recipe.length,
        "held_out": held_out,
        "splits": splits,
    }
    write_json(out / "meta.json", meta)
    if report:
        write_json(out / "leakage.json", {"sets": report})
    n_bytes = sum(file.stat().st_size for file in out.glob("*.bin"))
    return count_table(n, drops, splits, n_bytes)


def write_splits(
    pieces: list[Piece], fate: np.ndarray, tokenizer: Tokenizer, out: Path, held_out: float
) -> tuple[dict, Counter]:
    """Write the shards of both splits: their entries of meta.json, and what was counted."""
    writers = {split: ShardWriter(out, split, tokenizer.V) for split in ("train", "held-out")}
    threshold, n = np.uint64(math.ceil(held_out * 2**64)), Counter()
    for piece in pieces:
        offsets, tokens = piece.sequences(tokenizer.V)
        lengths, windows = np.diff(offsets.astype(np.int64)), piece.column("windows")
        is_kept = fate[piece.first : piece.first + len(windows)] == KEPT
        is_held_out = piece.column("key") < threshold
        n.update(dict(zip(COUNTED, piece.column("counts").tolist(), strict=True)))
        cut = piece.column("cut")[is_kept].astype(np.int64)
        n["cut"] += int((cut > 0).sum())
        n["tokens cut"] += int(cut.sum())
        for split, wanted in (("train", ~is_held_out), ("held-out", is_held_out)):
            is_in = np.repeat(is_kept & wanted, windows)  # (sequences,)
            n[split] += int((is_kept & wanted).sum())
            ids = tokens[np.repeat(is_in, lengths)]
            writers[split].extend(ids, lengths[is_in])
            n["unknown"] += int((ids == tokenizer.unk_id).sum())
            n["longest"] = max(n["longest"], int(lengths[is_in].max(initial=0)))
    return {split: writer.close() for split, writer in writers.items()}, n


def check_enough(n: Counter, drops: list[int], held_out: float) -> None:
    """Refuse shards without a document to train on, or to measure on.

    Args:
        drops: documents of each fate.
    Raises:
        TooFew: there is none, and where they went.
    """
    if not n["train"]:
        flagged, left_out = sum(n[flag] for flag in FLAGS), sum(drops) - drops[KEPT]
        raise TooFew(
            f"no document to train on: {n['read']} read, {flagged} flagged, {n['empty']} empty, "
            f"{n['held-out']} held out, {left_out} duplicates or leaks"
        )
    if held_out and not n["held-out"]:
        raise TooFew(
            f"none of {n['train']} documents is held out to measure on with --held-out {held_out}; "
            "name more documents, or a larger share"
        )


def count_table(n: Counter, drops: list[int], splits: dict, n_bytes: int) -> dict:
    """counts.json."""
    examples, n_tokens = (sum(s[key] for s in splits.values()) for key in ("documents", "tokens"))
    return {
        "documents read": n["read"],
        **{f"dropped: {flag}": n[flag] for flag in FLAGS},
        "dropped: empty": n["empty"],
        "dropped: older version": drops[OLDER],
        "dropped: exact duplicate": drops[EXACT],
        "dropped: holds a test sentence": drops[LEAKED],
        "documents to train on": n["train"],
        "documents held out": n["held-out"],
        "documents cut short": n["cut"],
        "tokens cut off, about": n["tokens cut"],
        "examples": examples,
        "tokens": n_tokens,
        "mean length": round(n_tokens / examples, 1),
        "longest": n["longest"],
        "[UNK] share": n["unknown"] / n_tokens,
        "bytes on disk": n_bytes,
    }


# the command


def parser() -> Parser:
    p = Parser("data.shard", description=__doc__)
    p.add_argument(
        "inputs",
        nargs="*",
        type=Path,
        metavar="INPUT",
        help="documents: .txt or .jsonl, plain or packed by gzip or xz",
    )
    p.add_argument("--tokenizer", type=Path, metavar="DIR", help="directory with its vocabulary")
    p.add_argument(
        "--train-tokenizer",
        type=int,
        metavar="V",
        help="learn a vocabulary of V pieces from the documents instead",
    )
    p.add_argument("--uncased", action="store_true", help="of the learnt vocabulary")
    p.add_argument("--out", type=Path, metavar="DIR", help="new directory")
    p.add_argument("--length", type=int, default=256, help="tokens of the longest example")
    p.add_argument(
        "--split-long",
        action="store_true",
        help="split longer documents into examples of whole sentences, do not cut them",
    )
    p.add_argument("--held-out", type=float, default=0.01, help="share kept back to measure on")
    p.add_argument(
        "--keep-eval",
        action="store_true",
        help="keep records flagged as part of an evaluation set",
    )
    p.add_argument(
        "--duplicates",
        choices=DUPLICATES,
        default="keep",
        help="exact: leave out equal texts and older versions",
    )
    p.add_argument(
        "--exclude",
        nargs="+",
        type=Path,
        default=[],
        metavar="PATH",
        help="evaluation sets: leave out citations with a sentence of theirs, and report it",
    )
    p.add_argument(
        "--workers",
        type=int,
        default=n_cores(),
        help="processes that tokenise (default: one a core)",
    )
    p.add_argument("--overwrite", action="store_true", help="replace the contents of --out")
    p.add_argument(
        "--verify",
        type=Path,
        metavar="DIR",
        help="read a directory of shards again: is it whole?",
    )
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
    if args.held_out == 0:
        raise InputError(
            "--held-out is 0, expected a share above 0: train.py measures on these documents"
        )
    counts = shard(
        args.inputs,
        args.tokenizer,
        args.out,
        args.length,
        args.held_out,
        args.keep_eval,
        train_tokenizer=args.train_tokenizer,
        cased=not args.uncased,
        overwrite=args.overwrite,
        workers=args.workers,
        split_long=args.split_long,
        duplicates=args.duplicates,
        exclude=args.exclude,
    )
    if "seconds" not in counts:
        with as_written(args.out / "counts.json", "--overwrite starts again"):
            print(
                f"{args.out} is complete: {counts['examples']:,} examples, {counts['tokens']:,} "
                "tokens; --overwrite starts again"
            )
        return 0
    for name, value in counts.items():
        shown = f"{value:.4%}" if name == "[UNK] share" else f"{value:,}"
        print(f"{name:<30} {shown:>14}")
    if args.exclude:
        print(f"\n{leakage.table(read_json(args.out / 'leakage.json')['sets'])}")
    if counts["documents cut short"]:
        print(f"\n{cut_line(counts)}")
    return 0


def cut_line(counts: dict) -> str:
    """The loss by cutting, in one line."""
    n = counts["documents to train on"] + counts["documents held out"]
    lost = counts["tokens cut off, about"]
    return (
        f"{counts['documents cut short']:,} of {n:,} documents cut, about "
        f"{lost / (lost + counts['tokens']):.1%} of the tokens; --split-long keeps them"
    )


def report_faults(path: Path) -> int:
    """Print every fault of a directory of shards and a verdict; 1 where there is a fault."""
    n = 0
    for n, fault in enumerate(verify(path), 1):  # noqa: B007  counts them
        print(fault)
    print(f"{path}: damaged, {n} fault(s)" if n else f"{path}: whole")
    return int(n > 0)
