"""What tells one family of checkpoints from another: how its config reads, and what its tensors are called."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from dllm.errors import DllmError
from dllm.spec import Experts, ModelSpec

Config = Mapping[str, Any]
"""The contents of a config.json."""


@dataclass(frozen=True)
class Family:
    """A checkpoint format: data only, so that no code asks which family a model belongs to."""

    architecture: str
    """The class name in the config's `architectures`. (`model_type` does not do: LLaDA and LLaDA-MoE share theirs.)"""
    spec: Callable[[Config], ModelSpec]
    names: Mapping[str, tuple[str, ...]]
    """Our parameter to the tensors of the checkpoint that are stacked to make it; {i} stands for the layer, {e} for the
    expert of a stack of matrices."""
    turn_end: str | None = None
    """A token that ends an answer besides the config's end of text, where the tokenizer has it."""
    tokenizer: str | None = None
    """The class of transformers that reads the vocabulary files of checkpoints without a tokenizer.json."""

    def sources(self, parameter: str) -> tuple[str, ...]:
        """The checkpoint's names for one of our parameters, e.g. "layers.3.qkv.weight"."""
        head, _, rest = parameter.partition(".")
        if head != "layers":
            return self.names[parameter]
        layer, _, leaf = rest.partition(".")
        return tuple(name.replace("{i}", layer) for name in self.names["layers." + leaf])

    def part_sizes(self, spec: ModelSpec, parameter: str, rows: int, n_parts: int) -> list[int]:
        """How many rows of a matrix come from each of its sources."""
        if ".qkv." in parameter and n_parts == 3:
            return [spec.n_heads * spec.head_dim, spec.n_kv_heads * spec.head_dim, spec.n_kv_heads * spec.head_dim]
        return [rows // n_parts] * n_parts

    def parts(self, spec: ModelSpec, parameter: str, value: Tensor) -> dict[str, Tensor]:
        """A parameter cut, without copying, into the tensors that the checkpoint has for it."""
        names = self.sources(parameter)
        found: dict[str, Tensor] = {}
        for expert, matrix in enumerate(value if value.ndim == 3 else [value]):
            sizes = self.part_sizes(spec, parameter, len(matrix), len(names))
            own = [name.replace("{e}", str(expert)) for name in names]
            found |= dict(zip(own, torch.split(matrix, sizes), strict=True))
        return found

    def checkpoint(self, model: nn.Module, spec: ModelSpec) -> dict[str, Tensor]:
        """The model's parameters under the names and in the shapes of the family's checkpoints."""
        tensors: dict[str, Tensor] = {}
        for parameter, value in model.named_parameters():
            tensors |= self.parts(spec, parameter, value.detach())
        return tensors


# Reading a config. Each of these raises DllmError naming the key and what stands there.


def required(config: Config, key: str) -> Any:
    """A key that the config must have."""
    if config.get(key) is None:
        raise DllmError(f"config.json has no {key!r}, which this family needs; is the file complete?")
    return config[key]


def size(config: Config, key: str, default: int | None = None, least: int = 1) -> int:
    """A whole number of at least so much; without a default the key must be there."""
    value = default if config.get(key) is None and default is not None else required(config, key)
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise DllmError(f"config.json has {key}={value!r}; it must be a whole number of at least {least}.")
    return value


def number(config: Config, key: str, default: float) -> float:
    """A number above 0."""
    value = default if config.get(key) is None else config[key]
    if isinstance(value, bool) or not isinstance(value, int | float) or not value > 0:
        raise DllmError(f"config.json has {key}={value!r}; it must be a number above 0.")
    return float(value)


def flag(config: Config, key: str, default: bool) -> bool:
    value = default if config.get(key) is None else config[key]
    if not isinstance(value, bool):
        raise DllmError(f"config.json has {key}={value!r}; it must be true or false.")
    return value


def ids(config: Config, key: str) -> tuple[int, ...]:
    """One token id, a list of them, or none."""
    value = config.get(key)
    found = [] if value is None else value if isinstance(value, list) else [value]
    if value == [] or any(isinstance(i, bool) or not isinstance(i, int) or i < 0 for i in found):
        raise DllmError(f"config.json has {key}={value!r}; it must be a token id or a list of them.")
    return tuple(found)


def refuse(config: Config, only: Mapping[str, Any]) -> None:
    """Raise if a key asks for a network that is not built here: `only` has the one value that each may have."""
    for key, wanted in only.items():
        if config.get(key, wanted) not in (wanted, None):
            raise DllmError(
                f"config.json has {key}={config[key]!r}; only {wanted!r} is supported, so it is not opened."
            )


def checked(spec: ModelSpec) -> ModelSpec:
    """The spec, if its numbers fit together."""
    if spec.n_heads % spec.n_kv_heads:
        raise DllmError(
            f"config.json has {spec.n_heads} heads, which {spec.n_kv_heads} key/value heads cannot share evenly."
        )
    if spec.head_dim % 2:
        raise DllmError(f"config.json makes heads {spec.head_dim} wide; rotary positions need an even width.")
    if spec.experts:
        check_experts(spec.experts, spec.n_layers)
    named = [*spec.eos_ids, *([] if spec.mask_id is None else [spec.mask_id])]
    if named and max(named) >= spec.vocab_size:
        raise DllmError(
            f"the token id {max(named)}, config.json's or else the family's, is beyond the vocabulary of "
            f"{spec.vocab_size}."
        )
    return spec


def check_experts(experts: Experts, n_layers: int) -> None:
    """Raise if no layer has experts, or a token cannot be sent through so many of so many groups."""
    if experts.dense_layers >= n_layers:
        raise DllmError(f"config.json has {n_layers} layers, the first {experts.dense_layers} of them without experts.")
    size = experts.count // experts.groups
    if experts.count % experts.groups or (experts.groups_used < experts.groups and size < 2):
        raise DllmError(
            f"config.json has {experts.count} experts in {experts.groups} groups; a group needs two or more."
        )
    if experts.groups_used > experts.groups or experts.used > experts.groups_used * size:
        raise DllmError(
            f"config.json sends a token through {experts.used} experts of {experts.groups_used} groups; there are "
            f"{experts.groups} groups of {size}."
        )
