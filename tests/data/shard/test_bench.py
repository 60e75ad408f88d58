"""`python -m data.shard.bench` at toy size: the measurements, the table, the comparison."""

import csv
import json
import os
import subprocess
import sys
import time

import pytest

from data.shard import bench
from data.shard.shard import main as build
from helpers import ROOT
from minibio.run.errors import InputError
from minibio.text.tokenizer import Tokenizer
from pubmed_files import article, pubmed_file

WORDS = "zinc in mice it helps. is cheap".split()


@pytest.fixture
def texts(tmp_path):
    """60 records as JSON lines, and a tokenizer for them."""
    path = tmp_path / "in.jsonl"
    rows = [{"id": i, "title": f"Zinc {i}.", "abstract": " ".join(WORDS * 20)} for i in range(60)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    Tokenizer.train([" ".join(WORDS)] * 3, 60, cased=False).save(tmp_path / "tokenizer")
    return path, tmp_path / "tokenizer"


def rows_of(tmp_path, *words):
    """The table of a run, a dictionary a row; the first line says what it was measured on."""
    out = tmp_path / "new" / "table.csv"
    bench.main([*map(str, words), "--out", str(out)])
    header, *lines = out.read_text("utf-8").splitlines()
    assert header.startswith("# ") and " cores, " in header
    return list(csv.DictReader(lines))


def test_the_parser_beside_a_bare_loop(tmp_path, capsys):
    paths = [
        pubmed_file(tmp_path / name, *map(article, range(900))) for name in ("a.xml", "b.xml.gz")
    ]
    base, ours = rows_of(tmp_path, "parse", *paths, "--rounds", 2)
    assert (base["side"], ours["side"]) == ("bare iterparse", "data.pubmed")
    assert float(base["share"]) == 1 and 0 < float(ours["share"]) < 10
    assert "side data.pubmed  unit MB/s  p50 " in capsys.readouterr().out


@pytest.mark.slow
def test_shards_beside_the_tokenizer(tmp_path, texts):
    path, tokenizer = texts
    exclude = tmp_path / "test.txt"
    exclude.write_text("a sentence of some length that no citation holds at all\n")
    rows = rows_of(tmp_path, "shard", path, "--tokenizer", tokenizer, "--workers", 1, "--rounds", 1,
                   "--exclude", exclude)  # fmt: skip
    assert [row["side"] for row in rows] == [
        "encode_batch_fast", "data.shard", "--length 10000", "--split-long", "--duplicates exact",
        "--duplicates exact --exclude",
    ]  # fmt: skip
    assert all(float(row["share"]) > 0 and float(row["share_cpu"]) > 0 for row in rows)


@pytest.mark.slow
def test_peaks_of_one_and_of_ten_copies(tmp_path, texts):
    path, tokenizer = texts
    one, ten = rows_of(tmp_path, "memory", path, "--tokenizer", tokenizer, "--workers", 2)
    assert int(ten["bytes"]) > 8 * int(one["bytes"])
    for row in (one, ten):
        assert 20 < float(row["one_mib"]) < float(row["all_mib"]) < 1000


def test_samples(tmp_path, texts, monkeypatch):
    monkeypatch.setattr(bench, "STEPS", 2)
    path, tokenizer = texts
    words = [path, "--tokenizer", tokenizer, "--out", tmp_path / "shards", "--held-out", 0.1]
    build([*map(str, words), "--workers", "1"])
    rows = rows_of(tmp_path, "sample", tmp_path / "shards", tmp_path / "shards", "--rounds", 1)
    assert len(rows) == 2
    for row in rows:
        assert row["side"].startswith("mean of 1") and row["unit"] == "million tokens/s"
        assert 0 < float(row["p50"]) and float(row["p50_cpu"]) > 0


def test_work_of_children_counts_and_waiting_does_not():
    code = "import time\nwhile time.process_time() < 0.3: pass"
    before = bench.cpu_seconds()
    time.sleep(0.2)
    assert bench.cpu_seconds() - before < 0.1
    subprocess.run([sys.executable, "-c", code], check=True)
    assert bench.cpu_seconds() - before > 0.2  # of 0.3, in the system's coarse ticks


@pytest.mark.skipif(not os.path.exists("/proc/self/statm"), reason="no /proc here")
def test_memory_of_a_family_is_seen():
    code = "import time; x = bytearray(80 << 20); print(flush=True); time.sleep(60)"
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, cwd=ROOT) as child:
        child.stdout.readline()
        (size,) = bench.resident(child.pid)
        assert 80 << 20 < size < 200 << 20 and size in bench.resident(os.getpid())[1:]
        child.kill()
    assert bench.resident(child.pid) == []


def test_sides_take_turns_and_are_compared_round_by_round():
    calls = []

    def side(name, seconds):
        def call():
            calls.append(name)
            time.sleep(seconds)
            return 3.0

        return call

    sides = {"a": side("a", 0.02), "b": side("b", 0.08)}
    first, second = bench.race("x", "y", sides, 3)
    assert calls == ["a", "b"] * 3
    assert first["share"] == 1 and 0 < second["share"] < 1
    assert second["p50"] < 3 / 0.08 and second["p50"] < first["p50"] < 3 / 0.02


@pytest.mark.parametrize(
    ("words", "match"),
    [
        (["sample", "x", "--rounds", "0"], "expected at least 1"),
        (["shard", "x"], "shard needs one INPUT and --tokenizer DIR"),
        (["memory", "x", "y", "--tokenizer", "z"], "memory needs one INPUT"),
    ],
)
def test_options(words, match):
    with pytest.raises(InputError, match=match):
        bench.main(words)
