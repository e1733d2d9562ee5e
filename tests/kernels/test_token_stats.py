import pytest
import torch

from dllm.kernels.token_stats import CHUNK, banned, reference_token_stats, triton_token_stats
from dllm.noise import Key, gumbel

SIZES = [(1, 1, 2), (2, 3, 37), (1, 2, CHUNK), (2, 2, CHUNK + 5), (1, 2, 2 * CHUNK + 16)]
DTYPES = [torch.float32, torch.bfloat16, torch.float16]


def logits_of(shape, dtype, device):
    """Random logits of rows that lie in memory with NaN between them."""
    batch, width, vocab_size = shape
    memory = torch.full((batch, width + 1, vocab_size + 3), torch.nan, dtype=dtype)
    memory[:, :width, :vocab_size] = (torch.randn(shape) * 3).to(dtype)
    return memory.to(device)[:, :width, :vocab_size]


def places(batch, width, device, seed=1):
    columns = torch.arange(width, device=device).expand(batch, -1)
    return Key(seed, torch.arange(batch, device=device)).place(columns)


def check(logits, never, place=None, temperature=0.0):
    """Tokens exactly, numbers to float32's rounding of the reference in float64."""
    got = triton_token_stats(logits, never, place, temperature)
    want = reference_token_stats(logits.double(), never, place, temperature)
    assert torch.equal(got.tokens, want.tokens)
    for name in ("confidence", "peak", "margin", "top", "second", "lse", "entropy", "gap"):
        torch.testing.assert_close(getattr(got, name).double(), getattr(want, name), rtol=2e-5, atol=2e-6)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SIZES, ids=str)
def test_all_of_it_matches_the_reference(shape, dtype, device):
    logits = logits_of(shape, dtype, device)
    check(logits, banned(torch.tensor([0], device=device), shape[2]))
    check(logits, banned(logits.argmax(-1).flatten(), shape[2]) if shape[2] > 2 else banned_none(shape[2], device))


@pytest.mark.parametrize("temperature", [0.3, 1.0, 2.5])
@pytest.mark.parametrize("dtype", DTYPES[:2], ids=str)
def test_a_draw_meets_the_noise_of_the_cpu(dtype, temperature, device):
    shape = (2, 4, CHUNK + 5)
    never = banned(torch.tensor([3, CHUNK + 4], device=device), shape[2])
    check(logits_of(shape, dtype, device), never, places(2, 4, device), temperature)


def banned_none(vocab_size, device):
    return banned(torch.tensor([], dtype=torch.long, device=device), vocab_size)


def test_the_lowest_of_equal_logits_is_chosen_across_chunks(device):
    logits = torch.zeros(1, 2, 2 * CHUNK, device=device)
    logits[0, 0, [CHUNK - 1, CHUNK, CHUNK + 7]] = 2.0
    logits[0, 1, [CHUNK + 9, CHUNK + 8]] = 2.0
    stats = triton_token_stats(logits, banned_none(2 * CHUNK, device))
    assert stats.tokens.tolist() == [[CHUNK - 1, CHUNK + 8]] and stats.gap.tolist() == [[0.0, 0.0]]
    stats = triton_token_stats(logits, banned(torch.tensor([CHUNK - 1, CHUNK + 8], device=device), 2 * CHUNK))
    assert stats.tokens.tolist() == [[CHUNK, CHUNK + 9]] and (stats.top == 2).all()


def test_forbidden_ids_stay_in_the_distribution(device):
    logits = torch.tensor([[[1.0, 3.0, 2.0]]], device=device)
    stats = triton_token_stats(logits, banned(torch.tensor([1], device=device), 3))
    assert stats.tokens.item() == 2 and stats.confidence.item() == pytest.approx(float(logits.softmax(-1)[0, 0, 2]))
    assert stats.peak.item() == pytest.approx(float(logits.softmax(-1).max())) and stats.gap.item() == 1.0


def test_impossible_tokens_count_nothing(device):
    logits = torch.full((1, 1, CHUNK + 3), -torch.inf, device=device)
    logits[..., [5, CHUNK + 1]] = torch.tensor([1.0, 2.0], device=device)
    check(logits, banned_none(CHUNK + 3, device))


def test_nan_shows_in_its_row_alone(device):
    logits = torch.randn(1, 3, 40, device=device)
    logits[0, 1, 7] = torch.nan
    stats = triton_token_stats(logits, banned_none(40, device))
    assert stats.confidence.isnan().tolist() == [[False, True, False]]
    assert ((stats.tokens >= 0) & (stats.tokens < 40)).all()
    assert triton_token_stats(logits * torch.nan, banned_none(40, device)).confidence.isnan().all()


def test_large_logits_do_not_overflow(device):
    check(torch.tensor([[[6e4, 5.99e4, -6e4], [1e37, 0.0, -1e37]]], device=device), banned_none(3, device))


@pytest.mark.parametrize("temperature", [0.0, 0.8])
def test_a_row_alone_equals_the_row_in_a_batch(temperature, device):
    logits, never = logits_of((3, 2, CHUNK + 40), torch.bfloat16, device), banned_none(CHUNK + 40, device)
    place = places(3, 2, device) if temperature else None
    whole = triton_token_stats(logits, never, place, temperature)
    alone = triton_token_stats(logits[1:2, 1:], never, None if place is None else place[1:2, 1:], temperature)
    assert all(torch.equal(one, all_[1:2, 1:]) for one, all_ in zip(alone, whole, strict=True))


def test_draws_follow_the_softmax_at_the_temperature(device):
    n, temperature = 300, 0.7
    logits = torch.tensor([2.0, 1.0, 0.5, 0.0, -1.0, 1.5], device=device)
    tokens = triton_token_stats(
        logits.expand(1, n, -1), banned_none(6, device), places(1, n, device), temperature
    ).tokens
    p, counts = (logits / temperature).softmax(0), tokens.flatten().bincount(minlength=6)
    chi_square = ((counts - n * p) ** 2 / (n * p)).sum()
    assert chi_square < 20.5  # 0.999 of the chi-square distribution with 5 degrees of freedom


def test_the_lowest_temperature_is_greedy(device):
    logits = torch.tensor([0.5, 0.25, 0.15]).log().expand(1, 50, -1).to(device)
    assert triton_token_stats(logits, banned_none(3, device), places(1, 50, device), 1e-310).tokens.eq(0).all()


def test_the_noise_of_the_kernel_keeps_the_tail(device):
    """Equal logits: the token drawn is that of the highest noise, which float32 uniforms would leave to chance."""
    place = places(1, 3, device)
    stats = triton_token_stats(torch.zeros(1, 3, 4 * CHUNK, device=device), banned_none(4 * CHUNK, device), place, 1.0)
    assert torch.equal(stats.tokens, gumbel(place, 4 * CHUNK).argmax(-1))


def test_nothing_is_asked_of_no_columns(device):
    assert triton_token_stats(torch.zeros(2, 0, 5, device=device), banned_none(5, device)).tokens.shape == (2, 0)


@pytest.mark.gpu
@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
@pytest.mark.parametrize("vocab_size", [126_464, 151_936, 152_064, 262_144])
def test_real_vocabularies_match_the_reference(vocab_size, dtype, temperature):
    logits = logits_of((4, 32, vocab_size), dtype, "cuda")
    never = banned(torch.tensor([vocab_size - 130, *range(vocab_size - 100, vocab_size)], device="cuda"), vocab_size)
    check(logits, never, places(4, 32, "cuda") if temperature else None, temperature)
