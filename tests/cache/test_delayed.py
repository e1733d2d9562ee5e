"""dKV-Cache: what a step computes, by hand."""

import pytest
import torch

import cases
from dllm import DllmError, Trace, generate
from dllm.cache import DelayedCache, GreedyCache, PromptDelayedCache, make
from dllm.canvas import Span
from dllm.noise import Key
from dllm.samplers import make as make_sampler

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


@pytest.mark.parametrize(("sampler", "shift"), [(sampler, i % 2) for i, sampler in enumerate(cases.SAMPLER_NAMES)])
def test_it_never_computes_more_than_no_cache_and_all_if_refreshed_always(tiny, sampler, shift):
    ask = {"gen_length": 12, "block_length": 6, "seed": 0, "eos_early_stop": False}
    model = tiny(logits_shift=shift)
    plain, kept, always = (generate(model, cases.PROMPTS, sampler, c, **ask) for c in ("none", "dkv", "dkv:refresh=1"))
    assert always.completions == plain.completions and torch.equal(always.rows, plain.rows)
    width = torch.tensor([len(p) + 12 for p in cases.PROMPTS]) + (12 if "wino" in sampler else 0)
    assert (kept.rows <= kept.nfe * width).all()


def test_a_prompt_is_not_computed_again_in_a_block(model):
    prompt = [5] * 60
    made = generate(model, prompt, "static", "dkv:refresh=100", gen_length=16, block_length=16, eos_early_stop=False)
    assert made.rows[0] == 2 * 76 + sum(min(16, 16 - step + 1) for step in range(2, 16))


ONE_LAYER = {"n_layers": 1}
"""Keys and values then depend on their own column alone, so that no cache that hears of changes may change a token."""


KEEPING = [
    *("prefix", "dual", "dkv:refresh=100", "dual:skip_decoded=true", "dkv-greedy:refresh=100", "dkv-pd", "vicinity"),
    *("elastic:window_length=6", "d2:current_k=6"),
]
ASKING = [*cases.SAMPLER_NAMES, "prophet:base=wino,answer_start=2,thresholds=6/5/4"]


@pytest.mark.parametrize(
    ("sampler", "cache", "shift"), [(*pair, i % 2) for i, pair in enumerate(cases.pairs(KEEPING, ASKING, every=3))]
)
def test_caches_change_nothing_where_keys_depend_on_their_column_alone(tiny, sampler, cache, shift):
    model = tiny(logits_shift=shift, **ONE_LAYER)
    ask = {"gen_length": 12, "block_length": 6, "seed": 0, "eos_early_stop": False, "temperature": 0.3}
    plain, cached = (generate(model, cases.PROMPTS, sampler, c, **ask) for c in ("none", cache))
    assert cached.completions == plain.completions and torch.equal(cached.nfe, plain.nfe)


@pytest.mark.parametrize("cache", ["dual", "dkv"])
def test_a_new_block_is_noticed_whatever_the_sampler_looks_at(model, cache):
    ask = {"gen_length": 24, "block_length": 8, "eos_early_stop": False}
    made = generate(model, [3, 1], "prophet:answer_start=4,thresholds=inf/inf/inf", cache, **ask)
    assert made.refreshes[0] == (3 if cache == "dual" else 6)


@pytest.mark.parametrize("refresh", [0, -1])
@pytest.mark.parametrize("cache", ["dkv-decode", "dkv-greedy", "dkv-pd"])
def test_a_refresh_that_cannot_be_is_named(cache, refresh):
    with pytest.raises(DllmError, match=f"refresh={refresh} is not a number of steps; give 1"):
        make(cache, refresh=refresh)


def test_other_settings_that_cannot_be_are_named():
    with pytest.raises(DllmError, match="window=-1 is not a number of masks; give 0"):
        make("dkv-greedy:window=-1")
    with pytest.raises(DllmError, match="prompt_refresh=0 is not a number of steps"):
        make("dkv-pd:prompt_refresh=0")


def at(*columns):
    return Span(torch.tensor([columns]), torch.ones(1, len(columns), dtype=torch.bool))


def greedy(spec, window, reveal):
    """The columns of each step, of which the row reveals these."""
    canvas = cases.canvas(torch.tensor([[1, 2, *[MASK] * 8]]), [2], [10], MASK)
    state = GreedyCache(refresh=100, window=window).start(canvas=canvas, spec=spec, dtype=torch.float64)
    block, found = Span.between(torch.tensor([2]), torch.tensor([10]), 8), []
    for columns in reveal:
        scope = state.needed(at(*columns), block)
        plan = state.plan(scope)
        state.view(plan, scope, torch.tensor([0]), plan.sum(1).tolist(), [10])
        canvas.tokens[0, list(columns)] = 7
        found.append(plan[0].nonzero().flatten().tolist())
    return found


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


@pytest.mark.parametrize(
    ("window", "want"),
    [
        (0, [[5, 8], [2, 8], [2, 4, 6]]),
        (1, [[5, 7, 8], [2, 3, 8], [2, 3, 4, 6]]),
        (2, [[5, 7, 8, 9], [2, 3, 4, 8], [2, 3, 4, 6, 7]]),
        (9, [[2, 3, 4, 5, 6, 7, 8, 9], [2, 3, 4, 6, 7, 8, 9], [2, 3, 4, 6, 7, 9]]),
    ],
)
def test_greedy_computes_the_next_columns_masks_around_them_and_new_tokens(model, window, want):
    """Column 5 comes first, in a step that computes all; then 8, 2, and 4 with 6."""
    steps = greedy(model.spec, window, [(5,), (8,), (2,), (4, 6)])
    assert steps == [[*range(10)], *want]


def test_greedy_needs_a_sampler_that_tells_what_comes_next(model):
    with pytest.raises(
        DllmError, match=r"GreedyCache.*which Threshold.* decides afterwards.*one of the samplers random\."
    ):
        generate(model, [3], "threshold", "dkv-greedy", gen_length=4)
    with pytest.raises(NotImplementedError, match="Static decides by what the model predicts"):
        make_sampler("static").announce(
            torch.ones(1, 2).bool(), torch.ones(1, 2).long(), torch.ones(1).long(), Key(0, torch.zeros(1).long())
        )


@pytest.mark.parametrize("shift", [0, 1])
def test_what_is_announced_is_what_is_revealed(tiny, shift):
    """With greedy only announced columns are predicted, and the order is the same as without a cache."""
    ask = {"gen_length": 24, "block_length": 12, "seed": 3, "steps": 9, "eos_early_stop": False}
    orders = []
    for cache in ("none", "dkv-greedy:refresh=5"):
        generate(tiny(logits_shift=shift), cases.PROMPTS, "random", cache, **ask, observers=[trace := Trace()])
        orders.append([(c["request"], c["column"]) for c in trace.changes])
    assert sorted(orders[0]) == sorted(orders[1])
    for row in range(4):
        assert [c for r, c in orders[0] if r == row] == [c for r, c in orders[1] if r == row]


def test_the_prompt_is_computed_once_or_rarely(model):
    ask = {"gen_length": 16, "block_length": 16, "eos_early_stop": False}
    always, never, rarely = (
        generate(model, [5] * 60, "static", c, **ask)
        for c in ("dkv:refresh=4", "dkv-pd:refresh=4", PromptDelayedCache(refresh=4, prompt_refresh=6))
    )
    # Steps 0, 1, 4, 8 and 12 are refreshes; the prompt's 60 columns are computed in the first, or that and the 8th.
    assert always.rows[0] - never.rows[0] == 4 * 60 and always.rows[0] - rarely.rows[0] == 3 * 60
    assert never.refreshes[0] == 1 and rarely.refreshes[0] == 2
