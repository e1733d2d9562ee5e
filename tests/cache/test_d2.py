"""d2Cache: which columns a step predicts and computes, by hand."""

import math

import pytest
import torch

import cases
from dllm import DllmError, Trace, generate, stream
from dllm.cache import D2Cache, make
from dllm.canvas import Span

MASK = 39
DRAWN = torch.zeros(1, 8, 40)
"""What the block's tokens were drawn from, which this cache does not look at."""


def started(model, cache, lengths=(10,)):
    """Rows of 2 given columns and masks, and the block of all their masks; nothing is computed yet."""
    tokens = torch.tensor([[1, 2, *[MASK] * 8]]).repeat(len(lengths), 1)
    canvas = cases.canvas(tokens, [2] * len(lengths), list(lengths), MASK)
    start = torch.full((len(lengths),), 2)
    return canvas, cache.start(model.spec, canvas, torch.float64), Span.between(start, torch.tensor(lengths), 8)


def step(model, canvas, state, block):
    """One forward of a row: its columns, and those that it predicts."""
    scope = state.needed(block, block)
    plan = state.plan(scope)
    view = state.view(plan, scope, torch.tensor([0]), plan.sum(1).tolist(), [10])
    model(canvas.tokens, view, scope)
    return plan[0].nonzero().flatten().tolist(), sorted(set(scope.columns[0][scope.valid[0]].tolist()))


def test_a_step_computes_sure_masks_new_tokens_and_what_holds_the_attention(model):
    canvas, state, block = started(model, D2Cache(current_k=2, sigma=1.0, rollout_p=0.5))
    assert step(model, canvas, state, block) == ([*range(10)], [2, 3]), "all is computed, what is near is predicted"
    state.saw(torch.tensor([0]), block, torch.tensor([[0.1, 0.9, 0.5, 1.0, 1.0, 1.0, 1.0, 0.9]]), lambda: DRAWN)
    canvas.tokens[0, 8] = 7  # the masks next to it are surer than 3, which stands two columns from the prompt
    state.mass[0] = torch.tensor([0.0, 5.0, 0.0, 0.0, 3.0, 0.0, 0.0, 0.0, 9.0, 0.0])
    assert step(model, canvas, state, block) == ([1, 7, 8, 9], [7, 9]), "1 holds more than half of what others hold"
    state.mass[0] = torch.tensor([0.0, 4.0, 0.0, 0.0, 3.0, 2.0, 0.0, 0.0, 9.0, 0.0])
    assert step(model, canvas, state, block) == ([7, 8, 9], [7, 9])


def test_density_is_the_gaussian_sum_over_decided_columns():
    decided, cache = torch.rand(2, 30) > 0.5, D2Cache(sigma=1.5)
    got = cache.density(decided)
    for row in range(2):
        for column in range(30):
            near = [math.exp(-((column - other) ** 2) / 4.5) for other in range(30) if decided[row, other]]
            assert float(got[row, column]) == pytest.approx(sum(near), rel=1e-3, abs=1e-3)  # cut at 4 sigma
    assert D2Cache(sigma=1000.0).density(decided[:, :5]).shape == (2, 5)


@pytest.mark.parametrize(
    ("share", "want"), [(0.1, [2]), (0.5, [2]), (0.6, [2, 0]), (0.9, [2, 0, 3]), (1.0, [0, 1, 2, 3])]
)
def test_the_fewest_columns_that_hold_a_share(share, want):
    mass, among = torch.tensor([[3.0, 0.0, 5.0, 2.0, 99.0]]).double(), torch.tensor([[True, True, True, True, False]])
    kept = D2Cache(rollout_p=share).nucleus(mass, among)
    assert kept[0].nonzero().flatten().tolist() == sorted(want)


def test_attention_of_what_is_predicted_is_summed_and_fades(model):
    canvas, state, block = started(model, D2Cache(current_k=3, decay=0.25, rollout_p=1.0))
    heads = model.spec.n_heads * model.spec.n_layers
    step(model, canvas, state, block)
    torch.testing.assert_close(state.mass.sum(), torch.tensor(3.0 * heads).double())
    first = state.mass.clone()
    step(model, canvas, state, block)
    torch.testing.assert_close(state.mass, 1.25 * first)  # nothing has changed


@pytest.mark.parametrize("shift", [0, 1])
def test_it_is_told_how_sure_every_prediction_was(tiny, shift):
    model, trace = tiny(logits_shift=shift), Trace()
    run = stream(model, cases.PROMPTS, "static", "d2:current_k=4", **cases.SHAPE, seed=0, observers=[trace])
    state = run.states[0]
    for step in run:
        for change in trace.changes[-len(step.requests) :]:
            slot = run.schedule.slots.index(change["request"])
            told = float(state.confidence[slot, change["column"]])
            assert told == pytest.approx(change["confidence"], abs=1e-6)  # a trace holds 6 digits


def test_a_schedule_that_wants_more_than_is_predicted_takes_more_steps(model):
    made = generate(model, [3, 1], "static", "d2:current_k=2", gen_length=8, steps=1, eos_early_stop=False)
    assert made.nfe[0] == 1 + 6 and MASK not in made.completions[0]


def test_another_prompt_in_a_row_begins_anew(model):
    canvas, state, block = started(model, D2Cache(current_k=2))
    step(model, canvas, state, block)
    state.saw(torch.tensor([0]), block, torch.full((1, 8), 0.5), lambda: DRAWN)
    state.admit(0)
    assert (state.confidence == 1).all() and (state.mass == 0).all()
    assert step(model, canvas, state, block)[0] == [*range(10)]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("current_k=0", "current_k=0 is not a number of columns; give 1 or more"),
        ("sigma=0", "sigma=0.0 is not a width in columns; give more than 0"),
        ("sigma=inf", "sigma=inf is not a width"),
        ("rollout_p=0", "rollout_p=0.0 is not a share of attention; give more than 0, up to 1"),
        ("rollout_p=1.5", "rollout_p=1.5 is not a share"),
        ("decay=1", "decay=1.0 does not fade; give 0"),
        ("decay=nan", "decay=nan does not fade"),
    ],
)
def test_settings_that_cannot_be_are_named(options, message):
    with pytest.raises(DllmError, match=message):
        make(f"d2:{options}")


def test_shadow_rows_would_take_part_in_the_attention_it_looks_at(model):
    with pytest.raises(DllmError, match=r"D2Cache.*looks at attention, in which the shadow rows of Wino"):
        generate(model, [3], "wino", "d2", gen_length=4)
