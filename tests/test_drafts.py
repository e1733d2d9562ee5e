"""Drafts change the number of forwards, never a token: on tiny random models in float64, against the plain loop."""

import copy
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import cases
from dllm import DllmError, Trace, generate, stream
from dllm.cache import CACHES
from dllm.cache import make as make_cache
from dllm.drafts import follow
from dllm.forward import forward
from dllm.plan import Batch
from dllm.samplers import Needs, Static, Threshold, make

MODELS = {
    "full": {},
    "shifted": {"logits_shift": 1, "seed": 1},
    "block": {"attention": "block", "block_length": 4, "seed": 2},
    "shifted block": {"attention": "block", "block_length": 4, "logits_shift": 1, "seed": 3},
    "one K/V head": {"n_kv_heads": 1, "seed": 4, "sharpness": 1.0},
    "every row by itself": {"cacheable": False, "seed": 5},
}
SAMPLERS = [name for name in cases.SAMPLER_NAMES if not make(name).needs().memory and "freedave" not in name]
SAMPLERS += ["freedave", "sliding:base=threshold,window=3", "prophet:thresholds=4/3/2"]
CACHES_TRIED = [
    "none",
    "prefix",
    "prefix:refresh=3",
    "dual",
    "dual:refresh=2",
    "dual:refresh=5",
    "vicinity:look=2",
    "vicinity:look=3,refresh=4",
]

prompts = st.lists(st.lists(st.integers(0, 38), min_size=1, max_size=9), min_size=8, max_size=8)
asked = st.fixed_dictionaries(
    {
        "gen_length": st.integers(8, 10),
        "block_length": st.sampled_from([3, 4, 5, 10]),
        "temperature": st.sampled_from([0.0, 0.0, 0.7, 1.0]),
        "batch_size": st.sampled_from([5, 8, 8]),
        "steps": st.sampled_from([None, None, 5]),
        "cfg_scale": st.sampled_from([0.0, 0.0, 0.0, 0.6]),
        "eotp": st.sampled_from([None, None, None, 0.3]),
        "eos_early_stop": st.booleans(),
        "top_k": st.sampled_from([None, 5]),
        "seed": st.integers(0, 99),
    }
)


@pytest.mark.parametrize("sampler", SAMPLERS)
@settings(max_examples=16, deadline=None)
@given(st.sampled_from(list(MODELS)), st.sampled_from(CACHES_TRIED), st.sampled_from([2, 3, 4, 8]), prompts, asked)
def test_drafts_change_the_forwards_but_not_the_tokens(tiny, sampler, of, cache, n, prompts, asked):
    """Eight ragged rows in every example: 16 samplers x 16 examples are 2,048 rows."""
    model = tiny(**MODELS[of])
    cache = cache if model.spec.cacheable else "none"
    if model.spec.attention == "block":
        cache = "none" if cache == "none" else "exact"
        asked = asked | {"block_length": {3: 1, 4: 2}.get(asked["block_length"])}
    eager = cache in ("none", "exact") and asked["seed"] % 2 == 0
    plain = generate(model, prompts, sampler, cache, drafts=1, **asked)
    drafted = generate(model, prompts, sampler, cache, drafts=n, eager=eager, **asked)
    assert torch.equal(plain.tokens, drafted.tokens) and torch.equal(plain.answer_tokens, drafted.answer_tokens)
    assert (drafted.nfe <= plain.nfe).all() and (plain.steps == plain.nfe).all()
    # A row that has come to its end of text within a forward may take some steps more.
    assert (drafted.steps >= plain.steps).all() and (drafted.steps - drafted.nfe <= drafted.drafted).all()


@pytest.mark.parametrize("cache", ["none", "prefix", "dual"])
def test_drafts_spare_forwards_and_are_counted(model, cache):
    ask = {"gen_length": 24, "block_length": 8, "eos_early_stop": False}
    plain, drafted = (generate(model, cases.PROMPTS, "random", cache, drafts=d, seed=0, **ask) for d in (1, 4))
    assert plain.nfe.tolist() == drafted.steps.tolist() == [24] * 4 and (drafted.nfe < 20).all()
    assert plain.accepted == 0 and 0.2 < drafted.accepted <= 1
    assert drafted.accepted == int((24 - drafted.nfe).sum()) / int(drafted.drafted.sum())
    assert (drafted.rows > plain.rows * drafted.nfe / 24).all()  # the columns of all drafts are told


@pytest.mark.parametrize("cache", ["none", "exact"])
def test_eager_drafts_go_on_into_the_next_block(tiny, cache):
    model, ask = tiny(**cases.served(cache)), {"gen_length": 24, "block_length": 4, "eos_early_stop": False, "seed": 0}
    plain, patient, eager = (
        generate(model, cases.PROMPTS, "random", cache, **ask, **kind)
        for kind in ({}, {"drafts": 8}, {"drafts": 8, "eager": True})
    )
    assert torch.equal(plain.tokens, eager.tokens) and eager.steps.tolist() == plain.steps.tolist() == [24] * 4
    assert eager.nfe.sum() < patient.nfe.sum() < plain.nfe.sum()


@pytest.mark.parametrize("cache", ["prefix", "dual"])
def test_eager_drafts_need_a_cache_without_refreshes(model, cache):
    with pytest.raises(DllmError, match=r"eager=True drafts the next block, which .* begins with a refresh.*'none'"):
        generate(model, [3], "static", cache, drafts=4, eager=True, gen_length=4)
    with pytest.raises(DllmError, match=r"eager=True drafts the next block, but Static.* no drafts; give drafts=2"):
        generate(model, [3], "static", "none", eager=True, gen_length=4)


@pytest.mark.parametrize("n", [2, 4, 7])
@pytest.mark.parametrize("cache", ["none", "prefix", "dual"])
def test_where_all_drafts_come_true_a_forward_takes_n_steps(cache, n):
    """A model that predicts the same wherever masks are: its static order is known from the first forward on."""
    from dllm.models.tiny import tiny

    sure = copy.deepcopy(tiny(seed=7))
    for layer in sure.layers:
        layer.out.weight.zero_()  # nothing is seen of other columns
    made = generate(
        sure, cases.PROMPTS, "static", cache, drafts=n, gen_length=24, block_length=12, eos_early_stop=False
    )
    per_block = 1 + -(-11 // n)  # the first forward of a block has no drafts
    assert made.nfe.tolist() == [2 * per_block] * 4 and made.steps.tolist() == [24] * 4


@pytest.mark.parametrize("refresh", [1, 2, 3, 5])
def test_no_draft_runs_past_a_refresh(model, refresh):
    ask = {"gen_length": 24, "block_length": 24, "eos_early_stop": False, "seed": 0}
    plain, drafted = (
        generate(model, cases.PROMPTS, "random", f"dual:refresh={refresh}", drafts=d, **ask) for d in (1, 8)
    )
    assert torch.equal(plain.refreshes, drafted.refreshes) and torch.equal(plain.tokens, drafted.tokens)
    assert refresh > 1 or torch.equal(plain.nfe, drafted.nfe)


def test_every_step_is_told_to_observers_once(model):
    ask = {"gen_length": 24, "block_length": 8, "eos_early_stop": False, "seed": 0}
    traces = [Trace(), Trace()]
    for d, trace in zip((1, 4), traces, strict=True):
        generate(model, cases.PROMPTS, "threshold:threshold=0.6", "dual", drafts=d, observers=[trace], **ask)
    told = [{(c["request"], c["column"]): (c["token"], c["confidence"]) for c in t.changes} for t in traces]
    assert told[0] == told[1] and len(traces[0].changes) == len(traces[1].changes) == 4 * 24


def test_a_row_with_drafts_does_not_depend_on_its_batch(tiny):
    model, ask = tiny(logits_shift=1, seed=1), {**cases.SHAPE, "drafts": 4, "seed": 5, "temperature": 0.8}
    for cache in ("none", "prefix", "dual"):
        batch = generate(model, cases.PROMPTS, "threshold:threshold=0.6", cache, batch_size=3, **ask)
        for row, prompt in enumerate(cases.PROMPTS):
            alone = generate(model, prompt, "threshold:threshold=0.6", cache, **ask)
            assert batch.completions[row] == alone.completions[0]
            assert (batch.nfe[row], batch.rows[row]) == (alone.nfe[0], alone.rows[0])


@pytest.mark.parametrize("n", [2, 8])
@pytest.mark.parametrize("cache", ["dual", "exact"])
def test_drafts_of_one_forward_are_not_seen_by_each_other(tiny, monkeypatch, cache, n):
    """The logits of every draft are those of a forward of its own, on a store that holds the rest."""
    model, seen = tiny(logits_shift=1, **cases.served(cache)), []
    run = stream(model, cases.PROMPTS, "random", cache, drafts=n, seed=0, **cases.SHAPE)

    def spy(model, state, batch, *more):
        got, repaired = forward(model, state, batch, *more)
        after = state.keys, state.values, state.anchor, state.age
        plan = replace(batch.plan, columns=batch.plan.step_columns, counts=batch.plan.step_counts)
        for i, row in enumerate(batch.rows):
            for draft in range(1, plan.drafts[row]):
                # Draft 0 refreshes what is due; the next step then finds its keys and values.
                state.keys, state.values = ([k.clone() for k in part] for part in after[:2])
                state.anchor, state.age = after[2].clone(), after[3].clone()
                one = batch.drafts[i : i + 1, draft : draft + 1]
                alone = Batch(
                    plan, [row], batch.index[[i]], one, *(s[torch.tensor([i])] for s in (batch.scope, batch.span)), None
                )
                want, _ = forward(model, state, alone)
                torch.testing.assert_close(got[i, draft], want[0, 0])
                seen.append(draft)
        state.keys, state.values, state.anchor, state.age = after
        return got, repaired

    monkeypatch.setattr("dllm.engine.forward", spy)
    for _ in run:
        pass
    assert max(seen) == min(n, 3) - 1  # after the first forward a block of four has three masks left


def test_drafts_share_the_store_of_their_row(tiny):
    """What is stored, and the keys and values of one layer with those of 8 drafts, are at most a quarter more than
    without drafts: the store stands once, and a layer's is copied for the time of the layer."""
    model, peak = tiny(max_length=2048, n_layers=8, dtype=torch.float32), []
    for n in (1, 8):
        most = [0]
        run = stream(model, [[3] * 992], "random", "dual", drafts=n, gen_length=32, seed=0)
        seen = torch.nn.functional.scaled_dot_product_attention

        def spy(q, k, v, *more, most=most, seen=seen, **kind):
            most[0] = max(most[0], k.nbytes + v.nbytes)
            return seen(q, k, v, *more, **kind)

        torch.nn.functional.scaled_dot_product_attention = spy
        try:
            for _ in run:
                pass
        finally:
            torch.nn.functional.scaled_dot_product_attention = seen
        made = run.result()
        assert made.drafted.sum() > 0 or n == 1
        peak.append(made.kv_bytes + most[0])
    assert peak[0] < peak[1] <= 1.25 * peak[0]


@pytest.mark.parametrize(
    ("steps", "seed", "temperature"), [(6, 25, 0.0), (5, 54, 0.8)], ids=["greedy", "at a temperature"]
)
def test_an_end_of_text_changes_what_was_planned_of_the_next_block(tiny, steps, seed, temperature):
    ask = {"gen_length": 16, "block_length": 4, "eotp": 0.05, "steps": steps, "seed": seed, "temperature": temperature}
    plain, eager = (
        generate(tiny(seed=2, sharpness=2.0), cases.PROMPTS, "random", "none", **ask, **kind)
        for kind in ({}, {"drafts": 4, "eager": True})
    )
    assert torch.equal(plain.tokens, eager.tokens) and (eager.nfe <= plain.nfe).all()


@pytest.mark.parametrize("batch_size", [2, 4])
def test_rows_with_and_without_drafts_share_forwards_where_nothing_is_stored(model, batch_size):
    ask = {"gen_length": 24, "block_length": 8, "eos_early_stop": False, "batch_size": batch_size}
    plain, drafted = (
        generate(model, cases.PROMPTS, "threshold:threshold=0.7", "none", drafts=d, **ask) for d in (1, 8)
    )
    assert drafted.forwards <= plain.forwards


def test_more_drafts_than_masks_in_a_block_are_not_made(model):
    ask = {"gen_length": 24, "block_length": 4, "eos_early_stop": False}
    four, many = (generate(model, cases.PROMPTS, "random", "dual", drafts=d, seed=0, **ask) for d in (4, 300))
    assert torch.equal(four.nfe, many.nfe) and torch.equal(four.drafted, many.drafted)
    assert stream(model, [3], "random", "dual", drafts=300, **ask).drafts.tokens.shape[1] == 3


def at_most(drafts, after, at=0, count=None, subset=False):
    """Which draft comes true; 9 is a mask."""
    drafts, n = torch.tensor([drafts]), len(drafts)
    p = cases.example([0.5] * len(after), decided=[])
    p = p.seen_from(drafts[:, at])
    object.__setattr__(p, "mask_id", 9)
    return int(follow(drafts, torch.tensor([after]), torch.tensor([at]), torch.tensor([count or n]), p, subset))


def test_a_draft_comes_true_when_it_shows_what_was_chosen():
    chain = [[9, 9, 9], [1, 9, 9], [1, 2, 9]]
    assert at_most(chain, [1, 9, 9]) == 1 and at_most(chain, [1, 2, 9]) == 2  # two tokens at once
    assert at_most(chain, [1, 2, 9], at=1) == 2 and at_most(chain, [1, 2, 9], at=2) == -1
    assert at_most(chain, [1, 9, 3]) == -1 and at_most(chain, [1, 2, 3]) == -1
    assert at_most(chain, [1, 9, 9], count=1) == -1


def test_with_subset_the_last_draft_that_is_confirmed_comes_true():
    chain = [[9, 9, 9], [1, 9, 9], [1, 2, 9]]
    assert at_most(chain, [1, 9, 3], subset=True) == 1 and at_most(chain, [1, 2, 3], subset=True) == 2
    assert at_most(chain, [4, 2, 3], subset=True) == -1


def test_freedave_is_static_with_drafts(model):
    ask = {"gen_length": 24, "block_length": 8, "eos_early_stop": False}
    plain, free = (generate(model, cases.PROMPTS, name, "dual", **ask) for name in ("static", "freedave"))
    four, one = (
        generate(model, cases.PROMPTS, s, "dual", drafts=d, **ask) for s, d in (("static", 4), ("freedave", 1))
    )
    assert torch.equal(plain.tokens, free.tokens) and torch.equal(free.nfe, four.nfe) and (free.nfe < plain.nfe).any()
    assert torch.equal(one.nfe, plain.nfe)


def test_freedave_with_tau_reveals_by_threshold_and_never_takes_more_steps(tiny):
    model, ask = tiny(seed=6), {"gen_length": 24, "block_length": 8, "eos_early_stop": False}
    tau, plain = (generate(model, cases.PROMPTS, s, "dual", **ask) for s in ("freedave:tau=0.5", Threshold(0.5)))
    alone = generate(model, cases.PROMPTS, "freedave:tau=0.5", "dual", drafts=1, **ask)
    assert torch.equal(alone.tokens, plain.tokens) and torch.equal(alone.nfe, plain.nfe)
    assert tau.nfe.sum() < plain.nfe.sum() and 39 not in tau.tokens


def test_the_models_own_number_of_drafts_changes_nothing_else(model):
    for name in ("auto", 3):
        made = generate(model, cases.PROMPTS, "static", "dual", drafts=name, **cases.SHAPE)
        assert torch.equal(made.tokens, generate(model, cases.PROMPTS, "static", "dual", **cases.SHAPE).tokens)
        assert (made.nfe < 10).any()


@pytest.mark.parametrize("drafts", [0, -1, True, 2.5, "many"])
@pytest.mark.usefixtures("unchecked")
def test_a_number_of_drafts_that_cannot_be_is_refused(model, drafts):
    with pytest.raises(DllmError, match=r'drafts=.* whole number of at least 1 .*"auto"'):
        generate(model, [3], "static", drafts=drafts, gen_length=4)


@pytest.mark.parametrize("drafts", [2, "auto"])
@pytest.mark.parametrize("sampler", ["klass", "credit", "wino", "sliding:base=klass"])
def test_a_sampler_that_remembers_is_refused(model, sampler, drafts):
    with pytest.raises(DllmError, match=r"remembers its steps, so that none can be drafted; give drafts=1"):
        generate(model, [3], sampler, drafts=drafts, gen_length=4)
    generate(model, [3], sampler, drafts=1, gen_length=4)


@pytest.mark.parametrize("cache", [name for name in [*CACHES, "dual:skip_decoded=true"] if not make_cache(name).drafts])
def test_a_cache_that_cannot_branch_is_refused(tiny, cache):
    model = tiny(**cases.served(cases.OPTIONS.get(cache, cache)))
    with pytest.raises(DllmError, match=r"keeps what the last step stored.*give drafts=1 or another cache"):
        generate(model, [3], "random", cache, drafts=2, gen_length=4)


def test_a_sampler_that_needs_shadows_is_refused(model):
    class Shadowed(Static):
        def needs(self):
            return Needs(shadows=True)

    with pytest.raises(DllmError, match=r"needs shadow rows, which drafts do not have; give drafts=1"):
        generate(model, [3], Shadowed(), drafts=2, gen_length=4)


def test_a_sampler_that_keeps_something_unannounced_is_stopped(model):
    class Remembers(Static):
        def __call__(self, p):
            p.recall.set("step", p.recall.get("step", p.step, 0) + 1)
            return super().__call__(p)

    generate(model, [3], Remembers(), gen_length=4)
    with pytest.raises(DllmError, match=r"that keeps something must say needs\(\)\.memory"):
        generate(model, [3], Remembers(), drafts=2, gen_length=4)


def test_hooks_are_refused(model):
    with pytest.raises(DllmError, match="hooks see every step, of which drafts=2 takes several"):
        generate(model, [3], "static", "none", drafts=2, gen_length=4, tokens_hook=lambda _step, x, _logits: x)


@pytest.mark.usefixtures("unchecked")
def test_a_cache_without_a_rule_for_drafts_says_so():
    from dllm.cache import Cache

    with pytest.raises(NotImplementedError, match="Cache does not say which columns a draft computes"):
        Cache().step_columns(None, None)


def test_nan_in_a_draft_is_an_error_too(tiny):
    model = copy.deepcopy(tiny())
    model.head.weight[7, 3] = torch.nan
    with pytest.raises(DllmError, match=r"NaN logits for prompt 0"):
        generate(model, cases.PROMPTS, "static", "dual", drafts=4, **cases.SHAPE)
