"""A trained filter: a small network over the features of a block, and what it was made for, in one file."""

import json
from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, field
from hashlib import sha256
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from dllm import options
from dllm.errors import DllmError
from dllm.samplers.base import Fitted
from dllm.samplers.features import FEATURES, Sight, channels, seen

ZOO = Path(__file__).parents[1] / "zoo"
FILE = "filter.safetensors"


def dense(sizes: Sequence[int]) -> nn.Sequential:
    """Linear layers of these widths with ReLU between them."""
    layers: list[nn.Module] = []
    for wide, narrow in pairwise(sizes):
        layers += [nn.Linear(wide, narrow), nn.ReLU()]
    return nn.Sequential(*layers[:-1])


@dataclass(frozen=True)
class Mlp:
    """All columns of a block in, a logit for each of them out (Learn2PD, arXiv:2509.25188: two layers of 32)."""

    hidden: int = 32
    layers: int = 2

    def build(self, features: int, block_length: int) -> nn.Sequential:
        """(B, W, F) to (B, W)."""
        sizes = [features * block_length, *[self.hidden] * (self.layers - 1), block_length]
        return nn.Sequential(nn.Flatten(1), *dense(sizes))


@dataclass(frozen=True)
class Shared:
    """One network for all columns, which sees the features of its column alone."""

    hidden: int = 32
    layers: int = 2

    def build(self, features: int, block_length: int) -> nn.Sequential:  # of any length
        """(B, W, F) to (B, W)."""
        return nn.Sequential(*dense([features, *[self.hidden] * (self.layers - 1), 1]), nn.Flatten(1))


NETS: dict[str, type[Mlp | Shared]] = {"mlp": Mlp, "shared": Shared}


def make_net(name: str) -> Mlp | Shared:
    """A network's settings from its name: "mlp", "shared:hidden=64,layers=3". Raises DllmError."""
    made = options.make("network", NETS, {}, name)
    for option in ("hidden", "layers"):
        if (value := getattr(made, option)) < 1:
            raise DllmError(f"{option}={value} of a network must be at least 1.")
    return made


def check_features(names: Sequence[str]) -> None:
    """Raise DllmError unless these are features, each once, at least one."""
    unknown = [name for name in names if name not in FEATURES]
    if unknown or not names or len({*names}) < len(names):
        raise DllmError(
            f"features {', '.join(names) or '(none)'}: give each once, at least one, of {', '.join(FEATURES)}."
        )


@dataclass(frozen=True)
class Filter:
    """Says of every column of a block how likely its proposal is the token that one token a step would end with."""

    net: nn.Sequential = field(repr=False)
    """float32, on the CPU."""
    kind: str
    """The name of its settings, as `make_net` takes it."""
    features: tuple[str, ...]
    made_for: Fitted
    threshold: float
    """Calibrated; 1 reveals one token a step."""
    facts: Mapping[str, Any] = field(default_factory=dict, repr=False)
    """How it was made and calibrated, and what was measured, as JSON has it."""
    copies: dict[tuple[torch.device, torch.dtype], nn.Sequential] = field(
        default_factory=dict, init=False, repr=False, compare=False
    )

    def on(self, device: torch.device, dtype: torch.dtype) -> nn.Sequential:
        """The network there. It is copied once only, as each copy to a GPU would stall the step."""
        if (device, dtype) not in self.copies:
            self.copies[device, dtype] = deepcopy(self.net).to(device, dtype)
        return self.copies[device, dtype]

    def logits(self, sight: Sight) -> Float[Tensor, "B W"]:
        """ln(p / (1 - p)) for every column of the block."""
        inputs = seen(sight, self.features)
        logits: Tensor = self.on(inputs.device, inputs.dtype)(inputs)
        return logits


def bundled() -> list[str]:
    """The bundled models that have a filter."""
    return sorted(path.parent.name for path in ZOO.glob(f"*/{FILE}"))


def place(name: str) -> Path:
    """Where a filter should be: of a bundled model, in a folder, or itself."""
    path = ZOO / name if name in bundled() else Path(name).expanduser()
    return path / FILE if path.is_dir() else path


def of_model(name: str) -> str:
    """The name of a model that comes with a filter, as `read` takes it. Raises DllmError if it comes without one."""
    if not name or not place(name).is_file():
        raise DllmError(
            f"{name or 'this model'} comes without a filter for the sampler learned; make one with dllm train-filter "
            f"--model {name or 'MODEL'} --output FOLDER, and give filter=FOLDER."
        )
    return name


def find(name: str) -> Path:
    """The file of a filter: of a bundled model, in a folder, or itself. Raises DllmError if there is none."""
    path = place(name)
    if not path.is_file():
        raise DllmError(
            f"there is no filter {name!r}; give a file that dllm train-filter wrote, its folder, or the name of a "
            f"bundled model that has one: {', '.join(bundled()) or 'none'}."
        )
    return path


def read(name: str) -> Filter:
    """A filter by the name of a bundled model, its file or its folder.

    Raises DllmError if it is not there, is cut short, or has features or a network that are not known here.
    """
    from safetensors import SafetensorError, safe_open

    path = find(name)
    try:
        with safe_open(path, "pt") as file:
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118  # safe_open is not a dict
            about = json.loads((file.metadata() or {})["filter"])
        kind, features = str(about["net"]), tuple(about["features"])
        made_for = Fitted(str(path), **about["made_for"], digest=sha256(path.read_bytes()).hexdigest()[:16])
        threshold, facts = float(about["threshold"]), about["facts"]
    except (SafetensorError, OSError) as error:
        raise DllmError(f"{path} cannot be read ({str(error).splitlines()[0]}); is the file cut short?") from error
    except (KeyError, ValueError, TypeError) as error:
        raise DllmError(f"{path} is not a filter as dllm train-filter writes them ({error!r}).") from error
    try:
        check_features(features)
        net = make_net(kind).build(channels(features), made_for.block_length)
        net.load_state_dict(tensors)
    except (DllmError, RuntimeError, TypeError) as error:
        reason = " ".join(str(error).split())
        raise DllmError(f"{path} has other features or another network than are known here: {reason}") from error
    return Filter(net.requires_grad_(False), kind, features, made_for, threshold, facts)
