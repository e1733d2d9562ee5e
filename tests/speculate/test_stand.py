"""STAND's memory: what the target thought behind the same tokens, longest n-gram first."""

from dataclasses import replace

import pytest
import torch

import dllm
from dllm import DllmError
from dllm.settings import Settings
from dllm.speculate import Context, Row, Tree
from dllm.speculate.choose import Chooser
from dllm.speculate.stand import KEPT, Memory, Stand


@pytest.fixture(scope="module")
def target(tiny):
    return tiny(attention="causal", mask_id=None)


def started(target, temperature=0.0, coupled=True, **options):
    choose = Chooser(Settings(temperature=temperature, seed=3), torch.arange(0))
    return Stand(**options).start(Context(target, choose, coupled, 4, 64))


def row(tokens, request=0, prompt_length=2):
    return Row(request, request, tokens, prompt_length, 5, 64)


def sure(*tokens):
    """Logits that are sure of these tokens, of 40."""
    return torch.nn.functional.one_hot(torch.tensor(tokens), 40).double().log()


def test_a_memory_keeps_the_mean_of_the_ten_most_probable_tokens():
    memory = Memory()
    memory.add({1: 0.8, 2: 0.2})
    memory.add({1: 0.4, 3: 0.6})
    assert memory.mean == pytest.approx({1: 0.6, 3: 0.3, 2: 0.1}) and list(memory.mean) == [1, 3, 2]
    memory.add(dict.fromkeys(range(20), 0.05))
    assert len(memory.mean) == KEPT and 1 in memory.mean


def test_it_drafts_what_the_target_found_probable_behind_the_longest_known_ngram(target):
    live = started(target, budget=3)
    text = row([1, 2, 3, 4, 1, 2, 3], prompt_length=6)
    live.begin(text, sure(9, 7, 8, 9, 9, 5), None)  # behind (1, 2): 7, later 5; behind (1, 2, 3): 8
    tree = live.draft([text])[0]
    assert tree.tokens[0] == 8 and tree.parents[0] == -1
    assert live.draft([row([6, 2, 3], prompt_length=6)])[0].tokens == []  # another prompt's memory
    assert live.draft([replace(text, tokens=[1, 2, 3, 4, 1, 2, 9, 9])])[0].tokens == []


def test_it_learns_from_every_node_that_was_verified(target):
    live = started(target, budget=8)
    text = row([1, 2, 3])
    live.begin(text, sure(2, 3), None)
    assert live.draft([text])[0].tokens == []
    after = replace(text, tokens=[1, 2, 3, 4, 5])
    live.observe(after, Tree([4, 6], [-1, -1]), sure(4, 5, 7), None, [0])  # behind 3: 4; behind 3 4: 5; behind 3 6: 7
    tree = live.draft([replace(text, tokens=[1, 2, 3, 6])])[0]
    assert tree.tokens[0] == 7
    assert live.draft([replace(text, tokens=[1, 2, 3])])[0].tokens[:2] == [4, 5]


def test_answers_to_one_prompt_share_a_memory_and_other_prompts_do_not(target):
    live = started(target)
    one, again, other = row([1, 2, 3]), row([1, 2, 3], request=1), row([4, 2, 3], request=2)
    live.begin(one, sure(2, 3), None)
    live.draft([one])
    live.observe(replace(one, tokens=[1, 2, 3, 9]), Tree(), sure(9), None, [])
    same, different = live.draft([again, other])
    assert same.tokens == [9] and different.tokens == []


def test_at_a_temperature_it_drafts_in_the_order_of_the_targets_own_draws(target):
    probable = torch.randn(2, 40, dtype=torch.float64).softmax(-1).log()
    text = row([1, 2])
    live = started(target, temperature=1.0, budget=3, min_n=1, depth=1)
    live.begin(replace(text, tokens=[1, 2, 2], prompt_length=2), probable, None)
    choose = live.context.choose
    noise = choose.noise([5], torch.tensor([[3]]), 40)[0, 0]
    known = probable[1].topk(KEPT).indices
    want = known[(probable[1] + noise)[known].topk(3).indices].tolist()
    drawn = replace(text, tokens=[1, 2, 2])
    assert set(live.draft([drawn])[0].tokens) == set(want)
    certain = started(target, temperature=1.0, coupled=False, budget=3, min_n=1, depth=1)
    certain.begin(drawn, probable, None)
    assert certain.draft([drawn])[0].tokens == known[:3].tolist() and set(want) != set(known[:3].tolist())


@pytest.mark.parametrize(
    ("options", "what"),
    [
        ("min_n=0", "min_n=0 of Stand"),
        ("budget=0", "budget=0 of Stand"),
        ("depth=0", "depth=0"),
        ("min_n=5", "above max_n=4"),
    ],
)
def test_options_that_cannot_be_are_refused(options, what):
    with pytest.raises(DllmError, match=what):
        dllm.speculate.make(f"stand:{options}")
