import pytest

from dllm.evaluate.score import Z95, wilson


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
