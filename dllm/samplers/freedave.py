"""FreeDave: static decoding that computes the next steps ahead, and its lossy variant for a threshold."""

from dataclasses import dataclass

from jaxtyping import Int
from torch import Tensor

from dllm.samplers.base import Needs, Prediction, check_probability, check_whole
from dllm.samplers.static import Static


@dataclass(frozen=True)
class FreeDave(Static):
    """The static schedule with drafts: the same tokens in fewer forwards (FreeDave, arXiv:2510.00294).

    With `tau` it is FreeDave++: the threshold rule decides, and a draft is accepted as soon as all that it reveals is
    confirmed, though more would have been. Then tokens may differ from those of the threshold sampler.
    """

    draft_steps: int = 4
    """Drafts of a step, the canvas itself included; `drafts` of the settings goes first."""
    tau: float | None = None
    """The confidence that FreeDave++ reveals at; the paper's code uses 0.95 for LLaDA and Dream."""

    def __post_init__(self) -> None:
        check_whole("draft_steps", self.draft_steps, 1, "drafts; 1 is the plain schedule")
        if self.tau is not None:
            check_probability("tau", self.tau, "reveal all", "one token a step")

    def needs(self) -> Needs:
        return Needs(drafts=self.draft_steps, plain=self.tau is None, subset=self.tau is not None)

    def __call__(self, p: Prediction) -> Int[Tensor, "B W"]:
        return super().__call__(p) if self.tau is None else p.reveal(p.sure(self.tau) | p.top(1))
