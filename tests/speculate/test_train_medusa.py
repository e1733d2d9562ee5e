"""The scripts that train heads: what they learn from, that they go on where they stopped, and what they refuse."""

import json
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import dllm
from dllm import DllmError
from dllm.speculate.heads import load
from dllm.speculate.stop import load_stop
from dllm.zoo import tasks

SCRIPTS = Path(__file__).parents[2] / "scripts"
SOURCE = {"model": "tiny-ar", "seed": 0, "texts": 20, "data": None, "distill": False, "gen_length": 8}


@pytest.fixture(scope="module")
def scripts():
    """The modules medusa_states, train_medusa and train_stop, which are no part of the package."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(SCRIPTS)
        import medusa_states
        import train_medusa
        import train_stop

        yield medusa_states, train_medusa, train_stop
        for name in ("medusa_states", "train_medusa", "train_stop"):
            del sys.modules[name]


@pytest.fixture(scope="module")
def model():
    return dllm.load("tiny-ar", device="cpu")


@pytest.fixture(scope="module")
def files(scripts, model, tmp_path_factory):
    return scripts[0].cached(scripts[0].Source(**SOURCE), model, "train", 20, tmp_path_factory.mktemp("states"))


def called(module, monkeypatch, *words):
    monkeypatch.setattr(sys, "argv", ["script", *map(str, words)])
    module.main()


def test_a_place_is_followed_by_the_tokens_of_its_text_alone(scripts):
    part = {"next": torch.tensor([5, 6, 7, 8, 9]), "text": torch.tensor([0, 0, 0, 1, 1])}
    want = [[5, 6, 7], [6, 7, -1], [7, -1, -1], [8, 9, -1], [9, -1, -1]]
    assert scripts[0].targets(part, 2).tolist() == want


def test_the_states_are_those_that_the_models_head_reads(scripts, model):
    texts = [([1, 2, 3], [4, 5]), ([6], [7, 8, 9, 1])]
    part = scripts[0].states(model, texts)
    assert part["next"].tolist() == [4, 5, 7, 8, 9, 1]
    run = dllm.stream_causal(model, [1, 2, 3, 4], gen_length=1)
    last = next(run.emissions()).logits[0, -1]
    torch.testing.assert_close(model.head(part["hidden"][1]), last)


def test_distilled_answers_are_the_models_own(scripts, model):
    source = scripts[0].Source(**SOURCE | {"distill": True, "gen_length": 12})
    (texts,) = source.encoded(model, "train", 5)
    asked = [tasks.make(task, 0, i).question for i, task in enumerate(scripts[0].MIXTURE[:5])]
    made = dllm.generate_causal(model, asked, gen_length=12)
    assert [answer for _, answer in texts] == made.completions


@pytest.mark.parametrize("kind", ["medusa", "hydra"])
def test_heads_learn_and_go_on_where_they_stopped_as_if_they_had_not(scripts, model, files, kind, tmp_path):
    _, script, _ = scripts
    recipe = script.Recipe(kind=kind, n_heads=2, epochs=4, rows=16)
    whole, first = (
        script.Trainer(model, recipe, files, folder) for folder in (made(tmp_path, "a"), made(tmp_path, "b"))
    )
    before = script.accuracy(model, whole.heads, files)
    whole.train()
    assert script.accuracy(model, whole.heads, files)[0][0] > before[0][0] + 0.1

    class Stopped(Exception):
        pass

    def stop(*_):
        raise Stopped

    first.train_part, taken = (lambda *args: stop() if first.parts == 1 else taken(*args)), first.train_part
    with pytest.raises(Stopped):
        first.train()
    again = script.Trainer(model, recipe, files, tmp_path / "b")
    assert again.parts == 1
    again.train()
    for a, b in zip(whole.heads.parameters(), again.heads.parameters(), strict=True):
        assert torch.equal(a, b)
    with pytest.raises(DllmError, match="belongs to another recipe"):
        script.Trainer(model, replace(recipe, seed=1), files, tmp_path / "b")


def made(folder, name):
    (folder / name).mkdir()
    return folder / name


def test_a_loss_that_is_no_number_ends_the_run_and_leaves_its_state(scripts, model, files, tmp_path):
    trainer = scripts[1].Trainer(model, scripts[1].Recipe(learning_rate=1e38, rows=64), files, tmp_path)
    with pytest.raises(DllmError, match=r"the loss is (nan|inf) at step \d+; lower the learning rate"):
        trainer.train()
    assert not [*tmp_path.iterdir()]
    part = load_file(files[0])
    save_file(part | {"hidden": part["hidden"].fill_(torch.nan)}, tmp_path / "part")
    with pytest.raises(DllmError, match="the loss is nan; lower the learning rate"):
        scripts[2].fit(model, [tmp_path / "part"], epochs=1, rows=64, learning_rate=1e-3, seed=0)


def test_the_script_leaves_heads_that_draft_and_say_what_they_are(scripts, monkeypatch, tmp_path, capsys):
    data = tmp_path / "data.jsonl"
    rows = [tasks.make("lists", 3, i) for i in range(34)]
    data.write_text("\n".join(json.dumps({"prompt": p.question, "answer": p.answer}) for p in rows))
    words = ["tiny-ar", "--data", data, "--kind", "hydra", "--heads", 2, "--epochs", 2, "--out", tmp_path / "heads"]
    called(scripts[1], monkeypatch, *words, "--rows", 64, "--device", "cpu", "--threads", 1)
    model = dllm.load("tiny-ar", device="cpu")
    heads, config = load(tmp_path / "heads", model), json.loads((tmp_path / "heads" / "heads.json").read_text())
    assert heads.kind == "hydra" and heads.n_heads == 2 and [len(row) for row in config["accuracy"]] == [10, 10]
    assert config["frequent"][:1] == [*model.spec.eos_ids[:1]]
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["accuracy"][0] == config["accuracy"][0][:4]
    card = (tmp_path / "heads" / "README.md").read_text()
    assert "| 1 | " in card and "2 heads" in card and "on 2 held-out texts" in card
    plain, drafted = (
        dllm.generate_causal(model, "Copy this list: ship, boat", d, gen_length=16)
        for d in (None, f"hydra:heads={tmp_path / 'heads'}")
    )
    assert drafted.completions == plain.completions


def test_a_stop_head_learns_which_drafts_are_accepted(scripts, monkeypatch, tmp_path, capsys):
    called(
        scripts[2],
        monkeypatch,
        "tiny-ar",
        "tiny-ar",
        "--texts",
        8,
        "--gen-length",
        12,
        "--out",
        tmp_path,
        "--device",
        "cpu",
    )
    told = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert told["accepted"] > 0.99  # the model drafts for itself
    assert load_stop(tmp_path, dllm.load("tiny-ar", device="cpu")) is not None


@pytest.mark.parametrize(
    ("words", "what"),
    [
        (["no-model"], r"'no-model' is no bundled model; give --out"),
        (["tiny-ar", "--heads", 0], r"--heads 0 must be at least 1"),
        (["tiny-llada", "--out", "OUT"], "is not autoregressive; heads draft for a model that predicts the next token"),
        (["tiny-ar", "--out", "OUT", "--data", "BAD"], r'line 1 of .* is not \{"prompt"'),
        (["tiny-ar", "--out", "OUT", "--data", "SHORT"], r"has no lines to test on; it needs 16 or more"),
    ],
)
def test_what_cannot_be_trained_is_refused_in_one_line(scripts, monkeypatch, tmp_path, words, what):
    (tmp_path / "BAD").write_text('{"question": "?"}\n')
    (tmp_path / "SHORT").write_text('{"prompt": "Copy this list: sun", "answer": "sun"}\n')
    words = [tmp_path / word if word in ("OUT", "BAD", "SHORT") else word for word in words]
    with pytest.raises(SystemExit, match=what):
        called(scripts[1], monkeypatch, *words, "--device", "cpu", "--threads", 1)


def test_states_of_another_run_are_not_taken_for_ones_own(scripts, model, files):
    with pytest.raises(DllmError, match="holds the states of another run"):
        scripts[0].cached(scripts[0].Source(**SOURCE | {"seed": 5}), model, "train", 20, files[0].parent)
