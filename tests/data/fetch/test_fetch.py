"""The command, whole, against a server in place of NLM, the hub, GitHub and Google Drive."""

import gzip
import hashlib
import io
import json
import random
import re
import signal
import subprocess
import sys
import tarfile
import time
import zipfile

import pytest
from fake_web import Page, cut, serve, status, wrong
from hypothesis import given, settings
from hypothesis import strategies as st

from data.fetch import download, fetch, sources
from data.fetch.pins import PINS
from helpers import ROOT, real_data, tiny_config
from minibio.run import errors
from minibio.run.errors import InputError
from minibio.run.files import locked

NLM = "/ftp.ncbi.nlm.nih.gov/pubmed"
HUB = "/huggingface.co"
BIOBERT = f"{HUB}/dmis-lab/biobert-base-cased-v1.2/resolve/{{}}/{{}}"
PINNED = sources.MODELS[sources.TEACHER].revision
SETS = sources.DRIVE.removeprefix("https:/") + sources.BIOBERT_SETS
CHEMPROT = f"/raw.githubusercontent.com/allenai/scibert/{sources.SCIBERT}/data/text_classification/chemprot"  # noqa: E501
QA = sources.DRIVE.removeprefix("https:/") + sources.BIOBERT_QA


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(download, "FIRST_WAIT", 0.001)
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.delenv("MINIBIO_MIRROR", raising=False)


@pytest.fixture
def server():
    with serve({}) as server:
        yield server


def run(server, out, *args):
    return fetch.main([*args, "--out", str(out), "--mirror", server.url])


def record(out):
    return json.loads((out / "fetched.json").read_text("utf-8"))["files"]


def files(out):
    """{place: bytes} of all that is there, parts and notes too."""
    return {
        str(path.relative_to(out)): path.read_bytes()
        for path in out.rglob("*")
        if path.is_file() and path.name != "fetched.json"
    }


def sha256(body):
    return hashlib.sha256(body).hexdigest()


# ---- pubmed


def pubmed_pages(n=4, year=26, part="baseline", first=1):
    """NLM's pages, and the bytes that must arrive."""
    names = [f"pubmed{year}n{i:04}.xml.gz" for i in range(first, first + n)]
    bodies = {x: gzip.compress(random.Random(x).randbytes(3000), mtime=0) for x in names}
    links = "".join(f'<a href="{x}">{x}</a> 19M\n<a href="{x}.md5">{x}.md5</a>\n' for x in names)
    pages = {f"{NLM}/{part}/": Page(f'<a href="../">up</a>{links}'.encode())}
    for name, body in bodies.items():
        pages[f"{NLM}/{part}/{name}"] = Page(body)
        md5 = hashlib.md5(body).hexdigest()
        pages[f"{NLM}/{part}/{name}.md5"] = Page(f"MD5({name})= {md5}\n".encode())
    return pages, bodies


def test_pubmed(server, tmp_path, capsys):
    server.pages, bodies = pubmed_pages()
    updates, more = pubmed_pages(2, part="updatefiles", first=5)
    server.pages |= updates
    assert run(server, tmp_path, "pubmed") == 0
    assert files(tmp_path) == bodies | more
    entry = record(tmp_path)["pubmed26n0002.xml.gz"]
    body = bodies["pubmed26n0002.xml.gz"]
    assert entry.pop("date") and "NLM's terms" in entry.pop("licence")
    assert entry == {
        "address": "https://ftp.ncbi.nlm.nih.gov/pubmed/baseline/pubmed26n0002.xml.gz",
        "revision": "26", "size": len(body), "sha256": sha256(body),
    }  # fmt: skip
    said = capsys.readouterr()
    assert "baseline: licence: NLM's terms" in said.out and said.out.endswith(
        f"{tmp_path}: complete; 6 files, 18.1 kB\n"
    )
    assert not said.err


def test_a_rerun_does_what_is_missing(server, tmp_path, capsys):
    server.pages, bodies = pubmed_pages()
    args = ["pubmed", "--only", "baseline"]
    assert run(server, tmp_path, *args) == 0
    server.log.clear()
    capsys.readouterr()
    assert run(server, tmp_path, *args) == 0
    assert capsys.readouterr().out == f"{tmp_path}: complete; 4 files, 12.1 kB\n"
    assert [path for path, _ in server.log] == [f"{NLM}/baseline/"]
    (tmp_path / "pubmed26n0003.xml.gz").unlink()
    server.log.clear()
    assert run(server, tmp_path, *args) == 0 and files(tmp_path) == bodies
    assert {path.split("/")[-1] for path, _ in server.log} == {
        "", "pubmed26n0003.xml.gz", "pubmed26n0003.xml.gz.md5"
    }  # fmt: skip


def test_what_fails_is_named_and_the_others_go_on(server, tmp_path, capsys):
    server.pages, bodies = pubmed_pages()
    base = f"{NLM}/baseline/pubmed26n"
    server.pages[f"{base}0001.xml.gz"].faults = [wrong(b"x" * 3023)] * 2
    del server.pages[f"{base}0002.xml.gz"]
    server.pages[f"{base}0004.xml.gz.md5"] = Page(b"<html>no")
    assert run(server, tmp_path, "pubmed", "--only", "baseline") == 1
    assert list(files(tmp_path)) == ["pubmed26n0003.xml.gz"]
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 3
    assert re.search(r"pubmed26n0001.xml.gz: https://.*md5 is .*, expected .*; twice$", lines[0])
    assert "pubmed26n0002.xml.gz: https://" in lines[1] and "404" in lines[1]
    assert "no MD5 in it" in lines[2]
    server.pages = pubmed_pages()[0]
    assert run(server, tmp_path, "pubmed", "--only", "baseline") == 0 and files(tmp_path) == bodies


def test_some_numbers(server, tmp_path):
    server.pages, bodies = pubmed_pages(12)
    assert run(server, tmp_path, "pubmed", "--only", "baseline", "--files", "2-3") == 0
    assert sorted(files(tmp_path)) == ["pubmed26n0002.xml.gz", "pubmed26n0003.xml.gz"]
    assert run(server, tmp_path, "pubmed", "--only", "baseline", "--files", "12") == 0
    assert len(files(tmp_path)) == 3
    with pytest.raises(InputError, match="--files 13-14: the server has 1 to 12"):
        run(server, tmp_path, "pubmed", "--only", "baseline", "--files", "13-14")
    for text in ("0x1", "3-1", "a", "1-", ""):
        with pytest.raises(InputError, match="expected a number or two, like 1-5"):
            run(server, tmp_path, "pubmed", "--files", text)


def test_another_year(server, tmp_path):
    server.pages, bodies = pubmed_pages(2)
    assert run(server, tmp_path, "pubmed", "--only", "baseline") == 0
    server.pages = pubmed_pages(2, year=27)[0]
    with pytest.raises(InputError, match="files of 26 and 27, which have the same"):
        run(server, tmp_path, "pubmed", "--only", "baseline")
    assert files(tmp_path) == bodies
    server.pages |= pubmed_pages(2, part="updatefiles")[0]  # NLM's own days between two years
    with pytest.raises(InputError, match="26 and 27"):
        run(server, tmp_path / "new", "pubmed")


def test_no_list(server, tmp_path, capsys):
    assert run(server, tmp_path, "pubmed") == 1
    assert "data.fetch: pubmed: https://ftp.ncbi.nlm.nih.gov/pubmed/baseline/: 404" in (
        capsys.readouterr().err
    )
    server.pages[f"{NLM}/baseline/"] = Page(b"<html>maintenance</html>")
    assert run(server, tmp_path, "pubmed") == 1
    assert "lists no pubmedYYnNNNN.xml.gz" in capsys.readouterr().err


# ---- other bytes than before


def test_other_bytes_than_recorded(server, tmp_path, capsys):
    server.pages, bodies = pubmed_pages(1)
    args = ["pubmed", "--only", "baseline"]
    assert run(server, tmp_path, *args) == 0
    (tmp_path / "pubmed26n0001.xml.gz").unlink()
    server.pages[f"{NLM}/baseline/pubmed26n0001.xml.gz"].body = other = b"y" * 3023
    md5 = hashlib.md5(other).hexdigest()
    server.pages[f"{NLM}/baseline/pubmed26n0001.xml.gz.md5"].body = md5.encode()
    assert run(server, tmp_path, *args) == 1
    line = capsys.readouterr().err
    expected = sha256(bodies["pubmed26n0001.xml.gz"])
    assert re.search(f"sha256 is {sha256(other)}, expected {expected}; twice; as fetched on "
                     r"\d{4}-\d\d-\d\d\n$", line)  # fmt: skip
    assert not files(tmp_path)


def test_a_file_changed_by_its_user(server, tmp_path, capsys):
    server.pages, _ = pubmed_pages(1)
    args = ["pubmed", "--only", "baseline"]
    assert run(server, tmp_path, *args) == 0
    (tmp_path / "pubmed26n0001.xml.gz").write_bytes(b"mine")
    assert run(server, tmp_path, *args) == 1
    assert "n0001.xml.gz: 4 bytes, 3,023 were fetched; remove it" in capsys.readouterr().err
    assert files(tmp_path) == {"pubmed26n0001.xml.gz": b"mine"}


def test_verify(server, tmp_path, capsys):
    server.pages, _ = pubmed_pages(3)
    assert run(server, tmp_path, "pubmed", "--only", "baseline") == 0
    server.log.clear()
    assert run(server, tmp_path, "pubmed", "--verify") == 0 and not server.log
    one = tmp_path / "pubmed26n0001.xml.gz"
    one.write_bytes(one.read_bytes()[:-1] + b"?")
    (tmp_path / "pubmed26n0002.xml.gz").unlink()
    assert run(server, tmp_path, "pubmed", "--verify") == 1
    said = capsys.readouterr()
    assert said.err == f"{tmp_path}: 3 files read, 2 of them wrong\n"
    assert "n0001.xml.gz: not the bytes that were fetched" in said.out
    assert "n0002.xml.gz: not there" in said.out


# ---- models

SAFE = b"safetensors " * 500
CONFIG, VOCAB = b'{"model_type": "bert"}', b"[PAD]\n"
COMMIT = "c" * 40


def hub_pages(weights="model.safetensors", revision=PINNED, body=SAFE):
    """The hub: small files itself, weights by way of another host, as it does."""
    told = {"X-Repo-Commit": COMMIT}
    linked = told | {"X-Linked-Size": str(len(body)), "X-Linked-Etag": f'"{sha256(body)}"'}
    quoted = revision.replace("/", "%2F")
    return {
        BIOBERT.format(PINNED, "config.json"): Page(CONFIG, headers=told),
        BIOBERT.format(PINNED, "vocab.txt"): Page(VOCAB, headers=told),
        BIOBERT.format(quoted, weights): Page(redirect="/cdn/blob?x=1", headers=linked),
        "/cdn/blob?x=1": Page(body, faults=[cut(100)]),
    }


def discussions(*rows):
    keys = ("num", "title", "isPullRequest", "status", "author")
    found = [dict(zip(keys, row, strict=True)) for row in rows]
    path = f"{HUB}/api/models/dmis-lab/biobert-base-cased-v1.2/discussions"
    return {path: Page(json.dumps({"discussions": found, "count": len(rows)}).encode())}


TITLE, BOT = "Adding `safetensors` variant of this model", {"name": "SFconvertbot"}


def test_a_model(server, tmp_path, capsys):
    server.pages = hub_pages()
    assert run(server, tmp_path, "biobert") == 0
    there = {"config.json": CONFIG, "vocab.txt": VOCAB, "model.safetensors": SAFE}
    assert files(tmp_path) == there
    entries = record(tmp_path)
    assert {entry["revision"] for place, entry in entries.items() if place in there} == {COMMIT}
    assert entries["model.safetensors"]["sha256"] == sha256(SAFE)
    assert {place for place, entry in entries.items() if entry.get("absent")} == {
        "tokenizer_config.json", "special_tokens_map.json", "tokenizer.json"
    }  # fmt: skip
    assert "Apache-2.0" in capsys.readouterr().out
    server.log.clear()
    assert run(server, tmp_path, "biobert") == 0 and not server.log  # nobody is asked


def test_the_hubs_checksum_counts(server, tmp_path, capsys):
    server.pages = hub_pages()
    server.pages["/cdn/blob?x=1"].body = b"another " * 750
    assert run(server, tmp_path, "biobert") == 1
    assert f"expected {sha256(SAFE)}; twice" in capsys.readouterr().err
    assert "model.safetensors" not in files(tmp_path)


def test_safetensors_of_the_converter(server, tmp_path):
    """Only the hub's own converter: anybody can open a pull request with any weights."""
    server.pages = hub_pages(revision="refs/pr/5") | discussions(
        (1, TITLE, True, "open", {"name": "mallory"}),
        (2, TITLE, False, "open", BOT),
        (3, TITLE, True, "closed", BOT),
        (4, "Adding ONNX", True, "open", BOT),
        (5, TITLE, True, "open", BOT),
        (6, TITLE, True, "open", None),
    )
    for n in (1, 2, 3, 4, 6):
        server.pages[BIOBERT.format(f"refs%2Fpr%2F{n}", "model.safetensors")] = Page(b"bad")
    assert run(server, tmp_path, "biobert") == 0
    assert (tmp_path / "model.safetensors").read_bytes() == SAFE
    assert "refs%2Fpr%2F5" in record(tmp_path)["model.safetensors"]["address"]


@pytest.mark.parametrize(
    "answer", [Page(b"[]"), Page(b"{"), Page(b'{"discussions": [3]}'), Page(faults=[status(403)])]
)
def test_a_pickle_and_its_recipe(server, tmp_path, capsys, answer):
    server.pages = hub_pages("pytorch_model.bin", body=b"\x80pickle")
    path = f"{HUB}/api/models/dmis-lab/biobert-base-cased-v1.2/discussions"
    server.pages |= {path: answer}
    assert run(server, tmp_path, "biobert") == 0
    assert (tmp_path / "pytorch_model.bin").read_bytes() == b"\x80pickle"
    said = capsys.readouterr().out
    assert f"  cd {tmp_path} && python -c " in said
    server.log.clear()
    assert run(server, tmp_path, "biobert") == 0 and not server.log
    (tmp_path / "model.safetensors").write_bytes(b"converted")
    (tmp_path / "pytorch_model.bin").unlink()
    capsys.readouterr()
    assert run(server, tmp_path, "biobert") == 0 and not server.log
    assert capsys.readouterr().out.count("\n") == 1


def test_the_recipe_converts(server, tmp_path, capsys):
    """The printed line, on a pickle made here; the result is read as a model."""
    import torch
    from safetensors.torch import load_file

    import minibio
    from minibio.model.heads import Model

    made, out = tmp_path / "made", tmp_path / "o ut"
    torch.manual_seed(0)
    minibio.save(Model(tiny_config("bert")), None, made)
    truth = load_file(made / "model.safetensors")
    torch.save(truth, made / "pytorch_model.bin")
    server.pages = hub_pages("pytorch_model.bin", body=(made / "pytorch_model.bin").read_bytes())
    config = (made / "config.json").read_bytes()
    server.pages[BIOBERT.format(PINNED, "config.json")] = Page(config)
    assert run(server, out, "biobert") == 0
    line = capsys.readouterr().out.splitlines()[-1].replace("python ", f"{sys.executable} ")
    subprocess.run(line, shell=True, check=True, cwd=tmp_path)
    got = load_file(out / "model.safetensors")
    assert got.keys() == truth.keys()
    assert all(torch.equal(got[name], x) for name, x in truth.items())
    assert run(server, out, "biobert") == 0
    assert capsys.readouterr().out.count("\n") == 1
    (out / "vocab.txt").unlink()  # of one word
    minibio.load(out)


def test_no_weights_at_all(server, tmp_path, capsys):
    server.pages = hub_pages("tf_model.h5")
    assert run(server, tmp_path, "biobert") == 1
    assert "model.safetensors: https://huggingface.co/" in (line := capsys.readouterr().err)
    assert "404 Not Found" in line
    assert sorted(files(tmp_path)) == ["config.json", "vocab.txt"]


def test_the_starts(server, tmp_path):
    for model in sources.MODELS.values():
        bodies = {"config.json": CONFIG, "vocab.txt": VOCAB, "model.safetensors": SAFE}
        for name, body in bodies.items():
            server.pages[f"{HUB}/{model.repo}/resolve/{model.revision}/{name}"] = Page(body)
    args = ["starts", "--only", "mobilebert-uncased", "TinyBERT_General_4L_312D"]
    assert run(server, tmp_path, *args) == 0
    assert sorted({place.split("/")[0] for place in files(tmp_path)}) == [
        "TinyBERT_General_4L_312D", "mobilebert-uncased"
    ]  # fmt: skip
    # of this one the checksums are pinned, and these bytes have others
    assert run(server, tmp_path, "starts", "--only", "distilbert-base-uncased") == 1


def test_a_branch_becomes_the_commit_that_was_met(server, tmp_path):
    address, path = f"{HUB}/google/mobilebert-uncased/resolve", tmp_path / "mobilebert-uncased"
    for name in ("config.json", "vocab.txt", "model.safetensors"):
        page = Page(name.encode(), headers={"X-Repo-Commit": COMMIT})
        server.pages[f"{address}/main/{name}"] = server.pages[f"{address}/{COMMIT}/{name}"] = page
    args = ["starts", "--only", "mobilebert-uncased"]
    assert run(server, tmp_path, *args) == 0
    server.pages[f"{address}/main/config.json"] = Page(b"newer")  # the branch moves
    (path / "config.json").unlink()
    assert run(server, tmp_path, *args) == 0
    assert (path / "config.json").read_bytes() == b"config.json"
    assert record(tmp_path)["mobilebert-uncased/config.json"]["revision"] == COMMIT


# ---- corpora

TSV = b"Aspirin\tB\nhelps\tO\n\n"


def archive(members: dict[str, bytes]) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w:gz", compresslevel=1) as t:
        for name, body in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(body)
            t.addfile(info, io.BytesIO(body))
    return out.getvalue()


def ner_members(lacking=()):
    members = {
        f"datasets/NER/{name}/{part}.tsv": TSV
        for name in sources.NER
        for part in ("train", "train_dev", "devel", "test")
        if f"{name}/{part}" not in lacking
    }
    return members | {"datasets/RE/euadr/1/train.tsv": b"", "__MACOSX/._x": b"", "../evil": b"x"}


def test_ner(server, tmp_path, capsys):
    from minibio.tasks.ner import read_tsv

    server.pages = {SETS: Page(archive(ner_members()), faults=[cut(50), status(503)])}
    assert run(server, tmp_path, "ner") == 0
    there = files(tmp_path)
    assert set(there) - {"biobert-datasets.tar.gz"} == set(sources.items("ner")[0].wanted)
    assert read_tsv(tmp_path / "s800" / "devel.tsv")[0].words == ["Aspirin", "helps"]
    entry = record(tmp_path)["BC2GM/train.tsv"]
    assert entry["archive"] == "biobert-datasets.tar.gz" and entry["sha256"] == sha256(TSV)
    note = capsys.readouterr().err
    assert "note: BC2GM/train.tsv: not the bytes this project measured with" in note
    assert "s800" not in note  # not measured with
    server.log.clear()
    (tmp_path / "BC2GM" / "test.tsv").unlink()
    assert run(server, tmp_path, "ner") == 0 and not server.log  # out of the archive at hand
    assert files(tmp_path) == there
    (tmp_path / "biobert-datasets.tar.gz").unlink()
    assert run(server, tmp_path, "ner") == 0 and not server.log  # all of it is here
    (tmp_path / "BC2GM" / "test.tsv").unlink()
    assert run(server, tmp_path, "ner") == 0 and len(server.ranges()) == 1
    assert (tmp_path / "BC2GM" / "test.tsv").read_bytes() == TSV


def test_some_ner_sets(server, tmp_path):
    server.pages = {SETS: Page(archive(ner_members()))}
    assert run(server, tmp_path, "ner", "--only", "s800") == 0
    assert len(files(tmp_path)) == 4
    assert run(server, tmp_path, "ner", "--only", "JNLPBA") == 0
    assert len(files(tmp_path)) == 7 and len(server.ranges()) == 1


def test_a_set_that_is_not_in_the_archive(server, tmp_path, capsys):
    server.pages = {SETS: Page(archive(ner_members(["BC2GM/test", "s800/train"])))}
    assert run(server, tmp_path, "ner") == 1
    assert "has no BC2GM/test.tsv, s800/train.tsv" in capsys.readouterr().err
    assert len(files(tmp_path)) == 23


def test_a_page_in_place_of_an_archive_then_by_hand(server, tmp_path, capsys):
    server.pages = {SETS: Page(b"<!DOCTYPE html><title>Quota exceeded</title>")}
    assert run(server, tmp_path, "ner") == 1
    line = capsys.readouterr().err
    assert "begins with b'<!DOCTYPE html>'; open the address in a browser, save the file as" in line
    assert not files(tmp_path)
    # BioBERT's other archive of the same sets does as well
    with zipfile.ZipFile(tmp_path / "biobert-datasets.tar.gz", "w") as z:
        for name in sources.items("ner")[0].wanted:
            z.writestr(f"NERdata/{name}", TSV)
    server.log.clear()
    assert run(server, tmp_path, "ner") == 0 and not server.log
    assert (tmp_path / "linnaeus" / "test.tsv").read_bytes() == TSV


def test_a_damaged_archive(server, tmp_path, capsys):
    body = archive(
        {f"NER/s800/{x}.tsv": random.Random(x).randbytes(9000) for x in ("train", "devel", "test")}
    )
    server.pages = {SETS: Page(body[:5000])}
    assert run(server, tmp_path, "ner", "--only", "s800") == 1
    assert "it is damaged or not ours: remove it" in capsys.readouterr().err
    assert list(files(tmp_path)) == ["biobert-datasets.tar.gz"]
    (tmp_path / "biobert-datasets.tar.gz").unlink()
    server.pages = {SETS: Page(body)}
    assert run(server, tmp_path, "ner", "--only", "s800") == 0 and len(files(tmp_path)) == 4


def test_relation(server, tmp_path, monkeypatch):
    members = {f"datasets/RE/{place.replace('gad', 'GAD')}": b"x\t1\n" for place in sources.GAD}
    server.pages = {SETS: Page(archive(members))}
    for name in ("train", "dev", "test"):
        body = f'{{"text": "{name}"}}\n'.encode()
        server.pages[f"{CHEMPROT}/{name}.txt"] = Page(body)
        monkeypatch.setitem(PINS, f"chemprot13/{name}.jsonl", sha256(body))
    assert run(server, tmp_path, "relation") == 0
    there = set(files(tmp_path)) - {"biobert-datasets.tar.gz"}
    assert there == {*sources.GAD, *(f"chemprot13/{x}.jsonl" for x in ("train", "dev", "test"))}


def squad(server, monkeypatch):
    for name in ("train-v1.1.json", "dev-v1.1.json"):
        server.pages[f"/rajpurkar.github.io/SQuAD-explorer/dataset/{name}"] = Page(name.encode())
        monkeypatch.setitem(PINS, f"squad/{name}", sha256(name.encode()))


def test_qa_says_where_to_register(server, tmp_path, capsys, monkeypatch):
    squad(server, monkeypatch)
    assert run(server, tmp_path, "qa") == 0
    said = capsys.readouterr().out
    assert "register at http://participants-area.bioasq.org" in said and "--registered" in said
    assert sorted(files(tmp_path)) == ["squad/dev-v1.1.json", "squad/train-v1.1.json"]
    with pytest.raises(InputError, match="register at http.*then add --registered"):
        run(server, tmp_path, "qa", "--only", "bioasq")


def test_qa_registered(server, tmp_path, capsys, monkeypatch):
    squad(server, monkeypatch)
    names = ("BioASQ-train-factoid-7b.json", "BioASQ-test-factoid-7b.json", "7B_golden.json")
    older = ("BioASQ-test-factoid-5b-1.json", "5B1_golden.json", "BioASQ-train-yesno-7b.json")
    server.pages[SETS] = Page(archive({f"datasets/QA/BioASQ/{x}": b"{}" for x in names}))
    server.pages[QA] = Page(archive({f"BioASQ/{x}": b"{}" for x in older}))
    assert run(server, tmp_path, "qa", "--registered") == 0
    found = {place.split("/")[1] for place in files(tmp_path) if place.startswith("bioasq/")}
    assert found == {*names, *older[:2]}
    assert "participants-area.bioasq.org (free" not in capsys.readouterr().out
    server.log.clear()
    (tmp_path / "bioasq" / "5B1_golden.json").unlink()
    assert run(server, tmp_path, "qa", "--registered") == 0 and not server.log
    assert (tmp_path / "bioasq" / "5B1_golden.json").exists()


def test_nothing_of_use_in_the_archive(server, tmp_path, capsys):
    server.pages[SETS] = server.pages[QA] = Page(archive({"README": b"hello"}))
    assert run(server, tmp_path, "qa", "--registered", "--only", "bioasq") == 1
    assert capsys.readouterr().err.count("has none of the files that were looked for") == 2


def test_the_real_sets(server, tmp_path, capsys):
    """The sets as they are: pinned checksums hold, and the readers read what is fetched."""
    ner, chemprot, gad = (real_data(x) for x in ("ner", "relation/chemprot13", "relation/gad"))
    names = ("NCBI-disease", "BC2GM")
    server.pages[SETS] = Page(archive(
        {f"datasets/NER/{x}": (ner / x).read_bytes() for x in sources.items("ner", names)[0].wanted}
        | {f"RE/GAD/{x[4:]}": (gad / x[4:]).read_bytes() for x in sources.GAD}
    ))  # fmt: skip
    for name in ("train", "dev", "test"):
        server.pages[f"{CHEMPROT}/{name}.txt"] = Page((chemprot / f"{name}.jsonl").read_bytes())
    assert run(server, tmp_path / "ner", "ner", "--only", *names) == 0
    assert run(server, tmp_path / "relation", "relation") == 0
    assert not capsys.readouterr().err
    from minibio.tasks.ner import read_tsv

    assert len(read_tsv(tmp_path / "ner" / "NCBI-disease" / "test.tsv")) == 940


# ---- killed, and run again

KILLED = """
import itertools, os, signal, sys
from pathlib import Path
from data.fetch import fetch
k, count = int(sys.argv[1]), itertools.count(1)

def killed(action):
    def call(*arguments, **named):
        if next(count) == k:
            os.kill(os.getpid(), signal.SIGKILL)
        return action(*arguments, **named)
    return call

for owner, name in ((os, "replace"), (Path, "unlink"), (Path, "write_text"), (os, "fsync")):
    setattr(owner, name, killed(getattr(owner, name)))
sys.exit(fetch.main(sys.argv[2:]))
"""


def test_killed_at_every_change_of_the_folder(server, tmp_path):
    """SIGKILL at the k-th change, then the same command: the files of an unbroken run."""
    server.pages = {SETS: Page(archive(ner_members()))}
    assert run(server, tmp_path / "whole", "ner", "--only", "s800") == 0
    whole, k = files(tmp_path / "whole"), 0
    while True:
        k += 1
        out = tmp_path / str(k)
        args = ["ner", "--only", "s800", "--out", str(out), "--mirror", server.url]
        command = [sys.executable, "-c", KILLED, str(k), *args]
        done = subprocess.run(command, cwd=ROOT, capture_output=True)
        if done.returncode == 0:
            break
        assert done.returncode == -signal.SIGKILL, done.stderr
        assert run(server, out, "ner", "--only", "s800") == 0
        assert files(out) == whole
        assert record(out) == record(tmp_path / "whole")
    assert k > 10


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 2**32))
def test_ended_anywhere_and_run_again(tmp_path_factory, seed):
    """Runs that end with some first bytes of some files, until one comes through."""
    out, rng = tmp_path_factory.mktemp("cut"), random.Random(seed)
    pages, bodies = pubmed_pages(3)
    for page in pages.values():
        for _ in range(rng.randrange(4)):
            page.faults += [cut(rng.randrange(len(page.body))), status(rng.choice([404, 403]))]
    runs = 0
    with serve(pages) as server:
        while run(server, out, "pubmed", "--only", "baseline"):
            runs += 1
            assert runs < 40
    assert files(out) == bodies
    assert {place: entry["sha256"] for place, entry in record(out).items()} == {
        place: sha256(body) for place, body in bodies.items()
    }


def test_ctrl_c(server, tmp_path):
    """One line, though a file is in the middle; the next run asks for the rest of it."""
    server.pages, bodies = pubmed_pages(2)
    one = "pubmed26n0002.xml.gz"
    server.pages[f"{NLM}/baseline/{one}"].faults = [cut(10), status(503, Retry_After=60)]
    command = [sys.executable, "-m", "data.fetch", "pubmed", "--only", "baseline", "--out",
               str(tmp_path), "--mirror", server.url]  # fmt: skip
    with subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True) as process:
        deadline = time.monotonic() + 100
        while len(server.ranges(f"{NLM}/baseline/{one}")) < 2:
            assert time.monotonic() < deadline
            time.sleep(0.01)
        process.send_signal(signal.SIGINT)
        said = process.communicate(timeout=30)[1]
    assert process.returncode == 130 and said == "data.fetch: interrupted\n"
    assert files(tmp_path)[f".{one}.part"] == bodies[one][:10]
    server.log.clear()
    assert run(server, tmp_path, "pubmed", "--only", "baseline") == 0 and files(tmp_path) == bodies
    assert server.ranges(f"{NLM}/baseline/{one}") == ["bytes=10-"]


# ---- the record


def test_without_the_record_what_is_there_is_checked(server, tmp_path, capsys):
    server.pages, bodies = pubmed_pages(2)
    args = ["pubmed", "--only", "baseline"]
    assert run(server, tmp_path, *args) == 0
    (tmp_path / "fetched.json").unlink()
    (tmp_path / "pubmed26n0002.xml.gz").write_bytes(b"other")
    server.log.clear()
    assert run(server, tmp_path, *args) == 1
    assert "n0002.xml.gz: is there already, md5 " in capsys.readouterr().err
    assert list(record(tmp_path)) == ["pubmed26n0001.xml.gz"]
    assert not server.ranges(f"{NLM}/baseline/pubmed26n0001.xml.gz")
    # where there is no checksum, the bytes are compared
    server.pages = hub_pages()
    out = tmp_path / "model"
    assert run(server, out, "biobert") == 0
    (out / "fetched.json").unlink()
    assert run(server, out, "biobert") == 0 and (out / "config.json").read_bytes() == CONFIG
    (out / "fetched.json").unlink()
    (out / "config.json").write_bytes(b"mine")
    assert run(server, out, "biobert") == 1 and (out / "config.json").read_bytes() == b"mine"
    assert "config.json: is there already, with other bytes than" in capsys.readouterr().err


SOUND = {"address": "https://h/x", "licence": "MIT", "date": "2026-01-01", "revision": None,
         "size": 3, "sha256": "00"}  # fmt: skip


@pytest.mark.parametrize(
    ("files", "match"),
    [
        ([], "files is of type list"),
        (None, "files is of type NoneType"),
        ({"x": 3}, r"files\['x'\] is of type int, expected an object"),
        ({"x": {}}, r"files\['x'\]\['address'\] is missing"),
        ({"../x": SOUND}, "'../x' is not a place below"),
        ({"": SOUND}, "'' is not a place below"),
        *[({"x": {**SOUND, name: value}}, rf"\['{name}'\] is missing or of another type")
          for name, value in (("sha256", 5), ("size", "3"), ("size", None), ("address", None),
                              ("revision", 1), ("licence", []), ("unpacked", "x"))],
        ({"x": {**SOUND, "unpacked": [3]}}, r"\['unpacked'\] holds more than text"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("option", ["--verify", "--registered"])
def test_a_damaged_record(server, tmp_path, files, match, option):
    text = json.dumps({"format": "minibio fetch", "version": 1, "files": files})
    (tmp_path / "fetched.json").write_text(text)
    with pytest.raises(InputError, match=f"fetched.json: .*{match}.*; remove it and run"):
        run(server, tmp_path, "qa", option)
    assert (tmp_path / "fetched.json").read_text() == text and not server.log


@pytest.mark.parametrize("text", ['{"format": "other"}', '{"files": {}}', "{}", '{"format"', "[]"])
def test_another_record(server, tmp_path, text):
    (tmp_path / "fetched.json").write_text(text)
    with pytest.raises(InputError, match="is not a record|line 1, column 10|holds a list"):
        run(server, tmp_path, "qa", "--verify")


# ---- --list, disk, lock, options


@pytest.mark.parametrize("what", sources.SETS)
def test_the_list_asks_nobody(tmp_path, capsys, what):
    args = ["--out", str(tmp_path / "new"), "--mirror", "http://127.0.0.1:9", "--list"]
    assert fetch.main([what, *args]) == 0
    said = capsys.readouterr()
    assert not said.err and not (tmp_path / "new").exists()
    sets = {item.set for item in sources.items(what)} if what != "pubmed" else {"baseline"}
    for name in sets - {"bioasq"}:
        assert f"{name}: " in said.out and sources.LICENCES[name] in said.out
    assert "https://" in said.out and ("register at" in said.out) == (what == "qa")


def test_the_list_says_what_is_there(server, tmp_path, capsys):
    server.pages = hub_pages()
    assert run(server, tmp_path, "biobert") == 0
    (tmp_path / "config.json").unlink()
    capsys.readouterr()
    assert run(server, tmp_path, "biobert", "--list") == 0
    said = capsys.readouterr().out
    assert re.search(r"^  there +model.safetensors  https://huggingface.co/", said, re.M)
    assert re.search(r"^  to come +config.json  https://", said, re.M)
    assert "biobert-base-cased-v1.2: about 434.0 MB" in said


def test_a_full_disk_is_known_before(server, tmp_path, monkeypatch):
    server.pages = pubmed_pages(3)[0]
    free = fetch.shutil.disk_usage(tmp_path)._replace(free=60_000_000)
    monkeypatch.setattr(fetch.shutil, "disk_usage", lambda path: free)
    args = ["pubmed", "--only", "baseline"]
    with pytest.raises(InputError, match=r"about 59.8 MB to come, 59.7 MB free; choose another"):
        free = free._replace(free=59_700_000)
        run(server, tmp_path, *args)
    assert not files(tmp_path)
    (tmp_path / ".pubmed26n0001.xml.gz.part").write_bytes(bytes(100_000))  # the rest has room
    assert run(server, tmp_path, *args) == 0


def test_two_at_once(server, tmp_path):
    with locked(tmp_path / ".lock"):
        with pytest.raises(InputError, match="another process is writing there"):
            run(server, tmp_path, "biobert")


@pytest.mark.parametrize(
    ("args", "match"),
    [
        (["ner", "--only", "gad"], "--only gad: ner has NCBI-disease, BC5CDR"),
        (["ner", "--files", "1-2"], "--files goes only with pubmed"),
        (["ner", "--registered"], "--registered goes only with qa"),
        (["ner", "--mirror", "x"], "--mirror is 'x', expected http://HOST"),
    ],
)
def test_options(tmp_path, args, match):
    with pytest.raises(InputError, match=match):
        fetch.main([*args, "--out", str(tmp_path)])


def test_the_exit_status_of_the_command(server, tmp_path, monkeypatch):
    monkeypatch.setenv("MINIBIO_MIRROR", server.url)
    (tmp_path / "file").write_text("x")
    for args, code in ((["ner", "--files", "1"], 2), (["ner", "--out", f"{tmp_path}/file"], 2),
                       (["ner"], 1), (["ner", "--verify"], 0)):  # fmt: skip
        with pytest.raises(SystemExit) as caught:
            errors.run(
                lambda a=args: fetch.main(["--out", str(tmp_path / "out"), *a]), "data.fetch"
            )
        assert caught.value.code == code
    assert server.log
