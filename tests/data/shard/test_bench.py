"""`python -m data.shard.bench` at toy size: what is measured, what is written, what is compared."""

import csv
import json
import os
import subprocess
import sys
import time

import pytest

from data.shard import bench
from helpers import ROOT
from minibio.run.errors import InputError
from minibio.text.corpus import Corpus
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
    assert header.startswith("# ") and header.endswith(" cores")
    return list(csv.DictReader(lines))


def test_the_parser_beside_a_bare_loop(tmp_path, capsys):
    paths = [
        pubmed_file(tmp_path / name, *map(article, range(9))) for name in ("a.xml", "b.xml.gz")
    ]
    base, ours = rows_of(tmp_path, "parse", *paths, "--megabytes", 1, "--rounds", 2)
    assert (base["side"], ours["side"]) == ("bare iterparse", "data.pubmed")
    assert float(base["share"]) == 1 and 0 < float(ours["share"]) < 10
    assert "of bare iterparse" in capsys.readouterr().out
    (tmp_path / "c.xml").write_text("<PubmedArticleSet></PubmedArticleSet>")
    with pytest.raises(InputError, match="c.xml: no PubmedArticle in it"):
        bench.main(["parse", str(tmp_path / "c.xml")])


def test_shards_beside_the_tokenizer_alone(tmp_path, texts):
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


def test_peaks_of_one_and_of_ten_copies(tmp_path, texts):
    path, tokenizer = texts
    one, ten = rows_of(tmp_path, "memory", path, "--tokenizer", tokenizer, "--workers", 2)
    assert int(ten["bytes"]) > 8 * int(one["bytes"])
    for row in (one, ten):
        assert 20 < float(row["one_mib"]) < float(row["all_mib"]) < 1000


def test_samples_as_long_as_pubmeds(tmp_path, monkeypatch):
    monkeypatch.setattr(bench, "STEPS", 2)
    path = bench.synthetic(tmp_path / "shards", n=3000)
    corpus = Corpus(path, seed=0, length=bench.LENGTH)
    assert abs(corpus.n_tokens / corpus.n_documents - 132) < 4
    rows = rows_of(tmp_path, "sample", "--shards", path, "--rounds", 1)
    assert [row["side"] for row in rows] == ["mean of 132"] * 2
    assert all(
        0 < float(row["p50"]) and float(row["p50_cpu"]) > 0 and row["unit"] == "million tokens/s"
        for row in rows
    )


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
        assert {os.getpid(), child.pid} <= set(bench.family(os.getpid()))
        assert 80 << 20 < bench.resident(child.pid) < 200 << 20
        child.kill()
    assert bench.resident(child.pid) == 0


def test_sides_take_turns_and_are_compared_round_by_round():
    calls, shown = [], []

    class Rows:
        def add(self, row, line):
            shown.append((row, line))

    def side(name, seconds):
        def call():
            calls.append(name)
            time.sleep(seconds)
            return 3.0

        return call

    bench.race(Rows(), "x", "y", {"a": side("a", 0.02), "b": side("b", 0.08)}, 3, "a")
    assert calls == ["a", "b"] * 3
    (first, _), (second, line) = shown
    assert first["share"] == 1 and "of a" in line
    assert second["p50"] < 3 / 0.08 and first["p50"] < 3 / 0.02


def test_rounds_are_checked():
    with pytest.raises(InputError, match="--rounds is 0"):
        bench.main(["sample", "--rounds", "0"])
