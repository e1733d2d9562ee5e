"""Find the fastest sampler and cache that lose at most so much accuracy against one token a step.

Search: successive halving (arXiv:1502.07943), all candidates on the same questions. What is surely too bad goes; of the
rest the better half stays, by fronts of loss and speed (as in arXiv:2106.12639), since the loss is not known well yet.
Test: the front that is left, on questions that the search did not see, the slowest and safest first, until one fails.
A fixed sequence of tests at level delta keeps the chance of any wrong approval below delta (Learn then Test,
arXiv:2110.01052); each test is the exact bound of `bounds.loss_bound`.
"""

from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise

from dllm.evaluate.bench import BASELINE, Candidate, Cell, Cells
from dllm.evaluate.bounds import loss_bound
from dllm.evaluate.tasks.base import Question

Measure = Callable[[Candidate, Sequence[Question]], Cell]
"""Answers questions with a candidate."""
ROUNDS = 3
"""Of the search: all candidates on a quarter of its questions, half of them on half, a quarter on all."""


def fronts(cells: Cells, base: Cell) -> Iterator[list[Candidate]]:
    """The candidates that none beats in loss and speed, then those that only these beat, and so on; slowest first."""
    left = dict(cells)
    while left:
        at = {c: (cell.loss(base), -cell.tokens_per_second) for c, cell in left.items()}
        front = [c for c in left if not any(beats(at[other], at[c]) for other in left)]
        yield sorted(front, key=lambda c: -at[c][1])
        left = {c: cell for c, cell in left.items() if c not in front}


def beats(one: tuple[float, float], other: tuple[float, float]) -> bool:
    """Whether one is nowhere larger and somewhere smaller."""
    return one != other and all(a <= b for a, b in zip(one, other, strict=True))


def better_half(cells: Cells, base: Cell, lose: float) -> list[Candidate]:
    """Half of the candidates, rounded up, by fronts and then by speed; none whose loss is surely above `lose`."""
    hopeful = {c: cell for c, cell in cells.items() if surely(cell, base) <= lose}
    order = [c for front in fronts(hopeful, base) for c in reversed(front)]
    return order[: (len(cells) + 1) // 2]


def surely(cell: Cell, base: Cell) -> float:
    """What the loss is at least, with 95 % confidence."""
    lost, won = cell.differs(base)
    return -loss_bound(won, lost, len(cell.right), 0.05)


def search(bench: Measure, candidates: Sequence[Candidate], asked: Sequence[Question], lose: float) -> Cells:
    """Cells of the baseline and all candidates, of those that came far on all questions, else on the first of them."""
    cells: Cells = {}
    alive, stops = list(candidates), [0, *(len(asked) >> shift for shift in range(ROUNDS - 1, -1, -1))]
    for start, stop in pairwise(stops):
        for candidate in (BASELINE, *alive):
            new = bench(candidate, asked[start:stop])
            cells[candidate] = cells[candidate] + new if candidate in cells else new
        base = cells[BASELINE]
        if stop < len(asked):
            alive = better_half({c: cells[c] for c in alive}, base, lose)
    return cells


def finalists(cells: Cells, lose: float) -> list[Candidate]:
    """What is worth a test: the front of those that answered all of the search's questions, the slowest first."""
    base = cells[BASELINE]
    whole = {
        c: cell
        for c, cell in cells.items()
        if c != BASELINE and len(cell.right) == len(base.right) and cell.loss(base) <= lose
    }
    faster = {c: cell for c, cell in whole.items() if cell.tokens_per_second > base.tokens_per_second}
    return next(fronts(faster, base), [])


def approved(
    bench: Measure, order: Sequence[Candidate], asked: Sequence[Question], lose: float, delta: float
) -> tuple[Cells, dict[Candidate, float]]:
    """Cells on held-out questions of the baseline and of the candidates tested, and the bounds of those that passed."""
    cells = {BASELINE: bench(BASELINE, asked)} if order else {}
    passed: dict[Candidate, float] = {}
    for candidate in order:
        cells[candidate] = bench(candidate, asked)
        bound = loss_bound(*cells[candidate].differs(cells[BASELINE]), len(asked), delta)
        if bound > lose:
            break
        passed[candidate] = bound
    return cells, passed
