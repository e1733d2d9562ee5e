"""Dream's orders: their timesteps, their temperature, and a step-by-step replay of the published rule."""

from collections import Counter

import pytest
import torch

import cases
from dllm import DllmError, Trace, generate
from dllm.samplers import make

ORDERS = ("maskgit_plus", "topk_margin", "entropy")
ASK = {"gen_length": 12, "seed": 0, "eos_early_stop": False}


def replay(model, prompt, order, *, steps, eps=1e-3, gen_length=12):
    """Dream's loop at temperature 0, written as its authors describe it: every step a forward, one row, no blocks."""
    from dllm.cache import full_view
    from dllm.canvas import Span

    x = torch.tensor([prompt + [39] * gen_length])
    t = torch.linspace(1, eps, steps + 1)
    everything = Span(torch.arange(x.shape[1])[None], torch.ones_like(x, dtype=torch.bool))
    for i in range(steps):
        masked = x[0] == 39
        q = model(x, full_view(model.spec, [x.shape[1]]), everything)[0].softmax(-1)
        n = int(masked.sum() * (1 - t[i + 1] / t[i])) if i < steps - 1 else int(masked.sum())
        top = q.topk(2, -1).values
        score = {
            "maskgit_plus": q[:, :39].amax(-1),  # of the token that is proposed: never the mask
            "topk_margin": top[:, 0] - top[:, 1],
            "entropy": (q * (q + 1e-10).log()).sum(-1),
        }[order]
        best = score.masked_fill(~masked, -torch.inf).topk(n).indices
        x[0, best] = q[:, :39].argmax(-1)[best]
    return x[0, len(prompt) :].tolist()


@pytest.mark.parametrize("shift", [0, 1])
@pytest.mark.parametrize("steps", [4, 12, 30])
@pytest.mark.parametrize("order", ORDERS)
def test_tokens_are_those_of_the_published_loop(tiny, order, steps, shift):
    model = tiny(logits_shift=shift)
    made = generate(model, cases.PROMPTS, order, "none", steps=steps, **ASK)
    assert made.completions == [replay(model, p, order, steps=steps) for p in cases.PROMPTS]
    assert (made.nfe <= min(steps, 12)).all()


@pytest.mark.parametrize("order", [*ORDERS, "origin"])
def test_the_answer_is_one_block_unless_told_otherwise(model, order):
    def blocks(**ask):
        generate(model, [3, 1], order, gen_length=12, seed=0, eos_early_stop=False, observers=[t := Trace()], **ask)
        return [(change["column"] - 2) // 4 for change in t.changes]

    assert blocks() != sorted(blocks()) and blocks(block_length=4) == sorted(blocks(block_length=4))


def test_origin_reveals_each_column_with_the_probability_of_its_timestep(model):
    steps, rows, gen_length = 8, 60, 40
    made = Counter()
    generate(
        model,
        [[5]] * rows,
        "origin",
        "none",
        gen_length=gen_length,
        steps=steps,
        seed=1,
        eos_early_stop=False,
        batch_size=rows,
        observers=[lambda step: made.update({step.index: int(step.changed.sum())})],
    )
    share = torch.tensor([made[i] for i in range(steps)]) / (rows * gen_length)
    assert len(made) == steps and (share - 1 / steps).abs().max() < 0.03  # four standard deviations


def test_origin_skips_the_steps_that_reveal_nothing(model):
    made = generate(model, cases.PROMPTS, "origin", gen_length=4, steps=500, seed=0, eos_early_stop=False)
    assert (made.nfe <= 4).all()


def test_alg_temp_draws_the_order_and_the_seed_decides_it(model):
    def order(alg_temp, seed):
        generate(model, [3, 1], "entropy", alg_temp=alg_temp, gen_length=12, seed=seed, observers=[t := Trace()])
        return [change["column"] for change in t.changes]

    assert order(0.0, 1) == order(0.0, 2) == order(1e-9, 3)
    assert order(5.0, 1) == order(5.0, 1) != order(5.0, 2) and order(1e-320, 1) == order(0.0, 1)


def test_the_score_is_of_the_distribution_that_is_drawn_from(model):
    """With one token left to draw all margins are 1, so that the first columns come first."""
    generate(model, [3, 1], "topk_margin", top_k=1, gen_length=8, steps=8, observers=[trace := Trace()])
    assert [change["column"] for change in trace.changes] == [*range(2, 10)]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("entropy:eps=0", "eps=0.0 is no last timestep; give a value between 0 and 1"),
        ("origin:eps=1", "eps=1.0 is no last timestep"),
        ("maskgit_plus:alg_temp=-1", "alg_temp=-1.0 must be a finite number of at least 0: 0 takes the highest scores"),
        ("origin:alg_temp=1", "unknown option of sampler origin 'alg_temp'"),
    ],
)
def test_options_that_cannot_be_are_named(options, message):
    with pytest.raises(DllmError, match=message):
        make(options)


def test_an_order_without_a_score_says_so():
    from dllm.samplers.dream import Ordered

    with pytest.raises(NotImplementedError, match="Ordered does not say what it is sure of"):
        Ordered()(cases.example())
