"""The shapes of published models, with random weights: decoding speed does not ask what the weights know."""

from copy import copy
from dataclasses import replace

import torch
from torch import nn

from dllm.models.transformer import RMSNorm, Transformer
from dllm.spec import ModelSpec

SHAPES = {
    "llada-8b": ModelSpec(
        vocab_size=126464, n_layers=32, n_heads=32, n_kv_heads=32, head_dim=128, hidden_size=4096, mlp_size=12288,
        max_length=4096, mask_id=126336, eos_ids=(126081,), rope_theta=500000.0,
    ),
    "dream-7b": ModelSpec(
        vocab_size=152064, n_layers=28, n_heads=28, n_kv_heads=4, head_dim=128, hidden_size=3584, mlp_size=18944,
        max_length=131072, mask_id=151666, eos_ids=(151643,), rope_theta=1000000.0, rope_fp32=False, norm_eps=1e-6,
        qkv_bias=True, logits_shift=1,
    ),
    "5m": ModelSpec(
        vocab_size=1024, n_layers=6, n_heads=8, n_kv_heads=8, head_dim=32, hidden_size=256, mlp_size=688,
        max_length=2048, mask_id=0, eos_ids=(1,), tied_head=True,
    ),
    "tiny": ModelSpec(
        vocab_size=96, n_layers=2, n_heads=2, n_kv_heads=1, head_dim=16, hidden_size=32, mlp_size=48,
        max_length=256, mask_id=95, eos_ids=(94,),
    ),
}  # fmt: skip
"""The sizes of LLaDA-8B (arXiv:2502.09992) and Dream-7B (arXiv:2508.15487), 5 million parameters, and next to none."""


def random_model(spec: ModelSpec, device: torch.device, dtype: torch.dtype) -> Transformer:
    """A network with weights drawn on the device in this dtype, such that activations neither grow nor vanish."""
    with torch.device("meta"):
        model = Transformer(spec)
    model = model.to(dtype).to_empty(device=device).requires_grad_(False)
    draw = torch.Generator(device).manual_seed(0)
    for module in model.modules():
        if isinstance(module, RMSNorm):
            module.weight.fill_(1.0)
        elif isinstance(module, nn.Linear | nn.Embedding):
            module.weight.normal_(0.0, module.weight.shape[1] ** -0.5, generator=draw)
        if isinstance(module, nn.Linear) and module.bias is not None:
            module.bias.zero_()
    if spec.tied_head:
        model.head.weight = model.embed.weight
    model.name = "random weights"
    return model.eval()


def in_blocks(model: Transformer, block_length: int) -> Transformer:
    """The same weights as a block-causal model."""
    made = copy(model)
    made.spec = replace(model.spec, attention="block", block_length=block_length)
    return made
