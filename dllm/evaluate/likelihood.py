"""How likely a masked diffusion model finds a text: LLaDA's Monte-Carlo estimate, and whether it would say it greedily.

A diffusion model gives no chain of next-token probabilities. What is estimated is the lower bound that it was trained
on: mask l of the T tokens at random, l uniform on 1..T, and take T / l times the log-probability of the masked ones
(LLaDA, arXiv:2502.09992, equation 6).
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from dllm.api import check_model, start
from dllm.cache import NoCache
from dllm.cache.base import full_view
from dllm.canvas import Span
from dllm.errors import DllmError
from dllm.generation import Request
from dllm.noise import request_id
from dllm.samplers import Static
from dllm.settings import Settings
from dllm.spec import Model


@dataclass(frozen=True)
class Pair:
    """Token ids of a given text and of the one that follows it, which is looked at."""

    context: list[int]
    target: list[int]

    def seed(self, seed: int) -> int:
        """Of this pair's masks: the same in any batch and any order."""
        return request_id([seed, len(self.context), *self.context, *self.target], 0)


@dataclass(frozen=True)
class Row:
    """One forward's worth of a pair: which tokens of its target are masked, and what their log-probabilities count."""

    pair: int
    masked: Bool[Tensor, " T"]
    weight: float


def draw(n: int, length: int, seed: int) -> Bool[Tensor, "{n} {length}"]:
    """n masks over a target: how many tokens is uniform on 1..length, stratified over the n; which ones is random."""
    generator = torch.Generator().manual_seed(seed)
    first = torch.rand((), generator=generator, dtype=torch.float64)
    share = (first + torch.arange(n, dtype=torch.float64) / n) % 1
    count = (share * length).long().clamp(max=length - 1) + 1
    rank = torch.rand(n, length, generator=generator).argsort(1).argsort(1)
    return rank < count[:, None]


def rows(pairs: Sequence[Pair], mc_num: int, seed: int) -> Iterator[Row]:
    """All rows of all pairs; masks that were drawn several times are one row of more weight."""
    for index, pair in enumerate(pairs):
        length = len(pair.target)
        masks, times = torch.unique(draw(mc_num, length, pair.seed(seed)), dim=0, return_counts=True)
        for masked, n in zip(masks, times.tolist(), strict=True):
            yield Row(index, masked, n * length / int(masked.sum()) / mc_num)


def log_likelihoods(
    model: Model,
    pairs: Sequence[Pair],
    *,
    mc_num: int = 128,
    cfg_scale: float = 0.0,
    seed: int = 0,
    batch_size: int = 16,
) -> Iterator[float]:
    """The estimated log-likelihood of every target after its context, in nats, one by one.

    mc_num: masks drawn for each target. batch_size: rows of a forward; rows of different pairs share one. A pair's
    value does not depend on the others. Raises DllmError for an empty target or too long a text.
    """
    check(model, pairs)
    if mc_num < 1:
        raise DllmError(f"mc_num={mc_num} draws no mask; give at least 1 (LLaDA takes 128).")
    waiting, current, value = rows(pairs, mc_num, seed), 0, 0.0
    while batch := list(islice(waiting, batch_size)):
        for row, found in zip(batch, masked_sums(model, [pairs[r.pair] for r in batch], batch, cfg_scale), strict=True):
            if row.pair != current:
                yield value
                current, value = row.pair, 0.0
            value += row.weight * found
    if pairs:
        yield value


@torch.no_grad()
def masked_sums(model: Model, pairs: Sequence[Pair], batch: Sequence[Row], cfg_scale: float) -> list[float]:
    """The log-probability of the masked tokens of each row, added up."""
    mask_id, device = Settings().mask(model.spec), model.device
    lengths = [len(p.context) + len(p.target) for p in pairs]
    tokens = torch.zeros(len(pairs), max(lengths), dtype=torch.long)
    hidden = torch.zeros_like(tokens, dtype=torch.bool)
    for i, (pair, row) in enumerate(zip(pairs, batch, strict=True)):
        tokens[i, : lengths[i]] = torch.tensor([*pair.context, *pair.target])
        hidden[i, len(pair.context) : lengths[i]] = row.masked
    begin = torch.tensor([len(p.context) for p in pairs], device=device)
    tokens, hidden = tokens.to(device), hidden.to(device)
    span = Span.between(begin, torch.tensor(lengths, device=device), max(len(p.target) for p in pairs))
    noisy = tokens.masked_fill(hidden, mask_id)
    logits = predict(model, noisy, lengths, span)
    if cfg_scale > 0:
        columns = torch.arange(tokens.shape[1], device=device)
        blind = predict(model, noisy.masked_fill(columns < begin[:, None], mask_id), lengths, span)
        logits = blind + (cfg_scale + 1) * (logits - blind)
    wide = torch.promote_types(logits.dtype, torch.float32)
    found = logits.to(wide).log_softmax(-1).gather(-1, tokens.gather(1, span.columns)[..., None])[..., 0]
    looked_at = hidden.gather(1, span.columns) & span.valid
    values: list[float] = found.masked_fill(~looked_at, 0.0).sum(1).tolist()
    return values


def predict(model: Model, tokens: Int[Tensor, "B L"], lengths: list[int], span: Span) -> Float[Tensor, "B W V"]:
    """One forward of everything, without a cache."""
    return model(tokens, full_view(model.spec, lengths, tokens.device), span)


def greedy(model: Model, pairs: Sequence[Pair], *, cfg_scale: float = 0.0, batch_size: int = 16) -> list[bool]:
    """Whether the model fills masks in place of each target with that target, its surest token first, one a forward.

    It is told how long the target is, as in LLaDA's harness.
    """
    check(model, pairs)
    if not pairs:
        return []
    longest = max(len(pair.target) for pair in pairs)
    settings = Settings(
        gen_length=longest,
        block_length=model.spec.one_block(longest),
        cfg_scale=cfg_scale,
        seed=0,
        eos_early_stop=False,
        batch_size=batch_size,
    )
    mask_id = settings.mask(model.spec)
    asked = [Request(pair.context, [mask_id] * len(pair.target), 0) for pair in pairs]
    run = start(model, asked, Static(), NoCache(), settings, [], None)
    for _ in run:
        pass
    return [done == pair.target for done, pair in zip(run.result().completions, pairs, strict=True)]


def check(model: Model, pairs: Sequence[Pair]) -> None:
    """Raise DllmError unless the model can look at all pairs."""
    check_model(model)
    for pair in pairs:
        length = len(pair.context) + len(pair.target)
        if not pair.target:
            raise DllmError("a text to look at has no tokens; a likelihood needs at least one.")
        if length > model.spec.max_length:
            raise DllmError(f"a text of {length} tokens is longer than the model's context, {model.spec.max_length}.")
