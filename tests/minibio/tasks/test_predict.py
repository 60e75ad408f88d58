"""Fine-tuned directories applied to lines of text: offsets, order, memory, refusals."""

import io
import json
import random
import shutil
from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import settings as settings_of
from hypothesis import strategies as st

import minibio
from helpers import real_data, tiny_config
from minibio.model.heads import Model
from minibio.run.errors import InputError
from minibio.tasks import documents, ner, qa, reading, relation, tags
from minibio.tasks.documents import SAMPLE, Document, parse
from minibio.tasks.predict import (
    CHUNK,
    Predictor,
    in_chunks,
    join,
    predict,
    settings,
    windows,
)
from toy_tasks import HEADS, make_encoder, make_heads, make_tokenizer


@pytest.fixture(scope="module")
def directories(tmp_path_factory):
    return make_heads(tmp_path_factory.mktemp("models"))


def run(directory, text, tmp_path, is_json=False, B=4):
    (tmp_path / "text").write_text(text, "utf-8")
    return answers(Predictor(directory, B=B, precision="fp32"), str(tmp_path / "text"), is_json)


def answers(predictor, path, is_json=False):
    return [answer for _, answer in predict(predictor, path, is_json)]


LINES = [
    "The patient had Gout",
    "",
    "  Ulcer\u200b disorder, then a\u0301cute Colic ",
    "𝔾out é Sepsis",
    "a " * 90 + "Gout",
]


def test_names_stand_where_the_offsets_say(directories, tmp_path):
    got = run(directories / "token", "\n".join(LINES), tmp_path)
    assert [x["text"] for x in got] == LINES and got[1]["entities"] == []
    assert sum(len(x["entities"]) for x in got) > 3
    for x in got:
        for e in x["entities"]:
            assert x["text"][e["start"] : e["end"]] == e["text"] != "" and e["type"] == "d"
    # the same by the parts
    model, tokenizer = minibio.load(directories / "token", head="token")
    spans = reading.cut(LINES[2], tokenizer).word_spans
    sentence = ner.Sentence([LINES[2][a:b] for a, b in spans], ["O"] * len(spans))
    (window,) = ner.make_windows([sentence], tokenizer, 40)
    logits = model(minibio.Batch.from_sequences([window.tokens])).logits[1:-1]
    (words,), _ = ner.rejoin([window], [[model.labels[k] for k in logits.argmax(1)]])
    firsts = [window.words.index(w) for w in range(len(spans))]
    p = logits.softmax(1).amax(1)[firsts].tolist()
    assert [(m.start, m.end, round(m.probability, 4)) for m in ner.mentions(words, spans, p)] == [
        (e["start"], e["end"], e["probability"]) for e in got[2]["entities"]
    ]


def edited(directory, tmp_path, **fields):
    """A copy of a model whose config.json has other fields; None takes one away."""
    copy = shutil.copytree(directory, tmp_path / "edited", dirs_exist_ok=True)
    config = json.loads((copy / "config.json").read_text()) | fields
    config = {name: value for name, value in config.items() if value is not None}
    (copy / "config.json").write_text(json.dumps(config))
    return copy


@pytest.mark.parametrize("labels", ["0 B_d I_d", "[PAD] d-B d-I", "X b-d i-d"])
def test_names_do_not_depend_on_how_labels_are_written(directories, tmp_path, labels):
    want = run(directories / "token", "\n".join(LINES), tmp_path)
    label2id = {label: i for i, label in enumerate(labels.split())}
    for fields in ({"id2label": None}, {"id2label": {i: x for x, i in label2id.items()}}):
        path = edited(directories / "token", tmp_path, label2id=label2id, **fields)
        assert run(path, "\n".join(LINES), tmp_path) == want


def test_labels_without_names_are_refused(directories, tmp_path):
    """transformers leaves LABEL_0, LABEL_1, ... out of config.json, or writes them."""
    for id2label in (None, {i: f"LABEL_{i}" for i in range(3)}):
        path = edited(directories / "token", tmp_path, id2label=id2label, label2id=None)
        with pytest.raises(InputError, match="config.json: the labels are LABEL_0, LABEL_1"):
            Predictor(path)


def test_problem_types_of_transformers(directories, tmp_path):
    """Several labels at once get sigmoids, as transformers' pipeline gives; no regression."""
    from transformers import AutoModelForSequenceClassification, AutoTokenizer, pipeline

    text = "The << Gout >> causes [[ Colic ]] then"
    path = edited(directories / "sequence", tmp_path, problem_type="multi_label_classification")
    (got,) = run(path, text, tmp_path)
    parts = AutoModelForSequenceClassification, AutoTokenizer
    model, tokenizer = (x.from_pretrained(path) for x in parts)
    classify = pipeline("text-classification", model=model, tokenizer=tokenizer, top_k=None)
    (theirs,) = classify([text])
    want = {x["label"]: pytest.approx(x["score"], abs=2e-6) for x in theirs}
    assert got["probabilities"] == want and got["probability"] == want[got["label"]]
    assert sum(got["probabilities"].values()) != pytest.approx(1, abs=1e-3)
    with pytest.raises(InputError, match="config.json is of a regression"):
        Predictor(edited(directories / "sequence", tmp_path, problem_type="regression"))


def test_order_and_answers_do_not_depend_on_the_batch(directories, tmp_path):
    text = "\n".join(f"{'The Gout ' * (i % 7)} {i}" for i in range(3 * CHUNK + 5))
    one, other = (run(directories / "token", text, tmp_path, B=B) for B in (1, 5))
    assert [x["text"] for x in one] == text.split("\n")
    for a, b in zip(one, other, strict=True):
        p, q = ([e.pop("probability") for e in x["entities"]] for x in (a, b))
        assert a == b and p == pytest.approx(q, abs=1.1e-4)


def test_lines_are_answered_as_they_come(directories, monkeypatch):
    """No more than a chunk is read before its answers are there: a pipe of any length will do."""
    read = [0]

    def lines(path, expected, seen):
        for i in range(10**9):
            read[0] += 1
            yield i, f"The Gout {i}"

    monkeypatch.setattr(documents, "read_lines", lines)
    found = predict(Predictor(directories / "token", B=2), "endless")
    for i in range(3 * SAMPLE):
        assert next(found)[1]["text"] == f"The Gout {i}"
        assert read[0] <= max(SAMPLE, (i // (2 * CHUNK) + 1) * 2 * CHUNK)


def test_the_standard_input(directories, monkeypatch):
    class Stdin:
        buffer = io.BufferedReader(io.BytesIO(b"The Gout\r\nSepsis\n"))

    monkeypatch.setattr("sys.stdin", Stdin)
    got = answers(Predictor(directories / "token"), "-")
    assert [x["text"] for x in got] == ["The Gout", "Sepsis"]


def test_relations_of_marked_text_and_of_places(directories, tmp_path):
    marked = "The << Gout >> causes [[ Colic ]] then"
    (got,) = run(directories / "sequence", marked, tmp_path)
    assert marked[slice(*got["first"])] == "<< Gout >>"
    assert marked[slice(*got["second"])] == "[[ Colic ]]"
    item = {"id": 7, "text": "The Gout causes Colic then", "first": [4, 8], "second": [16, 21]}
    (same,) = run(directories / "sequence", json.dumps(item), tmp_path, is_json=True)
    assert same["id"] == 7 and same["first"] == [4, 8] and same["text"] == item["text"]
    assert (same["label"], same["probability"]) == (got["label"], got["probability"])
    model, tokenizer = minibio.load(directories / "sequence", head="sequence")
    (feature,) = relation.make_features([relation.marked(marked)], tokenizer, 40)
    p = model(minibio.Batch.from_sequences([feature.tokens])).logits.softmax(1)[0]
    assert got["label"] == HEADS["sequence"][int(p.argmax())]
    assert got["probability"] == pytest.approx(p.max().item(), abs=2e-6)


def test_texts_are_prepared_as_they_were_in_training(directories, tmp_path):
    """A model that learnt @ARG1$ and @ARG2$ gets them, whatever the text has."""
    (directories / "sequence" / "relation.json").write_text('{"config": {"anonymise": true}}')
    try:
        given = [f"The << {x} >> causes [[ {y} ]]" for x, y in (("Gout", "Colic"), ("a", "Ulcer"))]
        a, b = run(directories / "sequence", "\n".join(given), tmp_path)
        assert (a["label"], a["probability"]) == (b["label"], b["probability"])
    finally:
        (directories / "sequence" / "relation.json").unlink()
    a, b = run(directories / "sequence", "\n".join(given), tmp_path)
    assert a["probability"] != b["probability"]


def test_questions(directories, tmp_path):
    snippets = ["The patient had Gout .", "Colic", "\u200b"]
    item = {"id": "q", "question": "Which name ?", "snippets": snippets}
    lines = "Which name ?\t" + "\t".join(snippets)
    (got,) = run(directories / "span", lines, tmp_path)
    (same,) = run(directories / "span", json.dumps(item), tmp_path, is_json=True)
    assert same == {"id": "q", **got} and 1 < len(got["answers"]) <= 5
    for a in got["answers"]:
        assert snippets[a["snippet"]][a["start"] : a["end"]] == a["text"] != ""
    passages = qa.passages_of("Which name ?", snippets)
    model, tokenizer = minibio.load(directories / "span", head="span")
    windows = qa.make_windows(passages, tokenizer, 40)
    logits = qa.predict(model, windows, 8, "cpu", torch.no_grad)
    want = qa.rank(passages, windows, logits)[passages[0].group]
    assert [a["text"] for a in got["answers"]] == [a.text for a in want]
    (none,) = run(directories / "span", "Which ?\t\u200b", tmp_path)
    assert none["answers"] == []


@pytest.mark.parametrize(
    ("head", "is_json", "line", "message"),
    [
        ("sequence", False, "The Gout", "line 2 marks no two entities"),
        ("span", False, "Which name ?", "line 2 is 'Which name .*expected question TAB snippet"),
        ("token", True, "{", "line 2 is not JSON"),
        ("token", True, "[1]", r"line 2 is '\[1\]', expected an object"),
        ("token", True, '{"text": 3}', "line 2 is .*expected a text"),
        ("token", True, r'{"text": "\ud800"}', "line 2 has half a surrogate pair"),
        ("sequence", True, '{"text": "a b", "first": [0, 1]}', r"expected \[start, end\] each"),
        ("sequence", True, '{"text": "a b", "first": [0, 1], "second": [2, 9]}',
         "line 2: entity 2..9 is not in a text of 3"),
        ("span", True, '{"question": "a", "snippets": []}', "a list .snippets."),
        ("span", True, '{"question": "a", "snippets": [1]}', "a list .snippets."),
    ],
)  # fmt: skip
def test_bad_lines_are_named_and_what_came_before_is_answered(
    head, is_json, line, message, directories, tmp_path
):
    good = {
        "token": '{"text": "a"}',
        "sequence": '{"text": "<< a >> [[ b ]]"}' if is_json else "<< a >> [[ b ]]",
        "span": '{"question": "a", "snippets": ["b"]}' if is_json else "a\tb",
    }[head]
    (tmp_path / "text").write_text(f"{good}\n{line}\n", "utf-8")
    found = predict(Predictor(directories / head), str(tmp_path / "text"), is_json)
    assert next(found)
    with pytest.raises(InputError, match=message) as error:
        next(found)
    assert "\n" not in str(error.value) and str(tmp_path / "text") in str(error.value)


def test_bytes_that_are_no_text(directories, tmp_path):
    (tmp_path / "text").write_bytes(b"a\n\xff\n")
    with pytest.raises(InputError, match="text: line 2, byte 1 is not UTF-8"):
        list(predict(Predictor(directories / "token"), str(tmp_path / "text"), False))
    with pytest.raises(InputError, match="nothing: No such file"):
        list(predict(Predictor(directories / "token"), str(tmp_path / "nothing"), False))


def test_directories_without_such_a_head(tmp_path, directories):
    encoder = make_encoder(tmp_path / "mlm", make_tokenizer())
    with pytest.raises(InputError, match="BertForMaskedLM.*expected a model for tokens"):
        Predictor(encoder)
    with pytest.raises(InputError, match="no such directory"):
        Predictor(tmp_path / "nowhere")
    minibio.save(Model(tiny_config("bert"), "span"), None, tmp_path / "bare")
    with pytest.raises(InputError, match="bare has no tokenizer"):
        Predictor(tmp_path / "bare")


def test_chunks():
    assert list(in_chunks(iter(range(7)), 3)) == [[0, 1, 2], [3, 4, 5], [6]]
    assert list(in_chunks([], 3)) == [] and list(in_chunks([1, 2], 2)) == [[1, 2]]
    assert parse("{", "x", "token", False) == Document("{")


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("is_json", [False, True])
def test_a_line_of_json_for_each_line(directories, tmp_path, head, is_json):
    """Blank lines too, so that answers stand beside their lines."""
    line = {
        "token": {"text": "The Gout"},
        "sequence": {"text": "<< a >> [[ b ]]"},
        "span": {"question": "Which ?", "snippets": ["The Gout"]},
    }[head]
    text = json.dumps(line) if is_json else "\t".join(flat(line.values()))
    got = run(directories / head, f"\n{text}\n \t\n\n{text}\n", tmp_path, is_json)
    found = [bool(x.get("answers") or x.get("label")) for x in got]
    names = "question" if head == "span" else "text"
    assert [x[names].strip() for x in got] == ["", line[names], "", "", line[names]]
    assert head == "token" or found == [False, True, False, False, True]


def flat(values):
    for value in values:
        yield from [value] if isinstance(value, str) else value


@pytest.mark.parametrize("number", ["NaN", "-Infinity", "1e999", "[{}, -1e999]"])
def test_numbers_that_json_lacks(number):
    with pytest.raises(InputError, match="x: line 1 is not JSON: .* is not a number"):
        parse(f'{{"text": "a", "id": {number}}}', "x: line 1", "token", True)


def test_closed_standard_input(directories, monkeypatch):
    monkeypatch.setattr("sys.stdin", None)
    with pytest.raises(InputError, match="the standard input is closed, expected text"):
        answers(Predictor(directories / "token"), "-")


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ([], r"config is \[\], expected an object"),
        ({"length": "x"}, "config.length is 'x', expected a whole number of 5"),
        ({"length": 2.5}, "config.length is 2.5"),
        ({"length": 3}, "config.length is 3"),
        ({"length": True}, "config.length is True"),
        ({"stride": 0}, "config.stride is 0"),
        ({"order": "x"}, "config.order is 'x', expected pooled or released"),
        ({"order": []}, r"config.order is \[\]"),
        ({"anonymise": 1}, "config.anonymise is 1, expected true or false"),
    ],
)
def test_a_record_of_other_types_is_one_line(tmp_path, config, message):
    record = tmp_path / "qa.json"
    assert settings(record, 384)["length"] == 384  # none there
    record.write_text(json.dumps({"config": config}))
    with pytest.raises(InputError, match=message) as caught:
        settings(record, 384)
    assert str(record) in str(caught.value)


# documents


def sentencewise(predictor, sentences):
    """The entities of sentences, each a text, at their places in the text that joins them."""
    found, start = set(), 0
    for sentence, answer in zip(sentences, predictor(list(map(Document, sentences))), strict=True):
        assert answer["text"] == sentence
        found |= {(start + e["start"], start + e["end"], e["type"]) for e in answer["entities"]}
        start += len(sentence) + 1
    return found


def joined(predictor, document):
    (answer,) = predictor([document])
    return {(e["start"], e["end"], e["type"]) for e in answer["entities"]}


def test_documents_are_read_sentence_by_sentence(directories):
    """Also at the end of a title without a full stop."""
    predictor, rng, n = Predictor(directories / "token", precision="fp32"), random.Random(0), 0
    words = ["Gout", "had", "no", "Colic", "(cf.", "sign)", "\U0001d53e", "acute", "E.", "Sepsis"]
    for _ in range(20):
        sentences = [f"The {' '.join(rng.choices(words, k=rng.randint(1, 7)))} x." for _ in "12345"]
        sentences[0] = sentences[0].removesuffix(".")
        text = " ".join(sentences)
        want = sentencewise(predictor, sentences)
        assert joined(predictor, Document(text, len(sentences[0]))) == want
        n += len(want)
        assert joined(predictor, Document(text.replace("\U0001d53e", "\U0001d53e\n"))) != want
    assert n > 100


@settings_of(derandomize=True, deadline=None, max_examples=200)
@given(st.lists(st.integers(1, 9), max_size=60), st.integers(9, 24))
def test_windows_hold_every_word_and_overlap(sizes, room):
    found = windows(sizes, room)
    assert [w for w in range(len(sizes)) if any(w in x for x in found)] == list(range(len(sizes)))
    for x in found:
        assert len(x) and sum(sizes[x.start : x.stop]) <= room
    for x, y in pairwise(found):
        assert x.start < y.start <= x.stop <= y.stop
        overlap = sum(sizes[y.start : x.stop])
        assert overlap <= room // 4
        more = overlap + sizes[y.start - 1]
        assert more > room // 4 or y.start == x.start + 1
    assert len(found) == bool(sizes) or sum(sizes) > room


@settings_of(derandomize=True, deadline=None, max_examples=200)
@given(st.randoms(use_true_random=False), st.integers(20, 60), st.integers(8, 20))
def test_no_name_is_lost_or_cut_where_windows_meet(rng, n, room):
    """Each window finds the names that it holds whole, and what is left of those that it does not.

    Names are shorter than half of what windows have in common.
    """
    truth, i = ["O"] * n, 0
    while i < n:
        k = rng.randint(1, max(1, room // 8))
        if rng.random() < 0.4 and i + k <= n:
            truth[i : i + k] = ["B-a"] + ["I-a"] * (k - 1)
            i += k
        i += 1
    found = []
    for window in windows([1] * n, room):
        row = truth[window.start : window.stop]
        found = join(found, [(tag, 1.0) for tag in row], window.start)
    assert tags.entities([tag for tag, _ in found]) == tags.entities(truth)


def test_windows_meet_where_neither_has_a_name():
    def tagged(text, p):
        return [(tag if tag == "O" else f"{tag}-a", p) for tag in text]

    before, after = tagged("OOOOBIIOO", 0.5), tagged("IIIOOOBO", 0.9)
    want = tagged("OOOOBII", 0.5) + tagged("OOOBO", 0.9)
    assert join(before, after, 4) == want
    assert join([], after, 0) == after
    # a name that fills all that they have in common is cut in its middle: nothing else is known
    assert len(join(tagged("OOBIII", 0.5), tagged("IIIIOO", 0.9), 2)) == 8


def test_a_sentence_longer_than_the_model(directories):
    """What is near the edges of no window is as in a window of its own, whatever comes around."""
    predictor = Predictor(directories / "token", precision="fp32")
    text = "Gout of Colic and Sepsis had no sign " * 30
    (answer,) = predictor([Document(text)])
    assert predictor.length == 40 and len(answer["entities"]) > 30
    for e in answer["entities"]:
        assert text[e["start"] : e["end"]] == e["text"]
    assert max(e["end"] for e in answer["entities"]) > len(text) - 80


def test_sentences_of_a_real_set_joined_by_tens(directories):
    """Nine of ten entities of a random model, for which every word of context counts."""
    rows = real_data("ner/NCBI-disease/test.tsv").read_text("utf-8").strip().split("\n\n")[:300]
    sentences = [" ".join(line.split("\t")[0] for line in row.split("\n")) for row in rows]
    predictor = Predictor(directories / "token", precision="fp32")
    both = n = 0
    for i in range(0, len(sentences), 10):
        ten = sentences[i : i + 10]
        want, got = sentencewise(predictor, ten), joined(predictor, Document(" ".join(ten)))
        both, n = both + len(want & got), n + len(want | got)
    assert n > 1000 and both / n > 0.9
