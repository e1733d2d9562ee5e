"""One forward: how the drafts of some rows are laid out in it, and what a cache has computed again."""

from collections.abc import Callable
from dataclasses import replace

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from dllm import transfer
from dllm.cache.base import CacheState, View
from dllm.cache.side import draft_view, shadow_view
from dllm.canvas import Span
from dllm.graphs import Graphs, Step
from dllm.plan import Batch
from dllm.spec import Model

Repaired = dict[int, int]
"""Rows of which a cache found that all columns must be computed, and in how many layers."""
Network = Callable[[Tensor, View, Span], Tensor]
"""A model, or the part of it before the head: what it says of the columns of a span."""


def forward(
    model: Model, state: CacheState, batch: Batch, shadow: int | None = None, graphs: Graphs | None = None
) -> tuple[Float[Tensor, "B N W V"], Repaired]:
    """The logits of the batch's span in every draft.

    shadow: a token that a shadow of every column of the scope holds; their logits then stand behind the span's.
    graphs: window steps are recorded there, and replayed.
    """
    if batch.n > 1 and not state.keys:
        return one_by_one(model, state, batch)
    plan, span = batch.plan, batch.span
    view = state.view(plan.columns, plan.window, batch.index, batch.counts, batch.ends)
    if shadow is not None:
        tokens = F.pad(batch.drafts[:, 0], (0, batch.scope.columns.shape[1]), value=shadow)
        view = shadow_view(view, batch.scope, batch.drafts.shape[2])
        span = Span(*(torch.cat([getattr(part, n) for part in (span, batch.scope)], 1) for n in ("columns", "valid")))
        logits, repaired = compute(model, tokens, view, span, batch)
        return logits[:, None], repaired
    spans = [span]
    if batch.n > 1:
        most = max(plan.step_counts[row] for row in batch.rows)
        spans.append(Span.where(plan.step_columns[batch.index], most))
    step: Step = side_by_side if batch.n > 1 else alone
    if graphs and graphs.takes(view):
        return graphs(step, view, batch.drafts, *spans), {}
    if batch.n > 1:
        return step(model, view, batch.drafts, *spans), {}
    logits, repaired = compute(model, batch.drafts[:, 0], view, span, batch)
    return logits[:, None], repaired


def compute(
    model: Model, tokens: Int[Tensor, "B L"], view: View, span: Span, batch: Batch
) -> tuple[Float[Tensor, "B W V"], Repaired]:
    """The logits of a span, those of rows that a cache sends through some layers again included."""
    logits = model(tokens, view, span)
    repaired: Repaired = {}
    for part, again, layers in view.repairs():
        index = transfer.put(part, tokens.device)
        logits[index] = model(tokens[index], again, span[index])
        repaired |= {batch.rows[place]: layers for place in part}
    return logits, repaired


def alone(network: Network, view: View, drafts: Int[Tensor, "B 1 L"], span: Span) -> Float[Tensor, "B 1 W V"]:
    """A step without drafts."""
    return network(drafts[:, 0], view, span)[:, None]


def side_by_side(
    network: Network, view: View, drafts: Int[Tensor, "B N L"], span: Span, columns: Span
) -> Float[Tensor, "B N W V"]:
    """All drafts of a row in one sequence, so that what is stored is read once for all of them.

    columns: those that every draft but the canvas computes.
    """
    n = drafts.shape[1]
    side = draft_view(view, columns, n - 1, span, drafts.shape[2])
    others = drafts[:, 1:].gather(2, columns.columns[:, None].expand(-1, n - 1, -1))
    tokens = torch.cat([drafts[:, 0], others.flatten(1)], 1)
    found = network(tokens, side, Span(span.columns.repeat(1, n), span.valid.repeat(1, n)))
    return found.reshape(len(tokens), n, -1, found.shape[-1])


def one_by_one(model: Model, state: CacheState, batch: Batch) -> tuple[Float[Tensor, "B N W V"], Repaired]:
    """Each draft as a row of the batch: nothing is stored that they could share."""
    plan, device = batch.plan, batch.index.device
    own = [(i, draft) for i, row in enumerate(batch.rows) for draft in range(plan.drafts[row])]
    row, draft = transfer.put(own, device).unbind(1)
    lengths = [plan.lengths[batch.rows[i]] for i, _ in own]
    view = state.view(plan.columns, plan.window, batch.index[row], lengths, lengths)
    logits = model(batch.drafts[row, draft], view, batch.span[row])
    where = torch.zeros_like(batch.drafts[:, :, 0])
    where[row, draft] = torch.arange(len(own), device=device)
    return logits[where], {}


def unconditional(batch: Batch, given: Bool[Tensor, "B L"], mask_id: int) -> Batch:
    """The batch with masks where something was given, as classifier-free guidance needs it."""
    return replace(batch, drafts=batch.drafts.masked_fill(given[:, None], mask_id))
