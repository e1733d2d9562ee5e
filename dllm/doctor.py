"""What is installed here, what runs on it, and whether a model fits: every figure that a question about speed needs."""

import os
import platform
from dataclasses import replace
from importlib.metadata import PackageNotFoundError, packages_distributions, version
from pathlib import Path
from typing import Any

import torch

from dllm import loading
from dllm.errors import DllmError
from dllm.models import fp8
from dllm.spec import Model, ModelSpec
from dllm.weights import line

DISTRIBUTION = "dllm-decode"
PACKAGES = ("torch", "triton", "transformers", "tokenizers", "safetensors")
KERNELS = {"attention": "torch scaled_dot_product_attention (reference)"}


def versions() -> dict[str, str]:
    """Of Python, this package and those it stands on."""
    import dllm

    found = {"python": platform.python_version(), "dllm": dllm.__version__}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "not installed"
    # Its metadata may lack the build, as +cu130, that a measured number depends on.
    return found | {"torch": str(torch.__version__)}


def conditions(model: Model, name: str) -> dict[str, Any]:
    """What a measured number depends on besides the settings: device, dtype, threads, versions."""
    device = model.device
    return {
        "model": name,
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        "dtype": str(model.dtype).removeprefix("torch."),
        "threads": torch.get_num_threads(),
        "versions": versions(),
    }


def others() -> list[str]:
    """Other distributions that install a package called dllm; which of them is imported depends on the order."""
    return sorted(set(packages_distributions().get("dllm", [])) - {DISTRIBUTION})


def free_memory(device: torch.device) -> int:
    """Bytes that this device still has for us: on a CPU what the system calls available, within the control group."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    try:
        lines = dict(line.split(":") for line in Path("/proc/meminfo").read_text().splitlines())
        free = int(lines["MemAvailable"].split()[0]) * 1024
    except (OSError, KeyError):
        free = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    try:
        group = Path("/sys/fs/cgroup")
        limit, used = ((group / f"memory.{name}").read_text().strip() for name in ("max", "current"))
    except OSError:
        return free
    return free if limit == "max" else max(0, min(free, int(limit) - int(used)))


def devices() -> list[dict[str, Any]]:
    """Every device, with its free memory in bytes."""
    cuda = [torch.device("cuda", i) for i in range(torch.cuda.device_count())]
    names = [(d, torch.cuda.get_device_name(d)) for d in cuda] + [(torch.device("cpu"), platform.machine())]
    return [{"device": str(d), "name": name, "free": free_memory(d)} for d, name in names]


def config_of(name: str) -> tuple[ModelSpec, dict[str, Any]]:
    """A model's spec and config.json; of a model on the hub only that file is fetched."""
    name, options = loading.split_name(name, {})
    folder = Path(name).expanduser()
    if name.count("/") == 1 and not folder.exists() and not name.startswith((".", "~", "/")):
        from huggingface_hub import hf_hub_download

        try:
            folder = Path(hf_hub_download(name, "config.json")).parent
        except (OSError, ValueError) as error:
            reason = line(error)
            raise DllmError(f"{name!r} is no folder here, and its config could not be fetched ({reason}).") from error
    else:
        folder = loading.find(name, None)
    config = dict(loading.read_config(folder))
    spec, block_length = loading.family_of(config, folder).spec(config), options.get("block_length")
    if options.keys() - {"block_length", "weights"}:  # as dllm.adapt opens it, which checks the values
        return replace(spec, attention="block", block_length=block_length or 1), config
    return loading.in_blocks(spec, block_length), config


def need(
    spec: ModelSpec,
    dtype: torch.dtype,
    *,
    batch_size: int,
    prompt_length: int,
    gen_length: int,
    block_length: int | None = None,
) -> dict[str, int]:
    """Bytes that a generation takes: its parts by name. An estimate; what the allocator wastes is not in it."""
    size, length, width = dtype.itemsize, prompt_length + gen_length, min(block_length or 32, gen_length)
    if length > spec.max_length:
        raise DllmError(
            f"prompt_length={prompt_length} and gen_length={gen_length} make {length} tokens; "
            f"the model's context is {spec.max_length}."
        )
    inner = 2 * spec.mlp_width + 2 * spec.hidden_size + (2 * spec.n_heads + 2 * spec.n_kv_heads) * spec.head_dim
    return {
        "weights": spec.n_parameters * size,
        "keys and values": 2 * spec.n_layers * batch_size * length * spec.n_kv_heads * spec.head_dim * size,
        "activations of a layer": batch_size * length * inner * size,
        # The logits of one block, a copy without the forbidden tokens, and one in float32 for the confidence.
        "logits": batch_size * width * spec.vocab_size * (2 * size + max(4, size)),
    }


def examine(
    model: str | None, device: str | None, dtype: str | None, prompt_length: int, **sizes: Any
) -> dict[str, Any]:
    """The whole report; with a model also what it needs and whether that fits. `sizes` as of `need`."""
    import dllm

    report: dict[str, Any] = {
        "versions": versions(),
        "package": str(Path(dllm.__file__).parent),
        "other packages named dllm": others(),
        "devices": devices(),
        "threads": torch.get_num_threads(),
        "kernels": KERNELS,
        "bundled models": sorted(path.parent.name for path in loading.ZOO.glob("*/config.json")),
    }
    if model is None:
        return report
    spec, config = config_of(model)
    where, named = loading.device_of(device), config.get("dtype") or config.get("torch_dtype")
    default = torch.float32 if where.type == "cpu" else loading.DTYPES.get(str(named), torch.bfloat16)
    in_fp8 = "weights" in loading.split_name(model, {})[1]
    kind = loading.dtype_of(dtype) or (torch.bfloat16 if in_fp8 else default)
    parts, free = need(spec, kind, prompt_length=prompt_length, **sizes), free_memory(where)
    if in_fp8:
        parts["weights"] = fp8.weight_bytes(spec)
    report["model"] = {
        "name": model,
        "parameters": spec.n_parameters,
        "active_parameters": spec.n_active_parameters,
        "dtype": str(kind).removeprefix("torch."),
        "device": str(where),
        "prompt_length": prompt_length,
        **sizes,
        "need": parts,
        "total": sum(parts.values()),
        "free": free,
        "fits": sum(parts.values()) <= free,
    }
    return report


def size(n_bytes: int) -> str:
    """Bytes as a person reads them, in powers of 1024."""
    power = max(0, min(3, (n_bytes.bit_length() - 1) // 10))
    return f"{n_bytes / 1024**power:.{1 if power else 0}f} {('B', 'KiB', 'MiB', 'GiB')[power]}"


def lines(report: dict[str, Any]) -> list[str]:
    """The report for a terminal, one fact a line."""
    rows = list(report["versions"].items())
    rows += [(d["device"], f"{d['name']}, {size(d['free'])} free") for d in report["devices"]]
    rows += [("threads", str(report["threads"])), *report["kernels"].items()]
    rows += [("bundled models", ", ".join(report["bundled models"]) or "none"), ("package", report["package"])]
    if found := report["other packages named dllm"]:
        rows.append(("notice", f"{', '.join(found)} also installs a package named dllm: keep only one of them."))
    if m := report.get("model"):
        active = "" if m["active_parameters"] == m["parameters"] else f" ({m['active_parameters']:,} for a token)"
        rows += [("", ""), (m["name"], f"{m['parameters']:,} parameters{active}, {m['dtype']}, on {m['device']}")]
        rows.append(("sizes", f"batch {m['batch_size']}, prompt {m['prompt_length']}, answer {m['gen_length']} tokens"))
        rows += [(name, size(n_bytes)) for name, n_bytes in m["need"].items()]
        rows += [("together", size(m["total"])), ("free", f"{size(m['free'])} on {m['device']}")]
        advice = "yes" if m["fits"] else "no; try a smaller --batch_size, --gen_length or --dtype bfloat16"
        rows.append(("fits", advice))
    width = max(len(name) for name, _ in rows)
    return [f"{name:<{width}}  {value}".rstrip() for name, value in rows]
