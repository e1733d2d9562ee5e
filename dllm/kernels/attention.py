"""Attention of a forward's rows to what is stored, without gathering that first, and to side keys beside it.

A program keeps a tile of queries, packed with all heads that share a kv head, and reads each of its keys and values
once. What a row may see is its length and its reach: no mask stands in memory. A few rows do not fill a GPU, so that
their keys are split among programs, and a second kernel puts the parts together (Flash-Decoding, Dao et al. 2023).

Branches (drafts, shadows) are more queries of the same tiles: what is stored is read once for all of them. A query of a
branch does not see the stored columns that its branch replaces, whose `owner` is its `own`, and sees the fresh keys of
its branch instead.

torch's own attention is as fast where whole rows of one length attend to all: caches take it there. It gathers the rows
of a batch, and needs a mask in memory for everything else, which keeps it from its fastest kernel.

Shape letters: R rows in flight, B rows of a forward, L stored columns, Q queries of each, S side keys, H heads, K kv
heads, G heads that share one, D head width.
"""

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from dllm.kernels.jit import LN_2, LOG2_E, jit, launch, power_of_two, suits, tl

SLOTS = 264
"""Programs that an H100 or H200 runs at a time: two on each of its 132 multiprocessors."""
SHORTEST = 128
"""Keys of a part: with fewer, the parts weigh more than the keys they spare."""
COMBINED = 4
"""Rows that a program of the second kernel puts together."""

Attended = tuple[Float[Tensor, "B Q H D"], Float[Tensor, "B Q H"]]
"""What attention gives, and the natural logarithm of each query's sum of exponentials, float32 or wider."""


class Side(NamedTuple):
    """Keys and values that are not stored, and which of them, instead of which stored columns, each query sees."""

    keys: Float[Tensor, "B S K D"]
    values: Float[Tensor, "B S K D"]
    among: Bool[Tensor, "B Q S"]
    owner: Int[Tensor, "#B L"]
    own: Int[Tensor, "B Q"]
    """A query does not see the columns whose owner is its own."""


class Tile(NamedTuple):
    """How many queries a program packs, how many keys it reads at a time, its warps, and the loads in flight."""

    queries: int
    keys: int
    warps: int
    stages: int


def tile(packed: int, dtype: torch.dtype) -> Tile:
    """By how many queries share a kv head. Chosen so that nothing spills, and that two programs fit where few do."""
    if dtype == torch.float32:  # products of full precision do not run on tensor cores, and live in registers
        return Tile(16, 32, 8, 2)
    if packed <= 32:
        return Tile(16 if packed <= 16 else 32, 64, 4, 3)
    return Tile(64, 64, 4, 2) if packed <= 512 else Tile(128, 64, 8, 3)


def splits(programs: int, length: int) -> int:
    """Into how many parts the keys are split: as many as fill a GPU, none of them short."""
    return max(1, min(SLOTS // programs, length // SHORTEST))


def scores(
    q: Float[Tensor, "B Q H D"], k: Float[Tensor, "B L K D"], seen: Bool[Tensor, "B Q L"]
) -> Float[Tensor, "B H Q L"]:
    """The logarithm of how much each query attends to each key, but for a constant; -inf where it does not see it."""
    wide = torch.promote_types(q.dtype, torch.float32)
    k = k.repeat_interleave(q.shape[2] // k.shape[2], 2)
    product: Tensor = torch.einsum("bqhd,blhd->bhql", q.to(wide), k.to(wide)) * q.shape[3] ** -0.5
    return product.masked_fill(~seen[:, None], -torch.inf)


def probabilities(score: Float[Tensor, "B H Q L"], lse: Float[Tensor, "B Q H"]) -> Float[Tensor, "B H Q L"]:
    """How much each query attends to each key, from the log-sum-exp of its scores; 0 where it sees nothing."""
    return (score - lse.transpose(1, 2)[..., None]).exp().masked_fill(score == -torch.inf, 0.0)


def seen(
    length: int, lengths: Int[Tensor, " B"], n_rows: int, reach: Int[Tensor, "B Q"] | None
) -> Bool[Tensor, "B Q {length}"]:
    """Which columns each query may see, as a mask."""
    column = torch.arange(length, device=lengths.device)
    exists = (column < lengths[:, None, None]).expand(-1, n_rows, -1)
    return exists if reach is None else exists & (column <= reach[..., None])


def reference_attention(
    q: Float[Tensor, "B Q H D"],
    keys: Float[Tensor, "R L K D"],
    values: Float[Tensor, "R L K D"],
    slots: Int[Tensor, " B"],
    lengths: Int[Tensor, " B"],
    reach: Int[Tensor, "B Q"] | None = None,
    side: Side | None = None,
) -> Attended:
    """lengths: how many columns each row has. reach: the last that each query may see; None: all. Rotated queries.

    A query that sees nothing gets 0 and -inf.
    """
    k, v, visible = keys[slots], values[slots], seen(keys.shape[1], lengths, q.shape[1], reach)
    if side is not None:
        visible = torch.cat([visible & (side.owner[:, None] != side.own[..., None]), side.among], 2)
        k, v = torch.cat([k, side.keys], 1), torch.cat([v, side.values], 1)
    v = v.masked_fill(~visible.any(1)[..., None, None], 0.0)  # where nobody looks, anything may stand
    score = scores(q, k, visible)
    lse = score.logsumexp(-1).transpose(1, 2)
    p = probabilities(score, lse)
    v = v.repeat_interleave(q.shape[2] // v.shape[2], 2).to(p.dtype)
    return torch.einsum("bhql,blhd->bqhd", p, v).to(q.dtype), lse


@jit
def _fold(acc, top, total, q, k, v, seen, scale, PRECISION: tl.constexpr):
    """Take some more keys into the sums of a softmax, which are relative to the highest score so far."""
    score = tl.dot(q, tl.trans(k), input_precision=PRECISION) * scale
    score = tl.where(seen, score, -float("inf"))
    higher = tl.maximum(top, tl.max(score, 1))
    base = tl.where(higher == -float("inf"), 0.0, higher)
    p, keep = tl.exp2(score - base[:, None]), tl.exp2(top - base)
    acc = tl.dot(p.to(v.dtype), v, acc * keep[:, None], input_precision=PRECISION)
    return acc, higher, total * keep + tl.sum(p, 1)


@jit
def _attention_kernel(
    q,
    keys,
    values,
    slots,
    lengths,
    reaches,
    side_keys,
    side_values,
    among,
    owners,
    owns,
    out,
    lse,
    n_batch,
    n_rows,
    n_side,
    length,
    n_heads,
    kv_heads,
    n_parts,
    shares,
    owner_batch,
    scale,
    D: tl.constexpr,
    QUERIES: tl.constexpr,
    KEYS: tl.constexpr,
    WIDTH: tl.constexpr,
    REACH: tl.constexpr,
    SIDE: tl.constexpr,
    PRECISION: tl.constexpr,
):
    head, part, batch = tl.program_id(1) % kv_heads, tl.program_id(1) // kv_heads, tl.program_id(2).to(tl.int64)
    group = n_heads // kv_heads
    packed = tl.program_id(0) * QUERIES + tl.arange(0, QUERIES)
    row, d, key = packed // group, tl.arange(0, WIDTH)[None, :], tl.arange(0, KEYS)
    real, inside = row < n_rows, d < D
    query, queries = row * n_heads + head * group + packed % group, batch * n_rows * n_heads
    x = tl.load(q + queries * D + query[:, None] * D + d, mask=real[:, None] & inside, other=0.0)

    stop = tl.minimum(tl.load(lengths + batch).to(tl.int32), length)
    if REACH:
        reach = tl.load(reaches + batch * n_rows + row, mask=real, other=-1).to(tl.int32)
        stop = tl.minimum(stop, tl.max(reach, 0) + 1)
    if SIDE:
        own = tl.load(owns + batch * n_rows + row, mask=real, other=-1)
    share = tl.cdiv(tl.cdiv(stop, shares), KEYS) * KEYS
    begin = tl.minimum(part * share, stop)
    stop = tl.minimum(begin + share, stop)

    acc = tl.zeros((QUERIES, WIDTH), tl.float32)
    top, total = tl.full((QUERIES,), -float("inf"), tl.float32), tl.zeros((QUERIES,), tl.float32)
    place = (tl.load(slots + batch).to(tl.int64) * length * kv_heads + head) * D
    for first in range(begin, stop, KEYS):
        column = first + key
        exists = column < stop
        at, load = column[:, None] * (kv_heads * D) + d, exists[:, None] & inside
        visible = exists[None, :]
        if REACH:
            visible = visible & (column[None, :] <= reach[:, None])
        if SIDE:
            owner = tl.load(owners + batch * owner_batch + column, mask=exists, other=-1)
            visible = visible & (owner[None, :] != own[:, None])
        k = tl.load(keys + place + at, mask=load, other=0.0)
        v = tl.load(values + place + at, mask=load, other=0.0)
        acc, top, total = _fold(acc, top, total, x, k, v, visible, scale, PRECISION)
    if SIDE:
        place, pairs = (batch * n_side * kv_heads + head) * D, batch * n_rows * n_side
        # These are few: loads in flight would cost more registers than they are worth.
        for first in tl.range(0, tl.where(part == n_parts - 1, n_side, 0), KEYS, num_stages=1):
            column = first + key
            exists = column < n_side
            at, load = column[:, None] * (kv_heads * D) + d, exists[:, None] & inside
            pair = row[:, None] * n_side + column[None, :]
            visible = tl.load(among + pairs + pair, mask=real[:, None] & exists[None, :], other=0) != 0
            k = tl.load(side_keys + place + at, mask=load, other=0.0)
            v = tl.load(side_values + place + at, mask=load, other=0.0)
            acc, top, total = _fold(acc, top, total, x, k, v, visible, scale, PRECISION)

    queries += part.to(tl.int64) * n_batch * n_rows * n_heads
    total = tl.where(total > 0, total, 1.0)  # of a query that sees nothing the highest score is -inf
    acc = (acc / total[:, None]).to(out.dtype.element_ty)
    tl.store(out + queries * D + query[:, None] * D + d, acc, mask=real[:, None] & inside)
    tl.store(lse + queries + query, (top + tl.log2(total)) * LN_2, mask=real)


@jit
def _combine_kernel(
    parts, part_lse, out, lse, n, n_parts, D: tl.constexpr, WIDTH: tl.constexpr, COMBINED: tl.constexpr
):
    row, d = tl.program_id(0).to(tl.int64) * COMBINED + tl.arange(0, COMBINED), tl.arange(0, WIDTH)[None, :]
    real = row < n
    load = real[:, None] & (d < D)
    acc = tl.zeros((COMBINED, WIDTH), tl.float32)
    top, total = tl.full((COMBINED,), -float("inf"), tl.float32), tl.zeros((COMBINED,), tl.float32)
    at = row
    for _ in range(n_parts):
        own = tl.load(part_lse + at, mask=real, other=-float("inf"))
        higher = tl.maximum(top, own)
        base = tl.where(higher == -float("inf"), 0.0, higher)
        keep, weight = tl.exp(top - base), tl.exp(own - base)
        acc = acc * keep[:, None] + tl.load(parts + at[:, None] * D + d, mask=load, other=0.0) * weight[:, None]
        total, top = total * keep + weight, higher
        at += n
    total = tl.where(total > 0, total, 1.0)
    tl.store(out + row[:, None] * D + d, (acc / total[:, None]).to(out.dtype.element_ty), mask=load)
    tl.store(lse + row, top + tl.log(total), mask=real)


def triton_attention(
    q: Float[Tensor, "B Q H D"],
    keys: Float[Tensor, "R L K D"],
    values: Float[Tensor, "R L K D"],
    slots: Int[Tensor, " B"],
    lengths: Int[Tensor, " B"],
    reach: Int[Tensor, "B Q"] | None = None,
    side: Side | None = None,
    deterministic: bool = False,
) -> Attended:
    """The kernels. A deterministic call has one tile shape and splits nothing, so that a row's sums have one order."""
    batch, n_rows, n_heads, width = q.shape
    length, kv_heads = keys.shape[1:3]
    packed = n_rows * (n_heads // kv_heads)
    shape = tile(64 if deterministic else packed, q.dtype)
    tiles = -(-packed // shape.queries)
    shares = 1 if deterministic else splits(batch * kv_heads * tiles, length)
    beside: tuple[Tensor, ...] = (keys, values, slots, slots, slots)
    n_side = owner_batch = 0
    if side is not None:
        beside, n_side = tuple(part.contiguous() for part in side), side.keys.shape[1]
        owner_batch = length if len(side.owner) == batch else 0
    parts = shares + (shares > 1 and n_side > 0)  # the last part has the side keys
    out, lse = torch.empty_like(q), q.new_empty(q.shape[:3], dtype=torch.float32)
    to = (out, lse)
    if parts > 1:
        to = (q.new_empty(parts, *q.shape, dtype=torch.float32), q.new_empty(parts, *lse.shape, dtype=torch.float32))
    sizes = (batch, n_rows, n_side, length, n_heads, kv_heads, parts, shares, owner_batch)
    launch(
        *(_attention_kernel, (tiles, kv_heads * parts, batch)),
        *(q.contiguous(), keys, values, slots.contiguous(), lengths.contiguous()),
        *(slots if reach is None else reach.contiguous(), *beside, *to, *sizes),
        *(width**-0.5 * LOG2_E.value, width, shape.queries, shape.keys),
        *(max(16, power_of_two(width)), reach is not None, side is not None),
        "ieee" if q.dtype == torch.float32 else "tf32",
        num_warps=shape.warps,
        num_stages=shape.stages,
    )
    if parts > 1:
        n = batch * n_rows * n_heads
        given = (*to, out, lse, n, parts, width, power_of_two(width), COMBINED)
        launch(_combine_kernel, (-(-n // COMBINED),), *given, num_warps=4)
    return out, lse


def attention(
    q: Float[Tensor, "B Q H D"],
    keys: Float[Tensor, "R L K D"],
    values: Float[Tensor, "R L K D"],
    slots: Int[Tensor, " B"],
    lengths: Int[Tensor, " B"],
    reach: Int[Tensor, "B Q"] | None = None,
    side: Side | None = None,
    deterministic: bool = False,
) -> Attended:
    """The kernels where they suit, else the reference.

    deterministic: what a row gets does not depend on the batch it is in, which the reference does not promise.
    """
    if suits(q):
        return triton_attention(q, keys, values, slots, lengths, reach, side, deterministic)
    return reference_attention(q, keys, values, slots, lengths, reach, side)
