"""How many drafts pay: what a forward costs by its width against what drafts bring, both measured in this run.

On a GPU at small batches a forward of eight drafts costs what a forward of one does; on a CPU it costs about eight
times as much. Stopping where the next draft costs more than it brings is SpecDec++'s rule (arXiv:2405.19715), with
measured times in place of an assumed price.
"""

from collections.abc import Sequence

from dllm.plan import Plan

MOST = 8
TRIED = (2, 4, 1, 8)
"""Numbers of drafts that the first steps try, so that times of different widths are known."""
AGAIN = 16
"""After so many steps a larger number than the best is tried once: its drafts would else never be seen to come true."""
FADE = 0.95
"""What a measurement is worth one step later."""


class Pace:
    """Chooses the number of drafts that takes least time per step."""

    def __init__(self) -> None:
        self.steps = 0
        self.hits, self.trials = [0.0] * MOST, [0.0] * MOST
        """By depth: drafts that came true, and those that were reached."""
        self.sums = [0.0] * 5
        """Of 1, columns, columns², seconds, columns · seconds, over faded steps."""
        self.each = 0.0
        """Columns that one draft of all rows adds to a forward, in the last step."""

    def observe(self, plan: Plan, more: Sequence[int], forwards: int, seconds: float) -> None:
        """What came of a plan: of every row, how many drafts came true; how many forwards it took, and how long.

        A refresh tells nothing of what the steps after it cost.
        """
        if plan.counts != plan.step_counts:
            return
        self.steps += 1
        self.each = sum(plan.step_counts) / forwards
        columns, seconds = sum(map(plan.work, range(len(more)))) / forwards, seconds / forwards
        for had, true in zip(plan.drafts, more, strict=True):
            for depth in range(min(had - 1, true + 1)):
                self.hits[depth] = FADE * self.hits[depth] + (depth < true)
                self.trials[depth] = FADE * self.trials[depth] + 1
        new = (1.0, columns, columns * columns, seconds, columns * seconds)
        self.sums = [FADE * old + one for old, one in zip(self.sums, new, strict=True)]

    @property
    def cost(self) -> tuple[float, float]:
        """Seconds of a forward of no width, and of every column: least squares, neither below 0."""
        n, x, xx, y, xy = self.sums
        slope = max(0.0, (n * xy - x * y) / (n * xx - x * x)) if n * xx - x * x > 1e-9 * xx else y / x
        start = (y - slope * x) / n
        return (start, slope) if start >= 0 else (0.0, y / x)

    def steps_of(self, drafts: int) -> float:
        """How many steps a forward of so many drafts is expected to take: 1 and more."""
        reached, steps, share = 1.0, 1.0, 0.5
        for depth in range(drafts - 1):
            share = (self.hits[depth] + share) / (self.trials[depth] + 1)  # where nothing is known: as one less deep
            reached *= share
            steps += reached
        return steps

    @property
    def drafts(self) -> int:
        """The number to compute next, the canvas itself included."""
        if self.steps < len(TRIED):
            return TRIED[self.steps]
        start, slope = self.cost
        best = min(range(1, MOST + 1), key=lambda n: (start + slope * n * self.each) / self.steps_of(n))
        return min(2 * best, MOST) if self.steps % AGAIN == 0 else best
