"""What a share of right answers says: its interval."""

from math import sqrt

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
