"""The caches of block-causal models: exact is no cache, and what each computes."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import cases
from dllm import DllmError, Trace, generate
from dllm.cache import CACHES, ExactCache, SubblockCache, make

prompts = st.lists(st.lists(st.integers(0, 38), min_size=1, max_size=9), min_size=5, max_size=5)
asked = st.fixed_dictionaries(
    {
        "gen_length": st.integers(8, 11),
        "temperature": st.sampled_from([0.0, 0.0, 0.7, 1.0]),
        "batch_size": st.sampled_from([2, 3, 5]),
        "steps": st.sampled_from([None, None, 5]),
        "cfg_scale": st.sampled_from([0.0, 0.0, 0.6]),
        "eotp": st.sampled_from([None, None, 0.3]),
        "eos_early_stop": st.booleans(),
        "constraints": st.sampled_from([None, None, {1: [5, 6, 7, 8, 9], 7: 4}, {0: [1, 2]}]),
        "seed": st.integers(0, 99),
    }
)
models = st.fixed_dictionaries(
    {
        "block_length": st.sampled_from([1, 2, 3, 4, 6, 16]),
        "logits_shift": st.sampled_from([0, 1]),
        "seed": st.integers(0, 3),
        "eos_ids": st.sampled_from([(38,), (31, 5)]),
    }
)


@pytest.mark.parametrize("sampler", cases.SAMPLER_NAMES)
@settings(max_examples=20, deadline=None)
@given(models, st.integers(1, 3), prompts, asked)
def test_exact_is_no_cache(tiny, sampler, spec, part, prompts, asked):
    """Five ragged rows in every example; blocks of the model, or the smaller blocks that divide them."""
    model = tiny(attention="block", **spec)
    block_length = spec["block_length"] // part if spec["block_length"] % part == 0 else None
    plain, stored = (
        generate(model, prompts, sampler, cache, block_length=block_length, **asked) for cache in ("none", "exact")
    )
    assert torch.equal(plain.tokens, stored.tokens) and torch.equal(plain.nfe, stored.nfe)
    assert torch.equal(plain.answer_tokens, stored.answer_tokens) and (stored.rows <= plain.rows).all()
