"""The report on a filter: what was proved, how good its probabilities are, what it gains beside plain thresholds."""

from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from dllm.evaluate.score import wilson
from dllm.evaluate.store import replace_file
from dllm.filters.measure import Point, Points, against, pooled
from dllm.filters.pictures import draw
from dllm.samplers.filter import Filter

ALL = "all"
OTHERS = "all it was not trained on"


def grouped(points: Mapping[str, Points], trained_on: Collection[str]) -> dict[str, Points]:
    """Each task, and where there are several all of them together, those that the filter was not trained on apart."""
    found = dict(points)
    own, others = ([p for task, p in points.items() if (task in trained_on) == seen] for seen in (True, False))
    if len(own) > 1:
        found[f"{ALL} it was trained on"] = pooled(own)
    if len(others) > 1:
        found[OTHERS] = pooled(others)
    return found


def write(made: Filter, points: Mapping[str, Points], trained_on: Collection[str], folder: Path) -> Path:
    """Write report.md and report.png into a folder, both whole; returns the page."""
    tasks = grouped(points, trained_on)
    draw(made, tasks, trained_on, folder / "report.png")
    lines = [*head(made), *calibration(made), *levels(made), *reliability(made), *tables(made, tasks, trained_on)]
    replace_file(folder / "report.md", "\n".join(lines) + "\n")
    return folder / "report.md"


def row(*cells: Any) -> str:
    return "| " + " | ".join(str(cell) for cell in cells) + " |"


def table(names: Sequence[str], rows: Sequence[Sequence[Any]]) -> list[str]:
    return ["", row(*names), "|" + "---|" * len(names), *(row(*cells) for cells in rows), ""]


def head(made: Filter) -> Iterator[str]:
    """What the filter is, and what was proved."""
    facts, whom, n = made.facts, made.made_for, sum(p.numel() for p in made.net.parameters())
    told, ceiling = facts["collection"], facts["ceiling"]
    yield f"# A filter for {whom.model}"
    yield ""
    yield (
        f"Network {made.kind} of {n:,} parameters on {', '.join(made.features)}; block_length {whom.block_length}, "
        f"weights {whom.fingerprint}. Fitted on {facts['fit']['steps']:,} steps in {facts['fit']['epochs']} epochs; "
        f"{told['n']} prompts ({facts['prompts']['from']}); gen_length {told['gen_length']}, cache "
        f"{told['cache']['name']}, {told['dtype'].removeprefix('torch.')}."
    )
    yield ""
    yield f"**{facts['calibration']['guarantee']}**"
    yield ""
    yield (
        f"Answer tokens per forward on the calibration prompts: {ceiling['static']:.2f} one token a step; "
        f"{ceiling['oracle']:.2f} with the oracle, which reveals all that is final and nothing else: the ceiling."
    )
    yield ""
    yield "![Reliability, precision and recall, risk, and accuracy against tokens per forward](report.png)"
    yield ""


def calibration(made: Filter) -> list[str]:
    """The thresholds that were tested."""
    found = made.facts["calibration"]
    rows = [
        (f"{t['threshold']:g}", f"{t['risk']:.4f}", f"{t['at_most']:.4f}", "passed" if t["passed"] else "failed")
        for t in found["tested"]
    ]
    names = ("threshold", "wrong tokens", f"at most, with {1 - found['delta']:g}", f"against {found['alpha']:g}")
    return ["## Risk", "", f"{found['n']} calibration prompts, decoded with each threshold.", *table(names, rows)]


def levels(made: Filter) -> list[str]:
    """Precision and recall, of the filter and of the plain confidence."""
    found = made.facts["quality"]
    rows = [
        (
            f"{a['threshold']:g}",
            *(f"{100 * v:.2f}" for v in (a["precision"], a["recall"], b["precision"], b["recall"])),
        )
        for a, b in zip(found["filter"]["levels"], found["confidence"]["levels"], strict=True)
    ]
    names = ("threshold", "filter: precision, %", "recall, %", "confidence: precision, %", "recall, %")
    text = (
        f"{found['columns']:,} masked columns at the oracle's steps on the calibration prompts, "
        f"{100 * found['final']:.1f} % of whose proposals are final."
    )
    return ["## Final or not", "", text, *table(names, rows)]


def reliability(made: Filter) -> list[str]:
    """What is believed and what is true."""
    found = made.facts["quality"]
    rows = [
        (*(f"{v:.3f}" for v in (a[0], a[1], b[0], b[1])), a[2])
        for a, b in zip(found["filter"]["reliability"], found["confidence"]["reliability"], strict=True)
    ]
    names = ("filter believes", "final", "confidence", "final", "columns")
    text = ", ".join(
        f"{name}: log-loss {found[name]['loss']:.4f}, calibration error {found[name]['calibration_error']:.4f}"
        for name in ("filter", "confidence")
    )
    return ["## Reliability", "", f"Tenths of the columns by belief. {text}.", *table(names, rows)]


def tables(made: Filter, tasks: Mapping[str, Points], trained_on: Collection[str]) -> Iterator[str]:
    """Accuracy and speed, a table for each task."""
    if tasks:
        yield "## Accuracy against answer tokens per forward"
        yield ""
        yield (
            "Held-out questions. Brackets: 95 % Wilson interval; the difference from plain thresholds (one token "
            "a step among them) at the same answer tokens per forward, by question, and its paired bootstrap interval; "
            "`*` marks the calibrated threshold."
        )
        yield ""
    for task, points in tasks.items():
        whether = "" if task not in trained_on and task.startswith(ALL) else f", {seen(task, trained_on)}"
        yield f"### {task}{whether}, n = {len(points['static'].right)}"
        plain = [p for name, p in points.items() if name.startswith(("static", "threshold"))]
        names = ("sampler", "right, %", "answer tokens per forward", "wrong tokens", "points above plain thresholds")
        yield from table(names, [cells(made, p, plain) for p in points.values()])


def seen(task: str, trained_on: Collection[str]) -> str:
    return "trained on" if task in trained_on else "not trained on"


def cells(made: Filter, p: Point, plain: Sequence[Point]) -> tuple[str, ...]:
    low, high = wilson(sum(p.right), len(p.right))
    gain = "-"
    if p.sampler.startswith("learned"):
        more, (least, most) = against(p, plain)
        gain = f"{100 * more:+.1f} ({100 * least:+.1f} to {100 * most:+.1f})"
    mark = " *" if p.sampler == f"learned:threshold={made.threshold:g}" else ""
    share = "-" if p.sampler == "oracle" else f"{100 * p.accuracy:.1f} ({100 * low:.0f} to {100 * high:.0f})"
    return f"`{p.sampler}`{mark}", share, f"{p.tokens_per_forward:.2f}", f"{p.risk:.4f}", gain
