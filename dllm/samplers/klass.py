"""KLASS: reveal what is sure and has stopped changing."""

from dataclasses import dataclass

import torch
from jaxtyping import Int
from torch import Tensor

from dllm.samplers.base import Needs, Prediction, Sampler, check_at_least, check_probability, check_whole


@dataclass(frozen=True)
class Klass(Sampler):
    """Reveal where confidence is high and the distribution has been stable for some steps (KLASS, arXiv:2511.05664).

    Stable: KL(now || one step ago) < kl_threshold in each of the last `history` steps of the block. Where nothing is
    ready the schedule's quota of the most probable tokens is revealed.
    """

    conf_threshold: float = 0.9
    kl_threshold: float = 0.01
    """In nats."""
    history: int = 2

    def __post_init__(self) -> None:
        check_probability("conf_threshold", self.conf_threshold, "stability alone", "the schedule alone")
        check_at_least("kl_threshold", self.kl_threshold, 0, "a divergence in nats; 0 leaves the schedule alone")
        check_whole("history", self.history, 1, "steps without change")

    def needs(self) -> Needs:
        return Needs(memory=True)

    def __call__(self, p: Prediction) -> Int[Tensor, "B W"]:
        log_p = p.wide_logits.log_softmax(-1)
        before = p.recall.get("log_p", log_p, -torch.inf)  # without a step to compare with the divergence is infinite
        moved = (log_p.exp() * (log_p - before)).nan_to_num(nan=0.0).sum(-1)
        streak = torch.where(moved < self.kl_threshold, p.recall.get("streak", p.current, 0) + 1, 0)
        p.recall.set("log_p", log_p)
        p.recall.set("streak", streak)
        ready = p.masked & (streak >= self.history) & (p.confidence > self.conf_threshold)
        return p.reveal(torch.where(ready.any(1, keepdim=True), ready, p.top(p.quota)))
