"""Weights in 8 bits: the product is that of the rounded matrices, and the model is the same but for their rounding."""

import pytest
import torch
from torch import nn

import dllm
from dllm import doctor
from dllm.cache import full_view
from dllm.canvas import Span
from dllm.errors import DllmError
from dllm.fingerprint import fingerprint
from dllm.kernels.quantize_rows import reference_quantize_rows
from dllm.metrics import weight_bytes
from dllm.models import fp8
from dllm.models.tiny import SIZES, tiny

WIDE = {"hidden_size": 64, "head_dim": 16, "mlp_size": 96}


def bf16(**spec):
    return tiny(dtype=torch.bfloat16, **WIDE | spec)


@pytest.mark.parametrize("bias", [False, True])
def test_a_product_is_that_of_the_rounded_matrices(bias, device):
    linear = nn.Linear(64, 48, bias=bias, device=device).bfloat16()
    x = torch.randn(2, 5, 64, device=device).bfloat16()
    rounded = [q.double() * scale for q, scale in map(reference_quantize_rows, (x.flatten(0, 1), linear.weight))]
    want = rounded[0] @ rounded[1].T + (linear.bias.double() if bias else 0)
    got = fp8.Fp8Linear(linear)(x)
    assert got.dtype == torch.bfloat16 and got.shape == (2, 5, 48)
    # What bfloat16 rounds: the product, and the sum with the bias.
    torch.testing.assert_close(got.flatten(0, 1).double(), want, rtol=2**-8, atol=2**-7)


def test_a_row_is_that_of_the_row_alone(device):
    layer = fp8.Fp8Linear(nn.Linear(64, 48, device=device).bfloat16())
    sizes = 10.0 ** torch.arange(6, device=device)[:, None]
    layer.bias = None
    x = torch.randn(6, 64, device=device).bfloat16() * sizes
    alone = torch.cat([layer(row[None]) for row in x])
    # Each row has its own scale: a large one beside it costs a small one nothing.
    torch.testing.assert_close(layer(x) / sizes, alone / sizes, rtol=2**-7, atol=2**-9)


def test_the_layers_weights_take_half_the_memory_and_the_rest_as_much():
    model = bf16()
    before = weight_bytes(model)
    quantized = fp8.quantize(model)
    assert weight_bytes(quantized) == fp8.weight_bytes(model.spec)
    assert before == 2 * model.spec.n_parameters and quantized.head.weight.dtype == torch.bfloat16
    channels = 4 * sum(len(p) for name, p in quantized.named_parameters() if name.endswith("scale"))
    assert before - weight_bytes(quantized) == model.spec.active_parameters - channels


@pytest.mark.parametrize("spec", [{}, {"qkv_bias": True, "logits_shift": 1}, {"qk_norm": True}], ids=str)
def test_the_logits_are_near_those_of_the_model(spec):
    model, quantized = bf16(**spec), fp8.quantize(bf16(**spec))
    tokens = torch.randint(0, SIZES["vocab_size"], (2, 24))
    span = Span(torch.arange(24).repeat(2, 1), torch.ones(2, 24, dtype=torch.bool))
    want, got = (m(tokens, full_view(m.spec, [24, 24]), span).float() for m in (model, quantized))
    assert not torch.equal(got, want)
    cosine = torch.cosine_similarity(got.flatten(), want.flatten(), 0)
    assert cosine > 0.98, cosine


@pytest.mark.parametrize("name", ["tiny-block", "tiny-block:weights=fp8"])
def test_a_bundled_model_opens_with_8_bits_behind_its_name(name):
    model = dllm.load(name, device="cpu", weights=None if ":" in name else "fp8")
    assert isinstance(model.layers[0].qkv, fp8.Fp8Linear) and model.dtype == torch.bfloat16
    made = dllm.generate(model, "Reverse this list: ship, boat", gen_length=8)
    assert made.tokens.shape[1] > 8


def test_the_doctor_counts_8_bits():
    report = doctor.examine("tiny-block:weights=fp8", "cpu", None, 20, batch_size=1, gen_length=8)
    model = dllm.load("tiny-block:weights=fp8", device="cpu")
    assert report["model"]["need"]["weights"] == weight_bytes(model) and report["model"]["dtype"] == "bfloat16"


def test_what_cannot_be_had_in_8_bits_is_refused():
    with pytest.raises(DllmError, match="weights='int4' is no kind of weights; give 'fp8'"):
        dllm.load("tiny-block", weights="int4")
    with pytest.raises(DllmError, match=r"in a bfloat16 model, not one of torch\.float32; leave dtype out"):
        dllm.load("tiny-block", weights="fp8", dtype="float32", device="cpu")
    with pytest.raises(DllmError, match=r"multiples of 16; gate_up has \(196, 64\)"):
        fp8.quantize(bf16(mlp_size=98))
    with pytest.raises(DllmError, match="is for dense layers of ours"):
        fp8.quantize(nn.Linear(2, 2))


def test_8_bits_are_other_weights_to_what_was_fitted_for_a_model():
    model = bf16()
    before = fingerprint(model)
    assert fingerprint(fp8.quantize(model)) != before
