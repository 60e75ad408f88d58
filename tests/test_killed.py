"""Killed at any change of a file, the same command again gives the same files and no others.

As a script, `test_killed.py FOLDER N COMMAND...`, this file is the command, killed at its Nth
change under FOLDER (0 = never); it prints how many there were.
"""

import json
import os
import runpy
import signal
import sys

import pytest

from helpers import processes
from minibio.report import card, plot
from minibio.text.tokenizer import Tokenizer
from pubmed_files import article, deletion, pubmed_file
from toy_tasks import FILLERS, make_encoder, make_tokenizer, write_ner

TIMED = {"seconds", "step_seconds", "measure_seconds", "tokens_per_s", "memory_gib", "eta_s"}
TRAIN = ["--layers", 2, "--width", 24, "--heads", 2, "--ffn", 32, "--steps", 6, "--batch", 8,
         "--length", 24, "--save-every", 2, "--keep", 2, "--log-every", 1, "--eval-every", 3,
         "--device", "cpu"]  # fmt: skip
TUNE = ["--epochs", 3, "--lr", 3e-3, "--batch", 8, "--threads", 1, "--device", "cpu",
        "--early-stopping", 2, "--save-every", 3, "--log-every", 1]  # fmt: skip
CHANGES = ("os.rename", "os.remove", "os.rmdir", "os.mkdir", "os.link", "os.truncate")


def main(root: str, at: str, *command: str) -> None:
    """Run the command in this process; the first process of a group dies, or counts."""
    seen, is_first = 0, os.environ.get("RANK", "0") == "0"

    def hook(event, args):
        nonlocal seen
        if event == "open":
            is_change = isinstance(args[2], int) and args[2] & (os.O_WRONLY | os.O_RDWR)
        else:
            is_change = event in CHANGES
        is_inside = str(args[0]).startswith(root) if args else False
        if is_change and (is_inside or event in ("os.remove", "os.rmdir") and args[1] != -1):
            seen += 1
            if seen == int(at):
                os.kill(os.getpid(), signal.SIGKILL)

    if is_first:
        sys.addaudithook(hook)
    card.loss_curves = plot.loss_curves  # a change too
    sys.argv = list(command)
    try:
        if command[0].endswith(".py"):
            runpy.run_path(command[0], run_name="__main__")
        else:
            runpy.run_module(command[0], run_name="__main__", alter_sys=True)
    finally:
        print(seen)


if __name__ == "__main__":
    main(*sys.argv[1:])


def run(world, place, at, command):
    """[(status, stdout, stderr)] of each process."""
    return processes(world, [__file__, place, at, *command, "--out", place / "out"],
                     PYTHONPATH=os.pathsep.join(sys.path))  # fmt: skip


def timeless(path):
    """The content of a file, without measured times and the lines that say `resume`."""
    content = path.read_bytes()
    if path.name == "log.jsonl":
        lines = map(json.loads, content.splitlines())
        return [without_times(line) for line in lines if line["event"] != "resume"]
    if path.name in ("run.json", "ner.json"):
        return without_times(json.loads(content))
    if path.name == "state.json":  # the log's length follows from the times in it
        state = json.loads(content)
        *mark, _ = state["counters"].pop("mark")
        return [mark, without_times(state["counters"]), {**state, "counters": 0, "log_bytes": 0}]
    if path.name == "manifest.json":
        manifest = json.loads(content)
        return {**manifest, "files": {**manifest["files"], "state.json": 0}}
    if path.name == "README.md":
        return [line for line in content.splitlines() if not line.startswith(b"| seconds |")]
    return content


def without_times(record):
    return {name: x for name, x in record.items() if name not in TIMED}


def files(place):
    """Name -> content of all that is there; False for a directory."""
    return {str(p.relative_to(place)): p.is_file() and timeless(p) for p in place.rglob("*")}


@pytest.fixture(scope="module")
def commands(tmp_path_factory):
    """Name -> (processes, command), over inputs of a few records."""
    inputs = tmp_path_factory.mktemp("inputs")
    xml = [
        pubmed_file(inputs / f"pubmed25n{i:04}.xml.gz", *map(article, range(i, i + 4)),
                    deletion(i + 1)) for i in range(3)
    ]  # fmt: skip
    rows = [{"pmid": i // 2, "version": 1 + i % 2, "title": f"mice {i}"} for i in range(40)]
    (inputs / "in.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (inputs / "more.txt").write_text("".join(f"rats {i}\n" for i in range(40)))
    Tokenizer.train(["mice rats 0123456789"] * 3, 60, cased=False).save(inputs / "tokenizer")
    shard = ["data.shard", inputs / "in.jsonl", inputs / "more.txt", "--held-out", 0.3,
             "--duplicates", "exact", "--workers", 1]  # fmt: skip
    tokenizer = make_tokenizer()
    encoder = make_encoder(inputs / "encoder", tokenizer)
    teacher = make_encoder(inputs / "teacher", tokenizer, L=4, C=24, H=2, F=32)
    ner = write_ner(inputs / "ner", n=(40, 6, 8))
    lines = [" ".join(FILLERS[i % 7 :] + FILLERS[: i % 5]) + "\n" for i in range(80)]
    (inputs / "text.txt").write_text("".join(lines))
    corpus = ["data.shard", inputs / "text.txt", "--tokenizer", encoder, "--length", 24,
              "--held-out", 0.1, "--workers", 1, "--out", inputs / "shards"]  # fmt: skip
    ((status, _, said),) = processes(1, ["-m", *corpus])
    assert status == 0, said
    train = ["train.py", "--method", "tiny", "--model", "tiny-biobert", "--teacher", teacher,
             "--corpus", inputs / "shards", *TRAIN]  # fmt: skip
    return {
        "pubmed": (1, ["data.pubmed", *xml, "--workers", 1]),
        "shard": (1, [*shard, "--tokenizer", inputs / "tokenizer"]),
        "learnt": (1, [*shard, "--train-tokenizer", 60, "--uncased", "--overwrite"]),
        "train": (1, train),
        "train-2": (2, train),
        "ner": (1, ["eval.py", "ner", "--model", encoder, "--data", ner, *TUNE]),
    }


@pytest.mark.slow
@pytest.mark.parametrize(
    "name, step",
    [("pubmed", 9), ("shard", 9), ("learnt", 9), ("train", 9), ("train-2", 19), ("ner", 23)],
)
def test_a_command_killed_at_any_change(tmp_path, commands, name, step):
    world, command = commands[name]
    whole = tmp_path / "whole"
    whole.mkdir()
    told = run(world, whole, 0, command)
    assert [status for status, *_ in told] == [0] * world, told
    n, expected = int(told[0][1].split()[-1]), files(whole)
    assert n > 10
    for at in range(1, n + 1, step):
        place = tmp_path / str(at)
        place.mkdir()
        (first, *_), *others = run(world, place, at, command)
        assert first == -signal.SIGKILL, at
        for status, _, said in others:  # not left waiting: one line says that a rank is gone
            assert status != 0 and "Traceback" not in said, (at, said)
        told = run(world, place, 0, command)
        assert [(status, "Traceback" in said) for status, _, said in told] == [
            (0, False)
        ] * world, at
        assert files(place) == expected, at
