"""What the bundled models are trained to predict: masked tokens, or the next one."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from dllm.cache.base import full_view
from dllm.canvas import Span
from dllm.models.transformer import Transformer


@dataclass
class Batch:
    """tokens: (B, L), prompt, answer, then end of text to the end; prompts and answers: their lengths (B,)."""

    tokens: Tensor
    prompts: Tensor
    answers: Tensor


def masks(batch: Batch, block_share: float, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Which columns to mask, and each row's weight: one over the share of the answer that is masked.

    LLaDA's objective (arXiv:2502.09992) with one masked share per row, spread evenly over (0, 1] in the batch, and with
    exactly that share masked, which has less variance than masking each column with that probability. block_share: of
    so many rows the mask is that of block-wise decoding.
    """
    n_rows, length = batch.tokens.shape
    share = (torch.randperm(n_rows, generator=generator) + torch.rand(n_rows, generator=generator)) / n_rows
    column = torch.arange(length)
    answer = column >= batch.prompts[:, None]
    order = torch.rand(n_rows, length, generator=generator).masked_fill(~answer, 2.0)
    blockwise = torch.rand(n_rows, 1, generator=generator) < block_share
    # Block-wise rows: columns before `start` are known, those after `stop` are masked, those between are drawn.
    span = (batch.answers + 1)[:, None]
    start = batch.prompts[:, None] + (torch.rand(n_rows, 1, generator=generator) * span).long()
    stop = start + torch.randint(4, 33, (n_rows, 1), generator=generator)
    order = torch.where(blockwise & answer & (column < start), order + 1.5, order)
    order = torch.where(blockwise & (column >= stop), order - 1.5, order)
    size = answer.sum(1)
    open_columns = torch.where(blockwise[:, 0], ((column >= start) & (column < stop)).sum(1), size)
    forced = torch.where(blockwise[:, 0], (column >= stop).sum(1), 0)
    count = (forced + (share * open_columns).ceil()).clamp(min=1).minimum(size)
    rank = order.argsort(1).argsort(1)
    return rank < count[:, None], size / count


def surroundings(known: Tensor, p: float) -> Tensor:
    """(B, L): how much each column has known columns around it: half of Geometric(p) of each one's distance.

    Dream's context-adaptive noise rescheduling of tokens (CART, arXiv:2508.15487).
    """
    distance = (torch.arange(known.shape[1])[:, None] - torch.arange(known.shape[1])).abs()
    share = torch.where(distance > 0, 0.5 * p * (1 - p) ** (distance - 1.0), 0.0)
    return known.float() @ share


def errors(model: Transformer, tokens: Tensor, span: Span, targets: Tensor) -> Tensor:
    """(B, W): the cross-entropy of the targets at the columns of the span, where the whole canvas holds these tokens."""
    device, (n_rows, length) = model.device, tokens.shape
    there = Span(span.columns.to(device), span.valid.to(device))
    logits = model(tokens.to(device), full_view(model.spec, [length] * n_rows, device), there)
    return F.cross_entropy(logits.transpose(1, 2).float(), targets.to(device), reduction="none")


def masked_loss(model: Transformer, batch: Batch, block_share: float, cart: float, draw: torch.Generator) -> Tensor:
    """The weighted cross-entropy of the masked columns; the filling after the end of text counts a twentieth."""
    masked, weight = masks(batch, block_share, draw)
    span = Span.where(masked, int(masked.sum(1).max()))
    noisy = batch.tokens.masked_fill(masked, model.spec.mask_id or 0)
    ce = errors(model, noisy, span, batch.tokens.gather(1, span.columns))
    filling = span.columns > (batch.prompts + batch.answers)[:, None]
    # With CART the prompt counts as known, as in Dream. The weights are below 1; AdamW and Muon do not mind the scale.
    weights = surroundings(~masked, cart).gather(1, span.columns) if cart else weight[:, None]
    scale = weights * span.valid * torch.where(filling, 0.05, 1.0)
    return (ce * scale.to(model.device)).sum() / int((batch.answers + 1).sum())


def causal_loss(model: Transformer, batch: Batch) -> Tensor:
    """The cross-entropy of the answer's tokens and its end of text, each predicted from what stands before it."""
    stop = batch.prompts + batch.answers
    tokens = batch.tokens[:, : int(stop.max()) + 1]
    span = Span.between(batch.prompts - 1, stop, int((batch.answers + 1).max()))
    ce = errors(model, tokens, span, tokens.gather(1, span.columns + 1))
    return (ce * span.valid.to(model.device)).sum() / int((batch.answers + 1).sum())
