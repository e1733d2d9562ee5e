"""The samplers by name. To add one: a file beside these, an entry here, a row in tests/samplers/test_vectors.py."""

from dataclasses import fields
from typing import Any

from dllm import options
from dllm.samplers.base import Prediction, Sampler
from dllm.samplers.static import Random, Static
from dllm.samplers.threshold import Factor, Threshold

SAMPLERS: dict[str, type[Sampler]] = {
    "static": Static,
    "random": Random,
    "threshold": Threshold,
    "factor": Factor,
}
ALIASES = {"low_confidence": "static", "topk": "static", "confidence_threshold": "threshold"}


def make(name: str, **settings: Any) -> Sampler:
    """A sampler from its name: make("threshold", threshold=0.8), or make("threshold:threshold=0.8")."""
    return options.make("sampler", SAMPLERS, ALIASES, name, **settings)


def owners() -> dict[str, str]:
    """Every option of a sampler, with the first sampler that has it: an option that stands alone chooses its owner."""
    found: dict[str, str] = {}
    for name, made in SAMPLERS.items():
        for option in fields(made):  # type: ignore[arg-type]  # every registered class is a dataclass
            found.setdefault(option.name, name)
    return found


__all__ = ["SAMPLERS", "Factor", "Prediction", "Random", "Sampler", "Static", "Threshold", "make", "owners"]
