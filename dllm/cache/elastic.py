"""Elastic-Cache: compute few columns, and all from the layer on where attention has drifted (arXiv:2510.14973)."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from dllm import transfer
from dllm.cache.base import Cache, CacheState, StoredView, View, attention, full_view
from dllm.cache.settling import NotingState
from dllm.cache.watching import mass, probabilities, similarity, weighted
from dllm.canvas import Canvas, Span
from dllm.errors import DllmError
from dllm.kernels.attention import attention as stored_attention
from dllm.kernels.drift import drift
from dllm.kernels.jit import suits
from dllm.kernels.mass import mass as column_mass
from dllm.kernels.rotary import Rotation, rotate
from dllm.spec import ModelSpec


@dataclass(frozen=True)
class ElasticCache(Cache):
    """Compute the leftmost masks, new tokens and what was attended to most; all once that drifts (arXiv:2510.14973).

    Before each step every layer names the `track_num` decided columns to which the window attends most. The next step
    computes them all. In each layer the cosine over heads of their attention before and after, its mean over columns,
    is compared with gamma; from the layer after the first that falls below on, all columns are computed from the inputs
    that are stored for that layer. The window is that of the sampler's scope: of a block, or with `sliding` and with
    Dream's orders, whose answer is one block, of the whole answer. A refresh does not make all exact: what it starts
    from was computed when a column was last in flight. Cosines of probabilities over heads are high: 0.9 is lax.
    """

    attentive: ClassVar[bool] = True

    window_length: int = 16
    """How many masked columns are predicted. A schedule that reveals more in a step takes more steps; a sampler that
    looks at decided columns too (prophet with answer_start) gets its whole scope."""
    gamma: float = 0.9
    """0: nothing is computed anew after the first step; 1: nearly everything, always."""
    track_num: int = 1
    """Tracked columns of each layer."""
    block_caching: bool = True
    """Leave masks outside the window to the store. False: all masks of the scope are computed and predicted."""

    def __post_init__(self) -> None:
        for name in ("window_length", "track_num"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise DllmError(f"{name}={value!r} is not a number of columns; give 1 or more.")
        if isinstance(self.gamma, bool) or not isinstance(self.gamma, int | float) or not 0 <= self.gamma <= 1:
            raise DllmError(
                f"gamma={self.gamma!r} is not a cosine of probabilities; give 0 (no refresh) to 1 (always)."
            )

    def start(self, spec: ModelSpec, canvas: Canvas, dtype: torch.dtype) -> "ElasticState":
        return ElasticState(self, spec, canvas, dtype)

    def stale(self, state: CacheState, window: Span) -> Bool[Tensor, "R L"]:
        assert isinstance(state, ElasticState)  # started above
        return state.changed | state.tracked

    def refresh_from(self, similarity: Float[Tensor, "B N"]) -> Int[Tensor, " B"]:
        """The first layer that computes all columns, N for none, from how similar attention is in each of N layers."""
        drifted = similarity < self.gamma
        return torch.where(drifted.any(1), drifted.long().argmax(1) + 1, similarity.shape[1])


class ElasticView(StoredView):
    """One forward over few rows, whose attention it tests; or, from layer `first` on, the repair over all columns.

    A forward goes on with its few rows above the layer at which one of the batch drifts: rows decide on their own, and
    to look at every layer would make the host wait for a GPU each time. So it reads once, after the forward, which
    rows drifted at which layer, and these run again from the next layer on. On a CPU, where looking costs nothing, the
    forward stops once all of its rows have drifted and the next layer has noted their inputs. What is computed in vain
    is not counted, as padding is not.
    """

    state: "ElasticState"

    def __init__(
        self,
        state: "ElasticState",
        rows: Int[Tensor, "B Q"],
        window: Span,
        slots: Int[Tensor, " B"],
        counts: list[int],
        lengths: list[int],
        first: int = 0,
    ) -> None:
        super().__init__(state, rows, window, slots, counts, lengths)
        self.window, self.ends, self.first = window, lengths, first
        self.whole = [count == length for count, length in zip(counts, lengths, strict=True)]
        self.untested = (rows == state.canvas.columns[: rows.shape[1]]).sum(1) == self.lengths
        tracked = (state.tracked & state.canvas.exists)[slots]
        self.track = Span.where(tracked, min(state.track[0].numel(), tracked.shape[1]))
        watched = torch.cat([self.track.columns, window.columns], 1)
        place = self.find(Span(watched, torch.ones_like(watched, dtype=torch.bool)))
        self.place = torch.arange(len(slots), device=rows.device)[:, None], place
        self.watched = watched
        self.decided = (state.canvas.exists & ~state.canvas.undecided)[slots, : self.n_keys]
        self.similarity = torch.ones(len(slots), state.spec.n_layers, dtype=torch.float64, device=rows.device)

    @cached_property
    def seen(self) -> Bool[Tensor, "B 1 _ L"] | None:
        """Which columns the tracked rows and the window may attend to; None: all."""
        return self.visibility(self.watched)

    @property
    def refresh_from(self) -> Int[Tensor, " B"]:
        """The first layer that computes all columns of each row; the number of layers for none."""
        return self.state.elastic.refresh_from(self.similarity).masked_fill(self.untested, self.similarity.shape[1])

    def layers(self, n: int) -> Iterable[int]:
        for layer in range(self.first, n):
            if transfer.near(self.rows.device) and bool((self.refresh_from < layer).all()):
                return
            yield layer

    def enter(self, layer: int, h: Float[Tensor, "B Q C"]) -> Float[Tensor, "B Q C"]:
        if layer == 0:
            return h
        inputs, where = self.state.inputs[layer - 1], (self.slots[:, None], self.rows)
        if layer == self.first:
            return inputs[where]
        inputs[where] = h
        return h

    def attend(
        self,
        layer: int,
        q: Float[Tensor, "B Q H D"],
        k: Float[Tensor, "B Q K D"],
        v: Float[Tensor, "B Q K D"],
        by: Rotation,
    ) -> Float[Tensor, "B Q H D"]:
        out, watched = (self.in_kernels if suits(q) else self.in_torch)(layer, q, k, v, by)
        most, columns = watched.masked_fill(~self.decided, -1.0).topk(self.state.track.shape[2])
        self.state.track[self.slots, layer] = torch.where(most < 0, columns[:, :1], columns)  # too few are decided
        return out

    def in_torch(
        self,
        layer: int,
        q: Float[Tensor, "B Q H D"],
        k: Float[Tensor, "B Q K D"],
        v: Float[Tensor, "B Q K D"],
        by: Rotation,
    ) -> tuple[Float[Tensor, "B Q H D"], Float[Tensor, "B L"]]:
        """Attention, and how much the window attends to each column; notes how alike it is to that before."""
        q, k = rotate(q, by), rotate(k, by)
        queries, slots, n = self.state.queries[layer], self.slots[:, None], self.track.columns.shape[1]
        tested = not all(self.whole)
        if tested:
            before = queries[slots, self.track.columns]
            seen = self.seen if self.seen is None or self.seen.shape[2] == 1 else self.seen[:, :, :n]
            old = probabilities(before, self.kept(self.state.keys[layer]), seen)
        keys, values = self.store(layer, k, v)
        queries[slots, self.rows] = q
        if any(self.whole):
            p, out = probabilities(q[self.place], keys, self.seen), attention(q, keys, values, self.visible)
        else:  # of few rows all probabilities may stand in memory
            p = probabilities(q, keys, self.visible)
            out, p = weighted(p, values), p.transpose(1, 2)[self.place].transpose(1, 2)
        if tested:
            self.similarity[:, layer] = similarity(old, p[:, :, :n], self.track.valid, seen).double()
        return out, mass(p[:, :, n:], self.window.valid)

    def in_kernels(
        self,
        layer: int,
        q: Float[Tensor, "B Q H D"],
        k: Float[Tensor, "B Q K D"],
        v: Float[Tensor, "B Q K D"],
        by: Rotation,
    ) -> tuple[Float[Tensor, "B Q H D"], Float[Tensor, "B L"]]:
        """The same on a GPU, where no probabilities stand in memory."""
        queries, slots, n = self.state.queries[layer], self.slots[:, None], self.track.columns.shape[1]
        keys, spec, where = self.state.keys[layer], self.state.spec, (self.slots, self.lengths)
        tested = not all(self.whole)
        if tested:
            reach, before = spec.reach(self.track.columns), queries[slots, self.track.columns]
            # Of what stood there only the log-sum-exp is asked: keys stand in for values.
            old = stored_attention(before, keys, keys, *where, reach, None, self.deterministic)[1]
            overwritten = keys[slots, self.rows]
        q, _ = self.write(layer, q, k, v, by, q.shape[1])
        queries[slots, self.rows] = q
        out, lse = self.look(layer, q)
        watched, whole = q[self.place], lse[self.place]
        if tested:
            now = before, watched[:, :n], old, whole[:, :n], keys, overwritten, self.index
            self.similarity[:, layer] = drift(*now, *where, self.track.valid, reach).double()
        asked = watched[:, n:], whole[:, n:], keys, *where, self.window.valid
        return out, column_mass(*asked, spec.reach(self.window.columns))[:, : self.n_keys]

    @cached_property
    def index(self) -> Int[Tensor, "B L"]:
        """Which of the rows computes each column, -1 for none."""
        place = torch.arange(self.rows.shape[1], device=self.rows.device).expand_as(self.rows)
        return torch.full_like(self.state.canvas.tokens[self.slots], -1).scatter_(1, self.rows, place)

    def repairs(self) -> Iterator[tuple[list[int], View, int]]:
        if all(self.whole):
            return
        first, n = self.refresh_from.tolist(), self.state.spec.n_layers  # the forward's one wait for the device
        for layer in sorted({*first} - {n}):
            part = [row for row, found in enumerate(first) if found == layer]
            lengths, index = [self.ends[row] for row in part], transfer.put(part, self.rows.device)
            rows = full_view(self.state.spec, lengths, self.rows.device).rows
            yield (
                part,
                ElasticView(self.state, rows, self.window[index], self.slots[index], lengths, lengths, layer),
                n - layer,
            )


class ElasticState(NotingState):
    """Also keeps every layer's inputs and queries, and the columns that are tracked."""

    view_class = ElasticView

    def __init__(self, cache: ElasticCache, spec: ModelSpec, canvas: Canvas, dtype: torch.dtype) -> None:
        super().__init__(cache, spec, canvas, dtype)
        self.elastic = cache
        shape = canvas.tokens.shape

        def stored(n: int, *size: int) -> list[Tensor]:
            return [torch.zeros(*shape, *size, dtype=dtype, device=canvas.tokens.device) for _ in range(n)]

        self.inputs: list[Float[Tensor, "R L C"]] = stored(spec.n_layers - 1, spec.hidden_size)
        """Of every layer but the first, whose inputs are the embeddings."""
        self.queries: list[Float[Tensor, "R L H D"]] = stored(spec.n_layers, spec.n_heads, spec.head_dim)
        self.track = canvas.tokens.new_zeros(shape[0], spec.n_layers, min(cache.track_num, shape[1]))

    @property
    def nbytes(self) -> int:
        """Bytes of keys and values, and of rows · columns · ((layers - 1) · hidden + layers · heads · head width)."""
        return super().nbytes + sum(stored.nbytes for stored in (*self.inputs, *self.queries))

    @property
    def tracked(self) -> Bool[Tensor, "R L"]:
        """The columns that some layer tracks: every layer computes and tests them all."""
        return torch.zeros_like(self.canvas.open).scatter_(1, self.track.flatten(1), True)

    def needed(self, scope: Span, block: Span) -> Span:
        super().needed(scope, block)
        masked, width = self.canvas.undecided & scope.mask(self.canvas.tokens.shape[1]), scope.columns.shape[1]
        if not self.elastic.block_caching:
            return Span.where(masked, width)
        return Span.where(
            masked & (masked.cumsum(1) <= self.elastic.window_length), min(self.elastic.window_length, width)
        )

    def retire(self, keep: Int[Tensor, " R"]) -> None:
        super().retire(keep)
        self.track = self.track[keep]
        for stored in (self.inputs, self.queries):
            for layer in range(len(stored)):
                stored[layer] = stored[layer][keep]
