import pytest
import torch

from dllm.kernels import rms_norm as module
from dllm.kernels.rms_norm import add_rms_norm, reference_add_rms_norm, reference_rms_norm, triton_rms_norm

SHAPES = [(1, 1, 1), (2, 3, 37), (1, 5, 128), (2, 2, 3584)]
DTYPES = [torch.float32, torch.float16, *([torch.bfloat16] if torch.cuda.is_available() else [])]
"""Triton's interpreter cuts bfloat16 where a GPU rounds it, and has no products of it."""


def given(shape, dtype, device):
    return (torch.randn(shape) * 3).to(device, dtype), (1 + 0.1 * torch.randn(shape[-1])).to(device, dtype)


def check(got, exact, torch_own):
    """By the error that torch itself makes in the dtype against float64."""
    allowed = 2 * (torch_own.double() - exact).abs().max() + 1e-6
    assert got.dtype == torch_own.dtype and (got.double() - exact).abs().max() <= allowed


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_the_norm_matches_the_reference(shape, dtype, device):
    x, weight = given(shape, dtype, device)
    same, got = triton_rms_norm(x, weight, 1e-5)
    assert torch.equal(same, x)
    check(got, reference_rms_norm(x.double(), weight.double(), 1e-5), reference_rms_norm(x, weight, 1e-5))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_the_sum_is_torchs_and_its_norm_that_of_the_rounded_sum(shape, dtype, device):
    (x, weight), more = given(shape, dtype, device), torch.randn(shape).to(device, dtype)
    both, got = triton_rms_norm(x, weight, 1e-6, more)
    want_both, want = reference_add_rms_norm(x, more, weight, 1e-6)
    assert torch.equal(both, want_both)
    check(got, reference_rms_norm(both.double(), weight.double(), 1e-6), want)


def test_rows_between_others_in_memory_are_read_as_they_lie(device):
    x, weight = given((2, 6, 40), torch.float32, device)
    torch.testing.assert_close(triton_rms_norm(x[:, ::2], weight, 1e-5)[1], reference_rms_norm(x[:, ::2], weight, 1e-5))


def test_a_row_alone_equals_the_row_in_a_batch(device):
    x, weight = given((4, 3, 200), torch.float16, device)
    assert torch.equal(triton_rms_norm(x[2:3, 1:2], weight, 1e-5)[1], triton_rms_norm(x, weight, 1e-5)[1][2:3, 1:2])


def test_no_rows_have_no_norm(device):
    x, weight = given((2, 0, 8), torch.float32, device)
    assert triton_rms_norm(x, weight, 1e-5, x)[1].shape == (2, 0, 8)


def test_training_goes_through_torch_which_has_derivatives(device):
    x, weight = given((2, 2, 8), torch.float32, device)
    both, out = add_rms_norm(x.requires_grad_(), x.detach(), weight, 1e-5)
    (both.sum() + out.sum()).backward()
    assert x.grad is not None and not module.suits(x)


@pytest.mark.gpu
@pytest.mark.parametrize("shape", [(1, 32, 4096), (32, 32, 3584), (1, 32, 32, 128)], ids=str)
def test_real_shapes_match_the_reference(shape):
    (x, weight), more = given(shape, torch.bfloat16, "cuda"), torch.randn(shape).to("cuda", torch.bfloat16)
    both, got = add_rms_norm(x, more, weight, 1e-5)
    want_both, want = reference_add_rms_norm(x, more, weight, 1e-5)
    assert torch.equal(both, want_both) and module.suits(x)
    check(got, reference_rms_norm(both.double(), weight.double(), 1e-5), want)
