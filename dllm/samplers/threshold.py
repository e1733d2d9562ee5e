"""Fast-dLLM's two parallel rules: a fixed confidence threshold, and one that tightens with the number revealed."""

from dataclasses import dataclass

import torch
from jaxtyping import Int
from torch import Tensor

from dllm.errors import DllmError
from dllm.samplers.base import Prediction, Sampler, check_probability


@dataclass(frozen=True)
class Threshold(Sampler):
    """Reveal what the model is sure of, at least one token a step (Fast-dLLM, arXiv:2505.22618)."""

    threshold: float = 0.9

    def __post_init__(self) -> None:
        check_probability("threshold", self.threshold, "reveal all", "one token a step")

    def __call__(self, p: Prediction) -> Int[Tensor, "B W"]:
        return p.reveal(p.sure(self.threshold) | p.top(1))


@dataclass(frozen=True)
class Factor(Sampler):
    """Reveal the n surest tokens for the largest n with (n + 1)(1 - c_n) < factor, at least one (arXiv:2505.22618).

    c_n is the n-th highest probability. At factor 1 greedy parallel decoding provably equals one token at a time.
    The published code also takes the last masked token when it alone fails the test; this does not.
    """

    factor: float = 1.0

    def __post_init__(self) -> None:
        if not isinstance(self.factor, int | float) or not self.factor > 0:
            raise DllmError(
                f"factor={self.factor!r} must be above 0; 1.0 is the paper's, smaller reveals fewer tokens a step."
            )

    def __call__(self, p: Prediction) -> Int[Tensor, "B W"]:
        surest = p.confidence.masked_fill(~p.masked, -torch.inf).sort(1, descending=True).values
        n = torch.arange(1, surest.shape[1] + 1, device=surest.device)
        return p.reveal(p.top(((n + 1) * (1 - surest) < self.factor).sum(1).clamp(min=1)))
