"""The two passes over one file: whole or not there, counted, the same bytes each time."""

import gzip
import json
import lzma
import os
from collections import Counter

import pytest

from data.pubmed import passes as module
from data.pubmed.citations import Record
from data.pubmed.index import line_fates
from data.pubmed.passes import Options, Source, parse, reader, select, tally, why_skipped, writer
from minibio.run.errors import InputError
from pubmed_files import article, book, deletion, pubmed_file

CITATION = {
    "pmid": "1", "version": 1, "title": "T", "abstract": "AB", "language": "eng fre",
    "sections": [{"label": "", "text": "AB"}], "year": 2020,
}  # fmt: skip


@pytest.fixture
def make(tmp_path):
    """A source of some records, parsed into tmp_path/out."""

    def source(name, *records, ending=".jsonl", options=Options()):  # noqa: B008 - frozen
        (tmp_path / "out" / "parsed").mkdir(parents=True, exist_ok=True)
        made = Source(pubmed_file(tmp_path / name, *records), name[:-4], tmp_path / "out", ending)
        assert parse(options, made) is None
        return made

    return source


def select_all(*sources):
    fates = line_fates([source.index for source in sources])
    for source, each in zip(sources, fates, strict=True):
        select((source, each))
        assert source.is_selected(each)


def pmids(source):
    with reader(source.result) as lines:
        return [json.loads(line)["pmid"] for line in lines]


def noted(source, counts="totals"):
    return {name: n for name, n in source.noted()[counts].items() if n}


def test_the_first_pass(make):
    source = make(
        "a.xml", article(1), article(2, "", ()), article("no"), deletion(7, 8), book(3), "<Odd/>"
    )
    lines = source.citations.read_bytes().splitlines()
    assert [json.loads(line)["pmid"] for line in lines] == ["1", "3"]
    assert source.index.stat().st_size == 5 * 11
    assert noted(source, "counts") == {
        "records": 5, "citations": 2, "sections": 2, "deletions": 2, "language: eng": 2,
        "characters": len("A title.Text of it.A chapter.Of a book."),
        "skipped: no text": 1, "skipped: no PMID, or no number": 1,
        "skipped: neither article nor book": 1,
    }  # fmt: skip
    assert not source.result.exists()


def test_lines_are_utf8_and_one_each(make):
    source = make("a.xml", article(1, "β\u2028γ &#10; δ"), article(2))
    first, second, end = source.citations.read_bytes().split(b"\n")
    assert json.loads(first)["title"] == "β γ δ" and "β".encode() in first and not end


def test_the_second_pass(make):
    old = make("old.xml", article(1, "Old"), article(2), article(3), article(4, version=2))
    new = make("new.xml", article(1, "New", ()), deletion(2), article(4), article(5, "", ()))
    select_all(old, new)
    assert (pmids(old), pmids(new)) == (["3", "4"], ["1"])
    counts = noted(old)
    assert counts["citations"] == 2 and counts["sections"] == 2
    assert counts["dropped: deleted"] == counts["dropped: same version again"] == 1
    assert counts["characters"] == 2 * len("A title.Text of it.")
    counts = noted(new)
    assert counts["citations"] == counts["dropped: older version"] == counts["title only"] == 1
    assert counts["characters"] == len("New")


def test_a_record_without_a_line_replaces_too(make):
    old, new = make("old.xml", article(1)), make("new.xml", article(1, "", ()))
    select_all(old, new)
    assert (pmids(old), pmids(new)) == ([], [])


@pytest.mark.parametrize("ending", [".jsonl", ".jsonl.gz", ".jsonl.xz"])
def test_where_all_stands_the_file_has_two_names(make, monkeypatch, ending):
    source = make("a.xml", article(1), ending=ending)
    select_all(source)
    assert source.result.samefile(source.citations)
    select_all(source)  # again: a link over its own other name
    assert sorted(path.name for path in source.out.iterdir()) == ["a" + ending, "parsed"]

    def no_links(*_):
        raise OSError

    monkeypatch.setattr(os, "link", no_links)
    select_all(source)
    assert not source.result.samefile(source.citations)
    assert source.result.read_bytes() == source.citations.read_bytes()
    assert pmids(source) == ["1"]


@pytest.mark.parametrize(
    ("tag", "changes", "options", "expected"),
    [
        ("PubmedArticle", {}, {}, None),
        ("PubmedArticle", {"abstract": ""}, {}, None),
        ("PubmedArticle", {"abstract": ""}, {"title_only": False}, "title only"),
        ("PubmedArticle", {"title": ""}, {"title_only": False}, None),
        ("PubmedArticle", {}, {"languages": ("fre", "ger")}, None),
        ("PubmedArticle", {}, {"languages": ("ger",)}, "other language"),
        ("PubmedArticle", None, {}, "no text"),
        ("PubmedBookArticle", {}, {}, None),
        ("PubmedBookArticle", {}, {"books": False}, "book"),
        ("PubmedBookArticle", None, {"books": False}, "book"),
        ("Odd", {}, {}, "neither article nor book"),
    ],
)
def test_what_is_skipped(tag, changes, options, expected):
    record = Record(1, 1, None if changes is None else CITATION | changes)
    assert why_skipped(tag, record, Options(**options)) == expected


def test_no_number_is_skipped():
    assert why_skipped("PubmedArticle", None, Options()) == "no PMID, or no number"


def test_counts_can_be_taken_back():
    counts = Counter()
    tally(CITATION, counts, 1)
    assert counts == {
        "citations": 1, "sections": 1, "characters": 3, "language: eng fre": 1, "title only": 0
    }  # fmt: skip
    tally(CITATION, counts, -1)
    assert not any(counts.values())


@pytest.mark.parametrize("name", ["a.jsonl", "a.jsonl.gz", "a.jsonl.xz"])
def test_packed_files_are_the_same_each_time(tmp_path, monkeypatch, name):
    opener = {"gz": gzip.open, "xz": lzma.open}.get(name[-2:], open)
    made = []
    for now in (1e9, 2e9):
        monkeypatch.setattr("time.time", lambda now=now: now)
        folder = tmp_path / str(now)
        with writer(folder / name) as lines:
            lines.write(b"one\ntwo\n")
        made.append((folder / name).read_bytes())
        with opener(folder / name, "rb") as file:
            assert file.read() == b"one\ntwo\n"
    assert made[0] == made[1]


@pytest.mark.parametrize("text", ["<i>" * 2000 + "</i>" * 2000, "&no-such;", "<broken"])
def test_a_damaged_file_leaves_nothing(make, text):
    source = make("a.xml", article(1))
    select_all(source)
    pubmed_file(source.path, article(1), article(2, text))
    why = parse(Options(), source)
    assert str(source.path) in why
    assert [path for path in source.out.rglob("*") if path.is_file()] == []


def test_a_full_disk_leaves_nothing_and_is_no_damage(make, monkeypatch):
    source = make("a.xml", article(1))

    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(module.json, "dumps", full)
    with pytest.raises(OSError, match="No space"):
        parse(Options(), source)
    assert [path for path in source.out.rglob("*") if path.is_file()] == []


def test_what_is_done_is_known(make):
    source = make("a.xml", article(1), ending=".jsonl.gz")
    assert source.is_parsed()
    for path in (source.citations, source.index, source.note):
        kept = path.read_bytes()
        path.write_bytes(kept[:-3])
        assert not source.is_parsed()
        path.unlink()
        assert not source.is_parsed()
        path.write_bytes(kept)
        assert source.is_parsed()
    source.index.write_bytes(source.index.read_bytes()[:-1] + b"x")  # as long as before
    assert not source.is_parsed()


def test_a_changed_input_is_parsed_again(make):
    source = make("a.xml", article(1))
    stat = source.path.stat()
    os.utime(source.path, ns=(stat.st_atime_ns, stat.st_mtime_ns + 1))
    assert not source.is_parsed()


def test_a_damaged_note_is_no_note(make):
    source = make("a.xml", article(1))
    raw = source.note.read_text()
    source.note.write_text(raw.replace('"records": 1', '"records": 2'))
    assert source.noted() == {} and not source.is_parsed()


def test_what_is_selected_is_known(make):
    a, b = make("a.xml", article(1), article(2)), make("b.xml", article(1))
    select_all(a)
    fates = line_fates([a.index, b.index])
    assert a.is_selected() and not a.is_selected(fates[0])  # b changes what counts of it
    assert not b.is_selected()
    select((a, fates[0]))
    assert a.is_selected(fates[0])
    a.result.write_bytes(b"")
    assert not a.is_selected(fates[0])
    a.result.unlink()
    assert not a.is_selected(fates[0])


@pytest.mark.parametrize("ending", [".jsonl.gz", ".jsonl.xz"])
def test_damaged_citations_are_named_and_made_again(make, ending):
    a, b = make("a.xml", *map(article, range(40)), ending=ending), make("b.xml", article(1))
    fates = line_fates([a.index, b.index])
    cut, overwritten = lambda raw: raw[:-40], lambda raw: raw[:50] + b"~" * 30 + raw[80:]
    for change in (cut, overwritten):
        a.citations.write_bytes(change(a.citations.read_bytes()))
        with pytest.raises(InputError, match="a.jsonl.* was damaged .*run again"):
            select((a, fates[0]))
        assert not a.is_parsed() and not a.result.exists()
        assert parse(Options(), a) is None
    select((a, fates[0]))
    assert len(pmids(a)) == 39
