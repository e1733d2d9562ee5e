"""Learn2PD: a small trained filter says which proposals are final already (arXiv:2509.25188)."""

from dataclasses import dataclass, replace
from functools import cached_property
from math import inf, log

from jaxtyping import Int
from torch import Tensor

from dllm.errors import DllmError
from dllm.samplers.base import Needs, Prediction, Sampler, check_probability
from dllm.samplers.features import REMEMBERED, Sight
from dllm.samplers.filter import Filter, of_model, read


@dataclass(frozen=True)
class Learn2PD(Sampler):
    """Reveal what the filter believes with at least this probability, at least one token a step (arXiv:2509.25188).

    The filter sees the whole block, decided columns too. Where it believes nothing, the most confident token is
    revealed. It decodes the model for which it was made, in blocks of its own length.
    """

    filter: str | Filter | None = None
    """A file that `dllm train-filter` wrote, its folder, or a bundled model that has one.

    None: the one that comes with the model that is decoded, in the zoo or beside the weights in its folder.
    """
    threshold: float | None = None
    """None: the one that was calibrated with the filter."""

    def __post_init__(self) -> None:
        if self.threshold is None and self.filter is not None:
            object.__setattr__(self, "threshold", self.made.threshold)
        if self.threshold is not None:
            check_probability("threshold", self.threshold, "reveal all", "one token a step")

    def for_model(self, name: str) -> Sampler:
        return self if self.filter is not None else replace(self, filter=of_model(name))

    @cached_property
    def made(self) -> Filter:
        """Raises DllmError as `read`, and where no filter is named and no model was."""
        if self.filter is None:
            raise DllmError("learned has no filter yet; give filter=, or a model that comes with one.")
        return self.filter if isinstance(self.filter, Filter) else read(self.filter)

    def needs(self) -> Needs:
        if self.filter is None:
            return Needs(decided=True)
        return Needs(decided=True, memory=bool(REMEMBERED & {*self.made.features}), fitted=self.made.made_for)

    @property
    def least(self) -> float:
        """The threshold as a logit: probabilities near 1 are told apart there."""
        t = self.threshold or 0.0
        return -inf if t == 0 else inf if t == 1 else log(t) - log(1 - t)

    def __call__(self, p: Prediction) -> Int[Tensor, "B W"]:
        sight = Sight(p, self.made.made_for.block_length)
        return p.reveal((sight.back(self.made.logits(sight)) >= self.least) | p.top(1))
