"""Collected traces in memory, and their parts by prompt."""

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path

import torch
from jaxtyping import Bool, Float, Int
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from dllm.errors import DllmError
from dllm.weights import line

SHARES = {"train": 0.4, "valid": 0.1, "calibrate": 0.5}
"""Of the prompts; a bound on a risk takes more of them than a network of some thousand parameters does."""
LEAST = 20
"""Prompts without which there is nothing to fit and to calibrate."""


@dataclass(frozen=True)
class Traces:
    """Steps of the oracle (S of them, blocks of W columns, F features), and the answers (N) that it knew."""

    features: Float[Tensor, "S W F"]
    right: Bool[Tensor, "S W"]
    """Where the proposal is the final token."""
    masked: Bool[Tensor, "S W"]
    prompt: Int[Tensor, " S"]
    """Of each step, by its place among all."""
    answer: Int[Tensor, "N G"]
    """One token a step."""
    answer_tokens: Int[Tensor, " N"]
    nfe: Int[Tensor, " N"]
    oracle_nfe: Int[Tensor, " N"]

    @classmethod
    def read(cls, paths: Sequence[Path]) -> "Traces":
        """All shards, in their order. Raises DllmError for one that is not there or not whole."""
        shards = []
        for path in paths:
            try:
                shards.append(load_file(path))
            except (SafetensorError, OSError) as error:
                raise DllmError(
                    f"{path} cannot be read ({line(error)}); if it was cut short, remove it, and it is collected again."
                ) from error
        names = [f.name for f in fields(cls)]
        for path, shard in zip(paths, shards, strict=True):
            if lacking := [name for name in names if name not in shard]:
                raise DllmError(f"{path} has no {lacking[0]!r}; it was not written by dllm train-filter.")
        return cls(**{name: torch.cat([shard[name] for shard in shards]) for name in names})

    def steps_of(self, prompts: Sequence[int]) -> "Traces":
        """The steps of these prompts alone; the answers stay, by the places of all prompts."""
        kept = torch.isin(self.prompt, torch.tensor(list(prompts)))
        return replace(self, **{name: getattr(self, name)[kept] for name in ("features", "right", "masked", "prompt")})


def split(n: int) -> dict[str, range]:
    """Prompts, which are in random order, by what they serve. Raises DllmError for too few."""
    if n < LEAST:
        raise DllmError(f"{n} prompts are too few to fit a filter and to calibrate it; give at least {LEAST}.")
    first, second = round(n * SHARES["train"]), round(n * (SHARES["train"] + SHARES["valid"]))
    return {"train": range(first), "valid": range(first, second), "calibrate": range(second, n)}
