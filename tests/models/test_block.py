"""SDAR and Fast-dLLM v2 are transformers' Qwen3 and Qwen2 with a mask of blocks, from the checkpoints as published."""

import json
import re

import pytest
import torch
from safetensors.torch import load_file, save_file

import dllm
import twins
from dllm.cache import full_view
from dllm.canvas import Span
from dllm.models import FAMILIES
from dllm.models.transformer import Transformer

SDAR_8B = {
    "architectures": ["SDARForCausalLM"],
    "attention_bias": False,
    "attention_dropout": 0.0,
    "attn_implementation": "flex_attention",
    "bos_token_id": 151643,
    "eos_token_id": 151643,
    "block_size": 4,
    "mask_token_id": 151669,
    "fuse_cross_entropy": False,
    "head_dim": 128,
    "hidden_act": "silu",
    "hidden_size": 4096,
    "intermediate_size": 12288,
    "max_position_embeddings": 32768,
    "max_window_layers": 36,
    "model_type": "sdar",
    "num_attention_heads": 32,
    "num_hidden_layers": 36,
    "num_key_value_heads": 8,
    "rms_norm_eps": 1e-06,
    "rope_scaling": None,
    "rope_theta": 1000000,
    "sliding_window": None,
    "tie_word_embeddings": False,
    "use_cache": False,
    "use_sliding_window": False,
    "vocab_size": 151936,
}
FAST_DLLM_V2_1B = {
    "architectures": ["Fast_dLLM_QwenForCausalLM"],
    "model_type": "Fast_dLLM_Qwen",
    "bd_size": 32,
    "bos_token_id": 151643,
    "eos_token_id": 151645,
    "hidden_act": "silu",
    "hidden_size": 1536,
    "intermediate_size": 8960,
    "layer_types": ["full_attention"] * 28,
    "max_position_embeddings": 32768,
    "num_attention_heads": 12,
    "num_hidden_layers": 28,
    "num_key_value_heads": 2,
    "rms_norm_eps": 1e-06,
    "rope_theta": 1000000.0,
    "sliding_window": None,
    "tie_word_embeddings": True,
    "use_sliding_window": False,
    "vocab_size": 151936,
}
# The network of transformers, our family, what its config calls the block length, and the shift of its logits.
CASES = {
    "sdar": ("Qwen3", "SDARForCausalLM", "block_size", 0),
    "fast-dllm v2": ("Qwen2", "Fast_dLLM_QwenForCausalLM", "bd_size", 1),
}


def spec(config: dict) -> dllm.spec.ModelSpec:
    return FAMILIES[config["architectures"][0]].spec(config)


def logits(model: Transformer, tokens: torch.Tensor, lengths: list[int]) -> torch.Tensor:
    stop = torch.tensor(lengths)
    return model(tokens, full_view(model.spec, lengths), Span.between(torch.zeros_like(stop), stop, max(lengths)))


def shifted(raw: torch.Tensor, shift: int) -> torch.Tensor:
    return torch.cat([raw[:, :1], raw[:, :-1]], 1) if shift else raw


@pytest.mark.parametrize("block_length", [1, 4, 7, 32])
@pytest.mark.parametrize("case", CASES)
def test_logits_equal_transformers_with_the_mask_of_blocks(case, block_length):
    name, architecture, key, shift = CASES[case]
    theirs = twins.theirs(name)
    ours = twins.ours(theirs, architecture, **{key: block_length, "mask_token_id": 60})
    tokens = torch.randint(3, 60, (2, 23))
    want = shifted(theirs(tokens, attention_mask=twins.block_mask(23, block_length)).logits, shift)
    torch.testing.assert_close(logits(ours, tokens, [23, 23]), want)
    if block_length > 1:
        assert not torch.allclose(shifted(theirs(tokens).logits, shift), want)


@pytest.mark.parametrize("case", CASES)
def test_a_row_of_a_ragged_batch_equals_transformers_on_the_row_alone(case):
    name, architecture, key, shift = CASES[case]
    theirs = twins.theirs(name)
    ours = twins.ours(theirs, architecture, **{key: 4, "mask_token_id": 60})
    lengths, tokens = [7, 22, 1], torch.randint(3, 60, (3, 22))
    got = logits(ours, tokens, lengths)
    for row, n in enumerate(lengths):
        want = theirs(tokens[row : row + 1, :n], attention_mask=twins.block_mask(n, 4)).logits
        torch.testing.assert_close(got[row : row + 1, :n], shifted(want, shift))


def test_sdar_8b_has_the_published_tensors_and_size():
    with torch.device("meta"):
        model = Transformer(spec(SDAR_8B))
    tensors = FAMILIES["SDARForCausalLM"].checkpoint(model, model.spec)
    assert len(tensors) == 399 == 36 * 11 + 3
    assert sum(t.numel() for t in tensors.values()) == model.spec.n_parameters == 8_190_735_360
    assert tensors["model.layers.35.self_attn.k_proj.weight"].shape == (1024, 4096)
    assert tensors["model.layers.0.self_attn.q_norm.weight"].shape == (128,)
    found = model.spec
    assert (found.attention, found.block_length, found.logits_shift) == ("block", 4, 0)
    assert (found.mask_id, found.eos_ids, found.max_length) == (151669, (151643,), 32768)


def test_fast_dllm_v2_has_the_published_tensors_and_size():
    with torch.device("meta"):
        model = Transformer(spec(FAST_DLLM_V2_1B))
    tensors = FAMILIES["Fast_dLLM_QwenForCausalLM"].checkpoint(model, model.spec)
    assert len(tensors) == 28 * 12 + 2 and "lm_head.weight" not in tensors
    assert sum(t.numel() for t in tensors.values()) == model.spec.n_parameters == 1_543_714_304
    assert tensors["model.layers.0.self_attn.v_proj.bias"].shape == (256,)
    found = model.spec
    assert (found.attention, found.block_length, found.logits_shift, found.qkv_bias) == ("block", 32, 1, True)
    assert (found.mask_id, found.eos_ids) == (151665, (151645,))


@pytest.mark.parametrize(
    ("config", "keys", "mask_id", "eos_id", "block_length"),
    [
        (SDAR_8B, ["block_size", "mask_token_id", "eos_token_id"], 151669, 151643, 4),
        (FAST_DLLM_V2_1B, ["bd_size", "mask_token_id", "eos_token_id"], 151665, 151645, 32),
    ],
    ids=CASES,
)
@pytest.mark.parametrize("null", [False, True])
def test_keys_that_a_config_lacks_have_the_published_value(config, keys, mask_id, eos_id, block_length, null):
    short = {k: v for k, v in config.items() if k not in keys} | dict.fromkeys(keys if null else [])
    found = spec(short)
    assert (found.mask_id, found.eos_ids, found.block_length) == (mask_id, (eos_id,), block_length)


@pytest.mark.parametrize("case", CASES)
def test_the_configs_own_values_go_before_the_published_ones(case):
    _, architecture, key, _ = CASES[case]
    named = {"architectures": [architecture], key: 8, "mask_token_id": 5, "eos_token_id": [6, 7]}
    found = spec(twins.SIZES | named)
    assert (found.block_length, found.mask_id, found.eos_ids) == (8, 5, (6, 7))


def test_a_published_id_that_the_vocabulary_lacks_is_named():
    with pytest.raises(
        dllm.DllmError, match=r"the token id 151669, config.json's or else the family's, is beyond .* 61"
    ):
        spec(twins.SIZES | {"architectures": ["SDARForCausalLM"]})


@pytest.mark.parametrize("value", [0, -4, 2.0, True, "4"])
def test_a_block_length_that_cannot_be_is_named(value):
    with pytest.raises(dllm.DllmError, match=re.escape(f"block_size={value!r}; it must be a whole number of at least")):
        spec(SDAR_8B | {"block_size": value})


@pytest.mark.parametrize(
    ("config", "changes", "key"),
    [
        (SDAR_8B, {"attention_bias": True}, "attention_bias=True"),
        (SDAR_8B, {"use_sliding_window": True}, "use_sliding_window=True"),
        (FAST_DLLM_V2_1B, {"layer_types": ["sliding_attention"] * 28}, "layer_types='sliding_attention'"),
        (FAST_DLLM_V2_1B, {"rope_scaling": {"type": "yarn"}}, "type='yarn'"),
    ],
)
def test_another_network_is_refused_by_the_key(config, changes, key):
    with pytest.raises(dllm.DllmError, match=f"config.json has {key}"):
        spec(config | changes)


# From the files ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("case", CASES)
def test_a_checkpoint_in_shards_opens_as_transformers_network(case, tied, tmp_path):
    name, architecture, key, shift = CASES[case]
    theirs = twins.theirs(name, tie_word_embeddings=tied)
    twins.save(theirs, tmp_path, architecture, **{key: 4, "mask_token_id": 60})
    ours = dllm.load(tmp_path, device="cpu")
    tokens = torch.randint(3, 60, (2, 14))
    want = shifted(theirs(tokens, attention_mask=twins.block_mask(14, 4)).logits, shift)
    torch.testing.assert_close(logits(ours, tokens, [14, 14]), want)
    assert ours.spec.tied_head is tied and ours.spec.eos_ids == (1,)


@pytest.mark.parametrize("case", CASES)
def test_the_block_length_is_an_argument_too(case, tmp_path):
    name, architecture, key, shift = CASES[case]
    theirs = twins.theirs(name)
    twins.save(theirs, tmp_path, architecture, mask_token_id=60, **{key: None})
    ours = dllm.load(tmp_path, device="cpu", block_length=5)
    assert ours.spec.block_length == 5
    tokens = torch.randint(3, 60, (1, 14))
    want = shifted(theirs(tokens, attention_mask=twins.block_mask(14, 5)).logits, shift)
    torch.testing.assert_close(logits(ours, tokens, [14]), want)


@pytest.mark.parametrize("block_length", [0, -1, True, 2.5])
@pytest.mark.usefixtures("unchecked")
def test_a_block_length_below_one_is_refused(block_length, tmp_path):
    twins.save(twins.theirs("Qwen3"), tmp_path, "SDARForCausalLM", mask_token_id=60)
    with pytest.raises(dllm.DllmError, match=f"block_length={block_length} must be a whole number of columns"):
        dllm.load(tmp_path, device="cpu", block_length=block_length)


@pytest.mark.parametrize(
    ("architecture", "attention"), [("Qwen3ForCausalLM", "causal"), ("tiny-llada", "full"), ("tiny-dream", "full")]
)
def test_a_model_without_blocks_takes_no_block_length(architecture, attention, tmp_path):
    name = architecture
    if not name.startswith("tiny"):
        twins.save(twins.theirs("Qwen3"), tmp_path, architecture)
        name = tmp_path
    with pytest.raises(dllm.DllmError, match=f"block_length=8 is of block-causal models; .* this one is {attention}"):
        dllm.load(name, device="cpu", block_length=8)


@pytest.mark.parametrize(
    ("name", "architecture", "message"),
    [
        # Qwen2's biases in a checkpoint that calls itself SDAR, and the norms of Qwen3 in a Fast-dLLM v2.
        ("Qwen2", "SDARForCausalLM", "lack the tensor 'model.layers.0.self_attn.q_norm.weight' of shape [12]"),
        ("Qwen3", "Fast_dLLM_QwenForCausalLM", "lack the tensor 'model.layers.0.self_attn.q_proj.bias' of shape [48]"),
    ],
)
def test_one_familys_tensors_under_the_others_name_are_refused_by_the_tensor(name, architecture, message, tmp_path):
    twins.save(twins.theirs(name), tmp_path, architecture, mask_token_id=60)
    with pytest.raises(dllm.DllmError, match=re.escape(message)):
        dllm.load(tmp_path, device="cpu")


def test_a_shard_without_one_tensor_is_refused_by_its_name(tmp_path):
    twins.save(twins.theirs("Qwen3"), tmp_path, "SDARForCausalLM", mask_token_id=60)
    lost = "model.layers.1.self_attn.k_norm.weight"
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
    shard = tmp_path / index["weight_map"].pop(lost)
    save_file({name: value for name, value in load_file(shard).items() if name != lost}, shard)
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(dllm.DllmError, match=re.escape(f"lack the tensor '{lost}' of shape [12].")):
        dllm.load(tmp_path, device="cpu")


@pytest.mark.parametrize("case", CASES)
def test_answers_come_out_of_it(case, tmp_path):
    name, architecture, key, _ = CASES[case]
    twins.save(twins.theirs(name), tmp_path, architecture, **{key: 4, "mask_token_id": 60})
    model = dllm.load(tmp_path, device="cpu", dtype="float64")
    made = dllm.generate(model, [[5, 9, 11], [7]], cache="none", gen_length=8, block_length=4, eos_early_stop=False)
    assert all(len(answer) == 8 and 60 not in answer for answer in made.completions)
