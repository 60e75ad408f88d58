"""Pictures that show every bar there is, and none that there is not."""

import pytest

from minibio.report import charts, plot

pytest.importorskip("matplotlib", reason="drawing is the extra `plot`")


def drawn(panel):
    ax = plot.new_figure(charts.Path("x.png"), 4, 3).subplots()
    charts.draw(ax, panel)
    return ax


def test_bars_side_by_side():
    ax = drawn(charts.Panel("title", ["a", "b"], {"one": [1, 2], "two": [3, None]}))
    places = [(round(p.get_x(), 6), round(p.get_width(), 6), p.get_height()) for p in ax.patches]
    assert places == [(-0.4, 0.4, 1), (0.6, 0.4, 2), (0.0, 0.4, 3)]
    assert [t.get_text() for t in ax.get_xticklabels()] == ["a", "b"] and not ax.lines
    assert ax.get_title() == "title" and ax.get_legend_handles_labels()[1] == ["one", "two"]


def test_whiskers_and_marks_stand_at_their_bars():
    whiskers, marks = {"one": [None, (2, 1)]}, {"one": [3, None]}
    panel = charts.Panel("", ["a", "b"], {"one": [1, 5]}, whiskers, marks)
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
    kept = []
    monkeypatch.setattr(charts, "save_figure", lambda figure, out: kept.append(figure))
    charts.time_and_memory(rows(), tmp_path / "speed.png")
    axes = kept[0].axes
    assert len(axes) == 6 and axes[1].get_title() == "8 texts a call"
    for i, ax in enumerate(axes):
        heights = [p.get_height() for p in ax.patches]
        assert heights == [t * (9 if i > 2 else 1) for _ in (128, 256) for t in (1, 4)]


def test_scores_in_panels_of_one_legend(tmp_path):
    image = pytest.importorskip("matplotlib.image")
    panels = [
        charts.Panel("F1", ["GAD"], {"tiny": [80.0], "base": [90.0]}, {}, {"tiny": [82.0]}),
        charts.Panel("MRR", ["6b"], {"base": [30.0]}),
    ]
    charts.scores(panels, tmp_path / "tables.png")
    picture = image.imread(tmp_path / "tables.png")
    orange = [int("D55E00"[i : i + 2], 16) / 255 for i in (0, 2, 4)]  # base, in both panels
    columns = (abs(picture[..., :3] - orange).max(-1) < 0.01).any(0).nonzero()[0]
    width = picture.shape[1]
    assert columns.min() < width / 2 < 0.6 * width < columns.max()
