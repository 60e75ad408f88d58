"""Weights of a Hugging Face directory as they are met in the wild, brought to today's names.

`read_weights` finds the safetensors files, one or many, and says of anything else (a pickle,
TensorFlow's, a git-lfs pointer) how to get them; the numbers are read later, tensor by tensor, so
that a model is in memory once. `clean` takes off wrappers' prefixes and old names; `tie` makes the
table of token embeddings and the decoder one. What would go wrong silently is refused: a decoder
that is not the embeddings, a name that is there twice, weights that are not numbers. convert.py
makes a model of the result.
"""

import json
import math
import re
from collections import Counter
from fnmatch import fnmatch
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from minibio.model.names import PREFIX, TABLES
from minibio.run.errors import InputError
from minibio.run.files import check_content, read_json

DECODER = {"distilbert": "vocab_projector"}  # the tied decoder; in the other families:
DECODER_ELSE = "cls.predictions.decoder"
# weights_only: a pickle can run code. clone: safetensors refuses memory shared by tied weights
PICKLE_TO_SAFETENSORS = (
    'python -c "import glob, torch, safetensors.torch as s; w = {}; '
    "[w.update(torch.load(f, map_location='cpu', weights_only=True)) "
    "for f in glob.glob('pytorch_model*.bin')]; "
    "s.save_file({n: x.clone().contiguous() for n, x in w.items()}, 'model.safetensors')\""
)
BY_TRANSFORMERS = (
    "write them with transformers 4: AutoModelForMaskedLM.from_pretrained('.', {}=True)"
    ".save_pretrained('.') (or the class of your head), run there"
)
# files that hold weights in another form, and how to get safetensors from them
OTHER_FORMS = (
    ("pytorch_model*.bin", f"convert it there: {PICKLE_TO_SAFETENSORS}"),
    ("pytorch_model.bin.index.json", "fetch the files that it names, pytorch_model-*.bin"),
    ("adapter_model.*", "merge this adapter into its base model: merge_and_unload() of peft"),
    ("*.safetensors", "if it is the one you want, rename it to model.safetensors"),
    ("*.safetensors.index.json", "fetch the files that it names, or rename it with them"),
    ("*.h5", BY_TRANSFORMERS.format("from_tf")),
    ("*.ckpt*", BY_TRANSFORMERS.format("from_tf")),  # TensorFlow 1: three files
    ("*.msgpack", BY_TRANSFORMERS.format("from_flax")),
    ("*.onnx", "an exported graph: fetch the weights it was made from"),
    ("*.gguf", "quantised: fetch the weights it was made from"),
    ("*.bin", "rename it to pytorch_model.bin if it is PyTorch's"),
    ("*.pt", "rename it to pytorch_model.bin if it is a state dict of PyTorch's"),
    ("*.pth", "rename it to pytorch_model.bin if it is a state dict of PyTorch's"),
)
SHARD = re.compile(r"model-(\d{5})-of-(\d{5})\.safetensors")
DTYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16)
WRAPPERS = ("module.", "student.", "_orig_mod.")  # DDP, the authors' own class, torch.compile
OLD_NAMES = ((r"\.gamma$", ".weight"), (r"\.beta$", ".bias"))


# ---- files


class Stored(NamedTuple):
    """A tensor in a file; its numbers are not in memory."""

    file: Path
    version: tuple[int, ...]  # of the file, by `version_of`
    name: str  # in the file
    shape: torch.Size
    dtype: torch.dtype

    def read(self) -> Tensor:
        """The tensor itself, in a mapping of the file that ends with it.

        A mapping that all tensors share would keep in memory all that was ever read through it.

        Raises:
            InputError: the file was replaced or written to after it had been looked at.
        """
        try:
            with safe_open(self.file, framework="pt") as f:
                x = f.get_tensor(self.name)
            is_same = version_of(self.file) == self.version  # last, so that it holds for x too
        except (OSError, SafetensorError):
            is_same = False
        if not is_same:
            raise InputError(f"{self.file} was replaced while it was read; run this again")
        return x


def version_of(file: Path) -> tuple[int, ...]:
    """Numbers that change when a file is replaced or written to."""
    state = file.stat()
    return state.st_ino, state.st_size, state.st_mtime_ns


def weight_files(path: Path) -> list[Path]:
    """The safetensors files of a directory: one, or shards with their index or without.

    Raises:
        InputError: none, and what is there in their place; a shard is missing.
    """
    single, index = path / "model.safetensors", path / "model.safetensors.index.json"
    if single.is_file():
        return [single]
    if index.is_file():
        mapping = read_json(index).get("weight_map")
        is_map = isinstance(mapping, dict) and all(map(is_plain, mapping.values()))
        if not mapping or not is_map:
            raise InputError(f"{index}: no weight_map of plain file names; the file is damaged")
        files = [path / name for name in sorted(set(mapping.values()))]
        for file in files:
            if not file.is_file():
                raise InputError(f"{file}: no such file, though {index.name} names it")
        return files
    names = sorted(p.name for p in path.iterdir() if p.is_file())
    found = [m for m in map(SHARD.fullmatch, names) if m]
    if found:  # their names say how many there are: the index adds nothing
        n = int(found[0][2])
        expected = {f"model-{i:05d}-of-{n:05d}.safetensors" for i in range(1, min(n, 10**4) + 1)}
        lacks, more = sorted(expected - set(names)), {m[0] for m in found} - expected
        if lacks or more:
            raise InputError(
                f"{path}: {', '.join(m[0] for m in found[:4])}{', ...' * (len(found) > 4)} without "
                f"{lacks[0] if lacks else index.name}; fetch what is missing"
            )
        return [path / m[0] for m in found]
    raise InputError(f"{path}: {what_is_there(path, names)}")


def is_plain(name) -> bool:
    """Whether a name means a file of the directory itself: nothing outside is read."""
    return isinstance(name, str) and name not in ("", ".", "..") and not set(name) & set("/\\\0")


def what_is_there(path: Path, names: list[str]) -> str:
    """The weights a directory has in place of model.safetensors, and what to do."""
    for form, advice in OTHER_FORMS:
        found = [name for name in names if fnmatch(name, form)]
        if found:
            check_content(path / found[0])
            more = ", ..." if len(found) > 1 else ""
            return f"only {found[0]}{more}, expected model.safetensors; {advice}"
    folders = sorted(file.parent.name for file in path.glob("*/model.safetensors"))
    if folders:
        return f"no model.safetensors; name the directory of one: {', '.join(folders[:4])}"
    return "no model.safetensors; expected a Hugging Face directory"


def read_weights(path: Path) -> dict[str, Stored]:
    """Every tensor of a directory, by the names in its files; its numbers are not read yet.

    Raises:
        InputError: truncated or damaged files; files that are not safetensors; a name twice.
    """
    tensors = {}
    for file in weight_files(path):
        check_content(file)
        version = version_of(file)
        try:
            with safe_open(file, framework="pt") as f:
                names = f.keys()
                twice = repeated(file) or sorted(set(names) & set(tensors))
                if twice:
                    raise InputError(f"{file}: {twice[0]} is there twice; fetch it again")
                for name in names:
                    x = f.get_tensor(name)  # a view of the file: nothing is read for its shape
                    tensors[name] = Stored(file, version, name, x.shape, x.dtype)
        except InputError:
            raise
        except (SafetensorError, ValueError, KeyError, RuntimeError) as error:
            raise InputError(f"{file}: {error}: truncated or damaged; fetch it again") from None
    return tensors


def repeated(file: Path) -> list[str]:
    """The names that the header of a sound safetensors file has twice; its reader takes the last.

    The header is JSON, behind its length in 8 bytes, little-endian.
    """
    with open(file, "rb") as opened:
        header = opened.read(int.from_bytes(opened.read(8), "little"))
    twice = []

    def keep(pairs):
        counts = Counter(name for name, _ in pairs)
        twice.extend(name for name, n in counts.items() if n > 1)

    json.loads(header, object_pairs_hook=keep)
    return twice


# ---- names


def clean(tensors: dict[str, Stored], family: str, where: Path) -> dict[str, Stored]:
    """Today's names for what is met in the wild: wrappers, gamma and beta, a missing prefix.

    Raises:
        InputError: two names become one, and their weights differ.
    """
    prefix, result = PREFIX[family] + ".", {}
    own = [theirs for theirs in TABLES[family] if theirs.startswith(prefix)]
    inner = tuple({theirs.split(".")[1] + "." for theirs in own})
    for found, x in tensors.items():
        name = found
        while name.startswith(WRAPPERS):
            name = name.split(".", 1)[1]
        for old, new in OLD_NAMES:
            name = re.sub(old, new, name)
        name = prefix + name if name.startswith(inner) else name
        if name in result and not is_equal(result[name], x):
            raise InputError(
                f"{where}: {found} is there under another name too, with other weights; keep one"
            )
        result[name] = x
    return result


def is_equal(a: Stored, b: Stored) -> bool:
    """Same shape, same values, whatever their precision."""
    if a.shape != b.shape:
        return False
    x, y = a.read(), b.read()
    return torch.equal(x, y) if x.dtype == y.dtype else torch.equal(x.double(), y.double())


def tie(tensors: dict[str, Stored], family: str, where: Path) -> None:
    """Keep of a tied decoder the embeddings only, in place.

    A file may have either name: safetensors' own `save_model` keeps the one that comes first in the
    alphabet, which in MobileBERT is the decoder's.

    Raises:
        InputError: both are there and differ.
    """
    stem = DECODER.get(family, DECODER_ELSE)
    pairs = {f"{stem}.weight": f"{PREFIX[family]}.embeddings.word_embeddings.weight"}
    if stem == DECODER_ELSE:  # DistilBERT's bias has no second name
        pairs[f"{stem}.bias"] = "cls.predictions.bias"
    for name, tied in pairs.items():
        a = tensors.pop(name, None)
        b = a if a is None else tensors.setdefault(tied, a)
        if a is b or is_equal(a, b):
            continue
        x, y = a.read(), b.read()
        check_numbers(name, x, where)
        check_numbers(tied, y, where)
        by = (
            f"by up to {(x.double() - y.double()).abs().max():.3g}"
            if x.shape == y.shape
            else f"in shape, {tuple(x.shape)} and {tuple(y.shape)}"
        )
        raise InputError(
            f"{where}: {name} differs from {tied} {by}: an untied decoder, which no model here "
            f"has; tie it before"
        )


def check_numbers(name: str, x: Tensor, where: Path) -> None:
    """Refuse weights that are of no floating-point type, NaN or infinite.

    Raises:
        InputError: they are.
    """
    if x.dtype not in DTYPES:
        raise InputError(
            f"{where}: {name} is {str(x.dtype).removeprefix('torch.')}, expected float32 "
            f"(or float64, float16, bfloat16)"
        )
    if x.numel() and not all(map(math.isfinite, x.aminmax())):  # NaN is the least and the most
        raise InputError(f"{where}: {name} has NaN or infinite weights; fetch it again")
