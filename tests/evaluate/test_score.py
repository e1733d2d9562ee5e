from itertools import combinations
from statistics import pstdev

import pytest

from dllm.evaluate.score import Z95, mcnemar, paired_bootstrap, pass_at_k, wilson


def test_wilson_matches_published_values():
    # Newcombe, Statistics in Medicine 17 (1998), table I, method 3.
    for right, n, low, high in [
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0, 0.1611),
        (1, 29, 0.0061, 0.1718),
    ]:
        assert wilson(right, n) == pytest.approx((low, high), abs=5e-5)


@pytest.mark.parametrize("n", [1, 2, 7, 100])
def test_the_interval_holds_the_share_and_stays_within_0_and_1(n):
    for right in range(n + 1):
        low, high = wilson(right, n)
        assert 0 <= low <= right / n <= high <= 1


def test_the_ends_are_the_shares_that_the_data_just_do_not_refute():
    low, high = wilson(30, 80)
    for p in (low, high):
        assert abs(30 / 80 - p) == pytest.approx(Z95 * (p * (1 - p) / 80) ** 0.5)


def test_swapping_right_and_wrong_mirrors_the_interval():
    low, high = wilson(3, 11)
    assert wilson(8, 11) == pytest.approx((1 - high, 1 - low))


@pytest.mark.parametrize(("right", "n"), [(0, 0), (-1, 5), (6, 5)])
def test_what_is_no_share_is_refused(right, n):
    with pytest.raises(ValueError, match=f"right={right} of n={n}"):
        wilson(right, n)


# Two runs on the same questions


def test_the_bootstrap_holds_the_difference_and_mirrors():
    first, second = [1, 0, 0, 1, 0, 1, 0, 0, 1, 0] * 8, [1, 1, 0, 1, 0, 1, 1, 0, 0, 0] * 8
    low, high = paired_bootstrap(first, second)
    assert low < 0.1 < high and paired_bootstrap(first, second) == (low, high)
    assert paired_bootstrap(first, first) == (0, 0)
    assert paired_bootstrap(second, first) == pytest.approx((-high, -low), abs=0.02)
    # The normal approximation to the mean of the differences.
    difference = [b - a for a, b in zip(first, second, strict=True)]
    half = Z95 * pstdev(difference) / len(difference) ** 0.5
    assert (low, high) == pytest.approx((0.1 - half, 0.1 + half), abs=0.02)


def test_the_bootstrap_takes_shares():
    low, high = paired_bootstrap([0.25, 0.5, 1.0], [0.5, 0.75, 1.0])
    assert 0 <= low <= 1 / 6 <= high <= 0.25


def test_mcnemar_is_the_binomial_test_of_the_pairs_that_differ():
    from scipy.stats import binomtest

    for b, c in [(0, 0), (1, 0), (5, 2), (3, 3), (40, 17), (700, 600)]:
        first, second = [1] * b + [0] * c + [1] * 9, [0] * b + [1] * c + [1] * 9
        want = binomtest(b, b + c).pvalue if b + c else 1.0
        assert mcnemar(first, second) == pytest.approx(want) == mcnemar(second, first)


def test_pass_at_k_is_the_share_of_draws_with_a_right_answer():
    for n, right, k in [(5, 2, 1), (5, 2, 3), (6, 0, 2), (6, 6, 2), (4, 1, 4)]:
        draws = list(combinations([1] * right + [0] * (n - right), k))
        assert pass_at_k(n, right, k) == pytest.approx(sum(map(any, draws)) / len(draws))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: paired_bootstrap([], []), "0 and 0 values are no pairs"),
        (lambda: paired_bootstrap([1], [1, 0]), "1 and 2 values are no pairs"),
        (lambda: mcnemar([0.5], [1]), "right \\(1\\) or wrong \\(0\\)"),
        (lambda: mcnemar([1, 0], [1]), "zip"),
        (lambda: pass_at_k(3, 4, 1), "k=1, right=4 of n=3"),
        (lambda: pass_at_k(3, 1, 4), "k=4, right=1 of n=3"),
    ],
)
def test_what_cannot_be_compared_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()
