"""Token Recycling: what the target last thought likely behind a token is drafted the next time that token comes."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import torch
from jaxtyping import Float
from torch import Tensor

from dllm.speculate.base import Context, Drafter, Drafting, Row, check_counts
from dllm.speculate.growth import template
from dllm.speculate.tree import Tree

SHARE = (0.45, 0.15, 0.08, 0.05, 0.035, 0.025, 0.02, 0.015)
"""How likely the target's next token is its rank-th one of the last time, about, for the shape of the tree."""


@dataclass(frozen=True)
class Recycling(Drafter):
    """Keep for every token the `width` likeliest tokens that the target last saw behind it, and draft them as a tree.

    The tree has `k` nodes, of a fixed shape: the paths of the highest product of the shares that their ranks have.
    Every node that is verified, accepted or not, refreshes the memory, and so does the prompt. Each request has a
    memory of its own. Token Recycling, arXiv:2408.08696.
    """

    prompt_logits = True
    k: int = 32
    width: int = 8

    def __post_init__(self) -> None:
        check_counts(self, "k", "width")

    def start(self, _: Context) -> "Remembering":
        return Remembering(self)


@cache
def shape(n_nodes: int, width: int) -> Tree:
    """The tree of ranks, in place of tokens, of the likeliest paths, if ranks are independent."""
    shares = [SHARE[min(rank, len(SHARE) - 1)] for rank in range(width)]
    return template([shares] * n_nodes, n_nodes)  # as deep as one path of all nodes


class Remembering(Drafting):
    """The likeliest followers of every token, by request."""

    def __init__(self, settings: Recycling) -> None:
        self.settings, self.followers = settings, dict[int, dict[int, list[int]]]()

    def remember(self, row: Row, tokens: Sequence[int], logits: Float[Tensor, "Q V"]) -> None:
        """Keep the likeliest followers of these tokens; of a token that comes twice, those of its last place."""
        likely = logits.topk(min(self.settings.width, logits.shape[1]), -1).indices.tolist()
        self.followers.setdefault(row.request, {}).update(zip(tokens, likely, strict=True))

    def begin(self, row: Row, logits: Float[Tensor, "P V"] | None, _: Tensor | None) -> None:
        assert logits is not None
        self.remember(row, row.tokens[: row.prompt_length], logits)

    def draft(self, rows: Sequence[Row]) -> list[Tree]:
        return [self.recycle(row) for row in rows]

    def recycle(self, row: Row) -> Tree:
        """The shape with tokens; a node whose parent's followers are not known is left out with all behind it."""
        known = self.followers[row.request]
        tokens: list[int] = []
        parents, place = list[int](), {-1: -1}
        likeliest = shape(self.settings.k, self.settings.width)
        for node, (rank, parent) in enumerate(zip(likeliest.tokens, likeliest.parents, strict=True)):
            if parent not in place:
                continue
            before = tokens[place[parent]] if parent >= 0 else row.tokens[-1]
            likely = known.get(before, ())
            if rank < len(likely):
                place[node] = len(tokens)
                tokens.append(likely[rank])
                parents.append(place[parent])
        return Tree(tokens, parents)

    def observe(self, row: Row, tree: Tree, logits: Float[Tensor, "Q V"], _: Tensor | None, path: list[int]) -> None:
        root = row.tokens[-2 - len(path)]
        accepted = [0, *(node + 1 for node in path)]
        others = [node for node in range(len(tree) + 1) if node not in set(accepted)]
        order, tokens = others + accepted, [root, *tree.tokens]  # what came true is the last word
        self.remember(row, [tokens[node] for node in order], logits[torch.tensor(order, device=logits.device)])

    def end(self, row: Row) -> None:
        self.followers.pop(row.request, None)
