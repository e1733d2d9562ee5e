"""What a generation computes, and when its tokens come, for every request. The loops only say what happened."""

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from dllm.generation import Request
from dllm.metrics import Watch, flops
from dllm.plan import Batch
from dllm.spec import ModelSpec

NAMES = ("nfe", "prefills", "rows", "predicted", "attended", "columns", "refreshes", "steps", "drafted", "committed")


class Accounts:
    """The counts and times of one generation in progress."""

    def __init__(self, spec: ModelSpec, n: int) -> None:
        self.spec = spec
        self.counts = {name: [0] * n for name in NAMES}
        """Of every request, as `Generation` and `dllm.metrics.flops` tell them."""
        self.forwards, self.forward_seconds, self.draft_seconds, self.seconds = 0, 0.0, 0.0, 0.0
        self.began, self.watch = time.perf_counter(), Watch(n)

    @property
    def elapsed(self) -> float:
        """Seconds since the beginning, those aside in which the clock stood still."""
        return time.perf_counter() - self.began

    @contextmanager
    def paused(self) -> Iterator[None]:
        """The clock stands still, as while the caller has a step."""
        given = time.perf_counter()
        yield
        self.began += time.perf_counter() - given

    @contextmanager
    def forwarding(self) -> Iterator[None]:
        """A forward, in the time that the host takes for it."""
        began = time.perf_counter()
        yield
        self.forward_seconds += time.perf_counter() - began
        self.forwards += 1

    @contextmanager
    def drafting(self) -> Iterator[None]:
        began = time.perf_counter()
        yield
        self.draft_seconds += time.perf_counter() - began

    def add(self, request: int, **counts: int) -> None:
        """More of these for a request."""
        for name, n in counts.items():
            self.counts[name][request] += n

    def see(self, shown: Sequence[tuple[int, int]], decoding: bool) -> None:
        """What the host has just read is finished, on a GPU too; as of `Watch.see`."""
        self.seconds = self.elapsed
        self.watch.see(self.seconds, shown, decoding)

    def computed(self, name: str) -> list[int]:
        """ "rows" or "attended" of every request."""
        return self.counts[name]

    def told(self) -> dict[str, Any]:
        """What a `Generation` is told of it."""
        rows, attended = self.computed("rows"), self.computed("attended")
        sizes = zip(rows, self.counts["predicted"], attended, strict=True)
        named = {name: n for name, n in self.counts.items() if name not in ("predicted", "attended")}
        names = ("watch", "forwards", "seconds", "forward_seconds", "draft_seconds")
        counts = named | {"rows": rows, "flops": [flops(self.spec, *n) for n in sizes]}
        return {"counts": counts, **{name: getattr(self, name) for name in names}}


class CanvasAccounts(Accounts):
    """Those of rows whose masks are filled: `slots` says below which request each row in flight works on."""

    def __init__(self, spec: ModelSpec, requests: Sequence[Request], mask_id: int) -> None:
        super().__init__(spec, len(requests))
        self.requests, self.mask_id = requests, mask_id
        self.repaired = {name: [0] * len(requests) for name in ("rows", "attended")}
        """What a forward computed in some layers besides its rows, times these layers."""

    def ran(
        self, batch: Batch, slots: Sequence[int], repaired: Sequence[Mapping[int, int]], shadows: bool, whole: bool
    ) -> None:
        """A forward ran, or with guidance two.

        repaired: of each, the rows that a cache had computed again, and in how many layers. shadows: it had shadow
        rows. whole: all was predicted.
        """
        plan, n = batch.plan, len(repaired)
        for row in batch.rows:
            request, extra, length = slots[row], plan.widths[row] if shadows else 0, plan.lengths[row]
            width = length if whole else plan.predicted(row)
            self.add(
                request,
                nfe=1,
                rows=(plan.work(row) + extra) * n,
                predicted=(plan.drafts[row] * width + extra) * n,
                attended=(plan.pairs(row) + extra * length) * n,
                columns=(plan.drafts[row] * length + extra) * n,
                refreshes=plan.counts[row] == length or any(row in part for part in repaired),
                drafted=plan.drafts[row] - 1,
            )
            again = sum(part.get(row, 0) for part in repaired) * (length - plan.counts[row])
            self.repaired["rows"][request] += again
            self.repaired["attended"][request] += again * length

    def progress(self, slots: Sequence[int], steps: Sequence[int] | None) -> list[int]:
        """The rows have taken so many steps; None: as many as forwards. Returns how many drafts of each came true."""
        taken, more = self.counts["steps"], []
        for slot, request in enumerate(slots):
            now = steps[slot] if steps else self.counts["nfe"][request]
            more.append(now - taken[request] - 1)
            taken[request] = now
        return more

    def look(self, slots: Sequence[int], told: Mapping[str, Sequence[int]], border: str) -> None:
        """Note how much of each answer is decided, and how much of that, from its left, stands for good.

        told: of every row "lengths", "undecided", "done", and under `border` the column before which all stands.
        """
        shown, decoding = [], True
        for slot, request in enumerate(slots):
            asked, forwards = self.requests[request], self.counts["nfe"][request]
            n, answer = len(asked.prompt), asked.answer
            given = answer[: told["lengths"][slot] - n].count(self.mask_id)
            self.counts["committed"][request] = given - told["undecided"][slot]
            stands = answer if told["done"][slot] else answer[: told[border][slot] - n]
            shown.append((request, stands.count(self.mask_id) if forwards else 0))
            decoding &= forwards > 1
        self.see(shown, decoding)

    def computed(self, name: str) -> list[int]:
        """ "rows" or "attended" of every request over all layers; what some layers computed counts by their share."""
        shares = (round(n / max(1, self.spec.n_layers)) for n in self.repaired[name])
        return [count + share for count, share in zip(self.counts[name], shares, strict=True)]
