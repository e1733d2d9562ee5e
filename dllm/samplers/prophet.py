"""Prophet: once the answer has settled, reveal all that is left at once."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

from dllm.canvas import Canvas, Span
from dllm.errors import DllmError
from dllm.samplers.base import Needs, Prediction, check_whole
from dllm.samplers.wrapper import Wrapper


@dataclass(frozen=True)
class Prophet(Wrapper):
    """Commit early when the two highest logits lie far apart where the answer stands (Prophet, arXiv:2508.19982).

    A step's mean gap between the highest and the second logit over the answer region is compared with a threshold that
    falls with progress, step / steps. If it passes, all that is left is revealed, else `base` decides, at every step.
    With `answer_start` the region is `answer_length` columns from there, decided ones too, and all of the answer is
    revealed. Without it the region is what is masked in the block, and the block is revealed.
    """

    base: Any = "static"
    answer_start: int | None = None
    """Counted from the first generated column."""
    answer_length: int = 5
    thresholds: Sequence[float] = (7.5, 5.0, 2.5)
    """Early, middle and late, in logits; infinite: never."""
    phases: Sequence[float] = (0.33, 0.67)
    """Where the middle and the late phase begin, as shares of `steps`."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, n, told in (("thresholds", 3, "early, middle and late"), ("phases", 2, "two shares of the steps")):
            value = getattr(self, name)
            numbers = isinstance(value, Sequence) and all(type(v) in (int, float) and v == v for v in value)
            if not numbers or len(value) != n:
                raise DllmError(f"{name}={value!r} must be {n} numbers: {told}.")
            object.__setattr__(self, name, tuple(value))
        if not 0 <= self.phases[0] <= self.phases[1] <= 1:
            raise DllmError(f"phases={self.phases!r} must be two rising shares of the steps, from 0 to 1.")
        if self.answer_start is not None:
            check_whole("answer_start", self.answer_start, 0, "counted from the first generated column")
        check_whole("answer_length", self.answer_length, 1, "columns of the answer region")

    def needs(self) -> Needs:
        needs = super().needs()
        return needs if self.answer_start is None else replace(needs, decided=True)

    def check(self, gen_length: int) -> None:
        super().check(gen_length)
        if self.answer_start is not None and self.answer_start + self.answer_length > gen_length:
            raise DllmError(
                f"the answer region, columns {self.answer_start} to {self.answer_start + self.answer_length - 1}, "
                f"lies outside the {gen_length} generated ones; give a smaller answer_start or a larger gen_length."
            )

    def scope(self, canvas: Canvas, block: Span) -> Span:
        if self.answer_start is None:
            return super().scope(canvas, block)
        start = block.columns[:, 0].minimum(canvas.prompt_lengths + self.answer_start)
        return Span.between(start, canvas.lengths, canvas.answer_width)

    def __call__(self, p: Prediction) -> Int[Tensor, "B W"]:
        if self.answer_start is None:
            region, rest = p.masked, p.masked
        else:
            first = (p.answer_start + self.answer_start)[:, None]
            region = (p.span.columns >= first) & (p.span.columns < first + self.answer_length) & p.span.valid
            rest = p.undecided
        # Where an end of text has cut the row short there may be no region left: then nothing vouches for the rest.
        gap = torch.where(region, p.gap, 0.0).sum(1) / region.sum(1)
        progress = (p.step + 1) / p.steps
        early, middle, late = (torch.full_like(gap, t) for t in self.thresholds)
        wanted = torch.where(progress < self.phases[0], early, torch.where(progress < self.phases[1], middle, late))
        everything = torch.where(rest, p.tokens, p.current)
        return torch.where((gap >= wanted)[:, None], everything, self.inner(p))
