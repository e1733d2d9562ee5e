"""The safetensors files of a checkpoint: what is in them, whether that is the model, and its way into memory.

Names and shapes are checked before the first value is read; then values go straight from the file into their place in
the model, so that the peak of memory is the model and a few MB.
"""

import json
import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn
from safetensors import SafetensorError, safe_open
from torch import Tensor

from dllm.errors import DllmError
from dllm.models.family import Family
from dllm.models.transformer import Transformer

WEIGHTS = "model.safetensors"
PICKLES = (".bin", ".pt", ".pth", ".ckpt")
DTYPES = {"F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16, "F64": torch.float64}
"""The dtypes of weights, by their name in a file."""
CHUNK = 8 << 20
"""Bytes read at a time. Pages that were read count as the process's memory until their file is closed."""


def line(error: BaseException) -> str:
    """The first line of an error's message, or its name if it has none."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file that exists."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise DllmError(f"{path} is not JSON ({line(error)}); is the file complete?") from error
    if not isinstance(content, dict):
        raise DllmError(f"{path} holds a {type(content).__name__}, not an object of keys and values.")
    return content


@dataclass(frozen=True)
class Stored:
    """Where a tensor of the checkpoint is, and what it is."""

    path: Path
    shape: list[int]
    dtype: torch.dtype | None
    """None: integers, or floating-point numbers of 8 bits and fewer."""

    @property
    def row_bytes(self) -> int:
        """Bytes of what stands at one index of the first axis."""
        return math.prod(self.shape[1:]) * (self.dtype or torch.uint8).itemsize


@contextmanager
def opened(path: Path) -> Iterator[Any]:
    """A safetensors file. Raises DllmError if it cannot be read."""
    try:
        with safe_open(path, "pt") as file:
            yield file
    except (SafetensorError, OSError) as error:
        raise DllmError(f"{path} cannot be read ({line(error)}); is the file cut short?") from error


def shards(folder: Path) -> dict[Path, set[str]]:
    """The weight files, with the tensors that the index, if there is one, places in each."""
    if (folder / WEIGHTS).is_file():
        return {folder / WEIGHTS: set()}
    index = folder / f"{WEIGHTS}.index.json"
    if not index.is_file():
        pickled = sorted(path.name for path in folder.iterdir() if path.suffix in PICKLES)
        if not pickled:
            raise DllmError(f"{folder} has no {WEIGHTS} and no {index.name}; where are the weights?")
        raise DllmError(
            f"{folder} holds only {pickled[0]}, a pickle, which can run code when opened and is refused; "
            "convert it to safetensors."
        )
    places = read_json(index).get("weight_map")
    if not isinstance(places, dict) or not places:
        raise DllmError(f"{index} has no 'weight_map'; is the file complete?")
    found: dict[Path, set[str]] = {}
    for name, shard in places.items():
        if Path(str(shard)).name != shard:
            raise DllmError(f"{index} names the file {shard!r}; shards must be files of the same folder.")
        found.setdefault(folder / shard, set()).add(name)
    return found


def survey(folder: Path) -> dict[str, Stored]:
    """Every tensor in the weight files, without reading its values."""
    stored: dict[str, Stored] = {}
    for path, expected in shards(folder).items():
        if not path.is_file():
            raise DllmError(f"{path} is missing, though the index names it; is the download complete?")
        with opened(path) as file:
            slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118  # safe_open is not a dict
            stored |= {n: Stored(path, list(s.get_shape()), DTYPES.get(s.get_dtype())) for n, s in slices.items()}
        lacking = sorted(expected - slices.keys())
        if lacking:
            raise DllmError(f"{path} lacks the tensor {lacking[0]!r}, which the index places there.")
    return stored


def check(model: Transformer, family: Family, stored: Mapping[str, Stored], folder: Path) -> None:
    """Raise if the checkpoint is not exactly this model: a tensor missing, of another shape or kind, or left over."""
    wanted: dict[str, list[int]] = {}
    for name, value in model.named_parameters():
        wanted |= {source: list(part.shape) for source, part in family.parts(model.spec, name, value).items()}
    # Old checkpoints store the table of rotary frequencies; some with a tied head store the head as well.
    spare = family.sources("head.weight") if model.spec.tied_head else ()
    extra = [n for n in stored if n not in wanted and n not in spare and not n.endswith(".inv_freq")]
    for name, shape in wanted.items():
        if name not in stored:
            near = get_close_matches(name, extra, 1)
            hint = f" (is it {near[0]!r}?)" if near else ""
            raise DllmError(f"the weights in {folder} lack the tensor {name!r} of shape {shape}{hint}.")
        if stored[name].shape != shape:
            raise DllmError(f"the tensor {name!r} has the shape {stored[name].shape}; config.json asks for {shape}.")
        if stored[name].dtype is None:
            raise DllmError(f"the tensor {name!r} is quantized; only {', '.join(DTYPES)} are supported.")
    if extra:
        raise DllmError(
            f"the weights in {folder} have {len(extra)} tensors that config.json does not account for, {extra[0]!r} "
            "the first; this is another network than it says."
        )


def copy(name: str, stored: Stored, target: Tensor) -> Iterator[int]:
    """Read a tensor into `target`, a few rows at a time; yields the bytes read."""
    rows = max(1, CHUNK // stored.row_bytes)
    for part, start in zip(torch.split(target, rows), range(0, len(target), rows), strict=True):
        with opened(stored.path) as file:
            part.copy_(file.get_slice(name)[start : start + rows])
        yield len(part) * stored.row_bytes


def fill(
    model: Transformer, family: Family, stored: Mapping[str, Stored], device: torch.device, progress: bool
) -> None:
    """Give every parameter its memory and its values."""
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True, disable=not progress) as bar:
        parameters = list(model.named_parameters())
        sources = [source for name, empty in parameters for source in family.parts(model.spec, name, empty)]
        task = bar.add_task("reading weights", total=sum(stored[s].shape[0] * stored[s].row_bytes for s in sources))
        for name, empty in parameters:
            value = torch.empty_like(empty, device=device)
            for source, part in family.parts(model.spec, name, value).items():
                for n_bytes in copy(source, stored[source], part):
                    bar.advance(task, n_bytes)
            owner, _, leaf = name.rpartition(".")
            setattr(model.get_submodule(owner), leaf, torch.nn.Parameter(value, requires_grad=False))
    if model.spec.tied_head:
        model.head.weight = model.embed.weight
