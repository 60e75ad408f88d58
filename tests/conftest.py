"""Common to every test: no network, one thread, a fixed seed, Triton interpreted on a CPU."""

import os
import signal

import pytest
import torch

from helpers import without_pictures
from kernels.machine import is_cuda_fault, version

if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"  # before any @triton.jit runs
if version("triton").startswith("3.6."):
    # Its interpreter keeps a number as an array of one element and asks int() for it, which numpy
    # refuses since 2.4. Triton 3.9's squeezes it first; so does this.
    from triton.runtime import interpreter

    def patch_tensor(tensor, scope, patch=interpreter._patch_lang_tensor):
        patch(tensor, scope)
        scope.set_attr(tensor, "__index__", lambda self: int(self.handle.data.squeeze()))

    interpreter._patch_lang_tensor = patch_tensor
os.environ["HF_HUB_OFFLINE"] = "1"  # transformers asks no server for a model it does not find
# Shapes are small: a second thread waits more than it works, and far more on a busy machine.
torch.set_num_threads(1)
os.environ["OMP_NUM_THREADS"] = "1"  # of the processes that tests start
# The first context of a device lists torch.empty among the functions it serves, once and for all:
# it must be torch's own, whichever test a process runs first (banded_empty puts another there).
with torch.device("cpu"):
    torch.zeros(0)
# A shell starts what it puts in the background with Ctrl-C ignored, which processes hand down.
signal.signal(signal.SIGINT, signal.default_int_handler)

BAND = 64
# Begun first, the longest first: processes that share out the files then end at about one time.
LONGEST = ("test_resume.py", "test_attention_ops.py", "test_dist.py", "test_cuda_attention.py",
           "test_cuda_source.py", "test_shard.py", "test_eval.py", "test_train.py",
           "test_triton_sm90.py", "test_pubmed.py", "test_checkpoint.py", "test_mlm_ops.py",
           "test_triton_mlm_sm90.py", "test_readme.py", "test_parallel.py", "test_convert.py",
           "test_layout.py", "test_eval_loop.py", "test_fetch.py")  # fmt: skip


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers(config):
    """One process more than cores: tests of ranks that die or resume wait more than they work."""
    return (os.cpu_count() or 1) + 1


def pytest_collection_modifyitems(items):
    items.sort(key=lambda x: LONGEST.index(x.path.name) if x.path.name in LONGEST else len(LONGEST))
    if not torch.cuda.is_available():
        skip = pytest.mark.skip(reason="needs a CUDA device (make gpu)")
        for item in items:
            if "gpu" in item.keywords:
                item.add_marker(skip)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item, call):
    """After a CUDA error nothing in this process can use the GPU: the first one ends it."""
    report = yield
    if call.excinfo is not None and is_cuda_fault(call.excinfo.value):
        item.session.shouldfail = f"stopped at the first CUDA error, in {item.nodeid}"
    return report


@pytest.fixture(autouse=True, scope="session")
def no_pictures():
    without_pictures()


@pytest.fixture(autouse=True)
def fixed_state():
    """The seed fixed; what holds for the whole process put back, since tests call main() too."""
    torch.manual_seed(0)
    deterministic = torch.are_deterministic_algorithms_enabled()
    only_warns = torch.is_deterministic_algorithms_warn_only_enabled()
    fills = torch.utils.deterministic.fill_uninitialized_memory
    threads = torch.get_num_threads()
    interrupt = signal.getsignal(signal.SIGINT)
    yield
    signal.signal(signal.SIGINT, interrupt)
    torch.use_deterministic_algorithms(deterministic, warn_only=only_warns)
    torch.utils.deterministic.fill_uninitialized_memory = fills
    if torch.get_num_threads() != threads:
        torch.set_num_threads(threads)


@pytest.fixture
def banded_empty(monkeypatch):
    """torch.empty, empty_like give NaN inside NaN bands: a forgotten output is NaN, a stray store
    shows. (Not Tensor.new_empty: Triton's interpreter calls it itself, so kernels here do not.)

    Kernel tests ask for it: `pytestmark = pytest.mark.usefixtures("banded_empty")`. It is not there
    for all tests, since safetensors, torch.nn and transformers call torch.empty too, with arguments
    and dtypes that only torch itself knows how to serve.
    """
    made = []

    def banded(shape, dtype, device):
        n = torch.Size(shape).numel()
        is_float = dtype.is_floating_point
        fill = float("nan") if is_float else torch.iinfo(dtype).min  # integers have no NaN
        buf = torch.full((n + 2 * BAND,), fill, dtype=dtype, device=device)
        made.append((buf, n))
        return buf[BAND : BAND + n].view(shape)

    def empty(*shape, dtype=None, device=None):
        shape = shape[0] if len(shape) == 1 and not isinstance(shape[0], int) else shape
        return banded(shape, dtype or torch.get_default_dtype(), device)

    def empty_like(x, dtype=None):
        return banded(x.shape, dtype or x.dtype, x.device)

    monkeypatch.setattr(torch, "empty", empty)
    monkeypatch.setattr(torch, "empty_like", empty_like)
    yield
    monkeypatch.undo()
    for buf, n in made:
        ends = torch.cat([buf[:BAND], buf[BAND + n :]])
        whole = ends.isnan() if buf.dtype.is_floating_point else ends == torch.iinfo(buf.dtype).min
        assert whole.all(), "a kernel wrote outside its output"
