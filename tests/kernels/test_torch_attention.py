"""How the row is cut, where maps are formed and where not. What is computed: test_ops.py."""

import pytest
import torch
from attention_cases import B16, F32, F64, boundaries, compute, row_of, tensors

import kernels
from helpers import assert_near
from kernels import torch_attention
from kernels.reference import DIVERGENCES

CPU = torch.device("cpu")


@pytest.mark.parametrize(
    ("lengths", "limit", "expected"),
    [
        ((), None, []),
        ((0, 0), None, []),
        ((5, 5, 3, 5), None, [(2, 5), (1, 3), (1, 5)]),
        ((4, 0, 4, 7), None, [(2, 4), (1, 7)]),  # nothing stands between the two fours
        ((2, 2, 2, 2, 2), 8, [(2, 2), (2, 2), (1, 2)]),  # two maps of 4 entries in 8
        ((9, 9), 8, [(1, 9), (1, 9)]),  # a sequence is never cut
    ],
)
def test_runs(lengths, limit, expected):
    assert torch_attention.runs(lengths, limit) == expected


@pytest.mark.parametrize("lengths", [(5, 5, 3, 5), (9, 1, 1, 1, 1, 0, 2), (4,) * 7])
@pytest.mark.parametrize("limit", [1, 20, 60, 10**6])
def test_blocks_are_the_whole_row_once(lengths, limit):
    H = 3
    seen = torch.zeros(sum(lengths), H, dtype=torch.int64)
    for tokens, T, heads in torch_attention.blocks(lengths, H, limit):
        n, h = (tokens.stop - tokens.start) // T, heads.stop - heads.start
        assert n * h * T * T <= limit or n * h == 1
        assert n == 1 or h == H
        seen[tokens, heads] += 1
    assert (seen == 1).all()


def test_rectangles_and_back():
    x = torch.randn(12, 5, 4)  # three sequences of four
    r = torch_attention.rectangle(x, 4)
    assert r.shape == (15, 4, 4)
    assert torch.equal(r[7], x[4:8, 2])  # second sequence, third head
    assert torch.equal(torch_attention.row(r, 4, 5), x)
    alone = torch_attention.rectangle(x[:4], 4)  # one sequence: nothing is copied
    assert alone.untyped_storage().data_ptr() == x.untyped_storage().data_ptr()


@pytest.mark.parametrize("entries", [1, 60, 10**6])
@pytest.mark.parametrize("divergence", DIVERGENCES)
def test_blocks_of_any_size_give_the_same(divergence, entries, monkeypatch):
    monkeypatch.setattr(torch_attention, "MAP_ENTRIES", entries)
    shape = ((4, 4, 4, 6, 6), 2, 5, 5)
    qkv, teacher = tensors(shape, F64)
    truth = compute("reference", qkv, teacher, shape[0], divergence)
    got = compute("torch", qkv, teacher, shape[0], divergence)
    for x, y in zip(got, truth, strict=True):
        assert_near("result", x, y, 1e-12)


def test_log_sum_exp_of_rows_known_by_their_softmax():
    z = torch.randn(3, 9, dtype=F64) * torch.tensor([1.0, 30.0, 900.0])[:, None]
    got = torch_attention.log_sum_exp(z, z.softmax(-1))
    assert_near("lse", got, z.logsumexp(-1), 1e-14)


@pytest.mark.parametrize("divergence", ["none", "kl_st", "kl_ts", "mse_maps"])
def test_memory_is_one_block_s(divergence, monkeypatch):
    """Maps of 20 sequences would be 20 times the buffers: no tensor is larger than those."""
    monkeypatch.setattr(torch_attention, "MAP_ENTRIES", 2 * 32 * 32)
    lengths = (32,) * 20
    qkv, teacher = tensors((lengths, 2, 2, 2), F32)
    made = []
    empty, softmax = torch.empty, torch.softmax

    def watched(*shape, **options):
        made.append(empty(*shape, **options))
        return made[-1]

    def inside(*args, out):
        made.append(out)
        return softmax(*args, out=out)

    monkeypatch.setattr(torch, "empty", watched)
    monkeypatch.setattr(torch, "softmax", inside)
    out, *_ = compute("torch", qkv, teacher, lengths, divergence, dropout=0.1)
    out.sum().backward()
    largest = max(x.untyped_storage().nbytes() for x in made)
    assert largest <= 4 * (4 * 2 * 32 * 32)  # four buffers of float32
    assert max(x.numel() for x in made if x.dim() == 3 and x.shape[-1] == 32) <= 2 * 32 * 32


def test_plain_attention_forms_no_map(monkeypatch):
    monkeypatch.setattr(torch_attention, "Buffers", None)
    qkv, _ = tensors(((9, 9, 4), 2, 6, 6), F32)
    out, lse = kernels.attention(*qkv, *row_of((9, 9, 4), CPU), impl="torch")
    out.sum().backward()
    assert lse.shape == (22, 2) and qkv[0].grad is not None
    with pytest.raises(TypeError):  # with dropout there is no such kernel
        kernels.attention(*qkv, *row_of((9, 9, 4), CPU), impl="torch", dropout=0.1)


def test_dropout_of_a_block_is_its_own_and_repeats():
    seed = torch.tensor([3])
    qkv, _ = tensors(((8, 8, 8), 2, 4, 4), B16)
    call = torch_attention.Call(
        *qkv, None, None, None, seed, boundaries((8, 8, 8)), 8, "none", 0.25, 1.0, 1.0
    )
    one, again = (torch_attention.kept(call, slice(0, 8), 8, slice(0, 2)) for _ in range(2))
    assert torch.equal(one, again) and one.shape == (2, 8, 8) and one.dtype == torch.uint8
    others = [
        torch_attention.kept(call, slice(8, 16), 8, slice(0, 2)),
        torch_attention.kept(call._replace(seed=torch.tensor([4])), slice(0, 8), 8, slice(0, 2)),
    ]
    assert not any(torch.equal(one, x) for x in others)
    assert set(one.unique().tolist()) == {0, 1}


@pytest.mark.parametrize("lengths", [(7,), (5, 5, 5), (1,), (4, 0, 4)])
@pytest.mark.parametrize("dtype", [F32, F64, B16])
def test_a_single_run_gives_what_its_sequences_give_apart(lengths, dtype):
    q, k, v = torch.randn(3, sum(lengths), 2, 8).to(dtype)
    out, lse = kernels.attention(q, k, v, boundaries(lengths), max(lengths), impl="torch")
    assert out.is_contiguous() and out.shape == q.shape and lse.shape == q.shape[:2]
    first = 0
    for T in lengths:
        part = slice(first, first + T)
        one = kernels.reference.attention(
            *(x[part].double() for x in (q, k, v)), boundaries([T]), scale=8**-0.5
        )
        limit = 2e-2 if dtype == B16 else 1e-5
        assert_near("out", out[part], one[0], limit) if T else None
        assert_near("lse", lse[part], one[1], limit) if T else None
        first += T
