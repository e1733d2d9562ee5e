"""What every task makes: a question, one of its right answers, and the means to check another."""

from collections.abc import Callable
from dataclasses import dataclass, field

Check = Callable[[str], bool]


@dataclass(frozen=True)
class Problem:
    """A question, one sampled right answer, and its checkers; `grammar` (math) checks every line of the solution."""

    task: str
    kind: str
    question: str
    answer: str
    check: Check = field(compare=False, repr=False)
    grammar: Check | None = field(default=None, compare=False, repr=False)
    entry_point: str = ""
    tests: str = ""
