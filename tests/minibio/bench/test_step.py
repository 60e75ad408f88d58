"""Whole steps at toy size: what is made, what is compared, what is written."""

import csv
import re
import sys
from functools import partial

import numpy as np
import pytest
import torch

import train
from helpers import assert_near
from kernels.bench.timing import Table
from minibio.bench import __main__ as bench
from minibio.bench import step as bench_step
from minibio.bench.step import LENGTHS, WAYS, Settings, random_batch
from minibio.run import precision
from minibio.run.errors import InputError

CPU = torch.device("cpu")
SMALL = [
    "step", "--device", "cpu", "--batch", "3", "--length", "40", "--repeats", "2",
    "--student", "sample-distil", "--teacher", "sample-teacher", "--threads", "1",
]  # fmt: skip
ARGS = Settings(
    methods=["mlm"], by=["authors", "minibio"], lengths=["full"], fidelity=["released"],
    teacher_precision=["fp32", "auto"], student="sample-distil", teacher="sample-teacher",
    batch=2, length=20, repeats=1, warmup=1,
)  # fmt: skip


def run(out, *options):
    bench.main([*SMALL, "--out", str(out), *options])
    header, *lines = out.read_text("utf-8").splitlines()
    assert header.startswith("# ") and "torch" in header
    return list(csv.DictReader(lines))


def small_batch(lengths=(5, 9)):
    return random_batch(list(lengths), 2048, 0, CPU)


def test_a_batch_predicts_15_percent():
    batch = random_batch([7, 13, 80], 50, 0, CPU)
    assert (batch.N, batch.M, batch.lengths) == (100, 15, (7, 13, 80))
    assert batch.predict.diff().min() > 0


def test_lengths():
    assert LENGTHS["full"](3, 40, 0) == [40, 40, 40]
    drawn = LENGTHS["pubmed"](9, 256, 0)
    assert sum(T <= 30 for T in drawn) == 3 and sum(T >= 120 for T in drawn) == 6


def test_the_table(tmp_path, capsys, monkeypatch):
    pytest.importorskip("transformers", reason="nothing to compare with")
    for module in (bench_step, precision):
        monkeypatch.setattr(module, "has_bf16_products", lambda device: True)
    rows = run(
        tmp_path / "step.csv", "--methods", "compact", "mlm", "--fidelity", "released", "paper"
    )
    said = capsys.readouterr().out
    names = [(r["method"], r["lengths"], r["fidelity"], r["by"], r["teacher"]) for r in rows]
    compact = [
        (fidelity, "minibio", p) for fidelity in ("released", "paper") for p in ("fp32", "bf16")
    ] + [("released", "authors", "fp32")]
    mlm = [("released", "minibio", "-"), ("released", "authors", "-")]
    assert names == [
        *(("compact", "pubmed", *row) for row in compact),
        *(("mlm", "pubmed", *row) for row in mlm),
    ]
    theirs, ours = rows[4], rows[0]
    assert theirs["N"] == ours["N"] == str(sum(LENGTHS["pubmed"](3, 40, 0)))
    assert float(theirs["ms_p20"]) <= float(theirs["ms_p50"]) <= float(theirs["ms_p80"])
    assert 0 < float(ours["time_of_authors"])
    share = float(ours["peak_mib"]) / float(theirs["peak_mib"])
    assert float(ours["memory_of_authors"]) == pytest.approx(share, rel=0.02)
    assert share < 0.9
    assert theirs["time_of_authors"] == theirs["ceiling_share"] == ""
    assert 0 < float(ours["ceiling_share"]) < 1
    assert "mlm: loss " in said and " apart" in said and "ceiling, a product of 1024" in said


def figures(by, mib, flops, ms):
    what = {"fidelity": "released", "by": by, "teacher": "fp32"}
    return bench_step.Measured(what, flops, np.array(ms), mib)


OURS = figures("minibio", 4.0, 2e9, [20.0, 60, 25])
NARROW = figures("minibio-bf16", 2.0, 2e9, [10.0, 30, 10])
THEIRS = figures("authors/2", 8.0, 0, [100.0, 300, 100])


def written(tmp_path, *groups):
    """Rows of the table that gets those groups of sides, one after the other."""
    out = tmp_path / "step.csv"
    with Table(out, "a machine") as table:
        rows = bench_step.StepRows(
            table, {"method": "tiny"}, small_batch(), {"fp32": 4e11, "bf16": 8e11}
        )
        for group in groups:
            rows.add(group)
    return csv.DictReader(out.read_text("utf-8").splitlines()[1:])


def test_shares_are_of_turns(tmp_path):
    """The machine slows down in the second turn, for all sides alike."""
    ours, narrow, theirs = written(tmp_path, [OURS, NARROW, THEIRS])
    assert (theirs["ms_p50"], theirs["peak_mib"], theirs["tokens_per_s"]) == ("100.0", "8.0", "140")
    assert (ours["time_of_authors"], ours["memory_of_authors"]) == ("0.2", "0.5")
    assert (narrow["time_of_authors"], narrow["memory_of_authors"]) == ("0.1", "0.25")
    assert (ours["ceiling_share"], narrow["ceiling_share"]) == ("0.2", "0.25")
    assert ours["time_of_authors-bf16-compiled"] == theirs["time_of_authors"] == ""


def test_one_by_one_shares_are_printed_when_the_baseline_is_timed(tmp_path, capsys):
    rows = list(written(tmp_path, [OURS], [NARROW], [THEIRS]))
    assert [row["by"] for row in rows] == ["minibio", "minibio-bf16", "authors/2"]
    assert all(row["time_of_authors"] == "" for row in rows)
    lines = capsys.readouterr().out.splitlines()
    assert [" ".join(line.split()[-6:]) for line in lines if "memory of" in line] == [
        "0.200 time 0.500 memory of authors", "0.100 time 0.250 memory of authors",
    ]  # fmt: skip


def test_out_of_memory_is_said_in_the_row(tmp_path, monkeypatch):
    """Of every side of its turns; the next batch is measured."""
    our_side, tried = bench_step.our_side, []

    def first_is_too_large(method, *args):
        tried.append(method)
        if len(tried) == 1:
            raise torch.OutOfMemoryError("no more")
        return our_side(method, *args)

    monkeypatch.setattr(bench_step, "our_side", first_is_too_large)
    first, second = run(
        tmp_path / "step.csv", "--methods", "mlm", "--by", "minibio", "--lengths", "pubmed", "full"
    )
    assert (first["lengths"], first["note"], first["ms_p50"]) == ("pubmed", "out of memory", "")
    assert (second["lengths"], second["note"]) == ("full", "") and float(second["ms_p50"]) > 0


def test_what_does_not_compile_is_said_in_the_row(tmp_path, monkeypatch):
    """Of that side only: the others take their turns without it."""
    pytest.importorskip("transformers", reason="nothing to compare with")

    def does_not_compile(model):
        def fails(**inputs):
            raise RuntimeError("backend='inductor' raised:\na long tale")

        return fails

    monkeypatch.setattr(torch, "compile", does_not_compile)
    names = ["minibio", "authors", "authors-bf16-compiled"]
    rows = run(tmp_path / "step.csv", "--methods", "mlm", "--by", *names)
    by = {row["by"]: row for row in rows}
    assert sorted(by) == sorted(names) and len(rows) == 3
    assert by[names[2]]["note"] == "failed: RuntimeError: backend='inductor' raised:"
    assert by[names[2]]["ms_p50"] == ""
    assert 0 < float(by["minibio"]["time_of_authors"]) and not by["authors"]["note"]


def test_what_fails_without_a_compiler_ends_the_command(tmp_path, monkeypatch):
    def fails(*args):
        raise RuntimeError("a fault of ours")

    monkeypatch.setattr(bench_step, "our_side", fails)
    with pytest.raises(RuntimeError, match="a fault of ours"):
        run(tmp_path / "step.csv", "--methods", "mlm", "--by", "minibio")


def test_memory_is_that_of_weights_and_of_a_step_with_its_moments():
    side = bench_step.our_side("tiny", "minibio", "released", "fp32", small_batch(), ARGS)
    side.step()
    side.step()
    objective, teacher = side.held
    n = sum(p.numel() for p in objective.parameters())
    n_t = sum(p.numel() for p in teacher.parameters())
    assert bench_step.held_mib(side.held) == pytest.approx(4 * (n + n_t) / 2**20, rel=1e-3)
    mib = bench_step.extra_mib(side.peak, CPU)  # two moments and a gradient for each weight
    assert 4 * 3 * n / 2**20 <= mib <= 4 * 3 * n / 2**20 + 8


def test_ours_is_the_loop_of_train_py(monkeypatch):
    """Every step that is timed is one of its optimiser's, counted by train.py itself."""
    seen, train_on = [], train.train

    def watched(objective, teacher, feed, held_out, run, run_dir, stop):
        for progress in train_on(objective, teacher, feed, held_out, run, run_dir, stop):
            seen.append((progress.step, progress.tokens, run.precision, run.method))
            yield progress

    monkeypatch.setattr(train, "train", watched)
    batch = small_batch()
    side = bench_step.our_side("compact", "minibio-bf16", "paper", "bf16", batch, ARGS)
    seen.clear()  # of what comes before the first step
    side.step()
    side.step()
    assert seen == [(i, i * batch.N, "bf16", "compact") for i in (1, 2)]
    side.peak()
    assert seen[2:] == [(i, i * batch.N, "bf16", "compact") for i in (0, 1, 2)]


def test_what_goes_wrong_in_the_loop_ends_the_benchmark():
    batch = small_batch()
    batch.labels[0] = 10**6
    side = bench_step.our_side("mlm", "minibio", "paper", "fp32", batch, ARGS)
    with pytest.raises(ValueError, match=r"labels\[0\] is 1000000"):
        side.step()


@pytest.mark.parametrize("method", ["mlm", "distil", "tiny", "compact"])
def test_losses_are_compared(method):
    pytest.importorskip("transformers", reason="nothing to compare with")
    losses = bench_step.losses_of(method, ARGS, CPU)
    assert losses.is_equal and " apart" in str(losses) and losses.off(losses.minibio) <= 1e-5


def test_losses_that_differ_are_a_row_and_fail_the_command_at_its_end(tmp_path, monkeypatch):
    pytest.importorskip("transformers", reason="nothing to compare with")
    forward = bench_step.Authors.forward
    monkeypatch.setattr(
        bench_step.Authors, "forward", lambda self, **inputs: 1.0001 * forward(self, **inputs)
    )
    out = tmp_path / "step.csv"
    with pytest.raises(InputError, match="mlm: loss .* 1.0e-04 apart, expected at most 1e-05"):
        run(out, "--methods", "mlm")
    differ, *rest = csv.DictReader(out.read_text("utf-8").splitlines()[1:])
    values = re.match(r"loss (\S+) by authors, (\S+) by minibio, 1.0e-04 apart", differ["note"])
    assert float(values[1]) == pytest.approx(1.0001 * float(values[2]), rel=1e-5)
    assert (differ["by"], differ["ms_p50"]) == ("losses", "")
    assert [row["by"] for row in rest] == ["minibio", "authors"]
    assert all(float(row["ms_p50"]) > 0 for row in rest)


def test_a_loss_that_is_no_number_differs():
    losses = bench_step.Losses("mlm", float("nan"), 1.0)
    assert not losses.is_equal and "nan apart, expected at most" in str(losses)


@pytest.mark.parametrize("way", ["minibio", "minibio-bf16", "authors"])
def test_a_step_trains_the_student_alone(way):
    if way == "authors":
        pytest.importorskip("transformers", reason="nothing to compare with")
        side = bench_step.their_side("compact", way, small_batch(), ARGS)
        student, teacher = side.held[0].student, side.held[0].teacher
    else:
        side = bench_step.our_side("compact", way, "released", "fp32", small_batch(), ARGS)
        student, teacher = side.held[0].student, side.held[1]
    before = {name: p.clone() for name, p in student.named_parameters()}
    frozen = {name: p.clone() for name, p in teacher.named_parameters()}
    side.step()
    for name, p in student.named_parameters():  # softmax is blind to the bias of the keys
        assert name.endswith("key.bias") or not torch.equal(before[name], p), name
    assert all(torch.equal(frozen[name], p) for name, p in teacher.named_parameters())


def test_both_sides_make_the_same_step():
    """Forward, backward, clip and AdamW: the same weights afterwards, without padding, dropout."""
    pytest.importorskip("transformers", reason="nothing to compare with")
    batch = small_batch((9, 9))  # the sample's models have no dropout
    ours = bench_step.our_side("distil", "minibio", "released", "fp32", batch, ARGS)
    theirs = bench_step.their_side("distil", "authors", batch, ARGS)  # which has made one to try
    ours.step()
    table = ours.held[0].student.encoder.embeddings.token.weight
    assert_near("table", table, theirs.held[0].student.get_input_embeddings().weight, 1e-4)


def test_the_teacher_is_narrow_where_it_is_asked_to_be():
    for narrow, dtype in (("fp32", torch.float32), ("bf16", torch.bfloat16)):
        side = bench_step.our_side("tiny", "minibio", "paper", narrow, small_batch(), ARGS)
        layer = side.held[1].encoder.layers[0]
        assert layer.ffn.up.weight.dtype == dtype
        assert side.what == {"fidelity": "paper", "by": "minibio", "teacher": narrow}


def test_teacher_precisions(monkeypatch):
    def precisions(method, way):
        return bench_step.teacher_precisions(method, WAYS[way], ARGS, CPU)

    for has_it, expected in ((True, ["fp32", "bf16"]), (False, ["fp32"])):
        monkeypatch.setattr(precision, "has_bf16_products", lambda device, has_it=has_it: has_it)
        assert precisions("compact", "minibio") == expected
        assert precisions("compact", "minibio-bf16") == ["bf16"]
        assert precisions("mlm", "minibio") == ["fp32"]


def test_held_memory_counts_each_tensor_once():
    x = torch.nn.Linear(1024, 512, bias=False)
    both = torch.nn.ModuleList([x, torch.nn.Linear(1024, 512, bias=False)])
    both[1].weight = x.weight  # tied
    assert bench_step.held_mib([both, x, None]) == 2
    view = torch.nn.Module()  # a part of a matrix that is held whole
    view.part = torch.nn.Parameter(x.weight.detach()[1:])
    assert bench_step.held_mib([view, x]) == bench_step.held_mib([view]) == 2
    optimizer = torch.optim.AdamW(x.parameters())
    assert bench_step.held_mib([x, optimizer]) == 2
    x(torch.ones(1, 1024)).sum().backward()
    optimizer.step()
    assert bench_step.held_mib([x, optimizer]) == pytest.approx(6, abs=0.01)


def test_a_step_that_does_not_fit_is_cut():
    """Out of memory with one and two parts; four fit."""
    inputs = {"x": torch.arange(10)}
    tried = []

    def step(parts):
        tried.append([len(piece["x"]) for piece in bench_step.pieces(inputs, parts)])
        if parts < 4:
            raise torch.OutOfMemoryError("no more")

    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.ones(1))])
    assert bench_step.fitting(step, optimizer) == 4
    assert tried == [[10], [5, 5], [3, 3, 2, 2]]
    with pytest.raises(torch.OutOfMemoryError, match="not in 8 micro-batches either"):
        bench_step.fitting(partial(lambda parts: step(1)), optimizer)


def test_without_transformers_ours_alone_unless_theirs_is_asked_for(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(bench, "version", lambda package: "none")
    monkeypatch.setitem(sys.modules, "transformers", None)
    (row,) = run(tmp_path / "step.csv", "--methods", "mlm")
    assert (row["by"], row["time_of_authors"]) == ("minibio", "")
    assert "without transformers" in capsys.readouterr().out
    with pytest.raises(InputError, match="needs transformers, which is not installed"):
        run(tmp_path / "step.csv", "--methods", "mlm", "--by", "authors", "minibio")


def test_what_cannot_be_compared(tmp_path):
    with pytest.raises(InputError, match="no code for mobile; pass --by minibio"):
        run(tmp_path / "step.csv", "--methods", "mobile")
    with pytest.raises(InputError, match="needs --teacher ib-bert"):
        run(tmp_path / "step.csv", "--methods", "mobile", "--by", "minibio")
    with pytest.raises(InputError, match="word pieces"):
        run(tmp_path / "step.csv", "--methods", "tiny", "--teacher", "sample-teacher",
            "--student", "bio-tinybert", "--by", "minibio")  # fmt: skip


@pytest.mark.parametrize("option", ["--batch", "--length", "--repeats", "--warmup", "--threads"])
def test_numbers_below_one_are_refused(option):
    with pytest.raises(InputError, match="at least 1|expected 1 to 1024"):
        bench.main([*SMALL, option, "0"])
