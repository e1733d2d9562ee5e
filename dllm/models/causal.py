"""Llama (SmolLM2 is one), Qwen2 and Qwen3 as transformers writes them: causal, for `dllm.generate_causal`."""

from collections.abc import Mapping
from functools import partial
from typing import Any

from dllm.errors import DllmError
from dllm.models.family import Config, Family, checked, flag, ids, number, refuse, required, size
from dllm.spec import ModelSpec, RopeScaling

PLAIN = {
    "hidden_act": "silu",
    "mlp_bias": False,
    "use_sliding_window": False,
    "quantization_config": None,
    # Where it is true (Llama, Qwen3) the output projection has a bias too.
    "attention_bias": False,
}


def rotary(config: Config) -> dict[str, Any]:
    """The rotary angles, from `rope_theta` and `rope_scaling` or, since transformers 5, `rope_parameters`."""
    rope = config.get("rope_parameters") or config.get("rope_scaling") or {}
    if not isinstance(rope, Mapping):
        refuse({"rope_parameters": rope}, {"rope_parameters": None})
    scaling = None
    if (rope.get("rope_type") or rope.get("type")) == "llama3":
        names = ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings")
        scaling = RopeScaling(*(number({name: required(rope, name)}, name, 1.0) for name in names))
        if scaling.high <= scaling.low:
            raise DllmError(
                f"config.json has high_freq_factor={scaling.high}, not above low_freq_factor={scaling.low}."
            )
    else:
        refuse(rope, {"rope_type": "default", "type": "default"})
    refuse(rope, {"partial_rotary_factor": 1.0})
    theta = number(rope, "rope_theta", number(config, "rope_theta", 10000.0))
    return {"rope_theta": theta, "rope_scaling": scaling}


def spec(config: Config, **family: Any) -> ModelSpec:
    """Read a config.json of transformers; `family` are the fields by which the three differ."""
    refuse(config, PLAIN)
    for kind in config.get("layer_types") or []:
        refuse({"layer_types": kind}, {"layer_types": "full_attention"})
    hidden, heads = size(config, "hidden_size"), size(config, "num_attention_heads")
    return checked(
        ModelSpec(
            vocab_size=size(config, "vocab_size"),
            n_layers=size(config, "num_hidden_layers"),
            n_heads=heads,
            n_kv_heads=size(config, "num_key_value_heads", heads),
            head_dim=size(config, "head_dim", hidden // heads),
            hidden_size=hidden,
            mlp_size=size(config, "intermediate_size"),
            max_length=size(config, "max_position_embeddings"),
            mask_id=None,
            eos_ids=ids(config, "eos_token_id"),
            attention="causal",
            rope_fp32=False,
            norm_eps=number(config, "rms_norm_eps", 1e-6),
            tied_head=flag(config, "tie_word_embeddings", False),
            **rotary(config),
            **family,
        )
    )


LAYER = "model.layers.{i}."
ATTN = LAYER + "self_attn."
NAMES = {
    "embed.weight": ("model.embed_tokens.weight",),
    "layers.attn_norm.weight": (LAYER + "input_layernorm.weight",),
    "layers.qkv.weight": (ATTN + "q_proj.weight", ATTN + "k_proj.weight", ATTN + "v_proj.weight"),
    "layers.qkv.bias": (ATTN + "q_proj.bias", ATTN + "k_proj.bias", ATTN + "v_proj.bias"),
    "layers.q_norm.weight": (ATTN + "q_norm.weight",),
    "layers.k_norm.weight": (ATTN + "k_norm.weight",),
    "layers.out.weight": (ATTN + "o_proj.weight",),
    "layers.mlp_norm.weight": (LAYER + "post_attention_layernorm.weight",),
    "layers.gate_up.weight": (LAYER + "mlp.gate_proj.weight", LAYER + "mlp.up_proj.weight"),
    "layers.down.weight": (LAYER + "mlp.down_proj.weight",),
    "norm.weight": ("model.norm.weight",),
    "head.weight": ("lm_head.weight",),
}
# As Qwen3-MoE names them, and with it SDAR's and LLaDA's mixtures.
EXPERTS = {
    "layers.moe.router.weight": (LAYER + "mlp.gate.weight",),
    "layers.moe.gate_up": (LAYER + "mlp.experts.{e}.gate_proj.weight", LAYER + "mlp.experts.{e}.up_proj.weight"),
    "layers.moe.down": (LAYER + "mlp.experts.{e}.down_proj.weight",),
}
FAMILIES = (
    Family("LlamaForCausalLM", spec, NAMES),
    Family("Qwen2ForCausalLM", partial(spec, qkv_bias=True), NAMES),
    Family("Qwen3ForCausalLM", partial(spec, qk_norm=True), NAMES),
)
