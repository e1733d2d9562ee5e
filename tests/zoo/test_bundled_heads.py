"""The heads that ship with tiny-ar: small, described, and worth their drafts."""

import json

import pytest

import dllm
from dllm.loading import ZOO
from dllm.speculate.heads import KINDS
from dllm.zoo import tasks

ASKED = [p.question for task in ("math", "lists") for p in tasks.problems(task, 6, seed=4)]
each = pytest.mark.parametrize("kind", KINDS)


@pytest.fixture(scope="module")
def model():
    return dllm.load("tiny-ar", device="cpu")


@each
def test_heads_come_with_a_card_that_tells_their_accuracy(kind):
    folder = ZOO / "tiny-ar" / kind
    config, card = json.loads((folder / "heads.json").read_text()), (folder / "README.md").read_text()
    for k, row in enumerate(config["accuracy"], 1):
        assert f"| {k} | " + " | ".join(f"{p:.3f}" for p in row[:4]) in card
    assert config["kind"] == kind and f"--kind {kind}" in card
    assert sum(file.stat().st_size for file in folder.iterdir()) < 1e6


@each
@pytest.mark.parametrize("temperature", [0.0, 0.7])
def test_heads_spare_forwards_and_change_no_token(model, kind, temperature):
    settings = {"gen_length": 64, "temperature": temperature, "seed": 1}
    plain, drafted = (dllm.generate_causal(model, ASKED, draft, **settings) for draft in (None, kind))
    assert drafted.completions == plain.completions
    assert drafted.nfe.sum() < 0.65 * plain.nfe.sum()


def test_heads_that_read_the_guesses_before_theirs_are_right_more_often():
    medusa, hydra = (json.loads((ZOO / "tiny-ar" / kind / "heads.json").read_text())["accuracy"] for kind in KINDS)
    assert all(mine[0] > theirs[0] for mine, theirs in zip(hydra, medusa, strict=True))
