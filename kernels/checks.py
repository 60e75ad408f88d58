"""Refusals of the public functions: one line with what is wrong, what was expected and why.

Values of tensors are read only where that waits for no device, and not while compiling.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from kernels.reference import DIVERGENCES, ROW_DIVERGENCES, Decoder

FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


# ---- attention maps


def check_heads(op: str, tensors: dict[str, Tensor]) -> None:
    """Refuse tensors that are not (N, H, D), or not of one shape, dtype and device."""
    (first, x), *others = tensors.items()
    if x.dim() != 3:
        raise ValueError(f"{op}: {first} is {tuple(x.shape)}, expected (N, H, D)")
    if x.dtype not in FLOATS:
        raise ValueError(f"{op}: {first} is {x.dtype}, expected a floating-point type")
    for name, y in others:
        pairs = ((tuple(y.shape), tuple(x.shape)), (y.dtype, x.dtype), (y.device, x.device))
        for got, expected in pairs:
            if got != expected:
                raise ValueError(f"{op}: {name} is {got}, expected {expected} (as {first})")


def check_boundaries(op: str, x: Tensor, cu_seqlens: Tensor, max_len: int) -> None:
    """Refuse boundaries that do not fit a row of N tokens."""
    if (
        cu_seqlens.dim() != 1
        or not cu_seqlens.numel()
        or cu_seqlens.dtype not in (torch.int32, torch.int64)
    ):
        raise ValueError(
            f"{op}: cu_seqlens is {tuple(cu_seqlens.shape)} {cu_seqlens.dtype}, "
            f"expected (B+1,) int32 or int64: one place more than sequences"
        )
    if cu_seqlens.device != x.device:
        raise ValueError(f"{op}: cu_seqlens is on {cu_seqlens.device}, expected {x.device} (as q)")
    if torch.compiler.is_compiling() or cu_seqlens.device.type != "cpu":
        return
    places = cu_seqlens.tolist()
    if places[0] != 0 or places[-1] != x.shape[0]:
        raise ValueError(
            f"{op}: cu_seqlens runs from {places[0]} to {places[-1]}, expected from 0 to "
            f"{x.shape[0]}, the tokens of the row"
        )
    lengths = [b - a for a, b in zip(places, places[1:], strict=False)]
    if any(T < 0 for T in lengths):
        i = next(i for i, T in enumerate(lengths) if T < 0)
        raise ValueError(
            f"{op}: cu_seqlens falls from {places[i]} to {places[i + 1]} at {i + 1}, expected "
            f"places that never decrease"
        )
    if max(lengths, default=0) > max_len:
        raise ValueError(
            f"{op}: max_len is {max_len}, expected at least {max(lengths)}, the longest sequence"
        )


def check_dropout(op: str, x: Tensor, max_len: int, dropout: float, keep: Tensor | None) -> None:
    """Refuse a share that scaling the rest cannot make up for, and bits that do not fit."""
    if not 0 <= dropout < 1:
        raise ValueError(f"{op}: dropout is {dropout}, expected at least 0 and below 1")
    if keep is None:
        return
    if keep.dtype != torch.uint8 or keep.device != x.device:
        raise ValueError(
            f"{op}: keep is {keep.dtype} on {keep.device}, expected torch.uint8 on {x.device}"
        )
    N, H, _ = x.shape
    if keep.dim() != 3 or keep.shape[:2] != (N, H) or keep.shape[2] < -(-max_len // 8):
        raise ValueError(
            f"{op}: keep is {tuple(keep.shape)}, expected ({N}, {H}, {-(-max_len // 8)}): "
            f"a bit for each key of the longest sequence, {max_len}"
        )


def check_teacher_heads(
    op: str, x: Tensor, teacher: dict[str, Tensor], lse_t: Tensor | None
) -> None:
    """Refuse a teacher whose maps differ in shape from the student's, or that is not frozen."""
    check_heads(op, teacher)
    q_t = teacher["q_t"]
    if q_t.device != x.device:
        raise ValueError(f"{op}: q_t is on {q_t.device}, expected {x.device} (as q_s)")
    if q_t.shape[0] != x.shape[0]:
        raise ValueError(f"{op}: q_t has {q_t.shape[0]} tokens, expected {x.shape[0]} (as q_s)")
    if q_t.shape[1] != x.shape[1]:
        raise ValueError(
            f"{op}: q_t has {q_t.shape[1]} heads, expected {x.shape[1]} (as q_s); "
            f"maps are compared head by head"
        )
    if lse_t is not None and (lse_t.shape != x.shape[:2] or lse_t.device != x.device):
        raise ValueError(
            f"{op}: lse_t is {tuple(lse_t.shape)} on {lse_t.device}, "
            f"expected {tuple(x.shape[:2])} on {x.device}"
        )
    for what, y in (*teacher.items(), ("lse_t", lse_t)):
        if y is not None and y.requires_grad:
            raise ValueError(
                f"{op}: {what} requires a gradient, expected a frozen teacher; detach it"
            )


def check_divergence(op: str, divergence: str, known: Sequence[str]) -> None:
    """Refuse a divergence that is not one of `known`."""
    if divergence not in known:
        raise ValueError(f"{op}: divergence is {divergence!r}, expected one of {', '.join(known)}")


def check_attention(
    op: str,
    student: dict[str, Tensor],
    cu_seqlens: Tensor,
    max_len: int,
    dropout: float,
    keep: Tensor | None,
) -> None:
    """Everything that `attention` refuses but its implementation."""
    x = next(iter(student.values()))
    check_heads(op, student)
    check_boundaries(op, x, cu_seqlens, max_len)
    check_dropout(op, x, max_len, dropout, keep)


def check_attention_kl(
    op: str, student: dict[str, Tensor], teacher: dict[str, Tensor], lse_t: Tensor | None,
    divergence: str, cu_seqlens: Tensor, max_len: int, dropout: float, keep: Tensor | None,
) -> None:  # fmt: skip
    """Everything that `attention_kl` refuses but its implementation."""
    check_divergence(op, divergence, DIVERGENCES)
    check_attention(op, student, cu_seqlens, max_len, dropout, keep)
    check_teacher_heads(op, next(iter(student.values())), teacher, lse_t)


# ---- rows of logits


def check_decoder(op: str, of: str, x: Decoder, first: Tensor) -> None:
    """Refuse a decoder that gives no logits.

    Args:
        of:    "s" or "t".
        first: h of the student, whose rows and device the teacher's share.
    """
    h, E, b = x
    if len(E) not in (1, 2):
        raise ValueError(f"{op}: E_{of} has {len(E)} blocks, expected one or two of (V, d)")
    blocks = [(f"E_{of}", block) for block in E]
    for name, x in ((f"h_{of}", h), *blocks):
        if x.dim() != 2 or x.dtype not in FLOATS:
            raise ValueError(
                f"{op}: {name} is {tuple(x.shape)} {x.dtype}, expected two dimensions of a "
                f"floating-point type"
            )
    if b is not None and b.dtype not in FLOATS:
        raise ValueError(f"{op}: b_{of} is {b.dtype}, expected a floating-point type")
    n_V, d = E[0].shape[0], sum(block.shape[1] for block in E)
    facts = [
        (f"h_{of} has", h.shape[0], first.shape[0], "rows", "as h_s"),
        (f"h_{of} is", h.shape[1], d, "wide", f"as the blocks of E_{of} together"),
    ]
    facts += [
        (f"the second block of E_{of} has", x.shape[0], n_V, "words", "as the first") for x in E[1:]
    ]
    if b is not None:
        facts.append((f"b_{of} is", tuple(b.shape), (n_V,), "", f"as E_{of}"))
        blocks.append((f"b_{of}", b))
    for name, x in ((f"h_{of}", h), *blocks):
        facts.append((f"{name} is on", x.device, first.device, "", "as h_s"))
    facts += [(f"E_{of} is", x.dtype, h.dtype, "", f"as h_{of}") for x in E]
    for what, got, expected, unit, why in facts:
        if got != expected:
            raise ValueError(
                f"{op}: {what} {got} {unit}".rstrip() + f", expected {expected} ({why})"
            )


def check_teacher_decoder(op: str, s: Decoder, t: Decoder) -> None:
    """Refuse a teacher with another vocabulary, or with requires_grad."""
    check_decoder(op, "t", t, s.h)
    V_s, V_t = s.E[0].shape[0], t.E[0].shape[0]
    if V_s != V_t:
        raise ValueError(
            f"{op}: E_t has {V_t} words, expected {V_s} (as E_s); student and teacher must share "
            f"the vocabulary"
        )
    for name, x in (("h_t", t.h), *(("E_t", E) for E in t.E), ("b_t", t.bias)):
        if x is not None and x.requires_grad:
            raise ValueError(
                f"{op}: {name} requires a gradient, expected a frozen teacher; detach it"
            )


def check_labels(op: str, labels: Tensor, h_s: Tensor, V: int) -> None:
    """Refuse labels that are not one word id, or -100, for each row."""
    if labels.shape != h_s.shape[:1] or labels.dtype != torch.int64:
        raise ValueError(
            f"{op}: labels is {tuple(labels.shape)} {labels.dtype}, expected ({h_s.shape[0]},) "
            f"torch.int64 (as the rows of h_s)"
        )
    if labels.device != h_s.device:
        raise ValueError(f"{op}: labels is on {labels.device}, expected {h_s.device} (as h_s)")
    if torch.compiler.is_compiling() or labels.device.type != "cpu":
        return
    is_wrong = (labels != -100) & ((labels < 0) | (labels >= V))
    if is_wrong.any():
        i = int(is_wrong.nonzero()[0])
        raise ValueError(
            f"{op}: labels[{i}] is {int(labels[i])}, expected 0 to {V - 1}, or -100 to ignore it"
        )


def check_mlm_options(
    op: str, temperature: float, divergence: str, weights: Sequence[float], count
) -> None:
    """Refuse options without a meaning."""
    check_divergence(op, divergence, ROW_DIVERGENCES)
    if not 0 < temperature < float("inf"):
        raise ValueError(f"{op}: temperature is {temperature}, expected above 0 and finite")
    if len(weights) != 2:
        raise ValueError(f"{op}: weights is {weights}, expected two: masked LM, soft labels")
    if isinstance(count, Tensor):
        if count.numel() != 1 or count.requires_grad:
            raise ValueError(f"{op}: count is {tuple(count.shape)}, expected one number, detached")
    elif count is not None and not 0 <= count < float("inf"):
        raise ValueError(f"{op}: count is {count}, expected at least 0 and finite")


def check_mlm(
    op: str,
    s: Decoder,
    labels: Tensor | None,
    t: Decoder | None,
    temperature: float,
    divergence: str,
    weights: Sequence[float],
    count: float | Tensor | None,
) -> None:
    """Everything that `masked_mlm` refuses but its implementation."""
    if labels is None and t is None:
        raise ValueError(f"{op}: labels and the teacher are None, expected one of them at least")
    check_mlm_options(op, temperature, divergence, weights, count)
    check_decoder(op, "s", s, s.h)
    if t is not None:
        check_teacher_decoder(op, s, t)
    if labels is not None:
        check_labels(op, labels, s.h, s.E[0].shape[0])


# ---- residual sums


def check_norm(op: str, x: Tensor, a: Tensor, weight: Tensor, bias: Tensor, dropout: float) -> None:
    """Refuse what does not fit the residual x, (N, C)."""
    if x.dim() != 2 or x.dtype not in FLOATS:
        raise ValueError(f"{op}: x is {tuple(x.shape)} {x.dtype}, expected (N, C) of floats")
    for name, y, shape in (
        ("a", a, x.shape),
        ("weight", weight, x.shape[1:]),
        ("bias", bias, x.shape[1:]),
    ):
        if y.shape != shape or y.device != x.device:
            raise ValueError(
                f"{op}: {name} is {tuple(y.shape)} on {y.device}, expected {tuple(shape)} on "
                f"{x.device} (as x)"
            )
    if torch.promote_types(x.dtype, a.dtype) != x.dtype:
        raise ValueError(f"{op}: a is {a.dtype}, expected no wider a type than x's, {x.dtype}")
    if not 0 <= dropout < 1:
        raise ValueError(f"{op}: dropout is {dropout}, expected at least 0 and below 1")
