"""Two rules on the entropy of the predicted distributions."""

from dataclasses import dataclass

import torch
from jaxtyping import Int
from torch import Tensor

from dllm.samplers.base import Prediction, Sampler, check_at_least


@dataclass(frozen=True)
class DParallel(Sampler):
    """Reveal where the entropy is at most the threshold, at least where it is lowest (dParallel, arXiv:2509.26488).

    Made for weights that were distilled to be certain; 0.45 and 0.5 nats were used.
    """

    threshold: float = 0.5
    """In nats, not a probability."""

    def __post_init__(self) -> None:
        check_at_least("threshold", self.threshold, 0, "an entropy in nats; 0 reveals one token a step")

    def __call__(self, p: Prediction) -> Int[Tensor, "B W"]:
        return p.reveal((p.entropy <= self.threshold) & (self.threshold > 0) | p.top(1, -p.entropy))


@dataclass(frozen=True)
class EntropyBound(Sampler):
    """Reveal the n surest tokens for the largest n whose entropies without the largest sum to at most gamma, n >= 1.

    The sum bounds what the revealed tokens could tell about each other, which revealing them together ignores
    (EB-Sampler, arXiv:2505.24857).
    """

    gamma: float = 0.001
    """In nats. The published setting; 0.1 reveals several times as much."""

    def __post_init__(self) -> None:
        check_at_least("gamma", self.gamma, 0, "a bound in nats; 0 reveals one token a step, more reveals more")

    def __call__(self, p: Prediction) -> Int[Tensor, "B W"]:
        order = p.confidence.masked_fill(~p.masked, -torch.inf).argsort(dim=1, descending=True, stable=True)
        entropy = p.entropy.gather(1, order)
        excess = entropy.cumsum(1) - entropy.cummax(1).values
        # Rising sums: the first n that exceeds gamma ends the prefix. At gamma 0 rounding must not decide.
        n = ((excess <= self.gamma) & (self.gamma > 0)).long().cumprod(1).sum(1)
        return p.reveal(p.top(n.clamp(min=1)))
