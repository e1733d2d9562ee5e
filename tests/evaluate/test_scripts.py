"""The scripts that measure a model are the command with a task."""

import runpy
import sys
from pathlib import Path

import pytest

SCRIPTS = Path(__file__).parents[2] / "scripts"


@pytest.mark.parametrize("task", ["gsm8k", "humaneval"])
def test_a_script_asks_its_task(task, monkeypatch):
    asked = []
    monkeypatch.setattr("dllm.cli.main", lambda words: asked.extend(words) or 0)
    monkeypatch.setattr(sys, "argv", ["script", "--limit", "3"])
    with pytest.raises(SystemExit) as left:
        runpy.run_path(str(SCRIPTS / f"eval_{task}.py"), run_name="__main__")
    assert left.value.code == 0 and asked == ["eval", "--task", task, "--limit", "3"]
