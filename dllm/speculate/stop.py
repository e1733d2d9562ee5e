"""When a draft model should stop: as soon as its draft is likely to have gone wrong (SpecDec++, arXiv:2405.19715).

The token after which it stops stays in the draft. To leave it out, because it looks bad, would change what is emitted.
"""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from dllm.errors import DllmError
from dllm.fingerprint import fingerprint
from dllm.weights import opened, read_json

WEIGHTS, CONFIG = "stop.safetensors", "stop.json"


class StopHead(nn.Module):
    """How likely a drafted token is accepted if all before it are, from the state that proposed it and its embedding.

    SpecDec++ reads the state behind the token instead, which is known one forward later.
    """

    def __init__(self, hidden_size: int) -> None:
        super().__init__()
        self.inner, self.outer = nn.Linear(2 * hidden_size, hidden_size), nn.Linear(hidden_size, 1)

    def forward(self, hidden: Float[Tensor, "N C"], token: Float[Tensor, "N C"]) -> Float[Tensor, " N"]:
        """The logit of the probability."""
        out: Tensor = self.outer(F.silu(self.inner(torch.cat([hidden, token], -1)))).squeeze(-1)
        return out


def likely(
    head: StopHead | None, model: Any, hidden: Float[Tensor, "N C"], p: Float[Tensor, "N V"], tokens: Int[Tensor, " N"]
) -> Float[Tensor, " N"]:
    """How likely each token is accepted: what the head says, or, without one, the drafter's own probability of it."""
    if head is None:
        return p.gather(1, tokens[:, None]).squeeze(1)
    chance: Tensor = head(hidden, model.embed(tokens)).sigmoid()
    return chance


def save_stop(head: StopHead, folder: Path, model: Any, facts: Mapping[str, Any]) -> None:
    """Write the head of this draft model, each file replaced at once."""
    from safetensors.torch import save_file  # only who trains a head writes one

    folder.mkdir(parents=True, exist_ok=True)
    save_file({n: p.detach().cpu() for n, p in head.named_parameters()}, folder / f"{WEIGHTS}.tmp")
    (folder / f"{CONFIG}.tmp").write_text(json.dumps({"weights": fingerprint(model), **facts}) + "\n")
    for name in (WEIGHTS, CONFIG):
        os.replace(folder / f"{name}.tmp", folder / name)


def load_stop(folder: Path, model: Any) -> StopHead:
    """The stop head in a folder. Raises DllmError if there is none, or if it is another draft model's."""
    if not (folder / CONFIG).is_file():
        raise DllmError(f"{folder} has no {CONFIG}, so it holds no stop head; train one with scripts/train_stop.py.")
    told = read_json(folder / CONFIG).get("weights")
    if told != fingerprint(model):
        raise DllmError(
            f"the stop head in {folder} was trained for another draft model ({told}) than this one "
            f"({fingerprint(model)}); train one with scripts/train_stop.py."
        )
    head = StopHead(model.spec.hidden_size).requires_grad_(False)
    with opened(folder / WEIGHTS) as file:
        stored = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  # safe_open is not a dict
    if {n: tuple(t.shape) for n, t in stored.items()} != {n: tuple(p.shape) for n, p in head.named_parameters()}:
        raise DllmError(f"{folder / WEIGHTS} is no stop head for hidden states of {model.spec.hidden_size} numbers.")
    head.load_state_dict(stored)
    return head.to(model.device, model.dtype).eval()
