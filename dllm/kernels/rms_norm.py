"""RMSNorm in one kernel, with the sum of the residual stream before it: torch takes four, or five, on half precision.

x / rms(x), rounded to the input's dtype, times the weight: in this order, as the checkpoints were trained. A row is one
program's, so that its result does not depend on the others. C: hidden size.
"""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from dllm.kernels.jit import jit, launch, power_of_two, suits, tl


def reference_rms_norm(x: Float[Tensor, "... C"], weight: Float[Tensor, " C"], eps: float) -> Float[Tensor, "... C"]:
    wide = torch.promote_types(x.dtype, torch.float32)
    if x.dtype == wide:
        return F.rms_norm(x, x.shape[-1:], weight, eps)
    scaled: Tensor = F.rms_norm(x.to(wide), x.shape[-1:], None, eps).to(x.dtype) * weight
    return scaled


def reference_add_rms_norm(
    x: Float[Tensor, "... C"], more: Float[Tensor, "... C"], weight: Float[Tensor, " C"], eps: float
) -> tuple[Float[Tensor, "... C"], Float[Tensor, "... C"]]:
    """x + more, and its norm."""
    both = x + more
    return both, reference_rms_norm(both, weight, eps)


@jit
def _rms_norm_kernel(x, more, both, weight, out, size, eps, ADD: tl.constexpr, BLOCK: tl.constexpr):
    column = tl.arange(0, BLOCK)
    exists, at = column < size, tl.program_id(0).to(tl.int64) * size + column
    value = tl.load(x + at, mask=exists, other=0.0)
    if ADD:
        # The sum is rounded before the norm, as it is where the sum is a tensor.
        value = (value.to(tl.float32) + tl.load(more + at, mask=exists, other=0.0).to(tl.float32)).to(value.dtype)
        tl.store(both + at, value, mask=exists)
    wide = value.to(tl.float32)
    scale = tl.rsqrt(tl.sum(wide * wide, 0) / size + eps)
    scaled = (wide * scale).to(value.dtype).to(tl.float32)
    tl.store(out + at, scaled * tl.load(weight + column, mask=exists, other=0.0).to(tl.float32), mask=exists)


def triton_rms_norm(
    x: Float[Tensor, "... C"], weight: Float[Tensor, " C"], eps: float, more: Float[Tensor, "... C"] | None = None
) -> tuple[Float[Tensor, "... C"], Float[Tensor, "... C"]]:
    """x, or its sum with `more`, and the norm of that."""
    x, size = x.contiguous(), x.shape[-1]
    out, both = torch.empty_like(x), x if more is None else torch.empty_like(x)
    block = power_of_two(size)
    other = x if more is None else more.contiguous()
    if x.numel():
        # At most 16 numbers a thread: two loads of 16 bytes in half precision.
        warps = max(1, min(8, block // 512))
        given = (x, other, both, weight, out, size, eps, more is not None, block)
        launch(_rms_norm_kernel, (x.numel() // size,), *given, num_warps=warps)
    return both, out


def rms_norm(x: Float[Tensor, "... C"], weight: Float[Tensor, " C"], eps: float) -> Float[Tensor, "... C"]:
    """The kernel where it suits, else the reference."""
    return triton_rms_norm(x, weight, eps)[1] if suits(x, weight) else reference_rms_norm(x, weight, eps)


def add_rms_norm(
    x: Float[Tensor, "... C"], more: Float[Tensor, "... C"], weight: Float[Tensor, " C"], eps: float
) -> tuple[Float[Tensor, "... C"], Float[Tensor, "... C"]]:
    """x + more, and its norm: the kernel where it suits, else the reference."""
    if suits(x, more, weight) and x.dtype == more.dtype:
        return triton_rms_norm(x, weight, eps, more)
    return reference_add_rms_norm(x, more, weight, eps)
