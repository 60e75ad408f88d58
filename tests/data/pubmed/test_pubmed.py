"""`python -m data.pubmed`: files together, stopped and taken up again, in any number of workers."""

import gzip
import json
import lzma
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data.pubmed import pubmed as module
from data.pubmed.passes import Options
from data.pubmed.pubmed import main, pubmed, table
from data.shard import shard
from helpers import ROOT, processes, real_data
from minibio.run.errors import InputError
from minibio.text.shards import Shards
from pubmed_files import HEAD, TAIL, article, book, deletion, pubmed_file

OPENERS = {".gz": gzip.open, ".xz": lzma.open}


def lines(path):
    with OPENERS.get(path.suffix, open)(path, "rb") as file:
        return file.read().splitlines()


def citations(out, pattern="*.jsonl*"):
    """PMID -> citation, of all outputs; no PMID comes twice."""
    found = [json.loads(line) for path in sorted(out.glob(pattern)) for line in lines(path)]
    assert len({c["pmid"] for c in found}) == len(found)
    return {c["pmid"]: c for c in found}


def run(inputs, out, *options):
    return main([*map(str, inputs), "--out", str(out), "--workers", "1", *map(str, options)])


def result(out):
    """Every file that a run leaves for its reader, with its bytes."""
    return {path.name: path.read_bytes() for path in out.iterdir() if path.is_file()}


@pytest.fixture
def library(tmp_path):
    """Two files of a baseline and two updates, under PubMed's names."""
    folder = tmp_path / "xml"
    folder.mkdir()
    return [
        pubmed_file(folder / "pubmed25n0001.xml.gz", *(article(i, f"Old {i}.") for i in range(9))),
        pubmed_file(folder / "pubmed25n0002.xml.gz", *(article(i) for i in range(20, 30)), book(9)),
        pubmed_file(folder / "pubmed25n0003.xml", article(3, "New 3."), deletion(4, 20, 99)),
        pubmed_file(folder / "pubmed25n0004.xml", article(4, "Back."), article(5, "", ())),
    ]


EXPECTED = sorted([0, 1, 2, 3, 4, 6, 7, 8, 9, *range(21, 30)])


def test_updates_after_the_baseline(library, tmp_path, capsys):
    assert run(library, tmp_path / "out") == 0
    found = citations(tmp_path / "out")
    assert sorted(map(int, found)) == EXPECTED
    assert found["3"]["title"] == "New 3." and found["4"]["title"] == "Back."
    assert [path.name for path in sorted((tmp_path / "out").glob("*.gz"))] == [
        f"pubmed25n000{i}.jsonl.gz" for i in (1, 2, 3, 4)
    ]
    counts = json.loads((tmp_path / "out" / "counts.json").read_text())
    assert counts == {
        "files": 4, "files damaged": [], "records": 23, "skipped: no text": 1,
        "dropped: deleted": 2, "dropped: same version again": 2, "citations": 18, "title only": 0,
        "sections": 18, "deletions": 3, "language: eng": 18,
        "characters": sum(len(c["title"] + c["abstract"]) for c in found.values()),
    }  # fmt: skip
    shown = capsys.readouterr().out
    assert re.search(r"^records +23$", shown, re.M) and re.search("^seconds +[0-9.]+$", shown, re.M)


def test_pubmeds_names_count_by_number_all_others_as_given(library, tmp_path):
    run(reversed(library), tmp_path / "out")
    assert citations(tmp_path / "out")["3"]["title"] == "New 3."
    a = pubmed_file(tmp_path / "a.xml", article(1, "A"), article(3, "A"))
    b = pubmed_file(tmp_path / "b.xml", article(1, "B"))
    run([b, a, *library], tmp_path / "ba")
    found = citations(tmp_path / "ba")
    assert (found["1"]["title"], found["3"]["title"]) == ("A", "A")
    run([a, b], tmp_path / "ab")
    assert citations(tmp_path / "ab")["1"]["title"] == "B"


def test_the_year_in_a_name_counts_first_whatever_its_prefix(tmp_path):
    """NLM's files were called medline17n0001.xml.gz until 2017."""
    inputs = [
        pubmed_file(tmp_path / "pubmed26n0001.xml", article(1, "Later")),
        pubmed_file(tmp_path / "pubmed25n10000.xml", article(1, "Second")),
        pubmed_file(tmp_path / "pubmed25n9999.xml", article(1, "First")),
    ]
    run(inputs, tmp_path / "out")
    assert citations(tmp_path / "out")["1"]["title"] == "Later"
    run(inputs[1:], tmp_path / "two")
    assert citations(tmp_path / "two")["1"]["title"] == "Second"
    older = [
        pubmed_file(tmp_path / f"medline{n}.xml", article(1, n)) for n in ("17n0900", "16n0999")
    ]
    run([*inputs, *older], tmp_path / "older")
    assert citations(tmp_path / "older")["1"]["title"] == "Later"
    run(older, tmp_path / "medline")
    assert citations(tmp_path / "medline")["1"]["title"] == "17n0900"


def test_flags(library, tmp_path):
    extra = pubmed_file(
        tmp_path / "extra.xml",
        article(50, "T", ()),
        article(51, language="fre"),
        article(3, "T", ()),
    )
    inputs = [*library, extra]
    run(inputs, tmp_path / "all")
    assert {"50", "51", "9", "3"} <= set(citations(tmp_path / "all"))
    run(inputs, tmp_path / "few", "--no-title-only", "--no-books", "--language", "eng", "ger")
    assert not {"50", "51", "9", "3"} & set(citations(tmp_path / "few"))
    counts = json.loads((tmp_path / "few" / "counts.json").read_text())
    assert counts["skipped: title only"] == 2 and counts["skipped: book"] == 1
    assert counts["skipped: other language"] == 1


@pytest.mark.parametrize("form", ["plain", "gz", "xz"])
def test_formats(library, tmp_path, form):
    run(library, tmp_path / "out", "--format", form)
    assert sorted(map(int, citations(tmp_path / "out"))) == EXPECTED
    ending = {"plain": ".jsonl", "gz": ".jsonl.gz", "xz": ".jsonl.xz"}[form]
    assert len(list((tmp_path / "out").glob(f"pubmed25n000?{ending}"))) == 4


@pytest.mark.slow
def test_any_number_of_workers_gives_the_same_bytes(library, tmp_path):
    library.append(tmp_path / "xml" / "pubmed25n0005.xml.gz")
    library[-1].write_bytes(library[0].read_bytes()[:-20])
    made = []
    for workers in (1, 3):
        counts, damages = pubmed(library, tmp_path / str(workers), workers=workers, progress=False)
        made.append((result(tmp_path / str(workers)), counts, damages))
    assert made[0] == made[1]
    assert len(made[0][0]) == 5 and made[0][1]["files damaged"] == ["pubmed25n0005"]


def watch(monkeypatch):
    """The stems that each pass is called for, from now on."""
    calls = {"parse": [], "select": []}
    for name, seen in calls.items():
        real = getattr(module, name)

        def watched(*args, real=real, seen=seen):
            source = args[1] if len(args) == 2 else args[0][0]
            seen.append(source.stem[-1])
            return real(*args)

        monkeypatch.setattr(module, name, watched)
    return calls


def test_a_damaged_file_is_named_and_the_others_go_on(library, tmp_path, monkeypatch, capsys):
    out = tmp_path / "out"
    whole = library[2].read_bytes()
    library[2].write_bytes(whole[:-30])
    assert run(library, out) == 1
    error = capsys.readouterr().err
    pattern = r"data\.pubmed: error: \S*/pubmed25n0003\.xml: byte (\d+): unclosed token .*\n"
    byte = int(re.fullmatch(pattern, error)[1])  # where the tag begins that was cut
    assert whole[byte:-30] == b"</Delete"
    assert not list(out.rglob("*0003*"))
    assert "4" in citations(out) and citations(out)["3"]["title"] == "Old 3."
    assert json.loads((out / "counts.json").read_text())["files damaged"] == ["pubmed25n0003"]
    # mended: only it is parsed, and those are selected again of which less counts
    library[2].write_bytes(whole)
    calls = watch(monkeypatch)
    assert run(library, out) == 0
    assert calls == {"parse": ["3"], "select": ["1", "2", "3"]}
    run(library, tmp_path / "fresh")
    assert result(out) == result(tmp_path / "fresh")
    for seen in calls.values():
        seen.clear()
    assert run(library, out) == 0
    assert calls == {"parse": [], "select": []}
    assert result(out) == result(tmp_path / "fresh")


@settings(derandomize=True, deadline=None, max_examples=60)
@given(data=st.data())
def test_a_fuzzed_file_is_whole_or_not_there(tmp_path_factory, data):
    """Its output holds every record or there is none, and its neighbour's is there in any case."""
    place = tmp_path_factory.mktemp("fuzz")
    paths = [pubmed_file(place / f"{name}.xml", *map(article, numbers))
             for name, numbers in (("a", range(1, 4)), ("b", range(11, 14)))]  # fmt: skip
    raw = bytearray(paths[0].read_bytes())
    i = data.draw(st.integers(0, len(raw)))
    j = i + data.draw(st.integers(0, 30))
    raw[i:j] = data.draw(st.binary(max_size=9) | st.sampled_from([b"<", b"</Article>", b"&#0;"]))
    paths[0].write_bytes(raw)
    counts, damages = pubmed(paths, place / "out", progress=False)
    names = {path.name for path in (place / "out").glob("*.jsonl*")}
    assert names == {"b.jsonl.gz"} | ({"a.jsonl.gz"} if not damages else set())
    assert all(str(paths[0]) in damage for damage in damages)
    found = citations(place / "out")  # well-formed JSON
    assert {"11", "12", "13"} <= set(found) and len(found) == counts["citations"]
    skipped = sum(n for name, n in counts.items() if name.startswith(("skipped", "dropped")))
    assert counts["records"] == len(found) + skipped


def test_a_file_damaged_later_loses_its_output(library, tmp_path):
    run(library, tmp_path / "out")
    library[1].write_bytes(b"\x1f\x8b")
    assert run(library, tmp_path / "out") == 1
    assert not list((tmp_path / "out").rglob("*0002*"))


def test_new_updates_touch_what_they_change(library, tmp_path, monkeypatch):
    run(library[:2], tmp_path / "out")
    calls = watch(monkeypatch)
    run(library[:3], tmp_path / "out")
    assert calls == {"parse": ["3"], "select": ["1", "2", "3"]}
    run(library, tmp_path / "out")
    assert calls["parse"] == ["3", "4"] and calls["select"][3:] == ["1", "4"]
    run(library, tmp_path / "fresh")
    assert result(tmp_path / "out") == result(tmp_path / "fresh")


def test_the_same_command_again_says_that_all_is_done(library, tmp_path, monkeypatch, capsys):
    out = tmp_path / "out"
    run(library, out)
    before = result(out)
    capsys.readouterr()
    with monkeypatch.context() as patch:
        patch.setattr(module, "pubmed", None)
        assert run(library, out) == 0
    assert capsys.readouterr().out == (
        f"{out} is complete: 18 citations of 4 files; --overwrite starts again\n"
    )
    assert result(out) == before
    (out / "pubmed25n0002.jsonl.gz").unlink()  # not complete: made again
    assert run(library, out) == 0 and result(out) == before


def test_overwrite_starts_again(library, tmp_path, monkeypatch):
    out = tmp_path / "out"
    run(library, out, "--format", "plain")
    (out / "notes").write_text("mine")
    calls = watch(monkeypatch)
    assert run(library[:2], out, "--overwrite") == 0
    assert calls["parse"] == ["1", "2"]
    run(library[:2], tmp_path / "fresh")
    assert result(out) == result(tmp_path / "fresh") | {"notes": b"mine"}


def test_counts_are_there_when_all_is_done(library, tmp_path, monkeypatch):
    run(library[:2], tmp_path / "out")
    assert (tmp_path / "out" / "counts.json").exists()

    def stopped(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(module, "select", stopped)
    with pytest.raises(KeyboardInterrupt):
        run(library, tmp_path / "out")
    assert not (tmp_path / "out" / "counts.json").exists()


def test_every_record_is_accounted_for(library, tmp_path):
    counts, _ = pubmed(library, tmp_path / "out", Options(title_only=False, books=False))
    parts = [n for name, n in counts.items() if name.startswith(("skipped: ", "dropped: "))]
    assert counts["records"] == counts["citations"] + sum(parts)
    assert counts["citations"] == len(citations(tmp_path / "out"))


def test_the_real_files(tmp_path):
    inputs = sorted(real_data("pubmed/xml").iterdir())
    counts, damages = pubmed(inputs, tmp_path / "out")
    found = citations(tmp_path / "out")
    assert not damages and len(found) == counts["citations"] == counts["records"] == 129
    assert counts["sections"] == 178 and counts["title only"] == 37
    assert counts["language: eng"] == 126 and counts["language: ger"] == 3
    assert counts["characters"] == sum(len(c["title"] + c["abstract"]) for c in found.values())


def test_data_shard_reads_the_output(library, tmp_path, capsys):
    run(library, tmp_path / "out")
    outputs = sorted(map(str, (tmp_path / "out").glob("*.jsonl.gz")))
    made = tmp_path / "shards"
    shard.main([*outputs, "--train-tokenizer", "90", "--held-out", "0.3", "--out", str(made),
                "--workers", "1"])  # fmt: skip
    assert len(Shards(made)) + len(Shards(made, "held-out")) == len(EXPECTED)


# ---- stopped ----


@pytest.mark.parametrize("workers", [1, 2])
def test_a_killed_run_is_taken_up(tmp_path, workers):
    inputs = [
        pubmed_file(
            tmp_path / f"pubmed25n{i:04}.xml.gz",
            *(
                article(j, f"Of {i}.", (("", "Text. " * 99),))
                for j in range(200 * i, 200 * i + 900)
            ),
        )
        for i in range(1, 7)
    ]
    out = tmp_path / "out"
    command = [sys.executable, "-m", "data.pubmed", *map(str, inputs)]
    command += ["--out", str(out), "--workers", str(workers)]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, start_new_session=True)
    with process:
        while process.poll() is None and not list(out.glob("parsed/*0002.json")):
            time.sleep(0.002)
        os.killpg(process.pid, signal.SIGKILL)
    assert process.returncode == -signal.SIGKILL and not (out / "counts.json").exists()
    assert run(inputs, out) == 0
    run(inputs, tmp_path / "fresh")
    assert result(out) == result(tmp_path / "fresh")
    names = {path.name.partition(".")[0] for path in out.rglob("*") if path.is_file()}
    assert names == {"", "counts", *(path.name.partition(".")[0] for path in inputs)}
    hidden = {path.name for path in out.rglob(".*")}
    assert hidden == {".options.json"}


# ---- what a user can get wrong ----


def test_one_run_at_a_time(library, tmp_path):
    out = tmp_path / "out"
    with module.claimed(out, Options(), []):
        with pytest.raises(InputError, match="another process is writing there"):
            run(library, out)
    assert run(library, out) == 0


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        (["missing.xml"], "missing.xml: no such file"),
        (["a.txt"], r"a\.txt: expected a name that ends in \.xml or \.xml\.gz"),
        (["a.xml", "b/a.xml.gz"], "would have one output, a"),
        (["a.xml", "a.xml"], "would have one output, a"),
    ],
)
def test_bad_inputs(tmp_path, monkeypatch, inputs, message):
    monkeypatch.chdir(tmp_path)
    Path("b").mkdir()
    for name in ("a.xml", "a.txt", "b/a.xml.gz"):
        pubmed_file(Path(name), article(1))
    with pytest.raises(InputError, match=message):
        run(inputs, "out")
    assert not Path("out").exists()


def test_bad_places(library, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="is a file"):
        run(library, tmp_path / "file")
    (tmp_path / "used").mkdir()
    (tmp_path / "used" / "notes").touch()
    with pytest.raises(InputError, match="already holds files"):
        run(library, tmp_path / "used")
    with pytest.raises(InputError, match="--workers is 0"):
        run(library, tmp_path / "out", "--workers", "0")


def test_one_directory_one_set_of_options(library, tmp_path):
    out = tmp_path / "out"
    run(library, out)
    before = result(out)
    with pytest.raises(InputError, match="was written with format gz, not xz"):
        run(library, out, "--format", "xz")
    with pytest.raises(InputError, match=r"was written with languages \[\], not \['eng'\]"):
        run(library, out, "--language", "eng")
    with pytest.raises(InputError, match="holds pubmed25n0001 and 1 more, which are not among"):
        run(library[2:], out)
    assert result(out) == before


def test_the_command(library, tmp_path):
    def command(*args):
        return processes(1, ["-m", "data.pubmed", *args, "--out", tmp_path / "out"])[0]

    status, printed, error = command(*library)
    assert status == 0 and not error and "citations" in printed
    library[0].write_text("<html/>")
    status, _, error = command(*library)
    assert status == 1 and error.count("\n") == 1 and "root is <html>" in error
    status, _, error = command("missing.xml")
    assert status == 2 and error.count("\n") == 1


def test_an_empty_table():
    assert table([], ["a"]) == {
        "files": 0, "files damaged": ["a"], "records": 0, "citations": 0, "title only": 0,
        "sections": 0, "characters": 0, "deletions": 0,
    }  # fmt: skip


# ---- memory ----


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads /proc")
@pytest.mark.slow
def test_memory_does_not_grow_with_a_file(tmp_path):
    def peak(n):
        path = tmp_path / f"{n}.xml.gz"
        records = (article(i, f"Title {i}.", (("", "Text. " * 200),)).encode() for i in range(n))
        with gzip.open(path, "wb", 1) as file:
            file.write(HEAD.encode())
            file.writelines(records)
            file.write(TAIL.encode())
        code = (
            "import sys\nfrom data.pubmed.pubmed import main\nmain(sys.argv[1:])\n"
            "print(open('/proc/self/status').read().split('VmHWM:')[1].split()[0])"
        )
        done = subprocess.run(
            [sys.executable, "-W", "ignore", "-c", code, path, "--out", tmp_path / f"out-{n}",
             "--workers", "1"],
            cwd=ROOT, capture_output=True, text=True, check=True,
        )  # fmt: skip
        return int(done.stdout.split()[-1])

    small, large = peak(1000), peak(20_000)
    print(f"peak {small / 1024:.0f} MiB for 2 MB of XML, {large / 1024:.0f} MiB for 38 MB")
    assert large < small + 4000  # KiB
