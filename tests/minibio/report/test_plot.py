"""Pictures that can be opened, logs that cannot be read, and what the average does."""

import json
import math
import sys
from pathlib import Path

import pytest

from minibio.report import plot
from minibio.run.errors import InputError


def write_log(path, scale=1.0, n=50):
    rows = [{"event": "start", "seed": 1}]
    for step in range(1, n + 1):
        noise = 0.1 * (-1) ** step
        rows.append({"event": "train", "step": step, "loss": scale * (5 / step + 1 + noise)})
        if step % 10 == 0:
            rows.append({"event": "held_out", "step": step, "mlm_loss": 5 / step, "accuracy": 0.1})
    path.parent.mkdir(exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    return path


def test_two_runs_in_one_picture(tmp_path):
    image = pytest.importorskip("matplotlib.image", reason="drawing is the extra `plot`")
    runs = [write_log(tmp_path / name / "log.jsonl").parent for name in ("tiny", "scratch")]
    plot.main([*map(str, runs), "--out", str(tmp_path / "loss.png")])
    picture = image.imread(tmp_path / "loss.png")  # (height, width, RGBA)
    assert picture.shape == (600, 1500, 4)
    for colour in ("#0072B2", "#D55E00"):
        rgb = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
        assert (abs(picture[..., :3] - rgb).max(-1) < 0.01).sum() > 200  # both runs are drawn


def test_a_killed_runs_last_line_and_infinite_values_are_passed_over(tmp_path):
    path = write_log(tmp_path / "run" / "log.jsonl", n=10)
    with path.open("a", encoding="utf-8") as file:
        file.write('{"event": "train", "step": 11, "loss": Infinity}\n')
        file.write('{"event": "train", "step": 12, "lo')
    train, held_out = plot.read_curves(path)
    assert [step for step, _ in train] == list(range(1, 11))
    assert held_out == [(10, 0.5)]


@pytest.mark.parametrize(
    "line", ["[" * 100_000 + "]" * 100_000, '{"event": "train", "step": 1e999, "loss": 1}', "[]"],
    ids=["deep", "infinite", "list"],
)  # fmt: skip
def test_a_line_that_is_no_event_is_named(tmp_path, line):
    path = write_log(tmp_path / "run" / "log.jsonl", n=10)
    n = len(path.read_text("utf-8").splitlines())
    with path.open("a", encoding="utf-8") as file:
        file.write(f"{line}\n")
    with pytest.raises(InputError, match=f"log.jsonl: line {n + 1} is not an event"):
        plot.read_curves(path)


def test_a_fine_tunings_scores_are_no_losses(tmp_path):
    path = write_log(tmp_path / "run" / "log.jsonl", n=10)
    with path.open("a", encoding="utf-8") as file:
        file.write('{"event": "held_out", "step": 20, "devel": 0.7}\n')
    assert plot.read_curves(path)[1] == [(10, 0.5)]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "holds no losses"),
        ('{"event": "start"}\n', "holds no losses"),
        ('{"event": "start"}\nnot json\n', "line 2 is not an event"),
        ('{"event": "train", "step": 1}\n', "line 1 is not an event"),
        ("[1]\n", "line 1 is not an event"),
        ('{"event": "held_out", "step": null, "mlm_loss": 1}\n', "line 1 is not an event"),
    ],
)
def test_logs_that_are_none(tmp_path, content, message):
    path = tmp_path / "log.jsonl"
    path.write_text(content, "utf-8")
    with pytest.raises(InputError, match=message) as caught:
        plot.read_curves(path)
    assert str(path) in str(caught.value)


def test_other_bad_input(tmp_path, monkeypatch):
    with pytest.raises(InputError, match="No such file"):
        plot.read_curves(tmp_path / "log.jsonl")
    with pytest.raises(InputError, match="ends in .png, .svg, .pdf"):
        plot.loss_curves({}, tmp_path / "loss.gif")
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)  # as if it were not installed
    with pytest.raises(InputError, match=r"pip install minibio\[plot\]"):
        plot.loss_curves({}, tmp_path / "loss.png")


def test_moving_average_by_hand():
    assert plot.moving_average([1.0, 2.0, 6.0, 0.0, 5.0], 3) == pytest.approx(
        [1, 3, 8 / 3, 11 / 3, 5]
    )
    assert plot.moving_average([4.0, 2.0], 1) == [4.0, 2.0]


def test_a_smooth_curve_needs_no_average():
    smooth = [math.exp(-i / 20) for i in range(100)]
    assert not plot.is_noisy(smooth, plot.moving_average(smooth, 5))
    jagged = [y + 0.05 * y * (-1) ** i for i, y in enumerate(smooth)]
    assert plot.is_noisy(jagged, plot.moving_average(jagged, 5))


def test_runs_of_one_name_are_told_apart_by_their_paths(tmp_path):
    a, b = tmp_path / "a" / "tiny", tmp_path / "b" / "tiny"
    assert plot.labels([a, tmp_path / "b"]) == ["tiny", "b"]
    assert plot.labels([a, b]) == [str(a), str(b)]


# bars


def drawn(panel):
    pytest.importorskip("matplotlib", reason="drawing is the extra `plot`")
    ax = plot.new_figure(Path("x.png"), 4, 3).subplots()
    plot.draw_bars(ax, panel)
    return ax


def test_bars_side_by_side():
    ax = drawn(plot.Panel("title", ["a", "b"], {"one": [1, 2], "two": [3, None]}))
    places = [(round(p.get_x(), 6), round(p.get_width(), 6), p.get_height()) for p in ax.patches]
    assert places == [(-0.4, 0.4, 1), (0.6, 0.4, 2), (0.0, 0.4, 3)]
    assert [t.get_text() for t in ax.get_xticklabels()] == ["a", "b"] and not ax.lines
    assert ax.get_title() == "title" and ax.get_legend_handles_labels()[1] == ["one", "two"]


def test_whiskers_and_marks_stand_at_their_bars():
    whiskers, marks = {"one": [None, (2, 1)]}, {"one": [3, None]}
    panel = plot.Panel("", ["a", "b"], {"one": [1, 5]}, whiskers, marks)
    ax = drawn(panel)
    (segment,) = ax.collections[0].get_segments()
    assert segment.tolist() == [[1, 4], [1, 7]]  # one down, two up
    marks = [line.get_xydata().tolist() for line in ax.lines if line.get_marker() == "D"]
    assert ax.get_legend_handles_labels()[1].count("the paper") == 1
    assert marks == [[[0, 3]]]


def rows():
    return [
        {"model": m, "batch": B, "length": T, "ms_p50": t, "ms_p95": t + 1, "peak_mib": 9 * t,
         "precision": "fp32", "device": "cpu"}
        for m, t in (("small", 1), ("base", 4)) for B in (1, 8, 32) for T in (128, 256)
    ]  # fmt: skip


def test_figure_2(tmp_path, monkeypatch):
    pytest.importorskip("matplotlib", reason="drawing is the extra `plot`")
    kept = []
    monkeypatch.setattr(plot, "save_figure", lambda figure, out: kept.append(figure))
    plot.time_and_memory(rows(), tmp_path / "speed.png")
    axes = kept[0].axes
    assert len(axes) == 6 and axes[1].get_title() == "8 texts a call"
    for i, ax in enumerate(axes):
        heights = [p.get_height() for p in ax.patches]
        assert heights == [t * (9 if i > 2 else 1) for _ in (128, 256) for t in (1, 4)]


def test_scores_in_panels_of_one_legend(tmp_path):
    image = pytest.importorskip("matplotlib.image")
    panels = [
        plot.Panel("F1", ["GAD"], {"tiny": [80.0], "base": [90.0]}, {}, {"tiny": [82.0]}),
        plot.Panel("MRR", ["6b"], {"base": [30.0]}),
    ]
    plot.scores(panels, tmp_path / "tables.png")
    picture = image.imread(tmp_path / "tables.png")
    orange = [int("D55E00"[i : i + 2], 16) / 255 for i in (0, 2, 4)]  # base, in both panels
    columns = (abs(picture[..., :3] - orange).max(-1) < 0.01).any(0).nonzero()[0]
    width = picture.shape[1]
    assert columns.min() < width / 2 < 0.6 * width < columns.max()
