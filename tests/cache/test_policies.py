"""What each cache recomputes, and that what it keeps is what a full forward would compute again."""

import pytest
import torch

import cases
from dllm import DllmError
from dllm.cache import CACHES, Cache, DualCache, NoCache, PrefixCache, VicinityCache, full_view, make
from dllm.canvas import Span

PROMPT, LENGTHS = [3, 5], [11, 13]


def setting(model, cache):
    """A canvas of two ragged rows, the state of a cache for it, and the window of the rows' first blocks."""
    tokens = torch.arange(26).reshape(2, 13) % 39
    canvas = cases.canvas(tokens, PROMPT, LENGTHS, mask_id=39)
    return canvas, cache.start(model.spec, canvas, model.dtype), block(model, 0)


def block(model, number):
    start = torch.tensor(PROMPT) + 4 * number
    return model.spec.window(Span.between(start, start + 4, 4))


def forward(model, canvas, state, window):
    """One forward of both rows as the engine makes it: the columns it computed, and the logits of the window."""
    state.needed(window, window)
    plan = state.plan(window)
    view = state.view(plan, window, torch.arange(2), plan.sum(1).tolist(), LENGTHS)
    return plan, model(canvas.tokens, view, Span(window.columns[:, -4:], window.valid[:, -4:]))


def columns(plan):
    return [row.nonzero().flatten().tolist() for row in plan]


ALL = [[*range(11)], [*range(13)]]


@pytest.mark.parametrize(
    ("cache", "shift", "later"),
    [
        (NoCache(), 0, ALL),
        (PrefixCache(), 0, [[*range(3, 11)], [*range(5, 13)]]),
        (PrefixCache(), 1, [[*range(2, 11)], [*range(4, 13)]]),
        (DualCache(), 0, [[3, 4, 5, 6], [5, 6, 7, 8]]),
        (DualCache(), 1, [[2, 3, 4, 5, 6], [4, 5, 6, 7, 8]]),
        (VicinityCache(look=2), 0, [[*range(1, 9)], [*range(3, 11)]]),
        (VicinityCache(look=3), 1, [[*range(10)], [*range(1, 12)]]),
    ],
)
def test_a_cache_computes_all_at_a_new_block_and_then_what_it_does_not_keep(tiny, cache, shift, later):
    model = tiny(logits_shift=shift)
    canvas, state, window = setting(model, cache)
    assert columns(forward(model, canvas, state, window)[0]) == ALL
    for _ in range(3):
        assert columns(forward(model, canvas, state, window)[0]) == later
    assert columns(forward(model, canvas, state, block(model, 1))[0]) == ALL


@pytest.mark.parametrize("cache", [name for name, cache in CACHES.items() if "refresh" in cache.__dataclass_fields__])
@pytest.mark.parametrize("every", [1, 2, 3])
def test_all_is_refreshed_every_so_many_forwards(model, cache, every):
    others = {"vicinity": {"look": 2}, "dkv-pd": {"prompt_refresh": 1}}
    canvas, state, window = setting(model, make(cache, refresh=every, **others.get(cache, {})))
    whole = [columns(forward(model, canvas, state, window)[0]) == ALL for _ in range(7)]
    second = cache in ("dkv-decode", "dkv-pd")  # compute all in the second step too
    assert whole == [step % every == 0 or (second and step == 1) for step in range(7)]


@pytest.mark.parametrize("cache", cases.CACHE_NAMES)
@pytest.mark.parametrize("spec", [{}, {"logits_shift": 1}, {"attention": "block", "block_length": 4}], ids=str)
def test_what_is_kept_equals_what_a_full_forward_computes(tiny, cache, spec):
    model = tiny(**spec)
    canvas, state, window = setting(model, make(cache.partition(":")[0]))
    first = forward(model, canvas, state, window)[1]
    again = forward(model, canvas, state, window)[1]  # nothing has changed, so that a cache must not show
    span = Span(window.columns[:, -4:], window.valid[:, -4:])
    whole = model(canvas.tokens, full_view(model.spec, LENGTHS), span)
    torch.testing.assert_close(first, whole)
    torch.testing.assert_close(again, whole)


@pytest.mark.parametrize("cache", cases.CACHE_NAMES)
def test_columns_beyond_a_rows_end_do_not_matter(model, cache):
    canvas, state, window = setting(model, make(cache))
    first = [forward(model, canvas, state, window)[1] for _ in range(3)]
    canvas, state, window = setting(model, make(cache))
    canvas.tokens[0, 11:] = torch.tensor([38, 7])
    for one, other in zip(first, (forward(model, canvas, state, window)[1] for _ in range(3)), strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("cache", [PrefixCache(), DualCache()])
def test_a_new_prompt_in_a_row_makes_all_of_it_stale_and_no_other_row(model, cache):
    canvas, state, window = setting(model, cache)
    forward(model, canvas, state, window)
    kept = columns(state.plan(window))
    state.admit(0)
    assert columns(state.plan(window)) == [ALL[0], kept[1]]


@pytest.mark.parametrize("cache", [PrefixCache(), DualCache()])
def test_retiring_keeps_the_named_rows_in_their_order(model, cache):
    canvas, state, window = setting(model, cache)
    forward(model, canvas, state, window)
    keys, plan, keep = state.keys[1], state.plan(window), torch.tensor([1])
    state.retire(keep)
    canvas.tokens, canvas.lengths = canvas.tokens[keep], canvas.lengths[keep]
    assert torch.equal(state.keys[1], keys[1:]) and torch.equal(state.plan(window[keep]), plan[1:])


def test_rows_that_run_alone_leave_the_others_store_alone(model):
    canvas, state, window = setting(model, DualCache())
    whole = forward(model, canvas, state, window)[1]
    stored = state.keys[0][0].clone()
    one, plan = torch.tensor([1]), state.plan(window)
    view = state.view(plan, window, one, [4], [13])
    torch.testing.assert_close(model(canvas.tokens[one], view, window[one]), whole[1:])
    assert torch.equal(state.keys[0][0], stored) and state.age.tolist() == [1, 2]


def test_no_cache_keeps_nothing(model):
    assert setting(model, NoCache())[1].nbytes == 0


def test_a_view_that_lacks_a_wanted_column_says_so(model):
    view = full_view(model.spec, [4])
    view.rows = torch.tensor([[1, 2, 3]])
    with pytest.raises(ValueError, match=r"computes the columns \[\[1, 2, 3\]\], which lack some of \[\[0, 1\]\]"):
        model(torch.zeros(1, 4, dtype=torch.long), view, Span.between(torch.tensor([0]), torch.tensor([2]), 2))


def test_a_cache_without_a_rule_says_so(model):
    _, state, window = setting(model, Cache())
    with pytest.raises(NotImplementedError, match="Cache does not say which rows are stale"):
        state.plan(window)


def test_a_vicinity_that_cannot_be_is_named():
    with pytest.raises(DllmError, match="look=-1 is not a number of columns; give 0"):
        make("vicinity:look=-1")
    with pytest.raises(DllmError, match="refresh=0 is not a number of forwards"):
        make("vicinity:refresh=0")
