"""What the bundled models are trained on: each column is predicted as decoding will ask for it."""

import sys
from pathlib import Path

import pytest
import torch

from dllm.cache.base import full_view
from dllm.canvas import Span


@pytest.fixture(scope="module")
def objectives():
    sys.path.insert(0, str(Path(__file__).parents[2] / "scripts"))
    import zoo_objectives

    yield zoo_objectives
    sys.path.pop(0)


@pytest.fixture
def batch(objectives):
    """Three rows with prompts of 5, 8 and 9 tokens, which end inside, at and behind a border of blocks of 4."""
    draw = torch.Generator().manual_seed(0)
    tokens = torch.randint(0, 38, (3, 24), generator=draw)
    return objectives.Batch(tokens, torch.tensor([5, 8, 9]), torch.tensor([10, 6, 12]))


def alone(model, tokens, column):
    """The logits for one column of one row, by a plain forward over these tokens."""
    span = Span(torch.tensor([[column]]), torch.ones(1, 1, dtype=torch.bool))
    return model(tokens[None], full_view(model.spec, [len(tokens)]), span)[0, 0]


def test_a_block_is_trained_on_what_decoding_shows_of_it(tiny, objectives, batch):
    """Two noised copies beside a clean canvas give the logits of a canvas that is clean before the block alone."""
    model = tiny(attention="block", block_length=4, logits_shift=1)
    ends = batch.prompts + batch.answers
    n_blocks = int(ends.max()) // 4 + 1
    view = objectives.Copies(batch, 4, n_blocks, torch.Generator().manual_seed(1))
    tokens = batch.tokens[:, : 4 * n_blocks]
    copies = tokens.gather(1, view.columns).repeat(1, 2).masked_fill(view.noised, model.spec.mask_id)
    logits = model(torch.cat([tokens, copies], 1), view, Span(view.columns, view.answer))
    width, n_columns = view.columns.shape[1], 0
    for row, place in view.answer.nonzero().tolist():
        column = int(view.columns[row, place])
        copy = 0 if view.noised[row, place] else 1
        assert view.noised[row, copy * width + place], "one copy masks it, the other shows it"
        seen, begin = tokens[row, : column // 4 * 4 + 4].clone(), column // 4 * 4
        hidden = view.noised[row, copy * width :][begin - int(view.columns[row, 0]) :][:4]
        seen[begin:][hidden] = model.spec.mask_id
        torch.testing.assert_close(logits[row, place], alone(model, seen, column))
        n_columns += 1
    assert n_columns == int((4 * n_blocks - batch.prompts).sum()), "every column of the answers' blocks is predicted"


def test_the_next_token_is_predicted_from_those_before_it(tiny, objectives, batch):
    model = tiny(attention="causal", mask_id=None)
    total, n_tokens = 0.0, 0
    for tokens, prompt, answer in zip(batch.tokens, batch.prompts.tolist(), batch.answers.tolist(), strict=True):
        for column in range(prompt, prompt + answer + 1):
            logits = alone(model, tokens[:column], column - 1)
            total += float(torch.nn.functional.cross_entropy(logits, tokens[column]))
            n_tokens += 1
    assert objectives.causal_loss(model, batch, None).item() == pytest.approx(total / n_tokens, rel=1e-5)


def test_a_model_that_is_its_own_teacher_cannot_do_better(tiny, objectives, batch):
    model, other = tiny(attention="causal", mask_id=None), tiny(seed=1, attention="causal", mask_id=None)
    assert objectives.causal_loss(model, batch, model) < objectives.causal_loss(other, batch, model)


def test_the_mask_covers_answers_alone_and_at_least_one_column_of_each(objectives, batch):
    for seed in range(20):
        masked, weight = objectives.masks(batch, 0.5, torch.Generator().manual_seed(seed))
        assert not (masked & (torch.arange(24) < batch.prompts[:, None])).any()
        torch.testing.assert_close(weight, (24 - batch.prompts) / masked.sum(1))
