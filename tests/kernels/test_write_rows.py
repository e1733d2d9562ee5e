"""Rotating and scattering in one kernel gives what torch gives, to the bit."""

import pytest
import torch

from dllm.canvas import Span
from dllm.kernels.write_rows import reference_write_rows, triton_write_rows
from dllm.models.tiny import SIZES
from dllm.models.transformer import rotation
from dllm.spec import ModelSpec

SHAPES = [(1, 1, 1, 1, 2), (2, 5, 4, 2, 24), (2, 7, 9, 3, 8), (1, 3, 16, 8, 128)]
"""B, Q, H, K, D"""
BFLOAT16 = pytest.param(torch.bfloat16, marks=pytest.mark.gpu)  # the interpreter rounds to it towards zero


def case(shape, dtype, device, *, wide=True, part=None, n_side=0, one_table=False, length=11):
    """Rows of a store that is full of NaN; the last ones may be padding."""
    batch, n_rows, heads, kv_heads, width = shape
    spec = ModelSpec(**{**SIZES, "head_dim": width, "rope_fp32": wide, "rope_dim": part})
    slots = torch.arange(batch).flip(0) + 1
    computed = torch.rand(batch, length) < 0.5
    computed[:, 0] = True
    rows = Span.where(computed & (computed.cumsum(1) <= n_rows), n_rows).columns
    at = torch.cat([rows, torch.randint(0, length, (batch, n_side))], 1)
    if one_table:
        at = at[:1]
    qkv = torch.randn(batch, n_rows + n_side, heads + 2 * kv_heads, width, dtype=dtype)
    same = torch.cat([torch.zeros(batch, 1, dtype=torch.bool), rows[:, 1:] == rows[:, :-1]], 1)
    for row in range(1, n_rows):  # padding repeats what it repeats
        qkv[:, row] = torch.where(same[:, row, None, None], qkv[:, row - 1], qkv[:, row])
    q, k, v = qkv.to(device).split([heads, kv_heads, kv_heads], 2)
    by = tuple(table.to(device) for table in rotation(spec, at, dtype))
    store = torch.full((2, len(slots) + 1, length, kv_heads, width), float("nan"), dtype=dtype, device=device)
    return q, k, v, by, *store, slots.to(device), rows.to(device)


def agree(given, keys_from):
    """The kernel's four results are those of torch."""
    got, want = (tuple(part.clone() for part in given[4:6]) for _ in range(2))
    got += triton_write_rows(*given[:4], *got, *given[6:], keys_from)
    want += reference_write_rows(*given[:4], *want, *given[6:], keys_from)
    for one, other in zip(got, want, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, BFLOAT16], ids=str)
def test_it_is_to_the_bit_what_torch_computes(shape, dtype, device):
    agree(case(shape, dtype, device), shape[1])


@pytest.mark.parametrize("wide", [True, False])
@pytest.mark.parametrize("dtype", [torch.float16, BFLOAT16], ids=str)
def test_tables_of_either_dtype_turn_part_of_a_head(dtype, wide, device):
    agree(case((2, 5, 4, 2, 24), dtype, device, wide=wide, part=16), 5)


@pytest.mark.gpu
@pytest.mark.parametrize("shape", [(8, 32, 32, 32, 128), (8, 32, 28, 4, 128)], ids=["llada", "dream"])
def test_it_is_to_the_bit_what_torch_computes_in_the_shapes_of_real_models(shape, device):
    agree(case(shape, torch.bfloat16, device, length=1280), shape[1])


@pytest.mark.parametrize("keys_from", [0, 4, 6])
def test_side_rows_are_rotated_and_not_stored(keys_from, device):
    agree(case((2, 4, 4, 2, 16), torch.float32, device, n_side=2), keys_from)


def test_one_table_serves_all_rows_of_a_batch(device):
    agree(case((2, 4, 4, 2, 16), torch.float32, device, one_table=True), 4)


def test_of_a_repeated_slot_the_first_alone_is_stored(device):
    q, k, v, by, keys, values, _, rows = case((3, 4, 4, 2, 16), torch.float32, device)
    slots, rows = torch.tensor([2, 1, 1], device=device), rows[:1].repeat(3, 1)
    triton_write_rows(q, k, v, by, keys, values, slots, rows, 4)
    assert torch.equal(values[[2, 1]][:, rows[0]], v[:2]) and values[[0, 3]].isnan().all()


def test_of_a_repeated_column_the_first_row_alone_is_stored(device):
    q, k, v, by, keys, values, slots, _ = case((1, 4, 4, 2, 16), torch.float32, device)
    rows = torch.tensor([[3, 5, 5, 5]], device=device)
    triton_write_rows(q, k, v, by, keys, values, slots, rows, 4)
    assert torch.equal(values[1, [3, 5]], v[0, :2]) and values.isnan().sum() == values.numel() - 2 * v[0, 0].numel()
