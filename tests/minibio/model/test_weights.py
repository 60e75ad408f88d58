"""Files of weights as they are met: shards, other forms, pointers, either name of a tied table.

What convert.py makes of sound ones is in test_convert.py. The oracle is the package that wrote
them: safetensors' own `save_model`, torch.save, transformers.
"""

import json
import shlex
import struct
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file, save_file, save_model

import minibio
from helpers import FAMILIES, tiny_config
from minibio.model.heads import Model
from minibio.model.weights import OTHER_FORMS, read_weights, weight_files
from minibio.run.errors import InputError


def make(path, family="bert", head="mlm", **changes):
    """A directory of random weights, and its model."""
    labels = ["O", "B", "I"] if head == "token" else None
    model = Model(tiny_config(family, **changes), head, labels)
    for p in model.parameters():
        torch.nn.init.normal_(p, std=0.2)
    minibio.save(model, None, path)
    return model.eval()


def same(a, b):
    state = b.state_dict()
    return all(torch.equal(x, state[name]) for name, x in a.state_dict().items())


def refused(path, *parts):
    with pytest.raises(InputError) as error:
        minibio.load(path)
    for part in parts:
        assert part in str(error.value)
    assert "\n" not in str(error.value)
    return str(error.value)


def split(path, n=2):
    """The weights of a directory in n shards without an index."""
    tensors = load_file(path / "model.safetensors")
    names = sorted(tensors)
    (path / "model.safetensors").unlink()
    for i in range(n):
        part = {name: tensors[name] for name in names[i::n]}
        save_file(part, path / f"model-{i + 1:05d}-of-{n:05d}.safetensors")


# ---- shards


@pytest.mark.parametrize("n", [1, 2, 5])
def test_shards_without_an_index_are_read(tmp_path, n):
    model = make(tmp_path / "x")
    split(tmp_path / "x", n)
    assert same(model, minibio.load(tmp_path / "x")[0])


def test_shards_of_which_one_is_missing(tmp_path):
    make(tmp_path / "x")
    split(tmp_path / "x", 3)
    (tmp_path / "x/model-00002-of-00003.safetensors").unlink()
    refused(tmp_path / "x", "model-00001-of-00003.safetensors, model-00003-of-00003.safetensors "
            "without model-00002-of-00003.safetensors")  # fmt: skip


def test_shards_of_two_models(tmp_path):
    make(tmp_path / "x")
    split(tmp_path / "x", 2)
    other = load_file(tmp_path / "x/model-00001-of-00002.safetensors")
    save_file(other, tmp_path / "x/model-00001-of-00001.safetensors")
    refused(tmp_path / "x", "model-00001-of-00001.safetensors")


def test_one_tensor_in_two_shards(tmp_path):
    make(tmp_path / "x")
    split(tmp_path / "x", 2)
    first = load_file(tmp_path / "x/model-00001-of-00002.safetensors")
    second = load_file(tmp_path / "x/model-00002-of-00002.safetensors")
    name = sorted(first)[0]
    save_file({**second, name: first[name]}, tmp_path / "x/model-00002-of-00002.safetensors")
    refused(tmp_path / "x", f"model-00002-of-00002.safetensors: {name} is there twice")


@pytest.mark.parametrize("name", ["../x.safetensors", "/etc/passwd", "a/b", "", "..", "a\0b"])
def test_an_index_that_names_files_elsewhere(tmp_path, name):
    make(tmp_path / "x")
    (tmp_path / "x/model.safetensors").rename(tmp_path / "x.safetensors")
    index = tmp_path / "x/model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"a": name}}))
    refused(tmp_path / "x", "no weight_map of plain file names")


# ---- other forms


@pytest.mark.parametrize(
    ("name", "advice"),
    [
        ("pytorch_model.bin", "weights_only=True"),
        ("pytorch_model-00001-of-00002.bin", "weights_only=True"),
        ("pytorch_model.bin.index.json", "pytorch_model-*.bin"),
        ("model.fp16.safetensors", "rename it to model.safetensors"),
        ("bert_base.safetensors", "rename it to model.safetensors"),
        ("adapter_model.safetensors", "merge_and_unload"),
        ("adapter_model.bin", "merge_and_unload"),
        ("tf_model.h5", "from_tf=True"),
        ("model.ckpt-1000000.index", "from_tf=True"),
        ("bert_model.ckpt.data-00000-of-00001", "from_tf=True"),
        ("flax_model.msgpack", "from_flax=True"),
        ("model.onnx", "exported graph"),
        ("model.Q4_0.gguf", "quantised"),
        ("weights.bin", "rename it to pytorch_model.bin"),
        ("model.pt", "rename it to pytorch_model.bin"),
        ("best.pth", "rename it to pytorch_model.bin"),
    ],
)
def test_weights_of_another_form_are_named(tmp_path, name, advice):
    make(tmp_path / "x")
    (tmp_path / "x/model.safetensors").rename(tmp_path / "x" / name)
    refused(tmp_path / "x", f"only {name}, expected model.safetensors", advice)


def test_every_form_has_its_own_row():
    """No row can be reached by nothing because an earlier one is wider."""
    forms = [form for form, _ in OTHER_FORMS]
    assert len(set(forms)) == len(forms)
    assert forms.index("*.bin") > forms.index("pytorch_model*.bin")
    assert forms.index("*.safetensors") > forms.index("adapter_model.*")


def test_shards_of_pickles_are_converted_by_the_line_of_the_message(tmp_path):
    model, path = make(tmp_path / "x"), tmp_path / "x"
    tensors = load_file(path / "model.safetensors")
    names = sorted(tensors)
    for i in range(2):
        part = {name: tensors[name] for name in names[i::2]}
        torch.save(part, path / f"pytorch_model-{i + 1:05d}-of-00002.bin")
    (path / "pytorch_model.bin.index.json").write_text("{}")
    (path / "model.safetensors").unlink()
    line = refused(path, "only pytorch_model-00001-of-00002.bin, ...").split("it there: ")[1]
    _, *rest = shlex.split(line)
    subprocess.run([sys.executable, *rest], cwd=path, check=True)
    assert same(model, minibio.load(path)[0])


def test_weights_one_folder_further_down(tmp_path):
    make(tmp_path / "x/checkpoint-500")
    (tmp_path / "x/checkpoint-500/config.json").rename(tmp_path / "x/config.json")
    refused(tmp_path / "x", "name the directory of one: checkpoint-500")


POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a2146\nsize 438\n"


@pytest.mark.parametrize(
    "name", ["model.safetensors", "pytorch_model.bin", "tf_model.h5", "config.json", "vocab.txt",
             "tokenizer.json", "model-00001-of-00001.safetensors"]
)  # fmt: skip
@pytest.mark.parametrize(
    ("content", "what"), [(POINTER, "git lfs pull"), (b"\n<!DOCTYPE html><html>", "a web page")]
)
def test_a_pointer_or_a_page_in_the_place_of_a_file(tmp_path, name, content, what):
    make(tmp_path / "x")
    if name not in ("config.json", "vocab.txt", "tokenizer.json"):
        (tmp_path / "x/model.safetensors").unlink()
    (tmp_path / "x" / name).write_bytes(content)
    refused(tmp_path / "x", name, what)


def test_a_weight_that_is_twice_in_the_header(tmp_path):
    make(tmp_path / "x")
    file = tmp_path / "x/model.safetensors"
    raw = file.read_bytes()
    (n,) = struct.unpack("<Q", raw[:8])
    header = json.loads(raw[8 : 8 + n])
    name = "bert.embeddings.LayerNorm.weight"
    again = raw[8 : 8 + n].rstrip()[:-1] + f", {json.dumps(name)}: ".encode()
    again += json.dumps(header[name]).encode() + b"}"
    file.write_bytes(struct.pack("<Q", len(again)) + again + raw[8 + n :])
    refused(tmp_path / "x", f"model.safetensors: {name} is there twice")


@pytest.mark.parametrize("change", ["replaced", "written to", "removed"])
def test_a_file_that_changes_while_it_is_read(tmp_path, change):
    make(tmp_path / "x")
    make(tmp_path / "y")
    file = tmp_path / "x/model.safetensors"
    stored = read_weights(tmp_path / "x")
    if change == "replaced":
        (tmp_path / "y/model.safetensors").replace(file)
    elif change == "written to":
        file.write_bytes(file.read_bytes() + b"0")
    else:
        file.unlink()
    for x in stored.values():
        with pytest.raises(InputError, match="model.safetensors was replaced while it was read"):
            x.read()


# ---- the tied table


@pytest.mark.parametrize("family", [f for f in FAMILIES if f != "ib-bert"])
def test_what_save_model_of_safetensors_keeps(family, tmp_path):
    """Of tied tensors it keeps one name: MobileBERT's table is under its decoder."""
    transformers = pytest.importorskip("transformers")
    model = make(tmp_path / "x", family)
    theirs = transformers.AutoModelForMaskedLM.from_pretrained(tmp_path / "x")
    save_model(theirs, str(tmp_path / "x/model.safetensors"))
    kept = load_file(tmp_path / "x/model.safetensors")
    table = f"{theirs.base_model_prefix}.embeddings.word_embeddings.weight"
    assert (table in kept) == (family != "mobilebert")
    assert same(model, minibio.load(tmp_path / "x")[0])


@pytest.mark.parametrize("family", FAMILIES)
def test_a_table_under_its_decoder_only(family, tmp_path):
    model = make(tmp_path / "x", family)
    file = tmp_path / "x/model.safetensors"
    tensors = load_file(file)
    (table,) = (name for name in tensors if name.endswith("word_embeddings.weight"))
    decoder = "vocab_projector" if family == "distilbert" else "cls.predictions.decoder"
    tensors[f"{decoder}.weight"] = tensors.pop(table)
    save_file(tensors, file)
    for head in ("mlm", "encoder"):
        assert torch.equal(
            minibio.load(tmp_path / "x", head=head)[0].encoder.embeddings.token.weight,
            model.encoder.embeddings.token.weight,
        )


def test_the_files_are_named_in_order(tmp_path):
    make(tmp_path / "x")
    split(tmp_path / "x", 3)
    names = [file.name for file in weight_files(tmp_path / "x")]
    assert names == [f"model-0000{i}-of-00003.safetensors" for i in (1, 2, 3)]
