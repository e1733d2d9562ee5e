"""Drafting with heads on the target's last hidden state: Medusa-1's and Hydra's.

No network is run besides the heads: `Drafting.forwards` counts the heads that were asked, each for all rows at once.
Shape letters: B rows, E nodes whose children a head guesses, R ranks, C hidden size, V vocabulary.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from dllm.errors import DllmError
from dllm.fingerprint import fingerprint
from dllm.speculate import heads as files
from dllm.speculate.base import Context, Drafter, Drafting, Row, check_counts
from dllm.speculate.growth import template
from dllm.speculate.guess import guesses
from dllm.speculate.tree import Tree
from dllm.speculate.trim import trim_head

ZOO = Path(__file__).parents[1] / "zoo"


@dataclass(frozen=True)
class Medusa(Drafter):
    """Heads that each guess one further token from the last hidden state alone (Medusa-1, arXiv:2401.10774).

    The guesses stand in a tree of fixed shape: the one that is accepted furthest, by how often each rank of each head
    was right on held-out texts when the heads were trained.
    """

    heads: str | None = None
    """Folder of heads.json and heads.safetensors. None: the bundled ones that were trained for the target."""
    budget: int = 16
    """Nodes of the tree."""
    vocab: int | None = None
    """Guess only so many tokens, the most frequent of the texts the heads were trained on (VocabTrim). None: all."""
    kind: ClassVar[str] = "medusa"
    hidden = True

    def __post_init__(self) -> None:
        check_counts(self, "budget", *(["vocab"] if self.vocab is not None else []))

    def start(self, context: Context) -> Drafting:
        folder = bundled(self.kind, context) if self.heads is None else Path(self.heads).expanduser()
        config = files.read_config(folder)
        if config["kind"] != self.kind:
            raise DllmError(f"{folder} holds {config['kind']} heads; draft with {config['kind']!r}, not {self.kind!r}.")
        made = files.load(folder, context.model)
        head = context.model.head
        if self.vocab is not None:
            if not config.get("frequent"):
                raise DllmError(f"the heads in {folder} tell no frequent tokens; leave out vocab=, or train them anew.")
            head = trim_head(head, config["frequent"][: self.vocab])
        return AskingHeads(context, made, head, template(config["accuracy"], self.budget))


@dataclass(frozen=True)
class Hydra(Medusa):
    """Medusa's heads, each of which also reads the tokens guessed before its own (Hydra, arXiv:2402.05109)."""

    kind = "hydra"


def bundled(kind: str, context: Context) -> Path:
    """The bundled heads of this kind that were trained for the target."""
    wanted = fingerprint(context.model)
    for path in sorted(ZOO.glob(f"*/{kind}/{files.CONFIG}")):
        if files.read_config(path.parent).get("target") == wanted:
            return path.parent
    raise DllmError(
        f"no bundled {kind} heads were trained for this model; train some with scripts/train_medusa.py and give heads=."
    )


@dataclass(frozen=True)
class Level:
    """One level of the tree: what is asked of its head, and where the answers go. Node 0 is the root."""

    nodes: list[int]
    asked: list[list[int]]
    """The nodes that are asked for children, each as its path from the root on. Medusa's heads are asked once."""
    places: list[int]
    """Of every node, which of the asked is its parent."""
    ranks: list[int]

    @classmethod
    def of(cls, tree: Tree, depth: int, sequential: bool) -> "Level":
        nodes = [node for node, at in enumerate(tree.depths) if at == depth]
        paths = [path_to(tree, tree.parents[node]) if sequential else [0] for node in nodes]
        asked = [path for i, path in enumerate(paths) if path not in paths[:i]]
        return cls([n + 1 for n in nodes], asked, [asked.index(p) for p in paths], [tree.tokens[n] for n in nodes])


def path_to(tree: Tree, node: int) -> list[int]:
    return [0] if node < 0 else [*path_to(tree, tree.parents[node]), node + 1]


class AskingHeads(Drafting):
    """Heads at work. template: the shape of the trees, with a rank at every node instead of a token."""

    def __init__(self, context: Context, heads: files.Heads, head: torch.nn.Module, template: Tree) -> None:
        self.context, self.heads, self.head, self.template = context, heads, head, template
        deepest = max(template.depths)
        self.levels = [Level.of(template, depth, heads.sequential) for depth in range(1, deepest + 1)]
        self.last: dict[int, Float[Tensor, " C"]] = {}
        """The hidden state of every request's last computed token."""

    def begin(self, row: Row, _: Tensor | None, hidden: Float[Tensor, "P C"] | None) -> None:
        assert hidden is not None
        self.last[row.request] = hidden[-1]

    def observe(self, row: Row, _: Tree, __: Tensor, hidden: Float[Tensor, "Q C"] | None, path: list[int]) -> None:
        assert hidden is not None
        self.last[row.request] = hidden[path[-1] + 1 if path else 0]

    def end(self, row: Row) -> None:
        self.last.pop(row.request, None)

    @torch.no_grad()
    def draft(self, rows: Sequence[Row]) -> list[Tree]:
        model, tree = self.context.model, self.template
        hidden = torch.stack([self.last[row.request] for row in rows])[:, None]  # (B, 1, C)
        tokens = torch.zeros(len(rows), len(tree) + 1, dtype=torch.long, device=model.device)
        tokens[:, 0] = torch.tensor([row.tokens[-1] for row in rows], device=model.device)
        for k, level in enumerate(self.levels, 1):
            # The tokens on the way to each asked node, token by token: k of (B * E, C).
            between = [model.embed(tokens[:, list(nodes)]).flatten(0, 1) for nodes in zip(*level.asked, strict=True)]
            asked = hidden.expand(-1, len(level.asked), -1).flatten(0, 1)
            logits = self.head(self.heads(k, asked, between)).unflatten(0, (len(rows), -1))  # (B, E, V)
            best = guesses(self.context, rows, logits, k).topk(max(level.ranks) + 1).indices  # (B, E, R)
            tokens[:, level.nodes] = best[:, level.places, level.ranks]
            self.forwards += 1
            self.positions += asked.shape[0]
        return [Tree(drafted, tree.parents) for drafted in tokens[:, 1:].tolist()]
