"""The Makefile: Pythons, environments, the demo. The parts of `make gpu` are in test_gpu.py."""

import dataclasses
import os
import re
import shutil
import subprocess

import pytest

import train
from helpers import ROOT
from minibio.config import MODELS

pytestmark = pytest.mark.skipif(shutil.which("make") is None, reason="needs make")


@pytest.fixture(autouse=True)
def not_within_make(monkeypatch):
    """Without what the `make test VERSIONS` that runs this hands to every make below it."""
    for name in ("MAKEFLAGS", "MAKELEVEL", "MAKEOVERRIDES", "MFLAGS", "TORCH", "TRITON"):
        monkeypatch.delenv(name, raising=False)


def test_gpu_starts_the_parts_with_the_machines_own_python(tmp_path):
    """One that has the packages; a status of its own is a failure of make."""
    python = tmp_path / "python"
    python.write_text('#!/bin/sh\n[ "$1" = -c ] && exit; echo "$@"; [ "$PART" != bad ]\n', "utf-8")
    python.chmod(0o755)
    for part, status in (("smoke step", 0), ("bad", 2)):
        done = subprocess.run(
            ["make", "--no-print-directory", "gpu", f"PYTHON={python}", f"OUT={tmp_path}",
             f"PART={part}", "GPU_SECONDS=7"],
            cwd=ROOT, capture_output=True, text=True, env={**os.environ, "PART": part},
        )  # fmt: skip
        expected = f"-m minibio.bench.gpu --out {tmp_path} --seconds 7 {part}"
        assert done.stdout.splitlines()[0] == expected and done.returncode == status


def test_without_a_gpu_one_line(tmp_path):
    done = subprocess.run(
        ["make", "--no-print-directory", "gpu", "PYTHON=false", f"OUT={tmp_path / 'out'}"],
        cwd=ROOT, capture_output=True, text=True, env={"PATH": os.environ["PATH"]},
    )  # fmt: skip
    if os.path.exists("/dev/nvidiactl"):
        pytest.skip("there is a GPU")
    assert done.stdout == "make gpu: no NVIDIA GPU on this machine\n" and done.returncode == 2
    assert not (tmp_path / "out").exists()


def test_bytecode_is_kept():
    rule = 'said: ; @echo "[$$PYTHONDONTWRITEBYTECODE]"'
    done = subprocess.run(
        ["make", "--no-print-directory", "--eval", rule, "said"],
        cwd=ROOT, capture_output=True, text=True,
        env={**os.environ, "PYTHONDONTWRITEBYTECODE": "1"},
    )  # fmt: skip
    assert done.stdout == "[]\n", done


@pytest.mark.parametrize(
    ("versions", "name"),
    [
        ((), ".venv"),
        (("TORCH=torch==2.13.0 --index-url https://example.org",), ".venv"),
        (("TORCH=torch==2.11.0", "TRITON=triton==3.6.0"), ".venv-torch-2.11.0-triton-3.6.0"),
        (("TRITON=triton>=3.6",), ".venv-triton-3.6"),
    ],
)
def test_other_versions_have_an_environment_of_their_own(versions, name):
    done = subprocess.run(
        ["make", "-n", "--always-make", "test", *versions],
        cwd=ROOT, capture_output=True, text=True, check=True,
    )  # fmt: skip
    used = re.findall(r"(\S+)/bin/python -m (pip install|pytest)", done.stdout)
    assert {venv for venv, _ in used} == {name} and ("pytest" in {what for _, what in used})
    for version in versions:
        options = "-qq --no-compile --disable-pip-version-check"
        assert f"pip install {options} {version.partition('=')[2]}" in done.stdout


def test_all_tests_run_with_both_sets_of_versions():
    done = subprocess.run(
        ["make", "-n", "--always-make", "test-all"],
        cwd=ROOT, capture_output=True, text=True, check=True,
    )  # fmt: skip
    runs = re.findall(r"(\S+)/bin/python -m pytest .*", done.stdout)
    assert runs == [".venv", ".venv-torch-2.11.0-triton-3.6.0"]


# a Python that notes its commands in the order of their ends, and fails as one that is asked to
DEMO_PYTHON = """#!/bin/sh
case "$*" in
*$FAIL*) echo "why: $*"; exit 3;;
*" --teacher "*) [ -e "$OUT/teacher" ] || echo "no teacher" >>"$OUT/commands";;
*"--out $OUT/teacher") sleep 0.3; mkdir "$OUT/teacher";;
esac
echo "$OMP_NUM_THREADS: $*" >>"$OUT/commands"
"""


def demo(tmp_path, fail="nothing"):
    """`make demo` with that Python -> (status, output, [(threads, words)])."""
    python, out = tmp_path / "python", tmp_path / "out"
    python.write_text(DEMO_PYTHON, "utf-8")
    python.chmod(0o755)
    (out / "shards").mkdir(parents=True)
    done = subprocess.run(
        ["make", "demo", "-o", ".venv/.plot", f"PY={python}", f"DEMO={out}", "SEED=7"],
        cwd=ROOT, capture_output=True, text=True,
        env={**os.environ, "OUT": str(out), "FAIL": fail, "OMP_NUM_THREADS": "5"},
    )  # fmt: skip
    lines = (out / "commands").read_text("utf-8").splitlines()
    commands = [line.split(": ", 1) for line in lines]
    return done.returncode, done.stdout, [(n, words.split()) for n, words in commands]


def test_the_demo_from_texts_to_table_and_picture(tmp_path):
    status, shown, commands = demo(tmp_path)
    out = str(tmp_path / "out")
    assert status == 0 and shown.startswith("make demo: ")
    runs = {words[words.index("--out") + 1]: (n, words) for n, words in commands}
    names = ("teacher", "distilled", "undistilled")
    assert list(runs)[:2] == [f"{out}/text", f"{out}/shards"]
    assert list(runs)[-2:] == [f"{out}/table", f"{out}/loss.png"]
    side_by_side = {f"{out}/{where}{name}" for where in ("", "ner/") for name in names}
    assert set(list(runs)[2:-2]) == side_by_side
    assert all(runs[path][0] == "1" for path in side_by_side)
    models = [f"{out}/{name}" for name in names]
    compared = runs[f"{out}/table"][1]
    assert compared[2:] == [*models, "--ner", *(f"{out}/ner/{name}" for name in names), "--out",
                            f"{out}/table"]  # fmt: skip
    ends = list(runs)
    for name in names:
        assert ends.index(f"{out}/{name}") < ends.index(f"{out}/ner/{name}")


def test_the_demos_students_differ_in_the_teacher_only(tmp_path):
    """The same start, steps, order and rates: every other field of the two runs is equal."""
    commands = demo(tmp_path)[2]
    runs = {}
    for _, (script, *options) in commands:
        if script == "train.py":
            args, run = train.read(options)
            runs[args.out.name] = (args, dataclasses.asdict(run))
    (distilled, a), (undistilled, b) = runs["distilled"], runs["undistilled"]
    assert {name for name in a if a[name] != b[name]} == {"method"}
    assert (a["method"], b["method"], a["seed"]) == ("tiny", "mlm", 7)
    assert distilled.corpus == undistilled.corpus and undistilled.teacher is None
    teacher, student = MODELS[runs["teacher"][1]["model"]], MODELS[a["model"]]
    assert (teacher.L, teacher.C, teacher.H, teacher.E) == (
        student.L, student.C, student.H, student.E
    )  # fmt: skip
    assert student.C_intra < student.C <= teacher.C_intra


@pytest.mark.parametrize("fail", ["--out */undistilled", "eval.py ner*/teacher "])
def test_what_the_demo_does_in_silence_is_shown_where_it_fails(tmp_path, fail):
    status, shown, commands = demo(tmp_path, fail)
    assert status == 2 and "why: " in shown
    assert not any("compare" in words for _, words in commands)
