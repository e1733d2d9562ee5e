"""Decoding speed at the shapes of published models, against the floors of the device, on a scripted trace.

Random weights are made on the device; prompts, answers and what is timed are those of `scripted`. Runs come in groups,
by how many sequences are decoded together, and those of a group take turns. The figures that decoding is held to stand
beside what is asked of them.
"""

import math
import sys
import time
from collections.abc import Sequence
from copy import deepcopy
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from bench_common import environment, interleaved, measure_ceilings, rounded, spread, write
from floors import Ceilings, end_to_end, refresh, step
from rich.console import Console
from rich.table import Table
from scripted import QUICK, Case, Scripted, Sizes, Timing, plain
from shapes import SHAPES, in_blocks, random_model

from dllm.models import fp8
from dllm.models.transformer import Transformer
from dllm.samplers import Sliding


def groups(model: Transformer, small: Transformer, sizes: Sizes) -> dict[str, tuple[int, dict[str, Any]]]:
    """What runs in turn: repetitions, and runs by name. small: the model in 8 bits."""
    one, few, many, most = sizes.batches
    blocks = in_blocks(model, sizes.block)
    short = Case(model, many, sizes, answer=sizes.short)
    vicinity = f"vicinity:look={sizes.look}"
    # What drifts depends on the weights; gamma=0 tests it in every layer and finds none.
    elastic, slide = f"elastic:gamma=0,window_length={sizes.window}", Sliding(Scripted(), sizes.window)
    return {
        "one": (sizes.repeat, {
            "dual": Case(model, one, sizes),
            "dual, no graphs": Case(model, one, sizes, graphs=False),
            "dual, deterministic": Case(model, one, sizes, deterministic=True),
            "vicinity": Case(model, one, sizes, vicinity),
            "dual, fp8": Case(small, one, sizes),
            "plain dual": plain(model, sizes, "dual"),
            "plain prefix": plain(model, sizes, "prefix"),
        }),
        "few": (max(1, sizes.repeat // 2), {
            "dual": Case(model, few, sizes),
            "dual, fp8": Case(small, few, sizes),
        }),
        "many": (max(1, sizes.repeat // 2), {
            "dual": short,
            "dual, no graphs": replace(short, graphs=False),
            "dual, deterministic": replace(short, deterministic=True),
            "dual, fp8": replace(short, model=small),
            "skip_decoded": replace(short, cache="dual:skip_decoded=true"),
            "elastic": replace(short, cache=elastic, sampler=slide),
            "exact": replace(short, model=blocks, cache="exact"),
            "subblock": replace(short, model=blocks, cache=f"subblock:small_block={sizes.part}"),
        }),
        "many, whole answers": (1, {
            "dual": Case(model, many, sizes),
            "exact": Case(blocks, many, sizes, "exact"),
        }),
        "most": (1, {"dual": Case(model, most, sizes)}),
    }  # fmt: skip


Figures = dict[str, dict[str, Any]]


def summary(runs: Sequence[Timing]) -> dict[str, Any]:
    """A run's repetitions: seconds, each as the smallest, the median and the largest."""
    found: dict[str, Any] = {
        name: spread([t for run in runs for t in getattr(run, name)])
        for name in ("steps", "refreshes", "gaps")
        if any(getattr(run, name) for run in runs)
    }
    return found | {
        "seconds": spread([run.seconds for run in runs]),
        "tokens_per_second": spread([run.tokens / run.seconds for run in runs]),
        # All window steps, as their widths differ where decoded columns are left out.
        "step_seconds_per_token": spread([sum(run.steps) / run.tokens for run in runs]),
        "forwards": len(runs[0].steps) + len(runs[0].refreshes),
        "refreshes_taken": len(runs[0].refreshes),
        "peak_bytes": max(run.peak_bytes for run in runs),
    }


@dataclass(frozen=True)
class Bar:
    """What a figure must reach."""

    name: str
    figure: float
    """NaN where it was not measured."""
    bound: float | None
    """None: told beside the others."""
    at_most: bool = False

    @property
    def verdict(self) -> str:
        if math.isnan(self.figure):
            return "not measured"
        if self.bound is None:
            return ""
        return "met" if (self.figure <= self.bound if self.at_most else self.figure >= self.bound) else "not met"


def bars(spec: Any, sizes: Sizes, ceilings: Ceilings, found: dict[str, Figures]) -> list[Bar]:
    """Every figure that decoding is held to, from the medians."""
    one, few, many, most = sizes.batches
    length, rows = sizes.length, sizes.block

    def median(group: str, name: str, figure: str) -> float:
        value = found.get(group, {}).get(name, {}).get(figure)
        return value[1] if value else math.nan

    def rate(group: str, batch: int, figure: str, work: Any, length: int) -> Bar:
        took = median(group, "dual", figure)
        reached = work.rate(took) / ceilings.flops_per_second
        kind = "window steps" if figure == "steps" else figure
        return Bar(f"{kind} of {batch} sequences (L={length}), share of the matrix rate", reached, 0.6)

    short = sizes.prompt + sizes.short
    small_one = median("one", "dual", "steps")
    least, least_fp8 = (step(spec, one, rows, length, matrix_bytes=size).seconds(ceilings) for size in (2, 1))
    traced = end_to_end(
        spec,
        ceilings,
        batch=one,
        rows=rows,
        length=length,
        forwards=sizes.steps(sizes.answer),
        refreshes=sizes.answer // rows,
    )
    speed, group = "tokens_per_second", "many, whole answers"
    steps = "step_seconds_per_token"
    return [
        Bar("window step of one sequence, times its floor", small_one / least, 1.25, True),
        Bar("gap between its steps, microseconds", 1e6 * median("one", "dual", "gaps"), 50, True),
        Bar(f"a step of {rows + 2 * sizes.look} rows over one of {rows}",
            median("one", "vicinity", "steps") / small_one, 1.1, True),
        rate("few", few, "steps", step(spec, few, rows, length), length),
        rate("many", many, "steps", step(spec, many, rows, short), short),
        rate("few", few, "refreshes", refresh(spec, few, length, rows), length),
        rate("many", many, "refreshes", refresh(spec, many, short, rows), short),
        Bar("one sequence end to end, times its floor", median("one", "dual", "seconds") / traced, 1.35, True),
        Bar("one sequence end to end, times the plain loop",
            median("one", "dual", speed) / median("one", "plain dual", speed), 2.5),
        Bar("window steps of one sequence, times the plain loop", median("one", "plain dual", "steps") / small_one, 5),
        Bar(f"window steps of {many} sequences, times the tokens per second of one",
            median("one", "dual", steps) / median(group, "dual", steps), 4),
        Bar(f"{many} sequences end to end, times the tokens per second of one",
            median(group, "dual", speed) / median("one", "dual", speed), 1.4),
        Bar("the same with exact block-causal caches",
            median(group, "exact", speed) / median("one", "dual", speed), None),
        *(
            Bar(f"window steps of {many} sequences, {name} over {base}",
                median("many", base, steps) / median("many", name, steps), 1.5)
            for name, base in (("skip_decoded", "dual"), ("elastic", "dual"), ("subblock", "exact"))
        ),
        *(
            Bar(f"cost of {name}, batch {batch}: window steps over those of dual",
                median(group, f"dual, {name}", "steps") / median(group, "dual", "steps"), None)
            for group, batch in (("one", one), ("many", many))
            for name in ("no graphs", "deterministic", "fp8")
        ),
        Bar("window step of one sequence in fp8, times its floor",
            median("one", "dual, fp8", "steps") / least_fp8, None),
        Bar(f"{most} sequences: GiB at the peak",
            (found.get("most", {}).get("dual", {}).get("peak_bytes") or math.nan) / 2**30, None),
    ]  # fmt: skip


def tables(found: dict[str, Figures], held: Sequence[Bar], console: Console) -> None:
    """Print the runs, then the bars."""
    table = Table(title="medians; times in milliseconds, gaps in microseconds")
    for column in ("batch", "run", "window step", "range", "refresh", "gap", "forwards", "tokens/s"):
        table.add_column(column)
    for group, runs in found.items():
        for name, f in runs.items():
            low, middle, high = (1000 * t for t in f.get("steps", [math.nan] * 3))
            table.add_row(
                group, name, f"{middle:.3f}", f"{low:.3f} to {high:.3f}",
                f"{1000 * f.get('refreshes', [math.nan] * 3)[1]:.2f}", f"{1e6 * f.get('gaps', [math.nan] * 3)[1]:.0f}",
                str(f["forwards"]), f"{f['tokens_per_second'][1]:.0f}",
            )  # fmt: skip
    console.print(table)
    judged = Table(title="what is asked")
    for column in ("figure", "measured", "asked", "verdict"):
        judged.add_column(column)
    for bar in held:
        asked = "" if bar.bound is None else f"{'<=' if bar.at_most else '>='} {bar.bound:g}"
        judged.add_row(bar.name, f"{bar.figure:.3g}", asked, bar.verdict)
    console.print(judged)


def main(
    shape: str, device: torch.device, quick: bool, only: Sequence[str], out: Path | None, revision: str | None
) -> None:
    """Measure one of the shapes; after every group the file is written anew, so that a run cut short leaves figures."""
    sizes = QUICK if quick else Sizes()
    spec = replace(SHAPES[shape], max_length=max(SHAPES[shape].max_length, sizes.length))
    ceilings = measure_ceilings(device, quick)
    model = random_model(spec, device, torch.bfloat16)
    small = fp8.quantize(deepcopy(model))
    found: dict[str, Figures] = {}
    failures: dict[str, str] = {}
    result: dict[str, Any] = {}
    for group, (repeat, runs) in groups(model, small, sizes).items():
        if only and group not in only:
            continue
        began = time.perf_counter()
        failed: dict[str, str] = {}
        made = interleaved(runs, repeat, failed)
        failures |= {f"{group}, {name}": reason for name, reason in failed.items()}
        found[group] = {name: summary(timings) for name, timings in made.items() if timings}
        print(f"{group}: {time.perf_counter() - began:.0f} s", file=sys.stderr, flush=True)
        held = bars(spec, sizes, ceilings, found)
        result = {
            "shape": shape,
            "sizes": vars(sizes),
            "ceilings": vars(ceilings),
            "runs": found,
            "bars": {bar.name: [None if math.isnan(bar.figure) else bar.figure, bar.verdict] for bar in held},
            "failures": failures,
            "dtype": "bfloat16",
            **environment(device, revision),
        }
        write(rounded(result), out, told=False)
    tables(found, held, Console(width=140))
    for name, reason in failures.items():
        print(f"failed: {name}: {reason}")
    write(rounded(result), out)
