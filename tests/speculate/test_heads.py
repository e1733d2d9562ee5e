"""Medusa's and Hydra's heads: what they read and write, and that drafts are what their guesses say."""

import json

import pytest
import torch

import dllm
from dllm import DllmError
from dllm.fingerprint import fingerprint
from dllm.settings import Settings
from dllm.speculate import Context, Row
from dllm.speculate.choose import Chooser
from dllm.speculate.heads import KINDS, Heads, load, save
from dllm.speculate.medusa import Hydra, Medusa
from drafting import ACCURACY, random_heads, write_heads

PROMPTS = [[3, 1, 4], [1, 5, 9, 2, 6, 5, 3], [5]]
both = pytest.mark.parametrize("kind", KINDS)


@pytest.fixture(scope="module")
def target(tiny):
    return tiny(attention="causal", mask_id=None)


@both
def test_heads_begin_as_the_models_own(target, kind):
    hidden = torch.randn(4, target.spec.hidden_size)
    heads = Heads(2, target.spec.hidden_size, kind == "hydra")
    assert torch.equal(heads(2, hidden, [torch.randn(4, 32)] * 2), hidden) and heads.kind == kind
    assert len({id(layer) for layer in heads.inner}) == 2  # each has weights of its own


def test_hydras_heads_read_the_tokens_in_between_and_medusas_do_not(target):
    hidden, (one, other) = torch.randn(4, 32, dtype=torch.float64), torch.randn(2, 4, 32, dtype=torch.float64)
    medusa, hydra = (random_heads(target, kind) for kind in KINDS)
    assert torch.equal(medusa(2, hidden, [one, one]), medusa(2, hidden, [one, other]))
    assert not torch.equal(hydra(2, hidden, [one, one]), hydra(2, hidden, [one, other]))


@both
def test_heads_come_back_as_they_were_written_in_the_models_dtype(target, kind, tmp_path):
    heads, found = write_heads(tmp_path, target, kind), load(tmp_path, target)
    hidden, between = torch.randn(4, 32, dtype=torch.float64), [torch.randn(4, 32, dtype=torch.float64)] * 3
    assert torch.equal(found(3, hidden, between), heads(3, hidden, between)) and found.n_heads == 3
    save(heads, tmp_path, {"target": fingerprint(target), "accuracy": ACCURACY})
    assert next(load(tmp_path, target).parameters()).dtype == torch.float64  # from bfloat16


def test_the_name_of_a_models_weights_is_the_same_in_every_dtype_and_another_ones_differs(target, tiny):
    assert fingerprint(tiny(attention="causal", mask_id=None, dtype=torch.bfloat16)) == fingerprint(target)
    assert fingerprint(tiny(1, attention="causal", mask_id=None)) != fingerprint(target)


def slowly(target, heads, row, hidden, choose, tree):
    """The tokens of a tree of ranks, one node after the other."""
    tokens = []
    for parent, rank, depth in zip(tree.parents, tree.tokens, tree.depths, strict=True):
        way, node = [], parent
        while node >= 0:
            way.insert(0, tokens[node])
            node = tree.parents[node]
        between = [target.embed(torch.tensor([token])) for token in (row.tokens[-1], *way)]
        guess = choose.drawn(target.head(heads(depth, hidden[None], between))[None])[0, 0]
        if choose.settings.temperature:
            guess = guess + choose.noise([row.key], torch.tensor([[len(row.tokens) - 1 + depth]]), len(guess))[0, 0]
        tokens.append(int(guess.argsort(descending=True)[rank]))
    return tokens


@both
@pytest.mark.parametrize("temperature", [0.0, 0.8])
def test_a_draft_has_at_every_node_the_guess_of_its_rank(target, kind, temperature, tmp_path):
    heads, choose = (
        write_heads(tmp_path, target, kind),
        Chooser(Settings(temperature=temperature, seed=4), torch.arange(0)),
    )
    drafter = (Hydra if kind == "hydra" else Medusa)(str(tmp_path), budget=9)
    live = drafter.start(Context(target, choose, True, 3, 64))
    rows = [Row(7 - i, i, [*prompt, 2 + i], len(prompt), 11 + i, 64) for i, prompt in enumerate(PROMPTS)]
    states = [torch.randn(len(prompt), 32, dtype=torch.float64) for prompt in PROMPTS]
    for row, hidden in zip(rows, states, strict=True):
        live.begin(row, None, hidden)
    for row, hidden, tree in zip(rows, states, live.draft(rows), strict=True):
        assert len(tree) == 9 and max(tree.depths) == 3
        assert tree.tokens == slowly(target, heads, row, hidden[-1], choose, live.template)
    asked = [len({tree.parents[n] for n in range(9) if tree.depths[n] == depth}) for depth in (1, 2, 3)]
    assert live.forwards == 3 and live.positions == 3 * (sum(asked) if kind == "hydra" else 3)


@both
def test_a_draft_continues_from_the_state_of_the_last_accepted_node(target, kind, tmp_path):
    write_heads(tmp_path, target, kind)
    run = dllm.stream_causal(target, PROMPTS, f"{kind}:heads={tmp_path},budget=6", gen_length=12, eos_early_stop=False)
    for _ in range(4):
        run.verify() if run.rows else [run.begin(rows) for rows in run.admit()]
    for row in run.rows:
        tokens = torch.tensor([row.tokens[:-1]])
        states = run.store.__class__(target, 1, 40)
        states.enter()
        want = target.norm(states.begin([0], tokens))[0, -1]
        torch.testing.assert_close(run.drafting.last[row.request], want)


@both
@pytest.mark.parametrize("verify", ["match", "ratio"])
def test_heads_change_forwards_but_not_greedy_tokens(target, kind, verify, tmp_path):
    write_heads(tmp_path, target, kind)
    plain = dllm.generate_causal(target, PROMPTS, gen_length=20)
    for options in ("", ",vocab=12", ",budget=1"):
        made = dllm.generate_causal(target, PROMPTS, f"{kind}:heads={tmp_path}{options}", verify=verify, gen_length=20)
        assert made.completions == plain.completions


def test_a_trimmed_vocabulary_bounds_what_is_drafted(target, tmp_path):
    write_heads(tmp_path, target, "medusa")
    live = Medusa(str(tmp_path), vocab=5).start(Context(target, Chooser(Settings(), torch.arange(0)), True, 1, 64))
    row = Row(0, 0, [1, 2], 1, 0, 64)
    live.begin(row, None, torch.randn(1, 32, dtype=torch.float64))
    assert set(live.draft([row])[0].tokens) <= {38, 0, 1, 2, 3}


def broken(folder, **changes):
    path = folder / "heads.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


@pytest.mark.parametrize(
    ("changes", "what"),
    [
        ({"kind": "eagle"}, "kind='eagle'; heads are of kind medusa or hydra"),
        ({"n_heads": 0}, "n_heads=0; it must be a whole number"),
        ({"hidden_size": "32"}, "hidden_size='32'; it must be a whole number"),
        ({"accuracy": ACCURACY[:2]}, "must tell, as `accuracy`"),
        ({"accuracy": [[2], [1], [1]]}, "must tell, as `accuracy`"),
        ({"frequent": 3}, "`frequent` that is no list"),
        ({"hidden_size": 64}, "hidden states of 64 numbers, the model has 32"),
        ({"target": "ab"}, r"trained for other weights \(ab\)"),
        ({"kind": "hydra"}, "holds hydra heads; draft with 'hydra', not 'medusa'"),
        ({"n_heads": 2, "accuracy": ACCURACY[:2]}, "holds other tensors than its heads.json says"),
    ],
    ids=str,
)
def test_heads_that_do_not_fit_are_refused_with_the_reason(target, tmp_path, changes, what):
    write_heads(tmp_path, target, "medusa")
    broken(tmp_path, **changes)
    with pytest.raises(DllmError, match=what):
        dllm.generate_causal(target, [1], f"medusa:heads={tmp_path}", gen_length=4)


def test_a_folder_without_heads_and_a_model_without_bundled_ones_are_refused(target, tmp_path):
    with pytest.raises(DllmError, match=r"has no heads.json, so it holds no heads; train some with scripts"):
        dllm.generate_causal(target, [1], f"hydra:heads={tmp_path}", gen_length=4)
    with pytest.raises(DllmError, match="no bundled medusa heads were trained for this model; train some"):
        dllm.generate_causal(target, [1], "medusa", gen_length=4)


def test_a_vocabulary_cannot_be_trimmed_where_nobody_counted(target, tmp_path):
    write_heads(tmp_path, target, "medusa", frequent=[])
    with pytest.raises(DllmError, match="tell no frequent tokens"):
        dllm.generate_causal(target, [1], f"medusa:heads={tmp_path},vocab=5", gen_length=4)


@pytest.mark.parametrize("options", ["budget=0", "vocab=0", "budget=-2"])
def test_counts_below_one_are_refused(options):
    with pytest.raises(DllmError, match="must be a whole number of at least 1"):
        dllm.speculate.make(f"medusa:{options}")
