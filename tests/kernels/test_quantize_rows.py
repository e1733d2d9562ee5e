"""Rows in 8 bits: what they can hold comes back, and everything else within half a step of e4m3."""

import pytest
import torch

from dllm.kernels.quantize_rows import E4M3, quantize_rows, reference_quantize_rows, triton_quantize_rows

SHAPES = [(1, 16), (3, 48), (7, 352), (2, 1040)]


def exact(rows: int, width: int, device: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Numbers that e4m3 holds, each row with one of the largest, and a power of 2 for every row."""
    bits = torch.randint(0, 256, (rows, width), dtype=torch.uint8)
    held = bits.view(E4M3).float().nan_to_num(nan=1.0)
    held[:, 0] = 448.0
    return held.to(device), 2.0 ** torch.arange(-3, rows - 3, device=device)[:, None]


@pytest.mark.parametrize("quantize", [reference_quantize_rows, triton_quantize_rows])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_numbers_that_8_bits_hold_come_back(shape, quantize, device):
    # Nothing is rounded here: triton's interpreter rounds 127.8 to 64, which a GPU does not.
    held, scale = exact(*shape, device)
    got, scales = quantize((held * scale).bfloat16())
    assert got.dtype == E4M3 and torch.equal(got.float(), held) and torch.equal(scales, scale)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_other_numbers_are_off_by_half_a_step(shape):
    x = torch.randn(shape) * 10.0 ** torch.arange(shape[0])[:, None]
    got, scale = reference_quantize_rows(x)
    step = torch.maximum(x.abs() / 8, scale * 2.0**-9)  # 3 bits behind the leading one; the smallest numbers are even
    assert ((got.float() * scale - x).abs() <= step / 2 * (1 + 1e-6)).all()


def test_a_row_of_zeros_stays_one_and_nan_is_not_hidden():
    got, scale = reference_quantize_rows(torch.tensor([[0.0, 0.0], [1.0, torch.nan], [1.0, torch.inf]]))
    assert (got[0].float() == 0).all() and (scale[0] > 0).all()
    assert got[1:].float().isnan().any(1).all()


def test_the_host_function_takes_the_reference_without_a_gpu():
    x = torch.randn(3, 32)
    assert all(
        torch.equal(a.float(), b.float()) for a, b in zip(quantize_rows(x), reference_quantize_rows(x), strict=True)
    )


@pytest.mark.gpu
@pytest.mark.parametrize("shape", [*SHAPES, (32, 4096), (1280, 12288)], ids=str)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
def test_the_kernel_rounds_as_the_reference(shape, dtype, device):
    if device == "cpu":
        pytest.skip("triton's interpreter does not round to 8 bits as a GPU does")
    x = torch.randn(shape, device="cuda").to(dtype) * 3
    for got, want in zip(triton_quantize_rows(x), reference_quantize_rows(x), strict=True):
        assert torch.equal(got.float(), want.float())
