"""How the next token of a causal model is chosen: temperature, top_p, top_k, and noise that belongs to its column."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from dllm.noise import Key
from dllm.propose import most_probable
from dllm.settings import Settings


@dataclass(frozen=True)
class Chooser:
    """Chooses tokens from logits, target's or drafter's: the most probable one, or a draw by Gumbel noise.

    The noise is named by the request's key and the token's column, so that plain decoding, a verification and a drafter
    that shares it all meet the same (drafter-invariant decoding, arXiv:2408.07978).
    """

    settings: Settings
    never: Int[Tensor, " N"]
    """Ids that are never chosen: what the tokenizer has no name for."""

    def drawn(self, logits: Float[Tensor, "B Q V"]) -> Float[Tensor, "B Q V"]:
        """What tokens are drawn from: the logits at the temperature, cut to top_p and top_k.

        At temperature 0 the logits themselves. -inf at tokens that are never chosen.
        """
        settings = self.settings
        if len(self.never):
            logits = logits.index_fill(-1, self.never, -torch.inf)
        if settings.temperature == 0:
            return logits
        # Below the highest, so that no temperature is too small to divide by.
        logits = (logits - logits.amax(-1, keepdim=True)).double() / settings.temperature
        return most_probable(logits, settings.top_p, settings.top_k)

    def probabilities(self, logits: Float[Tensor, "B Q V"]) -> Float[Tensor, "B Q V"]:
        """The probabilities of the draws, float64; at temperature 0 all on the most probable token."""
        drawn = self.drawn(logits)
        if self.settings.temperature == 0:
            return torch.nn.functional.one_hot(drawn.argmax(-1), drawn.shape[-1]).double()
        return drawn.softmax(-1)

    def noise(
        self, keys: Sequence[int], columns: Int[Tensor, "B Q"], vocab_size: int, stream: int = 2
    ) -> Float[Tensor, "B Q V"]:
        """Standard Gumbel noise, float64, of every token at these columns. stream: `dllm.noise.OWN` for a drafter's."""
        requests = torch.tensor(keys, device=columns.device)
        return Key(self.settings.noise_seed, requests).gumbel(columns, vocab_size, stream)

    def __call__(
        self,
        logits: Float[Tensor, "B Q V"],
        keys: Sequence[int],
        starts: Sequence[int],
        depth: Int[Tensor, "B Q"] | None = None,
        deepest: int = 0,
    ) -> Int[Tensor, "B Q"]:
        """The tokens that follow nodes `depth` behind the columns `starts` of rows with these keys; `deepest` of these.

        Without depth the nodes follow each other, the first at `starts`. -1 where the logits hold NaN.
        """
        choices = self.drawn(logits)
        if self.settings.temperature > 0:
            # Nodes of one depth share their noise, so it is made for every depth once.
            columns = following(starts, logits.shape[1] if depth is None else deepest + 1, logits.device)
            noise = self.noise(keys, columns, logits.shape[2])
            if depth is not None:
                noise = noise.gather(1, depth[..., None].expand(-1, -1, logits.shape[2]))
            choices = choices + noise
        best, tokens = choices.max(-1)
        return tokens.masked_fill(best != best, -1)


def following(starts: Sequence[int], n: int, device: torch.device) -> Int[Tensor, "B {n}"]:
    """The n columns behind each of these."""
    return torch.tensor(starts, device=device)[:, None] + torch.arange(1, n + 1, device=device)
