"""Fine-tuning end to end at toy size: what is learnt, what is written, what is refused."""

import json
import math
import os
import random
import re
import subprocess
import sys
from functools import partial

import numpy as np
import pytest
import torch

import eval as evaluation
import minibio
from data.shard import shard
from helpers import ROOT, assert_near, tiny_config
from minibio import errors, log
from minibio.corpus import Corpus
from minibio.dist import Ranks
from minibio.errors import InputError
from minibio.heads import Model
from minibio.tasks import ner
from minibio.tokenizer import Tokenizer

DISEASES = ["Ulcer", "Sepsis", "Gout", "Colic"]
KINDS = ["disorder", "syndrome"]
FILLERS = ["The", "patient", "had", "no", "sign", "of", "acute", "and", "then", "a"]
V = 90  # few enough that most words are cut into several pieces
FAST = ["--epochs", "3", "--lr", "3e-3", "--batch", "8", "--threads", "1", "--device", "cpu"]


def sentence(rng, is_typed=False):
    """Fillers with entities of one or two words in between: (words, tags)."""
    words, tags = [], []
    for _ in range(rng.randint(1, 4)):
        fill = rng.choices(FILLERS, k=rng.randint(1, 4))
        name = [rng.choice(DISEASES), *rng.sample(KINDS, k=rng.randint(0, 1))]
        kind = f"-{'long' if len(name) > 1 else 'short'}" if is_typed else ""
        words += fill + name
        tags += ["O"] * len(fill) + [f"B{kind}", f"I{kind}"][: len(name)]
    return words, tags


def write_set(directory, n=(120, 20, 30), is_typed=False, seed=0):
    rng = random.Random(seed)
    directory.mkdir()
    for name, count in zip(("train", "devel", "test"), n, strict=True):
        blocks = [
            "".join(f"{w}\t{t}\n" for w, t in zip(*sentence(rng, is_typed), strict=True))
            for _ in range(count)
        ]
        (directory / f"{name}.tsv").write_text("\n".join(blocks), "utf-8")
    return directory


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_set(tmp_path_factory.mktemp("sets") / "toy")


@pytest.fixture(scope="module")
def tokenizer():
    return Tokenizer.train([" ".join(FILLERS + DISEASES + KINDS)] * 3, V)


@pytest.fixture(scope="module")
def encoder(tmp_path_factory, tokenizer):
    """A random masked-LM model, as train.py leaves one."""
    path = tmp_path_factory.mktemp("models") / "random"
    torch.manual_seed(1)
    minibio.save(Model(tiny_config("bert", V=tokenizer.V)), tokenizer, path)
    return path


def run(model, data, out, *options):
    evaluation.main(["ner", "--model", str(model), "--data", str(data), "--out", str(out),
                     *FAST, *options])  # fmt: skip
    return json.loads((out / "ner.json").read_text("utf-8"))


@pytest.fixture(scope="module")
def tuned(encoder, data, tmp_path_factory):
    out = tmp_path_factory.mktemp("out") / "ner"
    run(encoder, data, out)
    return out


def weights(directory):
    return (directory / "model.safetensors").read_bytes()


# what comes out


def test_it_learns_and_says_so(tuned, data, encoder, capsys, tmp_path):
    record = run(encoder, data, tmp_path / "again")
    shown = capsys.readouterr().out
    word, piece = record["test"]["word"], record["test"]["piece"]
    assert word["f1"] > 0.7
    assert f"{100 * word['f1']:.2f}" in shown and f"{100 * piece['f1']:.2f}" in shown
    test = ner.read_tsv(data / "test.tsv")
    assert word["support"] == sum(tag == "B" for s in test for tag in s.tags)
    assert piece["support"] > word["support"]  # every piece of a B is one more
    assert record["labels"] == ["O", "B", "I"]
    assert record["counts"]["test"]["sentences"] == 30 and record["config"]["epochs"] == 3
    assert record["seconds"] > 0 and record["versions"]["torch"] == torch.__version__
    assert sorted(p.name for p in tuned.iterdir()) == sorted(
        p.name for p in (tmp_path / "again").iterdir()
    )


def test_the_log_has_a_line_an_epoch(tuned):
    events = [json.loads(x) for x in (tuned / "log.jsonl").read_text("utf-8").splitlines()]
    assert [e["event"] for e in events] == ["start", "epoch", "epoch", "epoch", "end"]
    losses = [e["loss"] for e in events[1:4]]
    assert losses[2] < losses[0] / 2
    assert events[3]["step"] == 3 * math.ceil(120 / 8)
    assert 0 <= events[1]["devel_word_f1"] <= events[3]["devel_word_f1"] <= 1


def test_scores_are_those_of_the_directory_that_was_saved(tuned, data):
    model, tokenizer = minibio.load(tuned, head="token")
    sentences = ner.read_tsv(data / "test.tsv")
    windows = ner.make_windows(sentences, tokenizer, model.config.P)
    recipe = evaluation.Recipe()
    scores = evaluation.score(model, windows, sentences, recipe, torch.device("cpu"))
    assert scores == json.loads((tuned / "ner.json").read_text("utf-8"))["test"]
    assert model.labels == ("O", "B", "I") and tokenizer.cased


def test_transformers_loads_the_directory(tuned, data):
    import transformers

    model, info = transformers.AutoModelForTokenClassification.from_pretrained(
        tuned, output_loading_info=True
    )
    assert not any(info.values()), info
    assert model.config.id2label == {0: "O", 1: "B", 2: "I"}
    tokens = transformers.AutoTokenizer.from_pretrained(tuned)
    text = "The patient had Gout and Colic"
    ours, tokenizer = minibio.load(tuned, head="token")
    batch = minibio.Batch.from_sequences([tokenizer.encode(text)])
    inputs = tokens(text, return_tensors="pt")
    assert inputs["input_ids"][0].tolist() == batch.tokens.tolist()
    with torch.no_grad():
        want, got = model(**inputs).logits[0], ours(batch).logits
    assert (got - want).abs().max() < 2e-5 * max(1, want.abs().max())


def test_typed_entities(encoder, tmp_path, capsys):
    data = write_set(tmp_path / "typed", is_typed=True)
    record = run(encoder, data, tmp_path / "out")
    assert record["labels"] == ["O", "B-long", "B-short", "I-long"]
    assert set(record["test"]["word"]["per_type"]) == {"long", "short"}
    shown = capsys.readouterr().out
    assert re.search(r"\|   long +\|", shown) and re.search(r"\|   short +\|", shown)


@pytest.mark.parametrize("family", ["distilbert", "mobilebert"])
def test_other_families(family, tokenizer, data, tmp_path):
    minibio.save(Model(tiny_config(family, V=tokenizer.V)), tokenizer, tmp_path / family)
    record = run(tmp_path / family, data, tmp_path / "out", "--epochs", "1")
    assert 0 <= record["test"]["word"]["f1"] <= 1


# how it is learnt


def test_one_seed_gives_the_same_bytes_whatever_the_hash_seed(tuned, encoder, data, tmp_path):
    out = tmp_path / "out"
    given = ["--model", encoder, "--data", data, "--out", out, *FAST]
    done = subprocess.run([sys.executable, "eval.py", "ner", *map(str, given)], cwd=ROOT,
                          env={**os.environ, "PYTHONHASHSEED": "1"}, capture_output=True,
                          text=True)  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")
    names = sorted(path.name for path in tuned.iterdir())
    assert names == sorted(path.name for path in out.iterdir())
    for name in set(names) - {"log.jsonl", "ner.json"}:
        assert (out / name).read_bytes() == (tuned / name).read_bytes(), name
    got, want = (json.loads((x / "ner.json").read_text("utf-8")) for x in (out, tuned))
    assert {**got, "seconds": 0} == {**want, "seconds": 0}


def test_the_recipe_by_hand(tokenizer, data, tmp_path):
    """AdamW, cosine from the peak to 0 without warm-up, decay on matrices alone, clipped to 1."""
    config = tiny_config("bert", V=tokenizer.V, dropout=0.0, attention_dropout=0.0)
    source = Model(config)
    minibio.save(source, tokenizer, tmp_path / "model")
    run(tmp_path / "model", data, tmp_path / "out", "--epochs", "2", "--seed", "5", "--lr", "1e-2")
    torch.manual_seed(5)
    model = Model(config, "token", ["O", "B", "I"])
    model.encoder = source.encoder
    windows = ner.make_windows(ner.read_tsv(data / "train.tsv"), tokenizer, config.P)
    steps = [
        [windows[i] for i in part]
        for epoch in range(2)
        for part in np.array_split(
            np.random.Generator(np.random.Philox(key=[5, epoch])).permutation(120), 120 / 8
        )
    ]
    matrices = [p for p in model.parameters() if p.dim() > 1]
    others = [p for p in model.parameters() if p.dim() == 1]
    adam = torch.optim.AdamW([{"params": matrices, "weight_decay": 0.01},
                              {"params": others, "weight_decay": 0.0}])  # fmt: skip
    norms = []
    for step, chosen in enumerate(steps):
        rows = []
        for window in chosen:  # one after the other: pieces between [CLS] and [SEP]
            logits = model(minibio.Batch.from_sequences([window.tokens])).logits[1:-1]
            truth = torch.tensor(["OBI".index(tag) for tag in window.tags])
            rows.append(-logits.log_softmax(1)[torch.arange(len(truth)), truth])
        adam.zero_grad()
        torch.cat(rows).mean().backward()
        norms.append(torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0).item())
        for group in adam.param_groups:
            group["lr"] = 1e-2 * (1 + math.cos(math.pi * step / len(steps))) / 2
        adam.step()
    assert max(norms) > 1  # something was clipped
    got, _ = minibio.load(tmp_path / "out", head="token")
    for (name, a), b in zip(got.named_parameters(), model.parameters(), strict=True):
        if not name.endswith("key.bias"):  # its gradient is 0 but for rounding, which Adam blows up
            assert_near(name, a, b, 1e-3)  # measured 6e-5 after these 30 steps


def test_dropout_follows_from_the_seed(encoder, data):
    recipe, device = evaluation.Recipe(epochs=1), torch.device("cpu")
    sums = []
    for n in (0, 1):
        model, tokenizer = evaluation.start_from(encoder, ("O", "B", "I"), 0)
        windows = ner.make_windows(ner.read_tsv(data / "devel.tsv"), tokenizer, 40)
        torch.rand(n)  # whatever else was drawn meanwhile
        with log.RunLog(os.devnull, Ranks(0, 0, 1, device)) as journal:
            evaluation.fine_tune(model, windows, recipe, device, journal, dict)
        sums.append([p.sum().item() for p in model.parameters()])
    assert sums[0] == sums[1]


def test_another_seed_gives_another_model(tuned, encoder, data, tmp_path):
    run(encoder, data, tmp_path / "out", "--seed", "1")
    assert weights(tmp_path / "out") != weights(tuned)


def test_nothing_is_chosen_on_devel_or_test(tuned, encoder, data, tmp_path):
    other = write_set(tmp_path / "other", n=(1, 3, 5), seed=9)
    (other / "train.tsv").write_bytes((data / "train.tsv").read_bytes())
    run(encoder, other, tmp_path / "out")
    assert weights(tmp_path / "out") == weights(tuned)
    (other / "devel.tsv").unlink()
    run(encoder, other, tmp_path / "without")
    assert weights(tmp_path / "without") == weights(tuned)


def test_sentences_longer_than_the_windows_are_scored_whole(encoder, data, tmp_path):
    record = run(encoder, data, tmp_path / "out", "--length", "12")
    counts = record["counts"]["test"]
    assert counts["windows"] > counts["sentences"] == 30
    test = ner.read_tsv(data / "test.tsv")
    assert record["test"]["word"]["support"] == sum(tag == "B" for s in test for tag in s.tags)
    assert counts["words"] == sum(len(s.words) for s in test)
    assert record["test"]["word"]["f1"] > 0.5


def test_windows_are_no_longer_than_the_model(encoder, data, tmp_path):
    record = run(encoder, data, tmp_path / "out", "--epochs", "1", "--length", "512")
    assert record["config"]["length"] == 40  # its positions


def test_half_precision(tuned, encoder, data, tmp_path):
    record = run(encoder, data, tmp_path / "out", "--precision", "bf16")
    assert weights(tmp_path / "out") != weights(tuned)
    assert record["test"]["word"]["f1"] > 0.7


def test_tags_that_training_lacks_count_as_missed(encoder, data, tmp_path, capsys):
    other = write_set(tmp_path / "other")
    text = "\n\n".join(f"{w}\tB" for w in FILLERS)
    (other / "train.tsv").write_text(text, "utf-8")  # no O but the implied one, no I
    record = run(encoder, other, tmp_path / "out", "--epochs", "1")
    assert record["labels"] == ["O", "B"]
    assert "test.tsv has tags that train.tsv lacks, which count as missed: ['I']" in (
        capsys.readouterr().out
    )
    assert record["test"]["word"]["f1"] < 1


# what is refused


def refused(message, *arguments):
    with pytest.raises(InputError, match=message) as error:
        evaluation.main([*map(str, arguments), "--device", "cpu"])
    assert "\n" not in str(error.value)


def test_bad_sets(encoder, data, tmp_path):
    def broken(name, text, message):
        directory = tmp_path / str(len(list(tmp_path.iterdir())))
        directory.mkdir()
        for file in data.iterdir():
            (directory / file.name).write_bytes(file.read_bytes())
        if text is None:
            (directory / name).unlink()
        else:
            (directory / name).write_text(text, "utf-8")
        refused(message, "ner", "--model", encoder, "--data", directory, "--out", tmp_path / "out")
        assert not (tmp_path / "out").exists()

    broken("train.tsv", None, r"train\.tsv: No such file")
    broken("test.tsv", None, r"test\.tsv: No such file")
    broken("test.tsv", "a\tO\nb\n", r"test\.tsv: line 2 is 'b', expected token TAB tag")
    broken("devel.tsv", "a\tO\nb\tQ\n", r"devel\.tsv: line 2 has the tag 'Q'")
    broken("train.tsv", "a\tO\n", r"train\.tsv tags no entity")
    broken("test.tsv", "a\tB-x\n", r"test\.tsv has the tag 'B-x', train\.tsv 'B'")


def test_bad_models(encoder, data, tokenizer, tmp_path):
    out = tmp_path / "out"

    def model(name, tokenizer, **changes):
        torch.manual_seed(1)
        built = Model(tiny_config("bert", **changes))
        minibio.save(built, tokenizer, tmp_path / name)
        return tmp_path / name

    def broken(path, message):
        refused(message, "ner", "--model", path, "--data", data, "--out", out)
        assert not out.exists()

    broken(tmp_path / "nowhere", "nowhere")
    broken(model("alone", None, V=tokenizer.V), "alone has no tokenizer; put the vocab.txt")
    other = Tokenizer.train([" ".join(FILLERS)] * 3, 80)
    other.save(model("other", None, V=tokenizer.V))
    broken(tmp_path / "other", "80 .* 90")
    nan = model("nan", tokenizer, V=tokenizer.V)
    from safetensors.torch import load_file, save_file

    tensors = load_file(nan / "model.safetensors")
    next(iter(tensors.values())).flatten()[0] = float("nan")
    save_file(tensors, nan / "model.safetensors", metadata={"format": "pt"})
    broken(nan, "NaN|finite")


def test_bad_options(encoder, data, tuned, tmp_path):
    given = ("ner", "--model", encoder, "--data", data)
    refused("already holds files", *given, "--out", tuned)
    (tmp_path / "file").write_text("")
    refused("cannot write", *given, "--out", tmp_path / "file" / "out")
    refused("--length is 2, expected at least 3", *given, "--out", tmp_path / "out", "--length", 2)
    refused("the loss is nan in epoch 1; lower --lr", *given, "--out", tmp_path / "out",
            "--lr", "1e30", "--epochs", 2)  # fmt: skip
    assert [p.name for p in tmp_path.iterdir()] == ["file"]
    for option in (("--seed", "-1"), ("--epochs", "0"), ("--batch", "0"), ("--lr", "fast")):
        with pytest.raises(SystemExit) as leaving:
            evaluation.main([*map(str, given), *option])
        assert leaving.value.code == 2


def test_without_seqeval_nothing_is_trained(encoder, data, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "seqeval.metrics", None)
    monkeypatch.setattr(evaluation, "fine_tune", None)
    given = ("--model", encoder, "--data", data, "--out", tmp_path / "out")
    refused("needs seqeval: pip install seqeval", "ner", *given)


def test_one_line_and_status_2(tmp_path, capsys):
    arguments = ["ner", "--model", str(tmp_path), "--data", str(tmp_path)]
    with pytest.raises(SystemExit) as leaving:
        errors.run(partial(evaluation.main, arguments), "eval.py")
    assert leaving.value.code == 2
    said = capsys.readouterr().err
    assert said.startswith("eval.py: error: ") and said.count("\n") == 1


def test_what_is_written_replaces_what_was_there_only_on_request(encoder, data, tmp_path):
    out = tmp_path / "out"
    run(encoder, data, out, "--epochs", "1")
    first = weights(out)
    (out / "old").write_text("")
    run(encoder, data, out, "--epochs", "1", "--seed", "2", "--overwrite")
    assert weights(out) != first and not (out / "old").exists()


# side by side


@pytest.fixture(scope="module")
def runs(tmp_path_factory, tokenizer):
    """Two runs as train.py leaves them, and the shards they name."""
    base = tmp_path_factory.mktemp("runs")
    rng = random.Random(0)
    text = [" ".join(sentence(rng)[0]) for _ in range(150)]
    (base / "text.txt").write_text("\n".join(text), "utf-8")
    shard([base / "text.txt"], tokenizer, base / "shards", length=30, held_out=0.3, progress=False)
    for seed, name in enumerate(("teacher", "student")):
        torch.manual_seed(seed)
        config = tiny_config("bert", V=tokenizer.V, L=2 - seed)
        minibio.save(Model(config), tokenizer, base / name)
        record = {"method": ["mlm", "tiny"][seed], "corpus": str(base / "shards"), "length": 24}
        (base / name / "run.json").write_text(json.dumps(record), "utf-8")
    return base


@pytest.fixture(scope="module")
def tuned_runs(runs, data):
    for name in ("teacher", "student"):
        run(runs / name, data, runs / f"{name}-ner", "--epochs", "1")
    return runs


def compare(base, out, *options):
    evaluation.main(["compare", str(base / "teacher"), str(base / "student"), "--out", str(out),
                     "--repeats", "2", "--threads", "1", "--device", "cpu", *options])  # fmt: skip
    return json.loads((out / "compare.json").read_text("utf-8"))


def test_the_table_of_runs(tuned_runs, tmp_path, capsys):
    base = tuned_runs
    got = compare(base, tmp_path, "--ner", str(base / "teacher-ner"), str(base / "student-ner"))
    corpus = Corpus(base / "shards", "held-out", seed=3, length=24)
    batches = corpus.held_out_batches(7)
    for name, row in zip(("teacher", "student"), got["rows"], strict=True):
        model, _ = minibio.load(base / name, head="mlm")
        assert row["name"] == name and row["parameters"] == model.n_parameters
        assert row["parameters_encoder"] == sum(p.numel() for p in model.encoder.parameters())
        total = M = 0
        for batch in batches:
            logits = model(batch).logits.double()
            loss = torch.nn.functional.cross_entropy(logits, batch.labels, reduction="sum")
            total, M = total + loss.item(), M + batch.M
        assert row["mlm_loss"] == pytest.approx(total / M, rel=1e-5)
        scores = json.loads((base / f"{name}-ner" / "ner.json").read_text("utf-8"))["test"]["word"]
        assert row["ner_f1"] == scores["f1"] and row["ner_precision"] == scores["precision"]
        assert row["tokens_per_s"] > 0
    assert got["documents"] == len(corpus.shards)
    text = (tmp_path / "compare.md").read_text("utf-8")
    lines = text.splitlines()
    assert len({len(line) for line in lines[:4]}) == 1 and lines[2].startswith("| teacher")
    assert text.strip() in capsys.readouterr().out


def test_a_table_without_entity_scores(runs, tmp_path):
    got = compare(runs, tmp_path, "--documents", "5")
    assert got["documents"] == 5 and "ner_f1" not in got["rows"][0]
    assert "| -" in (tmp_path / "compare.md").read_text("utf-8").replace("  ", "")


def test_tables_that_cannot_be_made(tuned_runs, encoder, tmp_path):
    base = tuned_runs
    pair = ("compare", base / "teacher", base / "student", "--out", tmp_path / "out")
    refused("1 --ner directories for 2 runs", *pair, "--ner", base / "teacher-ner")
    swapped = (base / "student-ner", base / "teacher-ner")
    refused("fine-tuned from 'student', expected 'teacher'", *pair, "--ner", *swapped)
    refused("ner.json", *pair, "--ner", base / "teacher", base / "student")
    refused("no run names a corpus", "compare", encoder, "--out", tmp_path / "out")
    refused("shards", *pair, "--corpus", tmp_path)
    (tmp_path / "file").write_text("")
    refused("cannot write", *pair[:3], "--out", tmp_path / "file" / "out")
    assert not (tmp_path / "out").exists()


def test_runs_of_different_vocabularies_are_not_compared(runs, tmp_path):
    other = Tokenizer.train([" ".join(FILLERS).lower()] * 3, 90, cased=False)
    minibio.save(Model(tiny_config("bert", V=90)), other, tmp_path / "other")
    refused("another vocabulary", "compare", runs / "teacher", tmp_path / "other",
            "--out", tmp_path / "out")  # fmt: skip
