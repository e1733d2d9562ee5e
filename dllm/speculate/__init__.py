"""The drafters by name. To add one: a file beside these, an entry here, a row in tests/speculate/test_drafters.py."""

from typing import Any

from dllm import options
from dllm.speculate.accept import RULES, Rule, rule
from dllm.speculate.base import Context, Drafter, Drafting, Row
from dllm.speculate.tree import Tree

DRAFTERS: dict[str, type[Drafter]] = {}
ALIASES: dict[str, str] = {}


def make(name: str, **settings: Any) -> Drafter:
    """A drafter from its name: make("ngram", k=5), or make("ngram:k=5")."""
    return options.make("drafter", DRAFTERS, ALIASES, name, **settings)


__all__ = ["DRAFTERS", "RULES", "Context", "Drafter", "Drafting", "Row", "Rule", "Tree", "make", "rule"]
