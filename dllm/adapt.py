"""An autoregressive checkpoint as a block-diffusion model: the same network under a mask of blocks.

Fast-dLLM v2 (arXiv:2509.26328) and SDAR (arXiv:2510.06303) are made so, by a short training under that mask; a LoRA
that was trained so, as those of D2F (arXiv:2508.09192), is merged into the weights.
"""

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from dllm import lora
from dllm.errors import DllmError
from dllm.loading import check_block_length, family_of, find, load, read_config
from dllm.models.transformer import Transformer
from dllm.spec import ModelSpec


def adapt(
    name: str | Path,
    *,
    block_length: int | None = None,
    mask_id: int | None = None,
    logits_shift: int = 1,
    adapter: str | Path | None = None,
    device: str | torch.device | None = None,
    dtype: str | torch.dtype | None = None,
    revision: str | None = None,
    progress: bool = False,
) -> Transformer:
    """Open a causal model (Llama, Qwen2, Qwen3) to fill masks, whole blocks at a time.

    block_length: in columns, as in the training. mask_id: the token that stands for an undecided column; default the
    tokenizer's mask token. logits_shift: 1 if the row before a column predicts it, as the causal model does; 0 if the
    training changed that. adapter: a folder that peft saved a LoRA to, which is merged into the weights; without one
    the weights must have been trained so, or answers are poor. The other arguments are those of `dllm.load`.

    Raises DllmError for a model that is not causal, an adapter of another model or kind, and values that cannot be.
    """
    if block_length is None:
        raise DllmError("a causal model has no blocks; give block_length=, as in the training.")
    check_block_length(block_length)
    if logits_shift not in (0, 1):
        raise DllmError(f"logits_shift={logits_shift!r} must be 0 or 1.")
    folder = find(str(name), revision)
    config = read_config(folder)
    family = family_of(config, folder)
    attention = family.spec(config).attention
    if attention != "causal":
        raise DllmError(
            f"{str(name)!r} is a diffusion model already, of {attention} attention; adapt is for autoregressive ones. "
            "Open it with dllm.load."
        )
    model: Transformer = load(folder, device=device, dtype=dtype, progress=progress)
    mask_id = mask_of(model.spec, model.tokenizer, mask_id)
    if adapter is not None:
        lora.merge(model, family, Path(adapter).expanduser())
    model.spec = replace(
        model.spec, attention="block", block_length=block_length, mask_id=mask_id, logits_shift=logits_shift
    )
    return model


def mask_of(spec: ModelSpec, tokenizer: Any, mask_id: int | None) -> int:
    """The id of the mask, given or the tokenizer's."""
    if mask_id is None:
        mask_id = getattr(tokenizer, "mask_token_id", None)
    if mask_id is None:
        raise DllmError("the checkpoint comes without a mask token; give mask_id=, as it was trained.")
    if isinstance(mask_id, bool) or not isinstance(mask_id, int) or not 0 <= mask_id < spec.vocab_size:
        raise DllmError(f"mask_id={mask_id!r} is no token; give a number from 0 to {spec.vocab_size - 1}.")
    if mask_id in spec.eos_ids:
        raise DllmError(f"mask_id={mask_id} ends a text; a mask must be a token of its own.")
    return mask_id
