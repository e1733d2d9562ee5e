"""dInfer's hierarchical decoding: divide and conquer, a token in every gap (arXiv:2510.08666)."""

from dataclasses import dataclass

import torch
from jaxtyping import Int
from torch import Tensor

from dllm.samplers.base import Prediction, Sampler, check_probability


@dataclass(frozen=True)
class Hierarchy(Sampler):
    """Reveal the surest token of every run of masks if it passes `low`, and all above `threshold` (arXiv:2510.08666).

    Tokens far apart depend on each other little, so the surest of each run may come at once. At least one token a step.
    """

    threshold: float = 0.9
    low: float = 0.4
    """What the surest token of a run must exceed."""

    def __post_init__(self) -> None:
        check_probability("threshold", self.threshold, "reveal all", "one token a run")
        check_probability("low", self.low, "one token a run whatever its confidence", "the threshold alone")

    def __call__(self, p: Prediction) -> Int[Tensor, "B W"]:
        starts = p.masked.clone()
        starts[:, 1:] &= ~p.masked[:, :-1] | (p.span.columns[:, 1:] != p.span.columns[:, :-1] + 1)
        run = starts.cumsum(1)  # (B, W): the number of the run that a masked column belongs to
        sure = p.confidence.masked_fill(~p.masked, -torch.inf)
        best = torch.full_like(sure, -torch.inf).scatter_reduce(1, (run - 1).clamp(min=0), sure, "amax")
        first = sure == best.gather(1, (run - 1).clamp(min=0))
        above = p.sure(self.threshold, strictly=True)
        return p.reveal(above | (first & (sure > self.low)) | p.top(1))
