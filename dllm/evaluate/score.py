"""What a share of right answers says: its interval, and how it compares with another on the same questions."""

from collections.abc import Sequence
from math import comb, sqrt

import numpy as np

Z95 = 1.959963984540054
"""The normal quantile of a two-sided 95 % interval."""


def wilson(right: int, n: int) -> tuple[float, float]:
    """The 95 % interval of a share, `right` of `n`, by Wilson's score: within [0, 1], and sensible at 0 and at n.

    Source: E. B. Wilson, JASA 22 (1927). Raises ValueError unless 0 <= right <= n and n >= 1.
    """
    if not 0 <= right <= n or n < 1:
        raise ValueError(f"right={right} of n={n} is no share; n must be at least 1 and right from 0 to n.")
    share, z2 = right / n, Z95 * Z95
    middle = (share + z2 / (2 * n)) / (1 + z2 / n)
    half = Z95 * sqrt(share * (1 - share) / n + z2 / (4 * n * n)) / (1 + z2 / n)
    # At the ends the sum is exact on paper only.
    return (0.0 if right == 0 else middle - half), (1.0 if right == n else middle + half)


def paired_bootstrap(
    first: Sequence[int | float], second: Sequence[int | float], resamples: int = 10_000, seed: int = 0
) -> tuple[float, float]:
    """The 95 % interval of the mean of second - first, values of the same questions, by the percentile bootstrap.

    Source: B. Efron, Ann. Statist. 7 (1979). Raises ValueError unless both have the same number of values, at least 1.
    """
    if len(first) != len(second) or not first:
        raise ValueError(f"{len(first)} and {len(second)} values are no pairs; give one of each for every question.")
    n = len(first)
    values, counts = np.unique(np.subtract(second, first, dtype=float), return_counts=True)
    # Drawing n of the differences with replacement = drawing how often each distinct one comes.
    drawn = np.random.default_rng(seed).multinomial(n, counts / n, size=resamples)
    low, high = np.quantile(drawn @ values / n, (0.025, 0.975))
    return float(low), float(high)


def mcnemar(first: Sequence[int | float], second: Sequence[int | float]) -> float:
    """The two-sided p of McNemar's exact test that two runs are right equally often, values 0 or 1 per question.

    Only questions on which they differ count: of these each run has its share by a fair coin. Source: Q. McNemar,
    Psychometrika 12 (1947). Raises ValueError for other values, and for different numbers of them.
    """
    pairs = list(zip(first, second, strict=True))
    if any(value not in (0, 1) for pair in pairs for value in pair):
        raise ValueError("McNemar's test takes answers that are right (1) or wrong (0); take the bootstrap for shares.")
    n, fewer = sum(a != b for a, b in pairs), min(sum(a > b for a, b in pairs), sum(a < b for a, b in pairs))
    return float(min(1.0, 2 * sum(comb(n, i) for i in range(fewer + 1)) / 2**n))


def pass_at_k(n: int, right: int, k: int) -> float:
    """The chance that one of k answers is right, estimated without bias from n answers of which `right` are.

    Source: Codex, arXiv:2107.03374. Raises ValueError unless 0 <= right <= n and 1 <= k <= n.
    """
    if not (0 <= right <= n and 1 <= k <= n):
        raise ValueError(f"k={k}, right={right} of n={n}: k must be from 1 to n, and right from 0 to n.")
    return 1 - comb(n - right, k) / comb(n, k)
