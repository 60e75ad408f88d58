"""The names of the built-in sample and the small world behind them.

Every name is made from parts: diseases from Greek forms (`hepat` + `itis`), from sites (`renal
fibrosis`), from surnames (`Marlow syndrome`) and from opaque stems (`velmora`); chemicals with the
endings of international nonproprietary names; gene symbols from the protein's name (`korvin
receptor 2`, KRVR2); species as binomials. An opaque stem belongs to one kind of thing, yet
diseases, metabolites and habits share their endings: that velmora is an illness and korvane a drink
shows only in the company they keep in the corpus, which is what pre-training has to learn.

`world()` is the same for every seed of the sample: which genes lie behind which disease, what
treats it, what a drug acts on. Only the documents that speak of it differ.
"""

from dataclasses import dataclass, field
from functools import cache

import numpy as np

WORLD_KEY = (1887, 0)  # of the random numbers that shape the world; another key is another world


class Dice:
    """Random integers of one Philox stream. Integer arithmetic only: the same on every machine."""

    def __init__(self, seed: int, stream: int):
        self.bits = np.random.Philox(key=[seed, stream])
        self.raw: list[int] = []

    def below(self, n: int) -> int:
        """0 .. n-1, each as likely as the next (to 1 in 2**64 / n)."""
        if not self.raw:
            self.raw = self.bits.random_raw(256).tolist()
        return self.raw.pop() % n

    def skewed(self, n: int) -> int:
        """0 .. n-1, low numbers more often: the product of two uniform draws."""
        return self.below(n) * self.below(1 << 32) >> 32

    def between(self, low: int, high: int) -> int:
        return low + self.below(high - low + 1)

    def chance(self, percent: int) -> bool:
        return self.below(100) < percent

    def pick(self, options):
        return options[self.below(len(options))]

    def some(self, options, n: int) -> list:
        """n different options, in random order."""
        pool = list(options)
        for i in range(min(n, len(pool))):
            j = self.between(i, len(pool) - 1)
            pool[i], pool[j] = pool[j], pool[i]
        return pool[:n]


# --- parts of names ------------------------------------------------------------------------------

ONSETS = "b br c cl d dr f fl g gr h k kr l m n p pl pr qu r s st t tr v z".split()
NUCLEI = "a e i o u".split()
CODAS = "b d g l ld lm lt lv m n nd nt r rd rm rn rs rv sk ss st t v x".split()
UNWANTED = "bast cunt cum dam fag hel her mad mat mod nig nun pat piss pus rec sex tit turd".split()

# form, adjective and noun of a site of the body
SITES = [
    tuple(line.split(None, 2))
    for line in """hepat hepatic liver|nephr renal kidney|cardi cardiac heart|neur neural nerve
    encephal cerebral brain|gastr gastric stomach|enter intestinal small bowel|col colonic colon
    dermat cutaneous skin|arthr articular joint|oste skeletal bone|myocardi myocardial myocardium
    pancreat pancreatic pancreas|splen splenic spleen|retin retinal retina|kerat corneal cornea
    ot auditory inner ear|rhin nasal nasal mucosa|laryng laryngeal larynx|bronch bronchial bronchus
    esophag esophageal esophagus|cyst vesical bladder|prostat prostatic prostate
    oophor ovarian ovary|metr uterine uterus|myel spinal spinal cord|phleb venous vein
    mening meningeal meninges|tendin tendinous tendon|chondr cartilaginous cartilage
    gloss lingual tongue|stomat oral oral mucosa|blephar palpebral eyelid|mast mammary breast
    orchi testicular testis|cholangi biliary bile duct|thym thymic thymus
    adren adrenal adrenal gland|thyr thyroid thyroid gland|lymphaden nodal lymph node
    arteri arterial aorta|pneumon pulmonary lung""".replace("\n", "|").split("|")
]

DISEASE_ENDINGS = "itis itis osis opathy oma osclerosis omalacia odystrophy".split()
DISEASE_HEADS = (
    "adenoma amyloidosis atrophy carcinoma dysplasia dystrophy failure fibrosis hemorrhage "
    "hypoplasia infarction insufficiency ischemia lymphoma sarcoma stenosis thrombosis"
).split()
DISEASE_MANNERS = (
    "acute allergic atypical autoimmune benign chronic congenital familial hereditary idiopathic "
    "infantile juvenile late-onset nocturnal polycystic progressive recurrent sporadic X-linked"
).split()
EPONYM_HEADS = "disease syndrome syndrome disease anemia ataxia dystrophy palsy tumor".split()
OPAQUE_ENDINGS = "a ane ella era ia ine ix ol ora ose ura".split()

# what may appear in the place of a disease and is not one
HABIT_HEADS = "chewing consumption exposure intake use".split()
PROCEDURE_ENDINGS = "ectomy ectomy ography oscopy oplasty otomy opexy ocentesis".split()
SITE_EVENTS = (
    "biopsy|blood flow|clearance|compliance|drainage|elasticity|emptying|imaging|innervation|"
    "lavage|morphology|motility|perfusion|regeneration|remodeling|resection|secretion|"
    "transplantation|volume"
).split("|")
HABITS = (
    "alcohol abstinence|breast feeding|chronic caffeine intake|cold exposure|early menarche|"
    "endurance training|fasting|fluid restriction|high altitude|juvenile smoking|loud music|"
    "night work|nocturnal snacking|passive smoking|physical inactivity|progressive overload|"
    "rapid weight gain|recurrent dieting|salt intake|seasonal work|shift work|sleep deprivation|"
    "social isolation|sporadic exercise|sunbathing|traffic noise|vegetarian diet|violin practice"
).split("|")
TOOL_HEADS = (
    "classification criteria index manoeuvre procedure protocol scale score staining test"
).split()

SURNAMES = (
    "Ald Ash Bar Ber Bran Dal Fen Gar Hal Hart Hol Kes Kir Lind Mar Os Rad Stan Thorn Tol Wel Wen",
    "berg dahl den ford gren hurst ini ley low man mont ner ova sel son strom ton ville well wick",
)

# drug endings: class, what it does to its target (ChemProt's label), kind of target
DRUG_CLASSES = {
    "tinib": ("kinase inhibitor", "INHIBITOR", "kinase"),
    "ciclib": ("kinase inhibitor", "INHIBITOR", "kinase"),
    "prilat": ("peptidase inhibitor", "INHIBITOR", "peptidase"),
    "vastin": ("reductase inhibitor", "INHIBITOR", "reductase"),
    "stat": ("enzyme inhibitor", "INHIBITOR", "ligase"),
    "olol": ("receptor blocker", "ANTAGONIST", "receptor"),
    "sartan": ("receptor blocker", "ANTAGONIST", "receptor"),
    "lukast": ("receptor antagonist", "ANTAGONIST", "receptor"),
    "terol": ("receptor agonist", "AGONIST", "receptor"),
    "glutide": ("receptor agonist", "AGONIST", "receptor"),
    "morelin": ("full agonist", "AGONIST-ACTIVATOR", "receptor"),
    "orphan": ("inverse agonist", "AGONIST-INHIBITOR", "receptor"),
    "ciguat": ("cyclase stimulator", "ACTIVATOR", "cyclase"),
    "fibrate": ("transcriptional activator", "INDIRECT-UPREGULATOR", "factor"),
    "glitazone": ("insulin sensitizer", "UPREGULATOR", "transporter"),
    "cort": ("corticosteroid", "INDIRECT-DOWNREGULATOR", "factor"),
    "rsen": ("antisense oligonucleotide", "DOWNREGULATOR", "channel"),
    "mycin": ("antibiotic", "SUBSTRATE", "transporter"),
    "cillin": ("antibiotic", "SUBSTRATE", "transporter"),
    "conazole": ("antifungal agent", "SUBSTRATE", "reductase"),
    "vir": ("antiviral agent", "SUBSTRATE", "ligase"),
}
METABOLITES = {  # relations of an opaque compound to its enzyme, with how many of ten
    "SUBSTRATE": 4, "PRODUCT-OF": 4, "ACTIVATOR": 1, "SUBSTRATE_PRODUCT-OF": 1,
}  # fmt: skip
GENE_KINDS = {
    "receptor": "R", "kinase": "K", "transporter": "T", "ligase": "L", "channel": "C",
    "factor": "F", "peptidase": "P", "reductase": "D", "cyclase": "Y",
}  # fmt: skip
GENUS_ENDINGS = "ella obacter ococcus omyces ovirus oplasma ospira".split()
EPITHETS = "ata ensis eri ica ii osa um us".split()


# --- things --------------------------------------------------------------------------------------


# compared and hashed as objects, printed by name: they refer to each other in circles
@dataclass(slots=True, eq=False)
class Thing:
    """Something with a name. `kind` is what the annotations call it, None where they are silent."""

    name: str
    short: str = ""  # what later mentions may call it
    kind: str | None = None


@dataclass(slots=True, eq=False, repr=False)
class Gene(Thing):
    family: str = ""  # receptor, kinase, ...


@dataclass(slots=True, eq=False, repr=False)
class Chemical(Thing):
    group: str = ""  # kinase inhibitor, ..., metabolite
    label: str = ""  # ChemProt's name of what it does to its target
    target: Gene | None = None


@dataclass(slots=True, eq=False, repr=False)
class Disease(Thing):
    site: tuple[str, str, str] = SITES[0]
    genes: list[Gene] = field(default_factory=list)
    drugs: list[Chemical] = field(default_factory=list)
    kin: list["Disease"] = field(default_factory=list)  # what comes with it
    habits: list[Thing] = field(default_factory=list)  # what leads to it
    metabolites: list[Chemical] = field(default_factory=list)  # what marks it
    cause: Thing | None = None  # the species, where it is an infection


@dataclass(slots=True, eq=False, repr=False)
class World:
    diseases: list[Disease] = field(default_factory=list)
    genes: list[Gene] = field(default_factory=list)
    drugs: list[Chemical] = field(default_factory=list)
    metabolites: list[Chemical] = field(default_factory=list)
    species: list[Thing] = field(default_factory=list)
    habits: list[Thing] = field(default_factory=list)  # and foods, exposures
    procedures: list[Thing] = field(default_factory=list)  # and whatever is done at a site
    tools: list[Thing] = field(default_factory=list)  # scores, stains, tests with a surname
    cells: list[Thing] = field(default_factory=list)


def stems(dice: Dice) -> list[str]:
    """All opaque stems, such as velm and korv, in random order."""
    every = [o + v + c for o in ONSETS for v in NUCLEI for c in CODAS]
    return dice.some([s for s in every if s not in UNWANTED], len(every))


def consonants(stem: str) -> str:
    """Three or four capitals that abbreviate a stem: korv is KRV."""
    return (stem[0] + "".join(c for c in stem[1:] if c not in "aeiou")).upper()


def initials(name: str) -> str:
    """The abbreviation of a name of several words, or "": familial renal fibrosis is FRF."""
    words = name.replace("-", " ").split()
    letters = "".join(w if w.isdigit() else w[0].upper() for w in words if w != "type")
    return letters if 2 < len(letters) < 6 else ""


def distinct(make, n: int, taken: set[str]) -> list[str]:
    """n different names that `make()` gives; they are added to `taken`."""
    names = []
    while len(names) < n:
        name = make()
        if name not in taken:
            taken.add(name)
            names.append(name)
    return names


def protein_genes(dice: Dice, roots: list[str], n: int, taken: set[str]) -> list[Gene]:
    """Families of proteins: korvin 2 is KRV2, korvin receptor 2 is KRVR2."""
    genes = []
    while len(genes) < n:
        root, number = dice.pick(roots), dice.between(1, 9)
        family = dice.pick(list(GENE_KINDS))
        if dice.chance(20):
            name, symbol = f"{root}in {number}", f"{consonants(root)}{number}"
        else:
            name = f"{root}in {family} {number}"
            symbol = f"{consonants(root)}{GENE_KINDS[family]}{number}"
        if symbol not in taken:
            taken.add(symbol)
            genes.append(Gene(name, symbol, "gene", family))
    return genes


def drugs(dice: Dice, roots: list[str], genes: list[Gene], n: int, taken: set[str]):
    """Names such as velatinib and korvoprilat; some were a company's code before."""
    by_family = {f: [g for g in genes if g.family == f] for f in GENE_KINDS}
    made = []
    while len(made) < n:
        ending = dice.pick(list(DRUG_CLASSES))
        group, label, family = DRUG_CLASSES[ending]
        vowel = dice.pick("aeio") if ending[0] not in "aeiou" else ""
        name = dice.pick(roots) + vowel + ending
        code = f"{dice.pick('ABDGKLMRSTVXZ')}{dice.pick('BDKLNRTVX')}-{dice.between(101, 9899)}"
        if name not in taken:
            taken.add(name)
            short = code if dice.chance(30) else ""
            made.append(
                Chemical(name, short, "chemical", group, label, dice.pick(by_family[family]))
            )
    return made


def metabolites(dice: Dice, roots: list[str], genes: list[Gene], n: int, taken: set[str]):
    """Opaque compounds (korvane) and their relatives (5-hydroxykorvane, korvanic acid)."""

    def make():
        base = dice.pick(roots) + dice.pick(OPAQUE_ENDINGS)
        form = dice.below(10)
        if form < 6:
            return base
        if form < 8:
            prefix = dice.pick("hydroxy methyl acetyl dihydro".split())
            return f"{dice.between(2, 9)}-{prefix}{base}"
        return dice.pick(roots) + dice.pick(["ic acid", "onic acid", "ate", "yl sulfate"])

    labels = [label for label, share in METABOLITES.items() for _ in range(share)]
    return [
        Chemical(name, "", "chemical", "metabolite", dice.pick(labels), dice.pick(genes))
        for name in distinct(make, n, taken)
    ]


def species(dice: Dice, roots: list[str], n: int, taken: set[str]) -> list[Thing]:
    def make():
        genus = dice.pick(roots).capitalize() + dice.pick(GENUS_ENDINGS)
        return f"{genus} {dice.pick(roots)}{dice.pick(EPITHETS)}"

    names = distinct(make, n, taken)
    return [Thing(name, f"{name[0]}. {name.split()[1]}", "species") for name in names]


def surnames(dice: Dice) -> list[str]:
    every = [first + last for first in SURNAMES[0].split() for last in SURNAMES[1].split()]
    return dice.some(every, 240)


def disease_makers(dice: Dice, world: World, roots: list[str], people: list[str]):
    """The ways in which a disease of a site gets its name, each with its weight."""

    def manner(name, percent):
        return f"{dice.pick(DISEASE_MANNERS)} {name}" if dice.chance(percent) else name

    def opaque():
        return dice.pick(roots) + dice.pick(OPAQUE_ENDINGS)

    def greek(site):
        prefix = dice.pick(["", "", "", "", "poly", "peri", "pan"])
        return manner(prefix + site[0] + dice.pick(DISEASE_ENDINGS), 35)

    def of_site(site):
        return manner(f"{site[1]} {dice.pick(DISEASE_HEADS)}", 35)

    def eponym(site):
        second = f"-{dice.pick(people)}" if dice.chance(45) else ""
        number = f" type {dice.between(1, 4)}" if dice.chance(15) else ""
        return f"{dice.pick(people)}{second} {dice.pick(EPONYM_HEADS)}{number}"

    def bare(site):
        return opaque()

    def qualified(site):
        head = dice.pick(["", "", "", " fever", " syndrome", " type 1", " type 2"])
        word = f"{site[1]} {opaque()}" if dice.chance(30) else opaque()
        return manner(word + head, 100 if not head else 20)

    def lack(site):
        manner = dice.pick(["", "", "", "congenital ", "hereditary ", "infantile "])
        return f"{manner}{dice.pick(world.genes).name.rsplit(' ', 1)[0]} deficiency"

    return [(greek, 16), (of_site, 14), (eponym, 18), (bare, 28), (qualified, 12), (lack, 6)]


def name_diseases(dice: Dice, world: World, roots, people, n: int, taken: set[str]):
    """Diseases with site, cause and short name; 6 in 100 are infections."""
    makers = disease_makers(dice, world, roots, people)
    ways = [make for make, weight in makers for _ in range(weight)] + [None] * 6
    while len(world.diseases) < n:
        make, site, cause = dice.pick(ways), dice.pick(SITES), None
        if make is None:
            cause = dice.pick(world.species)
            genus = cause.name.split()[0]
            root = genus.lower()[:-1] if genus.endswith("a") else genus.lower().rstrip("us")
            name = dice.pick([f"{genus} infection", f"{root}osis", f"{site[1]} {root}osis"])
        else:
            name = make(site)
        if name not in taken:
            taken.add(name)
            world.diseases.append(Disease(name, initials(name), "disease", site, cause=cause))


def name_habits(dice: Dice, roots: list[str], n: int, taken: set[str]) -> list[Thing]:
    """Habits, and opaque things that people eat or breathe."""

    def make():
        word = dice.pick(roots) + dice.pick(OPAQUE_ENDINGS)
        return f"{word} {dice.pick(HABIT_HEADS)}" if dice.chance(20) else word

    return [Thing(name) for name in HABITS + distinct(make, n, taken)]


def name_procedures(dice: Dice, n: int, taken: set[str]) -> list[Thing]:
    """Made from the very sites that diseases are made from: hepatectomy, renal perfusion."""

    def make():
        site = dice.pick(SITES)
        if dice.chance(50):
            return site[0] + dice.pick(PROCEDURE_ENDINGS)
        return f"{site[1]} {dice.pick(SITE_EVENTS)}"

    return [Thing(name) for name in distinct(make, n, taken)]


def name_tools(dice: Dice, people: list[str], n: int, taken: set[str]) -> list[Thing]:
    """Scores and stains that share their surnames, and at times their initials, with diseases."""

    def make():
        second = f"-{dice.pick(people)}" if dice.chance(40) else ""
        return f"{dice.pick(people)}{second} {dice.pick(TOOL_HEADS)}"

    return [Thing(name, initials(name)) for name in distinct(make, n, taken)]


def relate(dice: Dice, world: World) -> None:
    """Give each disease its genes, drugs, habits and companions: those of its site, mostly."""
    n_sites = len(SITES)
    for disease in world.diseases:
        place = SITES.index(disease.site)

        def near(things, n, place=place):
            """n of the things that belong to this site."""
            return dice.some(things[place::n_sites], n)

        disease.genes = near(world.genes, 3)
        disease.drugs = near(world.drugs, 3)
        disease.metabolites = near(world.metabolites, 2)
        disease.habits = near(world.habits, 3)
        disease.kin = [d for d in near(world.diseases, 4) if d is not disease][:3]


@cache
def world() -> World:
    """All things and what binds them, the same in every process."""
    dice, taken = Dice(*WORLD_KEY), set()
    pool = iter(stems(dice))

    def roots(n):
        return [next(pool) for _ in range(n)]

    world, people = World(), surnames(dice)
    world.genes = protein_genes(dice, roots(150), 1400, taken)
    world.drugs = drugs(dice, roots(150), world.genes, 1000, taken)
    world.metabolites = metabolites(dice, roots(120), world.genes, 700, taken)
    world.species = species(dice, roots(80), 320, taken)
    world.habits = name_habits(dice, roots(120), 500, taken)
    world.procedures = name_procedures(dice, 300, taken)
    name_diseases(dice, world, roots(240), people, 3000, taken)
    world.tools = name_tools(dice, people, 240, taken)
    world.cells = [
        Thing(name)
        for name in distinct(lambda: f"{consonants(next(pool))}-{dice.between(2, 99)}", 200, taken)
    ]
    relate(dice, world)
    return world
