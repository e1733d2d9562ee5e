from itertools import pairwise

import torch
from hypothesis import given
from hypothesis import strategies as st

from dllm.generation import Request
from dllm.models.tiny import SIZES
from dllm.samplers import Static
from dllm.schedule import Schedule, together
from dllm.settings import Settings
from dllm.spec import ModelSpec


@given(st.lists(st.integers(1, 100), min_size=1, max_size=20))
def test_every_row_runs_once_with_rows_at_most_twice_as_wide(counts):
    groups = together(counts)
    assert sorted(row for group in groups for row in group) == [*range(len(counts))]
    for group in groups:
        assert group == sorted(group) and max(counts[r] for r in group) <= 2 * min(counts[r] for r in group)


@given(st.lists(st.integers(1, 100), min_size=1, max_size=20))
def test_the_widest_run_first_and_no_two_groups_could_be_one(counts):
    tops = [max(counts[r] for r in group) for group in together(counts)]
    assert all(2 * after < before for before, after in pairwise(tops))


def test_a_refresh_does_not_widen_the_steps_of_a_block():
    assert together([8, 80, 8, 60]) == [[1, 3], [0, 2]] and together([5]) == [[0]] and together([]) == []


def schedule(n=3, batch_size=2, **settings):
    spec = ModelSpec(**SIZES)
    asked = [Request([5] * (i + 1), [39] * 6, i) for i in range(n)]
    settings = Settings(gen_length=6, block_length=4, batch_size=batch_size, **settings)
    return Schedule(asked, settings, spec, Static(), torch.device("cpu"))


def test_rows_hold_their_prompt_their_masks_and_nothing():
    tokens = schedule().canvas.tokens
    assert tokens.tolist() == [[5] + [39] * 6 + [38, 38], [5, 5] + [39] * 6 + [38]]


def test_a_finished_row_gives_its_place_to_the_next_prompt_and_the_last_leave():
    s = schedule()
    s.canvas.tokens[0, 1:7] = 7
    s.canvas.tokens[1, 2:8] = 8
    assert s.position().done.tolist() == [True, True]
    taken, keep = s.release([0, 1])
    assert taken == [0] and keep.tolist() == [0] and s.slots == [2]
    assert s.finished == {0: [7] * 6, 1: [8] * 6} and s.canvas.prompt_lengths.tolist() == [3]
    assert s.canvas.tokens.tolist() == [[5] * 3 + [39] * 6]


def test_a_row_is_done_at_an_end_of_text_that_nothing_masked_precedes():
    s = schedule(1)
    s.canvas.tokens[0, 1:4] = torch.tensor([7, 39, 38])
    assert not s.position().done.item()
    s.canvas.tokens[0, 2] = 8
    assert s.position().done.item()
    s.release([0])
    assert s.finished == {0: [7, 8, 38, 38, 38, 38]}


def test_blocks_share_the_steps_by_their_columns():
    s = schedule(1, steps=3)
    at = s.position()
    assert at.block.columns.tolist() == [[1, 2, 3, 4]] and at.entered.item()
    s.enter(0, start=1, masked=4)
    assert s.rows.block_steps.tolist() == [2] and s.rows.quotas[0, :3].tolist() == [2, 2, 1]
    assert not s.position().entered.item()
    s.canvas.tokens[0, 1:5] = 7
    at = s.position()
    assert at.block.valid.tolist() == [[True, True, False, False]] and at.entered.item() and at.masked.tolist() == [2]
    s.enter(0, start=5, masked=2)
    assert s.rows.block_steps.tolist() == [1] and s.rows.quotas[0, :2].tolist() == [2, 1]


def test_a_row_that_was_cut_short_is_filled_with_the_end_of_text():
    s = schedule(1)
    s.canvas.tokens[0, 1:7] = 7
    s.canvas.lengths[0] = 4
    s.release([0])
    assert s.finished == {0: [7, 7, 7, 38, 38, 38]}


def test_given_columns_of_an_answer_are_not_decided():
    spec = ModelSpec(**SIZES)
    asked = [Request([39, 5], [39, 7, 39, 38], 0), Request([5], [39], 1)]
    s = Schedule(asked, Settings(batch_size=2), spec, Static(), torch.device("cpu"))
    assert s.canvas.undecided.nonzero().tolist() == [[0, 2], [0, 4], [1, 1]]
    assert s.rows.steps.tolist() == [4, 1] and s.canvas.answer_width == 4


def test_blocks_of_a_block_causal_model_are_counted_from_column_0():
    """A prompt of 3 and an answer of 6: the columns 3, 4 to 7, and 8."""
    spec = ModelSpec(**SIZES, attention="block", block_length=4)
    s = Schedule([Request([5] * 3, [39] * 6, 0)], Settings(gen_length=6), spec, Static(), torch.device("cpu"))
    shares, blocks = [], []
    for start, masked in ((3, 1), (4, 4), (8, 1)):
        at = s.position()
        blocks.append(at.block.columns[at.block.valid].tolist())
        s.enter(0, start, masked)
        shares.append(int(s.rows.block_steps))
        s.canvas.tokens[0, start : start + masked] = 7
    assert blocks == [[3], [4, 5, 6, 7], [8]] and shares == [1, 4, 1] and s.position().done.item()


def test_what_comes_behind_a_short_block_is_foreseen():
    spec = ModelSpec(**SIZES, attention="block", block_length=4)
    settings = Settings(gen_length=6, eager=True, steps=4)
    s = Schedule([Request([5] * 3, [39] * 6, 0)], settings, spec, Static(), torch.device("cpu"))
    at = s.position()
    assert at.two_blocks.columns.tolist()[0][:5] == [3, 4, 5, 6, 7] and at.behind.tolist() == [4]
    s.enter(0, 3, 1)
    s.foresee(0, 3, 4)
    rows = s.rows.into_next(torch.tensor([True]))
    assert (int(rows.block_start), int(rows.block_stop), int(rows.block_steps)) == (4, 8, 3)
