"""Questions: every defect of a file, windows that lose nothing, decoding against brute force."""

import json
import math
import random
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from data.sample.sample import make_sample
from helpers import damaged, real_data, tiny_config
from minibio.model.heads import Model
from minibio.run.errors import InputError
from minibio.run.files import write_json
from minibio.tasks import metrics, qa
from minibio.tasks.qa import Answer, Passage, PassageWindow
from minibio.text.tokenizer import Tokenizer
from toy_tasks import read_submission

Q, A, B, C, D = (letter * 24 for letter in "0abcd")  # ids of questions, as BioASQ's are
CONTEXT = "Zika virus (ZIKV) causes microcephaly; IL-2 does not. ZIKV spreads."


@pytest.fixture(scope="module")
def tokenizer():
    return Tokenizer.train([CONTEXT + " What causes it? abcdefgh"] * 3, 110)


def squad(context=CONTEXT, **qa):
    """One passage in SQuAD's form, over several lines."""
    qa = {"id": f"{Q}_001", "question": "What causes microcephaly?"} | qa
    return {"version": "x", "data": [{"title": "t", "paragraphs": [
        {"context": "Other.", "qas": []}, {"context": context, "qas": [qa]}]}]}  # fmt: skip


@pytest.fixture
def file(tmp_path):
    def write(value):
        path = tmp_path / "x.json"
        text = value if isinstance(value, str) else json.dumps(value, indent=1)
        path.write_text(text, "utf-8")
        return path

    return write


def answer(text, start):
    return {"text": text, "answer_start": start}


# reading


def test_several_answers(file):
    given = [answer("ZIKV", 54), answer("Zika virus", 0), answer("zikv", 12), answer("ZIKV", 54)]
    (passage,) = qa.read_squad(file(squad(answers=given)))
    assert passage.group == Q
    assert [CONTEXT[a:b] for a, b in passage.answers] == ["Zika virus", "ZIKV", "ZIKV"]
    (passage,) = qa.read_squad(file(squad(is_impossible=True, answers=[])))
    assert passage.answers == []
    (passage,) = qa.read_squad(file(squad(id="56be4db0acb8001400a502ec")))
    assert (passage.group, passage.answers) == ("56be4db0acb8001400a502ec", [])


def test_snippets_of_one_question():
    passages = qa.passages_of("What?", ["a", "b"], 0xABC)
    group = "0" * 21 + "abc"
    assert [p.id for p in passages] == [f"{group}_000", f"{group}_001"]
    assert {p.group for p in passages} == {group}


@pytest.mark.parametrize(
    ("id", "group"),
    [
        ("56be4db0acb8001400a502ec_001", "56be4db0acb8001400a502ec"),
        ("56BE4DB0ACB8001400A502EC_12", "56BE4DB0ACB8001400A502EC"),
        *[(x, x) for x in (
            "q_1", "5a6a_12_003", "56be4db0acb8001400a502ec", "56be4db0acb8001400a502ec_",
            "56be4db0acb8001400a502ec_1a", "56be4db0acb8001400a502ec_1_2", f"0{A}_001",
            "g6be4db0acb8001400a502ec_001", "1",
        )],
    ],
)  # fmt: skip
def test_only_ids_of_the_bioasq_form_are_of_a_group(id, group):
    assert Passage(id, "", "", []).group == group


BAD = squad()
del BAD["data"][0]["paragraphs"][1]["context"]


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ('{"data": [\n{]}', r"line 2, column 2: .* expected JSON"),
        ("[]", r"holds no question, expected SQuAD's form"),
        ("3", r"holds a int, expected an object \{\.\.\.\} or a list"),
        ("[3]", r"\[0\]: 3, expected an object"),
        ({"version": 1}, r"'data' is missing, expected a list"),
        ({"data": [1]}, r"data\[0\]: 1, expected an object"),
        ({"data": []}, r"holds no question, expected SQuAD's form"),
        (BAD, r"data\[0\]\.paragraphs\[1\]: 'context' is missing, expected text"),
        (squad(id=7.5), r"data\[0\]\.paragraphs\[1\]\.qas\[0\]: 'id' is 7\.5, expected text"),
        (squad(question="\ud800?"), r".*qas\[0\]: 'question' has half a surrogate pair"),
        (squad(question=None), r".*qas\[0\]: 'question' is null, expected text"),
        (squad(answers=3), r".*qas\[0\]: 'answers' is 3, expected a list"),
        (squad(answers={}), r".*qas\[0\]\.answers: 'text' is missing, expected a list"),
        (
            squad(answers={"text": ["a"], "answer_start": []}),
            r".*qas\[0\]\.answers: 'text' has 1 items, 'answer_start' 0",
        ),
        (
            squad(answers={"text": ["ZIKV", 3], "answer_start": [12, 12]}),
            r".*qas\[0\]\.answers\[1\]: 'text' is 3, expected text",
        ),
        (squad(answers=[answer("Zika", "0")]), r".*answers\[0\]: 'answer_start' is \"0\", exp"),
        (
            squad(answers=[answer("ZIKV", 12), answer("virus", 6)]),
            r".*qas\[0\]\.answers\[1\]: the answer is 'virus', but 'irus ' is at character 6",
        ),
        (squad(answers=[answer(" ", 4)]), r".*qas\[0\]\.answers\[0\]: the answer is ' '"),
        (squad(answers=[answer("spr", -8)]), r".*answers\[0\]: .*is 'spr', but .* at character -8"),
    ],
)  # fmt: skip
def test_defects_are_named_with_their_place(file, value, message):
    path = file(value)
    with pytest.raises(InputError, match=f"{path}:? {message}") as error:
        qa.read_squad(path)
    assert "\n" not in str(error.value)


def bioasq(*answers):
    """Factoid questions q0, q1, ... in BioASQ's form."""
    questions = [
        {"id": f"q{i}", "type": "factoid", "exact_answer": x} for i, x in enumerate(answers)
    ]
    return {"questions": [*questions, {"id": "z", "type": "yesno", "exact_answer": "yes"}]}


def test_golden_answers(file):
    path = file(bioasq([["a", "A1"], ["b"]], ["c", "d"], "e", [], [[], ["f"]]))
    assert qa.read_golden(path) == {
        "q0": ["a", "A1", "b"], "q1": ["c", "d"], "q2": ["e"], "q3": [], "q4": ["f"],
    }  # fmt: skip


@pytest.mark.parametrize("wrong", [None, 3, [3], [["a", 3]], [None], {"a": 1}])
def test_exact_answers_of_wrong_form(file, wrong):
    path = file(bioasq([["a"]], wrong))
    with pytest.raises(InputError, match=r"x\.json: questions\[1\]: 'exact_answer' is"):
        qa.read_golden(path)
    with pytest.raises(InputError, match="holds no factoid question"):
        qa.read_golden(file(bioasq()))


def test_whatever_befalls_a_file(file):
    """It is read, or refused with one line that names it; nothing else."""
    rng, refused = random.Random(0), 0
    whole = {
        qa.read_squad: squad(answers=[answer("ZIKV", 12), answer("virus", 5)]),
        qa.read_golden: bioasq([["a", "b"], ["c"]], "d"),
    }
    for read, value in whole.items():
        for indent in (None, 1):
            text = json.dumps(value, indent=indent).encode()
            for _ in range(180):
                path = file("")
                path.write_bytes(damaged(text, rng))
                try:
                    read(path)
                except InputError as error:
                    assert str(error).startswith(str(path)) and "\n" not in str(error)
                    refused += 1
    assert 200 < refused


def test_the_sample_is_read(tmp_path):
    make_sample(tmp_path / "sample", documents=1, ner_train=1)
    directory = tmp_path / "sample/qa"
    train, test = (qa.read_squad(directory / f"{name}.json") for name in ("train", "test"))
    assert all(p.answers for p in train) and not any(p.answers for p in test)
    assert qa.without_overlap(train, test) == (train, 0, 0)
    assert qa.read_golden(directory / "golden.json").keys() == {p.group for p in test}


# what train and test share


def test_overlap_is_removed_by_id_and_by_text():
    train = [
        Passage(f"{A}_001", "Which gene?", "x", []),
        Passage(f"{A}_002", "Which gene?", "y", []),
        Passage(f"{B}_001", "What is  the Role of IL-2?", "x", []),
        Passage(f"{C}_001", "What is the role of IL2?", "x", []),
    ]
    test = [
        Passage(f"{A}_000", "Another text?", "z", []),
        Passage(f"{D}_000", "what is the role of il 2", "z", []),
    ]
    assert qa.without_overlap(train, test) == (train[3:], 2, 3)
    assert qa.without_overlap(train, []) == (train, 0, 0)


def test_normalised_questions():
    assert qa.normalised("  What\u00a0is “IL-2”?\n") == "what is il 2"
    assert qa.normalised("Sjo\u0308gren ﬁbre?") == qa.normalised("SJÖGREN FIBRE")
    assert qa.normalised("β") != qa.normalised("α")


@pytest.mark.parametrize(("batch", "shared", "of"), [("5b", 110, 150), ("6b", 114, 161)])
def test_overlap_of_the_real_files(batch, shared, of):
    """As counted in the README of the real sets."""
    directory = real_data("qa")
    train = qa.read_squad(directory / "BioASQ-train-factoid-7b.json")
    files = [directory / f"BioASQ-test-factoid-{batch}-{i}.json" for i in range(1, 6)]
    test = [p for path in files for p in qa.read_squad(path)]
    assert (len(train), len({p.group for p in train})) == (4231, 530)
    kept, n_questions, n_passages = qa.without_overlap(train, test)
    assert n_questions == shared and len(kept) + n_passages == 4231
    assert len({p.group for p in test}) == of
    golden = {}
    for i in range(1, 6):
        golden |= qa.read_golden(directory / f"{batch.upper()}{i}_golden.json")
    assert golden.keys() == {p.group for p in test}


# to pieces


def test_a_passage_that_fits(tokenizer):
    passage = Passage("q_1", "What causes it?", CONTEXT, [(0, 10), (12, 16), (54, 58), (3, 4)])
    (window,) = qa.make_windows([passage], tokenizer, 384)
    question = tokenizer.encode(passage.question)
    assert window.tokens == [*question, *tokenizer.encode(CONTEXT)[1:]]
    assert window.first == len(question)
    for (a, b), (start, end) in zip(window.answers, passage.answers, strict=True):
        text = tokenizer.decode(window.tokens[a : b + 1])
        assert passage.context[start:end] in text
    exact = [tokenizer.decode(window.tokens[a : b + 1]) for a, b in window.answers[:3]]
    assert exact == ["Zika virus", "ZIKV", "ZIKV"]
    batch = qa.collate([window] * 2, answers=window.answers[:2])
    segments = [0] * len(question) + [1] * (len(window.tokens) - len(question))
    assert batch.segments.tolist() == segments * 2
    assert batch.labels.tolist() == [list(x) for x in window.answers[:2]]
    assert qa.collate([window]).labels is None


def test_training_pairs():
    some = PassageWindow(0, [], 0, [], [], [(5, 6), (8, 8)])
    none = some._replace(answers=[])
    assert qa.training_pairs([some, none]) == [(some, (5, 6)), (some, (8, 8)), (none, (0, 0))]


@settings(derandomize=True, deadline=None)
@given(st.integers(0, 200), st.integers(1, 40), st.integers(1, 60))
def test_windows_cover_everything(n, room, stride):
    stride = min(stride, room)
    cuts = qa.cuts(n, room, stride)
    assert sorted({i for a, b in cuts for i in range(a, b)}) == list(range(n))
    assert all(0 < b - a <= room for a, b in cuts)
    assert [a for a, _ in cuts] == [i * stride for i in range(len(cuts))]
    assert all(b < n for _, b in cuts[:-1])  # none after the end is reached


@settings(derandomize=True, deadline=None, max_examples=60)
@given(st.text(st.sampled_from("ab12- ,\u200b\u0301é"), min_size=1, max_size=60),
       st.integers(5, 20), st.integers(1, 20), st.data())  # fmt: skip
def test_answers_are_where_they_should_be(tokenizer, context, length, stride, data):
    start = data.draw(st.integers(0, len(context) - 1))
    end = data.draw(st.integers(start + 1, len(context)))
    passage = Passage("q_1", "What causes it all?", context, [(start, end)])
    windows = qa.make_windows([passage], tokenizer, length, stride)
    ((ids, spans),) = tokenizer.encode_offsets([context])
    wanted = [i for i, (a, b) in enumerate(spans) if a < end and b > start]
    seen = 0
    for k, window in enumerate(windows):
        assert len(window.tokens) <= length and window.passage == 0
        head = tokenizer.encode(passage.question)[:-1][: window.first - 1]
        assert window.tokens[: window.first] == [*head, tokenizer.sep_id]
        a = k * min(stride, length - window.first - 1)  # its first context piece
        assert window.tokens[window.first : -1] == ids[a : a + len(window.words)]
        assert window.tokens[-1] == tokenizer.sep_id
        held = set(wanted) <= set(range(a, a + len(window.words)))
        if wanted and held:
            move = window.first - a
            assert window.answers == [(wanted[0] + move, wanted[-1] + move)]
            seen += 1
        else:
            assert window.answers == []
    assert bool(windows) == bool(ids)
    if wanted and len(windows) == 1:
        assert seen == 1


def test_a_long_question_is_cut(tokenizer):
    question = "What? " * 200
    (window,) = qa.make_windows([Passage("q_1", question, "IL-2", [])], tokenizer, 384)
    assert window.first == 64 + 2
    for window in qa.make_windows([Passage("q_1", question, CONTEXT, [])], tokenizer, 15):
        assert window.first == 6 + 2 and len(window.tokens) <= 15


@pytest.mark.parametrize(("length", "stride"), [(4, 1), (10, 0)])
def test_windows_too_small(tokenizer, length, stride):
    with pytest.raises(ValueError, match="expected at least 5 and 1"):
        qa.make_windows([], tokenizer, length, stride)


# decoding


def brute(windows, logits, n, longest):
    """Every pair of words, one after the other."""
    scores = {}
    for window, rows in zip(windows, logits, strict=True):
        for i, a in enumerate(window.words):
            for j, b in enumerate(window.words):
                if a <= b < a + longest:
                    score = float(rows[i, 0]) + float(rows[j, 1])
                    scores[a, b] = max(score, scores.get((a, b), -math.inf))
    best = sorted(scores, key=lambda span: (-scores[span], span))[:n]
    total = sum(math.exp(scores[span]) for span in best)
    return [(*span, scores[span], math.exp(scores[span]) / total) for span in best]


@st.composite
def decodings(draw):
    """Windows over words of one to three pieces, with logits that are often equal."""
    words = [w for w in range(draw(st.integers(1, 12))) for _ in range(draw(st.integers(1, 3)))]
    room = draw(st.integers(1, 12))
    spans = [(w, w + 1) for w in range(words[-1] + 1)]
    windows, logits = [], []
    for a, b in qa.cuts(len(words), room, draw(st.integers(1, room))):
        windows.append(PassageWindow(0, [], 1, words[a:b], spans, []))
        values = st.lists(st.integers(-3, 3), min_size=2 * (b - a), max_size=2 * (b - a))
        logits.append(np.array(draw(values), dtype=np.float32).reshape(-1, 2))
    return windows, logits


@settings(derandomize=True, deadline=None, max_examples=300)
@given(decodings(), st.integers(1, 25), st.integers(1, 8))
def test_decoding_is_brute_force(case, n, longest):
    windows, logits = case
    got = qa.decode(windows, logits, n, longest)
    want = brute(windows, logits, n, longest)
    assert [x[:3] for x in got] == [x[:3] for x in want]
    assert [x.probability for x in got] == pytest.approx([x[3] for x in want])


def test_decoding_by_hand():
    window = PassageWindow(0, [], 1, [0, 1, 1, 2], [(0, 4), (5, 10), (11, 13)], [])
    first = [1.0, 5.0, 0.0, 2.0]
    last = [0.0, 0.0, 4.0, 3.0]
    got = qa.decode([window], [np.array([first, last]).T], n=3)
    assert [x[:3] for x in got] == [(1, 1, 9.0), (1, 2, 8.0), (0, 1, 5.0)]
    total = 1 + math.exp(-1) + math.exp(-4)
    assert [x.probability for x in got] == pytest.approx(
        [1 / total, math.exp(-1) / total, math.exp(-4) / total]
    )


def window_of(passage, text):
    """One piece a word."""
    spans, at = [], 0
    for word in text.split():
        at = text.index(word, at)
        spans.append((at, at + len(word)))
        at += len(word)
    return PassageWindow(passage, [], 1, list(range(len(spans))), spans, [])


def says(n, first, last, height=20.0):
    rows = np.zeros((n, 2), dtype=np.float32)
    rows[first, 0] = rows[last, 1] = height
    return rows


PASSAGES = [
    Passage(f"{A}_000", "Which virus?", "Zika virus it is", []),
    Passage(f"{A}_001", "Which virus?", "the Dengue fever", []),
    Passage(f"{A}_002", "Which virus?", "perhaps ZIKA  VIRUS then", []),
    Passage(f"{B}_000", "Which gene?", "\u200b", []),
    Passage(f"{C}_000", "Which drug?", "aspirin", []),
]


def ranked(order):
    windows = [window_of(i, PASSAGES[i].context) for i in (0, 1, 2, 4)]
    logits = [says(4, 0, 1), says(3, 1, 1), says(4, 1, 2, height=25.0), says(1, 0, 0)]
    return qa.rank(PASSAGES, windows, logits, order)


def test_snippets_are_pooled():
    got = ranked("pooled")
    assert list(got) == [A, B, C]
    best, second = got[A][:2]
    assert best[:1] + best[2:] == ("ZIKA  VIRUS", f"{A}_002", 8, 19)  # where it was likeliest
    assert best.probability == pytest.approx(2 / 3, abs=1e-6)  # two of three snippets say so
    assert second[:1] + second[2:] == ("Dengue", f"{A}_001", 4, 10)
    assert second.probability == pytest.approx(1 / 3, abs=1e-6)
    assert len(got[A]) == 5 and got[B] == []
    assert got[C] == [Answer("aspirin", 1.0, f"{C}_000", 0, 7)]
    with pytest.raises(ValueError, match="expected 'pooled' or 'released'"):
        ranked("best")


def test_the_released_order_is_that_of_the_snippets():
    got = ranked("released")
    assert [x.text for x in got[A]] == ["Zika virus", "Dengue", "ZIKA  VIRUS"]
    assert (got[B], [x.text for x in got[C]]) == ([], ["aspirin"])


def test_what_is_submitted_is_scored(tmp_path):
    golden = {A: ["Dengue"], B: ["x"], C: ["Aspirin"]}
    for order, rank in (("pooled", 2), ("released", 2)):
        answers = ranked(order)
        value = qa.submission(PASSAGES, answers)
        assert value["questions"][2] == {
            "id": C, "type": "factoid", "body": "Which drug?", "exact_answer": [["aspirin"]],
            "ideal_answer": "",
        }  # fmt: skip
        write_json(tmp_path / "out.json", value)
        submitted = read_submission(tmp_path / "out.json")
        assert submitted == {q: [x.text for x in best] for q, best in answers.items()}
        scores = metrics.bioasq_scores(golden, submitted)
        assert scores["mrr"] == pytest.approx((1 / rank + 0 + 1) / 3)
        assert scores["questions"] == 3
    assert qa.n_best(ranked("released"))[C] == [
        {"text": "aspirin", "probability": 1.0, "passage": f"{C}_000", "start": 0, "end": 7}
    ]


# the whole way


class Oracle(torch.nn.Module):
    """Points at the pieces of one text wherever they are together."""

    def __init__(self, ids):
        super().__init__()
        self.ids = ids

    def forward(self, batch):
        assert not self.training
        tokens, n = batch.tokens.tolist(), len(self.ids)
        logits = torch.zeros(batch.N, 2)
        for i in range(batch.N - n + 1):
            if tokens[i : i + n] == self.ids and batch.segments[i] == 1:
                logits[i, 0] = logits[i + n - 1, 1] = 30.0
        return SimpleNamespace(logits=logits)


@pytest.mark.parametrize("B", [1, 3, 100])
def test_from_text_to_characters(tokenizer, B):
    contexts = ["abc, def. " * 9 + "Zika virus\u200b it is " + "abc. " * 9, CONTEXT, "", "abc",
                "x Zika  virus y"]  # fmt: skip
    passages = qa.passages_of("What causes it? Zika virus?", contexts)
    windows = qa.make_windows(passages, tokenizer, 60, 25)
    assert len({w.passage for w in windows}) == 4 and len(windows) > 5
    oracle = Oracle(tokenizer.encode("Zika virus")[1:-1])
    logits = qa.predict(oracle, windows, B, "cpu", torch.no_grad)
    assert [len(x) for x in logits] == [len(w.words) for w in windows]
    answers = qa.rank(passages, windows, logits)[Q]
    assert answers[0].text.split() == ["Zika", "virus"]
    found = qa.rank(passages, windows, logits, order="released")[Q]
    assert [x.passage for x in found] == [f"{Q}_{i:03d}" for i in (0, 1, 3, 4)]
    by_id = {p.id: p.context for p in passages}
    assert all(by_id[x.passage][x.start : x.end] == x.text for x in [*answers, *found])
    assert [x.text for x in found] == ["Zika virus", "Zika virus", "abc", "Zika  virus"]


@pytest.mark.parametrize("family", ["bert", "distilbert"])
def test_with_a_model_of_ours(tokenizer, family):
    model = Model(tiny_config(family, V=tokenizer.V), "span")
    passages = qa.passages_of("What causes it?", [CONTEXT, "IL-2", "ZIKV spreads. " * 8])
    windows = qa.make_windows(passages, tokenizer, 40, 11)
    together = qa.predict(model, windows, 3, "cpu", torch.no_grad)
    for window, rows in zip(windows, together, strict=True):
        (alone,) = qa.predict(model, [window], 1, "cpu", torch.no_grad)
        np.testing.assert_allclose(rows, alone, rtol=1e-4, atol=1e-6)
        whole = model(qa.collate([window])).logits.detach().numpy()
        np.testing.assert_allclose(rows, whole[window.first : -1], rtol=1e-4, atol=1e-6)
    assert len(qa.rank(passages, windows, together)[Q]) == 5


def test_the_real_files(tokenizer):
    """Every answer of the training file is found again in its windows."""
    passages = qa.read_squad(real_data("qa") / "BioASQ-train-factoid-7b.json")[:400]
    windows = qa.make_windows(passages, tokenizer, 384)
    for window in windows:
        passage = passages[window.passage]
        for a, b in window.answers:
            words = window.words[a - window.first], window.words[b - window.first]
            start, end = window.word_spans[words[0]][0], window.word_spans[words[1]][1]
            assert any(start <= x and y <= end for x, y in passage.answers)
    answered = {w.passage for w in windows if w.answers}
    assert len(answered) == len(passages)


# files of other sources


def asked(tmp_path, *qas, name="x.json", mark=""):
    paragraph = {"context": "Iron is in the blood.", "qas": list(qas)}
    text = mark + json.dumps({"data": [{"paragraphs": [paragraph]}]})
    (tmp_path / name).write_text(text, "utf-8")
    return tmp_path / name


def test_one_id_for_two_questions(tmp_path):
    """Of a plain id, and of two snippets of one BioASQ question; spaces and case are no other."""
    for one, two in (("a", "a"), ("5" * 24 + "_000", "5" * 24 + "_001")):
        first = {"id": one, "question": "What is it?"}
        path = asked(tmp_path, first, {"id": two, "question": "Which?"})
        with pytest.raises(InputError, match="asks 'Which[?]', and 'What is it[?]' before"):
            qa.read_squad(path)
        path = asked(tmp_path, first, {"id": two, "question": "what is it ?"})
        assert len({p.group for p in qa.read_squad(path)}) == 1


def test_plain_ids_are_questions_of_their_own(tmp_path):
    qas = [{"id": f"q_{i}", "question": f"What is number {i}?"} for i in range(3)]
    passages = qa.read_squad(asked(tmp_path, *qas))
    assert [(p.id, p.group, p.question) for p in passages] == [
        (x["id"], x["id"], x["question"]) for x in qas
    ]


def test_numbers_as_ids_and_a_byte_order_mark(tmp_path):
    ids = ["q", 7, "5" * 24 + "_3"]
    path = asked(tmp_path, *({"id": x, "question": f"What is {x}?"} for x in ids), mark="\ufeff")
    assert [p.group for p in qa.read_squad(path)] == ["q", "7", "5" * 24]


ROWS = [  # id, context, question, texts, starts
    ("56be_1", CONTEXT, "What causes it?", ["Zika virus", "ZIKV", "zikv"], [0, 12, 54]),
    ("56be_2", CONTEXT, "Which one does not?\u2028", ["IL-2"], [39]),
    ("7", "\u03b2-blockers \U0001f9ea lower it.", "What lowers it?", [], []),
    (f"{A}_001", "Iron is in the blood.", "What is in it?", ["Iron"], [0]),
    (f"{A}_002", "The blood has iron.", "What is in it?", ["iron"], [14]),
]


def rows():
    """`ROWS` as Hugging Face's datasets have SQuAD."""
    return [
        {"id": id, "title": "t", "context": context, "question": question,
         "answers": {"text": texts, "answer_start": starts}}
        for id, context, question, texts, starts in ROWS
    ]  # fmt: skip


def paragraphs_of(rows):
    """The same in SQuAD's own form, a paragraph each."""
    return {"version": "1.1", "data": [{"title": "t", "paragraphs": [
        {"context": row["context"], "qas": [{"id": row["id"], "question": row["question"],
         "answers": [answer(*x) for x in zip(*row["answers"].values(), strict=True)]}]}
        for row in rows
    ]}]}  # fmt: skip


def lines(rows, end="\n", **how):
    return end.join(json.dumps(row, **how) for row in rows)


@pytest.mark.parametrize("text", [
    json.dumps(rows()), json.dumps(rows(), indent=1), json.dumps({"data": rows()}),
    lines(rows()), lines(rows(), ensure_ascii=False), "\ufeff" + lines(rows(), "\r\n\n") + "\n",
])  # fmt: skip
def test_rows_are_read_as_the_nested_form(file, text):
    nested = qa.read_squad(file(paragraphs_of(rows())))
    assert [p[:3] for p in nested] == [
        (id, question, context) for id, context, question, *_ in ROWS
    ]
    assert [[p.context[a:b] for a, b in p.answers] for p in nested] == [
        ["Zika virus", "ZIKV", "ZIKV"], ["IL-2"], [], ["Iron"], ["iron"],
    ]  # fmt: skip
    assert qa.read_squad(file(text)) == nested
    assert qa.read_squad(file(lines(rows()[:1]))) == nested[:1]  # one line is a file too


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (lines([*rows()[:2], {"question": "?", "id": "x"}]), "line 3: 'context' is missing"),
        (json.dumps([{"question": "?", "id": "x"}]), r"\[0\]: 'context' is missing"),
        (lines(rows()[:1]) + "\n{", "line 2 is not JSON"),
        (lines(rows()[:1]) + "\n[]", r"line 2 is '\[\]', expected an object"),
        (
            lines(rows()).replace("[39]", "[38]"),
            r"line 2\.answers\[0\]: the answer is 'IL-2', but ' IL-' is at character 38",
        ),
    ],
)
def test_defects_of_rows_are_named_with_their_place(file, text, message):
    path = file(text)
    with pytest.raises(InputError, match=f"{path}: {message}") as error:
        qa.read_squad(path)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("form", [paragraphs_of, lines])
def test_all_misplaced_answers_are_named(file, form):
    """Moved by one character: two of three answers of the first question, the one of the second."""
    wrong = rows()
    wrong[0]["answers"]["answer_start"] = [1, 12, 55]
    wrong[1]["answers"]["answer_start"] = [40]
    path = file(form(wrong))
    with pytest.raises(InputError) as error:
        qa.read_squad(path)
    assert "; misplaced answers: 3, of '56be_1', '56be_2'; mend" in str(error.value)
    assert "--skip-misplaced" in str(error.value) and "\n" not in str(error.value)
    passages, misplaced = qa.read_placed(path)
    right = qa.read_squad(file(form(rows())))
    assert [i for i, _ in misplaced] == [0, 0, 1]
    assert passages == [
        right[0]._replace(answers=[(12, 16)]), right[1]._replace(answers=[]), *right[2:]
    ]  # fmt: skip


def test_many_misplaced_answers_are_counted(file):
    many = [row | {"id": f"n{i}"} for i, row in enumerate(rows()[1:2] * 23)]
    for row in many:
        row["answers"] = {"text": ["IL-2"], "answer_start": [3]}
    with pytest.raises(InputError, match="answers: 23, of 'n0', .*, 'n19' and 3 more; mend"):
        qa.read_squad(file(many))


def test_a_question_submitted_without_an_answer_is_wrong(tmp_path):
    questions = [{"id": 1, "exact_answer": [["Iron"]]}, {"id": 2}]
    (tmp_path / "x.json").write_text(json.dumps({"questions": questions}))
    submitted = read_submission(tmp_path / "x.json")
    assert submitted == {"1": ["Iron"], "2": []}
    scores = metrics.bioasq_scores({"1": ["iron"], "2": ["zinc"]}, submitted)
    assert (scores["strict_accuracy"], scores["questions"]) == (0.5, 2)
