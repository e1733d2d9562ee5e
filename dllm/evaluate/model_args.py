"""The `--model_args` of lm-evaluation-harness: ours, and those of LLaDA's, Fast-dLLM's and Dream's command lines."""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, get_type_hints

import torch

import dllm
from dllm.api import canonical, choose_cache, choose_sampler
from dllm.errors import DllmError
from dllm.options import convert
from dllm.settings import ALIASES, SAMPLER_ALIASES, Settings
from dllm.spec import Model

DEFAULTS: dict[str, dict[str, Any]] = {
    "dllm": {},
    "llada_dist": {"sampler": "static", "cache": "none", "gen_length": 1024, "block_length": 1024},
    "dream": {"sampler": "entropy", "cache": "none", "gen_length": 128, "steps": 128},
    "diffllm": {"sampler": "entropy", "cache": "none", "gen_length": 128, "steps": 128},
}
"""The names that `--model` takes, and what each leaves unsaid: what the harnesses that go by that name do."""

ALSO = {"model_path": "pretrained", "cfg": "cfg_scale", **ALIASES, **dict.fromkeys(SAMPLER_ALIASES, "sampler")}
"""Names that other projects give to these arguments."""

WITHOUT_EFFECT = (
    *("trust_remote_code", "parallelize", "autogptq", "backend", "max_batch_size", "max_length", "task"),
    *("low_cpu_mem_usage", "pad_to_max_len", "sampling_eps", "dParallel"),
)
"""Arguments of published command lines that change nothing here: no code of a checkpoint is run, whatever is trusted;
no prompt is cut at max_length; the estimate has no sampling_eps; alg= alone says that dParallel is meant."""

FIXED = {"nll_type": "mc", "log_type": "ftb", "is_feature_cache": False, "is_cfg_cache": False, "num_samples": 1}
"""Arguments of which only one value is known here."""

OF_TASKS = ("do_sample", "max_gen_toks", "max_new_tokens", "max_tokens", "num_beams", "temperature", "top_p", "until")
"""What tasks say about generation; an argument of the model comes before them."""


@dataclass(frozen=True)
class ModelArgs:
    """What a command line says about the model, sorted by who wants it."""

    pretrained: Any
    """Bundled name, folder, hub id, or a model that is open already."""
    settings: dict[str, Any]
    """Arguments of `dllm.stream`, under our names."""
    ignored: list[str]
    """Those that were given and change nothing."""
    device: str | None = None
    dtype: str | None = None
    """auto is the same as none given."""
    revision: str | None = None
    mc_num: int = 128
    """Masks drawn for each likelihood."""
    is_check_greedy: bool = True
    """Whether likelihoods also tell if the model would say the same greedily, at one forward a token."""
    chat: bool | None = None
    """Make each prompt a user's turn, if the harness did not. None: where the name says so, see `wraps`."""
    add_bos_token: bool = False
    """Put the beginning of text before each prompt."""
    max_prompt_len: int | None = None
    """Keep only so many tokens of a prompt, the last ones."""
    escape_until: bool = False
    """Leave the answers whole: the task cuts them."""
    show_speed: bool = False
    """Print tokens, forwards and time at the end."""
    save_dir: str | None = None
    """Keep finished answers in this folder, and take those that are there."""


OWN = {f.name: get_type_hints(ModelArgs)[f.name] for f in fields(ModelArgs)[3:]}


def read(name: str, given: Mapping[str, Any]) -> ModelArgs:
    """The arguments given to the model `name`, checked before it is opened.

    Raises DllmError for an unknown argument, one that is given twice, and what the library refuses.
    """
    found: dict[str, Any] = {}
    for key, value in given.items():
        ours = ALSO.get(key, key)
        if key == "classifier_free_guidance":  # Dream counts from 1: no guidance
            ours, value = "cfg_scale", value - 1
        if ours in found:
            raise DllmError(f"{ours} is given twice, the second time as {key}={value!r}; give it once.")
        found[ours] = value
    for key, value in FIXED.items():
        if found.pop(key, value) != value:
            raise DllmError(f"{key}={given[key]!r} is not known here; there is {key}={value!r}.")
    ignored = [key for key in WITHOUT_EFFECT if found.pop(key, None) is not None]
    pretrained = found.pop("pretrained", None)
    if not pretrained:
        raise DllmError("no model is given; write --model_args pretrained=NAME (or model_path=NAME).")
    if found.get("dtype") == "auto":
        del found["dtype"]
    own = {key: convert(key, found.pop(key), hint) for key, hint in OWN.items() if key in found}
    if own.get("mc_num", 1) < 1:
        raise DllmError(f"mc_num={own['mc_num']} draws no mask; give at least 1 (LLaDA takes 128).")
    if found.get("batch_size") in ("auto", None):
        found.pop("batch_size", None)
    elif isinstance(found["batch_size"], str):
        found["batch_size"] = convert("batch_size", found["batch_size"], int)
    settings = settled(DEFAULTS[name] | {"seed": 0}, found)
    check(settings)
    return ModelArgs(pretrained, settings, ignored, **own)


def settled(usual: Mapping[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """What is usual, unless something else is given: an option of a sampler may say which one, a flag which cache."""
    kept = dict(usual)
    options = [key for key in dllm.samplers.owners() if given.get(key) is not None]
    if given.get("sampler") or given.get("remasking") == "random":
        kept.pop("sampler", None)
    elif isinstance(kept.get("sampler"), str):
        kept["sampler"] = dllm.samplers.without(kept["sampler"], options)
    if {"use_cache", "dual_cache"} & set(given):
        kept.pop("cache", None)
    return kept | dict(given)


def check(settings: Mapping[str, Any]) -> None:
    """Raise DllmError for what `dllm.stream` would refuse."""
    left = dict(settings)
    sampler, cache = left.pop("sampler", None), left.pop("cache", None)
    choose_sampler(sampler, left.pop("remasking", "low_confidence"), left)
    choose_cache(cache, left)
    Settings(**canonical(left, "pretrained", "model_path", *OWN))


def asked(settings: Mapping[str, Any], of_task: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of one request: what the task says of generation counts where the model's arguments say nothing.

    Arguments under our own names (--gen_kwargs block_length=64) come before the model's. Raises DllmError as `check`.
    """
    renamed = {ALSO.get(key, key): value for key, value in of_task.items() if key not in OF_TASKS}
    usual: dict[str, Any] = {}
    for key in ("max_tokens", "max_new_tokens", "max_gen_toks"):
        if of_task.get(key) is not None:
            usual["gen_length"] = int(of_task[key])
    if of_task.get("do_sample", True):
        usual |= {key: of_task[key] for key in ("temperature", "top_p") if of_task.get(key) is not None}
    found = settled({**usual, **settings}, renamed)
    check(found)
    return found


def wraps(name: str, args: ModelArgs, templated: bool) -> bool:
    """Whether prompts become a user's turn here: never twice; as asked; else as Fast-dLLM does, by the model's name."""
    if templated:
        return False
    return "instruct" in str(args.pretrained).lower() if args.chat is None and name == "llada_dist" else bool(args.chat)


def opened(args: ModelArgs) -> Model:
    """The model, opened unless it is open already. Raises DllmError if it has no tokenizer."""
    model: Any = args.pretrained
    if isinstance(model, str):
        # The harness says cuda:0 where nobody says anything, GPU or not.
        absent = str(args.device).startswith("cuda") and not torch.cuda.is_available()
        model = dllm.load(model, device=None if absent else args.device, dtype=args.dtype, revision=args.revision)
    if model.tokenizer is None:
        raise DllmError("this model has no tokenizer, so the harness cannot ask it anything.")
    checked: Model = model
    return checked
