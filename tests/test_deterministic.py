import pytest
import torch
import torch.nn.functional as F

import dllm
from dllm import DllmError, Settings, generate, load
from dllm.cache import DualCache
from dllm.deterministic import FixedOrder, shareable

PROMPTS = [[5, 6, 7], [9, 8, 7, 6, 5, 4, 3, 2, 11, 12, 13], [20, 21]]
"""Ragged, so that the shapes of a batch are not those of a row."""
ASK = {"gen_length": 12, "block_length": 8, "eos_early_stop": False, "seed": 0}


def told(model, prompts, request_ids, sampler, cache, **settings):
    """Tokens of every answer, and how sure the model was of each column in every step."""
    seen = {request: [] for request in request_ids}

    def watch(step):
        for row, request in enumerate(step.requests):
            valid = step.span.valid[row]
            seen[request_ids[request]].append(step.confidence[row][valid])

    made = generate(model, prompts, sampler, cache, request_ids=request_ids, observers=[watch], **ASK, **settings)
    return {name: (tokens, seen[name]) for name, tokens in zip(request_ids, made.completions, strict=True)}


@pytest.mark.parametrize(
    ("dtype", "sampler", "cache", "temperature"),
    [
        ("float32", "threshold", "dual", 0.7),
        ("float32", "topk_margin", "none", 0.0),
        ("bfloat16", "threshold", "dual", 0.0),
        ("bfloat16", "topk_margin", "none", 0.7),
    ],
)
def test_a_row_alone_is_bit_for_bit_the_row_in_a_ragged_batch(dtype, sampler, cache, temperature, device):
    model = load("tiny-llada", dtype=dtype, device=device)
    how = {"temperature": temperature, "deterministic": True}
    whole = told(model, PROMPTS, [1, 2, 3], sampler, cache, **how)
    for name, prompt in zip([1, 2, 3], PROMPTS, strict=True):
        tokens, seen = told(model, [prompt], [name], sampler, cache, **how)[name]
        assert tokens == whole[name][0] and len(seen) == len(whole[name][1])
        assert all(torch.equal(one, other) for one, other in zip(seen, whole[name][1], strict=True))


def test_exact_arithmetic_decides_the_same_with_it(model):
    plain = generate(model, PROMPTS, "threshold", "prefix", **ASK)
    fixed = generate(model, PROMPTS, "threshold", "prefix", deterministic=True, **ASK)
    assert torch.equal(plain.tokens, fixed.tokens) and torch.equal(plain.nfe, fixed.nfe)
    assert fixed.forwards >= plain.forwards  # of one row each on a CPU


def test_linear_maps_of_any_module_are_summed_in_one_order_and_only_within():
    x, layer = torch.randn(40, 64), torch.nn.Linear(64, 96)
    with FixedOrder(), torch.no_grad():
        inside = [layer(x[:n]) for n in (3, 40)]
        assert torch.equal(inside[0], inside[1][:3]) and torch.equal(F.linear(x, layer.weight, layer.bias), inside[1])
    torch.testing.assert_close(layer(x), inside[1])


def test_rows_share_forwards_only_where_all_sums_are_ours(monkeypatch):
    assert not shareable(load("tiny-llada", device="cpu"), DualCache())  # whose sums torch makes
    monkeypatch.setattr("dllm.deterministic.suits", lambda _: True)
    assert shareable(load("tiny-llada"), DualCache())
    assert not shareable(load("tiny-llada", weights="fp8"), DualCache())


@pytest.mark.usefixtures("unchecked")
def test_it_is_on_or_off():
    with pytest.raises(DllmError, match="deterministic='yes' must be True or False"):
        Settings(deterministic="yes")
    assert not dllm.Settings().deterministic
