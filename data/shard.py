"""Text to token shards: `python -m data.shard INPUT... --tokenizer DIR --out DIR`.

INPUT is `.txt`, a document a line, or `.jsonl`, also packed as `.jsonl.gz` or `.jsonl.xz`, a record
a line with `title` and `abstract`. One record is one example: title (F35: without square brackets,
PubMed's sign of a translated one), a space, the abstract, cut to `--length` tokens. Records flagged
`in_eval_corpus` or `eval_test_overlap` are left out: what a model is scored on later it must not
have read. Documents are read, tokenised and written in a stream; memory does not grow with them.
With `--train-tokenizer V` in place of a tokenizer, a vocabulary is learnt from the documents first.
"""

import argparse
import gzip
import hashlib
import json
import lzma
import sys
import time
import zlib
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from minibio import errors
from minibio.errors import InputError
from minibio.files import staged_dir, write_json
from minibio.shards import FORMAT, ShardWriter
from minibio.tokenizer import Tokenizer

OPENERS = {".txt": open, ".jsonl": open, ".jsonl.gz": gzip.open, ".jsonl.xz": lzma.open}
FLAGS = ("in_eval_corpus", "eval_test_overlap")
CHUNK = 512  # documents tokenised at once
LONGEST_LINE = 64 << 20  # bytes; a file that is one line would be read into memory whole


def shard(inputs: list[str | Path], tokenizer: str | Path | Tokenizer | None, out: str | Path,
          length: int = 256, held_out: float = 0.01, keep_eval: bool = False,
          progress: bool = True, train_tokenizer: int | None = None, cased: bool = True,
          overwrite: bool = False) -> dict:  # fmt: skip
    """Write the token shards of `inputs` to the directory `out`; returns the count table.

    Args:
        tokenizer:       a tokenizer or its directory; None with `train_tokenizer`.
        length:          tokens of the longest example, [CLS] and [SEP] included.
        held_out:        share of the documents kept back to measure on; which ones follows from
                         their id, or their text where they have none.
        keep_eval:       keep the records flagged as part of an evaluation set.
        train_tokenizer: pieces of a vocabulary to learn from the documents to train on.
    Raises:
        InputError: bad input, with its file and line; nothing is left behind.
    """
    began = time.perf_counter()
    inputs = [Path(path) for path in inputs]
    for path in inputs:
        if kind(path) is None:
            raise InputError(f"{path}: expected a name that ends in {', '.join(OPENERS)}")
        if not path.is_file():
            raise InputError(f"{path}: no such file")
    if length < 3:
        raise InputError(f"--length is {length}, expected at least 3: [CLS], a token, [SEP]")
    if not 0 <= held_out < 1:
        raise InputError(f"--held-out is {held_out}, expected a share from 0 to below 1")
    if (tokenizer is None) == (train_tokenizer is None):
        raise InputError("expected one of --tokenizer DIR and --train-tokenizer V")
    with staged_dir(out, overwrite=overwrite) as staged:
        if train_tokenizer is not None:
            texts = TrainTexts(inputs, held_out, keep_eval)
            tokenizer = Tokenizer.train(texts, train_tokenizer, cased)
        elif not isinstance(tokenizer, Tokenizer):
            tokenizer = Tokenizer.from_dir(tokenizer)
        counts = Counter()
        stream = documents(inputs, counts, keep_eval, progress)
        splits = write_splits(stream, tokenizer, staged, length, held_out, counts)
        tokenizer.save(staged)
        write_json(
            staged / "meta.json",
            {
                "format": FORMAT, "V": tokenizer.V, "cased": tokenizer.cased,
                "tokenizer": tokenizer.fingerprint, "length": length, "held_out": held_out,
                "splits": splits,
            },
        )  # fmt: skip
        size = sum(file.stat().st_size for file in staged.glob("*.bin"))
    n, n_tokens = counts["documents"], counts["tokens"]
    return {
        "documents read": counts["read"],
        **{f"dropped: {flag}": counts[flag] for flag in FLAGS},
        "dropped: empty": counts["empty"],
        "documents to train on": splits["train"]["documents"],
        "documents held out": splits["held-out"]["documents"],
        "documents cut short": counts["cut"],
        "tokens": n_tokens,
        "mean length": round(n_tokens / n, 1),
        "longest": counts["longest"],
        "[UNK] share": counts["unknown"] / n_tokens,
        "bytes on disk": size,
        "seconds": round(time.perf_counter() - began, 1),
    }


@dataclass
class Document:
    key: str  # what decides whether it is held out
    text: str


@dataclass
class TrainTexts:
    """The texts a tokenizer may learn from; each walk reads the files anew."""

    inputs: list[Path]
    held_out: float
    keep_eval: bool

    def __iter__(self) -> Iterator[str]:
        for document in documents(self.inputs, Counter(), self.keep_eval, progress=False):
            if not is_held_out(document.key, self.held_out):
                yield document.text


def documents(inputs: list[Path], counts: Counter, keep_eval: bool,
              progress: bool) -> Iterator[Document]:  # fmt: skip
    """The documents of all inputs in order; `counts` tells what became of every line.

    Raises:
        InputError: an input that holds none, or a line that is no record.
    """
    for path in inputs:
        before = counts["read"]
        with watch(path, progress) as bar:
            for n, line in lines(path):
                bar.update()
                if not line.strip():
                    continue
                counts["read"] += 1
                document = parse(line, path, n, counts, keep_eval)
                if document is not None:
                    yield document
        if counts["read"] == before:
            raise InputError(f"{path}: no document in it")


def watch(path: Path, progress: bool):
    """A progress bar over the lines of a file; none where nobody watches."""
    from tqdm import tqdm

    return tqdm(desc=path.name, unit=" lines", disable=not (progress and sys.stderr.isatty()))


def kind(path: Path) -> str | None:
    """The ending of a file's name that tells how to read it."""
    return next((end for end in OPENERS if path.name.endswith(end)), None)


def lines(path: Path) -> Iterator[tuple[int, str]]:
    """(line number, line) of a text file, unpacked.

    Raises:
        InputError: not UTF-8, binary, or a damaged archive.
    """
    n = 0
    try:
        with OPENERS[kind(path)](path, "rb") as file:
            for n, raw in enumerate(iter(lambda: file.readline(LONGEST_LINE), b""), 1):
                if len(raw) == LONGEST_LINE:
                    raise InputError(
                        f"{path}: line {n} is longer than {LONGEST_LINE >> 20} MiB; expected a "
                        "document a line"
                    )
                line = raw.decode("utf-8-sig" if n == 1 else "utf-8")
                if "\0" in line:
                    raise InputError(f"{path}: line {n} holds a zero byte; is it a text file?")
                yield n, line
    except UnicodeDecodeError as error:
        raise InputError(
            f"{path}: line {n}: byte {error.start} is not UTF-8; is it a text file?"
        ) from None
    except (EOFError, gzip.BadGzipFile, lzma.LZMAError, zlib.error) as error:
        raise InputError(f"{path}: after line {n}: {error}; the archive is damaged") from None


def parse(line: str, path: Path, n: int, counts: Counter, keep_eval: bool) -> Document | None:
    """One line as a document, or None where it is left out.

    Raises:
        InputError: no JSON object, no title and no abstract, or one that is no text.
    """
    if kind(path) == ".txt":
        return Document(key=line.strip(), text=line.strip())
    try:
        record = json.loads(line)
    except ValueError as error:
        raise InputError(f"{path}: line {n}: {error}; expected a JSON object a line") from None
    if not isinstance(record, dict):
        raise InputError(f"{path}: line {n} is a {type(record).__name__}, expected a JSON object")
    if "title" not in record and "abstract" not in record:
        raise InputError(
            f"{path}: line {n} has neither title nor abstract, only: {', '.join(record)}"
        )
    for flag in FLAGS:
        if record.get(flag) and not keep_eval:
            counts[flag] += 1
            return None
    title, abstract = (record.get(name) or "" for name in ("title", "abstract"))
    for name, value in (("title", title), ("abstract", abstract)):
        if not isinstance(value, str):
            raise InputError(f"{path}: line {n}: {name} is a {type(value).__name__}, expected text")
    title = title.replace("[", "").replace("]", "")  # F35
    text = f"{title.strip()} {abstract.strip()}".strip()
    if not text:
        counts["empty"] += 1
        return None
    keys = (record[name] for name in ("id", "pmid") if record.get(name) is not None)
    return Document(key=str(next(keys, text)), text=text)


def is_held_out(key: str, share: float) -> bool:
    """Whether a document is kept back: the same answer everywhere, in any order of documents."""
    digest = hashlib.sha256(key.encode()).digest()
    return int.from_bytes(digest[:8], "big") < share * 2**64


def write_splits(stream: Iterator[Document], tokenizer: Tokenizer, out: Path, length: int,
                 held_out: float, counts: Counter) -> dict:  # fmt: skip
    """Tokenise documents and write both splits; what meta.json says of them.

    Raises:
        InputError: no document is left, or none to train on.
    """
    writers = {split: ShardWriter(out, split, tokenizer.V) for split in ("train", "held-out")}
    while chunk := list(islice(stream, CHUNK)):
        # one token more than fits tells what was cut
        for document, ids in zip(
            chunk, tokenizer.encode_batch([d.text for d in chunk], length + 1), strict=True
        ):
            if len(ids) > length:
                counts["cut"] += 1
                ids = [*ids[: length - 1], tokenizer.sep_id]
            elif len(ids) == 2:  # nothing but [CLS] and [SEP]: spaces, control characters
                counts["empty"] += 1
                continue
            split = "held-out" if is_held_out(document.key, held_out) else "train"
            writers[split].add(ids)
            counts["documents"] += 1
            counts["tokens"] += len(ids)
            counts["longest"] = max(counts["longest"], len(ids))
            counts["unknown"] += ids.count(tokenizer.unk_id)
    splits = {split: writer.close() for split, writer in writers.items()}
    if not splits["train"]["documents"]:
        raise InputError(
            f"no document to train on: {counts['read']} read, {sum(counts[f] for f in FLAGS)} "
            f"flagged, {counts['empty']} empty, {counts['documents']} held out"
        )
    return splits


def parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser("data.shard", description=__doc__.split("\n")[0])
    p.add_argument("inputs", nargs="+", type=Path, metavar="INPUT",
                   help="documents: .txt, .jsonl, .jsonl.gz, .jsonl.xz")  # fmt: skip
    p.add_argument("--tokenizer", type=Path, metavar="DIR", help="directory with its vocabulary")
    p.add_argument("--train-tokenizer", type=int, metavar="V",
                   help="learn a vocabulary of V pieces from the documents instead")  # fmt: skip
    p.add_argument("--uncased", action="store_true", help="of the learnt vocabulary")
    p.add_argument("--out", type=Path, required=True, metavar="DIR", help="new directory")
    p.add_argument("--length", type=int, default=256, help="tokens of the longest example")
    p.add_argument("--held-out", type=float, default=0.01, help="share kept back to measure on")
    p.add_argument("--keep-eval", action="store_true",
                   help="keep records flagged as part of an evaluation set")  # fmt: skip
    p.add_argument("--overwrite", action="store_true", help="replace what stands in --out")
    return p


def main(argv=None) -> None:
    args = parser().parse_args(argv)
    if args.uncased and args.train_tokenizer is None:
        raise InputError("--uncased goes with --train-tokenizer; a tokenizer has its own casing")
    counts = shard(
        args.inputs, args.tokenizer, args.out, args.length, args.held_out, args.keep_eval,
        train_tokenizer=args.train_tokenizer, cased=not args.uncased, overwrite=args.overwrite,
    )  # fmt: skip
    for name, value in counts.items():
        shown = f"{value:.4%}" if name == "[UNK] share" else f"{value:,}"
        print(f"{name:<30} {shown:>14}")


if __name__ == "__main__":
    errors.run(main, "data.shard")
