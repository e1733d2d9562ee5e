"""A drafter changes how many forwards it takes, never a token; and what each one drafts."""

from dataclasses import replace
from itertools import product

import pytest
import torch

import dllm
from dllm import DllmError
from dllm.generation import requests
from dllm.models.tiny import tiny as make_tiny
from dllm.settings import Settings
from dllm.speculate import DRAFTERS, Context, Drafter, Drafting, Row, Tree
from dllm.speculate.choose import Chooser
from dllm.speculate.heads import KINDS
from dllm.speculate.recycling import shape
from dllm.speculate.suffix import Trie
from drafting import Scripted, prompts, slowly, write_heads

ROWS = 50
"""Requests of a case: each is one comparison of an answer with the plain one."""
LENGTH = 12


def noisy(model, amount, seed=3):
    """A model that is nearly this one."""
    made = make_tiny(0, **{name: getattr(model.spec, name) for name in ("attention", "mask_id")})
    draw = torch.Generator().manual_seed(seed)
    for weight in made.parameters():
        weight.add_(amount * torch.randn(weight.shape, generator=draw, dtype=weight.dtype))
    return made


@pytest.fixture(scope="module")
def target(tiny):
    return tiny(attention="causal", mask_id=None)


@pytest.fixture(scope="module")
def plain(target):
    """What plain decoding answers, by the settings."""
    found = {}

    def answers(**settings):
        key = tuple(settings.items())
        if key not in found:
            found[key] = dllm.generate_causal(target, prompts(ROWS), gen_length=LENGTH, seed=5, **settings)
        return found[key]

    return answers


@pytest.fixture(scope="module")
def folder(target, tmp_path_factory):
    """A folder that holds heads of both kinds, in folders of their names."""
    folder = tmp_path_factory.mktemp("heads")
    for kind in KINDS:
        write_heads(folder / kind, target, kind)
    return folder


def drafters(target, answers, folder):
    """Good, bad and adversarial drafters by name, all that are registered among them."""
    make, filling = dllm.speculate.make, make_tiny(3)
    return {
        "ngram": "ngram:max_n=2,k=4",
        "ngram recent": "ngram:pick=recent,k=20",
        "recycling": "recycling:k=12",
        "recycling narrow": "recycling:k=3,width=1",
        "suffix": "suffix:least=0",
        "suffix warm": "suffix:warm=true,k=4,factor=3",
        "model": dllm.speculate.make("model", model=noisy(target, 0.05), k=3),
        "model bad": dllm.speculate.make("model", model=noisy(target, 2.0), k=20),
        "model same": dllm.speculate.make("model", model=target, k=4),
        "model stopped": make("model", model=noisy(target, 0.2), k=6, stop=0.5),
        "tree": make("tree", model=noisy(target, 0.2), budget=9, depth=4),
        "tree same": make("tree", model=target, budget=6),
        "stand": "stand:min_n=1,budget=9",
        "medusa": f"medusa:heads={folder / 'medusa'},budget=9",
        "medusa trimmed": f"medusa:heads={folder / 'medusa'},vocab=9",
        "hydra": f"hydra:heads={folder / 'hydra'},budget=9",
        "diffusion": make("diffusion", model=filling, k=3),
        "diffusion tree": make("diffusion", model=filling, k=4, steps=2, budget=9),
        "right": Scripted(answers, right=1.0, shape="chain"),
        "wrong": Scripted(answers, right=0.0, vocab_size=3),
        "mixed": Scripted(answers, size=11),
        "siblings": Scripted(answers, shape="star", vocab_size=2),
        "empty": Scripted(answers, size=0),
    }


NAMES = [
    *("ngram", "ngram recent", "recycling", "recycling narrow", "suffix", "suffix warm", "model", "model bad"),
    *("model same", "model stopped", "tree", "tree same", "stand", "medusa", "medusa trimmed", "hydra", "diffusion"),
    *("diffusion tree", "right", "wrong", "mixed", "siblings", "empty"),
]
TEMPERATURES = (0.0, 0.7, 1.0)


@pytest.mark.parametrize("temperature", TEMPERATURES)
@pytest.mark.parametrize("name", NAMES)
def test_drafts_change_forwards_but_not_tokens(target, plain, folder, name, temperature):
    settings = {"temperature": temperature} | ({"top_p": 0.9, "top_k": 20} if temperature == 0.7 else {})
    want = plain(**settings)
    drafter = drafters(target, want.completions, folder)[name]
    made = dllm.generate_causal(target, prompts(ROWS), drafter, gen_length=LENGTH, seed=5, batch_size=19, **settings)
    assert made.completions == want.completions
    assert (made.nfe <= want.nfe).all() and torch.equal(made.steps, want.steps)
    if name in ("right", "model same"):
        assert made.accepted > 0.9
    if name in ("right", "model same", "tree same"):
        assert made.tokens_per_forward > 2


def test_these_are_two_thousand_cases_and_every_registered_drafter_has_some():
    assert len(NAMES) * len(TEMPERATURES) * ROWS >= 2000
    assert {name.split()[0] for name in NAMES} >= set(DRAFTERS)


@pytest.mark.parametrize(("temperature", "seed"), [*product(TEMPERATURES, (0, 9))])
def test_plain_decoding_equals_whole_forwards_token_by_token(target, temperature, seed):
    asked = prompts(8, seed)
    named = requests(target, asked, [0], chat=True, repeats=1, request_ids=None)
    made = dllm.generate_causal(target, asked, gen_length=10, temperature=temperature, seed=seed, batch_size=3)
    assert made.completions == [slowly(target, request, 10, temperature, seed) for request in named]


def test_an_oracle_reaches_its_depth_in_every_forward(target, plain):
    answers = plain(eos_early_stop=False).completions
    drafter = Oracle(answers, shape="chain", right=1.0)
    made = dllm.generate_causal(target, prompts(ROWS), drafter, gen_length=LENGTH, eos_early_stop=False)
    # One token from the prompt, then 4 a forward; the last of the 11 left takes what fits.
    assert made.completions == answers and (made.nfe == 1 + 3).all()


class Oracle(Scripted):
    def start(self, context):
        made = super().start(context)

        def right(row):
            done = len(row.tokens) - row.prompt_length
            return Tree.chain(self.answers[row.request][done : done + 3])

        made.tree = right
        return made


def row(tokens, prompt_length=None):
    return Row(0, 0, tokens, len(tokens) - 1 if prompt_length is None else prompt_length, 0, 1000)


@pytest.fixture(scope="module")
def context(target):
    return Context(target, Chooser(Settings(), torch.arange(0)), True, 4, 64)


def drafted(drafter, tokens, context):
    live = drafter.start(context)
    live.begin(row(tokens), None, None)
    return live.draft([row(tokens)])[0].tokens


@pytest.mark.parametrize(
    ("options", "tokens", "want"),
    [
        ({}, [1, 2, 3, 4, 9, 2, 3], [4, 9, 2, 3]),
        ({"k": 1}, [1, 2, 3, 4, 9, 2, 3], [4]),
        ({}, [5, 6, 7], []),
        ({}, [1, 8, 1, 9, 1], [8, 1, 9, 1]),
        ({"pick": "recent"}, [1, 8, 1, 9, 1], [9, 1]),
        ({"min_n": 3}, [1, 2, 3, 4, 9, 2, 3], []),
        ({"min_n": 3}, [9, 2, 3, 4, 5, 9, 2, 3], [4, 5, 9, 2, 3]),
        ({}, [7, 2, 3, 8, 1, 2, 3, 4, 1, 2, 3], [4, 1, 2, 3]),  # the longer match is taken, though it stands later
        ({}, [4, 4], [4]),
    ],
    ids=str,
)
def test_ngrams_copy_what_followed_the_longest_match(options, tokens, want, context):
    assert drafted(dllm.speculate.make("ngram", **options), tokens, context) == want


def test_ngrams_that_are_kept_up_are_those_of_the_whole_text(context):
    drafter = dllm.speculate.make("ngram")
    live, text = drafter.start(context), prompts(1, vocab_size=3, longest=1)[0]
    for token in prompts(60, vocab_size=3, longest=1):
        text = text + token
        assert live.draft([row(text)])[0].tokens == drafted(drafter, text, context)


def counted(text, depth):
    """How often each piece of a text, up to `depth` tokens, stands in it."""
    pieces = [tuple(text[i : i + n]) for n in range(1, depth + 1) for i in range(len(text) - n + 1)]
    return {piece: pieces.count(piece) for piece in pieces}


def pieces_of(node, before=()):
    for token, follower in node.followers.items():
        yield (*before, token), follower.count
        yield from pieces_of(follower, (*before, token))


def test_a_trie_counts_every_piece_of_its_texts():
    text = [p[0] for p in prompts(40, vocab_size=3, longest=1)]
    trie = Trie(4)
    trie.extend(text[:17])
    trie.extend(text[17:])
    assert dict(pieces_of(trie.root)) == counted(text, 4)
    assert len(trie.matches(text)) == 5 and trie.matches([99]) == [trie.root]


@pytest.mark.parametrize(
    ("options", "tokens", "want"),
    [
        ({"factor": 4}, [1, 2, 3, 4, 5, 1], [2, 3, 4, 5]),
        ({}, [1, 2, 3, 4, 5, 1, 2], [3, 4]),  # as many as match
        ({}, [1, 2, 1, 2, 1, 3, 1], [2]),  # the most frequent follower
        ({"least": 0.7}, [1, 2, 1, 2, 1, 3, 1], []),
        ({}, [5, 6, 7], []),
    ],
    ids=str,
)
def test_suffixes_continue_with_what_followed_most_often(options, tokens, want, context):
    assert drafted(dllm.speculate.make("suffix", **options), tokens, context) == want


def test_a_warm_suffix_drafter_knows_finished_answers_and_a_cold_one_does_not(context):
    for warm, want in ((False, []), (True, [9])):
        live = dllm.speculate.make("suffix", warm=warm).start(context)
        done, new = row([1, 7, 8, 9], prompt_length=1), replace(row([2, 8]), request=1)
        for each in (done, new):
            live.begin(each, None, None)
        live.end(done)
        assert live.draft([new])[0].tokens == want


def test_recycled_tokens_are_the_targets_likeliest_after_the_last_time(context):
    live = dllm.speculate.make("recycling", k=4, width=2).start(context)
    one = row([3, 5, 3, 1])
    logits = torch.zeros(3, 6)
    logits[0, 4], logits[0, 2], logits[1, 0], logits[1, 1] = 2, 1, 2, 1
    logits[2, 1], logits[2, 5] = 2, 1  # behind the second 3
    live.begin(one, logits, None)
    assert live.draft([one])[0].tokens == []  # nothing is known of what follows 1
    live.observe(replace(one, tokens=[3, 5, 3, 1, 3]), Tree(), logits[1:2], None, [])
    tree = live.draft([replace(one, tokens=[3, 5, 3, 1, 3])])[0]
    # Behind 3 either of two, behind the likelier one, 1, what the last step said of it.
    assert (tree.tokens, tree.parents) == ([1, 5, 0], [-1, -1, 0])


def test_a_recycled_tree_has_the_likeliest_paths_of_ranks():
    likeliest = shape(40, 8)

    def path(node):
        return (*path(likeliest.parents[node]), likeliest.tokens[node]) if node >= 0 else ()

    paths = [path(node) for node in range(len(likeliest))]
    assert len(set(paths)) == 40 and paths[0] == (0,) and (0, 0, 0, 0) in paths and (7, 0) not in paths
    assert max(likeliest.tokens) < 8 and shape(3, 1).is_chain


def test_a_small_model_counts_its_forwards_and_positions(target):
    run = dllm.stream_causal(target, [1, 2, 3], target, k=3, gen_length=9, eos_early_stop=False)
    run.finish()
    # The prompt, then 3 forwards a step; the first of a step computes what the last one accepted without computing.
    assert run.drafting.forwards == 1 + 3 + 3 and run.drafting.positions == 3 + 3 + 4


@pytest.mark.parametrize(
    ("name", "what"),
    [
        ("ngram:k=0", "k=0 of Ngram must be a whole number of at least 1"),
        ("ngram:max_n=0", "max_n=0 of Ngram"),
        ("ngram:min_n=4", "min_n=4 is above max_n=3"),
        ("ngram:pick=last", "must be 'first' or 'recent'"),
        ("recycling:k=0", "k=0 of Recycling"),
        ("recycling:width=-1", "width=-1 of Recycling"),
        ("suffix:depth=0", "depth=0 of Suffix"),
        ("suffix:factor=0", "factor=0.0 must be above 0"),
        ("suffix:least=1.5", "least=1.5 is not a probability"),
        ("model:model=x,k=0", "k=0 of ModelDrafter"),
        ("sufix", "did you mean 'suffix'"),
        ("ngram:n=3", "unknown option of drafter ngram 'n'"),
    ],
)
def test_options_that_cannot_be_are_refused(name, what):
    with pytest.raises(DllmError, match=what):
        dllm.speculate.make(name)


def test_a_model_that_cannot_draft_for_the_target_is_refused(target, tiny):
    with pytest.raises(DllmError, match=r"a vocabulary of 41 tokens and the target one of 40; take"):
        dllm.generate_causal(target, [1], tiny(attention="causal", mask_id=None, vocab_size=41), gen_length=4)
    with pytest.raises(DllmError, match="the drafting model fills masks"):
        dllm.generate_causal(target, [1], tiny(), gen_length=4)
    with pytest.raises(DllmError, match="model=int cannot draft"):
        dllm.speculate.make("model", model=3)
    named = {"attention": "causal", "mask_id": None, "vocab_size": 3, "eos_ids": (2,)}
    pair = [make_tiny(tokenizer=Names(names), **named) for names in ("abc", "abd")]
    with pytest.raises(DllmError, match="names other tokens"):
        dllm.generate_causal(pair[0], [1], pair[1], gen_length=4)


class Names:
    """A tokenizer of three tokens."""

    def __init__(self, names):
        self.vocab = {name: i for i, name in enumerate(names)}

    def __len__(self):
        return len(self.vocab)

    def get_vocab(self):
        return self.vocab


def test_what_does_not_draft_says_so(context):
    with pytest.raises(NotImplementedError, match="does not start"):
        Drafter().start(context)
    with pytest.raises(NotImplementedError, match="does not draft"):
        Drafting().draft([])
