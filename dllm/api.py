"""The functions that users call: generate and stream."""

from collections.abc import Sequence
from typing import Any

import torch

import dllm.cache
import dllm.samplers
from dllm.cache.base import Cache
from dllm.cache.encoder import EncoderCache
from dllm.engine import Run
from dllm.errors import DllmError, unknown
from dllm.fingerprint import fingerprint
from dllm.generation import Constraints, Generation, Prompt, Request, check_lengths, constrained, requests
from dllm.hooks import Hooks
from dllm.samplers.base import Sampler
from dllm.settings import ALIASES, NAMES, SAMPLER_ALIASES, Settings
from dllm.spec import Model, ModelSpec
from dllm.trace import Observer

HOOK_NAMES = {
    "tokens": ("tokens_hook", "generation_tokens_hook_func"),
    "logits": ("logits_hook", "generation_logits_hook_func"),
}
"""The hooks, by the names that we and Dream's projects give them."""


def canonical(settings: dict[str, Any], *more: str) -> dict[str, Any]:
    """Settings under our names. Raises DllmError for a name that is unknown, or given twice under two names.

    more: names that the caller takes besides those that all callers do.
    """
    renamed: dict[str, Any] = {}
    for name, value in settings.items():
        known = ALIASES.get(name, name)
        if known not in NAMES:
            others = ["sampler", "cache", "remasking", "request_ids", "observers", *more]
            others += [hook for names in HOOK_NAMES.values() for hook in names]
            others += ["use_cache", "dual_cache", *dllm.samplers.owners()]
            raise unknown("argument", name, [*NAMES, *ALIASES, *SAMPLER_ALIASES, *others])
        if known in renamed:
            raise DllmError(f"{known} is given twice, as {renamed[known]!r} and as {name}={value!r}; give it once.")
        renamed[known] = value
    return renamed


def choose_sampler(
    sampler: str | Sampler | None, remasking: str, settings: dict[str, Any], default: str = "threshold"
) -> Sampler:
    """The sampler, also from the arguments by which other projects choose it, which leave `settings`.

    alg= names it; options of a sampler may stand alone (threshold=0.8, factor=1.0), and choose the first sampler that
    has them all; remasking="random" is static in random order. None: the default, which is the model's.
    """
    for alias in [alias for alias in SAMPLER_ALIASES if alias in settings]:
        if sampler is not None:
            raise DllmError(f"sampler={sampler!r} and {alias}={settings[alias]!r} say the same; give one of them.")
        sampler = settings.pop(alias)
    options = {name: settings.pop(name) for name in dllm.samplers.owners() if name in settings}
    options = {name: value for name, value in options.items() if value is not None}
    if remasking not in ("low_confidence", "random"):
        raise unknown("remasking", remasking, ["low_confidence", "random"])
    if sampler is None:
        named = dllm.samplers.owner(options) if options else default
        sampler = "static" if remasking == "random" else named
    if isinstance(sampler, str):
        sampler = dllm.samplers.make(sampler, **options)
    elif options:
        raise DllmError(f"{', '.join(options)} must be given to {sampler!r} itself.")
    if not isinstance(sampler, Sampler):
        names = ", ".join(dllm.samplers.SAMPLERS)
        raise DllmError(f"sampler={sampler!r} is neither a name nor a Sampler; there are: {names}.")
    if remasking == "random" and not isinstance(sampler, dllm.samplers.Static):
        raise DllmError(f"remasking='random' is an order for the static schedule; {sampler} has its own rule.")
    return dllm.samplers.Random() if remasking == "random" else sampler


def choose_cache(cache: str | Cache | None, settings: dict[str, Any]) -> Cache | None:
    """The cache, also from Fast-dLLM's use_cache= and dual_cache=, which leave `settings`. None: the model's own."""
    flags = {name: settings.pop(name) for name in ("use_cache", "dual_cache") if name in settings}
    if flags and cache is not None:
        raise DllmError(f"cache={cache!r} and {', '.join(flags)} say the same; give one of them.")
    if flags:
        cache = "dual" if flags.get("dual_cache") else "prefix" if flags.get("use_cache") else "none"
    stored = dllm.cache.make(cache) if isinstance(cache, str) else cache
    if not isinstance(stored, Cache | None):
        names = ", ".join(dllm.cache.CACHES)
        raise DllmError(f"cache={cache!r} is neither a name nor a Cache; there are: {names}.")
    return stored


def choose_hooks(model: Model, settings: dict[str, Any]) -> Hooks | None:
    """Dream's two hooks under either name, which leave `settings`; None if there are none."""
    given: dict[str, Any] = {}
    for ours, names in HOOK_NAMES.items():
        found = {name: hook for name in names if (hook := settings.pop(name, None)) is not None}
        if len(found) > 1:
            raise DllmError(f"{' and '.join(found)} say the same; give one of them.")
        for name, hook in found.items():
            if not callable(hook):
                raise DllmError(f"{name}={hook!r} is not a function of (step, x, logits).")
            given[ours] = hook
    return Hooks(model.spec.vocab_size, **given) if given else None


def stream(
    model: Model,
    prompts: Prompt | Sequence[Prompt],
    sampler: str | Sampler | None = None,
    cache: str | Cache | None = None,
    *,
    remasking: str = "low_confidence",
    chat: bool = True,
    constraints: Constraints | None = None,
    request_ids: Sequence[int] | None = None,
    observers: Sequence[Observer] = (),
    **settings: Any,
) -> Run:
    """Start a generation: iterate over the run for its steps, then ask for run.result(). Arguments as of `generate`."""
    check_model(model)
    made = choose_sampler(sampler, remasking, settings, model.spec.sampler)
    stored = choose_cache(cache, settings)
    hooks = choose_hooks(model, settings)
    checked = Settings(**canonical(settings, "chat", "constraints"))
    masks = [checked.blank(model.spec)] * checked.gen_length
    answer = masks if constraints is None else constrained(model, masks, constraints)
    asked = requests(model, prompts, answer, chat=chat, repeats=checked.num_samples, request_ids=request_ids)
    return start(model, asked, made, stored, checked, observers, hooks)


def check_model(model: Any) -> None:
    """Raise DllmError unless masks can be filled by this model."""
    if not isinstance(getattr(model, "spec", None), ModelSpec):
        raise DllmError(f"{type(model).__name__} is no model of ours; dllm.models.hf.wrap opens a transformers module.")
    if model.spec.attention == "causal":
        raise DllmError(
            "a causal model predicts one next token; it cannot fill masks. Give it to dllm.generate_causal."
        )


def check_pair(sampler: Sampler, cache: Cache, drafts: int | str = 1) -> None:
    """Raise DllmError unless this cache can serve this sampler, with so many drafts."""
    if cache.attentive and sampler.needs().shadows:
        raise DllmError(
            f"{cache} looks at attention, in which the shadow rows of {sampler} would stand; take another cache."
        )
    if cache.announced and type(sampler).announce is Sampler.announce:
        able = [n for n, made in dllm.samplers.SAMPLERS.items() if made.announce is not Sampler.announce]
        raise DllmError(
            f"{cache} must know which columns come next before they are predicted, which {sampler} decides afterwards; "
            f"take another cache, or one of the samplers {', '.join(able)}."
        )
    if drafts != 1 and sampler.needs().memory:
        raise DllmError(f"{sampler} remembers its steps, so that none can be drafted; give drafts=1.")
    if drafts != 1 and sampler.needs().shadows:
        raise DllmError(f"{sampler} needs shadow rows, which drafts do not have; give drafts=1.")
    if drafts != 1 and not cache.drafts:
        raise DllmError(
            f"{cache} keeps what the last step stored, which a draft cannot share; give drafts=1 or another cache."
        )


def fitted_to(model: Model, sampler: Sampler) -> Sampler:
    """The sampler with what comes with the model, where it needs that. Raises DllmError if nothing does."""
    return sampler.for_model(getattr(model, "name", ""))


def check_fitted(model: Model, sampler: Sampler, settings: Settings) -> None:
    """Raise DllmError if the sampler was fitted for another model, or for blocks of another length."""
    fitted, ours = sampler.needs().fitted, getattr(model, "name", "") or "this model"
    if fitted is None:
        return
    if (found := fingerprint(model)) != fitted.fingerprint:
        raise DllmError(
            f"{fitted.method} was fitted on {fitted.model} (weights {fitted.fingerprint}), and {ours} has others "
            f"({found}); fit one for it with dllm train-filter, or take another sampler."
        )
    if (
        length := sampler.block_length(settings.block_length or model.spec.block_length or None, settings.gen_length)
    ) != fitted.block_length:
        raise DllmError(
            f"{fitted.method} was fitted on {fitted.model} with block_length {fitted.block_length}, and {ours} decodes "
            f"with block_length {length}; give block_length={fitted.block_length}."
        )


def check_method(model: Model, sampler: Sampler, cache: Cache, settings: Settings, hooks: Hooks | None = None) -> None:
    """Raise DllmError where model, sampler, cache and settings do not go together."""
    if not model.spec.cacheable and not isinstance(cache, dllm.cache.NoCache | EncoderCache):
        raise DllmError(f"this model computes every row by itself and cannot use {cache}; give cache='none'.")
    if not model.spec.cacheable and sampler.needs().shadows:
        raise DllmError(f"{sampler} needs shadow rows, which this model cannot compute; take another sampler.")
    check_noise(model.spec, sampler, settings, hooks)
    if settings.eotp is not None and not model.spec.eos_ids:
        raise DllmError(f"eotp={settings.eotp}: the model has no end of text to predict; leave it out.")
    if settings.eotp is not None and settings.logits_eos_inf and len(model.spec.eos_ids) == 1:
        raise DllmError("eotp waits for the model's one end of text, which logits_eos_inf forbids; leave out one.")
    check_blocks(model.spec, cache, settings.block_length)
    check_fitted(model, sampler, settings)
    drafts = settings.drafts or sampler.needs().drafts
    check_pair(sampler, cache, drafts)
    if drafts != 1 and hooks:
        raise DllmError(f"hooks see every step, of which drafts={drafts} takes several at a time; give drafts=1.")
    if settings.eager and drafts == 1:
        raise DllmError(f"eager=True drafts the next block, but {sampler} has no drafts; give drafts=2 or more.")
    if settings.eager and not cache.through:
        raise DllmError(f"eager=True drafts the next block, which {cache} begins with a refresh; give cache='none'.")
    if hooks and not isinstance(cache, dllm.cache.NoCache):
        raise DllmError(f"hooks see and change whole rows, which {cache} would not notice; give cache='none'.")


def own_cache(spec: ModelSpec) -> Cache:
    """The cache of a model for which none is named."""
    if not spec.cacheable:
        return dllm.cache.NoCache()
    return dllm.cache.ExactCache() if spec.attention == "block" else dllm.cache.DualCache()


def check_blocks(spec: ModelSpec, cache: Cache, block_length: int | None) -> None:
    """Raise DllmError unless cache and blocks suit the model's pattern of attention."""
    if spec.attention not in cache.patterns:
        instead = "'exact' or 'subblock'" if spec.attention == "block" else "'dual'"
        raise DllmError(
            f"{cache} was made for {' and '.join(cache.patterns)} attention, and this model's is {spec.attention}; "
            f"give {instead}, or leave cache out."
        )
    if spec.attention == "block" and spec.block_length % (block_length or spec.block_length):
        raise DllmError(
            f"block_length={block_length} does not divide the blocks of {spec.block_length} columns that the model was "
            f"trained with; give {spec.block_length} or a divisor of it."
        )


def check_noise(spec: ModelSpec, sampler: Sampler, settings: Settings, hooks: Hooks | None) -> None:
    """Raise DllmError for what random tokens instead of masks, or a decoder of blocks, do not allow."""
    if not spec.uniform and sampler.needs().renoises:
        raise DllmError(
            f"{sampler} draws undecided tokens anew, but those of this model are masks; take another sampler."
        )
    if spec.uniform and (settings.cfg_scale > 0 or hooks or sampler.needs().shadows):
        name = "cfg_scale" if settings.cfg_scale > 0 else "a hook" if hooks else str(sampler)
        raise DllmError(
            f"{name} needs a mask, which this model does not have: it denoises random tokens; leave it out."
        )
    if settings.temperature > 0 and sampler.temperature(torch.zeros(1, dtype=torch.long)) is not None:
        raise DllmError(
            f"temperature={settings.temperature}: {sampler} has temperatures of its own; set those instead."
        )
    if spec.attention != "canvas":
        return
    if settings.eotp is not None or type(sampler).scope is not Sampler.scope:
        name = str(sampler) if settings.eotp is None else f"eotp={settings.eotp}"
        raise DllmError(f"{name} looks beyond the block, which this model's decoder cannot; leave it out.")
    canvas = settings.block_length or spec.block_length
    if settings.gen_length % canvas:
        raise DllmError(
            f"gen_length={settings.gen_length}: this model denoises blocks of {canvas} tokens; give a multiple of that."
        )


def start(
    model: Model,
    asked: Sequence[Request],
    sampler: Sampler,
    cache: Cache | None,
    settings: Settings,
    observers: Sequence[Observer],
    hooks: Hooks | None,
) -> Run:
    """A run of these requests. Raises DllmError where model, sampler, cache and lengths do not go together."""
    sampler = fitted_to(model, sampler)
    if cache is None:
        cache = own_cache(model.spec) if not hooks else dllm.cache.NoCache()
    if model.spec.attention == "canvas" and isinstance(cache, dllm.cache.NoCache):
        cache = EncoderCache()  # the network's own, whatever is not kept here
    check_method(model, sampler, cache, settings, hooks)
    check_lengths(model, asked)
    for request in asked:
        sampler.check(len(request.answer))
    return Run(model, asked, sampler, cache, settings, observers, hooks)


def generate(
    model: Model,
    prompts: Prompt | Sequence[Prompt],
    sampler: str | Sampler | None = None,
    cache: str | Cache | None = None,
    *,
    gen_length: int = 256,
    block_length: int | None = None,
    steps: int | None = None,
    temperature: float = 0.0,
    cfg_scale: float = 0.0,
    seed: int | None = None,
    eos_early_stop: bool = True,
    batch_size: int = 16,
    observers: Sequence[Observer] = (),
    **more: Any,
) -> Generation:
    """Fill `gen_length` masks after every prompt, in blocks, several prompts at a time.

    prompts: a string (a user's turn where the tokenizer has a chat template), chat messages, token ids, or a list of
    these. sampler, cache: names, with options after a colon ("threshold:threshold=0.8"), or objects; None is the
    threshold sampler, and the dual cache where the model can use one, of a block-causal model the exact cache.
    observers: called with every `dllm.Step`.

    `dllm.Settings` says what the other arguments do. `more` are its remaining fields (top_p, top_k, eotp, mask_id,
    logits_eos_inf, confidence_eos_eot_inf, stop, num_samples), the names of other projects for any of them
    (max_new_tokens, block_size), options of the sampler (threshold=0.8), remasking ("random": the order of `static`),
    chat (False takes strings as raw text), constraints ({200: " The answer is"}: text or token ids that stand in every
    answer from a column on), request_ids (a number for each prompt, which names it for its noise), and the functions
    of `dllm.hooks` (tokens_hook, logits_hook).
    Raises DllmError, a ValueError, for values that cannot be.
    """
    given: dict[str, Any] = {
        "gen_length": gen_length,
        "block_length": block_length,
        "steps": steps,
        "temperature": temperature,
        "cfg_scale": cfg_scale,
        "seed": seed,
        "eos_early_stop": eos_early_stop,
        "batch_size": batch_size,
    }
    # max_new_tokens=64 stands instead of a gen_length that was left at its default.
    for name in {ALIASES[alias] for alias in more if alias in ALIASES}:
        if given[name] == getattr(Settings, name):
            del given[name]
    run = stream(model, prompts, sampler, cache, observers=observers, **given, **more)
    for _ in run:
        pass
    return run.result()
