"""Small functions to complete, as in HumanEval; a body is compared with the accepted ones and never run."""

import ast
import random
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

from dllm.zoo.tasks.lists import WORDS
from dllm.zoo.tasks.problem import Problem

ARGUMENTS = {
    "int": ("x", "n", "number", "value"),
    "list[int]": ("nums", "numbers", "values", "items"),
    "str": ("s", "text", "word", "string"),
    "list[str]": ("words", "names", "strings"),
}
RESULTS, ITEMS = ("result", "out", "answer"), ("i", "item", "e")
COLLECT = "{v} = []\nfor {i} in {x}:\n    "
RETURN = "\nreturn {v}"


@dataclass(frozen=True)
class Family:
    """Functions that differ in names and a constant {c}; {x} {y} are arguments, {v} {i} locals of the body."""

    name: str
    arguments: str
    returns: str
    docs: tuple[str, ...]
    value: Callable[..., object]
    bodies: tuple[str, ...]


def _family(name: str, signature: str, value: Callable[..., object], docs: str, *bodies: str) -> Family:
    """Read a signature such as 'int -> bool' and docs divided by slashes; `value` takes the arguments, then c."""
    arguments, returns = signature.split(" -> ")
    return Family(name, arguments, returns, tuple(docs.split(" / ")), value, bodies)


FAMILIES = (
    _family("add", "int -> int", lambda x, c: x + c,
            "Add {c} to {x}. / Return {x} plus {c}.",
            "return {x} + {c}", "return {c} + {x}", "{v} = {x} + {c}" + RETURN),
    _family("minus", "int -> int", lambda x, c: x - c,
            "Subtract {c} from {x}. / Return {x} minus {c}.",
            "return {x} - {c}", "{v} = {x} - {c}" + RETURN),
    _family("times", "int -> int", lambda x, c: x * c,
            "Multiply {x} by {c}. / Return {c} times {x}.",
            "return {x} * {c}", "return {c} * {x}", "{v} = {x} * {c}" + RETURN),
    _family("rest", "int -> int", lambda x, c: x % c,
            "Return the rest of {x} divided by {c}. / Divide {x} by {c} and return the rest.",
            "return {x} % {c}", "{v} = {x} % {c}" + RETURN),
    _family("divide", "int -> int", lambda x, c: x // c,
            "Divide {x} by {c} and round down. / Return how often {c} fits into {x}.",
            "return {x} // {c}", "{v} = {x} // {c}" + RETURN),
    _family("is_multiple", "int -> bool", lambda x, c: x % c == 0,
            "Is {x} a multiple of {c}? / Return whether {c} divides {x}.",
            "return {x} % {c} == 0", "return not {x} % {c}", "if {x} % {c} == 0:\n    return True\nreturn False"),
    _family("is_large", "int -> bool", lambda x, c: x > c,
            "Is {x} larger than {c}? / Return whether {x} is more than {c}.",
            "return {x} > {c}", "return {c} < {x}", "if {x} > {c}:\n    return True\nreturn False"),
    _family("square", "int -> int", lambda x, c: x * x + c,
            "Return the square of {x} plus {c}. / Square {x} and add {c}.",
            "return {x} * {x} + {c}", "return {x} ** 2 + {c}", "{v} = {x} * {x}\nreturn {v} + {c}"),
    _family("limit", "int -> int", lambda x, c: min(x, c),
            "Return {x}, but at most {c}. / Limit {x} to {c}.",
            "return min({x}, {c})", "return min({c}, {x})", "if {x} > {c}:\n    return {c}\nreturn {x}"),
    _family("at_least", "int -> int", lambda x, c: max(x, c),
            "Return {x}, but at least {c}. / Raise {x} to {c}.",
            "return max({x}, {c})", "return max({c}, {x})", "if {x} < {c}:\n    return {c}\nreturn {x}"),
    _family("larger", "int int -> int", lambda x, y, _: max(x, y),
            "Return the larger of {x} and {y}. / Which is more, {x} or {y}?",
            "return max({x}, {y})", "return {x} if {x} > {y} else {y}", "if {x} > {y}:\n    return {x}\nreturn {y}"),
    _family("distance", "int int -> int", lambda x, y, _: abs(x - y),
            "Return the distance of {x} and {y}. / How far is {x} from {y}?",
            "return abs({x} - {y})", "return abs({y} - {x})", "return max({x}, {y}) - min({x}, {y})"),
    _family("sum_to", "int -> int", lambda x, _: x * (x + 1) // 2,
            "Sum the numbers from 0 to {x}. / Add all numbers up to {x}.",
            "return sum(range({x} + 1))", "return {x} * ({x} + 1) // 2",
            "{v} = 0\nfor {i} in range({x} + 1):\n    {v} += {i}" + RETURN),
    _family("total", "list[int] -> int", lambda x, c: sum(x) + c,
            "Return the sum of {x} plus {c}. / Sum {x} and add {c}.",
            "return sum({x}) + {c}", "return {c} + sum({x})", "{v} = {c}\nfor {i} in {x}:\n    {v} += {i}" + RETURN),
    _family("spread", "list[int] -> int", lambda x, _: max(x) - min(x),
            "Return the largest minus the smallest of {x}. / How far apart are {x} at most?",
            "return max({x}) - min({x})", "{v} = sorted({x})\nreturn {v}[-1] - {v}[0]"),
    _family("count_large", "list[int] -> int", lambda x, c: sum(i > c for i in x),
            "Count the numbers larger than {c}. / How many of {x} are more than {c}?",
            "return len([{i} for {i} in {x} if {i} > {c}])", "return sum({i} > {c} for {i} in {x})",
            "{v} = 0\nfor {i} in {x}:\n    if {i} > {c}:\n        {v} += 1" + RETURN),
    _family("keep_large", "list[int] -> list[int]", lambda x, c: [i for i in x if i > c],
            "Keep the numbers larger than {c}. / Return those of {x} that are more than {c}.",
            "return [{i} for {i} in {x} if {i} > {c}]", COLLECT + "if {i} > {c}:\n        {v}.append({i})" + RETURN),
    _family("multiples", "list[int] -> list[int]", lambda x, c: [i for i in x if i % c == 0],
            "Keep the multiples of {c}. / Return those of {x} that {c} divides.",
            "return [{i} for {i} in {x} if {i} % {c} == 0]",
            COLLECT + "if {i} % {c} == 0:\n        {v}.append({i})" + RETURN),
    _family("add_all", "list[int] -> list[int]", lambda x, c: [i + c for i in x],
            "Add {c} to every number. / Return {x} with {c} added to each.",
            "return [{i} + {c} for {i} in {x}]", "return [{c} + {i} for {i} in {x}]",
            COLLECT + "{v}.append({i} + {c})" + RETURN),
    _family("scale", "list[int] -> list[int]", lambda x, c: [i * c for i in x],
            "Multiply every number by {c}. / Return {x} with each times {c}.",
            "return [{i} * {c} for {i} in {x}]", "return [{c} * {i} for {i} in {x}]",
            COLLECT + "{v}.append({i} * {c})" + RETURN),
    _family("squares", "list[int] -> list[int]", lambda x, _: [i * i for i in x],
            "Square every number. / Return the squares of {x}.",
            "return [{i} * {i} for {i} in {x}]", "return [{i} ** 2 for {i} in {x}]",
            COLLECT + "{v}.append({i} * {i})" + RETURN),
    _family("backwards", "list[int] -> list[int]", lambda x, _: x[::-1],
            "Reverse {x}. / Return {x} backwards.",
            "return {x}[::-1]", "return list(reversed({x}))", "{v} = list({x})\n{v}.reverse()" + RETURN),
    _family("first", "list[int] -> list[int]", lambda x, c: x[:c],
            "Return the first {c} of {x}. / Keep only the first {c}.",
            "return {x}[:{c}]", "return [{x}[{i}] for {i} in range(min({c}, len({x})))]", "{v} = {x}[:{c}]" + RETURN),
    _family("ordered", "list[int] -> list[int]", lambda x, _: sorted(x),
            "Sort {x}. / Return {x} in order.",
            "return sorted({x})", "{v} = list({x})\n{v}.sort()" + RETURN, "{v} = sorted({x})" + RETURN),
    _family("contains", "list[int] -> bool", lambda x, c: c in x,
            "Is {c} in {x}? / Return whether {x} contain {c}.",
            "return {c} in {x}", "return any({i} == {c} for {i} in {x})",
            "for {i} in {x}:\n    if {i} == {c}:\n        return True\nreturn False"),
    _family("repeat", "str -> str", lambda x, c: x * c,
            "Repeat {x} {c} times. / Return {c} copies of {x}.",
            "return {x} * {c}", "return {c} * {x}", '{v} = ""\nfor {i} in range({c}):\n    {v} += {x}' + RETURN),
    _family("upper", "str -> str", lambda x, _: x.upper(),
            "Return {x} in capitals. / Write {x} in capitals.",
            "return {x}.upper()", "{v} = {x}.upper()" + RETURN, 'return "".join({i}.upper() for {i} in {x})'),
    _family("flip", "str -> str", lambda x, _: x[::-1],
            "Reverse {x}. / Return {x} backwards.",
            "return {x}[::-1]", 'return "".join(reversed({x}))',
            '{v} = ""\nfor {i} in {x}:\n    {v} = {i} + {v}' + RETURN),
    _family("start", "str -> str", lambda x, c: x[:c],
            "Return the first {c} letters of {x}. / Cut {x} after {c} letters.",
            "return {x}[:{c}]", "{v} = {x}[:{c}]" + RETURN),
    _family("is_long", "str -> bool", lambda x, c: len(x) > c,
            "Has {x} more than {c} letters? / Return whether {x} is longer than {c}.",
            "return len({x}) > {c}", "return {c} < len({x})", "if len({x}) > {c}:\n    return True\nreturn False"),
    _family("same_ends", "str -> bool", lambda x, _: x[0] == x[-1],
            "Do the first and last letter of {x} agree? / Return whether {x} starts as it ends.",
            "return {x}[0] == {x}[-1]", "return {x}[-1] == {x}[0]", "return {x}.endswith({x}[0])"),
    _family("lengths", "list[str] -> list[int]", lambda x, _: [len(i) for i in x],
            "Return the length of each word. / How long is each of {x}?",
            "return [len({i}) for {i} in {x}]", "return list(map(len, {x}))",
            COLLECT + "{v}.append(len({i}))" + RETURN),
    _family("longer", "list[str] -> list[str]", lambda x, c: [i for i in x if len(i) > c],
            "Keep the words with more than {c} letters. / Return those of {x} longer than {c}.",
            "return [{i} for {i} in {x} if len({i}) > {c}]",
            COLLECT + "if len({i}) > {c}:\n        {v}.append({i})" + RETURN),
    _family("initials", "list[str] -> list[str]", lambda x, _: [i[0] for i in x],
            "Return the first letter of each word. / Keep one letter of each word.",
            "return [{i}[0] for {i} in {x}]", COLLECT + "{v}.append({i}[0])" + RETURN),
    _family("join", "list[str] -> str", lambda x, _: "".join(x),
            "Join {x} to one word. / Write {x} without spaces.",
            'return "".join({x})', '{v} = ""\nfor {i} in {x}:\n    {v} += {i}' + RETURN),
    _family("longest", "list[str] -> str", lambda x, _: max(x, key=len),
            "Return the longest word. / Which of {x} is the longest?",
            "return max({x}, key=len)",
            "{v} = {x}[0]\nfor {i} in {x}:\n    if len({i}) > len({v}):\n        {v} = {i}" + RETURN),
)  # fmt: skip


def _input(rng: random.Random, kind: str) -> object:
    if kind == "int":
        return rng.randint(0, 20)
    if kind == "list[int]":
        return [rng.randint(0, 20) for _ in range(rng.randint(2, 4))]
    return rng.choice(WORDS) if kind == "str" else rng.sample(WORDS, rng.randint(2, 3))


def _tree(source: str) -> str | None:
    """The dump of the function with its locals renamed in order of appearance, None where it does not parse."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # "4if x" parses with a warning, which is not the text's fault
            tree = ast.parse(source)
        names = [node for node in ast.walk(tree) if isinstance(node, ast.Name)]
        arguments = {node.arg for node in ast.walk(tree) if isinstance(node, ast.arg)}
        stored = {name.id for name in names if isinstance(name.ctx, ast.Store)} - arguments
        renamed: dict[str, str] = {}
        for name in names:
            if name.id in stored:
                name.id = renamed.setdefault(name.id, f"local {len(renamed)}")
        return ast.dump(tree)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return None


def check_code(prompt: str, bodies: Sequence[str], text: str) -> bool:
    """Whether the body is one of the accepted ones up to the names of its locals. Nothing is executed."""
    found = _tree(prompt + text)
    return found is not None and found in {_tree(prompt + body) for body in bodies}


def make_code(rng: random.Random, level: float) -> Problem:
    """A signature with a docstring to complete, as in HumanEval."""
    family = rng.choice(FAMILIES[: max(8, round(level * len(FAMILIES)))])
    kinds = family.arguments.split(" ")
    x, y = rng.sample(ARGUMENTS[kinds[0]], 2)
    names = {"x": x, "y": y, "v": rng.choice(RESULTS), "i": rng.choice(ITEMS), "c": rng.randint(2, 12)}
    entry = rng.choice((family.name, family.name, f"{family.name}_{names['c']}", "solve", "f"))
    inputs = [[_input(rng, kind) for kind in kinds] for _ in range(4)]
    calls = [(f"{entry}({', '.join(map(repr, given))})", family.value(*given, names["c"])) for given in inputs]
    examples = "".join(f"    >>> {call}\n    {result!r}\n" for call, result in calls[: rng.randint(1, 2)])
    signature = ", ".join(f"{name}: {kind}" for name, kind in zip((x, y), kinds, strict=False))
    doc = rng.choice(family.docs).format(**names)
    prompt = f'def {entry}({signature}) -> {family.returns}:\n    """{doc}\n\n{examples}    """\n'
    bodies = tuple("    " + body.format(**names).replace("\n", "\n    ") for body in family.bodies)
    tests = "\n".join(f"assert {call} == {result!r}" for call, result in calls)
    check = partial(check_code, prompt, bodies)
    return Problem("code", family.name, prompt, rng.choice(bodies), check, entry_point=entry, tests=tests)
