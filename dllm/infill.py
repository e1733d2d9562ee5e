"""Fill the masks of texts that are otherwise given."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from torch import Tensor

from dllm.api import canonical, check_model, choose_cache, choose_hooks, choose_sampler, start
from dllm.cache.base import Cache
from dllm.errors import DllmError
from dllm.generation import Generation, checked_ids, cut, listed, named
from dllm.samplers.base import Sampler
from dllm.settings import ALIASES, Settings
from dllm.spec import Model
from dllm.trace import Observer

PLACEHOLDER = "[MASK]"


def infill(
    model: Model,
    texts: str | Sequence[str] | Sequence[int] | Sequence[Sequence[int]] | Tensor,
    sampler: str | Sampler | None = None,
    cache: str | Cache | None = None,
    *,
    remasking: str = "low_confidence",
    request_ids: Sequence[int] | None = None,
    observers: Sequence[Observer] = (),
    **settings: Any,
) -> Generation:
    """Decode every mask of a text, or of several; the other tokens stay.

    texts: strings in which each [MASK] stands for one token, or token ids with the mask's id in them. They are taken as
    they stand, without a chat template. The other arguments are those of `generate`, except gen_length; block_length
    counts from a text's first mask on, None is one block (a block-causal model keeps to its own), and no end of text
    stops a row unless eos_early_stop=True is given. In the result `completions` begin at the first mask and `texts` are
    whole. Raises DllmError for a text without a mask.
    """
    for name in ("gen_length", *(alias for alias, ours in ALIASES.items() if ours == "gen_length")):
        if name in settings:
            raise DllmError(f"{name}={settings[name]!r}: the masks of a text say how long it is; leave it out.")
    if not isinstance(texts, str | Sequence | Tensor):
        raise DllmError(f"{texts!r} is neither text nor token ids.")
    check_model(model)
    made, stored = choose_sampler(sampler, remasking, settings), choose_cache(cache, settings)
    hooks = choose_hooks(model, settings)
    checked = Settings(**{"eos_early_stop": False} | canonical(settings))
    mask_id = checked.mask(model.spec)
    rows = [split(model, text, mask_id) for text in listed(texts)]
    if not rows:
        raise DllmError("no texts were given; give at least one.")
    longest = max(len(answer) for _, answer in rows)
    block_length = checked.block_length or model.spec.one_block(longest)
    checked = replace(checked, gen_length=longest, block_length=block_length)
    prompts, answers = [prompt for prompt, _ in rows], [answer for _, answer in rows]
    names = [[*prompt, *answer] for prompt, answer in rows]
    asked = named(prompts, answers, names, checked.num_samples, request_ids)
    run = start(model, asked, made, stored, checked, observers, hooks)
    for _ in run:
        pass
    done = run.result()
    if model.tokenizer is None:
        return done
    whole = [[*r.prompt, *answer] for r, answer in zip(run.schedule.requests, done.completions, strict=True)]
    filled = [model.tokenizer.decode(row, skip_special_tokens=True) for row in whole]
    return replace(done, texts=[cut(text, checked.stop) for text in filled])


def split(model: Model, text: Any, mask_id: int) -> tuple[list[int], list[int]]:
    """What stands before the first mask of a text, and the rest."""
    if isinstance(text, str):
        if model.tokenizer is None:
            raise DllmError("this model has no tokenizer, so a text must be token ids.")
        first, *others = text.split(PLACEHOLDER)
        ids = list(model.tokenizer(first)["input_ids"])
        for piece in others:
            ids += [mask_id, *(model.tokenizer(piece, add_special_tokens=False)["input_ids"] if piece else [])]
    elif not isinstance(text, Sequence | Tensor):
        raise DllmError(f"{text!r} is neither text nor token ids.")
    else:
        ids = checked_ids(model.spec, text, "a text")
    if mask_id not in ids:
        raise DllmError(f"{text!r} has no {PLACEHOLDER} (token id {mask_id}) to fill.")
    return ids[: ids.index(mask_id)], ids[ids.index(mask_id) :]
