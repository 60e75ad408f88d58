"""`attention_kl` and its rivals, for `python -m kernels.bench attention-kl`.

    eager      PyTorch with stored maps on the padded rectangle, gradients by autograd: scores,
               softmax, dropout and product as transformers writes them, the divergence as its
               formula reads
    compile    the same under torch.compile
    stock      the same results by only PyTorch's fused attention, which shows no map (below)
    floor      less than the operation: the student's fused attention, and one forward pass of the
               teacher's; no divergence
    varlen     that of `floor` on the row, without padding: torch.nn.attention.varlen, where this
               PyTorch has it (CUDA, half precision; it has no dropout)
    others     `kernels.attention_kl`, by the implementation's name; the teacher's log-sum-exp is
               given, as in training, where its own attention has computed it

The rivals up to `floor` take rectangles (B, T, H, D), padded beforehand at no cost to them, and
where lengths differ a mask; ours take the row. Fused attention has no dropout on a CPU, where
PyTorch forms the maps for it: there `floor` is without dropout, and `stock` pays.

Each divergence by fused attention only, exactly (z scaled scores, a = softmax(z),
A(x; y) = sum_j a_x y_j, which is what a call of attention gives for values y):

    kl_st       sum_j a_s (z_s - z_t) - lse_s + lse_t, and a_s times a score is q_s . A(s; k_s) or
                q_t . A(s; k_t): values [v_s | k_s | k_t] in one call. With the scores and the
                values k constant, what is left is the gradient: the rest of it cancels.
    kl_ts       lse_s - lse_t + sum_j a_t (z_t - z_s): q_t . A(t; k_t) and q_s . A(t; k_s).
    mse_maps    exp(lse(2 z_s) - 2 lse_s) - 2 exp(lse(z_s + z_t) - lse_s - lse_t)
                + exp(lse(2 z_t) - 2 lse_t)

PyTorch gives no gradient of lse; d lse = sum_j a dz = d (q . A(k)) with a constant, one call more.
"""

import re
from argparse import ArgumentParser, Namespace
from contextlib import contextmanager
from functools import partial
from importlib.util import find_spec
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention as fused_attention

import kernels
from kernels.bench.timing import Contender, compiled, compiler_missing, ragged_lengths
from kernels.reference import wide

KERNEL = "attention_kl"  # what `kernels.resolve_impl` calls it
HAS_VARLEN = find_spec("torch.nn.attention.varlen") is not None
RIVALS = ("eager", "compile", "stock", "floor") + ("varlen",) * HAS_VARLEN
BASELINES = ("eager", "floor")
OPTIONS = ("divergence", "dropout")  # of `sides`
EXACT = {"dropout": 0.0}  # no two sides drop the same
SAVED = 30  # bytes that eager holds for an entry of a map at its peak, as measured in float32


class AttentionShape(NamedTuple):
    """Student and teacher of one layer, as they meet: `B24-T256-H12-D32-D64`."""

    B: int
    longest: int
    is_ragged: bool  # R for T in the name: lengths as PubMed has them
    H: int
    D_s: int
    D_t: int

    @classmethod
    def parse(cls, name: str) -> "AttentionShape":
        """The shape called `name`.

        Raises:
            ValueError: it is not such a name, or a number in it is 0.
        """
        found = re.fullmatch(r"B(\d+)-([TR])(\d+)-H(\d+)-D(\d+)-D(\d+)", name)
        numbers = [int(x) for x in found.groups() if x.isdigit()] if found else [0]
        if min(numbers) < 1:
            raise ValueError(
                f"--shapes has {name!r}, expected B24-T256-H12-D32-D64: sequences, tokens (R256 "
                f"for ragged lengths up to 256), heads, width of the student's and the teacher's"
            )
        B, longest, H, D_s, D_t = numbers
        return cls(B, longest, found[2] == "R", H, D_s, D_t)

    def __str__(self) -> str:
        letter = "R" if self.is_ragged else "T"
        return f"B{self.B}-{letter}{self.longest}-H{self.H}-D{self.D_s}-D{self.D_t}"

    def lengths(self, seed: int) -> list[int]:
        """Tokens of each sequence."""
        if self.is_ragged:
            return ragged_lengths(self.B, self.longest, seed)
        return [self.longest] * self.B

    def pairs(self, seed: int) -> int:
        """Entries of all maps, padding apart."""
        return self.H * sum(T * T for T in self.lengths(seed))


parse_shape = AttentionShape.parse

# Each pair of widths is one of the paper's students with its teacher. The most important first:
# time may run out. The last lies off every block.
_WIDTHS = ("H12-D32-D64", "H12-D64-D64", "H4-D32-D256")
SHAPES = {
    "cuda": ["B192-R256-H12-D26-D64"]  # TinyBioBERT's heads, as they are, on PubMed's lengths
    + [f"B{B}-{length}-{widths}" for B in (192, 24)
             for length in ("T256", "R256", "T512", "T128") for widths in _WIDTHS]
    + ["B23-T250-H12-D26-D64"],
    "cpu": ["B8-T256-H12-D64-D64", "B2-T512-H12-D64-D64", "B12-R256-H12-D64-D64",
            "B8-T128-H12-D32-D64", "B4-T128-H4-D32-D256", "B3-T250-H12-D26-D64"],
}  # fmt: skip
CHECKED = ("B2-T19-H2-D26-D64", "B3-R40-H4-D32-D48")  # cheap: no mask, and a mask


# ---- eager


def scores(q, k, is_key):
    """As transformers writes them.  (B, H, T, D) twice -> (B, H, T, T)."""
    z = q @ k.mT * q.shape[-1] ** -0.5
    if is_key is None:
        return z
    # finite, as there too: -inf - (-inf) would be NaN in the divergence
    least = torch.finfo(z.dtype).min
    return z + z.new_zeros(is_key.shape).masked_fill(~is_key, least)


def eager(q_s, k_s, v_s, q_t, k_t, is_key, *, divergence, dropout):
    """Stored maps.  Tensors (B, T, H, D), is_key (B, 1, 1, T) or None -> (B, T, H, D), (B, T, H).

    In half precision what autocast does: products in half, softmax and losses in float32. No map
    outlives its last use, but for what autograd keeps.
    """
    q_s, k_s, v_s, q_t, k_t = (x.transpose(1, 2) for x in (q_s, k_s, v_s, q_t, k_t))
    dtype = wide(q_s[:0]).dtype
    z_s = scores(q_s, k_s, is_key)
    if divergence == "mse_maps":
        a_s = z_s.softmax(-1, dtype)
        rows = (a_s - scores(q_t, k_t, is_key).softmax(-1, dtype)).square().sum(-1)
    else:
        z_s = z_s.log_softmax(-1, dtype)
        a_s, log_a_t = z_s.exp(), scores(q_t, k_t, is_key).log_softmax(-1, dtype)
        if divergence == "kl_st":
            rows = (a_s * (z_s - log_a_t)).sum(-1)
        else:
            rows = (log_a_t.exp() * (log_a_t - z_s)).sum(-1)
        del log_a_t
    del z_s
    out = F.dropout(a_s, dropout).to(v_s.dtype) @ v_s  # (B, H, T, D)
    return out.transpose(1, 2).contiguous(), rows.transpose(1, 2)


# ---- stock


def attend(q, k, v, is_key, scale):
    """PyTorch's fused attention and its lse.  (B, H, T, D) -> (B, H, T, D_v), (B, H, T).

    The lse comes without a gradient.
    """
    T, D, D_v = q.shape[2], q.shape[-1], v.shape[-1]
    on_cpu = q.device.type == "cpu"
    bias = None
    if is_key is not None:
        bias = q.new_zeros(is_key.shape).masked_fill(~is_key, -float("inf"))  # (B, 1, 1, T)
    # the CPU's kernel wants all widths equal, the GPU's wants each in eights
    width, width_v = (max(D, D_v),) * 2 if on_cpu else (D + -D % 8, D_v + -D_v % 8)
    q, k, v = F.pad(q, (0, width - D)), F.pad(k, (0, width - D)), F.pad(v, (0, width_v - D_v))
    if on_cpu:
        out, lse = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
            q, k, v, attn_mask=bias, scale=scale
        )
    else:  # this one wants the bias in full shape, of which nothing is stored
        bias = None if bias is None else bias.expand(*q.shape[:3], T)
        out, lse, *_ = torch.ops.aten._scaled_dot_product_efficient_attention(
            q, k, v, bias, True, scale=scale
        )
    return out[..., :D_v], lse[..., :T].detach()  # the GPU's lse is padded to its blocks


def log_sum_exp(q, k, is_key, scale):
    """lse of the scores, with its gradient.  (B, H, T, D) twice -> (B, H, T)."""
    seen, lse = attend(q.detach(), k.detach(), k, is_key, scale)  # (B, H, T, D)
    change = scale * dot(q, seen)  # (B, H, T)
    return lse + (change - change.detach())


def dot(x, y):
    """(B, H, T, D) twice -> (B, H, T), in float32 at least."""
    return (wide(x) * wide(y)).sum(-1)


def stock(q_s, k_s, v_s, q_t, k_t, is_key, *, divergence, dropout):
    """Arguments and results of `eager`, by fused attention only: see the top of this file."""
    q_s, k_s, v_s, q_t, k_t = (x.transpose(1, 2) for x in (q_s, k_s, v_s, q_t, k_t))
    scale_s, scale_t = q_s.shape[-1] ** -0.5, q_t.shape[-1] ** -0.5
    lse = partial(log_sum_exp, is_key=is_key)
    if divergence == "kl_st":
        # with dropout the output needs a call of its own: the divergence is of the whole maps
        values = [v_s[..., :0] if dropout else v_s, k_s.detach(), k_t]
        seen, lse_s = attend(q_s, k_s, torch.cat(values, -1), is_key, scale_s)
        out, keys_s, keys_t = seen.split([x.shape[-1] for x in values], -1)
        _, lse_t = attend(q_t, k_t, k_t[..., :0], is_key, scale_t)
        rows = scale_s * dot(q_s.detach(), keys_s) - scale_t * dot(q_t, keys_t) - lse_s + lse_t
    elif divergence == "kl_ts":
        seen, lse_t = attend(q_t, k_t, torch.cat([k_s, k_t], -1), is_key, scale_t)
        keys_s, keys_t = seen.split([k_s.shape[-1], k_t.shape[-1]], -1)
        rows = lse(q_s, k_s, scale=scale_s) - scale_s * dot(q_s, keys_s)
        rows = rows - lse_t + scale_t * dot(q_t, keys_t)
    else:
        lse_s, lse_t = lse(q_s, k_s, scale=scale_s), lse(q_t, k_t, scale=scale_t)
        lse_ss, lse_tt = lse(q_s, k_s, scale=2 * scale_s), lse(q_t, k_t, scale=2 * scale_t)
        q, k = torch.cat([scale_s * q_s, scale_t * q_t], -1), torch.cat([k_s, k_t], -1)
        lse_st = lse(q, k, scale=1.0)
        rows = (lse_ss - 2 * lse_s).exp() - 2 * (lse_st - lse_s - lse_t).exp()
        rows = rows + (lse_tt - 2 * lse_t).exp()
    if divergence != "kl_st" or dropout:
        mask = None if is_key is None else is_key.expand(-1, 1, q_s.shape[2], -1)
        out = fused_attention(q_s, k_s, v_s, mask, dropout_p=dropout)
    return out.transpose(1, 2).contiguous(), rows.transpose(1, 2)


# ---- floor


def floor(q_s, k_s, v_s, q_t, k_t, is_key, *, divergence, dropout):
    """The student's attention and the teacher's, nothing else: (B, T, H, D) of the first.

    No divergence is computed, whatever `divergence` says.
    """
    q_s, k_s, v_s, q_t, k_t = (x.transpose(1, 2) for x in (q_s, k_s, v_s, q_t, k_t))
    mask = None if is_key is None else is_key.expand(-1, 1, q_s.shape[2], -1)
    dropout = 0.0 if q_s.device.type == "cpu" else dropout
    fused_attention(q_t, k_t, k_t, mask)
    return (fused_attention(q_s, k_s, v_s, mask, dropout_p=dropout).transpose(1, 2).contiguous(),)


def varlen(q_s, k_s, v_s, q_t, k_t, cu_seqlens, longest):
    """The same as `floor`, on the row.  (N, H, D) -> ((N, H, D) of the student,)."""
    from torch.nn.attention.varlen import varlen_attn

    def attend(q, k, v):
        D = q.shape[-1]
        # the kernel takes widths in eights, and scales by the width that it is given
        q, k, v = (F.pad(x, (0, -D % 8)) for x in (q * (D + -D % 8) ** 0.5 * D**-0.5, k, v))
        return varlen_attn(q, k, v, cu_seqlens, cu_seqlens, longest, longest)[..., :D]

    attend(q_t, k_t, k_t)
    return (attend(q_s, k_s, v_s).contiguous(),)


def varlen_missing(x: Tensor) -> str:
    """Why `varlen` cannot run on such tensors; "" where it can."""
    if x.device.type != "cuda":
        return "only for CUDA"
    is_half = x.dtype in (torch.float16, torch.bfloat16)
    return "" if is_half else "only in float16 and bfloat16"


def draws_on_host(impl: str, device: torch.device, dropout: float) -> bool:
    """Whether a call waits for the device, to draw dropout's mask on the host."""
    return impl == "torch" and device.type == "cuda" and dropout > 0


# ---- all of them


class AttentionProblem(NamedTuple):
    """The numbers that every side works on, as a row."""

    shape: AttentionShape
    lengths: list[int]
    tensors: tuple[Tensor, ...]  # q_s, k_s, v_s (N, H, D_s), q_t, k_t (N, H, D_t)
    gradients: tuple[Tensor, ...]  # of out (N, H, D_s) and row_loss (N, H)

    def double(self) -> "AttentionProblem":
        """The same numbers in float64."""
        tensors, gradients = (tuple(x.double() for x in y) for y in (self.tensors, self.gradients))
        return self._replace(tensors=tensors, gradients=gradients)


def problem(
    shape: AttentionShape, device: torch.device, dtype: torch.dtype, seed: int
) -> AttentionProblem:
    """Random numbers of that shape."""
    rng = torch.Generator().manual_seed(seed)
    lengths = shape.lengths(seed)
    N, widths = sum(lengths), (shape.D_s,) * 3 + (shape.D_t,) * 2 + (shape.D_s,)
    *tensors, out = (torch.randn(N, shape.H, D, generator=rng).to(device, dtype) for D in widths)
    rows = torch.randn(N, shape.H, generator=rng).to(device)
    return AttentionProblem(shape, lengths, tuple(tensors), (out, rows.to(wide(out[:0]).dtype)))


def leaves(tensors) -> list[Tensor]:
    """Copies, those of the student to be differentiated."""
    return [x.clone().requires_grad_(i < 3) for i, x in enumerate(tensors)]


def rivals(p: AttentionProblem, names, divergence: str, dropout: float) -> list[Contender]:
    """The sides called `names`, on rectangles."""
    device, T = p.tensors[0].device, max(p.lengths)
    if p.shape.is_ragged:
        T += -T % 8  # there is a mask anyway, and the GPU's kernels with one want eights
    is_token = torch.arange(T) < torch.tensor(p.lengths)[:, None]  # (B, T)
    is_token = is_token.to(device)
    is_key = is_token[:, None, None] if p.shape.is_ragged else None  # (B, 1, 1, T)

    def rectangle(x):  # (N, ...) -> (B, T, ...), zeros where there is no token
        blank = x.new_zeros(*is_token.shape, *x.shape[1:])
        blank[is_token] = x
        return blank

    tensors = leaves(rectangle(x) for x in p.tensors)
    gradients = tuple(rectangle(x) for x in p.gradients)
    maps = SAVED * p.shape.B * p.shape.H * T * T
    options = {"divergence": divergence, "dropout": dropout}
    found = []
    for name in names:
        if name == "varlen":
            found.append(varlen_side(p))
            continue
        missing = compiler_missing(device) if name == "compile" else ""
        function = {"stock": stock, "floor": floor}.get(name, eager)
        if name == "compile" and not missing:
            function = compiled(eager)
        arriving = gradients[:1] if name == "floor" else gradients
        found.append(
            Contender(
                name,
                partial(function, *tensors, is_key, **options),
                tuple(tensors[:3]),
                arriving,
                to_row=lambda x: x[is_token],
                bytes_needed=0 if name == "floor" else maps,
                missing=missing,
            )
        )
    return found


def varlen_side(p: AttentionProblem) -> Contender:
    """`varlen`, on the row."""
    row = leaves(p.tensors)
    cu_seqlens = torch.tensor([0, *p.lengths]).cumsum(0).int().to(row[0].device)
    return Contender(
        "varlen",
        partial(varlen, *row, cu_seqlens, max(p.lengths)),
        tuple(row[:3]),
        p.gradients[:1],
        missing=varlen_missing(row[0]),
    )


def ours(p: AttentionProblem, impls, divergence: str, dropout: float) -> list[Contender]:
    """`kernels.attention_kl` by each implementation, on the row."""
    if not impls:
        return []
    cu_seqlens = torch.tensor([0, *p.lengths]).cumsum(0).int().to(p.tensors[0].device)
    row, T = leaves(p.tensors), max(p.lengths)
    _, lse_t = kernels.attention(row[3], row[4], row[4], cu_seqlens, T, impl=impls[-1])

    def forward(impl):
        return kernels.attention_kl(
            *row, cu_seqlens, T, divergence=divergence, lse_t=lse_t, dropout=dropout, impl=impl
        )[:2]

    maps = SAVED * p.shape.H * sum(T * T for T in p.lengths)
    return [
        Contender(
            impl,
            partial(forward, impl),
            tuple(row[:3]),
            p.gradients,
            bytes_needed=maps if impl == "reference" else 0,
            missing="its dropout is drawn on the host; --dropout 0 times it"
            if draws_on_host(impl, cu_seqlens.device, dropout)
            else "",
            is_ours=True,
        )
        for impl in impls
    ]


def sides(p: AttentionProblem, names, impls, *, divergence: str, dropout: float) -> list[Contender]:
    """Every way of `names` (of RIVALS) and `impls` to compute the same from the same numbers."""
    return rivals(p, names, divergence, dropout) + ours(p, impls, divergence, dropout)


def work(shape: AttentionShape, dtype: torch.dtype, seed: int) -> dict[str, tuple[float, float]]:
    """{pass: (floating-point operations, bytes)} that the operation cannot do without.

    Products of matrices at the entries of real tokens, two operations each: forward the scores of
    both models and the output; backward both scores again and the four gradients. Bytes are those
    of arguments and results, each moved once. It is the same for every side, whatever it does.
    """
    N, entries = sum(shape.lengths(seed)), shape.pairs(seed)
    size, statistic = dtype.itemsize, max(4, dtype.itemsize)
    student, teacher, rows = (
        N * shape.H * x for x in (shape.D_s * size, shape.D_t * size, statistic)
    )
    forward = 2 * entries * (2 * shape.D_s + shape.D_t), 4 * student + 2 * teacher + 3 * rows
    # q, k, v, out, its gradient; three gradients; lse of both, divergence, its gradient
    backward = 2 * entries * (5 * shape.D_s + shape.D_t), 8 * student + 2 * teacher + 4 * rows
    both = forward[0] + backward[0], forward[1] + backward[1]
    return {"forward": forward, "backward": backward, "both": both}


# ---- the command's


def add_options(p: ArgumentParser) -> None:
    """Options of this operation only."""
    p.add_argument("--shapes", nargs="+", metavar="NAME", help=AttentionShape.__doc__)
    p.add_argument("--divergence", choices=kernels.DIVERGENCES, default="kl_st")
    p.add_argument("--dropout", type=float, default=0.1, help="share (default: 0.1, as BERT's)")


def check_options(divergence: str, dropout: float) -> None:
    """Refuse options that `sides` cannot work with.

    Raises:
        ValueError: --dropout is not a share.
    """
    if not 0 <= dropout < 1:
        raise ValueError(f"--dropout is {dropout}, expected at least 0 and below 1")


# ---- block sizes of the Triton kernels, for --tune

TUNE = "time block sizes of the Triton kernels"
TUNED = {"forward": "forward", "dq": "backward", "dkdv": "backward"}  # kernel -> its pass
TUNED_SHAPES = [f"B192-T256-{widths}" for widths in (*_WIDTHS, "H12-D26-D64")]
BLOCKS = ((32, 32), (32, 64), (64, 32), (64, 64), (64, 128), (128, 32), (128, 64))


def tuned_impls(device: torch.device, dtype: torch.dtype) -> dict[str, str]:
    """Kernel -> the implementation that it is timed in.

    Raises:
        ValueError: it does not run on the device.
    """
    return dict.fromkeys(TUNED, kernels.resolve_impl(KERNEL, "triton", device, dtype)[0])


def candidates(kernel: str, args: Namespace) -> list:
    """The configurations tried, as `pick_config` gives them."""
    from kernels.triton_attention import AttentionConfig

    return [
        AttentionConfig(*block, num_warps=warps, num_stages=stages)
        for block in BLOCKS
        for warps in (4, 8)
        for stages in (2, 3)
    ]


@contextmanager
def using(kernel: str, config):
    """A context in which `pick_config` gives `config` for `kernel`, its own choice for others."""
    from kernels import triton_attention

    own = triton_attention.pick_config
    triton_attention.pick_config = lambda name, *bucket: (
        config if name == kernel else own(name, *bucket)
    )
    try:
        yield
    finally:
        triton_attention.pick_config = own


def chosen(kernel: str, shape: AttentionShape, divergence: str, dtype: torch.dtype, device):
    """The configuration in use."""
    from kernels.triton_attention import pick_config

    return pick_config(kernel, shape.D_s, shape.D_t, divergence, dtype)
