"""Records of runs: whose they are, what they hold, and those that are none."""

import copy
import json

import pytest

from helpers import run_record as record
from helpers import write_run as write
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
        broken("test", "word", "f1", value=float("nan")), broken("data", value=None),
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
