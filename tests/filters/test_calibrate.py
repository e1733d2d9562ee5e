"""The threshold's guarantee holds as often as it says, and losses are what they are said to be."""

from math import comb

import pytest

from dllm import DllmError
from dllm.filters.calibrate import Calibration, bound, calibrate, p_value, wrong


def test_a_loss_is_the_share_of_tokens_up_to_the_later_end_that_differ():
    end = {9}
    assert wrong([1, 2, 9, 9, 9], [1, 2, 9, 9, 9], end) == 0
    assert wrong([1, 3, 9, 9, 9], [1, 2, 9, 9, 9], end) == 1 / 3
    assert wrong([1, 9, 9, 9, 9], [1, 2, 3, 9, 9], end) == wrong([1, 2, 3, 9, 9], [1, 9, 9, 9, 9], end) == 2 / 4
    assert wrong([5, 6], [7, 8], end) == 1


@pytest.mark.parametrize("delta", [0.1, 0.3])
@pytest.mark.parametrize("n", [6, 25])
def test_a_bound_below_the_true_risk_is_as_rare_as_promised(n, delta):
    """For losses of 0 and 1, the worst there are, by adding up the binomial."""
    bounds = [bound([1] * k + [0] * (n - k), delta) for k in range(n + 1)]
    for p in (i / 40 for i in range(41)):
        failing = sum(comb(n, k) * p**k * (1 - p) ** (n - k) for k in range(n + 1) if bounds[k] < p)
        assert failing <= delta + 1e-12


def test_p_values_fall_with_fewer_errors_and_more_prompts():
    assert p_value(0.05, 100, 0.05) == 1 > p_value(0.04, 100, 0.05) > p_value(0.02, 100, 0.05) > p_value(0, 100, 0.05)
    assert p_value(0.02, 400, 0.05) < p_value(0.02, 100, 0.05)
    assert p_value(0, 100, 0.05) == pytest.approx(0.95**100)  # Hoeffding's is the exact one there


def test_thresholds_are_tested_from_the_strictest_until_one_fails():
    asked = []

    def losses(threshold):
        asked.append(threshold)
        return [0.0] * 200 if threshold in (0.9, 0.8, 0.5) else [0.3] * 200

    found = calibrate(losses, 0.05, 0.1, (0.9, 0.8, 0.7, 0.5))
    assert asked == [0.9, 0.8, 0.7] and found.threshold == 0.8
    assert [t.passed for t in found.tested] == [True, True, False]
    assert "at least 0.9 over the draw of the 200 calibration prompts, at threshold 0.8" in found.guarantee
    assert all(t.passed == (t.at_most <= 0.05) for t in found.tested)


def test_a_sequence_of_tests_is_wrong_no_oftener_than_one():
    """Three thresholds of the same risk just above alpha, all tested on the same prompts."""
    n, alpha, delta, failing = 20, 0.2, 0.3, 0.0
    for k in range(n + 1):
        found = calibrate(lambda _, k=k: [1] * k + [0] * (n - k), alpha, delta, (0.9, 0.8, 0.7))
        failing += (found.threshold < 1) * comb(n, k) * (alpha + 1e-9) ** k * (1 - alpha - 1e-9) ** (n - k)
    assert failing <= delta


def test_where_nothing_passes_one_token_a_step_is_left():
    found = calibrate(lambda _: [0.0] * 5, 0.05, 0.1)
    assert found.threshold == 1 and found.guarantee.startswith("Nothing proved") and len(found.tested) == 1
    assert isinstance(found, Calibration) and found.facts()["tested"][0]["passed"] is False


@pytest.mark.parametrize(("alpha", "delta"), [(0, 0.1), (1, 0.1), (0.1, 0), (0.1, 1.5), (float("nan"), 0.1)])
def test_a_risk_lies_between_0_and_1(alpha, delta):
    with pytest.raises(DllmError, match="must lie between 0 and 1"):
        calibrate(lambda _: [0.0], alpha, delta)
