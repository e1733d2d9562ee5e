"""End-of-text prediction: a row ends where its end is predicted well enough."""

import functools

import pytest
import torch

import cases
from dllm import DllmError, Trace, generate
from dllm.models.tiny import tiny as make_tiny
from dllm.spec import ModelSpec

ASK = {"gen_length": 24, "block_length": 8, "seed": 0}


@pytest.fixture(scope="module")
def ending(tiny):
    """The function that makes a model which is often sure of one token at many columns: its end of text."""

    @functools.cache
    def ending(make=tiny, **spec):
        usual = generate(make(**spec), cases.PROMPTS, "static", "none", **ASK, eos_early_stop=False).completions
        tokens = [t for answer in usual for t in answer[4:]]
        return make(**spec, eos_ids=(max(set(tokens), key=tokens.count), 38))

    return ending


class Backward(ModelSpec):
    """A column sees those before it alone, though the model says that its attention is full."""

    def reach(self, columns):
        return columns


def backward(**spec):
    model = make_tiny(**spec)
    model.spec = Backward(**vars(model.spec))
    return model


@pytest.mark.parametrize("shift", [0, 1])
@pytest.mark.parametrize("cache", ["none", "prefix:refresh=3", "dual:refresh=3"])
@pytest.mark.parametrize("sampler", ["static", "threshold:threshold=0.6", "dparallel:threshold=1.5", "random"])
def test_what_stands_before_the_end_is_unchanged_where_nobody_looks_behind_it(ending, sampler, cache, shift):
    model = ending(backward, logits_shift=shift)
    whole = generate(model, cases.PROMPTS, sampler, "none", **ASK)
    short = generate(model, cases.PROMPTS, sampler, cache, **ASK, eotp=0.3)
    ended = 0
    for long, cut in zip(whole.completions, short.completions, strict=True):
        end = next((i for i, t in enumerate(cut) if t in model.spec.eos_ids), 24)
        ended += end < 23
        assert cut[:end] == long[:end] and set(cut[end + 1 :]) <= {model.spec.eos_ids[0]}
    assert ended and short.rows.sum() < whole.rows.sum()


@pytest.mark.parametrize(("sampler", "cache"), cases.ALL_PAIRS)
def test_every_sampler_ends_rows_and_a_row_does_not_depend_on_its_batch(ending, sampler, cache):
    spec = {**cases.BLOCKS, "block_length": 8} if cases.served(cache) else {}
    model, ask = ending(**spec), {**ASK, "eotp": 0.3, "batch_size": 3}
    batch = generate(model, cases.PROMPTS, sampler, cache, **ask)
    for row in cases.some_rows(sampler, cache):
        alone = generate(model, cases.PROMPTS[row], sampler, cache, **ask)
        assert alone.completions[0] == batch.completions[row] and alone.rows[0] == batch.rows[row]
    whole = generate(model, cases.PROMPTS, sampler, cache, **{**ASK, "eos_early_stop": False})
    assert batch.rows.sum() < whole.rows.sum() and batch.nfe.sum() < whole.nfe.sum()


def test_columns_after_the_end_are_not_computed(ending):
    model, cut = ending(), 0
    for prompt in cases.PROMPTS:
        made = generate(model, prompt, "static", "none", **ASK, eotp=0.3, observers=[trace := Trace()])
        length, answer = len(prompt), made.completions[0]
        end = next((i for i, t in enumerate(answer) if t in model.spec.eos_ids), 24)
        if end < 20:
            first = next(change["step"] for change in trace.changes if change["column"] == length + end) + 1
            assert made.rows[0] <= first * (length + 24) + (int(made.nfe[0]) - first) * (length + end + 1)
            cut += 1
    assert cut


def test_an_unsure_end_does_not_cut(ending):
    model = ending()
    whole, sure = (generate(model, cases.PROMPTS, "static", "none", **ASK, eotp=e) for e in (None, 1.0))
    assert whole.completions == sure.completions and torch.equal(whole.rows, sure.rows)


def test_the_end_is_seen_in_blocks_to_come_where_they_are_computed(ending):
    """A refresh computes the whole row, and so tells of ends that are far off."""
    model = ending()
    for cache in ("none", "dual"):
        generate(model, cases.PROMPTS, "static", cache, **ASK, eotp=0.2, observers=[trace := Trace()])
        first = [c["column"] - len(cases.PROMPTS[c["request"]]) for c in trace.changes if c["step"] == 0]
        assert max(first) >= 8, "nothing beyond the first block was seen in the first step"


REFRESHING = cases.pairs(
    [*cases.CACHE_NAMES, "dual:refresh=2", "prefix:refresh=2"],
    ["threshold:threshold=0.6", "localleap:threshold=0.7", "credit:threshold=0.7", "random"],
)


@pytest.mark.parametrize(("sampler", "cache", "first"), [(*pair, i % 3) for i, pair in enumerate(REFRESHING)])
def test_rows_that_refresh_beside_rows_that_do_not_see_their_ends_alike(tiny, sampler, cache, first):
    """Blocks of more than half a row, so that both kinds run in one forward."""
    model, ask = tiny(eos_ids=(5, 38)), {"gen_length": 48, "block_length": 32, "seed": 0, "eotp": 0.3}
    prompts = [[k % 37, *range(k % 5)] for k in range(9)]
    batch = generate(model, prompts, sampler, cache, **ask, batch_size=3)
    for row in range(first, len(prompts), 3):
        alone = generate(model, prompts[row], sampler, cache, **ask)
        assert alone.completions[0] == batch.completions[row]
        assert (alone.nfe[0], alone.rows[0]) == (batch.nfe[row], batch.rows[row])


def test_what_cannot_end_is_refused(tiny):
    with pytest.raises(DllmError, match=r"eotp=0\.5: the model has no end of text to predict"):
        generate(tiny(eos_ids=()), [3], gen_length=4, eotp=0.5)
    with pytest.raises(DllmError, match="eotp needs a sure end of text"):
        generate(tiny(), [3], gen_length=4, eotp=0.5, confidence_eos_eot_inf=True)
