import pytest
import torch
import torch.nn.functional as F

from dllm.kernels.linear import SHARE, linear, reference_linear, triton_linear

DTYPES = [torch.float32, torch.float16, *([torch.bfloat16] if torch.cuda.is_available() else [])]
"""Triton's interpreter cuts bfloat16 where a GPU rounds it, and has no products of it."""


def given(n_rows, n_in, n_out, dtype, device, bias=True):
    x, weight = torch.randn(n_rows, n_in), torch.randn(n_out, n_in) * n_in**-0.5
    return *(part.to(device, dtype) for part in (x, weight)), torch.randn(n_out).to(device, dtype) if bias else None


def check(got, x, weight, bias):
    """By the error that torch itself makes in the dtype against float64."""
    exact = F.linear(x.double(), weight.double(), None if bias is None else bias.double())
    own = F.linear(x, weight, bias)
    assert got.dtype == own.dtype and got.shape == own.shape
    assert (got.double() - exact).abs().max() <= 2 * (own.double() - exact).abs().max() + 1e-6


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("sizes", [(1, 16, 3), (5, 37, 70), (67, 64, 64)], ids=str)
@pytest.mark.parametrize("made", [triton_linear, reference_linear])
def test_it_is_the_linear_map(made, sizes, dtype, bias, device):
    x, weight, b = given(*sizes, dtype, device, bias)
    check(made(x, weight, b), x, weight, b)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_row_of_the_kernel_does_not_depend_on_the_others(dtype, device):
    x, weight, bias = given(70, 48, 20, dtype, device)
    whole = triton_linear(x, weight, bias)
    for rows in (slice(0, 1), slice(33, 40), slice(66, 70)):
        assert torch.equal(triton_linear(x[rows], weight, bias), whole[rows])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_a_row_of_the_reference_does_not_depend_on_the_rows_behind_it(dtype):
    x, weight, bias = given(3 * SHARE + 5, 128, 384, dtype, "cpu")
    whole = reference_linear(x, weight, bias)
    for n in (1, SHARE, SHARE + 3, 3 * SHARE):
        assert torch.equal(reference_linear(x[:n], weight, bias), whole[:n])


def test_leading_dimensions_are_kept_and_may_be_empty(device):
    x, weight, _ = given(6, 16, 4, torch.float32, device)
    assert triton_linear(x.view(2, 3, 16), weight).shape == (2, 3, 4)
    assert triton_linear(x[:0], weight).shape == (0, 4) and linear(x[:0], weight).shape == (0, 4)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("sizes", [(4096, 12288), (4096, 4096), (12288, 4096), (3584, 4608)], ids=str)
def test_a_row_of_a_real_layer_does_not_depend_on_the_others(sizes, dtype):
    x, weight, bias = given(1024, *sizes, dtype, "cuda")
    whole = linear(x, weight, bias)
    check(whole, x, weight, bias)
    for rows in (slice(0, 32), slice(500, 501), slice(901, 1000)):
        assert torch.equal(linear(x[rows], weight, bias), whole[rows])
