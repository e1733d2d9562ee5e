"""Learn2PD: a small trained filter says which proposals are final already (arXiv:2509.25188)."""

from dataclasses import dataclass
from functools import cached_property
from math import inf, log

from jaxtyping import Int
from torch import Tensor

from dllm.samplers.base import Needs, Prediction, Sampler, check_probability
from dllm.samplers.features import REMEMBERED, Sight
from dllm.samplers.filter import Filter, read


@dataclass(frozen=True)
class Learn2PD(Sampler):
    """Reveal what the filter believes with at least this probability, at least one token a step (arXiv:2509.25188).

    The filter sees the whole block, decided columns too. Where it believes nothing, the most confident token is
    revealed. It decodes the model for which it was made, in blocks of its own length.
    """

    filter: str | Filter = "tiny-llada"
    """A file that `dllm train-filter` wrote, its folder, or a bundled model that has one."""
    threshold: float | None = None
    """None: the one that was calibrated with the filter."""

    def __post_init__(self) -> None:
        if self.threshold is None:
            object.__setattr__(self, "threshold", self.made.threshold)
        assert self.threshold is not None  # given, or the filter's
        check_probability("threshold", self.threshold, "reveal all", "one token a step")

    @cached_property
    def made(self) -> Filter:
        return self.filter if isinstance(self.filter, Filter) else read(self.filter)

    def needs(self) -> Needs:
        return Needs(decided=True, memory=bool(REMEMBERED & {*self.made.features}), fitted=self.made.made_for)

    @property
    def least(self) -> float:
        """The threshold as a logit: probabilities near 1 are told apart there."""
        t = self.threshold or 0.0
        return -inf if t == 0 else inf if t == 1 else log(t) - log(1 - t)

    def __call__(self, p: Prediction) -> Int[Tensor, "B W"]:
        sight = Sight(p, self.made.made_for.block_length)
        return p.reveal((sight.back(self.made.logits(sight)) >= self.least) | p.top(1))
