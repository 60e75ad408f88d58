"""Inputs of predict, taken for what they are: text, JSON, words a line; tables are refused."""

import gzip
import json
import lzma

import pytest

from minibio.run.errors import InputError
from minibio.tasks.documents import Document, Pair, Question, Words, kind_of, read_items

CONLL = ["-DOCSTART- O", "", *"The O|gene O|p53 B-gene|- I-gene|1 I-gene|. O||It O".split("|")]
TABS = "The\tDT\tO|gene\tNN\tO||p53\tNN\tB".split("|")


def read(tmp_path, data, head="token", name="given", **how):
    (tmp_path / name).write_bytes(data if isinstance(data, bytes) else data.encode())
    return list(read_items(str(tmp_path / name), head, **how))


@pytest.mark.parametrize(
    ("lines", "kind"),
    [
        (['{"text": "a"}'], "json"),
        (["", ' { "text": "a"}', "b"], "json"),
        (["{"], "json"),  # of several lines; its first is refused as no JSON
        (["{alpha}-pinene was found."], "text"),
        (["A text.", "And one more."], "text"),
        (["fever, cough", "pain, cough"], "text"),
        (["Vitamin B", "hepatitis B"], "text"),
        (["a\tb", "no tab"], "text"),
        (["one\ttab"], "text"),
        (["[18F]FDG PET of a patient"], "text"),
        (["aspirin", "zinc", "gold", "iron", "lead"], "text"),  # a list of terms
        ([], "text"),
        (CONLL, (False, 2)),
        (TABS, (True, 3)),
        (["The\tO"], (True, 2)),
        (["a\tO", "b\tL-gene", "c\tU-gene"], (True, 2)),  # BILOU
        (["The", "gene", "p53", "works", ".", "", "It"], (True, 1)),
    ],
)
def test_kinds(lines, kind):
    found = kind_of(lines, "token", "x")
    assert (found if isinstance(kind, str) else found[:2]) == kind


@pytest.mark.parametrize(
    ("lines", "head", "name", "message"),
    [
        (["pmid,title", "1,a b"], "token", "x", r"x is a table \(CSV: 'pmid,title'\).*JSON"),
        (['"id";"text"', "1;a"], "sequence", "x", "x is a table .CSV"),
        (["a text"], "token", "x.csv.gz", "x.csv.gz is a table .CSV"),
        (["1\ta text", "2\tb"], "token", "x", r"x is a table \(TSV"),
        (["<< a >> [[ b ]]\tyes", "<< a >> [[ b ]]\tno"], "sequence", "x", r"x is a table \(TSV"),
        (["<?xml version='1.0'?>"], "token", "x", "x is XML; python -m data.pubmed"),
        (["[", '{"text": "a"}', "]"], "token", "x", "x is a JSON list, expected an object a line"),
        (['[{"text": "a"}]'], "span", "x", "x is a JSON list"),
    ],
)
def test_what_is_no_input_is_refused_with_what_to_do(lines, head, name, message):
    with pytest.raises(InputError, match=message) as caught:
        kind_of(lines, head, name)
    assert "\n" not in str(caught.value)


def test_questions_may_have_tabs(tmp_path):
    assert read(tmp_path, "a\tb\nc\td\n", "span") == [Question("a", ["b"]), Question("c", ["d"])]


def test_title_and_abstract_are_one_text(tmp_path):
    rows = [
        {"pmid": "12", "version": 1, "title": "A\U0001d53e.", "abstract": "B\n\tc."},
        {"id": 3, "title": "Only", "abstract": None},
        {"title": "", "abstract": "Only"},
        {"text": "T", "title": "not this"},
    ]
    got = read(tmp_path, "".join(json.dumps(row) + "\n" for row in rows) + "\n")
    assert got == [
        Document("A\U0001d53e. B\n\tc.", 3, 1, {"pmid": "12"}),
        Document("Only", None, 2, {"id": 3}),
        Document("Only", None, 3),
        Document("T", None, 4),
        None,
    ]
    with pytest.raises(InputError, match='line 1 has body, expected a "text", or "title"'):
        read(tmp_path, '{"body": "a"}')
    with pytest.raises(InputError, match="line 1 has title, abstract, expected"):
        read(tmp_path, '{"title": "a", "abstract": ["b"]}')


def test_pairs_keep_their_id(tmp_path):
    row = {"id": "x", "text": "a b", "first": [0, 1], "second": [2, 3]}
    (got,) = read(tmp_path, json.dumps(row), "sequence")
    assert isinstance(got, Pair) and got.given == {"id": "x"} and got.spans == ([0, 1], [2, 3])


def test_words_come_sentence_by_sentence(tmp_path):
    got = read(tmp_path, "\n".join(CONLL) + "\n")
    assert [line for item in got for line in item.lines] == CONLL
    assert [x.words for x in got] == [[], [], "The gene p53 - 1 .".split(), [], ["It"]]
    assert {x.by_tabs for x in got if x.words} == {False}
    got = read(tmp_path, "\n".join(TABS))
    assert got == [Words(TABS[:2], ["The", "gene"]), Words([""], []), Words(TABS[3:], ["p53"])]
    with pytest.raises(InputError, match="line 61 is 'x', expected 2 columns apart by spaces"):
        read(tmp_path, "a O\n" * 60 + "x\n")


@pytest.mark.parametrize("pack", [gzip.compress, lzma.compress])
def test_packed_inputs_are_known_by_their_bytes(tmp_path, pack):
    text = "".join(f"Text {i}\n" for i in range(200))
    whole, seen = pack(text.encode()), []
    got = read(tmp_path, whole, name="a.txt", seen=seen.append)
    assert got == [Document(f"Text {i}", None, i + 1) for i in range(200)]
    assert seen == sorted(seen) and seen[-1] == len(whole)
    with pytest.raises(InputError, match=r"a.txt: after line \d+: .*; the archive is damaged"):
        read(tmp_path, whole[:-20], name="a.txt")


def test_one_kind_to_the_end(tmp_path):
    """Also beyond the lines that showed what the file is."""
    text = "{odd} text\n" * 70
    assert len(read(tmp_path, text + '{"odd" text\n')) == 71
    with pytest.raises(InputError, match="line 71 is JSON, the lines before it are text"):
        read(tmp_path, text + '{"text": "a"}\n')
    with pytest.raises(InputError, match="line 2 is not JSON"):
        read(tmp_path, '{"text": "a"}\nb\n')
    with pytest.raises(InputError, match="line 1 is not JSON"):
        read(tmp_path, "b\n", is_json=True)


def test_what_came_before_a_wrong_line_is_read(tmp_path):
    (tmp_path / "given").write_bytes(b"a\nb\n\xff\n")
    items = read_items(str(tmp_path / "given"), "token")
    assert [next(items).text, next(items).text] == ["a", "b"]
    with pytest.raises(InputError, match="line 3, byte 1 is not UTF-8"):
        next(items)
