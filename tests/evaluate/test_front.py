import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dllm.evaluate.front import aup, front

POINTS = st.lists(st.tuples(st.floats(0, 20), st.floats(0, 100)), min_size=1, max_size=12)


@given(POINTS)
def test_nothing_beats_a_point_of_the_front_and_something_beats_every_other(points):
    found = front(points)
    for x, y in points:
        beaten = any(a >= x and b >= y and (a, b) != (x, y) for a, b in points)
        assert ((x, y) in found) != beaten
    assert found == sorted(found) and [y for _, y in found] == sorted((y for _, y in found), reverse=True)


@given(st.floats(0.1, 20), st.floats(0, 100))
def test_one_point_has_the_area_of_its_rectangle(rho, y):
    assert aup([(rho, y)]) == pytest.approx(rho * y)


def test_the_area_of_a_worked_example():
    """y_max = 80: 1 * 80, and a trapezium of 80 and 76 exp(-3 (1 - 76 / 80)) that is 2 wide; 70 is too low."""
    assert aup([(3.0, 76.0), (1.0, 80.0), (9.0, 70.0)]) == pytest.approx(80 + (80 + 76 * math.exp(-0.15)))


@given(st.lists(st.floats(0.1, 20), min_size=2, max_size=8, unique=True), st.floats(1, 100))
def test_without_loss_the_area_is_the_fastest_times_the_accuracy(speeds, y):
    assert aup([(rho, y) for rho in speeds]) == pytest.approx(max(speeds) * y)


def test_no_right_answer_is_no_area_and_no_point_is_an_error():
    assert aup([(1.0, 0.0), (4.0, 0.0)]) == 0
    with pytest.raises(ValueError, match="at least one point"):
        aup([])
