"""Elastic-Cache's test (arXiv:2510.14973): how alike the attention of tracked rows is before and after a forward.

Before means their old queries and the keys that stood in the store; of these the forward has overwritten a few, which
are kept aside. A program goes through all heads of a tile of rows and columns, with three sums for each pair of them:
no map of attention is made, and the keys are read once for both.

Shape letters: R rows in flight, B rows of a forward, L stored columns, T tracked rows of each, N overwritten columns, H
heads, K kv heads, D head width.
"""

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from dllm.kernels.attention import probabilities, scores, seen
from dllm.kernels.jit import LOG2_E, jit, launch, power_of_two, suits, tl

LEAST = tl.constexpr(1e-18)
"""What squares to 0 in float32 counts as unchanged."""
SUMMED = 128
"""Parts that the second kernel sums at a time."""


def reference_drift(
    old_q: Float[Tensor, "B T H D"],
    new_q: Float[Tensor, "B T H D"],
    old_lse: Float[Tensor, "B T H"],
    new_lse: Float[Tensor, "B T H"],
    keys: Float[Tensor, "R L K D"],
    overwritten: Float[Tensor, "B N K D"],
    where: Int[Tensor, "B L"],
    slots: Int[Tensor, " B"],
    lengths: Int[Tensor, " B"],
    valid: Bool[Tensor, "B T"],
    reach: Int[Tensor, "B T"] | None = None,
) -> Float[Tensor, " B"]:
    """Cosine over heads of what was and what is attended to, the mean over the valid rows' visible columns; 0 to 1.

    keys: as they are now. where: which of the `overwritten` keys stood at each column; -1 for none. Both queries are
    rotated, and the log-sum-exps are those of their attention at the time. 1 where no row is valid.
    """
    k, visible = keys[slots], seen(keys.shape[1], lengths, old_q.shape[1], reach)
    index = where.clamp(min=0)[..., None, None].expand(-1, -1, *keys.shape[2:])
    before = torch.where((where >= 0)[..., None, None], overwritten.gather(1, index), k)
    old = probabilities(scores(old_q, before, visible), old_lse).clamp(min=1e-18)
    new = probabilities(scores(new_q, k, visible), new_lse).clamp(min=1e-18)
    cosine = (old * new).sum(1) / ((old * old).sum(1).sqrt() * (new * new).sum(1).sqrt())  # (B, T, L)
    counted = valid[..., None] & visible
    return 1 - ((1 - cosine) * counted).sum((1, 2)) / counted.sum((1, 2)).clamp(min=1)


@jit
def _drift_kernel(
    old_q,
    new_q,
    old_lse,
    new_lse,
    keys,
    overwritten,
    where,
    slots,
    lengths,
    valid,
    reaches,
    parts,
    n_rows,
    n_old,
    length,
    n_heads,
    kv_heads,
    scale,
    D: tl.constexpr,
    QUERIES: tl.constexpr,
    KEYS: tl.constexpr,
    WIDTH: tl.constexpr,
    REACH: tl.constexpr,
    PRECISION: tl.constexpr,
):
    batch, d = tl.program_id(2).to(tl.int64), tl.arange(0, WIDTH)[None, :]
    column, row = tl.program_id(0) * KEYS + tl.arange(0, KEYS), tl.program_id(1) * QUERIES + tl.arange(0, QUERIES)
    exists = column < tl.minimum(tl.load(lengths + batch).to(tl.int32), length)
    real = tl.load(valid + batch * n_rows + row, mask=row < n_rows, other=0) != 0
    counted = real[:, None] & exists[None, :]
    if REACH:
        reach = tl.load(reaches + batch * n_rows + row, mask=real, other=-1)
        counted = counted & (column[None, :] <= reach[:, None])
    index = tl.load(where + batch * length + column, mask=exists, other=-1).to(tl.int32)
    replaced, place = (index >= 0)[:, None], tl.load(slots + batch).to(tl.int64) * length * kv_heads * D
    both = tl.zeros((QUERIES, KEYS), tl.float32)
    olds, news = tl.zeros((QUERIES, KEYS), tl.float32), tl.zeros((QUERIES, KEYS), tl.float32)
    for head in range(n_heads):
        shared = head // (n_heads // kv_heads) * D
        at, load = column[:, None] * (kv_heads * D) + shared + d, exists[:, None] & (d < D)
        k = tl.load(keys + place + at, mask=load, other=0.0)
        old_at = batch * n_old * kv_heads * D + index[:, None] * (kv_heads * D) + shared + d
        k_old = tl.load(overwritten + old_at, mask=load & replaced, other=0.0)
        k_old = tl.where(replaced, k_old, k)
        query = (batch * n_rows + row) * n_heads + head
        mask = real[:, None] & (d < D)
        x_old = tl.load(old_q + query[:, None] * D + d, mask=mask, other=0.0)
        x_new = tl.load(new_q + query[:, None] * D + d, mask=mask, other=0.0)
        whole_old = tl.load(old_lse + query, mask=real, other=0.0)[:, None] * LOG2_E
        whole_new = tl.load(new_lse + query, mask=real, other=0.0)[:, None] * LOG2_E
        old = tl.dot(x_old, tl.trans(k_old), input_precision=PRECISION) * scale - whole_old
        new = tl.dot(x_new, tl.trans(k), input_precision=PRECISION) * scale - whole_new
        old, new = tl.maximum(tl.exp2(old), LEAST), tl.maximum(tl.exp2(new), LEAST)
        both, olds, news = both + old * new, olds + old * old, news + new * new
    apart = tl.where(counted, 1 - both / (tl.sqrt(olds) * tl.sqrt(news)), 0.0)
    n_parts = tl.num_programs(0) * tl.num_programs(1)
    part = parts + batch * 2 * n_parts + tl.program_id(1) * tl.num_programs(0) + tl.program_id(0)
    tl.store(part, tl.sum(tl.sum(apart, 1), 0))
    tl.store(part + n_parts, tl.sum(tl.sum(counted.to(tl.float32), 1), 0))


@jit
def _mean_kernel(parts, out, n_parts, SUMMED: tl.constexpr):
    batch = tl.program_id(0).to(tl.int64)
    apart, count = tl.zeros((SUMMED,), tl.float32), tl.zeros((SUMMED,), tl.float32)
    for first in range(0, n_parts, SUMMED):
        part = first + tl.arange(0, SUMMED)
        at = parts + batch * 2 * n_parts + part
        apart += tl.load(at, mask=part < n_parts, other=0.0)
        count += tl.load(at + n_parts, mask=part < n_parts, other=0.0)
    tl.store(out + batch, 1 - tl.sum(apart, 0) / tl.maximum(tl.sum(count, 0), 1.0))


def triton_drift(
    old_q: Float[Tensor, "B T H D"],
    new_q: Float[Tensor, "B T H D"],
    old_lse: Float[Tensor, "B T H"],
    new_lse: Float[Tensor, "B T H"],
    keys: Float[Tensor, "R L K D"],
    overwritten: Float[Tensor, "B N K D"],
    where: Int[Tensor, "B L"],
    slots: Int[Tensor, " B"],
    lengths: Int[Tensor, " B"],
    valid: Bool[Tensor, "B T"],
    reach: Int[Tensor, "B T"] | None = None,
) -> Float[Tensor, " B"]:
    """The kernels, in float32."""
    batch, n_rows, n_heads, width = old_q.shape
    length, kv_heads = keys.shape[1:3]
    full = old_q.dtype == torch.float32
    queries, columns = (16, 16) if full else (32, 16)  # small tiles: at 1,280 columns one row still makes 80 programs
    n_parts = (-(-length // columns), -(-n_rows // queries))
    parts, out = old_lse.new_empty(batch, 2, n_parts[0] * n_parts[1]), old_lse.new_empty(batch)
    given = (old_q, new_q, old_lse, new_lse, keys, overwritten, where, slots, lengths, valid)
    launch(
        *(_drift_kernel, (*n_parts, batch)),
        *(x.contiguous() for x in given),
        *(slots if reach is None else reach.contiguous(), parts, n_rows, overwritten.shape[1], length, n_heads),
        *(kv_heads, width**-0.5 * LOG2_E.value, width, queries, columns, max(16, power_of_two(width))),
        *(reach is not None, "ieee" if full else "tf32"),
        num_warps=8 if full else 4,
        num_stages=2,
    )
    launch(_mean_kernel, (batch,), parts, out, parts.shape[2], SUMMED, num_warps=4)
    return out


def drift(
    old_q: Float[Tensor, "B T H D"],
    new_q: Float[Tensor, "B T H D"],
    old_lse: Float[Tensor, "B T H"],
    new_lse: Float[Tensor, "B T H"],
    keys: Float[Tensor, "R L K D"],
    overwritten: Float[Tensor, "B N K D"],
    where: Int[Tensor, "B L"],
    slots: Int[Tensor, " B"],
    lengths: Int[Tensor, " B"],
    valid: Bool[Tensor, "B T"],
    reach: Int[Tensor, "B T"] | None = None,
) -> Float[Tensor, " B"]:
    """The kernels where they suit, else the reference."""
    test = triton_drift if suits(old_q) else reference_drift
    return test(old_q, new_q, old_lse, new_lse, keys, overwritten, where, slots, lengths, valid, reach)
