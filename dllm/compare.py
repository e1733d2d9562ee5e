"""The grid: every sampler with every cache, and every drafter, on the same problems: what each gives and costs."""

import csv
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
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
import dllm.speculate
from dllm.api import check_method, fitted_to, stream
from dllm.causal import CAUSAL_NAMES, stream_causal
from dllm.engine import Run
from dllm.errors import DllmError, unknown
from dllm.evaluate.answers import WARM_UP
from dllm.evaluate.front import aup, front
from dllm.evaluate.pictures import SPEEDS, Dot, draw
from dllm.evaluate.score import wilson
from dllm.evaluate.tasks import parallelbench
from dllm.metrics import DERIVED, EXACT, Totals
from dllm.settings import Settings
from dllm.spec import Model
from dllm.speculate.run import CausalRun
from dllm.zoo.tasks import TASKS, Problem, consistent, correct, problems

ALL = "all"
"""The name of all tasks together."""
UNSEEN = 1_000_003
"""The seed of ParallelBench's warm-up, which nobody gives for the problems themselves."""
AR = "ar"
"""The name of plain autoregressive decoding; a drafter's name stands behind it, as ar+ngram."""
Progress = Callable[[int, int], None]
"""Told after every step: answers finished, and forwards so far."""
Pair = tuple[str, str]
"""A sampler and a cache; of a causal model `ar` or `ar+DRAFTER`, and no cache but its own."""
CACHES = {"full": "none,prefix,dual", "block": "none,exact"}
"""What is compared where no caches are named, by the model's pattern of attention."""
MEANS = (
    *("nfe", "prefills", "generated_tokens", "answer_tokens", "committed", "rows", "refreshes", "drafted", "flops"),
    *("draft_forwards", "draft_rows", "draft_flops"),
)
"""Counts that are told per answer."""
WHOLE = ("kv_bytes", "peak_bytes", "seconds", "decode_seconds", "draft_seconds")


@dataclass(frozen=True)
class Cell:
    """One method of one model on one task."""

    task: str
    """Its name, or ALL."""
    model: str
    method: str
    """A sampler, or `ar` with a drafter or without."""
    cache: str
    n: int
    right: int
    consistent: int
    """Answers of which every line is right, not the result alone."""
    lossless: str
    """As of `dllm.Generation`."""
    totals: Totals
    """Of all answers, the warm-up not counted."""
    fitted: str = ""
    """Where what the method was fitted to was read, with its digest: of a filter its file."""

    @property
    def accuracy(self) -> float:
        return self.right / self.n

    @property
    def interval(self) -> tuple[float, float]:
        """The 95 % Wilson interval of the accuracy."""
        return wilson(self.right, self.n)

    def record(self) -> dict[str, Any]:
        """Every figure: counts as means over the answers, and what docs/metrics.md defines."""
        names = ("task", "model", "method", "cache", "n", "right", "accuracy", "consistent", "lossless", "fitted")
        told: dict[str, Any] = {name: getattr(self, name) for name in names}
        told["low"], told["high"] = self.interval
        told |= {name: getattr(self.totals, name) / self.n for name in MEANS}
        return told | {name: getattr(self.totals, name) for name in (*DERIVED, *WHOLE)}


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


def pairs(samplers: Sequence[str], caches: Sequence[str]) -> list[Pair]:
    """The grid of models that fill masks, all names checked before the first pair runs."""
    for sampler in samplers:
        dllm.samplers.make(sampler)
    for cache in caches:
        dllm.cache.make(cache)
    return list(product(samplers, caches))


def drafted(drafters: Sequence[str]) -> list[Pair]:
    """The rows of causal models: without drafts, and with each drafter. All names are checked."""
    for drafter in drafters:
        dllm.speculate.make(drafter)
    return [(AR, "-"), *((f"{AR}+{drafter}", "-") for drafter in drafters)]


def legal(model: Model, chosen: Sequence[Pair], verify: str = "match", **settings: Any) -> tuple[list[Pair], list[str]]:
    """The pairs that can run, and why each of the others cannot. Raises DllmError if none can."""
    kept, reasons = [], []
    for method, cache in chosen:
        try:
            if model.spec.attention == "causal":
                begin(model, [[0]], method, cache, verify, **settings | {"gen_length": 1})
            else:
                sampler = fitted_to(model, dllm.samplers.make(method))
                check_method(model, sampler, dllm.cache.make(cache), Settings(**settings))
            kept.append((method, cache))
        except DllmError as error:
            reasons.append(f"{method} with {cache} is left out: {error}")
            if len(reasons) == len(chosen):
                raise
    return kept, reasons


def begin(
    model: Model, prompts: Any, method: str, cache: str, verify: str = "match", **settings: Any
) -> Run | CausalRun:
    """A run by one of the pairs. Settings that are about masks do not reach causal models, nor `verify` the others."""
    if model.spec.attention != "causal":
        return stream(model, prompts, method, cache, **settings)
    own = {name: settings[name] for name in CAUSAL_NAMES if name in settings}
    return stream_causal(model, prompts, method.partition("+")[2] or None, verify=verify, **own)


def run(
    model: Model, asked: Sequence[Problem], chosen: Sequence[Pair], console: Console, name: str = "", **settings: Any
) -> list[Cell]:
    """A cell for each task and pair, then those of all tasks; a bar on a terminal. name: the model's."""
    if model.tokenizer is None:
        raise DllmError("this model has no tokenizer, so it cannot be asked the questions of a task.")
    columns = (TextColumn("{task.description}"), BarColumn(24), MofNCompleteColumn(), TimeElapsedColumn())
    cells: list[Cell] = []
    tasks = {task: [p for p in asked if p.task == task] for task in dict.fromkeys(p.task for p in asked)}
    with Bar(*columns, console=console, transient=True, refresh_per_second=4, disable=not console.is_terminal) as bar:
        job = bar.add_task("warm-up", total=len(chosen) * len(asked))
        for task, (method, cache) in product(tasks, chosen):

            def told(
                answers: int,
                forwards: int,
                done: int = sum(c.n for c in cells),
                name: str = f"{task}, {method}, {cache}",
            ) -> None:
                bar.update(job, completed=done + answers, description=f"{name}: {forwards} forwards")

            cells.append(replace(measure(model, tasks[task], method, cache, told, **settings), model=name))
    if len(tasks) == 1:
        return cells
    return cells + [pooled([c for c in cells if (c.method, c.cache) == pair]) for pair in chosen]


def pooled(cells: Sequence[Cell]) -> Cell:
    """One method, all tasks together."""
    sums = {name: sum(getattr(c, name) for c in cells) for name in ("n", "right", "consistent")}
    return replace(cells[0], task=ALL, totals=sum((c.totals for c in cells), Totals()), **sums)


def unequal(cells: Sequence[Cell]) -> list[str]:
    """Rows that should have the accuracy of plain autoregressive decoding, drafts being lossless, and do not."""
    plain = {(c.task, c.model): c.right for c in cells if c.method == AR}
    exact = [c for c in cells if c.method.startswith(f"{AR}+") and c.lossless == EXACT]
    return [
        f"{c.method} of {c.model} has {c.right} right answers on {c.task}, and {AR} {plain[c.task, c.model]}: they "
        "should be the same but for rounding; run again with --dtype float64"
        for c in exact
        if c.right != plain.get((c.task, c.model), c.right)
    ]


def by_task(cells: Sequence[Cell]) -> dict[str, list[Cell]]:
    """The cells of each task."""
    return {task: [c for c in cells if c.task == task] for task in dict.fromkeys(c.task for c in cells)}


def areas(cells: Sequence[Cell]) -> dict[str, float]:
    """The AUP of the front of each task."""
    points = {
        task: [(c.totals.tokens_per_forward, 100 * c.accuracy) for c in own] for task, own in by_task(cells).items()
    }
    return {task: round(aup(front(own)), 2) for task, own in points.items()}


def unseen(asked: Sequence[Problem]) -> list[Problem]:
    """As many problems of the same task that are not among these: of the training split, or by another seed."""
    task, n = asked[0].task, len(asked)
    return problems(task, n, 0, "train") if task in TASKS else parallelbench.problems(task, n, UNSEEN)


def measure(
    model: Model,
    asked: Sequence[Problem],
    method: str,
    cache: str,
    told: Progress = lambda _a, _f: None,
    **settings: Any,
) -> Cell:
    """Answer all problems, which are of one task, by one of the pairs. `settings` as of `begin`."""
    prompts, others = ([problem.question for problem in some] for some in (asked, unseen(asked)))
    # A few steps load what is loaded lazily; on a GPU kernels also depend on the shape of the batch.
    for _ in zip(range(WARM_UP), begin(model, others, method, cache, **settings), strict=False):
        pass
    steps = begin(model, prompts, method, cache, **settings)
    for _ in steps:
        told(len(steps.finished), steps.accounts.forwards)
    told(len(asked), steps.accounts.forwards)
    done = steps.result()
    texts = done.texts or [""] * len(asked)
    right, whole = sum(map(correct, asked, texts)), sum(map(consistent, asked, texts))
    used = steps.sampler.needs().fitted if isinstance(steps, Run) else None
    fitted = f"{used.method} {used.digest}" if used else ""
    return Cell(asked[0].task, "", method, cache, len(asked), right, whole, done.lossless, done.totals, fitted)


def table(cells: Sequence[Cell]) -> Table:
    """The cells as a rich table, task by task.

    Columns for several models are left out where there is one, those by which the two kinds of models differ where no
    model is autoregressive. "times row 1" compares with the first row of the task, whose own figure stands
    beside it.
    """
    shown = Table(box=SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False, show_edge=False)
    models, causal = len({c.model for c in cells}) > 1, any(c.method.partition("+")[0] == AR for c in cells)
    for name in (*["model"] * models, "method", "cache"):
        shown.add_column(name, overflow="fold")
    fixed = ("right\n% [95 %]", "forwards\n/answer", "tokens\n/fwd", "pos.\n/token", "kept\n%")
    more = ("draft\n%", "loss-\nless", "first\nms") if causal else ()
    for name in (*fixed, *more, "tokens\n/s", "times\nrow 1"):
        shown.add_column(name, justify="right", no_wrap=True)
    tasks = by_task(cells)
    for task, own in tasks.items():
        if len(tasks) > 1:
            shown.add_section()
            shown.add_row(f"[bold]{spaced(task)}[/bold]")
        for c in own:
            names = [*[c.model] * models, spaced(c.method), spaced(c.cache)]
            shown.add_row(*names, *row(c, own[0].totals.tokens_per_second, causal))
    return shown


def row(c: Cell, first: float, causal: bool) -> list[str]:
    """The figures of a cell as they are shown. first: tokens per second of the row that it is compared with."""
    t, (low, high) = c.totals, c.interval
    figures = [
        f"{100 * c.accuracy:.1f} [{100 * low:.0f}-{100 * high:.0f}]",
        f"{t.nfe / c.n:.1f}",
        f"{t.tokens_per_forward:.2f}",
        f"{t.positions_per_token:,.1f}",
        kept(c),
    ]
    if causal:
        drafting = f"{100 * t.draft_share:.0f}" if t.drafted else "-"
        figures += [drafting, c.lossless, f"{1000 * t.time_to_first_token:,.0f}"]
    return [*figures, f"{t.tokens_per_second:.0f}", f"{t.tokens_per_second / first:.1f}" if first else "-"]


def kept(c: Cell) -> str:
    """The share of positions that a cache spared; "none" tells of a cache that was filled and never read."""
    t = c.totals
    return "-" if not t.kv_bytes else f"{100 * t.reused:.0f}" if t.reused > 0 else "none"


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
        f"temperature {c['temperature']:g}"
        + (f", eotp {c['eotp']:g}" if c.get("eotp") else "")
        + (f", drafts accepted by {c['verify']}" if c.get("verify", "match") != "match" else "")
    )


def to_csv(cells: Sequence[Cell], conditions: dict[str, Any], path: Path) -> None:
    """One line per cell, its conditions in every line."""
    flat = {name: value for name, value in conditions.items() if name not in ("versions", "model")}
    flat |= {"tasks": " ".join(conditions["tasks"]), **conditions["versions"]}
    rows = [cell.record() | flat for cell in cells]
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def to_png(cells: Sequence[Cell], conditions: dict[str, Any], path: Path) -> None:
    """Accuracy with its interval against both speeds, for each task: a colour per method, a marker per cache.

    With one cache the labels are the methods' and there is no legend. With several models the colours are theirs.
    """
    one, alone = len({c.cache for c in cells}) == 1, len({c.model for c in cells}) == 1
    dots = [
        Dot(
            label=spaced(c.method)
            if one
            else c.cache
            if alone
            else f"{spaced(c.method)}, {c.cache}".removesuffix(", -"),
            colour=spaced(c.method) if alone else c.model,
            marker=c.cache,
            accuracy=c.accuracy,
            low=c.interval[0],
            high=c.interval[1],
            **{name: getattr(c.totals, name) for name in SPEEDS},
        )
        for c in cells
    ]
    tasks = {task: [dot for dot, c in zip(dots, cells, strict=True) if c.task == task] for task in by_task(cells)}
    draw(tasks, note(conditions), path)
