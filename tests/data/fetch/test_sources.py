"""The table of addresses, and what is read out of servers' answers."""

import json
import re

import pytest

from data.fetch import sources
from data.fetch.download import Failed, Told
from data.fetch.pins import PINS
from data.fetch.sources import LICENCES, MODELS, NER, SETS, TEACHER, Item, settle


class Fake:
    """A Web that knows some addresses."""

    def __init__(self, known, pages=()):
        self.known, self.pages, self.asked = known, dict(pages), []

    def look(self, address):
        self.asked.append(address)
        return self.known.get(address)

    def read(self, address):
        if address not in self.pages:
            raise Failed("404", 404)
        return self.pages[address]


def all_items():
    listing = b'<a href="pubmed26n0001.xml.gz">'
    pages = {f"{sources.NLM}/{part}/": listing for part in SETS["pubmed"]}
    return [item for what in SETS for item in sources.items(what, Fake({}, pages))]


def test_every_file_has_an_address_a_licence_and_a_place():
    for item in all_items():
        assert re.fullmatch(r"https://[a-z0-9.-]+/[\w./%&?=-]+", item.address), item.address
        assert item.licence in LICENCES.values() and item.set and item.place
        assert not item.sha256 or re.fullmatch("[0-9a-f]{64}", item.sha256)


def test_only_public_hosts():
    hosts = {item.address.split("/")[2] for item in all_items()}
    assert hosts == {
        "ftp.ncbi.nlm.nih.gov", "huggingface.co", "raw.githubusercontent.com",
        "rajpurkar.github.io", "drive.usercontent.google.com",
    }  # fmt: skip


def test_the_teacher_has_its_head():
    """F1: v1.1 has no masked-LM head."""
    assert MODELS[TEACHER].repo == "dmis-lab/biobert-base-cased-v1.2"
    assert {model.repo.split("/")[1] for model in MODELS.values()} == set(MODELS)
    assert len(SETS["starts"]) == 4 and SETS["biobert"] == (TEACHER,)
    for model in MODELS.values():
        assert re.fullmatch("[0-9a-f]{40}|main", model.revision)


def test_places_of_models():
    (teacher, *_), starts = (sources.items(what, None) for what in ("biobert", "starts"))
    assert teacher.place == "config.json"
    assert starts[5].places == (
        "distilbert-base-cased/model.safetensors", "distilbert-base-cased/pytorch_model.bin"
    )  # fmt: skip
    pinned = [item for item in starts if item.set == "distilbert-base-uncased" and item.sha256]
    assert len(pinned) == 5
    assert not any(item.sha256 for item in sources.items("starts", None, revision="main"))


def test_choices():
    choose = sources.choose_ner(NER)
    assert choose("datasets/NER/NCBI-disease/train.tsv") == "NCBI-disease/train.tsv"
    assert choose("NERdata/S800/devel.tsv") == "s800/devel.tsv"
    assert choose("../../BC2GM/test.tsv") == "BC2GM/test.tsv"  # a place of ours, not its path
    for name in ("BC2GM/train_dev.tsv", "BC2GM/._train.tsv", "NER/other/train.tsv", "train.tsv"):
        assert choose(name) is None
    assert sources.choose_ner(("BC2GM",))("NER/JNLPBA/train.tsv") is None
    assert sources.choose_gad("datasets/RE/GAD/10/test.tsv") == "gad/10/test.tsv"
    for name in ("RE/GAD/11/test.tsv", "RE/GAD/1/dev.tsv", "RE/euadr/1/test.tsv", "1/test.tsv"):
        assert sources.choose_gad(name) is None
    for name in ("BioASQ-train-factoid-7b.json", "BioASQ-test-factoid-6b-5.json", "7B_golden.json",
                 "5B3_golden.json"):  # fmt: skip
        assert sources.choose_bioasq(f"QA/BioASQ/{name}") == f"bioasq/{name}"
    for name in ("BioASQ-train-yesno-7b.json", "SHA1.txt", "._7B_golden.json"):
        assert sources.choose_bioasq(f"QA/BioASQ/{name}") is None


def test_the_numbers_of_pubmed():
    links = "".join(
        f'<a href="{name}">' for name in (
            "pubmed26n0010.xml.gz", "pubmed26n0009.xml.gz", "pubmed26n0009.xml.gz.md5",
            "../pubmed26n0001.xml.gz", "pubmed26n0009.xml.gz", "README.txt",
        )
    )  # fmt: skip
    web = Fake({}, {f"{sources.NLM}/baseline/": links.encode()})
    found = sources.pubmed(web, ("baseline",), None)
    assert [item.place for item in found] == ["pubmed26n0009.xml.gz", "pubmed26n0010.xml.gz"]
    assert [sources.number(item.place) for item in found] == [9, 10]
    assert {item.revision for item in found} == {"26"}


ITEM = Item("m/x", "https://h/x", "MIT", "m", revision="main")


def test_settle():
    web = Fake({"https://h/x": Told(5, "ab", "c0ffee")})
    found = settle(ITEM, web)
    assert (found.size, found.sha256, found.revision) == (5, "ab", "c0ffee")
    assert settle(Item("m/x", "https://h/x", "MIT", "m", sha256="pin"), web).sha256 == "pin"
    assert settle(Item("m/y", "https://h/y", "MIT", "m", is_optional=True), web) is None
    with pytest.raises(Failed, match="https://h/y: 404"):
        settle(Item("m/y", "https://h/y", "MIT", "m"), web)


def test_an_archive_is_asked_for_even_if_nobody_says_anything_of_it():
    class Silent(Fake):
        def look(self, address):
            raise Failed("403", 403)

    (item,) = sources.items("ner", None)
    assert settle(item, Silent({})) == item and settle(item, Fake({})) == item
    assert settle(item, Fake({item.address: Told(5)})).size == 5


def test_weights_are_looked_for_in_order():
    (item,) = [item for item in sources.items("biobert", None) if item.repo]
    page = f"{sources.HUB}/api/models/{item.repo}/discussions"
    row = {"num": 3, "title": "Adding `safetensors`", "isPullRequest": True, "status": "open",
           "author": {"name": "SFconvertbot"}}  # fmt: skip
    pages = {page: json.dumps({"discussions": [row]}).encode()}
    converted = sources.hub(item.repo, "refs/pr/3", "model.safetensors")
    pickle = item.address.replace("model.safetensors", "pytorch_model.bin")
    for address in (item.address, converted, pickle):
        web = Fake({address: Told(9)}, pages)
        assert settle(item, web).address == address == web.asked[-1]
    assert web.asked == [item.address, converted, pickle]
    assert settle(item, Fake({pickle: Told(9)})).place == "pytorch_model.bin"


def test_a_busy_hub_is_not_taken_for_one_without_safetensors():
    class Busy(Fake):
        def read(self, address):
            raise Failed("429", 429)

    (item,) = [item for item in sources.items("biobert", None) if item.repo]
    with pytest.raises(Failed, match="429"):
        settle(item, Busy({}))


def test_pins_are_of_files_in_the_table():
    places = {item.place for item in all_items()} | set(sources.ner_places(NER)) | set(sources.GAD)
    other = [x for x in PINS if x not in places and not sources.choose_bioasq(x)]
    assert not other
