"""Open a checkpoint: a bundled name, a local folder or a hub id -> model and tokenizer.

Reads config.json and safetensors only: nothing is unpickled, and no code of a checkpoint is run.
"""

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from dllm.errors import DllmError, unknown
from dllm.models import FAMILIES
from dllm.models.family import Config, Family
from dllm.models.transformer import Transformer
from dllm.weights import check, fill, line, read_json, survey

ZOO = Path(__file__).parent / "zoo"
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
    device, wanted = device_of(device), dtype_of(dtype)
    folder = find(str(name), revision)
    config = read_config(folder)
    family = family_of(config, folder)
    spec = family.spec(config)
    stored = survey(folder)
    tokenizer = read_tokenizer(folder, family)
    if tokenizer is not None and family.turn_end in tokenizer.get_vocab():
        end = tokenizer.convert_tokens_to_ids(family.turn_end)
        spec = replace(spec, eos_ids=tuple(dict.fromkeys([*spec.eos_ids, end])))
    with torch.device("meta"):
        model = Transformer(spec, tokenizer)
    model.name = str(name)
    check(model, family, stored, folder)
    if wanted is None:
        named = DTYPES.get(str(config.get("dtype") or config.get("torch_dtype")))
        wanted = torch.float32 if device.type == "cpu" else named or stored[family.sources("embed.weight")[0]].dtype
    model.requires_grad_(False).to(wanted)
    fill(model, family, stored, device, progress)
    return model.eval()


def find(name: str, revision: str | None) -> Path:
    """The folder of a model: bundled, local, or downloaded from the hub (weights, config and tokenizer only)."""
    bundled = sorted(path.parent.name for path in ZOO.glob("*/config.json"))
    if name in bundled:
        return ZOO / name
    folder = Path(name).expanduser()
    if folder.is_dir():
        return folder
    if folder.exists():
        raise DllmError(f"{name!r} is a file; give the folder that holds config.json and the weights.")
    if folder.is_absolute() or name.startswith((".", "~")) or name.count("/") > 1:
        raise DllmError(f"{name!r} is no folder here; give one, a hub id, or a bundled model: {', '.join(bundled)}.")
    if "/" not in name:
        raise unknown("model", name, bundled)
    return download(name, revision)


def download(name: str, revision: str | None) -> Path:
    """Fetch config and tokenizer, and the weights if the family is known and they are safetensors."""
    import huggingface_hub
    from huggingface_hub.errors import HfHubHTTPError

    small = ["*.json", "*.jinja", "*.txt", "*.model"]
    try:
        folder = Path(huggingface_hub.snapshot_download(name, revision=revision, allow_patterns=small))
        family_of(read_config(folder), folder)
        patterns = [*small, "*.safetensors"]
        folder = Path(huggingface_hub.snapshot_download(name, revision=revision, allow_patterns=patterns))
        if not any(folder.glob("*.safetensors")):
            raise DllmError(
                f"{name!r} has no safetensors files; pickled weights (.bin, .pt) can run code when opened and are "
                "refused; convert them to safetensors."
            )
        return folder
    except DllmError:
        raise
    except (HfHubHTTPError, OSError, ValueError) as error:
        raise DllmError(
            f"{name!r} is no folder here and could not be fetched from the hub ({type(error).__name__}: {line(error)})."
        ) from error


def read_config(folder: Path) -> Config:
    path = folder / "config.json"
    if not path.is_file():
        raise DllmError(f"{folder} has no config.json, so it is not a checkpoint.")
    return read_json(path)


def family_of(config: Config, folder: Path) -> Family:
    """The family by the config's class name; `model_type` is shared by different networks."""
    names = config.get("architectures") or []
    names = [names] if isinstance(names, str) else names
    for name in names:
        if name in FAMILIES:
            return FAMILIES[name]
    raise DllmError(
        f"{folder / 'config.json'} is of the architecture {', '.join(map(str, names)) or '(none given)'}, which is not "
        f"known here; known are: {', '.join(FAMILIES)}."
    )


def dtype_of(dtype: str | torch.dtype | None) -> torch.dtype | None:
    """A dtype from its name. Raises DllmError for one that weights cannot have."""
    name = str(dtype).removeprefix("torch.")
    name = SHORT.get(name, name)
    if dtype is not None and name not in DTYPES:
        raise unknown("dtype", name, [*DTYPES, *SHORT])
    return DTYPES.get(name)


def device_of(device: str | torch.device | None) -> torch.device:
    """The device, by default a GPU if there is one. Raises DllmError if it is not there."""
    try:
        found = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        torch.empty(1, device=found)
    except (RuntimeError, AssertionError) as error:
        raise DllmError(f"device={str(device)!r} cannot be used ({line(error)}); give 'cpu' or 'cuda'.") from error
    return found


def read_tokenizer(folder: Path, family: Family) -> Any:
    """The checkpoint's tokenizer, or None if it has none."""
    if not (folder / "tokenizer.json").is_file() and not (folder / "tokenizer_config.json").is_file():
        return None
    import transformers

    # The Auto class warns of a config.json whose family transformers does not know; tokenizer.json says all by itself.
    reader: Any = transformers.AutoTokenizer
    if (folder / "tokenizer.json").is_file():
        reader = transformers.PreTrainedTokenizerFast
    elif family.tokenizer:
        reader = getattr(transformers, family.tokenizer)
    try:
        return reader.from_pretrained(folder, trust_remote_code=False)
    except Exception as error:  # the tokenizers library raises nothing narrower
        raise DllmError(f"the tokenizer in {folder} cannot be read ({line(error)}).") from error
