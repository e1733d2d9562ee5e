"""What decoding needs to know about a model. Families differ here and nowhere else."""

from dataclasses import dataclass
from typing import Any, Literal, Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor

from dllm.canvas import Span


@dataclass(frozen=True)
class ModelSpec:
    """Sizes, token ids and attention pattern of a masked diffusion language model."""

    vocab_size: int
    n_layers: int
    n_heads: int
    n_kv_heads: int
    head_dim: int
    hidden_size: int
    mlp_size: int
    max_length: int
    """The longest row, prompt and answer together, in tokens."""
    mask_id: int | None
    """None: not a mask language model, or an `uniform` one."""
    eos_ids: tuple[int, ...]
    """Ids that end a text; the first is also what fills the canvas after the end."""
    attention: Literal["full", "block", "causal", "canvas"] = "full"
    """canvas: a block sees itself and what stands before it, which the network's own encoder has read causally."""
    block_length: int = 0
    """Of a block-causal or a canvas model: set by its training. 0 for the others."""
    logits_shift: int = 0
    """1: the row at column i predicts the token at i + 1 (models adapted from autoregressive ones)."""
    rope_theta: float = 10000.0
    rope_fp32: bool = True
    """Rotate in float32 (LLaDA), or with tables rounded to the model's dtype (Dream)."""
    norm_eps: float = 1e-5
    qkv_bias: bool = False
    qk_norm: bool = False
    tied_head: bool = False
    cacheable: bool = True
    """False: the network computes every row by itself and cannot use stored keys and values."""
    uniform: bool = False
    """There is no mask: undecided columns hold random tokens, of which any may turn out right (uniform noise)."""
    sampler: str = "threshold"
    """The sampler that decodes it where none is named."""

    @property
    def n_parameters(self) -> int:
        """Parameters of the transformer, the table of a tied head counted once."""
        qkv = (self.n_heads + 2 * self.n_kv_heads) * self.head_dim
        layer = self.hidden_size * (qkv + self.n_heads * self.head_dim + 3 * self.mlp_size + 2)
        layer += qkv * self.qkv_bias + 2 * self.head_dim * self.qk_norm
        return self.n_layers * layer + self.hidden_size * (1 + self.vocab_size * (1 if self.tied_head else 2))

    def reach(self, columns: Int[Tensor, "B Q"]) -> Int[Tensor, "B Q"] | None:
        """The last column that each of these may attend to; None where all may attend to all."""
        if self.attention == "full":
            return None
        if self.attention == "causal":
            return columns
        return (columns // self.block_length + 1) * self.block_length - 1

    def window(self, span: Span) -> Span:
        """The rows to compute so that `span` is predicted and its keys and values are fresh.

        With a shift these are one column more on the left; column 0, which nothing precedes, predicts itself.
        """
        if self.logits_shift == 0:
            return span
        columns = torch.cat([self.predictors(span).columns, span.columns], 1).sort(1).values
        again = columns[:, 1:] == columns[:, :-1]
        return Span(columns, torch.cat([torch.ones_like(again[:, :1]), ~again], 1))

    def predictors(self, span: Span) -> Span:
        """The rows whose logits predict the tokens of `span`, one for each of its columns."""
        if self.logits_shift == 0:
            return span
        return Span((span.columns - self.logits_shift).clamp(min=0), span.valid)


@runtime_checkable  # so that the types of a call can be checked in tests
class Model(Protocol):
    """A network that the engine can run. `tokenizer` is None where a checkpoint has none: token ids in and out."""

    spec: ModelSpec
    tokenizer: Any

    @property
    def device(self) -> torch.device: ...

    @property
    def dtype(self) -> torch.dtype: ...

    def __call__(self, tokens: Int[Tensor, "B L"], view: Any, span: Span) -> Float[Tensor, "B W V"]:
        """Logits that predict the tokens of `span`, computing only `view.rows`.

        The shift is applied here, on absolute columns, so that no caller sees it; the head runs on W rows.
        Raises ValueError if the rows of the view do not cover `spec.window(span)`.
        """
        ...
