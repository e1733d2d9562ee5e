"""SwiGLU of the fused projection of gate and up: one pass, where torch takes two and a tensor between (2002.05202).

F: width of the MLP, G: twice that.
"""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from dllm.kernels.jit import jit, launch, suits, tl

BLOCK = 1024
"""Numbers of a program: 8 for each of 128 threads, 16 bytes in half precision."""


def reference_swiglu(gate_up: Float[Tensor, "... G"]) -> Float[Tensor, "... F"]:
    gate, up = gate_up.chunk(2, -1)
    return F.silu(gate) * up


@jit
def _swiglu_kernel(gate_up, out, width, BLOCK: tl.constexpr):
    row, column = tl.program_id(0).to(tl.int64), tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    exists = column < width
    gate = tl.load(gate_up + row * 2 * width + column, mask=exists, other=0.0)
    up = tl.load(gate_up + row * 2 * width + width + column, mask=exists, other=0.0)
    wide = gate.to(tl.float32)
    silu = (wide / (1 + tl.exp(-wide))).to(gate.dtype).to(tl.float32)  # rounded as the tensor between is
    tl.store(out + row * width + column, silu * up.to(tl.float32), mask=exists)


def triton_swiglu(gate_up: Float[Tensor, "... G"]) -> Float[Tensor, "... F"]:
    gate_up, width = gate_up.contiguous(), gate_up.shape[-1] // 2
    out = torch.empty((*gate_up.shape[:-1], width), dtype=gate_up.dtype, device=gate_up.device)
    if out.numel():
        grid = (out.numel() // width, -(-width // BLOCK))
        launch(_swiglu_kernel, grid, gate_up, out, width, BLOCK, num_warps=4)
    return out


def swiglu(gate_up: Float[Tensor, "... G"]) -> Float[Tensor, "... F"]:
    """silu(gate) · up: the kernel where it suits, else the reference."""
    return triton_swiglu(gate_up) if suits(gate_up) else reference_swiglu(gate_up)
