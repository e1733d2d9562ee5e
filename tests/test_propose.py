import pytest
import torch

from dllm import DllmError, Settings, generate
from dllm.kernels.token_stats import banned
from dllm.noise import Key
from dllm.propose import Proposer, most_probable

P = torch.tensor([0.5, 0.25, 0.15, 0.07, 0.03])


def propose(logits, **settings):
    """The proposal for one row of columns with these logits."""
    nothing = torch.tensor([], dtype=torch.long)
    made = Proposer(Settings(**settings), banned(nothing, logits.shape[-1]), torch.tensor([4]))
    return made(logits[None], torch.arange(len(logits))[None], Key(3, torch.tensor([1])))


def kept(**cut):
    return most_probable(P.log()[None, None], **{"top_p": None, "top_k": None, **cut}).isfinite()[0, 0].tolist()


def test_top_p_keeps_the_fewest_that_reach_the_share():
    assert kept(top_p=0.5) == [True, False, False, False, False] or kept(top_p=0.5)[:2] == [True, True]
    assert kept(top_p=0.49) == [True] + [False] * 4 and kept(top_p=0.7) == [True, True] + [False] * 3
    assert kept(top_p=1.0) == [True] * 5 and kept(top_p=1e-9) == [True] + [False] * 4


def test_top_k_keeps_the_k_most_probable():
    assert kept(top_k=2) == [True, True] + [False] * 3 and kept(top_k=9) == [True] * 5
    assert kept(top_k=1, top_p=0.7) == [True] + [False] * 4


def test_both_cut_in_any_order_of_tokens():
    mixed = torch.tensor([3, 0, 4, 1, 2])
    got = most_probable(P[mixed].log()[None, None], 0.7, None).isfinite()[0, 0]
    assert got.tolist() == [False, True, False, True, False]


@pytest.mark.parametrize(("cut", "want"), [({}, P), ({"top_k": 2}, [2 / 3, 1 / 3, 0, 0, 0]), ({"top_p": 0.8}, None)])
def test_draws_follow_the_distribution_that_is_left(cut, want):
    want = P[:3] / P[:3].sum() if want is None else torch.as_tensor(want)
    n = 20000
    tokens = propose(P.log().expand(n, -1), temperature=1.0, **cut).tokens
    share = torch.bincount(tokens[0], minlength=5) / n
    assert (share[: len(want)] - want).abs().max() < 0.015


def test_a_temperature_below_1_sharpens():
    n = 20000
    tokens = propose(P.log().expand(n, -1), temperature=0.7).tokens
    want = (P.log() / 0.7).softmax(-1)
    assert (torch.bincount(tokens[0], minlength=5) / n - want).abs().max() < 0.015


def test_the_smallest_temperature_is_greedy():
    assert propose(P.log().expand(50, -1), temperature=1e-310).tokens.unique().tolist() == [0]


def test_confidence_is_that_of_the_whole_distribution_and_drawn_is_what_is_left():
    proposal = propose(P.log()[None], temperature=2.0, top_k=2)
    assert proposal.confidence[0, 0] == pytest.approx(float(P[proposal.tokens[0, 0]]))
    torch.testing.assert_close(proposal.drawn[0, 0].softmax(-1)[:2], (P[:2].log() / 2).softmax(-1).double())
    plain = propose(P.log()[None])
    assert plain.drawn is plain.logits


@pytest.mark.parametrize("how", [{}, {"temperature": 0.8}, {"temperature": 0.8, "top_k": 3}, {"top_p": 0.6}], ids=str)
def test_one_pass_proposes_what_torch_does(how, monkeypatch):
    """As on a GPU, where nothing else reads the logits unless it is asked for."""
    logits, how = torch.randn(50, 7) * 2, {**how, "logits_eos_inf": True}
    plain = propose(logits, **how)
    monkeypatch.setattr("dllm.propose.suits", lambda _: True)
    found = propose(logits, **how)
    assert torch.equal(found.tokens, plain.tokens) and torch.equal(found.drawn, plain.drawn)
    torch.testing.assert_close(found.confidence, plain.confidence)
    assert plain.stats is None and (found.stats is None) == ("top_k" in how)


def test_an_end_of_text_that_is_revealed_last_keeps_its_place_in_the_statistics(monkeypatch):
    monkeypatch.setattr("dllm.propose.suits", lambda _: True)
    logits = torch.eye(5)[[4, 0]] * 3
    found = propose(logits, confidence_eos_eot_inf=True)
    assert found.tokens.tolist() == [[4, 0]] and found.confidence[0, 0] == 0 and found.confidence[0, 1] > 0.5
    torch.testing.assert_close(found.stats.confidence[0, 0], found.stats.confidence[0, 1])


@pytest.mark.parametrize("value", [0, -0.5, 1.5, "x", True])
@pytest.mark.parametrize("name", ["top_p", "eotp"])
@pytest.mark.usefixtures("unchecked")
def test_shares_that_cannot_be_are_named(name, value):
    with pytest.raises(DllmError, match=f"{name}={value!r} must be a probability above 0 and at most 1, or None"):
        Settings(**{name: value})


def test_one_most_probable_token_is_no_choice(model):
    ask = {"gen_length": 8, "seed": 0}
    hot, cold = generate(model, [3], "static", temperature=2.0, top_k=1, **ask), generate(model, [3], "static", **ask)
    assert hot.completions == cold.completions
    assert generate(model, [3], temperature=2.0, top_p=1e-6, **ask).completions[0] is not None
