from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from dllm.schedule import together


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
