"""What decoding is compared with: Fast-dLLM's loop (arXiv:2505.22618), written the straightforward way, eagerly.

One forward per step, keys stored before rotation and rotated again every step, K/V concatenated, the head on every row
of the forward, a float64 softmax of the block's logits, and a Python loop over the masked tokens.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from dllm.kernels.rotary import rotate
from dllm.models.transformer import RMSNorm, Transformer, rotation


def normed(norm: RMSNorm, x: Tensor) -> Tensor:
    """torch's own norm, whatever kernels the model has."""
    if x.dtype == torch.float32:
        return F.rms_norm(x, x.shape[-1:], norm.weight, norm.eps)
    return F.rms_norm(x.float(), x.shape[-1:], None, norm.eps).to(x.dtype) * norm.weight


class Plain:
    """Fast-dLLM's three generate functions for one prompt and a full-attention model.

    A logits shift is not applied: the answers of such a model are wrong then, and cost the same.
    """

    def __init__(self, model: Transformer, cache: str) -> None:
        self.model, self.cache = model, cache
        self.mask_id = model.spec.mask_id or 0
        self.layers: list[Any] = list(model.layers)
        self.past: list[tuple[Tensor, Tensor]] = []

    def forward(self, tokens: Tensor, first: int, keep: int | None) -> Tensor:
        """Logits of the columns from `first` on. With a cache, `keep` columns of the stored K/V are concatenated."""
        spec, h = self.model.spec, self.model.embed(tokens)
        past: list[tuple[Tensor, Tensor]] = []
        for i, layer in enumerate(self.layers):
            qkv = layer.qkv(normed(layer.attn_norm, h)).view(1, h.shape[1], -1, spec.head_dim)
            q, k, v = torch.split(qkv, layer.head_counts, 2)
            if self.cache == "dual" and keep is not None:
                before, after = slice(0, first), slice(first + h.shape[1], None)
                k = torch.cat([self.past[i][0][:, before], k, self.past[i][0][:, after]], 1)
                v = torch.cat([self.past[i][1][:, before], v, self.past[i][1][:, after]], 1)
            elif keep is not None:
                k, v = torch.cat([self.past[i][0][:, :keep], k], 1), torch.cat([self.past[i][1][:, :keep], v], 1)
            past.append((k, v))
            columns = torch.arange(k.shape[1], device=k.device)[None]
            q = rotate(q, rotation(spec, columns[:, first : first + q.shape[1]], q.dtype))
            keys = rotate(k, rotation(spec, columns, k.dtype))
            o = F.scaled_dot_product_attention(
                q.transpose(1, 2), keys.transpose(1, 2), v.transpose(1, 2), enable_gqa=q.shape[2] != keys.shape[2]
            )
            h = h + layer.out(o.transpose(1, 2).reshape(1, h.shape[1], -1))
            gate, up = layer.gate_up(normed(layer.mlp_norm, h)).chunk(2, -1)
            h = h + layer.down(F.silu(gate) * up)
        if keep is None or self.cache == "dual":
            self.past = past
        logits: Tensor = self.model.head(normed(self.model.norm, h))
        return logits

    def choose(self, logits: Tensor, tokens: Tensor, threshold: float, quota: int | None) -> Tensor:
        """The tokens with the surest revealed: those of at least this float64 probability, one always, or a quota."""
        masked = tokens.eq(self.mask_id)
        proposed = logits.argmax(-1)
        p = F.softmax(logits.double(), -1).gather(-1, proposed[..., None]).squeeze(-1).masked_fill(~masked, -torch.inf)
        _, order = torch.topk(p[0], int(masked.sum()))
        out = tokens.clone()
        for rank, column in enumerate(order):
            if rank and (p[0, column] < threshold if quota is None else rank >= quota):
                break
            out[0, column] = proposed[0, column]
        return out

    def generate(
        self,
        prompt: list[int],
        gen_length: int,
        block_length: int,
        threshold: float = 0.9,
        trace: Sequence[int] | None = None,
        mark: Callable[[bool], None] = lambda _: None,
    ) -> tuple[list[int], int]:
        """The answer, and how many forwards it took.

        trace: how many tokens each step reveals, instead of a threshold. mark: called before and after every step; True
        if it computes all columns.
        """
        x = torch.tensor([prompt + [self.mask_id] * gen_length], device=self.model.device)
        forwards = 0
        for start in range(len(prompt), x.shape[1], block_length):
            stop, fresh = start + block_length, True
            while x[0, start:stop].eq(self.mask_id).any():
                whole = fresh or self.cache == "none"
                mark(whole)
                if whole:
                    first, logits = 0, self.forward(x, 0, None)
                elif self.cache == "prefix":
                    first, logits = start, self.forward(x[:, start:], start, start)
                else:
                    first, logits = start, self.forward(x[:, start:stop], start, x.shape[1])
                block = slice(start - first, stop - first)
                quota = None if trace is None else trace[forwards]
                x[:, start:stop] = self.choose(logits[:, block], x[:, start:stop], threshold, quota)
                mark(whole)
                fresh, forwards = False, forwards + 1
        return x[0, len(prompt) :].tolist(), forwards
