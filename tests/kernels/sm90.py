"""Compiles the kernels for a GPU that is not there, and prints what became of them.

Triton makes machine code without a device; the `cuobjdump` that comes with it prints registers,
spills and instructions. Not a test itself: tests/kernels/test_triton_sm90.py runs it in a process
of its own, where nothing is interpreted.

    python tests/kernels/sm90.py 0/2      the first of two shares of the shipped configurations

prints one JSON object for each kernel.
"""

import json
import os
import re
import subprocess
import sys
import tempfile
import warnings
from pathlib import Path

os.environ.pop("TRITON_INTERPRET", None)
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import torch  # noqa: E402
import triton  # noqa: E402
from triton.backends.compiler import GPUTarget  # noqa: E402
from triton.compiler import ASTSource  # noqa: E402

from kernels import triton_attention  # noqa: E402

TOOL = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
POINTERS = {
    torch.bfloat16: "*bf16", torch.float16: "*fp16", torch.float32: "*fp32", torch.float64: "*fp64",
    torch.int64: "*i64",
}  # fmt: skip
COUNTED = ("HGMMA", "HMMA", "IMAD", "MUFU")  # tensor cores, integer products, exponentials


def longest_loop(code: str) -> list[str]:
    """Instructions between the target of a jump backward and the jump: the longest such piece."""
    lines = re.findall(r"^\s+/\*([0-9a-f]{4,})\*/\s+(.*?);", code, re.M)
    places = [int(place, 16) for place, _ in lines]
    jumps = [
        (places.index(int(to[1], 16)), i)
        for i, (_, x) in enumerate(lines)
        if (to := re.search(r"\bBRA\b.*?0x([0-9a-f]+)", x)) and int(to[1], 16) < places[i]
    ]
    first, last = max(jumps, key=lambda x: x[1] - x[0], default=(0, -1))
    return [x for _, x in lines[first : last + 1]]


def compile_kernel(fn, arguments: dict, num_warps: int, num_stages: int) -> dict:
    """`fn` compiled for sm_90 -> registers, bytes on the stack, counts of instructions, those of
    its longest loop and of the barriers in it, and the integers it is compiled again for where they
    become a multiple of 16 or stop being one.

    arguments: by name; str = the type of a pointer, None = no pointer, int = an argument of whose
    value Triton only asks whether it is 1 or divided by 16; those of constants are what they are.
    """
    signature, constants, attributes, special = {}, {}, {}, []
    for i, parameter in enumerate(fn.params):
        name, value = parameter.name, arguments[parameter.name]
        is_special = type(value) is int and not parameter.do_not_specialize
        if is_special and not parameter.is_constexpr:
            special.append(name)
        if parameter.is_constexpr or value is None or (is_special and value == 1):
            signature[name], constants[(i,)] = "constexpr", value
        else:
            signature[name] = value if isinstance(value, str) else "i32"
            if isinstance(value, str) or (is_special and value % 16 == 0):
                attributes[(i,)] = [["tt.divisibility", 16]]
    compiled = triton.compile(
        ASTSource(fn=fn, signature=signature, constexprs=constants, attrs=attributes),
        target=GPUTarget("cuda", 90, 32),
        options={"num_warps": num_warps, "num_stages": num_stages},
    )
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(compiled.asm["cubin"])
        file.flush()
        usage, code = (
            subprocess.run([TOOL, x, file.name], capture_output=True, text=True, check=True).stdout
            for x in ("-res-usage", "-sass")
        )
    registers, stack = map(int, re.search(r"REG:(\d+) STACK:(\d+)", usage).groups())
    counts = {name: len(re.findall(rf"\b{name}\b", code)) for name in COUNTED}
    counts["wide"] = code.count("LDG.E.128")
    counts["narrow"] = len(re.findall(r"\bLDG\.E\.U16", code))  # two bytes at a time
    counts["instructions"] = len(re.findall(r"^\s+/\*[0-9a-f]{4,}\*/", code, re.M))
    loop = longest_loop(code)
    counts |= {"loop": len(loop), "barriers": sum("BAR.SYNC" in x for x in loop)}
    sizes = {"registers": registers, "stack": stack, "shared": compiled.metadata.shared}
    return {**sizes, **counts, "special": special}


def attention(kernel, D, D_T, divergence, dropout, has_lse_t, dtype, config=None, H=12) -> dict:
    """One kernel of attention as kernels/triton_attention.py launches it."""
    is_taught = divergence != "none"
    D_T = D_T if is_taught else 1
    x, row = POINTERS[dtype], "*fp64" if dtype == torch.float64 else "*fp32"
    c = config or triton_attention.pick_config(kernel, D, D_T, divergence, dtype)
    arguments = {
        "ptr_keep": ("*i64" if dtype == torch.float64 else "*u8") if dropout == "bits" else None,
        "ptr_seed": "*i64" if dropout == "seed" else None,
        "ptr_lse_t": row if is_taught and (has_lse_t or kernel != "forward") else None,
        "ptr_cu_seqlens": "*i32", "N": 12345, "H": H, "n_blocks": 4, "s_keep": 32,
        **{f"ptr_{y}": x for y in ("q", "k", "v", "out", "dout", "dq", "dk", "dv")},
        **{f"s_{y}": H * D for y in "qkv"}, **{f"s_{y}_h": D for y in "qkv"},
        **{f"ptr_{y}": x if is_taught else None for y in ("q_t", "k_t")},
        **{f"s_{y}": H * D_T * is_taught for y in ("q_t", "k_t")},
        **{f"s_{y}_h": D_T * is_taught for y in ("q_t", "k_t")},
        **{f"ptr_{y}": row for y in ("row", "lse", "lse_t_out", "stat", "g", "delta")},
        **triton_attention.constants(D, D_T, divergence, dropout, 0.1, D**-0.5, D_T**-0.5, dtype),
        "BLOCK_Q": c.BLOCK_Q, "BLOCK_K": c.BLOCK_K,
    }  # fmt: skip
    fn = getattr(triton_attention, f"{kernel}_kernel")
    x = compile_kernel(fn, arguments, c.num_warps, c.num_stages)
    return {**x, "per_entry": x["loop"] * 32 * c.num_warps / (c.BLOCK_Q * c.BLOCK_K)}


def shipped() -> list[tuple]:
    """What is compiled: the paper's heads with every divergence, and single changes to one."""
    bf16 = torch.bfloat16
    kernels = ("forward", "dq", "dkdv")
    heads = ((26, 64), (32, 64), (64, 64), (32, 256))
    divergences = ("none", "kl_st", "kl_ts", "mse_maps")
    cases = [
        (kernel, *widths, divergence, "seed", True, bf16)
        for kernel in kernels for widths in heads for divergence in divergences
    ]  # fmt: skip
    for k in kernels:
        cases += [(k, 32, 64, "kl_st", x, True, bf16) for x in ("none", "bits")]
        cases += [(k, 64, 64, "mse_maps", "seed", True, torch.float16)]
        cases += [(k, 8, 16, "kl_ts", x, True, torch.float64) for x in ("bits", "seed")]
        cases += [
            (k, *widths, divergence, "seed", True, torch.float32)
            for widths in heads[2:] for divergence in ("kl_st", "mse_maps")
        ]  # fmt: skip
    cases += [("forward", 32, 64, x, "seed", False, bf16) for x in divergences[1:4]]
    for i, k in enumerate(kernels):  # counted: by default one case in five is compiled
        counted = (k, 32, 64, "kl_st", "seed", True, bf16)
        cases.remove(counted)
        cases.insert(5 * i, counted)
    return cases


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    share, of = map(int, sys.argv[1].split("/"))
    for case in shipped()[share::of]:
        print(json.dumps({"case": " ".join(map(str, case)), **attention(*case)}), flush=True)
