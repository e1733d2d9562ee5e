"""The README's tables of methods tell of every method, and of files that are there."""

import re
from pathlib import Path

import pytest

from dllm.cache import CACHES
from dllm.samplers import SAMPLERS

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()


@pytest.mark.parametrize("name", [*SAMPLERS, *CACHES])
def test_every_method_stands_in_a_table_with_its_file(name):
    rows = [line for line in README.splitlines() if line.startswith("|") and ".py`" in line]
    [row] = [line for line in rows if f"`{name}`" in line.split("|")[1]]
    [file] = re.findall(r"`((?:samplers|cache)/\w+\.py)`", row)
    assert (ROOT / "dllm" / file).is_file()


@pytest.mark.parametrize(
    "page", [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))], ids=lambda page: page.name
)
def test_links_lead_to_files(page):
    for target in re.findall(r"\]\((?!http)([^)#]+)\)", page.read_text()):
        assert (page.parent / target).exists(), target
