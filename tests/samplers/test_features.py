"""What a filter sees of a block, column by column, whatever else the prediction holds."""

from dataclasses import replace

import torch

import cases
from dllm.canvas import Span
from dllm.samplers.base import Memory
from dllm.samplers.features import FEATURES, Sight, channels, seen


def look(p, name, block_length=8):
    return FEATURES[name][1](Sight(p, block_length))[0].tolist()


def test_every_feature_gives_its_number_of_values_for_every_column():
    p = cases.example()
    for name, (n, _) in FEATURES.items():
        assert seen(Sight(p, 8), [name]).shape == (1, 8, n) and channels([name]) == n
    assert seen(Sight(p, 8), [*FEATURES]).shape == (1, 8, channels([*FEATURES]))


def test_confidence_margin_and_entropy_are_the_predictions_own():
    p = cases.example()
    assert look(p, "confidence") == [[c] for c in p.confidence[0].tolist()]
    assert look(p, "margin") == [[c] for c in p.gap[0].tolist()]
    assert look(p, "entropy") == [[c] for c in p.entropy[0].tolist()]


def test_neighbours_are_sure_where_a_token_stands_and_left_of_the_block_and_unknown_right_of_it():
    found = look(cases.example(), "neighbours")
    assert found[0] == [1.0, 1.0, 0.80, 1.0]  # column 2 is decided
    assert found[4] == [1.0, 0.76, 0.92, 1.0]
    assert found[7] == [0.92, 1.0, 0.0, 0.0]


def test_the_border_is_a_share_of_the_block():
    assert look(cases.example(), "border") == [[i / 8] for i in range(8)]


def test_age_counts_the_steps_of_one_proposal_and_forgets_in_a_new_block():
    p = cases.example()
    p = replace(p, recall=replace(p.recall, memory=Memory()))
    later = replace(p, recall=replace(p.recall, fresh=torch.tensor([False])))
    other = replace(later, tokens=later.tokens.clone().index_fill_(1, torch.tensor([3]), 9))
    steps = [look(now, "age") for now in (p, later, other, later, p)]
    assert [round(torch.tensor(step[0]).exp().item()) for step in steps] == [1, 2, 3, 4, 1]
    assert [round(torch.tensor(step[3]).exp().item()) for step in steps] == [1, 2, 1, 1, 1]


def test_a_wider_span_and_a_short_block_are_laid_out_by_the_blocks_columns():
    p = cases.example()
    block = torch.tensor([[False, False, True, True, True, True, False, False]])
    p = replace(
        p, block=block, span=Span(p.span.columns, torch.ones_like(block).index_fill(1, torch.tensor([5]), False))
    )
    sight = Sight(p, 4)
    assert sight.confidence.tolist() == [[0.99, 0.76, 0.60, 1.0]]  # the last column does not exist
    assert sight.masked.tolist() == [[False, True, True, False]]
    back = sight.back(torch.tensor([[1.0, 2.0, 3.0, 4.0]]))
    assert back[0, 2:5].tolist() == [1.0, 2.0, 3.0]
