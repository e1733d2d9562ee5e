"""The tasks that models are measured on."""

from dllm.evaluate.tasks.base import Question, Task

__all__ = ["Question", "Task"]
