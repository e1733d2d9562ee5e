"""Waiting lines: lists of words to copy, reorder or edit (ParallelBench)."""

import random
from functools import partial

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


def check_list(kind: str, given: tuple[str, ...], expected: tuple[str, ...], word: str, text: str) -> bool:
    """Whether the words answer the task: a shuffle in any other order, a random replacement at any place."""
    words = tuple(text.strip().split(", "))
    if kind == "shuffle":
        return sorted(words) == sorted(given) and words != given
    if kind == "replace_random":
        return any(words == (*given[:i], word, *given[i + 1 :]) for i in range(len(given)))
    return words == expected


def make_list(rng: random.Random, level: float) -> Problem:
    """A waiting line of 3 to 12 words to copy, reorder or edit (ParallelBench). Positions count from 1."""
    kind, length = rng.choice(tuple(LISTS)), rng.randint(3, 3 + round(9 * level))
    word, *given = rng.sample(WORDS, length + 1)
    index, result = rng.randrange(length + (kind == "insert")), list(given)
    if kind == "reverse":
        result.reverse()
    elif kind == "sort":
        result.sort()
    elif kind == "insert":
        result.insert(index, word)
    elif kind == "remove":
        word = result.pop(index)
    elif kind.startswith("replace"):
        result[index] = word
    while kind == "shuffle" and result == given:
        rng.shuffle(result)
    asked = rng.choice(LISTS[kind]).format(w=word, i=index + 1)
    question = f"{asked}\n{', '.join(given)}"
    check = partial(check_list, kind, tuple(given), tuple(result), word)
    return Problem("lists", kind, question, ", ".join(result), check)
