"""Test sentences in citations: found however they are written, and only where they stand."""

import json
import lzma

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data.shard import leakage
from data.shard.leakage import ANCHOR, COMMON, SHORTEST, Sentences, letters, mark, table, texts
from helpers import real_data
from minibio.run.errors import InputError

SENTENCE = "Zinc (5 mg) lowers TNF-α in Sjögren's patients, compared with placebo (P < 0.05)."
TOKENS = "Zinc ( 5 mg ) lowers TNF - alpha in Sjogren ' s patients , compared with placebo " \
         "( P < 0 . 05 ) ."  # fmt: skip
GAD = "@GENE$ polymorphisms were found in patients with @DISEASE$ who had been treated in Oslo."


def test_letters():
    assert letters("Sjögren's TNF-α (5 mg)") == b"sjogrenstnfalpha5mg"
    assert letters("Ω µ ς ① ½ ﬁ") == b"omegamusigma112fi"  # compatible forms; the slash goes
    assert letters("中文 \ud800") == b""
    assert letters(SENTENCE) == letters(TOKENS)


@settings(derandomize=True, deadline=None)
@given(st.text(max_size=50))
def test_letters_are_letters_and_digits(text):
    assert not letters(text).translate(None, b"abcdefghijklmnopqrstuvwxyz0123456789")
    assert letters(f" {text}, ") == letters(text.upper().lower().upper()) or not text.isascii()


# what is read


def write(path, *sentences, name="test.txt"):
    (path / name).write_text("\n".join(sentences), "utf-8")
    return path / name


def test_tokens_and_tags(tmp_path):
    rows = ["-DOCSTART-\tO", "", "Zinc\tB", "(\tO", "mice\tI-Drug", "", "", "Rats\tx\tO"]
    found = texts(write(tmp_path, *rows, name="a.tsv"))
    assert list(filter(None, found)) == ["Zinc ( mice", "Rats"]


def test_columns(tmp_path):
    rows = ["index\tsentence\tlabel", f"0\t{GAD}\t1", f"{SENTENCE}\t0"]
    found = list(texts(write(tmp_path, *rows, name="a.tsv")))
    assert found[1:] == [GAD, SENTENCE]


def test_json_lines(tmp_path):
    rows = [json.dumps({"text": SENTENCE, "label": "x"}), "", json.dumps({"text": GAD})]
    assert list(texts(write(tmp_path, *rows, name="a.jsonl"))) == [SENTENCE, GAD]
    for bad in ('{"sentence": 3}', "[3]", "x", "[" * 100_000):
        with pytest.raises(InputError, match='a.jsonl: line 2: expected an object with "text"'):
            list(texts(write(tmp_path, rows[0], bad, name="a.jsonl")))


def test_questions(tmp_path):
    squad = {
        "version": "x",
        "data": [
            {
                "title": "t",
                "paragraphs": [
                    {
                        "context": f"{SENTENCE} 5 rats.",
                        "qas": [
                            {
                                "id": "1",
                                "question": "Why?",
                                "answers": [{"text": "no", "answer_start": 3}],
                            }
                        ],
                    }
                ],
            }
        ],
    }
    golden = {"questions": [{"body": "Which?", "ideal_answer": ["no"], "exact_answer": [["no"]],
                             "snippets": [{"text": SENTENCE, "document": "no"}]}]}  # fmt: skip
    for value, expected in ((squad, [SENTENCE, "5 rats.", "Why?"]), (golden, ["Which?", SENTENCE])):
        path = write(tmp_path, json.dumps(value), name="a.json")
        assert list(texts(path)) == expected


def test_a_directory_is_its_files_but_training_data(tmp_path):
    (tmp_path / "gad").mkdir()
    for name in ("gad/test.tsv", "gad/train.tsv", "devel.tsv", "LICENSE.txt", "x.jsonl", "y.csv"):
        (tmp_path / name).touch()
    found = [file.relative_to(tmp_path).as_posix() for file in leakage.files([tmp_path])]
    assert found == ["devel.tsv", "gad/test.tsv", "x.jsonl"]
    train = tmp_path / "gad" / "train.tsv"
    assert leakage.files([train]) == [train]  # named: meant


def test_bad_sets_are_refused(tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "binary.txt").write_bytes(b"\xff\xfe")
    (tmp_path / "x.csv").touch()
    for name, message in (
        ("empty", "no .tsv, .jsonl or .json in it"),
        ("x.csv", "expected a directory, .tsv"),
        ("no.tsv", "no.tsv: no such file or directory"),
        ("nowhere", "nowhere: no such file or directory"),
        ("binary.txt", "byte 0 is not UTF-8"),
    ):
        with pytest.raises(InputError, match=message):
            Sentences.read([tmp_path / name])
    with pytest.raises(InputError, match="short.txt: no sentence of 40 letters"):
        Sentences.read([write(tmp_path, "Too short.", name="short.txt")])


# what is found


@pytest.fixture
def sentences(tmp_path):
    return Sentences.read([write(tmp_path, SENTENCE, GAD, "Short one.")])


@pytest.mark.parametrize(
    "text",
    [SENTENCE, TOKENS, f"Title. {SENTENCE.upper()} More.", f"x{TOKENS}y".replace(" ", "  ")],
)
def test_a_sentence_is_found_however_it_is_written(sentences, text):
    assert sentences.find(["Nothing here.", text, ""]) == [(1, 0)]


@pytest.mark.parametrize("change", [("lowers", "raises"), ("0.05", "0.06"), ("Zinc", "Iron")])
def test_another_sentence_is_not(sentences, change):
    assert sentences.find([SENTENCE.replace(*change)]) == []


def test_blanked_entities_match_names(sentences):
    text = GAD.replace("@GENE$", "The ACE I/D").replace("@DISEASE$", "type 2 diabetes mellitus")
    assert sentences.find([text]) == [(0, 1)]
    far = GAD.replace("@DISEASE$", "flu. " + "Nothing was found. " * 20)
    assert sentences.find([far]) == []
    assert sentences.find([text.replace("in Oslo", "in Rome")]) == []


def test_a_sentence_across_two_documents_is_in_neither(sentences):
    assert sentences.find([SENTENCE[:50], SENTENCE[50:]]) == []


def test_equal_sentences_are_one_and_short_ones_counted(tmp_path):
    a = write(tmp_path, SENTENCE, TOKENS, "One.", "one", "Two.", name="a.tsv")
    b = write(tmp_path, TOKENS, GAD, name="b.tsv")
    found = Sentences.read([a, b])
    assert found.members == [[0], [0, 1]] and found.too_short == [2, 0]
    assert found.shown == [SENTENCE, GAD]
    assert found.fingerprint != Sentences.read([a]).fingerprint


words = st.lists(st.sampled_from("zinc iron mice rats helps cures 5mg TNF-α".split()), max_size=40)


@settings(derandomize=True, deadline=None, max_examples=150)
@given(
    st.lists(words.map(" ".join), min_size=1, max_size=4),
    st.lists(words.map(" ".join), max_size=4),
)
def test_the_search_is_a_search_for_parts(tests, documents):
    """Equal to looking for every sentence in every document."""
    found = Sentences()
    for text in tests:
        if len(letters(text)) >= SHORTEST:
            found.parts.append((letters(text),))
    found.index()
    documents = documents + [f"so {text} then" for text in tests]
    expected = [
        (i, k)
        for i, text in enumerate(documents)
        for k, (part,) in enumerate(found.parts)
        if part in letters(text)
    ]
    assert found.find(documents) == expected
    assert SHORTEST >= ANCHOR


# the report


class Piece:
    def __init__(self, first, leaks, n):
        self.first, self.leaks = first, np.array(leaks, np.int64).reshape(-1, 2).T
        self.names = {i: f"pmid{first + i}" for i, _ in leaks}
        self.n = n


def test_citations_are_dropped_but_for_phrases(tmp_path):
    phrase = "Written informed consent was obtained from all the patients."
    a = write(tmp_path, SENTENCE, phrase, "Short.", name="a.txt")
    b = write(tmp_path, GAD, SENTENCE, name="b.txt")
    found = Sentences.read([a, b])  # 0 SENTENCE, 1 phrase, 2 GAD
    pieces = [Piece(0, [(1, 0), (1, 1), (2, 1), (4, 2)], 5), Piece(5, [(0, 0)], 1)]
    pieces.append(Piece(6, [(i, 1) for i in range(COMMON)], COMMON))
    is_out = np.zeros(6 + COMMON, bool)
    is_out[4] = True  # a duplicate: does not count
    is_leaked, rows = mark(pieces, found, is_out)
    assert np.flatnonzero(is_leaked).tolist() == [1, 5]
    example = [{"citation": f"pmid{i}", "sentence": SENTENCE} for i in (1, 5)]
    assert rows == [
        {"set": str(a), "sentences": 3, "too short": 1, "found": 2, "phrases": 1,
         "citations dropped": 2, "examples": example},
        {"set": str(b), "sentences": 2, "too short": 0, "found": 1, "phrases": 0,
         "citations dropped": 2, "examples": example},
    ]  # fmt: skip
    lines = table(rows).splitlines()
    assert len(lines) == 3 and lines[1].split()[-5:] == ["3", "1", "2", "1", "2"]
    assert len({len(line) for line in lines}) == 1, "columns do not line up"
    assert mark(pieces[:2], found, is_out)[0].sum() == 3  # as a rarer sentence it drops one more


def test_real_flags_are_found_again():
    """Citations that others flagged as ChemProt's or GAD's: every one."""
    chemprot = [real_data(f"relation/chemprot13/{n}.jsonl") for n in ("train", "dev", "test")]
    gad = [real_data(f"relation/gad/1/{n}.tsv") for n in ("train", "test")]
    with lzma.open(real_data("pubmed/abstracts.jsonl.xz"), "rt", encoding="utf-8") as file:
        flagged = [r for r in map(json.loads, file) if r.get("eval_test_overlap")]
    for name, paths, n in (("ChemProt", chemprot, 208), ("GAD", gad, 29)):
        records = [r for r in flagged if name in r["eval_test_overlap"]]
        found = Sentences.read(paths).find([f"{r['title']} {r['abstract']}" for r in records])
        assert len({i for i, _ in found}) == len(records) == n
