"""Rotate the queries and keys of a forward's rows and scatter its keys and values into the store, in one pass.

Shape letters: R rows in flight, B rows of a forward, L stored columns, Q computed rows of each, N of them stored, S of
them with rotated keys to return, H heads, K kv heads, D head width.
"""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from dllm.kernels.jit import jit, launch, power_of_two, suits, tl
from dllm.kernels.rotary import Rotation, rotate

HEADS = 16
"""Heads of a program: at 128 numbers each, 16 bytes of either half for each of 128 threads in half precision."""

Written = tuple[Float[Tensor, "B Q H D"], Float[Tensor, "B S K D"]]


def reference_write_rows(
    q: Float[Tensor, "B Q H D"],
    k: Float[Tensor, "B Q K D"],
    v: Float[Tensor, "B Q K D"],
    by: Rotation,
    keys: Float[Tensor, "R L K D"],
    values: Float[Tensor, "R L K D"],
    slots: Int[Tensor, " B"],
    rows: Int[Tensor, "B N"],
    keys_from: int,
) -> Written:
    """Store the first N of the Q rows. Returns all rotated queries, and the rotated keys from row `keys_from` on.

    rows: the columns of the N rows, ascending; padding repeats the last one, its key and its value.
    """
    n = rows.shape[1]
    q, k = rotate(q, by), rotate(k, by)
    keys[slots[:, None], rows] = k[:, :n]
    values[slots[:, None], rows] = v[:, :n]
    return q, k[:, keys_from:]


@jit
def _turn(x, other, cos, sin):
    """One half of what is rotated: as torch computes it in the dtype of the tables, each step rounded to it."""
    here = (x.to(cos.dtype).to(tl.float32) * cos.to(tl.float32)).to(cos.dtype)
    there = (other.to(cos.dtype).to(tl.float32) * sin.to(tl.float32)).to(cos.dtype)
    return (here.to(tl.float32) + there.to(tl.float32)).to(cos.dtype).to(x.dtype)


@jit
def _write_rows_kernel(
    q,
    k,
    v,
    cos,
    sin,
    keys,
    values,
    slots,
    rows,
    turned_q,
    turned_k,
    n_rows,
    n_stored,
    keys_from,
    length,
    n_heads,
    kv_heads,
    q_batch,
    q_row,
    k_batch,
    k_row,
    v_batch,
    v_row,
    by_batch,
    by_row,
    D: tl.constexpr,
    ROTATED: tl.constexpr,
    HALF: tl.constexpr,
    REST: tl.constexpr,
    HEADS: tl.constexpr,
):
    batch, row, part = tl.program_id(0).to(tl.int64) // n_rows, tl.program_id(0) % n_rows, tl.program_id(1)
    q_parts, k_parts = tl.cdiv(n_heads, HEADS), tl.cdiv(kv_heads, HEADS)
    stored, at, slot = row < n_stored, batch * n_stored + row, tl.load(slots + batch).to(tl.int64)
    column = tl.load(rows + at, mask=stored, other=0)
    # Padding repeats a column, or all of a slot: the first alone writes, so that no two programs write to one place.
    again = tl.load(rows + at - 1, mask=stored & (row > 0), other=-1) == column
    again = again | (tl.load(slots + batch - 1, mask=batch > 0, other=-1) == slot)
    stored = stored & (again == 0)
    place = (slot * length + column) * kv_heads

    half, rest = tl.arange(0, HALF)[None, :], ROTATED + tl.arange(0, REST)[None, :]
    turning, resting = half < ROTATED // 2, rest < D
    table = batch * by_batch + row * by_row + half
    if part < q_parts + k_parts:
        cos_low = tl.load(cos + table, mask=turning, other=0.0)
        sin_low = tl.load(sin + table, mask=turning, other=0.0)
        cos_high = tl.load(cos + table + ROTATED // 2, mask=turning, other=0.0)
        sin_high = tl.load(sin + table + ROTATED // 2, mask=turning, other=0.0)
        is_query = part < q_parts
        head = (part - (0 if is_query else q_parts)) * HEADS + tl.arange(0, HEADS)[:, None]
        exists = head < (n_heads if is_query else kv_heads)
        if is_query:
            source = q + batch * q_batch + row * q_row + head * D
        else:
            source = k + batch * k_batch + row * k_row + head * D
        low = tl.load(source + half, mask=exists & turning, other=0.0)
        high = tl.load(source + half + ROTATED // 2, mask=exists & turning, other=0.0)
        new_low, new_high = _turn(low, high, cos_low, sin_low), _turn(high, low, cos_high, sin_high)
        if is_query:
            target = turned_q + ((batch * n_rows + row) * n_heads + head) * D
            returned = exists
        else:
            target = turned_k + ((batch * (n_rows - keys_from) + row - keys_from) * kv_heads + head) * D
            returned = exists & (row >= keys_from)
        tl.store(target + half, new_low, mask=returned & turning)
        tl.store(target + half + ROTATED // 2, new_high, mask=returned & turning)
        store = keys + (place + head) * D
        kept = exists & stored & (part >= q_parts)
        tl.store(store + half, new_low, mask=kept & turning)
        tl.store(store + half + ROTATED // 2, new_high, mask=kept & turning)
        if ROTATED < D:
            same = tl.load(source + rest, mask=exists & resting, other=0.0)
            tl.store(target + rest, same, mask=returned & resting)
            tl.store(store + rest, same, mask=kept & resting)
    else:
        head = (part - q_parts - k_parts) * HEADS + tl.arange(0, HEADS)[:, None]
        kept = (head < kv_heads) & stored
        source, store = v + batch * v_batch + row * v_row + head * D, values + (place + head) * D
        low = tl.load(source + half, mask=kept & turning, other=0.0)
        high = tl.load(source + half + ROTATED // 2, mask=kept & turning, other=0.0)
        tl.store(store + half, low, mask=kept & turning)
        tl.store(store + half + ROTATED // 2, high, mask=kept & turning)
        if ROTATED < D:
            tl.store(store + rest, tl.load(source + rest, mask=kept & resting, other=0.0), mask=kept & resting)


def triton_write_rows(
    q: Float[Tensor, "B Q H D"],
    k: Float[Tensor, "B Q K D"],
    v: Float[Tensor, "B Q K D"],
    by: Rotation,
    keys: Float[Tensor, "R L K D"],
    values: Float[Tensor, "R L K D"],
    slots: Int[Tensor, " B"],
    rows: Int[Tensor, "B N"],
    keys_from: int,
) -> Written:
    """The kernel. Of a column that `rows` repeats, and of a slot that stands twice in a row, the first is stored."""
    batch, n_rows, n_heads, width = q.shape
    length, kv_heads = keys.shape[1:3]
    q, k, v = (x if x.stride()[2:] == (width, 1) else x.contiguous() for x in (q, k, v))
    rows, slots = rows.contiguous(), slots.contiguous()
    cos, sin = by
    size = cos.shape[-1]
    turned_q = torch.empty(batch, n_rows, n_heads, width, dtype=q.dtype, device=q.device)
    turned_k = torch.empty(batch, n_rows - keys_from, kv_heads, width, dtype=q.dtype, device=q.device)
    half, rest = power_of_two(size // 2), power_of_two(max(1, width - size))
    strides = (*q.stride()[:2], *k.stride()[:2], *v.stride()[:2], cos.stride(0) if len(cos) > 1 else 0, cos.stride(1))
    sizes = (n_rows, rows.shape[1], keys_from, length, n_heads, kv_heads)
    grid = (batch * n_rows, -(-n_heads // HEADS) + 2 * -(-kv_heads // HEADS))
    # No products fused with sums: a key is then to the bit what torch makes of it.
    launch(
        *(_write_rows_kernel, grid, q),
        *(k, v, cos, sin, keys, values, slots, rows, turned_q, turned_k, *sizes, *strides),
        *(width, size, half, rest, HEADS),
        num_warps=4,
        enable_fp_fusion=False,
    )
    return turned_q, turned_k


def write_rows(
    q: Float[Tensor, "B Q H D"],
    k: Float[Tensor, "B Q K D"],
    v: Float[Tensor, "B Q K D"],
    by: Rotation,
    keys: Float[Tensor, "R L K D"],
    values: Float[Tensor, "R L K D"],
    slots: Int[Tensor, " B"],
    rows: Int[Tensor, "B N"],
    keys_from: int,
) -> Written:
    """The kernel where it suits, else the reference."""
    write = triton_write_rows if suits(q) else reference_write_rows
    return write(q, k, v, by, keys, values, slots, rows, keys_from)
