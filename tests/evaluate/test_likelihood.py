"""LLaDA's Monte-Carlo likelihood, against the sum over all masks and against a plain loop."""

from itertools import combinations

import pytest
import torch

import dllm
from dllm.cache.base import full_view
from dllm.canvas import Span
from dllm.evaluate.likelihood import Pair, draw, greedy, log_likelihoods

PAIRS = [Pair([3, 1, 4], [1, 5, 9]), Pair([2], [6]), Pair([5, 3, 5, 8, 9], [7, 9, 3, 2, 3, 8]), Pair([], [4, 6])]


@pytest.fixture(params=[0, 1], ids=["llada", "dream"])
def exact(request, tiny):
    """A model in float64, where no rounding depends on the batch; Dream's predicts one column further right."""
    return tiny(logits_shift=request.param).double()


def log_probabilities(model, pair, masked):
    """What the model says of each masked token of the target, one row at a time. (T,)"""
    row = torch.tensor([*pair.context, *pair.target])
    hidden = torch.tensor([*[False] * len(pair.context), *masked])
    length = len(row)
    span = Span.between(torch.tensor([0]), torch.tensor([length]), length)
    logits = model(row.masked_fill(hidden, model.spec.mask_id)[None], full_view(model.spec, [length]), span)
    found = logits[0].log_softmax(-1).gather(-1, row[:, None])[:, 0].masked_fill(~hidden, 0)
    return found[len(pair.context) :]


@torch.no_grad()
def plain(model, pair, n, seed):
    """The estimate as its definition reads."""
    total, length = 0.0, len(pair.target)
    for masked in draw(n, length, pair.seed(seed)):
        total += float(log_probabilities(model, pair, masked).sum()) * length / int(masked.sum())
    return total / n


@torch.no_grad()
def enumerated(model, pair):
    """What the estimate expects: all masks, those of one size equally likely, all sizes equally likely."""
    places, total = range(len(pair.target)), 0.0
    for size in range(1, len(places) + 1):
        chosen = list(combinations(places, size))
        for some in chosen:
            found = log_probabilities(model, pair, [place in some for place in places])
            total += float(found.sum()) / size / len(chosen)
    return total


def test_the_estimate_is_the_mean_over_its_masks(exact):
    got = list(log_likelihoods(exact, PAIRS, mc_num=20, seed=3))
    assert got == pytest.approx([plain(exact, pair, 20, 3) for pair in PAIRS], rel=1e-12)


@torch.no_grad()
def test_the_estimate_converges_to_the_sum_over_all_masks(exact):
    n = 4000
    for pair, got in zip(PAIRS, log_likelihoods(exact, PAIRS, mc_num=n, batch_size=64), strict=True):
        length = len(pair.target)
        values = {
            tuple(masked): float(log_probabilities(exact, pair, masked).sum()) * length / sum(masked)
            for masked in draw(200, length, 0).tolist()
        }
        spread = max(values.values()) - min(values.values())  # half of it is at least the standard deviation
        assert abs(got - enumerated(exact, pair)) <= 5 * (spread / 2) / n**0.5 + 1e-9


def test_one_token_needs_one_forward_and_is_exact(exact):
    calls = []
    handle = exact.register_forward_hook(lambda *_: calls.append(1))
    [got] = log_likelihoods(exact, [PAIRS[1]], mc_num=128)
    handle.remove()
    assert got == pytest.approx(enumerated(exact, PAIRS[1]), rel=1e-12) and len(calls) == 1


@pytest.mark.parametrize("scale", [0.0, 0.5])
def test_a_pair_does_not_depend_on_its_batch(exact, scale):
    together = list(log_likelihoods(exact, PAIRS, mc_num=9, batch_size=4, cfg_scale=scale))
    alone = [next(log_likelihoods(exact, [pair], mc_num=9, batch_size=100, cfg_scale=scale)) for pair in PAIRS]
    assert together == pytest.approx(alone, rel=1e-12)
    assert together == list(log_likelihoods(exact, PAIRS, mc_num=9, batch_size=4, cfg_scale=scale))


def test_another_seed_draws_other_masks_and_guidance_changes_the_value(exact):
    first, other = (list(log_likelihoods(exact, PAIRS[2:3], mc_num=5, seed=seed)) for seed in (0, 1))
    assert first != other != list(log_likelihoods(exact, PAIRS[2:3], mc_num=5, seed=1, cfg_scale=1.0))


@pytest.mark.parametrize("length", [1, 2, 7])
def test_the_number_of_masked_tokens_is_uniform_up_to_one(length):
    counts = draw(70, length, 5).sum(1).bincount(minlength=length + 1)[1:]
    assert int(counts.sum()) == 70 and (counts - 70 / length).abs().max() <= 1


def test_every_token_is_masked_equally_often():
    often = torch.stack([draw(50, 4, seed) for seed in range(200)]).double().mean((0, 1))
    assert (often - 0.625).abs().max() < 0.02  # the mean of 1/4, 2/4, 3/4 and 4/4


@pytest.mark.parametrize("scale", [0.0, 0.7])
def test_what_the_model_would_say_is_greedy_and_nothing_else_is(exact, scale):
    prompts = [[3, 1, 4], [2, 7]]
    said = [
        dllm.generate(
            exact, [prompt], "static", "none", gen_length=n, block_length=n, eos_early_stop=False, cfg_scale=scale
        )
        for prompt, n in zip(prompts, (4, 2), strict=True)
    ]
    pairs = [Pair(prompt, made.completions[0]) for prompt, made in zip(prompts, said, strict=True)]
    other = Pair([3, 1, 4], [*pairs[0].target[:-1], (pairs[0].target[-1] + 1) % 10])
    assert greedy(exact, [*pairs, other], cfg_scale=scale) == [True, True, False]
    assert greedy(exact, []) == []


@pytest.mark.parametrize(
    ("pairs", "options", "message"),
    [
        ([Pair([1], [])], {}, "has no tokens"),
        ([Pair([1] * 4000, [1] * 4000)], {}, "longer than the model's context"),
        ([Pair([1], [2])], {"mc_num": 0}, "mc_num=0 draws no mask"),
    ],
)
def test_what_cannot_be_looked_at_is_refused(exact, pairs, options, message):
    with pytest.raises(dllm.DllmError, match=message):
        list(log_likelihoods(exact, pairs, **options))
