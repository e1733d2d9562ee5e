"""Networks of transformers decode through `wrap`, and as ours with the same weights."""

from dataclasses import replace

import pytest
import torch
import transformers

import dllm
from dllm.cache import full_view
from dllm.canvas import Span
from dllm.models import FAMILIES
from dllm.models.hf import Foreign, wrap
from dllm.models.transformer import Transformer

MASK, EOS = 39, 38
SIZES = {
    "vocab_size": 40,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
}
PROMPTS = [[5, 6, 7], [8, 9, 10, 11, 12, 13, 14, 15], [16]]


def bert() -> torch.nn.Module:
    config = transformers.BertConfig(**SIZES)
    return sharpened(transformers.BertForMaskedLM(config))


def modern_bert() -> torch.nn.Module:
    names = ("cls_token_id", "sep_token_id", "bos_token_id", "eos_token_id")
    config = transformers.ModernBertConfig(
        **SIZES, **dict.fromkeys(names, 1), global_attn_every_n_layers=1, reference_compile=False
    )
    return sharpened(transformers.ModernBertForMaskedLM(config))


def llama(**changes: object) -> torch.nn.Module:
    config = transformers.LlamaConfig(**SIZES | {"num_key_value_heads": 2, "eos_token_id": EOS} | changes)
    return sharpened(transformers.LlamaForCausalLM(config))


def sharpened(module: torch.nn.Module) -> torch.nn.Module:
    """Random weights with which the proposals depend on the context, so that a wrong forward changes tokens."""
    draw = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in module.parameters():
            if parameter.ndim == 2:
                parameter.copy_(torch.randn(parameter.shape, generator=draw) * 2 * parameter.shape[1] ** -0.5)
    return module.eval()


def settings(**changes: object) -> dict[str, object]:
    return {"sampler": "static", "gen_length": 12, "block_length": 4, "steps": 12} | changes


MODELS = {
    "bert": lambda: wrap(bert(), mask_id=MASK, eos_ids=[EOS]),
    "modern bert": lambda: wrap(modern_bert(), mask_id=MASK, eos_ids=[EOS]),
    "llama": lambda: wrap(llama(), mask_id=MASK, causal=True),
    "llama, shifted": lambda: wrap(llama(), mask_id=MASK, causal=True, logits_shift=1),
    "llama, eager": lambda: wrap(llama(attn_implementation="eager"), mask_id=MASK, causal=True),
}


# transformers 4.57 compiles a function where ModernBERT is defined, and torch's compiler imports what torch deprecates.
@pytest.mark.filterwarnings("ignore:.*torch.jit.script_method:DeprecationWarning")
@pytest.mark.parametrize("name", MODELS)
def test_a_row_of_a_ragged_batch_is_generated_as_alone(name):
    model = MODELS[name]()
    batch = dllm.generate(model, PROMPTS, **settings())
    assert all(MASK not in answer and len(answer) == 12 for answer in batch.completions)
    assert len({tuple(answer) for answer in batch.completions}) == 3  # the answers depend on the prompts
    for prompt, answer in zip(PROMPTS, batch.completions, strict=True):
        assert dllm.generate(model, prompt, **settings()).completions == [answer]


@pytest.mark.parametrize("shift", [0, 1])
def test_it_generates_what_our_transformer_with_its_weights_does(shift):
    theirs = llama()
    family = FAMILIES["LlamaForCausalLM"]
    spec = family.spec({"architectures": [family.architecture], **theirs.config.to_dict()})
    ours = Transformer(replace(spec, attention="full", mask_id=MASK, logits_shift=shift)).requires_grad_(False)
    weights = theirs.state_dict()
    for name, value in ours.named_parameters():
        for source, part in family.parts(spec, name, value).items():
            part.copy_(weights[source])
    foreign = wrap(theirs, mask_id=MASK, causal=True, logits_shift=shift)
    assert foreign.spec == replace(ours.spec, cacheable=False, rope_fp32=True, norm_eps=1e-5)

    lengths = [9, 14]
    tokens = torch.randint(0, 38, (2, 14))
    span = Span.between(torch.tensor([0, 3]), torch.tensor([6, 14]), 11)
    view = full_view(ours.spec, lengths)
    torch.testing.assert_close(foreign(tokens, view, span), ours(tokens, view, span))
    got, want = (dllm.generate(m, PROMPTS, **settings(cache="none")) for m in (foreign, ours))
    assert got.completions == want.completions and torch.equal(got.nfe, want.nfe)


def test_a_wider_canvas_than_the_rows_in_flight_need_is_cut():
    model = MODELS["bert"]()
    tokens = torch.randint(0, 38, (1, 20))
    span = Span.between(torch.tensor([2]), torch.tensor([6]), 4)
    view = full_view(model.spec, [9])
    torch.testing.assert_close(model(tokens, view, span), model(tokens[:, :9], view, span))


def test_it_is_put_into_evaluation_mode():
    module = bert().train()
    assert not wrap(module, mask_id=MASK).module.training and not module.training


def test_it_needs_no_gradients_and_tells_device_and_dtype():
    model = wrap(bert().to(torch.bfloat16), mask_id=MASK)
    logits = model(torch.tensor([[5, 6]]), full_view(model.spec, [2]), Span.between(*torch.tensor([[0], [2]]), 2))
    assert not logits.requires_grad and logits.dtype == model.dtype == torch.bfloat16
    assert model.device == torch.device("cpu")


def test_a_module_that_does_not_know_use_cache_is_not_given_it():
    class Plain(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = bert()
            self.config = self.inner.config

        def forward(self, input_ids, attention_mask):
            return self.inner(input_ids=input_ids, attention_mask=attention_mask)

    plain, known = (dllm.generate(wrap(m, mask_id=MASK), PROMPTS, **settings()) for m in (Plain(), bert()))
    assert plain.completions == known.completions


@pytest.mark.parametrize(("given", "ids"), [(None, (EOS,)), ([3, 4], (3, 4)), ([], ())])
def test_ends_of_text_come_from_the_config_unless_given(given, ids):
    assert wrap(llama(), mask_id=MASK, eos_ids=given).spec.eos_ids == ids


@pytest.mark.parametrize(("value", "ids"), [(None, ()), ([7, 8], (7, 8))])
def test_a_config_may_have_several_ends_of_text_or_none(value, ids):
    assert wrap(llama(eos_token_id=value), mask_id=MASK).spec.eos_ids == ids


def test_the_mask_comes_from_the_tokenizer_unless_given():
    class Tokenizer:
        mask_token_id = 17

    assert wrap(bert(), tokenizer=Tokenizer()).spec.mask_id == 17
    assert wrap(bert(), tokenizer=Tokenizer(), mask_id=MASK).spec.mask_id == MASK
    with pytest.raises(dllm.DllmError, match="BertForMaskedLM comes without a mask token; give mask_id="):
        wrap(bert())


def test_the_context_of_the_config_is_the_limit():
    with pytest.raises(dllm.DllmError, match="context is 64"):
        dllm.generate(MODELS["bert"](), [1] * 60, **settings())


@pytest.mark.parametrize("cache", ["dual", "prefix"])
def test_a_cache_is_refused(cache):
    with pytest.raises(dllm.DllmError, match="computes every row by itself"):
        dllm.generate(MODELS["bert"](), PROMPTS, **settings(cache=cache))


def test_a_view_of_some_columns_is_refused():
    model = MODELS["bert"]()
    view = full_view(model.spec, [9])
    view.rows = view.rows[:, 2:]
    with pytest.raises(ValueError, match="can only compute all"):
        model(torch.randint(0, 38, (1, 9)), view, Span.between(*torch.tensor([[2], [6]]), 4))
    assert isinstance(model, Foreign)
