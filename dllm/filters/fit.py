"""Fit a filter's network to traces: which masked columns propose their final token already.

The paper (arXiv:2509.25188) trains on decided columns too, splits by step, and weighs no class. Here decided columns,
on which nothing depends, do not count; a prompt is in one part only; both classes weigh the same, and what that does to
the probabilities is taken back afterwards; and the loss on prompts that were not fitted says when to stop.
"""

from collections.abc import Callable
from dataclasses import dataclass
from math import inf
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from dllm.errors import DllmError
from dllm.filters.traces import Traces
from dllm.samplers.features import FEATURES, channels
from dllm.samplers.filter import check_features, make_net


@dataclass(frozen=True)
class Recipe:
    """What a network is, and how it is fitted."""

    net: str = "mlp"
    """A network of `dllm.samplers.filter.NETS`, with options."""
    features: tuple[str, ...] = ("confidence",)
    """Of `dllm.samplers.features.FEATURES`. The paper's is the confidence alone."""
    learning_rate: float = 3e-3
    epochs: int = 300
    """At most."""
    patience: int = 30
    """Epochs without a lower loss on the validation prompts after which fitting ends."""
    batch: int = 256
    """Blocks of a step."""
    seed: int = 0

    def __post_init__(self) -> None:
        check_features(self.features)
        make_net(self.net)


def columns_of(features: Float[Tensor, "S W F"], names: tuple[str, ...]) -> Float[Tensor, "S W G"]:
    """Some of all features, in the order of these names."""
    ends, at = dict[str, range](), 0
    for name, (n, _) in FEATURES.items():
        ends[name], at = range(at, at + n), at + n
    return features[..., [column for name in names for column in ends[name]]]


def balance(traces: Traces) -> float:
    """How much more a final proposal must weigh for both classes to weigh the same. Raises DllmError for one class."""
    n, right = int(traces.masked.sum()), int((traces.masked & traces.right).sum())
    if right in (0, n):
        raise DllmError(f"{right} of {n} proposals in the traces are final: nothing can be learned from one class.")
    return (n - right) / right


def fit(
    train: Traces, valid: Traces, recipe: Recipe, tell: Callable[[int, float], None] = lambda _e, _l: None
) -> tuple[nn.Sequential, dict[str, Any]]:
    """The network that does best on the validation prompts, float32 on the CPU, and how that came about.

    It depends on traces and recipe alone. tell: the epoch and its validation loss. Raises DllmError if the loss is not
    finite, and where no proposal or every one is final.
    """
    inputs, others = (columns_of(part.features, recipe.features) for part in (train, valid))
    if not (inputs.isfinite().all() and others.isfinite().all()):
        raise DllmError("the traces hold features that are not finite; collect them again, in a wider dtype.")
    weight, mean, std = balance(train), inputs[train.masked].mean(0), inputs[train.masked].std(0)
    std = std.where(std > 1e-6, 1.0)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(recipe.seed)
        net = make_net(recipe.net).build(channels(recipe.features), inputs.shape[1])
    draw = torch.Generator().manual_seed(recipe.seed)
    optimizer = torch.optim.AdamW(net.parameters(), lr=recipe.learning_rate, weight_decay=0.01)
    inputs, others = (inputs - mean) / std, (others - mean) / std
    best, least, since, epoch = {}, inf, 0, 0
    for epoch in range(1, recipe.epochs + 1):
        for rows in torch.split(torch.randperm(len(inputs), generator=draw), recipe.batch):
            optimizer.zero_grad()
            loss = error(net(inputs[rows]), train.right[rows], train.masked[rows], weight)
            check(loss, epoch)
            loss.backward()  # type: ignore[no-untyped-call]  # torch ships no annotation for it
            optimizer.step()
        with torch.no_grad():
            now = float(check(error(net(others) - torch.tensor(weight).log(), valid.right, valid.masked, 1.0), epoch))
        tell(epoch, now)
        since += 1
        if now < least:
            best, least, since = {name: value.clone() for name, value in net.state_dict().items()}, now, 0
        if since == recipe.patience:
            break
    net.load_state_dict(best)
    plain(net, mean, std, weight)
    return net.requires_grad_(False), {"epochs": epoch, "loss": least, "steps": len(inputs), "weight": weight}


def error(logits: Tensor, right: Tensor, masked: Tensor, weight: float) -> Tensor:
    """The cross-entropy of the masked columns, in nats."""
    pos = torch.tensor(weight)
    ce = F.binary_cross_entropy_with_logits(logits, right.float(), reduction="none", pos_weight=pos)
    return ce[masked].mean()


def check(loss: Tensor, epoch: int) -> Tensor:
    if not loss.isfinite():
        raise DllmError(f"the loss is {loss.item()} in epoch {epoch}; give a lower learning rate. Nothing was written.")
    return loss


def plain(net: nn.Sequential, mean: Tensor, std: Tensor, weight: float) -> None:
    """Fold into the weights how inputs were scaled, and take back that both classes weighed the same."""
    linear = [layer for layer in net if isinstance(layer, nn.Linear)]
    first, last = linear[0], linear[-1]
    times = first.in_features // len(mean)
    with torch.no_grad():
        first.weight.div_(std.repeat(times))
        first.bias.sub_(first.weight @ mean.repeat(times))
        last.bias.sub_(torch.tensor(weight).log())
