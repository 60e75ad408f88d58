"""Entities and the tags that write them: IOB1, IOB2 and IOBES.

    words   Down  syndrome  and  breast  cancer  carcinoma
    IOB2    B     I         O    B       I       B            every entity opens with B
    IOB1    I     I         O    I       I       B            B only between neighbours of one type
    IOBES   B     E         O    B       E       S            ends and single words are marked too

A tag is "O", or one of these letters, alone or with a type: "B-Disease". `entities` reads all three
schemes, and tags that break every one, as conlleval (CoNLL-2000) and seqeval's default mode do: an
I without a B opens an entity. `strict_entities` is seqeval's strict mode, which wants one scheme.
"""

import re
from collections.abc import Iterable, Sequence
from itertools import product
from typing import NamedTuple

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
    """The first tag that the scheme writes otherwise, with what it writes; None if it has none."""
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


# seqeval's strict mode


def patterns(text: str) -> set[tuple[str, str, bool]]:
    """ "BI=" -> {(letter before, letter, types are the same)}; ! = they differ, * = either.

    A ? stands for any letter.
    """
    return {
        (before, letter, same)
        for pattern in text.split()
        for before, letter, same in product(
            "OBIES" if pattern[0] == "?" else pattern[0],
            "OBIES" if pattern[1] == "?" else pattern[1],
            {"=": [True], "!": [False], "*": [True, False]}[pattern[2]],
        )
    }


# what opens an entity, what goes on with it, what must follow for it to count: seqeval/scheme.py
STRICT = {
    "IOB1": ("OI* II! BI* IB= BB=", "BI= II=", "II! IO* IB* BO* BI! BB="),
    "IOB2": ("?B*", "BI= II=", "IO* II! IB* BO* BI! BB*"),
    "IOBES": ("?B* ?S*", "BI= BE= II= IE=", "S?* E?*"),
}
STRICT = {scheme: tuple(map(patterns, texts)) for scheme, texts in STRICT.items()}
LETTERS = {"IOB1": "OBI", "IOB2": "OBI", "IOBES": "OBIES"}


def strict_entities(tags: Sequence[str], scheme: str) -> list[Entity]:
    """The entities that keep the rules of a scheme; the others do not count.

    Raises:
        ValueError: a tag has a letter that the scheme lacks.
    """
    opens, goes_on, ends = STRICT[scheme]
    parts = [(prefix, kind) for prefix, _, kind in (tag.partition("-") for tag in [*tags, "O"])]
    for tag, (prefix, _) in zip(tags, parts, strict=False):
        if prefix not in LETTERS[scheme]:
            raise ValueError(f"strict_entities: tag is {tag!r}, expected one of {scheme}")

    def fits(rules, a, b):
        return (a[0], b[0], a[1] == b[1]) in rules

    found, before, i = [], ("O", ""), 0
    while i < len(tags):
        end = i + 1
        if fits(opens, before, parts[i]):
            while fits(goes_on, parts[end - 1], parts[end]):
                end += 1
            if fits(ends, parts[end - 1], parts[end]):
                found.append(Entity(parts[i][1], i, end - 1))
        i, before = end, parts[end - 1]
    return found
