"""The masked-LM losses as PyTorch sees them: a custom operator with its gradient.

The gradients of the weighted sum are computed in forward, where the logits are at hand, and
multiplied in backward by whatever arrives.

An operator is opaque to `torch.compile`, which needs only the shapes of its results (the fake
implementation), and to autograd, which is given its backward. The computation itself is in
torch_mlm.py, triton_mlm.py, triton_stream.py and cuda_rows.py.

A tensor without elements means that there is none.
"""

import torch
from torch import Tensor

from kernels import cuda_rows, torch_mlm
from kernels.reference import Decoder, Result, wide_dtype


def compute(
    h_s, E_s, b_s, labels, h_t, E_t, b_t, temperature, divergence, impl, g_ce, g_kd, wants
) -> Result:  # fmt: skip
    """The losses of the rows, and the gradients asked for, by one implementation."""
    s, t = Decoder(h_s, E_s, b_s), None if h_t is None else Decoder(h_t, E_t, b_t)
    g_ce = g_ce if any(wants) and labels is not None else None
    g_kd = g_kd if any(wants) and t is not None else None
    options = {"wants": tuple(wants), "temperature": temperature, "divergence": divergence}
    with torch.no_grad(), torch.autocast(h_s.device.type, enabled=False):
        if impl == "torch":
            return torch_mlm.widened(s, t, labels, g_ce, g_kd, **options)
        if impl == "triton-stream":
            from kernels import triton_stream

            return triton_stream.streamed(s, t, labels, g_ce, g_kd, **options)
        step = row_step(impl)
        return torch_mlm.chunked(s, t, labels, g_ce, g_kd, **options, row_step=step)


def row_step(impl: str):
    """The kernel between the products; Triton is imported when it is first asked for."""
    if impl == "cuda":
        return cuda_rows.logit_rows
    assert impl == "triton", impl
    from kernels import triton_mlm

    return triton_mlm.logit_rows


def tensors_of(x: Result, like: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """dh, dE of the first block and of the second, db."""
    none = [like.new_empty(0) for _ in range(4)]  # an operator's results are all of their own
    first, second = [*x.dE, *none[:2]][:2]
    dh, db = none[2] if x.dh is None else x.dh, none[3] if x.db is None else x.db
    return dh, first, second, db


@torch.library.custom_op("minibio::masked_mlm", mutates_args=())
def masked_mlm(
    h_s: Tensor, E_s: list[Tensor], b_s: Tensor | None, labels: Tensor | None,
    h_t: Tensor | None, E_t: list[Tensor], b_t: Tensor | None,
    temperature: float, divergence: str, impl: str,
    g_ce: Tensor, g_kd: Tensor, wants: list[bool],
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """sum(g_ce ce) + sum(g_kd kd), its two terms, and its gradients: dh, dE, dE, db."""
    x = compute(
        h_s, E_s, b_s, labels, h_t, E_t, b_t, temperature, divergence, impl, g_ce, g_kd, wants
    )
    ce, kd = (g_ce * x.ce).sum(), (g_kd * x.kd).sum()
    return ce + kd, ce, kd, *tensors_of(x, h_s)


@masked_mlm.register_fake
def _(h_s, E_s, b_s, labels, h_t, E_t, b_t, temperature, divergence, impl, g_ce, g_kd, wants):
    wants_h, wants_E, wants_b = wants
    dh = h_s.new_empty(h_s.shape) if wants_h else None
    dE = [torch.empty_like(E) for E in E_s] if wants_E else []
    db = h_s.new_empty(b_s.shape, dtype=wide_dtype(h_s)) if wants_b else None
    losses = (g_ce.new_empty(()) for _ in range(3))
    return *losses, *tensors_of(Result(None, None, dh, dE, db), h_s)


def remember_gradients(ctx, inputs, output):
    """Save the finished gradients."""
    _, E_s, b_s, _, _, E_t, *rest = inputs
    ctx.wants, ctx.n_blocks, ctx.n_blocks_t, ctx.n_rest = inputs[-1], len(E_s), len(E_t), len(rest)
    ctx.b_dtype = None if b_s is None else b_s.dtype
    ctx.set_materialize_grads(False)  # else a table of zeros would arrive for each gradient
    ctx.mark_non_differentiable(*output[1:])
    ctx.save_for_backward(*output[3:])


def scale_gradients(ctx, g, *_):
    """Gradients of all arguments of `masked_mlm`: the finished ones times g."""
    if torch.is_grad_enabled():
        raise ValueError(
            "masked_mlm: a second derivative is asked for (create_graph=True), expected a first; "
            "impl='reference' has both"
        )
    wants_h, wants_E, wants_b = ctx.wants if g is not None else [False] * 3
    saved = ctx.saved_tensors
    dh, *dE, db = saved if g is None or is_one(g) else [x * g for x in saved]
    dE = dE[: ctx.n_blocks] if wants_E else [None] * ctx.n_blocks
    db = db.to(ctx.b_dtype) if wants_b else None
    dE_t = [None] * ctx.n_blocks_t
    return dh if wants_h else None, dE, db, None, None, dE_t, *[None] * ctx.n_rest


masked_mlm.register_autograd(scale_gradients, setup_context=remember_gradients)


def is_one(g: Tensor) -> bool:
    """Whether a CPU's factor is 1: the table's gradient then need not be there twice.

    A GPU's factor is not looked at, which would wait for it, nor is a compiler's stand-in for one.
    """
    return type(g) is Tensor and g.device.type == "cpu" and g.item() == 1
