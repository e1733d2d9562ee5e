"""Autoregressive decoding for users: generate_causal and stream_causal, with or without a drafter."""

from collections.abc import Sequence
from typing import Any

import dllm.speculate
from dllm.errors import DllmError, unknown
from dllm.generation import Generation, Prompt, check_lengths, requests
from dllm.models.transformer import Transformer
from dllm.settings import ALIASES, NAMES, Settings
from dllm.spec import ModelSpec
from dllm.speculate import Drafter, Rule
from dllm.speculate.run import UNDECIDED, CausalRun
from dllm.trace import Observer

CAUSAL_NAMES = (
    *("gen_length", "temperature", "top_p", "top_k", "seed", "stop", "num_samples", "batch_size", "eos_early_stop"),
)
"""The fields of Settings that mean something where one token follows the other."""


def canonical(settings: dict[str, Any]) -> dict[str, Any]:
    """Settings under our names. Raises DllmError for one that is unknown, of masks only, or given twice."""
    renamed: dict[str, Any] = {}
    for name, value in settings.items():
        known = ALIASES.get(name, name)
        if known in NAMES and known not in CAUSAL_NAMES:
            raise DllmError(f"{name}={value!r} is about filling masks, which a causal model does not; leave it out.")
        if known not in CAUSAL_NAMES:
            aliases = [alias for alias, field in ALIASES.items() if field in CAUSAL_NAMES]
            others = ["draft", "k", "verify", "chat", "request_ids", "observers"]
            raise unknown("argument", name, [*CAUSAL_NAMES, *aliases, *others])
        if known in renamed:
            raise DllmError(f"{known} is given twice, as {renamed[known]!r} and as {name}={value!r}; give it once.")
        renamed[known] = value
    return renamed


def choose_drafter(draft: Any, k: int | None) -> Drafter | None:
    """The drafter, from a name with options, a drafter, or a small model; with drafts of k tokens."""
    if k is not None and (isinstance(k, bool) or not isinstance(k, int) or k < 1):
        raise DllmError(f"k={k!r} must be a whole number of at least 1: how many tokens are drafted.")
    if k is not None and draft is None:
        raise DllmError(f"k={k} is the length of drafts, but nothing drafts; give draft= as well.")
    options = {} if k is None else {"k": k}
    if isinstance(draft, str):
        return dllm.speculate.make(draft, **options)
    if isinstance(draft, Transformer):
        return dllm.speculate.make("model", model=draft, **options)
    if draft is not None and not isinstance(draft, Drafter):
        names = ", ".join(dllm.speculate.DRAFTERS)
        raise DllmError(f"draft={draft!r} is neither a name nor a drafter nor a model; there are: {names}.")
    if options and draft is not None:
        raise DllmError(f"k={k} must be given to {draft!r} itself.")
    return draft


def check_model(model: Any) -> None:
    """Raise DllmError unless this model predicts one next token."""
    if not isinstance(getattr(model, "spec", None), ModelSpec):
        raise DllmError(f"{type(model).__name__} is no model of ours; dllm.load opens a checkpoint.")
    if model.spec.attention != "causal":
        raise DllmError("this model fills masks; it does not continue a text token by token. Give it to dllm.generate.")
    if not isinstance(model, Transformer):
        raise DllmError(f"{type(model).__name__} cannot use stored keys and values; open the checkpoint by dllm.load.")


def stream_causal(
    model: Any,
    prompts: Prompt | Sequence[Prompt],
    draft: str | Drafter | Transformer | None = None,
    *,
    k: int | None = None,
    verify: str | Rule = "match",
    chat: bool = True,
    request_ids: Sequence[int] | None = None,
    observers: Sequence[Observer] = (),
    **settings: Any,
) -> CausalRun:
    """Start a generation: iterate over the run for its steps, then ask for run.result(). Arguments as of
    `generate_causal`."""
    check_model(model)
    drafter, rule = choose_drafter(draft, k), dllm.speculate.rule(verify)
    checked = Settings(**canonical(settings))
    answer = [UNDECIDED] * checked.gen_length
    asked = requests(model, prompts, answer, chat=chat, repeats=checked.num_samples, request_ids=request_ids)
    check_lengths(model, asked)
    return CausalRun(model, asked, drafter, rule, checked, observers)


def generate_causal(
    model: Any,
    prompts: Prompt | Sequence[Prompt],
    draft: str | Drafter | Transformer | None = None,
    *,
    k: int | None = None,
    verify: str | Rule = "match",
    chat: bool = True,
    request_ids: Sequence[int] | None = None,
    observers: Sequence[Observer] = (),
    **settings: Any,
) -> Generation:
    """Continue every prompt token by token, several prompts at a time; drafts are verified several tokens at a time.

    prompts: a string (a user's turn where the tokenizer has a chat template), chat messages, token ids, or a list of
    these. draft: a drafter by name with options after a colon ("ngram:max_n=3,k=10"), a drafter, a small causal model
    of the same vocabulary, or None for one token a forward. k: the drafter's option of this name, how many tokens it
    drafts at most.

    verify: "match" chooses every token as without drafts and keeps the drafts that agree: the same tokens with the same
    seed, at any temperature. "ratio" is the rule of speculative sampling: the same probabilities, other draws (greedy:
    the same tokens). "typical" accepts what is probable enough, and is not lossless.

    settings: gen_length (or max_new_tokens, the most tokens of an answer, default 256), temperature, top_p, top_k,
    seed, stop (a row ends with the token that completes one of these strings, and its text is cut before it),
    num_samples, batch_size, and eos_early_stop (False goes on after an end of text), as in `dllm.Settings`;
    request_ids and observers as in `dllm.generate`. Raises DllmError, a ValueError, for values that cannot be.
    """
    run = stream_causal(
        model, prompts, draft, k=k, verify=verify, chat=chat, request_ids=request_ids, observers=observers, **settings
    )
    return run.finish()
