"""The frames: enough of them, readable, and each with the slots that its tag speaks of."""

from data.sample import frames
from data.sample.grammar import KINDS, Slot, block, lines, mechanisms, words
from data.sample.lexicon import DRUG_CLASSES, METABOLITES

BLOCKS = [name for name in vars(frames) if name.isupper() and name not in ("WORDS", "MECHANISMS")]
STATES = {
    "": (), "gene": ("gene", "disease"), "no-gene": ("stray", "disease"),
    "treats": ("drug",), "causes": ("species", "infection"), "marks": ("chem", "disease"),
    "target": (),
}  # fmt: skip


def slots(parts) -> set[str]:
    found = set()
    for part in parts:
        if isinstance(part, tuple):
            found |= slots(part)
        elif isinstance(part, Slot):
            found.add(str(part))
    return found


def test_there_are_more_than_two_hundred_frames_and_none_twice():
    every = [frame for name in BLOCKS for frame in block(name)]
    assert len(every) > 200
    assert len({frame.parts for frame in every}) == len(every)


def test_a_tagged_frame_has_what_it_states():
    for name in BLOCKS:
        for frame in block(name):
            assert slots(frame.parts) >= set(STATES[frame.tag]), frame
            if frame.tag == "target":
                found = slots(frame.parts)
                assert "mechanism" in found or "mechanism_title" in found or found >= {
                    "compound", "target",
                }  # fmt: skip


def test_every_block_is_used():
    topics = {name for name in BLOCKS if name.startswith("TOPIC_")}
    used = {name for _, titles, sections in KINDS.values() for name in (titles, *list_of(sections))}
    assert used - {"TOPIC"} | topics == set(BLOCKS)


def list_of(sections):
    return [name for _, name, _, _ in sections]


def test_every_relation_has_a_wording():
    labels = {label for _, label, _ in DRUG_CLASSES.values()} | set(METABOLITES)
    assert set(mechanisms()) == labels
    for parts in mechanisms().values():
        assert len(parts) == 2 and all("target" in slots(p) for p in parts)


def test_lines_are_joined():
    assert lines("\na|\n    b c\n    d\ne\n") == ["a|b c d", "e"]
    for phrases in words().values():
        assert len(phrases) > 4 and all(p == p.strip() and p for p in phrases)
