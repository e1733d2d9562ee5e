"""dInfer's credit decoding: a token that was predicted again and again is believed sooner (arXiv:2510.08666)."""

from dataclasses import dataclass

from jaxtyping import Int
from torch import Tensor

from dllm.samplers.base import Needs, Prediction, Sampler, check_at_least, check_probability


@dataclass(frozen=True)
class Credit(Sampler):
    """The threshold rule on logits + weight · ln(1 + credit), at least one token a step (dInfer, arXiv:2510.08666).

    At every step of a block all credit decays, and the most probable token of each masked column gains its probability
    to the power `power`. Tokens are read from the raised logits too.
    """

    threshold: float = 0.9
    weight: float = 0.7
    decay: float = 0.8
    power: float = 0.2

    def __post_init__(self) -> None:
        check_probability("threshold", self.threshold, "reveal all", "one token a step")
        check_probability("decay", self.decay, "forget at once", "never forget")
        check_at_least("weight", self.weight, 0, "how much credit raises logits; 0 is the threshold rule")
        check_at_least("power", self.power, 0, "0 gives every prediction the same credit")

    def needs(self) -> Needs:
        return Needs(memory=True)

    def __call__(self, p: Prediction) -> Int[Tensor, "B W"]:
        best, token = p.wide_logits.softmax(-1).max(-1, keepdim=True)
        credit = p.recall.get("credit", p.wide_logits, 0) * self.decay
        credit.scatter_add_(-1, token, best**self.power * p.masked[..., None])
        p.recall.set("credit", credit)
        believed = p.proposing(p.wide_logits + self.weight * credit.log1p())
        return believed.reveal(believed.sure(self.threshold) | believed.top(1))
