"""The caches of block-causal models: exact is no cache, and what each of them computes."""

from dataclasses import dataclass

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import cases
from dllm import DllmError, generate, stream
from dllm.cache import Cache, CacheState, ExactCache, make
from dllm.canvas import Span
from dllm.samplers import Sampler

M = 39
prompts = st.lists(st.lists(st.integers(0, 38), min_size=1, max_size=9), min_size=5, max_size=5)
models = st.fixed_dictionaries(
    {
        "block_length": st.sampled_from([1, 2, 3, 4, 6, 16]),
        "logits_shift": st.sampled_from([0, 1]),
        "seed": st.integers(0, 3),
        "eos_ids": st.sampled_from([(38,), (31, 5)]),
    }
)
asked = st.fixed_dictionaries(
    {
        "gen_length": st.integers(8, 11),
        "temperature": st.sampled_from([0.0, 0.7]),
        "batch_size": st.sampled_from([2, 3, 5]),
        "steps": st.sampled_from([None, None, 5]),
        "cfg_scale": st.sampled_from([0.0, 0.0, 0.6]),
        "eotp": st.sampled_from([None, 0.3]),
        "eos_early_stop": st.booleans(),
        "constraints": st.sampled_from([None, {1: [5, 6, 7, 8, 9]}, {0: [1, 2], 4: 3}]),
        "seed": st.integers(0, 99),
    }
)


def same(one, other):
    """Whether two generations have the same tokens, and took the same forwards."""
    return torch.equal(one.tokens, other.tokens) and torch.equal(one.nfe, other.nfe)


@pytest.mark.parametrize("sampler", cases.SAMPLER_NAMES)
@settings(max_examples=6, deadline=None)
@given(models, st.integers(1, 3), prompts, asked)
def test_exact_is_no_cache(tiny, sampler, spec, part, prompts, asked):
    """Five ragged rows in every example, in blocks of the model or in smaller ones that divide them."""
    model, whole = tiny(attention="block", **spec), spec["block_length"]
    ask = {**asked, "block_length": whole // part if whole % part == 0 else None}
    plain, stored = (generate(model, prompts, sampler, cache, **ask) for cache in ("none", "exact"))
    assert same(plain, stored) and torch.equal(plain.answer_tokens, stored.answer_tokens)
    assert (stored.rows <= plain.rows).all()


@settings(max_examples=12, deadline=None)
@given(st.sampled_from(cases.SAMPLER_NAMES), models, prompts, asked)
def test_a_block_in_one_part_is_the_exact_cache(tiny, sampler, spec, prompts, asked):
    model = tiny(attention="block", **spec)
    plain, parts = (generate(model, prompts, sampler, cache, **asked) for cache in ("none", "subblock:small_block=16"))
    assert same(plain, parts)


@dataclass(frozen=True)
class Leftmost(Sampler):
    """Reveal the first masked column."""

    def __call__(self, p):
        return p.reveal(p.masked & (p.masked.cumsum(1) == 1))


def computed(model, prompt, sampler, cache, gen_length):
    """The columns that each forward computes."""
    run = stream(model, prompt, sampler, cache, gen_length=gen_length, eos_early_stop=False)
    return [run.last.columns[0].nonzero().flatten().tolist() for _ in run]


def upto(first, last):
    return [*range(first, last + 1)]


@pytest.mark.parametrize(
    ("cache", "drafts", "want"), [("exact", 1, [8, 12, 13]), ("exact", 2, [8, 12, 13]), ("none", 1, [13] * 3)]
)
def test_what_stands_behind_the_present_block_is_not_read(tiny, cache, drafts, want):
    """A prompt of 6 and an answer of 7, in blocks of 4 columns that are decided at once."""
    model, views = tiny(**cases.BLOCKS), []
    watched = model.register_forward_pre_hook(lambda _, given: views.append(given[1]))
    generate(model, [5] * 6, "threshold:threshold=0", cache, gen_length=7, eos_early_stop=False, drafts=drafts)
    watched.remove()
    assert [getattr(view, "base", view).visible.shape[-1] for view in views] == want


@pytest.mark.parametrize("shift", [0, 1])
def test_a_finished_block_is_computed_once_more_with_the_next_one(tiny, shift):
    """A prompt of 6 and an answer of 7: blocks of the columns 4 to 7, 8 to 11, and 12."""
    model = tiny(logits_shift=shift, **cases.BLOCKS)
    at_once = computed(model, [5] * 6, "threshold:threshold=0", "exact", 7)
    assert at_once == [upto(0, 7), upto(4, 11), upto(8, 12)]
    one_by_one = computed(model, [5] * 6, "static", "exact", 7)
    assert one_by_one == [upto(0, 7), upto(4, 7), upto(4, 11), *[upto(8 - shift, 11)] * 3, upto(8, 12)]


@pytest.mark.parametrize("shift", [0, 1])
@pytest.mark.parametrize(
    ("prompt", "gen_length", "want"),
    [
        # The part of 4 and 5 begins with a mask, then it is known; so does that of 6 and 7.
        (4, 4, [upto(0, 7), [4, 5], upto(4, 7), [6, 7]]),
        # Its first column belongs to the prompt, but nothing of the block is stored yet.
        (5, 7, [upto(0, 7), upto(4, 7), [6, 7], upto(4, 11), [8, 9], upto(8, 11), [10, 11]]),
        (3, 2, [upto(0, 3), upto(0, 4)]),
    ],
)
def test_a_part_is_computed_alone_once_its_first_column_is_known(tiny, shift, prompt, gen_length, want):
    model = tiny(logits_shift=shift, **cases.BLOCKS)
    assert computed(model, [5] * prompt, Leftmost(), "subblock:small_block=2", gen_length) == want


def by_hand(model, prompt, gen_length, part):
    """Sub-block decoding of one row, one token a step, over a store: which columns to compute is written out."""
    block, length, seen = model.spec.block_length, len(prompt) + gen_length, -1
    tokens = torch.tensor([[*prompt, *[M] * gen_length]])
    canvas = cases.canvas(tokens, [len(prompt)], [length], M)
    state, column = CacheState(Cache(), model.spec, canvas, model.dtype), torch.arange(length)[None]
    while (tokens == M).any():
        first = int((tokens == M).long().argmax())
        begin = first // block * block
        start = begin + (first - begin) // part * part
        stop = min(start + part, begin + block)
        if seen != begin:
            plan = (column >= max(seen, 0)) & (column < begin + block)
        elif tokens[0, start] == M:
            plan = (column >= begin - model.spec.logits_shift) & (column < begin + block)
        else:
            plan = (column >= start) & (column < stop)
        seen = begin
        masked = (tokens == M) & (column >= start) & (column < stop)
        span = Span.where(masked, int(masked.sum()))
        logits = model(tokens, state.view(plan, span, torch.tensor([0]), [int(plan.sum())], [length]), span)
        sure, proposed = logits.softmax(-1)[..., :M].max(-1)  # the mask, the last id, is never proposed
        best = int(sure.argmax())
        tokens[0, span.columns[0, best]] = proposed[0, best]
    return tokens[0, len(prompt) :].tolist()


TEXTS = [[(7 * i + j) % 38 for j in range(1 + i)] for i in range(8)]


@pytest.mark.parametrize(("part", "shift"), [(2, 0), (3, 1), (4, 1)])
def test_the_other_parts_of_a_block_keep_what_they_were_computed_with(tiny, part, shift):
    model, ask = (
        tiny(attention="block", block_length=8, logits_shift=shift),
        {"gen_length": 21, "eos_early_stop": False},
    )
    made = generate(model, TEXTS, "static", f"subblock:small_block={part}", **ask)
    exact = generate(model, TEXTS, Parts(part), "exact", **ask)
    assert made.completions == [by_hand(model, prompt, 21, part) for prompt in TEXTS]
    assert made.completions != exact.completions and made.rows.sum() < exact.rows.sum()
    assert made.nfe.tolist() == exact.nfe.tolist() == [21] * 8


@pytest.mark.parametrize("shift", [0, 1])
def test_in_a_model_of_one_layer_the_other_parts_never_change(tiny, shift):
    model = tiny(n_layers=1, attention="block", block_length=8, logits_shift=shift)
    ask = {"gen_length": 21, "eos_early_stop": False}
    made = generate(model, TEXTS, "static", "subblock:small_block=3", **ask)
    assert same(made, generate(model, TEXTS, Parts(3), "exact", **ask))


@dataclass(frozen=True)
class Parts(Sampler):
    """One token a step in parts of a block of eight columns, all of which is computed."""

    part: int

    def __call__(self, p):
        number = p.span.columns % 8 // self.part
        first = number.masked_fill(~p.masked, 99).amin(1, keepdim=True)
        return p.reveal(p.top(1, p.confidence.masked_fill(number != first, -1.0)))


def test_exact_is_the_cache_of_a_block_causal_model(tiny):
    model = tiny(**cases.BLOCKS)
    own, named = (generate(model, cases.PROMPTS, "static", cache, gen_length=10) for cache in (None, ExactCache()))
    assert same(own, named) and torch.equal(own.rows, named.rows) and own.kv_bytes == named.kv_bytes > 0


@pytest.mark.parametrize("block_length", [3, 8, 32])
def test_blocks_that_do_not_divide_the_models_are_refused(tiny, block_length):
    with pytest.raises(DllmError, match=rf"block_length={block_length} does not divide the blocks of 4 .* give 4 or a"):
        generate(tiny(**cases.BLOCKS), [3], gen_length=4, block_length=block_length)


@pytest.mark.parametrize("value", ["0", "-1", "2.5", "true"])
def test_parts_that_cannot_be_are_named(value):
    with pytest.raises(DllmError, match=rf"small_block={value}"):
        make(f"subblock:small_block={value}")
