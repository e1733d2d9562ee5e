"""Drafting from what the target thought after the same tokens before (STAND, arXiv:2506.04708)."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from dllm.errors import DllmError
from dllm.speculate.base import Context, Drafter, Drafting, Row, check_counts
from dllm.speculate.growth import Growing, grow
from dllm.speculate.guess import Children, shared_noise
from dllm.speculate.tree import Tree

KEPT = 10
"""Tokens remembered behind every n-gram, as in the paper."""


@dataclass(frozen=True)
class Stand(Drafter):
    """Behind the last n tokens, draft what the target found probable behind them before; the longest n that is known.

    The tree grows best first, where the paper has one that was measured in advance. Answers to one prompt share what
    they remember, which is what the paper is for; different prompts do not.
    """

    min_n: int = 1
    """Beyond the paper's 2: a single token that is known is a better guess than none."""
    max_n: int = 4
    budget: int = 16
    """Nodes of a tree."""
    depth: int = 8
    prompt_logits = True

    def __post_init__(self) -> None:
        check_counts(self, "min_n", "max_n", "budget", "depth")
        if self.min_n > self.max_n:
            raise DllmError(
                f"min_n={self.min_n} of stand is above max_n={self.max_n}; n-grams are looked up from max_n down."
            )

    def start(self, context: Context) -> Drafting:
        return Remembering(self, context)


@dataclass
class Memory:
    """What followed one n-gram: the mean of the target's probabilities, of the most probable tokens."""

    times: int = 0
    mean: dict[int, float] = field(default_factory=dict)

    def add(self, seen: dict[int, float]) -> None:
        old = {token: p * self.times for token, p in self.mean.items()}
        self.times += 1
        sums = {token: (old.get(token, 0.0) + seen.get(token, 0.0)) / self.times for token in old | seen}
        self.mean = dict(sorted(sums.items(), key=lambda item: (-item[1], item[0]))[:KEPT])


class Remembering(Drafting):
    def __init__(self, settings: Stand, context: Context) -> None:
        self.settings, self.context = settings, context
        self.memories: dict[tuple[int, ...], dict[tuple[int, ...], Memory]] = {}
        """Of every prompt, what followed the n-grams of its answers."""
        self.roots: dict[int, int] = {}
        """Of every request, how many tokens it had when its last tree was drafted."""

    def memory(self, row: Row) -> dict[tuple[int, ...], Memory]:
        return self.memories.setdefault(tuple(row.tokens[: row.prompt_length]), {})

    def begin(self, row: Row, logits: Float[Tensor, "P V"] | None, _: Tensor | None) -> None:
        assert logits is not None
        prompt = row.tokens[: row.prompt_length]
        self.remember(row, [prompt[: i + 1] for i in range(len(prompt))], logits)

    def observe(self, row: Row, tree: Tree, logits: Float[Tensor, "Q V"], *_: Any) -> None:
        seen = row.tokens[: self.roots[row.request]]
        self.remember(row, [seen, *(seen + way for way in ways(tree))], logits)

    def remember(self, row: Row, texts: Sequence[list[int]], logits: Float[Tensor, "Q V"]) -> None:
        """What the target finds probable behind these texts."""
        drawn = self.context.choose.drawn(logits[None])[0]
        shares, tokens = drawn.softmax(-1).topk(min(KEPT, drawn.shape[-1]))
        memory = self.memory(row)
        for text, share, token in zip(texts, shares.tolist(), tokens.tolist(), strict=True):
            seen = dict(zip(token, share, strict=True))
            for n in range(self.settings.min_n, min(self.settings.max_n, len(text)) + 1):
                memory.setdefault(tuple(text[-n:]), Memory()).add(seen)

    def draft(self, rows: Sequence[Row]) -> list[Tree]:
        tails = [row.tokens[-self.settings.max_n :] for row in rows]
        memories = [self.memory(row) for row in rows]
        self.roots = {row.request: len(row.tokens) for row in rows}

        def expand(asked: Sequence[tuple[int, Growing, int]]) -> Sequence[Children]:
            texts = [(row, tails[row] + [tree.tokens[n] for n in tree.path(node)]) for row, tree, node in asked]
            found = [self.recall(memories[row], text) for row, text in texts]
            ahead = len(texts[0][1]) - len(tails[texts[0][0]]) + 1
            return self.coupled(rows, [row for row, _ in texts], found, ahead)

        return grow(len(rows), expand, self.settings.budget, self.settings.depth)

    def recall(self, memory: dict[tuple[int, ...], Memory], text: list[int]) -> Children:
        """What followed the longest n-gram at the text's end that is known."""
        for n in range(min(self.settings.max_n, len(text)), self.settings.min_n - 1, -1):
            known = memory.get(tuple(text[-n:]))
            if known:
                return [(token, p) for token, p in known.mean.items() if p > 0]
        return []

    def coupled(
        self, rows: Sequence[Row], of: Sequence[int], found: Sequence[Children], ahead: int
    ) -> Sequence[Children]:
        """The same tokens by their share in the draw of the target, where it draws."""
        noise = shared_noise(self.context, rows, [ahead])
        if noise is None:
            return found
        width = max(map(len, found))
        tokens = [[token for token, _ in known] + [0] * (width - len(known)) for known in found]
        index = torch.tensor(tokens, dtype=torch.long, device=noise.device)
        drawn = []
        for known, gumbel in zip(found, noise[list(of), 0].gather(1, index).tolist(), strict=True):
            weights = [p * math.exp(g) for (_, p), g in zip(known, gumbel, strict=False)]
            drawn.append([(token, w / sum(weights)) for (token, _), w in zip(known, weights, strict=True)])
        return drawn


def ways(tree: Tree) -> list[list[int]]:
    """The tokens from below the root to every node."""
    found: list[list[int]] = []
    for token, parent in zip(tree.tokens, tree.parents, strict=True):
        found.append([*(found[parent] if parent >= 0 else []), token])
    return found
