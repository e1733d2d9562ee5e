"""One step on a block of 8, worked out by hand in the project's notes; two columns are decided already (cases.example).

To add a sampler: a row here. The rules of Fast-dLLM's published code that we do not copy are told in the samplers.
"""

import cases
from dataclasses import replace

import pytest
import torch

from dllm.samplers import SAMPLERS, Prediction, Sampler, Static, make

VECTORS = [
    # sampler, what the schedule says, revealed columns
    ("static", 2, {0, 5}),
    ("static", 4, {0, 1, 3, 5}),
    ("static", 1, {0}),
    ("threshold:threshold=0.9", 1, {0, 5}),
    ("threshold:threshold=0.76", 1, {0, 1, 3, 5}),
    ("threshold:threshold=0.99", 1, {0}),
    ("threshold:threshold=0", 1, {0, 1, 3, 4, 5, 7}),
    ("factor:factor=0.2", 1, {0}),
    ("factor:factor=0.5", 1, {0, 5}),
    ("factor:factor=1.0", 1, {0, 1, 5}),
    ("factor:factor=1.5", 1, {0, 1, 3, 5}),
    ("factor:factor=2.5", 1, {0, 1, 3, 4, 5}),
    ("factor:factor=5", 1, {0, 1, 3, 4, 5, 7}),
]

SCHEDULES = [
    # masks, steps, tokens of each step
    (10, 4, [3, 3, 2, 2]),
    (8, 4, [2, 2, 2, 2]),
    (3, 5, [1, 1, 1]),  # LLaDA adds two steps of nothing
    (7, 1, [7]),
]


def revealed(p, after):
    """The columns of the first row that a sampler changed; each to its proposal."""
    changed = after != p.current
    assert torch.equal(after[changed], p.tokens[changed]) and not (changed & ~p.masked).any()
    return set(changed[0].nonzero().flatten().tolist())


@pytest.mark.parametrize(("sampler", "quota", "want"), VECTORS)
def test_one_step_reveals_what_was_worked_out_by_hand(sampler, quota, want):
    p = cases.example(quota=quota)
    assert revealed(p, make(sampler)(p)) == want


def test_the_last_mask_must_pass_factors_test_like_any_other():
    p = cases.example([0.3, 0.1], decided=[])
    assert revealed(p, make("factor")(p)) == {0}  # Fast-dLLM's code reveals both


@pytest.mark.parametrize(("masks", "steps", "want"), SCHEDULES)
def test_a_schedule_is_spread_evenly_its_first_steps_take_one_more(masks, steps, want):
    p = replace(cases.example(), block_masked=torch.tensor([masks]), block_steps=torch.tensor([steps]))
    got = [int(Static().quota(replace(p, block_step=torch.tensor([step])))) for step in range(len(want))]
    assert got == want and sum(got) == masks


@pytest.mark.parametrize("name", SAMPLERS)
def test_random_blocks_lose_a_mask_a_step_until_none_is_left(name):
    sampler = make(name)
    confidence = torch.rand(8).tolist()
    p = cases.example(confidence, decided=[], quota=1)
    for _ in range(8):
        after = sampler(p)
        assert revealed(p, after)
        if not (after == cases.MASK).any():
            break
        p = replace(p, current=after, step=p.step + 1, block_step=p.block_step + 1)
    assert not (after == cases.MASK).any()


@pytest.mark.parametrize("name", SAMPLERS)
def test_padding_and_decided_columns_are_left_alone(name):
    p = cases.example(quota=8)
    valid = torch.tensor([[True, True, True, True, False, False, False, False]])
    p = replace(p, span=type(p.span)(p.span.columns, valid))
    assert revealed(p, make(name)(p)) <= {0, 1, 3}


def test_ties_go_to_the_lower_column():
    p = cases.example([0.5] * 8, decided=[0])
    assert p.top(3)[0].nonzero().flatten().tolist() == [1, 2, 3] and p.top(1)[0].nonzero().flatten().tolist() == [1]


def test_top_takes_a_number_for_every_row_and_another_score():
    p = cases.example()
    assert torch.equal(p.top(torch.tensor([3])), p.top(3)) and p.top(9).sum() == 6 and not p.top(0).any()
    assert p.top(2, score=-p.confidence)[0].nonzero().flatten().tolist() == [4, 7]


def test_a_sampler_without_a_rule_says_so():
    with pytest.raises(NotImplementedError, match="does not say what to reveal"):
        Sampler()(cases.example())
