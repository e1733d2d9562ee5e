"""Drafters for tests, good and bad; a slow decoder to compare with; and a chi-square of what a rule emits."""

import math
import random
from dataclasses import dataclass
from typing import Any

import torch

import dllm
from dllm.cache import full_view
from dllm.canvas import Span
from dllm.noise import OWN, Key
from dllm.speculate import Drafter, Drafting, Tree
from dllm.speculate.choose import following
from dllm.speculate.heads import Heads, fingerprint, save


def prompts(n, seed=0, vocab_size=38, longest=12):
    """Ragged prompts of random tokens."""
    rng = random.Random(seed)
    return [[rng.randrange(vocab_size) for _ in range(rng.randint(1, longest))] for _ in range(n)]


def logits_after(model, tokens):
    """What the model predicts behind the tokens, from a forward without a cache."""
    last = Span(torch.tensor([[len(tokens) - 1]]), torch.tensor([[True]]))
    return model(torch.tensor([tokens]), full_view(model.spec, [len(tokens)]), last)[0, 0]


def slowly(model, request, n, temperature=0.0, seed=0):
    """The answer to a request, n tokens at most, one whole forward for each."""
    tokens = list(request.prompt)
    while len(tokens) < len(request.prompt) + n:
        logits = logits_after(model, tokens)
        if temperature:
            noise = Key(seed, torch.tensor([request.key])).gumbel(torch.tensor([[len(tokens)]]), len(logits))
            logits = logits / temperature + noise[0, 0]
        tokens.append(int(logits.argmax()))
        if tokens[-1] in model.spec.eos_ids:
            break
    return tokens[len(request.prompt) :]


@dataclass(frozen=True)
class Scripted(Drafter):
    """Drafts of a random shape, of which a share of the tokens is right.

    answers: the right ones, of every request. shape: "chain", "tree", "star" (siblings only) or "mixed".
    """

    answers: Any
    right: float = 0.7
    shape: str = "mixed"
    size: int = 8
    vocab_size: int = 40

    def start(self, _):
        return Script(self)


class Script(Drafting):
    def __init__(self, settings):
        self.settings, self.rng = settings, random.Random(settings.size)
        self.seen = []

    def draft(self, rows):
        assert [row.slot for row in rows] == list(range(len(rows)))
        return [self.tree(row) for row in rows]

    def tree(self, row):
        settings, rng = self.settings, self.rng
        n = rng.randint(0, settings.size)
        shape = rng.choice(["chain", "tree", "star"]) if settings.shape == "mixed" else settings.shape
        parents = {
            "chain": [*range(-1, n - 1)],
            "tree": [rng.randrange(-1, i) if i else -1 for i in range(n)],
            "star": [-1] * n,
        }[shape]
        depths = Tree([0] * n, parents).depths
        done = len(row.tokens) - row.prompt_length
        answer = self.settings.answers[row.request][done:]
        tokens = [
            answer[depth - 1]
            if depth <= len(answer) and rng.random() < settings.right
            else rng.randrange(settings.vocab_size)
            for depth in depths
        ]
        return Tree(tokens, parents)

    def observe(self, row, tree, logits, _, path):
        assert len(logits) == len(tree) + 1 and max(tree.depths, default=0) <= row.room + len(path) + 1
        assert [tree.tokens[node] for node in path] == row.tokens[-1 - len(path) : -1]


@dataclass(frozen=True)
class Drawing(Drafter):
    """Trees of draws from a table, without replacement and with noise of their own, as the ratio rule wants them.

    table: (V, V), the logits behind every token. branches: children of the nodes of every depth. drop: leave out a
    token that is less probable than this, which must not be done. greedy: take the most probable ones and say they
    were drawn, which must not be done either.
    """

    table: Any
    branches: tuple[int, ...] = (1, 1)
    drop: float = 0.0
    greedy: bool = False

    def start(self, context):
        return Draws(self, context)


class Draws(Drafting):
    def __init__(self, settings, context):
        self.settings, self.choose = settings, context.choose

    def draft(self, rows):
        n = len(self.settings.branches)
        starts = [len(row.tokens) - 1 for row in rows]
        columns = following(starts, n, self.settings.table.device)
        self.noise = self.choose.noise([row.key for row in rows], columns, len(self.settings.table), OWN)
        self.q = self.choose.probabilities(self.settings.table[None])[0]
        self.logits = self.q.log()
        return [self.tree(i, row) for i, row in enumerate(rows)]

    def tree(self, i, row):
        tokens, parents, level = [], [], [(-1, row.tokens[-1])]
        for depth, n in enumerate(self.settings.branches[: max(0, row.room)]):
            new = []
            for parent, before in level:
                score = self.logits[before] + (0 if self.settings.greedy else self.noise[i, depth])
                for token in score.topk(n).indices.tolist():
                    if self.q[before, token] >= self.settings.drop:
                        new.append((len(tokens), token))
                        tokens.append(token)
                        parents.append(parent)
            level = new
        before = [row.tokens[-1] if parent < 0 else tokens[parent] for parent in parents]
        return Tree(tokens, parents, self.q[before] if tokens else None)


def strangeness(model, prompt, drafter, rule, n=4000, length=3, **settings):
    """How far the answers of `length` tokens are from the model's probabilities, in standard deviations.

    The chi-square of n answers, cells of less than 5 expected ones together, as Wilson and Hilferty make it normal.
    """
    made = dllm.generate_causal(
        model,
        prompt,
        drafter,
        verify=rule,
        gen_length=length,
        num_samples=n,
        batch_size=n,
        seed=7,
        **{"temperature": 1.0, "eos_early_stop": False} | settings,
    )
    size = model.spec.vocab_size
    p = torch.ones(1, dtype=torch.float64)
    for depth in range(length):
        before = torch.cartesian_prod(*[torch.arange(size)] * depth).reshape(-1, depth) if depth else torch.zeros(1, 0)
        tokens = torch.cat([torch.tensor([prompt] * len(before)), before.long()], 1)
        last = torch.full((len(tokens), 1), tokens.shape[1] - 1)
        logits = model(tokens, full_view(model.spec, [tokens.shape[1]] * len(tokens)), Span(last, last >= 0))
        p = (p[:, None] * (logits[:, 0].double() / settings.get("temperature", 1.0)).softmax(-1)).flatten()
    cells = sum(torch.tensor(made.completions)[:, i] * size ** (length - 1 - i) for i in range(length))
    seen, expected = cells.bincount(minlength=len(p)).double(), p * n
    rare = expected < 5
    seen = torch.cat([seen[~rare], seen[rare].sum()[None]])
    expected = torch.cat([expected[~rare], expected[rare].sum()[None]])
    degrees = len(seen) - 1
    x = float(((seen - expected) ** 2 / expected).sum())
    return ((x / degrees) ** (1 / 3) - (1 - 2 / (9 * degrees))) / math.sqrt(2 / (9 * degrees))


ACCURACY = [[0.6, 0.2, 0.1], [0.5, 0.2, 0.1], [0.4, 0.1, 0.05]]
"""How often the ranks of three heads are right, as heads.json tells it."""


def random_heads(model, kind, seed=0):
    """Heads with random weights, in the model's dtype."""
    heads = Heads(len(ACCURACY), model.spec.hidden_size, kind == "hydra").to(model.dtype).requires_grad_(False)
    draw = torch.Generator().manual_seed(seed)
    for p in heads.parameters():
        p.copy_(0.3 * torch.randn(p.shape, generator=draw, dtype=p.dtype))
    return heads


def write_heads(folder, model, kind, dtype=torch.float64, **facts):
    """Heads with random weights in a folder, as trained ones are."""
    heads = random_heads(model, kind)
    save(
        heads, folder, {"target": fingerprint(model), "accuracy": ACCURACY, "frequent": [38, *range(20)]} | facts, dtype
    )
    return heads
