"""What several tests share: prompts, every sampler and cache by name, and the one-step example of the notes."""

import torch

from dllm.cache import CACHES
from dllm.canvas import Span
from dllm.noise import Key
from dllm.samplers import SAMPLERS, Prediction

PROMPTS = [[3, 1, 4], [1, 5, 9, 2, 6, 5, 3], [5], [8, 9, 7, 9, 3]]
SHAPE = {"gen_length": 10, "block_length": 4, "eos_early_stop": False}
"""A short last block; no early stop, so that every mask is decided by a forward."""

OPTIONS = {
    "threshold": "threshold:threshold=0.6",
    "factor": "factor:factor=1.2",
    "prefix": "prefix:refresh=3",
    "dual": "dual:refresh=3",
}
"""Options with which the tiny model's confidences tell the rules apart; other names run with their defaults."""

SAMPLER_NAMES = [OPTIONS.get(name, name) for name in SAMPLERS]
CACHE_NAMES = [OPTIONS.get(name, name) for name in CACHES]

MASK = 63
CONFIDENCE = [0.95, 0.80, 0.99, 0.76, 0.60, 0.92, 0.99, 0.30]
ENTROPY = [0.2, 0.7, 0.1, 0.8, 1.1, 0.3, 0.1, 2.0]
DECIDED = [2, 6]
"""A block of 8 in which 2 columns are decided, with the highest confidence: a rule that counts them shows."""


def example(confidence=CONFIDENCE, decided=DECIDED, quota=1, first=16):
    """The prediction for one row whose block begins at column `first`; column i proposes the token i.

    quota: how many tokens a schedule reveals now.
    """
    n = len(confidence)
    entropy = ENTROPY if confidence is CONFIDENCE else [None] * n
    columns = first + torch.arange(n)[None]
    proposed = torch.arange(n)[None]
    current = torch.full_like(proposed, MASK)
    current[:, decided] = 50
    zero = torch.zeros(1, dtype=torch.long)
    return Prediction(
        span=Span(columns, torch.ones_like(columns, dtype=torch.bool)),
        mask_id=MASK,
        current=current,
        tokens=proposed,
        confidence=torch.tensor([confidence]),
        logits=torch.stack([spread(*row).roll(i) for i, row in enumerate(zip(confidence, entropy, strict=True))])[None],
        step=zero,
        block_step=zero,
        block_steps=zero + 1,
        block_masked=zero + quota,
        key=Key(0, zero),
    )


def spread(top, entropy=None, vocab_size=MASK):
    """Log-probabilities of this highest probability, at id 0, and entropy in nats; the others fall geometrically."""
    low, high, rank = 0.0, 1.0, torch.arange(vocab_size - 1, dtype=torch.float64)
    for _ in range(60):
        ratio = (low + high) / 2 if entropy is not None else 0.75
        others = ratio**rank
        p = torch.cat([torch.tensor([top]), (1 - top) * others / others.sum()])
        low, high = (ratio, high) if torch.special.entr(p).sum() < (entropy or 0) else (low, ratio)
    return p.clamp(min=1e-30).log()
