"""Open a checkpoint: a bundled name, a local folder or a hub id -> model and tokenizer.

Reads config.json and safetensors only: nothing is unpickled, and no code of a checkpoint is run.
"""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from dllm.errors import DllmError, unknown
from dllm.models import FAMILIES, diffusion_gemma, fp8
from dllm.models.family import Config, Family
from dllm.models.transformer import Transformer
from dllm.options import read
from dllm.spec import ModelSpec
from dllm.weights import check, fill, line, read_json, survey

ZOO = Path(__file__).parent / "zoo"
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16, "float64": torch.float64}
SMALL = ("*.json", "*.jinja", "*.txt", "*.model")
"""A checkpoint's files besides its weights: config, tokenizer and chat template."""
SHORT = {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16", "fp64": "float64"}


OPTIONS = {"block_length": int, "mask_id": int, "logits_shift": int, "adapter": str, "weights": str}
"""What may stand behind a model's name."""


def load(
    name: str | Path,
    *,
    device: str | torch.device | None = None,
    dtype: str | torch.dtype | None = None,
    revision: str | None = None,
    block_length: int | None = None,
    weights: str | None = None,
    progress: bool = False,
) -> Any:
    """Open a model for decoding, a Transformer of ours or a DiffusionGemma, with its tokenizer if it has one.

    name: of a bundled model ("tiny-llada"), a folder, or a hub id. device: default the GPU if there is one. dtype:
    default the checkpoint's on a GPU and float32 on a CPU. block_length: of a block-causal model, in columns; default
    the config's or the family's, which not every checkpoint was trained with. weights: "fp8" keeps the matrices of the
    layers in 8 bits (`dllm.models.fp8`) and the rest in bfloat16. progress: show a bar while the weights are read.
    Behind the name may stand options, as the command line has them: "SDAR-8B:block_length=16,weights=fp8", and those
    of `dllm.adapt`: "Qwen2.5-7B:block_length=32,mask_id=151665,adapter=FOLDER". Raises DllmError if the folder is
    incomplete, of an unknown family, or holds other tensors than its config says.
    """
    given = {"block_length": block_length, "weights": weights}
    name, options = split_name(str(name), {n: value for n, value in given.items() if value is not None})
    if (weights := options.pop("weights", None)) not in (None, "fp8"):
        raise DllmError(f"weights={weights!r} is no kind of weights; give 'fp8', or leave it out and see dtype.")
    dtype = dtype or (None if weights is None else "bfloat16")
    if options.keys() - {"block_length"}:
        from dllm.adapt import adapt  # which loads a model first

        model: Any = adapt(name, **options, device=device, dtype=dtype, revision=revision, progress=progress)
    else:
        model = opened(name, options.get("block_length"), device, dtype, revision, progress)
    return model if weights is None else fp8.quantize(model)


def opened(
    name: str,
    block_length: int | None,
    device: str | torch.device | None,
    dtype: str | torch.dtype | None,
    revision: str | None,
    progress: bool,
) -> Any:
    """The model with its weights as they stand in its files, but for their dtype."""
    device, wanted = device_of(device), dtype_of(dtype)
    folder = find(name, revision)
    config = read_config(folder)
    if diffusion_gemma.ARCHITECTURE in classes(config):
        narrow = torch.float32 if device.type == "cpu" else None
        return diffusion_gemma.read(folder, device, wanted or narrow, read_tokenizer(folder))
    family = family_of(config, folder)
    spec = in_blocks(family.spec(config), block_length)
    stored = survey(folder)
    tokenizer = read_tokenizer(folder, family)
    if tokenizer is not None and family.turn_end in tokenizer.get_vocab():
        end = tokenizer.convert_tokens_to_ids(family.turn_end)
        spec = replace(spec, eos_ids=tuple(dict.fromkeys([*spec.eos_ids, end])))
    with torch.device("meta"):
        model = Transformer(spec, tokenizer)
    model.name = name
    check(model, family, stored, folder)
    if wanted is None:
        named = DTYPES.get(str(config.get("dtype") or config.get("torch_dtype")))
        wanted = torch.float32 if device.type == "cpu" else named or stored[family.sources("embed.weight")[0]].dtype
    model.requires_grad_(False).to(wanted)
    fill(model, family, stored, device, progress)
    return model.eval()


def split_name(name: str, given: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    """A model's name, and the options that stand behind its colon or are given otherwise."""
    if Path(name).expanduser().exists():
        return name, dict(given)
    name, _, text = name.partition(":")
    return name, read("model", name, text, given, OPTIONS)


def in_blocks(spec: ModelSpec, block_length: int | None) -> ModelSpec:
    """The spec with another block length. Raises DllmError if the model has no blocks, or none can be so long."""
    if block_length is None:
        return spec
    if spec.attention != "block":
        raise DllmError(
            f"block_length={block_length} is of block-causal models; the attention of this one is {spec.attention}; "
            "leave it out (the blocks of a generation are an argument of generate; dllm.adapt opens a causal model)."
        )
    check_block_length(block_length)
    return replace(spec, block_length=block_length)


def check_block_length(block_length: int) -> None:
    if isinstance(block_length, bool) or not isinstance(block_length, int) or block_length < 1:
        raise DllmError(f"block_length={block_length!r} must be a whole number of columns, at least 1.")


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

    try:
        folder = Path(huggingface_hub.snapshot_download(name, revision=revision, allow_patterns=[*SMALL]))
        if diffusion_gemma.ARCHITECTURE not in classes(config := read_config(folder)):
            family_of(config, folder)
        patterns = [*SMALL, "*.safetensors"]
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


def classes(config: Config) -> list[str]:
    """The config's class names."""
    names = config.get("architectures") or []
    return [names] if isinstance(names, str) else names


def family_of(config: Config, folder: Path) -> Family:
    """The family by the config's class name; `model_type` is shared by different networks."""
    names = classes(config)
    for name in names:
        if name in FAMILIES:
            return FAMILIES[name]
    raise DllmError(
        f"{folder / 'config.json'} is of the architecture {', '.join(map(str, names)) or '(none given)'}, which is not "
        f"known here; known are: {', '.join([*FAMILIES, diffusion_gemma.ARCHITECTURE])}."
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


def read_tokenizer(folder: Path, family: Family | None = None) -> Any:
    """The checkpoint's tokenizer, or None if it has none."""
    if not (folder / "tokenizer.json").is_file() and not (folder / "tokenizer_config.json").is_file():
        return None
    import transformers

    # The Auto class warns of a config.json whose family transformers does not know; tokenizer.json says all by itself.
    reader: Any = transformers.AutoTokenizer
    if (folder / "tokenizer.json").is_file():
        reader = transformers.PreTrainedTokenizerFast
    elif family and family.tokenizer:
        reader = getattr(transformers, family.tokenizer)
    try:
        return reader.from_pretrained(folder, trust_remote_code=False)
    except Exception as error:  # the tokenizers library raises nothing narrower
        raise DllmError(f"the tokenizer in {folder} cannot be read ({line(error)}).") from error
