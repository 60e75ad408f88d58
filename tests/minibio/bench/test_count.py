"""The counter against figures by hand, and the step of training against its upper limits."""

import csv

import pytest
import torch
import torch.nn.functional as F
from torch._subclasses.fake_tensor import FakeTensorMode

import train
from minibio.bench import __main__ as bench
from minibio.bench.count import Counted, count, summary
from minibio.bench.step import LENGTHS, Settings
from minibio.config import MODELS
from minibio.distil.objectives import Compact
from minibio.run.errors import InputError

# (method, way) -> what one step of 192 citations of PubMed's lengths may ask of a GPU at most:
# launches, GB of products, GB of the fused operations, GB of all else.
LIMITS = {
    ("compact", "minibio-bf16"): (566, 18.9, 18.2, 26.1),
    ("compact", "minibio"): (550, 37.8, 24.3, 39.3),
    ("tiny", "minibio-bf16"): (433, 11.4, 10.8, 16.7),
    ("distil", "minibio-bf16"): (394, 18.9, 17.2, 20.6),
    ("mlm", "minibio-bf16"): (193, 3.0, 2.7, 4.2),
}
WAITS = 1  # where train.py reads the losses
B, LONGEST = 192, 256


def settings(**changes):
    values = {
        "methods": ["compact"], "by": ["minibio"], "lengths": ["pubmed"],
        "fidelity": ["released"], "teacher_precision": ["fp32"], "student": None,
        "teacher": "biobert", "batch": B, "length": LONGEST, "repeats": 1, "warmup": 1,
    }  # fmt: skip
    return Settings(**values | changes)


SMALL = settings(student="sample-distil", teacher="sample-teacher")


def counted(run, *shapes):
    with FakeTensorMode(), Counted() as seen:
        xs = [torch.empty(shape) for shape in shapes]
        seen.operations.clear()
        run(*xs)
    return seen.operations


@pytest.mark.parametrize("method, way", LIMITS)
def test_a_step_asks_no_more_than_this(method, way):
    lengths = LENGTHS["pubmed"](B, LONGEST, 0)
    operations = count(method, way, "released", lengths, settings())
    step = summary(operations)
    seen = tuple(step[x] for x in ("launches", "products_gb", "fused_gb", "other_gb"))
    assert all(a <= b for a, b in zip(seen, LIMITS[method, way], strict=True)), seen
    assert step["waits"] == WAITS
    assert seen[0] > 100 and min(seen[1:]) > 0.3
    # the gradient of a result without one is not made
    assert not [x for x in operations if x.part == "backward" and x.name in ("zeros", "zeros_like")]


def test_products_by_hand():
    """Two operations for each entry of a matrix and token; three such products in training."""
    lengths, (teacher, student) = [7, 13], (MODELS["sample-teacher"], MODELS["sample-distil"])
    N, M = 20, 3
    operations = count("compact", "minibio", "released", lengths, SMALL)

    def layers(c):
        return c.L * (4 * c.C**2 + 2 * c.C * c.F) * 2 * N + c.C**2 * 2 * M  # and the head's own

    flops = {p: sum(x.flops for x in operations if x.part == p) for p in ("teacher", "backward")}
    assert flops == {"teacher": layers(teacher), "backward": 2 * layers(student)}
    assert sum(x.flops for x in operations) == layers(teacher) + 3 * layers(student)


def test_traffic_by_hand():
    (x,) = counted(F.linear, (3, 4), (5, 4))
    assert (x.kind, x.flops, x.n_bytes) == ("products", 2 * 3 * 4 * 5, 4 * (12 + 20 + 15))
    (x,) = counted(lambda a, b: a + b, (3, 4), (4,))
    assert (x.kind, x.name, x.n_bytes) == ("other", "add", 4 * (12 + 4 + 12))
    (x,) = counted(lambda a: a.mul_(2), (3, 4))
    assert x.n_bytes == 4 * (12 + 12)
    (x,) = counted(lambda a: a.zero_(), (3, 4))
    assert x.n_bytes == 4 * 12
    (x,) = counted(lambda a, b: a.expand(3, 4).add(b), (1, 4), (3, 4))
    assert x.n_bytes == 4 * (4 + 12 + 12)  # what is expanded is read once
    (x,) = counted(lambda a, b, c: torch.mm(a, b, out=c), (3, 4), (4, 5), (3, 5))
    assert x.n_bytes == 4 * (12 + 20 + 15)
    (x,) = counted(lambda a: torch._foreach_mul_([a, a], 2.0), (3, 4))
    assert x.n_bytes == 2 * 4 * (12 + 12)
    (x,) = counted(lambda a, b: torch._foreach_copy_([a], [b]), (3, 4), (3, 4))
    assert x.n_bytes == 4 * (12 + 12)
    places, x = counted(lambda a: F.embedding(torch.zeros(2, dtype=torch.int64), a), (9, 4))
    assert x.n_bytes == 2 * 4 * 8  # two rows of the table, not the table
    assert not counted(lambda a: a.view(2, 6).t()[1:].detach().unsqueeze(0), (4, 3))


def test_waits_by_hand():
    operations = counted(lambda a: (a.item(), torch.tensor([1.0])), (1,))
    assert [(x.name, x.waits) for x in operations] == [
        ("_local_scalar_dense", 1),
        ("lift_fresh", 1),
    ]


def test_a_wait_or_an_operation_more_is_seen(monkeypatch):
    def figures():
        return summary(count("compact", "minibio-bf16", "released", [7, 13], SMALL))

    before, forward = figures(), Compact.forward

    def slower(self, batch, taught, counts):
        parts = forward(self, batch, taught, counts)
        return {**parts, "loss": parts["loss"] * float(taught.last.sum())}

    monkeypatch.setattr(Compact, "forward", slower)
    after = figures()
    assert before["waits"] == 1 and after["waits"] == 2
    assert before["launches"] + 3 == after["launches"]  # sum, product, and the product's gradient


def test_it_is_the_loop_of_train_py(monkeypatch):
    seen, train_on = [], train.train

    def watched(objective, teacher, feed, held_out, run, run_dir, stop):
        for progress in train_on(objective, teacher, feed, held_out, run, run_dir, stop):
            seen.append((progress.step, progress.tokens, run.precision, run.method))
            yield progress

    monkeypatch.setattr(train, "train", watched)
    count("compact", "minibio-bf16", "paper", [7, 13], SMALL)
    assert seen == [(i, 20 * i, "bf16", "compact") for i in (0, 1, 2)]


def test_the_table(tmp_path, capsys):
    out = tmp_path / "count.csv"
    bench.main([
        "count", "--methods", "mlm", "compact", "--student", "sample-distil", "--teacher",
        "sample-teacher", "--batch", "3", "--length", "40", "--top", "2", "--out", str(out),
    ])  # fmt: skip
    header, *lines = out.read_text("utf-8").splitlines()
    rows = list(csv.DictReader(lines))
    mlm = ["forward", "backward", "update", "step"]
    assert [(r["method"], r["part"]) for r in rows] == [
        *(("mlm", part) for part in mlm * 2),
        *(("compact", part) for part in ["teacher", *mlm] * 2),
    ]
    assert [r["by"] for r in rows[:8]] == ["minibio"] * 4 + ["minibio-bf16"] * 4
    for part in (rows[:4], rows[8:13]):
        for name in ("launches", "waits"):
            assert sum(int(r[name]) for r in part[:-1]) == int(part[-1][name]) > 0
    assert header.startswith("# ") and capsys.readouterr().out.count(" times ") == 2 * 4
    with pytest.raises(InputError, match="needs --teacher ib-bert"):
        bench.main(["count", "--methods", "mobile"])
