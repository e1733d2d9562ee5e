"""Heads on a model's last hidden state that guess the tokens behind its next one, Medusa-1's and Hydra's; their files.

Medusa (arXiv:2401.10774), Hydra (arXiv:2402.05109). Shape letters: N places in texts, C hidden size, V vocabulary.
"""

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from dllm.errors import DllmError
from dllm.fingerprint import fingerprint
from dllm.weights import opened, read_json

WEIGHTS, CONFIG = "heads.safetensors", "heads.json"
KINDS = ("medusa", "hydra")


class Heads(nn.Module):
    """Head k guesses the token k + 1 places on from a hidden state, the model's own head being number 0.

    Medusa's look at the hidden state alone; Hydra's (`sequential`) also at the k tokens in between, so that a guess
    agrees with the guesses before it. They all end in the model's own head, which is not theirs and not trained.
    """

    def __init__(self, n_heads: int, hidden_size: int, sequential: bool) -> None:
        super().__init__()
        self.n_heads, self.hidden_size, self.sequential = n_heads, hidden_size, sequential
        sizes = [hidden_size * (1 + k * sequential) for k in range(1, n_heads + 1)]
        # Layers of their own: `[block] * n` would be one block n times, as in the published implementations.
        self.inner = nn.ModuleList(nn.Linear(size, hidden_size) for size in sizes)
        self.between = nn.ModuleList(
            nn.Linear(size - hidden_size, hidden_size, bias=False) for size in sizes if sequential
        )
        for p in self.parameters():
            nn.init.zeros_(p)  # every head begins as the model's own

    def forward(
        self, k: int, hidden: Float[Tensor, "N C"], between: Sequence[Float[Tensor, "N C"]]
    ) -> Float[Tensor, "N C"]:
        """What the model's head is to read for head k, from 1 on. between: embeddings of the k tokens in between."""
        x = torch.cat([hidden, *between], -1) if self.sequential else hidden
        straight = hidden + self.between[k - 1](x[:, self.hidden_size :]) if self.sequential else hidden
        z: Tensor = straight + F.silu(self.inner[k - 1](x))
        return z

    @property
    def kind(self) -> str:
        return KINDS[self.sequential]


def save(heads: Heads, folder: Path, facts: Mapping[str, Any], dtype: torch.dtype = torch.bfloat16) -> None:
    """Write the heads and what they are, each file replaced at once. facts: "target", "accuracy" and more to tell."""
    from safetensors.torch import save_file  # only who trains heads writes any

    folder.mkdir(parents=True, exist_ok=True)
    tensors = {name: value.detach().to("cpu", dtype) for name, value in heads.named_parameters()}
    known = {"kind": heads.kind, "n_heads": heads.n_heads, "hidden_size": heads.hidden_size}
    save_file(tensors, folder / f"{WEIGHTS}.tmp")
    (folder / f"{CONFIG}.tmp").write_text(json.dumps(known | dict(facts)) + "\n")
    for name in (WEIGHTS, CONFIG):
        os.replace(folder / f"{name}.tmp", folder / name)


def read_config(folder: Path) -> dict[str, Any]:
    """The heads.json of a folder. Raises DllmError if it is not there, or does not tell what heads these are."""
    path = folder / CONFIG
    if not path.is_file():
        raise DllmError(f"{folder} has no {CONFIG}, so it holds no heads; train some with scripts/train_medusa.py.")
    config = read_json(path)
    if config.get("kind") not in KINDS:
        raise DllmError(f"{path} has kind={config.get('kind')!r}; heads are of kind {' or '.join(KINDS)}.")
    for name in ("n_heads", "hidden_size"):
        if type(config.get(name)) is not int or config[name] < 1:
            raise DllmError(f"{path} has {name}={config.get(name)!r}; it must be a whole number of at least 1.")
    rows = config.get("accuracy")
    if not isinstance(rows, list) or len(rows) != config["n_heads"] or not all(map(shares, rows)):
        raise DllmError(f"{path} must tell, as `accuracy`, how often each rank of each head is right; train them anew.")
    if not isinstance(config.get("frequent", []), list):
        raise DllmError(f"{path} has a `frequent` that is no list of token ids; train the heads anew.")
    return config


def shares(row: Any) -> bool:
    return isinstance(row, list) and len(row) > 0 and all(isinstance(p, int | float) and 0 <= p <= 1 for p in row)


def load(folder: Path, model: Any) -> Heads:
    """The heads in a folder, on the model's device and in its dtype. Raises DllmError if they are not this model's."""
    config = read_config(folder)
    if config["hidden_size"] != model.spec.hidden_size:
        raise DllmError(
            f"the heads in {folder} read hidden states of {config['hidden_size']} numbers, the model has "
            f"{model.spec.hidden_size}; train heads for this model with scripts/train_medusa.py."
        )
    if config.get("target") != fingerprint(model):
        raise DllmError(
            f"the heads in {folder} were trained for other weights ({config.get('target')}) than the model's "
            f"({fingerprint(model)}); train heads for this model with scripts/train_medusa.py."
        )
    heads = Heads(config["n_heads"], config["hidden_size"], config["kind"] == "hydra").requires_grad_(False)
    heads.to(model.device, model.dtype)
    with opened(folder / WEIGHTS) as file:
        stored = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  # safe_open is not a dict
    expected = {name: tuple(p.shape) for name, p in heads.named_parameters()}
    if {name: tuple(value.shape) for name, value in stored.items()} != expected:
        raise DllmError(f"{folder / WEIGHTS} holds other tensors than its {CONFIG} says; train the heads anew.")
    heads.load_state_dict(stored)
    return heads.eval()
