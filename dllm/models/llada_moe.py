"""LLaDA-MoE (arXiv:2509.24389): full attention, 8 of 64 experts; LLaDA2.x (arXiv:2512.15745): blocks, 8 of 256."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from dllm.errors import DllmError
from dllm.models import causal
from dllm.models.family import Config, Family, checked, flag, ids, number, refuse, size
from dllm.spec import Experts, ModelSpec

IDS = {"mask_token_id": 156895, "eos_token_id": 156892}
"""The ids of the published checkpoints, whose configs do not name the mask."""
BLOCK_LENGTH = 32
"""That of the published LLaDA2 checkpoints, whose configs do not name it."""


def network(config: Config, usual: Mapping[str, Any], **family: Any) -> ModelSpec:
    """Read the keys that both have in common with Qwen; `usual` are the values of those that may be missing."""
    config = {**IDS, **usual, **{key: value for key, value in config.items() if value is not None}}
    spec = causal.spec(config, qk_norm=True)
    return checked(replace(spec, mask_id=ids(config, "mask_token_id")[0], **family))


MOE_PUBLISHED = {
    "moe_router_score_function": "softmax",
    "moe_router_enable_expert_bias": False,
    "shared_expert_intermediate_size": 0,
    "router_num_group": 1,
    "routed_scaling_factor": 1,
    "norm_topk_prob": False,
    "partial_rotary_factor": 1,
    "qk_layernorm": True,
    "clip_qkv": None,
}


def moe_spec(config: Config) -> ModelSpec:
    """Read the config.json of a LLaDA-MoE. Its `model_type` is that of LLaDA, which is another network."""
    refuse(config, MOE_PUBLISHED)
    layers = config.get("moe_layer_freq")
    for with_experts in layers if isinstance(layers, list) else [layers]:
        refuse({"moe_layer_freq": with_experts}, {"moe_layer_freq": 1})
    experts = Experts(
        count=size(config, "num_experts"),
        used=size(config, "num_experts_per_tok"),
        size=size(config, "expert_intermediate_size"),
    )
    usual = {"intermediate_size": experts.size, "rms_norm_eps": 1e-5, "rope_theta": 50000.0}
    return network(config, usual, attention="full", mlp_size=0, experts=experts)


TWO_PUBLISHED = {
    "score_function": "sigmoid",
    "norm_topk_prob": True,
    "use_qk_norm": True,
    "use_qkv_bias": False,
    "use_bias": False,
    "norm_head": False,
    "rope_scaling": None,
}


def two_spec(config: Config) -> ModelSpec:
    """Read the config.json of a LLaDA2."""
    refuse(config, TWO_PUBLISHED)
    experts = Experts(
        count=size(config, "num_experts"),
        used=size(config, "num_experts_per_tok"),
        size=size(config, "moe_intermediate_size"),
        shared_size=size(config, "moe_intermediate_size") * size(config, "num_shared_experts", 0, least=0),
        dense_layers=size(config, "first_k_dense_replace", 0, least=0),
        scores="sigmoid",
        normalized=size(config, "num_experts_per_tok") > 1,
        scale=number(config, "routed_scaling_factor", 2.5),
        bias=flag(config, "moe_router_enable_expert_bias", True),
        groups=size(config, "n_group", 8),
        groups_used=size(config, "topk_group", 4),
    )
    spec = network(config, {}, attention="block", block_length=BLOCK_LENGTH, experts=experts)
    rope_dim = int(spec.head_dim * number(config, "partial_rotary_factor", 0.5))
    if rope_dim % 2 or not 0 < rope_dim <= spec.head_dim or size(config, "rotary_dim", rope_dim) != rope_dim:
        raise DllmError(
            f"config.json rotates {rope_dim} of the {spec.head_dim} numbers of a head (rotary_dim="
            f"{config.get('rotary_dim')}); it must be one even number, at most all."
        )
    return replace(spec, rope_dim=rope_dim)


LAYER = causal.LAYER
TWO_NAMES = {
    "embed.weight": ("model.word_embeddings.weight",),
    "layers.qkv.weight": (LAYER + "attention.query_key_value.weight",),
    "layers.q_norm.weight": (LAYER + "attention.query_layernorm.weight",),
    "layers.k_norm.weight": (LAYER + "attention.key_layernorm.weight",),
    "layers.out.weight": (LAYER + "attention.dense.weight",),
    "layers.moe.router.bias": (LAYER + "mlp.gate.expert_bias",),
    "layers.moe.shared_gate_up.weight": (
        LAYER + "mlp.shared_experts.gate_proj.weight",
        LAYER + "mlp.shared_experts.up_proj.weight",
    ),
    "layers.moe.shared_down.weight": (LAYER + "mlp.shared_experts.down_proj.weight",),
}
FAMILIES = (
    Family("LLaDAMoEModelLM", moe_spec, causal.NAMES | causal.EXPERTS),
    Family("LLaDAMoEModel", moe_spec, causal.NAMES | causal.EXPERTS),
    Family("LLaDA2MoeModelLM", two_spec, causal.NAMES | causal.EXPERTS | TWO_NAMES),
)
