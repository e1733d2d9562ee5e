"""What can be seen of a block besides its tokens: the inputs of a filter, each a function of a `Sight`.

None looks into the layers of a model. To add one: a function here, with an entry in FEATURES.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from dllm.samplers.base import Prediction

AROUND = (-2, -1, 1, 2)
"""The neighbours of a column that are looked at."""


@dataclass(frozen=True)
class Sight:
    """A prediction laid out by the columns of each row's block: shapes (B, W), W the block length."""

    p: Prediction
    block_length: int

    @cached_property
    def place(self) -> Int[Tensor, "B S"]:
        """Where each column of the prediction's span stands in the block; W for those of no or another block."""
        inside, columns = self.p.block & self.p.span.valid, self.p.span.columns
        first = columns.masked_fill(~inside, torch.iinfo(columns.dtype).max).amin(1, keepdim=True)
        return (columns - first).masked_fill(~inside, self.block_length)

    def of(self, value: Tensor, beyond: bool | float) -> Tensor:
        """Values of the span by the block's columns; `beyond` where the row has no such column."""
        laid = torch.full((len(value), self.block_length + 1), beyond, dtype=value.dtype, device=value.device)
        return laid.scatter_(1, self.place, value)[:, :-1]

    def back(self, value: Float[Tensor, "B W"]) -> Float[Tensor, "B S"]:
        """Values by the block's columns at the columns of the span; anything where it has none of the block."""
        return value.gather(1, self.place.clamp(max=self.block_length - 1))

    @cached_property
    def masked(self) -> Bool[Tensor, "B W"]:
        return self.of(self.p.masked, False)

    @cached_property
    def confidence(self) -> Float[Tensor, "B W"]:
        return self.of(self.p.confidence, 1.0)


def confidence(sight: Sight) -> Float[Tensor, "B W 1"]:
    """The proposal's probability, also where a token stands already: the paper's feature."""
    return sight.confidence[..., None]


def margin(sight: Sight) -> Float[Tensor, "B W 1"]:
    """By how much the highest logit exceeds the second, in logits."""
    return sight.of(sight.p.gap, 0.0)[..., None]


def entropy(sight: Sight) -> Float[Tensor, "B W 1"]:
    """Of the predicted distribution, in nats."""
    return sight.of(sight.p.entropy, 0.0)[..., None]


def neighbours(sight: Sight) -> Float[Tensor, "B W 4"]:
    """The confidence two and one columns to the left, one and two to the right.

    1 where a token stands, or to the left of the block, where all is decided; 0 to the right of it.
    """
    known = sight.confidence.masked_fill(~sight.masked, 1.0)
    width, ends = known.shape[1], known.new_tensor([1.0, 0.0]).expand(len(known), 2)
    padded = torch.cat([ends[:, :1], ends[:, :1], known, ends[:, 1:], ends[:, 1:]], 1)
    return torch.stack([padded[:, 2 + by : 2 + by + width] for by in AROUND], -1)


def age(sight: Sight) -> Float[Tensor, "B W 1"]:
    """ln of the steps in a row, this one included, in which the column's proposal has been the same."""
    p = sight.p
    before, n = p.recall.get("proposal", p.tokens, -1), p.recall.get("age", p.tokens, 0)
    now = torch.where(before == p.tokens, n + 1, 1)
    p.recall.set("proposal", p.tokens)
    p.recall.set("age", now)
    return sight.of(now.to(p.confidence.dtype).log(), 0.0)[..., None]


def border(sight: Sight) -> Float[Tensor, "B W 1"]:
    """How far the column is from the block's left border, as a share of the block length."""
    share = torch.arange(sight.block_length, device=sight.p.confidence.device) / sight.block_length
    return share.to(sight.p.confidence.dtype).expand(len(sight.p.confidence), -1)[..., None]


Feature = Callable[[Sight], Tensor]
FEATURES: dict[str, tuple[int, Feature]] = {
    "confidence": (1, confidence),
    "margin": (1, margin),
    "entropy": (1, entropy),
    "neighbours": (4, neighbours),
    "age": (1, age),
    "border": (1, border),
}
"""Name -> how many numbers it gives for every column, and the function."""
REMEMBERED = {"age"}
"""Features that depend on earlier steps."""


def channels(names: Sequence[str]) -> int:
    """How many numbers these features give for every column."""
    return sum(FEATURES[name][0] for name in names)


def seen(sight: Sight, names: Sequence[str]) -> Float[Tensor, "B W F"]:
    """The features of every column of the block, side by side in the order of their names."""
    return torch.cat([FEATURES[name][1](sight) for name in names], -1)
