"""The sample's files: the forms of the real sets, the same bytes each time, and hard enough."""

import hashlib
import json
import re
from collections import Counter

import pytest

from data.sample.grammar import document
from data.sample.sample import NER, main, make_sample, tag_tokens
from helpers import real_data
from minibio.run.errors import InputError

DOCUMENTS = 400
# of seed 5, 20 documents, 10 training sentences; where a change of text is meant, raise VERSION
PINNED = "e86d4dfb5d54e3ac0908d7dadd0b20b459265fec28c9396c82e33c28713650d8"
FILES = {
    "corpus.jsonl", "sample.json", "relation/gad/train.tsv", "relation/gad/test.tsv",
    "relation/chemprot/train.jsonl", "relation/chemprot/dev.jsonl",
    "relation/chemprot/test.jsonl", "qa/train.json", "qa/test.json", "qa/golden.json",
} | {
    f"{folder}/{split}.tsv"
    for folder in ("ner", "ner-chem", "ner-gene", "ner_typed")
    for split in ("train", "devel", "test")
}  # fmt: skip


@pytest.fixture(scope="module")
def sample(tmp_path_factory):
    path = tmp_path_factory.mktemp("sample") / "seed0"
    make_sample(path, seed=0, documents=DOCUMENTS)
    return path


def digest(path) -> str:
    whole = hashlib.sha256()
    for file in sorted(p for p in path.rglob("*") if p.is_file()):
        whole.update(str(file.relative_to(path)).encode() + b"\0" + file.read_bytes())
    return whole.hexdigest()


def sentences(path) -> list[list[tuple[str, str]]]:
    """Of a TSV file, checked as it is read: token TAB tag, a blank line after each sentence."""
    text = path.read_text("utf-8")
    assert text.endswith("\n\n") and "\n\n\n" not in text and "\r" not in text
    blocks = text[:-2].split("\n\n")
    return [[tuple(line.split("\t")) for line in block.split("\n")] for block in blocks]


def entities(sentence) -> list[str]:
    """The tokens of each name, joined by spaces."""
    found = []
    for token, tag in sentence:
        if tag[0] == "B":
            found.append(token)
        elif tag[0] == "I":
            found[-1] += f" {token}"
    return found


def test_the_layout(sample):
    found = {str(p.relative_to(sample)) for p in sample.rglob("*") if p.is_file()}
    assert found == FILES


def test_the_same_arguments_write_the_same_bytes(sample, tmp_path):
    make_sample(tmp_path / "again", seed=0, documents=DOCUMENTS)
    assert digest(tmp_path / "again") == digest(sample)
    make_sample(tmp_path / "other", seed=1, documents=20)
    assert digest(tmp_path / "other") != digest(sample)
    assert (tmp_path / "other/ner/test.tsv").read_text() != (sample / "ner/test.tsv").read_text()


def test_the_bytes_are_those_of_every_machine(tmp_path):
    """Pinned, so that results of different machines and times can be compared."""
    make_sample(tmp_path / "s", seed=5, documents=20, ner_train=10)
    assert digest(tmp_path / "s") == PINNED


def test_more_documents_only_add_to_the_corpus(sample, tmp_path):
    make_sample(tmp_path / "s", seed=0, documents=20)
    few = (tmp_path / "s/corpus.jsonl").read_text()
    assert (sample / "corpus.jsonl").read_text().startswith(few)
    for file in FILES - {"corpus.jsonl", "sample.json"}:
        assert (tmp_path / "s" / file).read_bytes() == (sample / file).read_bytes()


def test_the_corpus(sample):
    lines = (sample / "corpus.jsonl").read_text().splitlines()
    records = [json.loads(line) for line in lines]
    assert len(records) == DOCUMENTS == len({record["id"] for record in records})
    assert all(list(record) == ["id", "title", "abstract"] for record in records)
    assert records[7]["id"] == "sample-000007"
    assert len({record["abstract"] for record in records}) == DOCUMENTS


@pytest.mark.parametrize("folder", ["ner", "ner-chem", "ner-gene"])
def test_the_form_of_ner_files(sample, folder):
    real = sentences_form(real_data("ner/NCBI-disease") / "devel.tsv")
    for split, n in (("train", 600), ("devel", 150), ("test", 1200)):
        path = sample / folder / f"{split}.tsv"
        assert sentences_form(path) == real
        read = sentences(path)
        assert len(read) == n
        for sentence in read:
            tags = [tag for _, tag in sentence]
            assert all(a != "O" for a, b in zip(["O", *tags], tags, strict=False) if b == "I")


def sentences_form(path) -> tuple:
    """The common features of all lines of a file: columns, tags, marks by themselves."""
    read = sentences(path)
    columns = {len(line) for sentence in read for line in sentence}
    tags = {tag for sentence in read for _, tag in sentence}
    is_split = all(re.fullmatch(r"\w+|[^\w\s]", token) for s in read for token, _ in s)
    return columns, tags, is_split


def test_the_folders_hold_the_same_sentences(sample):
    def words(folder):
        return [
            [token for token, _ in s]
            for s in sentences(sample / folder / "test.tsv")
            if s[0][0] != "-DOCSTART-"
        ]

    assert words("ner") == words("ner-chem") == words("ner-gene") == words("ner_typed")


def test_the_form_of_the_typed_files(sample):
    real = sentences(real_data("ner_typed/JNLPBA") / "devel.tsv")
    ours = sentences(sample / "ner_typed/devel.tsv")
    for read in (real, ours):
        assert read[0] == [("-DOCSTART-", "O")]
        assert all(len(s) == 1 for s in read if s[0][0] == "-DOCSTART-")
        assert all(re.fullmatch(r"O|[BI]-\w+", tag) for s in read for _, tag in s)
    kinds = {tag[2:] for s in ours for _, tag in s} - {""}
    assert kinds == {"disease", "chemical", "gene", "species"}
    untyped = [[t for t, tag in s if tag.endswith("disease")] for s in ours if len(s) > 1]
    of_file = [[t for t, tag in s if tag != "O"] for s in sentences(sample / "ner/devel.tsv")]
    assert untyped == of_file


def test_tags_follow_the_mentions():
    for position in range(60):
        doc = document(0, NER, position)
        for sentence in (doc.title, *doc.sentences):
            wanted = [
                " ".join(re.findall(r"\w+|[^\w\s]", sentence.text[m.start : m.end]))
                for m in sentence.mentions
                if m.thing.kind == "disease"
            ]
            assert entities(tag_tokens(sentence, "disease")) == wanted


def test_names_must_be_learnt_from_the_corpus(tmp_path):
    """Most names of the test set are new to the training set and old to the corpus."""
    make_sample(tmp_path / "s", documents=6000)
    train = {e for s in sentences(tmp_path / "s/ner/train.tsv") for e in entities(s)}
    test = [e for s in sentences(tmp_path / "s/ner/test.tsv") for e in entities(s)]
    new = {e for e in test if e not in train}
    assert len(test) > 800 and len(set(test)) > 450
    assert sum(e in new for e in test) > 0.8 * len(test)
    records = map(json.loads, (tmp_path / "s/corpus.jsonl").read_text().splitlines())
    words = (re.findall(r"\w+|[^\w\s]", r["title"] + " " + r["abstract"]) for r in records)
    corpus = f" {' '.join(' '.join(w) for w in words)} "
    assert sum(f" {e} " in corpus for e in new) > 0.9 * len(new)
    tokens = Counter(corpus.split())
    assert len(tokens) > 10000  # types, of half a million tokens
    assert sum(n == 1 for n in tokens.values()) > 0.1 * len(tokens)  # a long tail


def test_the_form_of_gad(sample):
    real, ours = real_data("relation/gad/1"), sample / "relation/gad"
    for folder in (real, ours):
        train = [line.split("\t") for line in (folder / "train.tsv").read_text().splitlines()]
        header, *test = [line.split("\t") for line in (folder / "test.tsv").read_text().split("\n")]
        assert header == ["index", "sentence", "label"] and test.pop() == [""]
        assert [row[0] for row in test] == [str(i) for i in range(len(test))]
        for text, label in train + [row[1:] for row in test]:
            assert text.count("@GENE$") == text.count("@DISEASE$") == 1 and label in "01"
        share = sum(label == "1" for _, label in train) / len(train)
        assert 0.45 < share < 0.6


def read_lines(path):
    # no splitlines: it would also break at U+2028, which real text has
    return [json.loads(line) for line in path.read_text("utf-8").split("\n") if line]


def test_the_form_of_chemprot(sample):
    real, ours = real_data("relation/chemprot13"), sample / "relation/chemprot"
    labels = {}
    for folder in (real, ours):
        records = read_lines(folder / "train.jsonl")
        labels[folder] = {record["label"] for record in records}
        for record in records:
            assert list(record) == ["text", "label", "metadata"] and record["metadata"] == []
            assert re.search(r"<< .+ >>.*\[\[ .+ \]\]", record["text"])
    assert labels[real] == labels[ours] and len(labels[ours]) == 13
    for split in ("dev", "test"):
        records = read_lines(ours / f"{split}.jsonl")
        assert {record["label"] for record in records} <= labels[ours]


def keys(value):
    """The structure of a JSON value: keys of objects, form of the first item of a list."""
    if isinstance(value, dict):
        return {name: keys(value[name]) for name in sorted(value)}
    if isinstance(value, list):
        return [keys(value[0])] if value else []
    return type(value).__name__


def test_the_form_of_questions(sample):
    real = real_data("qa")
    for ours, theirs in (
        ("train", "BioASQ-train-factoid-7b"), ("test", "BioASQ-test-factoid-6b-1"),
    ):  # fmt: skip
        ours, theirs = (
            json.loads((folder / f"{name}.json").read_text("utf-8"))
            for folder, name in ((sample / "qa", ours), (real, theirs))
        )
        assert keys(ours) == keys(theirs)
    golden = json.loads((real / "6B1_golden.json").read_text("utf-8"))["questions"]
    factoid = next(q for q in golden if q["type"] == "factoid")
    assert keys(json.loads((sample / "qa/golden.json").read_text())["questions"][0]) == keys(
        factoid
    )


def paragraphs(path) -> list[dict]:
    return json.loads(path.read_text())["data"][0]["paragraphs"]


def test_answers_stand_in_their_contexts(sample):
    questions = {}
    for paragraph in paragraphs(sample / "qa/train.json"):
        (qa,) = paragraph["qas"]
        (answer,) = qa["answers"]
        start = answer["answer_start"]
        assert paragraph["context"][start : start + len(answer["text"])] == answer["text"]
        question, snippet = qa["id"].split("_")
        assert re.fullmatch(r"[0-9a-f]{24}_\d{3}", qa["id"])
        questions.setdefault(question, []).append(int(snippet))
    assert all(snippets == list(range(1, len(snippets) + 1)) for snippets in questions.values())
    assert len(questions) == 150


def test_golden_answers_belong_to_the_test_questions(sample):
    records = json.loads((sample / "qa/golden.json").read_text())["questions"]
    asked = Counter()
    contexts = {}
    for paragraph in paragraphs(sample / "qa/test.json"):
        (qa,) = paragraph["qas"]
        assert set(qa) == {"question", "id"}  # no answer is given away
        question, snippet = qa["id"].split("_")
        assert int(snippet) == asked[question]
        asked[question] += 1
        contexts.setdefault(question, []).append(paragraph["context"])
    assert [record["id"] for record in records] == list(asked) and len(asked) == 50
    for record in records:
        (names,) = record["exact_answer"]
        assert len(record["snippets"]) == asked[record["id"]] == len(record["documents"])
        for context, snippet in zip(contexts[record["id"]], record["snippets"], strict=True):
            assert snippet["text"] in context
            assert any(name.lower() in context.lower() for name in names)
    assert len({record["body"] for record in records}) == 50
    trained = {p["qas"][0]["question"] for p in paragraphs(sample / "qa/train.json")}
    assert not trained & {record["body"] for record in records}


def test_a_sample_that_is_there_is_kept(sample, capsys):
    before = {p: p.stat().st_mtime_ns for p in sample.rglob("*")}
    main(["--out", str(sample), "--documents", str(DOCUMENTS)])
    assert "already holds it" in capsys.readouterr().out
    assert {p: p.stat().st_mtime_ns for p in sample.rglob("*")} == before


def test_another_sample_is_refused_and_replaced_by_force(sample, tmp_path, capsys):
    with pytest.raises(InputError, match=r"holds another sample .*seed 0.*seed 1.*--force"):
        make_sample(sample, seed=1, documents=DOCUMENTS)
    out = tmp_path / "s"
    make_sample(out, documents=5)
    main(["--out", str(out), "--documents", "6", "--seed", "2", "--force"])
    assert json.loads((out / "sample.json").read_text())["seed"] == 2
    assert "ner test sentences" in capsys.readouterr().out
    assert [p.name for p in tmp_path.iterdir()] == ["s"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [({"documents": 0}, "documents is 0"), ({"seed": -1}, "seed is -1"),
     ({"ner_train": 0}, "ner_train is 0"), ({"seed": 2**64}, "expected 0 to")],
)  # fmt: skip
def test_numbers_out_of_range(tmp_path, arguments, message):
    with pytest.raises(InputError, match=re.escape(message)):
        make_sample(tmp_path / "s", **arguments)
    assert not list(tmp_path.iterdir())


def test_a_folder_of_something_else_is_refused(tmp_path):
    (tmp_path / "thesis.doc").write_text("final-final-2")
    with pytest.raises(InputError, match="already holds files"):
        make_sample(tmp_path)
