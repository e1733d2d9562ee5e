"""LoRA adapters as peft saves them, merged into a model: W + scale · B A for each matrix (arXiv:2106.09685).

Reads adapter_config.json and adapter_model.safetensors: no code and no pickle of the folder, and without peft.
"""

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dllm.errors import DllmError
from dllm.models.family import Family
from dllm.models.transformer import Transformer
from dllm.weights import opened, read_json

CONFIG, WEIGHTS, PICKLE = "adapter_config.json", "adapter_model.safetensors", "adapter_model.bin"
READ: tuple[str, ...] = ("r", "lora_alpha", "rank_pattern", "alpha_pattern", "use_rslora", "target_modules")
READ += ("exclude_modules", "layers_to_transform")
SILENT: tuple[str, ...] = (
    "auto_mapping",
    "base_model_name_or_path",
    "revision",
    "peft_version",
    "task_type",
    "inference_mode",
)
SILENT += ("lora_dropout", "megatron_core", "loftq_config", "eva_config", "runtime_config", "qalora_group_size")
"""Keys that change nothing of a trained adapter; the first six are of its making."""
ONLY = {"peft_type": ("LORA",), "bias": ("none",), "init_lora_weights": (True, False, "gaussian", "orthogonal", "eva")}
"""Keys with the values that they may have. Other ways to begin a training change the base weights as well."""


def merge(model: Transformer, family: Family, folder: Path) -> None:
    """Add an adapter to the weights of a model, each matrix in float32 at least and rounded once.

    Raises DllmError if it is of another kind, or not of this model: a tensor missing, left over or of another shape.
    """
    config = read_config(folder)
    matrices = dict(named_matrices(model, family))
    chosen = [name for name in matrices if targets(config, name)]
    if not chosen:
        leaves = sorted({name.rpartition(".")[2] for name in matrices})
        raise DllmError(
            f"{folder / CONFIG} targets {config.get('target_modules')!r}, of which this model has none; it has "
            f"{', '.join(leaves)}."
        )
    with opened(folder / WEIGHTS) as file:
        check(file, {name: matrices[name] for name in chosen}, config, folder)
        for name in chosen:
            matrix = matrices[name]
            dtype = torch.promote_types(matrix.dtype, torch.float32)
            a, b = (file.get_tensor(tensor).to(matrix.device, dtype) for tensor in tensors_of(name))
            matrix.copy_(matrix.to(dtype) + scale(config, name) * (b @ a))


def named_matrices(model: Transformer, family: Family) -> Iterator[tuple[str, Tensor]]:
    """Every matrix of the model under the name that the checkpoint has for its module."""
    for name, value in model.named_parameters():
        for source, part in family.parts(model.spec, name, value.detach()).items():
            if part.ndim == 2:
                yield source.removesuffix(".weight"), part


def tensors_of(module: str) -> tuple[str, str]:
    """What a file calls the two factors of a module's matrix: A, of shape (r, in), and B, of shape (out, r)."""
    return f"base_model.model.{module}.lora_A.weight", f"base_model.model.{module}.lora_B.weight"


def check(file: Any, matrices: Mapping[str, Tensor], config: Mapping[str, Any], folder: Path) -> None:
    """Raise unless the file has exactly the factors of these matrices."""
    wanted: dict[str, list[int]] = {}
    for name, matrix in matrices.items():
        r, (rows, columns) = rank(config, name), matrix.shape
        wanted |= dict(zip(tensors_of(name), ([r, columns], [rows, r]), strict=True))
    found = set(file.keys())
    for name in [*sorted(found - wanted.keys()), *sorted(wanted.keys() - found)]:
        which = "is of no matrix of this model that target_modules names" if name in found else "is missing"
        raise DllmError(f"{folder / WEIGHTS}: the tensor {name!r} {which}; is the adapter of another model?")
    for name, shape in wanted.items():
        stored = file.get_slice(name)
        if stored.get_shape() != shape:
            raise DllmError(
                f"{folder / WEIGHTS}: the tensor {name!r} has the shape {stored.get_shape()}; this model and the rank "
                f"ask for {shape}."
            )
        if not stored.get_dtype().startswith(("F", "BF")) or stored.get_dtype().startswith("F8"):
            raise DllmError(f"{folder / WEIGHTS}: the tensor {name!r} is quantized, which is not supported.")


def read_config(folder: Path) -> dict[str, Any]:
    """The adapter's settings. Raises DllmError if it is none, or one that does more than add B A."""
    if not (folder / CONFIG).is_file():
        raise DllmError(f"{folder} has no {CONFIG}; give a folder that peft saved an adapter to.")
    if not (folder / WEIGHTS).is_file():
        reason = "a pickle, which can run code when opened and is refused; save it as safetensors"
        pickled = (folder / PICKLE).is_file()
        raise DllmError(f"{folder} holds {PICKLE}, {reason}." if pickled else f"{folder} has no {WEIGHTS}.")
    config = read_json(folder / CONFIG)
    for key, value in config.items():
        if key in ONLY:
            if value not in (*ONLY[key], None):
                raise DllmError(f"{folder / CONFIG} has {key}={value!r}; only {', '.join(map(str, ONLY[key]))} can be.")
        elif key not in (*READ, *SILENT) and value not in (None, False, [], {}):
            raise DllmError(f"{folder / CONFIG} has {key}={value!r}; an adapter with it cannot be merged here.")
    if config.get("peft_type") is None:
        raise DllmError(f"{folder / CONFIG} has no peft_type; is the file complete?")
    return config


def targets(config: Mapping[str, Any], module: str) -> bool:
    """Whether the adapter has factors for a module's matrix, by the rules of peft."""
    layers = config.get("layers_to_transform")
    layers = [layers] if isinstance(layers, int) else layers
    inside = re.match(r".*?\.[^.]*\.(\d+)\.", module)
    if layers and (inside is None or int(inside[1]) not in layers):
        return False
    return named(config, "target_modules", module) and not named(config, "exclude_modules", module)


def named(config: Mapping[str, Any], key: str, module: str) -> bool:
    """Whether a list of ends of names, or a pattern of whole names, has the module's."""
    names = config.get(key) or []
    if isinstance(names, str):
        return matches(names, module)
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise DllmError(f"{CONFIG} has {key}={names!r}; it must be a list of names or a pattern.")
    return any(f".{module}".endswith(f".{name}") for name in names)


def rank(config: Mapping[str, Any], module: str) -> int:
    """r, the inner size of the module's factors."""
    value = pattern(config, "rank_pattern", module, config.get("r", 8))
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise DllmError(f"{CONFIG} has the rank {value!r} for {module}; it must be a whole number of at least 1.")
    return value


def scale(config: Mapping[str, Any], module: str) -> float:
    """alpha / r, or alpha / sqrt(r) of a rank-stabilized adapter (arXiv:2312.03732)."""
    alpha = pattern(config, "alpha_pattern", module, config.get("lora_alpha", 8))
    if isinstance(alpha, bool) or not isinstance(alpha, int | float):
        raise DllmError(f"{CONFIG} has the alpha {alpha!r} for {module}; it must be a number.")
    r = rank(config, module)
    return float(alpha / (r**0.5 if config.get("use_rslora") else r))


def pattern(config: Mapping[str, Any], key: str, module: str, usual: Any) -> Any:
    """The value of the first pattern that the end of the module's name matches, else the usual one."""
    patterns = config.get(key) or {}
    if not isinstance(patterns, dict):
        raise DllmError(f"{CONFIG} has {key}={patterns!r}; it must be an object of patterns and numbers.")
    return next((value for text, value in patterns.items() if matches(rf"(.*\.)?({text})", module)), usual)


def matches(text: str, module: str) -> bool:
    """Whether a pattern matches a whole name."""
    try:
        return re.fullmatch(text, module) is not None
    except re.error as error:
        raise DllmError(f"{CONFIG} has the pattern {text!r}, which cannot be read ({error}).") from error
