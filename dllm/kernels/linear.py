"""A linear map in which a row's result does not depend on the other rows, nor on how many there are.

A library chooses tiles, and how it splits the sum, by the shape of the whole product; so the same row, rounded in
another order, may come out otherwise beside more rows. Here the tile depends on the weight alone, and the sum runs over
its columns in order. Shape letters: M rows, K inputs, N outputs.
"""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from dllm.kernels.jit import jit, launch, suits, tl

ROWS = 64
"""Rows of a tile: the least that Hopper's matrix instruction takes, as a window of one sequence has 32."""
SHARE = 16
"""Rows that the reference multiplies at once, zeros in place of missing ones."""


def reference_linear(
    x: Float[Tensor, "... K"], weight: Float[Tensor, "N K"], bias: Float[Tensor, " N"] | None = None
) -> Float[Tensor, "... N"]:
    """Products of one shape: a row at the same place of its share always meets the same sums."""
    rows = x.reshape(-1, x.shape[-1])
    shares = torch.split(F.pad(rows, (0, 0, 0, -len(rows) % SHARE)), SHARE)
    out = torch.cat([F.linear(share, weight, bias) for share in shares])[: len(rows)]
    return out.view(*x.shape[:-1], len(weight))


@jit
def _linear_kernel(
    x,
    weight,
    bias,
    out,
    n_rows,
    n_out,
    n_in,
    BIAS: tl.constexpr,
    ROWS: tl.constexpr,
    OUT: tl.constexpr,
    IN: tl.constexpr,
):
    row, to = tl.program_id(0) * ROWS + tl.arange(0, ROWS), tl.program_id(1) * OUT + tl.arange(0, OUT)
    inner = tl.arange(0, IN)
    left = x + row[:, None].to(tl.int64) * n_in + inner[None]
    right = weight + to[None].to(tl.int64) * n_in + inner[:, None]
    acc = tl.zeros((ROWS, OUT), dtype=tl.float32)
    for begin in range(0, n_in, IN):
        here = inner < n_in - begin
        a = tl.load(left + begin, mask=(row < n_rows)[:, None] & here[None], other=0.0)
        b = tl.load(right + begin, mask=(to < n_out)[None] & here[:, None], other=0.0)
        acc = tl.dot(a, b, acc, input_precision="ieee")
    if BIAS:
        acc += tl.load(bias + to, mask=to < n_out, other=0.0)[None].to(tl.float32)
    where = out + row[:, None].to(tl.int64) * n_out + to[None]
    tl.store(where, acc, mask=(row < n_rows)[:, None] & (to < n_out)[None])


def tile(weight: Float[Tensor, "N K"]) -> tuple[int, int, int]:
    """Outputs and inputs of a tile, and how many tiles of inputs are loaded ahead."""
    if weight.dtype == torch.float32:
        return 64, 32, 3
    # Few outputs make few programs: half as wide, they are twice as many that read the weights.
    return (128, 64, 4) if weight.shape[0] >= 8192 else (64, 64, 6)


def triton_linear(
    x: Float[Tensor, "... K"], weight: Float[Tensor, "N K"], bias: Float[Tensor, " N"] | None = None
) -> Float[Tensor, "... N"]:
    x, weight, (n_out, n_in) = x.contiguous(), weight.contiguous(), weight.shape
    out = torch.empty((*x.shape[:-1], n_out), dtype=x.dtype, device=x.device)
    n_rows, (wide, deep, stages) = x.numel() // n_in, tile(weight)
    if n_rows:
        grid = (-(-n_rows // ROWS), -(-n_out // wide))  # rows first, so that programs side by side share weights
        given = (x, weight, weight if bias is None else bias, out, n_rows, n_out, n_in, bias is not None)
        launch(_linear_kernel, grid, *given, ROWS, wide, deep, num_warps=4, num_stages=stages)
    return out


def linear(
    x: Float[Tensor, "... K"], weight: Float[Tensor, "N K"], bias: Float[Tensor, " N"] | None = None
) -> Float[Tensor, "... N"]:
    """The kernel where it suits, else the reference."""
    return triton_linear(x, weight, bias) if suits(x, weight) else reference_linear(x, weight, bias)
