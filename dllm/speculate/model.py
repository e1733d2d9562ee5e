"""Speculative decoding with a small model of the same vocabulary: it drafts a chain, token by token."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dllm.cache.causal import CausalStore
from dllm.errors import DllmError
from dllm.models.transformer import Transformer
from dllm.noise import OWN
from dllm.speculate.base import Context, Drafter, Drafting, Row, check_counts
from dllm.speculate.choose import following
from dllm.speculate.partner import fit, partner
from dllm.speculate.stop import StopHead, likely, load_stop
from dllm.speculate.tree import Tree


@dataclass(frozen=True)
class ModelDrafter(Drafter):
    """Draft k tokens by a causal model: with the target's own noise, or, for the ratio rule, with its own.

    model: one that is open, or what `dllm.load` opens. Speculative decoding, arXiv:2211.17192 and arXiv:2302.01318; the
    shared noise is that of arXiv:2408.07978.
    """

    model: Any
    k: int = 5
    stop: float | None = None
    """Stop a draft behind the token with which its chance to be accepted falls below this; None: always k tokens."""
    stop_head: str | None = None
    """Folder of a head that tells the chance (SpecDec++, arXiv:2405.19715). None: the drafted tokens' probabilities."""

    def __post_init__(self) -> None:
        check_counts(self, "k")
        if self.stop is not None and not 0 < self.stop < 1:
            raise DllmError(f"stop={self.stop!r} of ModelDrafter must be a probability between 0 and 1, or none.")
        if self.stop_head is not None and self.stop is None:
            raise DllmError("stop_head tells a chance, but not which one is too low; give stop=, as 0.7, as well.")
        if not isinstance(self.model, str | Transformer):
            raise DllmError(f"model={type(self.model).__name__} cannot draft; give what dllm.load opened, or its name.")

    def __repr__(self) -> str:
        name = self.model if isinstance(self.model, str) else f"{self.model.spec.n_parameters:,} parameters"
        return f"ModelDrafter({name}, k={self.k})"

    def start(self, context: Context) -> "Chaining":
        model = partner(self.model, context.model, "model")
        if model.spec.attention != "causal":
            raise DllmError("the drafting model fills masks; give a causal one, or draft with it by diffusion:model=.")
        head = None if self.stop_head is None else load_stop(Path(self.stop_head).expanduser(), model)
        return Chaining(model, self, head, context)


class Chaining(Drafting):
    """A small model at work, with a store of its own whose rows have the same slots as the target's."""

    def __init__(self, model: Transformer, settings: ModelDrafter, head: StopHead | None, context: Context) -> None:
        self.model, self.settings, self.head, self.context = model, settings, head, context
        self.store = CausalStore(model, context.n_rows, context.length + settings.k)
        self.known: list[int] = []
        """Of every slot, how many of the row's tokens are computed."""

    def begin(self, row: Row, *_: Any) -> None:
        tokens = row.tokens[: row.prompt_length]
        self.store.begin([self.store.enter()], torch.tensor([tokens], device=self.model.device))
        self.known.append(len(tokens))
        self.count(1, len(tokens))

    def draft(self, rows: Sequence[Row]) -> list[Tree]:
        k = min(self.settings.k, max(row.room for row in rows))
        if k < 1:
            return [Tree()] * len(rows)
        starts = [len(row.tokens) - 1 for row in rows]
        states, drafted, qs = self.catch_up(rows), list[Tensor](), list[Tensor]()
        chance, lengths = torch.ones(len(rows), device=states.device), torch.full((len(rows),), k, device=states.device)
        for step in range(k):
            if step:
                states = self.store.extend([start + step for start in starts], drafted[-1])
                self.count(*drafted[-1].shape)
            hidden = self.model.norm(states)
            tokens, q = self.choose(hidden, rows, [start + step for start in starts])
            drafted.append(tokens)
            qs.append(q)
            if self.settings.stop is not None:
                chance = chance * likely(self.head, self.model, hidden[:, 0], q[:, 0], tokens[:, 0])
                over = chance < self.settings.stop
                lengths = torch.where(over, lengths.clamp(max=step + 1), lengths)
                if over.all():
                    break
        self.known = [start + len(drafted) for start in starts]
        chains = [chain[:n] for chain, n in zip(torch.cat(drafted, 1).tolist(), lengths.tolist(), strict=True)]
        if self.context.coupled:
            return [Tree.chain(chain) for chain in chains]
        return [Tree.chain(chain, q[: len(chain)]) for chain, q in zip(chains, torch.cat(qs, 1), strict=True)]

    def catch_up(self, rows: Sequence[Row]) -> Tensor:
        """Compute what each row's model has not seen, up to the root. Returns the roots' states (B, 1, C)."""
        lacking = [row.tokens[n:] for row, n in zip(rows, self.known, strict=True)]
        widest = max(map(len, lacking))
        filled = torch.tensor([more + [0] * (widest - len(more)) for more in lacking], device=self.model.device)
        states = self.store.extend(self.known, filled)
        self.count(*filled.shape)
        last = torch.tensor([len(more) - 1 for more in lacking], device=states.device)[:, None, None]
        return states.gather(1, last.expand(-1, 1, states.shape[2]))

    def choose(self, hidden: Tensor, rows: Sequence[Row], starts: list[int]) -> tuple[Tensor, Tensor]:
        """The tokens behind the columns `starts` (B, 1), and the probabilities they were drawn from (B, 1, V)."""
        choose, keys = self.context.choose, [row.key for row in rows]
        logits = fit(self.model.head(hidden), self.context.model.spec.vocab_size)
        if self.context.coupled:
            return choose(logits, keys, starts).clamp(min=0), choose.drawn(logits).softmax(-1)
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
