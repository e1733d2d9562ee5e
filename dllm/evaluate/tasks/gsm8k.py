"""GSM8K, grade-school maths (arXiv:2110.14168), under the protocols by which diffusion models are reported.

They differ in prompt, worked examples, chat template and lengths, and their scores must not be mixed. Each is scored by
both filters of lm-evaluation-harness's task. Headline: flexible-extract, which takes the last number; P4 has its own.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dllm.errors import DllmError, unknown
from dllm.evaluate.data import Row, gsm8k
from dllm.evaluate.tasks.base import Messages, Question, Task
from dllm.evaluate.tasks.shots import OPENCOMPASS, Example, chain_of_thought, drawn, opencompass

QUESTION, COT, COT_ZEROSHOT = "Question: {}\nAnswer:", "Q: {}\nA:", "Q: {}\nA: Let's think step by step."
HASHES, THE_ANSWER = r"#### (\-?[0-9\.\,]+)", r"The answer is (\-?[0-9\.\,]+)."
NUMBERS = r"(-?[$0-9.,]{2,})|(-?[0-9]+)"
IGNORED = (",", r"\$", "(?s).*#### ", r"\.$")
"""What lm-evaluation-harness takes out of both sides, in this order, before it compares them."""
NOTHING = "[invalid]"
"""What its filters give where they find nothing."""
FLEXIBLE, STRICT, ACCURACY = "exact_match,flexible-extract", "exact_match,strict-match", "accuracy,opencompass"


def extract(pattern: str, text: str, which: int) -> str:
    """The match of a pattern at place `which`; of its groups the first that is not empty."""
    found = re.findall(pattern, text)
    if not found:
        return NOTHING
    groups = found[which] if isinstance(found[which], tuple) else (found[which],)
    return next((group for group in groups if group), NOTHING).strip()


def same(extracted: str, target: str) -> bool:
    """Whether two answers are equal once what does not count is taken out of both."""
    for pattern in IGNORED:
        extracted, target = re.sub(pattern, "", extracted), re.sub(pattern, "", target)
    return extracted.lower() == target.lower()


def last_number(text: str) -> str:
    """What OpenCompass takes for the answer."""
    found: list[str] = re.findall(r"-?\d+\.\d+|-?\d+", text.split("Question:")[0])
    return found[-1] if found else "NULL"


def same_number(extracted: str, target: str) -> bool:
    """Whether OpenCompass counts the answer as right; target: a whole number."""
    return extracted != "NULL" and abs(float(extracted) - int(target)) < 1e-6


def check_targets(rows: Sequence[Row], where: str) -> None:
    """Raise DllmError unless each answer ends in what OpenCompass compares with."""
    for index, row in enumerate(rows):
        if not re.search(r"#### -?\d[\d,]*\s*$", row["answer"]):
            raise DllmError(
                f"the answer in row {index} of {where} does not end in '#### ' and a whole number, with which protocol "
                "P4 compares; mend the row, or take another protocol."
            )


@dataclass(frozen=True)
class GSM8K(Task):
    """One protocol on these rows."""

    rows: Sequence[Row] = ()
    examples: Sequence[Sequence[Example]] = ()
    """For every row."""
    ask: str = QUESTION
    strict: str = HASHES
    turns: bool = False
    """Whether every example is a turn of the user and one of the model, or all are one turn with the question."""

    def questions(self) -> list[Question]:
        pairs = zip(self.rows, self.examples, strict=True)
        return [
            Question(f"gsm8k/{i}", self.prompt(row["question"], examples), dict(row), target=row["answer"])
            for i, (row, examples) in enumerate(pairs)
        ]

    def prompt(self, question: str, examples: Sequence[Example]) -> str | Messages:
        asked = [*(self.ask.format(text) for text, _ in examples), self.ask.format(question)]
        answers = [answer for _, answer in examples]
        if not self.turns:
            shots = (f"{text} {answer}\n\n" for text, answer in zip(asked, answers, strict=False))
            return "".join([*shots, asked[-1]])
        turns = [(("user", text), ("assistant", answer)) for text, answer in zip(asked, answers, strict=False)]
        spoken = [*(turn for pair in turns for turn in pair), ("user", asked[-1])]
        return [{"role": role, "content": content} for role, content in spoken]

    def score(self, question: Question, answer: str) -> dict[str, Any]:
        target = question.record["answer"]
        flexible, strict = extract(NUMBERS, answer, -1), extract(self.strict, answer, 0)
        found = {FLEXIBLE: int(same(flexible, target)), STRICT: int(same(strict, target))}
        extracted = {"extracted": flexible, "strict": strict}
        if ACCURACY in self.metrics:
            number = last_number(answer)
            found[ACCURACY] = int(same_number(number, target.rpartition("#### ")[2].replace(",", "")))
            extracted = {"extracted": number, "flexible": flexible, "strict": strict}
        return found | extracted


@dataclass(frozen=True)
class Protocol:
    """How a paper asks."""

    ask: str
    examples: Callable[[int, Sequence[Row], Path | None], list[list[Example]]] | None = None
    n_shots: int = 0
    chat: bool = True
    stop: tuple[str, ...] = ("Q:", "</s>", "<|im_end|>")
    strict: str = THE_ANSWER
    turns: bool = False
    settings: Mapping[str, Any] = field(default_factory=lambda: {"gen_length": 256, "block_length": 32})


FIVE_SHOTS: dict[str, Any] = {
    "ask": QUESTION,
    "examples": drawn,
    "n_shots": 5,
    "stop": ("Question:", "</s>", "<|im_end|>"),
    "strict": HASHES,
}
WHOLE = {"gen_length": 256, "block_length": 256}
PROTOCOLS = {
    # Fast-dLLM with LLaDA-Instruct: the examples and the question are one turn of the user.
    "P1": Protocol(**FIVE_SHOTS),
    # d3LLM, dParallel, Prophet.
    "P2": Protocol(COT_ZEROSHOT),
    # Dream's authors, Instruct and Base.
    "P3": Protocol(COT, settings=WHOLE),
    "P3-base": Protocol(COT, chain_of_thought, 8, chat=False, settings=WHOLE),
    # LLaDA's authors, in OpenCompass.
    "P4": Protocol(OPENCOMPASS, opencompass, 4, stop=(), turns=True, settings={"gen_length": 256, "block_length": 8}),
    # LLaDA's authors, Base.
    "P5": Protocol(**FIVE_SHOTS, chat=False, settings={"gen_length": 1024, "block_length": 1024}),
}


def task(name: str, protocol: str = "P1", data: str | None = None, shots: str | None = None) -> Task:
    """GSM8K under a protocol. data, shots: files of test rows and of examples, instead of the hub and packages."""
    if protocol not in PROTOCOLS:
        raise unknown("protocol of gsm8k", protocol, PROTOCOLS)
    p, path = PROTOCOLS[protocol], Path(shots).expanduser() if shots else None
    if path and not p.examples:
        raise DllmError(f"shots={shots!r} is not for protocol {protocol}, which shows no examples; leave it out.")
    rows = gsm8k("test", data)
    if p.turns:
        check_targets(rows, data or "openai/gsm8k")
    return GSM8K(
        name,
        (ACCURACY, FLEXIBLE, STRICT) if p.turns else (FLEXIBLE, STRICT),
        chat=p.chat,
        stop=p.stop,
        settings=p.settings,
        protocol=protocol,
        n_shots=p.n_shots,
        rows=rows,
        examples=p.examples(p.n_shots, rows, path) if p.examples else [()] * len(rows),
        ask=p.ask,
        strict=p.strict,
        turns=p.turns,
    )
