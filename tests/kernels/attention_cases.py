"""Rows of sequences, and comparisons with the definition, for the tests of attention."""

from itertools import accumulate

import numpy as np
import torch

import kernels
from helpers import DEVICE, assert_near, guarded
from kernels import reference

F64, F32, F16, B16 = torch.float64, torch.float32, torch.float16, torch.bfloat16
# (lengths, heads, student's width, teacher's): on the eights; off; runs; nothing or next to it
SHAPES = {
    "T8,16-H2-D32": ((8, 16), 2, 32, 64),
    "T17,1,0,9-H2-D26": ((17, 1, 0, 9), 2, 26, 64),
    "T5,5,3,3,3,9-H3-D26": ((5, 5, 3, 3, 3, 9), 3, 26, 20),
    "T9-H2-D4-wide": ((9,), 2, 4, 200),
    "T1-H1-D1": ((1,), 1, 1, 1),
    "T0,2,0-H1-D5": ((0, 2, 0), 1, 5, 3),
    "T0,0-H2-D3": ((0, 0), 2, 3, 4),
    "empty-H2-D3": ((), 2, 3, 4),
}


def boundaries(lengths, device=DEVICE):
    """cu_seqlens of these lengths."""
    return torch.tensor([0, *accumulate(lengths)], dtype=torch.int32, device=device)


def row_of(lengths, device=DEVICE):
    """The two arguments that say where sequences begin."""
    return boundaries(lengths, device), max(lengths, default=0)


def tensors(shape, dtype, dtype_t=None):
    """[q_s, k_s, v_s], [q_t, k_t] rounded to their types, each between two NaN bands."""
    lengths, H, D_s, D_t = shape
    N = sum(lengths)
    student = [guarded(torch.randn(N, H, D_s).to(dtype).to(DEVICE)) for _ in range(3)]
    teacher = [guarded(torch.randn(N, H, D_t).to(dtype_t or dtype).to(DEVICE)) for _ in range(2)]
    return [x.requires_grad_() for x in student], teacher


def mask_of(lengths, H, p):
    """Dropout's bits for a row, (N, H, ceil(max_len / 8)); None for p = 0."""
    if not p:
        return None
    is_kept = torch.rand(sum(lengths), H, max(lengths, default=0)) >= p
    return reference.pack_bits(is_kept).to(DEVICE)


def compute(impl, qkv, teacher, lengths, divergence, **options):
    """out, row_loss and lse of `attention_kl`; out and lse of `attention` for "none"."""
    if divergence == "none":
        return kernels.attention(*qkv, *row_of(lengths), impl=impl, **options)
    return kernels.attention_kl(
        *qkv, *teacher, *row_of(lengths), divergence=divergence, impl=impl, **options
    )


def gradients(outputs, inputs, cotangents):
    """Gradients of `inputs`; zeros where an empty row leaves nothing in the graph."""
    g = [c.to(x.dtype) for c, x in zip(cotangents, outputs, strict=True)]
    return torch.autograd.grad(outputs, inputs, g, materialize_grads=True)


def assert_as_truth(got, inputs, truth, inputs_64, limit, limit_rows=None):
    """Every result, and the gradients of q, k and v under random cotangents, row by row.

    got, truth: out, (row_loss,) lse. limit: of what is rounded to the inputs' type; limit_rows: of
    what is accumulated in float32.
    """
    limits = (limit, *[limit_rows or limit] * 2)
    names = ("out", "lse") if len(got) == 2 else ("out", "row_loss", "lse")
    for name, x, y, bound in zip(names, got, truth, limits, strict=False):
        assert_near(name, x, y, bound)
    # not .sum(): the gradient of a sum of probabilities is 0 whatever the code does
    outputs, outputs_64 = got[:-1], truth[:-1]
    cotangents = [3.0 * torch.randn_like(x) for x in outputs_64]
    cotangents = [g.to(x.dtype).double() for g, x in zip(cotangents, outputs, strict=True)]
    g = gradients(outputs, inputs, cotangents)
    g_64 = gradients(outputs_64, inputs_64, cotangents)
    for name, x, y in zip(("dq", "dk", "dv"), g, g_64, strict=True):
        assert_near(name, x, y, limit)


def hashed(seed, row, T):
    """Dropout's 16 random bits for each of the first T entries of a row, by Python's integers."""
    M = 2**32 - 1

    def mix(x):
        x = (x ^ x >> 16) * 0x7FEB352D & M
        x = (x ^ x >> 15) * 0x846CA68B & M
        return x ^ x >> 16

    first = mix(seed & M ^ mix(seed >> 32))
    second = mix(first ^ seed >> 32)
    words = []
    for n in range(-(-T // 16) * 8):
        x = (row * 0xE35E67B1 + n * 0x9E3779B9 + first) & M
        x = (x ^ x >> 16) * 0x7FEB352D & M
        words.append((x ^ x >> 15 ^ second) * 0x846CA68B & M)
    words = np.array(words, np.uint32).reshape(-1, 1, 8)  # (T / 16, half, 8)
    return (words >> np.array([[0], [16]], np.uint32)).astype(np.uint16).reshape(-1)[:T]


GPU_SHAPES = [((200, 31, 0, 1, 256), 12, 26, 64), ((128, 128), 4, 32, 256), ((512, 77), 2, 64, 64)]


def accuracy(qkv, teacher, lengths, divergence, impl, options):
    """Errors of a result and its gradients against float64, each as a norm relative to the truth's.

    Each entry of a map and of its gradient is rounded by itself, so the norm of the sums over them
    carries the rounding's mean size; the largest of many thousand errors has no such limit.
    """
    qkv_64 = [x.detach().double().requires_grad_() for x in qkv]
    truth = compute(
        "reference", qkv_64, [x.double() for x in teacher], lengths, divergence, **options
    )
    got = compute(impl, qkv, teacher, lengths, divergence, **options)
    torch.manual_seed(9)
    g = [torch.randn_like(x) for x in truth[:-1]]
    grads_64 = torch.autograd.grad(truth[:-1], qkv_64, g)
    grads = torch.autograd.grad(
        got[:-1], qkv, [x.to(y.dtype) for x, y in zip(g, got, strict=False)]
    )
    return [
        ((x.double() - y).norm() / y.norm()).item()
        for x, y in zip((*got, *grads), (*truth, *grads_64), strict=True)
    ]
