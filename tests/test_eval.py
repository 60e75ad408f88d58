"""The commands end to end at toy size: bytes, processes, transformers, errors of one line."""

import json
import os
import re
import subprocess
import sys
from functools import partial

import pytest
import torch

import eval as evaluation
import minibio
from helpers import ROOT, processes
from minibio.run import errors
from minibio.run.errors import InputError
from minibio.tasks.documents import Document, Pair, Question
from minibio.tasks.predict import Predictor
from toy_tasks import (
    FAST,
    make_encoder,
    make_tokenizer,
    squad,
    write_chemprot,
    write_gad,
    write_ner,
    write_qa,
)


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """A model and a set of every form."""
    base = tmp_path_factory.mktemp("eval")
    make_encoder(base / "random", make_tokenizer())
    write_ner(base / "ner", is_typed=True)
    write_chemprot(base / "chemprot")
    write_gad(base / "gad" / "1")
    write_gad(base / "gad" / "2", seed=1)
    write_qa(base / "qa")
    return base


def arguments(base, task):
    """The command line of a task, without --out."""
    given = [task, "--model", base / "random", *FAST]
    given += ["--epochs", 8] if task == "relation" else []  # a sequence says less than its tokens
    if task == "qa":
        names = [("--train", "train"), ("--test", "test"), ("--golden", "golden")]
        options = [x for o, n in names for x in (o, base / "qa" / f"{n}.json")]
        given += [*options, "--length", 32]
    else:
        given += ["--data", base / {"ner": "ner", "relation": "chemprot"}[task]]
    return [str(x) for x in given]


TASKS = ["ner", "relation", "qa"]


@pytest.fixture(scope="module")
def tuned(base):
    """Every task, learnt once."""
    for task in TASKS:
        evaluation.main([*arguments(base, task), "--out", str(base / f"tuned-{task}")])
    return base


def record(directory, task):
    return json.loads((directory / f"{task}.json").read_text("utf-8"))


def test_it_learns_and_says_so(tuned, capsys):
    """The same command again prints the scores of a finished run."""
    main = {"ner": ("word", "f1"), "relation": ("macro", "f1")}
    for task in TASKS:
        evaluation.main([*arguments(tuned, task), "--out", str(tuned / f"tuned-{task}")])
        shown, test = capsys.readouterr().out, record(tuned / f"tuned-{task}", task)["test"]
        x = test["mrr"] if task == "qa" else test[main[task][0]][main[task][1]]
        assert x > {"ner": 0.7, "relation": 0.4, "qa": 0.2}[task], task
        assert f"{100 * x:.2f}" in shown and "finished earlier" in shown


def test_one_seed_gives_the_same_bytes_whatever_the_hash_seed(tuned, tmp_path):
    given = [[*arguments(tuned, task), "--out", str(tmp_path / task)] for task in TASKS]
    code = f"import eval\nfor given in {given}: eval.main(given)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True,
                          env={**os.environ, "PYTHONHASHSEED": "1"}, text=True)  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")
    for task in TASKS:
        out, want = tmp_path / task, tuned / f"tuned-{task}"
        names = sorted(path.name for path in want.iterdir())
        assert names == sorted(path.name for path in out.iterdir())
        for name in set(names) - {"log.jsonl", f"{task}.json"}:
            assert (out / name).read_bytes() == (want / name).read_bytes(), name
        assert {**record(out, task), "seconds": 0} == {**record(want, task), "seconds": 0}


def test_two_processes_learn_what_one_learns(base, tmp_path):
    model = make_encoder(tmp_path / "model", make_tokenizer(), dropout=0.0, attention_dropout=0.0)
    given = [*arguments(base, "ner"), "--model", model, "--epochs", 1, "--log-every", 1]
    evaluation.main([*map(str, given), "--out", str(tmp_path / "one")])
    told = processes(2, ["eval.py", *given, "--out", tmp_path / "two"])
    assert [status for status, *_ in told] == [0, 0], told
    assert "entities by words" in told[0][1] and told[1][1] == ""

    def losses(out):
        lines = map(json.loads, (out / "log.jsonl").read_text("utf-8").splitlines())
        return [x["loss"] for x in lines if x["event"] == "train"]

    assert len(losses(tmp_path / "one")) == 10
    assert losses(tmp_path / "two") == pytest.approx(losses(tmp_path / "one"), rel=1e-3)
    one, two = (record(tmp_path / name, "ner") for name in ("one", "two"))
    assert one["config"] == two["config"]
    assert one["test"]["word"]["f1"] == pytest.approx(two["test"]["word"]["f1"], abs=0.05)


# seeds, folds, stages, teachers


def test_seeds_and_folds_have_a_mean_and_an_interval(base, tmp_path, capsys):
    given = ["relation", "--model", base / "random", *FAST, "--epochs", 1, "--data", base / "gad",
             "--fold", "all", "--seeds", 3, 4, "--out", tmp_path / "out"]  # fmt: skip
    evaluation.main(list(map(str, given)))
    f1 = [
        [record(tmp_path / "out" / f"fold-{f}" / f"seed-{s}", "relation")["test"]["micro"]["f1"]
         for f in (1, 2)] for s in (3, 4)
    ]  # fmt: skip
    summary = json.loads((tmp_path / "out" / "summary.json").read_text("utf-8"))
    values = [sum(row) / 2 for row in f1]
    assert summary["test"]["micro f1"]["values"] == pytest.approx(values)
    assert summary["data"] == "gad" and summary["seeds"] == [3, 4]
    assert "over 2 seeds" in capsys.readouterr().out
    places = [tmp_path / "out" / "fold-1" / f"seed-{s}" for s in (3, 4)]
    assert [record(place, "relation")["seed"] for place in places] == [3, 4]
    assert len({(place / "model.safetensors").read_bytes() for place in places}) == 2
    # one more seed: the finished ones are not done again
    given[given.index(4) + 1 : given.index(4) + 1] = [5]
    evaluation.main(list(map(str, given)))
    assert capsys.readouterr().out.count("finished earlier") == 4
    summary = json.loads((tmp_path / "out" / "summary.json").read_text("utf-8"))
    assert len(summary["test"]["micro f1"]["values"]) == 3


def test_a_first_stage_on_other_questions(base, tmp_path, capsys):
    train, _ = squad(20, 3, first=700)
    (tmp_path / "other.json").write_text(json.dumps(train), "utf-8")
    given = [*arguments(base, "qa"), "--epochs", 1, "--out", tmp_path / "out",
             "--first", tmp_path / "other.json", "--first-epochs", 1]  # fmt: skip
    evaluation.main(list(map(str, given)))
    shown = capsys.readouterr().out
    assert "random: its span head is fresh" in shown and "first: its span head is kept" in shown
    assert record(tmp_path / "out", "qa")["model"] == str(base / "random")
    first = record(tmp_path / "out" / "first", "qa")
    assert first["data"] == "other" and first["config"]["epochs"] == 1


def test_rows_of_questions_with_a_misplaced_answer(base, tmp_path, capsys):
    """Plain ids of one stem are questions of their own; the option is a matter of the command."""
    rows = [
        {"id": f"q_{i}", "context": f"Gout is {i} .", "question": f"Which name {i} ?",
         "answers": {"text": ["Gout"], "answer_start": [int(i == 3)]}}
        for i in range(8)
    ]  # fmt: skip
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    given = [*arguments(base, "qa"), "--train", path, "--epochs", 1, "--out", tmp_path / "out"]
    assert wrong(given) == 2
    said = capsys.readouterr().err
    assert said.startswith(f"eval.py: error: {path}: line 4.answers[0]: the answer is 'Gout', but ")
    assert "misplaced answers: 1, of 'q_3'; mend" in said and said.count("\n") == 1
    assert not (tmp_path / "out").exists()
    evaluation.main(list(map(str, [*given, "--skip-misplaced"])))
    assert f"{path}: 1 misplaced answers are left out, and 1 passages" in capsys.readouterr().out
    counts = record(tmp_path / "out", "qa")["config"]["counts"]
    assert [counts[name] for name in ("questions", "passages", "misplaced")] == [7, 7, 1]


def test_a_teacher_on_the_same_task(tuned, tmp_path, capsys):
    student = make_encoder(tmp_path / "student", make_tokenizer(), L=1, C=40, H=5)
    given = [*arguments(tuned, "relation"), "--model", student, "--teacher",
             tuned / "tuned-relation", "--method", "tiny", "--epochs", 1,
             "--out", tmp_path / "out"]  # fmt: skip
    evaluation.main(list(map(str, given)))
    shown = capsys.readouterr().out
    assert "soft " in shown and "layers " in shown and "method           tiny" in shown
    kept = record(tmp_path / "out", "relation")
    assert kept["config"]["method"] == "tiny" and kept["teacher"].endswith("tuned-relation")


# the directories in other hands


def test_transformers_reads_the_directories_without_a_word(tuned):
    import transformers

    names = {"ner": "TokenClassification", "relation": "SequenceClassification",
             "qa": "QuestionAnswering"}  # fmt: skip
    for task, name in names.items():
        cls = getattr(transformers, f"AutoModelFor{name}")
        model, info = cls.from_pretrained(tuned / f"tuned-{task}", output_loading_info=True)
        assert not any(info.values()), info
        labels = record(tuned / f"tuned-{task}", task)["config"]["labels"]
        if labels:
            assert model.config.id2label == dict(enumerate(labels))
        assert not transformers.AutoTokenizer.from_pretrained(tuned / f"tuned-{task}").do_lower_case


def pipeline(task, directory):
    import transformers

    return transformers.pipeline(task, str(directory), device="cpu")


def test_pipelines_find_the_same_names(tuned):
    texts = ["The patient had Gout and a sign of Colic disorder", "no sign of acute Sepsis then"]
    pipe = pipeline("token-classification", tuned / "tuned-ner")
    predictor = Predictor(tuned / "tuned-ner", precision="fp32")
    n = 0
    for text, ours in zip(texts, predictor([Document(text) for text in texts]), strict=True):
        theirs = pipe(text, aggregation_strategy="first")
        want = [(x["entity_group"], x["start"], x["end"]) for x in theirs]
        assert [(e["type"], e["start"], e["end"]) for e in ours["entities"]] == want
        n += len(want)
    assert n >= 3


def test_transformers_groups_the_names_of_an_untyped_set(tmp_path):
    """B and I alone would be two types to it, and each word an entity."""
    tokenizer, words = make_tokenizer(), "had acute Gout disorder and then a Colic".split()
    (tmp_path / "set").mkdir()
    tags = dict(zip(words, "O O B I O O O B".split(), strict=True))
    text = "".join(f"{word}\t{tag}\n" for word, tag in tags.items())
    for name in ("train", "test"):
        (tmp_path / "set" / f"{name}.tsv").write_text(f"{text}\n" * 8, "utf-8")
    model = make_encoder(tmp_path / "random", tokenizer)
    given = ["--model", model, "--data", tmp_path / "set", *FAST, "--epochs", 60]
    evaluation.main(["ner", *map(str, given), "--type", "Disease", "--out", str(tmp_path / "out")])
    pipe, text = pipeline("token-classification", tmp_path / "out"), " ".join(words)
    found = pipe(text, aggregation_strategy="first")
    assert [(x["entity_group"], text[x["start"] : x["end"]]) for x in found] == [
        ("Disease", "Gout disorder"), ("Disease", "Colic")
    ]  # fmt: skip
    # by pieces too, no word but the names' is in a group, and none is of the type B or I
    simple = pipe(text, aggregation_strategy="simple")
    assert {x["entity_group"] for x in simple} == {"Disease"}
    spans = {i for x in simple for i in range(x["start"], x["end"]) if text[i] != " "}
    assert "".join(text[i] for i in sorted(spans)) == "GoutdisorderColic"


def test_pipelines_give_the_same_label(tuned):
    lines = (tuned / "chemprot" / "test.jsonl").read_text("utf-8").splitlines()[:4]
    texts = [json.loads(line)["text"] for line in lines]
    pipe = pipeline("text-classification", tuned / "tuned-relation")
    items = [Pair(t, x, x.spans) for t, x in map(marked, texts)]
    predictor = Predictor(tuned / "tuned-relation", precision="fp32")
    for ours, theirs in zip(predictor(items), pipe(texts), strict=True):
        assert ours["label"] == theirs["label"]
        assert ours["probability"] == pytest.approx(theirs["score"], abs=1e-4)


def marked(text):
    from minibio.tasks import relation

    return text, relation.marked(text)


def test_question_answering_with_transformers_gives_the_same_answer(tuned):
    """By the model only: transformers 5 has no pipeline for it any more."""
    import transformers

    paragraphs = json.loads((tuned / "qa" / "test.json").read_text("utf-8"))["data"][0][
        "paragraphs"
    ]
    model = transformers.AutoModelForQuestionAnswering.from_pretrained(tuned / "tuned-qa")
    tokens = transformers.AutoTokenizer.from_pretrained(tuned / "tuned-qa")
    predictor = Predictor(tuned / "tuned-qa", precision="fp32")
    for paragraph in paragraphs[:4]:
        question, context = paragraph["qas"][0]["question"], paragraph["context"]
        (ours,) = predictor([Question(question, [context])])
        best = ours["answers"][0]
        inputs = tokens(question, context, return_tensors="pt", return_offsets_mapping=True)
        spans, second = inputs.pop("offset_mapping")[0], inputs.token_type_ids[0] == 1
        with torch.no_grad():
            out = model(**inputs)
        first, last = out.start_logits[0], out.end_logits[0]
        places = [i for i in torch.nonzero(second)[:-1, 0].tolist()]
        pairs = [(i, j) for i in places for j in places if i <= j]
        i, j = max(pairs, key=lambda p: (first[p[0]] + last[p[1]]).item())
        # an answer of ours ends with a word, so that it may be a few pieces longer
        assert best["start"] <= spans[i][0] and spans[j][1] <= best["end"]


def test_predictions_on_the_command_line(tuned, tmp_path, capsys):
    (tmp_path / "text").write_text("The patient had Gout\nno sign\n", "utf-8")
    given = ["predict", str(tuned / "tuned-ner"), str(tmp_path / "text"), "--device", "cpu"]
    evaluation.main(given)
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [x["text"] for x in lines] == ["The patient had Gout", "no sign"]
    (entity,) = lines[0]["entities"]
    assert 1 / 5 < entity["probability"] <= 1  # of five tags
    assert entity | {"probability": 0} == {
        "type": "joint", "start": 16, "end": 20, "text": "Gout", "probability": 0,
    }  # fmt: skip
    with pytest.raises(InputError, match="text is what is read; name another place"):
        evaluation.main([*given, "--out", str(tmp_path / "text")])
    assert (tmp_path / "text").read_text("utf-8").startswith("The patient")
    evaluation.main([*given, "--out", str(tmp_path / "out.jsonl")])
    assert [
        json.loads(x) for x in (tmp_path / "out.jsonl").read_text("utf-8").splitlines()
    ] == lines


def test_predictions_are_made_without_pytorchs_compiler(tuned, tmp_path):
    """Importing it takes as long as all else before the first prediction."""
    (tmp_path / "text").write_text("Acute febrile illness .\n")
    code = (
        "import sys, eval\n"
        "eval.main(sys.argv[1:])\n"
        "assert not {'torch._dynamo', 'sympy'} & set(sys.modules)"
    )
    given = ["predict", tuned / "tuned-ner", tmp_path / "text", "--device", "cpu"]
    done = subprocess.run([sys.executable, "-c", code, *given], cwd=ROOT,
                          capture_output=True, text=True)  # fmt: skip
    assert done.returncode == 0 and done.stdout.startswith("{"), done


@pytest.mark.slow
@pytest.mark.parametrize("family", ["distilbert", "mobilebert"])
def test_other_families(family, base, tmp_path):
    for task in ("ner", "relation", "qa"):
        model = tmp_path / f"{family}-{task}"
        make_encoder(model, make_tokenizer(), family=family)
        given = [*arguments(base, task), "--model", model, "--epochs", 1, "--out",
                 tmp_path / task]  # fmt: skip
        evaluation.main(list(map(str, given)))
        assert minibio.load(tmp_path / task, head=record(tmp_path / task, task)["config"]["task"]
                            .replace("ner", "token").replace("relation", "sequence")
                            .replace("qa", "span"))  # fmt: skip


# what is refused


def wrong(arguments):
    """The command's one line and exit status."""
    with pytest.raises(SystemExit) as leaving:
        errors.run(partial(evaluation.main, [str(x) for x in arguments]), "eval.py")
    return leaving.value.code


def test_every_wrong_file_is_one_line_and_status_2(base, tuned, tmp_path, capsys):
    sets = {"ner": "ner", "relation": "chemprot", "qa": "qa"}
    damage = [
        ("ner", "train.tsv", b"a\tO\n\nb\tX\n", "train.tsv: line 3"),
        ("ner", "test.tsv", b"a\tO\nb\n", "test.tsv: line 2"),
        ("ner", "devel.tsv", b"a\tO\n\xff\tO\n", "devel.tsv: line 2"),
        ("relation", "train.jsonl", b'{"text": "<< a >> [[ b ]]", "label": "x"}\n{}\n',
         "train.jsonl: line 2"),
        ("relation", "test.jsonl", b"no marks\tx\n", "test.jsonl: line 1"),
        ("qa", "train.json", b'{"data":\n [{"paragraphs": 3}]}', "train.json: data[0]: "),
        ("qa", "test.json", b'{"data": [\n', "test.json: line 2"),
        ("qa", "golden.json", b'{"questions": [{"id": "a",\n "type": "factoid"}]}',
         "golden.json: questions[0]: "),
    ]  # fmt: skip
    for task, name, text, place in damage:
        path = base / sets[task] / name
        whole = path.read_bytes()
        path.write_bytes(text)
        try:
            status = wrong([*arguments(base, task), "--out", tmp_path / "out"])
        finally:
            path.write_bytes(whole)
        said = capsys.readouterr().err
        assert status == 2 and said.count("\n") == 1 and place in said, (status, said)
        assert said.startswith("eval.py: error: ") and not (tmp_path / "out").exists()
    (tmp_path / "text").write_bytes(b"a\n\xff\n")
    assert wrong(["predict", tuned / "tuned-ner", tmp_path / "text", "--device", "cpu"]) == 2
    assert "text: line 2, byte 1" in capsys.readouterr().err


def test_bad_options(base, tuned, tmp_path, capsys):
    ner, out = arguments(base, "ner"), ["--out", tmp_path / "out"]

    def refused(message, *given):
        assert wrong(given) == 2
        said = capsys.readouterr().err
        assert message in said and said.count("\n") == 1, said

    refused("name another --out or pass --overwrite", *ner, "--out", tuned / "tuned-qa")
    refused("--alpha needs --teacher DIR", *ner, *out, "--alpha", "1,2,3")
    refused("fine-tuned for ner", *ner, *out, "--teacher", tuned / "tuned-qa")
    refused("has no folds", *arguments(base, "relation"), *out, "--fold", "all")
    refused("--device is 'tpu'", *ner, *out, "--device", "tpu")
    (tmp_path / "file").write_text("")
    refused("cannot write", *ner, "--out", tmp_path / "file" / "out")
    refused("were skipped; lower --lr", *ner, "--out", tmp_path / "far", "--lr", "1e30",
            "--epochs", "3")  # fmt: skip
    assert not (tmp_path / "out").exists() and not (tmp_path / "far" / "config.json").exists()
    refused("--seed is -1, expected at least 0", *ner, "--seed", "-1")
    refused("--epochs is 0, expected at least 1", *ner, "--epochs", "0")
    refused("--lr: invalid FLOAT value: 'fast'", *ner, "--lr", "fast")
    refused("--alpha: invalid FLOAT,FLOAT,... value: '1,x'", *ner, "--alpha", "1,x")
    refused("--scheme: invalid choice: 'BIO'", *ner, "--scheme", "BIO")
    gad = [*arguments(base, "relation"), *out, "--data", write_gad(tmp_path / "gad")]
    with open(tmp_path / "gad/train.tsv", "a", encoding="utf-8") as file:
        file.write("No mark.\t1\n")
    refused("line 81 marks no two entities", *gad)
    refused("--negative 2: the labels are 0, 1", *gad, "--skip-unmarked", "--negative", "2")
    refused("--columns: 'word,pos,tag', expected word and tag, _ for", *ner, "--columns",
            "word,pos,tag")  # fmt: skip
    refused("--columns: 'word', expected word and tag, _ for", "score", tuned / "tuned-ner",
            "--data", base, "--columns", "word")  # fmt: skip
    refused("of 2 columns, expected 3: word,_,tag", *ner, *out, "--columns", "word,_,tag")
    refused("--early-stopping: invalid positive value: '0'", *ner, "--early-stopping", "0")
    refused("--out: it is empty, expected a path", *ner, "--out", "")
    refused(f"--out {base / 'ner'} is the directory of --data", *ner, "--out", base / "ner")
    refused("is the directory of --model", *ner, "--out", base / "random", "--overwrite")
    refused("--threads: 1025, expected 1 to 1024", *ner, "--threads", "1025")
    refused("--type: 'a b', expected a word: Disease", *ner, "--type", "a b")
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    refused("--data", *ner, *out, "--data", tmp_path / "loop")
    refused("--max-seq-length is --length here", *ner, "--max-seq-length", "128")
    refused("did you mean --epochs?", *ner, "--num-train-epochs", "3")
    refused("--splti is not an option; did you mean --split?", *arguments(base, "relation"),
            "--splti")  # fmt: skip


def test_options_are_answered_before_torch_is_imported(base):
    code = (
        "import sys, runpy; sys.modules['torch'] = None; sys.argv = {given}\n"
        "runpy.run_path('eval.py', run_name='__main__')"
    )
    for given, status, message in [
        (["--help"], 0, "Tables 1 to 6"),
        (["ner", "--help"], 0, "--early-stopping"),
        ([*arguments(base, "qa"), "--epochs", "0"], 2, "--epochs is 0"),
    ]:
        done = subprocess.run([sys.executable, "-c", code.format(given=["eval.py", *given])],
                              cwd=ROOT, capture_output=True, text=True)  # fmt: skip
        assert done.returncode == status and message in done.stdout + done.stderr, done


def test_the_commands_of_the_pages_are_understood():
    pages = [ROOT / "README.md", *(ROOT / "minibio").rglob("README.md")]
    text = "\n".join(page.read_text("utf-8") for page in pages).replace("\\\n", " ")
    lines = re.findall(r"^python eval\.py ([^`\n#>]*)", text, re.MULTILINE)
    parsed = (evaluation.parser(words[0]).parse_args(words) for words in map(str.split, lines))
    seen = {args.command for args in parsed}
    assert seen == {"ner", "relation", "qa", "predict", "score", "table", "compare", "speed"}


def test_a_model_of_the_hub_is_named_with_the_command_that_fetches_it(base, capsys):
    data = ["--data", base / "ner"]
    for name, command in (
        ("bert-base-uncased", "hf download bert-base-uncased --local-dir bert-base-uncased"),
        (
            "biobert-base-cased-v1.2",
            "python -m data.fetch biobert fetches it into downloads/biobert",
        ),
    ):
        assert wrong(["ner", "--model", name, *data]) == 2
        line = f"eval.py: error: --model {name} is not a directory; "
        said = capsys.readouterr().err
        assert said.startswith(line) and said.endswith(f"{command}\n") and said.count("\n") == 1
    assert wrong(["compare", "google/mobilebert-uncased"]) == 2
    assert "python -m data.fetch starts fetches it into" in capsys.readouterr().err


def test_the_default_place(base, monkeypatch, tmp_path):
    """runs/TASK-DATA-MODEL."""
    monkeypatch.chdir(tmp_path)
    evaluation.main([*arguments(base, "ner"), "--epochs", "1"])
    assert (tmp_path / "runs" / "ner-ner-random" / "ner.json").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("ner --model m --data d --seeds 0 0", "--seeds has one twice: 0 0"),
        (f"ner --model m --data d --seeds 0 {2**64}", f"--seeds: {2**64}, expected at most"),
        ("relation --model m --data d --fold all --split", "--split draws its own test set"),
        ("relation --model m --data d --fold 2 --split", "drop --fold or --split"),
    ],
)
def test_runs_that_would_be_one_run_counted_twice_are_refused(options, message):
    with pytest.raises(InputError) as caught:
        evaluation.read(options.split())
    assert message in str(caught.value)
