"""Accuracy against speed: which methods nothing beats, and one figure for them together."""

from collections.abc import Sequence
from itertools import pairwise
from math import exp

Point = tuple[float, float]
"""A speed (tokens per forward, or per second) and an accuracy in percent, higher is better for both."""


def front(points: Sequence[Point]) -> list[Point]:
    """The points that no other beats in one and equals in the other (Pareto), slowest and most accurate first."""
    found: list[Point] = []
    for x, y in sorted(set(points), reverse=True):
        if not found or y > found[-1][1]:
            found.append((x, y))
    return found[::-1]


def aup(points: Sequence[Point]) -> float:
    """Accuracy under parallelism: the area under accuracy against tokens per forward, what loses accuracy weighed down.

    In order of tokens per forward rho, points more than 5 percent points below the first are left out; with weights
    w = exp(-3 (1 - y / y_max)) it is rho_1 y_1 + sum (rho_i - rho_{i-1}) (w_i y_i + w_{i-1} y_{i-1}) / 2. A forward
    counts the same however many columns it computes, so this says nothing of time. Source: d3LLM, arXiv:2601.07568,
    where y_max is the best of all methods; here it is the best of these points. Raises ValueError for no points.
    """
    if not points:
        raise ValueError("an area needs at least one point.")
    ordered, best = sorted(points), max(y for _, y in points)
    kept = [(rho, y) for rho, y in ordered if y >= ordered[0][1] - 5]
    weighed = [(rho, y * exp(-3 * (1 - y / best)) if best else 0.0) for rho, y in kept]
    steps = ((right - left) * (low + high) / 2 for (left, low), (right, high) in pairwise(weighed))
    return kept[0][0] * kept[0][1] + sum(steps)
