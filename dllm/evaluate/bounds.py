"""How much a method may lose against another one on the same questions: an exact upper bound."""

from math import exp, lgamma, log, log1p


def at_most(k: int, n: int, p: float) -> float:
    """The probability of at most k successes in n trials, each with probability p."""
    if k >= n or p <= 0:
        return 1.0
    if p >= 1:
        return 0.0
    ways = (lgamma(n + 1) - lgamma(i + 1) - lgamma(n - i + 1) + i * log(p) + (n - i) * log1p(-p) for i in range(k + 1))
    return min(1.0, sum(map(exp, ways)))


def upper(k: int, n: int, alpha: float) -> float:
    """The one-sided upper bound of a probability after k successes in n trials; too small at most alpha of the time.

    Source: Clopper and Pearson, Biometrika 26 (1934). Raises ValueError unless 0 <= k <= n, n >= 1 and 0 < alpha < 1.
    """
    if not 0 <= k <= n or n < 1 or not 0 < alpha < 1:
        raise ValueError(f"k={k} of n={n} at alpha={alpha} has no bound; give 0 <= k <= n, n >= 1 and 0 < alpha < 1.")
    low, high = k / n, 1.0
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if at_most(k, n, middle) > alpha else (low, middle)
    return high


def lower(k: int, n: int, alpha: float) -> float:
    """The one-sided lower bound likewise."""
    return 1 - upper(n - k, n, alpha)


def loss_bound(lost: int, won: int, n: int, delta: float) -> float:
    """The most that the second method's share of right answers lies below the first's, up to probability delta.

    lost: of n questions those that only the first method answered right; won: only the second. The loss is the
    difference of their probabilities; each is bounded at delta / 2, so that both hold together. Exact for every n, for
    questions drawn independently from those that one wants to know about.
    """
    return upper(lost, n, delta / 2) - lower(won, n, delta / 2)


def enough(loss: float, delta: float) -> int:
    """How many questions it takes to prove a loss below `loss` if the two methods never differ; 0 < loss, delta < 1."""
    return int(log(delta / 2) / log1p(-loss)) + 1
