"""Sparse-dLLM: which columns a block goes on to see, by hand, and that it sees no others."""

import pytest
import torch

import cases
from dllm import DllmError, generate
from dllm.cache import SparseCache, make
from dllm.canvas import Span

MASK = 39
LENGTHS, STARTS = [13, 11], [5, 3]


def started(model, cache, steps=1):
    """Two ragged rows after so many forwards of their blocks of 4; all that is wanted is there to be asked again."""
    tokens = torch.arange(26).reshape(2, 13) % 39
    canvas = cases.canvas(tokens, [3, 3], LENGTHS, MASK)
    state = cache.start(model.spec, canvas, torch.float64)
    start = torch.tensor(STARTS)
    block = Span.between(start, start + 4, 4)
    for _ in range(steps):
        logits = step(model, canvas, state, block)
    return canvas, state, block, logits


def step(model, canvas, state, block):
    state.needed(block, block)
    window = model.spec.window(block)
    plan = state.plan(window)
    view = state.view(plan, window, torch.arange(2), plan.sum(1).tolist(), LENGTHS)
    return model(canvas.tokens, view, block)


@pytest.mark.parametrize("shift", [0, 1])
@pytest.mark.parametrize(
    "sampler", ["static", "threshold:threshold=0.6", "sliding:base=klass,window=3", "prophet:answer_start=3"]
)
def test_when_nothing_is_hidden_it_is_the_dual_cache(tiny, sampler, shift):
    ask = {**cases.SHAPE, "seed": 1, "temperature": 0.5, "cfg_scale": 0.4 * shift, "batch_size": 3}
    dual, sparse = (
        generate(tiny(logits_shift=shift), cases.PROMPTS, sampler, c, **ask)
        for c in ("dual", "sparse:retention=1,delay=0")
    )
    assert sparse.completions == dual.completions and torch.equal(sparse.rows, dual.rows)
    assert torch.equal(sparse.nfe, dual.nfe)


@pytest.mark.parametrize("delay", [0, 1, 2])
def test_the_first_steps_of_a_block_compute_everything(model, delay):
    made = generate(model, [5] * 20, "static", f"sparse:delay={delay}", **{**cases.SHAPE, "gen_length": 8})
    assert made.refreshes[0] == 2 * (delay + 1)
    assert made.rows[0] == 2 * ((delay + 1) * 28 + (3 - delay) * 4)


def test_the_best_columns_stay_and_neighbours_share_their_score():
    score = torch.tensor([[0.1, 0.9, 0.0, 5.0, 5.0, 0.2, 0.3, 0.7]])
    outside = torch.tensor([[True, True, True, False, False, True, True, True]])
    for kernel, retention, want in ((1, 0.34, [1, 7]), (1, 0.5, [1, 6, 7]), (3, 0.34, [0, 1]), (3, 0.7, [0, 1, 2, 6])):
        kept = SparseCache(retention=retention, kernel=kernel).best(score, outside)
        assert kept[0].nonzero().flatten().tolist() == want
    assert not SparseCache(retention=0.1).best(score, outside).any(), "0.6 of a column is none"
    assert torch.equal(SparseCache(retention=1.0).best(score, outside), outside)


def test_a_columns_score_is_the_mean_query_of_the_block_times_its_key(tiny):
    model = tiny()
    _, state, block, _ = started(model, SparseCache(delay=3))
    window = state.needed(block, block)
    plan = state.plan(window)
    view = state.view(plan, window, torch.arange(2), plan.sum(1).tolist(), LENGTHS)
    q, keys = torch.randn(2, 13, 4, 8), torch.randn(2, 13, 2, 8)
    score = view.score(q, keys)
    for row, start in enumerate(STARTS):
        for column in range(LENGTHS[row]):
            by_hand = [
                q[row, i, head] @ keys[row, column, head // 2] for i in range(start, start + 4) for head in range(4)
            ]
            torch.testing.assert_close(score[row, column], torch.stack(by_hand).sum() / 4)


@pytest.mark.parametrize("shift", [0, 1])
def test_a_block_sees_what_is_kept_and_itself_and_no_other_column(tiny, shift):
    model = tiny(logits_shift=shift)
    canvas, state, block, _ = started(model, SparseCache(delay=0, retention=0.4))
    hidden, seen = [], []
    for row, (start, length) in enumerate(zip(STARTS, LENGTHS, strict=True)):
        for kept in state.kept:
            others = [c for c in range(length) if not start - shift <= c < start + 4]
            outside = [c for c in range(length) if not start <= c < start + 4]
            assert int(kept[row, outside].sum()) == int(0.4 * (length - 4))
            hidden.append([c for c in others if not kept[row, c]])
            seen.append([c for c in others if kept[row, c]])
    assert all(hidden) and all(seen)
    usual = step(model, canvas, state, block)
    for row in range(2):
        for layer, values in enumerate(state.values):
            values[row, hidden[2 * row + layer]] = 100.0
    torch.testing.assert_close(step(model, canvas, state, block), usual)
    state.values[0][1, seen[2]] += 1.0
    changed = step(model, canvas, state, block)
    torch.testing.assert_close(changed[0], usual[0])
    assert (changed[1] - usual[1]).abs().max() > 1e-3


def test_the_step_that_chooses_sees_everything(model):
    _, _, _, whole = started(model, SparseCache(delay=0, retention=0.1))
    torch.testing.assert_close(started(model, SparseCache(delay=0, retention=1.0))[3], whole)


def test_of_a_block_causal_model_only_what_a_block_can_see_is_counted(tiny):
    model = tiny(attention="block", block_length=4)
    _, state, _, _ = started(model, SparseCache(delay=0, retention=0.5))
    for kept in state.kept:  # of row 0 the block's last column, 8, reaches to 11; of row 1 column 6 reaches to 7
        assert int(kept[0, [0, 1, 2, 3, 4, 9, 10, 11]].sum()) == 4
        assert int(kept[1, [0, 1, 2, 7]].sum()) == 2


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("retention=0", "retention=0.0 is not a share to keep; give more than 0, up to 1"),
        ("retention=1.1", "retention=1.1 is not a share"),
        ("retention=nan", "retention=nan is not a share"),
        ("kernel=0", "kernel=0 is not an odd number of columns; give 1"),
        ("kernel=2", "kernel=2 is not an odd number"),
        ("delay=-1", "delay=-1 is not a number of steps; give 0"),
    ],
)
def test_settings_that_cannot_be_are_named(options, message):
    with pytest.raises(DllmError, match=message):
        make(f"sparse:{options}")


def test_shadow_rows_would_see_what_is_hidden(model):
    with pytest.raises(DllmError, match=r"SparseCache.*looks at attention, in which the shadow rows of Wino"):
        generate(model, [3], "wino", "sparse", gen_length=4)
