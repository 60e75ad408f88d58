"""The tasks as they are learnt and scored: counts, scores and files of predictions, refusals."""

import json
import random
import re

import pytest
import torch

import minibio
from helpers import real_data, tiny_config
from minibio.config import RECIPES, Recipe, recipe_of
from minibio.model.heads import Model
from minibio.report.scores import scores
from minibio.run.dist import Ranks
from minibio.run.errors import InputError
from minibio.tasks import metrics, ner, qa, relation
from minibio.tasks.finetune import Best, Score, Task, build_model, load_teacher
from minibio.tasks.ner import NerTask
from minibio.tasks.qa import QaTask
from minibio.tasks.relation import RelationTask
from toy_tasks import (
    make_encoder,
    make_tokenizer,
    read_submission,
    squad,
    write_chemprot,
    write_gad,
    write_ner,
    write_qa,
)

RECIPE = Recipe(length=40, batch=8, precision="fp32")


@pytest.fixture(scope="module")
def tokenizer():
    return make_tokenizer()


def head(tokenizer, tmp_path, kind, labels=None):
    """A random model for a task: its scores are bad, but they are scores."""
    path = make_encoder(tmp_path / "encoder", tokenizer)
    torch.manual_seed(3)
    return minibio.load(path, head=kind, labels=labels, new_head=True)[0]


def prepared(task, tokenizer, recipe):
    """The task, cut into what a model reads."""
    task.prepare(tokenizer, recipe)
    return task


def refused(message, make, *arguments, **options):
    with pytest.raises(InputError, match=message) as error:
        make(*arguments, **options)
    assert "\n" not in str(error.value)


def test_the_papers_protocol_is_the_default():
    r = RECIPES["ner"]
    assert (r.epochs, r.batch, r.lr, r.schedule, r.warmup) == (5, 16, 5e-5, "cosine", 0)
    assert r.patience == 0 and r.weight_decay == 0.01 and r.clip == 1.0
    assert RECIPES["relation"].epochs == 3 and RECIPES["qa"].length == 384


# entities


def test_entities(tokenizer, tmp_path):
    data = write_ner(tmp_path / "set")
    task = prepared(NerTask(data), tokenizer, RECIPE)
    test = ner.read_tsv(data / "test.tsv")
    assert task.facts["counts"]["test"] == {
        "sentences": 24, "words": sum(len(s.words) for s in test), "windows": 24,
        "pieces": sum(len(w.words) for w in ner.make_windows(test, tokenizer, 40)),
    }  # fmt: skip
    assert task.labels == ("O", "B-entity", "I-entity") and task.facts["scheme"] == "IOB2"
    assert len(task.examples) == len(task.lengths) == 80
    assert task.lengths == [len(w.tokens) for w in task.examples]
    batch = task.collate(task.examples[:2])
    assert [task.labels[k] for k in batch.labels] == [t for w in task.examples[:2] for t in w.tags]
    model = head(tokenizer, tmp_path, "token", task.labels)
    scores = task.test(model, tmp_path)
    rows = [line.split(" ") for line in (tmp_path / "test.conll").read_text("utf-8").split("\n")]
    gold, found, current = [], [], ([], [])
    for row in rows:
        if len(row) == 3:
            current[0].append(row[1])
            current[1].append(row[2])
        elif current[0]:
            gold.append(current[0])
            found.append(current[1])
            current = ([], [])
    named = {"O": "O", "B": "B-entity", "I": "I-entity"}
    assert gold == [[named[tag] for tag in s.tags] for s in test]
    assert scores["word"] == metrics.entity_scores(gold, found)
    assert scores["piece"]["support"] > scores["word"]["support"]
    devel = prepared(NerTask(data), tokenizer, RECIPE).devel(model)
    assert 0 <= devel <= 1


@pytest.mark.parametrize("scheme", ["IOB1", "IOB2", "IOBES"])
def test_a_scheme_is_learnt_and_means_the_same_entities(scheme, tokenizer, tmp_path):
    data = write_ner(tmp_path / "set", is_typed=True)
    task = prepared(NerTask(data, scheme), tokenizer, RECIPE)
    letters = {tag[0] for tag in task.labels}
    assert letters == {"IOB1": set("OI"), "IOB2": set("OBI"), "IOBES": set("OBES")}[scheme]
    model = head(tokenizer, tmp_path, "token", task.labels)
    test = ner.read_tsv(data / "test.tsv")
    scores = task.test(model, tmp_path)
    assert scores["word"]["support"] == sum(tag[0] == "B" for s in test for tag in s.tags)


def test_files_of_two_schemes_and_an_i_without_b(tokenizer, tmp_path, capsys):
    data = write_ner(tmp_path / "set")
    (data / "test.tsv").write_text("Gout\tI\n\nColic\tS\n\nUlcer\tB\ndisorder\tE", "utf-8")
    sets, scheme, broken, written = ner.read_sets(data)
    assert (scheme, broken, written) == ("IOB2", 0, "IOB2")
    assert [s.tags for s in sets["test"]] == [["B"], ["B"], ["B", "I"]]
    text = (data / "train.tsv").read_text("utf-8")
    (data / "train.tsv").write_text(f"Gout\tI\n\n{text}", "utf-8")
    NerTask(data)
    assert "tags in IOB2, 1 sentences otherwise" in capsys.readouterr().out


def test_a_tag_that_training_lacks_is_missed(tokenizer, tmp_path, capsys):
    data = write_ner(tmp_path / "set")
    (data / "train.tsv").write_text("Gout\tB\nhad\tO", "utf-8")
    task = prepared(NerTask(data), tokenizer, RECIPE)
    assert task.labels == ("O", "B-entity")
    said = capsys.readouterr().out
    assert "test.tsv has tags that train.tsv lacks, which count as missed: ['I-entity']" in said
    model = head(tokenizer, tmp_path, "token", task.labels)
    assert task.test(model, tmp_path)["word"]["recall"] < 1


def test_words_that_leave_nothing_and_words_too_long_are_all_scored(tokenizer, tmp_path):
    data = write_ner(tmp_path / "set")
    words = ["The", "\u200b", "Gout", "\x07", "Gout" * 300, "\ufeff", "had", "\u00ad", "a" * 9000]
    text = "-DOCSTART-\tO\r\n\r\n" + "".join(f"{w}\tB\r\n" for w in words)
    (data / "test.tsv").write_bytes(text.encode().removesuffix(b"\r\n"))  # no final newline
    task = prepared(NerTask(data), tokenizer, RECIPE)
    model = head(tokenizer, tmp_path, "token", task.labels)
    assert (
        task.facts["counts"]["test"]["words"] == task.test(model, tmp_path)["word"]["support"] == 9
    )
    lines = (tmp_path / "test.conll").read_text("utf-8").split("\n")
    assert [line.split(" ")[0] for line in lines[:9]] == words and lines[9:] == ["", ""]


def write_sentences(directory, **sets):
    """A set whose sentences are single words with a tag: "Gout/B"."""
    directory.mkdir()
    for name, words in sets.items():
        lines = (word.replace("/", "\t") for word in words.split())
        (directory / f"{name}.tsv").write_text("\n\n".join(lines), "utf-8")
    return directory


def test_the_type_of_entities_without_one(tokenizer, tmp_path):
    sets = {"train": "Gout/B had/O", "test": "Gout/B"}
    data = write_sentences(tmp_path / "untyped", **sets)
    task = prepared(NerTask(data, kind="Disease"), tokenizer, RECIPE)
    assert task.labels == ("O", "B-Disease")
    assert task.facts["data_is"] == prepared(NerTask(data), tokenizer, RECIPE).facts["data_is"]
    typed = write_sentences(tmp_path / "typed", train="Gout/B-x had/O", test="Gout/B-x")
    refused("--type Disease: the tags of .*typed have types", NerTask, typed, kind="Disease")
    assert prepared(NerTask(typed), tokenizer, RECIPE).labels == ("O", "B-x")


def test_a_teacher_from_before_untyped_labels_had_a_name(tokenizer, tmp_path):
    data = write_sentences(tmp_path / "set", train="Gout/B had/O", test="Gout/B")
    task = prepared(NerTask(data), tokenizer, RECIPE)
    minibio.save(head(tokenizer, tmp_path, "token", ["O", "B"]), tokenizer, tmp_path / "old")
    assert load_teacher(tmp_path / "old", task, tokenizer, 40).labels == task.labels


def test_what_the_sets_hold_and_share_is_printed_once(tokenizer, tmp_path, capsys):
    data = write_sentences(
        tmp_path / "set",
        train="Gout/B-joint had/O Ulcer/B-skin Gout!/B-joint",
        devel="gout/B-joint no/O",
        test="GOUT/B-joint (had)/O Colic/B-skin sign/O ./O",
    )
    (data / "train.tsv").write_text((data / "train.tsv").read_text() + "\n\n.\tO", "utf-8")
    task = NerTask(data)
    capsys.readouterr()
    prepared(prepared(task, tokenizer, RECIPE), tokenizer, Recipe(length=40, seed=1))
    # a full stop is not a sentence in common
    assert capsys.readouterr().out == (
        "sentences: train 5 with 3 entities, devel 2 with 1 entities, test 5 with 2 entities; "
        "types of train: joint: 2, skin: 1\n"
        "2 of 5 sentences of test are in train too; 1 of 2 sentences of devel are in train too; "
        "1 of 2 sentences of devel are in test too\n"
    )


@pytest.mark.parametrize("like", ["train", "test"])
def test_early_stopping_by_a_development_set_that_is_another(tokenizer, tmp_path, like):
    data = write_ner(tmp_path / "set")
    (data / "devel.tsv").write_bytes((data / f"{like}.tsv").read_bytes())
    prepared(NerTask(data), tokenizer, RECIPE)
    n = {"train": 80, "test": 24}[like]
    refused(f"--early-stopping: all {n} sentences of devel are in {like}, so devel cannot say when",
            prepared, NerTask(data), tokenizer, Recipe(length=40, patience=2))  # fmt: skip


@pytest.mark.parametrize("name", ["train", "devel", "test"])
def test_a_file_that_is_one_sentence(tmp_path, name):
    data = write_ner(tmp_path / "set")
    (data / f"{name}.tsv").write_text("Gout\tB\n" * 1001, "utf-8")
    refused(rf"{name}\.tsv has no blank line: one sentence of 1,001 words; put", NerTask, data)
    (data / f"{name}.tsv").write_text("Gout\tB\n" * 1000, "utf-8")
    NerTask(data)


@pytest.mark.parametrize("name", ["NCBI-disease", pytest.param("JNLPBA", marks=pytest.mark.slow)])
def test_sentences_in_common_of_the_real_sets(tokenizer, capsys, name):
    """Counted again from the lines of the files."""
    data, keys = real_data(f"ner/{name}"), {}
    for stem in ("train", "devel", "test"):
        blocks = (data / f"{stem}.tsv").read_text("utf-8").split("\n\n")
        words = ("".join(line.split("\t")[0] for line in x.splitlines()) for x in blocks)
        keys[stem] = [re.sub(r"\W|_", "", text.lower()) for text in words if text]
    prepared(NerTask(data), tokenizer, RECIPE)
    said = capsys.readouterr().out
    for a, b in (("test", "train"), ("devel", "train"), ("devel", "test")):
        others = set(keys[b]) - {""}
        n = sum(key in others for key in keys[a])
        assert f"{n} of {len(keys[a]):,} sentences of {a} are in {b} too" in said and n > 0


def test_bad_sets(tmp_path):
    def broken(name, text, message):
        directory = write_ner(tmp_path / str(random.random()), n=(3, 2, 2))
        if text is None:
            (directory / name).unlink()
        else:
            (directory / name).write_bytes(text)
        refused(message, NerTask, directory)

    broken("train.tsv", None, r"train\.tsv: No such file")
    broken("test.tsv", None, r"test\.tsv: No such file")
    broken("test.tsv", b"a\tO\nb\n", r"test\.tsv: line 2 is 'b', expected token TAB tag")
    broken("devel.tsv", b"a\tO\nb\tQ\n", r"devel\.tsv: line 2 has the tag 'Q'")
    broken("test.tsv", b"a\tO\n\nb\t\xff\n", r"test\.tsv: line 3, byte 3 is not UTF-8")
    broken("test.tsv", b"\n\n", r"test\.tsv holds no sentence")
    broken("train.tsv", b"a\tO\n", r"train\.tsv tags no entity")
    broken("test.tsv", b"a\tB-x\n", r"test\.tsv has the tag 'B-x', train\.tsv 'B'")
    refused("--length is 2, expected at least 3",
            NerTask(write_ner(tmp_path / "x")).prepare, None, Recipe(length=2))  # fmt: skip


# relations


def read_predictions(path):
    head, *rows = path.read_text("utf-8").splitlines()
    assert head == "index\tgold\tpredicted\tprobability"
    return [row.split("\t") for row in rows]


def test_relations_of_folds(tokenizer, tmp_path):
    write_gad(tmp_path / "gad" / "1")
    write_gad(tmp_path / "gad" / "2", seed=1)
    task = prepared(RelationTask(tmp_path / "gad", fold=2), tokenizer, RECIPE)
    assert task.labels == ("0", "1") and task.facts["counts"] == {"train": 80, "test": 20}
    assert task.facts["data"] == "gad" and task.facts["fold"] == 2 and not task.has_devel
    model = head(tokenizer, tmp_path, "sequence", task.labels)
    scores = task.test(model, tmp_path)
    rows = read_predictions(tmp_path / "test.tsv")
    gold, found = [row[1] for row in rows], [row[2] for row in rows]
    assert gold == [x.label for x in relation.read(tmp_path / "gad" / "2" / "test.tsv")]
    scores_of = metrics.relation_scores(gold, found, ["0"])
    assert scores == {**scores_of, "main": "micro", "published": True}
    assert all(0.5 <= float(row[3]) <= 1 for row in rows)


def test_relations_split_by_seed(tokenizer, tmp_path):
    for i in (1, 2):
        write_gad(tmp_path / "gad" / str(i), n=(80, 20), seed=i)
    task = RelationTask(tmp_path / "gad", at_random=True)
    sizes = prepared(task, tokenizer, RECIPE).facts["counts"]
    assert sizes == {"train": 36, "test": 4}  # every test file once, a tenth of all
    one, again, other = (
        [f.tokens for f in prepared(task, tokenizer, Recipe(length=40, seed=s)).examples]
        for s in (1, 1, 2)
    )
    assert one == again != other


def test_thirteen_classes_and_five(tokenizer, tmp_path):
    data = write_chemprot(tmp_path / "cp")
    task = prepared(RelationTask(data), tokenizer, RECIPE)
    assert task.labels == ("ACTIVATOR", "INHIBITOR", "SUBSTRATE")
    model = head(tokenizer, tmp_path, "sequence", task.labels)
    scores = task.test(model, tmp_path)
    assert scores["main"] == "macro" and scores["micro"]["f1"] == scores["accuracy"]
    assert 0 <= task.devel(model) <= 1
    five = prepared(RelationTask(data, classes=5), tokenizer, RECIPE)
    assert five.labels == ("CPR:3", "CPR:4", "CPR:9") and five.facts["classes"] == 3
    assert five.average == "micro"


def test_names_in_place_of_entities(tokenizer, tmp_path):
    data = write_chemprot(tmp_path / "cp")
    plain, named = (
        prepared(RelationTask(data, anonymised=x), tokenizer, RECIPE).examples[0].tokens
        for x in (False, True)
    )
    assert "ARG" in tokenizer.decode(named).replace(" ", "") and plain != named
    assert "ARG" not in tokenizer.decode(plain).replace(" ", "")


@pytest.mark.parametrize("at_random", [False, True])
def test_labels_that_train_lacks_and_sentences_in_common(tokenizer, tmp_path, capsys, at_random):
    data = tmp_path / "set"
    data.mkdir()
    text = "<< Gout >> {} [[ Ulcer ]]\t{}\n"
    rows = [("causes", "A"), ("cures", "B"), ("cures it, but", "A"), ("meets", "A")]
    train = "".join(text.format(*row) for row in rows)
    # the same sentence with other marks, the same with a label that train lacks, and another
    test = "[[ Gout ]] causes << Ulcer >>\tA\n" + text.format("cures", "C") + text.format("of", "D")
    (data / "train.tsv").write_text(train, "utf-8")
    (data / "test.tsv").write_text(test, "utf-8")
    task = RelationTask(data, at_random=at_random)
    capsys.readouterr()
    if at_random:  # its only test sentence is one of C or D for some seed
        seeds = {}
        for seed in range(40):
            prepared(task, tokenizer, Recipe(length=40, seed=seed))
            (example,) = task.parts["test"]
            seeds[example.label] = capsys.readouterr().out
        assert "labels that train lacks, which count as missed: ['D']" in seeds["D"]
        assert "lacks" not in seeds["A"] and "examples: train 6, test 1" in seeds["A"]
        return
    prepared(task, tokenizer, RECIPE)
    assert capsys.readouterr().out == (
        "examples: train 4, test 3; labels of train: A: 3, B: 1\n"
        "2 of 3 sentences of test are in train too\n"
        "test has labels that train lacks, which count as missed: ['C', 'D']\n"
    )


def test_sentences_in_common_of_the_real_gad(tokenizer, capsys):
    """Some of the 208 sentences that GAD holds twice are on both sides of a fold."""
    data = real_data("relation/gad")
    for fold in (1, 2):
        read = [(data / str(fold) / f"{x}.tsv").read_text("utf-8") for x in ("train", "test")]
        train = {line.split("\t")[0].lower() for line in read[0].splitlines()}
        test = [line.split("\t")[1].lower() for line in read[1].splitlines()[1:]]
        prepared(RelationTask(data, fold=fold), tokenizer, RECIPE)
        n = sum(text in train for text in test)
        assert f"{n} of {len(test)} sentences of test are in train too" in capsys.readouterr().out
        assert 2 <= n <= 9


@pytest.mark.parametrize("task", ["ner", "relation", "qa"])
def test_one_answer_to_all_is_said_below_the_scores(tokenizer, tmp_path, task):
    """A head whose weights are 0 answers by its bias."""
    if task == "ner":
        made, kind = NerTask(write_ner(tmp_path / "set")), "token"
    elif task == "relation":
        made, kind = RelationTask(write_gad(tmp_path / "set")), "sequence"
    else:
        data = write_qa(tmp_path / "set")
        for name in ("train", "test"):
            text = (data / f"{name}.json").read_text("utf-8")
            text = re.sub(r'"context": "(?:\w+ )+(\w+) \w+"', r'"context": "\1"', text)
            text = re.sub("Ulcer|Sepsis|Colic", "Gout", text)
            text = re.sub(r'"answer_start": \d+', '"answer_start": 0', text)
            (data / f"{name}.json").write_text(text, "utf-8")
        made = QaTask(data / "train.json", [data / "test.json"], [data / "golden.json"])
        kind = "span"
    prepared(made, tokenizer, RECIPE)
    model = head(tokenizer, tmp_path, kind, made.labels)
    if task != "qa":
        classifier = list(model.head.parameters())[-2:]
        with torch.no_grad():
            for x in classifier:
                x.zero_()
            classifier[1][-1 if task == "relation" else 0] = 1
    test = made.test(model, tmp_path)
    answer = {"ner": "word is tagged 'O'", "relation": "example is labelled '1'",
              "qa": "question is answered 'Gout'"}[task]  # fmt: skip
    said = scores({"task": task, "test": test})
    assert said.endswith(f"\n* every {answer}: these are the scores of a constant\n")
    if task == "relation":  # by hand: every positive is found
        n = sum(x.label == "1" for x in made.parts["test"])
        assert test["micro"]["recall"] == 1 and test["micro"]["precision"] == n / 20


def test_bad_relations(tokenizer, tmp_path):
    gad, cp = tmp_path / "gad", write_chemprot(tmp_path / "cp")
    write_gad(gad / "1")
    refused("gad is in folds; choose one: --fold 1, --fold all, or --split", RelationTask, gad)
    refused("has no fold 3", RelationTask, gad, fold=3)
    refused("has no fold 1", RelationTask, cp, fold=1)
    refused("nowhere is not a directory", RelationTask, tmp_path / "nowhere")
    refused("the label '0' is none of CHEMPROT's", RelationTask, gad, fold=1, classes=5)
    refused(
        "--length is 3, expected at least 4", RelationTask(cp).prepare, tokenizer, Recipe(length=3)
    )

    def broken(text, message):
        (cp / "test.jsonl").write_bytes(text)
        refused(message, RelationTask, cp)

    broken(b'{"text": "a", "label": "x"}\n', r"test\.jsonl: line 1 marks no two entities")
    broken(b'\n{"text": "<< a >> [[ b ]]"}\n', r"test\.jsonl: line 2 is .*expected text and label")
    broken(b'{"text": \n', r"test\.jsonl: line 1 is not JSON")
    broken(b"<< a >> [[ b ]]\tx\ty\n", r"test\.jsonl: line 1 has 3 columns, expected 2")
    broken(b"\xff", r"test\.jsonl: line 1, byte 1 is not UTF-8")
    broken(b"\n", r"test\.jsonl holds no example")
    (cp / "test.jsonl").unlink()
    refused("cp has no test.tsv or test.jsonl", RelationTask, cp)


# questions


def test_questions(tokenizer, tmp_path, capsys):
    data = write_qa(tmp_path / "qa")
    files = (data / "train.json", [data / "test.json"], [data / "golden.json"])
    task = prepared(QaTask(*files), tokenizer, RECIPE)
    said = capsys.readouterr().out
    assert "2 questions (4 passages)" in said and "removed from train" in said
    counts = task.facts["counts"]
    assert counts["questions"] == 40 and counts["removed"] == 2 and counts["passages"] == 80
    kept = prepared(QaTask(*files, allow_overlap=True), tokenizer, RECIPE).facts["counts"]
    assert kept["questions"] == 42 and kept["removed"] == 0
    assert "learnt all the same" in capsys.readouterr().out
    window, (first, last) = task.examples[0]
    batch = task.collate(task.examples[:2])
    assert batch.labels.tolist()[0] == [first, last] and batch.segments.tolist()[:2] == [0, 0]
    model = head(tokenizer, tmp_path, "span")
    scores = task.test(model, tmp_path)
    written = read_submission(tmp_path / "submission.json")
    want = metrics.bioasq_scores(qa.read_golden(data / "golden.json"), written)
    assert {k: scores[k] for k in want} == want and want["questions"] == 10
    assert all(0 < len(answers) <= 5 for answers in written.values())
    n_best = json.loads((tmp_path / "n_best.json").read_text("utf-8"))
    contexts = {p.id: p.context for p in qa.read_squad(data / "test.json")}
    for answers in n_best.values():
        for a in answers:
            assert contexts[a["passage"]][a["start"] : a["end"]] == a["text"]


def test_several_test_files_and_the_released_order(tokenizer, tmp_path):
    data = write_qa(tmp_path / "qa")
    test, golden = squad(6, 9, first=50)
    (data / "test2.json").write_text(json.dumps(test), "utf-8")
    (data / "golden2.json").write_text(json.dumps(golden), "utf-8")
    tests = [data / "test.json", data / "test2.json"]
    goldens = [data / "golden.json", data / "golden2.json"]
    task = prepared(
        QaTask(data / "train.json", tests, goldens, order="released"), tokenizer, RECIPE
    )
    model = head(tokenizer, tmp_path, "span")
    scores = task.test(model, tmp_path)
    parts = scores["per_file"]
    assert scores["questions"] == 16 and [x["questions"] for x in parts.values()] == [10, 6]
    mean = (10 * parts["test"]["mrr"] + 6 * parts["test2"]["mrr"]) / 16
    assert scores["mrr"] == pytest.approx(mean)
    written = read_submission(tmp_path / "submission.json")
    assert {len(answers) for answers in written.values()} == {2}  # one of each snippet
    without = prepared(QaTask(data / "train.json", tests, []), tokenizer, RECIPE).test(
        model, tmp_path
    )
    assert "mrr" not in without


def test_two_test_files_of_one_name_that_ask_the_same(tokenizer, tmp_path):
    """Both have their scores, and a question has the snippets of both."""
    data = write_qa(tmp_path / "qa")
    (data / "other").mkdir()
    tests = [data / "test.json", data / "other" / "test.json"]
    tests[1].write_bytes(tests[0].read_bytes())
    model = head(tokenizer, tmp_path, "span")

    def answers(paths):
        task = QaTask(data / "train.json", paths, [data / "golden.json"], order="released")
        scores = prepared(task, tokenizer, RECIPE).test(model, tmp_path)
        return scores, read_submission(tmp_path / "submission.json")

    scores, both = answers(tests)
    one_scores, one = answers(tests[:1])
    assert list(scores["per_file"]) == [str(path) for path in tests]
    assert scores["questions"] == one_scores["questions"] == 10
    assert list(scores["per_file"].values()) == [one_scores["per_file"]["test"]] * 2
    assert both == {question: found * 2 for question, found in one.items()}


def test_misplaced_answers_are_left_out_and_counted(tokenizer, tmp_path, capsys):
    """One of two answers of a passage, the only one of another, and one of the test file."""
    data = write_qa(tmp_path / "qa")
    train, test = data / "train.json", data / "test.json"
    whole = prepared(QaTask(train, [test], []), tokenizer, RECIPE)

    def change(path, place, edit):
        value = json.loads(path.read_text("utf-8"))
        edit(value["data"][0]["paragraphs"][place]["qas"][0]["answers"])
        path.write_text(json.dumps(value), "utf-8")

    def move(answers):
        answers[0]["answer_start"] += 1

    change(train, 0, lambda answers: answers.append({"text": "nowhere", "answer_start": 0}))
    change(train, 5, move)
    change(test, 0, move)
    refused(r"answers: 2, of '0{22}64_000', '0{22}66_001'; mend", QaTask, train, [test], [])
    capsys.readouterr()
    task = prepared(QaTask(train, [test], [], skip_misplaced=True), tokenizer, RECIPE)
    said = capsys.readouterr().out
    assert f"{train}: 2 misplaced answers are left out, and 1 passages that have no other" in said
    assert f"{test}: 1 misplaced answers are left out\n" in said
    assert task.facts["counts"] == whole.facts["counts"] | {
        "passages": 79, "examples": 79, "misplaced": 3,
    }  # fmt: skip
    assert task.passages == whole.passages[:5] + whole.passages[6:]
    assert [p[:3] for p in task.every_test] == [p[:3] for p in whole.every_test]


def test_bad_questions(tokenizer, tmp_path):
    data = write_qa(tmp_path / "qa")
    train, test, golden = (data / f"{name}.json" for name in ("train", "test", "golden"))
    task = QaTask(train, [test], [golden])
    refused("--length is 4, expected at least 5", task.prepare, tokenizer, Recipe(length=4))
    _, other = squad(3, 0, first=900)
    (data / "other.json").write_text(json.dumps(other), "utf-8")
    refused("other.json has none of the questions of", QaTask, train, [test],
            [data / "other.json"])  # fmt: skip
    refused("has no question with an answer to learn", QaTask, test, [test], [golden])

    def broken(old, new, message):
        text = train.read_text("utf-8")
        (data / "broken.json").write_text(text.replace(old, new, 1), "utf-8")
        refused(message, QaTask, data / "broken.json", [test], [golden])

    broken('"context"', '"contents"', r"broken\.json: data\[0\].*'context' is missing")
    broken(
        '"answer_start": ',
        '"answer_start": 9',
        r"broken\.json: data\[0\]\.paragraphs\[\d+\].*mend answer_start",
    )
    broken('{\n "data"', "{", r"broken\.json: line 1, column 2: Expecting")
    refused(r"golden\.json: 'data' is missing", QaTask, golden, [test], [golden])
    refused(r"nothing\.json: No such file", QaTask, data / "nothing.json", [test], [golden])


# the start


def test_the_best_model_whose_replacement_was_killed_is_put_back(tokenizer, tmp_path):
    """Between its two renames: without its score, early stopping would count from step 0."""
    ranks = Ranks(0, 0, 1, torch.device("cpu"))
    best = Best(tmp_path / ".best", ranks)
    best.offer(head(tokenizer, tmp_path / "a", "token", ["O", "B"]), tokenizer, Score(7, 0.5))
    (tmp_path / ".best").rename(tmp_path / "..best.old")
    again = Best(tmp_path / ".best", ranks)
    again.read()
    assert again.score == Score(7, 0.5)
    assert not (tmp_path / "..best.old").exists()
    for damage in ("[]", "{}", '{"step": 7, "score": []}', '{"step": 1e999, "score": 1}'):
        (tmp_path / ".best" / "best.json").write_text(damage)
        refused("best.json", again.read)


def test_an_encoder_keeps_what_it_had_and_the_head_is_drawn(tokenizer, tmp_path):
    def task(head, labels=None):
        task = Task()
        task.head, task.labels = head, labels
        return task

    path = make_encoder(tmp_path / "a", tokenizer, head="span")
    model, _ = minibio.load(path, head="span")
    encoder, _ = minibio.load(path, head="encoder")
    kept = build_model(path, encoder, task("span"), 1)
    assert torch.equal(kept.head.classifier.weight, model.head.classifier.weight)
    one, two, other = (
        build_model(path, encoder, task("sequence", ("a", "b")), seed) for seed in (1, 1, 2)
    )
    assert torch.equal(one.head.classifier.weight, two.head.classifier.weight)
    assert not torch.equal(one.head.classifier.weight, other.head.classifier.weight)
    table = model.encoder.embeddings.token.weight
    assert torch.equal(one.encoder.embeddings.token.weight, table)


def test_a_pooler_is_kept(tokenizer, tmp_path):
    torch.manual_seed(3)
    source = Model(tiny_config("bert", V=tokenizer.V), "sequence", ["x", "y", "z"])
    minibio.save(source, tokenizer, tmp_path / "a")
    encoder, _ = minibio.load(tmp_path / "a", head="encoder")
    task = Task()
    task.head, task.labels = "sequence", ("a", "b")
    model = build_model(tmp_path / "a", encoder, task, 1)
    assert torch.equal(model.head.pooler.weight, source.head.pooler.weight)
    assert model.head.classifier.weight.shape[0] == 2


def test_questions_have_a_rate_of_their_own_by_width():
    """Section 5.3: 5e-5 for the three models of width 312, 3e-5 for the rest; else 5e-5."""
    assert recipe_of("qa", 312).lr == 5e-5
    assert {recipe_of("qa", width).lr for width in (128, 512, 768, None)} == {3e-5}
    assert {recipe_of(task, 768).lr for task in ("ner", "relation")} == {5e-5}
