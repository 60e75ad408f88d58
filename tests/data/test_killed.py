"""Killed at any change of a file, the same command again gives the same files and no others."""

import json
import subprocess
import sys

import pytest

from helpers import ROOT
from minibio.text.tokenizer import Tokenizer
from pubmed_files import article, deletion, pubmed_file

# counts the changes under a directory, and kills the process at one of them; 0 = none
COUNTED = """
import os, runpy, signal, sys
root, at = sys.argv[1], int(sys.argv[2])
sys.argv, seen = sys.argv[3:], 0

def hook(event, args):
    global seen
    if event == "open":
        is_change = isinstance(args[2], int) and args[2] & (os.O_WRONLY | os.O_RDWR)
    else:
        is_change = event in ("os.rename", "os.remove", "os.rmdir", "os.mkdir", "os.link")
    is_inside = str(args[0]).startswith(root) if args else False
    if is_change and (is_inside or event in ("os.remove", "os.rmdir") and args[1] != -1):
        seen += 1
        if seen == at:
            os.kill(os.getpid(), signal.SIGKILL)

sys.addaudithook(hook)
try:
    runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
finally:
    print(seen)
"""


def run(place, at, *command):
    words = [sys.executable, "-c", COUNTED, place, at, *command, "--out", place / "out"]
    return subprocess.run(list(map(str, words)), cwd=ROOT, capture_output=True, text=True)


def files(place):
    return {str(p.relative_to(place)): p.is_file() and p.read_bytes() for p in place.rglob("*")}


@pytest.fixture
def commands(tmp_path):
    """The commands by name, a worker each, over inputs of a few records."""
    xml = [
        pubmed_file(tmp_path / f"pubmed25n{i:04}.xml.gz", *map(article, range(i, i + 4)),
                    deletion(i + 1)) for i in range(3)
    ]  # fmt: skip
    rows = [{"pmid": i // 2, "version": 1 + i % 2, "title": f"mice {i}"} for i in range(40)]
    (tmp_path / "in.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "more.txt").write_text("".join(f"rats {i}\n" for i in range(40)))
    Tokenizer.train(["mice rats 0123456789"] * 3, 60, cased=False).save(tmp_path / "tokenizer")
    inputs = [tmp_path / "in.jsonl", tmp_path / "more.txt"]
    shard = ["data.shard", *inputs, "--held-out", "0.3", "--duplicates", "exact", "--workers", "1"]
    return {
        "pubmed": ["data.pubmed", *xml, "--workers", "1"],
        "shard": [*shard, "--tokenizer", tmp_path / "tokenizer"],
        "learnt": [*shard, "--train-tokenizer", "60", "--uncased", "--overwrite"],
    }


@pytest.mark.slow
@pytest.mark.parametrize("name, step", [("pubmed", 9), ("shard", 9), ("learnt", 9)])
def test_a_command_killed_at_any_change(tmp_path, commands, name, step):
    whole = tmp_path / "whole"
    whole.mkdir()
    done = run(whole, 0, *commands[name])
    assert done.returncode == 0, done.stderr
    n, expected = int(done.stdout.split()[-1]), files(whole)
    assert n > 10
    for at in range(1, n + 1, step):
        place = tmp_path / str(at)
        place.mkdir()
        assert run(place, at, *commands[name]).returncode == -9
        again = run(place, 0, *commands[name])
        assert (again.returncode, again.stderr) == (0, ""), at
        assert files(place) == expected, at
