"""The second model of a drafter: opened beside the target, and checked to speak the same tokens."""

from pathlib import Path
from typing import Any

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from dllm.errors import DllmError
from dllm.loading import load


def partner(given: Any, target: Any, drafter: str) -> Any:
    """The model that drafts for the target, on its device and in its dtype. given: a name, a folder, or an open model.

    Raises DllmError if there is none, or if a token of the target is another token, or none, to it.
    """
    if given is None:
        raise DllmError(
            f"drafter {drafter} needs a model that drafts; give its name or folder, as {drafter}:model=NAME."
        )
    model = load(given, device=target.device, dtype=target.dtype) if isinstance(given, str | Path) else given
    if model.tokenizer is None or target.tokenizer is None:
        if model.spec.vocab_size != target.spec.vocab_size:
            raise DllmError(
                f"the drafting model has a vocabulary of {model.spec.vocab_size} tokens and the target one of "
                f"{target.spec.vocab_size}; take a drafting model of the target's family."
            )
        return model
    known = model.tokenizer.get_vocab()
    for token, index in target.tokenizer.get_vocab().items():
        if known.get(token) != index:
            what = f"token {known[token]}" if token in known else "no token"
            raise DllmError(
                f"the drafting model's tokenizer names other tokens than the target's: {token!r} is token {index} "
                f"of the target and {what} of it; take a drafting model of the target's family."
            )
    return model


def fit(logits: Float[Tensor, "*B W"], vocab_size: int) -> Float[Tensor, "*B V"]:
    """A drafter's logits for the target's vocabulary: models of one tokenizer differ in how far they fill it up."""
    return F.pad(logits, (0, vocab_size - logits.shape[-1]), value=-float("inf"))
