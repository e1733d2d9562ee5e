"""The drafters by name. To add one: a file beside these, an entry here, a row in tests/speculate/test_drafters.py."""

from typing import Any

from dllm import options
from dllm.speculate.accept import RULES, Rule, rule
from dllm.speculate.base import Context, Drafter, Drafting, Row
from dllm.speculate.branches import Branches
from dllm.speculate.diffusion import Diffusion
from dllm.speculate.medusa import Hydra, Medusa
from dllm.speculate.model import ModelDrafter
from dllm.speculate.ngram import Ngram
from dllm.speculate.recycling import Recycling
from dllm.speculate.stand import Stand
from dllm.speculate.suffix import Suffix
from dllm.speculate.tree import Tree

DRAFTERS: dict[str, type[Drafter]] = {
    "ngram": Ngram,
    "recycling": Recycling,
    "suffix": Suffix,
    "model": ModelDrafter,
    "tree": Branches,
    "stand": Stand,
    "medusa": Medusa,
    "hydra": Hydra,
    "diffusion": Diffusion,
}
ALIASES = {
    "prompt_lookup": "ngram",
    "pld": "ngram",
    "token_recycling": "recycling",
    "draft_model": "model",
    "dyspec": "tree",
}


def make(name: str, **settings: Any) -> Drafter:
    """A drafter from its name: make("ngram", k=5), or make("ngram:k=5")."""
    return options.make("drafter", DRAFTERS, ALIASES, name, **settings)


__all__ = ["DRAFTERS", "RULES", "Context", "Drafter", "Drafting", "Row", "Rule", "Tree", "make", "rule"]
