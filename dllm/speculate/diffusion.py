"""A masked diffusion model as the drafter of an autoregressive one (SpecDiff, arXiv:2408.05636)."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from dllm.cache.base import full_view
from dllm.canvas import Span, highest
from dllm.errors import DllmError
from dllm.speculate.base import Context, Drafter, Drafting, Row, check_counts
from dllm.speculate.growth import Growing, grow
from dllm.speculate.guess import Children, children, guesses
from dllm.speculate.partner import fit, partner
from dllm.speculate.tree import Tree


@dataclass(frozen=True)
class Diffusion(Drafter):
    """Fill `k` masks behind the text: all in one forward, or the surest first in `steps` of them.

    The model must share the target's tokenizer. It computes the whole text anew for every draft: what it would store of
    a text changes when the text goes on.
    """

    model: Any = None
    """A bundled name, a folder, a hub id, or a model that is open already."""
    k: int = 4
    """Masks to fill, and so the depth of a draft."""
    steps: int = 1
    """Forwards for one draft; later ones see what earlier ones decided."""
    budget: int | None = None
    """Draft a tree of so many nodes, grown from the guesses for each mask, instead of the chain of the best ones."""

    def __post_init__(self) -> None:
        check_counts(self, "k", "steps", *(["budget"] if self.budget is not None else []))

    def start(self, context: Context) -> Drafting:
        model = partner(self.model, context.model, "diffusion")
        if model.spec.mask_id is None:
            raise DllmError(
                "the model of drafter diffusion has no mask token; draft with it by model:model=, not diffusion."
            )
        return Filling(self, context, model)


class Filling(Drafting):
    def __init__(self, settings: Diffusion, context: Context, model: Any) -> None:
        self.settings, self.context, self.model = settings, context, model

    @torch.no_grad()
    def draft(self, rows: Sequence[Row]) -> list[Tree]:
        guessed, tokens = self.fill(rows)
        if self.settings.budget is None:
            return [Tree.chain(row) for row in tokens.tolist()]
        found = [children(of_row, self.settings.budget) for of_row in guessed]

        def expand(asked: Sequence[tuple[int, Growing, int]]) -> Sequence[Children]:
            return [found[row][len(tree.path(node))] for row, tree, node in asked]

        return grow(len(rows), expand, self.settings.budget, self.settings.k)

    def fill(self, rows: Sequence[Row]) -> tuple[Float[Tensor, "B k V"], Int[Tensor, "B k"]]:
        """The guesses for the masks behind the rows, as each was decided, and the tokens decided on."""
        model, k = self.model, self.settings.k
        lengths = [self.whole(len(row.tokens) + k) for row in rows]
        mask, width = model.spec.mask_id, max(lengths)
        canvas = torch.tensor([row.tokens + [mask] * (width - len(row.tokens)) for row in rows], device=model.device)
        start = torch.tensor([len(row.tokens) for row in rows], device=model.device)
        span = Span.between(start, start + k, k)
        left, kept, n_steps = torch.ones_like(span.valid), None, min(self.settings.steps, k)
        for step in range(n_steps):
            logits = model(canvas, full_view(model.spec, lengths, model.device), span)
            logits[..., mask] = -torch.inf
            guessed = guesses(self.context, rows, fit(logits, self.context.model.spec.vocab_size), *range(1, k + 1))
            share, tokens = guessed.softmax(-1).max(-1)
            decided = highest(k * (step + 1) // n_steps - k * step // n_steps, share, left)
            canvas.scatter_(1, span.columns, torch.where(decided, tokens, canvas.gather(1, span.columns)))
            kept = guessed if kept is None else torch.where(left[..., None], guessed, kept)
            left &= ~decided
            self.forwards += 1
            self.positions += sum(lengths)
        assert kept is not None
        return kept, canvas.gather(1, span.columns)

    def whole(self, length: int) -> int:
        """A block-causal model was trained on whole blocks: masks go on to the end of the last one."""
        block = self.model.spec.block_length if self.model.spec.attention == "block" else 1
        return -(-length // block) * block
