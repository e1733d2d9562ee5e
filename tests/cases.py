"""What several tests share: prompts, every sampler and cache by name, and the one-step example of the notes."""

import functools
from dataclasses import replace

import torch

import dllm
from dllm import DllmError
from dllm.api import check_pair
from dllm.cache import CACHES
from dllm.canvas import Canvas, Span
from dllm.kernels.token_stats import banned
from dllm.noise import Key
from dllm.propose import Proposer
from dllm.samplers import SAMPLERS, Prediction
from dllm.samplers.base import Memory, Recall
from dllm.settings import Settings

PROMPTS = [[3, 1, 4], [1, 5, 9, 2, 6, 5, 3], [5], [8, 9, 7, 9, 3]]
SHAPE = {"gen_length": 10, "block_length": 4, "eos_early_stop": False}
"""A short last block; no early stop, so that every mask is decided by a forward."""

OPTIONS = {
    "threshold": "threshold:threshold=0.6",
    "factor": "factor:factor=1.2",
    "localleap": "localleap:threshold=0.7,relaxed_threshold=0.4,radius=2",
    "prophet": "prophet:base=threshold,answer_start=5,answer_length=3,thresholds=4/3/2",
    "dparallel": "dparallel:threshold=1.5",
    "eb": "eb:gamma=1.0",
    "klass": "klass:conf_threshold=0.3,kl_threshold=0.2,history=1",
    "wino": "wino:threshold=0.3,threshold_back=0.3",
    "credit": "credit:threshold=0.6,weight=2",
    "freedave": "freedave:draft_steps=1,tau=0.6",
    "hierarchy": "hierarchy:threshold=0.7,low=0.3",
    "sliding": "sliding:base=klass,window=3",
    "entropy": "entropy:alg_temp=0.3",
    "prefix": "prefix:refresh=3",
    "dual": "dual:refresh=3",
    "dkv-decode": "dkv-decode:refresh=3",
    "dkv-greedy": "dkv-greedy:refresh=3,window=1",
    "dkv-pd": "dkv-pd:refresh=3",
    "vicinity": "vicinity:look=2",
    "elastic": "elastic:window_length=4,gamma=0.8",
    "sparse": "sparse:retention=0.4",
    "d2": "d2:current_k=4,sigma=2,rollout_p=0.3",
    "subblock": "subblock:small_block=2",
}
"""Options with which the tiny model's confidences tell the rules apart; other names run with their defaults."""

SAMPLER_NAMES = [OPTIONS.get(name, name) for name in SAMPLERS if name not in ("renoise", "learned")]
"""The one needs a canvas of noise, the other the model it was fitted for: tests/filters."""
CACHE_NAMES = [*(OPTIONS.get(name, name) for name, cache in CACHES.items() if "full" in cache.patterns)]
CACHE_NAMES += ["dual:refresh=5,skip_decoded=true"]
BLOCK_CACHE_NAMES = [OPTIONS.get(name, name) for name, cache in CACHES.items() if "full" not in cache.patterns]
"""Those of block-causal models alone."""
BLOCKS = {"attention": "block", "block_length": 4}
"""The fields of such a model's spec."""

ALWAYS = {name: f"{name}:refresh=1" for name, cache in CACHES.items() if "refresh" in cache.__dataclass_fields__}
ALWAYS["dkv-pd"] += ",prompt_refresh=1"
ALWAYS |= {"sparse": "sparse:delay=99", "d2": "d2:current_k=99,rollout_p=1"}
"""Caches that can compute everything at every step, with the options that do so."""


def legal(sampler, cache):
    """Whether the cache can serve the sampler."""
    try:
        check_pair(dllm.samplers.make(sampler), dllm.cache.make(cache))
    except DllmError:
        return False
    return True


def pairs(caches, samplers=SAMPLER_NAMES, every=2):
    """Samplers and caches that go together: of a cache's samplers every so many, not those of the cache before.

    So each cache meets several samplers and each sampler several caches, always the same ones. WINO, which takes tokens
    back, meets all.
    """
    for turn, cache in enumerate(caches):
        partners = [sampler for sampler in samplers if legal(sampler, cache)]
        met = partners[turn % min(every, len(partners)) :: every]
        yield from ((sampler, cache) for sampler in partners if sampler in met or sampler.startswith("wino"))


PAIRS, REFRESHED = [*pairs(CACHE_NAMES)], [*pairs(ALWAYS.values())]
BLOCK_PAIRS = [*pairs(BLOCK_CACHE_NAMES)]
ALL_PAIRS = PAIRS + BLOCK_PAIRS


def turn(sampler, cache, n):
    """0 to n - 1: a number for a pair, of which each cache meets all and each sampler two or more."""
    caches = [*CACHE_NAMES, *ALWAYS.values(), *BLOCK_CACHE_NAMES]
    return (SAMPLER_NAMES.index(sampler) + caches.index(cache)) // 2 % n


def rotated(pairs, n):
    """Pairs, each with its number below n; with all of them where a cache has one sampler alone."""
    caches = [cache for _, cache in pairs]
    return [(*pair, k) for pair in pairs for k in range(n) if k == turn(*pair, n) or caches.count(pair[1]) == 1]


def some_rows(sampler, cache):
    """Two of four rows to decode alone, other ones for other pairs."""
    first = turn(sampler, cache, 4)
    return first, (first + 1) % 4


def served(cache):
    """The fields of the spec of a model that the cache is for."""
    return BLOCKS if cache in BLOCK_CACHE_NAMES else {}


def canvas(tokens, prompt_lengths, lengths, mask_id):
    """A canvas whose answers are decided all through."""
    prompts, ends = torch.as_tensor(prompt_lengths), torch.as_tensor(lengths)
    column = torch.arange(tokens.shape[1])
    is_open = (column >= prompts[:, None]) & (column < ends[:, None])
    return Canvas(tokens, is_open, prompts, ends, prompts.clone(), mask_id, int((ends - prompts).max()))


MASK = 63
CONFIDENCE = [0.95, 0.80, 0.99, 0.76, 0.60, 0.92, 0.99, 0.30]
ENTROPY = [0.2, 0.7, 0.1, 0.8, 1.1, 0.3, 0.1, 2.0]
DECIDED = [2, 6]
"""A block of 8 in which 2 columns are decided, with the highest confidence: a rule that counts them shows."""


def example(confidence=CONFIDENCE, decided=DECIDED, quota=1, first=16, **changes):
    """The prediction for one row whose block begins at column `first`; column i proposes the token i.

    quota: how many tokens a schedule reveals now.
    """
    n = len(confidence)
    entropy = ENTROPY if confidence is CONFIDENCE else [None] * n
    columns = first + torch.arange(n)[None]
    current = torch.full((1, n), MASK)
    current[:, decided] = 50
    zero, yes = torch.zeros(1, dtype=torch.long), torch.ones_like(columns, dtype=torch.bool)
    logits = torch.stack([spread(*row).roll(i) for i, row in enumerate(zip(confidence, entropy, strict=True))])[None]
    key = Key(0, zero)
    propose = Proposer(Settings(), banned(torch.tensor([MASK - 1]), MASK), torch.tensor([MASK - 2]))
    made = Prediction(
        **vars(propose(logits, columns, key)),
        span=Span(columns, yes),
        mask_id=MASK,
        current=current,
        open=yes,
        block=yes,
        answer_start=zero + first,
        step=zero,
        steps=zero + 8,
        block_step=zero,
        block_steps=zero + 8,
        quota=zero + quota,
        key=key,
        recall=Recall(Memory(), zero, 1, fresh=zero == 0, place=torch.arange(n)[None], width=n),
        propose=propose,
        shadow=torch.ones_like(columns, dtype=torch.float64),
    )
    # As written above, not as rounding leaves them in a softmax.
    return replace(made, confidence=torch.tensor([confidence], dtype=made.confidence.dtype), **changes)


@functools.cache
def spread(top, entropy=None, vocab_size=MASK):
    """Log-probabilities of this highest probability, at id 0, and entropy in nats; the others fall geometrically."""
    low, high, rank = 0.0, 1.0, torch.arange(vocab_size - 1, dtype=torch.float64)
    for _ in range(60):
        ratio = (low + high) / 2 if entropy is not None else 0.75
        others = ratio**rank
        p = torch.cat([torch.tensor([top]), (1 - top) * others / others.sum()])
        low, high = (ratio, high) if torch.special.entr(p).sum() < (entropy or 0) else (low, ratio)
    return p.clamp(min=1e-30).log()
