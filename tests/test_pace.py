"""The number of drafts follows what forwards cost and what drafts bring, both as told to it."""

import pytest

from dllm.pace import AGAIN, MOST, TRIED, Pace


def plan(drafts, each, refreshed=0):
    """A plan of rows with so many drafts of so many columns."""
    from dllm.plan import Plan

    made = object.__new__(Plan)
    vars(made).update(drafts=drafts, step_counts=[each] * len(drafts), counts=[each + refreshed] * len(drafts))
    return made


def measured(cost, true, steps=200, each=32, rows=4):
    """A pace after steps that cost cost(columns) seconds, and whose drafts come true to this depth; and its choices."""
    pace, chosen = Pace(), []
    for _ in range(steps):
        n = pace.drafts
        chosen.append(n)
        more = [min(n - 1, true)] * rows
        pace.observe(plan([n] * rows, each), more, 1, cost(rows * each * n))
    return pace, chosen


def test_the_first_steps_try_several_widths():
    assert measured(lambda _columns: 1.0, 3)[1][: len(TRIED)] == list(TRIED) and max(TRIED) == MOST


def test_where_width_is_free_all_drafts_that_come_true_are_computed():
    for true in (1, 3, 7):
        best = measured(lambda _columns: 0.01, true)[1][-2]
        assert true < best <= MOST


def test_where_a_draft_costs_a_forward_only_sure_ones_are_computed():
    assert set(measured(lambda columns: 1e-4 * columns, 0)[1][AGAIN + 1 : 2 * AGAIN]) == {1}
    assert measured(lambda columns: 128e-4 + 1e-4 * columns, 7)[1][-2] > 4


def test_a_number_between_is_found():
    """Drafts come true to depth 2, and a forward costs as much as four drafts before its first column."""
    assert measured(lambda columns: 4 * 128 * 1e-4 + 1e-4 * columns, 2)[1][-2] == 3


def test_a_larger_number_is_tried_now_and_then():
    chosen = measured(lambda columns: 1e-4 * columns, 0, steps=4 * AGAIN)[1]
    assert [step for step, n in enumerate(chosen) if n == 2 and step > AGAIN] == [2 * AGAIN, 3 * AGAIN]


def test_what_was_measured_long_ago_is_forgotten():
    pace, _ = measured(lambda columns: 1e-4 * columns, 0)
    for _ in range(200):
        n = pace.drafts
        pace.observe(plan([n], 32), [n - 1], 1, 0.01)
    assert pace.drafts > 4


def test_the_cost_is_a_line_through_the_measured_times():
    start, slope = measured(lambda columns: 0.5 + 0.002 * columns, 1)[0].cost
    assert start == pytest.approx(0.5) and slope == pytest.approx(0.002)


@pytest.mark.parametrize(("cost", "want"), [(lambda c: 1 - 1e-4 * c, "start"), (lambda c: 1e-3 * c - 0.05, "slope")])
def test_neither_part_of_the_cost_is_negative(cost, want):
    start, slope = measured(cost, 1)[0].cost
    assert start >= 0 and slope >= 0 and (slope == 0 if want == "start" else start == 0)


def test_expected_steps_grow_with_the_drafts_and_stay_below_their_number():
    pace, _ = measured(lambda _columns: 1.0, 2)
    steps = [pace.steps_of(n) for n in range(1, MOST + 1)]
    assert steps[0] == 1 and steps == sorted(steps) and all(e <= n for n, e in enumerate(steps, 1))
    assert 2.9 < steps[2] <= 3 and steps[-1] < 4


def test_a_refresh_tells_nothing_of_the_steps_after_it():
    pace, _ = measured(lambda columns: 1e-4 * columns, 1)
    cost = pace.cost
    pace.observe(plan([2], 32, refreshed=100), [1], 1, 50.0)
    assert pace.cost == cost


def test_the_cost_is_that_of_one_of_several_forwards():
    pace = Pace()
    for _ in range(20):
        n = pace.drafts
        pace.observe(plan([n] * 4, 32), [0] * 4, 2, 2 * (0.5 + 0.002 * 64 * n))
    assert pace.cost == (pytest.approx(0.5), pytest.approx(0.002)) and pace.each == 64
