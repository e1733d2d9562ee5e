"""An autoregressive checkpoint in blocks is the same network under another mask, with an adapter's weights if given."""

import json
import re

import pytest
import torch
from safetensors.torch import save_file

import checkpoints
import dllm
import twins
from dllm.cache import full_view
from dllm.canvas import Span


def logits(model, tokens):
    lengths = torch.full((len(tokens),), tokens.shape[1])
    span = Span.between(torch.zeros_like(lengths), lengths, tokens.shape[1])
    return model(tokens, full_view(model.spec, lengths.tolist()), span)


def shifted(raw, shift):
    return torch.cat([raw[:, :1], raw[:, :-1]], 1) if shift else raw


def adapt(folder, **arguments):
    return dllm.adapt(folder, **{"device": "cpu", "block_length": 4, "mask_id": 60} | arguments)


@pytest.fixture
def folder(tmp_path):
    """A causal checkpoint without a tokenizer."""
    twins.save(twins.theirs("Qwen2"), tmp_path, "Qwen2ForCausalLM")
    return tmp_path


@pytest.mark.parametrize("shift", [0, 1])
@pytest.mark.parametrize("block_length", [1, 4, 40])
@pytest.mark.parametrize("name", ["Llama", "Qwen2", "Qwen3"])
def test_logits_equal_transformers_with_a_mask_of_blocks(tmp_path, name, block_length, shift):
    theirs = twins.theirs(name)
    twins.save(theirs, tmp_path, name + "ForCausalLM")
    ours = adapt(tmp_path, block_length=block_length, logits_shift=shift)
    tokens = torch.randint(3, 60, (2, 21))
    want = theirs(tokens, attention_mask=twins.block_mask(21, block_length)).logits
    torch.testing.assert_close(logits(ours, tokens), shifted(want, shift))
    found = ours.spec
    assert (found.attention, found.block_length, found.mask_id, found.logits_shift) == (
        "block",
        block_length,
        60,
        shift,
    )


def test_blocks_of_one_predict_what_the_causal_model_predicts(folder):
    tokens = torch.randint(3, 60, (2, 17))
    causal = logits(dllm.load(folder, device="cpu"), tokens)
    torch.testing.assert_close(logits(adapt(folder, block_length=1), tokens), shifted(causal, 1))


def test_blocks_of_one_decode_what_the_causal_model_decodes(folder):
    prompts = [[5, 9, 11], [7], [3, 3, 8, 20]]
    causal = dllm.generate_causal(dllm.load(folder, device="cpu", dtype="float64"), prompts, gen_length=9)
    model = adapt(folder, block_length=1, dtype="float64")
    filled = dllm.generate(model, prompts, "static", cache="none", gen_length=9, block_length=1)
    for want, got in zip(causal.completions, filled.completions, strict=True):
        assert got[: len(want)] == want


def test_an_adapter_is_merged(folder, tmp_path_factory):
    theirs, adapter = twins.theirs("Qwen2"), tmp_path_factory.mktemp("adapter")
    tensors = {}
    for name, weight in theirs.state_dict().items():
        if re.search("[qkvo]_proj.weight", name):
            a, b = 0.2 * torch.randn(2, weight.shape[1]), 0.2 * torch.randn(len(weight), 2)
            stem = f"base_model.model.{name.removesuffix('weight')}lora_"
            tensors |= {stem + "A.weight": a, stem + "B.weight": b}
            weight += 3 / 2 * b @ a
    save_file(tensors, adapter / "adapter_model.safetensors")
    named = {"peft_type": "LORA", "r": 2, "lora_alpha": 3, "target_modules": ["q_proj", "k_proj", "v_proj", "o_proj"]}
    (adapter / "adapter_config.json").write_text(json.dumps(named))
    tokens = torch.randint(3, 60, (2, 13))
    want = shifted(theirs(tokens, attention_mask=twins.block_mask(13, 4)).logits, 1)
    torch.testing.assert_close(logits(adapt(folder, adapter=adapter), tokens), want)
    torch.testing.assert_close(logits(adapt(folder, adapter=str(adapter)), tokens), want)
    assert not torch.allclose(logits(adapt(folder), tokens), want)


def test_answers_come_out_of_it(folder):
    model = adapt(folder, dtype="float64")
    made = dllm.generate(model, [[5, 9, 11], [7]], cache="none", gen_length=8, block_length=4, eos_early_stop=False)
    assert all(len(answer) == 8 and 60 not in answer for answer in made.completions)


def test_the_mask_is_the_tokenizers_where_none_is_given(tmp_path):
    checkpoints.save(tmp_path)
    tokenizer = dllm.load(tmp_path, device="cpu").tokenizer
    theirs = twins.theirs("Qwen3", vocab_size=len(tokenizer), eos_token_id=1)
    (tmp_path / "model.safetensors").unlink()
    twins.save(theirs, tmp_path, "Qwen3ForCausalLM")
    assert adapt(tmp_path, mask_id=None).spec.mask_id == tokenizer.mask_token_id == 0
    assert adapt(tmp_path, mask_id=7).spec.mask_id == 7


def test_without_a_tokenizer_the_mask_must_be_given(folder):
    with pytest.raises(dllm.DllmError, match="comes without a mask token; give mask_id="):
        adapt(folder, mask_id=None)


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"mask_id": 61}, "mask_id=61 is no token; give a number from 0 to 60"),
        ({"mask_id": -1}, "mask_id=-1 is no token"),
        ({"mask_id": True}, "mask_id=True is no token"),
        ({"mask_id": "60"}, "mask_id='60' is no token"),
        ({"mask_id": 1}, "mask_id=1 ends a text"),
        ({"block_length": 0}, "block_length=0 must be a whole number of columns, at least 1"),
        ({"block_length": 2.5}, "block_length=2.5 must be a whole number"),
        ({"logits_shift": 2}, "logits_shift=2 must be 0 or 1"),
        ({"adapter": "/no/such/folder"}, "/no/such/folder has no adapter_config.json"),
    ],
)
def test_a_value_that_cannot_be_is_named(folder, arguments, message):
    with pytest.raises(dllm.DllmError, match=message):
        adapt(folder, **arguments)


@pytest.mark.parametrize(("name", "attention"), [("tiny-llada", "full"), ("tiny-dream", "full"), ("sdar", "block")])
def test_a_diffusion_model_is_refused(tmp_path, name, attention):
    if name == "sdar":
        twins.save(twins.theirs("Qwen3"), tmp_path, "SDARForCausalLM", mask_token_id=60)
        name = tmp_path
    with pytest.raises(dllm.DllmError, match=f"is a diffusion model already, of {attention} attention"):
        adapt(name)
