"""A mixture of experts in place of an MLP: a router sends every token through a few of many small ones.

Shape letters: T tokens, C hidden, E experts, K of them for a token, F their width, N = T · K.
"""

from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from dllm.kernels.swiglu import swiglu
from dllm.spec import Experts


def gated(x: Tensor, gate_up: Callable[[Tensor], Tensor], down: Callable[[Tensor], Tensor]) -> Tensor:
    """down(silu(gate) · up), the MLP of all these models; the projections of gate and up are one matrix."""
    return down(swiglu(gate_up(x)))


def grouped_matmul(
    x: Float[Tensor, "N I"], weights: Float[Tensor, "E O I"], ends: Int[Tensor, " E"]
) -> Float[Tensor, "N O"]:
    """The rows of x that expert e owns, ends[e - 1] to ends[e], times its matrix transposed; an expert may own none."""
    # The kernel wants rows that begin at multiples of 16 bytes.
    if x.is_cuda and x.dtype == torch.bfloat16 and not (weights.shape[1] % 8 or weights.shape[2] % 8):
        return grouped_kernel(x, weights, ends)
    parts = x.tensor_split(ends[:-1].tolist())
    return torch.cat([part @ weight.T for part, weight in zip(parts, weights, strict=True)])


def grouped_kernel(
    x: Float[Tensor, "N I"], weights: Float[Tensor, "E O I"], ends: Int[Tensor, " E"]
) -> Float[Tensor, "N O"]:
    """The same in one kernel, of torch."""
    return F.grouped_mm(x, weights.mT, offs=ends.int())


class Router(nn.Module):
    """Which experts a token goes through, and how much each of them counts. Its numbers stay in float32 at least."""

    def __init__(self, hidden_size: int, experts: Experts) -> None:
        super().__init__()
        self.experts = experts
        self.weight = nn.Parameter(torch.randn(experts.count, hidden_size) * hidden_size**-0.5)
        self.bias = nn.Parameter(torch.zeros(experts.count)) if experts.bias else None

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "Router":
        """What .to() and .bfloat16() call; two experts' scores may differ by less than bfloat16 can tell."""

        def widened(value: Tensor) -> Tensor:
            made = fn(value)
            dtype = torch.promote_types(made.dtype, torch.float32)
            return made if made.dtype == dtype else value.to(made.device, dtype)

        made: Router = super()._apply(widened, recurse)  # type: ignore[no-untyped-call]  # of torch
        return made

    def forward(self, x: Float[Tensor, "T C"]) -> tuple[Float[Tensor, "T K"], Int[Tensor, "T K"]]:
        """The weights of the experts of each token, and which they are, by falling score."""
        logits = F.linear(x.to(self.weight.dtype), self.weight)
        scores = logits.softmax(-1) if self.experts.scores == "softmax" else logits.sigmoid()
        chosen = self.choose(scores if self.bias is None else scores + self.bias)
        weights = scores.gather(1, chosen)
        if self.experts.normalized:
            weights = weights / weights.sum(-1, keepdim=True).clamp(min=1e-20)
        return weights * self.experts.scale, chosen

    def choose(self, scores: Float[Tensor, "T E"]) -> Int[Tensor, "T K"]:
        """The experts of the highest scores, among the groups whose two highest sum highest."""
        if self.experts.groups_used < self.experts.groups:
            groups = scores.view(len(scores), self.experts.groups, -1)
            best = groups.topk(2).values.sum(-1).topk(self.experts.groups_used).indices
            left_out = torch.ones_like(groups[..., 0], dtype=torch.bool).scatter(1, best, False)
            scores = groups.masked_fill(left_out[..., None], -torch.inf).flatten(1)
        return scores.topk(self.experts.used).indices


class Mixture(nn.Module):
    """The weighted sum of a token's experts, and the shared expert, if there is one, through which all tokens go."""

    def __init__(self, hidden_size: int, experts: Experts) -> None:
        super().__init__()
        self.experts = experts
        self.router = Router(hidden_size, experts)
        count, width, scale = experts.count, experts.size, hidden_size**-0.5
        self.gate_up = nn.Parameter(torch.randn(count, 2 * width, hidden_size) * scale)
        self.down = nn.Parameter(torch.randn(count, hidden_size, width) * width**-0.5)
        if experts.shared_size:
            self.shared_gate_up = nn.Linear(hidden_size, 2 * experts.shared_size, bias=False)
            self.shared_down = nn.Linear(experts.shared_size, hidden_size, bias=False)

    def forward(self, x: Float[Tensor, "B Q C"]) -> Float[Tensor, "B Q C"]:
        tokens = x.flatten(0, 1)
        weights, chosen = self.router(tokens)
        owner, order = chosen.flatten().sort(stable=True)  # (N,) pairs of a token and an expert, by expert
        ends = torch.searchsorted(owner, torch.arange(self.experts.count, device=x.device), right=True)
        gate_up, down = (partial(grouped_matmul, weights=w, ends=ends) for w in (self.gate_up, self.down))
        out = gated(tokens[order // self.experts.used], gate_up, down)
        # Back by token, so that a token's experts are summed in one order whatever stands beside it in the batch.
        out = out[order.argsort()].view(len(tokens), self.experts.used, -1)
        mixed: Tensor = (out * weights[..., None]).sum(1).to(x.dtype).view_as(x)
        return mixed + gated(x, self.shared_gate_up, self.shared_down) if self.experts.shared_size else mixed
