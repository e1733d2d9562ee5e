"""What caches need that look at attention: its probabilities for a few rows, and which columns these attend to most."""

import torch
from jaxtyping import Bool, Float
from torch import Tensor


def probabilities(
    q: Float[Tensor, "B Q H D"], k: Float[Tensor, "B L K D"], visible: Bool[Tensor, "B 1 _ L"] | None
) -> Float[Tensor, "B H Q L"]:
    """How much each query attends to each key, float32 or wider. Query heads share keys in groups."""
    batch, n_rows, heads, width = q.shape
    grouped = q.view(batch, n_rows, k.shape[2], -1, width).permute(0, 2, 3, 1, 4).flatten(2, 3)  # (B, K, H / K · Q, D)
    scores = (grouped @ k.permute(0, 2, 3, 1) * width**-0.5).view(batch, heads, n_rows, -1)
    scores = scores.to(torch.promote_types(scores.dtype, torch.float32))
    p: Float[Tensor, "B H Q L"] = (scores if visible is None else scores.masked_fill(~visible, -torch.inf)).softmax(-1)
    return p


def weighted(p: Float[Tensor, "B H Q L"], v: Float[Tensor, "B L K D"]) -> Float[Tensor, "B Q H D"]:
    """What attention with these probabilities gives."""
    batch, heads, n_rows, length = p.shape
    grouped = p.to(v.dtype).view(batch, v.shape[2], -1, length) @ v.transpose(1, 2)  # (B, K, H / K · Q, D)
    return grouped.view(batch, heads, n_rows, -1).transpose(1, 2)


def mass(p: Float[Tensor, "B H Q L"], valid: Bool[Tensor, "B Q"]) -> Float[Tensor, "B L"]:
    """How much the valid rows attend to each column, all heads together."""
    return (p.sum(1) * valid[..., None]).sum(1)


def similarity(
    old: Float[Tensor, "B H Q L"],
    new: Float[Tensor, "B H Q L"],
    valid: Bool[Tensor, "B Q"],
    visible: Bool[Tensor, "B 1 _ L"] | None,
) -> Float[Tensor, " B"]:
    """Cosine over heads of what was and what is attended to, the mean over the valid rows' visible columns; 0 to 1."""
    old, new = old.clamp(min=1e-18), new.clamp(min=1e-18)  # what squares to 0 in float32 counts as unchanged
    cosine = (old * new).sum(1) / ((old * old).sum(1).sqrt() * (new * new).sum(1).sqrt())  # (B, Q, L)
    counted = valid[:, :, None] & (torch.ones_like(cosine, dtype=torch.bool) if visible is None else visible[:, 0])
    return 1 - ((1 - cosine) * counted).sum((1, 2)) / counted.sum((1, 2)).clamp(min=1)
