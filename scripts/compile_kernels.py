"""Compile the kernels of the store for an H200 in the shapes of real models: python scripts/compile_kernels.py

Needs Triton and no GPU. The host functions run on tensors without memory, and what they would launch is compiled
instead: their own tiles, for sm_90. Prints registers and spilled bytes of a thread, shared memory of a program, and how
many programs a multiprocessor can hold.
"""

import argparse
import re
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
import triton
from torch import Tensor
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from triton.runtime.jit import JITFunction

from dllm.kernels.attention import Side, triton_attention
from dllm.kernels.drift import triton_drift
from dllm.kernels.mass import triton_mass
from dllm.kernels.write_rows import triton_write_rows

MODELS = {"llada": (32, 32, 128), "dream": (28, 4, 128)}
"""H, K, D"""
LENGTH = 1280
TYPES = {torch.bfloat16: "bf16", torch.float32: "fp32", torch.int64: "i64", torch.bool: "i1"}
REGISTERS, SHARED = 65536, 227 * 1024
"""Of one multiprocessor."""

Launch = tuple[JITFunction, tuple[Any, ...], dict[str, Any]]


@contextmanager
def recorded() -> Iterator[list[Launch]]:
    """What is launched inside, without running it."""
    launches: list[Launch] = []
    run = JITFunction.run

    def record(kernel: JITFunction, *args: Any, **options: Any) -> None:
        compiling = {name: value for name, value in options.items() if name not in ("grid", "warmup")}
        launches.append((kernel, args, compiling))

    JITFunction.run = record
    try:
        yield launches
    finally:
        JITFunction.run = run


def compiled(kernel: JITFunction, args: tuple[Any, ...], options: dict[str, Any]) -> dict[str, int]:
    """Its resources. Arguments are specialised as Triton does it: sizes and addresses that 16 divides, and ones."""
    types: dict[str, str] = {}
    constants, attributes = {}, {}
    for i, (parameter, value) in enumerate(zip(kernel.params, args, strict=True)):
        if parameter.is_constexpr or (type(value) is int and value == 1):
            types[parameter.name], constants[parameter.name] = "constexpr", value
        elif isinstance(value, Tensor):
            types[parameter.name], attributes[(i,)] = "*" + TYPES[value.dtype], [["tt.divisibility", 16]]
        else:
            types[parameter.name] = "i32" if isinstance(value, int) else "fp32"
            if isinstance(value, int) and value % 16 == 0:
                attributes[(i,)] = [["tt.divisibility", 16]]
    source = ASTSource(kernel, types, constants, attributes)
    made = triton.compile(source, target=GPUTarget("cuda", 90, 32), options=options)
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(made.asm["cubin"])
        file.flush()
        tool = triton.knobs.nvidia.cuobjdump.path
        said = subprocess.run([tool, "-res-usage", file.name], capture_output=True, text=True, check=True)
    found = re.search(r"REG:(\d+) STACK:(\d+)", said.stdout + said.stderr)
    assert found, said.stdout
    registers, spilled = map(int, found.groups())
    threads, shared = 32 * options["num_warps"], made.metadata.shared
    per = min(REGISTERS // (registers * threads), SHARED // (shared + 1024), 2048 // threads)
    return {"registers": registers, "spilled": spilled, "shared": shared, "programs": per}


def cases(shape: tuple[int, int, int], dtype: torch.dtype) -> dict[str, Callable[[], object]]:
    """Window steps of 32 rows of one sequence and of 8, with drafts, and a refresh."""
    heads, kv_heads, width = shape

    def numbers(*size: int, dtype: torch.dtype = dtype) -> Tensor:
        return torch.empty(size, dtype=dtype, device="meta")

    def whole(*size: int) -> Tensor:
        return numbers(*size, dtype=torch.int64)

    keys, slots, lengths = numbers(8, LENGTH, kv_heads, width), whole(8), whole(8)
    table = numbers(8, 32, 1, width, dtype=torch.float32)
    marks, fresh = numbers(8, 32, dtype=torch.bool), numbers(8, 32, kv_heads, width)
    q, lse = numbers(8, 32, heads, width), numbers(8, 32, heads, dtype=torch.float32)
    many, drafts = numbers(1, 128, heads, width), numbers(1, 96, kv_heads, width)
    side = Side(drafts, drafts, numbers(1, 128, 96, dtype=torch.bool), whole(1, LENGTH), whole(1, 128))

    def write() -> object:
        return triton_write_rows(q, fresh, fresh, (table, table), keys, keys, slots, whole(8, 32), 32)

    def drift() -> object:
        changed = fresh, whole(8, LENGTH), slots, lengths, marks
        return triton_drift(q, q, lse, lse, keys, *changed)

    return {
        "write_rows": write,
        "attention": lambda: triton_attention(q[:1], keys, keys, slots[:1], lengths[:1]),
        "attention, 8 sequences": lambda: triton_attention(q, keys, keys, slots, lengths),
        "attention, drafts": lambda: triton_attention(many, keys, keys, slots[:1], lengths[:1], whole(1, 128), side),
        "attention, refresh": lambda: triton_attention(
            numbers(1, LENGTH, heads, width), keys, keys, slots[:1], lengths[:1], whole(1, LENGTH)
        ),
        "attention, deterministic": lambda: triton_attention(q, keys, keys, slots, lengths, deterministic=True),
        "mass": lambda: triton_mass(q, lse, keys, slots, lengths, marks),
        "drift": drift,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--only", default="", help="cases whose name begins so")
    parser.add_argument("--dtype", choices=["bfloat16", "float32"], action="append", help="default: both")
    parser.add_argument("--model", choices=[*MODELS], action="append", help="default: both")
    args = parser.parse_args()
    for model in args.model or MODELS:
        for dtype in args.dtype or ["bfloat16", "float32"]:
            for name, call in cases(MODELS[model], getattr(torch, dtype)).items():
                if not name.startswith(args.only):
                    continue
                with recorded() as launches:
                    call()
                for launch in launches:
                    told = ", ".join(f"{value} {key}" for key, value in compiled(*launch).items())
                    print(f"{model} {dtype} {name}: {launch[0].__name__}: {told}", flush=True)


if __name__ == "__main__":
    main()
