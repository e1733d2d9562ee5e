"""WINO: reveal generously, look again, take back what does not hold."""

from dataclasses import dataclass

import torch
from jaxtyping import Int
from torch import Tensor

from dllm.samplers.base import Needs, Prediction, Sampler, check_probability


@dataclass(frozen=True)
class Wino(Sampler):
    """Wide in, narrow out (WINO, arXiv:2507.18578).

    Reveal what exceeds `threshold`, at most 70 % of the masks (no fewer than 5, nor more than 20), at least one. Mask
    again those tokens of the block that their shadow gives less than `threshold_back`: a row that stands at the same
    place, holds a mask, and sees all but the token itself. At most one fewer than were revealed in the step before, so
    that a block of n masks takes at most n steps. Nothing is taken back in a step that reveals one token.
    """

    threshold: float = 0.6
    threshold_back: float = 0.9

    def __post_init__(self) -> None:
        check_probability("threshold", self.threshold, "reveal the most that is allowed", "one token a step")
        check_probability("threshold_back", self.threshold_back, "take nothing back", "take back all that is allowed")

    def needs(self) -> Needs:
        return Needs(revoking=True, shadows=True, decided=True, memory=True)

    def __call__(self, p: Prediction) -> Int[Tensor, "B W"]:
        assert p.shadow is not None  # asked for above
        most = (0.7 * p.masked.sum(1)).long().clamp(5, 20)
        revealed = (p.sure(self.threshold, strictly=True) & p.top(most)) | p.top(1)
        decided = p.open & p.block & p.span.valid & ~p.masked
        count = revealed.sum(1)
        last = p.recall.get("count", count, 30)
        doubted = p.shadow.masked_fill(~(decided & (p.shadow < self.threshold_back)), torch.inf)
        rank = doubted.argsort(dim=1, stable=True).argsort(1)
        back = doubted.isfinite() & (rank < (last - 1)[:, None]) & (count > 1)[:, None]
        p.recall.set("count", count)
        return p.reveal(revealed).masked_fill(back, p.mask_id)
