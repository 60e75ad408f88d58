"""The table of files to fetch: addresses, revisions, licences, sizes, and who must register.

`items` lists the files of a command; only NLM is asked, whose names change every day. Checksums
that are known are in pins.py; the hub sends those of large files, NLM those of all its files; any
other is recorded on first use.
"""

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import PurePosixPath
from typing import NamedTuple
from urllib.parse import quote

from data.fetch.download import Failed, Web
from data.fetch.pins import PINS
from minibio.run.errors import InputError

HUB = "https://huggingface.co"
NLM = "https://ftp.ncbi.nlm.nih.gov/pubmed"
GITHUB = "https://raw.githubusercontent.com"
SQUAD = "https://rajpurkar.github.io/SQuAD-explorer/dataset"
DRIVE = "https://drive.usercontent.google.com/download?export=download&confirm=t&id="
SCIBERT = "06793f77d7278898159ed50da30d173cdc8fdea9"
# all of BioBERT's sets, and its older BioASQ sets: github.com/dmis-lab/biobert links both
BIOBERT_SETS, BIOBERT_QA = "1cGqvAm9IZ_86C4Mj7Zf-w9CFilYVDl8j", "19ft5q44W4SuptJgTwR84xZjsHg1jvjSZ"


class HubModel(NamedTuple):
    """A model of the hub."""

    repo: str
    revision: str  # "main": no commit is pinned, and the one that is met is recorded
    megabytes: int


MODELS = {
    "biobert-base-cased-v1.2": HubModel(
        "dmis-lab/biobert-base-cased-v1.2", "67c9c25b46986521ca33df05d8540da1210b3256", 434),
    "distilbert-base-cased": HubModel(
        "distilbert/distilbert-base-cased", "6ea81172465e8b0ad3fddeed32b986cdcdcffcf0", 263),
    "distilbert-base-uncased": HubModel(
        "distilbert/distilbert-base-uncased", "12040accade4e8a0f71eabdb258fecc2e7e948be", 268),
    "TinyBERT_General_4L_312D": HubModel(
        "huawei-noah/TinyBERT_General_4L_312D", "34707a33cd59a94ecde241ac209bf35103691b43", 63),
    "mobilebert-uncased": HubModel("google/mobilebert-uncased", "main", 147),
}  # fmt: skip
TEACHER = "biobert-base-cased-v1.2"  # F1: with its masked-LM head, which v1.1 lacks
NER = ("NCBI-disease", "BC5CDR-disease", "BC5CDR-chem", "BC4CHEMD", "BC2GM", "JNLPBA", "linnaeus",
       "s800")  # fmt: skip
PARTS = ("train", "devel", "test")
GAD = tuple(f"gad/{fold}/{part}.tsv" for fold in range(1, 11) for part in ("train", "test"))
SETS = {  # command -> the names that --only takes
    "pubmed": ("baseline", "updatefiles"),
    "biobert": (TEACHER,),
    "starts": tuple(name for name in MODELS if name != TEACHER),
    "ner": NER,
    "relation": ("gad", "chemprot13"),
    "qa": ("squad", "bioasq"),
}
NLM_TERMS = (
    "NLM's terms, www.nlm.nih.gov/databases/download/terms_and_conditions.html; abstracts may be "
    "under their publishers' copyright"
)
LICENCES = {
    "baseline": NLM_TERMS,
    "updatefiles": NLM_TERMS,
    "biobert-base-cased-v1.2": "none stated with the weights; BioBERT's repository: Apache-2.0",
    "distilbert-base-cased": "Apache-2.0",
    "distilbert-base-uncased": "Apache-2.0",
    "TinyBERT_General_4L_312D":
        "none stated with the weights; Huawei Noah's repository: Apache-2.0",
    "mobilebert-uncased": "Apache-2.0",
    "ner": "BioBERT's preparation, Apache-2.0 with a disclaimer; each corpus has its own terms, "
        "some for research only (Crichton et al. 2017, Lee et al. 2020)",
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
    set: str  # a key of LICENCES
    sha256: str | None = None  # pinned
    revision: str | None = None
    size: int = 0  # bytes that it takes, about; 0 = few, or not known
    has_md5: bool = False  # the server has ADDRESS.md5
    is_optional: bool = False  # the server need not have it
    is_weights: bool = False  # of a model: see `alternatives`
    is_archive: bool = False
    wanted: tuple[str, ...] = ()  # places the archive must fill; () = what it has of BioASQ


def items(what: str, names=(), numbers: range | None = None, web: Web | None = None) -> list[Item]:
    """The files of a command.

    Args:
        what:         a row of SETS.
        names:        some of its sets; () = all.
        numbers, web: of PubMed's files, None = all; asked for their names.
    Raises:
        Failed: PubMed's list cannot be read.
        InputError: PubMed has no file of these numbers.
    """
    names = names or SETS[what]
    if what == "pubmed":
        return pubmed(web, names, numbers)
    if what == "ner":
        return [archive("ner", tuple(f"{name}/{x}.tsv" for name in names for x in PARTS))]
    found = []
    for name in names:
        if name in MODELS:
            found += model(name, "" if what == "biobert" else f"{name}/")
        elif name == "gad":
            found.append(archive("gad", GAD))
        elif name == "chemprot13":  # JSON lines that SciBERT's repository calls .txt
            folder = f"{GITHUB}/allenai/scibert/{SCIBERT}/data/text_classification/chemprot"
            for part in ("train", "dev", "test"):
                place = f"chemprot13/{part}.jsonl"
                found.append(Item(place, f"{folder}/{part}.txt", name, PINS[place], SCIBERT))
        elif name == "squad":
            for place in ("squad/train-v1.1.json", "squad/dev-v1.1.json"):
                address = f"{SQUAD}/{place.split('/')[1]}"
                found.append(Item(place, address, name, PINS[place], size=18_000_000))
        else:
            found.append(archive(name, ()))
            found.append(replace(found[-1], place="biobert-qa.zip", address=f"{DRIVE}{BIOBERT_QA}"))
    return found


def archive(name: str, wanted: tuple[str, ...]) -> Item:
    address = f"{DRIVE}{BIOBERT_SETS}"
    size = 100_000_000  # with its contents
    return Item("biobert-datasets.tar.gz", address, name, size=size, is_archive=True, wanted=wanted)


def place_of(member: str, wanted: tuple[str, ...]) -> str | None:
    """The place of an archive's member: datasets/RE/GAD/1/test.tsv -> gad/1/test.tsv.

    Args:
        wanted: the one that the member's path ends with counts, case aside; () = those of BioASQ,
            by their names.
    """
    if wanted:
        path = f"/{member.lower()}"
        return next((place for place in wanted if path.endswith(f"/{place.lower()}")), None)
    name = PurePosixPath(member).name
    is_ours = re.fullmatch(r"BioASQ-(train|test)-factoid-\w+(-\d)?\.json|\dB\d?_golden\.json", name)
    return f"bioasq/{name}" if is_ours else None


def pubmed(web: Web, parts: tuple[str, ...], numbers: range | None) -> list[Item]:
    """NLM's files in the order in which they apply: the baseline, then the daily updates."""
    # <a href="pubmed26n0001.xml.gz">pubmed26n0001.xml.gz</a>  2026-01-09 14:36   19M
    row = r'href="(pubmed\d\dn\d{4,5}\.xml\.gz)"(?:[^<\n]*</a>[^<\n]*?\s(\d+(?:\.\d+)?)([KMG])\b)?'
    found = []
    for part in parts:
        page = web.read(f"{NLM}/{part}/").decode("utf-8", "replace")
        rows = sorted({name: (n, unit) for name, n, unit in re.findall(row, page)}.items())
        if not rows:
            raise Failed(f"{NLM}/{part}/: lists no pubmedYYnNNNN.xml.gz")
        for name, (n, unit) in rows:
            size = int(float(n) * 1024 ** (1 + "KMG".index(unit))) if n else 0
            address = f"{NLM}/{part}/{name}"
            found.append(Item(name, address, part, None, name[6:8], size, has_md5=True))
    there = [int(item.place[9:].split(".")[0]) for item in found]  # 27 of pubmed26n0027.xml.gz
    if numbers is None:
        return found
    if not any(n in numbers for n in there):
        asked = f"{numbers.start}-{numbers.stop - 1}"
        raise InputError(f"--files {asked}: the server has {there[0]} to {there[-1]}")
    return [item for item, n in zip(found, there, strict=True) if n in numbers]


def model(name: str, folder: str) -> list[Item]:
    """A directory that `minibio.load` reads."""
    repo, revision, megabytes = MODELS[name]

    def item(file: str, **more) -> Item:
        pin = PINS.get(f"{name}/{file}")
        return Item(folder + file, hub(repo, revision, file), name, pin, revision, **more)

    optional = ("tokenizer_config.json", "special_tokens_map.json", "tokenizer.json")
    return [
        item("config.json"),
        item("vocab.txt"),
        *(item(file, is_optional=True) for file in optional),
        item("model.safetensors", size=megabytes * 10**6, is_weights=True),
    ]


def hub(repo: str, revision: str, file: str) -> str:
    return f"{HUB}/{repo}/resolve/{quote(revision, safe='')}/{file}"


def alternatives(item: Item, web: Web) -> Iterator[Item]:
    """An item, then what may be fetched in its place where the server has no such file.

    Weights are the first of: safetensors in the model's own revision, safetensors that the hub's
    converter made of it, the pickle.
    """
    yield item
    if item.is_weights:
        repo = MODELS[item.set].repo
        if revision := conversion(repo, web):
            address = hub(repo, revision, "model.safetensors")
            yield replace(item, address=address, revision=revision, sha256=None)
        address = hub(repo, item.revision, "pytorch_model.bin")
        yield replace(item, place=pickled(item.place), address=address, sha256=None)


def pickled(place: str) -> str:
    return str(PurePosixPath(place).with_name("pytorch_model.bin"))


def conversion(repo: str, web: Web) -> str | None:
    """The revision in which the hub's converter offers safetensors of a model: refs/pr/N.

    Anybody can open such a request, with any weights in it; only the hub's own one counts.
    """
    try:
        for each in json.loads(web.read(f"{HUB}/api/models/{repo}/discussions"))["discussions"]:
            is_open = each["isPullRequest"] is True and each["status"] in ("open", "merged")
            is_hubs = (each["author"] or {}).get("name") == "SFconvertbot"
            if is_open and is_hubs and "safetensors" in each["title"]:
                return f"refs/pr/{int(each['num'])}"
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        pass  # not what the hub answers
    except Failed as error:
        if error.status not in (403, 404):  # discussions may be off
            raise
    return None
