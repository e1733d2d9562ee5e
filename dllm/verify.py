"""How much a faster way of decoding changes: the same requests again, one token a step and without cache or drafts."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import zip_longest
from typing import Any

from dllm.api import start, stream
from dllm.cache import NoCache
from dllm.causal import stream_causal
from dllm.engine import Run
from dllm.generation import Generation, Prompt
from dllm.samplers import Static
from dllm.speculate import rule
from dllm.speculate.run import CausalRun


@dataclass(frozen=True)
class Verification:
    """A generation beside the one it should equal."""

    made: Generation
    plain: Generation
    """One token a step, the most probable first, every column computed in every step; the same noise, no guesses. Of a
    causal model, one token a forward."""
    how: str = "one token a step without a cache"
    """What plain means."""

    @property
    def first_difference(self) -> list[int | None]:
        """Of every answer, the first column whose token differs; None where all tokens are equal."""
        rows = zip(self.made.completions, self.plain.completions, strict=True)
        return [next((i for i, (a, b) in enumerate(zip_longest(*row)) if a != b), None) for row in rows]

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
        told = f"{self.equal} of {len(self.first_difference)} answers equal those of {self.how}"
        places = f"; first difference of answer {', '.join(found[:8])}{', ...' * (len(found) > 8)}" if found else ""
        return f"{told} ({self.plain.forwards} forwards){places}"


def verify(model: Any, prompts: Prompt | Sequence[Prompt], *method: Any, **settings: Any) -> Verification:
    """Generate as `dllm.generate` does with these arguments, and again one token a step and without a cache.

    A causal model generates as `dllm.generate_causal` does, and again without drafts. At a temperature both draw the
    same noise. Raises what these functions do.
    """
    causal = getattr(getattr(model, "spec", None), "attention", None) == "causal"
    run = stream_causal(model, prompts, *method, **settings) if causal else stream(model, prompts, *method, **settings)
    finished(run)
    return against_plain(run)


def against_plain(run: Run | CausalRun) -> Verification:
    """A finished run beside a plain one of the same requests."""
    if isinstance(run, CausalRun):
        return Verification(run.result(), finished(plain(run)), "one token a forward without drafts")
    return Verification(run.result(), finished(plain(run)))


def plain(run: Run | CausalRun) -> Run | CausalRun:
    """A run of the same requests, one token a step, without cache and drafts (a causal model keeps its cache)."""
    if isinstance(run, CausalRun):
        settings = replace(run.settings, seed=run.settings.noise_seed)
        return CausalRun(run.model, run.requests, None, rule("match"), settings)
    settings = replace(
        run.settings,
        seed=run.settings.noise_seed,
        steps=None,
        eotp=None,
        eager=False,
        drafts=1,
        block_length=run.schedule.block_length,
    )
    return start(run.model, run.requests, Static(), NoCache(), settings, (), None)


def finished(run: Run | CausalRun) -> Generation:
    for _ in run:
        pass
    return run.result()
