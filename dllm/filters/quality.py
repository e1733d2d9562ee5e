"""How well a filter tells final proposals from others, on steps of the oracle that it was not fitted to."""

from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from dllm.filters.fit import columns_of
from dllm.filters.traces import Traces
from dllm.samplers.filter import Filter

LEVELS = (0.5, 0.6, 0.7, 0.8, 0.9, 0.93, 0.95, 0.97, 0.98, 0.99, 0.995)
"""Thresholds of the precision and recall that are told."""
BINS = 10


def probabilities(made: Filter, traces: Traces) -> tuple[Float[Tensor, " N"], Bool[Tensor, " N"]]:
    """Of every masked column: what the filter believes, and whether the proposal is final."""
    with torch.no_grad():
        believed = made.net(columns_of(traces.features, made.features)).sigmoid()
    return believed[traces.masked], traces.right[traces.masked]


def quality(made: Filter, traces: Traces) -> dict[str, Any]:
    """Loss in nats, reliability, precision and recall; beside these the confidence's own, as a threshold has them."""
    believed, right = probabilities(made, traces)
    sure = traces.features[..., 0][traces.masked].clamp(0, 1)
    return {
        "columns": len(right),
        "final": float(right.float().mean()),
        "filter": judged(believed, right),
        "confidence": judged(sure, right),
    }


def judged(p: Float[Tensor, " N"], right: Bool[Tensor, " N"]) -> dict[str, Any]:
    """Figures of probabilities: the log-loss, the mean distance of reliability, its bins, and what passes levels."""
    bins = reliability(p, right)
    off = sum(n * abs(believed - true) for believed, true, n in bins) / len(right)
    clamped = p.double().clamp(1e-6, 1 - 1e-6)
    loss = -torch.where(right, clamped.log(), (1 - clamped).log()).mean()
    return {
        "loss": round(float(loss), 6),
        "calibration_error": round(off, 6),
        "reliability": bins,
        "levels": [level(p, right, at) for at in LEVELS],
    }


def reliability(p: Float[Tensor, " N"], right: Bool[Tensor, " N"]) -> list[tuple[float, float, int]]:
    """The mean belief, the share that is final and the number of columns, of tenths of the columns by belief."""
    parts = p.argsort(stable=True).tensor_split(min(BINS, len(p)))
    return [(round(float(p[i].mean()), 6), round(float(right[i].float().mean()), 6), len(i)) for i in parts]


def level(p: Float[Tensor, " N"], right: Bool[Tensor, " N"], at: float) -> dict[str, float]:
    """Precision (1 where nothing passes) and recall of what is believed at least so much."""
    passed, found = int((p >= at).sum()), int((right & (p >= at)).sum())
    return {
        "threshold": at,
        "precision": round(found / passed, 6) if passed else 1.0,
        "recall": round(found / max(1, int(right.sum())), 6),
    }
