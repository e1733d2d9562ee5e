"""The caches by name. To add one: a frozen dataclass with a `stale` method, an entry here, a row in tests/cases.py."""

from typing import Any

from dllm import options
from dllm.cache.base import Cache, CacheState, View, full_view
from dllm.cache.d2 import D2Cache
from dllm.cache.delayed import DelayedCache, GreedyCache, PromptDelayedCache
from dllm.cache.elastic import ElasticCache
from dllm.cache.exact import ExactCache, SubblockCache
from dllm.cache.policies import DualCache, NoCache, PrefixCache, VicinityCache
from dllm.cache.sparse import SparseCache

CACHES: dict[str, type[Cache]] = {
    "none": NoCache,
    "prefix": PrefixCache,
    "dual": DualCache,
    "vicinity": VicinityCache,
    "exact": ExactCache,
    "subblock": SubblockCache,
    "dkv-decode": DelayedCache,
    "dkv-greedy": GreedyCache,
    "dkv-pd": PromptDelayedCache,
    "elastic": ElasticCache,
    "sparse": SparseCache,
    "d2": D2Cache,
}
ALIASES: dict[str, str] = {"dkv": "dkv-decode"}


def make(name: str, **settings: Any) -> Cache:
    """A cache from its name: make("dual", refresh=8), or make("dual:refresh=8")."""
    return options.make("cache", CACHES, ALIASES, name, **settings)


__all__ = [
    "CACHES",
    "Cache",
    "CacheState",
    "DelayedCache",
    "DualCache",
    "ExactCache",
    "NoCache",
    "PrefixCache",
    "View",
    "full_view",
    "make",
]
