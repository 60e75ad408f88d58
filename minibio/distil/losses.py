"""Equations 1 to 13 of the paper, one function each, in the paper's order.

The paper's symbols and ours (its N is both the teacher's layers and the tokens):

    N (Eq. 1-3, 8, 10, 12)   N     tokens in the row           f_s, f_t   logits_s, logits_t
    N (Eq. 5)                L_t   layers of the teacher       h_s, h_t   h_s, h_t    hidden states
    M                        L_s   layers of the student       a_s, a_t   rows        (see below)
    W_n = 1                  M     predicted tokens            E_s, E_t   e_s, e_t    embeddings
    H                        H     heads                       phi        cosine similarity
    |V|                      V     vocabulary                  l          layer, from 1

Attention maps never come here. A layer that is compared with a teacher's hands out one number for
each head and query, summed over keys (`rows (N, H)`, from `kernels.attention_kl`); which divergence
an equation asks for is in `DIVERGENCE`. Everything else is composed from kernels/reference.py.

Each function is a sum over a denominator, printed by `python -m minibio equations`. The denominator
is this batch's own unless it is passed: a training step passes the count over all its
micro-batches and processes, so that the parts add up to the loss of the whole. Where there is
nothing to count, the loss is 0 and its gradient too. Sums run in float32 (float64 for float64).

`fidelity="paper"` is the equation as printed, `"released"` what the authors' code computes. A
function has no such argument where the two differ in nothing, or in what the caller passes.
"""

from collections.abc import Callable, Sequence
from functools import reduce
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from kernels.reference import cross_entropy_rows, kl_rows, soft_cross_entropy_rows, wide
from minibio.run.options import Parser

# (equation's model, fidelity) -> what kernels.attention_kl computes for it
DIVERGENCE = {
    ("tiny", "paper"): "mse_maps",  # Eq. 6
    ("tiny", "released"): "mse_maps",
    ("compact", "paper"): "kl_st",  # Eq. 10 as printed
    ("compact", "released"): "kl_ts",  # F29
    ("mobile", "paper"): "kl_st",  # Eq. 12 as printed
    ("mobile", "released"): "kl_ts",  # F32c: MobileBERT's own; the authors have no code
}

# MobileBERT's own factors (F32c); its division by the layers is the mean of Eq. 13
MOBILE_FACTORS = {"hidden": 100.0, "attention": 1.0, "mean": 5000.0, "variance": 5.0}


def ratio(rows: Tensor, count: float | Tensor | None) -> Tensor:
    """sum(rows) / count; count None = the number of rows. A count of 0 gives 0, gradient 0."""
    count = rows.numel() if count is None else count
    # a count on the device stays there: comparing it here would wait for it
    return rows.sum() / (count.clamp(min=1) if isinstance(count, Tensor) else max(count, 1))


def added(terms: Sequence[Tensor]) -> Tensor:
    """Their sum, from the first on: `sum` would begin with 0 + the first, one operation more."""
    return reduce(torch.add, terms)


class Cosine(torch.autograd.Function):
    """phi(h_s, h_t) of each token, as F.cosine_similarity, which divides whole hidden states.

        d phi / d h_s = (h_t / |h_t| - phi h_s / |h_s|) / |h_s|, and the same the other way round

    Between forward and backward it keeps three numbers a token.
    """

    LEAST = 1e-8  # of a length: a shorter vector counts as one of this, whatever its direction

    @staticmethod
    def forward(ctx, h_s: Tensor, h_t: Tensor) -> Tensor:
        """(N, C) twice -> (N,)."""
        lengths = [torch.linalg.vector_norm(h, dim=-1).clamp(min=Cosine.LEAST) for h in (h_s, h_t)]
        phi = (h_s * h_t).sum(-1) / (lengths[0] * lengths[1])
        ctx.save_for_backward(h_s, h_t, phi, *lengths)
        return phi

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, g: Tensor) -> tuple[Tensor | None, Tensor | None]:
        h_s, h_t, phi, *lengths = ctx.saved_tensors
        across = (g / (lengths[0] * lengths[1]))[:, None]  # (N, 1)
        grads = [None, None]
        for i, (own, other) in enumerate(((h_s, h_t), (h_t, h_s))):
            if ctx.needs_input_grad[i]:
                along = g * phi / lengths[i].square() * (lengths[i] > Cosine.LEAST)
                grads[i] = torch.addcmul(other * across, own, along[:, None], value=-1)
        return tuple(grads)


def cosine_distance(h_s: Tensor, h_t: Tensor) -> Tensor:
    """1 - phi(h_s, h_t) of each token: (N, C) twice -> (N,)."""
    return 1 - Cosine.apply(wide(h_s), wide(h_t))


def squares(h_s: Tensor, h_t: Tensor) -> Tensor:
    """Mean squared difference of each token: (N, C) twice -> (N,)."""
    return (wide(h_s) - wide(h_t)).square().mean(-1)


def check_same(name: str, h_s: Tensor, h_t: Tensor) -> None:
    """Refuse to broadcast one shape over another."""
    if h_s.shape != h_t.shape:
        raise ValueError(
            f"{name}: the student's tensor is {tuple(h_s.shape)}, expected {tuple(h_t.shape)} "
            f"(as the teacher's)"
        )


def check_rows(name: str, rows: Tensor, h_s: Tensor) -> None:
    """One row of the attention maps for each token and head."""
    if rows.dim() != 2 or rows.shape[0] != h_s.shape[0]:
        raise ValueError(
            f"{name}: rows is {tuple(rows.shape)}, expected ({h_s.shape[0]}, H), from "
            f"kernels.attention_kl"
        )


def check_weights(name: str, what: str, weights: Sequence[float], terms: Sequence[str]) -> None:
    """One weight for each term."""
    if len(weights) != len(terms):
        raise ValueError(
            f"{name}: {what} has {len(weights)} weights, expected {len(terms)} ({', '.join(terms)})"
        )


def is_released(name: str, fidelity: str) -> bool:
    """True for the released form, False for the printed one."""
    if fidelity not in ("paper", "released"):
        raise ValueError(f"{name}: fidelity is {fidelity!r}, expected paper or released")
    return fidelity == "released"


def mlm(logits_s: Tensor, labels: Tensor, *, M: float | None = None) -> Tensor:
    """Eq. 1 (section 4.1.3): cross-entropy of the predicted tokens.

        -1/M sum_n W_n ln f_s(X)^n[label]

    Args:
        logits_s: (M, V) of the predicted tokens only, so that W_n = 1 for every row.
        labels:   (M,) token ids; -100 = ignored, and not counted.
        M:        the denominator; None = the labels that are not ignored.
    Returns:
        (): nats per predicted token.
    Paper/code: printed as a sum; the code takes the mean over the predicted tokens (F13), and so
    do we, in both modes.
    """
    rows = cross_entropy_rows(logits_s, labels)  # (M,)
    return ratio(rows, (labels != -100).sum() if M is None else M)


def soft_mlm(
    logits_s: Tensor, logits_t: Tensor, *, temperature: float = 1.0, M: float | None = None
) -> Tensor:
    """Eq. 2: divergence of the student's predictions from the teacher's.

        1/M sum_n W_n T^2 KL(f_t(X)^n || f_s(X)^n)

    Args:
        logits_s, logits_t: (M, V) of the predicted tokens.
        temperature: T divides both logits; 1 in the paper, 2 in DistilBioBERT's code (F17).
        M: the denominator.
    Returns:
        (): nats per predicted token, times T^2.
    Paper/code: printed with a leading minus, which would drive the two apart; dropped (F14).
    Printed as a sum, taken as the mean over the predicted tokens, as in the code (F13).
    """
    check_same("soft_mlm", logits_s, logits_t)
    return ratio(kl_rows(logits_s, logits_t, temperature), M)


def align(h_s: Tensor, h_t: Tensor, *, N: float | None = None) -> Tensor:
    """Eq. 3: direction of the last hidden state.

        1/N sum_n 1 - phi(h_t^n, h_s^n)

    Args:
        h_s, h_t: (N, C).
        N: the denominator.
    Returns:
        (): cosine distance, 0 to 2.
    """
    check_same("align", h_s, h_t)
    return ratio(cosine_distance(h_s, h_t), N)


def distil(
    l_mlm: Tensor,
    l_soft: Tensor,
    l_align: Tensor,
    *,
    alpha: Sequence[float] = (2.0, 5.0, 1.0),
    fused: Tensor | None = None,
) -> Tensor:
    """Eq. 4: alpha_1 L_mlm + alpha_2 L_softMLM + alpha_3 L_align; (2, 5, 1) in the paper.

    Args:
        fused: alpha_1 L_mlm + alpha_2 L_softMLM where one pass over the logits gave it
            (`kernels.masked_mlm`): the gradient flows through it, and l_mlm and l_soft have none.
    """
    check_weights("distil", "alpha", alpha, ("masked LM", "soft labels", "alignment"))
    a1, a2, a3 = alpha
    predictions = a1 * l_mlm + a2 * l_soft if fused is None else fused
    return predictions + a3 * l_align


def layer_map(L_s: int, L_t: int) -> tuple[int, ...]:
    """Eq. 5 (section 4.2.3): T_i = g(i), the teacher's layer of each student layer i = 1..L_s.

        g(i) = i L_t / L_s        4 of 12: 3, 6, 9, 12;  6 of 12: 2, 4, 6, 8, 10, 12

    g(0) = 0 are the embeddings, g(L_s + 1) = L_t + 1 the output; both always hold.

    Raises:
        ValueError: the teacher's layers are not a multiple of the student's.
    Paper/code: the paper leaves g open; this is what both distillation scripts do (F20).
    """
    if L_s < 1 or L_t % L_s:
        raise ValueError(
            f"layer_map: the teacher has {L_t} layers, expected a multiple of the student's {L_s}"
        )
    return tuple(i * L_t // L_s for i in range(1, L_s + 1))


def tiny_layer(
    h_s: Tensor,
    h_t: Tensor,
    W_h: Callable[[Tensor], Tensor] | None,
    rows: Tensor,
    *,
    n_pairs: float,
    N: float | None = None,
) -> Tensor:
    """Eq. 6: hidden state and attention maps of one layer.

        MSE(h_s W_h, h_t)  +  1/H sum_h MSE(a_s^h, a_t^h)

    Args:
        h_s, h_t: (N, C_s), (N, C_t).
        W_h:      maps C_s to C_t; None where they are equal.
        rows:     (N, H) squared differences of the maps, summed over keys ("mse_maps").
        n_pairs:  sum_b T_b^2, the entries of one head's maps.
        N:        the denominator of the first term, which is N C_t.
    Returns:
        (): mean squares.
    Paper/code: the code's mean runs over padding too (F23); here there is none, and at equal
    lengths the two agree. Its W_h has a bias and serves the embeddings as well (F24): the caller's
    choice.
    """
    h_s = h_s if W_h is None else W_h(h_s)  # (N, C_t)
    check_same("tiny_layer", h_s, h_t)
    check_rows("tiny_layer", rows, h_s)
    return ratio(squares(h_s, h_t), N) + ratio(wide(rows), rows.shape[1] * n_pairs)


def embed(
    e_s: Tensor, e_t: Tensor, W_e: Callable[[Tensor], Tensor] | None, *, N: float | None = None
) -> Tensor:
    """Eq. 7: MSE(E_s W_e, E_t).

    Args:
        e_s, e_t: (N, C_s), (N, C_t): what the embedding layer puts out, hidden state 0.
        W_e:      maps C_s to C_t; None where they are equal.
        N:        the denominator, times C_t.
    Returns:
        (): mean square.
    Paper/code: printed with the embedding matrices; the code compares hidden state 0, as here in
    both modes (F25). Its W_e is W_h (F24): the caller's choice.
    """
    e_s = e_s if W_e is None else W_e(e_s)  # (N, C_t)
    check_same("embed", e_s, e_t)
    return ratio(squares(e_s, e_t), N)


def output(
    logits_s: Tensor, logits_t: Tensor, *, temperature: float = 1.0, N: float | None = None
) -> Tensor:
    """Eq. 8: cross-entropy of the student under the teacher's predictions.

        -1/N sum_n sum_i f_t(X)^n_i ln f_s(X)^n_i

    Args:
        logits_s, logits_t: (N, V) of every token; as released, (M, V) of the masked ones.
        temperature: T divides both logits and the loss grows by T^2, as in Eq. 2; 1 in the paper.
        N: the denominator: tokens, or as released the masked ones.
    Returns:
        (): nats per token, times T^2. At its least it is the teacher's entropy, not 0.
    Paper/code: the code has only the masked tokens (F26).
    """
    check_same("output", logits_s, logits_t)
    return ratio(soft_cross_entropy_rows(logits_s, logits_t, temperature), N)


def tiny(
    l_embed: Tensor,
    l_layers: Sequence[Tensor],
    l_output: Tensor,
    *,
    lambdas: Sequence[float] | None = None,
) -> Tensor:
    """Eq. 9: lambda_0 L_embed + sum_l lambda_l L_layer(l) + lambda_{M+1} L_output.

    Args:
        l_layers: Eq. 6 of each student layer.
        lambdas:  as many weights as layers, and 2; None = all 1, as in paper and code (F19).
    """
    terms = [l_embed, *l_layers, l_output]
    if lambdas is None:
        return added(terms)
    layers = [f"layer {l}" for l in range(1, len(l_layers) + 1)]
    check_weights("tiny", "lambdas", lambdas, ("embeddings", *layers, "output"))
    return added([w * term for w, term in zip(lambdas, terms, strict=True)])


def compact_layer(
    h_s: Tensor,
    h_t: Tensor,
    rows: Tensor,
    *,
    T: Tensor | None = None,
    N: float | None = None,
    fidelity: str = "paper",
) -> Tensor:
    """Eq. 10 (section 4.3): direction of one layer's hidden states, and its attention maps.

        1/N sum_n 1 - phi(h_s^n, h_t^n)  +  1/(H N) sum_h sum_n KL(a_s || a_t)

    Args:
        h_s, h_t: (N, C).
        rows:     (N, H) divergence of each row, summed over keys: DIVERGENCE["compact", fidelity].
        T:        (N,) tokens of each token's own sequence; read as released only.
        N:        the denominator.
    Returns:
        (): cosine distance plus nats per attention row.
    Paper/code: the code has KL(a_t || a_s) (F29) and divides each row by the length of its
    sequence as well, up to 256 times weaker (F30).
    """
    check_same("compact_layer", h_s, h_t)
    check_rows("compact_layer", rows, h_s)
    rows = wide(rows)
    if is_released("compact_layer", fidelity):
        if T is None or T.shape != rows.shape[:1]:
            raise ValueError(
                f"compact_layer: T is {None if T is None else tuple(T.shape)}, expected "
                f"({len(rows)},), the length of each token's own sequence; the released form "
                f"divides by it"
            )
        rows = rows / T[:, None]  # (N, H)
    return ratio(cosine_distance(h_s, h_t), N) + ratio(rows.mean(1), N)


def compact(
    l_mlm: Tensor,
    l_soft: Tensor,
    l_layers: Sequence[Tensor],
    *,
    alpha: Sequence[float] = (1.0, 5.0, 3.0),
    fused: Tensor | None = None,
) -> Tensor:
    """Eq. 11: alpha_1 L_mlm + alpha_2 L_softMLM + alpha_3 sum_l L_compact(l); (1, 5, 3).

    Args:
        l_layers: Eq. 10 of each student layer.
        fused:    the first two terms in one, as in `distil`.
    """
    check_weights("compact", "alpha", alpha, ("masked LM", "soft labels", "layers"))
    a1, a2, a3 = alpha
    predictions = a1 * l_mlm + a2 * l_soft if fused is None else fused
    return predictions + a3 * added(l_layers)


def mobile_layer(
    h_s: Tensor, h_t: Tensor, rows: Tensor, *, N: float | None = None, fidelity: str = "paper"
) -> Tensor:
    """Eq. 12 (section 4.4.2): hidden state and attention maps of one layer.

        MSE(h_s, h_t)  +  1/(H N) sum_h sum_n KL(a_s || a_t)

    Args:
        h_s, h_t: (N, C).
        rows:     (N, H) divergence of each row: DIVERGENCE["mobile", fidelity].
        N:        the denominator, of the first term times C.
    Returns:
        (): mean square plus nats per attention row.
    Paper/code: printed as a sum over n, read as a mean. The authors have no code for it; as
    released it is MobileBERT's own (F32c), with `MOBILE_FACTORS`: KL(a_t || a_s) (the cross-entropy
    of its code is the same but for the teacher's entropy), the hidden states' squares after a
    layer norm without weights, the squared difference of each token's mean and the absolute
    difference of its variance. Its slip, the last two over all layers at once, is mended.
    """
    check_same("mobile_layer", h_s, h_t)
    check_rows("mobile_layer", rows, h_s)
    h_s, h_t, attention = wide(h_s), wide(h_t), ratio(wide(rows).mean(1), N)
    if not is_released("mobile_layer", fidelity):
        return ratio(squares(h_s, h_t), N) + attention
    normed_s, normed_t = (F.layer_norm(h, h.shape[-1:], eps=1e-12) for h in (h_s, h_t))  # (N, C)
    mean_s, mean_t = h_s.mean(-1), h_t.mean(-1)  # (N,)
    variance_s = squares(h_s, mean_s[:, None])  # (N,)
    variance_t = squares(h_t, mean_t[:, None])  # (N,)
    parts = {
        "hidden": ratio(squares(normed_s, normed_t), N),
        "attention": attention,
        "mean": ratio((mean_s - mean_t).square(), N),
        "variance": ratio((variance_s - variance_t).abs(), N),
    }
    return sum(MOBILE_FACTORS[name] * part for name, part in parts.items())


def mobile(l_mlm: Tensor, l_layers: Sequence[Tensor], *, alpha: float = 0.5) -> Tensor:
    """Eq. 13: alpha L_mlm + (1 - alpha) mean_l L_mobile(l); alpha is MobileBERT's (F32d).

    Args:
        l_layers: Eq. 12 of each layer, at least one.
        alpha:    0 to 1.
    Paper/code: MobileBERT itself never mixes the two: layers first, masked LM after (F32d), as in
    `distil.Staged`.
    """
    if not l_layers:
        raise ValueError("mobile: l_layers is empty, expected Eq. 12 of each layer")
    return alpha * l_mlm + (1 - alpha) * sum(l_layers) / len(l_layers)


class Equation(NamedTuple):
    """One row of the table of equations."""

    number: int
    function: Callable
    section: str
    terms: tuple[tuple[str, str], ...]  # what is summed, and what the sum is divided by
    differs: str  # where paper and released code part; F-numbers as in README


PREDICTED = "M: predicted tokens"
TOKENS = "N: tokens"
WIDTH = "N C_t: tokens x teacher's width"
ROWS = "H N: heads x tokens"
PAIRS = "H sum_b T_b^2: heads x map entries"
SUMMED = "-: layers are summed"

EQUATIONS = (
    Equation(1, mlm, "4.1.3", (("cross-entropy of the labels", PREDICTED),),
             "printed as a sum over tokens; code: mean (F13)"),
    Equation(2, soft_mlm, "4.1.3", (("T^2 KL(f_t || f_s)", PREDICTED),),
             "printed with a minus (F14), as a sum (F13); DistilBioBERT's code: T = 2 (F17)"),
    Equation(3, align, "4.1.3", (("cosine distance, last hidden state", TOKENS),), ""),
    Equation(4, distil, "4.1.3", (("Eq. 1, 2, 3 x 2, 5, 1", "-"),), ""),
    Equation(5, layer_map, "4.2.3", (("teacher layer of each student layer", "-"),),
             "left open; code: every (L_t / L_s)th (F20)"),
    Equation(6, tiny_layer, "4.2.3", (("MSE, hidden state", WIDTH), ("MSE, maps", PAIRS)),
             "code: W_h with bias, the same as W_e (F24); padding counted (F23)"),
    Equation(7, embed, "4.2.3", (("MSE, embeddings", WIDTH),),
             "printed with the matrices; code: hidden state 0 (F25), W_e is W_h (F24)"),
    Equation(8, output, "4.2.3", (("cross-entropy under f_t", TOKENS),),
             "code: M, masked tokens only (F26)"),
    Equation(9, tiny, "4.2.3", (("Eq. 7, Eq. 6 of each layer, Eq. 8 x 1", SUMMED),), ""),
    Equation(10, compact_layer, "4.3", (("cosine distance", TOKENS), ("KL(a_s || a_t)", ROWS)),
             "code: KL(a_t || a_s) (F29), each row also / T_b (F30)"),
    Equation(11, compact, "4.3", (("Eq. 1, 2, Eq. 10 of each layer x 1, 5, 3", SUMMED),), ""),
    Equation(12, mobile_layer, "4.4.2", (("MSE, hidden state", WIDTH), ("KL(a_s || a_t)", ROWS)),
             "printed as a sum over tokens; no code: MobileBERT's, four terms (F32c)"),
    Equation(13, mobile, "4.4.2", (("Eq. 1 x 0.5", "-"), ("Eq. 12 x 0.5", "L: layers")),
             "MobileBERT trains the layers first, masked LM after (F32d)"),
)  # fmt: skip


def denominators() -> str:
    """The table of equations, one line a term, as printed by `python -m minibio equations`."""
    lines = [("Eq.", "function", "section", "term", "divided by", "paper and code")]
    for e in EQUATIONS:
        for i, (what, denominator) in enumerate(e.terms):
            first = (str(e.number), e.function.__name__, e.section) if i == 0 else ("", "", "")
            lines.append((*first, what, denominator, e.differs if i == 0 else ""))
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join(
        "  ".join(cell.ljust(w) for cell, w in zip(line, widths, strict=True)).rstrip()
        for line in lines
    )


def main(argv=None) -> None:
    """`python -m minibio equations`."""
    Parser("minibio equations", description=main.__doc__).parse_args(argv)
    print(denominators())
