"""HumanEval (arXiv:2107.03374), programs from docstrings, under the protocols by which diffusion models are reported.

They differ in the prompt, in where an answer is cut, and in what of it is taken for the program: a rule of the paper's,
and part of the task, since without it scores fall to 0. Programs run in the sandbox.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from dllm.errors import unknown
from dllm.evaluate import data as sources
from dllm.evaluate.data import Row
from dllm.evaluate.sandbox import run
from dllm.evaluate.sanitize import sanitize
from dllm.evaluate.tasks.base import Question, Task

PASS = "pass@1,create_test"
Program = Callable[[Mapping[str, Any], str], str]
"""What is run for an answer, before the test."""


def sanitized(row: Mapping[str, Any], answer: str) -> str:
    """Of the problem and the answer's first block of Python below it, or all of it where none begins, what is needed.

    Needed by the function, not by its test: the given solution of HumanEval/50 fails, whose test calls a helper that
    only the problem has. So it does in the runs that papers report.
    """
    block = answer.split("```python\n", 1)[-1].split("```")[0]
    return sanitize(f"{row['prompt']}\n{block}", row["entry_point"])


def completed(row: Mapping[str, Any], answer: str) -> str:
    """The problem, and the answer right behind it."""
    return str(row["prompt"]) + answer


def up_to_fence(row: Mapping[str, Any], answer: str) -> str:
    """The problem, and the answer up to the end of the block that it goes on with."""
    return completed(row, answer.split("```")[0])


def first_block(row: Mapping[str, Any], answer: str) -> str:
    """The problem, and the first closed block of the answer, or all of it, without blanks at its head (OpenCompass)."""
    found = re.search(r"```\w*\n(.*?)```", answer, re.DOTALL)
    return completed(row, (found[1] if found else answer).lstrip())


@dataclass(frozen=True)
class Protocol:
    """How a paper asks, and what it runs. Where a text has {prompt}, the problem goes."""

    program: Program
    ask: str = "{prompt}"
    prefix: str = ""
    chat: bool = True
    stop: tuple[str, ...] = ()
    settings: Mapping[str, Any] = field(default_factory=dict)


SOLVE = "Write a solution to the following problem and make sure that it passes the tests:\n```"
COMPLETED = "Here is the completed function:\n```python\n{prompt}\n"
TOP_LEVEL = ("\nclass", "\ndef", "\n#", "\nif", "\nprint")
PROTOCOLS = {
    # Fast-dLLM with LLaDA-Instruct.
    "H1": Protocol(sanitized, settings={"gen_length": 256, "block_length": 32}),
    # Dream's authors, Instruct.
    "H2": Protocol(
        sanitized,
        SOLVE + "{prompt}",
        COMPLETED,
        stop=TOP_LEVEL,
        settings={"gen_length": 768, "block_length": 768, "temperature": 0.1, "top_p": 0.9},
    ),
    # Dream's authors, Base.
    "H3": Protocol(
        sanitized, chat=False, settings={"gen_length": 512, "block_length": 512, "temperature": 0.2, "top_p": 0.95}
    ),
    # LLaDA's authors, Instruct, in OpenCompass.
    "H4": Protocol(
        first_block,
        "Complete the following python code:\n{prompt}",
        settings={"gen_length": 512, "block_length": 512, "logits_eos_inf": True},
    ),
    # lm-evaluation-harness: humaneval_instruct, version 4, and humaneval.
    "H5": Protocol(
        up_to_fence, SOLVE + "python\n{prompt}\n```\n", COMPLETED, stop=TOP_LEVEL, settings={"gen_length": 1024}
    ),
    "H5-base": Protocol(completed, chat=False, stop=TOP_LEVEL, settings={"gen_length": 1024}),
}


@dataclass(frozen=True)
class HumanEval(Task):
    """One protocol on these rows."""

    rows: Sequence[Row] = ()
    ask: str = "{prompt}"
    prefix: str = ""
    program: Program = completed
    allow_code_execution: bool = False

    def questions(self) -> list[Question]:
        return [
            Question(
                row["task_id"],
                self.ask.replace("{prompt}", row["prompt"]),
                dict(row),
                prefix=self.prefix.replace("{prompt}", row["prompt"]),
                target=f"{row['test']}\ncheck({row['entry_point']})",
            )
            for row in self.rows
        ]

    def score(self, question: Question, answer: str) -> dict[str, Any]:
        """Whether the program passes the test; beside it the program, how it ended, and the kind of its error.

        Raises DllmError without allow_code_execution, and where the sandbox cannot be built.
        """
        program = self.program(question.record, answer)
        outcome = run(f"{program}\n{question.target}", allow_code_execution=self.allow_code_execution)
        error = outcome.detail.split(":")[0]  # The rest may hold an address, which is another one in every run.
        return {PASS: int(outcome.status == "passed"), "extracted": program, "status": outcome.status, "error": error}


def task(name: str, protocol: str = "H1", data: str | None = None, allow_code_execution: bool = False) -> Task:
    """HumanEval under a protocol. data: a file of rows, instead of the installed package and the hub.

    Raises DllmError, before any question is asked, where programs may not or cannot be run.
    """
    if protocol not in PROTOCOLS:
        raise unknown("protocol of humaneval", protocol, PROTOCOLS)
    run("", allow_code_execution=allow_code_execution)
    p = PROTOCOLS[protocol]
    return HumanEval(
        name,
        (PASS,),
        chat=p.chat,
        stop=p.stop,
        settings=p.settings,
        protocol=protocol,
        rows=sources.humaneval(data),
        ask=p.ask,
        prefix=p.prefix,
        program=p.program,
        allow_code_execution=allow_code_execution,
    )
