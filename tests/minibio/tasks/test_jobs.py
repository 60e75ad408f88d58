"""Many inputs to a directory: resumed, dealt out, refused; the command as users run it."""

import gzip
import json
import shutil
from functools import partial

import pytest

import eval as evaluation
from helpers import processes
from minibio.run import errors
from minibio.tasks.jobs import Job, deal
from minibio.tasks.predict import Predictor
from toy_tasks import make_heads

CPU = ["--device", "cpu", "--threads", "1", "--precision", "fp32"]


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    base = make_heads(tmp_path_factory.mktemp("models"))
    (base / "in").mkdir()
    for i in range(4):
        lines = [{"pmid": f"{i}-{k}", "title": "The Gout.", "abstract": f"Colic {k}. " * (k % 5)}
                 for k in range(5 * i + 2)]  # fmt: skip
        text = "".join(json.dumps(line) + "\n" for line in lines)
        (base / "in" / f"{i}.jsonl").write_text(text, "utf-8")
    packed = gzip.compress((base / "in" / "3.jsonl").read_bytes())
    (base / "in" / "packed.jsonl.gz").write_bytes(packed)
    (base / "in" / "words.tsv").write_text("The\tO\nGout\tB\n\nColic\tB\n", "utf-8")
    evaluation.main([*command(base, base / "in"), "--out", str(base / "whole")])
    return base


def command(base, *inputs, head="token"):
    inputs = [y for x in inputs for y in (sorted(x.iterdir()) if x.is_dir() else [x])]
    return ["predict", *map(str, [base / head, *inputs]), *CPU]


def contents(folder):
    return {x.name: x.read_bytes() for x in folder.iterdir() if not x.name.startswith(".")}


def run(capsys, given):
    """Exit status, stdout and stderr of the command."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as leaving:
        errors.run(partial(evaluation.main, [str(x) for x in given]), "eval.py")
    return leaving.value.code, *capsys.readouterr()


def test_an_output_for_each_input(base, capsys):
    got = contents(base / "whole")
    names = {"0.jsonl", "1.jsonl", "2.jsonl", "3.jsonl", "packed.jsonl", "words.conll"}
    assert set(got) == names | {"predict.json"} and got["packed.jsonl"] == got["3.jsonl"]
    for i in range(4):
        status, out, _ = run(capsys, command(base, base / "in" / f"{i}.jsonl"))
        assert (status, out.encode()) == (0, got[f"{i}.jsonl"])
        assert [json.loads(x)["pmid"] for x in out.splitlines()] == [
            f"{i}-{k}" for k in range(5 * i + 2)
        ]
    assert [len(x.split()) for x in got["words.conll"].decode().split("\n")] == [3, 3, 0, 3, 0]


def test_the_same_command_makes_what_is_missing(base, tmp_path, capsys, monkeypatch):
    """A kill leaves an output whole or not there, and half of it under a hidden name."""
    out = shutil.copytree(base / "whole", tmp_path / "out")
    for name in ("1.jsonl", "3.jsonl"):
        (out / f".{name}.new").write_bytes((out / name).read_bytes()[:40])
        (out / name).unlink()
    before = {name: (out / name).stat().st_mtime_ns for name in contents(out)}
    status, told, _ = run(capsys, [*command(base, base / "in"), "--out", out])
    assert status == 0 and "4 of 6 outputs are there" in told and "wrote 2 of 2 outputs" in told
    assert contents(out) == contents(base / "whole")
    assert [x.name for x in out.iterdir() if x.name.startswith(".")] == []
    changed = {x for x in before if (out / x).stat().st_mtime_ns != before[x]}
    assert changed == {"predict.json"}
    monkeypatch.setattr(Predictor, "__call__", None)  # nothing is left to do
    status, told, _ = run(capsys, [*command(base, base / "in"), "--out", out])
    assert status == 0 and "6 of 6 outputs are there" in told and "wrote" not in told


def test_a_kill_within_an_output(base, tmp_path, monkeypatch, capsys):
    calls, call = [], Predictor.__call__

    def killed(self, items):
        calls.append(items)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return call(self, items)

    monkeypatch.setattr(Predictor, "__call__", killed)
    given = [*command(base, base / "in"), "--out", tmp_path / "out"]
    assert run(capsys, given)[0] == 130
    assert len(contents(tmp_path / "out")) == 3  # the record and two outputs
    monkeypatch.undo()
    assert run(capsys, given)[0] == 0 and contents(tmp_path / "out") == contents(base / "whole")


def test_two_ranks_write_what_one_writes(base, tmp_path):
    given = [*command(base, base / "in"), "--out", tmp_path / "out"]
    told = processes(2, ["eval.py", *given])
    assert [status for status, *_ in told] == [0, 0], told
    assert "wrote 6 of 6 outputs" in told[0][1] and told[1][1] == "" and told[0][2] == ""
    assert contents(tmp_path / "out") == contents(base / "whole")
    told = processes(2, ["eval.py", *command(base, base / "in" / "0.jsonl")])
    assert [status for status, *_ in told] == [2, 2] and "name a directory" in told[0][2]


def test_inputs_are_dealt_by_size():
    jobs = [Job(str(i), "", size) for i, size in enumerate([5, 1, 9, 2, 2, 5])]
    hands = deal(jobs, 3)
    assert sorted(job for hand in hands for job in hand) == sorted(jobs)
    assert sorted(sum(job.size for job in hand) for hand in hands) == [7, 8, 9]
    assert deal([], 2) == [[], []]


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--threshold", "0.5"], "threshold is 0.0, now 0.5; name another --out"),
        (["--format", "pubtator"], "format is json, now pubtator"),
        (["--precision", "bf16"], "precision is fp32, now bf16"),
    ],
)
def test_another_run_is_refused(base, capsys, monkeypatch, more, message):
    monkeypatch.setattr("minibio.run.precision.has_bf16_products", lambda device: True)
    before = contents(base / "whole")
    status, _, told = run(capsys, [*command(base, base / "in"), *more, "--out", base / "whole"])
    assert status == 2 and message in told and told.count("\n") == 1
    assert contents(base / "whole") == before


def test_another_model_and_another_input_are_refused(base, tmp_path, capsys):
    out = shutil.copytree(base / "whole", tmp_path / "out")
    other = shutil.copytree(base / "token", tmp_path / "token")
    (other / "ner.json").write_text('{"config": {"length": 9}}')
    status, _, told = run(capsys, [*command(tmp_path, base / "in"), "--out", out])
    assert status == 2 and "model is" in told
    (tmp_path / "1.jsonl").write_text('{"text": "a"}\n')
    status, _, told = run(capsys, [*command(base, tmp_path / "1.jsonl"), "--out", out])
    assert status == 2 and "1.jsonl is not of" in told and "remove it" in told
    (out / "predict.json").unlink()
    status, _, told = run(capsys, [*command(base, base / "in"), "--out", out])
    assert status == 2 and "is not of" in told


def test_a_wrong_input_is_one_line_and_the_others_are_written(base, tmp_path, capsys):
    (tmp_path / "bad.jsonl").write_text('{"text": "Gout"}\n{"text": 3}\n')
    (tmp_path / "table.csv").write_text("pmid,title\n1,a\n")
    inputs = [tmp_path / "bad.jsonl", base / "in" / "1.jsonl", tmp_path / "table.csv"]
    status, out, told = run(capsys, [*command(base, *inputs), "--out", tmp_path / "out"])
    assert status == 2 and "wrote 1 of 3 outputs" in out
    first, second = told.splitlines()
    assert first.startswith("eval.py: error: ") and "bad.jsonl: line 2 is" in first
    assert "table.csv is a table" in second and second.startswith("eval.py: error: ")
    assert set(contents(tmp_path / "out")) == {"1.jsonl", "bad.jsonl.partial", "predict.json"}
    kept = (tmp_path / "out" / "bad.jsonl.partial").read_text()
    assert json.loads(kept)["text"] == "Gout" and "bad.jsonl.partial" in first
    # to the standard output and to a file, too
    status, out, told = run(capsys, command(base, inputs[0]))
    assert status == 2 and json.loads(out)["text"] == "Gout" and "line 2" in told
    status, out, told = run(capsys, [*command(base, inputs[0]), "--out", tmp_path / "x.jsonl"])
    assert status == 2 and out == "" and not (tmp_path / "x.jsonl").exists()
    assert (tmp_path / "x.jsonl.partial").read_text() == kept


@pytest.mark.parametrize(
    ("head", "inputs", "more", "message"),
    [
        ("token", ["in/0.jsonl", "in/1.jsonl"], [], "several inputs needs a directory"),
        ("token", ["in/0.jsonl"], ["--format", "brat"], "brat needs a directory"),
        ("token", ["in/3.jsonl", "x/3.jsonl"], ["--out", "o"], "both have the output"),
        ("token", ["in/0.jsonl", "nowhere"], ["--out", "o"], "nowhere: no such file"),
        ("token", ["-"], ["--out", "o/"], "-: no such file"),
        ("token", ["in/0.jsonl"], ["--all-labels"], "--all-labels is for relations"),
        ("sequence", ["in/0.jsonl"], ["--format", "pubtator"], "is for entities"),
        ("token", ["in/0.jsonl"], ["--threshold", "1.01"], "1.01 is not between 0 and 1"),
        ("token", ["in/0.jsonl"], ["--threshold", "nan"], "nan is not between 0 and 1"),
    ],
)
def test_refusals(base, tmp_path, capsys, head, inputs, more, message):
    (base / "x").mkdir(exist_ok=True)
    shutil.copy(base / "in" / "3.jsonl", base / "x")
    paths = [x if x == "-" else base / x for x in inputs]
    more = [f"{tmp_path}/{x}" if x.startswith("o") else x for x in more]
    given = ["predict", base / head, *paths, *CPU, *more]
    status, out, told = run(capsys, given)
    assert (status, out) == (2, "") and message in told and told.count("\n") == 1
    assert not (tmp_path / "o").exists()


def test_options_may_come_between(base, capsys):
    one = run(capsys, ["predict", *CPU, base / "token", base / "in" / "1.jsonl"])
    assert one == run(capsys, command(base, base / "in" / "1.jsonl"))
    assert one == run(capsys, ["predict", base / "token", *CPU, base / "in" / "1.jsonl"])


def test_brat_and_pubtator_in_a_directory(base, tmp_path, capsys):
    for format, names in (("brat", ["0", "1"]), ("pubtator", ["0.pubtator", "1.pubtator"])):
        inputs = [base / "in" / f"{i}.jsonl" for i in (0, 1)]
        out = tmp_path / format
        assert run(capsys, [*command(base, *inputs), "--format", format, "--out", out])[0] == 0
        assert sorted(x.name for x in out.iterdir() if x.name[0] != ".") == [*names, "predict.json"]
    assert sorted(x.name for x in (tmp_path / "brat" / "0").iterdir()) == [
        "0-0.ann", "0-0.txt", "0-1.ann", "0-1.txt",
    ]  # fmt: skip


def test_threshold(base, tmp_path, capsys):
    given = command(base, base / "in" / "3.jsonl")
    every = [json.loads(x) for x in run(capsys, given)[1].splitlines()]
    found = sorted({e["probability"] for x in every for e in x["entities"]})
    p = found[len(found) // 2] - 1e-9
    some = [json.loads(x) for x in run(capsys, [*given, "--threshold", p])[1].splitlines()]
    for x, y in zip(every, some, strict=True):
        assert y["entities"] == [e for e in x["entities"] if e["probability"] >= p]
    (tmp_path / "given").write_text("The << Gout >> causes [[ Colic ]]\n")
    given = command(base, tmp_path / "given", head="sequence")
    (x,) = (json.loads(run(capsys, [*given, *more])[1]) for more in (["--all-labels"],))
    assert set(x["probabilities"]) == {"no", "yes"}
    assert sum(x["probabilities"].values()) == pytest.approx(1, abs=2e-6)
    assert max(x["probabilities"], key=x["probabilities"].get) == x["label"]
    y = json.loads(run(capsys, given)[1])
    assert y == {name: value for name, value in x.items() if name != "probabilities"}
    for p, label in ((y["probability"] - 1e-3, y["label"]), (1, None)):
        assert json.loads(run(capsys, [*given, "--threshold", p])[1]) == y | {"label": label}
