"""The same entities in JSON lines, PubTator and brat, each read back by its own rules."""

import json
import random
import re

import pytest

from minibio.run.errors import InputError
from minibio.tasks.documents import Document
from minibio.tasks.formats import Brat, as_text, output
from minibio.tasks.predict import Predictor, predict
from toy_tasks import make_heads

PARTS = ["Gout", "\U0001d53eout", "a\u0301cute", "Se\u0301psis", "IL-2", "𐍈", "of", "Colic", "no",
         "\U0001f9ec", "disorder.", "The", "é", "|", "x\u2028y", "Ulcer\u200b"]  # fmt: skip


@pytest.fixture(scope="module")
def predictor(tmp_path_factory):
    base = make_heads(tmp_path_factory.mktemp("models"))
    return Predictor(base / "token", precision="fp32")


@pytest.fixture(scope="module")
def rows():
    """Titles and abstracts with marks, astral characters, tabs and line ends within."""
    rng, rows = random.Random(0), []
    for i in range(40):
        spaces = [rng.choice([" ", " ", " ", "\n", "\t", "\r\n", "\u2003"]) for _ in range(30)]
        words = [x for space in spaces for x in (rng.choice(PARTS), space)]
        rows.append({"pmid": f"p{i}", "title": "".join(words[:9]), "abstract": "".join(words[9:])})
    rows.append({"id": 7, "text": "Gout\tand\nColic"})
    rows.append({"title": "Gout of nobody", "abstract": ""})
    return rows


@pytest.fixture(scope="module")
def answered(predictor, rows, tmp_path_factory):
    path = tmp_path_factory.mktemp("rows") / "rows"
    path.write_text("\n".join(map(json.dumps, rows)) + "\n\n", "utf-8")
    return list(predict(predictor, path))


def wanted(answered):
    return [
        [(e["start"], e["end"], e["type"]) for e in answer["entities"]] for _, answer in answered
    ]


def test_json_lines(answered, rows):
    lines = "".join(as_text(item, answer, "json", "x") for item, answer in answered)
    got = [json.loads(line) for line in lines.split("\n")[:-1]]
    assert [x.get("pmid", x.get("id")) for x in got[:-1]] == [
        x.get("pmid", x.get("id")) for x in rows
    ]
    for x, row in zip(got, rows, strict=False):
        assert x["text"] in (
            row.get("text"),
            " ".join(filter(None, map(row.get, ("title", "abstract")))),
        )
        for e in x["entities"]:
            assert x["text"][e["start"] : e["end"]] == e["text"] and 1 / 3 < e["probability"] <= 1
    found = [[(e["start"], e["end"], e["type"]) for e in x["entities"]] for x in got]
    assert found == wanted(answered) and sum(map(len, found)) > 100 and found[-1] == []


def test_pubtator(answered):
    text = "".join(as_text(item, answer, "pubtator", "x") for item, answer in answered)
    assert text.endswith("\n\n") and len(text.splitlines()) == text.count("\n")
    found = []
    for block in text[:-2].split("\n\n"):
        title, abstract, *rows = block.split("\n")
        key, kind, title = title.split("|", 2)
        assert (kind, abstract.split("|", 2)[:2]) == ("t", [key, "a"])
        document = f"{title} {abstract.split('|', 2)[2]}"
        found.append([])
        for row in rows:
            pmid, start, end, mention, kind = row.split("\t")
            assert pmid == key and document[int(start) : int(end)] == mention
            found[-1].append((int(start), int(end), kind))
    assert found == wanted(answered[:-1])  # a blank line is no document


def test_brat(answered, rows, tmp_path):
    with output(tmp_path / "out", "brat", "x") as write:
        for item, answer in answered:
            write(item, answer)
    names = [str(row.get("pmid", row.get("id", 42))) for row in rows]  # the last has its line's
    assert {x.name for x in (tmp_path / "out").iterdir()} == {
        name + ending for name in names for ending in (".txt", ".ann")
    }
    found, broken = [], 0
    for name, (item, _) in zip(names, answered, strict=False):
        text = (tmp_path / "out" / f"{name}.txt").read_bytes().decode()
        assert text == item.text
        found.append([])
        lines = (tmp_path / "out" / f"{name}.ann").read_bytes().decode().split("\n")
        for n, line in enumerate(lines[:-1], start=1):
            number, place, mention = line.split("\t")
            kind, *places = re.split("[ ;]", place)
            spans = list(zip(map(int, places[::2]), map(int, places[1::2]), strict=True))
            assert number == f"T{n}"
            assert " ".join(text[a:b] for a, b in spans).replace("\t", " ") == mention
            assert not re.search("[\r\n]", "".join(text[a:b] for a, b in spans))
            broken += len(spans) > 1
            found[-1].append((spans[0][0], spans[-1][1], kind))
    assert found == wanted(answered[:-1]) and broken > 3


@pytest.mark.parametrize("key", ["a|b", "a\tb", [1], True, 2.5])
def test_ids_that_break_a_line_are_refused(key):
    item = Document("a", None, 5, {"id": key})
    with pytest.raises(InputError, match="x: line 5 has the id"):
        as_text(item, {"entities": []}, "pubtator", "x")


def test_files_of_brat_have_names_of_their_own(tmp_path):
    brat = Brat(tmp_path, "x")
    for key in ("a/b", "..", "a" * 300):
        with pytest.raises(InputError, match="x: line 5 has the id .*, no name of a file"):
            brat.write(Document("a", None, 5, {"id": key}), {"entities": []})
    brat.write(Document("a", None, 5, {"id": "a"}), {"entities": []})
    with pytest.raises(InputError, match="line 6 has the id 'a' of line 5"):
        brat.write(Document("a", None, 6, {"pmid": "a"}), {"entities": []})
    assert sorted(x.name for x in tmp_path.iterdir()) == ["a.ann", "a.txt"]


@pytest.mark.parametrize("between", ["\t", " "])
def test_words_get_a_column(predictor, tmp_path, between):
    lines = ["-DOCSTART-" + between + "O", "", *f"The O|Gout B|had O|no O|Colic B|. O||It{between}O"
             .replace(" ", between).split("|")]  # fmt: skip
    (tmp_path / "given").write_text("\n".join(lines), "utf-8")
    pairs = list(predict(predictor, tmp_path / "given"))
    got = "".join(as_text(item, answer, "json", "x") for item, answer in pairs).split("\n")[:-1]
    words = ["The", "Gout", "had", "no", "Colic", "."]
    (answer,) = predictor([Document(" ".join(words))])
    starts = {e["start"] for e in answer["entities"]}
    at = [sum(len(w) + 1 for w in words[:i]) for i in range(len(words))]
    assert len(got) == len(lines) and starts <= set(at)
    for i, (line, row) in enumerate(zip(lines, got, strict=True)):
        if i in (0, 1, 8):
            assert row == line
        else:
            assert row.startswith(line + between) and row.split(between)[2] in ("O", "B-d", "I-d")
    assert all(got[2 + at.index(start)].split(between)[2] != "O" for start in starts)
    for format in ("pubtator", "brat"):
        with pytest.raises(InputError, match=f"x is a word a line, .*drop --format {format}"):
            with output(tmp_path / "out", format, "x") as write:
                write(*pairs[0])
    assert not (tmp_path / "out").exists() and not (tmp_path / "out.partial").exists()


@pytest.mark.parametrize("format", ["json", "brat"])
def test_what_came_before_a_wrong_line_is_kept(tmp_path, format):
    place, item = tmp_path / "out", Document("a", None, 1)
    answer = {"text": "a", "entities": []}
    with pytest.raises(InputError, match="^wrong; what came before it is in .*out.partial$"):
        with output(place, format, "x") as write:
            write(item, answer)
            raise InputError("wrong")
    assert [x.name for x in tmp_path.iterdir()] == ["out.partial"]
    kept = place.with_name("out.partial")
    kept = kept / "1.txt" if format == "brat" else kept
    assert kept.read_text("utf-8") == ("a" if format == "brat" else json.dumps(answer) + "\n")
    with output(place, format, "x") as write:
        write(item, answer)
    assert [x.name for x in tmp_path.iterdir()] == ["out"]
    with pytest.raises(InputError, match="^wrong$"):
        with output(tmp_path / "other", format, "x"):
            raise InputError("wrong")
    assert [x.name for x in tmp_path.iterdir()] == ["out"]
