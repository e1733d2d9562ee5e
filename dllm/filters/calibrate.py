"""Choose a filter's threshold for a stated risk: thresholds are tested on prompts that nothing was fitted to.

The risk of a threshold is the expected share of an answer's tokens that differ from those of one token a step. What is
exchangeable is the prompts: the loss of one is its own share, from 0 to 1, after decoding it with that threshold from
begin to end, so that what a wrong token does to later ones counts. Fixed-sequence testing (Learn then Test,
arXiv:2110.01052): thresholds from the strictest on, each by the Hoeffding-Bentkus p-value of "the risk is above alpha"
(arXiv:2101.02703) at level delta, until one fails. With probability at least 1 - delta over the draw of these prompts
every threshold that passed has a risk of at most alpha. The losses need not fall with the threshold.
"""

from collections.abc import Callable, Collection, Sequence
from dataclasses import asdict, dataclass
from math import ceil, e, exp, log
from typing import Any

from dllm.errors import DllmError
from dllm.evaluate.bounds import at_most

THRESHOLDS = (0.99, 0.97, 0.95, 0.93, 0.9, 0.87, 0.84, 0.8, 0.75, 0.7, 0.6, 0.5, 0.4, 0.3)


def wrong(made: Sequence[int], plain: Sequence[int], eos_ids: Collection[int]) -> float:
    """The share of an answer's tokens that differ from those of another, 0 to 1.

    Columns count up to the end of text of the longer one, that included, and not the filling behind it.
    """
    ends = (next((i + 1 for i, token in enumerate(row) if token in eos_ids), len(row)) for row in (made, plain))
    n = max(ends)
    return sum(a != b for a, b in zip(made[:n], plain[:n], strict=True)) / n


def p_value(risk: int | float, n: int, alpha: float) -> float:
    """That n losses in [0, 1] of a mean of at most `risk` come from a distribution of a mean above alpha.

    The Hoeffding-Bentkus inequality (arXiv:2101.02703): valid for every n and every such distribution.
    """
    if risk >= alpha:
        return 1.0
    divergence = (1 - risk) * log((1 - risk) / (1 - alpha)) + (risk * log(risk / alpha) if risk else 0.0)
    return min(exp(-n * divergence), e * at_most(ceil(n * risk - 1e-9), n, alpha), 1.0)


def bound(losses: Sequence[int | float], delta: float) -> float:
    """The least alpha whose p-value is at most delta: the risk lies below it with probability 1 - delta."""
    risk, n = sum(losses) / len(losses), len(losses)
    low, high = risk, 1.0
    for _ in range(50):
        middle = (low + high) / 2
        low, high = (middle, high) if p_value(risk, n, middle) > delta else (low, middle)
    return high


@dataclass(frozen=True)
class Tested:
    """A threshold and the calibration prompts."""

    threshold: float
    risk: int | float
    """The mean loss."""
    at_most: float
    """Its upper bound at 1 - delta, for this threshold alone."""
    passed: bool


@dataclass(frozen=True)
class Calibration:
    """The threshold chosen, and why."""

    threshold: float
    """The lowest that passed; 1 where none did, which reveals one token a step."""
    alpha: int | float
    delta: int | float
    n: int
    """Calibration prompts."""
    tested: tuple[Tested, ...]

    def facts(self) -> dict[str, Any]:
        return asdict(self) | {"guarantee": self.guarantee}

    @property
    def guarantee(self) -> str:
        """What was proved, in a sentence that says what it rests on."""
        if self.threshold == 1:
            return (
                f"Nothing proved: on {self.n} calibration prompts no threshold was shown to keep the share of wrongly "
                f"revealed tokens at or below {self.alpha:g}, so that one token is revealed a step. Allow a larger "
                "risk, or give more prompts."
            )
        last = next(t for t in self.tested if t.threshold == self.threshold)
        return (
            f"With probability at least {1 - self.delta:g} over the draw of the {self.n} calibration prompts, at "
            f"threshold {self.threshold:g} the expected share of an answer's tokens that differ from those of one "
            f"token a step is at most {self.alpha:g} ({last.risk:.4f} on these prompts; Hoeffding-Bentkus in a fixed "
            "sequence of tests, arXiv:2110.01052). It is about prompts drawn like these, this model, cache and dtype."
        )


def check_risk(alpha: int | float, delta: int | float) -> None:
    """Raise DllmError unless both are between 0 and 1."""
    for name, value, usual in (("alpha", alpha, "0.05"), ("delta", delta, "0.1")):
        if not 0 < value < 1:
            raise DllmError(f"{name}={value} must lie between 0 and 1; {usual} is usual.")


def calibrate(
    losses: Callable[[float], Sequence[int | float]],
    alpha: int | float,
    delta: int | float,
    thresholds: Sequence[float] = THRESHOLDS,
) -> Calibration:
    """The lowest threshold of the sequence up to the first that fails. losses: those of all prompts at a threshold."""
    check_risk(alpha, delta)
    chosen, tested, n = 1.0, list[Tested](), 0
    for threshold in thresholds:
        found = losses(threshold)
        n, risk = len(found), sum(found) / len(found)
        tested.append(Tested(threshold, risk, bound(found, delta), p_value(risk, n, alpha) <= delta))
        if not tested[-1].passed:
            break
        chosen = threshold
    return Calibration(chosen, alpha, delta, n, tuple(tested))
