"""Compiles the kernels of the masked-LM losses and of `add_norm` for a GPU that is not there.

How, is in sm90.py. Not a test itself: tests/kernels/test_triton_mlm_sm90.py runs it in a process of
its own, where nothing is interpreted.

    python tests/kernels/mlm_sm90.py 0/2      the first of two shares of the shipped configurations

prints one JSON object for each kernel.
"""

import json
import sys
import warnings

from sm90 import POINTERS, compile_kernel  # before Triton: it switches the interpreter off

# isort: split
import torch
import triton.language as tl

from kernels import triton_mlm, triton_norm, triton_stream
from kernels.reference import Decoder

B16, F16, F32 = torch.bfloat16, torch.float16, torch.float32


def rows(losses, T, dtype, V=28996, has_gradient=True, divergence="kl_ts") -> dict:
    """The row kernel as kernels/triton_mlm.py launches it. losses: "ce", "kd" or "both"."""
    config = triton_mlm.pick_config(V, dtype)
    has_ce, has_kd, x = losses != "kd", losses != "ce", POINTERS[dtype]
    arguments = {
        "ptr_x_s": x, "ptr_b_s": x, "ptr_x_t": x if has_kd else None,
        "ptr_b_t": x if has_kd else None, "ptr_labels": "*i64" if has_ce else None,
        "ptr_g_ce": "*fp32" if has_gradient and has_ce else None,
        "ptr_g_kd": "*fp32" if has_gradient and has_kd else None,
        "ptr_ce": "*fp32", "ptr_kd": "*fp32", "s_s": V + -V % 16,
        "s_t": V + -V % 16 if has_kd else 0, "V": V,
        "T": T, "IS_KL": divergence == "kl_ts", "ACC": tl.float32, "BLOCK_V": config.BLOCK_V,
        "LANES": triton_mlm.lanes(config),
    }  # fmt: skip
    return compile_kernel(triton_mlm.rows_kernel, arguments, config.num_warps, 3)


def stream(kernel, d, d_t, T, dtype, has_labels=True, V=28996, M=922, config=None) -> dict:
    """A streaming kernel as kernels/triton_stream.py launches it.

    d, d_t: widths of the student and the teacher, in one block or two; no teacher's = none.
    """
    s, t = (
        Decoder(torch.empty(M, sum(w), dtype=dtype, device="meta"),
                [torch.empty(V, x, dtype=dtype, device="meta") for x in w[:1]]
                + [torch.empty(x, V, dtype=dtype, device="meta").T for x in w[1:]],
                torch.empty(V, dtype=dtype, device="meta")) if w else None
        for w in (d, d_t)
    )  # fmt: skip
    c = config or triton_stream.pick_config(kernel, dtype)
    arguments = triton_stream.side_arguments("s", s) | triton_stream.side_arguments("t", t)
    arguments = {
        name: POINTERS[x.dtype] if isinstance(x, torch.Tensor) else x
        for name, x in arguments.items()
    }
    arguments |= triton_stream.side_constants(s, t, T) | c._asdict()
    arguments |= {
        "ptr_labels": "*i64" if has_labels else None, "M": M, "V": V, "IS_KL": True,
        "share": 1024, "n_shares": 29, "n_pieces": 3, "D_O": d[0], "s_v_o": d[0], "s_d_o": 1,
        "s_dh": sum(d), "s_share": M * sum(d), "ptr_out": "*fp32", "ptr_rows": "*fp32",
        "ptr_h_o": POINTERS[dtype], "ptr_dE": POINTERS[dtype], "ptr_db": "*fp32",
        "ptr_E_o": POINTERS[dtype], "ptr_dh": "*fp32",
    }  # fmt: skip
    fn = getattr(triton_stream, f"{kernel}_kernel")
    return compile_kernel(fn, arguments, c.num_warps, c.num_stages)


def norm(kernel, C, dtype, dtype_a, dropout=0.1) -> dict:
    """A kernel of `add_norm` as kernels/triton_norm.py launches it."""
    x, a, w = POINTERS[dtype], POINTERS[dtype_a], POINTERS[F32]
    arguments = {
        **dict.fromkeys(("ptr_x", "ptr_y", "ptr_dy", "ptr_dx"), x),
        **dict.fromkeys(("ptr_a", "ptr_narrow", "ptr_dnarrow", "ptr_da"), a),
        **dict.fromkeys(("ptr_weight", "ptr_bias", "ptr_dweight", "ptr_dbias"), w),
        **dict.fromkeys(("ptr_mean", "ptr_rstd"), w), "ptr_seed": "*i64" if dropout else None,
        "EPS": 1e-12, "N": 12345, "n_shares": triton_norm.SHARES,
        **triton_norm.constants(C, dropout, dtype),
    }  # fmt: skip
    return compile_kernel(
        getattr(triton_norm, f"{kernel}_kernel"), arguments, triton_norm.warps(C), 3
    )


def shipped() -> list[tuple]:
    """What is compiled: the paper's widths, and single changes to one of them."""
    cases = [(rows, "both", T, B16) for T in (1.0, 2.0)] + [(rows, "kd", 1.0, B16)]
    cases += [(rows, "both", 1.5, F16, 30522), (rows, "ce", 1.0, B16, 28996, False)]
    cases += [(rows, "both", 2.0, B16, 28996, True, "soft_ce"), (rows, "both", 2.0, F32)]
    for kernel in ("statistics", "dE", "dh"):
        cases += [(stream, kernel, (312,), (768,), 1.0, B16)]
        cases += [(stream, kernel, (128, 384), (768,), 2.0, B16)]
        cases += [(stream, kernel, (768,), (768,), 2.0, F32)]
    for kernel in ("forward", "backward"):
        cases += [(norm, kernel, C, F32, B16) for C in (312, 768, 1024)]
        cases += [(norm, kernel, 768, F32, F32, 0.0)]
    return [*cases, (stream, "statistics", (312,), (), 1.0, F16)]


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    share, of = map(int, sys.argv[1].split("/"))
    for function, *case in shipped()[share::of]:
        name = " ".join(map(str, (function.__name__, *case)))
        print(json.dumps({"case": name, **function(*case)}), flush=True)
