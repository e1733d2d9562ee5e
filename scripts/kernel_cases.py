"""What `bench_kernels` measures: inputs at the shapes of published models, the work, and the library's alternatives."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from importlib import import_module
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from dllm.models.transformer import rotation
from dllm.spec import ModelSpec

Args = tuple[Any, ...]
"""The arguments of a kernel's host function."""


@dataclass(frozen=True)
class Shape:
    """Of a forward: so many sequences, rows of each, and stored columns."""

    batch: int
    rows: int
    length: int
    spec: ModelSpec
    device: torch.device
    dtype: torch.dtype = torch.bfloat16

    def draw(self, *size: int) -> Tensor:
        return torch.randn(size, device=self.device, dtype=self.dtype)

    def __str__(self) -> str:
        heads = f"{self.spec.n_heads}/{self.spec.n_kv_heads} heads"
        return f"{self.batch} x {self.rows} rows, L={self.length}, {heads}"


@dataclass(frozen=True)
class Bench:
    """A kernel of `dllm.kernels`, by the name of its host function."""

    make: Callable[[Shape], Args]
    work: Callable[[Args], tuple[float, float]]
    """The bytes that must be moved, and the operations."""
    others: Mapping[str, Callable[..., Any]] = field(default_factory=dict)
    """The library's ways to the same result, by name, of the same arguments."""
    like: str = ""
    """The one whose rounding is the measure of ours; none: the reference in the same dtype."""
    asked: float | None = None
    """The share of the ceiling that is asked for."""
    module: str = ""
    """Its file, where that has another name."""
    changes: Sequence[int] = ()
    """Which arguments it writes to."""


def nbytes(*tensors: Tensor) -> int:
    return sum(t.nbytes for t in tensors)


def columns(shape: Shape) -> Tensor:
    """The rows that are computed: the last ones, (B, Q)."""
    rows = torch.arange(shape.length - shape.rows, shape.length, device=shape.device)
    return rows.repeat(shape.batch, 1)


def everyone(shape: Shape) -> tuple[Tensor, Tensor]:
    """Which row of the store each row of the forward is, and how long it is."""
    slots = torch.arange(shape.batch, device=shape.device)
    return slots, torch.full_like(slots, shape.length)


def heads(shape: Shape, n_heads: int, n_rows: int = 0) -> Tensor:
    return shape.draw(shape.batch, n_rows or shape.rows, n_heads, shape.spec.head_dim)


def store(shape: Shape) -> Tensor:
    return heads(shape, shape.spec.n_kv_heads, shape.length)


# Arguments of each kernel.


def write_rows(shape: Shape) -> Args:
    spec, slots = shape.spec, everyone(shape)[0]
    q, k, v = (heads(shape, n) for n in (spec.n_heads, spec.n_kv_heads, spec.n_kv_heads))
    by = rotation(spec, columns(shape), shape.dtype)
    return q, k, v, by, store(shape), store(shape), slots, columns(shape), shape.rows


def attention(shape: Shape) -> Args:
    return heads(shape, shape.spec.n_heads), store(shape), store(shape), *everyone(shape)


def mass(shape: Shape) -> Args:
    q, keys, values, slots, lengths = attention(shape)
    lse = kernel("attention").reference_attention(q, keys, values, slots, lengths)[1]
    valid = torch.ones(shape.batch, shape.rows, dtype=torch.bool, device=shape.device)
    return q, lse, keys, slots, lengths, valid


def drift(shape: Shape) -> Args:
    new_q, new_lse, keys, slots, lengths, valid = mass(shape)
    old_q = new_q + 0.1 * torch.randn_like(new_q)
    where = torch.full((shape.batch, shape.length), -1, device=shape.device)
    where[:, : shape.rows] = torch.arange(shape.rows, device=shape.device)
    old_keys = heads(shape, shape.spec.n_kv_heads)
    before = keys.clone()
    before[:, : shape.rows] = old_keys
    old_lse = kernel("attention").reference_attention(old_q, before, before, slots, lengths)[1]
    return old_q, new_q, old_lse, new_lse, keys, old_keys, where, slots, lengths, valid


def token_stats(shape: Shape) -> Args:
    special = [i for i in (shape.spec.mask_id, *shape.spec.eos_ids) if i is not None]
    banned = kernel("token_stats").banned(torch.tensor(special[:1], device=shape.device), shape.spec.vocab_size)
    return shape.draw(shape.batch, shape.rows, shape.spec.vocab_size), banned


def hidden(shape: Shape) -> Tensor:
    return shape.draw(shape.batch, shape.rows, shape.spec.hidden_size)


def rms_norm(shape: Shape) -> Args:
    return hidden(shape), shape.draw(shape.spec.hidden_size), shape.spec.norm_eps


def add_rms_norm(shape: Shape) -> Args:
    return hidden(shape), *rms_norm(shape)


def swiglu(shape: Shape) -> Args:
    return (shape.draw(shape.batch, shape.rows, 2 * shape.spec.mlp_size),)


def linear(shape: Shape) -> Args:
    weight = shape.draw(2 * shape.spec.mlp_size, shape.spec.hidden_size) * shape.spec.hidden_size**-0.5
    return hidden(shape), weight


def quantize_rows(shape: Shape) -> Args:
    return (hidden(shape).flatten(0, 1),)


# The library's ways.


def sdpa(q: Tensor, keys: Tensor, values: Tensor, _slots: Tensor, _lengths: Tensor) -> Tensor:
    """torch's attention, with the rows of the batch where they stand: nothing is gathered, nothing is masked."""
    q, k, v = (x.transpose(1, 2) for x in (q, keys, values))
    return F.scaled_dot_product_attention(q, k, v, enable_gqa=q.shape[1] != k.shape[1]).transpose(1, 2)


def sdpa_masked(q: Tensor, keys: Tensor, values: Tensor, slots: Tensor, lengths: Tensor) -> Tensor:
    """The same with rows of several lengths in the batch, as a mask in memory."""
    q, k, v = q.transpose(1, 2), keys[slots].transpose(1, 2), values[slots].transpose(1, 2)
    exists = torch.arange(k.shape[2], device=q.device) < lengths[:, None, None, None]
    shared = q.shape[1] != k.shape[1]
    return F.scaled_dot_product_attention(q, k, v, attn_mask=exists, enable_gqa=shared).transpose(1, 2)


@cache
def compiled_flex() -> Any:
    from torch.nn.attention.flex_attention import flex_attention

    return torch.compile(flex_attention, dynamic=False)


COMPILED = ("flex_attention",)
"""Ways that are compiled anew for every shape, which takes long: some shapes must do."""


def runs(way: str, shape: Shape) -> bool:
    """Whether a way is measured at a shape."""
    chosen = shape.batch in (1, 32) and shape.rows == 32 and shape.spec.n_heads == shape.spec.n_kv_heads
    return way not in COMPILED or (chosen and shape.device.type == "cuda")


def flex(q: Tensor, keys: Tensor, values: Tensor, _slots: Tensor, lengths: Tensor) -> Tensor:
    """torch's flex_attention with the lengths as a rule of scores."""

    def exists(score: Tensor, batch: Tensor, _head: Tensor, _row: Tensor, column: Tensor) -> Tensor:
        return torch.where(column < lengths[batch], score, -torch.inf)

    q, k, v = (x.transpose(1, 2) for x in (q, keys, values))
    out: Tensor = compiled_flex()(q, k, v, score_mod=exists, enable_gqa=q.shape[1] != k.shape[1])
    return out.transpose(1, 2)


def softmax_argmax(logits: Tensor, _banned: Any) -> tuple[Tensor, Tensor]:
    """The token and its probability alone, as a plain loop has them: a copy in float32, and two passes over it."""
    p = logits.float().softmax(-1)
    confidence, tokens = p.max(-1)
    return tokens, confidence


def torch_add_rms_norm(x: Tensor, y: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    total = x + y
    return total, F.rms_norm(total, total.shape[-1:], weight, eps)


def torch_swiglu(x: Tensor) -> Tensor:
    gate, up = x.chunk(2, -1)
    return F.silu(gate) * up


def attention_work(a: Args) -> tuple[float, float]:
    q, keys, values = a[:3]
    return 2 * q.nbytes + nbytes(keys, values), 4 * q.numel() * keys.shape[1]


BENCHES = {
    "write_rows": Bench(
        write_rows, lambda a: (2 * nbytes(*a[:3]) + nbytes(*a[3]), 0), asked=0.7, changes=(4, 5)
    ),
    "attention": Bench(
        attention, attention_work,
        {"sdpa": sdpa, "sdpa, masked": sdpa_masked, "flex_attention": flex}, like="sdpa", asked=0.7,
    ),
    "mass": Bench(mass, lambda a: (nbytes(a[0], a[2]), 2 * a[0].numel() * a[2].shape[1])),
    "drift": Bench(drift, lambda a: (nbytes(a[0], a[1], a[4], a[5]), 4 * a[0].numel() * a[4].shape[1])),
    "token_stats": Bench(token_stats, lambda a: (a[0].nbytes, 0), {"softmax, argmax": softmax_argmax}, asked=0.8),
    "rms_norm": Bench(
        rms_norm, lambda a: (2 * a[0].nbytes, 0),
        {"F.rms_norm": lambda x, weight, eps: F.rms_norm(x, x.shape[-1:], weight, eps)},
    ),
    "add_rms_norm": Bench(
        add_rms_norm, lambda a: (4 * a[0].nbytes, 0), {"torch": torch_add_rms_norm}, module="rms_norm"
    ),
    "swiglu": Bench(swiglu, lambda a: (1.5 * a[0].nbytes, 0), {"torch": torch_swiglu}),
    "linear": Bench(
        linear,
        lambda a: (nbytes(*a) + a[0].numel() // a[0].shape[-1] * len(a[1]) * 2, 2 * a[0].numel() * len(a[1])),
        {"F.linear": F.linear}, like="F.linear",
    ),
    "quantize_rows": Bench(quantize_rows, lambda a: (1.5 * a[0].nbytes, 0)),
}  # fmt: skip
"""By the name of the host function."""


def kernel(name: str) -> Any:
    """The module of a kernel."""
    return import_module(f"dllm.kernels.{BENCHES[name].module or name}")
