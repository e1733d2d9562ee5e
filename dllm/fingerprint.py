"""The fingerprint of a model: what tells its weights from others', without reading all of them."""

from hashlib import blake2b

import torch
from torch import nn

from dllm.errors import DllmError
from dllm.spec import Model

VALUES = 64
"""Of every tensor, evenly spaced."""


def fingerprint(model: Model) -> str:
    """16 hexadecimal digits from names, shapes and some values of all parameters.

    The same on every device, and in every dtype that holds bfloat16: values are rounded to that. Raises DllmError for
    a model that is no network of torch.
    """
    module = getattr(model, "module", model)  # a network of transformers stands inside
    if not isinstance(module, nn.Module):
        raise DllmError(f"{type(model).__name__} has no weights that could be told from others.")
    digest = blake2b(digest_size=8)
    for name, weight in sorted(module.named_parameters()):
        flat = weight.detach().flatten()
        n = min(VALUES, len(flat))
        # In whole numbers: float32 rounds the last place of half a billion values to one behind it.
        places = torch.arange(n, device=flat.device) * (len(flat) - 1) // max(1, n - 1)
        digest.update(f"{name} {list(weight.shape)}".encode())
        digest.update(flat[places].to(torch.bfloat16).cpu().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
