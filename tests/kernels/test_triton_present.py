"""On Linux x86-64 Triton has to be there: a kernel test that is skipped tests nothing."""

import platform
import sys

import pytest
import torch

from helpers import DEVICE

HAS_WHEELS = sys.platform == "linux" and platform.machine() == "x86_64"


@pytest.mark.skipif(not HAS_WHEELS, reason="Triton has wheels for Linux x86-64 alone")
def test_a_kernel_runs(banded_empty):
    """y = 2 x in two blocks, the second of one element: on the GPU, or in Triton's interpreter."""
    import triton
    import triton.language as tl

    @triton.jit
    def double(ptr_x, ptr_y, n, BLOCK: tl.constexpr):
        o = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
        m = o < n
        tl.store(ptr_y + o, 2.0 * tl.load(ptr_x + o, mask=m, other=0.0), mask=m)

    x = torch.randn(9, device=DEVICE)
    y = torch.empty_like(x)
    double[(2,)](x, y, x.numel(), BLOCK=8)
    assert torch.equal(y, 2 * x)
