"""The samplers by name. To add one: a file beside these, an entry here, a row in tests/samplers/test_vectors.py."""

from collections.abc import Collection
from dataclasses import fields
from typing import Any

from dllm import options
from dllm.errors import DllmError
from dllm.samplers.base import Needs, Prediction, Sampler
from dllm.samplers.credit import Credit
from dllm.samplers.dream import Entropy, MaskgitPlus, Origin, TopkMargin
from dllm.samplers.entropy import DParallel, EntropyBound
from dllm.samplers.freedave import FreeDave
from dllm.samplers.hierarchy import Hierarchy
from dllm.samplers.klass import Klass
from dllm.samplers.learn2pd import Learn2PD
from dllm.samplers.localleap import LocalLeap
from dllm.samplers.prophet import Prophet
from dllm.samplers.renoise import Renoise
from dllm.samplers.sliding import Sliding
from dllm.samplers.static import Random, Static
from dllm.samplers.threshold import Factor, Threshold
from dllm.samplers.wino import Wino

SAMPLERS: dict[str, type[Sampler]] = {
    "static": Static,
    "random": Random,
    "threshold": Threshold,
    "factor": Factor,
    "localleap": LocalLeap,
    "prophet": Prophet,
    "learned": Learn2PD,
    "dparallel": DParallel,
    "eb": EntropyBound,
    "renoise": Renoise,
    "klass": Klass,
    "wino": Wino,
    "freedave": FreeDave,
    "credit": Credit,
    "hierarchy": Hierarchy,
    "sliding": Sliding,
    "maskgit_plus": MaskgitPlus,
    "topk_margin": TopkMargin,
    "entropy": Entropy,
    "origin": Origin,
}
ALIASES = {
    "low_confidence": "static",
    "low_confidence_static": "static",
    "topk": "static",
    "confidence_threshold": "threshold",
    "entropy_threshold": "dparallel",
    "learn2pd": "learned",
    "margin": "topk_margin",
}


def make(name: str, **settings: Any) -> Sampler:
    """A sampler from its name: make("threshold", threshold=0.8), or make("threshold:threshold=0.8")."""
    return options.make("sampler", SAMPLERS, ALIASES, name, **settings)


def owner(wanted: Collection[str]) -> str:
    """The first sampler that has all of these options; threshold if there are none.

    Raises DllmError if no sampler has them all.
    """
    if not wanted:
        return "threshold"
    for name, made in SAMPLERS.items():
        if set(wanted) <= {option.name for option in fields(made)}:  # type: ignore[arg-type]  # a dataclass
            return name
    raise DllmError(f"no sampler has the options {', '.join(wanted)} together; name one by sampler=.")


def without(name: str, given: Collection[str]) -> str | None:
    """A sampler's name without those of its options that are given elsewhere; None if it does not have one of them."""
    if not set(given) <= {option.name for option in fields(make(name))}:  # type: ignore[arg-type]  # a dataclass
        return None
    name, _, text = name.partition(":")
    kept = [item for item in text.split(",") if item and item.partition("=")[0].strip() not in given]
    return f"{name}:{','.join(kept)}" if kept else name


def owners() -> dict[str, str]:
    """Every option of a sampler, with the first sampler that has it."""
    found: dict[str, str] = {}
    for name, made in SAMPLERS.items():
        for option in fields(made):  # type: ignore[arg-type]  # every registered class is a dataclass
            found.setdefault(option.name, name)
    return found


__all__ = [
    "SAMPLERS",
    "Credit",
    "DParallel",
    "Entropy",
    "EntropyBound",
    "Factor",
    "FreeDave",
    "Hierarchy",
    "Klass",
    "Learn2PD",
    "LocalLeap",
    "MaskgitPlus",
    "Needs",
    "Origin",
    "Prediction",
    "Prophet",
    "Random",
    "Renoise",
    "Sampler",
    "Sliding",
    "Static",
    "Threshold",
    "TopkMargin",
    "Wino",
    "make",
    "owner",
    "owners",
    "without",
]
