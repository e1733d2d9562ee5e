"""Canvases without a mask: what is undecided holds random tokens, and everything else goes on as it does with masks."""

import pytest
import torch

import cases
from dllm import DllmError, Trace, generate, infill, stream
from dllm.canvas import NOISE, shown, undecided

UNIFORM = {"mask_id": None, "uniform": True}
SAMPLERS = [name for name in cases.SAMPLER_NAMES if not name.startswith("wino")]
QUICK = "renoise:max_denoising_steps=5,entropy_bound=1,confidence_threshold=0.3"
SHAPE = cases.SHAPE | {"seed": 3}


@pytest.fixture(scope="module")
def uniform(tiny):
    return tiny(**UNIFORM)


def test_noise_is_undecided_until_it_is_decided_and_the_model_sees_its_ids():
    tokens = torch.tensor([[3, ~3, ~0, 0, ~39]])
    assert undecided(tokens, NOISE).tolist() == [[False, True, True, False, True]]
    assert shown(tokens, NOISE).tolist() == [[3, 3, 0, 0, 39]]
    assert undecided(tokens.abs(), 3).tolist() == [[True, False, False, False, False]]
    assert shown(tokens, 3) is tokens  # a canvas of masks costs nothing more


def test_an_answer_begins_as_noise_of_its_own(uniform):
    run = stream(uniform, cases.PROMPTS, **SHAPE)
    canvas = run.schedule.canvas
    assert torch.equal(canvas.undecided, canvas.open & canvas.exists) and canvas.open.sum(1).tolist() == [10] * 4
    starts = [(~row[n : n + 10]).tolist() for row, n in zip(canvas.tokens, canvas.prompt_lengths, strict=True)]
    assert len({*map(tuple, starts)}) == 4 and all(0 <= token < 40 for row in starts for token in row)
    alone = stream(uniform, cases.PROMPTS[2], **SHAPE).schedule.canvas
    assert (~alone.tokens[0, 1:]).tolist() == starts[2]
    other = stream(uniform, cases.PROMPTS[2], **SHAPE | {"seed": 4}).schedule.canvas
    assert not torch.equal(alone.tokens, other.tokens)


def test_prompts_stay_as_they_are(uniform):
    made = generate(uniform, cases.PROMPTS, QUICK, **SHAPE)
    for row, prompt in zip(made.tokens.tolist(), cases.PROMPTS, strict=True):
        assert row[: len(prompt)] == prompt


@pytest.mark.parametrize("sampler", [*SAMPLERS, QUICK])
def test_a_row_is_decided_as_alone_whatever_the_sampler(uniform, sampler):
    batch = generate(uniform, cases.PROMPTS, sampler, **SHAPE, batch_size=3)
    assert all(0 <= token < 40 for row in batch.completions for token in row)
    one = generate(uniform, cases.PROMPTS[1], sampler, **SHAPE)
    assert one.completions == batch.completions[1:2] and one.nfe.tolist() == batch.nfe.tolist()[1:2]


@pytest.mark.parametrize("cache", cases.ALWAYS.values())
def test_a_cache_that_computes_everything_changes_nothing(uniform, cache):
    sampler = "random" if "greedy" in cache else QUICK
    made, plain = (generate(uniform, cases.PROMPTS, sampler, c, **SHAPE) for c in (cache, "none"))
    assert made.completions == plain.completions


@pytest.mark.parametrize("cache", ["dual", "prefix", "dkv-decode"])
def test_caches_serve_noise_too(uniform, cache):
    made = generate(uniform, cases.PROMPTS, QUICK, cache, **SHAPE)
    assert made.reused > 0 and all(0 <= token < 40 for row in made.completions for token in row)


def test_drafts_change_forwards_but_not_tokens(uniform):
    plain, drafted = (generate(uniform, cases.PROMPTS, "static", **SHAPE, drafts=n) for n in (1, 3))
    assert drafted.completions == plain.completions and (drafted.nfe <= plain.nfe).all()


def test_given_tokens_stand_where_they_were_given(uniform):
    made = generate(uniform, cases.PROMPTS, QUICK, **SHAPE, constraints={2: [7, 8], 9: [9]})
    assert all(row[2:4] == [7, 8] and row[9] == 9 for row in made.completions)
    assert made.answer_tokens.tolist() == [7] * 4


def test_a_finished_block_is_what_the_trace_reveals(uniform):
    made = generate(uniform, cases.PROMPTS[0], QUICK, **SHAPE, observers=[trace := Trace()])
    revealed = {c["column"]: c["token"] for c in trace.changes if c["kind"] == "revealed"}
    assert [revealed[3 + i] for i in range(10)] == made.completions[0] and len(revealed) == 10
    again = [c for c in trace.changes if c["kind"] == "renoised"]
    assert again and all(0 <= c["token"] < 40 for c in again)
    assert {c["kind"] for c in trace.changes} == {"revealed", "renoised"}


def test_an_end_of_text_ends_a_row_at_the_end_of_its_block(tiny):
    model = tiny(**UNIFORM, eos_ids=(*range(20),))
    made = generate(model, cases.PROMPTS, QUICK, gen_length=12, block_length=4, seed=0)
    whole = generate(model, cases.PROMPTS, QUICK, gen_length=12, block_length=4, seed=0, eos_early_stop=False)
    assert made.nfe.sum() < whole.nfe.sum()
    for short, long in zip(made.completions, whole.completions, strict=True):
        end = next(i for i, token in enumerate(long) if token < 20)
        assert short[: end + 1] == long[: end + 1] and short[end + 1 :] == [0] * (11 - end)


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"mask_id": 5}, "knows no mask; leave out mask_id"),
        ({"cfg_scale": 1.0}, "cfg_scale needs a mask"),
        ({"tokens_hook": print}, "a hook needs a mask"),
        ({"sampler": "wino"}, "Wino.* needs a mask"),
        ({"sampler": QUICK, "temperature": 0.5}, "temperature=0.5: Renoise.* has temperatures of its own"),
        ({"sampler": QUICK, "drafts": 2}, "remembers its steps"),
    ],
)
def test_what_needs_a_mask_is_refused(uniform, asked, message):
    with pytest.raises(DllmError, match=message):
        generate(uniform, cases.PROMPTS, **asked)


def test_gaps_in_a_text_need_a_mask(uniform):
    with pytest.raises(DllmError, match="knows no mask"):
        infill(uniform, [[1, 2, 3]])


def test_masks_are_not_drawn_anew(model):
    with pytest.raises(DllmError, match=r"Renoise.* draws undecided tokens anew, but those of this model are masks"):
        generate(model, cases.PROMPTS, "renoise")


def test_a_sampler_that_never_decides_is_stopped(uniform):
    from dllm.samplers import Renoise

    class Endless(Renoise):
        def settled(self, p, h):
            return super().settled(p, h) & False

    with pytest.raises(RuntimeError, match="revealed nothing"):
        generate(uniform, [1], Endless(max_denoising_steps=2), gen_length=4)
