"""Weights in 8 bits: half the memory, and half the bytes that a step with few rows waits for.

Every output channel of a matrix has a scale, and so has every row of activations, when it comes; the product is of two
e4m3 matrices, summed in float32, and scaled once (FP8 formats: arXiv:2209.05433). The four matrices of a layer are
taken, 93 % of the weights that a step of LLaDA-8B reads. The head stays as it is: the token that comes first, and how
sure it is, rest on differences of logits that 8 bits would blur. So does the table of embeddings, of which a step reads
a few rows. A GPU may sum the product in another order for another number of rows.
"""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from dllm.errors import DllmError
from dllm.kernels.quantize_rows import quantize_rows, reference_quantize_rows
from dllm.models.transformer import Transformer
from dllm.spec import ModelSpec

MATRICES = ("qkv", "out", "gate_up", "down")
"""Of each layer, what is kept in 8 bits."""
MULTIPLE = 16
"""Of which the sides of a matrix must be one, for the GPU's instruction."""


class Fp8Linear(nn.Module):
    """A linear map whose matrix is e4m3 with a float32 scale for every output channel."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        weight, scale = reference_quantize_rows(linear.weight.detach())
        self.weight = nn.Parameter(weight, requires_grad=False)  # (O, I)
        self.scale = nn.Parameter(scale, requires_grad=False)  # (O, 1)
        self.bias = linear.bias

    def forward(self, x: Float[Tensor, "... I"]) -> Float[Tensor, "... O"]:
        rows, scale = quantize_rows(x.reshape(-1, x.shape[-1]))
        out = product(rows, scale, self.weight, self.scale)
        return (out if self.bias is None else out + self.bias).view(*x.shape[:-1], -1)


def product(
    x: Tensor, x_scale: Float[Tensor, "M 1"], weight: Tensor, scale: Float[Tensor, "O 1"]
) -> Float[Tensor, "M O"]:
    """x times the weight transposed, both e4m3 with a scale for each row, in bfloat16."""
    if x.is_cuda and torch.cuda.get_device_capability(x.device) >= (8, 9):
        made: Tensor = torch._scaled_mm(x, weight.T, scale_a=x_scale, scale_b=scale.T, out_dtype=torch.bfloat16)
        return made
    # The same numbers where no instruction takes them: products of e4m3 are exact in float32, and summed there.
    return (x.float() @ weight.float().T * x_scale * scale.T).to(torch.bfloat16)


def quantize(model: Any) -> Transformer:
    """Turn a model's layers to 8 bits, one matrix after the other, in its place.

    Raises DllmError for another dtype than bfloat16, and for networks whose matrices cannot be had so.
    """
    if not isinstance(model, Transformer) or model.spec.experts:
        raise DllmError("weights='fp8' is for dense layers of ours, which this model does not have; leave it out.")
    if model.dtype != torch.bfloat16:
        raise DllmError(f"weights='fp8' stands in a bfloat16 model, not one of {model.dtype}; leave dtype out.")
    for layer in model.layers:
        for name in MATRICES:
            matrix = getattr(layer, name)
            if any(side % MULTIPLE for side in matrix.weight.shape):
                raise DllmError(
                    f"weights='fp8' needs matrices with sides that are multiples of {MULTIPLE}; {name} has "
                    f"{tuple(matrix.weight.shape)}; leave it out."
                )
            setattr(layer, name, Fp8Linear(matrix))
    return model


def weight_bytes(spec: ModelSpec) -> int:
    """Bytes of a model's parameters after `quantize`."""
    channels = (spec.n_heads + 2 * spec.n_kv_heads) * spec.head_dim + 2 * spec.hidden_size + 2 * spec.mlp_size
    return 2 * spec.n_parameters - spec.active_parameters + 4 * spec.n_layers * channels
