"""The command at toy size: what is measured, compared, written and refused."""

import csv

import pytest
import torch

from kernels import cuda_build
from kernels.bench import attention as bench_attention
from kernels.bench import run as bench
from kernels.bench.attention import SHAPES, AttentionShape
from kernels.bench.timing import Contender

TOY = ("B2-T9-H2-D6-D8", "B3-R24-H2-D8-D8")
SMALL = ["attention-kl", "--device", "cpu", "--repeats", "3", "--sides", "eager", "stock", "floor"]


def run(tmp_path, *options, shapes=TOY):
    """(status, rows of the table)."""
    out = tmp_path / "table.csv"
    status = bench.main([*SMALL, *options, "--shapes", *shapes, "--out", str(out)])
    header, *lines = out.read_text("utf-8").splitlines()
    assert header.startswith("# ") and "torch" in header
    return status, list(csv.DictReader(lines))


def only(rows, side, name="both", shape=TOY[0]):
    (row,) = [r for r in rows if (r["side"], r["pass"], r["shape"]) == (side, name, shape)]
    return row


def test_a_table_from_end_to_end(tmp_path, capsys):
    status, rows = run(tmp_path)
    assert status == 0
    sides = ["eager", "stock", "floor", "reference", "torch"]
    assert [(r["shape"], r["side"], r["pass"]) for r in rows] == [
        (shape, side, name) for shape in TOY for side in sides for name in bench.PASSES
    ]
    for r in rows:
        assert (r["dtype"], r["divergence"], r["dropout"], r["note"]) == (
            "float32",
            "kl_st",
            "0.1",
            "",
        )
        assert 0 < float(r["ms_p20"]) <= float(r["ms_p50"]) <= float(r["ms_p80"])
        assert float(r["extra_mib"]) > 0
    printed = capsys.readouterr().out.splitlines()
    assert len(printed) == 1 + len(rows) and "TFLOP/s" in printed[1]


def test_the_figures_of_a_row_belong_together(tmp_path):
    _, rows = run(tmp_path)
    work = bench_attention.work(AttentionShape.parse(TOY[0]), torch.float32, 0)
    for side in ("eager", "torch"):
        forward, backward, both = (only(rows, side, name) for name in bench.PASSES)
        ms = [float(r["ms_p50"]) for r in (forward, backward, both)]
        assert max(ms[:2]) < ms[2]
        assert backward["extra_mib"] == both["extra_mib"]
        assert float(both["extra_mib"]) > 0.9 * float(forward["extra_mib"])
        for r, name in ((forward, "forward"), (both, "both")):
            flops, moved = work[name]
            seconds = float(r["ms_p50"]) / 1e3
            assert float(r["tflops"]) == pytest.approx(flops / seconds / 1e12, rel=1e-3)
            assert float(r["gb_per_s"]) == pytest.approx(moved / seconds / 1e9, rel=1e-3)
        for baseline in ("eager", "floor"):
            theirs = only(rows, baseline)
            time_ratio = float(both["ms_p50"]) / float(theirs["ms_p50"])
            memory_ratio = float(both["extra_mib"]) / float(theirs["extra_mib"])
            assert float(both[f"time_vs_{baseline}"]) == pytest.approx(time_ratio, rel=0.01)
            assert float(both[f"memory_vs_{baseline}"]) == pytest.approx(memory_ratio, rel=0.01)


def test_eager_stores_maps_and_we_do_not(tmp_path):
    """The claim itself, at a small size: a map here has 4 MiB in float32."""
    shape = "B16-T128-H4-D8-D8"
    _, rows = run(tmp_path, "--repeats", "1", "--impl", "torch", shapes=(shape,))
    eager, ours = (float(only(rows, x, shape=shape)["extra_mib"]) for x in ("eager", "torch"))
    assert 5 * 4 < eager < 8 * 4 and ours < 0.8 * eager


@pytest.mark.parametrize("divergence", bench.kernels.DIVERGENCES)
@pytest.mark.parametrize("dtype", ["float64", "bfloat16"])
def test_check_compares_and_measures_nothing(divergence, dtype, capsys):
    options = ["--check", "--divergence", divergence, "--dtype", dtype]
    assert bench.main([*SMALL, *options]) == 0
    said = capsys.readouterr().out.splitlines()[-1]
    assert said == "equal to the definition: eager, stock, floor, reference, torch"


def broken(monkeypatch, name, change):
    """`change` the side called `name`."""
    real = bench_attention.sides

    def sides(*args, **options):
        return [change(s) if s.name == name else s for s in real(*args, **options)]

    monkeypatch.setattr(bench_attention, "sides", sides)


def slightly_off(side: Contender) -> Contender:
    def forward():
        out, rows = side.forward()
        return out, rows * 1.001

    return side._replace(forward=forward)


def wrong_gradient(side: Contender) -> Contender:
    return side._replace(gradients=(side.gradients[0], side.gradients[1] * 1.001))


@pytest.mark.parametrize(
    ("change", "expected"), [(slightly_off, "output 2"), (wrong_gradient, "gradient 1")]
)
def test_a_wrong_side_is_left_out_and_the_status_tells(tmp_path, monkeypatch, change, expected):
    broken(monkeypatch, "torch", change)
    status, rows = run(tmp_path)
    assert status == 1
    assert only(rows, "torch")["note"].startswith(f"wrong: {expected} is off by")
    assert only(rows, "torch")["ms_p50"] == only(rows, "torch")["extra_mib"] == ""
    assert float(only(rows, "eager")["ms_p50"]) > 0


def test_nan_is_wrong(monkeypatch, capsys):
    broken(monkeypatch, "torch", lambda s: s._replace(
        forward=lambda: tuple(x * float("nan") for x in s.forward())))  # fmt: skip
    assert bench.main([*SMALL, "--check"]) == 1
    assert "off by inf" in capsys.readouterr().out


def breaks(error):
    def forward():
        raise error

    return lambda side: side._replace(forward=forward)


def test_a_side_that_breaks_does_not_take_the_table_with_it(tmp_path, monkeypatch):
    broken(monkeypatch, "torch", breaks(RuntimeError("no\nsuch kernel")))
    status, rows = run(tmp_path)
    assert status == 1
    assert only(rows, "torch")["note"].startswith("failed: RuntimeError: no (B2-T19")
    assert float(only(rows, "eager")["ms_p50"]) > 0


def test_the_first_cuda_error_ends_the_command(monkeypatch, capsys):
    """What would be measured after it in this process would be wrong."""
    broken(monkeypatch, "stock", breaks(RuntimeError("CUDA error: misaligned address")))
    with pytest.raises(SystemExit) as stopped:
        bench.main([*SMALL, "--shapes", TOY[0]])
    assert stopped.value.code == 3
    told = capsys.readouterr().err
    assert told == (
        "stock: RuntimeError: CUDA error: misaligned address; "
        "this process can use its GPU no more\n"
    )


def only_when_measured(error, size):
    """Breaks at the shape that is measured, not at those that are checked."""

    def change(side):
        def forward():
            if side.inputs[0].shape[0] == size:
                raise error
            return side.forward()

        return side._replace(forward=forward)

    return change


@pytest.mark.parametrize(("side", "status"), [("torch", 1), ("eager", 0)])
def test_a_side_that_breaks_at_one_shape_alone(tmp_path, monkeypatch, side, status):
    size = {"torch": 45, "eager": 5}[side]
    broken(monkeypatch, side, only_when_measured(RuntimeError("too large"), size))
    got, rows = run(tmp_path, shapes=("B5-T9-H2-D6-D8", TOY[0]))
    assert got == status
    assert only(rows, side, shape="B5-T9-H2-D6-D8")["note"] == "failed: RuntimeError: too large"
    assert only(rows, "stock", shape="B5-T9-H2-D6-D8")["note"] == ""
    assert only(rows, side)["note"] == ""


def test_what_does_not_fit_is_said_in_its_row(tmp_path, monkeypatch):
    broken(monkeypatch, "eager", only_when_measured(torch.OutOfMemoryError("17 GiB"), 5))
    monkeypatch.setattr(bench, "free_bytes", lambda: 2**30)
    broken(monkeypatch, "stock", lambda s: s._replace(bytes_needed=3 * 2**30))
    status, rows = run(tmp_path, shapes=("B5-T9-H2-D6-D8",))
    assert status == 0  # nothing is wrong
    assert [only(rows, s, shape="B5-T9-H2-D6-D8")["note"] for s in ("eager", "stock")] == [
        "out of memory", "needs 3 GiB, 1 GiB are free",
    ]  # fmt: skip
    torch_row = only(rows, "torch", shape="B5-T9-H2-D6-D8")
    assert torch_row["time_vs_eager"] == "" and float(torch_row["time_vs_floor"]) > 0


def test_without_a_compiler_the_row_says_so(tmp_path, monkeypatch):
    monkeypatch.setattr(bench_attention, "compiler_missing", lambda device: "no C++ compiler")
    status, rows = run(tmp_path, "--sides", "compile")
    assert status == 0
    assert only(rows, "compile")["note"] == "not here: no C++ compiler"


def test_rows_are_on_disk_as_soon_as_they_are_known(tmp_path, monkeypatch):
    out, sizes = tmp_path / "table.csv", []
    real = bench.measure

    def measure(*args):
        sizes.append(len(out.read_text().splitlines()))
        return real(*args)

    monkeypatch.setattr(bench, "measure", measure)
    run(tmp_path)
    assert sizes == [1, 1 + 1 + 15]


def test_the_interpreter_is_never_timed():
    asked = torch.device("cpu"), torch.float32
    assert bench.pick_impls("attention_kl", None, *asked) == ["reference", "torch"]
    assert bench.pick_impls("attention_kl", ["auto", "torch"], *asked) == ["torch"]
    assert bench.pick_impls("masked_mlm", None, *asked) == ["reference", "torch"]
    with pytest.raises(ValueError, match="has triton, which on a CPU is interpreted"):
        bench.pick_impls("masked_mlm", ["triton-stream"], *asked)


def test_attention_in_cuda_is_timed_in_the_type_it_has(monkeypatch):
    monkeypatch.setattr(cuda_build, "find_nvcc", lambda: "nvcc")
    for dtype, has_it in ((torch.float32, True), (torch.bfloat16, False)):
        names = bench.pick_impls("attention_kl", None, torch.device("cuda"), dtype)
        assert ("cuda" in names) == has_it
    with pytest.raises(ValueError, match="not torch.bfloat16"):
        bench.pick_impls("attention_kl", ["cuda"], torch.device("cuda"), torch.bfloat16)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (["attention-kl", "--shapes", "B2-T9"], "--shapes has 'B2-T9', expected B24-T256"),
        (["attention-kl", "--device", "tpu"], "--device is 'tpu', expected cpu"),
        (["attention-kl", "--device", "cuda:99"], "--device is 'cuda:99', but torch sees"),
        (["attention-kl", "--impl", "fast"], "impl is 'fast', expected auto"),
        (["attention-kl", "--device", "cpu", "--impl", "triton"], "--impl has triton"),
        (["attention-kl", "--repeats", "0"], "--repeats is 0, expected at least 1"),
        (["attention-kl", "--dropout", "1"], "--dropout is 1.0, expected"),
        (["attention-kl", "--divergence", "kl"], "invalid choice: 'kl'"),
        (["attention-kl", "--dtype", "int8"], "invalid choice: 'int8'"),
        (["attention-kl", "--sides", "jax"], "invalid choice: 'jax'"),
        (["attention-kl", "--out", "/dev/null/table.csv"], "/dev/null"),
        (["masked-mlm", "--device", "cpu", "--chunk-bytes", "9"], "expected --tune with it"),
        (["masked-mlm", "--tune", "--chunk-bytes", "0"], "'0' is not an integer of at least 1"),
        (["attention"], "invalid choice: 'attention'"),
        ([], "OPERATION"),
    ],
)
def test_bad_options_give_one_line_and_status_2(options, expected, capsys):
    with pytest.raises(SystemExit) as stopped:
        bench.main(options)
    told = capsys.readouterr().err
    assert stopped.value.code == 2
    assert told.startswith("kernels.bench") and told.count("\n") == 1 and expected in told


def test_defaults_of_a_cpu_fit_two_minutes_and_have_what_is_asked_of_them():
    found = [AttentionShape.parse(name) for name in SHAPES["cpu"]]
    assert sum(s.pairs(0) for s in found) < 30e6  # as measured: a minute and a half on one core
    assert any(s.longest == 512 for s in found) and any(s.is_ragged for s in found)
    assert AttentionShape.parse("B8-T256-H12-D64-D64") in found


def test_block_sizes_are_timed(tmp_path, monkeypatch, capsys):
    pytest.importorskip("kernels.triton_attention")
    from kernels.triton_attention import AttentionConfig

    tried = [
        AttentionConfig(16, 16, 4, 1),
        AttentionConfig(16, 17, 4, 1),
    ]  # the second is no power of two
    monkeypatch.setattr(bench_attention, "candidates", lambda *_: tried)
    out = tmp_path / "tune.csv"
    status = bench.main([
        "attention-kl", "--tune", "--device", "cpu", "--repeats", "1", "--dtype", "float64",
        "--shapes", "B1-T5-H1-D8-D8", "--out", str(out),
    ])  # fmt: skip
    assert status == 0
    rows = list(csv.DictReader(out.read_text().splitlines()[1:]))
    assert [r["kernel"] for r in rows] == ["forward"] * 2 + ["dq"] * 2 + ["dkdv"] * 2
    for own, other in zip(rows[::2], rows[1::2], strict=True):
        assert own["is_own"] == "True" and float(own["ms_p50"]) > 0 and own["note"] == ""
        assert other["is_own"] == "False" and other["ms_p50"] == "" and other["note"]
    assert capsys.readouterr().out.count("best (16, 16, 4, 1)") == 3
