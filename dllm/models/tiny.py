"""A small random transformer for tests and timings: the network of the real models without their knowledge."""

from typing import Any

import torch
from torch import nn

from dllm.models.transformer import Transformer
from dllm.spec import ModelSpec

SIZES: dict[str, Any] = {
    "vocab_size": 40,
    "n_layers": 2,
    "n_heads": 4,
    "n_kv_heads": 2,
    "head_dim": 8,
    "hidden_size": 32,
    "mlp_size": 48,
    "max_length": 128,
    "mask_id": 39,
    "eos_ids": (38,),
}


def tiny(
    seed: int = 0,
    *,
    dtype: torch.dtype = torch.float64,
    device: torch.device | str = "cpu",
    sharpness: float = 3.0,
    tokenizer: Any = None,
    **spec: Any,
) -> Transformer:
    """Weights drawn from `seed`; `spec` overrides fields of the ModelSpec.

    sharpness: standard deviation of the logits. At 3 the confidences of 40 tokens spread between 0.2 and 1, so that the
    rules of the samplers differ; at 1 they are nearly flat. float64, so that no order of summation decides a token.
    """
    model = Transformer(ModelSpec(**{**SIZES, **spec}), tokenizer).to(torch.float64).requires_grad_(False)
    draw = torch.Generator().manual_seed(seed)
    for name, weight in model.named_parameters():
        noise = torch.randn(weight.shape, generator=draw, dtype=weight.dtype)
        if weight.ndim == 1:  # biases around 0, the weights of norms around 1
            weight.copy_(0.1 * noise + (not name.endswith("bias")))
        elif not isinstance(model.get_submodule(name.rpartition(".")[0]), nn.Embedding):
            # Queries and keys twice as wide, so that attention picks a few columns and a token depends on its context.
            weight.copy_(noise * weight.shape[-1] ** -0.5 * (2 if ".qkv." in name else 1))
        else:
            weight.copy_(noise)
    model.head.weight.mul_(sharpness * (model.spec.hidden_size**-0.5 if model.spec.tied_head else 1))
    return model.to(device, dtype).eval()
