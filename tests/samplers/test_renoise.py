"""The rule for canvases of noise, step by step, and as transformers' own classes decide on the same logits."""

from dataclasses import replace

import pytest
import torch

import cases
from dllm import DllmError
from dllm.canvas import NOISE
from dllm.kernels.token_stats import banned
from dllm.noise import Key
from dllm.propose import Proposer
from dllm.samplers import Renoise
from dllm.samplers.base import Memory, Recall, entropy
from dllm.settings import Settings

V = 30


def prediction(logits, sampler, step=0, memory=None):
    """What the sampler is asked at this step of a block of noise, in float32 as transformers computes."""
    n_rows, width = logits.shape[:2]
    steps, columns = torch.full((n_rows,), step), torch.arange(5, 5 + width).expand(n_rows, -1)
    key = Key(1, torch.arange(n_rows))
    none = torch.tensor([], dtype=torch.long)
    proposal = Proposer(Settings(), banned(none, logits.shape[-1]), none)(
        logits, columns, key, sampler.temperature(steps)
    )
    yes, rows = torch.ones_like(columns, dtype=torch.bool), torch.arange(n_rows)
    place = torch.arange(width).expand(n_rows, -1)
    like = cases.example([0.5] * width, decided=[])
    return replace(
        like,
        **vars(proposal),
        span=replace(like.span, columns=columns, valid=yes),
        mask_id=NOISE,
        current=~torch.randint(0, V, columns.shape),
        open=yes,
        block=yes,
        **dict.fromkeys(("answer_start", "step", "steps", "block_step", "block_steps", "quota"), steps),
        shadow=None,
        key=key,
        recall=Recall(memory or Memory(), rows, n_rows, steps == 0, place, width),
    )


def logits(n_rows=3, width=8, scale=4.0):
    return torch.randn(n_rows, width, V) * scale


def test_the_temperature_falls_by_the_step():
    sampler = Renoise(t_max=0.8, t_min=0.4, max_denoising_steps=4)
    torch.testing.assert_close(sampler.temperature(torch.arange(4)), torch.tensor([0.8, 0.7, 0.6, 0.5]))


@pytest.mark.parametrize("bound", [0.0, 0.5, 2.0, 1e9])
def test_draws_are_kept_while_the_entropies_before_them_stay_within_the_bound(bound):
    sampler = Renoise(entropy_bound=bound)
    h, among = torch.rand(6, 9), torch.rand(6, 9) < 0.7
    among[:, 0] = True
    for row, may, kept in zip(h, among, sampler.accepted(h, among), strict=True):
        want, spent = set(), 0.0
        for column in sorted(may.nonzero().flatten().tolist(), key=lambda c: float(row[c])):
            if spent <= bound:
                want.add(column)
            spent += float(row[column])
        assert {*kept.nonzero().flatten().tolist()} == want and len(want) >= 1


def test_nothing_is_final_before_the_block_is():
    sampler = Renoise(max_denoising_steps=3, confidence_threshold=0.0)
    memory, said = Memory(), logits()
    for step in range(3):
        p = prediction(said, sampler, step, memory)
        after = sampler(p)
        assert (after < 0).all() if step < 2 else torch.equal(after, p.tokens)


def test_what_is_not_kept_becomes_new_noise_at_every_step():
    sampler = Renoise(entropy_bound=0.0)
    said = logits(scale=0.1)
    first, second = (~sampler(prediction(said, sampler, step)) for step in (0, 1))
    assert (first != second).float().mean() > 0.8 and (first >= 0).all() and (first < V).all()


@pytest.mark.parametrize(("stability", "steps"), [(0, 1), (1, 2), (2, 3), (9, 6)])
def test_a_block_is_decided_once_its_likeliest_tokens_have_stayed_the_same(stability, steps):
    sampler = Renoise(stability_threshold=stability, max_denoising_steps=6, confidence_threshold=9.0)
    memory, said = Memory(), logits()
    taken = next(n for n in range(1, 7) if (sampler(prediction(said, sampler, n - 1, memory)) >= 0).all())
    assert taken == steps


def test_a_change_begins_the_count_anew_and_doubt_keeps_a_block_open():
    sampler, memory, said = Renoise(confidence_threshold=9.0), Memory(), logits()
    other = said.clone()
    other[1, 3] = -other[1, 3]  # another token is the likeliest there
    sampler(prediction(said, sampler, 0, memory))
    assert (sampler(prediction(other, sampler, 1, memory)) >= 0).all(1).tolist() == [True, False, True]
    sure = said.clone()
    sure[0] *= 100
    mean = entropy(sure / 0.8).mean(1)
    sampler, memory = Renoise(stability_threshold=0, confidence_threshold=0.01), Memory()
    assert (sampler(prediction(sure, sampler, 0, memory)) >= 0).all(1).tolist() == (mean < 0.01).tolist()
    assert (mean < 0.01).tolist() == [True, False, False]


def test_other_columns_are_left_alone():
    sampler, said = Renoise(max_denoising_steps=1), logits()
    p = prediction(said, sampler)
    current = torch.where(torch.rand(p.current.shape) < 0.5, p.current, 7)
    after = sampler(replace(p, current=current))
    assert torch.equal(after, torch.where(current < 0, p.tokens, 7))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"entropy_bound": -1.0}, "entropy_bound=-1.0"),
        ({"t_max": -0.5}, "t_max=-0.5"),
        ({"t_min": 0.0}, "t_min=0.0 must lie above 0"),
        ({"t_min": 0.9}, "t_min=0.9 must lie above 0 and not above t_max=0.8"),
        ({"max_denoising_steps": 0}, "max_denoising_steps=0"),
        ({"stability_threshold": -1}, "stability_threshold=-1"),
        ({"confidence_threshold": -0.1}, "confidence_threshold=-0.1"),
    ],
)
def test_options_that_cannot_be_are_named(options, message):
    with pytest.raises(DllmError, match=message):
        Renoise(**options)


def test_it_keeps_and_stops_as_the_classes_of_transformers_do(monkeypatch):
    theirs = pytest.importorskip("transformers.models.diffusion_gemma.generation_diffusion_gemma")
    steps, sampler, memory = 12, Renoise(entropy_bound=0.7, max_denoising_steps=12, confidence_threshold=0.35), Memory()
    warmer = theirs.LinearTemperatureScheduleLogitsProcessor(0.4, 0.8, steps)
    config = theirs.EntropyBoundSamplerConfig(entropy_bound=0.7)
    bound = theirs.EntropyBoundSampler(config, canvas_length=8, vocab_size=V, max_denoising_steps=steps)
    stopping = theirs.StableAndConfidentStoppingCriteria(stability_threshold=1, confidence_threshold=0.35)
    said, open_rows = logits(24), torch.ones(24, dtype=torch.bool)
    seen = set()
    for step in range(steps):
        said = torch.where(torch.rand(24, 1, 1) < 0.5, said, logits(24) * torch.rand(24, 1, 1) * 2)
        p = prediction(said, sampler, step, memory)
        processed = warmer(None, said, torch.tensor(steps - step, dtype=torch.int32))
        torch.testing.assert_close(p.drawn, processed, rtol=0, atol=0)
        draws = (p.drawn + p.key.at(p.step).gumbel(p.span.columns, V)).argmax(-1)
        noise = p.key.at(p.step).tokens(p.span.columns, V)
        monkeypatch.setattr(bound, "initialize_canvas", lambda *_, noise=noise: noise)
        canvas = bound.renoise_canvas(bound.accept_canvas(~p.current, draws, processed, step), step)
        stopped = stopping(processed.argmax(-1), processed) | (step == steps - 1)
        want = torch.where(stopped[:, None], processed.argmax(-1), ~canvas)
        assert torch.equal(sampler(p), want)
        seen |= {*stopped[open_rows].tolist()}
    assert seen == {True, False}
