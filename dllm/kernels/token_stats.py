"""All that decoding asks of a vocabulary's logits, from one pass over them: choice, top two, entropy, normaliser.

A first kernel reduces chunks of CHUNK logits to four numbers each, in float32 registers: few rows still fill a GPU, and
as the chunks are the same whatever the batch, so is the result. A second merges a row's chunks, and looks for the token
and the second highest logit where the first has found them: in one chunk, which is read once more.

The noise of a draw is that of `dllm.noise`: the same 52 bits of the same hash, with logarithms in float32. It is fine
at both ends, for a coarse tail acts like a lower temperature (arXiv:2409.02908).
Shape letters: B rows, W columns, V vocabulary, C chunks, N ids.
"""

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from dllm.kernels.jit import LN_2, LOG2_E, jit, launch, power_of_two, suits, tl
from dllm.noise import gumbel

CHUNK = 4096
"""Logits of a program: of bfloat16, 8 loads of 16 bytes by each of 64 threads, all of them under way at once."""
SHARPEST = 1e8
"""The inverse of the lowest temperature that is told from 0: at this one no noise outweighs a difference of logits."""


class TokenStats(NamedTuple):
    """Of the logits of each column, over the whole vocabulary at temperature 1. float32, or wider as the logits are."""

    tokens: Int[Tensor, "B W"]
    """The highest logit that is not banned, the lowest id of equal ones; with noise the token that was drawn."""
    confidence: Float[Tensor, "B W"]
    """Its probability."""
    peak: Float[Tensor, "B W"]
    """The highest probability."""
    margin: Float[Tensor, "B W"]
    """By how much it exceeds the second."""
    top: Float[Tensor, "B W"]
    """The highest logit."""
    second: Float[Tensor, "B W"]
    """The second highest logit."""
    lse: Float[Tensor, "B W"]
    """The logarithm of the sum of the exponentials."""
    entropy: Float[Tensor, "B W"]
    """In nats."""

    @property
    def gap(self) -> Float[Tensor, "B W"]:
        """By how much the highest logit exceeds the second."""
        return self.top - self.second

    def at(self, place: Int[Tensor, "B W2"]) -> "TokenStats":
        """Those of some of the columns."""
        return TokenStats(*(part.gather(1, place) for part in self))


class Banned(NamedTuple):
    """Ids that are never chosen."""

    ids: Int[Tensor, " N"]
    never: Bool[Tensor, " V"]
    """The same, as a mask."""
    chunks: Bool[Tensor, " C"]
    """Chunks that hold one of them; the others need not look."""


def banned(ids: Int[Tensor, " N"], vocab_size: int) -> Banned:
    never = torch.zeros(-(-vocab_size // CHUNK) * CHUNK, dtype=torch.bool, device=ids.device).index_fill(0, ids, True)
    return Banned(ids, never[:vocab_size], never.view(-1, CHUNK).any(1))


def reference_token_stats(
    logits: Float[Tensor, "B W V"],
    never: Banned,
    place: Int[Tensor, "B W"] | None = None,
    temperature: float = 0.0,
) -> TokenStats:
    """place: what `dllm.noise.Key.place` tells of the columns; with it a token is drawn, at a temperature above 0."""
    wide = logits.to(torch.promote_types(logits.dtype, torch.float32))
    log_p = wide.log_softmax(-1)
    (top, second), p = wide.topk(2, -1).values.unbind(-1), log_p.exp()
    first, then = p.topk(2, -1).values.unbind(-1)
    score = wide.masked_fill(never.never, -torch.inf)
    if place is not None:
        score = (score - top[..., None]).double() * sharpness(temperature) + gumbel(place, logits.shape[-1])
    tokens = score.argmax(-1)
    confidence = p.gather(-1, tokens[..., None]).squeeze(-1)
    entropy = -(p * log_p.clamp(min=-1e30)).sum(-1)
    return TokenStats(tokens, confidence, first, first - then, top, second, wide.logsumexp(-1), entropy)


def sharpness(temperature: float) -> float:
    return min(SHARPEST, 1 / temperature) if temperature > 1 / SHARPEST else SHARPEST


@jit
def _gumbel(place, token):
    """The noise of a tile of tokens, float32, from 64 bits each."""
    x = place.to(tl.uint64) + (token + 1).to(tl.uint64) * 0x9E3779B97F4A7C15
    x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9
    x = (x ^ (x >> 27)) * 0x94D049BB133111EB
    x = x ^ (x >> 31)
    # u is uniform in (0, 1), and -log(u) is as precise near 1 as near 0: there it is a series in 1 - u.
    near = x >= 0xF000000000000000
    bits = tl.where(near, x ^ 0xFFFFFFFFFFFFFFFF, x)
    low = ((bits >> 12) & 0xFFFFF).to(tl.uint32).to(tl.float32) + 0.5
    u = (bits >> 32).to(tl.uint32).to(tl.float32) * 2.3283064365386963e-10 + low * 2.220446049250313e-16
    series = u * (1 + u * (0.5 + u * (0.33333334 + u * (0.25 + u * 0.2))))
    return -tl.log(tl.where(near, series, -tl.log(u)))


@jit
def _base(top):
    """The whole power of 2 next above the exponential of the highest logit: what its chunk is summed in units of.

    A whole one, so that the units of two chunks differ by a factor without rounding.
    """
    return tl.ceil(top * LOG2_E)


@jit
def _share(x, base, total):
    return tl.exp2(x * LOG2_E - base) / total


@jit
def _score(x, base, token, place, sharpness, DRAW: tl.constexpr):
    """What the choice is the highest of: the logits, or how far these are above `base`, sharpened, with noise."""
    return (x - base) * sharpness + _gumbel(place, token) if DRAW else x


@jit
def _first(hit, number, NONE: tl.constexpr):
    """The lowest number where something holds; the highest where it never does, as among NaN."""
    return tl.min(tl.where(hit, number, NONE), 0)


@jit
def _chunk_kernel(
    logits,
    never,
    chunks,
    places,
    parts,
    n_rows,
    width,
    stride_b,
    stride_w,
    vocab_size,
    n_chunks,
    sharpness,
    DRAW: tl.constexpr,
    CHUNK: tl.constexpr,
):
    program = tl.program_id(0)
    row, chunk = program // n_chunks, program % n_chunks
    token = chunk * CHUNK + tl.arange(0, CHUNK)
    exists = token < vocab_size
    at = logits + (row // width).to(tl.int64) * stride_b + (row % width).to(tl.int64) * stride_w
    # Above -inf, as 0 x -inf would be NaN.
    x = tl.maximum(tl.load(at + token, mask=exists, other=-float("inf")).to(tl.float32), -1e30)
    top = tl.max(x, 0)
    below = x * LOG2_E - _base(top)
    e = tl.exp2(below)
    step = n_rows.to(tl.int64) * n_chunks
    to = parts + program
    tl.store(to, top)
    tl.store(to + step, tl.sum(e, 0))
    tl.store(to + 2 * step, tl.sum(e * below, 0))
    best = top
    if DRAW:
        score = _score(x, top, token, tl.load(places + row), sharpness, DRAW)
        if tl.load(chunks + chunk):
            score = tl.where(tl.load(never + token, mask=exists, other=1) != 0, -float("inf"), score)
        best = tl.max(score, 0)
    elif tl.load(chunks + chunk):  # of few chunks: the logits are read again, so that others need not keep them
        allowed = exists & (tl.load(never + token, mask=exists, other=1) == 0)
        best = tl.max(tl.load(at + token, mask=allowed, other=-float("inf")).to(tl.float32), 0)
    tl.store(to + 3 * step, best)


@jit
def _row_kernel(
    logits,
    never,
    places,
    parts,
    tokens,
    stats,
    n_rows,
    width,
    stride_b,
    stride_w,
    vocab_size,
    n_chunks,
    sharpness,
    DRAW: tl.constexpr,
    CHUNK: tl.constexpr,
    CHUNKS: tl.constexpr,
):
    row = tl.program_id(0)
    number, column = tl.arange(0, CHUNKS), tl.arange(0, CHUNK)
    step = n_rows.to(tl.int64) * n_chunks
    part, real = parts + row.to(tl.int64) * n_chunks + number, number < n_chunks
    tops = tl.load(part, mask=real, other=-1e30)
    mass = tl.load(part + step, mask=real, other=0.0)
    spread = tl.load(part + 2 * step, mask=real, other=0.0)
    best = tl.load(part + 3 * step, mask=real, other=-float("inf"))
    top = tl.max(tops, 0)
    base = _base(top)
    below = _base(tops) - base
    scale = tl.exp2(below)
    total = tl.sum(mass * scale, 0)
    spread = tl.sum((spread + mass * below) * scale, 0) / total
    at = logits + (row // width).to(tl.int64) * stride_b + (row % width).to(tl.int64) * stride_w

    high = tl.minimum(_first((tops == top) & real, number, CHUNKS), n_chunks - 1)
    token = high * CHUNK + column
    x = tl.load(at + token, mask=token < vocab_size, other=-float("inf")).to(tl.float32)
    rest = tl.max(tl.where(column == _first(x == top, column, CHUNK), -float("inf"), x), 0)
    second = tl.maximum(rest, tl.max(tl.where(number == high, -float("inf"), tops), 0))

    if DRAW:
        best += (tops - top) * sharpness  # each chunk's is relative to its own highest logit
    chosen = tl.minimum(_first((best == tl.max(best, 0)) & real, number, CHUNKS), n_chunks - 1)
    token = chosen * CHUNK + column
    exists = token < vocab_size
    x = tl.load(at + token, mask=exists, other=-float("inf")).to(tl.float32)
    place = tl.load(places + row) if DRAW else 0
    score = _score(x, tl.max(x, 0), token, place, sharpness, DRAW)
    score = tl.where(tl.load(never + token, mask=exists, other=1) != 0, -float("inf"), score)
    choice = tl.minimum(chosen * CHUNK + _first(score == tl.max(score, 0), column, CHUNK), vocab_size - 1)

    tl.store(tokens + row, choice.to(tl.int64))
    to = stats + row
    tl.store(to, _share(tl.load(at + choice).to(tl.float32), base, total))
    tl.store(to + n_rows, _share(top, base, total))
    tl.store(to + 2 * n_rows, _share(top, base, total) - _share(second, base, total))
    tl.store(to + 3 * n_rows, top)
    tl.store(to + 4 * n_rows, second)
    tl.store(to + 5 * n_rows, (base + tl.log2(total)) * LN_2)
    tl.store(to + 6 * n_rows, (tl.log2(total) - spread) * LN_2)


def triton_token_stats(
    logits: Float[Tensor, "B W V"],
    never: Banned,
    place: Int[Tensor, "B W"] | None = None,
    temperature: float = 0.0,
) -> TokenStats:
    """The kernels; as `reference_token_stats`, of logits of at most 32 bits."""
    batch, width, vocab_size = logits.shape
    if logits.stride(2) != 1:
        logits = logits.contiguous()
    n_rows, n_chunks = batch * width, -(-vocab_size // CHUNK)
    tokens = torch.empty(batch, width, dtype=torch.long, device=logits.device)
    stats = torch.empty(7, batch, width, dtype=torch.float32, device=logits.device)
    if n_rows == 0:
        return TokenStats(tokens, *stats)
    parts = torch.empty(4, n_rows, n_chunks, dtype=torch.float32, device=logits.device)
    places, draw = (never.never, False) if place is None else (place.contiguous(), True)
    layout = (n_rows, width, logits.stride(0), logits.stride(1), vocab_size, n_chunks, sharpness(temperature), draw)
    # Without noise 64 logits a thread, so that sums across threads cost little; with noise 16, as their registers last.
    given = (logits, never.never, never.chunks, places, parts, *layout, CHUNK)
    launch(_chunk_kernel, (n_rows * n_chunks,), *given, num_warps=8 if draw else 2)
    made = (parts, tokens, stats, *layout, CHUNK, power_of_two(n_chunks))
    launch(_row_kernel, (n_rows,), logits, never.never, places, *made, num_warps=8)
    return TokenStats(tokens, *stats)


def token_stats(
    logits: Float[Tensor, "B W V"],
    never: Banned,
    place: Int[Tensor, "B W"] | None = None,
    temperature: float = 0.0,
) -> TokenStats:
    """The kernels where they suit, else the reference."""
    return (triton_token_stats if suits(logits) else reference_token_stats)(logits, never, place, temperature)
