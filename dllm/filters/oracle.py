"""What a filter learns from: decoding that knows the answer, and what a sampler could see at each of its steps."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from dllm.generation import Request
from dllm.samplers.base import Needs, Prediction, Sampler
from dllm.samplers.features import FEATURES, Sight, seen


@dataclass(frozen=True)
class Seen:
    """One step of some requests, by the columns of their blocks."""

    request: Int[Tensor, " B"]
    """Whose place among the oracle's each row is."""
    step: Int[Tensor, " B"]
    features: Float[Tensor, "B W F"]
    """All of FEATURES, in their order."""
    right: Bool[Tensor, "B W"]
    """Where the proposal is the final token."""
    masked: Bool[Tensor, "B W"]


@dataclass(frozen=True)
class Oracle(Sampler):
    """Reveal every proposal that is the final token: the most that any filter could (arXiv:2509.25188).

    Where no proposal is final, the most confident column is given its final token: the paper ends the block there.
    """

    keys: Int[Tensor, " N"]
    """Of the requests, ascending (`Request.key`)."""
    places: Int[Tensor, " N"]
    """Which request each key belongs to."""
    answers: Int[Tensor, "N G"]
    """What one token a step ends with, of each request."""
    width: int
    """The block length."""
    tell: Callable[[Seen], None] | None = None
    """Called with every step, if anything is to be collected."""

    @classmethod
    def of(
        cls,
        asked: Sequence[Request],
        answers: Sequence[Sequence[int]],
        width: int,
        device: torch.device,
        tell: Callable[[Seen], None] | None = None,
    ) -> "Oracle":
        """The oracle of these answers to these requests."""
        keys, places = torch.tensor([request.key for request in asked], device=device).sort()
        return cls(keys, places, torch.tensor(answers, device=device), width, tell)

    def needs(self) -> Needs:
        return Needs(decided=True, memory=self.tell is not None)

    def __call__(self, p: Prediction) -> Int[Tensor, "B W"]:
        request = self.places[torch.searchsorted(self.keys, p.key.requests)]
        place = (p.span.columns - p.answer_start[:, None]).clamp(0, self.answers.shape[1] - 1)
        final = self.answers[request].gather(1, place)
        right = p.tokens == final
        if self.tell:
            sight = Sight(p, self.width)
            self.tell(Seen(request, p.step, seen(sight, [*FEATURES]), sight.of(right, True), sight.masked))
        found = p.masked & right
        return torch.where(found | (p.top(1) & ~found.any(1, keepdim=True)), final, p.current)
