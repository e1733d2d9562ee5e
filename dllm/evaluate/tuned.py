"""What tuning comes to: the settings, what was proved of them, and the evidence."""

import random
from collections.abc import Callable, Sequence
from dataclasses import asdict, fields
from itertools import product
from pathlib import Path
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.table import Table

import dllm.cache
import dllm.samplers
from dllm.doctor import conditions
from dllm.errors import DllmError
from dllm.evaluate.answers import Method
from dllm.evaluate.bench import BASELINE, Bench, Candidate, Cell, Cells, figures
from dllm.evaluate.bounds import enough
from dllm.evaluate.finished import Finished
from dllm.evaluate.tasks.base import Question, Task
from dllm.evaluate.tune import approved, finalists, fronts, search
from dllm.settings import Settings
from dllm.spec import Model, ModelSpec

SAMPLERS = (
    *("threshold:threshold=0.95", "threshold:threshold=0.9", "threshold:threshold=0.8", "threshold:threshold=0.7"),
    *("eb:gamma=0.05", "eb:gamma=0.1", "factor:factor=1.0"),
)
CACHES: dict[str, tuple[str, ...]] = {"full": ("none", "dual"), "block": ("none", "exact", "subblock")}
"""What is searched where no caches are named, by the model's pattern of attention."""
SEARCH_SHARE = 1 / 3
"""Of the questions; the others are held out: what is to be proved needs more of them than what is to be found."""
LEAST = 24
"""Questions without which a search says nothing."""


def tune(
    model: Model,
    task: Task,
    folder: str | Path | None,
    *,
    name: str,
    lose: float = 1.0,
    delta: float = 0.1,
    n: int | None = None,
    samplers: Sequence[str] = SAMPLERS,
    caches: Sequence[str] | None = None,
    tell: Callable[[str], None] = lambda _: None,
    **decoding: Any,
) -> dict[str, Any]:
    """Search samplers x caches for the fastest that loses at most `lose` points, and prove it on held-out questions.

    folder: where finished cells are kept, so that a killed search goes on. lose: points of the headline, above 0.
    delta: the chance, in (0, 1), that the setting given loses more after all. n: questions asked, at random. caches:
    by default `usual_caches`. decoding: other settings, the same for all. The proof is of one search: to run it again
    with other candidates on the same held-out questions is outside it. Returns what `dllm.settings_file` reads. Raises
    DllmError for values that cannot be.
    """
    if not 0 < lose < 100:
        raise DllmError(f"lose={lose} points cannot be proved; give more than 0 and less than 100.")
    if not 0 < delta < 1:
        raise DllmError(f"delta={delta} is not a probability between 0 and 1; 0.1 is usual.")
    if decoding.get("steps") is not None:
        raise DllmError(f"steps={decoding['steps']}: the baseline takes one token a step; leave it out.")
    pairs = product(samplers, usual_caches(model.spec) if caches is None else caches)
    candidates = [c for c in (Candidate(*pair) for pair in pairs) if c != BASELINE]
    for candidate in candidates:
        dllm.samplers.make(candidate.sampler)
        dllm.cache.make(candidate.cache)
    seen, held_out = split(task, n)
    method = Method.of(task, BASELINE.sampler, BASELINE.cache, spec=model.spec, **decoding)
    where = conditions(model, name)
    facts = {key: where[key] for key in ("model", "device", "dtype", "threads")} | {
        "task": task.name,
        "protocol": task.protocol,
    }
    facts |= {key: value for key, value in method.facts().items() if key not in ("sampler", "cache")}
    with Finished(folder, "cells") as finished:
        bench = Bench(model, task, finished, facts, decoding, tell)
        found = search(bench, candidates, seen, lose / 100)
        tested, passed = approved(bench, finalists(found, lose / 100), held_out, lose / 100, delta)
    chosen = max(passed, key=lambda c: tested[c].tokens_per_second, default=BASELINE)
    base = tested.get(BASELINE)
    return {
        "settings": asdict(chosen) | used(method.settings),
        "guarantee": guarantee(passed.get(chosen), lose, delta, len(held_out), max(0, len(tested) - 1)),
        "lose": lose,
        "delta": delta,
        "loss_at_most": 100 * passed[chosen] if passed else None,
        "task": {"name": task.name, "protocol": task.protocol, "metric": task.metrics[0]},
        "search": rows(found, found[BASELINE], {}),
        "held_out": rows(tested, base, passed) if base else [],
        "conditions": where,
    }


def usual_caches(spec: ModelSpec) -> Sequence[str]:
    return CACHES.get(spec.attention, ("none",)) if spec.cacheable else ("none",)


def split(task: Task, n: int | None) -> tuple[list[Question], list[Question]]:
    """Questions for the search, and others that are held out. Raises DllmError for too few."""
    questions = task.questions()
    if n is not None and not LEAST <= n <= len(questions):
        raise DllmError(f"n={n}: give {LEAST} to {len(questions)} questions of {task.name}, or leave it out for all.")
    random.Random(0).shuffle(questions)
    asked = questions[:n]
    border = int(len(asked) * SEARCH_SHARE)
    return asked[:border], asked[border:]


def used(settings: Settings) -> dict[str, Any]:
    """What was tuned with, usual or not: it must stand over what a protocol says. The stop strings are the task's."""
    names = [f.name for f in fields(Settings) if f.init and f.name not in ("stop", "num_samples", "seed")]
    return {name: getattr(settings, name) for name in names if getattr(settings, name) is not None}


def guarantee(bound: float | None, lose: float, delta: float, n: int, tested: int) -> str:
    """What was proved, in a sentence that says what it rests on."""
    if bound is None:
        needed = enough(lose / 100, delta)
        said = f"{tested} tested on {n} held-out questions, none" if tested else "none was worth a test: none"
        return (
            f"Nothing proved: {said} was shown to lose at most {lose:g} points with probability {1 - delta:g}, so "
            f"these are the baseline's settings. A proof takes {needed} held-out questions if no answer differs, and "
            "more otherwise."
        )
    return (
        f"With probability at least {1 - delta:g} over the draw of the {n} held-out questions, this loses at most "
        f"{lose:g} points against one token a step without a cache (upper bound {100 * bound:.2f} points). Exact, from "
        f"the questions that only one of the two answered right (Clopper-Pearson), over a fixed sequence of {tested} "
        "tests. It is about this model, dtype, task and protocol, and questions drawn like these; nothing is proved "
        "of speed."
    )


def rows(cells: Cells, base: Cell, passed: dict[Candidate, float]) -> list[dict[str, Any]]:
    """The cells for readers, the baseline first; `front` marks those that none beats in accuracy and speed."""
    whole = {c: cell for c, cell in cells.items() if len(cell.right) == len(base.right)}
    front = next(fronts(whole, base))
    found = []
    for c in sorted(cells, key=lambda c: (c != BASELINE, len(base.right) - len(cells[c].right), cells[c].seconds)):
        lost, won = cells[c].differs(Cell(base.right[: len(cells[c].right)]))
        compared = {"only_baseline_right": lost, "only_this_right": won, "front": c in front}
        proved = {"loss_at_most": 100 * passed[c]} if c in passed else {}
        found.append(asdict(c) | figures(cells[c]) | compared | proved)
    return found


def table(title: str, found: Sequence[dict[str, Any]]) -> Table:
    """Rows of `rows` as a rich table; speed stands beside the baseline's, in the first row."""
    shown = Table(box=SIMPLE_HEAD, title=title, title_justify="left", padding=(0, 1, 0, 0), pad_edge=False)
    for column in ("sampler", "cache"):
        shown.add_column(column, overflow="fold")
    for column in ("n", "right\n% [95 %]", "loss,\npoints", "proved\nat most", "tokens\n/fwd", "tokens\n/s", "front"):
        shown.add_column(column, justify="right", no_wrap=True)
    for row in found:
        low, high = row["interval"]
        loss = 100 * (row["only_baseline_right"] - row["only_this_right"]) / row["n"]
        shown.add_row(
            row["sampler"],
            row["cache"],
            str(row["n"]),
            f"{100 * row['accuracy']:.1f} [{100 * low:.0f}-{100 * high:.0f}]",
            f"{loss:+.1f}",
            f"{row['loss_at_most']:.2f}" if "loss_at_most" in row else "",
            f"{row['tokens_per_forward']:.2f}",
            f"{row['tokens_per_second']:.0f}",
            "*" if row["front"] else "",
        )
    return shown
