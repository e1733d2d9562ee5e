"""Our transformer is transformers' Llama, Qwen2 and Qwen3, and a window over stored K/V is the whole forward."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor

import cases
import twins
from dllm.cache import DualCache, full_view
from dllm.canvas import Span
from dllm.kernels.rotary import rotate
from dllm.models.transformer import Transformer, rotation

LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 1000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}
CASES = {
    "llama": ("Llama", {}),
    "one head each": ("Llama", {"num_key_value_heads": 4}),
    "one kv head": ("Llama", {"num_key_value_heads": 1}),
    "tied": ("Llama", {"tie_word_embeddings": True, "rms_norm_eps": 1e-3}),
    "biases": ("Qwen2", {}),
    "q and k norms": ("Qwen3", {}),
    "wide heads": ("Qwen3", {"head_dim": 20}),
    "slower angles": ("Llama", {"rope_parameters": LLAMA3, "max_position_embeddings": 256}),
}


def pair(case: str) -> tuple[torch.nn.Module, Transformer]:
    """A random network of transformers, and ours with its weights, causal."""
    name, changes = CASES[case]
    theirs = twins.theirs(name, **changes)
    return theirs, twins.ours(theirs, name + "ForCausalLM")


def bidirectional(model: Transformer, **changes: object) -> Transformer:
    """The same network where every column attends to every column."""
    model.spec = replace(model.spec, attention="full", mask_id=0, **changes)
    return model


def everywhere(lengths: list[int]) -> Span:
    """All columns of rows of these lengths."""
    stop = torch.tensor(lengths)
    return Span.between(torch.zeros_like(stop), stop, max(lengths))


def full_logits(model: Transformer, tokens: Tensor, lengths: list[int] | None = None) -> Tensor:
    lengths = lengths or [tokens.shape[1]] * len(tokens)
    return model(tokens, full_view(model.spec, lengths), everywhere(lengths))


def random_tokens(*shape: int) -> Tensor:
    return torch.randint(3, 61, shape, generator=torch.Generator().manual_seed(sum(shape)))


@pytest.mark.parametrize("case", CASES)
def test_causal_logits_equal_transformers(case):
    theirs, ours = pair(case)
    tokens = random_tokens(3, 23)
    with torch.no_grad():
        want = theirs(tokens).logits
    torch.testing.assert_close(full_logits(ours, tokens), want)


@pytest.mark.parametrize("case", CASES)
def test_bidirectional_logits_equal_transformers_with_a_mask_that_shows_all(case):
    theirs, ours = pair(case)
    tokens = random_tokens(2, 19)
    with torch.no_grad():
        want = theirs(tokens, attention_mask=torch.zeros(2, 1, 19, 19)).logits
    got = full_logits(bidirectional(ours), tokens)
    torch.testing.assert_close(got, want)
    assert not torch.allclose(got, theirs(tokens).logits)


@pytest.mark.parametrize("attention", ["causal", "full"])
def test_a_row_of_a_ragged_batch_equals_transformers_on_the_row_alone(attention):
    theirs, ours = pair("biases")
    ours = bidirectional(ours) if attention == "full" else ours
    lengths = [7, 20, 1]
    tokens = random_tokens(3, 20)
    got = full_logits(ours, tokens, lengths)
    for row, n in enumerate(lengths):
        mask = torch.zeros(1, 1, n, n) if attention == "full" else None
        with torch.no_grad():
            want = theirs(tokens[row : row + 1, :n], attention_mask=mask).logits
        torch.testing.assert_close(got[row : row + 1, :n], want)


@pytest.mark.parametrize("attention", ["causal", "full"])
@pytest.mark.parametrize("shift", [0, 1])
def test_a_span_gets_the_logits_of_its_columns_shifted(attention, shift):
    _, ours = pair("llama")
    ours = bidirectional(ours) if attention == "full" else ours
    tokens = random_tokens(2, 16)
    plain = full_logits(ours, tokens)
    # Dream: the logits of column i are those that stand at i - 1; column 0 keeps its own.
    want = torch.cat([plain[:, :1], plain[:, :-1]], 1) if shift else plain
    ours.spec = replace(ours.spec, logits_shift=shift)
    span = Span(torch.tensor([[0, 1, 5, 15], [3, 4, 4, 4]]), torch.tensor([[True] * 4, [True, True, False, False]]))
    got = ours(tokens, full_view(ours.spec, [16, 16]), span)
    torch.testing.assert_close(got, want.gather(1, span.columns[..., None].expand(-1, -1, 61)))


@pytest.mark.parametrize("shift", [0, 1])
@pytest.mark.parametrize("case", ["llama", "biases", "q and k norms"])
def test_a_window_over_stored_keys_of_unchanged_tokens_equals_the_full_forward(case, shift):
    ours = bidirectional(pair(case)[1], logits_shift=shift)
    lengths = [18, 11, 18]
    tokens = random_tokens(3, 18)
    canvas = cases.canvas(tokens, [6, 3, 0], lengths, mask_id=0)
    span = Span.between(torch.tensor([8, 3, 0]), torch.tensor([13, 8, 5]), 5)
    window = ours.spec.window(span)
    want = ours(tokens, full_view(ours.spec, lengths), span)
    state = DualCache().start(ours.spec, canvas, torch.float32)
    counts = []
    for _ in range(2):  # a refresh, then the window alone
        plan = state.plan(window)
        counts.append(plan.sum(1).tolist())
        view = state.view(plan, window, torch.arange(3), counts[-1], lengths)
        torch.testing.assert_close(ours(tokens, view, span), want)
    assert counts[0] == lengths and max(counts[1]) <= 5 + shift


def test_a_view_that_lacks_a_column_of_the_span_is_refused():
    ours = bidirectional(pair("llama")[1])
    view = full_view(ours.spec, [9])
    view.rows = view.rows[:, :4]
    with pytest.raises(ValueError, match="lack some of"):
        ours(random_tokens(1, 9), view, everywhere([9]))


def test_bfloat16_errs_no_more_than_transformers_does():
    theirs, ours = pair("llama")
    tokens = random_tokens(4, 32)
    exact = full_logits(ours.double(), tokens)
    with torch.no_grad():
        want = theirs.bfloat16()(tokens).logits
    got = full_logits(ours.bfloat16(), tokens)
    assert got.dtype == torch.bfloat16
    assert (got - exact).abs().mean() <= 1.5 * (want - exact).abs().mean()


def test_rotation_in_float32_is_nearer_to_exact_than_with_rounded_tables():
    spec = pair("llama")[1].spec
    x, rows = torch.randn(1, 100, 4, 12).bfloat16(), torch.arange(100)[None]
    exact = rotate(x.double(), rotation(spec, rows, torch.float64))
    errors = [
        (rotate(x, rotation(replace(spec, rope_fp32=wide), rows, x.dtype)) - exact).abs().mean()
        for wide in (True, False)
    ]
    assert errors[0] < 0.8 * errors[1]


@pytest.mark.parametrize("case", CASES)
def test_the_spec_counts_the_parameters(case):
    theirs, ours = pair(case)
    assert ours.spec.n_parameters == sum(p.numel() for p in ours.parameters())
    assert ours.spec.n_parameters == sum(p.numel() for p in theirs.parameters())
