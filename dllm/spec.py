"""What decoding needs to know about a model. Families differ here and nowhere else."""

from dataclasses import dataclass
from typing import Any, Literal, Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor

from dllm.canvas import Span


@dataclass(frozen=True)
class RopeScaling:
    """Slower rotary angles for a longer context: those that turn rarely within the original one (Llama 3.1)."""

    factor: float
    """By how much the slowest angles are slower."""
    low: float
    """Angles of at most so many turns within the original context are slowed down by the whole factor."""
    high: float
    """Angles of at least so many turns stay as they are."""
    original: float
    """The original context, in tokens."""

    def __call__(self, frequency: Float[Tensor, " F"]) -> Float[Tensor, " F"]:
        """The scaled angles per column, radians."""
        turns = self.original * frequency / (2 * torch.pi)
        kept = ((turns - self.low) / (self.high - self.low)).clamp(0, 1)
        return frequency * ((1 - kept) / self.factor + kept)


@dataclass(frozen=True)
class Experts:
    """A mixture of experts in place of the MLP of every layer but the first `dense_layers`."""

    count: int
    used: int
    """Of them, those that one token goes through."""
    size: int
    """Width of one of them."""
    shared_size: int = 0
    """Width of the one through which every token goes besides; 0: there is none."""
    dense_layers: int = 0
    scores: Literal["softmax", "sigmoid"] = "softmax"
    """What the router makes of its logits."""
    normalized: bool = False
    """Divide the scores of a token's experts by their sum."""
    scale: float = 1.0
    """Then multiply them by this."""
    bias: bool = False
    """A number for each expert is added to its score where experts are chosen, not where they are weighed."""
    groups: int = 1
    """Experts stand in so many groups of neighbours, and a token's are chosen from `groups_used` of these."""
    groups_used: int = 1


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
    """Width of the MLP; 0 where all layers have experts."""
    max_length: int
    """The longest row, prompt and answer together, in tokens."""
    mask_id: int | None
    """None: not a mask language model, or an `uniform` one."""
    eos_ids: tuple[int, ...]
    """Ids that end a text; the first is also what fills the canvas after the end."""
    attention: Literal["full", "block", "causal", "canvas"] = "full"
    """canvas: a block sees itself and what stands before it, which the network's own encoder has read causally."""
    block_length: int = 0
    """Of a block-causal model, whose blocks are counted from column 0, or of a canvas model: set by its training. 0 for
    the others."""
    logits_shift: int = 0
    """1: the row at column i predicts the token at i + 1 (models adapted from autoregressive ones)."""
    rope_theta: float = 10000.0
    rope_scaling: RopeScaling | None = None
    rope_fp32: bool = True
    """Rotate in float32 (LLaDA), or with tables rounded to the model's dtype (Dream)."""
    rope_dim: int | None = None
    """Rotate the first so many numbers of a head and leave the others; None: all."""
    norm_eps: float = 1e-5
    qkv_bias: bool = False
    qk_norm: bool = False
    tied_head: bool = False
    experts: Experts | None = None
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
        layer = self.hidden_size * (qkv + self.n_heads * self.head_dim + 2)
        layer += qkv * self.qkv_bias + 2 * self.head_dim * self.qk_norm
        dense, mixtures, experts = self.n_layers - self.n_mixtures, self.n_mixtures, self.experts
        mlps = dense * 3 * self.hidden_size * self.mlp_size
        if experts:
            widths = experts.count * experts.size + experts.shared_size
            router = experts.count * (self.hidden_size + experts.bias)
            mlps += mixtures * (3 * self.hidden_size * widths + router)
        return self.n_layers * layer + mlps + self.hidden_size * (1 + self.vocab_size * (1 if self.tied_head else 2))

    @property
    def n_active_parameters(self) -> int:
        """Of them, those that one token meets: all but the experts that it is not sent through."""
        spare = 0 if self.experts is None else (self.experts.count - self.experts.used) * self.experts.size
        return self.n_parameters - self.n_mixtures * 3 * self.hidden_size * spare

    @property
    def n_mixtures(self) -> int:
        """Layers with experts."""
        return 0 if self.experts is None else self.n_layers - self.experts.dense_layers

    @property
    def mlp_width(self) -> int:
        """Numbers between the projections of the widest MLP that a token goes through, its experts side by side."""
        experts = self.experts
        return max(self.mlp_size, experts.used * experts.size + experts.shared_size if experts else 0)

    def reach(self, columns: Int[Tensor, "B Q"]) -> Int[Tensor, "B Q"] | None:
        """The last column that each of these may attend to; None where all may attend to all."""
        if self.attention == "full":
            return None
        if self.attention == "causal":
            return columns
        return (columns // self.block_length + 1) * self.block_length - 1

    def block_start(self, columns: Int[Tensor, "*S"]) -> Int[Tensor, "*S"]:
        """The first column of the block in which each of these stands, in a block-causal model."""
        return columns // self.block_length * self.block_length

    def one_block(self, length: int) -> int | None:
        """The block_length with which an answer of this length is one block; None: the model has blocks of its own."""
        return None if self.attention == "block" else length

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

    @property
    def active_parameters(self) -> int:
        """Weights of the layers' matrices that a position is multiplied with: no embeddings, norms, biases, head."""
        inner = (2 * self.n_heads + 2 * self.n_kv_heads) * self.head_dim
        mlps = (self.n_layers - self.n_mixtures) * 3 * self.mlp_size
        if self.experts:
            mlps += self.n_mixtures * (3 * (self.experts.used * self.experts.size + self.experts.shared_size))
            mlps += self.n_mixtures * self.experts.count  # the router
        return self.hidden_size * (self.n_layers * inner + mlps)


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
