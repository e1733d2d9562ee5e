"""Rotary position embedding, the reference of every kernel that rotates (arXiv:2104.09864)."""

import torch
from jaxtyping import Float
from torch import Tensor

Rotation = tuple[Float[Tensor, "#B Q 1 R"], Float[Tensor, "#B Q 1 R"]]
"""Cosines and signed sines in the dtype in which to rotate. R: the numbers of a head that are rotated, its first ones;
mostly all D. One row may serve a whole batch."""


def rotate(x: Float[Tensor, "B Q N D"], by: Rotation) -> Float[Tensor, "B Q N D"]:
    """Rotary position embedding: the halves of what is rotated are the two coordinates (not interleaved pairs)."""
    cos, sin = by
    size = cos.shape[-1]
    wider = x[..., :size].to(cos.dtype)
    turned = (wider * cos + wider.roll(size // 2, -1) * sin).to(x.dtype)
    return turned if size == x.shape[-1] else torch.cat([turned, x[..., size:]], -1)
