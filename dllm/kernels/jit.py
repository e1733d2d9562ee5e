"""Triton where it is installed, and elsewhere a stand-in with which a file of kernels can still be imported."""

from inspect import unwrap
from types import SimpleNamespace
from typing import Any

try:
    import triton
    import triton.language as tl
except ImportError:  # there are no wheels for macOS and Windows
    triton, tl = None, SimpleNamespace(constexpr=int)

AVAILABLE = triton is not None
"""Whether kernels can run, on a GPU or in Triton's interpreter."""


def jit(function: Any) -> Any:
    """triton.jit of what was written: tests wrap all functions, and Triton looks for names where the wrapper stands."""
    return triton.jit(unwrap(function)) if AVAILABLE else function
