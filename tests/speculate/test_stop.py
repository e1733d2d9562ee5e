"""A draft model that stops where its draft is likely to have gone wrong, and keeps the token behind which it stops."""

import json

import pytest
import torch

import dllm
from dllm import DllmError
from dllm.speculate.stop import StopHead, load_stop, save_stop
from drafting import strangeness

PROMPTS = [[3, 1, 4], [1, 5, 9, 2, 6, 5, 3], [5]]
CAUSAL = {"attention": "causal", "mask_id": None}


@pytest.fixture(scope="module")
def target(tiny):
    return tiny(**CAUSAL)


@pytest.fixture(scope="module")
def model(tiny):
    return tiny(5, **CAUSAL)


def drafter(model, **options):
    return dllm.speculate.make("model", model=model, **options)


def written(folder, model, bias=0.0, **facts):
    """A head that finds every token as likely as the sigmoid of `bias`, but for a little."""
    head = StopHead(model.spec.hidden_size).to(model.dtype).requires_grad_(False)
    head.outer.bias.fill_(bias)
    head.outer.weight.mul_(0.01)
    save_stop(head, folder, model, facts)
    return str(folder)


@pytest.mark.parametrize("temperature", [0.0, 0.8])
@pytest.mark.parametrize("stop", [0.05, 0.5, 0.99])
def test_stopping_changes_how_much_is_drafted_but_no_token(target, model, stop, temperature, tmp_path):
    settings = {"gen_length": 16, "temperature": temperature, "seed": 3, "batch_size": 2, "eos_early_stop": False}
    plain = dllm.generate_causal(target, PROMPTS, **settings)
    whole = dllm.generate_causal(target, PROMPTS, drafter(model, k=5), **settings)
    for head in (None, written(tmp_path, model)):
        made = dllm.generate_causal(target, PROMPTS, drafter(model, k=5, stop=stop, stop_head=head), **settings)
        assert made.completions == plain.completions
        assert made.drafted.sum() < whole.drafted.sum() or stop == 0.05
        assert (made.drafted >= made.nfe - 2).all()  # one token at least is drafted while there is room


@pytest.mark.parametrize(("bias", "n"), [(-3.0, 1), (0.0, 2), (3.0, 5)])
def test_a_draft_ends_with_the_token_by_which_its_chance_is_too_low(target, model, bias, n, tmp_path):
    head = written(tmp_path, model, bias)  # each token has the chance 0.05, 0.5 or 0.95
    run = dllm.stream_causal(target, [1, 2], drafter(model, k=5, stop=0.4, stop_head=head), gen_length=12)
    run.begin(run.admit()[0])
    assert len(run.drafting.draft(run.rows)[0]) == n
    assert run.drafting.forwards == 1 + n  # the prompt, and one for each token


def test_a_stopped_draft_is_exact_under_the_ratio_rule_too(tiny):
    sizes = CAUSAL | {"n_layers": 1, "vocab_size": 8, "eos_ids": (7,), "sharpness": 1.5}
    small = [tiny(seed, **sizes) for seed in (0, 1)]
    assert abs(strangeness(small[0], [1, 2, 3], drafter(small[1], k=2, stop=0.4), "ratio", n=2500)) < 4


def test_a_head_comes_back_as_it_was_written(model, tmp_path):
    head = StopHead(32).to(model.dtype)
    save_stop(head, tmp_path, model, {"accepted": 0.5})
    x = torch.randn(2, 4, 32, dtype=model.dtype)
    assert torch.equal(load_stop(tmp_path, model)(*x), head(*x))
    assert json.loads((tmp_path / "stop.json").read_text())["accepted"] == 0.5


def test_a_head_that_is_missing_or_of_another_model_is_refused(target, model, tmp_path):
    def ask():
        dllm.generate_causal(target, [1], drafter(model, stop=0.5, stop_head=str(tmp_path)), gen_length=4)

    with pytest.raises(DllmError, match=r"has no stop.json, so it holds no stop head"):
        ask()
    written(tmp_path, target)
    with pytest.raises(DllmError, match="was trained for another draft model"):
        ask()
    written(tmp_path, model)
    (tmp_path / "stop.safetensors").write_bytes(b"\x02\x00\x00\x00\x00\x00\x00\x00{}")
    with pytest.raises(DllmError, match="is no stop head for hidden states of 32 numbers"):
        ask()


@pytest.mark.parametrize(
    ("options", "what"),
    [
        ({"stop": 0.0}, r"stop=0.0 of ModelDrafter must be a probability between 0 and 1"),
        ({"stop": 1.0}, r"stop=1.0 of ModelDrafter must be"),
        ({"stop_head": "x"}, r"give stop=, as 0.7, as well"),
    ],
)
def test_stop_options_that_cannot_be_are_refused(model, options, what):
    with pytest.raises(DllmError, match=what):
        drafter(model, **options)
