"""Entities and the tags that write them: IOB1, IOB2 and IOBES.

    words   Down  syndrome  and  breast  cancer  carcinoma
    IOB2    B     I         O    B       I       B            every entity opens with B
    IOB1    I     I         O    I       I       B            B only between neighbours of one type
    IOBES   B     E         O    B       E       S            ends and single words are marked too

A tag is "O", or one of these letters, without a type or with one: "B-Disease". `entities` reads all
three schemes, and tags that break every one, as conlleval (CoNLL-2000) and seqeval's default mode
do: an I without a B opens an entity. The scores are seqeval's own (metrics.py); this reader serves
to rewrite tags and to find names in text. BILOU and BMES have other letters for those of IOBES, and
are rewritten where a file or a tagger has them (`of_file`, `of_labels`).
"""

import argparse
import re
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from minibio.run.errors import InputError

TAG = re.compile(r"O|[BIES](-\S+)?")
SCHEMES = ("IOB2", "IOB1", "IOBES")


class Entity(NamedTuple):
    """Words first..last of a sentence, both included."""

    kind: str  # "" where tags carry no type
    first: int
    last: int


def entities(tags: Sequence[str]) -> list[Entity]:
    """The entities of one sentence, in order, whatever the scheme."""
    found, first = [], None  # first word of the open entity
    before, kind_before = "O", ""
    for i, tag in enumerate([*tags, "O"]):
        prefix, _, kind = tag.partition("-")
        begins = prefix in "BS" or before in "OES" or kind != kind_before
        if first is not None and (begins or prefix == "O"):
            found.append(Entity(kind_before, first, i - 1))
            first = None
        if begins and prefix != "O":
            first = i
        before, kind_before = prefix, kind
    return found


def write(found: Iterable[Entity], n: int, scheme: str) -> list[str]:
    """The tags of a sentence of n words: what `entities` reads back, in any scheme.

    Args:
        found: its entities, in order, none within another.
    """
    tags = ["O"] * n
    kind_before, end_before = None, -1  # of the entity to the left
    for kind, first, last in found:
        letters = ["I"] * (last - first + 1)
        if scheme == "IOB2" or (kind, first) == (kind_before, end_before):
            letters[0] = "B"
        if scheme == "IOBES":
            letters[0], letters[-1] = "B", "E"
            if first == last:
                letters = ["S"]
        for i, letter in enumerate(letters, start=first):
            tags[i] = f"{letter}-{kind}" if kind else letter
        kind_before, end_before = kind, last + 1
    return tags


def fault(tags: Sequence[str], scheme: str) -> tuple[int, str] | None:
    """The first tag that is not as the scheme writes it, and the right one; None if all are."""
    right = write(entities(tags), len(tags), scheme)
    return next(((i, b) for i, (a, b) in enumerate(zip(tags, right, strict=True)) if a != b), None)


def detect(sentences: Iterable[Sequence[str]]) -> tuple[str, int]:
    """The scheme that most sentences keep, and how many break it.

    Args:
        sentences: lists of tags. Where they keep two schemes alike, IOB2 is named before IOB1.
    """
    n, kept = 0, dict.fromkeys(SCHEMES, 0)
    for tags in sentences:
        if any(tag != "O" for tag in tags):  # the rest keeps all
            n += 1
            for scheme in SCHEMES:
                kept[scheme] += fault(tags, scheme) is None
    scheme = max(SCHEMES, key=kept.get)
    return scheme, n - kept[scheme]


# the labels of any tagger

# labels of no entity: O, zero for O, and those that other code gives to pieces and special tokens
OUTSIDE = re.compile(
    r"[O0X]|OUT|OUTSIDE|PAD|CLS|SEP|\[(PAD|CLS|SEP|UNK|MASK)\]|<(pad|s|/s|unk)>", re.I
)
FORMS = (  # tried in this order; one must fit every label but those outside
    re.compile(r"(?P<letter>[BIESLUMWbieslumw])-(?P<kind>.+)"),
    re.compile(r"(?P<letter>[BIESLUMW])_(?P<kind>.+)"),
    re.compile(r"(?P<kind>.+)[-_](?P<letter>[BIESLUMW])"),
    re.compile(r"(?P<letter>[BIESLUMW])(?P<kind>)"),
)
LETTER_SETS = {"BIO": "BI", "IOBES": "BIES", "BILOU": "BILU", "BMES": "BMES", "BMEWO": "BMEW"}
OURS = {"L": "E", "U": "S", "M": "I", "W": "S"}  # letters of BILOU and BMES in IOBES


def of_labels(labels: Sequence[str], where: str) -> list[str]:
    """The tag that each label of a tagger means, so that `entities` reads its predictions.

        B-Disease  b-Disease  B_Disease  Disease-B  Disease_B     B-Disease
        L-Disease, U-Disease (BILOU)   M-Disease, W-Disease       E-, S-, I-, S-Disease
        O  0  X  [PAD]  [CLS]  [SEP]                              O
        Disease, among labels that are all plain                  I-Disease, as transformers has it

    Args:
        where: the file that names the labels, for the message.
    Raises:
        InputError: labels are numbers or LABEL_0, LABEL_1, ...; two forms or schemes are mixed; no
            label, or every one, is outside.
    """
    inside = [label for label in labels if not OUTSIDE.fullmatch(label)]
    named = f"{where}: the labels are {', '.join(labels)[:80]}"
    if any(re.fullmatch(r"LABEL_\d+|\d+", label) for label in inside):
        raise InputError(f"{named}, which are not tags; name them in id2label: O, B-Disease, ...")
    if not inside or len(inside) == len(labels):
        share = "no" if len(inside) == len(labels) else "every"
        raise InputError(f"{named}: {share} label is outside of entities, expected O and B-Disease")
    matches = [[form.fullmatch(label) for label in inside] for form in FORMS]
    found = next((row for row in matches if all(row)), None)
    if found is None and any(map(any, matches)):
        raise InputError(f"{named}, in more than one form; write all like B-Disease in id2label")
    if found is None:
        return ["O" if OUTSIDE.fullmatch(label) else f"I-{label}" for label in labels]
    letters = {match["letter"].upper() for match in found}
    if not letters & set("BI") or not named_by(letters):
        raise InputError(f"{named}, in no known scheme; write BIO, IOBES, BILOU or BMES there")
    tags = {label: in_iobes(match) for label, match in zip(inside, found, strict=True)}
    return [tags.get(label, "O") for label in labels]


def of_file(labels: Iterable[str]) -> tuple[dict[str, str], str] | None:
    """The tag that each label of a tagged file means, and their letters' name in `LETTER_SETS`.

    Letters and forms are those of `of_labels`, but O is all that is outside, and a type without a
    letter is not a label. A file may lack letters, as a test set of single words does.

    Returns:
        None where the labels are in no known scheme.
    """
    inside = [label for label in labels if label not in ("O", "o")]
    rows = ([form.fullmatch(label) for label in inside] for form in FORMS)
    found = next((row for row in rows if all(row)), [])
    name = named_by({match["letter"].upper() for match in found})
    if len(found) < len(inside) or name is None:
        return None
    tags = {label: in_iobes(match) for label, match in zip(inside, found, strict=True)}
    return {"O": "O", "o": "O", **tags}, name


def named_by(letters: set[str]) -> str | None:
    """The first name in `LETTER_SETS` that has all the letters."""
    return next((name for name, known in LETTER_SETS.items() if letters <= set(known)), None)


def in_iobes(match: re.Match) -> str:
    """The tag of a match of `FORMS`, its letter one of B, I, E, S."""
    letter = match["letter"].upper()
    return "-".join(filter(None, (OURS.get(letter, letter), match["kind"])))


def columns(text: str) -> list[str]:
    """An argparse type: names of the columns of a file of tags."""
    names = text.split(",")
    if sorted(name for name in names if name != "_") != ["tag", "word"]:
        raise argparse.ArgumentTypeError(f"{text!r}, expected word and tag, _ for any other column")
    return names
