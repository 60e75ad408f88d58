"""The last frame of every command: one line and status 2 for bad input, a traceback for a bug."""

import os
import subprocess
import sys

import pytest

from helpers import ROOT
from minibio.run.errors import InputError, RunFailed, run


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


def test_a_run_without_a_result_has_status_1(capsys):
    line = "name: error: no step was finite\n"
    assert ends_with(raising(RunFailed("no step was finite")), capsys) == (1, line)


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 4 bytes."),
        RuntimeError("CUDA out of memory. Tried to allocate 20.00 MiB.\nGPU 0 has ..."),
        MemoryError("Unable to allocate 7 TiB"),
    ],
)
def test_too_little_memory_is_one_line(error, capsys):
    status, said = ends_with(raising(error), capsys)
    assert status == 1 and said.count("\n") == 1
    assert "not enough memory" in said and "smaller batches" in said and "allocate" in said


@pytest.mark.parametrize("broken_rank", [0, 1])
def test_under_torchrun_the_reason_is_the_last_word(tmp_path, broken_rank):
    """Of the rank that failed, not of one that missed it, whatever their order."""
    script = tmp_path / "job.py"
    script.write_text(
        "import os\n"
        "from minibio.run.errors import InputError, RankGone, run\n"
        "def main():\n"
        f"    if os.environ['RANK'] == '{broken_rank}':\n"
        "        raise InputError('the disk of this rank is full')\n"
        "    raise RankGone('another rank is gone')\n"
        "run(main, 'job.py')\n"
    )
    done = torchrun(script)
    assert done.returncode == 1
    *_, last, border = done.stderr.splitlines()
    assert set(border) == {"="}
    assert last == "  traceback : job.py: error: the disk of this rank is full"
    assert f"rank      : {broken_rank} (local_rank" in done.stderr.split("Root Cause")[1]


def test_under_torchrun_a_wrong_option_is_printed_once_and_last():
    done = torchrun("train.py", "--method", "mlm", "--lr", "-1")
    line = "train.py: error: --lr is -1.0, expected above 0"
    assert done.stderr.splitlines().count(line) == 1
    assert done.stderr.splitlines()[-2] == f"  traceback : {line}"


def torchrun(*command):
    words = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", *command]
    env = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    words = [sys.executable, *map(str, words)]
    return subprocess.run(words, cwd=ROOT, env=env, capture_output=True, text=True, timeout=300)


@pytest.mark.parametrize(
    ("work", "said"),
    [
        ("again()", "name: interrupted\n"),
        ("try: again()\n    finally: again()", ""),  # nothing has answered the first one yet
        ("pass", ""),
    ],
)
def test_an_interrupt_is_no_traceback(work, said):
    """However many: in the work, on its way out, and while Python waits for others at its end."""
    code = (
        "import atexit, signal, time\n"
        "def again():\n    os.kill(os.getpid(), signal.SIGINT)\n    time.sleep(60)\n"
        "atexit.register(again)\n"
        f"def main():\n    {work}"
    )
    process = python(code, stderr=subprocess.PIPE, text=True)
    assert process.communicate(timeout=50)[1] == said
    assert process.returncode == 130


@pytest.mark.parametrize("error", [ValueError("expected (N, H, D)"), AssertionError()])
def test_a_bug_keeps_its_traceback(error):
    with pytest.raises(type(error)):
        run(raising(error), "name")


def test_a_traceback_on_demand(monkeypatch):
    monkeypatch.setenv("MINIBIO_TRACEBACK", "1")
    with pytest.raises(InputError):
        run(raising(InputError("x")), "name")


def python(code, redirections="", **pipes):
    """A command that runs `main`, made by `code`, under a shell's redirections."""
    code = f"import sys, os\nfrom minibio.run.errors import run\n{code}\nrun(main, 'name')"
    command = ["sh", "-c", f'exec "$0" -c "$1" {redirections}', sys.executable, code]
    return subprocess.Popen(command, cwd=ROOT, **pipes)


@pytest.mark.parametrize("n", [1, 10**6])  # within Python's buffer, and beyond
def test_a_pipe_closed_by_its_reader(n):
    """`minibio ... | head -1` ends quietly, with the status of SIGPIPE: not as if it were done."""
    code = (
        f"def main():\n    print(0, flush=True)\n    sys.stdin.read()\n"
        f"    for i in range({n}): print(i)\n"
    )
    pipe = subprocess.PIPE
    writer = python(code, stdin=pipe, stdout=pipe, stderr=pipe)
    assert writer.stdout.readline() == b"0\n"
    writer.stdout.close()
    writer.stdin.close()
    assert writer.stderr.read() == b""
    writer.stderr.close()
    assert writer.wait(timeout=60) == 141


@pytest.mark.parametrize("closed", ["<&-", ">&-", "2>&-", "<&- >&- 2>&-"])
def test_files_do_not_take_the_place_of_closed_streams(tmp_path, closed):
    """What a library writes to descriptors 1 and 2 is in no file that was opened later."""
    code = (
        f"def main():\n    with open({str(tmp_path / 'file')!r}, 'w') as file:\n"
        "        os.write(1, b'noise')\n        os.write(2, b'noise')\n"
        "        print('to stdout')\n        print('to stderr', file=sys.stderr)\n"
        "        file.write('text')\n"
    )
    pipe = subprocess.PIPE
    process = python(code, closed, stdin=pipe, stdout=pipe, stderr=pipe)
    out, err = process.communicate()
    assert process.returncode == 0 and (tmp_path / "file").read_text() == "text"
    assert out == (b"" if ">&-" in closed.split() else b"noiseto stdout\n")
    assert err == (b"" if "2>&-" in closed else b"noiseto stderr\n")


def test_an_error_is_not_printed_among_the_output(tmp_path):
    code = "def main():\n    print('out')\n    raise OSError('x')"
    process = python(code, "2>&-", stdout=subprocess.PIPE)
    assert process.communicate()[0] == b"out\n" and process.returncode == 2


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="of Linux")
def test_a_full_disk_is_one_line():
    process = python("def main():\n    print('x')", "> /dev/full", stderr=subprocess.PIPE)
    error = process.communicate()[1].decode()
    assert error == "name: error: [Errno 28] No space left on device\n"
    assert process.returncode == 2


def test_few_products_are_kept():
    """In a process of its own: the first shape of 70 has to be made again, as oneDNN tells."""
    source = """
from minibio.run import errors
errors.spare_memory()
import torch
from minibio.model.products import PackedLinear
layer = PackedLinear(torch.ones(8, 8), None)
for n in (*range(1, 71), 1):
    layer(torch.ones(n, 8))
"""
    told = subprocess.run(
        [sys.executable, "-c", source],
        env={**os.environ, "ONEDNN_VERBOSE": "profile_create"},
        capture_output=True,
        text=True,
        check=True,
        cwd=ROOT,
    ).stdout
    made = [line for line in told.splitlines() if "create:cache" in line and "mb1ic8oc8" in line]
    assert ["cache_miss" in line for line in made] == [True, True], told
