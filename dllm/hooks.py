"""Dream's two user functions, (step, x, logits) -> x and (step, x, logits) -> logits, called with one row at a time."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from dllm.canvas import Canvas
from dllm.errors import DllmError

IDS = (torch.int64, torch.int32)
Hook = Callable[[int | None, Tensor, Tensor | None], Tensor | None]


@dataclass(frozen=True)
class Hooks:
    """User functions that see whole rows: x (1, L), prompt included, and logits (1, L, V) that predict these columns.

    What they return takes the place of x, or of the logits; None leaves it. The one for tokens is also called before
    the first step, with step and logits None. It may mask a decoded column again; a prompt that it changes is seen by
    the model, and stands unchanged in the result. Steps count forwards: Dream
    also counts those that reveal nothing, which are not run here.
    """

    vocab_size: int
    tokens: Hook | None = None
    logits: Hook | None = None

    def see_logits(
        self, steps: Int[Tensor, " B"], tokens: Int[Tensor, "B L"], lengths: list[int], logits: Float[Tensor, "B W V"]
    ) -> Float[Tensor, "B W V"]:
        """The logits as the user wants them."""
        if self.logits is None:
            return logits
        logits = logits.clone()
        for row, (step, n) in enumerate(zip(steps.tolist(), lengths, strict=True)):
            seen = logits[row : row + 1, :n]
            value = returned(self.logits(step, tokens[row : row + 1, :n].clone(), seen.clone()), seen, "logits")
            if value.isnan().any() or (value == torch.inf).any() or (value == -torch.inf).all(-1).any():
                raise DllmError("the logits hook returned NaN or inf, or a column whose logits are all -inf.")
            seen.copy_(value)
        return logits

    def see_tokens(
        self,
        steps: Int[Tensor, " B"] | None,
        canvas: Canvas,
        rows: Int[Tensor, " B"],
        logits: Float[Tensor, "B W V"] | None,
    ) -> None:
        """Put the tokens that the user wants into the canvas."""
        if self.tokens is None:
            return
        for i, row in enumerate(rows.tolist()):
            n = int(canvas.lengths[row])
            seen = canvas.tokens[row : row + 1, :n]
            step = None if steps is None else int(steps[i])
            given = None if logits is None else logits[i : i + 1, :n].clone()
            value = returned(self.tokens(step, seen.clone(), given), seen, "tokens")
            if value.dtype not in IDS or value.min() < 0 or value.max() >= self.vocab_size:
                raise DllmError(f"the tokens hook returned what is no token id of a vocabulary of {self.vocab_size}.")
            if ((value == canvas.mask_id) & (seen != value) & ~canvas.open[row, :n]).any():
                raise DllmError("the tokens hook masks a given column; it may mask those that are decoded.")
            seen.copy_(value)


def returned(value: Any, like: Tensor, name: str) -> Tensor:
    """What a hook returned, None for no change. Raises DllmError unless its shape is that of what it was given."""
    if value is None:
        return like.clone()
    if not isinstance(value, Tensor) or value.shape != like.shape or value.is_complex():
        shape = list(value.shape) if isinstance(value, Tensor) else type(value).__name__
        raise DllmError(f"the {name} hook returned {shape}; return a tensor of shape {list(like.shape)}, or None.")
    return value
