"""The picture of a filter's report."""

import io
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from dllm.evaluate.score import wilson
from dllm.filters.files import replace_bytes
from dllm.filters.measure import Point, Points
from dllm.samplers.filter import Filter

COLUMNS = 3
SIDE = 4.4
"""Inches of a panel."""


def draw(made: Filter, tasks: Mapping[str, Points], trained_on: Collection[str], path: Path) -> None:
    """Write a PNG: reliability, precision and recall, risk, then accuracy against tokens per forward of each task."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    rows = -(-(3 + len(tasks)) // COLUMNS)
    figure = Figure(figsize=(SIDE * COLUMNS, SIDE * rows), dpi=110, layout="constrained")
    FigureCanvasAgg(figure)
    panels: Any = figure.subplots(rows, COLUMNS, squeeze=False)
    axes = list(panels.flat)
    reliability(axes[0], made.facts["quality"])
    levels(axes[1], made.facts["quality"])
    risk(axes[2], made.facts["calibration"])
    for panel, (task, points) in zip(axes[3:], tasks.items(), strict=False):
        kind = "" if task.startswith("all") else ", trained on" if task in trained_on else ", not trained on"
        accuracy(panel, f"{task}{kind}, n = {len(points['static'].right)}", points, made.threshold)
    for panel in axes[3 + len(tasks) :]:
        panel.set_axis_off()
    for panel in axes[: 3 + len(tasks)]:
        panel.grid(alpha=0.25)
        panel.spines[["top", "right"]].set_visible(False)
        panel.legend(frameon=False, fontsize=8)
    image = io.BytesIO()
    figure.savefig(image, format="png", metadata={"Software": None})
    replace_bytes(path, image.getvalue())


def reliability(axes: Any, quality: Mapping[str, Any]) -> None:
    axes.plot([0, 1], [0, 1], color="gray", lw=1, ls="--")
    for name in ("filter", "confidence"):
        believed, final, _ = zip(*quality[name]["reliability"], strict=True)
        axes.plot(believed, final, "o-", label=f"{name} (error {quality[name]['calibration_error']:.3f})")
    axes.set(title="Reliability", xlabel="believed", ylabel="share that is final")


def levels(axes: Any, quality: Mapping[str, Any]) -> None:
    for name, colour in (("filter", "C0"), ("confidence", "C1")):
        found = quality[name]["levels"]
        x = [level["threshold"] for level in found]
        axes.plot(x, [level["precision"] for level in found], "o-", color=colour, label=f"{name}: precision")
        axes.plot(x, [level["recall"] for level in found], "s--", color=colour, label=f"{name}: recall")
    axes.set(title="Precision and recall at the oracle's steps", xlabel="threshold")


def risk(axes: Any, calibration: Mapping[str, Any]) -> None:
    tested = calibration["tested"]
    x = [t["threshold"] for t in tested]
    axes.plot(x, [t["risk"] for t in tested], "o-", label="wrong tokens")
    axes.plot(x, [t["at_most"] for t in tested], "v--", label=f"at most, with {1 - calibration['delta']:g}")
    axes.axhline(calibration["alpha"], color="C3", lw=1, label=f"allowed: {calibration['alpha']:g}")
    if calibration["threshold"] < 1:
        axes.axvline(calibration["threshold"], color="gray", lw=1, ls=":", label="chosen")
    axes.set(title=f"Risk on {calibration['n']} calibration prompts", xlabel="threshold", ylim=(0, None))


def accuracy(axes: Any, title: str, points: Points, threshold: float) -> None:
    for name, start, colour in (("plain thresholds", ("static", "threshold"), "C1"), ("filter", ("learned",), "C0")):
        curve(axes, name, [p for key, p in points.items() if key.startswith(start)], colour)
    if own := points.get(f"learned:threshold={threshold:g}"):
        axes.plot(own.tokens_per_forward, 100 * own.accuracy, "*", color="C0", ms=15, mec="white", label="calibrated")
    ceiling = points["oracle"].tokens_per_forward
    axes.axvline(ceiling, color="gray", lw=1, ls=":", label=f"oracle: {ceiling:.2f}")
    axes.set(title=title, xlabel="answer tokens per forward", ylabel="right answers in %, with 95 % interval")
    axes.title.set_fontsize(10)


def curve(axes: Any, name: str, points: Sequence[Point], colour: str) -> None:
    ordered = sorted(points, key=lambda p: p.tokens_per_forward)
    x, y = [p.tokens_per_forward for p in ordered], [100 * p.accuracy for p in ordered]
    ends = [wilson(sum(p.right), len(p.right)) for p in ordered]
    axes.plot(x, y, "o-", color=colour, label=name, ms=5, lw=1)
    axes.vlines(x, [100 * low for low, _ in ends], [100 * high for _, high in ends], colour, lw=1, alpha=0.4)
