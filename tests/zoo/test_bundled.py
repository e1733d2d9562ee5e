"""The models that ship with the package: they load, answer, and come with what their card says."""

import json
from pathlib import Path

import pytest

import dllm
from dllm.zoo import tasks

ZOO = Path(dllm.__file__).parent / "zoo"
MODELS = sorted(path.parent for path in ZOO.glob("*/config.json"))
FILES = {"LICENSE", "README.md", "config.json", "model.safetensors", "recipe.json", "tokenizer.json"}

CAUSAL = [folder for folder in MODELS if "-ar" in folder.name]
EASY = [p for p in tasks.problems("lists", 100) if p.kind in ("copy", "reverse")][:16]


def each(folders):
    return pytest.mark.parametrize("folder", folders, ids=lambda folder: folder.name)


def n_right(made):
    return sum(tasks.correct(p, text) for p, text in zip(EASY, made.texts, strict=True))


def test_there_is_one_of_each_family():
    assert [folder.name for folder in MODELS] == ["tiny-ar", "tiny-ar-draft", "tiny-block", "tiny-dream", "tiny-llada"]
    files = [file for folder in MODELS for file in folder.iterdir()]
    assert sum(file.stat().st_size for file in files) < 40e6


@each(MODELS)
def test_a_model_comes_with_its_card_recipe_and_licence(folder):
    assert {path.name for path in folder.iterdir()} >= FILES
    card, recipe = (folder / "README.md").read_text(), json.loads((folder / "recipe.json").read_text())
    steps, stage = 0, recipe
    while stage:
        steps, stage = steps + stage["steps"], stage.get("first")
    assert f"{steps:,} steps" in card
    assert all(f"| {task} | all | 500 |" in card for task in ("lists", "math", "code"))
    assert (folder / "model.safetensors").stat().st_size < 20e6


@each([folder for folder in MODELS if folder not in CAUSAL])
@pytest.mark.parametrize("sampler", ["static", "threshold", "factor"])
def test_it_copies_and_reverses_lists(folder, sampler):
    model = dllm.load(folder, device="cpu")
    made = dllm.generate(model, [p.question for p in EASY], sampler, gen_length=32)
    assert n_right(made) >= 14
    assert sampler == "static" or made.tokens_per_forward > 2


def test_the_causal_one_copies_and_reverses_lists():
    made = dllm.generate_causal(dllm.load("tiny-ar", device="cpu"), [p.question for p in EASY], gen_length=32)
    assert n_right(made) == len(EASY)


def test_blocks_are_decoded_in_fewer_forwards_than_one_for_each_token():
    """What a block-diffusion model is for: its causal parent takes a forward for each token."""
    asked = [p.question for p in tasks.problems("math", 24)]
    made = dllm.generate(dllm.load("tiny-block", device="cpu"), asked, gen_length=64)
    assert made.tokens_per_forward > 2
    right = [tasks.correct(p, text) for p, text in zip(tasks.problems("math", 24), made.texts, strict=True)]
    assert sum(right) >= 18


def test_its_small_relative_drafts_for_it():
    """A quarter of the parameters, and of the tokens that it drafts by fours more than half come true."""
    model, small = (dllm.load(name, device="cpu") for name in ("tiny-ar", "tiny-ar-draft"))
    asked = [p.question for p in tasks.problems("math", 16)]
    plain = dllm.generate_causal(model, asked, gen_length=64)
    drafted = dllm.generate_causal(model, asked, draft=small, k=4, gen_length=64)
    assert drafted.completions == plain.completions
    assert small.spec.n_parameters < 0.25 * model.spec.n_parameters
    assert drafted.accepted > 0.5 and 2 * drafted.nfe.sum() < plain.nfe.sum()


@each([folder for folder in MODELS if folder.name in ("tiny-dream", "tiny-llada")])
def test_drafts_spare_forwards_and_change_no_token(folder):
    model, asked = dllm.load(folder, device="cpu"), [p.question for p in tasks.problems("lists", 12, seed=5)]
    plain, drafted = (dllm.generate(model, asked, "static", "dual", gen_length=32, drafts=d) for d in (1, 8))
    assert plain.completions == drafted.completions
    assert 1.6 * drafted.nfe.sum() <= plain.nfe.sum()
