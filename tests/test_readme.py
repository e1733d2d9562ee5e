"""The README's tables tell of every method and of files that are there, and every page's commands are understood."""

import re
import shlex
from pathlib import Path

import pytest

from dllm import arguments, settings_file
from dllm.cache import CACHES
from dllm.samplers import SAMPLERS
from dllm.speculate import DRAFTERS

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
COMMANDS = [
    command
    for page in PAGES
    for command in re.findall(r"^ +dllm .*|(?<=`)dllm \w+ --[^`]+", page.read_text(), re.MULTILINE)
    if not command.strip().startswith("dllm lm_eval ")
]


@pytest.mark.parametrize("name", [*SAMPLERS, *CACHES, *DRAFTERS])
def test_every_method_stands_in_a_table_with_its_file(name):
    rows = [line for line in README.splitlines() if line.startswith("|") and ".py`" in line]
    [row] = [line for line in rows if f"`{name}`" in line.split("|")[1]]
    [file] = re.findall(r"`((?:samplers|cache|speculate)/\w+\.py)`", row)
    assert (ROOT / "dllm" / file).is_file()


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_to_files(page):
    for target in re.findall(r"\]\((?!http)([^)#]+)\)", page.read_text()):
        assert (page.parent / target).exists(), target


@pytest.mark.parametrize("command", COMMANDS)
def test_commands_are_understood(command, monkeypatch):
    monkeypatch.setattr(settings_file, "read", lambda *_: {})  # an earlier command writes it
    _, name, *words = shlex.split(command)
    assert arguments.read([name, *words]).command == name
