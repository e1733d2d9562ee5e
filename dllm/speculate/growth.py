"""Growing draft trees where they are likeliest to be accepted, best first (DySpec, arXiv:2410.11744).

A node's score is its parent's times its own, so no child is above its parent, and the `budget` best nodes of all are
always a tree. It is found level by level: whatever of a level is among the best so far is asked for its children, all
rows of the batch together. That gives the tree of the one-node-at-a-time search with at most `depth` questions.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from dllm.speculate.guess import Children
from dllm.speculate.tree import Tree


@dataclass
class Growing:
    """The tree of one row while it grows. Its nodes are never renumbered: node -1 is the root."""

    tokens: list[int] = field(default_factory=list)
    parents: list[int] = field(default_factory=list)
    scores: list[float] = field(default_factory=list)
    best: set[int] = field(default_factory=set)
    """The nodes that are in the tree as it stands."""

    def path(self, node: int) -> list[int]:
        """The nodes from below the root down to this one, itself included; none for the root."""
        found: list[int] = []
        while node >= 0:
            found.append(node)
            node = self.parents[node]
        return found[::-1]

    def score(self, node: int) -> float:
        return self.scores[node] if node >= 0 else 1.0

    def add(self, level: Sequence[tuple[int, Children]], budget: int) -> list[int]:
        """Take the children of a level's nodes as far as they are among the best; these are the next level."""
        first = len(self.tokens)
        for parent, children in level:
            for token, likely in children:
                self.tokens.append(token)
                self.parents.append(parent)
                self.scores.append(self.score(parent) * likely)
        # Ties go to the older node, which may be the parent.
        alive = sorted([*self.best, *range(first, len(self.tokens))], key=lambda node: (-self.scores[node], node))
        self.best = set(alive[:budget])
        return [node for node in range(first, len(self.tokens)) if node in self.best]

    def tree(self) -> Tree:
        kept = sorted(self.best)
        place = {node: i for i, node in enumerate(kept)} | {-1: -1}
        return Tree([self.tokens[node] for node in kept], [place[self.parents[node]] for node in kept])


Expand = Callable[[Sequence[tuple[int, Growing, int]]], Sequence[Children]]
"""Children for nodes, each given as its row, that row's tree, and the node there."""


def grow(n_rows: int, expand: Expand, budget: int, depth: int) -> list[Tree]:
    """A tree of at most `budget` nodes and `depth` levels for every row; `expand` is called once for each level."""
    trees = [Growing() for _ in range(n_rows)]
    asked = [(row, tree, -1) for row, tree in enumerate(trees)]
    for _ in range(depth):
        if not asked:
            break
        levels: list[list[tuple[int, Children]]] = [[] for _ in trees]
        for (row, _, node), children in zip(asked, expand(asked), strict=True):
            levels[row].append((node, children))
        asked = [(row, tree, node) for row, tree in enumerate(trees) for node in tree.add(levels[row], budget)]
    return [tree.tree() for tree in trees]


def template(accuracy: Sequence[Sequence[float]], budget: int) -> Tree:
    """The tree of ranks, in place of tokens, that is accepted furthest where guesses have this accuracy (Medusa).

    accuracy[d][r]: how often the r-th guess for level d is right. Levels are taken as independent, as Medusa does.
    """

    def ranks(asked: Sequence[tuple[int, Growing, int]]) -> Sequence[Children]:
        return [list(enumerate(accuracy[len(tree.path(node))])) for _, tree, node in asked]

    return grow(1, ranks, budget, len(accuracy))[0]
