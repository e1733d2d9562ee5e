"""LocalLeap: near a token that the model is sure of, less certainty will do."""

from dataclasses import dataclass

import torch.nn.functional as F
from jaxtyping import Int
from torch import Tensor

from dllm.errors import DllmError
from dllm.samplers.base import Prediction, Sampler, check_probability


@dataclass(frozen=True)
class LocalLeap(Sampler):
    """Reveal what passes the threshold (the anchors), and around each anchor what passes a lower one (LocalLeap).

    Reveals at least one token a step. Only masked columns are anchors, so a window does not grow along what is decided.
    Source: LocalLeap's published code (arXiv:2510.07081).
    """

    threshold: float = 0.9
    relaxed_threshold: float = 0.75
    """What a column within `radius` of an anchor must pass."""
    radius: int = 4

    def __post_init__(self) -> None:
        check_probability("threshold", self.threshold, "reveal all", "one token a step")
        check_probability("relaxed_threshold", self.relaxed_threshold, "all around an anchor", "no relaxation")
        if isinstance(self.radius, bool) or not isinstance(self.radius, int) or self.radius < 0:
            raise DllmError(f"radius={self.radius!r} is no number of columns; give 0 (no relaxation) or more.")

    def __call__(self, p: Prediction) -> Int[Tensor, "B W"]:
        anchors = p.masked & p.sure(self.threshold)
        near = F.max_pool1d(anchors.float(), 2 * self.radius + 1, stride=1, padding=self.radius) > 0
        return p.reveal(anchors | (near & p.sure(self.relaxed_threshold)) | p.top(1))
