"""LLaDA 8B (Base, Instruct, 1.5) and iLLaDA: full attention, no shift (arXiv:2502.09992)."""

from dllm.models.family import Config, Family, ids, required
from dllm.spec import ModelSpec


def spec(config: Config) -> ModelSpec:
    """Read the keys of a LLaDA config.json; none of them is named as in transformers' own models."""
    hidden, heads = required(config, "d_model"), required(config, "n_heads")
    return ModelSpec(
        vocab_size=config.get("embedding_size") or required(config, "vocab_size"),
        n_layers=required(config, "n_layers"),
        n_heads=heads,
        n_kv_heads=config.get("n_kv_heads") or heads,
        head_dim=hidden // heads,
        hidden_size=hidden,
        mlp_size=config.get("mlp_hidden_size") or hidden * required(config, "mlp_ratio"),
        max_length=required(config, "max_sequence_length"),
        mask_id=required(config, "mask_token_id"),
        eos_ids=ids(required(config, "eos_token_id")),
        rope_theta=config.get("rope_theta", 10000.0),
        rope_fp32=config.get("rope_full_precision", True),
        norm_eps=config.get("rms_norm_eps", 1e-5),
        qkv_bias=bool(config.get("include_qkv_bias") or config.get("include_bias")),
        tied_head=bool(config.get("weight_tying")),
    )


BLOCK = "model.transformer.blocks.{i}."
FAMILY = Family(
    architecture="LLaDAModelLM",
    spec=spec,
    turn_end="<|eot_id|>",
    names={
        "embed.weight": ("model.transformer.wte.weight",),
        "layers.attn_norm.weight": (BLOCK + "attn_norm.weight",),
        "layers.qkv.weight": (BLOCK + "q_proj.weight", BLOCK + "k_proj.weight", BLOCK + "v_proj.weight"),
        "layers.qkv.bias": (BLOCK + "q_proj.bias", BLOCK + "k_proj.bias", BLOCK + "v_proj.bias"),
        "layers.out.weight": (BLOCK + "attn_out.weight",),
        "layers.mlp_norm.weight": (BLOCK + "ff_norm.weight",),
        "layers.gate_up.weight": (BLOCK + "ff_proj.weight", BLOCK + "up_proj.weight"),
        "layers.down.weight": (BLOCK + "ff_out.weight",),
        "norm.weight": ("model.transformer.ln_f.weight",),
        # The head has the leaf name of the blocks' down projection.
        "head.weight": ("model.transformer.ff_out.weight",),
    },
)
