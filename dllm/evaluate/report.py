"""Finished evaluations beside each other: accuracy, paired differences with the first, tokens and speed."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.table import Table

from dllm.errors import DllmError
from dllm.evaluate.front import aup, front
from dllm.evaluate.pictures import SPEEDS, Dot, draw
from dllm.evaluate.score import mcnemar, paired_bootstrap

SAME = ("task", "protocol", "batch_size", "gen_length", "num_samples")
"""Facts that two runs must have in common for their times to be compared, besides the conditions."""


@dataclass(frozen=True)
class Run:
    """A results file and the samples beside it."""

    name: str
    results: dict[str, Any]
    samples: dict[str, dict[str, Any]]
    """By the question's id, in the order of the questions."""

    @property
    def task(self) -> str:
        return str(self.results["facts"]["task"])

    @property
    def headline(self) -> str:
        return str(self.results["headline"])

    @property
    def values(self) -> list[float]:
        """The headline of every sample."""
        return [sample[self.headline] for sample in self.samples.values()]


def read(path: str | Path) -> Run:
    """An evaluation from its results file, or from a folder that holds one. Raises DllmError if there is not one."""
    given = Path(path).expanduser()
    found = [given] if given.is_file() else sorted(given.rglob("results_*.json"))
    if len(found) != 1:
        there = f"holds {len(found)} results files ({', '.join(file.name for file in found[:3])}, ...)"
        raise DllmError(f"{path} {there if found else 'holds no results_*.json'}; give one file or its folder.")
    try:
        results = json.loads(found[0].read_text(encoding="utf-8"))
        date, [task] = results["date"], results["results"]
        lines = (found[0].parent / f"samples_{task}_{date}.jsonl").read_text(encoding="utf-8").splitlines()
        samples = {sample["id"]: sample for sample in map(json.loads, lines)}
        name = str(path) if given.is_dir() else f"{given.parent.name}/{given.stem}"
        run = Run(name, results, samples)
        if [*samples] != results["ids"] or not run.values:
            raise DllmError(f"{found[0]} and the samples beside it are not of one run; evaluate again.")
    except (OSError, ValueError, KeyError, TypeError) as error:
        if isinstance(error, DllmError):
            raise
        raise DllmError(f"{found[0]} and its samples are not those of an evaluation of ours ({error!r}).") from error
    return run


def row(run: Run, first: Run) -> dict[str, Any]:
    """The figures of a run, and how it compares with the first on the same questions. Raises DllmError for others."""
    same_questions(first, run)
    counts, timing, low_high = (run.results[name] for name in ("counts", "timing", "intervals"))
    figures = {
        "run": run.name,
        "task": run.task,
        "protocol": run.results["facts"]["protocol"],
        "metric": run.headline,
        "n": len(run.samples),
        "accuracy": sum(run.values) / len(run.values),
        "interval": low_high[run.headline],
        **{name: counts[name] for name in ("tokens_per_forward", "nfe", "answer_tokens", "canvas_tokens", "empty")},
        **{name: timing[name] for name in ("tokens_per_second", "decode_tokens_per_second", "seconds")},
    }
    if run is first:
        return figures
    binary = all(value in (0, 1) for value in (*first.values, *run.values))
    base = first.results["timing"]
    comparable = situation(run) == situation(first) and base["tokens_per_second"]
    return figures | {
        "difference": (sum(run.values) - sum(first.values)) / len(run.values),
        "difference_interval": paired_bootstrap(first.values, run.values),
        "p": mcnemar(first.values, run.values) if binary else None,
        "speedup": timing["tokens_per_second"] / base["tokens_per_second"] if comparable else None,
    }


def situation(run: Run) -> dict[str, Any]:
    """What times depend on besides model and method: protocol, sizes, machine, threads, versions, processes."""
    facts, where = run.results["facts"], run.results["conditions"]
    told = {name: facts[name] for name in SAME} | {name: where[name] for name in where if name != "model"}
    timing = run.results["timing"]
    # Older files do not tell the workers.
    return told | {"ranks": timing["ranks"], "workers": timing.get("workers")}


def same_questions(first: Run, other: Run) -> None:
    """Raise DllmError unless both runs have the same questions and headline."""
    theirs, ours = other.samples.keys(), first.samples.keys()
    if theirs != ours:
        raise DllmError(
            f"{first.name} has {len(ours)} questions and {other.name} {len(theirs)}: {len(ours & theirs)} in common, "
            f"{len(ours - theirs)} and {len(theirs - ours)} in one only; compare runs on the same questions."
        )
    changed = [i for i in ours if first.samples[i]["doc_hash"] != other.samples[i]["doc_hash"]]
    if changed:
        raise DllmError(
            f"{len(changed)} of {len(ours)} questions of {first.name} and {other.name} have the same id and another "
            f"text, as {changed[0]}; compare runs on the same data."
        )
    if first.headline != other.headline:
        raise DllmError(
            f"{first.name} is headed by {first.headline} and {other.name} by {other.headline}; these do not compare."
        )


def table(rows: Sequence[dict[str, Any]]) -> Table:
    """The rows for a terminal. A speed-up stands beside the tokens per second of both."""
    shown = Table(box=SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False, show_edge=False)
    shown.add_column("run", overflow="fold")
    counted, timed = ("tokens\n/fwd", "answer\ntokens", "canvas\ntokens", "empty"), ("tokens\n/s", "decode\n/s")
    more = ("difference\npoints [95 %]", "p", "times\nrow 1") if len(rows) > 1 else ()
    for head in ("n", "right\n% [95 %]", *counted, *timed, *more):
        shown.add_column(head, justify="right", no_wrap=True)
    for r in rows:
        low, high = r["interval"]
        figures = [
            str(r["n"]),
            f"{100 * r['accuracy']:.1f} [{100 * low:.0f}-{100 * high:.0f}]",
            f"{r['tokens_per_forward']:.2f}",
            f"{r['answer_tokens']:,}",
            f"{r['canvas_tokens']:,}",
            f"{r['empty']:,}",
            f"{r['tokens_per_second']:.0f}",
            f"{r['decode_tokens_per_second']:.0f}",
        ]
        shown.add_row(r["run"], *figures, *(compared(r) if len(rows) > 1 else ()))
    return shown


def compared(r: dict[str, Any]) -> list[str]:
    """The columns that compare a run with the first."""
    if "difference" not in r:
        return ["-", "-", "-"]
    low, high = r["difference_interval"]
    difference = f"{100 * r['difference']:+.1f} [{100 * low:+.1f} to {100 * high:+.1f}]"
    p, times = (r[name] for name in ("p", "speedup"))
    return [difference, "-" if p is None else f"{p:.3f}", "-" if times is None else f"{times:.1f}"]


def note(runs: Sequence[Run]) -> list[str]:
    """What the table was measured on, a line for every run."""
    lines = []
    for run in runs:
        r, facts = run.results, run.results["facts"]
        c, protocol = r["conditions"], f" {facts['protocol']}" if facts["protocol"] else ""
        lines.append(
            f"{run.name}: {facts['task']}{protocol}, {run.headline}; {c['model']} on {c['device']} ({c['dtype']}, "
            f"{c['threads']} threads, torch {c['versions']['torch']}), {way(facts)}, "
            f"gen_length {facts['gen_length']}, batch_size {facts['batch_size']}, "
            f"temperature {facts['temperature']:g}, seed {facts['seed']}"
        )
    return lines


def way(facts: dict[str, Any]) -> str:
    """By which method a run decoded."""
    if "sampler" not in facts:
        drafter = f", drafts by {facts['draft']['name']} ({facts['verify']['name']})" if facts["draft"] else ""
        return f"autoregressive{drafter}"
    cache = (facts["cache"] or {"name": "by model"})["name"]
    return f"{facts['sampler']['name']}, cache {cache}, block_length {facts['block_length'] or 'by sampler'}"


def by_task(rows: Sequence[dict[str, Any]]) -> dict[str, list[dict[str, Any]]]:
    """The rows of each task, tasks in the order of their first rows."""
    return {task: [r for r in rows if r["task"] == task] for task in dict.fromkeys(r["task"] for r in rows)}


def areas(rows: Sequence[dict[str, Any]]) -> dict[str, float]:
    """The AUP of the front of each task."""
    points = {
        task: [(r["tokens_per_forward"], 100 * r["accuracy"]) for r in own] for task, own in by_task(rows).items()
    }
    return {task: round(aup(front(own)), 2) for task, own in points.items()}


def to_png(rows: Sequence[dict[str, Any]], runs: Sequence[Run], path: Path) -> None:
    """Accuracy with its interval against both speeds, a row for each task, a colour and a label for each run."""
    dots: dict[str, list[Dot]] = {}
    for r in rows:
        low, high = r["interval"]
        speeds = {name: r[name] for name in SPEEDS}
        dot = Dot(r["run"], r["run"], "", accuracy=r["accuracy"], low=low, high=high, **speeds)
        dots.setdefault(f"{r['task']}, {r['metric']}", []).append(dot)
    draw(dots, "\n".join(note(runs)), path)
