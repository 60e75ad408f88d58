"""The training loop from its command line: whole runs of a few steps, and what it refuses."""

import dataclasses
import json
import os
import re
import shutil
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file, save_file

import train
from data.shard.shard import shard
from helpers import ROOT
from minibio.config import CHECKPOINTS, METHODS
from minibio.distil import plan
from minibio.model.convert import load
from minibio.report import results
from minibio.run import errors

SMALL = ["--layers", "2", "--width", "24", "--heads", "2", "--ffn", "32"]
SHORT = ["--steps", "4", "--batch", "4", "--length", "24", "--log-every", "2", "--eval-every", "2",
         "--precision", "fp32"]  # fmt: skip
WORDS = "the gene protein of in tumour BRCA1 p53 inhibits binds aspirin fever acute chronic".split()


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    """Token shards of 80 documents with a vocabulary of their own."""
    directory = tmp_path_factory.mktemp("corpus")
    rng = torch.Generator().manual_seed(1)
    lines = []
    for _ in range(80):
        n = int(torch.randint(4, 30, (1,), generator=rng))
        picks = torch.randint(len(WORDS), (n,), generator=rng).tolist()
        lines.append(" ".join(WORDS[i] for i in picks) + " .")
    (directory / "text.txt").write_text("\n".join(lines) + "\n")
    shard([directory / "text.txt"], None, directory / "shards", length=24, held_out=0.1,
          train_tokenizer=90, progress=False)  # fmt: skip
    return directory / "shards"


@pytest.fixture(scope="module")
def teacher(corpus, tmp_path_factory):
    """A directory with a teacher of 4 layers."""
    out = tmp_path_factory.mktemp("teacher") / "out"
    train.main(["--method", "mlm", "--model", "sample-teacher", "--corpus", str(corpus), "--out",
                str(out), *SMALL, "--layers", "4", *SHORT, "--lr", "1e-3"])  # fmt: skip
    return out


def run(corpus, out, *options, method="tiny", model="sample-tiny"):
    train.main(["--method", method, "--model", model, "--corpus", str(corpus), "--out", str(out),
                *SMALL, *SHORT, *map(str, options)])  # fmt: skip
    return [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]


def refused(capsys, *options):
    """Run the command as its user does; exit status 2 and one line, which is returned."""
    with pytest.raises(SystemExit) as stop:
        errors.run(lambda: train.main(list(map(str, options))), "train.py")
    assert stop.value.code == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1 and lines[0].startswith("train.py: error: "), lines
    return lines[0]


def test_the_figures_kept_of_shards_and_of_a_run(corpus, teacher):
    assert results.figures(corpus) == {}
    found = results.figures(teacher)
    log = [json.loads(line) for line in (teacher / "log.jsonl").read_text().splitlines()]
    losses = [x["mlm_loss"] for x in log if x["event"] == "held_out"]
    assert found["held_out_loss"] == losses[-1] and found["tokens"] > 0
    assert found["parameters"] == sum(x.numel() for x in load(teacher, head="mlm")[0].parameters())


def test_mlm_leaves_a_hugging_face_directory_with_log_and_card(teacher):
    model, tokenizer = load(teacher, head="mlm")
    assert model.config.L == 4 and model.config.V == tokenizer.V
    log = [json.loads(line) for line in (teacher / "log.jsonl").read_text().splitlines()]
    assert [x["step"] for x in log if x["event"] == "train"] == [1, 2, 4]
    assert [x["step"] for x in log if x["event"] == "held_out"] == [0, 2, 4]
    for x in log:
        if x["event"] == "train":
            assert x["loss"] == x["mlm"] and x["tokens_per_s"] > 0 and x["grad_norm"] > 0
    record = json.loads((teacher / "run.json").read_text())
    assert record["held_out"]["mlm_loss"] == log[-2]["mlm_loss"]
    card = (teacher / "README.md").read_text()
    assert f"{record['parameters']:,} parameters" in card and "minibio.load" in card


@pytest.mark.parametrize(
    ("method", "options", "terms"),
    [
        ("distil", ["--init-layers", "0,2"], {"mlm", "soft", "align"}),
        ("tiny", ["--width", 12], {"embed", "layers", "output"}),
        ("tiny", ["--fidelity", "released"], {"embed", "layers", "output"}),
        ("compact", ["--init-layers", "1,3"], {"mlm", "soft", "layers"}),
    ],
)
def test_methods_run_from_a_teacher(corpus, teacher, tmp_path, method, options, terms):
    log = run(corpus, tmp_path / "out", "--teacher", teacher, *options, method=method)
    last = next(x for x in reversed(log) if x["event"] == "train")
    assert terms <= set(last) and all(last[name] > 0 for name in terms)
    load(tmp_path / "out", head="mlm")


def test_training_lowers_the_loss(corpus, tmp_path):
    log = run(corpus, tmp_path / "out", "--steps", 60, "--lr", 5e-3, "--warmup", 5, method="mlm")
    held_out = [x["mlm_loss"] for x in log if x["event"] == "held_out"]
    assert held_out[-1] < held_out[0] - 0.5


def test_the_same_seed_gives_the_same_bits(corpus, teacher, tmp_path):
    for name in ("a", "b"):
        run(corpus, tmp_path / name, "--teacher", teacher)
    a, b = (load(tmp_path / name, head="mlm")[0].state_dict() for name in "ab")
    assert all(torch.equal(x, b[name]) for name, x in a.items())
    run(corpus, tmp_path / "c", "--teacher", teacher, "--seed", 7)
    c = load(tmp_path / "c", head="mlm")[0].state_dict()
    assert not all(torch.equal(x, c[name]) for name, x in a.items())


def test_micro_batches_change_nothing(corpus, teacher, tmp_path):
    whole = run(corpus, tmp_path / "a", "--teacher", teacher)
    parts = run(corpus, tmp_path / "b", "--teacher", teacher, "--accumulate", 4)
    for x, y in zip(whole, parts, strict=True):
        if x["event"] == "train":
            assert x["loss"] == pytest.approx(y["loss"], rel=1e-5)
            assert x["grad_norm"] == pytest.approx(y["grad_norm"], rel=1e-4)


def test_a_teacher_in_bf16_teaches_the_same(corpus, teacher, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("minibio.run.precision.has_bf16_products", lambda device: True)
    wide = run(corpus, tmp_path / "a", "--teacher", teacher)
    narrow = run(corpus, tmp_path / "b", "--teacher", teacher, "--teacher-precision", "bf16")
    losses = [[x["loss"] for x in log if x["event"] == "train"] for log in (wide, narrow)]
    assert losses[0] != losses[1] and losses[0] == pytest.approx(losses[1], rel=2e-3)
    options = ("--precision", "fp64", "--teacher-precision", "bf16", "--out", tmp_path / "c")
    line = refused(capsys, "--method", "tiny", "--corpus", corpus, "--teacher", teacher, *options)
    assert "drop --teacher-precision" in line


def test_bf16_follows_fp32(corpus, teacher, tmp_path):
    wide = run(corpus, tmp_path / "a", "--teacher", teacher)
    narrow = run(corpus, tmp_path / "b", "--teacher", teacher, "--precision", "bf16")
    for x, y in zip(wide, narrow, strict=True):
        if x["event"] == "train":
            assert x["loss"] == pytest.approx(y["loss"], rel=2e-2)


@pytest.mark.parametrize(("has_it", "expected"), [(True, "bf16"), (False, "fp32")])
def test_auto_is_resolved_printed_and_kept(
    corpus, teacher, tmp_path, monkeypatch, capsys, has_it, expected
):
    """The record has what was done, not what was asked for: another machine may see otherwise."""
    monkeypatch.setattr("minibio.run.precision.has_bf16_products", lambda device: has_it)
    run(corpus, tmp_path / "a", "--teacher", teacher, "--precision", "auto")
    text = capsys.readouterr()
    assert f"precision        {expected} (auto: the " in text.out and "warning" not in text.err
    config = json.loads((tmp_path / "a" / "run.json").read_text())["config"]
    assert (config["precision"], config["teacher_precision"]) == (expected, expected)
    log = run(corpus, tmp_path / "b", "--teacher", teacher, "--precision", expected)
    assert log[-2]["mlm_loss"] == held_out_loss(tmp_path / "a")


def held_out_loss(out):
    return json.loads((out / "run.json").read_text())["held_out"]["mlm_loss"]


def test_another_machine_resumes_auto_in_its_own_precision(corpus, tmp_path, monkeypatch, capsys):
    for has_it, steps in ((True, 2), (False, 4)):
        monkeypatch.setattr("minibio.run.precision.has_bf16_products", lambda device, x=has_it: x)
        options = ["--precision", "auto", "--save-every", "2", "--steps", steps]
        if steps == 4:
            (tmp_path / "run.json").unlink()  # as if it had been killed after step 2
        run(corpus, tmp_path, *options, method="mlm")
    assert re.search(r"^ +precision +bf16 -> fp32$", capsys.readouterr().out, re.M)


def test_two_processes_agree_with_one(corpus, teacher, tmp_path):
    one = run(corpus, tmp_path / "one", "--teacher", teacher, "--device", "cpu")
    command = [
        sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2",
        "train.py", "--method", "tiny", "--model", "sample-tiny", "--corpus", corpus,
        "--teacher", teacher, "--out", tmp_path / "two", *SMALL, *SHORT, "--device", "cpu",
    ]  # fmt: skip
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    subprocess.run([*map(str, command)], cwd=ROOT, check=True, env=env, capture_output=True)
    assert (tmp_path / "two" / "loss.png").read_bytes().startswith(b"\x89PNG")
    two = [json.loads(line) for line in (tmp_path / "two" / "log.jsonl").read_text().splitlines()]
    for x, y in zip(one, two, strict=True):
        if x["event"] == "train":
            assert x["loss"] == pytest.approx(y["loss"], rel=1e-5)
            assert x["grad_norm"] == pytest.approx(y["grad_norm"], rel=1e-4)
        if x["event"] == "held_out":
            assert x["mlm_loss"] == pytest.approx(y["mlm_loss"], rel=1e-5)


@pytest.mark.parametrize(
    ("method", "name", "family"), [("tiny", "teacher", "bert"), ("mobile", "ib-teacher", "ib-bert")]
)
def test_without_a_corpus_the_sample_and_its_teacher_are_made_and_kept(
    corpus, tmp_path, monkeypatch, capsys, method, name, family
):
    (tmp_path / "sample").mkdir()
    (tmp_path / "sample" / "shards").symlink_to(corpus)  # a small sample
    small = dataclasses.replace(train.SAMPLE_TEACHERS[method], steps=2, batch=4, length=24)
    monkeypatch.setitem(train.SAMPLE_TEACHERS, method, small)
    monkeypatch.setitem(train.SAMPLE[method], "length", 24)
    # the teacher takes no option of its student's: it has no stages, and 2 steps
    staged = ["--stages", "0.5", "--init-head", "copy"] if method == "mobile" else []
    options = ["--method", method, "--sample", str(tmp_path / "sample"), "--steps", "8",
               "--batch", "4", "--seed", "3", *staged]  # fmt: skip
    train.main([*options, "--out", str(tmp_path / "a")])
    assert "there is none yet" in capsys.readouterr().out
    made = load(tmp_path / "sample" / f"{name}-3")[0].config
    assert (made.L, made.family) == (4, family)
    train.main([*options, "--out", str(tmp_path / "b")])
    assert "trained earlier" in capsys.readouterr().out


def test_measuring_is_bounded(corpus, tmp_path, monkeypatch):
    """The first documents, at the start and at the end of a short run."""
    measured = []

    def held_out(student, batches, ranks, precision):
        measured.append(sum(batch.B for batch in batches))
        return {"mlm_loss": 1.0, "accuracy": 0.5}

    monkeypatch.setattr(train, "held_out", held_out)
    run(corpus, tmp_path / "a", "--eval-every", 0, "--eval-documents", 3, method="mlm")
    assert measured == [3, 3]
    rows = {steps: plan.resolve(METHODS["mlm"], {"steps": steps}) for steps in (4, 499, 200_000)}
    assert [row.eval_every for row in rows.values()] == [50, 50, 20_000]
    assert {row.eval_documents for row in rows.values()} == {256}


def test_dry_run_trains_nothing(corpus, teacher, tmp_path, capsys):
    train.main(["--method", "tiny", "--model", "sample-tiny", "--corpus", str(corpus), "--teacher",
                str(teacher), "--out", str(tmp_path / "out"), *SMALL, *SHORT,
                "--dry-run"])  # fmt: skip
    printed = capsys.readouterr().out
    for word in ("student", "teacher", "tokens", "operations", "time", "memory"):
        assert re.search(rf"^ +{word} ", printed, re.M), word
    assert not (tmp_path / "out").exists()


def test_a_shorter_run_has_a_shorter_warm_up(corpus, tmp_path):
    log = run(corpus, tmp_path / "out", method="mlm")
    assert log[0]["steps"] == 4 and log[0]["warmup"] == 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--teacher", "TEACHER", "--width", 12, "--heads", 5], "width 12 is not a multiple of 5"),
        (["--teacher", "TEACHER", "--layers", 3], "4 layers.*--layer-map"),
        (["--teacher", "TEACHER", "--layer-map", "4,5"], r"expected 2 layers .* of 1\.\.4"),
        (["--teacher", "TEACHER", "--heads", 3], "3 heads, expected 2"),
        (["--teacher", "TEACHER", "--length", 99], "99"),
        (["--teacher", "TEACHER", "--batch", 5, "--accumulate", 2], "multiple of 2"),
        (["--teacher", "TEACHER", "--steps", 0], "--steps is 0"),
        (["--teacher", "TEACHER", "--model", "gpt"], "--model is 'gpt'"),
        (["--teacher", "nowhere"], "--teacher nowhere is not a directory"),
        ([], "needs --teacher"),
        (["--teacher", "TEACHER", "--from", "TEACHER"], "a shape of its own; drop --model"),
        (["--teacher", "TEACHER", "--device", "abacus"], "abacus"),
        (["--teacher", "TEACHER", "--init-layers", "0,4"], r"--init-layers is 0,4.*of 0\.\.3"),
        (["--teacher", "TEACHER", "--width", 12, "--init-layers", "0,1"], "--init-layers none"),
        (["--teacher", "TEACHER", "--width", 12, "--init-head", "copy"], "--init-head fresh"),
        (["--teacher", "TEACHER", "--stages"], "tiny has no stages; drop --stages"),
    ],
)
def test_bad_options_are_one_line(corpus, teacher, tmp_path, capsys, options, message):
    options = [teacher if x == "TEACHER" else x for x in options]
    line = refused(capsys, "--method", "tiny", "--model", "sample-tiny", "--corpus", corpus,
                   "--out", tmp_path / "out", *SMALL, *SHORT, *options)  # fmt: skip
    assert re.search(message, line), line
    assert not (tmp_path / "out" / "config.json").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--from", "TEACHER", "--init-layers", "0,1"], "weights of its own; drop --init-layers"),
        (["--from", "TEACHER", "--init-head", "copy"], "weights of its own; drop --init-head copy"),
        (["--init-layers", "0,1"], "--method mlm has no teacher; drop --init-layers"),
        (["--layer-map", "1,2"], "--method mlm has no teacher; drop --layer-map"),
        (["--temperature", "2"], "--method mlm has no teacher; drop --temperature"),
        (["--init-head", "copy"], "--method mlm has no teacher; drop --init-head copy"),
        (["--stages", "0.5"], "--method mlm has no stages"),
        (["--teacher", "TEACHER"], "--method mlm has no teacher; drop --teacher"),
    ],
)
def test_options_that_want_a_teacher(corpus, teacher, tmp_path, capsys, options, message):
    options = [teacher if x == "TEACHER" else x for x in options]
    line = refused(capsys, "--method", "mlm", "--corpus", corpus, "--out", tmp_path / "out", *SHORT,
                   *options)  # fmt: skip
    assert re.search(message, line), line


IB = ["--layers", "2", "--width", "40", "--heads", "2", "--ffn", "32"]


@pytest.fixture(scope="module")
def ib_teacher(corpus, tmp_path_factory):
    """A directory with an IB-BERT of 2 layers."""
    out = tmp_path_factory.mktemp("ib-teacher") / "out"
    train.main(["--method", "mlm", "--model", "sample-ib-bert", "--corpus", str(corpus), "--out",
                str(out), *IB, *SHORT, "--lr", "1e-3"])  # fmt: skip
    return out


@pytest.mark.parametrize(
    ("options", "terms"),
    [
        ([], [{"mlm", "layers"}] * 4),
        (["--fidelity", "released"], [{"mlm", "layers"}] * 4),
        # two phases of two steps, then predictions
        (["--stages", "0.5"], [{"layers"}, {"layers"}, {"mlm", "soft"}, {"mlm", "soft"}]),
    ],
)
def test_mobile_runs_from_an_ib_bert(corpus, ib_teacher, tmp_path, options, terms):
    log = run(corpus, tmp_path / "out", "--teacher", ib_teacher, *IB, "--steps", 8, *options,
              method="mobile", model="sample-mobile")  # fmt: skip
    lines = [x for x in log if x["event"] == "train" and x["step"] % 2 == 0]
    assert [x["step"] for x in lines] == [2, 4, 6, 8]
    for line, expected in zip(lines, terms, strict=True):
        assert {"mlm", "soft", "layers"} & set(line) == expected
        assert all(line[name] > 0 for name in expected)
    assert load(tmp_path / "out", head="mlm")[0].config.family == "mobilebert"


def without_head(directory, out):
    """A copy of a model's directory that lost its masked-LM head."""
    shutil.copytree(directory, out)
    weights = load_file(out / "model.safetensors")
    kept = {name: x for name, x in weights.items() if not name.startswith("cls.")}
    assert len(kept) < len(weights)
    save_file(kept, out / "model.safetensors", metadata={"format": "pt"})
    return out


@pytest.mark.parametrize("method", ["distil", "tiny", "compact"])
def test_a_teacher_without_its_head_is_refused(corpus, teacher, tmp_path, capsys, method):
    line = refused(capsys, "--method", method, "--corpus", corpus, "--teacher",
                   without_head(teacher, tmp_path / "teacher"), "--out", tmp_path / "out",
                   *SHORT)  # fmt: skip
    assert "has no masked-LM head (missing: cls.predictions" in line and method in line


def test_equation_13_takes_a_teacher_without_its_head_and_the_stages_do_not(
    corpus, ib_teacher, tmp_path, capsys
):
    headless = without_head(ib_teacher, tmp_path / "teacher")
    options = ["--teacher", headless, *IB, "--steps", 8]
    log = run(corpus, tmp_path / "a", *options, method="mobile", model="sample-mobile")
    whole = run(corpus, tmp_path / "b", "--teacher", ib_teacher, *IB, "--steps", 8,
                method="mobile", model="sample-mobile")  # fmt: skip
    losses = [[x["loss"] for x in lines if x["event"] == "train"] for lines in (log, whole)]
    assert losses[0] == losses[1]
    capsys.readouterr()
    line = refused(capsys, "--method", "mobile", "--model", "sample-mobile", "--corpus", corpus,
                   "--out", tmp_path / "out", *SHORT, *options, "--stages", "0.5")  # fmt: skip
    assert "has no masked-LM head" in line


def test_a_run_says_what_its_student_starts_from(corpus, teacher, tmp_path, capsys):
    run(corpus, tmp_path / "out", "--teacher", teacher, "--init-layers", "1,3", "--init-head",
        "copy", "--layer-map", "1,4", method="compact")  # fmt: skip
    printed = capsys.readouterr().out
    before_step_1 = printed[: printed.index("step 2/4")]
    for words in (
        "embeddings       teacher's embeddings",
        "layer 1          teacher's layer 2; compared with the teacher's layer 1",
        "layer 2          teacher's layer 4; compared with the teacher's layer 4",
        "masked-LM head   teacher's",
        "loss             1 mlm + 5 soft + 3 layers",
    ):
        assert words in before_step_1, words


def test_a_dry_run_of_the_stages_says_when_they_change(corpus, ib_teacher, tmp_path, capsys):
    train.main(["--method", "mobile", "--model", "sample-mobile", "--corpus", str(corpus),
                "--teacher", str(ib_teacher), "--out", str(tmp_path / "out"), *IB, *SHORT,
                "--stages", "0.5", "--steps", "9", "--dry-run"])  # fmt: skip
    printed = capsys.readouterr().out
    assert "stage 1          steps 1 to 4: layers 1 to 2 in turn, 2 steps each" in printed
    assert "stage 2          steps 5 to 9: predictions" in printed


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--width", 48], "48 wide, expected 40.*Eq. 12 compares"),
        (["--width", 16], "embeddings are 32 wide, expected at most 16"),
        (["--layers", 3], "--layer-map"),
        (["--layer-map", "1,3"], r"expected 2 layers .* of 1\.\.2"),
        (["--stages", "0.3"], "--stages is 0.3 of 4 steps.*2 layers"),
        (["--stages", "1"], "--stages is 1.0, expected below 1"),
        (["--stages", "0.5", "--width", 48], "48 wide.*embeddings.*no --stages"),
        (["--alpha", "1,2"], "--alpha has 2 weights, expected 1"),
    ],
)
def test_what_mobile_refuses(corpus, ib_teacher, tmp_path, capsys, options, message):
    line = refused(capsys, "--method", "mobile", "--model", "sample-mobile", "--corpus", corpus,
                   "--teacher", ib_teacher, "--out", tmp_path / "out", *IB, *SHORT,
                   *options)  # fmt: skip
    assert re.search(message, line), line


def test_a_teacher_of_another_vocabulary(corpus, teacher, tmp_path, capsys):
    text = tmp_path / "text.txt"
    text.write_text("\n".join(" ".join(WORDS) + f" {i}" for i in range(40)))
    shard([text], None, tmp_path / "shards", length=24, held_out=0.1, train_tokenizer=60,
          progress=False)  # fmt: skip
    line = refused(capsys, "--method", "tiny", "--corpus", tmp_path / "shards", "--teacher",
                   teacher, "--out", tmp_path / "out", *SHORT)  # fmt: skip
    assert "vocabulary" in line


def test_an_unwritable_or_used_output(corpus, teacher, tmp_path, capsys):
    (tmp_path / "file").write_text("here")
    base = ["--method", "tiny", "--model", "sample-tiny", "--corpus", corpus, "--teacher", teacher,
            *SMALL, *SHORT, "--out"]  # fmt: skip
    assert "file" in refused(capsys, *base, tmp_path / "file" / "out")
    assert "is the directory of --teacher" in refused(capsys, *base, teacher, "--overwrite")
    assert load(teacher)[0].config.L == 4  # untouched


def test_the_options_are_these():
    """Adding an option is a decision, not an accident."""
    names = {name for action in train.parser()._actions for name in action.option_strings}
    assert names == {
        "-h", "--help", "--method", "--corpus", "--teacher", "--out", "--overwrite", "--model",
        "--from", "--layers", "--width", "--heads", "--ffn", "--sample", "--fidelity", "--alpha",
        "--temperature", "--layer-map", "--init-layers", "--init-head", "--stages", "--steps",
        "--batch", "--accumulate", "--length", "--lr", "--warmup", "--schedule", "--weight-decay",
        "--clip", "--seed",
        "--precision", "--device", "--kernels", "--log-every", "--eval-every", "--dry-run",
        "--teacher-precision", "--batch-tokens", "--tf32", "--compile", "--save-every", "--keep",
        "--max-skips", "--checkpoint", "--betas", "--adam-eps", "--eval-documents",
    }  # fmt: skip


def readme_commands():
    """The arguments of every train.py command of the READMEs."""
    pages = [ROOT / "README.md", *(ROOT / "minibio").rglob("README.md")]
    text = "\n".join(page.read_text("utf-8") for page in pages).replace("\\\n", " ")
    return re.findall(r"train\.py (--(?:method|checkpoint) [^`\n#]*)", text)


class Found(Exception):
    """Raised in place of a run, with what would be run."""


@pytest.fixture
def run_of(monkeypatch):
    """Options -> the `RunConfig` and `Paths` that they come to; nothing is read or trained."""

    def execute(run, paths, ranks, dry_run=False):
        raise Found(run, paths)

    monkeypatch.setattr(train, "execute", execute)
    monkeypatch.setattr(train.Path, "is_dir", lambda self: True)
    monkeypatch.setattr(train, "sample_shards", lambda *_: None)
    monkeypatch.setattr(train, "sample_teacher", lambda *_: train.Path("teacher"))

    def resolved(options):
        with pytest.raises(Found) as found:
            train.main(options)
        return found.value.args

    return resolved


@pytest.mark.parametrize("name", CHECKPOINTS)
def test_a_checkpoint_is_its_row_and_nothing_else(run_of, name):
    row = CHECKPOINTS[name]
    run, paths = run_of(["--checkpoint", name, "--corpus", "shards"])
    source = row.source.split("/")[1]
    starts = (paths.teacher, paths.start)
    assert [path and path.name for path in starts] == (
        [None, source] if row.method == "mlm" else [source, None]
    )
    expected = plan.resolve(METHODS[row.method], {})
    model = source if row.method == "mlm" else row.model
    assert run == dataclasses.replace(expected, model=model)
    assert paths.out == train.Path("runs") / name
    assert f"`{name}`" in (ROOT / "README.md").read_text("utf-8")
    text = (ROOT / "minibio/distil/README.md").read_text("utf-8")
    (line,) = [x for x in text.splitlines() if x.startswith(f"| `{name}` |")]
    assert f"`{row.source}`" in line and ("cased" if row.cased else "uncased") in line


def test_every_command_of_the_readme_is_one(run_of):
    runs = [run_of(line.split())[0] for line in readme_commands()]
    assert {run.method for run in runs} == set(METHODS)
    assert any(run.stages for run in runs) and any(run.model == "ib-bert" for run in runs)


def test_further_training_starts_from_a_directory_and_carries_its_name(corpus, teacher, tmp_path):
    train.main(["--method", "mlm", "--from", str(teacher), "--corpus", str(corpus), "--out",
                str(tmp_path / "out"), *SHORT])  # fmt: skip
    log = [json.loads(line) for line in (tmp_path / "out" / "log.jsonl").read_text().splitlines()]
    before = json.loads((teacher / "run.json").read_text())["held_out"]["mlm_loss"]
    assert log[1]["event"] == "held_out" and log[1]["mlm_loss"] == pytest.approx(before, rel=1e-6)
    assert log[0]["model"] == teacher.name


def test_every_implementation_trains_alike(corpus, teacher, tmp_path, capsys, monkeypatch):
    """Without dropout the three differ by rounding alone."""
    pytest.importorskip("triton")
    monkeypatch.setitem(
        train.MODELS, "sample-tiny",
        dataclasses.replace(train.MODELS["sample-tiny"], dropout=0.0, attention_dropout=0.0),
    )  # fmt: skip
    losses = {}
    for impl in ("reference", "torch", "triton"):
        log = run(corpus, tmp_path / impl, "--teacher", teacher, "--kernels", impl, "--steps", "2",
                  "--batch", "2", "--eval-documents", "2")  # fmt: skip
        losses[impl] = [line["loss"] for line in log if line["event"] == "train"]
        assert f"attention_kl     {impl} (asked for)" in capsys.readouterr().out
    assert losses["torch"] == pytest.approx(losses["reference"], rel=1e-5)
    assert losses["triton"] == pytest.approx(losses["reference"], rel=1e-5)


def test_an_implementation_that_cannot_run_is_refused(corpus, capsys, monkeypatch, tmp_path):
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    line = refused(capsys, "--method", "mlm", "--device", "cpu", "--kernels", "triton",
                   "--corpus", corpus, "--out", tmp_path / "out")  # fmt: skip
    assert "--kernels triton: attention: impl is 'triton', expected" in line
    monkeypatch.setattr("kernels.cuda_build.unavailable", lambda device: None)
    monkeypatch.setattr("minibio.run.precision.has_bf16_products", lambda device: True)
    line = refused(capsys, "--method", "mlm", "--device", "cpu", "--kernels", "attention=cuda",
                   "--precision", "bf16", "--corpus", corpus,
                   "--out", tmp_path / "out")  # fmt: skip
    assert "attention=cuda: attention: impl is 'cuda', expected torch.float32, not" in line


def test_a_model_that_is_not_there_is_named_with_the_command_that_fetches_it(corpus, capsys):
    for options, fetched in (
        (["--checkpoint", "tiny-biobert"], "python -m data.fetch biobert fetches it into"),
        (["--checkpoint", "bio-tinybert"], "python -m data.fetch starts fetches it into"),
        (["--method", "mlm", "--from", "google/mobilebert-uncased"], "data.fetch starts"),
        (["--method", "mlm", "--from", "nowhere"], "--from nowhere is not a directory"),
    ):
        line = refused(capsys, *options, "--corpus", corpus)
        assert fetched in line and "is not a directory" in line, line


def test_a_run_that_ends_without_a_finite_loss_writes_no_model(corpus, tmp_path, monkeypatch):
    monkeypatch.setattr(train, "held_out", lambda *_: {"mlm_loss": float("nan"), "accuracy": 0.0})
    with pytest.raises(errors.RunFailed, match="no model is written to"):
        run(corpus, tmp_path / "out", method="mlm")
    assert sorted(x.name for x in (tmp_path / "out").iterdir()) == ["checkpoints", "log.jsonl"]
    lines = (tmp_path / "out" / "log.jsonl").read_text().splitlines()
    assert [json.loads(x, parse_constant=lambda name: 1 / 0) for x in lines]  # no bare NaN


def test_random_weights_are_said_to_be_random(corpus, teacher, tmp_path, capsys):
    run(corpus, tmp_path / "a", method="mlm")
    first = capsys.readouterr().out.splitlines()[0]
    assert first.startswith(f"{tmp_path / 'a'}: sample-tiny starts from random weights; --from DIR")
    train.main(["--method", "mlm", "--from", str(teacher), "--corpus", str(corpus), "--out",
                str(tmp_path / "b"), *SHORT])  # fmt: skip
    assert "random weights" not in capsys.readouterr().out


def test_a_wrong_place_is_refused_before_anything_is_written(corpus, teacher, tmp_path, capsys):
    (tmp_path / "file").write_text("mine")
    before = sorted(p.name for p in corpus.iterdir())
    for options, message in (
        (["--out", corpus], f"--out {corpus} is the directory of --corpus"),
        (["--out", teacher, "--from", teacher], f"--out {teacher} is the directory of --from"),
        (["--out", tmp_path / "file"], "is a file, expected a directory"),
        (["--out", ""], "--out: invalid directory value: ''"),
        (["--out", tmp_path / "a", "--layers", 10**9], "--layers is 1000000000, expected below"),
        (["--out", tmp_path / "a", "--width", 10**9], "--width is 1000000000, expected below"),
        (["--out", tmp_path / "a", "--batch", 10**12], "--batch is 1000000000000, expected below"),
    ):
        assert message in refused(capsys, "--method", "mlm", "--corpus", corpus, *options)
    assert sorted(p.name for p in corpus.iterdir()) == before
    assert [p.name for p in tmp_path.iterdir()] == ["file"]
