"""LLaDA's and Fast-dLLM's `generate`, with their argument names: for scripts that were written for them."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

from dllm.api import generate as decode
from dllm.cache import DualCache, NoCache, PrefixCache
from dllm.errors import DllmError
from dllm.generation import Generation
from dllm.samplers import Factor, Sampler, Static, Threshold
from dllm.spec import Model
from dllm.trace import Trace


@dataclass(frozen=True)
class Output:
    """What `return_dict=True` gives; unpacks as Fast-dLLM's (x, nfe), with one number for the whole batch."""

    sequences: Int[Tensor, "B L"]
    """Prompt, left padding included, and answer."""
    nfe: int
    """Forwards of the whole batch. A guided pair counts once."""
    tokens_per_forward: float
    history: list[Any]
    """The changes, as `dllm.Trace` records them."""
    stats: Generation

    def __iter__(self) -> Iterator[Any]:
        return iter((self.sequences, self.nfe))


def generate(
    model: Model,
    prompt: Int[Tensor, "B P"],
    attention_mask: Int[Tensor, "B P"] | None = None,
    steps: int = 128,
    gen_length: int = 128,
    block_length: int = 128,
    temperature: float = 0.0,
    cfg_scale: float = 0.0,
    remasking: str = "low_confidence",
    mask_id: int | None = None,
    logits_eos_inf: bool = False,
    confidence_eos_eot_inf: bool = False,
    threshold: float | None = None,
    factor: float | None = None,
    use_cache: bool = False,
    dual_cache: bool = False,
    seed: int | None = None,
    return_dict: bool = False,
) -> Int[Tensor, "B P+{gen_length}"] | Output:
    """Decode a left-padded batch of prompts; every row comes back as it went in, followed by its answer.

    attention_mask: 0 at the padding. threshold or factor choose Fast-dLLM's rules, else `steps` are spread evenly.
    use_cache: the prefix cache; dual_cache: the dual cache. mask_id: None takes the model's own. As in the originals no
    row stops at its end of text. Unlike there, steps need not be a multiple of the number of blocks, rows may differ in
    length, and the cfg of a prompt without attention_mask works.
    """
    if prompt.ndim != 2:
        raise DllmError(f"prompt has the shape {list(prompt.shape)}; give token ids of shape (batch, length).")
    if isinstance(attention_mask, int):
        raise DllmError(f"the third argument is attention_mask, as in LLaDA; write steps={attention_mask}.")
    keep = torch.ones_like(prompt, dtype=torch.bool) if attention_mask is None else attention_mask.bool()
    if keep.shape != prompt.shape or (keep[:, 1:] < keep[:, :-1]).any():
        raise DllmError("attention_mask must have the prompt's shape and zeros only on the left of each row.")
    if threshold is not None and factor is not None:
        raise DllmError(f"threshold={threshold} and factor={factor} are two rules; give one of them.")
    sampler: Sampler = Static()
    if threshold is not None:
        sampler = Threshold(threshold)
    elif factor is not None:
        sampler = Factor(factor)
    cache = DualCache() if dual_cache else PrefixCache() if use_cache else NoCache()
    trace = Trace()
    made = decode(
        model,
        [row[kept].tolist() for row, kept in zip(prompt, keep, strict=True)],
        sampler,
        cache,
        steps=steps,
        gen_length=gen_length,
        block_length=block_length,
        temperature=temperature,
        cfg_scale=cfg_scale,
        remasking=remasking,
        mask_id=mask_id,
        logits_eos_inf=logits_eos_inf,
        confidence_eos_eot_inf=confidence_eos_eot_inf,
        seed=seed,
        batch_size=len(prompt),
        eos_early_stop=False,
        observers=[trace] if return_dict else [],
    )
    sequences = torch.cat([prompt, torch.tensor(made.completions, device=prompt.device)], 1)
    if not return_dict:
        return sequences
    return Output(sequences, made.forwards, made.tokens_per_forward, trace.changes, made)
