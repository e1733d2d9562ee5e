"""What tells one family of checkpoints from another: how its config reads, and what its tensors are called."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from dllm.errors import DllmError
from dllm.spec import ModelSpec

Config = Mapping[str, Any]
"""The contents of a config.json."""


@dataclass(frozen=True)
class Family:
    """A checkpoint format: data only, so that no code asks which family a model belongs to."""

    architecture: str
    """The class name in the config's `architectures`. (`model_type` does not do: LLaDA and LLaDA-MoE share theirs.)"""
    spec: Callable[[Config], ModelSpec]
    names: Mapping[str, tuple[str, ...]]
    """Our parameter to the tensors of the checkpoint that are stacked to make it; {i} stands for the layer."""
    turn_end: str | None = None
    """A token that ends an answer besides the config's end of text, where the tokenizer has it."""

    def sources(self, parameter: str) -> tuple[str, ...]:
        """The checkpoint's names for one of our parameters, e.g. "layers.3.qkv.weight"."""
        head, _, rest = parameter.partition(".")
        if head != "layers":
            return self.names[parameter]
        layer, _, leaf = rest.partition(".")
        return tuple(name.format(i=layer) for name in self.names["layers." + leaf])

    def part_sizes(self, spec: ModelSpec, parameter: str, rows: int) -> list[int]:
        """How many rows of a parameter come from each of its sources."""
        if ".qkv." in parameter:
            return [spec.n_heads * spec.head_dim, spec.n_kv_heads * spec.head_dim, spec.n_kv_heads * spec.head_dim]
        return [rows // 2, rows // 2] if ".gate_up." in parameter else [rows]

    def checkpoint(self, model: nn.Module, spec: ModelSpec) -> dict[str, Tensor]:
        """The model's parameters under the names and in the shapes of the family's checkpoints."""
        tensors = {}
        for parameter, value in model.named_parameters():
            sizes = self.part_sizes(spec, parameter, len(value))
            for name, part in zip(self.sources(parameter), value.detach().split(sizes), strict=True):
                tensors[name] = part.contiguous()
        return tensors


def required(config: Config, key: str) -> Any:
    """A key that the config must have. Raises DllmError naming it."""
    if config.get(key) is None:
        raise DllmError(f"config.json has no {key!r}, which this family needs; is the file complete?")
    return config[key]


def ids(value: int | list[int] | None) -> tuple[int, ...]:
    """A config's one id, list of ids, or nothing, as a tuple."""
    return () if value is None else tuple(value) if isinstance(value, list) else (value,)
