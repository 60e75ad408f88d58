"""Arrows point down: every import of every source file, read from its syntax tree.

A module imports only modules of strictly lower levels, so the code can be read from the bottom up
and there are no cycles. Packages that a machine may lack are imported inside the function that
needs them; nothing reads or writes pickles; each source file has its test file.
"""

import ast
import shutil
import subprocess
import sys
from fnmatch import fnmatch
from pathlib import Path
from typing import NamedTuple

import pytest

from helpers import ROOT

# From the bottom up. A new file takes its place here.
LEVELS = (
    ("kernels.reference", "kernels.timing", "kernels.machine", "minibio", "minibio.errors",
     "minibio.batch", "minibio.config", "minibio.masking", "minibio.optim", "minibio.prefetch",
     "data.frames", "data.lexicon", "data.duplicates", "data.markup", "data.download", "data.pins",
     "minibio.tasks.tags", "minibio.tasks.paper_tables"),
    ("kernels.torch_*", "kernels.triton_*", "kernels.cuda_rows",
     "minibio.files", "minibio.dist", "minibio.card", "minibio.state", "minibio.tasks.forward",
     "data.grammar",
     "data.records", "data.parallel", "data.pubmed_xml", "data.pubmed_index", "data.sources"),
    ("kernels.choice",
     "minibio.tokenizer", "minibio.shards", "minibio.metrics", "minibio.log", "minibio.store",
     "minibio.signals", "minibio.gradients", "data.leakage", "data.pubmed_passes", "data.fetched",
     "data.unpack", "minibio.tasks.lines"),
    ("kernels.attention_ops", "kernels.mlm_ops", "minibio.corpus", "minibio.checkpoint",
     "minibio.tasks.pieces", "data.pieces"),
    ("minibio.feed", "data.workplace"),
    ("data", "data.*"),
    ("kernels.maps", "kernels.mlm"),
    ("kernels",),
    ("kernels.bench_*", "minibio.attention"),
    ("kernels.bench", "minibio.transformer", "minibio.losses"),
    ("minibio.mobilebert", "minibio.names"),
    ("minibio.heads",),
    ("minibio.convert",),
    ("minibio.distil", "minibio.measure", "minibio.tasks", "minibio.tasks.*", "minibio.plot",
     "minibio.gpu", "minibio.report", "minibio.epochs"),
    ("minibio.estimate", "minibio.authors", "minibio.engine", "minibio.students",
     "minibio.predict", "minibio.task_objective", "minibio.charts", "minibio.records"),
    ("minibio.bench_step", "minibio.finetune", "minibio.speed", "minibio.tables"),
    ("minibio.bench", "minibio.experiments"),
    ("minibio.compare",),
    ("train", "eval"),
)  # fmt: skip

EVERYWHERE = {"torch", "numpy"}
AT_TOP = {  # package -> files that cannot do without it
    "safetensors": ("minibio.convert", "minibio.store"),
    "tokenizers": ("minibio.tokenizer",),
    "triton": ("kernels.triton_*",),
}
INSIDE_FUNCTIONS = {  # package -> files that do without it until the function is called
    "tqdm": ("*",),
    "seqeval": (),  # an oracle of the tests
    "matplotlib": ("minibio.plot",),
    "transformers": ("minibio.authors", "minibio.bench"),
    "liger_kernel": ("kernels.bench_mlm",),
    "cut_cross_entropy": ("kernels.bench_mlm",),
    "triton": (),
}
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


def level(name: str) -> int:
    for number, names in enumerate(LEVELS):
        if any(fnmatch(name, pattern) for pattern in names):
            return number
    raise AssertionError(f"{name} has no level; give it one in LEVELS of tests/test_layout.py")


def is_one_of(name: str, patterns) -> bool:
    return any(fnmatch(name, pattern) for pattern in patterns)


every_source = pytest.mark.parametrize("name", SOURCES)


@every_source
def test_arrows_point_down(name):
    for target, line, is_inside in imports(TREES[name]):
        if target.split(".")[0] in OURS:
            assert target in SOURCES, f"{name}:{line} imports {target}, which is not there"
            if name == "minibio" and is_inside:
                continue  # the doors for users: opened by __getattr__, when asked for
            assert level(target) < level(name), (
                f"{name}:{line} (level {level(name)}) imports {target} (level {level(target)})"
            )
            if name.split(".")[0] == "kernels":
                assert target.split(".")[0] == "kernels", f"{name}:{line} imports {target}"


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


@pytest.mark.parametrize(
    "name", [name for name, path in SOURCES.items() if path.name != "__init__.py"]
)
def test_each_source_file_has_its_test_file(name):
    *folders, stem = name.split(".")
    test = ROOT.joinpath("tests", *folders, f"test_{stem}.py")
    assert test.exists(), f"expected {test.relative_to(ROOT)}"


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
