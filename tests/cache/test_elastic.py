"""Elastic-Cache: which layers it computes anew, by hand and against no cache."""

from dataclasses import dataclass

import pytest
import torch

import cases
from dllm import DllmError, generate
from dllm.cache import ElasticCache, full_view, make
from dllm.cache.watching import mass, probabilities, similarity, weighted
from dllm.canvas import Span
from dllm.models.transformer import rotation

ASK = {"gen_length": 24, "block_length": 12, "seed": 0, "eos_early_stop": False, "temperature": 0.3}
SHORT = {**ASK, "gen_length": 12, "block_length": 6}
MASK = 39


@dataclass(frozen=True)
class Forced(ElasticCache):
    """Computes all columns from this layer on, whatever the test says."""

    layer: int = 0

    def refresh_from(self, similarity):
        return torch.full_like(similarity[:, 0], self.layer, dtype=torch.long)


SAMPLERS = [sampler for sampler in cases.SAMPLER_NAMES if cases.legal(sampler, "elastic")]


@pytest.mark.parametrize(("sampler", "shift"), [(sampler, i % 2) for i, sampler in enumerate(SAMPLERS)])
def test_a_refresh_from_the_first_layer_on_is_no_cache(tiny, sampler, shift):
    model = tiny(logits_shift=shift)
    plain, forced = (generate(model, cases.PROMPTS, sampler, c, **SHORT) for c in ("none", Forced(window_length=6)))
    assert forced.completions == plain.completions and torch.equal(forced.rows, plain.rows)
    assert torch.equal(forced.refreshes, forced.nfe)


def test_guidance_is_tested_and_refreshed_as_well(tiny):
    ask = {**SHORT, "cfg_scale": 0.7}
    plain, forced = (generate(tiny(), cases.PROMPTS, "static", c, **ask) for c in ("none", Forced(window_length=6)))
    assert forced.completions == plain.completions and torch.equal(forced.rows, plain.rows)


@pytest.mark.parametrize("sampler", ["static", "sliding:base=threshold,window=5"])
def test_gamma_0_computes_everything_once(model, sampler):
    made = generate(model, cases.PROMPTS, sampler, "elastic:gamma=0,window_length=5", **ASK)
    assert made.refreshes.tolist() == [1] * 4
    few = 5 + 5 + 2  # the window, as many new tokens at most, a tracked column of each layer
    assert (made.rows <= torch.tensor([len(p) + 24 for p in cases.PROMPTS]) + (made.nfe - 1) * few).all()


@pytest.mark.parametrize("shift", [0, 1])
@pytest.mark.parametrize("gamma", [0.7, 0.85])
def test_each_row_decides_for_itself_from_which_layer_on_it_is_refreshed(tiny, gamma, shift):
    model, cache = tiny(n_layers=4, logits_shift=shift), ElasticCache(gamma=gamma, window_length=5)
    batch = generate(model, cases.PROMPTS, "static", cache, **ASK)
    assert len(set(batch.refreshes.tolist())) > 1 and 1 < batch.refreshes.max() < 24
    for row, prompt in enumerate(cases.PROMPTS):
        alone = generate(model, prompt, "static", cache, **ASK)
        assert alone.completions[0] == batch.completions[row]
        assert (alone.rows[0], alone.refreshes[0]) == (batch.rows[row], batch.refreshes[row])


def started(model, cache):
    """A row of 2 given columns and 6 masks after its first forward, of which column 4 was decided, and the window."""
    canvas = cases.canvas(torch.tensor([[1, 2, *[MASK] * 6]]), [2], [8], MASK)
    state = cache.start(model.spec, canvas, torch.float64)
    step(model, canvas, state)
    canvas.tokens[0, 4] = 7
    return canvas, state


def step(model, canvas, state):
    """A forward with its repairs: the columns that it planned, and the logits of the window."""
    block = Span.between(torch.tensor([2]), torch.tensor([8]), 6)
    window = state.needed(block, block)
    plan = state.plan(window)
    view = state.view(plan, window, torch.tensor([0]), plan.sum(1).tolist(), [8])
    logits = model(canvas.tokens, view, window)
    for _, again, _ in view.repairs():
        logits = model(canvas.tokens, again, window)
    return plan[0].nonzero().flatten().tolist(), window, logits


def test_a_step_computes_the_window_new_tokens_and_what_is_tracked(tiny):
    canvas, state = started(tiny(), ElasticCache(window_length=2, gamma=0.0))
    tracked = {*state.track.flatten().tolist()}
    assert tracked <= {0, 1}, "what is masked is not tracked"
    assert step(tiny(), canvas, state)[0] == sorted({2, 3, 4} | tracked)
    tracked = state.tracked[0].nonzero().flatten().tolist()
    assert step(tiny(), canvas, state)[0] == sorted({2, 3, *tracked})


def test_layers_from_the_refreshed_on_are_computed_from_their_stored_inputs_and_others_keep_theirs(tiny):
    """Three layers; attention drifts at the second, so that the third is computed for all columns."""
    model = tiny(n_layers=3)
    canvas, state = started(model, Forced(window_length=2, layer=2))
    before, inputs = [k.clone() for k in state.keys], state.inputs[1].clone()
    computed, window, logits = step(model, canvas, state)
    others = [column for column in range(8) if column not in computed]
    assert others
    for layer in (0, 1):
        assert torch.equal(state.keys[layer][0, others], before[layer][0, others])
    assert torch.equal(state.inputs[1][0, others], inputs[0, others])
    assert not torch.equal(state.inputs[1][0, computed], inputs[0, computed])
    view, by = full_view(model.spec, [8]), rotation(model.spec, torch.arange(8)[None], torch.float64)
    want = model.head(model.norm(model.layers[2](2, state.inputs[1], view, by)))
    torch.testing.assert_close(logits, want[:, window.columns[0]])


def test_layers_that_are_computed_anew_count_by_their_share(tiny):
    made = generate(tiny(n_layers=3), [5] * 20, "static", Forced(window_length=1, track_num=1, layer=2), **ASK)
    few = generate(tiny(n_layers=3), [5] * 20, "static", Forced(window_length=1, track_num=1, layer=3), **ASK)
    assert few.refreshes[0] == 1 and made.refreshes[0] == made.nfe[0] == 24
    assert few.rows[0] < made.rows[0] <= few.rows[0] + 23 * 44 / 3


def test_the_test_is_a_cosine_over_heads():
    old = torch.tensor([[[[0.9, 0.1]], [[0.5, 0.5]]]])  # two heads, one row, two columns
    new = torch.tensor([[[[0.5, 0.5]], [[0.5, 0.5]]]])
    one = torch.tensor([[True]])
    first, second = (0.9 * 0.5 + 0.5 * 0.5) / (1.06**0.5 * 0.5**0.5), (0.1 * 0.5 + 0.25) / (0.26**0.5 * 0.5**0.5)
    torch.testing.assert_close(similarity(old, new, one, None), torch.tensor([(first + second) / 2]))
    seen = torch.tensor([[[[True, False]]]])
    torch.testing.assert_close(similarity(old, new, one, seen), torch.tensor([first]))
    assert similarity(old, new, ~one, None) == 1 and similarity(0 * old, 0 * new, one, None) == 1


def test_probabilities_are_those_of_attention():
    q, k, v = torch.randn(2, 3, 4, 8), torch.randn(2, 5, 2, 8), torch.randn(2, 5, 2, 8)
    visible = torch.rand(2, 1, 3, 5) > 0.3
    p = probabilities(q, k, visible | ~visible.any(-1, keepdim=True))
    from dllm.cache.base import attention

    torch.testing.assert_close(weighted(p, v), attention(q, k, v, visible | ~visible.any(-1, keepdim=True)))
    torch.testing.assert_close(mass(p, torch.ones(2, 3).bool()).sum(1), torch.full((2,), 12.0))


def test_layers_are_refreshed_from_behind_the_first_that_drifted():
    table = torch.tensor([[0.95, 0.8, 0.7], [0.95, 0.95, 0.95], [0.1, 0.95, 0.95], [0.95, 0.95, 0.5]])
    assert ElasticCache(gamma=0.9).refresh_from(table).tolist() == [2, 3, 1, 3]
    assert ElasticCache(gamma=0.0).refresh_from(0 * table).tolist() == [3] * 4


def test_without_block_caching_all_masks_are_computed(model):
    near, far = (
        generate(model, [5] * 20, "static", f"elastic:gamma=0,window_length=2,block_caching={b}", **ASK).rows[0]
        for b in (True, False)
    )
    assert near < far


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("gamma=1.5", "gamma=1.5 is not a cosine of probabilities; give 0"),
        ("gamma=-0.1", "gamma=-0.1 is not a cosine"),
        ("gamma=nan", "gamma=nan is not a cosine"),
        ("window_length=0", "window_length=0 is not a number of columns; give 1 or more"),
        ("track_num=0", "track_num=0 is not a number of columns; give 1 or more"),
    ],
)
def test_settings_that_cannot_be_are_named(options, message):
    with pytest.raises(DllmError, match=message):
        make(f"elastic:{options}")


def test_shadow_rows_would_take_part_in_the_attention_it_looks_at(model):
    with pytest.raises(DllmError, match=r"ElasticCache.*looks at attention, in which the shadow rows of Wino"):
        generate(model, [3], "wino", "elastic", gen_length=4)


def test_more_tracked_columns_than_there_are_decided_ones_are_those_that_there_are(tiny):
    _, state = started(tiny(), ElasticCache(window_length=2, gamma=0.0, track_num=50))
    assert {*state.track.flatten().tolist()} == {0, 1}
    model, cache = tiny(), ElasticCache(gamma=0.5, window_length=3, track_num=3)
    batch = generate(model, cases.PROMPTS, "static", cache, **ASK)
    assert [generate(model, p, "static", cache, **ASK).completions[0] for p in cases.PROMPTS] == batch.completions
