"""Every kernel against the ceilings of the device and the library's own ways, measured in the same run.

    python scripts/bench_kernels.py --out docs/benchmarks/kernels.json
    python scripts/bench_kernels.py --kernels attention,token_stats

A kernel is right first: what it gives is compared with its reference in float64, on memory that is filled with NaN, and
its error must not be above twice the one that torch makes in the same dtype. Then it runs over several sets of inputs
in turn, together larger than the L2, from a CUDA graph, so that no launch is timed. The floor is the longer of the
bytes over the copy bandwidth and the operations over the matrix rate. Without a GPU (or with --quick) shapes are tiny
and nothing but the code is tried. Medians with the smallest and largest; the last line is JSON.
"""

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from bench_common import environment, measure_ceilings, rounded, spread, timed, write
from floors import Ceilings
from kernel_cases import BENCHES, Args, Bench, Shape, kernel, runs
from rich.console import Console
from rich.table import Table
from shapes import SHAPES
from torch import Tensor

L2 = 60e6
"""Bytes of the cache of an H100 or H200; other GPUs have less."""


def shapes(device: torch.device, quick: bool) -> list[Shape]:
    """Window steps and refreshes."""
    if quick:
        return [Shape(batch, 4, 24, SHAPES["tiny"], device) for batch in (1, 3)]
    llada, dream = SHAPES["llada-8b"], SHAPES["dream-7b"]
    steps = [(1, llada), (8, llada), (32, llada), (1, dream), (32, dream)]
    return [Shape(batch, 32, 1280, spec, device) for batch, spec in steps] + [Shape(1, 1280, 1280, llada, device)]


def parts(result: Any, args: Args, bench: Bench) -> list[Tensor]:
    """All tensors that a call has made or changed."""
    made = [result] if isinstance(result, Tensor) else list(result)
    return [part for part in (*made, *(args[i] for i in bench.changes)) if part.numel()]


def wider(value: Any) -> Any:
    """The same numbers in float64, copied."""
    if isinstance(value, Tensor):
        return value.double() if value.is_floating_point() else value.clone()
    if isinstance(value, tuple):
        made = [wider(part) for part in value]
        return type(value)(*made) if hasattr(value, "_fields") else tuple(made)
    return value


def copied(args: Args, bench: Bench) -> Args:
    """The arguments with those that are written to copied, so that a call leaves no trace."""
    return tuple(value.clone() if i in bench.changes else value for i, value in enumerate(args))


def poison(device: torch.device, n: int) -> None:
    """Fill memory that will be handed out next with NaN: what a kernel leaves out is then seen."""
    torch.full((n,), torch.nan, device=device)


def distance(got: Sequence[Tensor], exact: Sequence[Tensor]) -> float:
    """The largest difference over all parts, relative to each part's largest number; infinite for other integers."""
    worst = 0.0
    for a, b in zip(got, exact, strict=True):
        if not b.is_floating_point():
            worst = max(worst, 0.0 if torch.equal(a, b) else float("inf"))
            continue
        difference = (a.double() - b.double()).abs().max() / b.double().abs().max().clamp(min=1e-9)
        worst = max(worst, float("inf") if difference.isnan() else float(difference))
    return worst


def check(name: str, bench: Bench, args: Args, call: Callable[..., Any]) -> dict[str, Any]:
    """How far a call is from the reference in float64, and how far torch is in the same dtype."""
    module = kernel(name)
    reference = getattr(module, f"reference_{name}")

    def result(run: Callable[..., Any], given: Args) -> list[Tensor]:
        return parts(run(*given), given, bench)

    exact = result(reference, wider(args))
    like = bench.others.get(bench.like, reference)
    theirs = result(like, copied(args, bench))
    poison(args[0].device, max(1, args[0].numel()))
    ours = result(call, copied(args, bench))
    yard = distance(theirs[: len(exact)], exact[: len(theirs)])
    error = distance(ours, exact)
    # 1e-5: what float32 sums of so many numbers may differ by in another order.
    return {"error": error, "error_of_torch": yard, "right": error <= 2 * yard + 1e-5}


def graphed(calls: Sequence[Callable[[], Any]], device: torch.device) -> Callable[[], Any]:
    """All calls, one after the other; on a GPU as a graph, in which no launch is waited for."""

    def together() -> None:
        for call in calls:
            call()

    if device.type != "cuda":
        return together
    side = torch.cuda.Stream()  # type: ignore[no-untyped-call]  # of torch
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):  # what is compiled or allocated once is so before the graph
        together()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        together()
    return graph.replay


def measure(call: Callable[..., Any], sets: Sequence[Args], device: torch.device, repeat: int) -> list[float]:
    """Seconds of a call, smallest, median and largest over rounds through all sets."""
    round_of_all = graphed([lambda args=args: call(*args) for args in sets], device)  # type: ignore[misc]
    return [t / len(sets) for t in spread(timed([round_of_all], device, repeat))]


def figures(
    name: str, bench: Bench, shape: Shape, ceilings: Ceilings, repeat: int, told: Callable[[str], None]
) -> dict[str, Any]:
    """A kernel and its alternatives at one shape."""
    module = kernel(name)
    args = bench.make(shape)
    n_bytes, n_flops = bench.work(args)
    floor = max(n_bytes / ceilings.bytes_per_second, n_flops / ceilings.flops_per_second)
    host = getattr(module, name)
    found = check(name, bench, args, host)
    on_gpu = shape.device.type == "cuda"
    sets = [args, *(bench.make(shape) for _ in range(min(255, int(2 * L2 // n_bytes)) if on_gpu else 1))]
    ways = {"ours": host, "reference": getattr(module, f"reference_{name}"), **bench.others}
    seconds: dict[str, Any] = {}
    for way, call in ways.items():
        if not runs(way, shape):
            continue
        try:
            seconds[way] = measure(call, sets, shape.device, repeat)
        except Exception as error:  # one way that cannot run, as one that needs a compiler, leaves the others
            told(f"{name}, {shape}: {way} failed: {type(error).__name__}: {error}")
    ratio = {way: floor / t[1] for way, t in seconds.items()}
    verdict = ""
    if bench.asked is not None and "ours" in ratio:
        verdict = "met" if ratio["ours"] >= bench.asked else "not met"
    return {
        "kernel": name, "shape": str(shape), "bytes": n_bytes, "flops": n_flops, "floor": floor,
        "seconds": seconds, "ratio": ratio, "asked": bench.asked, "verdict": verdict, **found,
    }  # fmt: skip


def show(found: Sequence[dict[str, Any]], console: Console) -> None:
    table = Table(title="medians in microseconds; % of the ceiling")
    for column in ("kernel", "shape", "floor", "way", "median", "range", "%", "asked", "error / torch's"):
        table.add_column(column)
    for f in found:
        for way, (low, middle, high) in f["seconds"].items():
            ours = way == "ours"
            asked = f"{100 * f['asked']:.0f}: {f['verdict']}" if ours and f["asked"] else ""
            error = f"{f['error']:.1e} / {f['error_of_torch']:.1e}" + ("" if f["right"] else " WRONG") if ours else ""
            table.add_row(
                f["kernel"], f["shape"], f"{1e6 * f['floor']:.1f}", way, f"{1e6 * middle:.1f}",
                f"{1e6 * low:.1f} to {1e6 * high:.1f}", f"{100 * f['ratio'][way]:.0f}", asked, error,
            )  # fmt: skip
    console.print(table)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kernels", default=",".join(BENCHES), help="with commas between [all]")
    parser.add_argument("--quick", action="store_true", help="tiny shapes, to try the code out")
    parser.add_argument("--repeat", type=int, default=20)
    parser.add_argument("--device", help="by default a GPU if there is one")
    parser.add_argument("--out", type=Path, metavar="FILE", help="also write the JSON here")
    parser.add_argument("--commit", help="what is measured, where the folder is no checkout")
    options = parser.parse_args(argv)
    if unknown := [name for name in options.kernels.split(",") if name not in BENCHES]:
        parser.error(f"--kernels {unknown[0]}: there are {', '.join(BENCHES)}")
    device = torch.device(options.device or ("cuda" if torch.cuda.is_available() else "cpu"))
    quick = options.quick or device.type == "cpu"
    torch.manual_seed(0)
    ceilings, failures = measure_ceilings(device, quick), list[str]()
    found: list[dict[str, Any]] = []

    def told(line: str) -> None:
        failures.append(line)
        print(line, file=sys.stderr, flush=True)

    result: dict[str, Any] = {}
    for name in options.kernels.split(","):
        for shape in shapes(device, quick):
            try:
                found.append(figures(name, BENCHES[name], shape, ceilings, 2 if quick else options.repeat, told))
            except Exception as error:  # a long measurement keeps what it has
                told(f"{name}, {shape}: failed: {type(error).__name__}: {error}")
        result = {
            "ceilings": vars(ceilings), "kernels": found, "failures": failures, "repeat": options.repeat,
            "dtype": "bfloat16", **environment(device, options.commit),
        }  # fmt: skip
        write(rounded(result), options.out, told=False)
    show(found, Console(width=150))
    write(rounded(result), options.out)
    asked = len(options.kernels.split(",")) * len(shapes(device, quick))
    return 0 if len(found) == asked and all(f["right"] and "ours" in f["seconds"] for f in found) else 1


if __name__ == "__main__":
    sys.exit(main())
