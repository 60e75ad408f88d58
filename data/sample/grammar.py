"""From frames to documents: who appears, how they are called, and where in the text they are.

A document has a scene, drawn from the world of lexicon.py: a disease, what lies behind it,
what treats it, and two topics that may be an illness, a habit or a compound. Most sentences about a
topic fit all three; the document as a whole shows which it is. Names recur, short once introduced.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cache

from data.sample import frames
from data.sample.lexicon import Chemical, Dice, Disease, Gene, Thing, World, world

LONGEST = 135  # words of an abstract after which no sentence is added, save the closing one
SHORTEST = 60  # words of an abstract below which another is added

HEADED = 25  # per cent of the structured abstracts that name their sections
# kind of article: weight, titles, sections. A section: heading, frames, fewest and most sentences.
KINDS = {
    "genetics": (5, "GENETICS_TITLES", (
        ("BACKGROUND", "ABOUT_DISEASE", 1, 2), ("METHODS", "GENETICS_METHODS", 1, 2),
        ("RESULTS", "GENETICS_RESULTS", 2, 3), ("", "AMBIGUOUS", 0, 1),
        ("CONCLUSION", "CONCLUSION", 1, 1))),
    "trial": (5, "TRIAL_TITLES", (
        ("BACKGROUND", "ABOUT_DISEASE", 1, 2), ("METHODS", "TRIAL_METHODS", 1, 2),
        ("", "TOPIC", 0, 1), ("RESULTS", "TRIAL_RESULTS", 2, 3), ("", "AMBIGUOUS", 0, 1),
        ("CONCLUSION", "CONCLUSION", 1, 1))),
    "pharmacology": (4, "PHARMACOLOGY_TITLES", (
        ("", "PHARMACOLOGY_BODY", 4, 6), ("", "CONCLUSION", 0, 1))),
    "model": (4, "MODEL_TITLES", (
        ("", "ABOUT_DISEASE", 1, 2), ("", "MODEL_BODY", 3, 5), ("", "CONCLUSION", 0, 1))),
    "case": (4, "CASE_TITLES", (
        ("", "CASE_OPENING", 1, 1), ("", "ABOUT_DISEASE", 0, 1), ("", "CASE_BODY", 3, 5),
        ("", "CASE_CLOSING", 1, 1))),
    "epidemiology": (5, "EPIDEMIOLOGY_TITLES", (
        ("OBJECTIVE", "ABOUT_DISEASE", 1, 2), ("METHODS", "EPIDEMIOLOGY_METHODS", 1, 2),
        ("", "TOPIC", 1, 1), ("RESULTS", "EPIDEMIOLOGY_RESULTS", 1, 2), ("", "AMBIGUOUS", 1, 2),
        ("CONCLUSIONS", "CONCLUSION", 1, 1))),
    "infection": (2, "INFECTION_TITLES", (
        ("", "INFECTION_BODY", 4, 5), ("", "AMBIGUOUS", 1, 1), ("", "CONCLUSION", 0, 1))),
    "diagnosis": (4, "DIAGNOSIS_TITLES", (
        ("AIMS", "ABOUT_DISEASE", 1, 2), ("METHODS", "DIAGNOSIS_METHODS", 1, 2),
        ("", "TOPIC", 0, 1), ("RESULTS", "DIAGNOSIS_RESULTS", 1, 2), ("", "AMBIGUOUS", 1, 1),
        ("CONCLUSION", "CONCLUSION", 1, 1))),
}  # fmt: skip
DRAWN_KINDS = [kind for kind, (weight, *_) in KINDS.items() for _ in range(weight)]
# what a topic is: in half of the documents an illness, so that chance does not give it away
DRAWN_TOPICS = (
    ["TOPIC_DISEASE"] * 5 + ["TOPIC_HABIT"] * 2 + ["TOPIC_PROCEDURE"] * 2 + ["TOPIC_CHEMICAL"]
)
NUMBERS = "two three four five six seven eight nine ten eleven twelve".split()


# --- reading frames ------------------------------------------------------------------------------


class Slot(str):
    """The name of a slot, apart from the literal text that a plain string is."""

    __slots__ = ()


@dataclass(frozen=True, slots=True, eq=False)
class Frame:
    tag: str  # what the sentence states, or ""
    parts: tuple  # strings, Slots, and tuples of alternatives, which are such tuples again


def lines(text: str) -> list[str]:
    """The lines of a block; one that begins with spaces is joined to the one before."""
    text = text.strip("\n").replace("|\n    ", "|")
    return text.replace("\n    ", " ").split("\n")


def parse(text: str) -> tuple:
    """The parts of a frame.

    >>> parse("{a} [big|] {cell}")
    ('a', (('big',), ()), ' ', 'cell')
    """
    stack, parts = [], []
    text = text.replace("{a} ", "{a}")
    tokens = re.findall(r"\{\w+\}|[\[\]|]|[^\[\]{}|]+", text)
    for token in tokens:
        if token == "[":
            stack.append((parts, []))
            parts = []
        elif token in "|]" and stack:
            stack[-1][1].append(tuple(parts))
            parts = []
            if token == "]":
                parts, alternatives = stack.pop()
                parts.append(tuple(alternatives))
        else:
            parts.append(Slot(token[1:-1]) if token[0] == "{" else token)
    if stack or {"]", "|"} & {p for p in parts if isinstance(p, str)} or "".join(tokens) != text:
        raise ValueError(f"parse: unbalanced brackets in {text!r}")
    return tuple(parts)


@cache
def block(name: str) -> tuple[Frame, ...]:
    """The frames of a block of data/sample/frames.py."""
    made = []
    for line in lines(getattr(frames, name)):
        tag, text = re.fullmatch(r"(?:([a-z-]+): )?(.*)", line).groups()
        made.append(Frame(tag or "", parse(text)))
    return tuple(made)


@cache
def words() -> dict[str, list[str]]:
    """The phrases that a slot such as {symptom} is filled with."""
    pairs = (line.split(": ", 1) for line in lines(frames.WORDS))
    return {name: phrases.split("|") for name, phrases in pairs}


@cache
def mechanisms() -> dict[str, tuple[tuple, tuple]]:
    """ChemProt's label: how a title and how a sentence say what a compound does to its target."""
    pairs = (line.split(": ", 1) for line in lines(frames.MECHANISMS))
    return {label: tuple(map(parse, text.split(" -> "))) for label, text in pairs}


# --- who appears ---------------------------------------------------------------------------------


def draw_scene(
    dice: Dice,
    kind: str,
    world: World,
    disease: Disease | None = None,
    compound: Chemical | None = None,
) -> tuple[dict[str, Thing], str]:
    """The things of a document by slot, and the block of frames that shows what its topic is."""
    if disease is None:
        pool = infections(world) if kind == "infection" else world.diseases
        disease = pool[dice.skewed(len(pool))]
    gene, gene2 = dice.some(disease.genes, 2)
    drug, drug2 = dice.some(disease.drugs, 2)
    if compound is None:
        compound = drug
        if kind == "pharmacology" and dice.chance(40):
            compound = dice.pick(world.metabolites)
    scene = {
        "disease": disease,
        "infection": disease,
        "comorbidity": dice.pick(disease.kin),
        "gene": gene,
        "gene2": gene2,
        "stray": dice.pick(world.genes),
        "drug": drug,
        "drug2": drug2,
        "compound": compound,
        "target": compound.target,
        "chem": dice.pick(disease.metabolites),
        "agent": dice.pick(world.drugs),
        "agent2": dice.pick(world.drugs),
        "species": disease.cause or dice.pick(world.species),
        "tool": dice.pick(world.tools),
        "cell": dice.pick(world.cells),
    }
    pools = {
        "TOPIC_DISEASE": [k for k in disease.kin if k is not scene["comorbidity"]],
        "TOPIC_HABIT": disease.habits if dice.chance(60) else world.habits,
        "TOPIC_PROCEDURE": world.procedures,
        "TOPIC_CHEMICAL": world.metabolites if dice.chance(70) else world.drugs,
    }
    topic = dice.pick(DRAWN_TOPICS)
    scene["topic"] = dice.pick(pools[topic])
    rest = [t for t in pools[dice.pick(DRAWN_TOPICS)] if t is not scene["topic"]]
    scene["topic2"] = dice.pick(rest)
    return scene, topic


@cache
def infections(world: World) -> list[Disease]:
    return [disease for disease in world.diseases if disease.cause]


def figures(dice: Dice) -> dict:
    """Slot -> function that gives a fresh figure as text."""
    between = dice.between

    def ratio(low, width):
        """An odds ratio in hundredths with its confidence interval around it."""
        middle, spread = between(low, low + width), between(8, 30)
        ends = middle * 100 // (100 + spread), middle * (100 + spread) // 100
        low, middle, high = (f"{x // 100}.{x % 100:02d}" for x in (ends[0], middle, ends[1]))
        name = dice.pick(("OR", "odds ratio", "hazard ratio", "RR"))
        return f"{name} {middle}, {dice.pick(('95% CI', '95% confidence interval'))} {low}-{high}"

    return {
        "n": lambda: f"{between(24, 980) if dice.chance(75) else between(1000, 9800):,}",
        "n2": lambda: str(between(21, 640)),
        "few": lambda: NUMBERS[dice.skewed(len(NUMBERS))],
        "small": lambda: str(between(2, 9)),
        "d": lambda: str(between(1, 9)),
        "dd": lambda: str(between(21, 89)),
        "pct": lambda: str(between(3, 89)),
        "high": lambda: str(between(61, 97)),
        "low": lambda: str(between(3, 58)),
        "dose": lambda: str(dice.pick((5, 10, 15, 20, 25, 40, 50, 80, 100, 150, 200, 300, 500))),
        "um": lambda: str(dice.pick((1, 2, 5, 10, 20, 25, 50, 100))),
        "nm": lambda: str(between(2, 480)),
        "hours": lambda: str(dice.pick((2, 4, 6, 12, 24, 48, 72))),
        "months": lambda: str(between(4, 60)),
        "years": lambda: str(between(2, 25)),
        "year": lambda: str(between(1978, 2001)),
        "year2": lambda: str(between(2002, 2019)),
        "age": lambda: f"{between(41, 69)}.{dice.below(10)}",
        "age2": lambda: f"{between(12, 39)}.{dice.below(10)}",
        "chrom": lambda: f"{between(1, 22)}{dice.pick('pq')}{between(11, 36)}",
        "rs": lambda: str(between(10300, 9999000)),
        "nt": lambda: str(between(12, 2960)),
        "sig": lambda: dice.pick(
            (
                "P < 0.001",
                "P < 0.01",
                "p < 0.05",
                f"p = 0.0{between(11, 49)}",
                f"P = 0.00{between(1, 9)}",
            )
        ),
        "ns": lambda: dice.pick((f"P = 0.{between(11, 89)}", f"p = 0.{between(11, 89)}", "NS")),
        "or": lambda: ratio(150, 260),
        "ornull": lambda: ratio(96, 8),
        "base": lambda: dice.pick(("A>G", "C>T", "G>A", "G>T", "T>C")),
        "allele": lambda: dice.pick("ACGT"),
    }


# --- writing -------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class SampleMention:
    """text[start:end] of its sentence, title or abstract names `thing`."""

    start: int
    end: int
    thing: Thing
    slot: str

    def moved(self, by: int) -> "SampleMention":
        return SampleMention(self.start + by, self.end + by, self.thing, self.slot)


@dataclass(slots=True)
class SampleSentence:
    text: str
    mentions: list[SampleMention]
    tag: str


@dataclass(slots=True)
class SampleDocument:
    """A title and an abstract. Offsets in characters; abstract = its sentences joined by spaces."""

    id: str
    kind: str
    title: SampleSentence
    sentences: list[SampleSentence]
    scene: dict[str, Thing] = field(repr=False)

    @property
    def abstract(self) -> str:
        return " ".join(sentence.text for sentence in self.sentences)

    @property
    def abstract_mentions(self) -> list[SampleMention]:
        """The mentions of all sentences, at their offsets in the abstract."""
        moved, start = [], 0
        for sentence in self.sentences:
            moved += [mention.moved(start) for mention in sentence.mentions]
            start += len(sentence.text) + 1
        return moved


def article(following: str) -> str:
    """a or an, by sound as far as spelling shows: an 8-fold rise, an HPLC column, a unique case."""
    word = re.match(r"[A-Za-z]*", following)[0]
    if not word:
        number = re.match(r"\d*", following)[0]
        return "an" if number[:1] == "8" or number in ("11", "18") else "a"
    if word.isupper() or any(c.isupper() for c in word[1:]):
        return "an" if word[0] in "AEFHILMNORSX" else "a"
    if re.match(r"(uni|use|usu|uri|uter|eu|one)", word.lower()):
        return "a"
    return "an" if word[0].lower() in "aeiou" else "a"


class Writer:
    """Fills the frames of one document."""

    def __init__(self, dice: Dice, scene: dict[str, Thing]):
        self.dice = dice
        self.scene = scene
        self.figures = figures(dice)
        self.phrases: dict[str, str] = {}  # a phrase stays the same throughout a document
        self.introduced: dict[Thing, bool] = {}  # whether the short name was given too
        self.is_title = True
        self.used: set[Frame] = set()

    def sentence(
        self, options: tuple[Frame, ...], heading: str = "", tag: str = ""
    ) -> SampleSentence:
        """A sentence from a frame that the document has not used, one with `tag` if it is given."""
        fresh = [f for f in options if f not in self.used and (not tag or f.tag == tag)]
        frame = self.dice.pick(fresh or options)
        self.used.add(frame)
        self.text, self.mentions, self.wants_article = "", [], False
        self.is_first = True
        if heading:
            self.text = f"{heading}: "
        self.render(frame.parts)
        self.text = self.text.rstrip()
        if self.text[-1] not in ".?":
            self.text += "."
        return SampleSentence(self.text, self.mentions, frame.tag)

    def render(self, parts: tuple) -> None:
        for part in parts:
            if part.__class__ is str:
                self.put(part)
            elif part.__class__ is tuple:
                self.render(self.dice.pick(part))
            else:
                self.fill(part)

    def put(self, text: str) -> None:
        """Append text, after its article if one is due; a sentence opens with a capital."""
        if self.wants_article:
            self.wants_article = False
            self.put(f"{article(text)} ")
        if self.text[-1:] in ("", " ", "("):  # an empty alternative leaves its space behind
            text = text.lstrip(" ")
        if text and text[0] in ",.;:)?":
            self.text = self.text.rstrip(" ")
        if self.is_first and text:
            self.is_first = False
            text = text[0].upper() + text[1:]
        self.text += text

    def fill(self, slot: Slot) -> None:
        if slot in self.scene:
            self.refer(self.scene[slot], str(slot))
        elif slot in self.figures:
            self.put(self.figures[slot]())
        elif slot == "a":
            self.wants_article = True
        elif slot in ("mechanism", "mechanism_title"):
            self.mechanism(is_title=slot == "mechanism_title")
        else:
            if slot not in self.phrases:
                self.phrases[slot] = self.phrase(slot)
            self.put(self.phrases[slot])

    def phrase(self, slot: str) -> str:
        """The words of this document for a slot that is neither a thing nor a figure."""
        disease, dice = self.scene["disease"], self.dice
        if slot in ("person", "he", "his"):
            is_male, age = dice.chance(50), dice.between(3, 84)
            noun = ("woman" if age > 17 else "girl", "man" if age > 17 else "boy")[is_male]
            self.phrases |= {
                "person": f"{age}-year-old {noun}",
                "he": ("she", "he")[is_male],
                "his": ("her", "his")[is_male],
            }
            return self.phrases[slot]
        if slot == "tissue":
            return disease.site[2]
        if slot == "organ":
            return disease.site[1]
        if slot == "family":
            return self.scene["gene"].family
        if slot == "drug_group":
            return self.scene["drug"].group
        if slot == "compound_group":
            return self.scene["compound"].group
        options = words()[slot.rstrip("2")]
        if slot.endswith("2"):  # another one than the first
            first = self.phrases.setdefault(slot[:-1], dice.pick(options))
            options = [option for option in options if option != first]
        return dice.pick(options)

    def mechanism(self, is_title: bool) -> None:
        """The compound's effect on its target; now and then in words that leave it open."""
        self.refer(self.scene["compound"], "compound")
        self.put(" ")
        title, sentence = mechanisms()[self.scene["compound"].label]
        self.render(title if is_title else sentence)

    def refer(self, thing: Thing, slot: str) -> None:
        """Name a thing: in full at first, perhaps with its short name, later by either."""
        dice, name, short = self.dice, thing.name, thing.short
        if isinstance(thing, Gene):  # known by its symbol
            name, short = (short, "") if dice.chance(85 if self.is_title else 70) else (name, short)
        if not short or self.is_title:
            self.mention(name, thing, slot)
        elif thing not in self.introduced:
            is_abbreviated = thing.kind != "species" and dice.chance(60)
            self.introduced[thing] = is_abbreviated or thing.kind == "species"
            self.mention(name, thing, slot)
            if is_abbreviated:
                self.put(" (")
                self.mention(short, thing, slot)
                self.put(")")
        else:
            is_short = self.introduced[thing] and dice.chance(65)
            self.mention(short if is_short else name, thing, slot)

    def mention(self, text: str, thing: Thing, slot: str) -> None:
        self.put(text)
        start = len(self.text) - len(text)  # an article may have come before it
        if thing.kind:
            self.mentions.append(SampleMention(start, len(self.text), thing, slot))


def document(
    seed: int,
    stream: int,
    position: int,
    kind: str = "",
    disease: Disease | None = None,
    compound: Chemical | None = None,
    tag: str = "",
) -> SampleDocument:
    """The document at `position` of a stream: a pure function of its arguments.

    Args:
        kind:     of article; drawn if empty.
        disease, compound: who must appear; drawn if None.
        tag:      what one sentence of its body is made to state.
    """
    dice = Dice(seed, stream << 40 | position)
    kind = kind or dice.pick(DRAWN_KINDS)
    scene, topic = draw_scene(dice, kind, world(), disease, compound)
    _, titles, sections = KINDS[kind]
    writer = Writer(dice, scene)
    title = writer.sentence(block(titles))
    writer.is_title = False
    writer.used.clear()
    has_headings, n_words, sentences, options = dice.chance(HEADED), 0, [], ()

    def add(options, heading="", tag=""):
        nonlocal n_words
        sentences.append(writer.sentence(options, heading, tag))
        n_words += sentences[-1].text.count(" ") + 1

    for heading, name, fewest, most in sections:
        is_last = name == sections[-1][1]
        while is_last and n_words < SHORTEST:
            add(options)  # more of the section before
        options = block(topic if name == "TOPIC" else name)
        wanted = tag if any(frame.tag == tag for frame in options) else ""
        for i in range(max(dice.between(fewest, most), bool(wanted))):
            if n_words > LONGEST and not is_last and not wanted:
                break
            add(options, heading if has_headings and i == 0 else "", wanted)
            wanted = ""
    return SampleDocument(f"sample-{position:06d}", kind, title, sentences, scene)


def documents(seed: int, n: int, stream: int = 0) -> Iterator[SampleDocument]:
    """The first n documents of a stream of a seed."""
    for position in range(n):
        yield document(seed, stream, position)
