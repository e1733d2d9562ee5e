"""Every family reads its configs, names all tensors, and refuses a network that it would compute wrongly."""

from dataclasses import replace

import pytest
import torch
import transformers

import dllm
import twins
from dllm.cache import full_view
from dllm.canvas import Span
from dllm.models import FAMILIES
from dllm.models.transformer import Transformer
from dllm.spec import RopeScaling

LLADA_8B = {
    "architectures": ["LLaDAModelLM"],
    "model_type": "llada",
    "d_model": 4096,
    "n_layers": 32,
    "n_heads": 32,
    "n_kv_heads": 32,
    "mlp_hidden_size": 12288,
    "mlp_ratio": 4,
    "activation_type": "silu",
    "block_type": "llama",
    "block_group_size": 1,
    "layer_norm_type": "rms",
    "layer_norm_with_affine": True,
    "rms_norm_eps": 1e-05,
    "rope": True,
    "rope_full_precision": True,
    "rope_theta": 500000.0,
    "max_sequence_length": 4096,
    "vocab_size": 126464,
    "embedding_size": 126464,
    "weight_tying": False,
    "include_bias": False,
    "include_qkv_bias": False,
    "bias_for_layer_norm": False,
    "attention_layer_norm": False,
    "input_emb_norm": False,
    "scale_logits": False,
    "alibi": False,
    "flash_attention": False,
    "multi_query_attention": None,
    "mask_token_id": 126336,
    "eos_token_id": 126081,
    "pad_token_id": 126081,
}
DREAM_7B = {
    "architectures": ["DreamModel"],
    "model_type": "Dream",
    "hidden_size": 3584,
    "intermediate_size": 18944,
    "num_hidden_layers": 28,
    "num_attention_heads": 28,
    "num_key_value_heads": 4,
    "hidden_act": "silu",
    "rms_norm_eps": 1e-06,
    "rope_theta": 1000000.0,
    "rope_scaling": None,
    "max_position_embeddings": 131072,
    "max_window_layers": 28,
    "sliding_window": None,
    "use_sliding_window": False,
    "tie_word_embeddings": False,
    "vocab_size": 152064,
    "mask_token_id": 151666,
    "pad_token_id": 151643,
    "eos_token_id": 151643,
    "bos_token_id": 151643,
    "use_cache": False,
}
LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}
LLAMA = {
    "architectures": ["LlamaForCausalLM"],
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_attention_heads": 4,
    "num_hidden_layers": 2,
    "vocab_size": 40,
    "max_position_embeddings": 64,
    "eos_token_id": 2,
}


def spec(config: dict) -> dllm.spec.ModelSpec:
    return FAMILIES[config["architectures"][0]].spec(config)


def test_llada_8b_has_the_published_tensors_and_size():
    family = FAMILIES["LLaDAModelLM"]
    with torch.device("meta"):
        model = Transformer(spec(LLADA_8B))
    tensors = family.checkpoint(model, model.spec)
    assert len(tensors) == 291 == 32 * 9 + 3
    assert sum(t.numel() for t in tensors.values()) == model.spec.n_parameters == 8_015_581_184
    assert tensors["model.transformer.ff_out.weight"].shape == (126464, 4096)
    assert tensors["model.transformer.blocks.31.ff_out.weight"].shape == (4096, 12288)
    assert tensors["model.transformer.blocks.0.k_proj.weight"].shape == (4096, 4096)
    assert (model.spec.attention, model.spec.logits_shift, model.spec.rope_theta) == ("full", 0, 500000.0)
    assert (model.spec.mask_id, model.spec.eos_ids, model.spec.max_length) == (126336, (126081,), 4096)


def test_dream_7b_has_the_published_tensors_and_is_qwen2_with_a_shift():
    family = FAMILIES["DreamModel"]
    with torch.device("meta"):
        model = Transformer(spec(DREAM_7B))
    tensors = family.checkpoint(model, model.spec)
    assert len(tensors) == 339 == 28 * 12 + 3
    assert tensors["lm_head.weight"].shape == tensors["model.embed_tokens.weight"].shape == (152064, 3584)
    assert tensors["model.layers.27.self_attn.k_proj.weight"].shape == (512, 3584)
    assert tensors["model.layers.0.self_attn.v_proj.bias"].shape == (512,)
    assert not any(name.endswith("o_proj.bias") for name in tensors)
    found = model.spec
    assert (found.attention, found.logits_shift, found.rope_fp32, found.qkv_bias) == ("full", 1, False, True)
    assert (found.mask_id, found.eos_ids, found.max_length) == (151666, (151643,), 131072)


@pytest.mark.parametrize("key", ["mask_token_id", "eos_token_id", "hidden_size"])
def test_a_key_that_dream_needs_is_named(key):
    with pytest.raises(dllm.DllmError, match=f"config.json has no '{key}'"):
        spec({k: v for k, v in DREAM_7B.items() if k != key})


@pytest.mark.parametrize(
    ("key", "value"), [("use_sliding_window", True), ("hidden_act", "gelu"), ("rope_scaling", {"type": "yarn"})]
)
def test_a_dream_with_another_network_is_refused_by_the_key(key, value):
    with pytest.raises(dllm.DllmError, match=r"config.json has .*; only .* is supported"):
        spec(DREAM_7B | {key: value})


def test_dream_is_qwen2_that_sees_all_and_predicts_one_column_on():
    """Against transformers' Qwen2 with a mask that hides nothing, its logits moved by one column."""
    theirs = twins.theirs("Qwen2")
    ours = twins.ours(theirs, "DreamModel", mask_token_id=60)
    tokens, columns = torch.randint(0, 60, (2, 9)), torch.arange(9).expand(2, -1)
    raw = theirs(tokens, attention_mask=torch.zeros(2, 1, 9, 9)).logits
    got = ours(tokens, full_view(ours.spec, [9, 9]), Span(columns, torch.ones(2, 9, dtype=torch.bool)))
    torch.testing.assert_close(got, torch.cat([raw[:, :1], raw[:, :-1]], 1))


def test_llada_keys_with_a_default_may_be_missing():
    short = {k: v for k, v in LLADA_8B.items() if v not in (None, False, True, "silu", "llama", "rms")}
    for key in ("mlp_hidden_size", "n_kv_heads", "embedding_size"):
        del short[key]
    assert spec(short) == replace(spec(LLADA_8B), mlp_size=4 * 4096)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("attention_layer_norm", True),
        ("input_emb_norm", True),
        ("scale_logits", True),
        ("alibi", True),
        ("rope", False),
        ("activation_type", "swiglu"),
        ("activation_type", "gelu"),
        ("block_type", "sequential"),
        ("block_group_size", 2),
        ("layer_norm_type", "default"),
        ("layer_norm_with_affine", False),
        ("bias_for_layer_norm", True),
        ("include_bias", True),
        ("multi_query_attention", True),
        ("clip_qkv", 8.0),
        ("quantization_config", {"bits": 4}),
    ],
)
def test_a_llada_with_another_network_is_refused_by_the_key(key, value):
    with pytest.raises(dllm.DllmError, match=f"config.json has {key}=.*; only .* is supported"):
        spec(LLADA_8B | {key: value})


@pytest.mark.parametrize(
    ("key", "value", "rule"),
    [
        ("n_layers", "x", "a whole number of at least 1"),
        ("n_layers", 2.0, "a whole number of at least 1"),
        ("n_layers", True, "a whole number of at least 1"),
        ("n_layers", 0, "a whole number of at least 1"),
        ("d_model", [4096], "a whole number of at least 1"),
        ("mlp_ratio", "wide", "a whole number of at least 1"),
        ("embedding_size", "x", "a whole number of at least 1"),
        ("rope_theta", "5e5", "a number above 0"),
        ("rope_theta", float("nan"), "a number above 0"),
        ("rms_norm_eps", True, "a number above 0"),
        ("rms_norm_eps", -1.0, "a number above 0"),
        ("weight_tying", "no", "true or false"),
        ("rope_full_precision", 1, "true or false"),
        ("eos_token_id", "</s>", "a token id or a list"),
        ("eos_token_id", [3, -1], "a token id or a list"),
        ("eos_token_id", [], "a token id or a list"),
        ("mask_token_id", 1.5, "a token id or a list"),
    ],
)
def test_a_value_of_the_wrong_kind_is_named(key, value, rule):
    with pytest.raises(dllm.DllmError, match=f"config.json has {key}=.*must be {rule}"):
        spec(LLADA_8B | {key: value})


@pytest.mark.parametrize(
    "key", ["d_model", "n_layers", "n_heads", "max_sequence_length", "mask_token_id", "eos_token_id"]
)
@pytest.mark.parametrize("config", [{}, {"key": None}], ids=["missing", "null"])
def test_a_key_that_is_needed_is_named(key, config):
    whole = {k: v for k, v in LLADA_8B.items() if k != key} | dict.fromkeys([key] if config else [])
    with pytest.raises(dllm.DllmError, match=f"config.json has no '{key}'"):
        spec(whole)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"n_heads": 24}, "d_model=4096, which n_heads=24 does not divide"),
        ({"n_kv_heads": 5}, "32 heads, which 5 key/value heads cannot share"),
        ({"d_model": 96}, "heads 3 wide; rotary positions need an even width"),
        ({"mask_token_id": 126464}, "the token id 126464, .* is beyond the vocabulary of 126464"),
        ({"eos_token_id": [2, 200000]}, "the token id 200000, config.json's or else the family's"),
    ],
)
def test_numbers_that_do_not_fit_together_are_named(changes, message):
    with pytest.raises(dllm.DllmError, match=message):
        spec(LLADA_8B | changes)


@pytest.mark.parametrize(
    ("changes", "key"),
    [
        ({"hidden_act": "gelu"}, "hidden_act='gelu'"),
        ({"mlp_bias": True}, "mlp_bias"),
        ({"attention_bias": True}, "attention_bias"),
        ({"use_sliding_window": True, "sliding_window": 8}, "use_sliding_window"),
        ({"layer_types": ["full_attention", "sliding_attention"]}, "layer_types='sliding_attention'"),
        ({"quantization_config": {"quant_method": "fp8"}}, "quantization_config"),
        ({"rope_scaling": {"type": "linear", "factor": 2.0}}, "type='linear'"),
        ({"rope_scaling": {"rope_type": "llama3", "factor": 8.0}}, "no 'low_freq_factor'"),
        ({"rope_scaling": LLAMA3 | {"high_freq_factor": 1.0}}, "high_freq_factor=1.0"),
        ({"rope_scaling": LLAMA3 | {"factor": 0}}, "factor=0"),
        ({"rope_parameters": {"rope_type": "yarn", "rope_theta": 1e6}}, "rope_type='yarn'"),
        ({"rope_parameters": {"rope_theta": 1e6, "partial_rotary_factor": 0.5}}, "partial_rotary_factor=0.5"),
        ({"rope_parameters": "default"}, "rope_parameters='default'"),
    ],
)
def test_a_causal_model_with_another_network_is_refused_by_the_key(changes, key):
    with pytest.raises(dllm.DllmError, match=f"config.json has {key}"):
        spec(LLAMA | changes)


@pytest.mark.parametrize(
    ("changes", "theta"),
    [
        ({}, 10000.0),
        ({"rope_theta": 5e5}, 5e5),
        ({"rope_theta": 1000000, "rope_scaling": None}, 1e6),
        ({"rope_theta": 5e5, "rope_scaling": {"rope_type": "default"}}, 5e5),
        ({"rope_parameters": {"rope_type": "default", "rope_theta": 3e5}}, 3e5),
    ],
)
def test_the_base_of_the_angles_is_read_as_old_and_new_transformers_write_it(changes, theta):
    assert spec(LLAMA | changes).rope_theta == theta


def test_llama_3s_slower_angles_are_read():
    assert spec(LLAMA).rope_scaling is None
    assert spec(LLAMA | {"rope_scaling": LLAMA3}).rope_scaling == RopeScaling(8.0, 1.0, 4.0, 32.0)


def test_what_a_causal_config_says():
    found = spec(
        LLAMA | {"num_key_value_heads": 2, "head_dim": 16, "tie_word_embeddings": True, "eos_token_id": [2, 5]}
    )
    assert (found.n_heads, found.n_kv_heads, found.head_dim, found.tied_head) == (4, 2, 16, True)
    assert (found.attention, found.mask_id, found.eos_ids, found.rope_fp32) == ("causal", None, (2, 5), False)
    assert spec({k: v for k, v in LLAMA.items() if k != "eos_token_id"}).eos_ids == ()


def test_a_causal_model_is_not_decoded():
    with pytest.raises(dllm.DllmError, match="causal"):
        dllm.generate(Transformer(spec(LLAMA)), [3, 4], gen_length=4)


@pytest.mark.parametrize("architecture", FAMILIES)
@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("bias", [False, True])
def test_a_checkpoint_cuts_every_parameter_and_loses_nothing(architecture, tied, bias):
    family = FAMILIES[architecture]
    config = LLADA_8B | {"d_model": 32, "n_heads": 4, "n_kv_heads": 2, "n_layers": 2, "mlp_hidden_size": 48}
    config |= {"embedding_size": 40, "mask_token_id": 39, "eos_token_id": 38, "include_qkv_bias": bias}
    if architecture != "LLaDAModelLM":
        config = LLAMA | {"num_key_value_heads": 2, "mask_token_id": 39, "num_experts": 4, "num_experts_per_tok": 2}
        config |= {"moe_intermediate_size": 12, "expert_intermediate_size": 12, "num_shared_experts": 1}
        config |= {"first_k_dense_replace": 1, "n_group": 2, "topk_group": 1}
    model = Transformer(replace(family.spec(config), tied_head=tied))
    tensors = family.checkpoint(model, model.spec)
    assert sum(t.numel() for t in tensors.values()) == sum(p.numel() for p in model.parameters())
    assert not any("{" in name or t.requires_grad for name, t in tensors.items())
    for name, value in model.named_parameters():
        sources = family.parts(model.spec, name, value)
        assert torch.equal(torch.cat([tensors[source] for source in sources]).view_as(value), value)


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("name", ["Llama", "Qwen2", "Qwen3"])
def test_a_checkpoint_that_transformers_saved_is_the_same_model(name, tied, tmp_path):
    sizes = {k: v for k, v in LLAMA.items() if k != "architectures"}
    config = getattr(transformers, name + "Config")(
        **sizes, num_key_value_heads=2, head_dim=8, bos_token_id=1, tie_word_embeddings=tied
    )
    theirs = getattr(transformers, name + "ForCausalLM")(config).eval()
    theirs.save_pretrained(tmp_path)
    ours = dllm.load(tmp_path, device="cpu")
    tokens = torch.randint(0, 40, (2, 11))
    got = ours(tokens, full_view(ours.spec, [11, 11]), Span.between(torch.zeros(2).long(), torch.tensor([11, 11]), 11))
    with torch.no_grad():
        torch.testing.assert_close(got, theirs(tokens).logits)
    assert ours.spec.tied_head is tied and ours.spec.norm_eps == 1e-6
