"""The kernel's test of drift is the cosine of two maps of attention, neither of which it makes."""

import pytest
import torch

from dllm.kernels.attention import probabilities, reference_attention, scores, seen
from dllm.kernels.drift import drift, reference_drift, triton_drift
from stored import place, widened

SHAPES = [(1, 1, 1, 1, 16, 5), (2, 5, 4, 2, 24, 37), (2, 17, 3, 1, 8, 20)]


def case(shape, dtype, device, reach=None, change=0.3):
    """Some columns were overwritten, and the queries have moved."""
    old_q, before, values, slots, lengths, last = place(shape, dtype, device, reach)
    batch, n_rows, length = *shape[:2], shape[5]
    old_lse = reference_attention(old_q, before, values, slots, lengths, last)[1]
    rows = torch.arange(3, device=device).expand(batch, -1) + torch.arange(batch, device=device)[:, None]
    overwritten, keys = before[slots[:, None], rows], before.clone()
    keys[slots[:, None], rows] += change * torch.randn_like(overwritten)
    new_q = old_q + change * torch.randn_like(old_q)
    new_lse = reference_attention(new_q, keys, values, slots, lengths, last)[1]
    where = torch.full((batch, length), -1, device=device).scatter(
        1, rows, torch.arange(3, device=device).expand_as(rows)
    )
    valid = torch.arange(n_rows, device=device).expand(batch, -1) % 4 != 3
    return old_q, new_q, old_lse, new_lse, keys, overwritten, where, slots, lengths, valid, last


def agree(given):
    exact, usual = reference_drift(*widened(given)), reference_drift(*given)
    assert exact.max() < 0.999
    assert (triton_drift(*given) - exact).abs().max() <= 2 * (usual - exact).abs().max() + 1e-6


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("reach", [None, "block"])
def test_it_is_what_torch_computes(shape, reach, device):
    if shape[2] > 1:  # of one head every cosine is 1
        agree(case(shape, torch.float32, device, reach))
    else:
        torch.testing.assert_close(triton_drift(*case(shape, torch.float32, device)), torch.ones(1, device=device))


def test_half_precision_is_no_worse_than_torch(device):
    agree(case((2, 5, 4, 2, 32, 37), torch.float16, device, "block"))


@pytest.mark.parametrize("test", [triton_drift, reference_drift])
def test_what_has_not_changed_is_alike_and_so_are_no_rows(test, device):
    given = case((2, 5, 4, 2, 24, 37), torch.float32, device, change=0.0)
    torch.testing.assert_close(test(*given), torch.ones(2, device=device))
    nobody = case((2, 5, 4, 2, 24, 37), torch.float32, device)
    assert torch.equal(test(*nobody[:9], torch.zeros_like(nobody[9]), None), torch.ones(2, device=device))


def test_it_is_the_mean_cosine_over_heads_of_two_maps():
    old_q, new_q, old_lse, new_lse, keys, overwritten, where, slots, lengths, valid, _ = case(
        (1, 2, 3, 1, 8, 6), torch.float64, "cpu"
    )
    visible, before = seen(6, lengths, 2, None), keys.clone()
    before[1, :3] = overwritten[0]
    old, new = (
        probabilities(scores(q, store[slots], visible), lse)
        for q, store, lse in ((old_q, before, old_lse), (new_q, keys, new_lse))
    )
    want = torch.nn.functional.cosine_similarity(old, new, dim=1).mean((1, 2))
    given = old_q, new_q, old_lse, new_lse, keys, overwritten, where, slots, lengths, torch.ones_like(valid)
    torch.testing.assert_close(drift(*given), want)


@pytest.mark.gpu
@pytest.mark.parametrize("shape", [(8, 32, 32, 32, 128, 1280), (1, 32, 28, 4, 128, 1280)], ids=["llada", "dream"])
def test_it_is_no_worse_than_torch_in_the_shapes_of_real_models(shape, device):
    agree(case(shape, torch.bfloat16, device))
