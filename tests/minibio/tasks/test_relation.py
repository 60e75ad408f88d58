"""Relations: every published form and defect, and entities that stay inside the window."""

import csv
import json
import math
import random
from types import SimpleNamespace

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from data.sample.sample import make_sample
from helpers import damaged, real_data, tiny_config
from minibio.model.heads import Model
from minibio.run.errors import InputError
from minibio.tasks import relation
from minibio.tasks.relation import Example, Feature
from minibio.text.tokenizer import Tokenizer

GAD = "The @GENE$ gene causes @DISEASE$.\t1\nNo @DISEASE$ in @GENE$ mice\t0\n"
PROT = "<< EGFR >> inhibitors such as [[ gefitinib ]] (a >> b) [[1]"


@pytest.fixture
def file(tmp_path):
    def write(content, name="train.tsv"):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return path

    return write


@pytest.fixture(scope="module")
def tokenizer():
    return Tokenizer.train([GAD + PROT + "@ARG1$ @ARG2$ and so on, in 12 mice"] * 3, 120)


def cut_out(example):
    return [example.text[a:b] for a, b in example.spans]


# reading


@pytest.mark.parametrize(
    "content",
    [
        GAD,
        GAD.rstrip("\n"),
        GAD.replace("\n", "\r\n"),
        "\ufeff" + GAD + "\n\n",
        "index\tsentence\tlabel\n" + "".join(f"{i}\t{x}\n" for i, x in enumerate(GAD.splitlines())),
        "Text\tLabel\r\n" + GAD,
        "".join(json.dumps({"sentence": x.split("\t")[0], "label": int(x.split("\t")[1])}) + "\n"
                for x in GAD.splitlines()),
    ],
    ids=["plain", "no-last-newline", "crlf", "bom", "header", "named", "json"],
)  # fmt: skip
def test_forms_of_one_file(file, content):
    first, second = relation.read(file(content))
    assert first == Example("The @GENE$ gene causes @DISEASE$.", "1", ((4, 10), (23, 32)))
    assert (second.label, cut_out(second)) == ("0", ["@DISEASE$", "@GENE$"])


def test_marked_entities(file):
    record = {"text": PROT, "label": "INHIBITOR", "metadata": []}
    (example,) = relation.read(file(json.dumps(record), "train.jsonl"))
    assert cut_out(example) == ["<< EGFR >>", "[[ gefitinib ]]"]
    assert (example.label, example.names) == ("INHIBITOR", None)


def test_a_sentence_may_begin_with_a_brace(file):
    (example,) = relation.read(file("{@GENE$} and @DISEASE$\t1\n"))
    assert (example.text, example.label) == ("{@GENE$} and @DISEASE$", "1")


@pytest.mark.parametrize(
    ("text", "want"),
    [
        ("[[ a ]] and << b >>", ["<< b >>", "[[ a ]]"]),
        ("<< a >> x >> y [[ b ]] [[ c", ["<< a >>", "[[ b ]]"]),
        ("<< a [[ b ]] c >> of @GENE$ and @DRUG$", ["@GENE$", "@DRUG$"]),
        ("@CHEM-GENE$ alone", ["@CHEM-GENE$"] * 2),
        ("@DRUG$, @DRUGOTHER$ and @DRUG$", ["@DRUG$", "@DRUG$"]),
        ("@ARG1$ x @ARG2$", ["@ARG1$", "@ARG2$"]),
    ],
)
def test_which_marks_count(text, want):
    example = relation.marked(text)
    assert cut_out(example) == want
    assert example.spans[0] <= example.spans[1] or text.startswith("[[")


@pytest.mark.parametrize(
    "text", ["", "none", "<< a >> only", "@GENE$ only", "a@b.c $", "<<a>> [[b]]"]
)
def test_no_two_entities(text):
    with pytest.raises(InputError, match="the text marks no two entities, expected << >> and"):
        relation.marked(text)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (GAD + "x\n", r"line 3 has 1 columns, expected 2: sentence TAB label"),
        (GAD + "0\tThe @GENE$ x @DISEASE$\t1\n", r"line 3 has 3 columns, expected 2"),
        ("index\tsentence\tlabel\n" + GAD, r"line 2 has 2 columns, expected 3: index TAB sent"),
        ("index\tbody\tlabel\n0\tx\t1\n", r"line 2: the header names no column sentence or text"),
        (GAD.replace("@GENE$ mice", "mice"), r"line 2 marks no two entities"),
        (GAD.replace("\t0", "\t "), r"line 2 has an empty label"),
        (GAD.encode() + b"\xff\t1\n", r"line 3, byte 1 is not UTF-8"),
        (GAD + '{"text": "x"\n', r"line 3 is not JSON: Expecting ',' delimiter"),
        (GAD + '{"text": "x"}\n', r"""line 3 is '{"text": "x"}', expected text and label"""),
        (GAD + '{"text": 1, "label": "x"}\n', r"line 3 is .* expected text and label"),
        (GAD + '{"text": "x", "label": true}\n', r"line 3 is .* expected text and label"),
        (
            '\n{"text": "<< a >> [[ b ]]", "label": "x", "types": ["gene"]}',
            r"line 2: types is \['gene'\], expected two like",
        ),
        (GAD + r'{"text": "\ud800", "label": "x"}', r"line 3 has half a surrogate pair"),
        (GAD + r'{"text": "x", "label": "\udfff"}', r"line 3 has half a surrogate pair"),
        ("", r"holds no example, expected lines of sentence TAB label, or of JSON"),
        ("sentence\tlabel\n", r"holds no example"),
    ],
)
def test_defects_are_named_with_their_line(file, content, message):
    path = file(content)
    with pytest.raises(InputError, match=f"{path}:? {message}") as error:
        relation.read(path)
    assert "\n" not in str(error.value)


def test_whatever_befalls_a_file(file):
    """It is read, or refused with one line that names it; nothing else."""
    rng, refused = random.Random(0), 0
    record = {"text": PROT, "label": "A", "types": ["GENE", "CHEMICAL"]}
    for content in (GAD, "sentence\tlabel\n" + GAD, json.dumps(record) + "\n"):
        for _ in range(200):
            path = file(damaged(content.encode(), rng))
            try:
                examples = relation.read(path)
            except InputError as error:
                assert str(error).startswith(str(path)) and "\n" not in str(error)
                refused += 1
            else:
                for x in examples:
                    assert x.label and all(0 <= a < b <= len(x.text) for a, b in x.spans)
                    relation.anonymise(x)
    assert 200 < refused


BIOBERT = (  # of 6 lines the 2nd, 3rd and 5th lost a mark
    "index\tsentence\tlabel\n"
    "10.T1.T2\tThe @CHEMICAL$ inhibits @GENE$.\tCPR:4\n11.T1.T2\tOf @CHEMICAL$ alone.\tfalse\n"
    "12.T1.T2\tNo mark.\tCPR:3\n13.T1.T2\tBC6ENTG and BC6ENTC.\tfalse\n"
    "14.T1.T2\tOf @GENE $ and @CHEMICAL$.\tCPR:9\n15.T1.T2\tA @CHEM-GENE$.\tfalse\n"
)


def test_lines_that_lost_a_mark(file, capsys):
    path = file(BIOBERT)
    message = f"{path}: line 3 marks no two entities, .* lines like it: 3, .*--skip-unmarked"
    with pytest.raises(InputError, match=message) as error:
        relation.read(path)
    assert "\n" not in str(error.value) and capsys.readouterr().out == ""
    examples = relation.read(path, skip_unmarked=True)
    assert [(cut_out(x), x.label) for x in examples] == [
        (["@CHEMICAL$", "@GENE$"], "CPR:4"),
        (["BC6ENTG", "BC6ENTC"], "false"),
        (["@CHEM-GENE$", "@CHEM-GENE$"], "false"),
    ]
    assert capsys.readouterr().out == f"{path}: lines that mark no two entities, left out: 3\n"
    relation.read(file(GAD), skip_unmarked=True)
    assert capsys.readouterr().out == ""  # nothing to say
    with pytest.raises(InputError, match="holds no example"):
        relation.read(file("No mark.\t1\nNo mark.\t0\n"), skip_unmarked=True)


def test_a_header_is_only_before_the_lines(file):
    """A line that is skipped comes before: what looks like a header is damage then."""
    with pytest.raises(InputError, match="line 2 has 3 columns, expected 2"):
        relation.read(file("No mark.\t1\nindex\tsentence\tlabel\n"), skip_unmarked=True)


@pytest.mark.parametrize("how", [{}, {"fold": 1}, {"at_random": True}])
def test_every_way_to_choose_sets_skips_lines(file, tmp_path, how):
    for part in ("", "1/") if "fold" in how else ("",):
        for name in ("train", "dev", "test"):
            file(BIOBERT, f"set/{part}{name}.tsv")
    with pytest.raises(InputError, match="lines like it: 3"):
        relation.RelationTask(tmp_path / "set", **how)
    task = relation.RelationTask(tmp_path / "set", skip_unmarked=True, **how)
    want = {"all": 6} if "at_random" in how else {"train": 3, "dev": 3, "test": 3}
    assert {name: len(x) for name, x in task.sets.items()} == want


def test_the_sample_is_read(tmp_path):
    make_sample(tmp_path / "sample", documents=1, ner_train=1)
    gad = relation.read_sets(tmp_path / "sample/relation/gad")
    assert {k: len(x) for k, x in gad.items()} == {"train": 600, "test": 200}
    assert relation.label_names(gad["train"]) == ("0", "1")
    chemprot = relation.read_sets(tmp_path / "sample/relation/chemprot")
    assert {k: len(x) for k, x in chemprot.items()} == {"train": 600, "dev": 150, "test": 300}
    assert relation.five_classes(chemprot["train"])


def test_sets_of_a_directory(file, tmp_path):
    file(GAD, "a/train.tsv"), file("", "a/dev.tsv"), file(GAD * 2, "a/test.tsv")
    assert {k: len(x) for k, x in relation.read_sets(tmp_path / "a").items()} == {
        "train": 2, "test": 4,
    }  # fmt: skip
    line = json.dumps({"text": PROT, "label": "A"}) + "\n"
    file(line + line.replace('"A"', '"B"'), "b/train.txt"), file(line, "b/test.jsonl")
    file(line, "b/devel.jsonl")
    sets = relation.read_sets(tmp_path / "b")
    assert {k: len(x) for k, x in sets.items()} == {"train": 2, "dev": 1, "test": 1}
    assert relation.label_names(sets["train"]) == ("A", "B")
    (tmp_path / "b/test.jsonl").unlink()
    with pytest.raises(InputError, match=r"b has no test\.tsv or test\.jsonl"):
        relation.read_sets(tmp_path / "b")
    file(line, "b/test.jsonl"), file(line, "b/train.txt")
    with pytest.raises(InputError, match="train has only the label 'A'"):
        relation.read_sets(tmp_path / "b")


def test_folds_come_in_numerical_order(file, tmp_path):
    for i in (10, 2, 1):
        file(GAD, f"gad/{i}/train.tsv"), file(GAD.replace("mice", f"mice {i}"), f"gad/{i}/test.tsv")
    file("x", "gad/README"), file("x", "gad/extra/x")
    parts = relation.folds(tmp_path / "gad")
    assert [path.name for path in parts] == ["1", "2", "10"]
    everything = relation.whole(tmp_path / "gad")
    assert [x.text[-1] for x in everything] == [".", "1", ".", "2", ".", "0"]
    assert relation.folds(parts[0]) == []
    assert len(relation.whole(parts[0])) == 4


def test_ten_per_cent_at_random():
    examples = [Example(str(i), "1", ((0, 1), (0, 1))) for i in range(1234)]
    train, test = relation.split(examples, seed=42)
    assert len(test) == 123 and sorted([*train, *test]) == sorted(examples)
    for part in (train, test):
        assert part == sorted(part, key=lambda x: int(x.text))  # the file's order
    assert relation.split(examples, seed=42) == (train, test)
    other = relation.split(examples, seed=43)[1]
    assert len(set(test) & set(other)) < 40
    thirds = [sum(int(x.text) // 412 == k for x in test) for k in range(3)]
    assert min(thirds) > 25  # from everywhere
    assert [x.text for x in test[:3]] == ["4", "6", "15"]  # on every machine


def test_thirteen_relations_in_five_groups():
    given = ["ANTAGONIST", "INDIRECT-UPREGULATOR", "SUBSTRATE_PRODUCT-OF", "INHIBITOR", "AGONIST"]
    examples = [Example("", label, ((0, 1), (0, 1))) for label in given]
    got = [x.label for x in relation.five_classes(examples)]
    assert got == ["CPR:6", "CPR:3", "CPR:9", "CPR:4", "CPR:5"]
    assert set(relation.CPR) == set(relation.GROUP.values())
    assert sorted(relation.GROUP) == sorted(
        "ACTIVATOR AGONIST AGONIST-ACTIVATOR AGONIST-INHIBITOR ANTAGONIST DOWNREGULATOR "
        "INDIRECT-DOWNREGULATOR INDIRECT-UPREGULATOR INHIBITOR PRODUCT-OF SUBSTRATE "
        "SUBSTRATE_PRODUCT-OF UPREGULATOR".split()
    )
    with pytest.raises(InputError, match="the label 'false' is none of CHEMPROT's"):
        relation.five_classes([*examples, Example("", "false", ((0, 1), (0, 1)))])


REAL_LABELS = {"train": 13, "dev": 12, "test": 12}


def test_the_real_chemprot():
    sets = relation.read_sets(real_data("relation/chemprot13"))
    assert {k: len(x) for k, x in sets.items()} == {"train": 4169, "dev": 2427, "test": 3469}
    assert {k: len(relation.label_names(x)) for k, x in sets.items()} == REAL_LABELS
    for examples in sets.values():
        groups = relation.five_classes(examples)
        assert set(relation.label_names(groups)) == set(relation.CPR)
        for example in examples:
            first, second = cut_out(example)
            assert first[:3] == "<< " and first[-3:] == " >>"
            assert second[:3] == "[[ " and second[-3:] == " ]]"
            assert cut_out(relation.anonymise(example)) == ["@ARG1$", "@ARG2$"]


def test_the_real_gad():
    directory = real_data("relation/gad")
    examples = relation.whole(directory)
    assert (len(examples), sum(x.label == "1" for x in examples)) == (5330, 2801)
    assert len({x.text for x in examples}) == 5122
    parts = relation.folds(directory)
    assert [path.name for path in parts] == [str(i) for i in range(1, 11)]
    sets = relation.read_sets(parts[0])
    assert {k: len(x) for k, x in sets.items()} == {"train": 4796, "test": 534}
    assert all(sorted(cut_out(x)) == ["@DISEASE$", "@GENE$"] for x in sets["train"])
    train, test = relation.split(examples, seed=0)
    assert (len(train), len(test)) == (4797, 533)


# marks


@pytest.mark.parametrize(
    ("text", "types", "want"),
    [
        (PROT, None, "@ARG1$ inhibitors such as @ARG2$ (a >> b) [[1]"),
        (PROT, ["GENE", "CHEMICAL"], "@GENE$ inhibitors such as @CHEMICAL$ (a >> b) [[1]"),
        ("a [[ b ]] c << d >> e", None, "a @ARG2$ c @ARG1$ e"),
        ("a [[ b ]] c << d >> e", ["CHEMICAL", "GENE"], "a @GENE$ c @CHEMICAL$ e"),
        ("the @GENE$ and @DISEASE$", None, "the @GENE$ and @DISEASE$"),
    ],
)
def test_names_for_entities(file, text, types, want):
    record = {"text": text, "label": "x"} | ({"types": types} if types else {})
    (example,) = relation.read(file(json.dumps(record)))
    got = relation.anonymise(example)
    assert (got.text, got.label) == (want, "x")
    names = [f"@{kind}$" for kind in types or ("ARG1", "ARG2")]
    assert cut_out(got) == (names if "@GENE$" not in text else cut_out(example))
    assert relation.anonymise(got) == got


@settings(derandomize=True, deadline=None)
@given(st.text("ab @$<>[]", min_size=2), st.data())
def test_marking_a_text(text, data):
    def span():
        a = data.draw(st.integers(0, len(text) - 1))
        return a, data.draw(st.integers(a + 1, len(text)))

    first, second = span(), span()
    if max(first[0], second[0]) < min(first[1], second[1]):
        with pytest.raises(InputError, match="overlap"):
            relation.mark(text, first, second)
        return
    got = relation.mark(text, first, second)
    a, b = cut_out(got)
    assert (a, b) == (f"<< {text[slice(*first)]} >>", f"[[ {text[slice(*second)]} ]]")
    assert len(got.text) == len(text) + 12
    for (start, end), inner in sorted(zip(got.spans, (first, second), strict=True), reverse=True):
        got = got._replace(text=got.text[:start] + text[slice(*inner)] + got.text[end:])
    assert got.text == text


@pytest.mark.parametrize("span", [(-1, 2), (2, 2), (3, 2), (0, 9)])
def test_entities_outside_a_text(span):
    with pytest.raises(InputError, match=r"is not in a text of 8 characters"):
        relation.mark("12345678", (4, 5), span)


# to pieces


def test_a_short_sentence_is_whole(tokenizer):
    example = relation.marked(PROT)._replace(label="x")
    assert relation.make_features([example], tokenizer, 128) == [
        Feature(tokenizer.encode(PROT), "x")
    ]


@settings(derandomize=True, deadline=None)
@given(st.integers(0, 30), st.integers(1, 8), st.integers(0, 30), st.integers(1, 8),
       st.integers(0, 30), st.integers(2, 60))  # fmt: skip
def test_both_entities_stay(before, a, between, b, behind, room):
    n = before + a + between + b + behind
    left = range(before, before + a)
    right = range(left.stop + between, left.stop + between + b)
    kept = relation.around(n, left, right, room)
    assert kept == sorted(set(kept)) and set(kept) <= set(range(n))
    assert len(kept) == min(n, room)
    core = a + between + b
    if n <= room or a + b <= room:
        assert set(left) | set(right) <= set(kept)
    if core <= room < n:  # one stretch, as even as the ends allow
        assert kept[-1] - kept[0] == room - 1
        sides = left.start - kept[0], kept[-1] - right.stop + 1
        assert abs(sides[0] - sides[1]) <= 1 or kept[0] == 0 or kept[-1] == n - 1
    elif a + b <= room < core:
        inside = [i for i in kept if left.stop <= i < right.start]
        half = sum(i == left.stop + k for k, i in enumerate(inside))  # before the gap
        assert half == math.ceil((room - a - b) / 2)
        assert kept[0] == left.start and kept[-1] == right.stop - 1
    elif room < a + b:
        assert kept[0] == left.start and kept[-1] == right.stop - 1
        of_left, of_right = len(set(kept) & set(left)), len(set(kept) & set(right))
        assert of_left + of_right == room
        assert abs(of_left - of_right) <= 1 or of_left == a or of_right == b


def test_one_mention_that_is_both():
    one = range(5, 9)
    assert relation.around(20, one, one, 6) == [4, 5, 6, 7, 8, 9]
    assert relation.around(20, one, one, 2) == [5, 8]


@settings(derandomize=True, deadline=None, max_examples=40)
@given(st.integers(0, 30), st.integers(0, 30), st.integers(0, 30), st.integers(24, 60),
       st.booleans())  # fmt: skip
def test_entities_are_in_the_tokens(tokenizer, before, between, behind, length, swap):
    marks = ["[[ EGFR\u200b ]]", "<< gefitinib >>"]
    if swap:
        marks.reverse()
    text = "mice " * before + marks[0] + " in\u0301" * between + " " + marks[1] + " so" * behind
    (feature,) = relation.make_features([relation.marked(text)], tokenizer, length)
    tokens = feature.tokens
    assert len(tokens) <= length
    assert tokens[0] == tokenizer.cls_id and tokens[-1] == tokenizer.sep_id
    places = []
    for mark in marks:
        ids = tokenizer.encode(mark)[1:-1]
        assume(len(ids) * 2 < length)
        found = [i for i in range(len(tokens)) if tokens[i : i + len(ids)] == ids]
        assert len(found) == 1, mark
        places += found
    assert places == sorted(places)


def test_the_row_and_its_labels():
    features = [Feature([2, 7, 3], "b"), Feature([2, 8, 9, 3], "z"), Feature([2, 3], "a")]
    batch = relation.collate(features, ("a", "b"))
    assert batch.lengths == (3, 4, 2) and batch.predict is None
    assert batch.labels.tolist() == [1, -100, 0]
    assert batch.tokens.tolist() == [2, 7, 3, 2, 8, 9, 3, 2, 3]
    assert relation.collate(features).labels is None


class Counter(torch.nn.Module):
    """Class 1 the likelier, the longer the sequence."""

    def forward(self, batch):
        assert not self.training
        lengths = torch.tensor(batch.lengths, dtype=torch.float32)
        return SimpleNamespace(logits=torch.stack([torch.zeros_like(lengths), lengths], 1))


@pytest.mark.parametrize("B", [1, 2, 100])
def test_predictions_come_back_in_order(B):
    features = [Feature([1] * n, None) for n in (5, 2, 9, 3, 2)]
    p = relation.predict(Counter(), features, B, "cpu", torch.no_grad)
    assert p[:, 1].tolist() == pytest.approx([1 / (1 + math.exp(-n)) for n in (5, 2, 9, 3, 2)])
    assert p.sum(1).tolist() == pytest.approx([1.0] * 5)
    assert len(relation.predict(Counter(), [], B, "cpu", torch.no_grad)) == 0


@pytest.mark.parametrize("family", ["bert", "distilbert"])
def test_from_a_text_with_a_model_of_ours(tokenizer, family):
    config = tiny_config(family, V=tokenizer.V)
    model = Model(config, "sequence", ["0", "1", "2"])
    torch.nn.init.normal_(model.head.classifier.weight, std=3.0)  # so that texts differ
    texts = [PROT, "a [[ b ]] c << d >> e", GAD.split("\t")[0]]
    features = relation.make_features(
        [relation.marked(text) for text in texts], tokenizer, config.P
    )
    together = relation.predict(model, features, 8, "cpu", torch.no_grad)
    alone = [relation.predict(model, [x], 1, "cpu", torch.no_grad)[0] for x in features]
    assert together.shape == (3, 3)
    torch.testing.assert_close(together, torch.stack(alone), rtol=1e-4, atol=1e-5)
    assert (together[0] - together[1]).abs().max() > 1e-3


# files of other sources

PAIR = "The @GENE$ of @DISEASE$ .", "No @GENE$ of @DISEASE$ ."


def write_sets(tmp_path, text, test=None):
    for name, content in (("train", text), ("test", test or text)):
        (tmp_path / f"{name}.tsv").write_text(content, "utf-8")
    return tmp_path


@pytest.mark.parametrize("columns", [["label", "sentence"], ["index", "Label", "text"]])
@pytest.mark.parametrize("one", ["1", "1.0"])
def test_columns_in_the_order_of_their_header(tmp_path, columns, one):
    rows = [dict(zip(columns, columns, strict=True))]
    for i, (text, label) in enumerate(zip(PAIR, (one, one.replace("1", "0")), strict=True)):
        rows.append({"index": str(i), "label": label, "Label": label,
                     "sentence": text, "text": text})  # fmt: skip
    text = "".join("\t".join(row[name] for name in columns) + "\n" for row in rows)
    examples = relation.read_sets(write_sets(tmp_path, text))["train"]
    assert [(x.text, x.label) for x in examples] == list(zip(PAIR, "10", strict=True))


def test_a_header_without_labels(tmp_path):
    train = f"{PAIR[0]}\t1\n{PAIR[1]}\t0\n"
    write_sets(tmp_path, train, f"index\tsentence\n0\t{PAIR[0]}\n")
    with pytest.raises(InputError, match=r"test.tsv: line 1: the header names no column label"):
        relation.read_sets(tmp_path)


def test_quoted_fields_are_what_a_csv_writer_was_given(tmp_path):
    texts = ['A "bad" @GENE$ of @DISEASE$', '"Bad" @GENE$ of "@DISEASE$"', '"The @GENE$ @DISEASE$"']
    with open(tmp_path / "x.tsv", "w", encoding="utf-8", newline="") as file:
        csv.writer(file, delimiter="\t", lineterminator="\n").writerows((x, 1) for x in texts)
    assert [x.text for x in relation.read(tmp_path / "x.tsv")] == texts
    (tmp_path / "raw.tsv").write_text("".join(f"{x}\t1\n" for x in texts))
    assert [x.text for x in relation.read(tmp_path / "raw.tsv")] == texts


@pytest.mark.parametrize(
    ("labels", "negative"),
    [
        ("DDI-false DDI-effect DDI-mechanism", ["DDI-false"]),
        ("NO_RELATION treats", ["NO_RELATION"]), ("None causes", ["None"]),
        ("CPR:10 CPR:3", ["CPR:10"]), ("0.0 1.0", ["0"]), ("no_relation a", ["no_relation"]),
        ("False CPR:4", ["False"]), ("a b", []), ("falsetto a", []), ("10 20", []),
    ],
)  # fmt: skip
def test_the_class_that_states_no_relation(tmp_path, labels, negative, capsys):
    text = "".join(f"{PAIR[0]}\t{label}\n" for label in labels.split())
    task = relation.RelationTask(write_sets(tmp_path, text))
    assert sorted(task.negative) == negative
    assert task.average == ("micro" if negative else "macro")
    want = f"state no relation: {negative[0] if negative else 'none'}; the main figure is"
    assert want in capsys.readouterr().out


def test_the_named_class_states_no_relation(tmp_path):
    text = "".join(f"{PAIR[0]}\t{label}\n" for label in "abc")
    task = relation.RelationTask(write_sets(tmp_path, text), negative=["b"])
    assert (task.negative, task.average) == (["b"], "micro")
    with pytest.raises(InputError, match="--negative z: the labels are a, b, c"):
        relation.RelationTask(tmp_path, negative=["z"])


def test_main_figure_of_ddi_is_that_of_scikit_learn():
    """All predicted mechanism: of 24 are 3 right, of 6 relations 3 found."""
    from sklearn.metrics import precision_recall_fscore_support

    gold = ["DDI-false"] * 18 + ["DDI-effect"] * 3 + ["DDI-mechanism"] * 3
    found = ["DDI-mechanism"] * 24
    negative = [x for x in set(gold) if relation.NEGATIVE.fullmatch(x)]
    want = precision_recall_fscore_support(
        gold, found, labels=["DDI-effect", "DDI-mechanism"], average="micro", zero_division=0
    )
    got = relation.relation_scores(gold, found, negative)["micro"]
    assert [got[k] for k in ("precision", "recall", "f1")] == pytest.approx(list(want[:3]))
    assert got["f1"] == pytest.approx(0.2)


def test_sets_whose_figure_is_published():
    def examples(labels, text=PAIR[0]):
        return [relation.marked(text)._replace(label=label) for label in labels]

    assert relation.published(examples("01"))
    assert relation.published(examples(["CPR:3", "CPR:4", "false"], "@CHEMICAL$ and @GENE$"))
    assert relation.published(examples(["INHIBITOR", "AGONIST"], "<< a >> [[ b ]]"))
    assert not relation.published(examples("01", "@DRUG$ and @DRUG$"))
    assert not relation.published(examples(["DDI-false", "DDI-effect"]))


def test_marks_of_chemprot_s_other_preparations():
    text = "Of BC6ENTC and BC6ENTG , not BC6ENTGs"
    assert [text[slice(*span)] for span in relation.marked(text).spans] == ["BC6ENTC", "BC6ENTG"]
