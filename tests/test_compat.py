"""LLaDA's and Fast-dLLM's call, with their argument names."""

import pytest
import torch

import cases
from dllm import DllmError, compat, generate

SHAPE = {"gen_length": 10, "block_length": 4}
PAD = 37


def padded(prompts=cases.PROMPTS):
    width = max(map(len, prompts))
    rows = torch.tensor([[PAD] * (width - len(p)) + p for p in prompts])
    return rows, torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in prompts])


@pytest.mark.parametrize(
    ("theirs", "sampler", "cache", "ours"),
    [
        ({"steps": 5}, "static", "none", {"steps": 5}),
        ({"threshold": 0.6, "use_cache": True}, "threshold:threshold=0.6", "prefix", {}),
        ({"factor": 1.2, "use_cache": True, "dual_cache": True}, "factor:factor=1.2", "dual", {}),
        ({"steps": 10, "cfg_scale": 0.7, "temperature": 0.5}, "static", "none", {"cfg_scale": 0.7, "temperature": 0.5}),
        ({"steps": 10, "remasking": "random"}, "random", "none", {}),
        ({"steps": 10, "logits_eos_inf": True}, "static", "none", {"logits_eos_inf": True}),
        ({"steps": 10, "confidence_eos_eot_inf": True}, "static", "none", {"confidence_eos_eot_inf": True}),
        ({"steps": 10, "mask_id": 36}, "static", "none", {"mask_id": 36}),
    ],
    ids=str,
)
def test_a_left_padded_batch_is_every_row_alone(model, theirs, sampler, cache, ours):
    prompt, mask = padded()
    x = compat.generate(model, prompt, mask, **SHAPE, **theirs, seed=0)
    assert torch.equal(x[:, :7], prompt) and x.shape == (4, 17)
    for row, ids in enumerate(cases.PROMPTS):
        alone = generate(model, ids, sampler, cache, **cases.SHAPE, **ours, seed=0)
        compatible = compat.generate(model, torch.tensor([ids]), **SHAPE, **theirs, seed=0)
        assert x[row, 7:].tolist() == compatible[0, len(ids) :].tolist() == alone.completions[0]


def test_the_output_unpacks_as_the_sequences_and_one_number(model):
    prompt, mask = padded()
    out = compat.generate(model, prompt, mask, **SHAPE, steps=5, return_dict=True)
    x, nfe = out
    assert torch.equal(x, compat.generate(model, prompt, mask, **SHAPE, steps=5))
    assert nfe == out.nfe == out.stats.forwards == 5
    assert out.sequences is x and len(out.history) == 40 and out.tokens_per_forward == out.stats.tokens_per_forward


def test_no_row_stops_at_its_end_of_text(tiny):
    model = tiny(eos_ids=(31,))
    ask = {"gen_length": 16, "block_length": 8, "steps": 16}
    out = compat.generate(model, torch.tensor([[3, 1, 4]]), **ask, return_dict=True)
    ours = generate(model, [3, 1, 4], "static", "none", **ask, eos_early_stop=False)
    answer = out.sequences[0, 3:].tolist()
    assert out.nfe == 16 and answer == ours.completions[0]
    assert set(answer[answer.index(31) :]) != {31}


@pytest.mark.parametrize(
    ("prompt", "more", "message"),
    [
        ([3, 1], {}, r"prompt has the shape \[2\]; give token ids of shape \(batch, length\)"),
        ([[3, 1]], {"attention_mask": [[1]]}, "attention_mask must have the prompt's shape"),
        ([[3, 1]], {"attention_mask": [[1, 0]]}, "zeros only on the left"),
        ([[3, 1]], {"attention_mask": [[0, 0]]}, "the prompt is empty"),
        ([[3, 1]], {"threshold": 0.9, "factor": 1.0}, "threshold=0.9 and factor=1.0 are two rules; give one"),
        ([[3, 1]], {"threshold": 0.9, "remasking": "random"}, "remasking='random' is an order for the static schedule"),
        ([[3, 1]], {"remasking": "entropy"}, "unknown remasking 'entropy'"),
    ],
)
@pytest.mark.usefixtures("unchecked")
def test_arguments_that_cannot_be_are_named(model, prompt, more, message):
    if "attention_mask" in more:
        more = {"attention_mask": torch.tensor(more["attention_mask"])}
    with pytest.raises(DllmError, match=message):
        compat.generate(model, torch.tensor(prompt), gen_length=4, **more)


def test_a_batch_runs_as_one_however_large(model):
    output = compat.generate(model, torch.full((20, 3), 5), steps=8, gen_length=8, block_length=8, return_dict=True)
    assert output.nfe == 8


@pytest.mark.usefixtures("unchecked")
def test_fast_dllms_positional_order_is_told_apart(model):
    with pytest.raises(DllmError, match="the third argument is attention_mask, as in LLaDA; write steps=8"):
        compat.generate(model, torch.full((1, 3), 5), 8)
