"""Fitting: the same from the same seed, as sure as it is right, and an error where nothing can be learned."""

from dataclasses import replace

import pytest
import torch

from dllm import DllmError
from dllm.filters.fit import Recipe, balance, columns_of, fit
from dllm.filters.quality import quality
from dllm.filters.traces import Traces
from dllm.samplers.base import Fitted
from dllm.samplers.filter import Filter


def made_up(n=400, share=0.9, seed=0):
    """Steps whose proposals are final with a probability that the second feature tells and the first does not."""
    draw = torch.Generator().manual_seed(seed)
    features = torch.rand(n, 4, 9, generator=draw)
    features[..., 1] *= 20  # as margins are
    chance = (features[..., 1] / 20) ** (1 / share - 1)
    right = torch.rand(n, 4, generator=draw) < chance
    masked = torch.rand(n, 4, generator=draw) < 0.8
    zero = torch.zeros(n, dtype=torch.long)
    return Traces(features, right, masked, zero, zero[:, None], zero, zero, zero)


RECIPE = Recipe("shared:hidden=8", ("margin", "confidence"), epochs=60, batch=64)


@pytest.mark.parametrize("net", ["mlp:hidden=8", "shared:hidden=8"])
def test_the_same_seed_gives_the_same_weights_and_another_one_others(net):
    recipe = replace(RECIPE, net=net, epochs=3)
    nets = [fit(made_up(), made_up(seed=1), r)[0].state_dict() for r in (recipe, recipe, replace(recipe, seed=1))]
    assert all(torch.equal(nets[0][name], nets[1][name]) for name in nets[0])
    assert not all(torch.equal(nets[0][name], nets[2][name]) for name in nets[0])


def test_global_randomness_is_neither_read_nor_moved():
    torch.manual_seed(1)
    before = torch.random.get_rng_state()
    one = fit(made_up(), made_up(seed=1), replace(RECIPE, epochs=2))[0].state_dict()
    assert torch.equal(torch.random.get_rng_state(), before)
    torch.manual_seed(2)
    two = fit(made_up(), made_up(seed=1), replace(RECIPE, epochs=2))[0].state_dict()
    assert all(torch.equal(one[name], two[name]) for name in one)


@pytest.mark.parametrize("share", [0.5, 0.93])
def test_it_believes_as_often_as_it_is_right_however_rare_a_class_is(share):
    train, unseen = made_up(600, share), made_up(800, share, seed=2)
    net, _ = fit(train, made_up(300, share, seed=1), replace(RECIPE, epochs=25))
    made = Filter(net, RECIPE.net, RECIPE.features, Fitted("", "", "", 4), 1.0)
    told = quality(made, unseen)
    # A tenth of the columns is 256: their share is off by 0.03 (one standard error) on its own.
    assert told["filter"]["calibration_error"] < 0.06 < told["confidence"]["calibration_error"]
    assert told["filter"]["loss"] < told["confidence"]["loss"]
    recall = [level["recall"] for level in told["filter"]["levels"]]
    assert recall == sorted(recall, reverse=True)


def test_it_stops_where_other_prompts_gain_nothing_and_keeps_the_best():
    noise = made_up(20)
    losses = []
    _, how = fit(
        noise, made_up(200, seed=1), replace(RECIPE, epochs=400, patience=5), lambda _, loss: losses.append(loss)
    )
    assert how["epochs"] == len(losses) < 400 and how["loss"] == min(losses) == losses[-6]


def test_what_was_decided_before_does_not_count():
    train, valid = made_up(), made_up(seed=1)
    other = replace(train, right=train.right ^ ~train.masked)
    one, two = (fit(t, valid, replace(RECIPE, epochs=2))[0].state_dict() for t in (train, other))
    assert all(torch.equal(one[name], two[name]) for name in one)


def test_features_are_taken_by_name():
    x = torch.arange(9.0)[None, None]
    assert columns_of(x, ("border", "neighbours", "confidence"))[0, 0].tolist() == [8, 3, 4, 5, 6, 0]


def test_one_class_alone_is_refused():
    for value in (True, False):
        with pytest.raises(DllmError, match="nothing can be learned from one class"):
            balance(replace(made_up(), right=torch.full((400, 4), value)))


def test_features_that_are_not_finite_are_refused():
    broken = made_up()
    broken.features[3, :, 1] = torch.nan
    for parts in ((broken, made_up()), (made_up(), broken)):
        with pytest.raises(DllmError, match="the traces hold features that are not finite"):
            fit(*parts, RECIPE)


def test_a_loss_that_is_not_finite_is_refused():
    with pytest.raises(DllmError, match=r"the loss is (nan|inf) in epoch \d+; give a lower learning rate"):
        fit(made_up(), made_up(), replace(RECIPE, learning_rate=1e30))


@pytest.mark.parametrize("features", [(), ("colour",), ("margin", "margin")])
def test_a_recipe_checks_itself(features):
    with pytest.raises(DllmError, match=r"give each once, at least one, of confidence, margin"):
        Recipe(features=features)
    with pytest.raises(DllmError, match="unknown network 'tree'"):
        Recipe("tree")
