"""The grid: every sampler with every cache on the same problems, and what each pair gives and costs."""

import csv
import re
import textwrap
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from itertools import product
from pathlib import Path
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn
from rich.progress import Progress as Bar
from rich.table import Table

import dllm.cache
import dllm.samplers
from dllm.api import check_pair, stream
from dllm.errors import DllmError, unknown
from dllm.evaluate.score import wilson
from dllm.spec import Model
from dllm.zoo.tasks import TASKS, Problem, consistent, correct, problems

Progress = Callable[[int, int], None]
"""Told after every step: answers finished, and forwards so far."""


@dataclass(frozen=True)
class Cell:
    """One sampler with one cache. Counts per answer are means."""

    sampler: str
    cache: str
    n: int
    right: int
    accuracy: float
    low: float
    high: float
    """The 95 % Wilson interval of the accuracy."""
    consistent: int
    """Answers of which every line is right, not the result alone."""
    nfe: float
    answer_tokens: float
    tokens_per_forward: float
    rows: float
    """Columns computed in every layer, all forwards of an answer together."""
    reused: float
    """The share of columns that the cache spared, 0 to 1."""
    refreshes: float
    """Forwards that computed all columns of their row."""
    kv_bytes: int
    """Of the keys and values of all rows in flight."""
    seconds: float
    """For all answers together, the warm-up not counted."""
    tokens_per_second: float


def questions(tasks: Sequence[str], n: int, seed: int) -> list[Problem]:
    """The first n test problems of each task. Raises DllmError for an unknown task, and for n below 1."""
    if n < 1:
        raise DllmError(f"n={n} problems give no share; give at least 1.")
    for task in tasks:
        if task not in TASKS:
            raise unknown("task", task, TASKS)
    return [problem for task in tasks for problem in problems(task, n, seed, "test")]


def pairs(
    samplers: Sequence[str], caches: Sequence[str], left_out: Callable[[str], None] = lambda _: None
) -> list[tuple[str, str]]:
    """The grid, all names checked before the first pair runs.

    left_out: is told why of every pair that cannot be. Raises DllmError if no pair can.
    """
    rules = {name: dllm.samplers.make(name) for name in samplers}
    stores = {name: dllm.cache.make(name) for name in caches}
    found: list[tuple[str, str]] = []
    reason: DllmError | None = None
    for sampler, cache in product(samplers, caches):
        try:
            check_pair(rules[sampler], stores[cache])
            found.append((sampler, cache))
        except DllmError as error:
            reason = error
            left_out(f"{sampler}, {cache}: left out; {error}")
    if reason and not found:
        raise reason
    return found


def run(
    model: Model, asked: Sequence[Problem], chosen: Sequence[tuple[str, str]], console: Console, **settings: Any
) -> list[Cell]:
    """A cell for each pair of sampler and cache, with a progress bar on a terminal."""
    if model.tokenizer is None:
        raise DllmError("this model has no tokenizer, so it cannot be asked the questions of a task.")
    columns = (TextColumn("{task.description}"), BarColumn(24), MofNCompleteColumn(), TimeElapsedColumn())
    cells: list[Cell] = []
    with Bar(*columns, console=console, transient=True, refresh_per_second=4, disable=not console.is_terminal) as bar:
        job = bar.add_task("warm-up", total=len(chosen) * len(asked))
        for i, (sampler, cache) in enumerate(chosen):

            def told(
                answers: int, forwards: int, done: int = i * len(asked), name: str = f"{sampler}, {cache}"
            ) -> None:
                bar.update(job, completed=done + answers, description=f"{name}: {forwards} forwards")

            cells.append(measure(model, asked, sampler, cache, told, **settings))
    return cells


def measure(
    model: Model,
    asked: Sequence[Problem],
    sampler: str,
    cache: str,
    told: Progress = lambda _a, _f: None,
    **settings: Any,
) -> Cell:
    """Answer all problems with one sampler and cache. `settings` as of `dllm.generate`."""
    prompts = [problem.question for problem in asked]
    # A few steps load what is loaded lazily; on a GPU kernels also depend on the shape of the batch.
    for _ in zip(range(8), stream(model, prompts, sampler, cache, **settings), strict=False):
        pass
    steps = stream(model, prompts, sampler, cache, **settings)
    for _ in steps:
        told(len(steps.schedule.finished), steps.forwards)
    told(len(asked), steps.forwards)
    done = steps.result()
    texts = done.texts or [""] * len(asked)
    right = sum(map(correct, asked, texts))
    low, high = wilson(right, len(asked))
    return Cell(
        sampler=sampler,
        cache=cache,
        n=len(asked),
        right=right,
        accuracy=right / len(asked),
        low=low,
        high=high,
        consistent=sum(map(consistent, asked, texts)),
        nfe=float(done.nfe.float().mean()),
        answer_tokens=float(done.answer_tokens.float().mean()),
        tokens_per_forward=done.tokens_per_forward,
        rows=float(done.rows.float().mean()),
        reused=done.reused,
        refreshes=float(done.refreshes.float().mean()),
        kv_bytes=done.kv_bytes,
        seconds=done.seconds,
        tokens_per_second=done.tokens_per_second,
    )


def table(cells: Sequence[Cell]) -> Table:
    """The cells as a rich table. The last column compares with the first row, whose own figure stands beside it."""
    shown = Table(box=SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False, show_edge=False)
    for name in ("sampler", "cache"):
        shown.add_column(name, overflow="fold")
    for name in (
        "right\n% [95 %]",
        "forwards\n/answer",
        "tokens\n/fwd",
        "rows\n/answer",
        "kept\n%",
        "tokens\n/s",
    ):
        shown.add_column(name, justify="right", no_wrap=True)
    shown.add_column("times\nrow 1", justify="right", no_wrap=True)
    first = cells[0].tokens_per_second
    for c in cells:
        share = f"{100 * c.accuracy:.1f} [{100 * c.low:.0f}-{100 * c.high:.0f}]"
        speed = f"{c.tokens_per_second / first:.1f}" if first else "-"
        figures = (f"{c.nfe:.1f}", f"{c.tokens_per_forward:.2f}", f"{c.rows:,.0f}", kept(c))
        shown.add_row(*map(spaced, (c.sampler, c.cache)), share, *figures, f"{c.tokens_per_second:.0f}", speed)
    return shown


def kept(c: Cell) -> str:
    """The share of columns that a cache spared; "none" tells of a cache that was filled and never read."""
    return "-" if not c.kv_bytes else f"{100 * c.reused:.0f}" if c.reused > 0 else "none"


def spaced(method: str) -> str:
    """A method and its options, with spaces at which a narrow column can break."""
    return re.sub("([:,])", r"\1 ", method)


def note(conditions: dict[str, Any]) -> str:
    """The conditions as one line under a table or a picture."""
    c = conditions
    return (
        f"{c['model']} on {c['device']} ({c['dtype']}, {c['threads']} threads, torch {c['versions']['torch']}); "
        f"n = {c['n']} test problems of {', '.join(c['tasks'])}, seed {c['seed']}; gen_length {c['gen_length']}, "
        f"block_length {c['block_length'] or 'by sampler'}, batch_size {c['batch_size']}, "
        f"temperature {c['temperature']:g}" + (f", eotp {c['eotp']:g}" if c.get("eotp") else "")
    )


def to_csv(cells: Sequence[Cell], conditions: dict[str, Any], path: Path) -> None:
    """One line per cell, its conditions in every line."""
    flat = {name: value for name, value in conditions.items() if name != "versions"}
    flat |= {"tasks": " ".join(conditions["tasks"]), **conditions["versions"]}
    rows = [asdict(cell) | flat for cell in cells]
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def to_png(cells: Sequence[Cell], conditions: dict[str, Any], path: Path) -> None:
    """Accuracy with its interval against tokens per forward: a colour per sampler, a marker and a label per cache.

    With one cache the labels are the samplers' and there is no legend.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    samplers, caches = (list(dict.fromkeys(getattr(c, name) for c in cells)) for name in ("sampler", "cache"))
    figure = Figure(figsize=(8, 5), dpi=150, layout="constrained")
    canvas: Any = FigureCanvasAgg(figure)  # matplotlib types it in part
    axes = figure.add_subplot()
    for c in cells:
        colour, marker = f"C{samplers.index(c.sampler) % 10}", "osD^vP*X"[caches.index(c.cache) % 8]
        name = spaced(c.sampler) if c == next(d for d in cells if d.sampler == c.sampler) else None
        x, y, low, high = c.tokens_per_forward, 100 * c.accuracy, 100 * c.low, 100 * c.high
        axes.vlines(x, low, high, colour, lw=1.2, alpha=0.6)
        axes.plot(x, y, marker, color=colour, ms=8, mec="white", label=name)
    axes.set_xlim(0, 1.15 * max(c.tokens_per_forward for c in cells) or 1)
    axes.set_xlabel("answer tokens per forward")
    axes.set_ylabel("right answers in %, with 95 % interval")
    axes.set_title("Accuracy against parallelism", loc="left")
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    if len(caches) > 1:
        figure.legend(loc="outside upper right", ncols=min(4, len(samplers)), frameon=False, fontsize=8)
    figure.supxlabel("\n".join(textwrap.wrap(note(conditions), 125)), x=0.01, ha="left", fontsize=7, color="dimgray")
    canvas.draw()
    labels = [c.cache if len(caches) > 1 else spaced(c.sampler) for c in cells]
    colours = [f"C{samplers.index(c.sampler) % 10}" for c in cells]
    place_labels(canvas.get_renderer(), axes, cells, labels, colours)
    figure.savefig(path, format="png")


def place_labels(
    renderer: Any, axes: Any, cells: Sequence[Cell], labels: Sequence[str], colours: Sequence[str]
) -> None:
    """Write each point's label beside it, as near as it can stand without covering a bar, a point or another label."""
    from matplotlib.text import Text
    from matplotlib.transforms import Bbox

    at = [(c.tokens_per_forward, 100 * c.accuracy) for c in cells]
    bars = [axes.transData.transform([(c.tokens_per_forward, 100 * y) for y in (c.low, c.high)]) for c in cells]
    taken = [Bbox.from_extents(x0 - 2, y0, x1 + 2, y1) for (x0, y0), (x1, y1) in bars]
    taken += [Bbox.from_extents(x - 9, y - 9, x + 9, y + 9) for x, y in axes.transData.transform(at)]
    spots = sorted(product((8, -8, 30, -30, 60, -60), range(-120, 121, 4)), key=lambda s: abs(s[0]) + 2 * abs(s[1]))
    for text, point, colour in zip(labels, at, colours, strict=True):
        for dx, dy in spots:
            label = axes.annotate(
                text,
                point,
                (dx, dy),
                textcoords="offset points",
                ha="left" if dx > 0 else "right",
                va="center",
                fontsize=8,
                color=colour,
                arrowprops={"arrowstyle": "-", "color": colour, "lw": 0.5} if abs(dx) + abs(dy) > 20 else None,
            )
            label.update_positions(renderer)
            box = Text.get_window_extent(label, renderer)  # without the line to the point
            inside = axes.bbox.x0 < box.x0 and box.x1 < axes.bbox.x1 and axes.bbox.y0 < box.y0 and box.y1 < axes.bbox.y1
            if inside and not any(box.overlaps(other) for other in taken):
                taken.append(box)
                break
            label.remove()
