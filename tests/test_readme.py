"""The commands of the pages, run from top to bottom: on small data, small models, a few steps.

What a page downloads is made up beforehand at the places where it would be; its options stay as
printed, and those that make a run small come after them.
"""

import contextlib
import glob
import json
import re
import shlex
import shutil
from dataclasses import replace
from itertools import islice

import pytest
import torch

import eval as evaluation
import train
from data.fetch import fetch
from data.pubmed import __main__ as pubmed
from data.shard import __main__ as shard
from helpers import ROOT
from minibio import __main__ as library
from minibio import config
from minibio.batch import Batch, Counts
from minibio.config import MODELS
from minibio.distil import objectives
from minibio.model.heads import Model
from pubmed_files import article, pubmed_file
from toy_tasks import (
    DISEASES,
    FILLERS,
    make_encoder,
    make_tokenizer,
    write_chemprot,
    write_gad,
    write_ner,
    write_qa,
)

SMALL_TRAINING = "--steps 2 --batch 4 --length 24 --device cpu"
SMALL_TASK = "--epochs 1 --batch 8 --length 64 --device cpu --threads 1"
SMALL = {  # options of each command that come after those of the page
    "train.py": SMALL_TRAINING,
    "data.shard": "--held-out 0.2 --workers 1",
    "data.pubmed": "--workers 1",
    "ner": SMALL_TASK, "relation": SMALL_TASK, "qa": SMALL_TASK,
    "predict": "--device cpu --threads 1", "table": "",
    "compare": "--repeats 1 --documents 4 --device cpu --threads 1",
    "speed": "--batch 1 --length 8 --rounds 1 --seconds 0.01 --device cpu --threads 1",
}  # fmt: skip


def small(config):
    """A row of MODELS with its layers and heads in place, and hardly any width."""
    inner = {"mobilebert": 24, "ib-bert": 48}.get(config.family)
    changes = {"C": 48, "F": 64, "V": 140, "P": 64}
    if inner:
        changes |= {"C_embed": 24, "C_intra": inner, "L": 4}
    return replace(config, **changes)


def blocks(page, language):
    """The blocks of code of a page."""
    return re.findall(rf"^```{language}\n(.*?)^```", page.read_text("utf-8"), re.M | re.S)


def commands(page):
    """(words, file of the output or None) of every python command of a page."""
    text = "\n".join(blocks(page, "sh")).replace("\\\n", " ")
    for line in text.splitlines():
        words = shlex.split(line, comments=True)
        if not words or words[0] == "make" or "HOST:29500" in words:
            continue
        assert words[0] == "python", line
        out = words[words.index(">") + 1] if ">" in words else None
        words = words[1 : words.index(">") if out else None]
        spread = [sorted(glob.glob(x)) if re.search(r"[*?]", x) else [x] for x in words]
        yield [x for names in spread for x in names], out


def run(words, *more):
    """One command, in this process."""
    script, *rest = words
    if script == "-m":
        script, *rest = rest
    if script == "data.fetch":
        fetch.parser().parse_args(rest)  # what it would fetch is there
        return
    name = rest[0] if script in ("eval.py", "minibio") else script
    rest += [*SMALL.get(name, "").split(), *more]
    mains = {"train.py": train.main, "eval.py": evaluation.main, "data.pubmed": pubmed.main,
             "data.shard": shard.main, "minibio": library.main}  # fmt: skip
    assert not mains[script](rest), words


@pytest.fixture
def workplace(tmp_path, monkeypatch):
    """A directory in which everything that the pages fetch is made up; models are small."""
    monkeypatch.chdir(tmp_path)
    for name, row in MODELS.items():
        monkeypatch.setitem(MODELS, name, small(row))
    tokenizer = make_tokenizer()
    make_encoder(tmp_path / "biobert-base-cased-v1.2", tokenizer, C=48, H=12, F=64, L=12, P=64)
    for folder in ("pubmed", "ner", "relation/gad"):
        (tmp_path / "downloads" / folder).mkdir(parents=True)
    records = [
        article(i + 1, f"{DISEASES[i % 4]} {i}.",
                [("", " ".join([*FILLERS, DISEASES[(i + j) % 4]])) for j in range(2)])
        for i in range(60)
    ]  # fmt: skip
    for i in range(2):
        pubmed_file(tmp_path / f"downloads/pubmed/pubmed26n000{i}.xml.gz", *records[i::2])
    write_ner(tmp_path / "downloads/ner/NCBI-disease", n=(24, 6, 8))
    for fold in (1, 2):
        write_gad(tmp_path / f"downloads/relation/gad/{fold}", n=(24, 8), seed=fold)
    write_chemprot(tmp_path / "downloads/relation/chemprot13", n=(24, 6, 8))
    made = write_qa(tmp_path / "qa")
    for name, place in (("train", "BioASQ-train-factoid-7b"), ("golden", "7B1_golden"),
                        ("test", "BioASQ-test-factoid-7b-1")):  # fmt: skip
        (made / f"{name}.json").rename(tmp_path / f"{place}.json")
    (tmp_path / "abstracts.txt").write_text("The patient had Gout disorder\n", "utf-8")
    return tmp_path


def test_the_pages_from_top_to_bottom(workplace):
    """The front page, then those of the folders that go on from what it has made."""
    folders = ("distil", "tasks", "report", "bench")
    outs = set()
    for page in (ROOT / "README.md", *(ROOT / "minibio" / x / "README.md" for x in folders)):
        ran = 0
        for words, out in commands(page):
            if "--out" in words and "data.fetch" not in words and "--dry-run" not in words:
                place = words[words.index("--out") + 1]
                assert place not in outs, f"two commands write {place}"
                outs.add(place)
            # the first stage has a step for each of four layers
            more = ["--steps", "13"] if page.parent.name == "distil" else []
            with open(out, "w") if out else contextlib.nullcontext() as file:
                with contextlib.redirect_stdout(file) if file else contextlib.nullcontext():
                    run(words, *more)
            ran += 1
        assert ran, page
        if page.parent == ROOT:
            shutil.copytree("shards/cased", "shards/uncased")
    assert (workplace / "runs/tiny-biobert/model.safetensors").exists()
    assert (workplace / "runs/staged/model.safetensors").exists()
    assert (workplace / "names.jsonl").read_text("utf-8").count("\n") == 1
    text = (workplace / "runs/tables/tables.md").read_text("utf-8")
    for name in ("TinyBioBERT, early-stopping 2", "CHEMPROT, 3 classes, anonymise", "GAD, folds",
                 "GAD, split", "TinyBioBERT, teacher biobert-ncbi", "BioBERT-v1.2"):  # fmt: skip
        assert name in text, name
    shutil.copytree("runs/tiny-ncbi/seed-0", "runs/demo/ner/distilled")  # of `make demo`
    for page in (ROOT / "README.md", ROOT / "minibio/model/README.md"):
        (code,) = blocks(page, "python")
        exec(compile(code, str(page), "exec"), {})
    assert (workplace / "somewhere/config.json").exists()


def test_the_walk_runs_as_printed(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("tempfile.mkdtemp", lambda: str(tmp_path))
    *steps, method = blocks(ROOT / "minibio/walk.md", "python")
    assert len(steps) == 8 and "class MiniLM" in method
    names = {}
    for code in steps:
        exec(compile(code, "walk.md", "exec"), names)
        printed = re.findall(r"^print\(.*\)  # (.*)$", code, re.M)
        assert printed and capsys.readouterr().out.splitlines() == printed, code


@pytest.fixture
def minilm(monkeypatch):
    """The names of the page's method, which is known to train.py until the test ends."""
    for table in (config.METHODS, config.SAMPLE, config.SAMPLE_TEACHERS, objectives.OBJECTIVES):
        monkeypatch.setitem(table, "minilm", None)  # taken away afterwards
    names = {"__name__": "minilm"}
    exec(compile(blocks(ROOT / "minibio/walk.md", "python")[-1], "minilm.py", "exec"), names)
    return names


def test_the_method_of_the_walk_is_minilms_relations(minilm):
    """Against softmax(x x^T) written out for each sequence, in float64."""
    torch.manual_seed(0)
    shape = {"V": 50, "P": 16, "init_std": 0.5, "F": 16}
    teacher = Model(config.ModelConfig("bert", L=3, C=24, H=2, **shape)).double().eval()
    student = Model(config.ModelConfig("bert", L=2, C=16, H=8, **shape)).double().eval()
    objective = minilm["MiniLM"](student, teacher.requires_grad_(False), config.METHODS["minilm"])
    batch = Batch.from_sequences([[1, 5, 7, 9, 2], [1, 8, 2]], predict=[2], labels=[4])
    taught = objectives.teach(teacher, batch, objective.needs)
    terms = objective(batch, taught, Counts.of([batch]))
    expected = 0
    kept_s, kept_t = student(batch, keep=(2,)).kept[2], teacher(batch, keep=(3,)).kept[3]
    for x_s, x_t in ((kept_s.q, kept_t.q), (kept_s.k, kept_t.k)):
        for rows in (slice(0, 5), slice(5, 8)):
            r_s, r_t = (
                (y @ y.mT / y.shape[-1] ** 0.5).softmax(-1)
                for x in (x_s, x_t)
                for y in [x[rows].flatten(1).unflatten(1, (4, -1)).transpose(0, 1)]
            )
            expected += (r_t * (r_t / r_s).log()).sum() / (4 * 8)
    torch.testing.assert_close(terms["relations"], expected, rtol=1e-10, atol=1e-12)
    mlm = torch.nn.functional.cross_entropy(student(batch).logits, batch.labels)
    torch.testing.assert_close(terms["mlm"], mlm, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(terms["loss"], mlm + expected, rtol=1e-10, atol=1e-12)


def test_the_method_of_the_walk_trains(workplace, minilm):
    for words, _ in islice(commands(ROOT / "README.md"), 5):
        run(words)
    ((words, _),) = commands(ROOT / "minibio/walk.md")
    assert words[0] == "minilm.py"
    run(["train.py", *words[1:]])
    assert "--method minilm" in (workplace / "runs/minilm/README.md").read_text("utf-8")
    log = (workplace / "runs/minilm/log.jsonl").read_text("utf-8")
    assert '"relations"' in log and (workplace / "runs/minilm/model.safetensors").exists()


PAGES = [*ROOT.glob("*.md"), ROOT / "minibio/walk.md", *(p for f in ("minibio", "kernels", "data")
                               for p in sorted((ROOT / f).rglob("README.md")))]  # fmt: skip


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page):
    prose = re.sub(r"^```.*?^```", "", page.read_text("utf-8"), flags=re.M | re.S)
    links = re.findall(r"\]\((?!https?:)([^)#]*)(?:#([^)]*))?\)", prose)
    for target, heading in links:
        other = page.parent / target if target else page
        assert other.exists(), target
        if heading:
            text = other.read_text("utf-8")
            titles = re.findall(r"^#+ (.*)$", text, re.MULTILINE)
            slugs = {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}
            assert heading in slugs, (target, heading)


def test_every_difference_that_the_source_cites_is_in_a_table():
    rows = set()
    for page in ("distil", "tasks", "report", "bench"):
        text = (ROOT / "minibio" / page / "README.md").read_text("utf-8")
        for first in re.findall(r"^\| (F\d[^|]*) \|", text, re.MULTILINE):
            if span := re.fullmatch(r"F(\d+)-F(\d+)", first):
                rows |= {f"F{n}" for n in range(int(span[1]), int(span[2]) + 1)}
            rows |= set(re.findall(r"F\d+[a-e]?", first))
    sources = [p for f in ("minibio", "kernels", "data") for p in (ROOT / f).rglob("*.py")]
    for path in [*sources, ROOT / "train.py", ROOT / "eval.py", *PAGES]:
        text = path.read_text("utf-8")
        cited = {f"F{x}" for x in re.findall(r"\bF(\d+[a-e]?)\b", text)} - {"F16", "F32", "F64"}
        assert cited <= rows, (path, cited - rows)


def lines_measured() -> list[dict]:
    """What each row of `make results` and of `make board` left."""
    lines = (ROOT / "minibio/report/measured.jsonl").read_text("utf-8").splitlines()
    return [json.loads(line) for line in lines]


def measured() -> dict[str, dict]:
    """The scores of each row that has been run."""
    return {line["name"]: line["scores"] for line in lines_measured()}


def table_below(head: str) -> list[list[str]]:
    """The cells of the table of results with that head, without the marks of code."""
    text = (ROOT / "minibio/report/README.md").read_text("utf-8")
    rows = text.split(head)[1].split("\n\n")[0].splitlines()[2:]  # below the rule
    return [[x.strip(" `") for x in row.strip("|").split("|")] for row in rows]


def test_the_page_of_results_says_what_was_measured():
    scores = measured()

    def f1(row):
        seeds = scores[f"ncbi/{row}"]["seeds"]
        return [seeds[k]["word f1"] for k in sorted(seeds, key=int)]

    def mean(numbers):
        return f"{100 * sum(numbers) / len(numbers):.2f}"

    rows = table_below("| row | | parameters | held-out loss | F1 of seeds 0, 1, 2 | mean |")
    assert {row[0] for row in rows} == {x[5:] for x in scores if x.startswith("ncbi/")}
    for row, _, parameters, loss, seeds, average, share in rows:
        assert parameters == f"{scores[f'ncbi/{row}']['parameters'] / 1e6:.1f} M", row
        runs = [line["scores"] for line in lines_measured() if line["name"] == row]
        assert loss == ", ".join(f"{run['held_out_loss']:.3f}" for run in runs), row
        assert seeds == ", ".join(f"{100 * x:.2f}" for x in f1(row)), row
        assert average == mean(f1(row)), row
        shares = [x / y for x, y in zip(f1(row), f1("bio-minilm"), strict=False)]  # seed by seed
        assert share == f"{100 * sum(shares) / len(shares):.1f} %", row
    front = (ROOT / "README.md").read_text("utf-8")
    for row in ("bio-minilm", "compact", "alone"):
        assert mean(f1(row)) in front


def test_the_page_of_results_has_the_other_sets():
    others = ("chem/", "gad/", "chemprot/")
    runs = {name: x["seeds"]["0"] for name, x in measured().items() if name.startswith(others)}
    main = {name: f"{100 * next(iter(run.values())):.2f}" for name, run in runs.items()}
    assert dict(table_below("| row | F1 |")) == main


def test_the_page_of_results_says_what_is_certain():
    scores = measured()
    rows = table_below("| row | | difference | 95 % | p |")
    assert {row[0] for row in rows} == {x for x in scores if "systems" in scores[x]}
    for row, _, *figures in rows:
        (d,) = [x["difference"] for x in scores[row]["systems"].values() if x["difference"]]
        value, low, high = (f"{100 * d[name]:+.2f}" for name in ("value", "low", "high"))
        p = f"{d['p']:.2f}" if d["p"] >= 0.01 else f"{d['p']:.1g}"
        assert figures == [value, f"{low} to {high}", p], row


def test_the_records_of_the_board_are_measured():
    goal = float(re.search(r"^GOAL \?= (\d+)", (ROOT / "Makefile").read_text(), re.MULTILINE)[1])
    records = table_below("| minutes | F1 | commit | on two cores of an AMD EPYC | what is new |")
    for minutes, f1, commit, *_ in records:
        own = (line for line in lines_measured() if line["commit"] == commit)
        lines = [line for line in own if line["name"].startswith("board/")]
        seeds = lines[-1]["scores"]["seeds"].values()
        assert f1 == f"{100 * sum(x['word f1'] for x in seeds) / len(seeds):.2f}"
        assert minutes == f"{60 * sum(line['hours'] for line in lines):.1f}"
        assert float(f1) >= goal
    minutes, f1, commit, *_ = min(records, key=lambda row: float(row[0]))
    front = (ROOT / "README.md").read_text("utf-8")
    assert f"an F1 of {goal:g}" in front
    assert f"{minutes} minutes" in front and f"`{commit}` ({f1})" in front
