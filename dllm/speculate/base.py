"""What a drafter is: settings, and the live thing that proposes a token tree for every row of one run.

A drafter never touches the target's store and never decides a token: the loop verifies what it returns. So a drafter
can be wrong, never harmful.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from jaxtyping import Float
from torch import Tensor

from dllm.errors import DllmError
from dllm.speculate.choose import Chooser
from dllm.speculate.tree import Tree


@dataclass
class Row:
    """One request in flight, on the host."""

    request: int
    """Which of the requests, from 0."""
    slot: int
    """Its place among the rows in flight. When a row ends, the row in the last slot takes its place."""
    tokens: list[int]
    """The prompt and what is emitted so far; the last one is chosen but not yet computed: the root of the next tree."""
    prompt_length: int
    key: int
    """Its name for the noise."""
    limit: int
    """How many tokens it may have, prompt included."""

    @property
    def room(self) -> int:
        """How deep a tree can be of use: the token behind its deepest node must still fit."""
        return self.limit - len(self.tokens) - 1


@dataclass(frozen=True)
class Context:
    """What a drafter may know of a run."""

    model: Any
    """The target, a `dllm.models.transformer.Transformer`: its spec, tokenizer, embed and head may be of use."""
    choose: Chooser
    """How the target chooses its tokens; with the same keys and columns a drafter meets the same noise."""
    coupled: bool
    """Draw drafts with the target's noise. False: with noise of your own (`dllm.noise.OWN`), and tell q."""
    n_rows: int
    """Most rows in flight."""
    length: int
    """Most tokens of a row, prompt included."""


def check_counts(settings: Any, *names: str) -> None:
    """Raise DllmError unless these fields are whole numbers of at least 1."""
    for name in names:
        value = getattr(settings, name)
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise DllmError(f"{name}={value!r} of {type(settings).__name__} must be a whole number of at least 1.")


@dataclass(frozen=True)
class Drafter:
    """Settings of a drafter."""

    prompt_logits: ClassVar[bool] = False
    """`begin` wants the target's logits at every token of the prompt."""
    hidden: ClassVar[bool] = False
    """`begin` and `observe` want the target's last hidden states, after its final norm."""

    def start(self, context: Context) -> "Drafting":
        raise NotImplementedError(f"{type(self).__name__} does not start.")


class Drafting:
    """A drafter at work in one run. It counts its own forwards and the positions that they compute."""

    model: Any = None
    """That network, where it is a `dllm.models.transformer.Transformer`: for its memory and operations."""
    forwards: int = 0
    """Forwards of a network of its own, any number of rows together."""
    positions: int = 0
    """Tokens that these computed, rows times tokens of each."""

    def begin(self, row: Row, logits: Float[Tensor, "P V"] | None, hidden: Float[Tensor, "P C"] | None) -> None:
        """A row has entered: its prompt is computed and its first token chosen. P: tokens of the prompt."""

    def draft(self, rows: Sequence[Row]) -> list[Tree]:
        """A tree for every row in flight; rows[i] has the slot i. What is deeper than `row.room` is cut off."""
        raise NotImplementedError(f"{type(self).__name__} does not draft.")

    def observe(
        self,
        row: Row,
        tree: Tree,
        logits: Float[Tensor, "Q V"],
        hidden: Float[Tensor, "Q C"] | None,
        path: list[int],
    ) -> None:
        """A row's tree was verified. path: its accepted nodes; the row's tokens already hold them and one more.

        logits, hidden: of the root and, behind it, of every node, accepted or not (Q = 1 + nodes).
        """

    def end(self, row: Row) -> None:
        """A row is finished. The row in the last slot takes its slot."""
