"""Distillation to certainty: what is masked, what counts, and that a killed run ends in the same weights."""

import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import dllm
from dllm import DllmError
from dllm.models.tiny import tiny as fresh


@pytest.fixture(scope="module")
def script():
    sys.path.insert(0, str(Path(__file__).parents[2] / "scripts"))
    import train_dparallel

    yield train_dparallel
    sys.path.pop(0)


@pytest.fixture
def data(script):
    """Three prompts of other lengths, and answers of 10 columns that end in blocks 0, 1 and 2 of 4 columns."""
    answers = torch.arange(30).reshape(3, 10)
    for row, end in zip(answers, (2, 5, 9), strict=True):
        row[end:] = 38
    return script.Answers([[1, 2], [3, 4, 5], [6]], answers, torch.tensor([1, 2, 3]))


@pytest.fixture
def recipe(script):
    return script.Recipe(steps=6, rows=5, warmup=2, learning_rate=1e-3)


def trainer(script, data, recipe, folder):
    return script.Trainer(fresh(dtype=torch.float32), data, 4, recipe, folder)


@pytest.mark.parametrize("share", [0.5, None])
def test_the_two_masks_of_a_row_make_up_a_block_with_all_behind_it_masked(script, model, data, recipe, share):
    for step in range(8):
        batch = script.batch_of(data, model, 4, replace(recipe, share=share), step)
        one, two = batch.masked.chunk(2)
        valid = batch.span.valid.chunk(2)[0]
        assert ((one ^ two) == valid).all() and not (one & two).any()
        for row, (tokens, length) in enumerate(zip(batch.tokens, batch.lengths, strict=True)):
            columns, ok = batch.span.columns[row][batch.span.valid[row]], batch.masked[row]
            begin, end, which = int(columns[0]), int(columns[-1]), data.prompts.index(tokens[: length - 10].tolist())
            answer = data.answers[which]
            place = begin - (length - 10)
            assert place % 4 == 0 and place // 4 < data.blocks[which]
            assert (tokens[end + 1 : length] == 39).all()  # behind the block
            assert torch.equal(tokens[length - 10 : begin], answer[:place])  # before it
            assert torch.equal(tokens[columns] == 39, ok[batch.span.valid[row]])
            assert torch.equal(batch.targets[row][batch.span.valid[row]], answer[place : place + len(columns)])


def test_a_step_draws_the_same_batch_every_time(script, model, data, recipe):
    one, two, other = (script.batch_of(data, model, 4, recipe, step) for step in (3, 3, 4))
    assert torch.equal(one.tokens, two.tokens) and not torch.equal(one.masked, other.masked)


def test_the_loss_is_cross_entropy_and_the_entropy_of_what_is_right(script, model, data, recipe):
    batch = script.batch_of(data, model, 4, recipe, 0)
    vocab_size, chosen = model.spec.vocab_size, batch.targets.clone()
    chosen[:, 0] = (chosen[:, 0] + 1) % vocab_size  # wrong in every first column
    logits = torch.nn.functional.one_hot(chosen, vocab_size).double() * 3
    got = script.loss_of(lambda *_: logits, model.spec, batch, recipe, torch.device("cpu"))
    want = 0.0
    for half in (slice(0, 5), slice(5, 10)):
        p, targets, masked = logits[half].log_softmax(-1), batch.targets[half], batch.masked[half]
        sharp = (logits[half] / 0.5).softmax(-1)
        right = masked & (chosen[half] == targets)
        entropy = torch.special.entr(sharp).sum(-1)
        want += -p.gather(-1, targets[..., None])[..., 0][masked].mean() + 2 * entropy[right].mean()
    assert float(got) == pytest.approx(float(want), rel=1e-5)


def test_a_run_that_stopped_ends_in_the_same_weights(script, data, recipe, tmp_path):
    whole, first = (trainer(script, data, recipe, tmp_path / name) for name in ("a", "b"))
    (tmp_path / "b").mkdir()
    losses = [whole.train_step() for _ in range(6)]
    for _ in range(3):
        first.train_step()
    first.save()
    first.train_step()  # lost with the kill
    second = trainer(script, data, recipe, tmp_path / "b")
    assert second.step == 3 and [second.train_step() for _ in range(3)] == losses[3:]
    assert all(torch.equal(p, second.trained[name]) for name, p in whole.trained.items())


def test_a_state_of_something_else_is_refused(script, data, recipe, tmp_path):
    trainer(script, data, recipe, tmp_path).save()
    assert trainer(script, data, replace(recipe, steps=99), tmp_path).step == 0  # to go further is no other run
    other = replace(data, answers=data.answers + 1)
    for change in ((data, replace(recipe, certainty=1.0)), (other, recipe)):
        with pytest.raises(DllmError, match="belongs to another recipe or other answers"):
            trainer(script, *change, tmp_path)
    path = tmp_path / "training.safetensors"
    path.write_bytes(path.read_bytes()[:-3])
    with pytest.raises(DllmError, match="is the file cut short"):
        trainer(script, data, recipe, tmp_path)


def test_a_loss_that_is_not_finite_leaves_the_state_unharmed(script, data, recipe, tmp_path):
    made = trainer(script, data, recipe, tmp_path)
    made.save()
    before = (tmp_path / "training.safetensors").read_bytes()
    made.trained["norm.weight"].data.fill_(torch.nan)
    with pytest.raises(DllmError, match=r"the loss is nan at step 0; lower the learning rate.* is unharmed"):
        made.train_step()
    assert (tmp_path / "training.safetensors").read_bytes() == before


def test_adapters_alone_are_trained_and_merged(script, data, recipe, tmp_path):
    pytest.importorskip("peft")
    made = trainer(script, data, replace(recipe, lora=2), tmp_path)
    assert {name.rpartition("lora_")[1] for name in made.trained} == {"lora_"}
    before = made.model.layers[0].down.base_layer.weight.clone()
    made.train_step()
    made.train_step()
    assert torch.equal(made.model.layers[0].down.base_layer.weight, before)
    merged = made.net.merge_and_unload()
    assert not torch.equal(merged.layers[0].down.weight, before)
    assert {name for name, _ in merged.named_parameters()} == {name for name, _ in fresh().named_parameters()}


@pytest.mark.parametrize(
    ("name", "value"), [("steps", 0), ("rows", 0), ("warmup", 0), ("lora", -1), ("certainty", -1.0), ("share", 5.0)]
)
def test_a_recipe_that_cannot_be_is_told(script, name, value):
    with pytest.raises(DllmError, match=f"{name}={value}"):
        script.Recipe(**{name: value})


def test_without_peft_adapters_name_the_extra(script, data, recipe, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(DllmError, match=r"--lora needs peft; install it with pip install 'dllm-decode\[train\]'"):
        trainer(script, data, replace(recipe, lora=2), tmp_path)


def test_the_script_writes_a_checkpoint_that_loads(script, tmp_path, monkeypatch, capsys):
    small = ["--task", "lists", "--n", "20", "--gen-length", "8", "--block-length", "4", "--steps", "2", "--rows", "2"]
    monkeypatch.setattr(sys, "argv", ["script", "tiny-llada", "--out", str(tmp_path), *small])
    assert script.main() == 0
    assert f"dllm compare --model {tmp_path}" in capsys.readouterr().out
    made, start = dllm.load(tmp_path), dllm.load("tiny-llada")
    assert made.spec == start.spec and not torch.equal(made.head.weight, start.head.weight)
    monkeypatch.setattr(sys, "argv", ["script", "tiny-llada", "--out", str(tmp_path), *small, "--certainty", "1"])
    assert script.main() == 2 and "belongs to another recipe" in capsys.readouterr().err
