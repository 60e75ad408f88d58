"""Means, intervals and shares by hand; the paper's layout; what is missing stays missing."""

import csv
import statistics

import pytest

import eval as command
from helpers import write_run as write
from minibio.report import paper_tables as paper
from minibio.report import tables
from minibio.report.records import Run
from minibio.run.errors import InputError

TINY, TEACHER = "TinyBioBERT", paper.TEACHER


def run(model, row, seed, f, kind="relation", fold=None):
    metrics = tables.METRICS[kind]
    return Run("x.json", kind, model, row, seed, fold, dict.fromkeys(metrics, f))


def by_place(cells):
    return {(c.table, c.row, c.metric, c.model): c for c in cells}


def test_means_and_intervals_over_seeds():
    runs = [run(TINY, "GAD", seed, f) for seed, f in enumerate((0.70, 0.80, 0.84))]
    cell = by_place(tables.cells(runs, TEACHER))[3, "GAD", "F", TINY]
    assert cell.ours.mean == pytest.approx(0.78) and cell.ours.seeds == (0, 1, 2)
    half = 4.303 * statistics.stdev((0.70, 0.80, 0.84)) / 3**0.5
    assert cell.ours.half_width == pytest.approx(half)
    assert cell.paper == pytest.approx(0.8246) and cell.share is None  # the teacher has no run
    assert cell.paper_share == pytest.approx(82.46 / 86.80)


def test_one_seed_has_no_interval():
    cell = by_place(tables.cells([run(TINY, "GAD", 3, 0.5)], TEACHER))[3, "GAD", "F", TINY]
    assert cell.ours == (0.5, None, (3,))


def test_a_seed_is_the_mean_of_its_folds():
    runs = [
        run(TINY, "GAD", s, f, fold=i) for s in (0, 1) for i, f in enumerate((0.6, 0.8 + s / 10))
    ]
    cell = by_place(tables.cells(runs, TEACHER))[3, "GAD", "F", TINY]
    assert cell.ours.mean == pytest.approx((0.7 + 0.75) / 2) and cell.ours.seeds == (0, 1)
    with pytest.raises(InputError, match=r"TinyBioBERT on GAD: seed 1 has folds \[0\], seed 0"):
        tables.cells(runs[:-1], TEACHER)


def test_shares_seed_by_seed():
    assert tables.share({0: 0.4, 1: 0.6, 2: 0.1}, {0: 0.8, 1: 0.6}) == {0: 0.5, 1: 1.0}
    assert tables.share({5: 0.3}, {0: 0.5, 1: 0.7}) == pytest.approx({5: 0.5})  # of its mean
    assert tables.share({}, {0: 0.5}) == tables.share({0: 0.5}, {}) == {}
    assert tables.share({0: 0.5}, {0: 0.0}) == {}


def test_shares_taken_together():
    runs = [run(m, row, seed, f) for m, row, seed, f in (
        (TEACHER, "GAD", 0, 0.8), (TEACHER, "GAD", 1, 0.5), (TEACHER, "CHEMPROT", 0, 0.5),
        (TEACHER, "CHEMPROT", 1, 0.4), (TINY, "GAD", 0, 0.4), (TINY, "GAD", 1, 0.4),
        (TINY, "CHEMPROT", 0, 0.5), (TINY, "CHEMPROT", 1, 0.4), (TINY, "mine", 0, 0.9),
    )]  # fmt: skip
    totals = {(c.row, c.model): c for c in tables.overall(runs, TEACHER)}
    cell = totals["relations, F: GAD, CHEMPROT", TINY]
    assert cell.share.mean == pytest.approx(((0.5 + 1) / 2 + (0.8 + 1) / 2) / 2)
    assert cell.share.half_width == pytest.approx(12.706 * 0.15 / 2)
    want = (82.46 / 86.80 + 30.33 / 52.32) / 2
    assert cell.paper_share == pytest.approx(want) == paper.retained(TINY, paper.RELATION, "F")
    assert totals["all: GAD, CHEMPROT", TINY].share == cell.share
    assert totals["relations, F: GAD, CHEMPROT", TEACHER].share.mean == 1
    assert totals["answers, MRR: no set", TINY].share is None
    assert totals["answers, MRR: no set", TINY].paper_share is None


def test_the_seeds_taken_together_are_those_of_all_sets():
    assert tables.together([{0: 0.5, 1: 1.0}, {1: 0.5, 2: 0.1}]) == {1: 0.75}
    assert tables.together([]) == {} and tables.together([{0: 0.5}, {1: 0.5}]) == {}


def test_the_papers_layout_and_what_only_we_have():
    runs = [run("mine", "my set", 0, 0.5), run(TINY, "other", 0, 0.5),
            run("BioTinyBERT", "GAD", 0, 0.5), run("BioTinyBERT", "fourth", 0, 0.5)]  # fmt: skip
    assert tables.layout(runs, 3)[:2] == (
        ["GAD", "CHEMPROT", "my set", "other"], [*paper.DISTILLED, "mine"])  # fmt: skip
    assert tables.layout(runs, 4)[:2] == (["GAD", "CHEMPROT", "fourth"], list(paper.CONTINUED))
    assert tables.layout(runs, 1)[:2] == (list(paper.NER), list(paper.DISTILLED))
    found = by_place(tables.cells(runs, TEACHER))
    for number, own in paper.TABLES.items():  # every figure of the paper in its place
        for row, metrics in own.rows.items():
            for metric, values in metrics.items():
                for model, x in zip(own.models, values, strict=True):
                    assert found[number, row, metric, model].paper == x / 100
    assert found[1, "NCBI-disease", "F words", TINY].paper is None


def test_cells_as_people_read_them():
    score = tables.MeanScore(0.8793, 0.0041, (0, 1))
    assert tables.both(score, 0.8867) == "87.93 ± 0.41 [88.67]"
    assert tables.both(score._replace(half_width=None), None) == "87.93"
    assert (tables.both(None, 0.5), tables.both(None, None)) == ("- [50.00]", "-")


def test_the_command(tmp_path, capsys):
    image = pytest.importorskip("matplotlib.image", reason="drawing is the extra `plot`")
    for seed in (0, 1):
        for model, f1 in (("teacher", 0.8), ("tiny-biobert", 0.6 + seed / 10)):
            place = tmp_path / "runs" / f"{model}-{seed}"
            write(place / "ner", model=f"x/{model}", seed=seed, f1=f1)
            write(
                place / "relation",
                task="relation",
                data="GAD",
                model=f"x/{model}",
                seed=seed,
                f1=f1,
            )
            write(place / "qa", task="qa", model=f"x/{model}", seed=seed, f1=f1,
                  tests=["BioASQ-test-factoid-6b-1"])  # fmt: skip
    out = tmp_path / "tables"
    arguments = ["table", str(tmp_path / "runs"), "--out", str(out)]
    command.main([*arguments, "--as", f"teacher={TEACHER}"])
    text = (out / "tables.md").read_text("utf-8")
    assert text in capsys.readouterr().out and text.count("## Table") == 6
    lines = [line.replace(" ", "") for line in text.splitlines()]
    assert any(line.startswith("|GAD|F|-[82.54]|-[85.30]|-[85.52]|65.00±63.53[82.46]|80.00±0.00")
               for line in lines)  # fmt: skip
    assert any(line.startswith("|GAD|F,share|-[95.09]") for line in lines)
    assert any(
        line.startswith("|BioASQ6b,162questions|M|-|-|-|65.00±63.53|80.00") for line in lines
    )
    assert any("|TinyBioBERT|all:" in line and "|81.25±79.41|" in line for line in lines)
    with (out / "tables.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    one = {(r["table"], r["row"], r["metric"], r["model"]): r for r in rows}
    tiny = one["3", "GAD", "F", TINY]
    assert (tiny["mean"], tiny["seeds"], tiny["paper"]) == ("0.650000", "0 1", "0.824600")
    assert float(tiny["share"]) == pytest.approx(0.8125) and tiny["share_seeds"] == "0 1"
    assert one["1", "BC2GM", "F", TINY]["mean"] == one["1", "BC2GM", "F", TINY]["share"] == ""
    assert one["overall", "relations, F: GAD", "share", TINY]["share"] == "0.812500"
    assert image.imread(out / "tables.png").shape[2] == 4
    first = {path.name: path.read_bytes() for path in out.iterdir()}
    command.main([*arguments, "--as", f"teacher={TEACHER}"])
    assert first == {path.name: path.read_bytes() for path in out.iterdir()}


def test_bad_options(tmp_path):
    write(tmp_path / "run")
    for extra, message in (
        (["--as", "tiny"], "--as 'tiny': expected NAME=COLUMN"),
        (["--as", "=x"], "expected NAME=COLUMN"),
        (["--teacher", "no"], "--teacher no: no such column, expected TinyBioBERT"),
        (["--as", "tiny=Wide"], "--as tiny=Wide: no run is of 'tiny'; there are tiny-biobert"),
    ):
        with pytest.raises(InputError, match=message):
            command.main(["table", str(tmp_path / "run"), "--out", str(tmp_path / "o"), *extra])
    assert not (tmp_path / "o").exists()
