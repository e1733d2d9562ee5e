"""What the host sends to a device, and when it may look back, without waiting for what a GPU has yet to do."""

from collections.abc import Sequence

import torch
from jaxtyping import Int
from torch import Tensor


def put(values: Sequence[int] | Sequence[Sequence[int]], device: torch.device) -> Int[Tensor, "..."]:
    """Whole numbers of the host on a device."""
    made = torch.tensor(values, dtype=torch.long)
    # From pageable memory a copy waits until all is done that the GPU was given before.
    return made.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else made.to(device)


def write(values: Tensor, at: int, number: int) -> None:
    """values[at] = number, which would send the number as a tensor of its own, and wait."""
    values[at].fill_(number)


def near(device: torch.device) -> bool:
    """Whether the host sees what is on the device at no cost. On a GPU each look waits until all is done."""
    return device.type == "cpu"
