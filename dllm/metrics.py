"""Every figure by which ways of decoding are compared, defined once for diffusion and for autoregressive models.

A run keeps raw counts; `Totals` are their sums over some answers, and its properties all that is derived from them.
docs/metrics.md tells each with its formula and unit.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from typing import Any

import torch
from torch import nn

from dllm.spec import ModelSpec

EXACT, DISTRIBUTION, LOSSY = "exact", "distribution", "no"
"""What `lossless` may say: the tokens of plain decoding with the same seed, only their distribution, or neither."""


@dataclass(frozen=True)
class Totals:
    """What some answers took together. All are sums over the answers but for bytes, of which the most is told."""

    answers: int = 0
    generated_tokens: int = 0
    """Up to and including the end of text or the token that completes a stop string; given ones are not counted."""
    answer_tokens: int = 0
    """The same without the end of text."""
    nfe: int = 0
    """Forwards of the target, a batched one counted for each row that took part, a bare prefill included."""
    prefills: int = 0
    """Of these, those that met a prompt and nothing else (autoregressive models); each gives one token."""
    forwards: int = 0
    """Forwards of the target with any number of rows together."""
    committed: int = 0
    """Tokens that forwards decided, those behind the end of text and the limit included."""
    steps: int = 0
    """Forwards that plain decoding by the same rule would have taken."""
    rows: int = 0
    """Positions computed by the target: columns of the canvas, nodes of a tree."""
    columns: int = 0
    """Positions that these forwards would have computed without a cache."""
    refreshes: int = 0
    drafted: int = 0
    """Drafted steps, or drafted tokens, that the target verified."""
    flops: int = 0
    """Floating-point operations of the target, by `flops`."""
    draft_forwards: int = 0
    draft_rows: int = 0
    draft_flops: int = 0
    """Forwards, positions and operations of a draft model; 0 where nothing but the target is run."""
    first_seconds: float = 0.0
    """From the moment an answer took its place in the batch until its first token stood for good."""
    decode_tokens: int = 0
    """Generated tokens that stood for good after steps in which no row met its prompt."""
    seconds: float = 0.0
    decode_seconds: float = 0.0
    """Of these, in steps in which no row met its prompt."""
    draft_seconds: float = 0.0
    """Of these, spent on drafting."""
    kv_bytes: int = field(default=0, metadata={"most": True})
    peak_bytes: int = field(default=0, metadata={"most": True})

    def __add__(self, other: "Totals") -> "Totals":
        pairs = {f: (getattr(self, f.name), getattr(other, f.name)) for f in fields(self)}
        return Totals(**{f.name: max(pair) if f.metadata.get("most") else sum(pair) for f, pair in pairs.items()})

    @property
    def tokens_per_forward(self) -> float:
        """Generated tokens over forwards, both summed first. Plain autoregressive decoding has exactly 1."""
        return ratio(self.generated_tokens, self.nfe)

    @property
    def commit_width(self) -> float:
        """Tokens that a forward commits, bare prefills aside: the mean accepted length of speculative decoding."""
        return ratio(self.committed - self.prefills, self.nfe - self.prefills)

    @property
    def accepted(self) -> float:
        """The share of drafts that came true and spared a forward, 0 to 1; 0 without drafts."""
        return ratio(self.steps - self.nfe, self.drafted)

    @property
    def positions_per_token(self) -> float:
        """Positions that the target computed for each generated token."""
        return ratio(self.rows, self.generated_tokens)

    @property
    def reused(self) -> float:
        """The share of positions that a cache spared, 0 to 1; 0 means that nothing stored was ever read."""
        return 1 - ratio(self.rows, self.columns) if self.columns else 0.0

    @property
    def flops_per_token(self) -> float:
        """Floating-point operations of target and draft model for each generated token."""
        return ratio(self.flops + self.draft_flops, self.generated_tokens)

    @property
    def draft_share(self) -> float:
        """The share of time spent on drafting, 0 to 1."""
        return ratio(self.draft_seconds, self.seconds)

    @property
    def time_to_first_token(self) -> float:
        """Seconds until an answer's first token stood for good, the mean over the answers."""
        return ratio(self.first_seconds, self.answers)

    @property
    def tokens_per_second(self) -> float:
        """Generated tokens over all time, end to end."""
        return ratio(self.generated_tokens, self.seconds)

    @property
    def decode_tokens_per_second(self) -> float:
        """The same over the steps in which no row met its prompt; 0 where there were none."""
        return ratio(self.decode_tokens, self.decode_seconds)


DERIVED = (
    *("tokens_per_forward", "commit_width", "accepted", "positions_per_token", "reused", "flops_per_token"),
    *("draft_share", "time_to_first_token", "tokens_per_second", "decode_tokens_per_second"),
)
"""What `Totals` derive, by name."""


def ratio(of: int | float, over: int | float) -> float:
    """0 where there is nothing to divide by."""
    return of / over if over else 0.0


class Watch:
    """The times of a run's answers, from what the host reads between two steps."""

    def __init__(self, n: int) -> None:
        self.admitted, self.first_seconds = [0.0] * n, [0.0] * n
        self.shown = [0] * n
        """Tokens of every answer, from its left, that stand for good."""
        self.early: list[list[range]] = [[] for _ in range(n)]
        """Places of every answer that came to stand in a step in which a row met its prompt."""
        self.seconds, self.decode_seconds = 0.0, 0.0

    def admit(self, request: int) -> None:
        """An answer takes its place in the batch."""
        self.admitted[request] = self.seconds

    def see(self, seconds: float, shown: Sequence[tuple[int, int]], decoding: bool) -> None:
        """After a step, so many seconds into the run: how many tokens stand, for each request in flight.

        decoding: no row met its prompt in it.
        """
        self.decode_seconds += (seconds - self.seconds) * decoding
        self.seconds = seconds
        for request, now in shown:
            before = self.shown[request]
            self.shown[request] = now = max(before, now)
            if now and not before:
                self.first_seconds[request] = seconds - self.admitted[request]
            if not decoding:
                self.early[request].append(range(before, now))

    def decode_tokens(self, request: int, generated: int) -> int:
        """How many of an answer's generated tokens came in steps in which no row met its prompt."""
        return generated - sum(len(range(generated)[places.start : places.stop]) for places in self.early[request])


def flops(spec: ModelSpec, rows: int, predicted: int, attended: int) -> int:
    """Floating-point operations of a transformer's matrix products and attention, a multiply-add counted as two.

    rows: positions through the layers. predicted: positions through the head. attended: pairs of a query and a key that
    attention compares, in one layer. Norms, rotations and softmax are left out. 0 for a network that is not ours, whose
    sizes say too little.
    """
    if not spec.cacheable:
        return 0
    attention = 4 * spec.n_layers * spec.n_heads * spec.head_dim * attended
    return 2 * (spec.active_parameters * rows + spec.hidden_size * spec.vocab_size * predicted) + attention


def weight_bytes(model: Any) -> int:
    """Bytes of a model's parameters, each counted once."""
    module = getattr(model, "module", model)
    return sum(p.nbytes for p in module.parameters()) if isinstance(module, nn.Module) else 0


def begin_peak(device: torch.device) -> None:
    """Forget the most memory that was allocated before, where that is measured."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)


def peak_bytes(device: torch.device, known: int) -> int:
    """The most memory allocated since `begin_peak`; where nothing measures it, as on a CPU, what is known of it."""
    return torch.cuda.max_memory_allocated(device) if device.type == "cuda" else known
