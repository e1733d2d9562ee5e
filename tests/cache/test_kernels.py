"""What a view computes with the kernels of the store, as on a GPU, is what it computes with torch."""

import sys

import pytest
import torch

from dllm import generate

PROMPTS = [[5, 6, 7], [8]]
CASES = [
    ("full", "static", "dual", 2),
    ("full", "wino", "dual", 1),
    ("full", "static", "elastic:window_length=2,gamma=0.999", 1),
    ("full", "static", "d2:current_k=2", 1),
    ("block", "static", "exact", 2),
]
"""Attention of the model, sampler, cache, drafts"""


@pytest.fixture
def kernels(monkeypatch):
    """Turns the kernels on or off, which run in Triton's interpreter where there is no GPU."""

    def turn(on):
        for name, module in sorted(sys.modules.items()):
            if name.startswith("dllm.") and hasattr(module, "suits"):
                monkeypatch.setattr(module, "suits", lambda *_: on)

    return turn


@pytest.mark.parametrize(("attention", "sampler", "cache", "drafts"), CASES)
def test_a_cache_decodes_the_same_with_kernels(attention, sampler, cache, drafts, tiny, kernels, device):
    sizes = {"n_layers": 2 if "elastic" in cache else 1, "n_heads": 2, "n_kv_heads": 1}  # the interpreter is slow
    model, made = tiny(dtype=torch.float32, device=device, attention=attention, block_length=2, **sizes), []
    for on in (False, True):
        kernels(on)
        block = {} if attention == "block" else {"block_length": 2}
        made.append(generate(model, PROMPTS, sampler, cache, gen_length=3, drafts=drafts, **block))
    plain, other = made
    assert torch.equal(plain.tokens, other.tokens) and torch.equal(plain.rows, other.rows)
