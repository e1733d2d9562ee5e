"""Answer questions on Ray actors: many GPUs, many machines. A worker that dies costs the answers that it had in hand.

The process that asks writes all files, so the machines share nothing but the model's files.
"""

import os
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import dllm
from dllm.errors import DllmError
from dllm.evaluate.answers import TOTALS, Answer, CausalMethod, Method, answers
from dllm.evaluate.runner import environment
from dllm.evaluate.store import differing
from dllm.evaluate.tasks.base import Question

DEATHS = 3
"""Deaths for each worker after which the fault is taken to lie in the work."""
ROUNDS = 4
"""Batches that a worker is given at once: few enough to spread the last ones, enough to keep its batch full."""


class Worker:
    """What runs in an actor: a model that answers."""

    def open(self, name: str, device: str | None, dtype: str | None) -> dict[str, Any]:
        """Load the model; returns its environment."""
        self.model = dllm.load(name, device=device, dtype=dtype)
        return environment(self.model, name)

    def answers(self, asked: Mapping[int, Question], method: Method | CausalMethod) -> Iterator[Answer]:
        yield from answers(self.model, asked, method)


class Pool:
    """Workers that share questions; `pool(questions, method)` gives their answers as they come."""

    def __init__(self, n: int, start: Callable[[], Any], opening: tuple[str, str | None, str | None]) -> None:
        """n actors made by `start`, with the model opened in each.

        Raises DllmError if it cannot be opened, and if two are not alike.
        """
        import ray

        self.start, self.opening = start, opening
        self.actors = [start() for _ in range(n)]
        self.opened = {actor: actor.open.remote(*opening) for actor in self.actors}
        with their_errors():
            environments = ray.get([*self.opened.values()])
        self.environment: dict[str, Any] = environments[0]
        for n, other in enumerate(environments):
            check_alike(self.environment, other, n)

    def __call__(self, asked: Mapping[int, Question], method: Method | CausalMethod) -> Iterator[Answer]:
        """Raises DllmError if workers die again and again, and if one cannot be replaced by its like."""
        import ray
        from ray.exceptions import RayActorError

        waiting, free, busy = shares(asked, ROUNDS * method.settings.batch_size), deque(self.actors), dict[Any, Any]()
        totals, deaths = Totals(), 0
        while waiting or busy:
            while waiting and free:
                actor, share = free.popleft(), waiting.popleft()
                busy[actor.answers.options(num_returns="streaming").remote(share, method)] = actor, dict(share)
            [stream], _ = ray.wait([*busy], num_returns=1)
            actor, left = busy[stream]
            try:
                with their_errors():
                    # Done by now: a worker opens first. Of a replacement it is the first that we hear.
                    check_alike(self.environment, ray.get(self.opened[actor]), self.actors.index(actor))
                    answer: Answer = ray.get(next(stream))
            except StopIteration:
                del busy[stream]
                totals.rest(actor)
                free.append(actor)
            except RayActorError as error:
                del busy[stream]
                deaths += 1
                if deaths > DEATHS * len(self.actors):
                    raise DllmError(f"{deaths} workers died; the last one: {error}") from error
                waiting.appendleft(left)
                free.append(self.replace(actor))
                totals.inherit(actor, free[-1])
            else:
                del left[answer.index]
                yield totals.tell(actor, answer)

    def replace(self, dead: Any) -> Any:
        """Another worker in place of one that died."""
        self.actors[self.actors.index(dead)] = actor = self.start()
        del self.opened[dead]
        self.opened[actor] = actor.open.remote(*self.opening)  # what is asked of it next waits for this
        return actor


class Totals:
    """Running totals over workers: they work side by side, so that of their times the longest counts."""

    def __init__(self) -> None:
        self.before: dict[Any, list[float]] = {}
        """Of every worker, the totals of the shares that it is done with."""
        self.now: dict[Any, list[float]] = {}
        """And of the one that it is at."""

    def rest(self, worker: Any) -> None:
        """A worker is done with its share."""
        past, last = (each.pop(worker, [0.0] * len(TOTALS)) for each in (self.before, self.now))
        self.before[worker] = [a + b for a, b in zip(past, last, strict=True)]

    def inherit(self, dead: Any, heir: Any) -> None:
        """A worker died, and another goes on in its place: their times follow each other."""
        self.rest(dead)
        self.before[heir] = self.before.pop(dead)

    def tell(self, worker: Any, answer: Answer) -> Answer:
        """An answer with the totals of all workers in place of those of its own worker's share."""
        self.now[worker] = [getattr(answer, name) for name in TOTALS]
        nothing = [0.0] * len(TOTALS)
        totals = [
            [a + b for a, b in zip(self.before.get(w, nothing), self.now.get(w, nothing), strict=True)]
            for w in {**self.before, **self.now}
        ]
        *times, forwards = zip(*totals, strict=True)
        longest = dict(zip(TOTALS, map(max, times), strict=False))
        return replace(answer, **longest, forwards=int(sum(forwards)))


def check_alike(first: dict[str, Any], other: dict[str, Any], n: int) -> None:
    """Raise DllmError if the n-th worker's environment is not the first's: the files tell of one."""
    if first != other:
        ours, theirs = differing(first, other)
        raise DllmError(f"worker 0 has {ours}, worker {n} {theirs}; give them machines and versions that are alike.")


def shares(asked: Mapping[int, Question], size: int) -> deque[dict[int, Question]]:
    """The questions in shares of `size`, in their order."""
    indices = list(asked)
    return deque({i: asked[i] for i in indices[at : at + size]} for at in range(0, len(indices), size))


@contextmanager
def their_errors() -> Iterator[None]:
    """A worker's DllmError as its own, not as the report of one."""
    from ray.exceptions import RayTaskError

    try:
        yield
    except RayTaskError as error:
        if isinstance(error.cause, DllmError):
            raise error.cause from None
        raise


@contextmanager
def workers(n: int, model: str, device: str | None = None, dtype: str | None = None) -> Iterator[Pool]:
    """n actors with this model, on the cluster at RAY_ADDRESS, else on this machine; with a GPU each if there are any.

    Raises DllmError without Ray, for n below 1, and for more workers than the cluster has GPUs (CPUs if it has none).
    """
    if n < 1:
        raise DllmError(f"ray={n} workers can answer nothing; give at least 1.")
    try:
        import ray
    except ImportError as error:
        raise DllmError("--ray needs the package ray; pip install 'dllm-decode[ray]'.") from error
    ours = not ray.is_initialized()
    if ours:
        here = "RAY_ADDRESS" not in os.environ
        more = {"num_cpus": max(n, os.cpu_count() or 1), "include_dashboard": False} if here else {}
        ray.init(log_to_driver=False, logging_level="ERROR", **more)
    try:
        kind = "GPU" if ray.cluster_resources().get("GPU") and device != "cpu" else "CPU"
        there = int(ray.cluster_resources()[kind])
        if n > there:
            raise DllmError(f"ray={n} workers need a {kind} each, and there are {there}; give a smaller number.")
        need = {"num_gpus": 1} if kind == "GPU" else {"num_cpus": 1}
        pool = Pool(n, ray.remote(**need)(Worker).remote, (model, device, dtype))
        try:
            yield pool
        finally:
            for actor in pool.actors:  # a cluster that others use goes on
                ray.kill(actor)
    finally:
        if ours:
            ray.shutdown()
