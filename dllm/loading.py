"""Open a checkpoint: a bundled name, a local folder or a hub id -> model and tokenizer.

Reads config.json and safetensors only: nothing is unpickled, and no code of a checkpoint is run. Weights stream: every
tensor goes from the file into its place in the model, so that the peak is the model and one tensor.
"""

import json
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from rich.progress import Progress
from safetensors import SafetensorError, safe_open
from torch import Tensor

from dllm.errors import DllmError, unknown
from dllm.models import FAMILIES
from dllm.models.family import Config, Family
from dllm.models.transformer import Transformer

ZOO = Path(__file__).parent / "zoo"
WEIGHTS = "model.safetensors"
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16, "float64": torch.float64}
SHORT = {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16", "fp64": "float64"}


def load(
    name: str | Path,
    *,
    device: str | torch.device | None = None,
    dtype: str | torch.dtype | None = None,
    revision: str | None = None,
    progress: bool = False,
) -> Transformer:
    """Open a model for decoding, with its tokenizer where the checkpoint has one.

    name: of a bundled model ("tiny-llada"), a folder, or a hub id. device: default the GPU if there is one. dtype:
    default the checkpoint's on a GPU and float32 on a CPU. progress: show a bar while the weights are read. Raises
    DllmError if the folder is incomplete, of an unknown family, or holds other tensors than its config says.
    """
    folder = find(str(name), revision)
    config = read_config(folder)
    family = family_of(config, folder)
    spec = family.spec(config)
    device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    wanted = dtype_of(dtype) or (torch.float32 if device.type == "cpu" else stored_dtype(config))
    tokenizer = read_tokenizer(folder)
    if tokenizer is not None and family.turn_end in tokenizer.get_vocab():
        end = tokenizer.convert_tokens_to_ids(family.turn_end)
        spec = replace(spec, eos_ids=tuple(dict.fromkeys([*spec.eos_ids, end])))
    with torch.device("meta"):
        model = Transformer(spec, tokenizer)
    model.requires_grad_(False).to(wanted)
    with ExitStack() as stack:
        fill(model, family, Shards(folder, stack), device, progress)
    return model.eval()


def find(name: str, revision: str | None) -> Path:
    """The folder of a model: bundled, local, or downloaded from the hub (weights, config and tokenizer only)."""
    if (ZOO / name / "config.json").is_file():
        return ZOO / name
    folder = Path(name).expanduser()
    if folder.is_dir():
        return folder
    bundled = sorted(path.parent.name for path in ZOO.glob("*/config.json"))
    if folder.is_absolute() or name.startswith((".", "~")) or name.count("/") != 1:
        raise unknown("model", name, bundled)
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError

    try:
        patterns = ["*.json", "*.safetensors", "*.jinja", "*.txt", "*.model"]
        return Path(snapshot_download(name, revision=revision, allow_patterns=patterns))
    except (HfHubHTTPError, OSError, ValueError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise DllmError(f"{name!r} is no folder here and could not be fetched from the hub ({reason}).") from error


def read_config(folder: Path) -> Config:
    path = folder / "config.json"
    try:
        config: Config = json.loads(path.read_text())
    except FileNotFoundError as error:
        raise DllmError(f"{folder} has no config.json, so it is not a checkpoint.") from error
    except json.JSONDecodeError as error:
        raise DllmError(f"{path} is not JSON ({error}); is the file complete?") from error
    return config


def family_of(config: Config, folder: Path) -> Family:
    """The family by the config's class name; `model_type` is shared by different networks."""
    names = config.get("architectures") or []
    for name in names:
        if name in FAMILIES:
            return FAMILIES[name]
    raise DllmError(
        f"{folder / 'config.json'} is of the architecture {', '.join(names) or '(none given)'}, which is not known here; "
        f"known are: {', '.join(FAMILIES)}."
    )


def dtype_of(dtype: str | torch.dtype | None) -> torch.dtype | None:
    """A dtype from its name. Raises DllmError for an unknown one."""
    if dtype is None or isinstance(dtype, torch.dtype):
        return dtype
    name = SHORT.get(dtype, dtype)
    if name not in DTYPES:
        raise unknown("dtype", dtype, [*DTYPES, *SHORT])
    return DTYPES[name]


def stored_dtype(config: Config) -> torch.dtype:
    return DTYPES.get(str(config.get("dtype") or config.get("torch_dtype")), torch.bfloat16)


def read_tokenizer(folder: Path) -> Any:
    """The checkpoint's tokenizer, or None if it has none."""
    if not (folder / "tokenizer.json").is_file() and not (folder / "tokenizer_config.json").is_file():
        return None
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(folder, trust_remote_code=False)


class Shards:
    """The safetensors files of a folder, read by tensor name."""

    def __init__(self, folder: Path, stack: ExitStack) -> None:
        self.folder, self.stack = folder, stack
        self.files: dict[Path, Any] = {}
        index = folder / f"{WEIGHTS}.index.json"
        if index.is_file():
            self.places: dict[str, str] = json.loads(index.read_text())["weight_map"]
        elif (folder / WEIGHTS).is_file():
            self.places = dict.fromkeys(self.open(folder / WEIGHTS).keys(), WEIGHTS)
        else:
            pickled = sorted(p.name for p in folder.iterdir() if p.suffix in (".bin", ".pt", ".pth", ".ckpt"))
            if pickled:
                raise DllmError(
                    f"{folder} holds only {pickled[0]}, a pickle, which can run code when opened and is refused; "
                    "convert it to safetensors."
                )
            raise DllmError(f"{folder} has no {WEIGHTS} and no {index.name}; where are the weights?")

    def open(self, path: Path) -> Any:
        if path not in self.files:
            try:
                self.files[path] = self.stack.enter_context(safe_open(path, "pt"))
            except FileNotFoundError as error:
                raise DllmError(f"{path} is missing, though the index names it.") from error
            except (SafetensorError, OSError) as error:
                raise DllmError(f"{path} cannot be read ({error}); is the file cut short?") from error
        return self.files[path]

    def read(self, name: str, shape: list[int]) -> Tensor:
        """A tensor of the wanted shape. Raises DllmError naming the tensor if it is missing or another shape."""
        if name not in self.places:
            near = str(unknown("tensor", name, self.places)).split(";")[1].split("?")[0].strip()
            hint = f" ({near}?)" if near.startswith("did") else ""
            raise DllmError(f"the weights in {self.folder} lack the tensor {name!r} of shape {shape}{hint}.")
        file = self.open(self.folder / self.places[name])
        try:
            found = list(file.get_slice(name).get_shape())
        except SafetensorError as error:
            raise DllmError(f"{self.places[name]} lacks the tensor {name!r}, which the index places there.") from error
        if found != shape:
            raise DllmError(f"the tensor {name!r} has the shape {found}; config.json says {shape}.")
        tensor: Tensor = file.get_tensor(name)
        return tensor


def fill(model: Transformer, family: Family, shards: Shards, device: torch.device, progress: bool) -> None:
    """Give every parameter its memory and its values, one tensor of the checkpoint at a time."""
    with Progress(transient=True, disable=not progress) as bar:
        parameters = list(model.named_parameters())
        task = bar.add_task("reading weights", total=len(parameters))
        for name, empty in parameters:
            value = torch.empty(empty.shape, dtype=empty.dtype, device=device)
            sizes = family.part_sizes(model.spec, name, len(value))
            for source, part in zip(family.sources(name), value.split(sizes), strict=True):
                part.copy_(shards.read(source, list(part.shape)))
            owner = model.get_submodule(name.rpartition(".")[0])
            setattr(owner, name.rpartition(".")[2], torch.nn.Parameter(value, requires_grad=False))
            bar.advance(task)
    if model.spec.tied_head:
        model.head.weight = model.embed.weight
