"""The kernel's mass of columns is that of attention's probabilities."""

import pytest
import torch

from dllm.kernels.attention import reference_attention
from dllm.kernels.mass import reference_mass, triton_mass
from stored import place, widened

SHAPES = [(1, 1, 1, 1, 16, 5), (2, 5, 4, 2, 24, 37), (2, 9, 3, 1, 8, 70)]


def case(shape, dtype, device, reach):
    q, keys, values, slots, lengths, last = place(shape, dtype, device, reach)
    valid = torch.rand(shape[:2], device=device) < 0.7
    lse = reference_attention(q, keys, values, slots, lengths, last)[1]
    return q, lse, keys, slots, lengths, valid, last


def agree(given):
    exact, usual = reference_mass(*widened(given)), reference_mass(*given)
    assert (triton_mass(*given) - exact).abs().max() <= 2 * (usual - exact).abs().max() + 1e-6 * (1 + exact.max())


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("reach", [None, "block"])
def test_it_is_what_torch_computes(shape, reach, device):
    agree(case(shape, torch.float32, device, reach))


def test_half_precision_is_no_worse_than_torch(device):
    agree(case((2, 5, 4, 2, 32, 70), torch.float16, device, "block"))


def test_all_rows_together_pay_one_for_every_head(device):
    q, lse, keys, slots, lengths, valid, _ = case((2, 5, 4, 2, 24, 37), torch.float32, device, None)
    for pay in (triton_mass, reference_mass):
        paid = pay(q, lse, keys, slots, lengths, torch.ones_like(valid))
        torch.testing.assert_close(paid.sum(1), torch.full_like(paid[:, 0], 5 * 4.0))
        assert not paid[1, lengths[1] :].any()


@pytest.mark.gpu
@pytest.mark.parametrize("shape", [(8, 32, 32, 32, 128, 1280), (1, 32, 28, 4, 128, 1280)], ids=["llada", "dream"])
def test_it_is_no_worse_than_torch_in_the_shapes_of_real_models(shape, device):
    agree(case(shape, torch.bfloat16, device, None))
