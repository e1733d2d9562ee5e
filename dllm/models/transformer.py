"""The one transformer: RMSNorm before each half, rotary positions, grouped-query attention, gated MLP or experts.

LLaDA, Dream, Qwen, Llama and their block-diffusion relatives are this network with another `ModelSpec`. It meets a
cache in two calls per layer: `view.enter`, which may replace its input; `view.attend`, which rotates queries and keys,
stores K/V and attends. Shape letters: B rows of the batch, L canvas columns, Q computed columns, W span, C hidden,
H heads, K kv heads, D head.
"""

from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from dllm.canvas import Span
from dllm.kernels.rms_norm import add_rms_norm, rms_norm
from dllm.kernels.rotary import Rotation
from dllm.models.moe import Mixture, gated
from dllm.spec import ModelSpec


def wide(dtype: torch.dtype) -> torch.dtype:
    """float32, or the given dtype where that is wider."""
    return torch.promote_types(dtype, torch.float32)


class RMSNorm(nn.Module):
    """x / rms(x), rounded to the input's dtype, times the weight: in this order, as the checkpoints were trained."""

    def __init__(self, size: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.eps = eps

    def forward(self, x: Float[Tensor, "... C"]) -> Float[Tensor, "... C"]:
        return rms_norm(x, self.weight, self.eps)

    def added(
        self, x: Float[Tensor, "... C"], more: Float[Tensor, "... C"]
    ) -> tuple[Float[Tensor, "... C"], Float[Tensor, "... C"]]:
        """x + more, and its norm."""
        return add_rms_norm(x, more, self.weight, self.eps)


def rotation(spec: ModelSpec, rows: Int[Tensor, "B Q"], dtype: torch.dtype) -> Rotation:
    """Cosines and signed sines of the angles at the absolute columns `rows`, in the dtype in which to rotate."""
    size = spec.rope_dim or spec.head_dim
    exponent = torch.arange(0, size, 2, device=rows.device, dtype=wide(dtype)) / size
    frequency = spec.rope_theta**-exponent
    if spec.rope_scaling is not None:
        frequency = spec.rope_scaling(frequency)
    angle = rows[..., None].to(wide(dtype)) * frequency
    cos, sin = angle.cos(), angle.sin()
    tables = torch.cat([cos, cos], -1)[:, :, None], torch.cat([-sin, sin], -1)[:, :, None]
    return tables if spec.rope_fp32 else (tables[0].to(dtype), tables[1].to(dtype))


class Layer(nn.Module):
    """x + attention(norm(x)), then x + mlp(norm(x)). The projections of q, k, v and of gate, up are fused."""

    def __init__(self, spec: ModelSpec, index: int) -> None:
        super().__init__()
        hidden, heads, width = spec.hidden_size, spec.n_heads, spec.head_dim
        self.head_counts = [heads, spec.n_kv_heads, spec.n_kv_heads]
        self.head_dim = width
        self.attn_norm = RMSNorm(hidden, spec.norm_eps)
        self.qkv = nn.Linear(hidden, sum(self.head_counts) * width, bias=spec.qkv_bias)
        self.q_norm = RMSNorm(width, spec.norm_eps) if spec.qk_norm else nn.Identity()
        self.k_norm = RMSNorm(width, spec.norm_eps) if spec.qk_norm else nn.Identity()
        self.out = nn.Linear(heads * width, hidden, bias=False)
        self.mlp_norm = RMSNorm(hidden, spec.norm_eps)
        if spec.experts and index >= spec.experts.dense_layers:
            self.moe: Mixture | None = Mixture(hidden, spec.experts)
        else:
            self.moe = None
            self.gate_up = nn.Linear(hidden, 2 * spec.mlp_size, bias=False)
            self.down = nn.Linear(spec.mlp_size, hidden, bias=False)

    def forward(self, index: int, x: Float[Tensor, "B Q C"], view: Any, by: Rotation) -> Float[Tensor, "B Q C"]:
        batch, n_rows, _ = x.shape
        qkv = self.qkv(self.attn_norm(x)).view(batch, n_rows, -1, self.head_dim)
        q, k, v = qkv.split(self.head_counts, 2)
        attended = view.attend(index, self.q_norm(q), self.k_norm(k), v, by)
        x, h = self.mlp_norm.added(x, self.out(attended.flatten(2)))
        out: Tensor = x + (self.moe(h) if self.moe else gated(h, self.gate_up, self.down))
        return out


class Transformer(nn.Module):
    """A decoder stack that computes the rows of a view and predicts the tokens of a span."""

    def __init__(self, spec: ModelSpec, tokenizer: Any = None) -> None:
        super().__init__()
        self.spec, self.tokenizer = spec, tokenizer
        self.name = ""
        """By which it was loaded."""
        self.embed = nn.Embedding(spec.vocab_size, spec.hidden_size)
        self.layers = nn.ModuleList(Layer(spec, i) for i in range(spec.n_layers))
        self.norm = RMSNorm(spec.hidden_size, spec.norm_eps)
        self.head = nn.Linear(spec.hidden_size, spec.vocab_size, bias=False)
        if spec.tied_head:
            self.head.weight = self.embed.weight

    @property
    def device(self) -> torch.device:
        return self.embed.weight.device

    @property
    def dtype(self) -> torch.dtype:
        return self.embed.weight.dtype

    def forward(self, tokens: Int[Tensor, "B L"], view: Any, span: Span) -> Float[Tensor, "B W V"]:
        logits: Tensor = self.head(self.hidden(tokens, view, span))
        return logits

    def hidden(self, tokens: Int[Tensor, "B L"], view: Any, span: Span) -> Float[Tensor, "B W C"]:
        """What the head makes the logits of the span from."""
        by = rotation(self.spec, view.positions, self.dtype)
        h = self.states(tokens.gather(1, view.rows), view, by)
        h = h.gather(1, view.find(self.spec.predictors(span))[..., None].expand(-1, -1, h.shape[-1]))
        out: Tensor = self.norm(h)
        return out

    def rotation(self, length: int) -> Rotation:
        """The tables of the columns 0 .. length - 1, for one row."""
        return rotation(self.spec, torch.arange(length, device=self.device)[None], self.dtype)

    def states(self, tokens: Int[Tensor, "B Q"], view: Any, by: Rotation) -> Float[Tensor, "B Q C"]:
        """What the last layer makes of these tokens, the rows of a view: before the norm and the head."""
        h: Tensor = self.embed(tokens)
        for i in view.layers(len(self.layers)):
            h = self.layers[i](i, view.enter(i, h), view, by)
        return h
