"""What the bundled models are trained to predict: masked tokens, or the next one."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from dllm.cache.base import View, full_view
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


def logits_of(model: Transformer, tokens: Tensor, span: Span) -> Tensor:
    """(B, W, V), float32: what the model predicts for the span where the canvas holds these tokens."""
    device, (n_rows, length) = model.device, tokens.shape
    there = Span(span.columns.to(device), span.valid.to(device))
    logits: Tensor = model(tokens.to(device), full_view(model.spec, [length] * n_rows, device), there)
    return logits.float()


def errors(model: Transformer, tokens: Tensor, span: Span, targets: Tensor) -> Tensor:
    """(B, W): the cross-entropy of the targets, ids (B, W) or probabilities (B, V, W), at the columns of the span."""
    logits = logits_of(model, tokens, span).transpose(1, 2)
    return F.cross_entropy(logits, targets.to(model.device), reduction="none")


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


def causal_loss(model: Transformer, batch: Batch, teacher: Transformer | None) -> Tensor:
    """The cross-entropy of the answer's tokens and its end of text, each predicted from what stands before it.

    With a teacher, of what the teacher predicts there instead.
    """
    stop = batch.prompts + batch.answers
    tokens = batch.tokens[:, : int(stop.max()) + 1]
    span = Span.between(batch.prompts - 1, stop, int((batch.answers + 1).max()))
    targets = tokens.gather(1, span.columns + 1)
    if teacher is not None:
        with torch.no_grad():
            targets = logits_of(teacher, tokens, span).softmax(-1).transpose(1, 2)
    ce = errors(model, tokens, span, targets)
    return (ce * span.valid.to(model.device)).sum() / int((batch.answers + 1).sum())


class Copies(View):
    """A clean canvas and two noised copies of its answer, side by side: how block diffusion is trained.

    A clean column sees the clean columns of its block and of those before it; a noised one sees its own copy of its
    block and the clean blocks before it (arXiv:2503.09573). The masks of the copies are each other's complement
    (arXiv:2509.26328), so that every column of the answer is predicted once: from the row before it, which for a
    block's first column is clean.
    Shape letters: L columns of the clean canvas, W of a copy.
    """

    def __init__(self, batch: Batch, block_length: int, n_blocks: int, draw: torch.Generator) -> None:
        n_rows, length = len(batch.tokens), n_blocks * block_length
        first = batch.prompts[:, None] // block_length * block_length
        width = length - int(first.min())
        column = first + torch.arange(width)
        exists = column < length
        column = column.clamp(max=length - 1)
        answer = (column >= batch.prompts[:, None]) & exists
        # A share of each block that is drawn evenly: 0 to all of its columns.
        share = torch.randint(block_length + 1, (n_rows, n_blocks), generator=draw)
        order = torch.rand(n_rows, n_blocks, block_length, generator=draw).argsort(2).flatten(1)
        drawn = order.gather(1, column) < share.gather(1, column // block_length)
        self.noised = torch.cat([drawn & answer, ~drawn & answer], 1)  # (B, 2 W)
        self.columns, self.answer = column, answer
        clean = torch.arange(length).expand(n_rows, length)
        self.absolute = torch.cat([clean, column, column], 1)  # (B, L + 2 W)
        self.rows = torch.arange(self.absolute.shape[1]).expand(n_rows, -1)
        block = self.absolute // block_length
        copy = torch.tensor([0] * length + [1] * width + [2] * width)
        same = (copy[:, None] == copy) & (block[:, :, None] == block[:, None])
        # A short row repeats its last column, which nobody else may see twice.
        there = torch.cat([torch.ones(n_rows, length, dtype=torch.bool), exists, exists], 1)[:, None]
        there = there | torch.eye(len(copy), dtype=torch.bool)
        self.visible = (((copy == 0) & (block[:, None] < block[:, :, None]) | same) & there)[:, None]
        place = torch.arange(width) - 1 + torch.where(drawn, length, length + width)
        self.before = torch.where(column % block_length == 0, column - 1, place).clamp(min=0)

    @property
    def positions(self) -> Tensor:
        return self.absolute

    def find(self, _: Span) -> Tensor:
        """The row that predicts each column of the copies."""
        return self.before


def block_loss(model: Transformer, batch: Batch, draw: torch.Generator) -> Tensor:
    """The cross-entropy of every column of the answer up to the end of the block of its end of text.

    The filling behind the end of text counts a twentieth.
    """
    block_length, ends = model.spec.block_length, batch.prompts + batch.answers
    n_blocks = int(ends.max()) // block_length + 1
    missing = n_blocks * block_length - batch.tokens.shape[1]
    fill = batch.tokens.gather(1, ends[:, None]).expand(-1, max(0, missing))
    tokens = torch.cat([batch.tokens, fill], 1)[:, : n_blocks * block_length]
    view = Copies(batch, block_length, n_blocks, draw)
    copies = tokens.gather(1, view.columns).repeat(1, 2).masked_fill(view.noised, model.spec.mask_id or 0)
    span = Span(view.columns, view.answer)
    device = model.device
    for name in ("rows", "absolute", "visible", "before"):
        setattr(view, name, getattr(view, name).to(device))
    logits = model(torch.cat([tokens, copies], 1).to(device), view, span)
    targets = tokens.gather(1, view.columns).to(device)
    ce = F.cross_entropy(logits.transpose(1, 2).float(), targets, reduction="none")
    scale = view.answer * torch.where(view.columns > ends[:, None], 0.05, 1.0)
    return (ce * scale.to(device)).sum() / int((batch.answers + 1).sum())
