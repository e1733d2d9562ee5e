"""What a sampler gets and what it gives: a prediction of a span in, the span's next tokens out."""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from dllm.canvas import Span
from dllm.errors import DllmError
from dllm.noise import Key


@dataclass(frozen=True)
class Prediction:
    """What the model says about a span, B rows of W columns."""

    span: Span
    mask_id: int
    current: Int[Tensor, "B W"]
    """The tokens that stand there now."""
    tokens: Int[Tensor, "B W"]
    """The proposed tokens: the most probable ones, or draws at a temperature. Never the mask."""
    confidence: Float[Tensor, "B W"]
    """The proposed token's probability at temperature 1, float32 or wider, at every position, masked or not."""
    logits: Float[Tensor, "B W V"]
    step: Int[Tensor, " B"]
    """Steps that the row has taken, over the whole generation."""
    block_step: Int[Tensor, " B"]
    """Steps that the row has taken in its present block."""
    block_steps: Int[Tensor, " B"]
    """The block's share of `steps`, for samplers with a schedule."""
    block_masked: Int[Tensor, " B"]
    """Masked columns that the block began with."""
    key: Key
    """Noise for samplers that draw."""

    @property
    def masked(self) -> Bool[Tensor, "B W"]:
        """True where the span is still to be decided."""
        return (self.current == self.mask_id) & self.span.valid

    def top(self, k: int | Int[Tensor, " B"], score: Float[Tensor, "B W"] | None = None) -> Bool[Tensor, "B W"]:
        """The k masked positions of each row with the highest score (default: confidence); ties to the lower column."""
        score = (self.confidence if score is None else score).masked_fill(~self.masked, -torch.inf)
        if isinstance(k, int) and k == 1:
            best = score.argmax(1, keepdim=True)  # the first of equal ones
            return torch.zeros_like(self.masked).scatter_(1, best, True) & self.masked
        rank = score.argsort(dim=1, descending=True, stable=True).argsort(1)
        return (rank < (k if isinstance(k, int) else k[:, None])) & self.masked

    def reveal(self, where: Bool[Tensor, "B W"]) -> Int[Tensor, "B W"]:
        """The proposed tokens where the span is masked and `where` holds, the current ones elsewhere."""
        return torch.where(where & self.masked, self.tokens, self.current)


class Sampler:
    """A rule for what to reveal: frozen settings, called once a step, memoryless."""

    def __call__(self, p: Prediction) -> Int[Tensor, "B W"]:
        """The next tokens of the span. Every row in which something is masked must change at least once."""
        raise NotImplementedError(f"{type(self).__name__} does not say what to reveal.")


def check_probability(name: str, value: float, low: str, high: str) -> None:
    """Raise DllmError unless 0 <= value <= 1; low and high say what the ends of the range mean."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= 1:
        raise DllmError(f"{name}={value!r} is not a probability; give a value from 0 ({low}) to 1 ({high}).")
