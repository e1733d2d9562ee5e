"""SuffixDecoding: continue the text as it, or a finished answer, once went on, the longer the match the further."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from dllm.errors import DllmError
from dllm.speculate.base import Context, Drafter, Drafting, Row, check_counts
from dllm.speculate.tree import Tree


@dataclass(frozen=True)
class Suffix(Drafter):
    """Match the end of the text with what stood before it, and draft what followed most often.

    Texts are known in pieces of `depth` tokens. A match of n tokens drafts up to min(k, factor · n) tokens, each the
    most frequent follower of those before it, as long as the product of their shares stays at least `least`; of all
    matches that with the highest sum of these products is taken. warm: also match the answers of requests that finished
    before in the same run; then the speed of a request depends on others. SuffixDecoding, arXiv:2411.04975.
    """

    k: int = 16
    depth: int = 32
    factor: float = 1.0
    least: float = 0.1
    warm: bool = False

    def __post_init__(self) -> None:
        check_counts(self, "k", "depth")
        if not self.factor > 0:
            raise DllmError(f"factor={self.factor!r} must be above 0: drafted tokens for every token that matches.")
        if not 0 <= self.least <= 1:
            raise DllmError(f"least={self.least!r} is not a probability; give a value from 0 to 1.")

    def start(self, _: Context) -> "Matching":
        return Matching(self)


class Node:
    """A piece of text in a trie: how often it stands there, how often something follows it, and what."""

    __slots__ = ("best", "count", "followed", "followers", "token")

    def __init__(self, token: int) -> None:
        self.token, self.count, self.followed = token, 0, 0
        self.followers: dict[int, Node] = {}
        self.best: Node | None = None

    def follow(self, token: int) -> "Node":
        """Note that this token follows. Returns the longer piece."""
        if (node := self.followers.get(token)) is None:
            node = self.followers[token] = Node(token)
        self.followed += 1
        node.count += 1
        if self.best is None or node.count > self.best.count:
            self.best = node
        return node


class Trie:
    """All pieces of some texts, of up to `depth` tokens."""

    def __init__(self, depth: int) -> None:
        self.depth, self.root = depth, Node(-1)
        self.open = [self.root]
        """The pieces that end where the last text does, the shortest first; the first is empty."""
        self.n_tokens = 0

    def extend(self, tokens: Sequence[int]) -> None:
        """Let the last text go on."""
        for token in tokens:
            self.open = [self.root, *(node.follow(token) for node in self.open[: self.depth])]
        self.n_tokens += len(tokens)

    def add(self, tokens: Sequence[int]) -> None:
        """Take in another text."""
        self.open = [self.root]
        self.extend(tokens)

    def matches(self, tokens: Sequence[int]) -> list[Node]:
        """The pieces with which a text ends, the shortest first; the first is empty."""
        found = [self.root]
        for n in range(1, min(self.depth, len(tokens)) + 1):
            node: Node | None = self.root
            for token in tokens[-n:]:
                node = node.followers.get(token) if node else None
            if node is None:
                break
            found.append(node)
        return found


class Matching(Drafting):
    """The texts of the rows in flight, by request, and with `warm` the answers that are finished."""

    def __init__(self, settings: Suffix) -> None:
        self.settings, self.texts, self.answers = settings, dict[int, Trie](), Trie(settings.depth)

    def begin(self, row: Row, *_: Any) -> None:
        self.texts[row.request] = Trie(self.settings.depth)

    def draft(self, rows: Sequence[Row]) -> list[Tree]:
        return [self.match(row) for row in rows]

    def match(self, row: Row) -> Tree:
        text = self.texts[row.request]
        text.extend(row.tokens[text.n_tokens :])
        pieces = [text.open, self.answers.matches(row.tokens)] if self.settings.warm else [text.open]
        drafts = (self.continued(node, n) for nodes in pieces for n, node in enumerate(nodes) if n)
        # Of equal scores the later one, which is the longer match.
        best = max(drafts, key=lambda draft: (draft[0], draft[1]), default=(0.0, 0, []))
        return Tree.chain(best[2])

    def continued(self, node: Node, n: int) -> tuple[float, int, list[int]]:
        """What followed a piece of n tokens: the sum of the tokens' probabilities, n, and the tokens."""
        score, p, tokens = 0.0, 1.0, list[int]()
        while node.best and len(tokens) < min(self.settings.k, int(self.settings.factor * n)):
            p *= node.best.count / node.followed
            if p < self.settings.least:
                break
            node = node.best
            score += p
            tokens.append(node.token)
        return score, n, tokens

    def end(self, row: Row) -> None:
        self.texts.pop(row.request)
        if self.settings.warm:
            self.answers.add(row.tokens[row.prompt_length :])
