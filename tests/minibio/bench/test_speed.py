"""What is measured, what it is worth, and what is refused before anything is measured."""

import csv
import sys

import numpy as np
import pytest
import torch

import eval as command
from helpers import random_batch, tiny_config
from minibio.bench import speed
from minibio.model.convert import save as save_model
from minibio.model.heads import Model
from minibio.run.errors import InputError

CPU = torch.device("cpu")
SMALL = ["--device", "cpu", "--batch", "1", "3", "--length", "5", "9", "--rounds", "6",
         "--seconds", "0.01"]  # fmt: skip


@pytest.fixture
def model(tmp_path):
    """A directory."""
    save_model(Model(tiny_config("bert", P=12), "mlm"), None, tmp_path / "mine")
    return tmp_path / "mine"


@pytest.fixture
def no_time(monkeypatch):
    """Nothing is timed: every call runs once, as long as its row of the model's parameters."""

    def laps(calls, device, repeats, warmup=3):
        return [np.full((repeats, 1), 10.0 + i) for i, _ in enumerate(calls)]

    monkeypatch.setattr(speed, "milliseconds", laps)


def test_a_table_and_a_picture_a_precision(tmp_path, model, capsys):
    image = pytest.importorskip("matplotlib.image", reason="drawing is the extra `plot`")
    out = tmp_path / "new" / "speed"
    precisions = ["fp32", "bf16", "int8"]
    command.main(["speed", str(model), "sample-tiny", "--precision", *precisions, *SMALL,
                  "--out", str(out)])  # fmt: skip
    header, *lines = (out / "speed.csv").read_text("utf-8").splitlines()
    assert header.startswith("# ") and "torch" in header
    rows = list(csv.DictReader(lines))
    assert [(r["batch"], r["length"], r["model"], r["precision"]) for r in rows] == [
        (B, T, name, p) for B in "13" for T in "59" for name in ("mine", "sample-tiny")
        for p in precisions
    ]  # fmt: skip
    for r in rows:
        assert 0 < float(r["ms_p50"]) <= float(r["ms_p95"]) and int(r["rounds"]) in (5, 6)
        texts, tokens = float(r["texts_per_s"]), float(r["tokens_per_s"])
        assert texts == pytest.approx(1000 * int(r["batch"]) / float(r["ms_p50"]), rel=0.01)
        assert tokens == pytest.approx(texts * int(r["length"]), rel=0.01)
    fp32, bf16, int8 = (
        next(r for r in rows if (r["model"], r["precision"]) == ("sample-tiny", p))
        for p in precisions
    )
    assert fp32["parameters"] == bf16["parameters"] == int8["parameters"]
    assert float(bf16["disk_mib"]) < float(int8["disk_mib"]) < float(fp32["disk_mib"])
    for p in precisions:
        assert image.imread(out / f"speed-{p}.png").shape == (900, 1080, 4)
    shown = capsys.readouterr().out
    assert "texts/s" in shown and str(out / "speed-int8.png") in shown


def test_latency_and_throughput_by_hand():
    times = np.arange(1.0, 102.0)[:, None]  # 1, 2, ..., 101 ms
    assert speed.figures(times, B=4, T=10) == {
        "ms_p50": 51.0, "ms_p95": 96.0, "texts_per_s": round(4000 / 51, 2),
        "tokens_per_s": round(40000 / 51),
    }  # fmt: skip


@pytest.mark.parametrize(("seconds", "expected"), [(0.0, 5), (0.32, 15), (60.0, 50)])
def test_as_many_rounds_as_fit(no_time, seconds, expected):
    calls = [[print], [print]]  # 10 + 11 ms a round
    assert speed.rounds_for(calls, CPU, 50, seconds) == expected
    assert speed.rounds_for(calls, CPU, 3, seconds) == 3


def test_models_of_a_shape_take_turns(tmp_path, monkeypatch):
    seen = []

    def laps(calls, device, repeats, warmup):
        seen.append([(c.func.config.C, c.args[0].lengths) for (c,) in calls])
        return [np.ones((repeats, 1))] * len(calls)

    monkeypatch.setattr(speed, "milliseconds", laps)
    command.main(["speed", "sample-tiny", "sample-distil", *SMALL, "--no-picture",
                  "--out", str(tmp_path)])  # fmt: skip
    shapes = [(T,) * B for B in (1, 3) for T in (5, 9)]
    assert seen[1::2] == [[(64, lengths), (128, lengths)] for lengths in shapes]
    assert not list(tmp_path.glob("*.png"))


def test_memory_is_weights_and_work(tmp_path, no_time, monkeypatch):
    monkeypatch.setattr(speed, "extra_mib", lambda call, device: 100.0)
    command.main(["speed", "sample-tiny", *SMALL, "--no-picture", "--out", str(tmp_path)])
    row = next(csv.DictReader((tmp_path / "speed.csv").read_text("utf-8").splitlines()[1:]))
    encoder = speed.open_encoder("sample-tiny")
    n = sum(p.numel() for p in encoder.parameters())
    assert int(row["parameters"]) == n
    assert float(row["peak_mib"]) == round(100 + 4 * n / 2**20, 1)


@pytest.mark.parametrize("family", ["bert", "distilbert", "mobilebert"])
@pytest.mark.parametrize(("precision", "limit"), [("fp32", 0.0), ("bf16", 0.05), ("int8", 0.1)])
def test_every_precision_computes_about_the_same(family, precision, limit):
    encoder = Model(tiny_config(family), "encoder").eval().encoder
    before = {name: x.clone() for name, x in encoder.state_dict().items()}
    other = speed.at_precision(encoder, precision, CPU)
    batch = random_batch()
    with torch.inference_mode():
        a, b = encoder(batch).last, other(batch).last.float()
    assert float((a - b).norm() / a.norm()) <= limit
    assert (precision == "fp32") == torch.equal(a, b)
    assert all(torch.equal(x, before[name]) for name, x in encoder.state_dict().items())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["nowhere"], "'nowhere' is neither a directory nor a configuration, expected"),
        (["sample-tiny", "--length", "8", "513"], "--length is 513, expected at most 512: sample"),
        (["sample-tiny", "--batch", "0"], r"--batch is \[0\], expected numbers of at least 1"),
        (["sample-tiny", "--rounds", "0"], "--rounds is 0, expected at least 1"),
        (["sample-tiny", "--seconds", "nan"], "--seconds is nan, expected more than 0"),
        (["sample-tiny", "sample-tiny"], "sample-tiny is named twice among the models"),
        (["sample-tiny", "--precision", "int8", "int8"], "int8 is named twice among the precision"),
        (["sample-tiny", "--length", "8", "8"], "8 is named twice among the length"),
    ],
)
def test_what_cannot_be_measured(tmp_path, options, message):
    with pytest.raises(InputError, match=message) as caught:
        command.main(["speed", *options, "--device", "cpu", "--out", str(tmp_path / "out")])
    assert "\n" not in str(caught.value) and not (tmp_path / "out").exists()


def test_a_directory_without_a_model(tmp_path):
    with pytest.raises(InputError, match="config.json"):
        command.main(["speed", str(tmp_path), "--device", "cpu", "--out", str(tmp_path / "out")])


def test_int8_is_a_cpus(monkeypatch, tmp_path):
    monkeypatch.setattr(speed, "pick_device", lambda name: torch.device("cuda", 0))
    with pytest.raises(
        InputError, match="int8 runs on CPUs only, the device is cuda:0; pass --device cpu"
    ):
        command.main(["speed", "sample-tiny", "--precision", "int8", "--out", str(tmp_path)])


def test_without_what_pictures_need(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(InputError, match="drawing needs matplotlib"):
        command.main(["speed", "sample-tiny", *SMALL, "--out", str(tmp_path / "out")])
