"""Networks of transformers as the engine wants a model: what all of them share, and masked language models."""

import inspect
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from dllm.canvas import Span
from dllm.spec import ModelSpec


class Wrapped:
    """A module, and what decoding must know about it."""

    def __init__(self, module: nn.Module, spec: ModelSpec, tokenizer: Any = None) -> None:
        self.module, self.spec, self.tokenizer = module.eval(), spec, tokenizer

    @property
    def device(self) -> torch.device:
        return next(self.module.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        return next(self.module.parameters()).dtype


class Foreign(Wrapped):
    """A module that maps (tokens, attention_mask) to logits of all columns.

    causal: the module would hide later columns by itself, so it is given a mask (B, 1, L, L) that shows them.
    """

    def __init__(self, module: nn.Module, spec: ModelSpec, tokenizer: Any = None, *, causal: bool = False) -> None:
        super().__init__(module, spec, tokenizer)
        accepted = inspect.signature(module.forward).parameters
        self.causal, self.options = causal, {"use_cache": False} if "use_cache" in accepted else {}

    @torch.no_grad()
    def __call__(self, tokens: Int[Tensor, "B L"], view: Any, span: Span) -> Float[Tensor, "B W V"]:
        """Logits that predict the tokens of `span`. Raises ValueError if the view does not compute every column."""
        rows = view.rows
        columns = torch.arange(rows.shape[1], device=rows.device)
        exists = columns <= rows[:, -1:]  # (B, L)
        # On a GPU this check would wait for the device; a cache that stores anything is refused before the first step.
        if rows.device.type == "cpu" and not torch.equal(rows, columns.minimum(rows[:, -1:])):
            raise ValueError(f"the view computes the columns {rows.tolist()}; this model can only compute all of them.")
        mask = exists.long()
        if self.causal:  # numbers to add, since not every attention of transformers takes a boolean one
            hidden = torch.zeros(exists.shape, dtype=self.dtype, device=self.device)
            hidden = hidden.masked_fill(~exists, torch.finfo(self.dtype).min)
            mask = hidden[:, None, None].expand(-1, 1, len(columns), -1)
        out = self.module(input_ids=tokens[:, : len(columns)], attention_mask=mask, **self.options)
        logits: Tensor = out.logits
        predictors = self.spec.predictors(span).columns
        return logits.gather(1, predictors[..., None].expand(-1, -1, logits.shape[-1]))
