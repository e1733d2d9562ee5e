"""CUDA graphs of window steps: a forward's many small launches, recorded once for each shape and then replayed.

At small batches the host takes longer to launch the kernels of a window step than a GPU to run them. A graph launches
all at once, but it repeats what was recorded: sizes, addresses, and whatever the host decided meanwhile. So a step is
padded to one of few shapes and its inputs are copied into buffers of that shape; the store and the weights stay where
they are as long as a generation runs; and a view takes part only if its tensors say all (`takes`). Refreshes, which
compute enough to keep a GPU busy, run as they are.

Padding repeats the last row of a step, and of every row the last column: it computes once more what is computed anyway,
and stores it in the same place. Only what precedes the head is recorded, so that no logits stand in the recordings'
memory.

Facts about graphs: https://docs.pytorch.org/docs/stable/notes/cuda.html. Shape letters: B rows, Q computed
columns, W span, N drafts, L canvas columns, C hidden.
"""

from collections import OrderedDict
from collections.abc import Callable
from typing import Any, TypeGuard

import torch
from jaxtyping import Float, Int
from torch import Tensor

from dllm.cache.base import CacheState, StoredView, View
from dllm.canvas import Span
from dllm.spec import Model

MOST = 16
"""Shapes that are kept recorded; the one that was not used for longest gives way."""

Replay = Callable[[], Tensor]
Record = Callable[[Callable[[], Tensor]], Replay]
"""Records a function without running it. What comes back runs it again and returns the tensor that it fills."""
Step = Callable[..., Float[Tensor, "B N W C"]]
"""A window step: step(network, view, drafts, *spans), of which the first is the span to predict."""


class CudaRecorder:
    """Records on a stream of its own, all graphs in one pool of memory: they never run at the same time.

    Not on a stream that recordings of others use too: cuBLAS has working memory for every stream, which torch may give
    up with the first of a stream's graphs. That of these graphs stays in their pool.
    """

    def __init__(self, device: torch.device) -> None:
        self.device, self.stream, self.pool = device, torch.cuda.Stream(device), torch.cuda.graph_pool_handle()  # type: ignore[no-untyped-call]  # of torch

    def __call__(self, function: Callable[[], Tensor]) -> Replay:
        graph = torch.cuda.CUDAGraph()
        # Another thread of the program may use the GPU meanwhile.
        with (
            torch.cuda.device(self.device),
            torch.cuda.graph(graph, self.pool, self.stream, capture_error_mode="thread_local"),
        ):
            out = function()

        def replay() -> Tensor:
            graph.replay()
            return out

        return replay


def recorder(device: torch.device) -> Record | None:
    """What records on this device; None where nothing is gained."""
    return CudaRecorder(device) if device.type == "cuda" else None


class Graphs:
    """The recorded window steps of one generation."""

    def __init__(self, model: Any, record: Record) -> None:
        self.model, self.record = model, record  # a `dllm.models.transformer.Transformer`
        self.shapes: OrderedDict[Any, Shape] = OrderedDict()

    @classmethod
    def of(cls, model: Model) -> "Graphs | None":
        """Those of a model, if it runs on a GPU and its forwards hold no decision of the host."""
        record = recorder(model.device) if model.spec.cacheable and model.spec.experts is None else None
        return None if record is None else cls(model, record)

    def takes(self, view: View) -> TypeGuard[StoredView]:
        """Whether a forward is a window step whose tensors say all. Caches that look at attention decide on the way."""
        return isinstance(view, StoredView) and not view.fresh and not view.state.cache.attentive

    def __call__(
        self, step: Step, view: StoredView, drafts: Int[Tensor, "B N L"], *spans: Span
    ) -> Float[Tensor, "B N W V"]:
        """The logits of a step that `takes` this view."""
        n_rows, widths = padded_rows(len(drafts)), [padded_width(span.columns.shape[1]) for span in spans]
        width = padded_width(view.rows.shape[1])
        key = (step, view.state, n_rows, width, *drafts.shape[1:], *widths)
        if key not in self.shapes:
            self.shapes[key] = Shape(step, self.model, view.state, n_rows, width, drafts, widths)
            if len(self.shapes) > MOST:
                self.shapes.popitem(last=False)
        self.shapes.move_to_end(key)
        hidden = self.shapes[key](self.record, view, drafts, spans)
        logits: Tensor = self.model.head(hidden[: len(drafts), :, : spans[0].columns.shape[1]])
        return logits


class Shape:
    """A window step of one shape: buffers for its inputs, and its recording from the second time on."""

    def __init__(
        self,
        step: Step,
        model: Any,
        state: CacheState,
        n_rows: int,
        width: int,
        drafts: Int[Tensor, "B N L"],
        widths: list[int],
    ) -> None:
        self.step, self.model, self.state = step, model, state
        self.rows, self.slots = drafts.new_zeros(n_rows, width), drafts.new_zeros(n_rows)
        self.lengths, self.drafts = drafts.new_zeros(n_rows), drafts.new_zeros(n_rows, *drafts.shape[1:])
        self.spans = [
            Span(self.rows.new_zeros(n_rows, n), torch.zeros_like(self.rows[:, :1] > 0).repeat(1, n)) for n in widths
        ]
        self.seen = False
        self.replay: Replay | None = None

    def __call__(
        self, record: Record, view: StoredView, drafts: Int[Tensor, "B N L"], spans: tuple[Span, ...]
    ) -> Float[Tensor, "B N W C"]:
        """What the head takes. The tensor is filled anew at the next call."""
        own = (self.rows, view.rows), (self.slots, view.slots), (self.lengths, view.lengths), (self.drafts, drafts)
        for buffer, value in own:
            fill(buffer, value)
        for span, given in zip(self.spans, spans, strict=True):
            fill(span.columns, given.columns)
            fill(span.valid, given.valid)
            span.valid[:, given.valid.shape[1] :] = False
        # What is compiled or allocated at first use must be so before a recording; and many shapes come only once.
        if not self.seen:
            self.seen = True
            return self.compute()
        if self.replay is None:
            self.replay = record(self.compute)
        return self.replay()

    def compute(self) -> Float[Tensor, "B N W C"]:
        view = FixedView(self.state, self.rows, self.slots, self.lengths)
        return self.step(self.model.hidden, view, self.drafts, *self.spans)


class FixedView(StoredView):
    """A view of buffers, of which the host knows the shapes alone: any row may have any length."""

    def __init__(
        self, state: CacheState, rows: Int[Tensor, "B Q"], slots: Int[Tensor, " B"], lengths: Int[Tensor, " B"]
    ) -> None:
        View.__init__(self, state.spec, rows, lengths, [0, state.canvas.tokens.shape[1]])
        self.state, self.slots, self.fresh, self.everyone = state, slots, False, False
        self.deterministic = state.deterministic


def fill(buffer: Tensor, value: Tensor) -> None:
    """Put a value into a buffer that may have more rows and columns: these repeat the value's last ones."""
    n, own = len(value), buffer[: len(value)]
    if value.shape == own.shape:
        own.copy_(value)
    else:
        width = value.shape[1]
        own[:, :width] = value
        own[:, width:] = value[:, -1:]
    if n < len(buffer):
        buffer[n:] = buffer[n - 1]


def padded_rows(n: int) -> int:
    """1, 2, 3, 4, then steps of a quarter to an eighth: 5, 6, 7, 8, 10, 12, 14, 16, 20, 24, 28, 32, 40, ..."""
    unit = 1 << max(0, (n - 1).bit_length() - 3)
    return -(-n // unit) * unit


def padded_width(n: int) -> int:
    """Columns: multiples of 4 up to 64, of 8 up to 128, and so on, at most an eighth more than asked for from 32 on."""
    unit = max(4, 1 << max(0, (n - 1).bit_length() - 4))
    return -(-n // unit) * unit
