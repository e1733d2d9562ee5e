"""Triton where it is installed, and elsewhere a stand-in with which a file of kernels can still be imported."""

from inspect import unwrap
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

try:
    import triton
    import triton.language as tl
except ImportError:  # there are no wheels for macOS and Windows
    triton, tl = None, SimpleNamespace(constexpr=float)

LOG2_E, LN_2 = tl.constexpr(1.4426950408889634), tl.constexpr(0.6931471805599453)
"""Kernels count in powers of 2, which a GPU has an instruction for: from powers of e, and from logarithms back."""
AVAILABLE = triton is not None
"""Whether kernels can run, on a GPU or in Triton's interpreter."""


def jit(function: Any) -> Any:
    """triton.jit of what was written: tests wrap all functions, and Triton looks for names where the wrapper stands."""
    return triton.jit(unwrap(function)) if AVAILABLE else function


def suits(*given: Tensor) -> bool:
    """Whether kernels can take these: they have no derivatives, and nothing beyond float32."""
    if not (AVAILABLE and given[0].is_cuda and given[0].dtype in (torch.bfloat16, torch.float16, torch.float32)):
        return False
    return not (torch.is_grad_enabled() and any(part.requires_grad for part in given))


def launch(kernel: Any, grid: tuple[int, ...], first: Tensor, *others: Any, **how: Any) -> None:
    """Start a kernel on the device of its first argument; Triton takes the current one, wherever the tensors are."""
    with torch.cuda.device_of(first):  # type: ignore[no-untyped-call]  # of torch
        kernel[grid](first, *others, **how)


def power_of_two(n: int) -> int:
    """The smallest that is not below n."""
    return 1 << (n - 1).bit_length()
