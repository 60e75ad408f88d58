"""Pictures are drawn, on transparent ground, and bars have the heights of the table."""

import json

import pytest

from minibio.report import pictures
from minibio.run.errors import InputError

HEAD = "method,lengths,fidelity,by,teacher,ms_p50,peak_mib,time_of_authors,memory_of_authors,note"
ROWS = """compact,pubmed,,authors,fp32,99,99,,,
compact,pubmed,released,minibio,fp32,1,1,0.3,0.5,
compact,pubmed,released,minibio,bf16,1,1,0.25,0.4,
compact,pubmed,paper,minibio,fp32,1,1,0.9,0.9,
tiny,full,released,minibio,fp32,1,1,0.45,0.35,
mlm,full,released,minibio,fp32,1,1,,,"""
# on a GPU ours come first, each timed by itself: no share can be in their rows
ON_A_GPU = """compact,full,released,losses,fp32,,,,,loss 2.5 by authors
compact,pubmed,released,minibio-bf16,bf16,10,300,,,
compact,pubmed,released,minibio,fp32,40,500,,,
compact,pubmed,released,minibio,bf16,30,400,,,
compact,pubmed,released,authors-bf16,bf16,50,900,,,
compact,pubmed,released,authors/2,fp32,160,1000,,,
compact,pubmed,released,authors-bf16-compiled,bf16,,,,,failed: BackendCompilerFailed
tiny,pubmed,released,minibio,fp32,20,200,,,
tiny,pubmed,released,authors,fp32,,,,,out of memory
distil,pubmed,released,minibio,fp32,,,,,out of memory
distil,pubmed,released,authors,fp32,70,700,,,"""


SPEED = """model,precision,batch,length,ms_p50,peak_mib
tiny,fp32,1,128,3,60
large,fp32,1,128,9,400
tiny,fp32,1,256,5,70
large,fp32,1,256,20,500
tiny,fp32,8,128,24,90
tiny,bf16,1,128,2,40"""


@pytest.fixture
def image():
    return pytest.importorskip("matplotlib.image", reason="drawing is the extra `plot`")


LOSSES = {"teacher": (7, 4.5), "distilled": (7, 4.75), "undistilled": (7, 5.5)}
F1 = {"teacher": 0.4, "distilled": 0.375, "undistilled": 0.25}
NCBI = {"name": "ncbi/a", "command": "x",
        "scores": {"parameters": 700, "seeds": {"0": {"word f1": 0.5}}}}  # fmt: skip


@pytest.fixture
def demo(tmp_path):
    """What `make demo` leaves, as far as it is drawn."""
    for name, losses in LOSSES.items():
        run, ner = tmp_path / "demo" / name, tmp_path / "demo/ner" / name
        run.mkdir(parents=True), ner.mkdir(parents=True)
        lines = (
            {"event": "held_out", "step": 200 * i, "mlm_loss": x} for i, x in enumerate(losses)
        )
        (run / "log.jsonl").write_text("".join(f"{json.dumps(x)}\n" for x in lines), "utf-8")
        scores = {"precision": 0.5, "recall": 0.5, "f1": F1[name]}
        record = {"model": f"runs/demo/{name}", "test": {"word": scores}}
        (ner / "ner.json").write_text(json.dumps(record), "utf-8")
    return tmp_path / "demo"


@pytest.fixture
def kept(monkeypatch):
    """The figures, in place of files."""
    figures = []
    monkeypatch.setattr(pictures, "save_figure", lambda figure, out: figures.append(figure))
    return figures


def test_all_pictures(tmp_path, image, demo, capsys):
    (tmp_path / "step.csv").write_text(f"# a machine\n{HEAD}\n{ROWS}\n", "utf-8")
    (tmp_path / "measured.jsonl").write_text(f"{json.dumps(NCBI)}\n", "utf-8")
    (tmp_path / "speed.csv").write_text(f"# a machine\n{SPEED}\n", "utf-8")
    options = {"out": "p", "step": "step.csv", "demo": "demo", "speed": "speed.csv",
               "results": "measured.jsonl"}  # fmt: skip
    pictures.main([x for k, v in options.items() for x in (f"--{k}", str(tmp_path / v))])
    drawn = ("strategies", "walk", "cost", "demo", "models", "frontier")
    for name in drawn:
        picture = image.imread(tmp_path / "p" / f"{name}.png")  # (height, width, RGBA)
        least = 0.002 if name == "frontier" else 0.02  # it has one point
        assert picture[0, 0, 3] == 0 and (picture[..., 3] > 0.9).mean() > least, name
        assert (tmp_path / "p" / f"{name}.png").stat().st_size < 100_000
    assert capsys.readouterr().out.count(".png") == len(drawn)


def test_the_bars_are_the_rows(tmp_path, kept, image):
    (tmp_path / "step.csv").write_text(f"# a machine\n{HEAD}\n{ROWS}\n", "utf-8")
    pictures.cost(pictures.read_table(tmp_path / "step.csv"), tmp_path / "cost.png")
    time, memory = kept[0].axes
    heights = [[bar.get_height() for bar in bars] for bars in time.containers]
    assert heights[0] == [0.3, 0.45] and heights[1][0] == 0.25  # fp32 twice, bf16
    assert [bar.get_height() for bar in memory.containers[0]] == [0.5, 0.35]


def test_bars_of_a_table_made_on_a_gpu(tmp_path, kept, image):
    (tmp_path / "step.csv").write_text(f"# a machine\n{HEAD}\n{ON_A_GPU}\n", "utf-8")
    pictures.cost(pictures.read_table(tmp_path / "step.csv"), tmp_path / "cost.png")
    time, memory = kept[0].axes
    assert [x.get_text() for x in time.get_xticklabels()] == ["compact,\nPubMed"]
    assert [bars[0].get_height() for bars in time.containers] == [40 / 160, 30 / 160]
    assert [bars[0].get_height() for bars in memory.containers] == [0.5, 0.4]


def test_the_demo_is_its_logs_and_scores(tmp_path, kept, image, demo):
    pictures.demo(demo, tmp_path / "demo.png")
    left, right = kept[0].axes
    assert {x.get_label(): tuple(x.get_ydata()) for x in left.lines} == LOSSES
    assert [tuple(x.get_xdata()) for x in left.lines] == [(0, 200)] * 3
    assert [x.get_height() for x in right.patches] == [40, 37.5, 25]


def test_figure_2_is_its_table(tmp_path, kept, image):
    (tmp_path / "speed.csv").write_text(f"# a machine\n{SPEED}\n", "utf-8")
    pictures.models(pictures.read_table(tmp_path / "speed.csv"), tmp_path / "models.png")
    time, memory = kept[0].axes
    assert [[x.get_height() for x in bars] for bars in time.containers] == [[3, 9], [5, 20]]
    assert [[x.get_height() for x in bars] for bars in memory.containers] == [[60, 400], [70, 500]]
    assert [x.get_text() for x in time.get_xticklabels()] == ["tiny", "large"]


def test_every_model_of_a_shape_has_its_speed(tmp_path, monkeypatch, image):
    """Two models of 700 parameters, one of them timed; one of another shape, not timed."""
    monkeypatch.setattr(pictures, "save_figure", lambda figure, out: drawn.append(figure))
    drawn, f1 = [], {"word f1": 0.5}
    lines = [
        {"name": f"ncbi/{name}", "scores": {"parameters": n, "seeds": {"0": f1, "1": f1}}}
        for name, n in (("a", 700), ("b", 700), ("c", 50))
    ]
    speed = {"name": "speed", "scores": {"a": {"parameters": 700, "ms_p50": 43.2}}}
    pictures.frontier([*lines, speed], tmp_path / "x.png")
    by_size, by_time = drawn[0].axes
    assert [tuple(map(float, x.get_data()[0])) for x in by_time.lines] == [(43.2,), (43.2,)]
    assert [x.get_text() for x in by_time.texts] == ["a", "b"]
    assert [x.get_text() for x in by_size.texts] == ["c", "a", "b"]  # from left to right


def test_refusals(tmp_path, image):
    with pytest.raises(InputError, match=r"nothing\.csv: .*No such file"):
        pictures.read_table(tmp_path / "nothing.csv")
    with pytest.raises(InputError, match="no row of minibio as released"):
        pictures.cost([], tmp_path / "cost.png")
    with pytest.raises(InputError, match=r"teacher/log\.jsonl: No such file"):
        pictures.demo(tmp_path, tmp_path / "demo.png")
    with pytest.raises(InputError, match=r"--results .*nothing: no row ncbi/MODEL"):
        pictures.main(["--out", str(tmp_path), "--results", str(tmp_path / "nothing")])
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="file"):
        pictures.main(["--out", str(tmp_path / "file")])


@pytest.mark.parametrize(
    ("option", "content", "message"),
    [
        ("--step", b"a,b\n1,2\n", "no 'by'"),
        ("--step", b"by,\xff\n1,2\n", "0xff"),
        ("--step", b"by\n" + b"x" * 200_000, "field larger"),
        ("--results", b'{"name": "ncbi/a", "command": ""}\n', "no 'scores'"),
        ("--results", b'{"name": "ncbi/a", "command": "", "scores": {"seeds": []}}\n', "values"),
        ("--results", b'{"name": "ncbi/a", "command": "", "scores": "x"}\n', "indices"),
    ],
)
def test_files_that_hold_something_else(tmp_path, image, option, content, message):
    (tmp_path / "input").write_bytes(content)
    with pytest.raises(InputError, match=rf"input.*{message}"):
        pictures.main(["--out", str(tmp_path / "out"), option, str(tmp_path / "input")])
