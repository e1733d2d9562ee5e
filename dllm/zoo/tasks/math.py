"""Word problems: a template asks, any of its plans answers, in one style from the first line to the last."""

import operator
import random
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import product

from dllm.zoo.tasks.problem import Problem

GIRLS = ("Anna", "Clara", "Emma", "Ida", "Lena", "Maria", "Nora", "Sara")
BOYS = ("Ben", "David", "Felix", "Jonas", "Leo", "Max", "Paul", "Tom")
THINGS = (
    ("apples", "fruits"), ("pears", "fruits"), ("plums", "fruits"), ("roses", "flowers"), ("tulips", "flowers"),
    ("pens", "things"), ("balls", "toys"), ("marbles", "toys"), ("cards", "pieces"), ("shells", "pieces"),
    ("stamps", "pieces"), ("coins", "pieces"), ("cookies", "treats"), ("candies", "treats"), ("books", "things"),
    ("beads", "pieces"),
)  # fmt: skip
UNITS = {"things": THINGS, "dollars": (("dollars", "bucks"),), "pages": (("pages", "sheets"),)}
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


def _template(question: str, *plans: str, unit: str = "things") -> Template:
    """Read a plan such as 'x=k*m calc A; y=a+x gain A'."""
    pattern = re.compile(r"(\w)=(\w)(.)(\w) (\w+) (\w+)")
    steps = tuple(tuple(Step(*match) for match in pattern.findall(plan)) for plan in plans)
    return Template(question, steps, unit, tuple(sorted(set(re.findall(r"\{([a-z])\}", question)) - {"u"})))


HAS = "{A} has {a} {u}. "
MORE, LESS = "{A} [gets|finds|buys] {b} more {u}. ", "{A} [loses|sells|gives away] {c} {u}. "
BOXES, BAGS = "{A} buys {k} [boxes|packs] with {m} {u} each. ", "{A} buys {l} [bags|baskets] with {n} {u} each. "
NOW, LEFT = "How many {u} does {A} have [now|in total]?", "How many {u} [does {A} have left|are left]?"
TOGETHER = "How many {u} do [they|{A} and {B}|{B} and {A}] have [together|in total]?"
BMORE, BLESS = "{B} has {b} {u} more than {A}. ", "{B} has {b} {u} fewer than {A}. "
PRICE = "{A} buys {k} [pens|books|cups] for {m} {u} each"
PAYS, CHANGE = "{A} pays with {p} {u}. ", "How many {u} does {A} get back?"
READS = "{A} reads {a} {u} on [Monday|Friday]. The next day {A} reads {b} {u} more than that. "
READ, BHAS = "How many {u} does {A} read in total?", "How many {u} does {B} have?"
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
        _template(HAS + "{A} gives {b} {u} to {B} and {c} {u} to a friend. " + LEFT,
            "x=a-b loss A; y=x-c loss A", "x=a-c loss A; y=x-b loss A", "x=b+c gone A; y=a-x loss A"),
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
        _template(HAS + BOXES + LESS + LEFT,
            "x=k*m calc A; y=a+x gain A; z=y-c loss A", "x=k*m calc A; y=x-c loss A; z=a+y gain A",
            "x=k*m calc A; y=a-c loss A; z=x+y gain A"),
        _template(HAS + BMORE + "Then {A} [gets|finds|buys] {c} more {u}. " + TOGETHER,
            "x=a+b calc B; y=a+c gain A; z=y+x both AB"),
        _template(HAS + BLESS + "Then {A} [loses|sells|gives away] {c} {u}. " + TOGETHER,
            "x=a-b calc B; y=a-c loss A; z=y+x both AB"),
        _template(READS + "Later {A} reads {c} {u}. " + READ,
            "x=a+b day A; y=a+x sum A; z=y+c sum A", "x=a+b day A; y=x+c sum A; z=y+a sum A",
            "x=a+b day A; y=a+c sum A; z=y+x sum A", unit="pages"),
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
            "x=a+b day A; y=a+x sum A; z=c+d sum A; v=y+z sum A", "x=a+b day A; y=a+x sum A; z=y+c sum A; v=z+d sum A",
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
    answer = "\n".join([*lines, f"#### {final}"])
    grammar = partial(check_solution, solved, units, (a, b))
    return Problem("math", f"steps{steps}", question, answer, partial(check_final, final), grammar)  # fmt: skip
