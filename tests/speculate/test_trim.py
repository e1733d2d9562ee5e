"""Drafters that guess the frequent tokens only."""

import pytest
import torch

import dllm
from dllm import DllmError
from dllm.cache import full_view
from dllm.canvas import Span
from dllm.speculate.trim import frequent, trim_head, trimmed

KEPT = [3, 38, 7, 0]


@pytest.fixture(scope="module")
def target(tiny):
    return tiny(attention="causal", mask_id=None)


def test_a_trimmed_head_has_the_logits_of_what_it_keeps_and_no_others(target):
    hidden = torch.randn(2, 5, target.spec.hidden_size, dtype=target.dtype)
    whole, small = target.head(hidden), trim_head(target.head, KEPT)(hidden)
    torch.testing.assert_close(small[..., KEPT], whole[..., KEPT])
    others = [i for i in range(target.spec.vocab_size) if i not in KEPT]
    assert small.shape == whole.shape and (small[..., others] == -torch.inf).all()


def test_a_trimmed_model_shares_its_weights_and_leaves_the_model_as_it_was(target):
    small = trimmed(target, KEPT)
    span = Span(torch.tensor([[2]]), torch.tensor([[True]]))
    whole, logits = (m(torch.tensor([[1, 2, 3]]), full_view(m.spec, [3]), span) for m in (target, small))
    torch.testing.assert_close(logits[..., KEPT], whole[..., KEPT])
    assert small.layers is target.layers and isinstance(target.head, torch.nn.Linear) and whole.isfinite().all()


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_trimmed_drafter_drafts_what_it_keeps_and_changes_no_token(target, temperature):
    asked = [[1, 2, 3], [5], [9, 8]]
    settings = {"gen_length": 12, "temperature": temperature, "seed": 2}
    plain = dllm.generate_causal(target, asked, **settings)
    for kept in ([*range(40)], KEPT):
        made = dllm.generate_causal(target, asked, trimmed(target, kept), k=3, **settings)
        assert made.completions == plain.completions
        drafts_all_come_true = made.accepted > 0.9
        assert drafts_all_come_true == (len(kept) == 40)


def test_the_frequent_tokens_come_first_behind_those_that_are_always_kept():
    assert frequent([[5, 5, 2, 2, 5], [2, 9]], always=[7, 9]) == [7, 9, 2, 5]


@pytest.mark.parametrize(
    ("ids", "what"),
    [
        ([1, 40], "40 is no token of a vocabulary of 40"),
        ([True], "True is no token"),
        ([], "at least one"),
        ([1, 1], "named once"),
    ],
)
def test_what_a_head_cannot_be_trimmed_to_is_refused(target, ids, what):
    with pytest.raises(DllmError, match=what):
        trim_head(target.head, ids)
