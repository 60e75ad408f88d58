"""The leakage report: citations that hold a sentence which a model will be scored on.

A test sentence and a citation seldom agree letter by letter: evaluation sets come split at every
punctuation mark, without accents, with entities in brackets. So both are reduced to their letters a
to z and digits, lower-cased, without a space (`letters`), and a citation holds a sentence where the
one is a part of the other. Entities that a set has blanked (`@GENE$`, `@CHEM-GENE$`, `BC6ENTG`)
match up to `GAP` letters.

Three rules keep chance out. A sentence under `SHORTEST` letters, about eight words, is not looked
for. One in more than `COMMON` citations ("Written informed consent was obtained from all
patients.") is a phrase, not a leak, and drops none. And a match by the hash of `ANCHOR` letters is
compared letter by letter before it counts.
"""

import json
import re
import unicodedata
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from minibio.run import fingerprint
from minibio.run.errors import InputError
from minibio.run.files import read_json
from minibio.text import sentences

SHORTEST = 40  # letters and digits of a sentence that is looked for
ANCHOR = 32  # of its letters are hashed, all in one piece; a power of two
COMMON = 5  # citations; a sentence in more of them is a phrase
GAP = 80  # letters that a blanked entity may have
EXAMPLES = 5  # of each set, in the report

# every name that minibio.tasks.relation takes for an entity's, and whatever else is written so
BLANKED = re.compile(r"@[^\s@$]{1,40}\$|\bBC6ENT[CG]\b")
LINE_END = re.compile(r"(?<=[.!?])\s*[\n\x85\u2028\u2029]\s*")  # between sentences of one text
TAG = re.compile(  # in all the forms they come in
    r"[OoBIESLUMW0]|[BIESLUMW]_\S+|[BIESLUMWbieslumw]-\S+|\S+[-_][BIESLUMW]"
)
SUFFIXES = (".tsv", ".jsonl", ".json", ".txt")
WORDS = re.compile(r"[a-z]+")  # of a file's name
HELD_BACK = {"test", "dev", "devel", "valid", "validation"}  # words of an evaluation file's name
KEYS = ("text", "sentence")  # of a line of JSON
DROPPED = bytes(sorted(set(range(256)) - set(b"abcdefghijklmnopqrstuvwxyz0123456789")))
NAMES = "alpha beta gamma delta epsilon zeta eta theta iota kappa lambda mu nu xi omicron pi rho \
sigma sigma tau upsilon phi chi psi omega".split()  # the second sigma ends a word
GREEK = {ord("α") + i: name for i, name in enumerate(NAMES)}
GREEK |= {ord("Α") + i: name for i, name in enumerate(NAMES)} | {ord("µ"): "mu"}
PRIME = 0x9E3779B97F4A7C15  # odd: 2^64 over the golden ratio
BITS = 22  # of the table that turns most windows away


def letters(text: str) -> bytes:
    """The letters and digits of a text: lower case, no accents, Greek ones spelt out.

    letters("Sjögren's TNF-α (5 mg)") == b"sjogrenstnfalpha5mg"
    """
    if text.isascii():
        raw = text.encode()
    else:
        plain = unicodedata.normalize("NFKD", text.translate(GREEK))
        raw = plain.encode("ascii", "ignore")
    return raw.lower().translate(None, DROPPED)


# the evaluation sets


def files(paths: Iterable[Path]) -> list[Path]:
    """The files to read; for a directory those in it that are not training data.

    Training data has `train` as a word of its name: `train_dev.tsv`, not `strain-test.tsv`. A .txt
    is taken from a directory only where its name says that it is an evaluation set.

    Raises:
        InputError: nothing there, no file of a known kind, or an evaluation set of another kind.
    """
    found = []
    for path in paths:
        if not path.exists():
            raise InputError(f"{path}: no such file or directory")
        if path.is_dir():
            inside = [file for file in sorted(path.rglob("*")) if is_evaluation(file)]
            if not inside:
                raise InputError(
                    f"{path}: no .tsv, .jsonl or .json in it but training data; name the files"
                )
            found += inside
        else:
            found.append(path)
    for path in found:
        if path.suffix not in SUFFIXES:
            raise InputError(f"{path}: expected a directory, .tsv, .jsonl, .json or .txt")
    return found


def is_evaluation(file: Path) -> bool:
    """Whether a file of a directory is meant by it."""
    words = {*WORDS.findall(file.name.lower())}
    if "train" in words or file.name == "fetched.json" or not file.is_file():
        return False
    return file.suffix in (".tsv", ".jsonl", ".json") or bool(words & HELD_BACK)


def texts(path: Path) -> Iterator[str]:
    """The sentences of one evaluation file.

    .tsv of token and tag, a blank line between sentences; .tsv of columns, the longest of which is
    the sentence; lines of JSON with `text` or `sentence`; .json of questions in SQuAD's or BioASQ's
    form; .txt of lines. Tokens and tags may be separated by spaces, and lines of JSON are known by
    their first character (SciBERT's release calls them .txt). Lines end at LF or CRLF only.

    Raises:
        InputError: not of these forms.
    """
    if path.suffix == ".json":
        for passage in passages(read_json(path)):
            yield from sentences.split(passage)
        return
    try:
        rows = [row.removesuffix("\r") for row in path.read_bytes().decode("utf-8-sig").split("\n")]
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: byte {error.start} is not UTF-8; is it a text file?") from None
    full = [row for row in rows if row.strip()]
    if path.suffix == ".jsonl" or (full and all(row.startswith("{") for row in full)):
        for n, row in enumerate(rows, 1):
            if row.strip():
                yield from LINE_END.split(text_of(row, path, n))
    elif tagged := token_columns(rows):
        yield from tagged_sentences(tagged)
    elif path.suffix == ".txt":
        for row in rows:
            yield from sentences.split(row)
    else:
        yield from (max(row.split("\t"), key=len) for row in rows)


def text_of(row: str, path: Path, n: int) -> str:
    """The sentence of a line of JSON."""
    try:
        record = json.loads(row)
        text = next((record[key] for key in KEYS if key in record), None)
    except (ValueError, RecursionError, TypeError):
        text = None
    if not isinstance(text, str):
        raise InputError(f'{path}: line {n}: expected an object with "text" or "sentence"')
    return text


def token_columns(rows: list[str]) -> list[list[str]] | None:
    """The cells of a file of token and tag, [] for the end of a sentence; None of another file.

    Cells without a space, a tag in the last one, separated by tabs or, in all lines, by spaces: in
    nine lines of ten, so that a few odd ones do not hide a whole set. -DOCSTART- ends a sentence,
    whatever follows it.
    """
    rows = ["" if row.startswith("-DOCSTART-") else row.rstrip() for row in rows]
    separator = "\t" if any("\t" in row for row in rows) else None
    cells = [row.split(separator) if row else [] for row in rows]
    full = [row for row in cells if row]
    n = sum(
        len(row) > 1 and TAG.fullmatch(row[-1]) is not None and " " not in "".join(row)
        for row in full
    )
    return cells if n > 0.9 * len(full) else None


def tagged_sentences(cells: Iterable[list[str]]) -> Iterator[str]:
    words = []
    for row in cells:
        if row:
            words.append(row[0])
        else:
            yield " ".join(words)
            words = []
    yield " ".join(words)


def passages(value) -> Iterator[str]:
    """Every question, context and snippet in a SQuAD or BioASQ file, however deep it lies."""
    if isinstance(value, list):
        for item in value:
            yield from passages(item)
    elif isinstance(value, dict):
        for key, item in value.items():
            if key in ("context", "question", "body", "text") and isinstance(item, str):
                yield item
            elif key not in ("answers", "exact_answer", "ideal_answer"):
                yield from passages(item)


# the search


@dataclass
class Sentences:
    """The sentences of all sets, each once, and where to find them."""

    sets: list[str] = field(default_factory=list)  # the files
    members: list[list[int]] = field(default_factory=list)  # sentences of each set, ascending
    too_short: list[int] = field(default_factory=list)  # how many of each set are not looked for
    shown: list[str] = field(default_factory=list)  # (S,) each sentence as its set has it
    parts: list[tuple[bytes, ...]] = field(default_factory=list)  # (S,) its letters, between blanks

    @staticmethod
    def read(paths: Iterable[Path]) -> "Sentences":
        """Those of evaluation files and directories of them.

        Raises:
            InputError: a file that cannot be read, or holds no sentence long enough.
        """
        found, numbers = Sentences(), {}
        for path in files(paths):
            members, too_short = set(), set()
            for text in texts(path):
                parts = tuple(filter(None, map(letters, BLANKED.split(text))))
                if len(b"".join(parts)) < SHORTEST or len(max(parts, key=len)) < ANCHOR:
                    too_short |= {parts} if parts else set()
                    continue
                if parts not in numbers:
                    numbers[parts] = len(found.parts)
                    found.parts.append(parts)
                    found.shown.append(" ".join(text.split()))
                members.add(numbers[parts])
            if not members:
                raise InputError(
                    f"{path}: no sentence of {SHORTEST} letters in it; is it an evaluation set?"
                )
            found.sets.append(str(path))
            found.members.append(sorted(members))
            found.too_short.append(len(too_short))
        found.index()
        return found

    @property
    def fingerprint(self) -> str:
        """Changes with any sentence."""
        return fingerprint.of_parts(self.parts)

    def index(self) -> None:
        """Sort the sentences by the hash of their anchor: the first letters of the longest part."""
        anchors = b"".join(max(parts, key=len)[:ANCHOR] for parts in self.parts)
        hashes = window_hashes(anchors)[::ANCHOR]  # (S,)
        self.order = np.argsort(hashes, kind="stable")
        self.anchors = hashes[self.order]
        self.is_there = np.zeros(2**BITS, bool)
        self.is_there[self.anchors >> np.uint64(64 - BITS)] = True

    def find(self, documents: list[str]) -> list[tuple[int, int]]:
        """(document, sentence) for every sentence that one of the documents holds, ascending."""
        reduced = [letters(text) for text in documents]
        ends = np.cumsum([len(row) for row in reduced])
        hashes = window_hashes(b"".join(reduced))
        places = np.flatnonzero(self.is_there[hashes >> np.uint64(64 - BITS)])
        first, last = (
            np.searchsorted(self.anchors, hashes[places], side) for side in ("left", "right")
        )
        found = set()
        for k in np.flatnonzero(first < last):
            document = int(np.searchsorted(ends, places[k], "right"))
            for sentence in self.order[first[k] : last[k]].tolist():
                if holds(reduced[document], self.parts[sentence]):
                    found.add((document, sentence))
        return sorted(found)


def window_hashes(row: bytes) -> np.ndarray:
    """(n - ANCHOR + 1,) uint64: a hash of the ANCHOR bytes from each place on; none of fewer bytes.

    The polynomial sum_j row[i+j] P^(ANCHOR-1-j) modulo 2^64, built by doubling: that of 2 w bytes
    follows from those of the two halves.
    """
    hashes = np.frombuffer(row, np.uint8).astype(np.uint64)
    width, power = 1, PRIME
    while width < ANCHOR:
        hashes = hashes[:-width] * np.uint64(power) + hashes[width:]
        width, power = 2 * width, power * power % 2**64
    return hashes


def holds(row: bytes, parts: tuple[bytes, ...]) -> bool:
    """Whether `row` holds the parts of a sentence in their order, with no more than a blanked
    entity between them."""
    if len(parts) == 1:
        return parts[0] in row
    gap = b".{0,%d}?" % GAP
    return re.search(gap.join(map(re.escape, parts)), row) is not None


# the report


def mark(pieces: Iterable, sentences: Sentences, is_out: np.ndarray) -> tuple[np.ndarray, list]:
    """The citations to drop, and what the report says of each set.

    Args:
        pieces: walked twice; each with `first`, the number of its first citation, `leaks` (2, h)
            of (citation in the piece, sentence), and `names`, what citations with leaks are called.
        is_out: (citations,) bool: those left out already, as duplicates.
    Returns:
        (citations,) bool: drop it; and a dictionary for each set.
    """
    n_citations = np.zeros(len(sentences.parts), np.int64)  # (S,) that hold a sentence
    for piece in pieces:
        document, sentence = kept_leaks(piece, is_out)
        n_citations += np.bincount(sentence, minlength=len(n_citations))
    is_common = n_citations > COMMON
    is_leaked = np.zeros(len(is_out), bool)
    rows = []
    for path, members, too_short in zip(
        sentences.sets, sentences.members, sentences.too_short, strict=True
    ):
        found = n_citations[members] > 0
        rows.append(
            {
                "set": path,
                "sentences": len(members) + too_short,
                "too short": too_short,
                "found": int(found.sum()),
                "phrases": int(is_common[members].sum()),
                "citations dropped": 0,
                "examples": [],
            }
        )
    is_member = np.zeros((len(rows), len(n_citations)), bool)
    for row, members in zip(is_member, sentences.members, strict=True):
        row[members] = True
    for piece in pieces:
        document, sentence = kept_leaks(piece, is_out)
        document, sentence = document[~is_common[sentence]], sentence[~is_common[sentence]]
        is_leaked[document] = True
        for row, is_in in zip(rows, is_member, strict=True):
            here, where = np.unique(document[is_in[sentence]], return_index=True)
            row["citations dropped"] += len(here)
            first = sentence[is_in[sentence]][where]
            for i, k in zip(here[:EXAMPLES], first, strict=False):
                if len(row["examples"]) < EXAMPLES:
                    name = piece.names[int(i) - piece.first]
                    row["examples"].append({"citation": name, "sentence": sentences.shown[k]})
    return is_leaked, rows


def kept_leaks(piece, is_out: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Numbers (over all pieces) of a piece's citations with a sentence, and the sentences."""
    document, sentence = piece.leaks
    document = document + piece.first
    is_in = ~is_out[document]
    return document[is_in], sentence[is_in]


def table(rows: list[dict]) -> str:
    """The report for people: a line a set."""
    names = ("sentences", "too short", "found", "phrases", "citations dropped")
    width = max(len(row["set"]) for row in rows)
    lines = ["  ".join([f"{'evaluation set':<{width}}", *(f"{name:>9}" for name in names)])]
    for row in rows:
        figures = (f"{row[name]:>{max(9, len(name))},}" for name in names)
        lines.append("  ".join([f"{row['set']:<{width}}", *figures]))
    return "\n".join(lines)
