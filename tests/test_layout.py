"""Who may import whom, read from the source; and what every method in a registry must tell about itself.

api, compat, infill, streamer, verify, loading, cli, evaluate, filters ──► all of these
engine ──► accounts, samplers, cache, generation, settings, schedule, plan, forward, graphs, drafts, pace, propose,
       hooks, kernels, deterministic, metrics, trace, spec
drafts ──► samplers, schedule, canvas      forward ──► graphs, cache, plan, spec, canvas
plan ──► canvas                            pace ──► plan          graphs ──► cache, spec, canvas
schedule ──► samplers, canvas, generation, noise, settings, spec propose ──► samplers, settings, noise, kernels
samplers ──► canvas, noise, options, kernels   cache ──► canvas, spec, options, kernels
models ──► canvas, spec, kernels           kernels ──► noise
hooks ──► canvas      deterministic ──► cache, kernels, spec      fingerprint ──► spec
speculate ──► accounts, cache, generation, metrics, models, propose, schedule, settings, trace, and what these import
accounts ──► generation, metrics, plan, spec
causal ──► speculate, generation, models, settings, trace, spec
generation ──► metrics, spec, noise        settings ──► spec, canvas                      trace, spec ──► canvas
metrics ──► spec
options ──► errors                         canvas, noise, errors, transfer ──► nothing
"""

import ast
import sys
from dataclasses import is_dataclass
from pathlib import Path

import pytest

from dllm.cache import CACHES
from dllm.samplers import SAMPLERS
from dllm.speculate import DRAFTERS

ROOT = Path(__file__).parent.parent / "dllm"
LEAVES = {"errors": set(), "canvas": set(), "noise": set(), "kernels": {"noise"}, "transfer": set()}
MAY_IMPORT = {
    **LEAVES,
    "options": {"errors"},
    "spec": {"canvas", "errors"},
    "metrics": {"spec"},
    "trace": {"canvas"},
    "settings": {"canvas", "spec", "errors"},
    "generation": {"metrics", "spec", "noise", "errors"},
    "hooks": {"canvas", "errors"},
    "fingerprint": {"spec", "errors"},
    "plan": {"canvas", "transfer"},
    "pace": {"plan"},
    "accounts": {"generation", "metrics", "plan", "spec"},
    "graphs": {"cache", "canvas", "spec"},
    "forward": {"cache", "canvas", "graphs", "plan", "spec", "transfer"},
    "drafts": {"canvas", "samplers", "schedule", "transfer"},
    "deterministic": {"cache", "kernels", "spec"},
    "propose": {"kernels", "samplers", "noise", "settings"},
    "schedule": {"canvas", "generation", "noise", "samplers", "settings", "spec", "transfer"},
    "samplers": {"canvas", "kernels", "noise", "options", "errors"},
    "cache": {"canvas", "kernels", "spec", "options", "errors", "transfer"},
    "models": {"canvas", "kernels", "spec", "errors"},
    "speculate": {
        *(
            "accounts",
            "cache",
            "canvas",
            "errors",
            "fingerprint",
            "generation",
            "loading",
            "metrics",
            "models",
            "noise",
            "options",
            "propose",
        ),
        *("schedule", "settings", "spec", "trace", "weights"),
    },
    "causal": {"errors", "generation", "models", "settings", "spec", "speculate", "trace"},
    "engine": {
        *(
            "accounts",
            "cache",
            "samplers",
            "canvas",
            "deterministic",
            "drafts",
            "errors",
            "forward",
            "generation",
            "graphs",
            "hooks",
            "kernels",
            "metrics",
            "noise",
            "pace",
            "plan",
            "propose",
        ),
        *("schedule", "settings", "spec", "trace", "transfer"),
    },
}
"""Part of the package -> the parts it may import, at the top of a file or inside a function. Other parts are on top."""

FILES = sorted(ROOT.rglob("*.py"))


def part_of(path):
    return path.relative_to(ROOT).parts[0].removesuffix(".py")


def imports(path):
    """The parts of dllm that a file imports."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: {ast.unparse(node)}"  # written out, so that a reader can search for it
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        else:
            continue
        yield from (name.split(".")[1] for name in names if name.startswith("dllm."))


@pytest.mark.parametrize("part", MAY_IMPORT)
def test_a_part_imports_only_what_stands_below_it(part):
    files = [path for path in FILES if part_of(path) == part]
    found = {name for path in files for name in imports(path)} - {part}
    assert files and found <= MAY_IMPORT[part], found - MAY_IMPORT[part]


def test_only_the_methods_that_plot_or_download_load_slow_packages():
    """The core needs torch and jaxtyping alone."""
    allowed = {"torch", "jaxtyping", "dllm", "triton", *sys.stdlib_module_names}
    for path in (path for path in FILES if part_of(path) in MAY_IMPORT):
        for node in ast.parse(path.read_text()).body:
            if isinstance(node, ast.Import | ast.ImportFrom):
                names = [node.module] if isinstance(node, ast.ImportFrom) else [alias.name for alias in node.names]
                assert {name.split(".")[0] for name in names} <= allowed, f"{path}: {ast.unparse(node)}"


def test_token_ids_stand_in_the_families_only():
    """Ids of special tokens of large vocabularies, as LLaDA's mask 126336, are data of a family."""
    for path in (path for path in FILES if part_of(path) != "models"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Constant) and type(node.value) is int:
                assert not 100_000 <= node.value < 200_000, f"{path}:{node.lineno} {node.value}"


@pytest.mark.parametrize("method", [*SAMPLERS.values(), *CACHES.values(), *DRAFTERS.values()])
def test_a_method_is_a_frozen_dataclass_that_names_its_source(method):
    assert is_dataclass(method) and method.__dataclass_params__.frozen
    told = f"{sys.modules[method.__module__].__doc__} {method.__doc__}"
    assert "arXiv:" in told or "LLaDA" in told
    assert not method.__doc__.startswith(f"{method.__name__}("), "a docstring, not the one dataclass makes up"
