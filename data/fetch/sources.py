"""Where everything is: addresses, revisions, licences, and what has to be done by hand.

`items` lists the files of a set, `settle` asks the server about one of them. Checksums that are
known stand in pins.py; the hub tells that of large files itself, NLM in a .md5 beside each file;
what nobody tells is recorded on first use (fetch.py).
"""

import json
import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import PurePosixPath
from urllib.parse import quote

from data.fetch.download import Failed, Web
from data.fetch.pins import PINS
from minibio.run.errors import InputError

HUB = "https://huggingface.co"
NLM = "https://ftp.ncbi.nlm.nih.gov/pubmed"
GITHUB = "https://raw.githubusercontent.com"
SQUAD = "https://rajpurkar.github.io/SQuAD-explorer/dataset"
DRIVE = "https://drive.usercontent.google.com/download?export=download&confirm=t&id="
SCIBERT = "allenai/scibert/06793f77d7278898159ed50da30d173cdc8fdea9"
FIXED = re.compile(r"[0-9a-f]{40}|refs/.*")  # revisions of the hub that stay as they are
# all of BioBERT's sets, and its older BioASQ sets: github.com/dmis-lab/biobert links both
BIOBERT_SETS, BIOBERT_QA = "1cGqvAm9IZ_86C4Mj7Zf-w9CFilYVDl8j", "19ft5q44W4SuptJgTwR84xZjsHg1jvjSZ"

LICENCES = {
    "pubmed": "NLM's terms, www.nlm.nih.gov/databases/download/terms_and_conditions.html; "
    "abstracts may be under their publishers' copyright",
    "biobert": "none stated with the weights; BioBERT's repository: Apache-2.0",
    "distilbert": "Apache-2.0",
    "tinybert": "none stated with the weights; Huawei Noah's repository: Apache-2.0",
    "mobilebert": "Apache-2.0",
    "ner": "BioBERT's preparation, Apache-2.0 with a disclaimer; each corpus has its own terms, "
    "some for research alone (Crichton et al. 2017, Lee et al. 2020)",
    "gad": "BioBERT's preparation, Apache-2.0 with a disclaimer; GAD corpus: Bravo et al. 2015",
    "chemprot13": "SciBERT's repository: Apache-2.0; corpus: BioCreative VI, its own terms",
    "squad": "CC BY-SA 4.0",
    "bioasq": "BioASQ's terms, for registered users: participants-area.bioasq.org",
}  # fmt: skip
BIOASQ = """\
BioASQ gives its questions to registered users only. What to do:
  1. register at http://participants-area.bioasq.org (free; the terms are shown there)
  2. python -m data.fetch qa --registered
Its own files (Task B, training and golden sets) are in the same place, after log-in."""


@dataclass(frozen=True)
class Item:
    """One file to fetch."""

    place: str  # below the folder
    address: str
    licence: str
    set: str  # which one it belongs to
    sha256: str | None = None
    md5_address: str | None = None
    revision: str | None = None
    size: int | None = None  # bytes, once the server was asked
    is_optional: bool = False  # the server need not have it
    repo: str | None = None  # of the hub, where this is its weights: see `settle`
    choose: Callable[[str], str | None] | None = None  # of an archive: member -> place
    wanted: tuple[str, ...] = ()  # places the archive must fill
    since: str | None = None  # when it was fetched before, with this checksum

    @property
    def places(self) -> tuple[str, ...]:
        """The file, or what may stand for it."""
        return (self.place, pickled(self.place)) if self.repo else (self.place,)


@dataclass(frozen=True)
class Model:
    """A model of the hub, and the class that converts its pickle where it has nothing else."""

    repo: str
    revision: str
    licence: str
    hf_class: str


MODELS = {
    "biobert-base-cased-v1.2": Model(
        "dmis-lab/biobert-base-cased-v1.2", "67c9c25b46986521ca33df05d8540da1210b3256",
        "biobert", "BertForMaskedLM",
    ),
    "distilbert-base-cased": Model(
        "distilbert/distilbert-base-cased", "6ea81172465e8b0ad3fddeed32b986cdcdcffcf0",
        "distilbert", "DistilBertForMaskedLM",
    ),
    "distilbert-base-uncased": Model(
        "distilbert/distilbert-base-uncased", "12040accade4e8a0f71eabdb258fecc2e7e948be",
        "distilbert", "DistilBertForMaskedLM",
    ),
    "TinyBERT_General_4L_312D": Model(
        "huawei-noah/TinyBERT_General_4L_312D", "34707a33cd59a94ecde241ac209bf35103691b43",
        "tinybert", "BertForMaskedLM",
    ),
    "mobilebert-uncased": Model(  # no revision known: the one that is met first is recorded
        "google/mobilebert-uncased", "main", "mobilebert", "MobileBertForMaskedLM"
    ),
}  # fmt: skip
TEACHER = "biobert-base-cased-v1.2"  # F1: with its masked-LM head, which v1.1 lacks
NER = ("NCBI-disease", "BC5CDR-disease", "BC5CDR-chem", "BC4CHEMD", "BC2GM", "JNLPBA", "linnaeus",
       "s800")  # fmt: skip
SETS = {
    "pubmed": ("baseline", "updatefiles"),
    "biobert": (TEACHER,),
    "starts": tuple(name for name in MODELS if name != TEACHER),
    "ner": NER,
    "relation": ("gad", "chemprot13"),
    "qa": ("squad", "bioasq"),
}


# ---- what there is


def items(what: str, web: Web, only: tuple[str, ...] = (), numbers: range | None = None,
          revision: str | None = None) -> list[Item]:  # fmt: skip
    """The files of a set.

    Args:
        what:     a row of SETS.
        only:     some of its names; () = all.
        numbers:  of PubMed's files; None = all.
        revision: of a model, in place of the one that is pinned.
    Raises:
        Failed: PubMed's list cannot be read.
        InputError: PubMed has no file of these numbers.
    """
    names = only or SETS[what]
    if what == "pubmed":
        return pubmed(web, names, numbers)
    if what in ("biobert", "starts"):
        return [item for name in names for item in model_files(name, what, revision)]
    if what == "ner":
        return [biobert_sets("ner", choose_ner(names), "ner", ner_places(names))]
    found = []
    if "gad" in names:
        found.append(biobert_sets("gad", choose_gad, "gad", GAD))
    if "chemprot13" in names:
        found += chemprot()
    if "squad" in names:
        found += [
            Item(f"squad/{name}", f"{SQUAD}/{name}", LICENCES["squad"], "squad",
                 sha256=PINS[f"squad/{name}"])
            for name in ("train-v1.1.json", "dev-v1.1.json")
        ]  # fmt: skip
    if "bioasq" in names:
        found.append(biobert_sets("bioasq", choose_bioasq, "bioasq", ()))
        found.append(replace(
            biobert_sets("bioasq", choose_bioasq, "bioasq", ()),
            place="biobert-qa.zip", address=DRIVE + BIOBERT_QA,
        ))  # fmt: skip
    return found


def pubmed(web: Web, parts: tuple[str, ...], numbers: range | None) -> list[Item]:
    """NLM's files, in the order in which they count: the baseline, then the daily updates."""
    found = []
    for part in parts:
        page = web.read(f"{NLM}/{part}/").decode("utf-8", "replace")
        names = sorted(set(re.findall(r'href="(pubmed\d\dn\d{4,5}\.xml\.gz)"', page)))
        if not names:
            raise Failed(f"{NLM}/{part}/: lists no pubmedYYnNNNN.xml.gz")
        for name in names:
            address = f"{NLM}/{part}/{name}"
            found.append(Item(name, address, LICENCES["pubmed"], part,
                              md5_address=f"{address}.md5", revision=name[6:8]))  # fmt: skip
    if numbers is None:
        return found
    chosen = [item for item in found if number(item.place) in numbers]
    if not chosen:
        there = [number(item.place) for item in found]
        raise InputError(
            f"--files {numbers.start}-{numbers.stop - 1}: the server has {there[0]} to {there[-1]}"
        )
    return chosen


def number(name: str) -> int:
    """27 of pubmed26n0027.xml.gz."""
    return int(name[9:].split(".")[0])


def model_files(name: str, what: str, revision: str | None) -> list[Item]:
    """A directory that `minibio.load` reads: the teacher alone at the top, others by name."""
    model, folder = MODELS[name], "" if what == "biobert" else f"{name}/"
    revision = revision or model.revision
    licence = LICENCES[model.licence]

    def item(file, **more):
        sha256 = PINS.get(f"{name}/{file}") if revision == model.revision else None
        return Item(folder + file, hub(model.repo, revision, file), licence, name,
                    sha256=sha256, revision=revision, **more)  # fmt: skip

    optional = ("tokenizer_config.json", "special_tokens_map.json", "tokenizer.json")
    return [
        item("config.json"),
        item("vocab.txt"),
        *(item(file, is_optional=True) for file in optional),
        item("model.safetensors", repo=model.repo),
    ]


def hub(repo: str, revision: str, file: str) -> str:
    return f"{HUB}/{repo}/resolve/{quote(revision, safe='')}/{file}"


def chemprot() -> list[Item]:
    """The 13 relations: JSON lines that SciBERT's repository calls .txt."""
    return [
        Item(f"chemprot13/{name}.jsonl",
             f"{GITHUB}/{SCIBERT}/data/text_classification/chemprot/{name}.txt",
             LICENCES["chemprot13"], "chemprot13", sha256=PINS[f"chemprot13/{name}.jsonl"],
             revision=SCIBERT.split("/")[-1])
        for name in ("train", "dev", "test")
    ]  # fmt: skip


# ---- out of BioBERT's archives


def biobert_sets(name: str, choose, licence: str, wanted: tuple[str, ...]) -> Item:
    return Item("biobert-datasets.tar.gz", DRIVE + BIOBERT_SETS, LICENCES[licence], name,
                choose=choose, wanted=wanted)  # fmt: skip


def ner_places(names: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(f"{name}/{part}.tsv" for name in names for part in ("train", "devel", "test"))


def choose_ner(names: tuple[str, ...]) -> Callable[[str], str | None]:
    """.../NCBI-disease/train.tsv -> NCBI-disease/train.tsv, whatever stands before."""
    places = {place.lower(): place for place in ner_places(names)}

    def choose(member: str) -> str | None:
        return places.get("/".join(PurePosixPath(member).parts[-2:]).lower())

    return choose


GAD = tuple(f"gad/{fold}/{part}.tsv" for fold in range(1, 11) for part in ("train", "test"))


def choose_gad(member: str) -> str | None:
    """.../GAD/1/train.tsv -> gad/1/train.tsv."""
    place = "/".join(PurePosixPath(member).parts[-3:]).lower()
    return place if place in GAD else None


def choose_bioasq(member: str) -> str | None:
    """.../BioASQ-train-factoid-7b.json and .../7B_golden.json -> bioasq/..."""
    name = PurePosixPath(member).name
    is_ours = re.fullmatch(r"BioASQ-(train|test)-factoid-\w+(-\d)?\.json|\dB\d?_golden\.json", name)
    return f"bioasq/{name}" if is_ours else None


# ---- what the server says


def settle(item: Item, web: Web) -> Item | None:
    """An item with its size and what else the server tells; None: optional, and not there.

    Weights are the first of: safetensors in the model's own revision, safetensors that the hub's
    converter made of it, the pickle.

    Raises:
        Failed: there is no such file, or the server does not say.
    """
    if item.choose:  # Drive may refuse to say anything of a file that it gives
        try:
            return look(item, web) or item
        except Failed:
            return item
    if item.repo is None:
        return look(item, web) or missing(item)
    found = look(item, web)
    if found is None and (revision := conversion(item.repo, web)):
        found = look(at(item, revision, item.place), web)
    if found is None:
        found = look(at(item, item.revision, pickled(item.place)), web)
    return found or missing(item)


def pickled(place: str) -> str:
    return str(PurePosixPath(place).with_name("pytorch_model.bin"))


def at(item: Item, revision: str, place: str) -> Item:
    address = hub(item.repo, revision, PurePosixPath(place).name)
    return replace(item, place=place, address=address, revision=revision, sha256=None)


def look(item: Item, web: Web) -> Item | None:
    told = web.look(item.address)
    if told is None:
        return None
    address = item.address
    if told.revision and item.revision and not FIXED.fullmatch(item.revision):
        # a branch moves on: all files, and a later fetch, are of the commit that was met
        address = address.replace(f"/resolve/{quote(item.revision, safe='')}/",
                                  f"/resolve/{told.revision}/")  # fmt: skip
    return replace(
        item,
        address=address,
        size=told.size,
        sha256=item.sha256 or told.sha256,
        revision=told.revision or item.revision,
    )


def missing(item: Item) -> None:
    if not item.is_optional:
        raise Failed(f"{item.address}: 404, no such file; was it moved?", 404)


def conversion(repo: str, web: Web) -> str | None:
    """The revision in which the hub's converter offers safetensors of a model: refs/pr/N.

    Anybody can open such a request, with any weights in it; only the hub's own one counts.
    """
    try:
        found = json.loads(web.read(f"{HUB}/api/models/{repo}/discussions"))["discussions"]
        return next((f"refs/pr/{int(each['num'])}" for each in found if is_converters(each)), None)
    except (ValueError, KeyError, TypeError, AttributeError):
        return None
    except Failed as error:
        if error.status in (403, 404):  # discussions may be off
            return None
        raise


def is_converters(discussion: dict) -> bool:
    return (
        discussion.get("isPullRequest") is True
        and discussion.get("status") in ("open", "merged")
        and (discussion.get("author") or {}).get("name") == "SFconvertbot"
        and "safetensors" in discussion.get("title", "")
    )
