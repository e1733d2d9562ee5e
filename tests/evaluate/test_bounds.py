"""The bound on a loss holds as often as it says, whatever the true probabilities are."""

from math import comb

import pytest

from dllm.evaluate.bounds import at_most, enough, loss_bound, lower, upper


def test_at_most_adds_up_the_binomial():
    for n, p in [(1, 0.3), (7, 0.5), (12, 0.01)]:
        for k in range(n + 1):
            assert at_most(k, n, p) == pytest.approx(sum(comb(n, i) * p**i * (1 - p) ** (n - i) for i in range(k + 1)))
    assert at_most(3, 5, 0.0) == at_most(5, 5, 0.7) == 1 and at_most(3, 5, 1.0) == 0


def test_the_bounds_are_clopper_and_pearsons():
    # n = 20, k = 5: 8.66 % to 49.10 % at 95 %, two-sided; 0 of n has a closed form.
    assert (lower(5, 20, 0.025), upper(5, 20, 0.025)) == pytest.approx((0.0866, 0.4910), abs=5e-5)
    for n in (1, 10, 3000):
        assert upper(0, n, 0.05) == pytest.approx(1 - 0.05 ** (1 / n)) and lower(0, n, 0.05) == 0
        assert upper(n, n, 0.05) == 1 and lower(n, n, 0.05) == pytest.approx(0.05 ** (1 / n))


@pytest.mark.parametrize("delta", [0.1, 0.3])
@pytest.mark.parametrize("n", [5, 12])
def test_a_bound_below_the_true_loss_is_as_rare_as_promised(n, delta):
    bounds = {(lost, won): loss_bound(lost, won, n, delta) for lost in range(n + 1) for won in range(n + 1 - lost)}
    for a in range(0, 11, 2):
        for b in range(0, 11 - a, 2):
            p_lost, p_won = a / 10, b / 10
            failing = 0.0
            for (lost, won), bound in bounds.items():
                if bound < p_lost - p_won:
                    ways = comb(n, lost) * comb(n - lost, won)
                    failing += ways * p_lost**lost * p_won**won * (1 - p_lost - p_won) ** (n - lost - won)
            assert failing <= delta + 1e-12


def test_more_questions_prove_a_smaller_loss():
    assert loss_bound(0, 0, 100, 0.1) > loss_bound(0, 0, 1000, 0.1) > 0
    assert loss_bound(3, 3, 100, 0.1) > loss_bound(3, 9, 100, 0.1)
    n = enough(0.01, 0.1)
    assert loss_bound(0, 0, n, 0.1) < 0.01 <= loss_bound(0, 0, n - 1, 0.1) and n == 299


@pytest.mark.parametrize(("k", "n", "alpha"), [(-1, 5, 0.1), (6, 5, 0.1), (0, 0, 0.1), (1, 5, 0.0), (1, 5, 1.0)])
def test_impossible_counts_are_refused(k, n, alpha):
    with pytest.raises(ValueError, match="has no bound"):
        upper(k, n, alpha)
