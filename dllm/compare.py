"""The grid: every sampler with every cache on the same problems, and what each pair gives and costs."""

import csv
import re
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
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
from dllm.api import check_method, stream
from dllm.errors import DllmError, unknown
from dllm.evaluate.answers import WARM_UP
from dllm.evaluate.front import aup, front
from dllm.evaluate.pictures import SPEEDS, Dot, draw
from dllm.evaluate.score import wilson
from dllm.evaluate.tasks import parallelbench
from dllm.settings import Settings
from dllm.spec import Model
from dllm.zoo.tasks import TASKS, Problem, consistent, correct, problems

ALL = "all"
"""The name of all tasks together."""
Progress = Callable[[int, int], None]
"""Told after every step: answers finished, and forwards so far."""


@dataclass(frozen=True)
class Cell:
    """One sampler with one cache on one task. Counts per answer are means."""

    task: str
    """Its name, or ALL."""
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
    """The first n test problems of each task, the zoo's or ParallelBench's.

    Raises DllmError for an unknown task, and for n below 1.
    """
    if n < 1:
        raise DllmError(f"n={n} problems give no share; give at least 1.")
    for task in (task.partition(":")[0] for task in tasks):
        if task not in (known := {**TASKS, **parallelbench.PARALLELBENCH}):
            raise unknown("task", task, known)
    return [
        problem
        for task in tasks
        for problem in (problems(task, n, seed, "test") if task in TASKS else parallelbench.problems(task, n, seed))
    ]


def pairs(samplers: Sequence[str], caches: Sequence[str]) -> list[tuple[str, str]]:
    """The grid, all names checked before the first pair runs."""
    for sampler in samplers:
        dllm.samplers.make(sampler)
    for cache in caches:
        dllm.cache.make(cache)
    return list(product(samplers, caches))


def legal(model: Model, chosen: Sequence[tuple[str, str]], **settings: Any) -> tuple[list[tuple[str, str]], list[str]]:
    """The pairs that can run, and why each of the others cannot. Raises DllmError if none can."""
    kept, reasons = [], []
    for sampler, cache in chosen:
        try:
            check_method(model, dllm.samplers.make(sampler), dllm.cache.make(cache), Settings(**settings))
            kept.append((sampler, cache))
        except DllmError as error:
            reasons.append(f"{sampler} with {cache} is left out: {error}")
            if len(reasons) == len(chosen):
                raise
    return kept, reasons


def run(
    model: Model, asked: Sequence[Problem], chosen: Sequence[tuple[str, str]], console: Console, **settings: Any
) -> list[Cell]:
    """A cell for each task and pair of sampler and cache, then those of all tasks; a bar on a terminal."""
    if model.tokenizer is None:
        raise DllmError("this model has no tokenizer, so it cannot be asked the questions of a task.")
    columns = (TextColumn("{task.description}"), BarColumn(24), MofNCompleteColumn(), TimeElapsedColumn())
    cells: list[Cell] = []
    tasks = {task: [p for p in asked if p.task == task] for task in dict.fromkeys(p.task for p in asked)}
    with Bar(*columns, console=console, transient=True, refresh_per_second=4, disable=not console.is_terminal) as bar:
        job = bar.add_task("warm-up", total=len(chosen) * len(asked))
        for task, (sampler, cache) in product(tasks, chosen):

            def told(
                answers: int,
                forwards: int,
                done: int = sum(c.n for c in cells),
                name: str = f"{task}, {sampler}, {cache}",
            ) -> None:
                bar.update(job, completed=done + answers, description=f"{name}: {forwards} forwards")

            cells.append(measure(model, tasks[task], sampler, cache, told, **settings))
    if len(tasks) == 1:
        return cells
    return cells + [pooled([c for c in cells if (c.sampler, c.cache) == pair]) for pair in chosen]


def pooled(cells: Sequence[Cell]) -> Cell:
    """One sampler with one cache, all tasks together."""
    n, right = sum(c.n for c in cells), sum(c.right for c in cells)
    low, high = wilson(right, n)

    def mean(name: str) -> float:
        return float(sum(getattr(c, name) * c.n for c in cells)) / n

    seconds, columns = sum(c.seconds for c in cells), sum(c.rows * c.n / (1 - c.reused) for c in cells)
    return replace(
        cells[0],
        task=ALL,
        n=n,
        right=right,
        accuracy=right / n,
        low=low,
        high=high,
        consistent=sum(c.consistent for c in cells),
        nfe=mean("nfe"),
        answer_tokens=mean("answer_tokens"),
        tokens_per_forward=mean("answer_tokens") / mean("nfe"),
        rows=mean("rows"),
        reused=1 - mean("rows") * n / columns,
        refreshes=mean("refreshes"),
        kv_bytes=max(c.kv_bytes for c in cells),
        seconds=seconds,
        tokens_per_second=mean("answer_tokens") * n / seconds,
    )


def by_task(cells: Sequence[Cell]) -> dict[str, list[Cell]]:
    """The cells of each task."""
    return {task: [c for c in cells if c.task == task] for task in dict.fromkeys(c.task for c in cells)}


def areas(cells: Sequence[Cell]) -> dict[str, float]:
    """The AUP of the front of each task."""
    points = {task: [(c.tokens_per_forward, 100 * c.accuracy) for c in own] for task, own in by_task(cells).items()}
    return {task: round(aup(front(own)), 2) for task, own in points.items()}


def measure(
    model: Model,
    asked: Sequence[Problem],
    sampler: str,
    cache: str,
    told: Progress = lambda _a, _f: None,
    **settings: Any,
) -> Cell:
    """Answer all problems, which are of one task, with one sampler and cache. `settings` as of `dllm.generate`."""
    prompts = [problem.question for problem in asked]
    # A few steps load what is loaded lazily; on a GPU kernels also depend on the shape of the batch.
    for _ in zip(range(WARM_UP), stream(model, prompts, sampler, cache, **settings), strict=False):
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
        task=asked[0].task,
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
    """The cells as a rich table, task by task.

    The last column compares with the first row of the task, whose own figure stands beside it.
    """
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
    tasks = by_task(cells)
    for task, own in tasks.items():
        if len(tasks) > 1:
            shown.add_section()
            shown.add_row(f"[bold]{spaced(task)}[/bold]")
        for c in own:
            shown.add_row(*row(c, own[0].tokens_per_second))
    return shown


def row(c: Cell, first: float) -> list[str]:
    """The figures of a cell as they are shown. first: tokens per second of the row that it is compared with."""
    share = f"{100 * c.accuracy:.1f} [{100 * c.low:.0f}-{100 * c.high:.0f}]"
    speed = f"{c.tokens_per_second / first:.1f}" if first else "-"
    figures = [f"{c.nfe:.1f}", f"{c.tokens_per_forward:.2f}", f"{c.rows:,.0f}", kept(c)]
    return [*map(spaced, (c.sampler, c.cache)), share, *figures, f"{c.tokens_per_second:.0f}", speed]


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
    """Accuracy with its interval against both speeds, for each task: a colour per sampler, a marker per cache.

    With one cache the labels are the samplers' and there is no legend.
    """
    one = len({c.cache for c in cells}) == 1
    dots = [
        Dot(
            label=spaced(c.sampler) if one else c.cache,
            colour=spaced(c.sampler),
            marker=c.cache,
            **{name: getattr(c, name) for name in ("accuracy", "low", "high", *SPEEDS)},
        )
        for c in cells
    ]
    tasks = {task: [dot for dot, c in zip(dots, cells, strict=True) if c.task == task] for task in by_task(cells)}
    draw(tasks, note(conditions), path)
