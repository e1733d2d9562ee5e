"""LLaDA 8B (Base, Instruct, 1.5) and iLLaDA: full attention, no shift (arXiv:2502.09992)."""

from dllm.errors import DllmError
from dllm.models.family import Config, Family, checked, flag, ids, number, refuse, required, size
from dllm.spec import ModelSpec

# LLaDA's code descends from OLMo's and can build other networks than the one that was published. A key that is missing
# is taken to have the published value.
PUBLISHED = {
    "block_type": "llama",
    "block_group_size": 1,
    "activation_type": "silu",
    "layer_norm_type": "rms",
    "layer_norm_with_affine": True,
    "bias_for_layer_norm": False,
    "attention_layer_norm": False,
    "input_emb_norm": False,
    "include_bias": False,
    "scale_logits": False,
    "alibi": False,
    "rope": True,
    "multi_query_attention": False,
    "clip_qkv": None,
    "quantization_config": None,
}


def spec(config: Config) -> ModelSpec:
    """Read the keys of a LLaDA config.json; none of them is named as in transformers' own models."""
    refuse(config, PUBLISHED)
    hidden, heads = size(config, "d_model"), size(config, "n_heads")
    if hidden % heads:
        raise DllmError(f"config.json has d_model={hidden}, which n_heads={heads} does not divide.")
    required(config, "mask_token_id")
    required(config, "eos_token_id")
    return checked(
        ModelSpec(
            # The table may have more rows than the tokenizer has tokens.
            vocab_size=size(config, "embedding_size" if config.get("embedding_size") else "vocab_size"),
            n_layers=size(config, "n_layers"),
            n_heads=heads,
            n_kv_heads=size(config, "n_kv_heads", heads),
            head_dim=hidden // heads,
            hidden_size=hidden,
            mlp_size=size(config, "mlp_hidden_size", hidden * size(config, "mlp_ratio", 4)),
            max_length=size(config, "max_sequence_length"),
            mask_id=ids(config, "mask_token_id")[0],
            eos_ids=ids(config, "eos_token_id"),
            rope_theta=number(config, "rope_theta", 10000.0),
            rope_fp32=flag(config, "rope_full_precision", True),
            norm_eps=number(config, "rms_norm_eps", 1e-5),
            qkv_bias=flag(config, "include_qkv_bias", False),
            tied_head=flag(config, "weight_tying", False),
        )
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
