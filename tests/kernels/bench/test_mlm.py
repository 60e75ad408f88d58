"""The rivals of masked_mlm: the same loss and gradients in float64, and the command end to end."""

import csv
from argparse import Namespace

import pytest
import torch

from helpers import assert_near
from kernels import dispatch, torch_mlm
from kernels.bench import mlm as bench_mlm
from kernels.bench import run as bench

CPU = torch.device("cpu")
SHAPE = bench_mlm.MLMShape.parse("M7-V23-d5-d6")


def sides_of(loss="both", divergence="kl_ts", temperature=2.0, names=bench_mlm.RIVALS):
    p = bench_mlm.problem(SHAPE, CPU, torch.float64, 0)
    return bench_mlm.sides(
        p, names, ["reference", "torch"], loss=loss, divergence=divergence, temperature=temperature
    )


@pytest.mark.parametrize("loss", bench_mlm.LOSSES)
@pytest.mark.parametrize("divergence", ["kl_ts", "soft_ce"])
def test_every_side_computes_the_same(loss, divergence):
    *others, truth, _ = (s for s in sides_of(loss, divergence) if s.is_equal and not s.missing)
    outputs, gradients = truth.both()
    compared = [s for s in others if s.name != "compile"]  # half a minute of g++
    assert "eager" in {s.name for s in compared}
    for side in compared:
        got, got_gradients = side.both()
        assert_near(side.name, got[0], outputs[0], 1e-12)
        for x, y in zip(got_gradients, gradients, strict=True):
            assert_near(side.name, x, y, 1e-10)


def test_rivals_for_cross_entropy_alone_say_so():
    sides = {s.name: s for s in sides_of("both")}
    for name in ("linear-ce", "liger", "cce"):
        assert sides[name].missing == "only cross-entropy: --loss ce"
    sides = {s.name: s for s in sides_of("ce")}
    assert "liger" in sides["liger"].missing or "CUDA" in sides["liger"].missing


def test_the_floor_makes_the_four_products_and_no_loss():
    (floor,) = (s for s in sides_of() if s.name == "floor")
    assert not floor.is_equal
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        floor.both()
    products = {e.key: e.count for e in profile.key_averages()}
    assert products["aten::mm"] == 4
    assert not {"aten::exp", "aten::_softmax", "aten::_log_softmax"} & set(products)


@pytest.mark.parametrize("name", ["M7-V23-d5", "M0-V23-d5-d6", "B7-V23-d5-d6"])
def test_names_that_are_no_shape(name):
    with pytest.raises(ValueError, match="--shapes has .* expected M922-V28996-d312-d768"):
        bench_mlm.MLMShape.parse(name)


def test_the_command_writes_a_table(tmp_path, capsys):
    out = tmp_path / "mlm.csv"
    code = bench.main(["masked-mlm", "--shapes", str(SHAPE), "--sides", "eager", "floor",
                       "--impl", "torch", "--device", "cpu", "--repeats", "1",
                       "--out", str(out)])  # fmt: skip
    assert code == 0
    lines = out.read_text("utf-8").splitlines()
    assert lines[0].startswith("# ")
    rows = list(csv.DictReader(lines[1:]))
    assert {row["side"] for row in rows} == {"eager", "floor", "torch"}
    assert {row["pass"] for row in rows} == set(bench.PASSES)
    assert "torch" in capsys.readouterr().out


def test_sizes_of_a_chunk_are_timed(tmp_path, monkeypatch, capsys):
    """Each is the limit that the loop works with, and only while it is timed."""
    limits, own = [], torch_mlm.CHUNK_BYTES
    rows_at_a_time = torch_mlm.rows_at_a_time

    def watched(*args):
        limits.append(torch_mlm.CHUNK_BYTES)
        return rows_at_a_time(*args)

    monkeypatch.setattr(torch_mlm, "rows_at_a_time", watched)
    out = tmp_path / "sweep.csv"
    command = ["masked-mlm", "--tune", "--device", "cpu", "--shapes", str(SHAPE), "--repeats", "1"]
    assert bench.main([*command, "--chunk-bytes", "64", "4096", "--out", str(out)]) == 0
    rows = list(csv.DictReader(out.read_text("utf-8").splitlines()[1:]))
    assert [(r["kernel"], r["chunk_bytes"], r["is_own"]) for r in rows] == [
        ("chunk", str(own), "True"), ("chunk", "64", "False"), ("chunk", "4096", "False"),
    ]  # fmt: skip
    assert all(float(r["ms_p50"]) > 0 and r["note"] == "" for r in rows)
    assert limits == [own] * 3 + [64] * 3 + [4096] * 3 and own == torch_mlm.CHUNK_BYTES
    assert "chunk   best (None, None, " in capsys.readouterr().out


def test_a_gpu_times_blocks_and_sizes_from_16_to_512_mib(monkeypatch):
    pytest.importorskip("kernels.triton_mlm")
    monkeypatch.setattr(dispatch, "HAS_NVCC", True)
    impls = bench_mlm.tuned_impls(torch.device("cuda"), torch.bfloat16)
    assert impls == {"chunk": "cuda", "logit_rows": "triton"}
    args = Namespace(chunk_bytes=None)
    chunks = [c.chunk_bytes for c in bench_mlm.candidates("chunk", args)]
    assert chunks == [2**k for k in range(24, 30)]
    for kernel in impls:
        asked = kernel, SHAPE, "kl_ts", torch.bfloat16, torch.device("cuda")
        own, other = bench_mlm.chosen(*asked), bench_mlm.candidates(kernel, args)[-1]
        assert own != other
        with bench_mlm.using(kernel, other):
            assert bench_mlm.chosen(*asked) == other
        assert bench_mlm.chosen(*asked) == own


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--temperature", "0"], "--temperature is 0.0, expected above 0"),
        (["--shapes", "M1"], "--shapes has 'M1'"),
    ],
)
def test_bad_options_are_one_line(options, message, capsys):
    with pytest.raises(SystemExit) as stop:
        bench.main(["masked-mlm", "--device", "cpu", *options])
    assert stop.value.code == 2
    assert message in capsys.readouterr().err


def test_work_counts_the_four_products():
    work = bench_mlm.work(SHAPE, torch.float32, 0)
    M, V, d_s, d_t = SHAPE
    assert work["both"][0] == 2 * M * V * (3 * d_s + d_t)
