"""The accept rules: exact where they say so, by enumeration and by chi-square; and rules that are not, found out."""

from dataclasses import dataclass
from itertools import permutations
from typing import ClassVar

import pytest
import torch

import dllm
from dllm import DllmError
from dllm.noise import Key
from dllm.settings import Settings
from dllm.speculate.accept import RULES, Match, Rule, rule, trial
from dllm.speculate.choose import Chooser
from dllm.speculate.tree import Nodes, Tree
from drafting import Drawing, Scripted, prompts, strangeness

LIMIT = 4.0
"""Standard deviations: one honest test in 30,000 is beyond it."""


@pytest.fixture(scope="module")
def eight(tiny):
    """A model of 8 tokens, so that what follows can be enumerated."""
    return tiny(attention="causal", mask_id=None, n_layers=1, vocab_size=8, eos_ids=(7,), sharpness=1.5)


@pytest.fixture(scope="module")
def table():
    """What a bad drafter expects behind each of the 8 tokens."""
    return 1.5 * torch.randn(8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(5))


def emitted(p, q, n):
    """The probabilities of what n siblings drawn from q without replacement and the ratio rule emit, enumerated."""
    out = torch.zeros_like(p)
    for order in permutations(range(len(q)), n):
        drawn, reached, left, remaining = 1.0, 1.0, p, q.clone()
        for token in order:
            drawn = drawn * float(remaining[token] / remaining.sum())
            odds, rest = trial(left, remaining, torch.tensor([token]))
            out[token] += drawn_share(order, q) * reached * min(1.0, float(odds))
            reached, left = reached * (1 - min(1.0, float(odds))), rest
            remaining[token] = 0.0
        out += drawn * reached * left
    return out


def drawn_share(order, q):
    """The probability to draw these tokens from q in this order, without replacement."""
    share, left = 1.0, 1.0
    for token in order:
        share, left = share * float(q[token]) / left, left - float(q[token])
    return share


@pytest.mark.parametrize("n", [1, 2, 3])
@pytest.mark.parametrize("seed", range(8))
def test_the_ratio_rule_emits_the_targets_probabilities_to_the_last_digit(n, seed):
    draw = torch.Generator().manual_seed(seed)
    p, noise = (torch.randn(5, dtype=torch.float64, generator=draw) for _ in range(2))
    p, q = p.softmax(0), (p + (seed % 4) * noise).softmax(0)  # q equals p where seed % 4 is 0
    torch.testing.assert_close(emitted(p, q, n), p, rtol=0, atol=1e-12)


def test_a_sibling_that_comes_twice_is_not_tried_again():
    p, q = torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64), torch.tensor([0.0, 0.4, 0.6], dtype=torch.float64)
    assert float(trial(p, q, torch.tensor([0]))[0]) == 0


def test_a_node_whose_drafter_told_no_probabilities_is_refused_and_changes_nothing():
    choose = Chooser(Settings(temperature=1.0, seed=2), torch.arange(0))
    logits, q = torch.randn(1, 2, 8), torch.full((1, 8), torch.nan)
    nodes = Nodes.of([1], [4], [Tree.chain([3], q)], logits.device)
    chosen, accepted = rule("ratio")(nodes, logits, choose, [9])
    assert not accepted[0, 1] and torch.equal(chosen, choose(logits, [9], [4]))


@pytest.mark.parametrize("temperature", [0.7, 1.0])
@pytest.mark.parametrize("branches", [(1, 1), (3, 2)], ids=["chain", "tree"])
@pytest.mark.parametrize("name", ["match", "ratio"])
def test_lossless_rules_emit_the_models_probabilities(eight, table, name, branches, temperature):
    drafter = Drawing(table, branches)
    assert abs(strangeness(eight, [1, 2, 3], drafter, name, n=2500, temperature=temperature)) < LIMIT


@pytest.mark.parametrize("drafter", ["ngram", "suffix:least=0", "recycling:k=6", "stand:min_n=1,budget=6"])
def test_drafts_that_were_not_drawn_are_exact_under_the_ratio_rule_too(eight, drafter):
    assert abs(strangeness(eight, [1, 2, 3, 1, 2, 3], drafter, "ratio", n=2500)) < LIMIT


@pytest.mark.parametrize("changes", [{"top_k": 3}, {"top_p": 0.8}], ids=str)
def test_the_ratio_rule_never_emits_what_is_cut_off(eight, table, changes):
    plain, drafted = (
        dllm.generate_causal(
            eight, [4], draft, verify="ratio", gen_length=1 + len(branches), num_samples=400, seed=1, temperature=1.0,
            batch_size=400, **changes,
        )
        for draft, branches in ((None, (1,)), (Drawing(table, (2,)), (2,)))
    )  # fmt: skip
    assert {c[1] for c in drafted.completions if len(c) > 1} <= {c[1] for c in plain.completions if len(c) > 1}


@dataclass(frozen=True)
class Luckiest(Rule):
    """Every sibling gets a draw of its own from p, and is accepted if that draw is it: some sibling wins too often."""

    lossless: ClassVar[str] = "distribution"

    def __call__(self, nodes, logits, choose, keys):
        p, columns = choose.probabilities(logits), nodes.following()
        accepted = torch.zeros_like(nodes.tokens, dtype=torch.bool)
        for rank, child in enumerate(nodes.children()):
            key = Key(choose.settings.noise_seed, torch.tensor(keys))
            draw = (p.log() + key.gumbel(columns, p.shape[-1], stream=10 + rank)).argmax(-1)
            good = (child > 0) & (nodes.tokens.gather(1, child) == draw)
            accepted.scatter_(1, child, good | accepted.gather(1, child))
        return Match()(nodes, logits, choose, keys)[0], accepted


@pytest.mark.parametrize("biased", ["drop improbable drafts", "call the best ones drawn", "a draw for every sibling"])
def test_a_biased_rule_is_found_out(eight, table, biased):
    drafter, name = {
        "drop improbable drafts": (Drawing(table, drop=0.2), "ratio"),
        "call the best ones drawn": (Drawing(table, greedy=True), "ratio"),
        "a draw for every sibling": (Drawing(table, (3, 2)), Luckiest()),
    }[biased]
    assert strangeness(eight, [1, 2, 3], drafter, name, n=8000) > LIMIT


def test_typical_acceptance_says_that_it_is_lossy_and_is_so(eight, table):
    assert [made.lossless for made in RULES.values()] == ["exact", "distribution", "no"]
    assert strangeness(eight, [1, 2, 3], Drawing(table, (3, 2)), "typical", n=2500) > LIMIT


def test_all_rules_are_greedy_at_temperature_0(tiny):
    model, asked = tiny(attention="causal", mask_id=None), prompts(12)
    plain = dllm.generate_causal(model, asked, gen_length=10)
    drafter = Scripted(plain.completions)
    for name in RULES:
        made = dllm.generate_causal(model, asked, drafter, verify=name, gen_length=10)
        assert made.completions == plain.completions and made.nfe.sum() < plain.nfe.sum()


@pytest.mark.parametrize(
    ("name", "what"),
    [
        ("mach", "did you mean 'match'"),
        ("typical:epsilon=0", "above 0 and at most 1"),
        ("typical:delta=2", "above 0 and at most 1"),
        ("ratio:q=1", "unknown option of accept rule ratio 'q'"),
    ],
)
def test_a_rule_that_cannot_be_is_refused(name, what):
    with pytest.raises(DllmError, match=what):
        rule(name)


def test_a_rule_without_a_rule_says_so(tiny):
    model = tiny(attention="causal", mask_id=None)
    with pytest.raises(NotImplementedError, match="does not say what it accepts"):
        dllm.generate_causal(model, [1], Always(), verify=Rule(), gen_length=5)


@dataclass(frozen=True)
class Always(Scripted):
    """A draft of one token in every step."""

    answers: object = None

    def start(self, context):
        made = super().start(context)
        made.tree = lambda _: Tree.chain([1])
        return made
