"""What samplers share that apply another one."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from jaxtyping import Float, Int
from torch import Tensor

from dllm.canvas import Canvas, Span
from dllm.errors import DllmError
from dllm.samplers.base import Needs, Sampler


@dataclass(frozen=True)
class Wrapper(Sampler):
    """A rule over another sampler, which it asks for all but the tokens."""

    base: Any
    """A sampler or its name: Prophet(base="localleap")."""

    def __post_init__(self) -> None:
        from dllm.samplers import SAMPLERS, make  # the registry has the wrappers too

        made = make(self.base) if isinstance(self.base, str) else self.base
        if not isinstance(made, Sampler):
            raise DllmError(f"base={self.base!r} is neither a name nor a Sampler; there are: {', '.join(SAMPLERS)}.")
        object.__setattr__(self, "base", made)

    @property
    def inner(self) -> Sampler:
        assert isinstance(self.base, Sampler)  # made above
        return self.base

    def needs(self) -> Needs:
        return replace(self.inner.needs(), plain=False)

    def for_model(self, name: str) -> Sampler:
        return replace(self, base=self.inner.for_model(name))

    def temperature(self, block_step: Int[Tensor, " B"]) -> Float[Tensor, " B"] | None:
        return self.inner.temperature(block_step)

    def check(self, gen_length: int) -> None:
        self.inner.check(gen_length)

    def quotas(self, masked: int, steps: int) -> Sequence[int]:
        return self.inner.quotas(masked, steps)

    def scope(self, canvas: Canvas, block: Span) -> Span:
        return self.inner.scope(canvas, block)
