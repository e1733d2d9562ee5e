import pytest
import torch

from dllm.noise import Key, _unit, mix, request_id

REQUESTS = torch.tensor([request_id([1, 2, 3], 0), request_id([1, 2, 3], 1), request_id([4], 0)])
COLUMNS = torch.arange(4000).repeat(3, 1)


def chi_square(counts, p):
    """How far counts are from what p expects, in standard deviations of the chi-square distribution."""
    expected = p * counts.sum()
    degrees = len(p) - 1
    return (((counts - expected) ** 2 / expected).sum() - degrees) / (2 * degrees) ** 0.5


@pytest.mark.parametrize("temperature", [0.7, 1.0, 2.0])
def test_gumbel_draws_follow_the_softmax_at_the_temperature(temperature):
    logits = torch.tensor([2.0, 1.0, 0.5, 0.0, -1.0, 1.5], dtype=torch.float64)
    noise = Key(11, REQUESTS).gumbel(COLUMNS, 6)
    drawn = (logits / temperature + noise).argmax(-1).flatten().bincount(minlength=6)
    assert chi_square(drawn, (logits / temperature).softmax(0)).abs() < 4


def test_uniform_numbers_are_uniform_and_never_0_or_1():
    u = Key(3, REQUESTS).uniform(COLUMNS)
    assert u.dtype == torch.float64 and u.min() > 0 and u.max() < 1
    assert chi_square((u * 20).long().flatten().bincount(minlength=20), torch.full((20,), 0.05)).abs() < 4


def test_gumbel_noise_has_the_mean_and_variance_of_its_law():
    noise = Key(5, REQUESTS).gumbel(COLUMNS, 4)
    assert abs(noise.mean() - 0.5772) < 0.02 and abs(noise.var() - torch.pi**2 / 6) < 0.05 and noise.isfinite().all()


@pytest.mark.parametrize("draw", [lambda k, c: k.uniform(c), lambda k, c: k.gumbel(c, 5)], ids=["uniform", "gumbel"])
def test_noise_belongs_to_its_request_and_column_not_to_the_batch(draw):
    whole = draw(Key(7, REQUESTS), COLUMNS)
    for row in range(3):
        window = COLUMNS[row : row + 1, 100:120]
        assert torch.equal(draw(Key(7, REQUESTS[row : row + 1]), window), whole[row : row + 1, 100:120])


def test_seeds_requests_columns_and_kinds_of_noise_are_independent():
    key, other = Key(7, REQUESTS), Key(8, REQUESTS)
    u, gumbel = key.uniform(COLUMNS), key.gumbel(COLUMNS, 2)[0]
    rows = [*u, u[0].roll(1), *other.uniform(COLUMNS), *(-(-gumbel).exp()).exp().T]
    correlation = torch.corrcoef(torch.stack(rows)) - torch.eye(len(rows))
    assert correlation.abs().max() < 5 / 4000**0.5


def test_the_hash_is_splitmix64():
    """First outputs of SplitMix64 seeded with 1234567, as published (Vigna; Rosetta Code)."""
    want = [6457827717110365317, 3203168211198807973, 9817491932198370423, 4593380528125082431, 16408922859458223821]
    got = mix(torch.tensor(1234567), torch.arange(5))
    assert [int(x) % 2**64 for x in got] == want


def test_a_request_is_named_by_its_prompt_and_repeat():
    names = {request_id(prompt, repeat) for prompt in ([1, 2], [12], [2, 1], [1], [1, 0]) for repeat in range(3)}
    assert len(names) == 15 and request_id([1, 2], 0) == request_id((1, 2), 0)


def test_the_ends_of_the_hash_are_still_inside_0_and_1():
    unit = _unit(torch.tensor([0, -1, (1 << 63) - 1, -(1 << 63)]))
    assert (unit > 0).all() and (unit < 1).all()
