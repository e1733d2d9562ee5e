"""The tasks that models are measured on."""

from dllm.evaluate.tasks.base import Question, Task
from dllm.evaluate.tasks.parallelbench import PARALLELBENCH

__all__ = ["PARALLELBENCH", "Question", "Task"]
