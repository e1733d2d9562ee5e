"""Any network of transformers as a model to decode with: an oracle for ours, and the way out where we have none.

It computes every column in every forward and cannot use a cache. `dllm.generate(wrap(module, mask_id=4), ids)`.
"""

import inspect
from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from dllm.canvas import Span
from dllm.errors import DllmError
from dllm.spec import ModelSpec


class Foreign:
    """A module that maps (tokens, attention_mask) to logits of all columns.

    causal: the module would hide later columns by itself, so it is given a mask (B, 1, L, L) that shows them.
    """

    def __init__(self, module: nn.Module, spec: ModelSpec, tokenizer: Any = None, *, causal: bool = False) -> None:
        self.module, self.spec, self.tokenizer, self.causal = module, spec, tokenizer, causal
        accepted = inspect.signature(module.forward).parameters
        self.options = {"use_cache": False} if "use_cache" in accepted else {}

    @property
    def device(self) -> torch.device:
        return next(self.module.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        return next(self.module.parameters()).dtype

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


def wrap(
    module: nn.Module,
    *,
    mask_id: int | None = None,
    eos_ids: Sequence[int] | None = None,
    logits_shift: int = 0,
    tokenizer: Any = None,
    causal: bool = False,
) -> Foreign:
    """A masked language model of transformers (BERT, a LLaDA of the hub, ...) for `dllm.generate`, in evaluation mode.

    mask_id: default the tokenizer's. eos_ids: default the config's. logits_shift: 1 where column i predicts the token
    at i + 1. causal: the module is a causal decoder (Llama, Qwen) with weights of a bidirectional one; it is given a
    mask that shows every column. The module must heed `attention_mask`, or else prompts of unequal lengths must be
    generated one by one (batch_size=1). Raises DllmError if there is no mask id.
    """
    config: Any = module.config
    mask_id = getattr(tokenizer, "mask_token_id", None) if mask_id is None else mask_id
    if mask_id is None:
        raise DllmError(f"{type(module).__name__} comes without a mask token; give mask_id=.")
    if eos_ids is None:
        end = getattr(config, "eos_token_id", None)
        eos_ids = [] if end is None else end if isinstance(end, list) else [end]
    heads = getattr(config, "num_attention_heads", 1)
    hidden = getattr(config, "hidden_size", 0)
    spec = ModelSpec(
        vocab_size=config.vocab_size,
        n_layers=getattr(config, "num_hidden_layers", 0),
        n_heads=heads,
        n_kv_heads=getattr(config, "num_key_value_heads", None) or heads,
        head_dim=getattr(config, "head_dim", None) or hidden // heads,
        hidden_size=hidden,
        mlp_size=getattr(config, "intermediate_size", 0),
        max_length=getattr(config, "max_position_embeddings", 1 << 20),
        mask_id=mask_id,
        eos_ids=tuple(eos_ids),
        logits_shift=logits_shift,
        cacheable=False,
    )
    return Foreign(module.eval(), spec, tokenizer, causal=causal)
