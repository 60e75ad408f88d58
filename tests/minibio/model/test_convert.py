"""Weights in and out: what is accepted, what is refused and in which words.

Numbers against transformers are in test_parity.py; this file is about names, files and messages.
"""

import json
import re
import resource
import shlex
import subprocess
import sys

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

import minibio
from helpers import FAMILIES, ROOT, random_batch, tiny_config
from minibio.model import convert
from minibio.model.convert import HEADS, load, load_with_report, save
from minibio.model.heads import Model
from minibio.run.errors import InputError
from minibio.text.tokenizer import Tokenizer


def make(family="bert", head="mlm", labels=None, **changes):
    if head in ("token", "sequence"):
        labels = labels or ["O", "B", "I"]
    model = Model(tiny_config(family, **changes), head, labels, has_pooler=True)
    for p in model.parameters():
        torch.nn.init.normal_(p, std=0.2)
    return model.eval()


@pytest.fixture
def bert(tmp_path):
    """A directory with a masked-LM BERT, and its tensors to be tampered with."""
    save(make(), None, tmp_path / "bert")
    return tmp_path / "bert"


def tamper(directory, change, file="model.safetensors"):
    """Rewrite the weights through `change(tensors)`."""
    tensors = load_file(directory / file)
    save_file(change(tensors) or tensors, directory / file, metadata={"format": "pt"})


def reconfigure(directory, **changes):
    """Rewrite config.json; None removes a field."""
    raw = json.loads((directory / "config.json").read_text()) | changes
    raw = {k: v for k, v in raw.items() if v is not None}
    (directory / "config.json").write_text(json.dumps(raw))


def same(a, b):
    state = b.state_dict()
    return all(torch.equal(x, state[name]) for name, x in a.state_dict().items())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("family", FAMILIES)
def test_round_trip_is_bit_identical(family, head, dtype, tmp_path):
    model = make(family, head).to(dtype)
    save(model, None, tmp_path / "x")
    back, tokenizer = load(tmp_path / "x", head=head)
    assert tokenizer is None and not back.training
    assert back.config == model.config and back.labels == model.labels and same(model, back)
    batch = random_batch(n_segments=model.config.n_segments)
    a, b = model(batch).logits, back(batch).logits
    assert (a is None and b is None) or torch.equal(a, b)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("family", FAMILIES)
def test_round_trip_of_narrow_weights(family, dtype, tmp_path):
    model = make(family).to(dtype)
    save(model, None, tmp_path / "x")
    back, _, report = load_with_report(tmp_path / "x")
    assert {p.dtype for p in back.parameters()} == {torch.float32}
    assert len(report.widened) == len(report.loaded) and same(model.float(), back)


def test_what_is_written(tmp_path):
    tokenizer = Tokenizer.train(["BRCA1 and the p53 gene in Tumours"] * 3, 60)
    model = Model(tiny_config(V=tokenizer.V), "token", ["O", "B", "I"])
    save(model, tokenizer, tmp_path / "x")
    raw = json.loads((tmp_path / "x/config.json").read_text())
    expected = {
        "architectures": ["BertForTokenClassification"], "model_type": "bert", "dtype": "float32",
        "tie_word_embeddings": True, "id2label": {"0": "O", "1": "B", "2": "I"},
        "label2id": {"O": 0, "B": 1, "I": 2}, "is_decoder": False,
    }  # fmt: skip
    assert raw | expected == raw
    with safe_open(tmp_path / "x/model.safetensors", framework="pt") as f:
        assert f.metadata() == {"format": "pt"}
    assert load(tmp_path / "x", head="token")[1].vocab == tokenizer.vocab


def test_weights_laid_out_by_columns(tmp_path):
    model = make()
    weight = model.head.transform.weight
    weight.data = weight.data.T.contiguous().T
    save(model, None, tmp_path / "x")
    assert same(model, load(tmp_path / "x")[0])


def test_the_decoder_is_never_written(tmp_path):
    for family in FAMILIES:
        save(make(family), None, tmp_path / family)
        names = load_file(tmp_path / family / "model.safetensors")
        assert not [n for n in names if "decoder" in n or n == "vocab_projector.weight"]


# ---- what is met in the wild


def rename(tensors, pattern, replacement):
    return {re.sub(pattern, replacement, name): x for name, x in tensors.items()}


WILD = {
    "gamma and beta": lambda t: rename(
        rename(t, r"LayerNorm\.weight", "LayerNorm.gamma"), r"LayerNorm\.bias", "LayerNorm.beta"
    ),
    "no prefix": lambda t: rename(t, r"^bert\.", ""),
    "student": lambda t: rename(t, "^", "student."),
    "module": lambda t: rename(t, "^", "module."),
    "compiled and wrapped": lambda t: rename(t, "^", "module._orig_mod.student."),
    "position ids": lambda t: {**t, "bert.embeddings.position_ids": torch.arange(40)[None]},
    "tied decoder": lambda t: {
        **t, "cls.predictions.decoder.weight": t["bert.embeddings.word_embeddings.weight"].clone(),
        "cls.predictions.decoder.bias": t["cls.predictions.bias"].clone(),
    },
    "next sentence and pooler": lambda t: {
        **t, "bert.pooler.dense.weight": torch.ones(60, 60),
        "bert.pooler.dense.bias": torch.ones(60),
        "cls.seq_relationship.weight": torch.ones(2, 60),
        "cls.seq_relationship.bias": torch.ones(2),
    },
    "fit_dense": lambda t: {
        **t, "fit_dense.weight": torch.ones(9, 60), "fit_dense.bias": torch.ones(9),
    },
}  # fmt: skip


@pytest.mark.parametrize("form", WILD)
def test_forms_met_in_the_wild(form, bert):
    before, _ = load(bert)
    tamper(bert, WILD[form])
    after, _, report = load_with_report(bert)
    assert same(before, after) and not report.missing
    extra = {"position ids", "next sentence and pooler", "fit_dense"}
    assert bool(report.unexpected) == (form in extra)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_missing_prefix_in_every_family(family, tmp_path):
    model = make(family)
    save(model, None, tmp_path / "x")
    prefix = family.replace("tinybert", "bert").replace("-", "_")
    tamper(tmp_path / "x", lambda t: rename(t, rf"^{prefix}\.", ""))
    assert same(model, load(tmp_path / "x")[0])


@pytest.mark.parametrize("family", FAMILIES)
def test_a_tied_decoder_in_every_family(family, tmp_path):
    model = make(family)
    save(model, None, tmp_path / "x")
    name = "vocab_projector" if family == "distilbert" else "cls.predictions.decoder"
    table = model.encoder.embeddings.token.weight.detach()
    tamper(tmp_path / "x", lambda t: {**t, f"{name}.weight": table.clone()})
    back, _, report = load_with_report(tmp_path / "x")
    assert same(model, back) and not report.unexpected
    tamper(tmp_path / "x", lambda t: {**t, f"{name}.weight": table + 0.5})
    refused(tmp_path / "x", rf"{name}.weight differs from .*word_embeddings.weight by up to 0\.5")


def test_a_name_that_is_there_twice(bert):
    before, _ = load(bert)
    norm = "bert.embeddings.LayerNorm"
    tamper(bert, lambda t: {**t, f"module.{norm}.gamma": t[f"{norm}.weight"].clone()})
    assert same(before, load(bert)[0])
    tamper(bert, lambda t: {**t, f"module.{norm}.gamma": t[f"{norm}.weight"] + 1})
    refused(bert, "LayerNorm.* is there under another name too, with other weights")


def test_one_tensor_of_another_precision(bert):
    norm = "bert.embeddings.LayerNorm.weight"
    tamper(bert, lambda t: {**t, norm: t[norm].double()})
    model, _, report = load_with_report(bert)
    assert {p.dtype for p in model.parameters()} == {torch.float32} and report.narrowed == [norm]
    tamper(bert, lambda t: {name: x.double() for name, x in t.items()}
           | {"bert.embeddings.position_ids": torch.arange(40)[None]})  # fmt: skip
    assert {p.dtype for p in load(bert)[0].parameters()} == {torch.float64}


def test_the_bias_of_a_decoder_alone(bert):
    before, _ = load(bert)
    tamper(bert, lambda t: rename(t, r"^cls\.predictions\.bias", "cls.predictions.decoder.bias"))
    assert same(before, load(bert)[0])


def test_narrow_weights_are_widened_and_reported(bert):
    tamper(bert, lambda t: {name: x.half() for name, x in t.items()})
    model, _, report = load_with_report(bert)
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    assert len(report.widened) == len(report.loaded) and "widened" in str(report)


def test_shards(bert):
    before, _ = load(bert)
    tensors = load_file(bert / "model.safetensors")
    names = sorted(tensors)
    parts = {"model-00001-of-00002.safetensors": names[::2],
             "model-00002-of-00002.safetensors": names[1::2]}  # fmt: skip
    for file, chosen in parts.items():
        save_file({n: tensors[n] for n in chosen}, bert / file)
    index = {"weight_map": {n: file for file, chosen in parts.items() for n in chosen}}
    (bert / "model.safetensors").unlink()
    (bert / "model.safetensors.index.json").write_text(json.dumps(index))
    assert same(before, load(bert)[0])
    (bert / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(InputError, match="model-00002-of-00002.safetensors: no such file"):
        load(bert)


def test_configs_of_old(bert):
    before, _ = load(bert)
    reconfigure(bert, model_type=None, cell={}, structure=[], emb_size=312, pre_trained="",
                architectures=None)  # fmt: skip
    assert same(before, load(bert)[0])  # TinyBERT's
    (bert / "config.json").rename(bert / "bert_config.json")
    assert same(before, load(bert)[0])  # BioBERT's
    (bert / "bert_config.json").rename(bert / "config.json")
    reconfigure(bert, is_decoder=None, pad_token_id=None)
    assert same(before, load(bert)[0])


# ---- heads and labels


def test_labels_come_from_the_config_or_the_caller(tmp_path):
    save(make(head="token", labels=["O", "B-x", "I-x"]), None, tmp_path / "x")
    assert load(tmp_path / "x", head="token")[0].labels == ("O", "B-x", "I-x")
    assert load(tmp_path / "x", head="token", labels=["a", "b", "c"])[0].labels == ("a", "b", "c")
    reconfigure(tmp_path / "x", id2label=None, label2id=None)
    assert load(tmp_path / "x", head="token")[0].labels == ("LABEL_0", "LABEL_1", "LABEL_2")
    with pytest.raises(InputError, match=r"classifier.weight is \(3, 60\), expected \(2, 60\)"):
        load(tmp_path / "x", head="token", labels=2)


def test_labels_that_would_exchange_or_merge_classes(tmp_path):
    save(make(head="token"), None, tmp_path / "x")
    refused(tmp_path / "x", "labels are B, I, O, expected the order of id2label: O, B, I",
            head="token", labels=["B", "I", "O"])  # fmt: skip
    for labels in (["a", "a", "b"], [1, 2, 3]):
        refused(tmp_path / "x", "expected distinct names", head="token", labels=labels)
    reconfigure(tmp_path / "x", id2label={"2": "I", "0": "O", "1": "B"})
    assert load(tmp_path / "x", head="token")[0].labels == ("O", "B", "I")
    reconfigure(tmp_path / "x", id2label={"0": "a", "2": "b", "3": "c"})
    refused(tmp_path / "x", "id2label does not number", head="token")
    assert load(tmp_path / "x", head="token", labels=["a", "b", "c"])[0].labels == ("a", "b", "c")


def test_a_head_that_the_file_lacks(bert):
    for head in ("token", "sequence", "span"):
        labels = None if head == "span" else 3
        with pytest.raises(InputError, match=f"no {head} head in it .*new_head=True"):
            load(bert, head=head, labels=labels)
        model, _, report = load_with_report(bert, head=head, labels=labels, new_head=True)
        assert report.missing and not any(n.startswith("bert.enc") for n in report.missing)
        assert same(load(bert)[0].encoder, model.encoder)
    with pytest.raises(InputError, match="name the classes: --labels"):
        load(bert, head="token", new_head=True)
    with pytest.raises(InputError, match="head is 'pairs'"):
        load(bert, head="pairs")


def test_an_encoder_keeps_the_pooler_it_came_with(tmp_path):
    save(make(head="encoder"), None, tmp_path / "x")
    model, _ = load(tmp_path / "x", head="encoder")
    assert model.head.pooler is not None
    save(make(), None, tmp_path / "y")
    assert load(tmp_path / "y", head="encoder")[0].head.pooler is None


LOAD = """
import sys, minibio
def most():  # of this process: getrusage's would have its parent's in it
    return int(open("/proc/self/status").read().split("VmHWM:")[1].split()[0])
minibio.load(sys.argv[1])  # all code is there
before = most()
minibio.load(sys.argv[2])
print(most() - before)
"""


def test_a_model_is_in_memory_once_while_it_is_loaded(bert, tmp_path):
    config = tiny_config("bert", L=12, C=512, H=8, F=2048)
    save(Model(config), None, tmp_path / "large")
    size = (tmp_path / "large/model.safetensors").stat().st_size
    done = subprocess.run([sys.executable, "-c", LOAD, bert, tmp_path / "large"], cwd=ROOT,
                          capture_output=True, text=True, check=True)  # fmt: skip
    assert int(done.stdout) * 1024 < 1.3 * size  # the largest tensor is 3 % of it


def test_the_generator_draws_only_a_new_head(bert):
    before = torch.get_rng_state()
    load(bert)
    assert torch.equal(torch.get_rng_state(), before)
    load(bert, head="span", new_head=True)
    assert not torch.equal(torch.get_rng_state(), before)


# ---- what is refused


def refused(directory, message, **options):
    with pytest.raises(InputError, match=message) as error:
        load(directory, **options)
    assert "\n" not in str(error.value)


def test_an_untied_decoder(bert):
    def untie(tensors):
        table = tensors["bert.embeddings.word_embeddings.weight"]
        return {**tensors, "cls.predictions.decoder.weight": table + 0.5}

    tamper(bert, untie)
    refused(bert, r"decoder.weight differs from bert.*word_embeddings.weight by up to 0\.5")


@pytest.mark.parametrize(
    ("name", "x", "message"),
    [
        ("weight", torch.ones(101, 61), r"in shape, \(101, 61\) and \(101, 60\)"),
        ("weight", torch.full((101, 60), torch.nan), "decoder.weight has NaN or infinite"),
        ("bias", torch.full((101,), 9.0), "decoder.bias differs from cls.predictions.bias by"),
    ],
)
def test_a_decoder_that_is_no_copy(bert, name, x, message):
    tamper(bert, lambda t: {**t, f"cls.predictions.decoder.{name}": x})
    refused(bert, message)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: {"something.else": torch.ones(3)}, "no tensor in it belongs to a bert"),
        (
            lambda t: {n: x for n, x in t.items() if ".layer.1." not in n},
            "16 of the encoder's tensors are missing: bert.encoder.layer.1",
        ),
        (
            lambda t: {n: x for n, x in t.items() if n != "cls.predictions.bias"},
            r"no mlm head in it \(missing: cls.predictions.bias",
        ),
        (
            lambda t: {**t, "bert.embeddings.LayerNorm.weight": torch.ones(61)},
            r"bert.embeddings.LayerNorm.weight is \(61,\), expected \(60,\)",
        ),
        (
            lambda t: {**t, "bert.embeddings.LayerNorm.bias": torch.full((60,), torch.nan)},
            "bert.embeddings.LayerNorm.bias has NaN or infinite",
        ),
        (
            lambda t: {**t, "cls.predictions.bias": torch.full((101,), torch.inf)},
            "cls.predictions.bias has NaN or infinite",
        ),
        (
            lambda t: {**t, "cls.predictions.bias": torch.full((101,), 1e300, dtype=torch.float64)},
            "cls.predictions.bias has NaN or infinite",
        ),
        (
            lambda t: {**t, "cls.predictions.bias": torch.ones(101, dtype=torch.int32)},
            "cls.predictions.bias is int32, expected float32",
        ),
        (
            lambda t: {**t, "cls.predictions.bias": torch.ones(101).to(torch.float8_e4m3fn)},
            "cls.predictions.bias is float8_e4m3fn, expected float32",
        ),
    ],
)
def test_weights_that_do_not_fit(bert, change, message):
    tamper(bert, change)
    refused(bert, message)


def test_damaged_files(bert):
    whole = (bert / "model.safetensors").read_bytes()
    for damaged in (
        whole[: len(whole) // 2],
        whole[:5],
        b"",
        b"\xff" * 64,
        whole[:8] + b"{]" + whole[10:],
    ):
        (bert / "model.safetensors").write_bytes(damaged)
        refused(bert, "model.safetensors: .*truncated or damaged")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_hidden_layers": 4}, "encoder's tensors are missing"),
        ({"vocab_size": 99}, r"is \(101, 60\), expected \(99, 60\)"),
        ({"vocab_size": 10**7, "hidden_size": 10**6}, r"expected \(10000000, 1000000\)"),
        ({"model_type": "roberta"}, "config.json: model_type is 'roberta'"),
    ],
)
def test_configs_that_do_not_fit(bert, changes, message):
    reconfigure(bert, **changes)
    refused(bert, message)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("changes", [{"num_hidden_layers": 3_000_000}, {"n_layers": 3_000_000},
                                     {"num_feedforward_networks": 2_000_000}])  # fmt: skip
def test_a_config_of_millions_of_layers(family, changes, tmp_path):
    save(make(family), None, tmp_path / "x")
    if set(changes) & set(json.loads((tmp_path / "x/config.json").read_text())):
        reconfigure(tmp_path / "x", **changes)
        refused(tmp_path / "x", "config.json: .*,000,000 .*tensors beside it; the file is damaged")


@pytest.mark.parametrize("head", HEADS)
def test_the_head_is_the_one_that_the_config_names(head, tmp_path):
    save(make(head=head), None, tmp_path / "x")
    assert load(tmp_path / "x")[0].head_name == head
    reconfigure(tmp_path / "x", architectures=5)
    refused(tmp_path / "x", "architectures is 5, expected a list of names")
    reconfigure(tmp_path / "x", architectures=["BertForPreTraining"])
    if head == "mlm":
        assert load(tmp_path / "x")[0].head_name == "mlm"
    else:
        refused(tmp_path / "x", "no mlm head in it")


@pytest.mark.parametrize("mapping", [None, [], {}, {"a": 3}, ["model.safetensors"]])
def test_a_damaged_index(bert, mapping):
    (bert / "model.safetensors").unlink()
    (bert / "model.safetensors.index.json").write_text(json.dumps({"weight_map": mapping}))
    refused(bert, "model.safetensors.index.json: no weight_map")


def test_a_pickle_is_converted_by_the_line_of_the_message(bert):
    before, _ = load(bert)
    tensors = load_file(bert / "model.safetensors")
    table = tensors["bert.embeddings.word_embeddings.weight"]
    tensors["cls.predictions.decoder.weight"] = table  # tied in memory, as they are
    torch.save(tensors, bert / "pytorch_model.bin")
    (bert / "model.safetensors").unlink()
    with pytest.raises(InputError, match="only pytorch_model.bin") as error:
        load(bert)
    line = str(error.value).split("convert it there: ")[1]
    python, *rest = shlex.split(line)
    assert python == "python"
    subprocess.run([sys.executable, *rest], cwd=bert, check=True)
    assert same(before, load(bert)[0])


def test_directories_that_are_none(bert, tmp_path):
    refused(tmp_path / "nowhere", "nowhere: no such directory")
    (bert / "model.safetensors").rename(bert / "pytorch_model.bin")
    refused(bert, "only pytorch_model.bin, expected model.safetensors; convert it there: python")
    (bert / "pytorch_model.bin").unlink()
    refused(bert, "no model.safetensors")
    (bert / "config.json").write_text('{"model_type": "bert",')
    refused(bert, "config.json: line 1")
    (bert / "config.json").unlink()
    refused(bert, "no config.json")


def test_a_vocabulary_of_another_size(bert, tmp_path):
    tokenizer = Tokenizer.train(["BRCA1 and the p53 gene in Tumours"] * 3, 60)
    tokenizer.save(bert)
    refused(bert, "the tokenizer has 60 word pieces, expected 101|60.*101")
    with pytest.raises(InputError, match="60.*101"):
        save(make(), tokenizer, tmp_path / "x")
    assert not (tmp_path / "x").exists()


def test_weights_that_are_no_numbers_are_not_written(tmp_path):
    model = make()
    model.head.bias.data[3] = torch.nan
    with pytest.raises(InputError, match="cls.predictions.bias has NaN"):
        save(model, None, tmp_path / "x")
    assert not any(tmp_path.iterdir())


def test_a_used_directory_is_kept(bert):
    before = (bert / "model.safetensors").read_bytes()
    with pytest.raises(InputError, match="already holds files"):
        save(make(), None, bert)
    assert (bert / "model.safetensors").read_bytes() == before
    save(make(), None, bert, overwrite=True)
    assert (bert / "model.safetensors").read_bytes() != before


# ---- the command


def test_the_command_makes_the_round_trip(bert, tmp_path, capsys):
    convert.main([str(bert), str(tmp_path / "y"), "--head", "mlm"])
    assert same(load(bert)[0], load(tmp_path / "y")[0])
    assert "loaded      " in capsys.readouterr().out


@pytest.mark.slow
def test_the_command_from_a_shell(bert, tmp_path):
    command = [sys.executable, "-W", "error", "-m", "minibio", "convert"]
    done = subprocess.run(
        [*command, bert, tmp_path / "y"], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0 and not done.stderr, done.stderr
    done = subprocess.run([*command, tmp_path / "no", tmp_path / "z"], cwd=ROOT,
                          capture_output=True, text=True)  # fmt: skip
    assert done.returncode == 2 and len(done.stderr.splitlines()) == 1
    assert not (tmp_path / "z").exists()


def test_a_place_that_cannot_be_written(bert, tmp_path):
    (tmp_path / "file").write_text("")
    for place in (tmp_path / "file", tmp_path / "file" / "x"):
        with pytest.raises(InputError, match="file"):
            convert.main([str(bert), str(place)])
    assert {p.name for p in tmp_path.iterdir()} == {"bert", "file"}


def test_a_full_disk_leaves_nothing(tmp_path):
    """A limit on the size of a file stands for it."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, limits[1]))
    try:
        with pytest.raises(OSError, match=r"too large.*model\.safetensors"):
            save(make(), None, tmp_path / "x")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert not list(tmp_path.iterdir())


def test_whoever_reads_other_files_reads_the_weights(bert):
    modes = {x.name: x.stat().st_mode for x in bert.iterdir()}
    assert modes["model.safetensors"] == modes["config.json"]


def test_the_package_hands_out_its_doors():
    assert minibio.load is load and minibio.save is save and minibio.Batch is not None
    with pytest.raises(AttributeError, match="no attribute 'other'"):
        _ = minibio.other
