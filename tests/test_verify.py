import pytest
import torch

import cases
from dllm import Verification, generate, verify

ASK = {"gen_length": 12, "block_length": 4, "eos_early_stop": False}


def test_static_decoding_without_a_cache_verifies_itself(model):
    checked = verify(model, cases.PROMPTS, "static", "none", **ASK)
    assert checked.equal == 4 and checked.first_difference == [None] * 4
    assert checked.share == 1.0
    assert str(checked) == "4 of 4 answers equal those of one token a step without a cache (12 forwards)"


@pytest.mark.parametrize("temperature", [0.0, 0.9])
def test_drafts_are_lossless_and_a_low_threshold_is_not(tiny, temperature):
    model, ask = tiny(seed=3), {**ASK, "temperature": temperature}
    assert verify(model, cases.PROMPTS, "freedave", "none", **ask).equal == 4
    assert verify(model, cases.PROMPTS, "static", "none", drafts=4, eager=True, **ask).equal == 4
    assert verify(model, cases.PROMPTS, "threshold:threshold=0.1", "dual", **ask).equal < 4


def test_the_first_difference_is_told_for_every_answer(tiny):
    model = tiny(seed=3)
    checked = verify(model, cases.PROMPTS, "threshold:threshold=0", "dual", **ASK)
    plain = generate(model, cases.PROMPTS, "static", "none", **ASK)
    assert checked.plain.completions == plain.completions and isinstance(checked, Verification)
    for made, want, first in zip(checked.made.completions, plain.completions, checked.first_difference, strict=True):
        assert made[:first] == want[:first] and (first is None or made[first] != want[first])
    row, column = next((i, c) for i, c in enumerate(checked.first_difference, 1) if c is not None)
    assert f"first difference of answer {row} at column {column}" in str(checked)


def test_the_same_requests_are_decoded_again(model):
    """With the same noise and blocks, whatever shortens the steps left out."""
    ask = {**ASK, "temperature": 1.0, "num_samples": 2, "steps": 3, "eotp": 0.9, "request_ids": [4, 3, 2, 1]}
    checked = verify(model, cases.PROMPTS, "origin", "none", **{**ask, "block_length": None})
    plain = generate(
        model, cases.PROMPTS, "static", "none", **{**ask, "steps": None, "eotp": None}, seed=checked.made.seed
    )
    assert len(plain.completions) == 8 and checked.plain.seed == checked.made.seed
    whole = generate(
        model,
        cases.PROMPTS,
        "static",
        "none",
        **{**ask, "steps": None, "eotp": None, "block_length": 12},
        seed=checked.made.seed,
    )
    assert torch.equal(checked.plain.tokens, whole.tokens)  # `origin` decodes the answer as one block


def test_a_causal_model_is_verified_against_plain_decoding(tiny):
    model = tiny(attention="causal", mask_id=None)
    checked = verify(model, cases.PROMPTS, "ngram:max_n=1,k=3", gen_length=12, temperature=1.0)
    assert checked.share == 1.0 and (checked.plain.nfe >= checked.made.nfe).all()
    assert "one token a forward without drafts" in str(checked)
    lossy = verify(model, cases.PROMPTS, "ngram:max_n=1,k=3", gen_length=12, verify="typical:epsilon=0.01")
    assert lossy.first_difference.count(None) == lossy.equal
