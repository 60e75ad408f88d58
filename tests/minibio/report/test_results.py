"""The rows of `make results`: whole on a small set, killed on the way, and refused when wrong."""

import json
import re
import subprocess
import sys

import pytest

import eval as evaluation
import train
from helpers import ROOT
from minibio.report import results
from minibio.run.errors import InputError

COUNT = """
[options]
more = "--text {text} --out {out}/b"

[[row]]
name = "a"
why = "first"
command = "python {model}/note.py --text {text} --out {out}/a"
tokens = 0.0

[[row]]
name = "b"
why = "second"
command = "python {model}/note.py {more}"

[[row]]
name = "c"
why = "not by default"
command = "python {model}/note.py --out {out}/c"
all = true
"""
NOTE = """
import json, os, pathlib, signal, sys
out = pathlib.Path(sys.argv[-1])
journal = out.parent / "calls.txt"
with journal.open("a") as file:
    file.write(f"{out.name} {' '.join(sys.argv[2:-2])}\\n")
if out.name == "b" and (out.parent / "stop").exists():
    os.kill(os.getppid(), signal.SIGTERM)
    signal.pause()
out.write_text(json.dumps({"systems": {f"{out.parent}/x": {"score": 0.5}}}))
"""
RUNS = """
import json, pathlib, sys
out = pathlib.Path(sys.argv[-1])
for seed, f1 in enumerate((0.5, 0.6, 0.7)):
    run = out / f"seed-{seed}"
    run.mkdir(parents=True)
    rate = {"f1": f1, "precision": f1, "recall": f1}
    test = {"word": rate, "piece": rate}
    record = {"task": "ner", "seed": seed, "parameters_encoder": 5, "test": test}
    (run / "ner.json").write_text(json.dumps(record))
"""


@pytest.fixture
def place(tmp_path, monkeypatch):
    (tmp_path / "rows.toml").write_text(COUNT, "utf-8")
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "note.py").write_text(NOTE, "utf-8")
    (tmp_path / "sets" / "ner").mkdir(parents=True)
    for name in "xy":
        (tmp_path / f"{name}.jsonl").touch()
    monkeypatch.setattr(results, "MEASURED", tmp_path / "kept.jsonl")
    monkeypatch.setattr(results, "frontier", lambda lines, out: None)
    return tmp_path


def words(place, *more):
    return ["--text", str(place / "x.jsonl"), str(place / "y.jsonl"), "--sets", str(place / "sets"),
            "--model", str(place / "model"), "--out", str(place / "out"), "--file",
            str(place / "rows.toml"), *more]  # fmt: skip


def calls(place):
    path = place / "out" / "calls.txt"
    return path.read_text("utf-8").splitlines() if path.exists() else []


def test_every_row_runs_once_and_leaves_a_line(place, capsys):
    assert results.main(words(place)) == 0
    text = f"--text {place / 'x.jsonl'} {place / 'y.jsonl'}"
    assert calls(place) == [f"a {text.split(' ', 1)[1]}", f"b {text.split(' ', 1)[1]}"]
    lines = [json.loads(x) for x in (place / "kept.jsonl").read_text("utf-8").splitlines()]
    assert [x["name"] for x in lines] == ["a", "b"]
    assert lines[1]["command"] == "python {model}/note.py --text {text} --out {out}/b"
    assert lines[0]["scores"] == {"systems": {"x": {"score": 0.5}}} and str(
        place
    ) not in json.dumps(lines)
    assert (place / "out/measured.jsonl").read_bytes() == (place / "kept.jsonl").read_bytes()
    assert results.main(words(place)) == 0 and len(calls(place)) == 2  # nothing is left
    assert results.main(words(place, "--rows", "all")) == 0
    assert [x.split()[0] for x in calls(place)] == ["a", "b", "c"]
    assert "== 1/1 c: not by default" in capsys.readouterr().out


def test_a_stop_resumes_where_it_was(place):
    (place / "out").mkdir()
    (place / "out/stop").touch()
    code = ("import sys; from pathlib import Path; from minibio.report import results as r; "
            f"r.MEASURED = Path({str(place / 'kept.jsonl')!r}); r.frontier = lambda *x: None; "
            "sys.exit(r.main(sys.argv[1:]))")  # fmt: skip
    command = [sys.executable, "-c", code, *words(place)]
    stopped = subprocess.run(command, cwd=ROOT, timeout=120, capture_output=True, text=True)
    assert stopped.returncode == 143, stopped
    assert "b ended with status 143" in stopped.stdout
    (place / "out/stop").unlink()
    assert subprocess.run(command, cwd=ROOT, timeout=120).returncode == 0
    assert [x.split()[0] for x in calls(place)] == ["a", "b", "b"]


@pytest.mark.parametrize(("goal", "status"), [(60, 0), (60.1, 1)])
def test_the_board_compares_the_mean_of_the_last_rows_seeds(place, capsys, goal, status):
    """0.50, 0.60 and 0.70 by words; the minutes are those of all rows, and of all restarts."""
    rows = COUNT.replace("{model}/note.py {more}", "{model}/note.py eval.py ner {more}")
    (place / "rows.toml").write_text(rows, "utf-8")
    (place / "model" / "note.py").write_text(RUNS, "utf-8")
    (place / "out").mkdir()
    stop = {"name": "b", "command": results.read_rows(place / "rows.toml", False)[1].command}
    for line in (stop, stop, stop | {"command": "another"}):
        results.keep(line | {"hours": 1.0, "processor_hours": 0.5}, place / "out/stopped.jsonl")
    assert results.main(words(place, "--goal", str(goal))) == status
    said = capsys.readouterr().out.splitlines()[-1]
    found = re.fullmatch(rf"b: F1 60.00 by words, goal {goal}, \w+ in ([\d.]+) minutes", said)
    assert 120 <= float(found[1]) < 122 and ("reached" in said) == (status == 0)
    line = results.read_lines(place / "kept.jsonl")[-1]
    assert 2 <= line["hours"] < 2.1 and 1 <= line["processor_hours"] < 1.1


def test_the_figures_kept_of_scores_and_speeds(tmp_path):
    """By hand; no place of this machine is among them."""
    ours = {"score": 0.5, "difference": None, "tokens_per_s": 9}
    record = {"figure": "F1", "units": 3, "data": str(tmp_path), "systems": {}}
    for name in (f"{tmp_path}/ncbi/a, fp32", "/elsewhere/b, fp32"):
        record["systems"][name] = ours
    (tmp_path / "score.json").write_text(json.dumps(record), "utf-8")
    found = results.figures(tmp_path / "score.json")
    assert found["systems"] == {"ncbi/a, fp32": ours, "/elsewhere/b, fp32": ours}
    assert "data" not in found and found["units"] == 3
    csv = "# a machine\nmodel,batch,ms_p50,parameters\na,8,43.2,700\nb,8,9.5,50\n"
    (tmp_path / "speed.csv").write_text(csv, "utf-8")
    assert results.figures(tmp_path) == {
        "a": {"parameters": 700, "ms_p50": 43.2},
        "b": {"parameters": 50, "ms_p50": 9.5},
    }


def test_a_goal_is_of_a_row_that_is_scored(place):
    with pytest.raises(InputError, match=r"--goal is an F1 of eval.py ner, .* ends with 'b'"):
        results.main(words(place, "--goal", "40"))
    assert calls(place) == []


def test_a_row_whose_line_a_crash_kept_from_the_source_is_not_lost(place):
    """Killed between the two files: the run's own has the line, and nothing is run again."""
    assert results.main(words(place)) == 0
    (place / "kept.jsonl").write_text("", "utf-8")
    assert results.main(words(place)) == 0
    assert [x["name"] for x in results.read_lines(place / "kept.jsonl")] == ["a", "b"]
    assert len(calls(place)) == 2


def test_a_row_that_fails_ends_the_run(place):
    (place / "model" / "note.py").write_text("raise SystemExit(2)", "utf-8")
    assert results.main(words(place)) == 2
    assert not (place / "kept.jsonl").exists()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[[row]]\nname = 'a'\n", r"rows\.toml, row 1: .*missing"),
        (COUNT.replace("tokens", "token"), r"rows\.toml, row 1: .*unexpected.*token"),
        (COUNT.replace('"b"', '"a"', 1), "'a' is named twice"),
        ("", r"no \[\[row\]\]"),
        ("[[row", r"rows\.toml: "),
    ],
)
def test_files_of_rows_that_are_refused(place, text, message):
    (place / "rows.toml").write_text(text, "utf-8")
    with pytest.raises(InputError, match=message):
        results.main(words(place))


ROW = 'name = "a"\nwhy = "b"\n'


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ("row = 5", "row is 5, expected"),
        (f"[row]\n{ROW}", "row is {'name'"),
        ('row = ["a"]', "row 1: .*mapping"),
        (f"options = [1]\n[[row]]\n{ROW}", r"options are \[1\]"),
        (f"[options]\na = 5\n[[row]]\n{ROW}", "options are {'a': 5}"),
        (f"[[row]]\n{ROW}command = 5", "row 1: command is 5, expected a str"),
        (f'[[row]]\n{ROW}command = ["a"]', "row 1: command is"),
        (f'[[row]]\n{ROW}command = "x \'y --out z"', "row 1: No closing quotation"),
        (f'[[row]]\n{ROW}command = "python x"', "row 1: its command has no --out"),
        (f'[[row]]\n{ROW}command = "python x --out"', "row 1: its command has no --out"),
        (f'[[row]]\n{ROW}command = "x --out y"\ntokens = "5"', "row 1: tokens is '5'"),
        (f'[[row]]\n{ROW}command = "x --out y"\nall = "no"', "row 1: all is 'no'"),
        ('[[row]]\nname = [5]\nwhy = "b"\ncommand = "x --out y"', "row 1: name is"),
    ],
)
def test_rows_of_other_types(tmp_path, rows, message):
    (tmp_path / "rows.toml").write_text(rows, "utf-8")
    with pytest.raises(InputError, match=rf"rows\.toml.*{message}"):
        results.read_rows(tmp_path / "rows.toml", every=True)


@pytest.mark.parametrize(
    "fields",
    [{}, {"scores": {}, "hours": "x"}, {"scores": {"seeds": []}, "hours": 1},
     {"scores": {"held_out_loss": "x"}, "hours": 1}],
)  # fmt: skip
def test_a_journal_of_other_types(place, fields):
    (place / "out").mkdir()
    rows = [row._asdict() for row in results.read_rows(place / "rows.toml", every=False)]
    lines = ({"name": row["name"], "command": row["command"], **fields} for row in rows)
    (place / "out/measured.jsonl").write_text("".join(f"{json.dumps(x)}\n" for x in lines), "utf-8")
    with pytest.raises(InputError, match=r"measured\.jsonl is not as it was written"):
        results.main(words(place))


def test_places_that_are_not_there(place):
    with pytest.raises(InputError, match=r"--sets .*nowhere/ner is not there"):
        results.main([*words(place), "--sets", str(place / "nowhere")])


def test_the_rows_of_the_library_are_commands(tmp_path):
    """Every option is one of the scripts', and every row's input is an earlier row's output."""
    places = {name: [str(tmp_path / name)] for name in ("model", "text", "sets", "out")}
    for name in ("model", "sets"):
        (tmp_path / name).mkdir()
    made = set()
    board = results.read_rows(results.ROWS.with_name("board.toml"), every=True)
    assert not any("{model}" in row.command for row in board)  # from nothing
    for row in [*results.read_rows(results.ROWS, every=True), *board]:
        _, *found = results.words_of(row, places)
        script = found[1] if found[0] == "-m" else found[0]
        assert script in ("data.shard", "train.py", "eval.py"), row
        own = str(results.out_of(found))
        for word in found:
            if word.startswith(f"{tmp_path}/out/") and word != own:
                assert any(word == x or word.startswith(x + "/seed-") for x in made), (row, word)
            if word.startswith(f"{tmp_path}/") and word != own:
                (tmp_path / word).mkdir(parents=True, exist_ok=True)  # as it will be
        if script == "train.py":
            train.read(found[1:])
        elif script == "eval.py":
            evaluation.read(found[1:])
        made.add(own)
    default = results.read_rows(results.ROWS, every=False)
    assert sum(row.tokens for row in default) <= 30
