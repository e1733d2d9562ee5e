"""From logits to proposed tokens: temperature, top_p, top_k, and the ends of text that may be held back."""

from dataclasses import dataclass
from functools import partial

import torch
from jaxtyping import Float, Int
from torch import Tensor

from dllm.kernels.jit import suits
from dllm.kernels.token_stats import Banned, token_stats
from dllm.noise import Key
from dllm.samplers.base import Draws, Proposal
from dllm.settings import Settings


@dataclass(frozen=True)
class Proposer:
    """Proposes tokens for the columns of some rows from the logits that predict them."""

    settings: Settings
    never: Banned
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
        # To draw from the most probable tokens alone takes a sorted copy, and so more than one pass.
        if suits(logits) and (settings.temperature == 0 or (settings.top_p is None and settings.top_k is None)):
            place = key.place(columns) if settings.temperature > 0 else None
            stats = token_stats(logits, self.never, place, settings.temperature)
            draws: Draws = partial(self.drawn, logits, temperature)
            return Proposal(logits, draws, stats.tokens, self.trusted(stats.tokens, stats.confidence), stats)
        drawn = self.drawn(logits, temperature)
        choices = logits.index_fill(-1, self.never.ids, -torch.inf) if drawn is logits else drawn
        if settings.temperature > 0:
            choices = choices + key.gumbel(columns, logits.shape[-1])
        tokens = choices.argmax(-1)
        precise = logits.to(torch.promote_types(logits.dtype, torch.float32))
        confidence = precise.softmax(-1).gather(-1, tokens[..., None]).squeeze(-1)
        return Proposal(logits, lambda: drawn, tokens, self.trusted(tokens, confidence), None)

    def drawn(self, logits: Float[Tensor, "B W V"], temperature: Float[Tensor, " B"] | None) -> Float[Tensor, "B W V"]:
        """What tokens are drawn from: the logits at the temperature, cut to top_p and top_k; else they themselves."""
        settings = self.settings
        if temperature is not None:
            allowed = logits.index_fill(-1, self.never.ids, -torch.inf)
            sharper = allowed.to(torch.promote_types(logits.dtype, torch.float32)) / temperature[:, None, None]
            return most_probable(sharper, settings.top_p, settings.top_k)
        if settings.temperature == 0 and settings.top_p is None and settings.top_k is None:
            return logits
        allowed = logits.index_fill(-1, self.never.ids, -torch.inf)
        # Below the highest, so that no temperature is too small to divide by.
        sharper = (allowed - allowed.amax(-1, keepdim=True)).double() / (settings.temperature or 1.0)
        return most_probable(sharper, settings.top_p, settings.top_k)

    def trusted(self, tokens: Int[Tensor, "B W"], confidence: Float[Tensor, "B W"]) -> Float[Tensor, "B W"]:
        """The confidence, 0 for ends of text that are to be revealed last."""
        late = self.settings.confidence_eos_eot_inf
        return confidence.masked_fill(torch.isin(tokens, self.eos), 0.0) if late else confidence


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
