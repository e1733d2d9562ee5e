"""Waiting lines: lists of words to copy, reorder or edit (ParallelBench)."""

import random
from collections.abc import Sequence
from dataclasses import dataclass

from dllm.zoo.tasks.problem import Problem

ALL_WORDS = (
    "apple bear bird boat book bread bridge cake car cat chair cloud coat corn cup desk dog door drum duck egg fish "
    "flag frog gate goat grass hat hill horse house jar key king lake lamp leaf lion map milk moon mouse nest owl pear "
    "pen pig plane queen rain ring river road rose ship shoe snow star stone sun tent train tree wolf"
)
WORDS = ALL_WORDS.split()
LISTS = {
    "copy": ("Copy this list:", "Repeat the list as it is:", "Write the same list again:"),
    "reverse": ("Reverse this list:", "Write the list backwards:", "Turn the order of the list around:"),
    "sort": ("Sort this list:", "Write the list in alphabetical order:", "Order the words from a to z:"),
    "insert": ('Insert "{w}" at position {i}:', 'Put "{w}" into the list as number {i}:'),
    "remove": ('Remove "{w}" from the list:', 'Write the list without "{w}":', 'Delete "{w}":'),
    "replace_index": ('Replace word number {i} with "{w}":', 'Put "{w}" in place of word number {i}:'),
    "replace_random": ('Replace any one word with "{w}":', 'Put "{w}" in place of a random word:'),
    "shuffle": ("Shuffle this list:", "Write the list in a random order:", "Mix up the order of the list:"),
}
"""What the problems of `lists` ask for; the bundled models were trained on these."""
MORE_LISTS = {
    "insert_random": ('Insert "{w}" at any position:', 'Put "{w}" anywhere into the list:'),
    "remove_index": ("Remove word number {i}:", "Write the list without word number {i}:"),
    "remove_random": ("Remove any one word:", "Write the list without a random word:"),
}
"""What else ParallelBench asks for, which the bundled models have never seen."""


@dataclass(frozen=True)
class Line:
    """A list of different words, what is to be done with it, and one right answer."""

    kind: str
    question: str
    given: Sequence[str]
    word: str
    """What is inserted, put in place of another, or removed."""
    expected: Sequence[str]

    def fits(self, words: Sequence[str]) -> bool:
        """Whether the words answer the question: a shuffle in any other order, a random edit at any place."""
        given, n = list(self.given), len(self.given)
        if self.kind == "shuffle":
            return sorted(words) == sorted(given) and list(words) != given
        if self.kind == "replace_random":
            return any(list(words) == [*given[:i], self.word, *given[i + 1 :]] for i in range(n))
        if self.kind == "insert_random":
            return any(list(words) == [*given[:i], self.word, *given[i:]] for i in range(n + 1))
        if self.kind == "remove_random":
            return any(list(words) == [*given[:i], *given[i + 1 :]] for i in range(n))
        return list(words) == list(self.expected)

    def check(self, text: str) -> bool:
        """Whether the text is a right list, with a comma and a space between its words and nothing else."""
        return self.fits(text.strip().split(", "))


def make_line(rng: random.Random, kind: str, length: int) -> Line:
    """A line of `length` words to copy, reorder or edit as `kind` says. Positions count from 1."""
    word, *given = rng.sample(WORDS, length + 1)
    index, result = rng.randrange(length + kind.startswith("insert")), list(given)
    if kind == "reverse":
        result.reverse()
    elif kind == "sort":
        result.sort()
    elif kind.startswith("insert"):
        result.insert(index, word)
    elif kind.startswith("remove"):
        word = result.pop(index)
    elif kind.startswith("replace"):
        result[index] = word
    while kind == "shuffle" and result == given:
        rng.shuffle(result)
    asked = rng.choice((LISTS | MORE_LISTS)[kind]).format(w=word, i=index + 1)
    return Line(kind, f"{asked}\n{', '.join(given)}", tuple(given), word, tuple(result))


def make_list(rng: random.Random, level: float) -> Problem:
    """A waiting line of 3 to 12 words of any kind in LISTS (ParallelBench)."""
    line = make_line(rng, rng.choice(tuple(LISTS)), rng.randint(3, 3 + round(9 * level)))
    return Problem("lists", line.kind, line.question, ", ".join(line.expected), line.check)
