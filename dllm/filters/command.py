"""`dllm train-filter`: its options as arguments of `train`, its progress and what it tells."""

import json
from argparse import Namespace
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn
from rich.progress import Progress as Bar

from dllm.arguments import listed, settings_of
from dllm.errors import DllmError
from dllm.evaluate import tasks
from dllm.evaluate.finished import Finished
from dllm.evaluate.runner import chosen as some
from dllm.evaluate.store import replace_file
from dllm.filters import prompts, report
from dllm.filters.collect import Decoding
from dllm.filters.fit import Recipe
from dllm.filters.measure import Field, Points, record
from dllm.filters.train import Tell, train
from dllm.generation import Prompt
from dllm.options import convert
from dllm.samplers.filter import FILE, Filter
from dllm.spec import Model

TASKS = "lists,math,code"
EACH = 420
"""Training problems of a task that prompts are drawn from, or more if more are asked for."""


def run(options: Namespace, model: Model, rank: int = 0, world_size: int = 1) -> int:
    """Make the filter and its report; ranks other than 0 only collect."""
    settings, folder = settings_of(options), Path(options.output)
    n, limit = (None if v is None else convert(k, v, int) for k, v in (("n", options.n), ("limit", options.limit)))
    alpha, delta = (convert(name, getattr(options, name), float) for name in ("alpha", "delta"))
    seed = settings.pop("seed") or 0
    recipe = Recipe(options.net, tuple(listed(options.features)), seed=seed)
    decoding = Decoding.of(options.cache, **settings)
    measured = [tasks.make(name) for name in listed(options.measure)] if options.measure else []
    for task in measured:
        some(task.questions(), limit)
    asked, where, own = source(options, n, seed)
    with progress(rank) as tell:
        made = train(
            model,
            asked,
            folder,
            name=options.model,
            recipe=recipe,
            decoding=decoding,
            alpha=alpha,
            delta=delta,
            rank=rank,
            world_size=world_size,
            about={"from": where, "tasks": own},
            tell=tell,
        )
        if made is None:
            return 0
        found: dict[str, Points] = {}
        with Finished(folder / "points") as finished:
            for i, task in enumerate(measured):
                tell(f"measuring {task.name}", i, len(measured))
                found[task.name] = Field(model, task, decoding, finished, limit).points(made)
        if found:
            replace_file(folder / "points.json", json.dumps(record(found), indent=1) + "\n")
        page = report.write(made, found, own, folder)
    told(made, folder / FILE, page, options.json)
    return 0


def source(options: Namespace, n: int | None, seed: int) -> tuple[list[Prompt], str, list[str]]:
    """The prompts in random order, where they are from, and the bundled tasks among that. Raises DllmError."""
    given = [name for name in ("task", "prompts", "dataset") if getattr(options, name)]
    if len(given) > 1:
        raise DllmError(f"--{given[0]} and --{given[1]} both name prompts; give one of them.")
    if n is not None and n < 1:
        raise DllmError(f"n={n} prompts are none; give at least 1, or leave it out.")
    if options.prompts:
        return prompts.chosen(prompts.of_file(options.prompts), n, seed), options.prompts.name, []
    if options.dataset:
        return prompts.chosen(prompts.of_dataset(options.dataset), n, seed), options.dataset, []
    names = listed(options.task or TASKS)
    each = max(EACH, -(-(n or 0) // len(names)))
    return prompts.chosen(prompts.of_tasks(names, each), n, seed), f"training problems of {', '.join(names)}", names


@contextmanager
def progress(rank: int) -> Iterator[Tell]:
    """A bar on a terminal: what is done, and how much of it."""
    columns = (TextColumn("{task.description}"), BarColumn(24), MofNCompleteColumn(), TimeElapsedColumn())
    console = Console(stderr=True)
    shown = rank == 0 and console.is_terminal
    with Bar(*columns, console=console, transient=True, refresh_per_second=4, disable=not shown) as bar:
        job = bar.add_task("collecting", total=None)
        yield lambda what, n, of: bar.update(job, description=what, completed=n, total=of)


def told(made: Filter, path: Path, page: Path, as_json: bool) -> None:
    """What came out."""
    facts: dict[str, Any] = dict(made.facts)
    if as_json:
        print(json.dumps({"filter": str(path), "report": str(page), "threshold": made.threshold} | facts))
        return
    print(facts["calibration"]["guarantee"])
    ceiling = facts["ceiling"]
    print(
        f"Answer tokens per forward: {ceiling['static']:.2f} one a step, "
        f"{ceiling['oracle']:.2f} with the oracle, the ceiling."
    )
    print(f"{path}, report: {page}")
