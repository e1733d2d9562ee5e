"""Speculative decoding with a small model of the same vocabulary: it drafts a chain, token by token."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from dllm.cache.causal import CausalStore
from dllm.errors import DllmError
from dllm.loading import load
from dllm.models.transformer import Transformer
from dllm.noise import OWN
from dllm.speculate.base import Context, Drafter, Drafting, Row, check_counts
from dllm.speculate.choose import following
from dllm.speculate.tree import Tree


@dataclass(frozen=True)
class ModelDrafter(Drafter):
    """Draft k tokens by a causal model: with the target's own noise, or, for the ratio rule, with its own.

    model: one that is open, or what `dllm.load` opens. Speculative decoding, arXiv:2211.17192 and arXiv:2302.01318; the
    shared noise is that of arXiv:2408.07978.
    """

    model: Any
    k: int = 5

    def __post_init__(self) -> None:
        check_counts(self, "k")
        if not isinstance(self.model, str | Transformer):
            raise DllmError(f"model={type(self.model).__name__} cannot draft; give what dllm.load opened, or its name.")

    def __repr__(self) -> str:
        name = self.model if isinstance(self.model, str) else f"{self.model.spec.n_parameters:,} parameters"
        return f"ModelDrafter({name}, k={self.k})"

    def start(self, context: Context) -> "Chaining":
        model, target = self.model, context.model
        if isinstance(model, str):
            model = load(model, device=target.device, dtype=target.dtype)
        check_drafter(model, target)
        return Chaining(model, self.k, context)


def check_drafter(model: Transformer, target: Transformer) -> None:
    """Raise DllmError unless `model` can draft for `target`: causal, and of the same vocabulary."""
    if model.spec.attention != "causal":
        raise DllmError("the drafting model fills masks; give a causal one, or a drafter that is made for it.")
    if model.spec.vocab_size != target.spec.vocab_size:
        raise DllmError(
            f"the drafting model has a vocabulary of {model.spec.vocab_size} tokens and the target one of "
            f"{target.spec.vocab_size}; take a drafting model of the target's family, or draft='ngram'."
        )
    if model.tokenizer and target.tokenizer and model.tokenizer.get_vocab() != target.tokenizer.get_vocab():
        raise DllmError(
            "the drafting model's tokenizer names other tokens than the target's; take a drafting model of the "
            "target's family, or draft='ngram'."
        )


class Chaining(Drafting):
    """A small model at work, with a store of its own whose rows have the same slots as the target's."""

    def __init__(self, model: Transformer, k: int, context: Context) -> None:
        self.model, self.k, self.context = model, k, context
        self.store = CausalStore(model, context.n_rows, context.length + k)
        self.known: list[int] = []
        """Of every slot, how many of the row's tokens are computed."""

    def begin(self, row: Row, *_: Any) -> None:
        tokens = row.tokens[: row.prompt_length]
        self.store.begin([self.store.enter()], torch.tensor([tokens], device=self.model.device))
        self.known.append(len(tokens))
        self.count(1, len(tokens))

    def draft(self, rows: Sequence[Row]) -> list[Tree]:
        k = min(self.k, max(row.room for row in rows))
        if k < 1:
            return [Tree()] * len(rows)
        starts = [len(row.tokens) - 1 for row in rows]
        tokens, q = self.first(rows, starts)
        drafted, qs = [tokens], [q]
        for step in range(1, k):
            states = self.store.extend([start + step for start in starts], tokens)
            self.count(*tokens.shape)
            tokens, q = self.choose(states, rows, [start + step for start in starts])
            drafted.append(tokens)
            qs.append(q)
        self.known = [start + k for start in starts]
        chains = torch.cat(drafted, 1).tolist()
        if self.context.coupled:
            return [Tree.chain(chain) for chain in chains]
        return [Tree.chain(chain, q) for chain, q in zip(chains, torch.cat(qs, 1), strict=True)]

    def first(self, rows: Sequence[Row], starts: list[int]) -> tuple[Tensor, Tensor]:
        """Compute what each row's model has not seen, up to the root, and draw the first drafts."""
        lacking = [row.tokens[n:] for row, n in zip(rows, self.known, strict=True)]
        widest = max(map(len, lacking))
        filled = torch.tensor([more + [0] * (widest - len(more)) for more in lacking], device=self.model.device)
        states = self.store.extend(self.known, filled)
        self.count(*filled.shape)
        last = torch.tensor([len(more) - 1 for more in lacking], device=states.device)[:, None, None]
        return self.choose(states.gather(1, last.expand(-1, 1, states.shape[2])), rows, starts)

    def choose(self, states: Tensor, rows: Sequence[Row], starts: list[int]) -> tuple[Tensor, Tensor]:
        """The tokens behind the columns `starts` (B, 1), and what they were drawn from (B, 1, V)."""
        logits, choose = self.model.head(self.model.norm(states)), self.context.choose
        keys = [row.key for row in rows]
        if self.context.coupled:
            return choose(logits, keys, starts).clamp(min=0), logits
        q = choose.probabilities(logits)
        noise = choose.noise(keys, following(starts, 1, logits.device), logits.shape[2], OWN)
        return (q.log() + noise).argmax(-1), q

    def count(self, n_rows: int, n_tokens: int) -> None:
        self.forwards += 1
        self.positions += n_rows * n_tokens

    def observe(self, row: Row, _: Tree, __: Tensor, ___: Tensor | None, path: list[int]) -> None:
        # Of the chain it has computed all but the last token, as far as it came true.
        root = len(row.tokens) - 1 - len(path) - 1
        self.known[row.slot] = min(self.known[row.slot], root + 1 + len(path))

    def end(self, row: Row) -> None:
        self.store.leave(row.slot)
        last = self.known.pop()
        if row.slot < len(self.known):
            self.known[row.slot] = last
