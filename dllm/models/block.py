"""Block-diffusion relatives of Qwen: a column sees its whole block and every block before it, and nothing later.

SDAR and TraDo (arXiv:2510.06303, 2509.06949) are Qwen3's network without a shift; Fast-dLLM v2 (arXiv:2509.26328) is
Qwen2.5's, and predicts one column on, as the autoregressive model it was made from.
"""

from dataclasses import replace
from functools import partial

from dllm.models import causal
from dllm.models.family import Config, Family, checked, ids, size
from dllm.spec import ModelSpec


def spec(
    config: Config, *, block_key: str, block_length: int, mask_id: int, eos_id: int, logits_shift: int, **network: bool
) -> ModelSpec:
    """Read a config.json of Qwen's keys; those of its own which it lacks have the value of the published checkpoints.

    block_key: what the config calls the block length. network: the fields by which Qwen2 and Qwen3 differ.
    """
    usual = {block_key: block_length, "mask_token_id": mask_id, "eos_token_id": eos_id}
    config = usual | {key: value for key, value in config.items() if value is not None}
    return checked(
        replace(
            causal.spec(config, **network),
            attention="block",
            block_length=size(config, block_key),
            mask_id=ids(config, "mask_token_id")[0],
            logits_shift=logits_shift,
        )
    )


SDAR = Family(
    "SDARForCausalLM",
    # The configs of some published checkpoints name neither the block length nor the mask.
    partial(spec, block_key="block_size", block_length=4, mask_id=151669, eos_id=151643, logits_shift=0, qk_norm=True),
    causal.NAMES,
    turn_end="<|im_end|>",
    tokenizer="Qwen2TokenizerFast",
)
FAST_DLLM_V2 = Family(
    "Fast_dLLM_QwenForCausalLM",
    partial(spec, block_key="bd_size", block_length=32, mask_id=151665, eos_id=151645, logits_shift=1, qkv_bias=True),
    causal.NAMES,
    turn_end="<|im_end|>",
    tokenizer="Qwen2TokenizerFast",
)
FAMILIES = (SDAR, FAST_DLLM_V2)
