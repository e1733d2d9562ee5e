"""Rows in slots of a store, for the tests of the kernels that read it."""

import torch

from dllm.kernels.attention import Side


def place(shape, dtype, device, reach=None):
    """Queries, a store with one slot more than rows, slots, lengths and reaches; NaN stands where no row has a column.

    shape: B, Q, H, K, D, L.
    """
    batch, n_rows, heads, kv_heads, width, length = shape
    q = torch.randn(batch, n_rows, heads, width, dtype=dtype)
    slots, lengths = torch.arange(batch).flip(0) + 1, length - 3 * torch.arange(batch)
    store = torch.randn(2, batch + 1, length, kv_heads, width, dtype=dtype)
    store[:, 0] = torch.nan
    for slot, end in zip(slots.tolist(), lengths.tolist(), strict=True):
        store[:, slot, end:] = torch.nan
    columns = torch.rand(batch, length).argsort(1)[:, :n_rows].sort(1).values % lengths[:, None]
    last = {None: None, "causal": columns, "block": (columns // 4 + 1) * 4 - 1}[reach]
    given = (q, *store, slots, lengths, last)
    return tuple(None if part is None else part.to(device) for part in given)


def widened(given):
    """The same in float64."""

    def wide(part):
        return part.double() if part is not None and part.is_floating_point() else part

    return tuple(Side(*map(wide, part)) if isinstance(part, Side) else wide(part) for part in given)
