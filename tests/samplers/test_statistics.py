"""What one pass over the logits has found stands for what would be computed from them."""

from dataclasses import replace

import pytest
import torch

import cases
from dllm.canvas import Span
from dllm.kernels.token_stats import banned, reference_token_stats
from dllm.samplers import make


def pair(**changes):
    """A prediction as a CPU makes it, and as a GPU does."""
    p = cases.example(**changes)
    return p, replace(p, stats=reference_token_stats(p.logits, banned(torch.tensor([cases.MASK - 1]), cases.MASK)))


def test_entropy_and_gap_are_those_of_the_logits_which_nobody_widens():
    plain, found = pair()
    torch.testing.assert_close(found.entropy, plain.entropy)
    torch.testing.assert_close(found.gap, plain.gap)
    assert "wide_logits" not in vars(found)


def test_a_part_and_a_later_view_keep_what_was_found():
    plain, found = pair()
    place = torch.tensor([[1, 4, 5]])
    span = Span(plain.span.columns.gather(1, place), torch.ones_like(place, dtype=torch.bool))
    torch.testing.assert_close(found.of_columns(place, span).entropy, plain.entropy.gather(1, place))
    assert torch.equal(found.of_columns(place, span).drawn, plain.drawn[:, place[0]])
    assert found.seen_from(found.current).stats is found.stats and plain.of_columns(place, span).stats is None


@pytest.mark.parametrize("order", ["maskgit_plus", "topk_margin", "entropy"])
@pytest.mark.parametrize("quota", [1, 3])
def test_dreams_orders_rank_by_it(order, quota):
    plain, found = pair(quota=quota)
    assert torch.equal(make(order)(found), make(order)(plain))
