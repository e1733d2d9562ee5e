"""LocalLeap: near a token that the model is sure of, less certainty will do."""

from dataclasses import dataclass

from jaxtyping import Int
from torch import Tensor

from dllm.samplers.base import Prediction, Sampler, check_probability, check_whole


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
        check_whole("radius", self.radius, 0, "columns on either side; 0 is no relaxation")

    def __call__(self, p: Prediction) -> Int[Tensor, "B W"]:
        anchors, column = p.masked & p.sure(self.threshold), p.span.columns
        distance = (column[:, :, None] - column[:, None]).abs()  # (B, W, W); a cache may leave gaps in a block
        near = (anchors[:, None] & (distance <= float(self.radius))).any(-1)
        return p.reveal(anchors | (near & p.sure(self.relaxed_threshold)) | p.top(1))
