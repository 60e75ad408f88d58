"""Records of runs: whose they are, what they hold, and those that are none."""

import copy
import json

import pytest

from data.fetch import sources
from helpers import run_record as record
from helpers import write_run as write
from minibio.report import paper_tables as paper
from minibio.report import records
from minibio.run.errors import InputError


def test_a_run_of_each_kind(tmp_path):
    for task in ("ner", "relation", "qa"):
        write(tmp_path / task / "seed-0", task=task, data="GAD" if task == "relation" else "x")
    runs = {run.kind: run for run in records.find_runs([tmp_path], {})}
    assert [run.row for run in runs.values()] == ["x", "BioASQ 7b", "GAD"]
    assert {run.model for run in runs.values()} == {"TinyBioBERT"}
    assert runs["ner"].scores == pytest.approx(
        {"P": 0.5, "R": 0.25, "F": 0.7, "P words": 0.5, "R words": 0.25, "F words": 0.8}
    )
    assert runs["relation"].scores == {"P": 0.5, "R": 0.25, "F": 0.8}  # the main one: macro
    assert runs["qa"].scores == {"S": 0.2, "L": 0.4, "M": 0.8}
    for kind, run in runs.items():
        assert tuple(run.scores) == records.METRICS[kind] and run.path.name == f"{kind}.json"


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("tiny-biobert", "TinyBioBERT"), ("bio_mobilebert", "BioMobileBERT"),
        ("biobert", "BioBERT-v1.1"), ("biobert-v1.1", "BioBERT-v1.1"),
        ("bio-distilbert-cased", "BioDistilBERT"), ("mine", "mine"), ("tiny", "tiny"),
        ("biobert-base-cased-v1.2", "BioBERT-v1.2"), ("distilbert-base-uncased", "DistilBERT"),
        ("TinyBERT_General_4L_312D", "TinyBERT"), ("mobilebert-uncased", "MobileBERT"),
    ],
)  # fmt: skip
def test_names_of_models(tmp_path, name, expected):
    path = write(tmp_path, model=f"runs/{name}") / "ner.json"
    assert records.read_run(path, {}).model == expected
    assert records.read_run(path, {name: "DistilBERT"}).model == "DistilBERT"


@pytest.mark.parametrize(
    ("what", "expected"),
    [
        ({"data": "ncbi-disease"}, "NCBI-disease"), ({"data": "s800"}, "Species-800"),
        ({"data": "BC5CDR-chem"}, "BC5CDR-chem"), ({"data": "my set"}, "my set"),
        ({"task": "relation", "data": "chemprot", "classes": 13}, "CHEMPROT"),
        ({"task": "relation", "data": "chemprot13", "classes": 13}, "CHEMPROT"),
        ({"task": "relation", "data": "chemprot", "classes": 6}, "CHEMPROT, 6 classes"),
        ({"task": "relation", "data": "GAD", "classes": 2, "fold": 3}, "GAD"),
        ({"task": "qa"}, "BioASQ 7b"),
        ({"task": "qa", "tests": ["BioASQ-test-factoid-6b-1"]}, "BioASQ 6b, 162 questions"),
        ({"task": "qa", "data": "d", "tests": ["a-6b-1", "a-7b-1"]}, "d (a-6b-1, a-7b-1)"),
        ({"task": "qa", "data": "d", "tests": ["mine"]}, "d (mine)"),
    ],
)  # fmt: skip
def test_names_of_sets(tmp_path, what, expected):
    path = write(tmp_path, **what)
    assert records.find_runs([path], {})[0].row == expected


def test_7b_in_part_is_not_the_papers_set(tmp_path):
    found = record("qa")
    found["test"]["questions"] = 161
    assert records.row_of("qa", found) == "BioASQ 7b, 161 questions"


def test_older_records_keep_the_seed_in_the_config(tmp_path):
    found = record()
    del found["seed"]
    found["config"]["seed"] = 7
    (tmp_path / "ner.json").write_text(json.dumps(found), "utf-8")
    assert records.read_run(tmp_path / "ner.json", {}).seed == 7


def broken(*path, value):
    found = copy.deepcopy(record())
    place = found
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = value
    return found


@pytest.mark.parametrize(
    "content",
    [
        {}, broken("task", value="sing"), broken("model", value=None), broken("model", value=""),
        broken("seed", value="1"), broken("seed", value=True), broken("seed", value=None),
        broken("test", value=[]), broken("test", "piece", value={}), broken("config", value=3),
        broken("test", "word", "f1", value=80.1), broken("test", "word", "f1", value=None),
        broken("test", "word", "f1", value=float("nan")), broken("config", "fold", value=[1]),
        broken("test", "word", "f1", value=10**400), broken("data", value=None),
        broken("task", value=[]), {**record("qa"), "test": {"per_file": {}}},
        {**record("qa"), "config": {"tests": 3}},
    ],
)  # fmt: skip
def test_records_that_are_none(tmp_path, content):
    path = tmp_path / "ner.json"
    path.write_text(json.dumps(content), "utf-8")
    with pytest.raises(InputError, match="holds no scores of `eval.py ner`") as caught:
        records.read_run(path, {})
    assert str(path) in str(caught.value)


def test_places_without_records_and_runs_that_are_twice_there(tmp_path):
    with pytest.raises(InputError, match="holds no ner.json, qa.json, relation.json; name dir"):
        records.find_runs([tmp_path], {})
    write(tmp_path / "a")
    assert len(records.find_runs([tmp_path, tmp_path / "a"], {})) == 1  # one file, named twice
    write(tmp_path / "b")
    with pytest.raises(InputError, match=r"both TinyBioBERT on NCBI-disease with seed 0; .*--as"):
        records.find_runs([tmp_path], {})
    write(tmp_path / "b", seed=1)
    assert len(records.find_runs([tmp_path], {})) == 2


# like with like


def names(tmp_path, *runs, columns=None):
    """(row, column) of each run, in the order they are given."""
    for i, what in enumerate(runs):
        write(tmp_path / f"{i:02d}", **{"seed": i, **what})
    return [(run.row, run.model) for run in records.find_runs([tmp_path], columns or {})]


PLAIN = ("NCBI-disease", "TinyBioBERT")


def test_runs_that_differ_in_the_seed_share_their_place(tmp_path):
    assert names(tmp_path, {}, {}, {}) == [PLAIN] * 3


@pytest.mark.parametrize(
    ("setting", "said"),
    [
        ({"patience": 2}, "early-stopping 2"), ({"epochs": 20}, "epochs 20"),
        ({"lr": 1e-3, "weight_decay": 0.0}, "lr 0.001, weight-decay 0.0"),
        ({"method": "distil", "alpha": [1.0, 0.5]}, "method distil, alpha 1.0 0.5"),
        ({"something_new": "x"}, "something-new x"), ({"something_new": True}, "something-new"),
    ],
)  # fmt: skip
def test_another_setting_of_the_training_is_a_column(tmp_path, setting, said):
    got = names(tmp_path, {}, {}, setting, setting)
    assert got == [PLAIN] * 2 + [("NCBI-disease", f"TinyBioBERT, {said}")] * 2


def test_a_setting_that_all_runs_share_is_not_named(tmp_path):
    assert names(tmp_path, {"epochs": 20}, {"epochs": 20}) == [PLAIN] * 2


def test_two_settings_other_than_the_default_are_both_named(tmp_path):
    got = names(tmp_path, {"epochs": 10}, {"epochs": 20}, {"epochs": 20})
    assert [model for _, model in got] == [f"TinyBioBERT, epochs {n}" for n in (10, 20, 20)]


def test_a_setting_names_the_column_on_every_set_of_the_task(tmp_path):
    """Else a column would mix them, and so would the mean over its sets."""
    got = names(tmp_path, {}, {"data": "BC2GM", "patience": 2})
    assert got == [PLAIN, ("BC2GM", "TinyBioBERT, early-stopping 2")]


def test_with_a_teacher_and_without(tmp_path):
    found = [{}, {"teacher": "runs/biobert-ncbi"}, {"teacher": "elsewhere/base-1"}]
    got = names(tmp_path, *found, columns={})
    assert [model for _, model in got] == [
        "TinyBioBERT", "TinyBioBERT, teacher biobert-ncbi", "TinyBioBERT, teacher base-1",
    ]  # fmt: skip


def test_models_of_one_name_in_two_places(tmp_path):
    """Two trainings: together only where --as says that they are one model."""
    found = [{"model": "runs/0/tiny"}, {"model": "runs/1/tiny"}, {"model": "runs/1/tiny"}]
    got = names(tmp_path, *found)
    assert [model for _, model in got] == [
        "tiny, model runs/0/tiny",
        *["tiny, model runs/1/tiny"] * 2,
    ]
    runs = records.find_runs([tmp_path], {"0/tiny": "Tiny", "1/tiny": "Tiny"})
    assert {run.model for run in runs} == {"Tiny"}
    cased = [{"model": "bio-distilbert-cased"}, {"model": "bio-distilbert-uncased"}]
    got = names(tmp_path / "b", *cased)
    assert [model for _, model in got] == [f"BioDistilBERT, model {x['model']}" for x in cased]


def test_models_of_another_shape_are_apart_even_if_as_calls_them_one(tmp_path):
    found = [{"model": "a", "shape": {"L": 4, "C": 64}}, {"model": "b", "shape": {"L": 2, "C": 64}}]
    got = names(tmp_path, *found, columns={"a": "Tiny", "b": "Tiny"})
    assert [model for _, model in got] == ["Tiny, L 4", "Tiny, L 2"]


def test_folds_and_splits_by_seed_are_other_rows(tmp_path):
    gad = {"task": "relation", "data": "gad", "classes": 2}
    got = names(tmp_path, *({**gad, "seed": 42, "fold": n, "data_is": str(n)} for n in (1, 2)),
                *({**gad, "at_random": True, "data_is": f"x{n}"} for n in (0, 1)))  # fmt: skip
    assert [row for row, _ in got] == ["GAD, folds"] * 2 + ["GAD, split"] * 2
    got = names(tmp_path / "b", *({**gad, "at_random": True, "data_is": f"x{n}"} for n in (0, 1)))
    assert [row for row, _ in got] == ["GAD"] * 2


def test_classes_and_names_are_other_rows(tmp_path):
    chemprot = {"task": "relation", "data": "chemprot13"}
    got = names(tmp_path, {**chemprot, "classes": 13}, {**chemprot, "classes": 5},
                {**chemprot, "classes": 5, "anonymise": True})  # fmt: skip
    assert [row for row, _ in got] == [
        "CHEMPROT", "CHEMPROT, 5 classes", "CHEMPROT, 5 classes, anonymise",
    ]  # fmt: skip


def test_data_that_changed_under_one_name(tmp_path):
    got = names(tmp_path, {"data_is": "abcdefgh"}, {"data_is": "12345678"})
    assert [row for row, _ in got] == ["NCBI-disease, data abcdef", "NCBI-disease, data 123456"]


def test_questions_of_other_files(tmp_path):
    batch = [{"task": "qa", "tests": [f"BioASQ-test-factoid-6b-{i}"]} for i in (1, 2)]
    got = names(tmp_path, *batch)
    assert [row for row, _ in got] == [
        f"BioASQ 6b, 162 questions, tests BioASQ-test-factoid-6b-{i}" for i in (1, 2)
    ]


def test_a_first_stage_is_named_and_is_not_a_run_of_its_own(tmp_path):
    write(tmp_path / "two", task="qa", seed=1)
    write(tmp_path / "two" / "first", task="qa", data="squad", seed=1)
    got = names(tmp_path, {"task": "qa", "seed": 1})
    assert [model for _, model in got] == ["TinyBioBERT", "TinyBioBERT, first squad"]


def test_names_that_no_run_has(tmp_path):
    with pytest.raises(InputError, match="--as nosuch=X: no run is of 'nosuch'; there are a, b"):
        names(tmp_path, {"model": "x/a"}, {"model": "x/b"}, columns={"nosuch": "X"})


def test_every_set_and_model_that_is_fetched_has_the_papers_name():
    names_of = (*paper.NER, *paper.RELATION)
    for data in (*sources.SETS["ner"], *sources.SETS["relation"]):
        assert records.row_of("ner", {"data": data}) in names_of, data
    for model in sources.SETS["starts"]:
        assert records.column_of(f"runs/{model}", {})[0] in paper.CONTINUED, model
    assert records.column_of(sources.TEACHER, {})[0] == "BioBERT-v1.2"  # F1: the paper's is v1.1
