"""How much a faster way of decoding changes: the same requests again, one token a step and without a cache."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from dllm.api import start, stream
from dllm.cache import NoCache
from dllm.engine import Run
from dllm.generation import Generation, Prompt
from dllm.samplers import Static


@dataclass(frozen=True)
class Verification:
    """A generation beside the one it should equal."""

    made: Generation
    plain: Generation
    """One token a step, the most probable first, every column computed in every step; the same noise, no guesses."""

    @property
    def first_difference(self) -> list[int | None]:
        """Of every answer, the first column whose token differs; None where all tokens are equal."""
        rows = zip(self.made.completions, self.plain.completions, strict=True)
        return [next((i for i, (a, b) in enumerate(zip(*row, strict=True)) if a != b), None) for row in rows]

    @property
    def equal(self) -> int:
        """How many answers are equal, token for token."""
        return self.first_difference.count(None)

    @property
    def share(self) -> float:
        """The share of answers that are equal, 0 to 1."""
        return self.equal / len(self.first_difference)

    def record(self) -> dict[str, Any]:
        """The comparison as JSON has it."""
        found = {"equal": self.equal, "share": self.share, "first_difference": self.first_difference}
        return {"verified": found | {"forwards": self.plain.forwards}}

    def __str__(self) -> str:
        found = [f"{i} at column {column}" for i, column in enumerate(self.first_difference, 1) if column is not None]
        told = f"{self.equal} of {len(self.first_difference)} answers equal those of one token a step without a cache"
        places = f"; first difference of answer {', '.join(found[:8])}{', ...' * (len(found) > 8)}" if found else ""
        return f"{told} ({self.plain.forwards} forwards){places}"


def verify(model: Any, prompts: Prompt | Sequence[Prompt], *method: Any, **settings: Any) -> Verification:
    """Generate as `dllm.generate` does with these arguments, and again one token a step and without a cache.

    At a temperature both draw the same noise. Raises what `dllm.generate` does.
    """
    run = stream(model, prompts, *method, **settings)
    return Verification(finished(run), finished(plain(run)))


def plain(run: Run) -> Run:
    """A run of the same requests, one token a step and without a cache."""
    settings = replace(
        run.settings,
        seed=run.settings.noise_seed,
        steps=None,
        eotp=None,
        eager=False,
        drafts=1,
        block_length=run.schedule.block_length,
    )
    return start(run.model, run.schedule.requests, Static(), NoCache(), settings, (), None)


def finished(run: Run) -> Generation:
    for _ in run:
        pass
    return run.result()
