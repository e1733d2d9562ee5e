"""The tasks that models are measured on.

To add one: a module beside these with a function `task(name, ...)` that makes a Task, and its names in TASKS.
"""

import inspect
from importlib import import_module
from typing import Any

from dllm.errors import DllmError, unknown
from dllm.evaluate.tasks.base import Question, Task

TASKS = {
    "gsm8k": "gsm8k",
    "lists": "zoo",
    "math": "zoo",
    "code": "zoo",
    "drill": "zoo",
}
"""Name of a task -> the module that makes it, imported when it is asked for."""


def make(name: str, **options: Any) -> Task:
    """The task of this name; options as its module's `task` takes them, None for those that are not given.

    Raises DllmError for an unknown name, and for options that the task does not have.
    """
    if name not in TASKS:
        raise unknown("task", name, TASKS)
    made = import_module(f"dllm.evaluate.tasks.{TASKS[name]}").task
    given = {option: value for option, value in options.items() if value not in (None, False)}
    has = [option for option in inspect.signature(made).parameters if option != "name"]
    for option, value in given.items():
        if option not in has:
            takes = f"takes {', '.join(has)}" if has else "takes no options"
            raise DllmError(f"{option}={value!r} is not for the task {name}, which {takes}.")
    task = made(name, **given)
    assert isinstance(task, Task)
    return task


__all__ = ["TASKS", "Question", "Task", "make"]
