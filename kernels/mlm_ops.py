"""The masked-LM losses as PyTorch sees them: custom operators with their gradients.

    means       two numbers; every gradient is worked out in forward, where the logits are at hand,
                and multiplied in backward by what arrives
    rows        a number for each row, each with a gradient of its own: backward forms the logits
                again

An operator is opaque to `torch.compile`, which needs to know its results' shapes alone (the fake
implementation), and to autograd, which is given its backward. What is computed, and how, stands in
torch_mlm.py, triton_mlm.py and triton_stream.py.

A tensor of no elements stands for what there is not.
"""

import torch
from torch import Tensor

from kernels import cuda_rows, torch_mlm
from kernels.reference import Result, Side, wide_dtype


def compute(
    h_s, E_s, b_s, labels, h_t, E_t, b_t, temperature, divergence, impl, g_ce, g_kd, wants
) -> Result:  # fmt: skip
    """The rows, and the gradients that are wanted, by one implementation."""
    s, t = Side(h_s, E_s, b_s), None if h_t is None else Side(h_t, E_t, b_t)
    g_ce = g_ce if any(wants) and labels is not None else None
    g_kd = g_kd if any(wants) and t is not None else None
    options = {"wants": tuple(wants), "temperature": temperature, "divergence": divergence}
    with torch.no_grad(), torch.autocast(h_s.device.type, enabled=False):
        if impl == "torch":
            return torch_mlm.widened(s, t, labels, g_ce, g_kd, **options)
        if impl == "cuda":
            step = cuda_rows.logit_rows
            return torch_mlm.chunked(s, t, labels, g_ce, g_kd, **options, row_step=step)
        if impl == "triton":
            from kernels import triton_mlm

            step = triton_mlm.logit_rows
            return torch_mlm.chunked(s, t, labels, g_ce, g_kd, **options, row_step=step)
        assert impl == "triton-stream", impl
        from kernels import triton_stream

        return triton_stream.streamed(s, t, labels, g_ce, g_kd, **options)


def tensors_of(x: Result, like: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """dh, dE of the first block and of the second, db."""
    none = [like.new_empty(0) for _ in range(4)]  # an operator's results are all of their own
    first, second = [*x.dE, *none[:2]][:2]
    dh, db = none[2] if x.dh is None else x.dh, none[3] if x.db is None else x.db
    return dh, first, second, db


def shapes_of(h_s, E_s, b_s, wants) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Tensors as `tensors_of` gives them, with nothing in them."""
    wants_h, wants_E, wants_b = wants
    dh = h_s.new_empty(h_s.shape) if wants_h else None
    dE = [torch.empty_like(E) for E in E_s] if wants_E else []
    db = h_s.new_empty(b_s.shape, dtype=wide_dtype(h_s)) if wants_b else None
    return tensors_of(Result(None, None, dh, dE, db), h_s)


def gradients_of(ctx, tensors) -> tuple:
    """Of all the arguments of `means` or `rows`, from those four tensors."""
    dh, first, second, db = tensors
    wants_h, wants_E, wants_b = ctx.wants
    dE = [first, second][: ctx.n_blocks] if wants_E else [None] * ctx.n_blocks
    db = db.to(ctx.b_dtype) if wants_b else None
    return dh if wants_h else None, dE, db, None, None, [None] * ctx.n_blocks_t, *ctx.rest


def remember(ctx, inputs, wants) -> None:
    """What `gradients_of` has to know."""
    _, E_s, b_s, _, _, E_t, *rest = inputs
    ctx.wants, ctx.n_blocks, ctx.n_blocks_t = wants, len(E_s), len(E_t)
    ctx.rest = [None] * len(rest)
    ctx.b_dtype = None if b_s is None else b_s.dtype


# ---- two numbers


@torch.library.custom_op("minibio::masked_mlm", mutates_args=())
def means(
    h_s: Tensor, E_s: list[Tensor], b_s: Tensor | None, labels: Tensor | None,
    h_t: Tensor | None, E_t: list[Tensor], b_t: Tensor | None,
    temperature: float, divergence: str, impl: str,
    g_ce: Tensor, g_kd: Tensor, wants: list[bool],
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """sum(g_ce ce) and sum(g_kd kd), and the gradients of the sum of both."""
    x = compute(
        h_s, E_s, b_s, labels, h_t, E_t, b_t, temperature, divergence, impl, g_ce, g_kd, wants
    )
    return (g_ce * x.ce).sum(), (g_kd * x.kd).sum(), *tensors_of(x, h_s)


@means.register_fake
def _(h_s, E_s, b_s, labels, h_t, E_t, b_t, temperature, divergence, impl, g_ce, g_kd, wants):
    return g_ce.new_empty(()), g_kd.new_empty(()), *shapes_of(h_s, E_s, b_s, wants)


def remember_gradients(ctx, inputs, output):
    remember(ctx, inputs, wants=inputs[-1])
    ctx.has_ce, ctx.has_kd = inputs[3] is not None, inputs[4] is not None
    ctx.set_materialize_grads(False)  # else a table of zeros would arrive for each gradient
    ctx.mark_non_differentiable(*output[2:])
    ctx.save_for_backward(*output[2:])


def scale_gradients(ctx, g_ce, g_kd, *_):
    if torch.is_grad_enabled():
        raise ValueError(
            "masked_mlm: a second derivative is asked for (create_graph=True), expected a first; "
            "impl='reference' has both"
        )
    if g_ce is None and g_kd is None:
        return None, [None] * ctx.n_blocks, None, None, None, [None] * ctx.n_blocks_t, *ctx.rest
    zero = torch.zeros_like(g_kd if g_ce is None else g_ce)
    g_ce, g_kd = zero if g_ce is None else g_ce, zero if g_kd is None else g_kd
    g = common_factor(g_ce, g_kd) if ctx.has_ce and ctx.has_kd else g_ce if ctx.has_ce else g_kd
    saved = ctx.saved_tensors
    return gradients_of(ctx, saved if is_one(g) else [x * g for x in saved])


means.register_autograd(scale_gradients, setup_context=remember_gradients)


def is_one(g: Tensor) -> bool:
    """Whether a CPU's factor is 1: the table's gradient then need not be there twice.

    Not asked of a GPU, which would have to be waited for, nor while a compiler looks on, whose
    tensors are of a type of their own.
    """
    return type(g) is Tensor and g.device.type == "cpu" and g.item() == 1


@torch.library.custom_op("minibio::common_factor", mutates_args=())
def common_factor(g_ce: Tensor, g_kd: Tensor) -> Tensor:
    """What arrives at both; an error where it is not the same.

    On a GPU the check runs there, and nothing waits for it: a difference stops the program later.
    """
    is_same = torch.isclose(g_ce, g_kd, rtol=0.0, atol=0.0, equal_nan=True)
    todo = "weigh them with ce_weight and kd_weight, or ask for per_row=True"
    if g_ce.device.type == "cuda":
        torch._assert_async(
            is_same, f"masked_mlm: gradients of ce and kd differ, expected the same; {todo}"
        )
    elif not is_same:
        raise ValueError(
            f"masked_mlm: the gradients that arrive at ce and kd are {g_ce.item():g} and "
            f"{g_kd.item():g}, expected the same, as of their sum; {todo}"
        )
    return g_ce.clone()


@common_factor.register_fake
def _(g_ce, g_kd):
    return torch.empty_like(g_ce)


# ---- a number for each row


@torch.library.custom_op("minibio::masked_mlm_rows", mutates_args=())
def rows(
    h_s: Tensor, E_s: list[Tensor], b_s: Tensor | None, labels: Tensor | None,
    h_t: Tensor | None, E_t: list[Tensor], b_t: Tensor | None,
    temperature: float, divergence: str, impl: str,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """ce and kd of every row: (M,) each."""
    args = h_s, E_s, b_s, labels, h_t, E_t, b_t, temperature, divergence, impl
    x = compute(*args, None, None, [False] * 3)
    return x.ce, x.kd


@rows.register_fake
def _(h_s, *_):
    return tuple(h_s.new_empty(h_s.shape[:1], dtype=wide_dtype(h_s)) for _ in range(2))


@torch.library.custom_op("minibio::masked_mlm_gradients", mutates_args=())
def row_gradients(
    h_s: Tensor, E_s: list[Tensor], b_s: Tensor | None, labels: Tensor | None,
    h_t: Tensor | None, E_t: list[Tensor], b_t: Tensor | None,
    temperature: float, divergence: str, impl: str,
    g_ce: Tensor, g_kd: Tensor, wants: list[bool],
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """Gradients of sum(g_ce ce + g_kd kd), with the logits formed again."""
    x = compute(
        h_s, E_s, b_s, labels, h_t, E_t, b_t, temperature, divergence, impl, g_ce, g_kd, wants
    )
    return tensors_of(x, h_s)


@row_gradients.register_fake
def _(h_s, E_s, b_s, labels, h_t, E_t, b_t, temperature, divergence, impl, g_ce, g_kd, wants):
    return shapes_of(h_s, E_s, b_s, wants)


def remember_inputs(ctx, inputs, output):
    h_s, E_s, b_s, labels, h_t, E_t, b_t, *ctx.options = inputs
    remember(ctx, inputs, wants=None)  # backward knows
    ctx.save_for_backward(h_s, *E_s, b_s, labels, h_t, *E_t, b_t)


def form_again(ctx, g_ce, g_kd):
    needs_h, needs_E, needs_b, *_ = ctx.needs_input_grad
    ctx.wants, n = [needs_h, any(needs_E), needs_b], ctx.n_blocks
    h_s, *x = ctx.saved_tensors
    E_s, (b_s, labels, h_t, *E_t, b_t) = x[:n], x[n:]
    args = h_s, E_s, b_s, labels, h_t, E_t, b_t, *ctx.options
    return gradients_of(ctx, row_gradients(*args, g_ce.contiguous(), g_kd.contiguous(), ctx.wants))


rows.register_autograd(form_again, setup_context=remember_inputs)
