"""The one loop of autoregressive decoding: draft a tree, verify it in one forward, emit what is accepted.

Without a drafter every tree is empty, and a step is a plain one. Shape letters: B rows in flight, Q nodes of the widest
tree, its root included, P tokens of the longest prompt, V vocabulary, C hidden, W tokens emitted by the row that emits
most.
"""

from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from dllm.accounts import Accounts
from dllm.cache.causal import CausalStore
from dllm.canvas import Span
from dllm.errors import DllmError
from dllm.generation import Generation, Request
from dllm.metrics import EXACT, begin_peak, flops, peak_bytes, weight_bytes
from dllm.models.transformer import Transformer
from dllm.schedule import together
from dllm.settings import Settings
from dllm.speculate.accept import Rule
from dllm.speculate.base import Context, Drafter, Row
from dllm.speculate.choose import Chooser
from dllm.speculate.tree import Nodes, Tree
from dllm.trace import Observer, Step

UNDECIDED = -1
"""What stands in a column of an answer before its token is chosen."""
PLAIN = Tree()


@dataclass(frozen=True)
class Emitted:
    """What one forward brought: the new tokens of its rows, and the logits that they were chosen from."""

    rows: list[Row]
    tokens: list[list[int]]
    nodes: list[list[int]]
    """Of every token, which node of its row's tree predicted it; the root is 0."""
    logits: Float[Tensor, "B Q V"]
    stops: list[int]
    """The columns behind the rows' last tokens."""


class CausalRun:
    """One generation in progress: iterate to take steps, then ask for the result."""

    def __init__(
        self,
        model: Transformer,
        requests: Sequence[Request],
        drafter: Drafter | None,
        rule: Rule,
        settings: Settings,
        observers: Sequence[Observer] = (),
    ) -> None:
        self.model, self.spec, self.requests = model, model.spec, list(requests)
        self.drafter, self.rule, self.settings, self.observers = drafter, rule, settings, observers
        begin_peak(model.device)
        self.waiting = deque(range(len(requests)))
        self.rows: list[Row] = []
        """The rows in flight, by their slots."""
        self.finished: dict[int, list[int]] = {}
        self.eos = frozenset(self.spec.eos_ids if settings.eos_early_stop else ())
        named = self.spec.vocab_size if model.tokenizer is None else len(model.tokenizer)
        self.choose = Chooser(settings, torch.arange(named, self.spec.vocab_size, device=model.device))
        most, longest = min(settings.batch_size, len(requests)), max(request.length for request in requests)
        self.store = CausalStore(model, most, longest)
        self.drafting = None
        if drafter is not None:
            self.drafting = drafter.start(Context(model, self.choose, rule.coupled, most, longest))
        # Opening a draft model is no part of decoding.
        self.accounts = Accounts(model.spec, len(requests))

    @property
    def method(self) -> str:
        """What decodes, in words."""
        return "autoregressive" if self.drafter is None else f"{self.drafter}, {self.rule}"

    @property
    def mask_id(self) -> int:
        """What stands where nothing is decided."""
        return UNDECIDED

    def __iter__(self) -> Iterator[Step]:
        for emitted in self.emissions():
            with self.accounts.paused():
                yield self.tell(emitted)

    def finish(self) -> Generation:
        """Take all steps; what nobody observes is not told."""
        for emitted in self.emissions():
            if self.observers:
                self.tell(emitted)
        return self.result()

    def emissions(self) -> Iterator[Emitted]:
        """The forwards, one after the other: new rows enter, then all rows in flight go on together."""
        self.notify("begin", self)
        while self.waiting or self.rows:
            for rows in self.admit():
                yield self.seen(self.begin(rows), decoding=False)
            self.retire()  # of an answer of one token
            if self.rows:
                yield self.seen(self.verify(), decoding=True)
                self.retire()
        self.notify("end")

    def notify(self, event: str, *about: "CausalRun") -> None:
        """Tell the observers that want to know that the run begins, or is over."""
        for observer in self.observers:
            if listener := getattr(observer, event, None):
                listener(*about)

    def seen(self, emitted: Emitted, decoding: bool) -> Emitted:
        """Note when the tokens of a forward stood. decoding: no row met its prompt in it."""
        self.accounts.see([(row.request, len(row.tokens) - row.prompt_length) for row in emitted.rows], decoding)
        return emitted

    def admit(self) -> list[list[Row]]:
        """Give free slots to waiting prompts. Returns the new rows, grouped by similar lengths, in order of slots."""
        free = min(self.settings.batch_size - len(self.rows), len(self.waiting))
        new = [(index, self.requests[index]) for index in (self.waiting.popleft() for _ in range(free))]
        groups = together([len(request.prompt) for _, request in new])
        return [[self.enter(*new[i]) for i in group] for group in groups]

    def enter(self, index: int, request: Request) -> Row:
        """A row for a request, in the next slot."""
        prompt = list(request.prompt)
        self.accounts.watch.admit(index)
        self.rows.append(Row(index, self.store.enter(), prompt, len(prompt), request.key, request.length))
        return self.rows[-1]

    @torch.no_grad()
    def begin(self, rows: list[Row]) -> Emitted:
        """Compute the prompts of new rows and choose their first tokens."""
        model = self.model
        lengths = [row.prompt_length for row in rows]
        tokens = [row.tokens + [0] * (max(lengths) - len(row.tokens)) for row in rows]
        ends = [n - 1 for n in lengths]
        with self.accounts.forwarding():
            states = self.store.begin([row.slot for row in rows], torch.tensor(tokens, device=model.device))
            logits = model.head(model.norm(states[range(len(rows)), ends][:, None]))  # (B, 1, V)
        self.count(rows, lengths, lengths, [0] * len(rows), [n * (n + 1) // 2 for n in lengths])
        chosen = self.choose(logits, [row.key for row in rows], ends).tolist()
        everywhere = self.drafter is not None and self.drafter.prompt_logits
        for row in rows:
            predicted = row.prompt_length if everywhere else 1
            self.accounts.add(row.request, refreshes=1, prefills=1, committed=1, predicted=predicted)
        new = [self.emit(row, first) for row, first in zip(rows, chosen, strict=True)]
        self.introduce(rows, states)
        return Emitted(rows, new, [[0]] * len(rows), logits, [len(row.tokens) for row in rows])

    def introduce(self, rows: list[Row], states: Float[Tensor, "B P C"]) -> None:
        """Tell the drafter of new rows, and what it wants to know of their prompts."""
        if self.drafting is None or self.drafter is None:
            return
        wants = self.drafter
        with self.accounts.drafting():
            for row, computed in zip(rows, states, strict=True):
                known = self.model.norm(computed[: row.prompt_length]) if wants.hidden or wants.prompt_logits else None
                logits = self.model.head(known) if wants.prompt_logits else None
                self.drafting.begin(row, logits, known if wants.hidden else None)

    @torch.no_grad()
    def verify(self) -> Emitted:
        """Draft for all rows in flight, verify the trees in one forward, and emit what is accepted."""
        rows = list(self.rows)
        trees = self.draft(rows)
        starts = [len(row.tokens) - 1 for row in rows]
        with self.accounts.forwarding():
            nodes = Nodes.of([row.tokens[-1] for row in rows], starts, trees, self.model.device)
            hidden = self.model.norm(self.store.extend(starts, nodes.tokens, nodes.depth, nodes.ancestors))
            logits = self.model.head(hidden)
        verdict = self.judge(nodes, logits, [row.key for row in rows])
        walks = [tree.walk(accepted, chosen) for tree, chosen, accepted in zip(trees, *verdict, strict=True)]
        self.count_trees(rows, starts, trees, [len(tokens) for _, tokens in walks])
        new = [self.emit(row, tokens) for row, (_, tokens) in zip(rows, walks, strict=True)]
        # Of tokens cut short the last one stands for the choice behind them.
        paths = [path[: len(tokens) - 1] for (path, _), tokens in zip(walks, new, strict=True)]
        self.keep(rows, starts, paths)
        self.report(rows, trees, logits, hidden, paths)
        at = [[0, *(node + 1 for node in path)] for path in paths]
        return Emitted(rows, new, at, logits, [len(row.tokens) for row in rows])

    def draft(self, rows: list[Row]) -> list[Tree]:
        """A tree for every row, without what lies beyond its end; empty ones where nothing drafts."""
        if self.drafting is None:
            return [PLAIN] * len(rows)
        with self.accounts.drafting():
            trees = self.drafting.draft(rows)
        if len(trees) != len(rows):
            raise DllmError(f"{self.drafter} returned {len(trees)} trees for {len(rows)} rows; give one for each.")
        for token in (token for tree in trees for token in tree.tokens if not 0 <= token < self.spec.vocab_size):
            raise DllmError(
                f"{self.drafter} drafted the token id {token}; the target's vocabulary has {self.spec.vocab_size}."
            )
        return [tree.upto(row.room) for tree, row in zip(trees, rows, strict=True)]

    def judge(
        self, nodes: Nodes, logits: Float[Tensor, "B Q V"], keys: list[int]
    ) -> tuple[list[list[int]], list[list[int]]]:
        """The rule's verdict on the host: what is chosen behind every node, and which nodes may follow, 1 or 0."""
        if nodes.width == 1:
            return self.choose(logits, keys, nodes.starts).tolist(), [[1]] * len(keys)
        chosen, accepted = self.rule(nodes, logits, self.choose, keys)
        both: list[list[list[int]]] = torch.stack((chosen, accepted.long())).tolist()
        return both[0], both[1]

    def keep(self, rows: list[Row], starts: list[int], paths: list[list[int]]) -> None:
        """Move the K/V of accepted nodes to the columns of their tokens."""
        moves = [
            (row.slot, start + 1 + node, start + 1 + to)
            for row, start, path in zip(rows, starts, paths, strict=True)
            for to, node in enumerate(path)
            if to != node and row.request not in self.finished
        ]
        if moves:
            self.store.move(*map(list, zip(*moves, strict=True)))

    def report(
        self,
        rows: list[Row],
        trees: list[Tree],
        logits: Float[Tensor, "B Q V"],
        hidden: Float[Tensor, "B Q C"],
        paths: list[list[int]],
    ) -> None:
        """Tell the drafter what became of its trees."""
        if self.drafting is None or self.drafter is None:
            return
        wants = self.drafter
        with self.accounts.drafting():
            for i, (row, tree) in enumerate(zip(rows, trees, strict=True)):
                n = 1 + len(tree)
                self.drafting.observe(row, tree, logits[i, :n], hidden[i, :n] if wants.hidden else None, paths[i])

    def count_trees(self, rows: list[Row], starts: list[int], trees: list[Tree], committed: list[int]) -> None:
        """A forward that verified trees. starts: the roots' columns. committed: tokens that it gave each row."""
        sizes = [len(tree) for tree in trees]
        columns = [start + 1 + n for start, n in zip(starts, sizes, strict=True)]
        # A node sees the committed columns, its ancestors and itself.
        pairs = [(c + 1) * (1 + len(tree)) + sum(tree.depths) for c, tree in zip(starts, trees, strict=True)]
        self.count(rows, [1 + n for n in sizes], columns, sizes, pairs)
        for row, n, given in zip(rows, sizes, committed, strict=True):
            self.accounts.add(row.request, predicted=1 + n, committed=given)

    def count(
        self, rows: list[Row], computed: list[int], columns: list[int], drafted: list[int], attended: list[int]
    ) -> None:
        """One forward: of each row the positions it computed, the columns that they could see, the drafted nodes, and
        the pairs of a position and a column that it saw."""
        for row, *sizes in zip(rows, computed, columns, drafted, attended, strict=True):
            self.accounts.add(
                row.request, nfe=1, **dict(zip(("rows", "columns", "drafted", "attended"), sizes, strict=True))
            )

    def emit(self, row: Row, tokens: list[int]) -> list[int]:
        """Add tokens to a row, up to its end of text, its limit or a stop string. Returns those that were added."""
        room = row.limit - len(row.tokens)
        n = next((i + 1 for i, token in enumerate(tokens[:room]) if token in self.eos), min(len(tokens), room))
        if UNDECIDED in tokens[:n]:
            raise DllmError(
                f"the model returned NaN logits for prompt {row.request} at column {len(row.tokens)}; "
                f"check the weights, or run in a wider dtype than {self.model.dtype}."
            )
        row.tokens += tokens[:n]
        over = self.beyond_stop(row, n)
        if over is not None:
            n -= over
            del row.tokens[len(row.tokens) - over :]
        self.accounts.add(row.request, steps=n)
        if over is not None or row.tokens[-1] in self.eos or len(row.tokens) == row.limit:
            self.finished[row.request] = row.tokens[row.prompt_length :]
        return tokens[:n]

    def beyond_stop(self, row: Row, n: int) -> int | None:
        """How many of a row's last n tokens stand behind the one that completes a stop string; None without one."""
        if not self.settings.stop or self.model.tokenizer is None:
            return None
        answer = row.tokens[row.prompt_length :]
        # A character is at most 4 bytes and a token at least one: what the new tokens complete begins within the tail.
        if not self.stops(answer[-(n + 4 * max(map(len, self.settings.stop))) :]):
            return None
        return next((over for over in range(n - 1, -1, -1) if self.stops(answer[: len(answer) - over])), None)

    def stops(self, tokens: list[int]) -> bool:
        """Whether the text of these tokens holds a stop string."""
        text = self.model.tokenizer.decode(tokens, skip_special_tokens=True)
        return any(stop in text for stop in self.settings.stop if stop)

    def retire(self) -> None:
        """Take finished rows out."""
        for row in reversed(list(self.rows)):
            if row.request in self.finished:
                if self.drafting:
                    self.drafting.end(row)
                self.store.leave(row.slot)
                last = self.rows.pop()
                if last is not row:
                    last.slot = row.slot
                    self.rows[row.slot] = last

    def tell(self, emitted: Emitted) -> Step:
        """A forward as a step: its new tokens where nothing was decided. Observers are told."""
        device, width = emitted.logits.device, max(map(len, emitted.tokens))
        sizes = [len(tokens) for tokens in emitted.tokens]
        after = torch.tensor([tokens + [UNDECIDED] * (width - len(tokens)) for tokens in emitted.tokens], device=device)
        nodes = torch.tensor([at + [0] * (width - len(at)) for at in emitted.nodes], device=device)
        stop = torch.tensor(emitted.stops, device=device)
        span = Span.between(stop - torch.tensor(sizes, device=device), stop, width)
        logits = emitted.logits.gather(1, nodes[..., None].expand(-1, -1, emitted.logits.shape[2]))
        precise = logits.to(torch.promote_types(logits.dtype, torch.float32))
        confidence = precise.softmax(-1).gather(-1, after.clamp(min=0)[..., None]).squeeze(-1)
        before = torch.full_like(after, UNDECIDED)
        requests, seconds = [row.request for row in emitted.rows], self.accounts.elapsed
        step = Step(self.accounts.forwards - 1, requests, span, before, after, after, confidence, seconds, UNDECIDED)
        for observer in self.observers:
            observer(step)
        return step

    def result(self) -> Generation:
        """What was generated. Raises RuntimeError while rows are still in progress."""
        if len(self.finished) < len(self.requests):
            done = len(self.finished)
            raise RuntimeError(f"{done} of {len(self.requests)} rows are finished; take all steps first.")
        drafts = self.drafting
        network = drafts.model if drafts else None
        known = weight_bytes(self.model) + self.store.nbytes + (weight_bytes(network) if network else 0)
        return Generation.of(
            self.requests,
            [self.finished[i] for i in range(len(self.requests))],
            model=self.model,
            mask_id=UNDECIDED,
            stop=self.settings.stop,
            kv_bytes=self.store.nbytes,
            peak_bytes=peak_bytes(self.model.device, known),
            draft_forwards=drafts.forwards if drafts else 0,
            draft_rows=drafts.positions if drafts else 0,
            draft_flops=flops(network.spec, *2 * (drafts.positions,), 0) if drafts and network else 0,
            lossless=self.rule.lossless if drafts else EXACT,
            seed=self.settings.noise_seed,
            **self.accounts.told(),
        )
