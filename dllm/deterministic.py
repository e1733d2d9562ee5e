"""Decoding in which a row's tokens do not depend on its batch to the last bit, whatever the dtype.

Sums of floating-point numbers depend on their order, and libraries choose it by the shape of a whole batch. On a GPU
linear maps, norms and attention have kernels that sum a row as they would alone, so that rows still share forwards.
Where these do not serve, every row has its forwards to itself.
"""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch.overrides import TorchFunctionMode

from dllm.cache.base import Cache
from dllm.kernels.jit import suits
from dllm.kernels.linear import linear
from dllm.kernels.quantize_rows import E4M3


class FixedOrder(TorchFunctionMode):
    """Within it every linear map of a forward, of whatever module, sums in one order.

    It lasts as long as one forward and is known to it alone: neither the model nor its modules change.
    """

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        return (linear if func is F.linear else func)(*args, **(kwargs or {}))


def shareable(model: Any, cache: Cache) -> bool:
    """Whether rows may share a forward: all that sums in it is ours.

    Experts, sums of attention and products of 8-bit weights are not.
    """
    ours = model.spec.cacheable and model.spec.experts is None and not cache.attentive
    ours = ours and E4M3 not in {weight.dtype for weight in model.parameters()}
    return ours and suits(torch.empty(0, dtype=model.dtype, device=model.device))
