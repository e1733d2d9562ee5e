"""d2Cache: compute the masks about to be decided, and the columns that are attended to most (arXiv:2509.23094)."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from dllm.cache.base import Cache, CacheState, StoredView, attention
from dllm.cache.settling import NotingState
from dllm.cache.watching import mass, probabilities
from dllm.canvas import Canvas, Span, highest
from dllm.errors import DllmError
from dllm.kernels.jit import suits
from dllm.kernels.mass import mass as column_mass
from dllm.kernels.rotary import Rotation, rotate
from dllm.spec import ModelSpec


@dataclass(frozen=True)
class D2Cache(Cache):
    """Compute the likeliest masks, new tokens, and columns with the most attention (d²Cache, arXiv:2509.23094).

    Everything is computed once, in a row's first step. Then a step predicts the `current_k` masks of the scope with the
    highest confidence times density of decided columns around them; a mask that was not predicted yet counts as sure.
    It also computes tokens of the step before, and of all other columns the fewest that hold the share `rollout_p` of
    attention. The paper takes that from a rollout, a product of all layers' attention maps; here it is the attention
    that predicted columns pay in all layers, summed over steps of which each counts `decay` times the next. Gaps
    between chosen columns are not filled.
    """

    attentive: ClassVar[bool] = True

    current_k: int = 32
    """How many masked columns are predicted. A schedule that reveals more in a step takes more steps; a sampler that
    looks at decided columns too (prophet with answer_start) gets its whole scope."""
    sigma: float = 10.0
    """Standard deviation of the density's Gaussian, in columns."""
    rollout_p: float = 0.1
    """1: everything is computed, always."""
    decay: float = 0.5
    """0: the last step's attention alone counts."""

    def __post_init__(self) -> None:
        if isinstance(self.current_k, bool) or not isinstance(self.current_k, int) or self.current_k < 1:
            raise DllmError(f"current_k={self.current_k!r} is not a number of columns; give 1 or more.")
        if not number(self.sigma) or not 0 < self.sigma < float("inf"):
            raise DllmError(f"sigma={self.sigma!r} is not a width in columns; give more than 0.")
        if not number(self.rollout_p) or not 0 < self.rollout_p <= 1:
            raise DllmError(
                f"rollout_p={self.rollout_p!r} is not a share of attention; give more than 0, up to 1 (all)."
            )
        if not number(self.decay) or not 0 <= self.decay < 1:
            raise DllmError(f"decay={self.decay!r} does not fade; give 0 (the last step alone) or more, less than 1.")

    def start(self, spec: ModelSpec, canvas: Canvas, dtype: torch.dtype) -> "D2State":
        return D2State(self, spec, canvas, dtype)

    def stale(self, state: CacheState, window: Span) -> Bool[Tensor, "R L"]:
        assert isinstance(state, D2State)  # started above
        chosen = state.changed | window.mask(state.canvas.tokens.shape[1])
        others = state.canvas.exists & ~chosen
        return (state.anchor < 0)[:, None] | chosen | self.nucleus(state.mass, others)

    def nucleus(self, mass: Float[Tensor, "R L"], among: Bool[Tensor, "R L"]) -> Bool[Tensor, "R L"]:
        """The fewest of these columns that hold the share `rollout_p` of their mass."""
        if self.rollout_p == 1:
            return among
        most, order = mass.masked_fill(~among, 0.0).sort(dim=1, descending=True, stable=True)
        before = most.cumsum(1) - most
        return torch.zeros_like(among).scatter(1, order, before < self.rollout_p * most.sum(1, keepdim=True)) & among

    def density(self, decided: Bool[Tensor, "R L"]) -> Float[Tensor, "R L"]:
        """How many columns around each are decided, weighted by a Gaussian that is cut at 4 sigma."""
        reach = min(int(4 * self.sigma) + 1, decided.shape[1])
        near = torch.arange(-reach, reach + 1, device=decided.device, dtype=torch.float64)
        # A sum for every column by itself: a matrix product's rounding may depend on the batch, and equal ones abound.
        around = F.pad(decided, (reach, reach)).unfold(1, 2 * reach + 1, 1)
        return (around * torch.exp(-0.5 * (near / self.sigma) ** 2)).sum(-1)


def number(value: object) -> bool:
    """Whether it is one, and not True or False."""
    return isinstance(value, int | float) and not isinstance(value, bool)


class D2View(StoredView):
    """Notes how much the predicted columns attend to each column."""

    state: "D2State"

    def __init__(
        self,
        state: "D2State",
        rows: Int[Tensor, "B Q"],
        window: Span,
        slots: Int[Tensor, " B"],
        counts: list[int],
        lengths: list[int],
    ) -> None:
        super().__init__(state, rows, window, slots, counts, lengths)
        self.window = window
        self.place = torch.arange(len(slots), device=rows.device)[:, None], self.find(window)
        state.mass[slots] *= state.d2.decay

    def attend(
        self,
        layer: int,
        q: Float[Tensor, "B Q H D"],
        k: Float[Tensor, "B Q K D"],
        v: Float[Tensor, "B Q K D"],
        by: Rotation,
    ) -> Float[Tensor, "B Q H D"]:
        paid = self.state.mass
        if suits(q):
            q, _ = self.write(layer, q, k, v, by, q.shape[1])
            out, lse = self.look(layer, q)
            asked = q[self.place], lse[self.place], self.state.keys[layer], self.slots, self.lengths, self.window.valid
            paid[self.slots] += column_mass(*asked, self.state.spec.reach(self.window.columns)).to(paid.dtype)
            return out
        q, k = rotate(q, by), rotate(k, by)
        keys, values = self.store(layer, k, v)
        p = probabilities(q[self.place], keys, self.visibility(self.window.columns))
        paid[self.slots, : self.n_keys] += mass(p, self.window.valid).to(paid.dtype)
        return attention(q, keys, values, self.visible)


class D2State(NotingState):
    """Also knows how sure the masks were when they were last predicted, and how much each column was attended to."""

    view_class = D2View

    def __init__(self, cache: D2Cache, spec: ModelSpec, canvas: Canvas, dtype: torch.dtype) -> None:
        super().__init__(cache, spec, canvas, dtype)
        self.d2 = cache
        self.confidence = torch.ones_like(canvas.tokens, dtype=torch.float64)
        """(R, L), 0 to 1; 1 where nothing was predicted yet."""
        self.mass = torch.zeros_like(self.confidence)
        """(R, L): attention of all heads and layers, faded."""

    def saw(
        self, index: Int[Tensor, " B"], span: Span, confidence: Float[Tensor, "B W"], draws: Callable[[], Tensor]
    ) -> None:
        # Padding repeats a column, and so its confidence.
        self.confidence[index[:, None], span.columns] = confidence.double()

    def needed(self, scope: Span, block: Span) -> Span:
        super().needed(scope, block)
        width = scope.columns.shape[1]
        masked = self.canvas.undecided & scope.mask(self.canvas.tokens.shape[1])
        if width <= self.d2.current_k:
            return Span.where(masked, width)
        score = self.confidence * self.d2.density(self.canvas.exists & ~self.canvas.undecided)
        return Span.where(highest(self.d2.current_k, score, masked), self.d2.current_k)

    def admit(self, slot: int) -> None:
        super().admit(slot)
        self.confidence[slot], self.mass[slot] = 1.0, 0.0

    def retire(self, keep: Int[Tensor, " R"]) -> None:
        super().retire(keep)
        self.confidence, self.mass = self.confidence[keep], self.mass[keep]
