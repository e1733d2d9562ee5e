"""A draft model that drafts a tree instead of a chain: where it is unsure it goes more than one way (DySpec).

Shape letters: B rows in flight, Q tokens of the widest row, N nodes asked for children, C hidden, V vocabulary.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from dllm.cache.causal import CausalStore
from dllm.errors import DllmError
from dllm.speculate.base import Context, Drafter, Drafting, Row, check_counts
from dllm.speculate.growth import Growing, grow
from dllm.speculate.guess import Children, children, shared_noise
from dllm.speculate.partner import fit, partner
from dllm.speculate.tree import Nodes, Tree


@dataclass(frozen=True)
class Branches(Drafter):
    """Grow a tree of the tokens that a smaller model finds likeliest, best first (DySpec, arXiv:2410.11744).

    A forward of the smaller model computes a whole level, all rows together, and the levels above once more.
    """

    model: Any = None
    """A bundled name, a folder, a hub id, or an open model; autoregressive and of the target's tokenizer."""
    budget: int = 16
    """Nodes of a tree."""
    depth: int = 5
    """Levels of a tree, and so forwards of the smaller model for one draft."""

    def __post_init__(self) -> None:
        check_counts(self, "budget", "depth")

    def start(self, context: Context) -> Drafting:
        model = partner(self.model, context.model, "tree")
        if model.spec.attention != "causal":
            raise DllmError(
                "the model of drafter tree is not autoregressive; draft with it by diffusion:model=, not tree."
            )
        return Branching(self, context, model)


class Branching(Drafting):
    """A smaller model at work. Its K/V of a row reach as far as `known` says; a draft stands behind that."""

    def __init__(self, settings: Branches, context: Context, model: Any) -> None:
        self.settings, self.context, self.model = settings, context, model
        self.store = CausalStore(model, context.n_rows, context.length + settings.budget)
        self.known: list[int] = []

    def begin(self, row: Row, *_: Any) -> None:
        prompt = torch.tensor([row.tokens[: row.prompt_length]], device=self.model.device)
        with torch.no_grad():
            self.store.begin([self.store.enter()], prompt)
        self.known.append(row.prompt_length)
        self.count(1, row.prompt_length)

    def end(self, row: Row) -> None:
        self.store.leave(row.slot)
        last = self.known.pop()
        if row.slot < len(self.known):
            self.known[row.slot] = last

    @torch.no_grad()
    def draft(self, rows: Sequence[Row]) -> list[Tree]:
        def expand(asked: Sequence[tuple[int, Growing, int]]) -> Sequence[Children]:
            level = len(asked[0][1].path(asked[0][2]))
            states = self.deeper(rows, asked) if level else self.catch_up(rows)
            logits = fit(self.model.head(self.model.norm(states)), self.context.model.spec.vocab_size)  # (N, V)
            guessed = self.context.choose.drawn(logits[:, None])[:, 0]
            noise = shared_noise(self.context, rows, [level + 1])
            if noise is not None:  # of a row, whichever of its nodes the token follows
                guessed = guessed + noise[[row for row, _, _ in asked], 0]
            return children(guessed, self.settings.budget)

        return grow(len(rows), expand, self.settings.budget, self.settings.depth)

    def catch_up(self, rows: Sequence[Row]) -> Float[Tensor, "B C"]:
        """Compute what the rows have won since the last draft. Returns the state of their last tokens."""
        new = [row.tokens[known:] for row, known in zip(rows, self.known, strict=True)]
        width = max(map(len, new))
        tokens = torch.tensor([part + [0] * (width - len(part)) for part in new], device=self.model.device)
        states = self.store.extend(self.known, tokens)
        self.known = [len(row.tokens) for row in rows]
        self.count(len(rows), width)
        return states[range(len(rows)), [len(part) - 1 for part in new]]

    def deeper(self, rows: Sequence[Row], asked: Sequence[tuple[int, Growing, int]]) -> Float[Tensor, "N C"]:
        """Compute the trees as they stand. Returns the states of the asked nodes."""
        growing = {row: tree for row, tree, _ in asked}
        trees = [growing[row].tree() if row in growing else Tree() for row in range(len(rows))]
        starts = [len(row.tokens) - 1 for row in rows]
        nodes = Nodes.of([row.tokens[-1] for row in rows], starts, trees, self.model.device)
        states = self.store.extend(starts, nodes.tokens, nodes.depth, nodes.ancestors)
        self.count(len(rows), nodes.width)
        return states[[row for row, _, _ in asked], [1 + sorted(tree.best).index(node) for _, tree, node in asked]]

    def count(self, n_rows: int, width: int) -> None:
        self.forwards += 1
        self.positions += n_rows * width
