"""Test sentences in citations: found however they are written, and only where they are."""

import json
import lzma

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data.shard import leakage
from data.shard.leakage import (
    ANCHOR,
    COMMON,
    SHORTEST,
    Sentences,
    letters,
    mark,
    table,
    texts,
    token_columns,
)
from helpers import real_data
from minibio.run.errors import InputError
from minibio.tasks import relation

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


@pytest.mark.parametrize(
    "start", ["-DOCSTART-", "-DOCSTART- -X- -X- O", "-DOCSTART-\t\tO", "-DOCSTART- (PMID 12)\tO"]
)
@pytest.mark.parametrize("tag", "O B-Drug M-Drug B_Drug Drug-B L 0 W-Drug b-Drug Drug_W o".split())
@pytest.mark.parametrize("separator", ["\t", " ", "\tNN\t", " NN "])
@pytest.mark.parametrize("name", ["a.tsv", "a.txt"])
def test_the_forms_of_tokens_and_tags(tmp_path, start, tag, separator, name):
    words = ["Zinc", "mice\u2028\x85", "x" * 50]  # a long name is not a sentence
    rows = [f"{word}{separator}{tag}" for word in words]
    path = write(tmp_path, *rows, start, *rows, "", rows[0], name=name)
    found = list(filter(None, texts(path)))
    assert [letters(text) for text in found] == [letters("".join(words))] * 2 + [b"zinc"]


def test_an_odd_line_does_not_hide_a_set_of_tags(tmp_path):
    rows = ["Zinc\tO"] * 20 + ["mice"] + ["", "rats\tO"]
    found = list(texts(write(tmp_path, *rows, name="a.tsv")))
    assert found == ["Zinc " * 20 + "mice", "rats"]


@pytest.mark.parametrize(("n_odd", "is_tags"), [(1, True), (2, False), (19, False)])
def test_tags_are_nine_lines_of_ten(n_odd, is_tags):
    """More than that: of 20 lines 19, not 18."""
    rows = ["Zinc O"] * (20 - n_odd) + ["mice lived"] * n_odd
    cells = [row.split() for row in rows]
    assert token_columns(rows) == (cells if is_tags else None)


@pytest.mark.parametrize("label", ["0", "1", "O", "false", "B-x"])
def test_a_column_of_labels_is_not_one_of_tags(tmp_path, label):
    rows = [f"{i}\t{text}\t{label}" for i, text in enumerate([SENTENCE, GAD] * 9)]
    assert list(texts(write(tmp_path, *rows, name="a.tsv"))) == [SENTENCE, GAD] * 9


def test_columns(tmp_path):
    rows = ["index\tsentence\tlabel", f"0\t{GAD}\t1", f"{SENTENCE}\t0"]
    found = list(texts(write(tmp_path, *rows, name="a.tsv")))
    assert found[1:] == [GAD, SENTENCE]


def test_json_lines(tmp_path):
    rows = [json.dumps({"text": SENTENCE, "label": "x"}), "", json.dumps({"text": GAD})]
    assert list(texts(write(tmp_path, *rows, name="a.jsonl"))) == [SENTENCE, GAD]
    for bad in ('{"sentence": 3}', '{"body": "x"}', "[3]", "x", "[" * 100_000):
        with pytest.raises(
            InputError, match='line 2: expected an object with "text" or "sentence"'
        ):
            list(texts(write(tmp_path, rows[0], bad, name="a.jsonl")))


@pytest.mark.parametrize("name", ["a.jsonl", "a.txt", "a.tsv"])
@pytest.mark.parametrize("key", ["text", "sentence"])
def test_lines_of_json_are_known_by_their_content(tmp_path, name, key):
    """SciBERT's release calls them .txt."""
    rows = [json.dumps({key: text, "label": "x"}) for text in (SENTENCE, GAD)]
    assert list(texts(write(tmp_path, *rows, name=name))) == [SENTENCE, GAD]


@pytest.mark.parametrize("end", ["\u2028", "\u2029", "\x85", "\x0b", "\x0c", "\x1c", "\r"])
def test_lines_end_at_line_feeds_only(tmp_path, end):
    odd = SENTENCE.replace("lowers", f"lowers{end}")
    row = json.dumps({"text": odd}, ensure_ascii=False)
    for name, text in (("a.jsonl", row), ("b.txt", odd), ("c.tsv", f"3\t{odd}\t1")):
        (tmp_path / name).write_bytes(f"{text}\r\n{text}\n".encode())
        found = [letters(text) for text in texts(tmp_path / name) if text]
        if name == "b.txt":  # the end of a sentence may be any white space
            found = [b"".join(found[: len(found) // 2]), b"".join(found[len(found) // 2 :])]
        assert found == [letters(SENTENCE)] * 2, name


@pytest.mark.parametrize("end", ["\n", "\u2028", " \u2029 ", "\x85"])
def test_lines_within_a_text_end_sentences(tmp_path, end):
    row = json.dumps({"text": f"{SENTENCE}{end}Next."}, ensure_ascii=False)
    assert list(texts(write(tmp_path, row, name="a.jsonl"))) == [SENTENCE, "Next."]


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
    for name in ("gad/test.tsv", "gad/train.tsv", "devel.tsv", "LICENSE.txt", "x.jsonl", "y.csv",
                 "strain-test.tsv", "constrained_test.tsv", "train_dev.tsv", "BioASQ-train-7b.json",
                 "Train.tsv", "train2.tsv", "gad/test.txt", "gad/train.txt",
                 "fetched.json"):  # fmt: skip
        (tmp_path / name).touch()
    found = [file.relative_to(tmp_path).as_posix() for file in leakage.files([tmp_path])]
    assert found == ["constrained_test.tsv", "devel.tsv", "gad/test.tsv", "gad/test.txt",
                     "strain-test.tsv", "x.jsonl"]  # fmt: skip
    train = tmp_path / "gad" / "train.tsv"
    assert leakage.files([train]) == [train]  # named: meant


@pytest.mark.parametrize(
    "name", ["test.csv", "devel.tsv.gz", "x_test.xml", "Test.parquet", "dev.conll"]
)
def test_an_evaluation_set_of_another_kind_is_not_passed_over(tmp_path, name):
    for each in ("devel.tsv", name):
        (tmp_path / each).touch()
    with pytest.raises(InputError, match=f"{name}: expected a directory, .tsv, .jsonl"):
        leakage.files([tmp_path])


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


@pytest.mark.parametrize(
    "name",
    ["@GENE$", "@CHEM-GENE$", "@ARG1$", "@GENE1$", "@chemical$", "@DRUG_A$", "BC6ENTC", "BC6ENTG"],
)
def test_every_form_of_a_blank_matches_names(tmp_path, name):
    blanked = GAD.replace("@GENE$", name).replace("@DISEASE$", f"{name},")
    found = Sentences.read([write(tmp_path, blanked)])
    assert found.find([GAD.replace("@GENE$", "ACE").replace("@DISEASE$", "type 2 diabetes,")])


@settings(derandomize=True, deadline=None)
@given(st.from_regex(relation.NAME, fullmatch=True))
def test_what_the_relation_reader_takes_for_a_name_is_a_blank(name):
    short = name if name.startswith("BC6ENT") else name[:40].rstrip("$") + "$"
    assert leakage.BLANKED.fullmatch(short)


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
