"""Pictures are drawn, on transparent ground, and bars have the heights of the table."""

import pytest

from minibio.report import pictures
from minibio.run.errors import InputError

HEAD = "method,lengths,fidelity,by,teacher,time_of_authors,memory_of_authors"
ROWS = """compact,pubmed,,authors,fp32,,
compact,pubmed,released,minibio,fp32,0.3,0.5
compact,pubmed,released,minibio,bf16,0.25,0.4
compact,pubmed,paper,minibio,fp32,0.9,0.9
tiny,full,released,minibio,fp32,0.45,0.35
mlm,full,released,minibio,fp32,,"""


@pytest.fixture
def image():
    return pytest.importorskip("matplotlib.image", reason="drawing is the extra `plot`")


def test_all_pictures(tmp_path, image, capsys):
    (tmp_path / "step.csv").write_text(f"# a machine\n{HEAD}\n{ROWS}\n", "utf-8")
    pictures.main(["--out", str(tmp_path / "p"), "--step", str(tmp_path / "step.csv")])
    for name in ("strategies", "walk", "cost"):
        picture = image.imread(tmp_path / "p" / f"{name}.png")  # (height, width, RGBA)
        assert picture[0, 0, 3] == 0 and (picture[..., 3] > 0.9).mean() > 0.02, name
        assert (tmp_path / "p" / f"{name}.png").stat().st_size < 100_000
    assert capsys.readouterr().out.count(".png") == 3


def test_the_bars_are_the_rows(tmp_path, monkeypatch, image):
    kept = []
    monkeypatch.setattr(pictures, "save_figure", lambda figure, out: kept.append(figure))
    (tmp_path / "step.csv").write_text(f"# a machine\n{HEAD}\n{ROWS}\n", "utf-8")
    pictures.cost(pictures.read_table(tmp_path / "step.csv"), tmp_path / "cost.png")
    time, memory = kept[0].axes
    heights = [[bar.get_height() for bar in bars] for bars in time.containers]
    assert heights[0] == [0.3, 0.45] and heights[1][0] == 0.25  # fp32 twice, bf16
    assert [bar.get_height() for bar in memory.containers[0]] == [0.5, 0.35]


def test_refusals(tmp_path, image):
    with pytest.raises(InputError, match=r"--step .*nothing\.csv: No such file"):
        pictures.read_table(tmp_path / "nothing.csv")
    with pytest.raises(InputError, match="no row of minibio as released"):
        pictures.cost([], tmp_path / "cost.png")
