"""What a cheaper way of decoding costs in right answers, paired with the plain way on the same problems.

    python scripts/measure_cost.py fp8 --n 500      8-bit weights against bfloat16, every bundled model
    python scripts/measure_cost.py rows --n 500     fewer rows per committed token: settled rows of the block left
                                                    out, Elastic-Cache's window, exact block-causal caches, sub-blocks

Both ways answer the same first n test problems of each task; the difference in points comes with its 95 % interval by
the paired bootstrap. A table, then JSON as the last line.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

import dllm
from dllm.doctor import conditions
from dllm.evaluate.results import commit
from dllm.evaluate.score import paired_bootstrap
from dllm.generation import Generation
from dllm.zoo.tasks import Problem, correct, problems


@dataclass(frozen=True)
class Way:
    """A model and how it decodes; sampler and cache None for autoregressive models, and for a model's own."""

    model: str
    sampler: str | None = None
    cache: str | None = None

    def __str__(self) -> str:
        return ", ".join(part for part in (self.model, self.sampler, self.cache) if part)


Pairs = Sequence[tuple[Way, Sequence[Way]]]
FP8: Pairs = [
    (Way(name, sampler), [Way(f"{name}:weights=fp8", sampler)])
    for name, sampler in {
        "tiny-block": "threshold", "tiny-ar": None, "tiny-llada": "threshold", "tiny-dream": "threshold",
    }.items()
]  # fmt: skip
ELASTIC = "sliding:base=threshold"
"""Elastic-Cache decodes in a window that slides."""
ROWS: Pairs = [
    *(
        (Way(name, "threshold", "dual"), [
            Way(name, "threshold", "none"),
            Way(name, "threshold", "dual:skip_decoded=true"),
            Way(name, ELASTIC, "elastic"),
        ])
        for name in ("tiny-llada", "tiny-dream")
    ),
    (Way("tiny-block", "threshold", "none"), [
        Way("tiny-block", "threshold", "exact"),
        Way("tiny-block", "threshold", "subblock:small_block=4"),
    ]),
]  # fmt: skip
"""The way that others are compared with, and these."""


@dataclass(frozen=True)
class Cell:
    """A way's answers to the problems of a task."""

    right: list[bool]
    made: Generation


def answered(model: Any, way: Way, asked: Sequence[Problem], gen_length: int) -> Cell:
    """The problems answered at temperature 0."""
    prompts = [p.question for p in asked]
    if model.spec.attention == "causal":
        made = dllm.generate_causal(model, prompts, gen_length=gen_length, batch_size=16)
    else:
        made = dllm.generate(model, prompts, way.sampler, way.cache, gen_length=gen_length, batch_size=16)
    return Cell(list(map(correct, asked, made.texts or [])), made)


def compared(base: Cell, cell: Cell) -> dict[str, Any]:
    """The figures of a way beside those of the one that it is compared with; shares in points."""
    low, high = paired_bootstrap(base.right, cell.right)
    n, totals = len(cell.right), cell.made.totals
    return {
        "n": n,
        "right": 100 * sum(cell.right) / n,
        "difference": 100 * (sum(cell.right) - sum(base.right)) / n,
        "interval": [100 * low, 100 * high],
        "forwards_per_answer": totals.nfe / n,
        "rows_per_committed_token": totals.rows / totals.committed,
        "tokens_per_forward": totals.tokens_per_forward,
        "same_answers": sum(a == b for a, b in zip(base.made.completions, cell.made.completions, strict=True)) / n,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("fp8", "rows"))
    parser.add_argument("--n", type=int, default=500)
    parser.add_argument("--task", default="lists,math,code")
    parser.add_argument("--models", help="only these, with commas between")
    parser.add_argument("--gen_length", type=int, default=64)
    options = parser.parse_args()
    torch.set_num_threads(1)
    dtype = "bfloat16" if options.what == "fp8" else "float32"  # of the way that 8 bits are compared with
    only = options.models.split(",") if options.models else None
    table = Table(title=f"{dtype}, first {options.n} test problems, gen_length {options.gen_length}")
    for column in ("task", "way", "right %", "difference [95 %]", "forwards/answer", "rows/committed token", "same"):
        table.add_column(column)
    figures: list[dict[str, Any]] = []
    opened: dict[str, Any] = {}
    for base, others in FP8 if options.what == "fp8" else ROWS:
        if only and base.model not in only:
            continue
        for task in options.task.split(","):
            asked, cells = problems(task, options.n, 0, "test"), list[Cell]()
            for way in (base, *others):
                if way.model not in opened:
                    opened[way.model] = dllm.load(way.model, device="cpu", dtype=dtype)
                cells.append(answered(opened[way.model], way, asked, options.gen_length))
                f = compared(cells[0], cells[-1])
                figures.append({"task": task, "way": str(way), "base": str(base), **f})
                print(json.dumps(figures[-1]), file=sys.stderr, flush=True)  # of a long run that is cut short
                low, high = f["interval"]
                difference = "" if way is base else f"{f['difference']:+.1f} [{low:+.1f}, {high:+.1f}]"
                table.add_row(
                    task, str(way), f"{f['right']:.1f}", difference, f"{f['forwards_per_answer']:.1f}",
                    f"{f['rows_per_committed_token']:.2f}", f"{100 * f['same_answers']:.0f} %",
                )  # fmt: skip
    Console(width=140).print(table)
    where = conditions(next(iter(opened.values())), ",".join(opened)) | {"commit": commit()}
    print(json.dumps({"figures": figures, "conditions": {**vars(options), **where}}))


if __name__ == "__main__":
    main()
