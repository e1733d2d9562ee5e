"""From a drafter's logits to the tokens that it drafts, and to how likely the target takes each of them."""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from dllm.speculate.base import Context, Row

Children = Sequence[tuple[int, float]]
"""Tokens that may follow a node, each with how likely it is accepted after it, 0 to 1."""


def guesses(
    context: Context, rows: Sequence[Row], logits: Float[Tensor, "B E V"], *ahead: int
) -> Float[Tensor, "B E V"]:
    """Logits in whose order tokens are to be drafted, given those of tokens `ahead` places behind the rows' last ones.

    ahead: one number for each of the E, or one for all.

    At a temperature they are the draws that the target itself would make from them: where drafter and target agree it
    then takes the first (Gumbel-top-k coupled with the target's draw, arXiv:2408.07978).
    """
    drawn, noise = context.choose.drawn(logits), shared_noise(context, rows, ahead)
    return drawn if noise is None else drawn + noise


def shared_noise(context: Context, rows: Sequence[Row], ahead: Sequence[int]) -> Float[Tensor, "B E V"] | None:
    """The noise with which the target draws the tokens `ahead` places behind the rows' last ones.

    None where it draws none, and where the rule wants drafts that do not know it: without noise a draft is no draw but
    certain, which the ratio rule takes as exactly.
    """
    if context.choose.settings.temperature == 0 or not context.coupled:
        return None
    columns = torch.tensor([[len(row.tokens) - 1 + n for n in ahead] for row in rows], device=context.model.device)
    return context.choose.noise([row.key for row in rows], columns, context.model.spec.vocab_size)


def children(guessed: Float[Tensor, "N V"], width: int) -> list[Children]:
    """The `width` best guesses of every node, with their share in the softmax of all guesses."""
    share, token = guessed.softmax(-1).topk(min(width, guessed.shape[-1]))
    return [
        [(token, share) for token, share in zip(*pair, strict=True) if share > 0]
        for pair in zip(token.tolist(), share.tolist(), strict=True)
    ]
