"""dKV-Cache: what a step computes, by hand."""

import cases
import pytest
import torch

from dllm import DllmError, generate
from dllm.cache import DelayedCache, make
from dllm.canvas import Span

MASK = 39


def computed(state, canvas, scope, shift, reveal):
    """The columns of one step, after which `reveal` is decided."""
    span = state.needed(scope, scope)
    window = Span((span.columns - shift).clamp(min=0), span.valid) if shift else span
    plan = state.plan(window)
    state.view(plan, window, torch.tensor([0]), plan.sum(1).tolist(), canvas.lengths.tolist())
    canvas.tokens[0, reveal] = 7
    return plan[0].nonzero().flatten().tolist(), span.columns[0][span.valid[0]].tolist()


def test_a_token_is_computed_once_more_after_it_was_decided_and_then_kept(model):
    """A prompt of 2 and an answer of 6 in one block, refreshed at every third step."""
    canvas = cases.canvas(torch.tensor([[1, 2, *[MASK] * 6]]), [2], [8], MASK)
    state = DelayedCache(refresh=3).start(model.spec, canvas, torch.float64)
    scope = Span.between(torch.tensor([2]), torch.tensor([8]), 6)
    steps = [computed(state, canvas, scope, 0, column) for column in (4, 2, 7, 3, 5, 6)]
    assert [rows for rows, _ in steps] == [
        [0, 1, 2, 3, 4, 5, 6, 7],  # the first step of a block
        [0, 1, 2, 3, 4, 5, 6, 7],  # the second: 4 is computed with its token
        [2, 3, 5, 6, 7],  # 2 was decided in the step before; 4 is kept
        [0, 1, 2, 3, 4, 5, 6, 7],  # step 3: all
        [3, 5, 6],
        [5, 6],
    ]
    assert [span for _, span in steps[2:]] == [[2, 3, 5, 6, 7], [2, 3, 4, 5, 6, 7], [3, 5, 6], [5, 6]]


@pytest.mark.parametrize("shift", [0, 1])
@pytest.mark.parametrize("sampler", cases.SAMPLER_NAMES)
def test_it_never_computes_more_than_no_cache_and_all_if_refreshed_always(tiny, sampler, shift):
    ask = {"gen_length": 16, "block_length": 8, "seed": 0, "eos_early_stop": False}
    model = tiny(logits_shift=shift)
    plain, kept, always = (
        generate(model, cases.PROMPTS, sampler, c, **ask) for c in ("none", "dkv", "dkv:refresh=1")
    )
    assert always.completions == plain.completions and torch.equal(always.rows, plain.rows)
    width = torch.tensor([len(p) + 16 for p in cases.PROMPTS]) + (16 if "wino" in sampler else 0)
    assert (kept.rows <= kept.nfe * width).all()


def test_a_prompt_is_not_computed_again_in_a_block(model):
    prompt = [5] * 60
    made = generate(model, prompt, "static", "dkv:refresh=100", gen_length=16, block_length=16, eos_early_stop=False)
    assert made.rows[0] == 2 * 76 + sum(min(16, 16 - step + 1) for step in range(2, 16))


ONE_LAYER = {"n_layers": 1}
"""Keys and values then depend on their own column alone, so that no cache that hears of changes may change a token."""


@pytest.mark.parametrize("cache", ["prefix", "dual", "dkv:refresh=100", "dual:skip_decoded=true"])
@pytest.mark.parametrize("sampler", [*cases.SAMPLER_NAMES, "prophet:base=wino,answer_start=2,thresholds=6/5/4"])
@pytest.mark.parametrize("shift", [0, 1])
def test_caches_change_nothing_where_keys_depend_on_their_column_alone(tiny, sampler, cache, shift):
    model = tiny(logits_shift=shift, **ONE_LAYER)
    ask = {"gen_length": 24, "block_length": 12, "seed": 0, "eos_early_stop": False, "temperature": 0.3}
    plain, cached = (generate(model, cases.PROMPTS, sampler, c, **ask) for c in ("none", cache))
    assert cached.completions == plain.completions and torch.equal(cached.nfe, plain.nfe)


@pytest.mark.parametrize("cache", ["dual", "dkv"])
def test_a_new_block_is_noticed_whatever_the_sampler_looks_at(model, cache):
    ask = {"gen_length": 24, "block_length": 8, "eos_early_stop": False}
    made = generate(model, [3, 1], "prophet:answer_start=4,thresholds=inf/inf/inf", cache, **ask)
    assert made.refreshes[0] == (3 if cache == "dual" else 6)


@pytest.mark.parametrize("refresh", [0, -1])
def test_a_refresh_that_cannot_be_is_named(refresh):
    with pytest.raises(DllmError, match=f"refresh={refresh} is not a number of steps; give 1"):
        make("dkv-decode", refresh=refresh)


def test_a_dual_cache_may_skip_what_is_decided(model):
    ask = {"gen_length": 16, "block_length": 16, "eos_early_stop": False}
    usual, skipping = (
        generate(model, [5] * 20, "static", c, **ask).rows[0] for c in ("dual", "dual:skip_decoded=true")
    )
    assert usual == 36 + 15 * 16
    assert skipping == 36 + sum(min(16, 16 - step + 1) for step in range(1, 16))  # one more for the token just decided


def test_skipping_with_a_refresh_at_every_step_is_no_cache(tiny):
    for shift in (0, 1):
        plain, skipping = (
            generate(tiny(logits_shift=shift), cases.PROMPTS, "static", c, **cases.SHAPE)
            for c in ("none", "dual:refresh=1,skip_decoded=true")
        )
        assert plain.completions == skipping.completions and torch.equal(plain.rows, skipping.rows)
