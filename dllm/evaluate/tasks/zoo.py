"""The procedural tasks that the bundled models were trained for, on test problems that they have not seen."""

from dataclasses import dataclass
from typing import Any

from dllm.evaluate.tasks.base import Question, Task
from dllm.zoo import tasks as zoo

N = 500


@dataclass(frozen=True)
class ZooTask(Task):
    """Test problems 0 to N - 1 of `dllm.zoo.tasks`, seed 0."""

    def questions(self) -> list[Question]:
        asked = []
        for index, problem in enumerate(zoo.problems(self.name, N)):
            record = {"index": index, "kind": problem.kind, "question": problem.question, "answer": problem.answer}
            asked.append(Question(f"{self.name}/{index}", problem.question, record, target=problem.answer))
        return asked

    def score(self, question: Question, answer: str) -> dict[str, Any]:
        """`correct`: the result is right; `consistent`: every line is."""
        problem = zoo.make(self.name, 0, question.record["index"], "test")
        return {"correct": int(zoo.correct(problem, answer)), "consistent": int(zoo.consistent(problem, answer))}


def task(name: str) -> Task:
    return ZooTask(name, ("correct", "consistent"), settings={"gen_length": 64, "block_length": 32})
