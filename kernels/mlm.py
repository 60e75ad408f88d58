"""`masked_mlm`: the losses of the masked-LM head, and what it refuses."""

import torch
from torch import Tensor

from kernels import mlm_ops, reference
from kernels.dispatch import FLOATS, resolve_impl
from kernels.reference import ROW_DIVERGENCES, Side, wide_dtype

OP = "masked_mlm"


# ---- what is refused


def check_side(of: str, side: Side, first: Tensor) -> None:
    """Refuse blocks that give no logits. of: "s" or "t"; first: h_s, to which M and device fit."""
    h, E, b = side
    n_V, d = E[0].shape[0], sum(block.shape[1] for block in E)
    facts = [
        (f"h_{of} has", h.shape[0], first.shape[0], "rows", "as h_s"),
        (f"h_{of} is", h.shape[1], d, "wide", f"as the blocks of E_{of} together"),
    ]
    facts += [(f"the second block of E_{of} has", x.shape[0], n_V, "words", "as the first")
              for x in E[1:]]  # fmt: skip
    if b is not None:
        facts.append((f"b_{of} is", tuple(b.shape), (n_V,), "", f"as E_{of}"))
    for name, x in ((f"h_{of}", h), *((f"E_{of}", block) for block in E), (f"b_{of}", b)):
        if x is not None:
            facts.append((f"{name} is on", x.device, first.device, "", "as h_s"))
    facts += [(f"E_{of} is", x.dtype, h.dtype, "", f"as h_{of}") for x in E]
    for what, got, expected, unit, why in facts:
        if got != expected:
            raise ValueError(
                f"{OP}: {what} {got} {unit}".rstrip() + f", expected {expected} ({why})"
            )


def side_of(of: str, h: Tensor, E, b: Tensor | None, first: Tensor) -> Side:
    """One side's tensors, checked; the second block of a pair is turned, (d_2, V) -> (V, d_2)."""
    blocks = [E] if isinstance(E, Tensor) else [*E]
    if len(blocks) not in (1, 2):
        raise ValueError(
            f"{OP}: E_{of} has {len(blocks)} blocks, expected (V, d) or a pair (V, d_1), (d_2, V)"
        )
    for name, x in ((f"h_{of}", h), *((f"E_{of}", block) for block in blocks)):
        if x.dim() != 2 or x.dtype not in FLOATS:
            raise ValueError(
                f"{OP}: {name} is {tuple(x.shape)} {x.dtype}, expected two dimensions of a "
                f"floating-point type"
            )
    if b is not None and b.dtype not in FLOATS:
        raise ValueError(f"{OP}: b_{of} is {b.dtype}, expected a floating-point type")
    side = Side(h, [blocks[0], *(x.T for x in blocks[1:])], b)
    check_side(of, side, first)
    return side


def check_teacher(s: Side, t: Side) -> None:
    """Refuse a teacher of other words, or one that wants to learn."""
    V_s, V_t = s.E[0].shape[0], t.E[0].shape[0]
    if V_s != V_t:
        raise ValueError(
            f"{OP}: E_t has {V_t} words, expected {V_s} (as E_s); student and teacher must share "
            f"the vocabulary"
        )
    for name, x in (("h_t", t.h), *(("E_t", E) for E in t.E), ("b_t", t.b)):
        if x is not None and x.requires_grad:
            raise ValueError(
                f"{OP}: {name} requires a gradient, expected a frozen teacher; detach it"
            )


def check_labels(labels: Tensor, h_s: Tensor, V: int) -> None:
    """Refuse labels that are none of M tokens. Values are read where that waits for no device."""
    if labels.shape != h_s.shape[:1] or labels.dtype != torch.int64:
        raise ValueError(
            f"{OP}: labels is {tuple(labels.shape)} {labels.dtype}, expected ({h_s.shape[0]},) "
            f"torch.int64 (as the rows of h_s)"
        )
    if labels.device != h_s.device:
        raise ValueError(f"{OP}: labels is on {labels.device}, expected {h_s.device} (as h_s)")
    if torch.compiler.is_compiling() or labels.device.type != "cpu":
        return
    is_wrong = (labels != -100) & ((labels < 0) | (labels >= V))
    if is_wrong.any():
        i = int(is_wrong.nonzero()[0])
        raise ValueError(
            f"{OP}: labels[{i}] is {int(labels[i])}, expected 0 to {V - 1}, or -100 to ignore it"
        )


def check_options(labels, h_t, temperature, divergence, count, per_row) -> None:
    """Refuse options that mean nothing."""
    if labels is None and h_t is None:
        raise ValueError(f"{OP}: labels and h_t are None, expected one of them at least")
    if divergence not in ROW_DIVERGENCES:
        raise ValueError(
            f"{OP}: divergence is {divergence!r}, expected one of {', '.join(ROW_DIVERGENCES)}"
        )
    if not 0 < temperature < float("inf"):
        raise ValueError(f"{OP}: temperature is {temperature}, expected above 0 and finite")
    if per_row and count is not None:
        raise ValueError(f"{OP}: count is {count}, expected None with per_row: nothing is divided")
    if isinstance(count, Tensor):
        if count.numel() != 1 or count.requires_grad:
            raise ValueError(f"{OP}: count is {tuple(count.shape)}, expected one number, detached")
    elif count is not None and not 0 <= count < float("inf"):
        raise ValueError(f"{OP}: count is {count}, expected at least 0 and finite")


# ---- the operation


def masked_mlm(
    h_s: Tensor,
    E_s: Tensor | tuple[Tensor, Tensor],
    b_s: Tensor | None,
    labels: Tensor | None,
    h_t: Tensor | None = None,
    E_t: Tensor | tuple[Tensor, Tensor] | None = None,
    b_t: Tensor | None = None,
    *,
    temperature: float = 1.0,
    ce_weight: float = 1.0,
    kd_weight: float = 1.0,
    divergence: str = "kl_ts",
    count: float | Tensor | None = None,
    per_row: bool = False,
    impl: str = "auto",
) -> tuple[Tensor, Tensor]:
    """Eq. 1 and 2 (or 8) from hidden states, without ever storing the logits x = h E^T + b.

        ce = ce_weight / count  sum_m -ln softmax(x_s)[label]
        kd = kd_weight / count  sum_m T^2 KL(softmax(x_t / T) || softmax(x_s / T))

    The loss is their sum, `ce + kd`. Gradients go to h_s, E_s and b_s, and are worked out in
    forward, for the sum: what arrives at ce and at kd in backward has to be the same, so weigh the
    two by ce_weight and kd_weight. That is checked (on a GPU without waiting for it, by an
    assertion of the device). `per_row=True` has no such limit, and forms the logits again in
    backward. `impl="reference"` has none of either, nor a small memory.

    Args:
        h_s, h_t: (M, d) float16, bfloat16, float32 or float64: the predicted tokens' hidden states,
                  ready for the decoder. Widths and types of student and teacher may differ.
                  h_t None = no teacher, and kd is 0.
        E_s, E_t: (V, d), or a pair (V, d_1), (d_2, V) with d_1 + d_2 = d, as MobileBERT's decoder;
                  in the type of h. V is the same on both sides.
        b_s, b_t: (V,) of any floating-point type, or None.
        labels:   (M,) int64; -100 = the row counts neither in ce nor in kd. None = ce is 0, and
                  every row counts in kd.
        temperature: T of kd, above 0.
        divergence:  "kl_ts" as above (Eq. 2), or "soft_ce", -T^2 sum p_t ln p_s (Eq. 8).
        count:    what the sums are divided by: the rows of all micro-batches and processes, as a
                  number or a tensor of one element. None = this call's rows whose label is not
                  -100. 0 gives 0.
        per_row:  the M rows themselves, times their weight and undivided.
        impl:     "auto", "reference", "torch", "triton", "triton-stream" or "cuda"
                  (`kernels.resolve_impl`).
    Returns:
        ce, kd: () each, or (M,) with per_row; nats, kd times T^2; float32 (float64 for float64).
        M = 0, or nothing counted: 0, with gradients of 0.
    Raises:
        ValueError: shapes, types, devices, labels or options do not fit; the teacher's tensors
            require a gradient, which they never receive; and, in backward on a CPU, what arrives
            at ce and at kd differs.
    Precision: losses and the gradients of E and b are summed in float32 (float64 for float64).
        `torch` and `triton-stream` keep logits in float32 as well; `triton` has them rounded to the
        type of h, as a model's own linear layer would.
    """
    impl, _ = resolve_impl(OP, impl, h_s.device)
    check_options(labels, h_t, temperature, divergence, count, per_row)
    s, t = side_of("s", h_s, E_s, b_s, h_s), None
    if h_t is not None:
        if E_t is None:
            raise ValueError(f"{OP}: E_t is None, expected the teacher's table, as there is h_t")
        t = side_of("t", h_t, E_t, b_t, h_s)
        check_teacher(s, t)
    for name, x in (("E_t", E_t), ("b_t", b_t)):
        if h_t is None and x is not None:
            raise ValueError(f"{OP}: {name} is there, expected None, as h_t is")
    if labels is not None:
        check_labels(labels, h_s, s.E[0].shape[0])
        labels = labels.contiguous()
    weights = ce_weight, kd_weight
    if per_row:
        ce, kd = rows(s, t, labels, temperature, divergence, impl)
        return ce * ce_weight, kd * kd_weight
    return means(s, t, labels, temperature, divergence, impl, weights, count)


def rows(s, t, labels, temperature, divergence, impl) -> tuple[Tensor, Tensor]:
    """(M,) each."""
    if impl == "reference":
        with torch.autocast(s.h.device.type, enabled=False):
            return reference.masked_mlm_rows(
                s, t, labels, temperature=temperature, divergence=divergence
            )
    return mlm_ops.rows(*s, labels, *(t or NO_TEACHER), temperature, divergence, impl)


def means(s, t, labels, temperature, divergence, impl, weights, count) -> tuple[Tensor, Tensor]:
    """() each."""
    h, dtype = s.h, wide_dtype(s.h)
    is_counted = torch.ones(len(h), dtype=dtype, device=h.device)  # (M,)
    if labels is not None:
        is_counted = (labels != -100).to(dtype)
    share = share_of(is_counted.sum() if count is None else count, dtype)
    g_ce, g_kd = (weight * is_counted for weight in weights)  # (M,)
    if impl == "reference":
        ce, kd = rows(s, t, labels, temperature, divergence, impl)
        return (g_ce * ce).sum() * share, (g_kd * kd).sum() * share
    # A gradient of a mean has entries of p / count, which float16 would round to 0: there the
    # division waits until the sums are over.
    is_late = h.dtype == torch.float16
    if not is_late:
        g_ce, g_kd = g_ce * share, g_kd * share
    is_learning = torch.is_grad_enabled()
    wants = [is_learning and any(x.requires_grad for x in xs) for xs in ([h], s.E, none_less(s.b))]
    ce, kd, *_ = mlm_ops.means(
        *s, labels, *(t or NO_TEACHER), temperature, divergence, impl, g_ce, g_kd, wants
    )
    return (ce * share, kd * share) if is_late else (ce, kd)


NO_TEACHER = Side(None, [], None)


def none_less(x: Tensor | None) -> list[Tensor]:
    return [] if x is None else [x]


def share_of(count: float | Tensor, dtype: torch.dtype) -> float | Tensor:
    """1 / count, or 0 where there is nothing to count; a tensor stays on its device."""
    if isinstance(count, Tensor):
        count = count.to(dtype).reshape(())
        return torch.where(count > 0, 1 / count, 0.0)
    return 1 / count if count else 0.0
