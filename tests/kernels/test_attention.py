"""Attention over the store: the kernels agree with plain torch, and a row does not depend on its batch."""

import pytest
import torch

from dllm.kernels.attention import Side, reference_attention, splits, triton_attention
from stored import place, widened

BFLOAT16 = pytest.param(torch.bfloat16, marks=pytest.mark.gpu)  # the interpreter rounds to it towards zero
SHAPES = [(1, 1, 1, 1, 16, 5), (2, 5, 4, 2, 24, 37), (2, 9, 3, 1, 8, 70), (1, 3, 2, 2, 16, 300)]
"""B, Q, H, K, D, L"""
REAL = [(8, 32, 32, 32, 128, 1280), (1, 32, 32, 32, 128, 1280), (8, 32, 28, 4, 128, 1280), (1, 128, 28, 4, 128, 1280)]


def case(shape, dtype, device, reach=None, n_side=0):
    """What attention is given; with side keys the last queries are two branches."""
    given, side = place(shape, dtype, device, reach), None
    batch, n_rows, _, kv_heads, width, length = shape
    if n_side:
        branch = torch.arange(n_side) * 2 // n_side
        own = torch.full((batch, n_rows), -2)
        own[:, -n_side:] = 0
        among = torch.zeros(batch, n_rows, n_side, dtype=torch.bool)
        among[:, -n_side:] = branch[:, None] == branch
        owner = torch.where((torch.arange(length) % 7 == 2) & (torch.arange(length) > 3), 0, -1).expand(batch, -1)
        fresh = torch.randn(2, batch, n_side, kv_heads, width, dtype=dtype)
        side = Side(*(part.to(device) for part in (*fresh, among, owner, own)))
    return *given, side


def agree(given, *, deterministic=False):
    """The kernels are as near to float64 as torch is in the same dtype, up to a factor of two."""
    exact, exact_lse = reference_attention(*widened(given))
    usual, _ = reference_attention(*given)
    got, lse = triton_attention(*given, deterministic=deterministic)
    assert (got - exact).abs().max() <= 2 * (usual - exact).abs().max() + 1e-6
    torch.testing.assert_close(lse.double(), exact_lse, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("reach", [None, "causal", "block"])
def test_it_is_what_torch_computes_over_the_columns_of_a_row(shape, reach, device):
    agree(case(shape, torch.float32, device, reach))


@pytest.mark.parametrize("dtype", [torch.float16, BFLOAT16], ids=str)
def test_half_precision_is_no_worse_than_torch(dtype, device):
    agree(case((2, 5, 4, 2, 32, 150), dtype, device, "block"))


@pytest.mark.parametrize("reach", [None, "block"])
@pytest.mark.parametrize(("length", "deterministic"), [(37, False), (300, False), (70, True)])
def test_branches_see_their_own_keys_instead_of_the_columns_they_replace(length, deterministic, reach, device):
    agree(case((2, 9, 2, 1, 16, length), torch.float32, device, reach, n_side=6), deterministic=deterministic)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, BFLOAT16], ids=str)
def test_deterministic_rows_do_not_depend_on_their_batch(dtype, device):
    q, keys, values, slots, lengths, reach, _ = case((3, 5, 4, 2, 16, 150), dtype, device, "block")
    together = triton_attention(q, keys, values, slots, lengths, reach, deterministic=True)
    for row in (0, 2):
        n, some = slice(row, row + 1), [0, 2, 4]
        longer = (torch.nn.functional.pad(store[slots[n]], (0, 0, 0, 0, 0, 40)) for store in (keys, values))
        alone = triton_attention(
            *(q[n, some], *longer, torch.zeros_like(slots[n]), lengths[n], reach[n, some]), deterministic=True
        )
        assert all(torch.equal(one[0], other[row, some]) for one, other in zip(alone, together, strict=True))


def test_a_query_that_sees_nothing_gets_nothing(device):
    q, keys, values, slots, lengths, _, _ = case((1, 2, 2, 2, 16, 300), torch.float32, device)
    reach = torch.tensor([[-1, 9]], device=device)
    for deterministic in (True, False):
        out, lse = triton_attention(q, keys, values, slots, lengths, reach, deterministic=deterministic)
        assert not out[0, 0].any() and out[0, 1].all() and lse[0, 0].isinf().all() and lse[0, 1].isfinite().all()
    assert reference_attention(q, keys, values, slots, lengths, reach)[0][0, 0].eq(0).all()


def test_keys_are_split_where_rows_do_not_fill_a_gpu():
    assert splits(32, 1280) == 8 and splits(16, 1280) == 10 and splits(256, 1280) == 1 and splits(1, 100) == 1


@pytest.mark.gpu
@pytest.mark.parametrize("shape", REAL, ids=str)
@pytest.mark.parametrize("n_side", [0, 24])
@pytest.mark.parametrize("reach", [None, "block"])
@pytest.mark.parametrize("deterministic", [True, False])
def test_it_is_no_worse_than_torch_in_the_shapes_of_real_models(shape, n_side, reach, deterministic, device):
    agree(case(shape, torch.bfloat16, device, reach, n_side), deterministic=deterministic)
