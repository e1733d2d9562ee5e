"""Drafters with a model of their own: a diffusion model that fills masks, and a small one that grows a tree."""

import pytest
import torch

import dllm
from dllm import DllmError
from dllm.cache import full_view
from dllm.canvas import Span
from dllm.models.tiny import tiny as make_tiny
from dllm.settings import Settings
from dllm.speculate import Context, Row
from dllm.speculate.branches import Branches
from dllm.speculate.choose import Chooser
from dllm.speculate.diffusion import Diffusion
from dllm.speculate.growth import grow
from dllm.speculate.guess import children
from dllm.speculate.partner import fit, partner

PROMPTS = [[3, 1, 4], [1, 5, 9, 2, 6, 5, 3], [5]]
CAUSAL = {"attention": "causal", "mask_id": None}


@pytest.fixture(scope="module")
def target(tiny):
    return tiny(**CAUSAL)


def context(target, temperature=0.0):
    return Context(target, Chooser(Settings(temperature=temperature, seed=3), torch.arange(0)), True, 3, 64)


def rows():
    return [Row(i, i, [*prompt, 7], len(prompt), 20 + i, 64) for i, prompt in enumerate(PROMPTS)]


def behind(model, tokens, first):
    """The model's logits at the columns from `first` on, the whole text computed."""
    span = Span(torch.arange(first, len(tokens))[None], torch.ones(1, len(tokens) - first, dtype=torch.bool))
    return model(torch.tensor([tokens]), full_view(model.spec, [len(tokens)]), span)[0]


@pytest.mark.parametrize("shift", [0, 1])
def test_masks_are_filled_in_one_forward_or_the_surest_first(target, tiny, shift):
    model = tiny(3, logits_shift=shift)
    for row, tree in zip(rows(), Diffusion(model, k=3).start(context(target)).draft(rows()), strict=True):
        text = [*row.tokens, 39, 39, 39]
        assert tree.is_chain and tree.tokens == behind(model, text, len(row.tokens))[:, :39].argmax(-1).tolist()
    live = Diffusion(model, k=3, steps=3).start(context(target))
    for row, tree in zip(rows(), live.draft(rows()), strict=True):
        text = [*row.tokens, 39, 39, 39]
        for _ in range(3):
            share = behind(model, text, len(row.tokens))[:, :39].softmax(-1)
            masked = [i for i in range(3) if text[len(row.tokens) + i] == 39]
            best = max(masked, key=lambda i: float(share[i].max()))
            text[len(row.tokens) + best] = int(share[best].argmax())
        assert tree.tokens == text[-3:]
    assert live.forwards == 3 and live.positions == 3 * sum(len(row.tokens) + 3 for row in rows())


def test_a_block_model_fills_masks_up_to_the_end_of_their_last_block(target, tiny):
    model = tiny(3, attention="block", block_length=4)
    for row, tree in zip(rows(), Diffusion(model, k=2).start(context(target)).draft(rows()), strict=True):
        text = [*row.tokens, 39, 39]
        text += [39] * (-len(text) % 4)
        assert tree.tokens == behind(model, text, len(row.tokens))[:2, :39].argmax(-1).tolist()


def test_a_tree_of_filled_masks_has_the_best_paths_and_the_chain_among_them(target, tiny):
    model = tiny(3)
    chains = Diffusion(model, k=3).start(context(target)).draft(rows())
    trees = Diffusion(model, k=3, budget=12).start(context(target)).draft(rows())
    for chain, tree in zip(chains, trees, strict=True):
        assert len(tree) == 12 and not tree.is_chain
        first = [token for token, parent in zip(tree.tokens, tree.parents, strict=True) if parent < 0]
        assert first[0] == chain.tokens[0]


@pytest.mark.parametrize("temperature", [0.0, 0.8])
def test_a_tree_is_that_of_the_model_asked_for_one_node_at_a_time(target, tiny, temperature):
    model, here = tiny(5, **CAUSAL), context(target, temperature)
    live, asked_rows = Branches(model, budget=9, depth=3).start(here), rows()
    for row in asked_rows:
        live.begin(row, None, None)
    trees = live.draft(asked_rows)
    for row in asked_rows:
        row.tokens += [11, 12][: 1 + row.slot % 2]
    trees = live.draft(asked_rows)  # what was won since the last draft is computed first

    def expand(asked):
        found = []
        for which, tree, node in asked:
            row, way = asked_rows[which], [tree.tokens[n] for n in tree.path(node)]
            text = row.tokens + way
            guess = here.choose.drawn(behind(model, text, len(text) - 1)[None])[0, 0]
            if temperature:
                guess = guess + here.choose.noise([row.key], torch.tensor([[len(text)]]), 40)[0, 0]
            found += children(guess[None], 9)
        return found

    assert [(t.tokens, t.parents) for t in trees] == [(t.tokens, t.parents) for t in grow(3, expand, 9, 3)]
    assert live.forwards == len(PROMPTS) + 2 * 3


@pytest.mark.parametrize("temperature", [0.0, 0.8])
def test_rows_that_leave_and_enter_keep_their_drafts_apart(target, tiny, temperature):
    settings = {"gen_length": 14, "temperature": temperature, "seed": 1, "batch_size": 2}
    asked = [[i, 2 * i + 1, 5] for i in range(7)]
    plain = dllm.generate_causal(target, asked, **settings)
    alike = dllm.generate_causal(target, asked, Branches(target, budget=4, depth=3), **settings)
    assert alike.completions == plain.completions and alike.nfe.sum() < 0.5 * plain.nfe.sum()
    for drafter in (Branches(tiny(5, **CAUSAL)), Diffusion(tiny(3), k=3), Diffusion(tiny(3), k=4, steps=2, budget=8)):
        assert dllm.generate_causal(target, asked, drafter, **settings).completions == plain.completions


class Names:
    """A tokenizer with these tokens."""

    def __init__(self, names):
        self.vocab = {name: i for i, name in enumerate(names)}

    def __len__(self):
        return len(self.vocab)

    def get_vocab(self):
        return self.vocab

    def decode(self, tokens, **_):
        return "".join(name for i in tokens for name, index in self.vocab.items() if i == index)


def named(names, size, **spec):
    return make_tiny(tokenizer=Names(names), vocab_size=size, eos_ids=(0,), **CAUSAL | spec)


def test_a_model_with_more_tokens_and_another_filling_drafts_too():
    target, model = named("abc", 5), named("abcd", 8, mask_id=3, attention="full")
    assert partner(model, target, "diffusion") is model
    plain, made = (dllm.generate_causal(target, [1, 2], d, gen_length=6) for d in (None, Diffusion(model, k=2)))
    assert made.completions == plain.completions
    logits = torch.randn(2, 8)
    assert (
        torch.equal(fit(logits, 5), logits[:, :5])
        and fit(logits, 9).shape == (2, 9)
        and fit(logits, 9)[0, 8] == -torch.inf
    )


@pytest.mark.parametrize("name", ["diffusion", "tree"])
def test_a_model_that_is_missing_or_speaks_other_tokens_is_refused(target, tiny, name):
    made = {"diffusion": Diffusion, "tree": Branches}[name]
    with pytest.raises(
        DllmError, match=f"drafter {name} needs a model that drafts; give its name or folder, as {name}:model="
    ):
        dllm.generate_causal(target, [1], name, gen_length=4)
    with pytest.raises(DllmError, match="a vocabulary of 41 tokens and the target one of 40"):
        dllm.generate_causal(target, [1], made(tiny(vocab_size=41)), gen_length=4)
    with pytest.raises(
        DllmError, match=r"names other tokens than the target's: 'b' is token 1 of the target and token 2 of it"
    ):
        dllm.generate_causal(named("abc", 3), [1], made(named("acb", 3)), gen_length=4)
    with pytest.raises(DllmError, match=r"'c' is token 2 of the target and no token of it"):
        dllm.generate_causal(named("abc", 3), [1], made(named("ab", 3)), gen_length=4)


def test_a_model_of_the_wrong_kind_is_refused_with_the_drafter_that_takes_it(target, tiny):
    with pytest.raises(DllmError, match="is not autoregressive; draft with it by diffusion:model=, not tree"):
        dllm.generate_causal(target, [1], Branches(tiny()), gen_length=4)
    with pytest.raises(DllmError, match="has no mask token; draft with it by model:model=, not diffusion"):
        dllm.generate_causal(target, [1], Diffusion(target), gen_length=4)


@pytest.mark.parametrize(
    "name", ["diffusion:k=0", "diffusion:steps=0", "diffusion:budget=0", "tree:budget=0", "tree:depth=0"]
)
def test_counts_below_one_are_refused(name):
    with pytest.raises(DllmError, match="must be a whole number of at least 1"):
        dllm.speculate.make(name)
