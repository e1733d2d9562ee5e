"""Networks of transformers as models to decode with: an oracle for ours, and the way out where we have none.

They store nothing for our caches. `dllm.generate(wrap(module, mask_id=4), ids)`.
"""

from collections.abc import Sequence
from typing import Any

from torch import nn

from dllm.errors import DllmError
from dllm.models.diffusion_gemma import DiffusionGemma, canvas_spec
from dllm.models.foreign import Foreign
from dllm.spec import ModelSpec

__all__ = ["DiffusionGemma", "Foreign", "wrap"]


def wrap(
    module: nn.Module,
    *,
    mask_id: int | None = None,
    eos_ids: Sequence[int] | None = None,
    logits_shift: int = 0,
    tokenizer: Any = None,
    causal: bool = False,
) -> Foreign | DiffusionGemma:
    """A masked language model of transformers (BERT, a LLaDA of the hub, ...) for `dllm.generate`, in evaluation mode.
    Also DiffusionGemma, which has no mask: give it alone, or with its tokenizer.

    mask_id: default the tokenizer's. eos_ids: default the config's. logits_shift: 1 where column i predicts the token
    at i + 1. causal: the module is a causal decoder (Llama, Qwen) with weights of a bidirectional one; it is given a
    mask that shows every column. The module must heed `attention_mask`, or else prompts of unequal lengths must be
    generated one by one (batch_size=1). Raises DllmError if a masked language model has no mask id.
    """
    config: Any = module.config
    if hasattr(config, "canvas_length"):
        if mask_id is not None or logits_shift or causal:
            raise DllmError(
                f"{type(module).__name__} denoises random tokens; leave out mask_id, logits_shift and causal."
            )
        return DiffusionGemma(module, canvas_spec(module, eos_ids), tokenizer)
    mask_id = getattr(tokenizer, "mask_token_id", None) if mask_id is None else mask_id
    if mask_id is None:
        raise DllmError(f"{type(module).__name__} comes without a mask token; give mask_id=.")
    if eos_ids is None:
        end = getattr(config, "eos_token_id", None)
        eos_ids = [] if end is None else end if isinstance(end, list) else [end]
    heads = getattr(config, "num_attention_heads", 1)
    hidden = getattr(config, "hidden_size", 0)
    spec = ModelSpec(
        vocab_size=config.vocab_size,
        n_layers=getattr(config, "num_hidden_layers", 0),
        n_heads=heads,
        n_kv_heads=getattr(config, "num_key_value_heads", None) or heads,
        head_dim=getattr(config, "head_dim", None) or hidden // heads,
        hidden_size=hidden,
        mlp_size=getattr(config, "intermediate_size", 0),
        max_length=getattr(config, "max_position_embeddings", 1 << 20),
        mask_id=mask_id,
        eos_ids=tuple(eos_ids),
        logits_shift=logits_shift,
        cacheable=False,
    )
    return Foreign(module, spec, tokenizer, causal=causal)
