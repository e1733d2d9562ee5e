import pytest
import torch

from dllm.kernels.swiglu import BLOCK, reference_swiglu, swiglu, triton_swiglu

DTYPES = [torch.float32, torch.float16, *([torch.bfloat16] if torch.cuda.is_available() else [])]
"""Triton's interpreter cuts bfloat16 where a GPU rounds it, and has no products of it."""


def check(got, gate_up):
    """By the error that torch itself makes in the dtype against float64."""
    exact, own = reference_swiglu(gate_up.double()), reference_swiglu(gate_up)
    assert got.dtype == own.dtype
    assert (got.double() - exact).abs().max() <= 2 * (own.double() - exact).abs().max() + 1e-6


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", [(1, 1, 2), (2, 3, 74), (1, 2, 2 * BLOCK + 10)], ids=str)
def test_the_kernel_matches_the_reference(shape, dtype, device):
    gate_up = (torch.randn(shape) * 4).to(device, dtype)
    check(triton_swiglu(gate_up), gate_up)


def test_large_gates_pass_and_large_negative_ones_close(device):
    gate_up = torch.tensor([[80.0, -80.0, 3.0, 3.0]], device=device)
    torch.testing.assert_close(triton_swiglu(gate_up), torch.tensor([[240.0, 0.0]], device=device))


def test_nothing_has_nothing(device):
    assert triton_swiglu(torch.zeros(0, 6, device=device)).shape == (0, 3)


@pytest.mark.gpu
@pytest.mark.parametrize("width", [12288, 18944])
def test_real_shapes_match_the_reference(width):
    gate_up = torch.randn(32, 32, 2 * width).to("cuda", torch.bfloat16)
    check(swiglu(gate_up), gate_up)
