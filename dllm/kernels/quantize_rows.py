"""Activations in 8 bits for matrix products with fp8 weights: every row by a scale of its own, in one pass."""

import torch
from jaxtyping import Float
from torch import Tensor

from dllm.kernels.jit import jit, launch, power_of_two, suits, tl

E4M3 = torch.float8_e4m3fn
MOST = 448.0
"""The largest number that e4m3 holds."""
LEAST = 1e-12
"""The smallest scale: a row of zeros has one too."""


def reference_quantize_rows(x: Float[Tensor, "M C"]) -> tuple[Tensor, Float[Tensor, "M 1"]]:
    """Each row divided by its scale and rounded to e4m3, and the scales, float32: the row's largest number over 448."""
    wide = x.float()
    scale = (wide.abs().amax(1, keepdim=True) / MOST).clamp(min=LEAST)
    return (wide / scale).to(E4M3), scale


@jit
def _quantize_rows_kernel(x, out, scales, width, MOST: tl.constexpr, LEAST: tl.constexpr, BLOCK: tl.constexpr):
    row, column = tl.program_id(0).to(tl.int64), tl.arange(0, BLOCK)
    inside = column < width
    value = tl.load(x + row * width + column, mask=inside, other=0.0).to(tl.float32)
    scale = tl.maximum(tl.div_rn(tl.max(tl.abs(value), 0), MOST), LEAST)
    # div_rn: a quotient that is a bit off would round to another number of 8 bits than the reference's.
    tl.store(out + row * width + column, tl.div_rn(value, scale).to(tl.float8e4nv), mask=inside)
    tl.store(scales + row, scale)


def triton_quantize_rows(x: Float[Tensor, "M C"]) -> tuple[Tensor, Float[Tensor, "M 1"]]:
    """The same by the kernel, a program for every row."""
    x = x.contiguous()
    rows, width = x.shape
    out, scales = torch.empty_like(x, dtype=E4M3), torch.empty(rows, 1, dtype=torch.float32, device=x.device)
    block = power_of_two(width)
    # 32 numbers a thread at most, so that a row stays in registers between its maximum and its quotients.
    warps = min(16, max(1, block // 1024))
    launch(_quantize_rows_kernel, (rows,), x, out, scales, width, MOST, LEAST, block, num_warps=warps)
    return out, scales


def quantize_rows(x: Float[Tensor, "M C"]) -> tuple[Tensor, Float[Tensor, "M 1"]]:
    """As the reference; the kernel on a GPU. The first result is float8_e4m3fn of the shape (M, C)."""
    return triton_quantize_rows(x) if suits(x) else reference_quantize_rows(x)
