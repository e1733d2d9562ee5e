"""Procedural tasks with exact checkers: word problems, waiting lines, small functions and sums.

`answer` is one sample of many right answers: the phrasing, the order of the steps and every free choice are drawn, so
that only an answer whose tokens agree with each other is right. A hash of the question parts train from test.
"""

import ast
import hashlib
import operator
import random
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import product

Check = Callable[[str], bool]

WORDS = [
    "apple",
    "bear",
    "bird",
    "boat",
    "book",
    "bread",
    "bridge",
    "cake",
    "car",
    "cat",
    "chair",
    "cloud",
    "coat",
    "corn",
    "cup",
    "desk",
    "dog",
    "door",
    "drum",
    "duck",
    "egg",
    "fish",
    "flag",
    "frog",
    "gate",
    "goat",
    "grass",
    "hat",
    "hill",
    "horse",
    "house",
    "jar",
    "key",
    "king",
    "lake",
    "lamp",
    "leaf",
    "lion",
    "map",
    "milk",
    "moon",
    "mouse",
    "nest",
    "owl",
    "pear",
    "pen",
    "pig",
    "plane",
    "queen",
    "rain",
    "ring",
    "river",
    "road",
    "rose",
    "ship",
    "shoe",
    "snow",
    "star",
    "stone",
    "sun",
    "tent",
    "train",
    "tree",
    "wolf",
]
GIRLS = ["Anna", "Clara", "Emma", "Ida", "Lena", "Maria", "Nora", "Sara"]
BOYS = ["Ben", "David", "Felix", "Jonas", "Leo", "Max", "Paul", "Tom"]
THINGS = tuple(
    tuple(pair.split("/"))
    for pair in [
        "apples/fruits",
        "pears/fruits",
        "plums/fruits",
        "roses/flowers",
        "tulips/flowers",
        "pens/things",
        "balls/toys",
        "marbles/toys",
        "cards/pieces",
        "shells/pieces",
        "stamps/pieces",
        "coins/pieces",
        "cookies/treats",
        "candies/treats",
        "books/things",
        "beads/pieces",
    ]
)
UNITS = {"things": THINGS, "dollars": (("dollars", "bucks"),), "pages": (("pages", "sheets"),)}


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


# ---- math -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Step:
    """target = left op right, said about `subject` (A, B or AB) in one of the phrasings of `kind`."""

    target: str
    left: str
    op: str
    right: str
    kind: str
    subject: str


@dataclass(frozen=True)
class Template:
    question: str
    plans: tuple[tuple[Step, ...], ...]
    unit: str
    variables: tuple[str, ...]


@dataclass(frozen=True)
class Style:
    """The choices that an answer makes once and must keep."""

    prefixes: tuple[str, ...]
    unit: str
    subjects: Mapping[str, str]
    swap: bool


PHRASES = {
    "gain": ("{S} has {e} {u} now.", "that makes {e} {u}.", "adding up, {S} gets {e} {u}.", "there are {e} {u}."),
    "loss": ("{S} has {e} {u} left.", "that leaves {e} {u}.", "so {S} keeps {e} {u}.", "there remain {e} {u}."),
    "calc": ("{S} has {e} {u}.", "so {S} has {e} {u}.", "that is {e} {u}.", "here it is {e} {u}."),
    "gone": ("{S} gives away {e} {u}.", "the others get {e} {u}."),
    "both": ("{S} have {e} {u}.", "together {S} have {e} {u}.", "{S} have {e} {u} in total."),
    "cost": ("{S} pays {e} {u}.", "that costs {e} {u}.", "the price is {e} {u}."),
    "day": ("{S} reads {e} {u} that day.", "on that day it is {e} {u}."),
    "sum": ("{S} reads {e} {u}.", "adding up, it is {e} {u}.", "that makes {e} {u}."),
}
PREFIXES = (("",) * 4, ("First, ", "Then, ", "Next, ", "Finally, "), ("1. ", "2. ", "3. ", "4. "))
OPERATORS: dict[str, Callable[[int, int], int]] = {
    "+": operator.add, "-": operator.sub, "*": operator.mul, "/": operator.floordiv
}  # fmt: skip


def _template(question: str, *plans: str, unit: str = "things") -> Template:
    """Read a plan such as 'x=k*m calc A; y=a+x gain A'."""
    pattern = re.compile(r"(\w)=(\w)(.)(\w) (\w+) (\w+)")
    steps = tuple(tuple(Step(*match) for match in pattern.findall(plan)) for plan in plans)
    return Template(question, steps, unit, tuple(sorted(set(re.findall(r"\{([a-z])\}", question)) - {"u"})))


HAS = "{A} has {a} {u}. "
MORE, LESS = "{A} [gets|finds|buys] {b} more {u}. ", "{A} [loses|sells|gives away] {c} {u}. "
BOXES, BAGS = "{A} buys {k} [boxes|packs] with {m} {u} each. ", "{A} buys {l} [bags|baskets] with {n} {u} each. "
NOW, LEFT = "How many {u} does {A} have [now|in total]?", "How many {u} [does {A} have left|are left]?"
BHAS = "How many {u} does {B} have?"
TOGETHER = "How many {u} do [they|{A} and {B}|{B} and {A}] have [together|in total]?"
BMORE, BLESS = "{B} has {b} {u} more than {A}. ", "{B} has {b} {u} fewer than {A}. "
PRICE = "{A} buys {k} [pens|books|cups] for {m} {u} each"
PAYS, CHANGE = "{A} pays with {p} {u}. ", "How many {u} does {A} get back?"
READS = "{A} reads {a} {u} on [Monday|Friday]. The next day {A} reads {b} {u} more than that. "
READ = "How many {u} does {A} read in total?"
TEMPLATES = {
    1: (
        _template(HAS + MORE + NOW, "x=a+b gain A"),
        _template(HAS + LESS + LEFT, "x=a-c loss A"),
        _template(BOXES + NOW, "x=k*m calc A"),
        _template(HAS + "{B} has half as many. " + BHAS, "x=a/2 calc B"),
        _template(HAS + BMORE + BHAS, "x=a+b calc B"),
        _template(HAS + BLESS + BHAS, "x=a-b calc B"),
        _template("{A} has {m} {u}. {B} has {k} times as many. " + BHAS, "x=k*m calc B"),
        _template(HAS + "{B} has {b} {u}. " + TOGETHER, "x=a+b both AB"),
        _template(PRICE + ". How many {u} does {A} pay?", "x=k*m cost A", unit="dollars"),
    ),
    2: (
        _template(HAS + MORE + LESS + LEFT, "x=a+b gain A; y=x-c loss A", "x=a-c loss A; y=x+b gain A"),
        _template(
            HAS + "{A} gives {b} {u} to {B} and {c} {u} to a friend. " + LEFT,
            "x=a-b loss A; y=x-c loss A", "x=a-c loss A; y=x-b loss A", "x=b+c gone A; y=a-x loss A",
        ),
        _template(BOXES + LESS + LEFT, "x=k*m calc A; y=x-c loss A"),
        _template(HAS + BOXES + NOW, "x=k*m calc A; y=a+x gain A"),
        _template(HAS + BMORE + TOGETHER, "x=a+b calc B; y=a+x both AB"),
        _template(HAS + BLESS + TOGETHER, "x=a-b calc B; y=a+x both AB"),
        _template(HAS + "{B} has half as many. Then {B} [gets|finds|buys] {b} more {u}. " + BHAS,
            "x=a/2 calc B; y=x+b gain B"),
        _template(PRICE + ". " + PAYS + CHANGE, "x=k*m cost A; y=p-x loss A", unit="dollars"),
        _template(READS + READ, "x=a+b day A; y=a+x sum A", unit="pages"),
    ),
    3: (
        _template(BOXES + BAGS + NOW, "x=k*m calc A; y=l*n calc A; z=x+y gain A"),
        _template(
            HAS + BOXES + LESS + LEFT,
            "x=k*m calc A; y=a+x gain A; z=y-c loss A", "x=k*m calc A; y=x-c loss A; z=a+y gain A",
            "x=k*m calc A; y=a-c loss A; z=x+y gain A",
        ),
        _template(HAS + BMORE + "Then {A} [gets|finds|buys] {c} more {u}. " + TOGETHER,
                  "x=a+b calc B; y=a+c gain A; z=y+x both AB"),
        _template(HAS + BLESS + "Then {A} [loses|sells|gives away] {c} {u}. " + TOGETHER,
                  "x=a-b calc B; y=a-c loss A; z=y+x both AB"),
        _template(READS + "Later {A} reads {c} {u}. " + READ,
                  "x=a+b day A; y=a+x sum A; z=y+c sum A", "x=a+b day A; y=x+c sum A; z=y+a sum A",
                  "x=a+b day A; y=a+c sum A; z=y+x sum A",
                  unit="pages"),
        _template(PRICE + " and a bag for {c} {u}. " + PAYS + CHANGE,
                  "x=k*m cost A; y=x+c cost A; z=p-y loss A", "x=k*m cost A; y=p-x loss A; z=y-c loss A",
                  "x=k*m cost A; y=p-c loss A; z=y-x loss A", unit="dollars"),
    ),
    4: (
        _template(BOXES + BAGS + LESS + LEFT,
                  "x=k*m calc A; y=l*n calc A; z=x+y gain A; v=z-c loss A",
                  "x=k*m calc A; y=l*n calc A; z=x-c loss A; v=z+y gain A"),
        _template(HAS + BOXES + BAGS + NOW,
                  "x=k*m calc A; y=l*n calc A; z=x+y gain A; v=a+z gain A",
                  "x=k*m calc A; y=l*n calc A; z=a+x gain A; v=z+y gain A"),
        _template(PRICE + " and {l} [lamps|balls] for {n} {u} each. " + PAYS + CHANGE,
                  "x=k*m cost A; y=l*n cost A; z=x+y cost A; v=p-z loss A",
                  "x=k*m cost A; y=l*n cost A; z=p-x loss A; v=z-y loss A",
                  "x=k*m cost A; y=l*n cost A; z=p-y loss A; v=z-x loss A", unit="dollars"),
        _template(HAS + BMORE + "Then {A} [gets|finds] {c} more {u} and {B} [loses|sells] {d} {u}. " + TOGETHER,
                  "x=a+b calc B; y=a+c gain A; z=x-d loss B; v=y+z both AB"),
        _template(HAS + BLESS + "Then {A} [loses|sells] {c} {u} and {B} [gets|finds] {d} more {u}. " + TOGETHER,
                  "x=a-b calc B; y=a-c loss A; z=x+d gain B; v=y+z both AB"),
        _template(READS + "Later {A} reads {c} {u} and then {d} {u}. " + READ,
                  "x=a+b day A; y=a+x sum A; z=c+d sum A; v=y+z sum A",
                  "x=a+b day A; y=a+x sum A; z=y+c sum A; v=z+d sum A",
                  "x=a+b day A; y=x+c sum A; z=a+d sum A; v=y+z sum A", unit="pages"),
        _template(BOXES + "{B} buys {l} [bags|baskets] with {n} {u} each. Then " + LESS + TOGETHER,
                  "x=k*m calc A; y=l*n calc B; z=x-c loss A; v=z+y both AB"),
    ),
}  # fmt: skip


def _numbers(rng: random.Random, names: Sequence[str], level: float) -> dict[str, int]:
    high = 20 + round(39 * level)
    ranges = {"k": (2, 6), "l": (2, 6), "m": (2, 12), "n": (2, 12)}
    draw = {name: rng.randint(*ranges.get(name, (2, high))) for name in names if name != "p"}
    return draw | ({"p": rng.choice((50, 80, 100, 150))} if "p" in names else {})


def _values(plan: Sequence[Step], given: Mapping[str, int]) -> dict[str, int] | None:
    """Every value of the plan, or None where one is not a whole number from 1 to 199."""
    values = dict(given)
    for step in plan:
        left, right = values[step.left], values[step.right] if step.right != "2" else 2
        if step.op == "/" and left % right:
            return None
        values[step.target] = value = OPERATORS[step.op](left, right)
        if not 1 <= value <= 199:
            return None
    return values


def _lines(step: Step, position: int, style: Style, values: Mapping[str, int]) -> list[str]:
    """Every right way to say this step in this style. With two subjects the operands follow the order of the names."""
    left, right = values[step.left], 2 if step.right == "2" else values[step.right]
    orders = [(left, right)]
    if step.op in "+*":
        swapped = [(right, left)]
        orders = (swapped if style.swap else orders) if step.subject == "AB" else orders + swapped
    subject, prefix, lines = style.subjects[step.subject], style.prefixes[position], []
    for phrase, (a, b) in product(PHRASES[step.kind], orders):
        expression = f"{a} {step.op} {b} = {values[step.target]}"
        line = phrase.format(S=subject, e=expression, u=style.unit)
        lines.append(prefix + (line if prefix.endswith(", ") else line[0].upper() + line[1:]))
    return lines


def _ready(plan: Sequence[Step], done: Sequence[Step]) -> list[Step]:
    """The steps whose operands are known once `done` is said."""
    pending = {step.target for step in plan if step not in done}
    return [step for step in plan if step not in done and not {step.left, step.right} & pending]


def _subjects(plan: Sequence[Step], a: str, b: str) -> list[tuple[dict[str, str], bool]]:
    """The ways to name who acts, and whether operands swap: two names in both orders, or one name or its pronoun."""
    names, kinds = {"A": a, "B": b}, {step.subject for step in plan}
    if "AB" in kinds:
        return [(names | {"AB": f"{a} and {b}"}, False), (names | {"AB": f"{b} and {a}"}, True)]
    pronouns = {who: "she" if name in GIRLS else "he" for who, name in names.items()}
    return [(names, False)] + [(pronouns, False)] * (len(kinds) == 1)


def check_final(final: int, text: str) -> bool:
    """Whether the last '#### N' names the number."""
    found = re.findall(r"#### (-?\d+)", text)
    return bool(found) and int(found[-1]) == final


def _follows(
    plan: Sequence[Step], values: Mapping[str, int], style: Style, lines: Sequence[str], done: Sequence[Step]
) -> bool:
    """Whether the lines after those `done` say the other steps of the plan in a possible order."""
    return len(done) == len(lines) or any(
        lines[len(done)] in _lines(step, len(done), style, values)
        and _follows(plan, values, style, lines, [*done, step])
        for step in _ready(plan, done)
    )


def check_solution(
    plans: Sequence[tuple[Sequence[Step], Mapping[str, int]]], units: Sequence[str], names: tuple[str, str], text: str
) -> bool:
    """Whether the text is a solution that the grammar can write: right sums in a possible order, all in one style."""
    *lines, last = text.strip().split("\n")
    for (plan, values), prefixes, unit in product(plans, PREFIXES, units):
        if len(lines) != len(plan) or last != f"#### {values[plan[-1].target]}":
            continue
        styles = [Style(prefixes, unit, subjects, swap) for subjects, swap in _subjects(plan, *names)]
        if any(_follows(plan, values, style, lines, []) for style in styles):
            return True
    return False


def _vary(rng: random.Random, text: str) -> str:
    """Choose one of every [a|b|c]."""
    return re.sub(r"\[([^]]*)\]", lambda match: rng.choice(match[1].split("|")), text)


def make_math(rng: random.Random, level: float) -> Problem:
    """A word problem of one to four steps, answered step by step as in GSM8K."""
    steps = rng.randint(1, 1 + round(3 * level))
    template = rng.choice(TEMPLATES[steps])
    solved: list[tuple[tuple[Step, ...], dict[str, int]]] = []
    while not solved or solved[0][0] is not template.plans[0]:
        given = _numbers(rng, template.variables, level)
        solved = [(plan, values) for plan in template.plans if (values := _values(plan, given)) is not None]
    a, b = rng.sample(GIRLS + BOYS, 2)
    units = rng.choice(UNITS[template.unit])
    question = _vary(rng, template.question).format(A=a, B=b, u=units[0], **given)
    plan, values = rng.choice(solved)
    subjects, swap = rng.choice(_subjects(plan, a, b))
    style, done, lines = Style(rng.choice(PREFIXES), rng.choice(units), subjects, swap), list[Step](), list[str]()
    while len(done) < len(plan):
        step = rng.choice(_ready(plan, done))
        lines.append(rng.choice(_lines(step, len(done), style, values)))
        done.append(step)
    final = values[plan[-1].target]
    return Problem(
        "math", f"steps{steps}", question, "\n".join([*lines, f"#### {final}"]), partial(check_final, final),
        partial(check_solution, solved, units, (a, b)),
    )  # fmt: skip


def make_drill(rng: random.Random, level: float) -> Problem:
    """One to six sums, to be written out with their results: the arithmetic of `math` without its words."""
    high, lines = 20 + round(39 * level), list[str]()
    for _ in range(rng.randint(1, 6)):
        op, left, right = rng.choice("+-*/++-"), rng.randint(2, high), rng.randint(2, high)
        if op == "*":
            left, right = rng.sample((rng.randint(2, 6), rng.randint(2, 12)), 2)
        elif op == "/":
            left, right = 2 * (left // 2), 2
        elif op == "-":
            left = rng.randint(right + 1, 199 if rng.random() < 0.3 else right + high)
        elif rng.random() < 0.3:
            left = rng.randint(2, 199 - right)
        lines.append(f"{left} {op} {right} = {OPERATORS[op](left, right)}")
    question = "\n".join(line[: line.index("=") + 1] for line in lines)
    answer = "\n".join(lines) if len(lines) > 1 else lines[0].split("= ")[1]
    return Problem("drill", "drill", question, answer, partial(_same, answer))


def _same(answer: str, text: str) -> bool:
    return text.strip() == answer


# ---- lists ----------------------------------------------------------------------------------------------------------

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


# ---- code -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Family:
    """Functions that differ in names and a constant {c}; {x} {y} are arguments, {v} {i} locals of the body."""

    name: str
    arguments: str
    returns: str
    docs: tuple[str, ...]
    value: Callable[..., object]
    bodies: tuple[str, ...]


ARGUMENTS = {
    "int": ["x", "n", "number", "value"], "list[int]": ["nums", "numbers", "values", "items"],
    "str": ["s", "text", "word", "string"], "list[str]": ["words", "names", "strings"],
}  # fmt: skip
RESULTS, ITEMS = ("result", "out", "answer"), ("i", "item", "e")
COLLECT = "{v} = []\nfor {i} in {x}:\n    "
RETURN = "\nreturn {v}"


def _family(name: str, signature: str, docs: str, value: Callable[..., object], *bodies: str) -> Family:
    arguments, returns = signature.split(" -> ")
    return Family(name, arguments, returns, tuple(docs.split(" / ")), value, bodies)


FAMILIES = (
    _family("add", "int -> int", "Add {c} to {x}. / Return {x} plus {c}.", lambda x, c: x + c,
            "return {x} + {c}", "return {c} + {x}", "{v} = {x} + {c}" + RETURN),
    _family("minus", "int -> int", "Subtract {c} from {x}. / Return {x} minus {c}.", lambda x, c: x - c,
            "return {x} - {c}", "{v} = {x} - {c}" + RETURN),
    _family("times", "int -> int", "Multiply {x} by {c}. / Return {c} times {x}.", lambda x, c: x * c,
            "return {x} * {c}", "return {c} * {x}", "{v} = {x} * {c}" + RETURN),
    _family("rest", "int -> int", "Return the rest of {x} divided by {c}. / Divide {x} by {c} and return the rest.",
        lambda x, c: x % c,
            "return {x} % {c}", "{v} = {x} % {c}" + RETURN),
    _family("divide", "int -> int", "Divide {x} by {c} and round down. / Return how often {c} fits into {x}.",
        lambda x, c: x // c,
            "return {x} // {c}", "{v} = {x} // {c}" + RETURN),
    _family("is_multiple", "int -> bool", "Is {x} a multiple of {c}? / Return whether {c} divides {x}.",
        lambda x, c: x % c == 0,
            "return {x} % {c} == 0", "return not {x} % {c}", "if {x} % {c} == 0:\n    return True\nreturn False"),
    _family("is_large", "int -> bool", "Is {x} larger than {c}? / Return whether {x} is more than {c}.",
        lambda x, c: x > c,
            "return {x} > {c}", "return {c} < {x}", "if {x} > {c}:\n    return True\nreturn False"),
    _family("square", "int -> int", "Return the square of {x} plus {c}. / Square {x} and add {c}.",
        lambda x, c: x * x + c,
            "return {x} * {x} + {c}", "return {x} ** 2 + {c}", "{v} = {x} * {x}\nreturn {v} + {c}"),
    _family("limit", "int -> int", "Return {x}, but at most {c}. / Limit {x} to {c}.", lambda x, c: min(x, c),
            "return min({x}, {c})", "return min({c}, {x})", "if {x} > {c}:\n    return {c}\nreturn {x}"),
    _family("at_least", "int -> int", "Return {x}, but at least {c}. / Raise {x} to {c}.", lambda x, c: max(x, c),
            "return max({x}, {c})", "return max({c}, {x})", "if {x} < {c}:\n    return {c}\nreturn {x}"),
    _family("larger", "int int -> int", "Return the larger of {x} and {y}. / Which is more, {x} or {y}?",
        lambda x, y, c: max(x, y),
            "return max({x}, {y})", "return {x} if {x} > {y} else {y}", "if {x} > {y}:\n    return {x}\nreturn {y}"),
    _family("distance", "int int -> int", "Return the distance of {x} and {y}. / How far is {x} from {y}?",
        lambda x, y, c: abs(x - y),
            "return abs({x} - {y})", "return abs({y} - {x})", "return max({x}, {y}) - min({x}, {y})"),
    _family("sum_to", "int -> int", "Sum the numbers from 0 to {x}. / Add all numbers up to {x}.",
        lambda x, c: x * (x + 1) // 2,
            "return sum(range({x} + 1))", "return {x} * ({x} + 1) // 2",
            "{v} = 0\nfor {i} in range({x} + 1):\n    {v} += {i}" + RETURN),
    _family("total", "list[int] -> int", "Return the sum of {x} plus {c}. / Sum {x} and add {c}.",
        lambda x, c: sum(x) + c,
            "return sum({x}) + {c}", "return {c} + sum({x})", "{v} = {c}\nfor {i} in {x}:\n    {v} += {i}" + RETURN),
    _family("spread", "list[int] -> int",
        "Return the largest minus the smallest of {x}. / How far apart are {x} at most?",
            lambda x, c: max(x) - min(x), "return max({x}) - min({x})", "{v} = sorted({x})\nreturn {v}[-1] - {v}[0]"),
    _family("count_large", "list[int] -> int",
        "Count the numbers larger than {c}. / How many of {x} are more than {c}?",
            lambda x, c: sum(i > c for i in x), "return len([{i} for {i} in {x} if {i} > {c}])",
            "return sum({i} > {c} for {i} in {x})",
            "{v} = 0\nfor {i} in {x}:\n    if {i} > {c}:\n        {v} += 1" + RETURN),
    _family("keep_large", "list[int] -> list[int]",
        "Keep the numbers larger than {c}. / Return those of {x} that are more than {c}.",
            lambda x, c: [i for i in x if i > c], "return [{i} for {i} in {x} if {i} > {c}]",
            COLLECT + "if {i} > {c}:\n        {v}.append({i})" + RETURN),
    _family("multiples", "list[int] -> list[int]", "Keep the multiples of {c}. / Return those of {x} that {c} divides.",
            lambda x, c: [i for i in x if i % c == 0], "return [{i} for {i} in {x} if {i} % {c} == 0]",
            COLLECT + "if {i} % {c} == 0:\n        {v}.append({i})" + RETURN),
    _family("add_all", "list[int] -> list[int]", "Add {c} to every number. / Return {x} with {c} added to each.",
            lambda x, c: [i + c for i in x], "return [{i} + {c} for {i} in {x}]", "return [{c} + {i} for {i} in {x}]",
            COLLECT + "{v}.append({i} + {c})" + RETURN),
    _family("scale", "list[int] -> list[int]", "Multiply every number by {c}. / Return {x} with each times {c}.",
            lambda x, c: [i * c for i in x], "return [{i} * {c} for {i} in {x}]", "return [{c} * {i} for {i} in {x}]",
            COLLECT + "{v}.append({i} * {c})" + RETURN),
    _family("squares", "list[int] -> list[int]", "Square every number. / Return the squares of {x}.",
            lambda x, c: [i * i for i in x], "return [{i} * {i} for {i} in {x}]", "return [{i} ** 2 for {i} in {x}]",
            COLLECT + "{v}.append({i} * {i})" + RETURN),
    _family("backwards", "list[int] -> list[int]", "Reverse {x}. / Return {x} backwards.", lambda x, c: x[::-1],
            "return {x}[::-1]", "return list(reversed({x}))", "{v} = list({x})\n{v}.reverse()" + RETURN),
    _family("first", "list[int] -> list[int]", "Return the first {c} of {x}. / Keep only the first {c}.",
        lambda x, c: x[:c],
            "return {x}[:{c}]", "return [{x}[{i}] for {i} in range(min({c}, len({x})))]", "{v} = {x}[:{c}]" + RETURN),
    _family("ordered", "list[int] -> list[int]", "Sort {x}. / Return {x} in order.", lambda x, c: sorted(x),
            "return sorted({x})", "{v} = list({x})\n{v}.sort()" + RETURN, "{v} = sorted({x})" + RETURN),
    _family("contains", "list[int] -> bool", "Is {c} in {x}? / Return whether {x} contain {c}.", lambda x, c: c in x,
            "return {c} in {x}", "return any({i} == {c} for {i} in {x})",
            "for {i} in {x}:\n    if {i} == {c}:\n        return True\nreturn False"),
    _family("repeat", "str -> str", "Repeat {x} {c} times. / Return {c} copies of {x}.", lambda x, c: x * c,
            "return {x} * {c}", "return {c} * {x}", '{v} = ""\nfor {i} in range({c}):\n    {v} += {x}' + RETURN),
    _family("upper", "str -> str", "Return {x} in capitals. / Write {x} in capitals.", lambda x, c: x.upper(),
            "return {x}.upper()", "{v} = {x}.upper()" + RETURN, 'return "".join({i}.upper() for {i} in {x})'),
    _family("flip", "str -> str", "Reverse {x}. / Return {x} backwards.", lambda x, c: x[::-1],
            "return {x}[::-1]",
            'return "".join(reversed({x}))', '{v} = ""\nfor {i} in {x}:\n    {v} = {i} + {v}' + RETURN),
    _family("start", "str -> str", "Return the first {c} letters of {x}. / Cut {x} after {c} letters.",
        lambda x, c: x[:c],
            "return {x}[:{c}]", "{v} = {x}[:{c}]" + RETURN),
    _family("is_long", "str -> bool", "Has {x} more than {c} letters? / Return whether {x} is longer than {c}.",
        lambda x, c: len(x) > c,
            "return len({x}) > {c}", "return {c} < len({x})", "if len({x}) > {c}:\n    return True\nreturn False"),
    _family("same_ends", "str -> bool",
        "Do the first and last letter of {x} agree? / Return whether {x} starts as it ends.",
            lambda x, c: x[0] == x[-1], "return {x}[0] == {x}[-1]", "return {x}[-1] == {x}[0]",
            "return {x}.endswith({x}[0])"),
    _family("lengths", "list[str] -> list[int]", "Return the length of each word. / How long is each of {x}?",
            lambda x, c: [len(i) for i in x], "return [len({i}) for {i} in {x}]", "return list(map(len, {x}))",
            COLLECT + "{v}.append(len({i}))" + RETURN),
    _family("longer", "list[str] -> list[str]",
        "Keep the words with more than {c} letters. / Return those of {x} longer than {c}.",
            lambda x, c: [i for i in x if len(i) > c], "return [{i} for {i} in {x} if len({i}) > {c}]",
            COLLECT + "if len({i}) > {c}:\n        {v}.append({i})" + RETURN),
    _family("initials", "list[str] -> list[str]",
        "Return the first letter of each word. / Keep one letter of each word.",
            lambda x, c: [i[0] for i in x], "return [{i}[0] for {i} in {x}]", COLLECT + "{v}.append({i}[0])" + RETURN),
    _family("join", "list[str] -> str", "Join {x} to one word. / Write {x} without spaces.", lambda x, c: "".join(x),
            'return "".join({x})', '{v} = ""\nfor {i} in {x}:\n    {v} += {i}' + RETURN),
    _family("longest", "list[str] -> str", "Return the longest word. / Which of {x} is the longest?",
        lambda x, c: max(x, key=len),
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


# ---- problems -------------------------------------------------------------------------------------------------------

TASKS: dict[str, Callable[[random.Random, float], Problem]] = {
    "math": make_math, "lists": make_list, "code": make_code, "drill": make_drill
}  # fmt: skip


def split_of(question: str) -> str:
    """The split a question belongs to: one in eight is a test question."""
    return "test" if hashlib.blake2b(question.encode(), digest_size=1).digest()[0] < 32 else "train"


def make(task: str, seed: int, index: int, split: str = "train", level: float = 1.0) -> Problem:
    """The problem at this seed and index, the same on every call; level 0 draws only the easiest, 1 draws all.

    Raises ValueError if the task, the split or the level is not known.
    """
    if task not in TASKS:
        raise ValueError(f"unknown task {task!r}; the tasks are {', '.join(TASKS)}.")
    if split not in ("train", "test"):
        raise ValueError(f"unknown split {split!r}; give 'train' or 'test'.")
    if not 0 <= level <= 1:
        raise ValueError(f"level={level} is out of range; give a value from 0 (easiest) to 1 (all).")
    rng = random.Random(f"{task} {seed} {index} {split}")
    while True:
        problem = TASKS[task](rng, level)
        if split_of(problem.question) == split:
            return problem


def problems(task: str, n: int, seed: int = 0, split: str = "test") -> list[Problem]:
    return [make(task, seed, index, split) for index in range(n)]


def correct(problem: Problem, text: str) -> bool:
    """Whether the text answers the problem: the final number, the list, or one of the accepted bodies."""
    return problem.check(text)


def consistent(problem: Problem, text: str) -> bool:
    """Whether the whole text is right, every line of a solution included; the same as `correct` outside math."""
    return (problem.grammar or problem.check)(text)
