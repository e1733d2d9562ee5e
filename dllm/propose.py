"""From logits to proposed tokens: temperature, top_p, top_k, and the ends of text that may be held back."""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from dllm.noise import Key
from dllm.samplers.base import Proposal
from dllm.settings import Settings


@dataclass(frozen=True)
class Proposer:
    """Proposes tokens for the columns of some rows from the logits that predict them."""

    settings: Settings
    never: Int[Tensor, " N"]
    """Ids that are never proposed: the mask, and what the tokenizer has no name for."""
    eos: Int[Tensor, " E"]

    def __call__(
        self,
        logits: Float[Tensor, "B W V"],
        columns: Int[Tensor, "B W"],
        key: Key,
        temperature: Float[Tensor, " B"] | None = None,
    ) -> Proposal:
        """temperature: of each row, for a sampler that draws by itself; the most probable tokens are proposed."""
        settings = self.settings
        if settings.logits_eos_inf:
            logits = logits.index_fill(-1, self.eos[:1], -torch.inf)
        choices = logits.index_fill(-1, self.never, -torch.inf)
        drawn = logits
        if temperature is not None:
            sharper = choices.to(torch.promote_types(logits.dtype, torch.float32)) / temperature[:, None, None]
            drawn = choices = most_probable(sharper, settings.top_p, settings.top_k)
        elif settings.temperature > 0 or settings.top_p is not None or settings.top_k is not None:
            # Below the highest, so that no temperature is too small to divide by.
            drawn = (choices - choices.amax(-1, keepdim=True)).double() / (settings.temperature or 1.0)
            drawn = choices = most_probable(drawn, settings.top_p, settings.top_k)
        if settings.temperature > 0:
            choices = choices + key.gumbel(columns, logits.shape[-1])
        tokens = choices.argmax(-1)
        precise = logits.to(torch.promote_types(logits.dtype, torch.float32))
        confidence = precise.softmax(-1).gather(-1, tokens[..., None]).squeeze(-1)
        if settings.confidence_eos_eot_inf:
            confidence = confidence.masked_fill(torch.isin(tokens, self.eos), 0.0)
        return Proposal(logits, drawn, tokens, confidence)


def most_probable(logits: Float[Tensor, "B W V"], top_p: float | None, top_k: int | None) -> Float[Tensor, "B W V"]:
    """-inf outside the fewest most probable tokens that reach a share of top_p, then outside the top_k of those.

    The most probable token always stays.
    """
    if top_p is not None and top_p < 1:
        ordered, index = logits.sort(-1, descending=True)
        before = ordered.softmax(-1).cumsum(-1) - ordered.softmax(-1)
        out = (before > top_p).scatter(-1, index, before > top_p)
        logits = logits.masked_fill(out, -torch.inf)
    if top_k is not None and top_k < logits.shape[-1]:
        logits = logits.masked_fill(logits < logits.topk(top_k, -1).values[..., -1:], -torch.inf)
    return logits
