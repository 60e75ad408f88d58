"""The table of addresses and checksums, and what is read out of servers' answers."""

import hashlib
import json
import re

import pytest

from data.fetch import sources
from data.fetch.download import Failed
from data.fetch.pins import PINS
from data.fetch.sources import GAD, LICENCES, MODELS, NER, SETS, TEACHER, alternatives, place_of
from helpers import real_data


class Fake:
    """A Web that knows some pages."""

    def __init__(self, pages, status=404):
        self.pages, self.status = dict(pages), status

    def read(self, address):
        if address not in self.pages:
            raise Failed("no", self.status)
        return self.pages[address]


def all_items():
    listing = b'<a href="pubmed26n0001.xml.gz">'
    pages = {f"{sources.NLM}/{part}/": listing for part in SETS["pubmed"]}
    return [item for what in SETS for item in sources.items(what, web=Fake(pages))]


def test_every_file_has_an_address_and_a_licence():
    for item in all_items():
        assert re.fullmatch(r"https://[a-z0-9.-]+/[\w./%&?=-]+", item.address), item.address
        assert LICENCES[item.set] and item.place
    assert {item.set for item in all_items()} == set(LICENCES)
    assert {item.address.split("/")[2] for item in all_items()} == {
        "ftp.ncbi.nlm.nih.gov", "huggingface.co", "raw.githubusercontent.com",
        "rajpurkar.github.io", "drive.usercontent.google.com",
    }  # fmt: skip


def test_models():
    """F1: BioBERT v1.1 has no masked-LM head."""
    assert MODELS[TEACHER].repo == "dmis-lab/biobert-base-cased-v1.2"
    assert {model.repo.split("/")[1] for model in MODELS.values()} == set(MODELS)
    assert all(re.fullmatch("[0-9a-f]{40}|main", model.revision) for model in MODELS.values())
    teacher, starts = sources.items("biobert"), sources.items("starts")
    assert teacher[0].place == "config.json" and len(SETS["starts"]) == 4
    assert starts[5].place == "distilbert-base-cased/model.safetensors"
    assert sum(item.sha256 is not None for item in starts) == 5


def test_members_of_archives():
    ner = sources.items("ner")[0].wanted
    assert len(ner) == 24
    assert place_of("datasets/NER/NCBI-disease/train.tsv", ner) == "NCBI-disease/train.tsv"
    assert place_of("NERdata/S800/devel.tsv", ner) == "s800/devel.tsv"
    assert place_of("../../BC2GM/test.tsv", ner) == "BC2GM/test.tsv"  # a place, not its path
    for name in ("BC2GM/train_dev.tsv", "BC2GM/._train.tsv", "NER/other/train.tsv", "train.tsv",
                 "xBC2GM/train.tsv"):  # fmt: skip
        assert place_of(name, ner) is None
    assert place_of("NER/JNLPBA/train.tsv", sources.items("ner", ("BC2GM",))[0].wanted) is None
    assert place_of("datasets/RE/GAD/10/test.tsv", GAD) == "gad/10/test.tsv"
    for name in ("RE/GAD/11/test.tsv", "RE/GAD/1/dev.tsv", "RE/euadr/1/test.tsv", "1/test.tsv"):
        assert place_of(name, GAD) is None
    for name in ("BioASQ-train-factoid-7b.json", "BioASQ-test-factoid-6b-5.json", "7B_golden.json",
                 "5B3_golden.json"):  # fmt: skip
        assert place_of(f"QA/BioASQ/{name}", ()) == f"bioasq/{name}"
    for name in ("BioASQ-train-yesno-7b.json", "SHA1.txt", "._7B_golden.json"):
        assert place_of(f"QA/BioASQ/{name}", ()) is None


def test_the_list_of_pubmed():
    listing = """<a href="../">Parent Directory</a>  -
<a href="pubmed26n0010.xml.gz">pubmed26n0010.xml.gz</a>      2026-01-09 14:36   19M
<a href="pubmed26n0010.xml.gz.md5">pubmed26n0010.xml.gz.md5</a>  2026-01-09 14:36   60
<a href="pubmed26n0009.xml.gz">pubmed26n0009.xml.gz</a> 2026-01-09 14:36  1.5K
<a href="pubmed26n0008.xml.gz">
<a href="../pubmed26n0001.xml.gz"> <a href="README.txt">README.txt</a> 4.7K"""
    web = Fake({f"{sources.NLM}/baseline/": listing.encode()})
    found = sources.pubmed(web, ("baseline",), None)
    assert [(item.place[9:13], item.size) for item in found] == [
        ("0008", 0), ("0009", 1536), ("0010", 19 << 20)
    ]  # fmt: skip
    assert {item.revision for item in found} == {"26"}
    assert sources.pubmed(web, ("baseline",), range(9, 10**9)) == found[1:]


def test_weights_are_looked_for_in_order():
    item = sources.items("starts", ("TinyBERT_General_4L_312D",))[-1]
    page = f"{sources.HUB}/api/models/{item.address.split('/resolve')[0][23:]}/discussions"
    row = {"num": 3, "title": "Adding `safetensors`", "isPullRequest": True, "status": "open",
           "author": {"name": "SFconvertbot"}}  # fmt: skip
    web = Fake({page: json.dumps({"discussions": [row]}).encode()})
    first, converted, pickle = alternatives(item, web)
    assert first == item and converted.place == item.place
    assert converted.address.endswith("/resolve/refs%2Fpr%2F3/model.safetensors")
    assert pickle.place == "TinyBERT_General_4L_312D/pytorch_model.bin"
    assert pickle.address.endswith(f"/resolve/{item.revision}/pytorch_model.bin")
    assert len([*alternatives(item, Fake({}))]) == 2
    with pytest.raises(Failed):  # a busy hub is not taken for one without safetensors
        list(alternatives(item, Fake({}, status=429)))


def test_pins():
    assert len(PINS) == 66 and list(PINS) == sorted(PINS)
    assert all(re.fullmatch("[0-9a-f]{64}", sha256) for sha256 in PINS.values())
    places = {place for item in all_items() for place in (item.place, *item.wanted)}
    assert not [x for x in PINS if x not in places and not place_of(x, ())]


def test_pins_are_those_of_the_real_files():
    base, checked = real_data("ner").parent, 0
    for place, sha256 in PINS.items():
        name = place.removeprefix("bioasq/")
        found = [base / x / name for x in ("ner", "relation", "qa") if (base / x / name).is_file()]
        for path in found:
            assert hashlib.sha256(path.read_bytes()).hexdigest() == sha256, place
            checked += 1
    assert checked == 59 and len(NER) == 8
