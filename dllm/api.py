"""The functions that users call: generate and stream."""

from collections.abc import Sequence
from typing import Any

import dllm.cache
import dllm.samplers
from dllm.cache.base import Cache
from dllm.engine import Run
from dllm.errors import DllmError, unknown
from dllm.generation import Generation, Prompt, requests
from dllm.samplers.base import Sampler
from dllm.settings import ALIASES, NAMES, Settings
from dllm.spec import Model
from dllm.trace import Observer


def stream(
    model: Model,
    prompts: Prompt | Sequence[Prompt],
    sampler: str | Sampler = "threshold",
    cache: str | Cache | None = None,
    *,
    remasking: str = "low_confidence",
    chat: bool = True,
    request_ids: Sequence[int] | None = None,
    observers: Sequence[Observer] = (),
    **settings: Any,
) -> Run:
    """Start a generation: iterate over the run for its steps, then ask for run.result(). Arguments as of `generate`."""
    for name in list(settings):
        known = ALIASES.get(name, name)
        if known not in NAMES:
            raise unknown("argument", name, [*NAMES, *ALIASES, "sampler", "cache", "remasking", "chat", "request_ids"])
        settings[known] = settings.pop(name)
    checked = Settings(**settings)
    made = dllm.samplers.make(sampler) if isinstance(sampler, str) else sampler
    if remasking not in ("low_confidence", "random"):
        raise unknown("remasking", remasking, ["low_confidence", "random"])
    if remasking == "random":
        if not isinstance(made, dllm.samplers.Static):
            raise DllmError(f"remasking='random' is an order for the static schedule; {made} has its own rule.")
        made = dllm.samplers.Random()
    if model.spec.attention == "causal":
        raise DllmError("a causal model predicts one next token; it cannot fill a canvas of masks.")
    if cache is None:
        cache = "dual" if model.spec.cacheable else "none"
    stored = dllm.cache.make(cache) if isinstance(cache, str) else cache
    if not model.spec.cacheable and not isinstance(stored, dllm.cache.NoCache):
        raise DllmError(f"this model computes every row by itself and cannot use {stored}; give cache='none'.")
    asked = requests(model, prompts, chat=chat, repeats=checked.num_samples, request_ids=request_ids)
    for index, request in enumerate(asked):
        longest = len(request.prompt) + checked.gen_length
        if longest > model.spec.max_length:
            raise DllmError(
                f"prompt {index} of {len(request.prompt)} tokens and gen_length={checked.gen_length} make {longest}; "
                f"the model's context is {model.spec.max_length}."
            )
    return Run(model, asked, made, stored, checked, observers)


def generate(
    model: Model,
    prompts: Prompt | Sequence[Prompt],
    sampler: str | Sampler = "threshold",
    cache: str | Cache | None = None,
    *,
    gen_length: int = 256,
    block_length: int = 32,
    steps: int | None = None,
    temperature: float = 0.0,
    cfg_scale: float = 0.0,
    seed: int | None = None,
    eos_early_stop: bool = True,
    batch_size: int = 16,
    observers: Sequence[Observer] = (),
    **more: Any,
) -> Generation:
    """Fill `gen_length` masks after every prompt, in blocks, several at a time.

    prompts: a string (a user's turn where the tokenizer has a chat template), chat messages, token ids, or a list of
    these. sampler, cache: names, with options after a colon ("threshold:threshold=0.8"), or objects; cache None is
    "dual". The other arguments and `more` are the fields of `dllm.Settings`, and `remasking`, `chat`, `request_ids`.
    Raises DllmError, a ValueError, for values that cannot be.
    """
    run = stream(
        model,
        prompts,
        sampler,
        cache,
        gen_length=gen_length,
        block_length=block_length,
        steps=steps,
        temperature=temperature,
        cfg_scale=cfg_scale,
        seed=seed,
        eos_early_stop=eos_early_stop,
        batch_size=batch_size,
        observers=observers,
        **more,
    )
    for _ in run:
        pass
    return run.result()
