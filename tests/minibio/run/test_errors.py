"""The last frame of every command: one line and status 2 for bad input, a traceback for a bug."""

import subprocess
import sys

import pytest

from helpers import ROOT
from minibio.run.errors import InputError, run


def ends_with(main, capsys):
    """(exit status, stderr) of `main` run as the command `name`."""
    with pytest.raises(SystemExit) as caught:
        run(main, "name")
    return caught.value.code, capsys.readouterr().err


def raising(error):
    def main():
        raise error

    return main


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (InputError("x.tsv: line 3 has\n  one column"), "x.tsv: line 3 has one column"),
        (FileNotFoundError(2, "No such file", "x"), "[Errno 2] No such file: 'x'"),
    ],
)
def test_bad_input_is_one_line_and_status_2(error, line, capsys):
    assert ends_with(raising(error), capsys) == (2, f"name: error: {line}\n")


def test_the_status_is_what_main_returns(capsys):
    assert ends_with(lambda: None, capsys) == (0, "")
    assert ends_with(lambda: 1, capsys) == (1, "")


def test_an_interrupt_is_no_traceback(capsys):
    assert ends_with(raising(KeyboardInterrupt()), capsys) == (130, "name: interrupted\n")


@pytest.mark.parametrize("error", [ValueError("expected (N, H, D)"), AssertionError()])
def test_a_bug_keeps_its_traceback(error):
    with pytest.raises(type(error)):
        run(raising(error), "name")


def test_a_traceback_on_demand(monkeypatch):
    monkeypatch.setenv("MINIBIO_TRACEBACK", "1")
    with pytest.raises(InputError):
        run(raising(InputError("x")), "name")


def test_a_pipe_closed_by_its_reader():
    """`minibio ... | head -1` ends quietly."""
    code = (
        "from minibio.run.errors import run\n"
        "def main():\n    for i in range(10**6): print(i)\n"
        "run(main, 'name')"
    )
    writer = subprocess.Popen(
        [sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert writer.stdout.readline() == b"0\n"
    writer.stdout.close()
    assert writer.stderr.read() == b""
    writer.stderr.close()
    assert writer.wait(timeout=60) == 0
