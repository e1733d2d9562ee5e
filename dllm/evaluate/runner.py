"""Evaluate a model on a task: ask all questions, keep every answer at once, put the final files together.

Several processes share the work if they have the same arguments, one `output` and different ranks, as under torchrun
and accelerate launch: each answers its share, and rank 0 waits for the others' files and writes the final ones.
"""

import json
import random
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime
from functools import partial
from pathlib import Path
from time import sleep
from typing import Any

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn
from rich.progress import Progress as Bar

from dllm.doctor import KERNELS, conditions
from dllm.errors import DllmError
from dllm.evaluate import results
from dllm.evaluate.answers import Answer, CausalMethod, Method, answers, method_of
from dllm.evaluate.store import Sample, Store, append
from dllm.evaluate.tasks.base import Question, Task
from dllm.spec import Model

POLL = 1.0
"""Seconds between two looks at the other ranks' files."""


def chosen(questions: Sequence[Question], limit: int | None) -> dict[int, Question]:
    """All questions by their index, or a random subset of `limit`, always the same and part of every larger one.

    Raises DllmError for a limit that is no whole number from 1 on, and for two questions with one id.
    """
    if len({q.id for q in questions}) < len(questions):
        raise DllmError("two questions of the task have the same id; each must have its own.")
    if limit is not None and (isinstance(limit, bool) or not isinstance(limit, int) or limit < 1):
        raise DllmError(f"limit={limit!r} must be a whole number of at least 1, or None for all questions.")
    order = list(range(len(questions)))
    random.Random(0).shuffle(order)
    return {index: questions[index] for index in sorted(order[:limit])}


def facts_of(
    task: Task,
    asked: Mapping[int, Question],
    method: Method | CausalMethod,
    limit: int | None,
    where: Mapping[str, Any],
) -> dict[str, Any]:
    """All that the answers depend on."""
    texts = [[q.id, q.prompt, q.prefix, dict(q.record)] for q in asked.values()]
    own = {"task": task.name, "protocol": task.protocol, "limit": limit, "metrics": list(task.metrics)}
    told = {name: where[name] for name in ("model", "device", "dtype")} | {"dllm": where["versions"]["dllm"]}
    return told | own | method.facts() | {"questions": results.digest(json.dumps(texts))}


@contextmanager
def progress(console: Console | None, task: Task, total: int, samples: list[Sample]) -> Iterator[Callable[[], None]]:
    """A bar on a terminal while `samples` grows: how many are done, the headline so far and its 95 % interval."""

    def told() -> str:
        if not samples:
            return task.name
        low, high = results.interval(samples, task.metrics[0])
        share = 100 * results.mean(samples, task.metrics[0])
        return f"{task.name}: {share:.1f} % right [{100 * low:.0f} to {100 * high:.0f}]"

    columns = (TextColumn("{task.description}"), BarColumn(24), MofNCompleteColumn(), TimeElapsedColumn())
    shown = console is not None and console.is_terminal
    with Bar(*columns, console=console, transient=True, auto_refresh=False, disable=not shown) as bar:
        job = bar.add_task(told(), total=total)

        def tell() -> None:
            bar.update(job, completed=len(samples), description=told(), refresh=True)

        yield tell


def environment(model: Model, name: str) -> dict[str, Any]:
    """What the figures of a model's answers depend on besides the settings."""
    return conditions(model, name) | {"attention": KERNELS["attention"], "cuda": torch.version.cuda}


def evaluate(
    model: Model,
    task: Task,
    output: str | Path = "runs/eval",
    *,
    name: str,
    limit: int | None = None,
    rank: int = 0,
    world_size: int = 1,
    console: Console | None = None,
    **decoding: Any,
) -> Path | None:
    """Ask the model all questions of the task, and write `samples_*.jsonl` and `results_*.json` (see `store`).

    name: of the model, for the files. limit: ask a fixed random subset only. decoding: as of `dllm.generate` (sampler,
    cache, gen_length, ...), of a causal model as of `dllm.generate_causal` (draft, verify, ...), over the task's own
    settings. A run that was killed goes on where it stopped if it is started again with the same arguments; one that is
    done is not repeated. Returns the path of the results, on ranks other than 0 None. Raises DllmError for what a user
    can fix.
    """
    where, source = environment(model, name), partial(answers, model)
    return collect(
        task,
        method_of(model.spec, task, getattr(model, "name", ""), **decoding),
        where,
        source,
        output,
        limit,
        rank=rank,
        world_size=world_size,
        console=console,
    )


def collect(
    task: Task,
    method: Method | CausalMethod,
    where: Mapping[str, Any],
    source: Callable[[Mapping[int, Question], Method | CausalMethod], Iterable[Answer]],
    output: str | Path,
    limit: int | None,
    *,
    rank: int = 0,
    world_size: int = 1,
    workers: int = 1,
    console: Console | None = None,
) -> Path | None:
    """`evaluate` with answers from anywhere: source takes questions by their index, and gives answers as they come.

    where: the `environment` of the models that answer. workers: how many of these there are, for the files.
    """
    questions = task.questions()
    asked = chosen(questions, limit)
    store = Store(output, str(where["model"]), task.name, facts_of(task, asked, method, limit, where))
    if done := store.finished():
        return done if rank == 0 else None
    store.begin()
    with store.appending(rank) as file:
        found = store.samples()
        share = [*asked][rank::world_size]
        mine = {index: asked[index] for index in share if index not in found}
        session = {"session": datetime.now().isoformat(), "rank": rank, "workers": workers}
        with progress(console, task, len(share), shown := [found[index] for index in share if index in found]) as tell:
            for answer in source(mine, method):
                shown.append(results.sample(task, asked[answer.index], answer, method, session))
                append(file, shown[-1])
                tell()
        if rank != 0:
            return None
        found = all_ranks(store, len(asked), console)
        samples = [found[index] for index in asked]
        whole = results.results(task, method, samples, where, n_questions=len(questions), limit=limit, date=store.date)
        return store.finish(samples, whole)


def all_ranks(store: Store, n: int, console: Console | None) -> dict[int, Sample]:
    """All n samples, as soon as the other ranks have written theirs."""
    sizes, found = store.sizes(), store.samples()
    if len(found) < n and console:
        console.out(f"waiting for {n - len(found)} answers of other ranks in {store.folder}", highlight=False)
    while len(found) < n:
        sleep(POLL)
        if (now := store.sizes()) != sizes:
            sizes, found = now, store.samples()
    return found
