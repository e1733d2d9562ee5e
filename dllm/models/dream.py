"""Dream 7B (Base, Instruct), Dream-Coder and DiffuCoder: Qwen2's network, full attention, shift (arXiv:2508.15487)."""

from dataclasses import replace

from dllm.models import causal
from dllm.models.family import Config, Family, checked, ids, required
from dllm.spec import ModelSpec


def spec(config: Config) -> ModelSpec:
    """Read the keys of a Dream config.json: Qwen2's, and the id of the mask."""
    required(config, "mask_token_id")
    required(config, "eos_token_id")
    qwen = causal.spec(config, qkv_bias=True)
    return checked(replace(qwen, attention="full", logits_shift=1, mask_id=ids(config, "mask_token_id")[0]))


# Dream's own tokenizer class, which would be code of the checkpoint, splits and merges as Qwen2's does.
FAMILY = Family("DreamModel", spec, causal.NAMES, turn_end="<|im_end|>", tokenizer="Qwen2TokenizerFast")
