"""One step on a block of 8, worked out by hand in the project's notes; two columns are decided already (cases.example).

To add a sampler: a row here. The rules of published code that we do not copy are told in the samplers.
"""

from dataclasses import replace

import pytest
import torch

import cases
from dllm.canvas import Span
from dllm.samplers import SAMPLERS, MaskgitPlus, Prediction, Sampler, Static, make

MASKED = [name for name in SAMPLERS if name != "renoise"]
"""Those that work on masks; tests/samplers/test_renoise.py has the other."""

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
    ("localleap:threshold=0.9,relaxed_threshold=0.75,radius=1", 1, {0, 1, 5}),
    ("localleap:threshold=0.9,relaxed_threshold=0.75,radius=2", 1, {0, 1, 3, 5}),
    ("localleap:threshold=0.97,relaxed_threshold=0.75,radius=4", 1, {0}),  # no anchor, so nothing is near one
    ("localleap:threshold=0.9,relaxed_threshold=0,radius=1", 1, {0, 1, 4, 5}),
    (
        "learned:filter=tiny-llada,threshold=1",
        1,
        {0},
    ),  # by confidence where the filter believes nothing; the rest is in tests/filters
    ("learned:filter=tiny-llada,threshold=0", 1, {0, 1, 3, 4, 5, 7}),
    ("dparallel:threshold=0.5", 1, {0, 5}),
    ("dparallel:threshold=0.75", 1, {0, 1, 5}),
    ("dparallel:threshold=0.1", 1, {0}),
    ("eb:gamma=0.001", 1, {0}),
    ("eb:gamma=0.25", 1, {0, 5}),
    ("eb:gamma=0.6", 1, {0, 1, 5}),
    ("hierarchy:low=0.4,threshold=0.9", 1, {0, 5}),
    ("hierarchy:low=0.2,threshold=0.9", 1, {0, 5, 7}),
    ("hierarchy:low=0.2,threshold=0.75", 1, {0, 1, 3, 5, 7}),
    ("hierarchy:low=0.96,threshold=0.99", 1, {0}),
    ("wino:threshold=0.6", 1, {0, 1, 3, 5}),
    ("wino:threshold=0", 1, {0, 1, 3, 4, 5}),  # at most five of six
    ("klass", 2, {0, 5}),  # a first step has nothing to compare with, so the schedule decides
    ("credit:weight=0", 1, {0, 5}),
    ("credit:threshold=1", 1, {0}),
    ("sliding:base=static,window=2", 4, {0, 1}),
    ("sliding:window=3", 1, {0}),
    ("prophet:base=static", 1, {0}),
    ("prophet:base=static,thresholds=0/0/0", 1, {0, 1, 3, 4, 5, 7}),
    ("prophet:base=threshold,thresholds=inf/inf/inf", 1, {0, 5}),
    ("freedave", 2, {0, 5}),
    ("freedave:tau=0.9", 2, {0, 5}),
    ("freedave:tau=0.99", 2, {0}),
    ("maskgit_plus", 3, {0, 1, 5}),
    ("topk_margin", 2, {0, 5}),
    ("entropy", 3, {0, 1, 5}),
]

SCHEDULES = [
    # masks, steps, tokens of each step
    (10, 4, [3, 3, 2, 2]),
    (8, 4, [2, 2, 2, 2]),
    (3, 5, [1, 1, 1]),  # LLaDA adds two steps of nothing
    (7, 1, [7]),
]

DREAM_SCHEDULES = [
    # masks, steps, tokens of each step; the steps of nothing that Dream runs are left out
    (256, 256, [1] * 254 + [2]),
    (1024, 1024, [1] * 1021 + [3]),
    (256, 64, [3, *[4] * 62, 5]),
    (512, 256, [1, *[2] * 254, 3]),
    (128, 512, 512 - 385),
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


def test_every_sampler_that_does_not_draw_has_a_row_above():
    assert {name.partition(":")[0] for name, *_ in VECTORS} == set(MASKED) - {"random", "origin"}


def test_the_last_mask_must_pass_factors_test_like_any_other():
    p = cases.example([0.3, 0.1], decided=[])
    assert revealed(p, make("factor")(p)) == {0}  # Fast-dLLM's code reveals both


@pytest.mark.parametrize(("masks", "steps", "want"), SCHEDULES)
def test_a_schedule_is_spread_evenly_its_first_steps_take_one_more(masks, steps, want):
    assert Static().quotas(masks, steps) == want and sum(want) == masks


@pytest.mark.parametrize(("masks", "steps", "want"), DREAM_SCHEDULES)
def test_dreams_timesteps_round_down_and_the_last_takes_the_rest(masks, steps, want):
    got = list(MaskgitPlus().quotas(masks, steps))
    assert (len(got) if isinstance(want, int) else got) == want and sum(got) == masks and min(got) > 0


@pytest.mark.parametrize("name", MASKED)
def test_random_blocks_lose_a_mask_a_step_until_none_is_left(name):
    sampler = make(name).for_model("tiny-llada")
    p = cases.example(torch.rand(8).tolist(), decided=[], quota=1)
    for step in range(1, 9):
        after = sampler(p)
        assert revealed(p, after)
        if not (after == cases.MASK).any():
            break
        number = torch.tensor([step])
        p = replace(p, current=after, step=number, block_step=number, recall=replace(p.recall, fresh=number == 0))
    assert not (after == cases.MASK).any()


@pytest.mark.parametrize("name", MASKED)
def test_padding_other_blocks_and_decided_columns_are_left_alone(name):
    p = cases.example(quota=8)
    valid = torch.tensor([[True, True, True, True, False, False, False, False]])
    for part in ({"span": Span(p.span.columns, valid)}, {"block": valid}, {"open": valid}):
        some = replace(p, **part)
        assert revealed(some, make(name).for_model("tiny-llada")(some)) <= {0, 1, 3}


def test_ties_go_to_the_lower_column():
    p = cases.example([0.5] * 8, decided=[0])
    assert p.top(3)[0].nonzero().flatten().tolist() == [1, 2, 3] and p.top(1)[0].nonzero().flatten().tolist() == [1]


def test_top_takes_a_number_for_every_row_and_another_score():
    p = cases.example()
    assert torch.equal(p.top(torch.tensor([3])), p.top(3)) and p.top(9).sum() == 6 and not p.top(0).any()
    assert p.top(2, score=-p.confidence)[0].nonzero().flatten().tolist() == [4, 7]


def test_entropy_and_gap_are_those_of_the_logits():
    p = cases.example()
    want = torch.special.entr(p.logits.softmax(-1)).sum(-1)
    torch.testing.assert_close(p.entropy, want)
    top = p.logits.sort(-1, descending=True).values
    assert torch.equal(p.gap, top[..., 0] - top[..., 1])
    held_back = replace(p, logits=p.logits.index_fill(-1, torch.tensor([40]), -torch.inf))
    assert held_back.entropy.isfinite().all()


def test_a_sampler_without_a_rule_says_so():
    with pytest.raises(NotImplementedError, match="does not say what to reveal"):
        Sampler()(cases.example())
    assert isinstance(cases.example(), Prediction)
