"""Pictures of accuracy against speed: a row for each task, tokens per forward on the left, per second on the right."""

import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

from dllm.evaluate.front import aup, front

SPEEDS = ("tokens_per_forward", "tokens_per_second")
WIDE, HIGH = 13.0, 4.4
"""Inches of a row."""


@dataclass(frozen=True)
class Dot:
    """What one method reached on one task."""

    label: str
    """Written beside it."""
    colour: str
    """Dots of one name share a colour, and stand in the legend with it if that tells more than the label."""
    marker: str
    """Dots of one name share a marker."""
    accuracy: float
    low: float
    high: float
    """A share and its 95 % interval, from 0 to 1."""
    tokens_per_forward: float
    tokens_per_second: float


def draw(tasks: Mapping[str, Sequence[Dot]], note: str, path: Path) -> None:
    """Write a PNG. The dashed line is the front: what no other method beats in both. note: stands under the picture."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(WIDE, 0.6 + HIGH * len(tasks)), dpi=110, layout="constrained")
    canvas: Any = FigureCanvasAgg(figure)  # matplotlib types it in part
    rows: Any = figure.subplots(len(tasks), 2, squeeze=False, sharey="row")
    dots = [dot for row in tasks.values() for dot in row]
    colours, markers = (list(dict.fromkeys(getattr(dot, name) for dot in dots)) for name in ("colour", "marker"))
    paint = {name: f"C{i % 10}" for i, name in enumerate(colours)}
    shapes = {name: "osD^vP*X"[i % 8] for i, name in enumerate(markers)}
    for (task, row), (left, right) in zip(tasks.items(), rows, strict=True):
        points = [(dot.tokens_per_forward, 100 * dot.accuracy) for dot in row]
        left.set_title(f"{task}: area under the front (AUP) {aup(front(points)):.0f}", loc="left", fontsize=11)
        left.set_ylabel("right answers in %, with 95 % interval")
        for axes, speed in zip((left, right), SPEEDS, strict=True):
            plot(axes, row, speed, paint, shapes)
    legend = [name for name in colours if any(dot.colour == name != dot.label for dot in dots)]
    if legend:
        from matplotlib.lines import Line2D

        handles = [
            Line2D([], [], marker="o", ls="", color=paint[name], mec="white", ms=8, label=name) for name in legend
        ]
        figure.legend(handles=handles, loc="outside upper right", ncols=min(6, len(legend)), frameon=False, fontsize=8)
    under = [part for line in note.splitlines() for part in textwrap.wrap(line, 190)]
    figure.supxlabel("\n".join(under), x=0.01, ha="left", fontsize=7, color="dimgray")
    canvas.draw()
    for row, both in zip(tasks.values(), rows, strict=True):
        for axes, speed in zip(both, SPEEDS, strict=True):
            place_labels(canvas.get_renderer(), axes, row, speed, paint)
    figure.savefig(path, format="png")


def plot(axes: Any, dots: Sequence[Dot], speed: str, paint: Mapping[str, str], shapes: Mapping[str, str]) -> None:
    """The dots with their intervals, and their front."""
    points = [(getattr(dot, speed), 100 * dot.accuracy) for dot in dots]
    axes.plot(*zip(*front(points), strict=True), ls="--", lw=1, color="gray", zorder=1)
    for dot, (x, y) in zip(dots, points, strict=True):
        axes.vlines(x, 100 * dot.low, 100 * dot.high, paint[dot.colour], lw=1.2, alpha=0.6)
        axes.plot(x, y, shapes[dot.marker], color=paint[dot.colour], ms=8, mec="white")
    axes.set_xlim(0, 1.15 * max(x for x, _ in points) or 1)
    axes.set_xlabel(f"answer {speed.replace('_', ' ')}")
    axes.margins(y=0.12)
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)


def place_labels(renderer: Any, axes: Any, dots: Sequence[Dot], speed: str, paint: Mapping[str, str]) -> None:
    """Write each dot's label beside it, as near as it can stand without covering a bar, a dot or another label."""
    from matplotlib.text import Text
    from matplotlib.transforms import Bbox

    at = [(getattr(dot, speed), 100 * dot.accuracy) for dot in dots]
    ends = [[(x, 100 * dot.low), (x, 100 * dot.high)] for (x, _), dot in zip(at, dots, strict=True)]
    bars = [axes.transData.transform(end) for end in ends]
    taken = [Bbox.from_extents(x0 - 2, y0, x1 + 2, y1) for (x0, y0), (x1, y1) in bars]
    taken += [Bbox.from_extents(x - 9, y - 9, x + 9, y + 9) for x, y in axes.transData.transform(at)]
    # A line to a label at the side would cross the labels between.
    spots = [
        (dx, dy) for dx, dy in product((8, -8, 30, -30, 60, -60), range(-120, 121, 4)) if abs(dx) == 8 or abs(dy) > 8
    ]
    spots.sort(key=lambda spot: abs(spot[0]) + 2 * abs(spot[1]))
    for dot, point in zip(dots, at, strict=True):
        for dx, dy in spots:
            label = annotate(axes, dot.label, point, dx, dy, paint[dot.colour])
            label.update_positions(renderer)
            box = Text.get_window_extent(label, renderer)  # without the line to the dot
            inside = axes.bbox.x0 < box.x0 and box.x1 < axes.bbox.x1 and axes.bbox.y0 < box.y0 and box.y1 < axes.bbox.y1
            if inside and not any(box.overlaps(other) for other in taken):
                taken.append(box)
                break
            label.remove()
        else:  # A label that covers another tells more than none; the axes need not make room for it.
            annotate(axes, dot.label, point, *spots[0], paint[dot.colour]).set_in_layout(False)


def annotate(axes: Any, text: str, point: tuple[float, float], dx: int, dy: int, colour: str) -> Any:
    """A label so many points beside a dot, with a line to it if it is far."""
    return axes.annotate(
        text,
        point,
        (dx, dy),
        textcoords="offset points",
        ha="left" if dx > 0 else "right",
        va="center",
        bbox={"pad": 0.5, "fc": "white", "ec": "none", "alpha": 0.7},  # the front may pass behind it
        fontsize=8,
        color=colour,
        arrowprops={"arrowstyle": "-", "color": colour, "lw": 0.5} if abs(dx) + abs(dy) > 20 else None,
    )
