"""How much some rows attend to each stored column, from the log-sum-exp of their attention: no map of it is made.

A second, lighter pass: it reads the keys once more, and no values. A program sums what the queries of one kv head pay
to a tile of columns; the heads are summed in one order, so that a row does not depend on its batch.

Shape letters: R rows in flight, B rows of a forward, L stored columns, W queries of each, H heads, K kv heads, D head
width.
"""

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from dllm.kernels.attention import probabilities, scores, seen
from dllm.kernels.jit import LOG2_E, jit, launch, power_of_two, suits, tl

SUMMED = 256
"""Columns of a program that sums the heads."""


def reference_mass(
    q: Float[Tensor, "B W H D"],
    lse: Float[Tensor, "B W H"],
    keys: Float[Tensor, "R L K D"],
    slots: Int[Tensor, " B"],
    lengths: Int[Tensor, " B"],
    valid: Bool[Tensor, "B W"],
    reach: Int[Tensor, "B W"] | None = None,
) -> Float[Tensor, "B L"]:
    """The sum over heads and valid queries of the probabilities of attention, whose log-sum-exp is `lse`."""
    k, visible = keys[slots], seen(keys.shape[1], lengths, q.shape[1], reach)
    return (probabilities(scores(q, k, visible), lse).sum(1) * valid[..., None]).sum(1)


@jit
def _mass_kernel(
    q,
    lse,
    keys,
    slots,
    lengths,
    valid,
    reaches,
    parts,
    n_rows,
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
    head, batch = tl.program_id(1), tl.program_id(2).to(tl.int64)
    group, d = n_heads // kv_heads, tl.arange(0, WIDTH)[None, :]
    column = tl.program_id(0) * KEYS + tl.arange(0, KEYS)
    exists = column < tl.minimum(tl.load(lengths + batch).to(tl.int32), length)
    place = (tl.load(slots + batch).to(tl.int64) * length * kv_heads + head) * D
    at = column[:, None] * (kv_heads * D) + d
    k = tl.load(keys + place + at, mask=exists[:, None] & (d < D), other=0.0)
    paid = tl.zeros((KEYS,), tl.float32)
    for first in range(0, n_rows * group, QUERIES):
        packed = first + tl.arange(0, QUERIES)
        row = packed // group
        real = row < n_rows
        counted = tl.load(valid + batch * n_rows + row, mask=real, other=0) != 0
        query, queries = row * n_heads + head * group + packed % group, batch * n_rows * n_heads
        x = tl.load(q + queries * D + query[:, None] * D + d, mask=real[:, None] & (d < D), other=0.0)
        whole = tl.load(lse + queries + query, mask=counted, other=0.0) * LOG2_E
        visible = counted[:, None] & exists[None, :]
        if REACH:
            reach = tl.load(reaches + batch * n_rows + row, mask=real, other=-1)
            visible = visible & (column[None, :] <= reach[:, None])
        score = tl.dot(x, tl.trans(k), input_precision=PRECISION) * scale - whole[:, None]
        paid += tl.sum(tl.exp2(tl.where(visible, score, -float("inf"))), 0)
    tl.store(parts + (batch * kv_heads + head) * length + column, paid, mask=column < length)


@jit
def _sum_kernel(parts, out, n, length, SUMMED: tl.constexpr):
    column, batch = tl.program_id(0) * SUMMED + tl.arange(0, SUMMED), tl.program_id(1).to(tl.int64)
    total = tl.zeros((SUMMED,), tl.float32)
    for part in range(n):
        total += tl.load(parts + (batch * n + part) * length + column, mask=column < length, other=0.0)
    tl.store(out + batch * length + column, total, mask=column < length)


def triton_mass(
    q: Float[Tensor, "B W H D"],
    lse: Float[Tensor, "B W H"],
    keys: Float[Tensor, "R L K D"],
    slots: Int[Tensor, " B"],
    lengths: Int[Tensor, " B"],
    valid: Bool[Tensor, "B W"],
    reach: Int[Tensor, "B W"] | None = None,
) -> Float[Tensor, "B L"]:
    """The kernels, in float32."""
    batch, n_rows, n_heads, width = q.shape
    length, kv_heads = keys.shape[1:3]
    parts, out = lse.new_empty(batch, kv_heads, length), lse.new_empty(batch, length)
    full = q.dtype == torch.float32  # then products do not run on tensor cores, and live in registers
    queries, columns = (16, 32) if full else (32, 64)
    launch(
        *(_mass_kernel, (-(-length // columns), kv_heads, batch)),
        *(q.contiguous(), lse.contiguous(), keys, slots.contiguous(), lengths.contiguous(), valid.contiguous()),
        *(slots if reach is None else reach.contiguous(), parts, n_rows, length, n_heads, kv_heads),
        *(width**-0.5 * LOG2_E.value, width, queries, columns, max(16, power_of_two(width)), reach is not None),
        "ieee" if full else "tf32",
        num_warps=8 if full else 4,
        num_stages=2,
    )
    launch(_sum_kernel, (-(-length // SUMMED), batch), parts, out, kv_heads, length, SUMMED, num_warps=4)
    return out


def mass(
    q: Float[Tensor, "B W H D"],
    lse: Float[Tensor, "B W H"],
    keys: Float[Tensor, "R L K D"],
    slots: Int[Tensor, " B"],
    lengths: Int[Tensor, " B"],
    valid: Bool[Tensor, "B W"],
    reach: Int[Tensor, "B W"] | None = None,
) -> Float[Tensor, "B L"]:
    """The kernels where they suit, else the reference."""
    pay = triton_mass if suits(q) else reference_mass
    return pay(q, lse, keys, slots, lengths, valid, reach)
