"""Copy what followed the last few tokens where they stood before: prompt lookup and CopySpec."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from dllm.errors import DllmError
from dllm.speculate.base import Context, Drafter, Drafting, Row, check_counts
from dllm.speculate.tree import Tree


@dataclass(frozen=True)
class Ngram(Drafter):
    """Find the last n tokens of the text earlier in it, the longest n first, and draft the k tokens that followed.

    n from `max_n` down to `min_n`. Prompt lookup (github.com/apoorvumang/prompt-lookup-decoding) is the default;
    CopySpec (arXiv:2502.08923) is min_n=3, max_n=3. pick: the "first" place or the most "recent" one.
    """

    max_n: int = 3
    min_n: int = 1
    k: int = 10
    pick: str = "first"

    def __post_init__(self) -> None:
        check_counts(self, "max_n", "min_n", "k")
        if self.min_n > self.max_n:
            raise DllmError(f"min_n={self.min_n} is above max_n={self.max_n}; give min_n of at most max_n.")
        if self.pick not in ("first", "recent"):
            raise DllmError(f"pick={self.pick!r} must be 'first' or 'recent': which of several places is copied.")

    def start(self, _: Context) -> "Copying":
        return Copying(self)


@dataclass
class Places:
    """Where the n-grams of one row ended, kept up as the row grows."""

    settings: Ngram
    ends: dict[tuple[int, ...], int] = field(default_factory=dict)
    known: int = 0
    """The n-grams that end before this column are in."""

    def extend(self, tokens: list[int]) -> None:
        """Take in all n-grams that have a token behind them."""
        first = self.settings.pick == "first"
        for end in range(self.known + 1, len(tokens)):
            for n in range(self.settings.min_n, min(self.settings.max_n, end) + 1):
                gram = tuple(tokens[end - n : end])
                self.ends[gram] = self.ends.get(gram, end) if first else end
        self.known = max(self.known, len(tokens) - 1)

    def find(self, tokens: list[int]) -> int | None:
        """The column behind an earlier place of the longest n-gram at the end of the text; None without one."""
        for n in range(min(self.settings.max_n, len(tokens)), self.settings.min_n - 1, -1):
            if (end := self.ends.get(tuple(tokens[-n:]))) is not None:
                return end
        return None


class Copying(Drafting):
    """The n-grams of the rows in flight, by request."""

    def __init__(self, settings: Ngram) -> None:
        self.settings, self.places = settings, dict[int, Places]()

    def draft(self, rows: Sequence[Row]) -> list[Tree]:
        return [self.copy(row) for row in rows]

    def copy(self, row: Row) -> Tree:
        places = self.places.setdefault(row.request, Places(self.settings))
        places.extend(row.tokens)
        start = places.find(row.tokens)
        return Tree() if start is None else Tree.chain(row.tokens[start : start + self.settings.k])

    def end(self, row: Row) -> None:
        self.places.pop(row.request, None)
