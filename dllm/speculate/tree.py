"""Drafted tokens of one row as a tree, and the trees of a batch as tensors.

Shape letters: B rows, Q nodes of the widest row, its root included, V vocabulary.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor


@dataclass(frozen=True)
class Tree:
    """Drafted nodes of one row, each behind its parent. The root is not among them.

    The root is the row's last token, which is chosen but not yet computed; a node whose parent is -1 is drafted to
    follow it. Siblings are tried in their order. Raises ValueError if a parent does not stand before its node.
    """

    tokens: list[int] = field(default_factory=list)
    parents: list[int] = field(default_factory=list)
    q: Float[Tensor, "n V"] | None = None
    """For the ratio rule, at every node the probabilities from which it and its siblings were drawn, in their order and
    without replacement. None: a node was not drawn, but follows from what was decided before it."""

    def __post_init__(self) -> None:
        if len(self.tokens) != len(self.parents) or (self.q is not None and len(self.q) != len(self.tokens)):
            raise ValueError("a tree needs as many parents, and as many rows of q if any, as tokens.")
        if any(not -1 <= parent < node for node, parent in enumerate(self.parents)):
            raise ValueError(f"parents={self.parents} must each be -1 (the root) or stand before their node.")

    @classmethod
    def chain(cls, tokens: Sequence[int], q: Float[Tensor, "n V"] | None = None) -> "Tree":
        """Tokens that follow each other."""
        return cls(list(tokens), list(range(-1, len(tokens) - 1)), q)

    def __len__(self) -> int:
        return len(self.tokens)

    @cached_property
    def is_chain(self) -> bool:
        return all(parent == node - 1 for node, parent in enumerate(self.parents))

    @cached_property
    def depths(self) -> list[int]:
        """How far behind the root each node stands; 1 and more."""
        depths: list[int] = []
        for parent in self.parents:
            depths.append(1 + (depths[parent] if parent >= 0 else 0))
        return depths

    @cached_property
    def ranks(self) -> list[int]:
        """How many siblings stand before each node."""
        seen: dict[int, int] = {}
        ranks = []
        for parent in self.parents:
            ranks.append(seen.get(parent, 0))
            seen[parent] = ranks[-1] + 1
        return ranks

    def upto(self, depth: int) -> "Tree":
        """The tree without its nodes that stand deeper."""
        if self.is_chain:
            return (
                self
                if len(self) <= depth
                else Tree.chain(self.tokens[:depth], None if self.q is None else self.q[:depth])
            )
        keep = [node for node, at in enumerate(self.depths) if at <= depth]
        if len(keep) == len(self):
            return self
        place = {-1: -1} | {node: at for at, node in enumerate(keep)}
        parents = [place[self.parents[node]] for node in keep]
        return Tree([self.tokens[node] for node in keep], parents, None if self.q is None else self.q[keep])

    def walk(self, accepted: Sequence[int], chosen: Sequence[int]) -> tuple[list[int], list[int]]:
        """The accepted nodes from the root on, and the tokens that this gives: theirs, and one that is chosen.

        accepted: of the root (anything) and every node, 1 or 0, whether it may follow its parent; of several siblings
        the first one is taken. chosen: the token that follows the root and every node, if none of its children does.
        """
        path: list[int] = []
        at = -1
        for node, parent in enumerate(self.parents):  # a parent stands before its children
            if parent == at and accepted[node + 1]:
                path.append(node)
                at = node
        return path, [*(self.tokens[node] for node in path), chosen[at + 1]]


@dataclass(frozen=True)
class Nodes:
    """The trees of a batch, roots first. A row with fewer nodes than the widest one is filled up behind them."""

    trees: Sequence[Tree]
    starts: list[int]
    """The column of each row's root."""
    tokens: Int[Tensor, "B Q"]
    parents: Int[Tensor, "B Q"] | None
    """Among the Q; the root is its own parent. None where all trees are chains."""

    @classmethod
    def of(cls, roots: Sequence[int], starts: list[int], trees: Sequence[Tree], device: torch.device) -> "Nodes":
        width = 1 + max(map(len, trees))
        tokens = [[root, *tree.tokens] + [0] * (width - 1 - len(tree)) for root, tree in zip(roots, trees, strict=True)]
        if all(tree.is_chain for tree in trees):
            return cls(trees, starts, torch.tensor(tokens, device=device), None)
        parents = [[0, *(p + 1 for p in tree.parents)] + [0] * (width - 1 - len(tree)) for tree in trees]
        both = torch.tensor([tokens, parents], device=device)
        return cls(trees, starts, both[0], both[1])

    @property
    def width(self) -> int:
        return self.tokens.shape[1]

    @cached_property
    def ancestors(self) -> Bool[Tensor, "B Q Q"] | None:
        """Which nodes each one may see: those from the root to itself. None where all trees are chains."""
        if self.parents is None:
            return None
        seen = torch.eye(self.width, dtype=torch.bool, device=self.tokens.device).repeat(len(self.tokens), 1, 1)
        above, reach = self.parents, 1
        while reach < self.width:  # each round sees twice as far up
            seen = seen | seen.gather(1, above[..., None].expand_as(seen))
            above, reach = above.gather(1, above), 2 * reach
        return seen

    @cached_property
    def depth(self) -> Int[Tensor, "B Q"] | None:
        """How far behind the root each node stands. None where all trees are chains."""
        return None if self.ancestors is None else self.ancestors.sum(2) - 1

    @cached_property
    def deepest(self) -> int:
        """How far behind its root the deepest node of all stands."""
        return max((max(tree.depths, default=0) for tree in self.trees), default=0)

    @cached_property
    def above(self) -> Int[Tensor, "B Q"]:
        """Every node's parent among the Q; the root is its own."""
        if self.parents is not None:
            return self.parents
        return (torch.arange(self.width, device=self.tokens.device) - 1).clamp(min=0).expand_as(self.tokens)

    def following(self) -> Int[Tensor, "B Q"]:
        """The column of the token that follows each node."""
        begin = torch.tensor(self.starts, device=self.tokens.device)[:, None] + 1
        return begin + (torch.arange(self.width, device=begin.device) if self.depth is None else self.depth)

    def children(self) -> Int[Tensor, "N B Q"]:
        """The first, second, ... child of every node, as many as any has; 0 where there is none."""
        most = 1 + max(max(tree.ranks, default=-1) for tree in self.trees)
        found = [[[0] * self.width for _ in self.trees] for _ in range(most)]
        for row, tree in enumerate(self.trees):
            for node, (parent, rank) in enumerate(zip(tree.parents, tree.ranks, strict=True)):
                found[rank][row][parent + 1] = node + 1
        return torch.tensor(found, dtype=torch.long, device=self.tokens.device).reshape(-1, *self.tokens.shape)

    def q(self, vocab_size: int) -> Float[Tensor, "B Q V"]:
        """At every node the probabilities that it was drawn from, float64; all on its token where it was not drawn."""
        q = torch.nn.functional.one_hot(self.tokens, vocab_size).double()
        for row, tree in enumerate(self.trees):
            if tree.q is not None:
                q[row, 1 : len(tree) + 1] = tree.q.double()
        return q
