"""Imports point one way: every import of every source file, read from its syntax tree.

A folder imports only itself and the folders above it in `FOLDERS`, and no files import each other
in a circle. Packages that a machine may lack are imported inside the function that needs them;
nothing reads or writes pickles; each folder has its tests and a page that says what lives in it.
"""

import ast
import importlib
import shutil
import subprocess
import sys
import tomllib
from fnmatch import fnmatch
from graphlib import TopologicalSorter
from pathlib import Path
from typing import NamedTuple

import pytest

from helpers import ROOT

# Folder -> what lives there. A folder imports only itself and the folders above it.
FOLDERS = {
    "kernels": "the fused operations; knows of nothing else here",
    "kernels.bench": "what `python -m kernels.bench` runs",
    "minibio": "config and batch, read first",
    "minibio.run": "processes, disks, logs: nothing about language",
    "minibio.text": "from token shards to batches",
    "minibio.model": "transformers, and Hugging Face's names for their weights",
    "minibio.distil": "the equations, the objectives, the students",
    "minibio.tasks": "entities, relations, questions",
    "minibio.report": "tables, pictures, model cards",
    "minibio.bench": "what `python -m minibio bench` runs",
    "data": "worker processes",
    "data.fetch": "downloads",
    "data.pubmed": "PubMed's XML to JSON lines",
    "data.shard": "JSON lines to token shards",
    "data.sample": "the built-in sample",
    "minibio.__main__": "the commands of the library",
    "": "train.py and eval.py",
}

EVERYWHERE = {"torch", "numpy"}
AT_TOP = {  # package -> files that cannot do without it
    "safetensors": (
        "minibio.model.convert",
        "minibio.model.weights",
        "minibio.run.store",
        "minibio.bench.speed",
    ),
    "tokenizers": ("minibio.text.tokenizer",),
    "triton": ("kernels.triton_*",),
}
INSIDE_FUNCTIONS = {  # package -> files that do without it until the function is called
    "tqdm": ("*",),
    "seqeval": ("minibio.tasks.metrics",),
    "matplotlib": ("minibio.report.plot", "minibio.report.pictures"),
    "transformers": ("minibio.bench.*",),
    "liger_kernel": ("kernels.bench.mlm",),
    "cut_cross_entropy": ("kernels.bench.mlm",),
    "triton": ("minibio.bench.compile",),
    "onnxruntime": ("minibio.bench.predict",),
}
# Imports that point down all the same, and why.
EXCEPTIONS = {("minibio.bench.training", "train"): "it times the very loop that trains"}
PICKLES = {"pickle", "shelve", "marshal", "dill", "joblib", "cloudpickle"}
OURS = ("kernels", "minibio", "data", "train", "eval")


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


SOURCES = {
    module_name(path): path
    for folder in ("kernels", "minibio", "data", ".")
    for path in sorted((ROOT / folder).glob("*.py" if folder == "." else "**/*.py"))
}
TREES = {name: ast.parse(path.read_text("utf-8")) for name, path in SOURCES.items()}


class Import(NamedTuple):
    module: str  # a.b.c
    line: int
    is_inside: bool  # a function


def targets(node: ast.AST) -> list[str]:
    """The modules an import statement names; `from a import b` is a.b where that is a module."""
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    if node.level:
        raise AssertionError(f"line {node.lineno}: relative import, expected an absolute one")
    full = [f"{node.module}.{alias.name}" for alias in node.names]
    return [name if name in SOURCES else node.module for name in full]


def imports(tree: ast.Module) -> list[Import]:
    """Every import in the file."""
    found = []

    def walk(node, is_inside):
        for child in ast.iter_child_nodes(node):
            if isinstance(child, (ast.Import, ast.ImportFrom)):
                found.extend(Import(name, child.lineno, is_inside) for name in targets(child))
            walk(child, is_inside or isinstance(child, (ast.FunctionDef, ast.Lambda)))

    walk(tree, False)
    return found


def folder_of(name: str) -> str:
    """The folder of a module: a package is in the folder that bears its name."""
    is_one = SOURCES[name].name == "__init__.py" or name == "minibio.__main__"
    return name if is_one else name.rpartition(".")[0]


def level(name: str) -> int:
    folder = folder_of(name)
    assert folder in FOLDERS, f"{name}: give {folder} a row in FOLDERS of tests/test_layout.py"
    return [*FOLDERS].index(folder)


def is_one_of(name: str, patterns) -> bool:
    return any(fnmatch(name, pattern) for pattern in patterns)


every_source = pytest.mark.parametrize("name", SOURCES)


def arrows(name: str) -> list[Import]:
    """Imports of our own modules; the doors for users, opened when asked for, are left out."""
    ours = [i for i in imports(TREES[name]) if i.module.split(".")[0] in OURS]
    return [i for i in ours if not (name == "minibio" and i.is_inside)]


@every_source
def test_arrows_point_up(name):
    for target, line, _ in arrows(name):
        assert target in SOURCES, f"{name}:{line} imports {target}, which is not there"
        is_allowed = level(target) <= level(name) or (name, target) in EXCEPTIONS
        assert is_allowed, f"{name}:{line} imports {target}, a folder below"
        if name.split(".")[0] == "kernels":
            assert target.split(".")[0] == "kernels", f"{name}:{line} imports {target}"


def test_no_circles():
    graph = {name: {i.module for i in arrows(name)} for name in SOURCES}
    list(TopologicalSorter(graph).static_order())  # raises CycleError, and names the circle


@every_source
def test_other_packages_only_where_they_may_be(name):
    for target, line, is_inside in imports(TREES[name]):
        package = target.split(".")[0]
        if package in OURS or package in EVERYWHERE or package in sys.stdlib_module_names:
            continue
        where = AT_TOP.get(package, ())
        if is_inside:
            where += INSIDE_FUNCTIONS.get(package, ())
        assert is_one_of(name, where), (
            f"{name}:{line} imports {package}{'' if is_inside else ' at the top'}, "
            f"allowed in {where or 'no file, or inside a function only'}"
        )


@every_source
def test_no_pickle(name):
    tree = TREES[name]
    assert not PICKLES & {target.split(".")[0] for target, _, _ in imports(tree)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            call = f"{node.value.id}.{node.attr}"
            assert call not in ("torch.load", "torch.save"), f"{name}:{node.lineno} uses {call}"
        if isinstance(node, ast.keyword):
            assert node.arg != "allow_pickle", f"{name}:{node.value.lineno} allows pickles"


@every_source
def test_no_name_hides_a_module(name):
    """`python data/x.py` puts data/ first on the path: a re.py there would break the library."""
    packages = EVERYWHERE | set(AT_TOP) | set(INSIDE_FUNCTIONS)
    assert name.split(".")[-1] not in sys.stdlib_module_names | packages


@pytest.mark.parametrize("folder", [f for f in FOLDERS if "__" not in f])
def test_each_folder_has_its_tests_and_its_page(folder):
    tests = ROOT.joinpath("tests", *filter(None, folder.split(".")))
    assert list(tests.glob("test_*.py")), f"no test in {tests.relative_to(ROOT)}"
    assert ROOT.joinpath(*filter(None, folder.split(".")), "README.md").exists()


def test_the_package_is_the_library_only():
    """`pip install .` puts nothing named data, train or eval into a user's site-packages."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))
    named = project["tool"]["setuptools"]
    library = [f for f in FOLDERS if f.split(".")[0] in ("kernels", "minibio") and "__" not in f]
    assert sorted(named["packages"]) == sorted(library) and "py-modules" not in named
    kept = {path for package, patterns in named["package-data"].items() for pattern in patterns
            for path in ROOT.joinpath(*package.split(".")).glob(pattern)}  # fmt: skip
    there = {path for f in ("kernels", "minibio") for path in (ROOT / f).rglob("*.*")}
    assert {x for x in there if x.suffix not in (".py", ".md", ".pyc")} <= kept
    module, _, function = project["project"]["scripts"]["minibio"].partition(":")
    assert callable(getattr(importlib.import_module(module), function))


def test_the_test_folders_are_no_packages():
    """tests/minibio as a package could be taken for minibio itself."""
    assert not list((ROOT / "tests").rglob("__init__.py"))


def test_kernels_can_be_probed():
    """transformers imports `kernels` to see whether it is the package of that name on PyPI."""
    names = {node.id for node in ast.walk(TREES["kernels"]) if isinstance(node, ast.Name)}
    assert "__version__" not in names
    import transformers

    assert transformers.BertConfig().hidden_size == 768


def test_nothing_heavy_is_imported_before_it_is_needed():
    """On a machine with no more than torch, numpy, tokenizers and safetensors all this imports."""
    heavy = sorted(set(INSIDE_FUNCTIONS) | {"pytest", "hypothesis"})
    names = [name for name in SOURCES if not name.startswith("kernels.triton")]
    code = (
        f"import sys\nfor name in {heavy}: sys.modules[name] = None\n"
        f"import importlib\nfor name in {names}: importlib.import_module(name)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.skipif(shutil.which("make") is None, reason="needs make")
def test_make_help_names_every_target():
    makefile = (ROOT / "Makefile").read_text("utf-8")
    phony = next(line for line in makefile.splitlines() if line.startswith(".PHONY:"))
    shown = subprocess.run(
        ["make", "--no-print-directory"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout
    assert [line.split()[1] for line in shown.splitlines()] == phony.split()[1:]


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        ("import torch.nn as nn", [("torch.nn", False)]),
        ("from minibio import batch, load", [("minibio.batch", False), ("minibio", False)]),
        ("def f():\n    from minibio.batch import Batch", [("minibio.batch", True)]),
        ("class A:\n    import tqdm\n    def f(self):\n        import tqdm",
         [("tqdm", False), ("tqdm", True)]),
        ("if 1:\n    try:\n        import triton\n    except ImportError:\n        pass",
         [("triton", False)]),
    ],
)  # fmt: skip
def test_the_reader_of_imports(code, expected):
    assert [(i.module, i.is_inside) for i in imports(ast.parse(code))] == expected


def test_the_reader_refuses_relative_imports():
    with pytest.raises(AssertionError, match="relative import"):
        imports(ast.parse("from . import batch"))
