"""DiffusionGemma decodes here to the tokens that transformers generates, batched and with its prefix encoded once."""

import json
import sys
from types import SimpleNamespace

import pytest
import torch
import transformers

import dllm
from dllm import DllmError, Streamed
from dllm.cache.encoder import EncoderCache, EncoderView, Note
from dllm.canvas import Span
from dllm.models.hf import DiffusionGemma, wrap

pytest.importorskip("transformers.models.diffusion_gemma", reason="transformers has it since version 5")

import gemma  # not importable without it

PROMPTS = [[5, 6, 7, 8, 9, 10, 11, 12, 13, 14], [3], [21, 4, 9, 30]]
QUICK = {"max_denoising_steps": 6, "confidence_threshold": 1.0, "sampler_config": None}
SHAPE = {"gen_length": 24, "seed": 7}


def module(seed=0, **options):
    return gemma.tiny(seed, **{name: value for name, value in (QUICK | options).items() if value is not None})


@pytest.fixture(scope="module")
def model():
    return wrap(module())


def up_to_the_end(answer):
    return answer[: answer.index(gemma.EOS) + 1] if gemma.EOS in answer else answer


@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize("prompt", PROMPTS[:2], ids=len)
def test_it_generates_what_transformers_does(seed, prompt):
    network = module(seed)
    theirs, steps = gemma.generate(network, prompt, 7, 24)
    ours = dllm.generate(wrap(network), prompt, **SHAPE)
    assert up_to_the_end(ours.completions[0]) == up_to_the_end(theirs)
    assert ours.nfe.tolist() == [steps] and steps > 6  # several blocks


def test_the_generation_config_of_the_checkpoint_is_the_default_sampler():
    bound = transformers.models.diffusion_gemma.generation_diffusion_gemma.EntropyBoundSamplerConfig(entropy_bound=2.5)
    network = module(sampler_config=bound, t_max=1.5, t_min=0.5, stability_threshold=2)
    made = "renoise:max_denoising_steps=6,t_min=0.5,t_max=1.5,stability_threshold=2,confidence_threshold=1.0"
    assert wrap(network).spec.sampler == made + ",entropy_bound=2.5"
    theirs, steps = gemma.generate(network, PROMPTS[0], 7, 8)
    ours = dllm.generate(wrap(network), PROMPTS[0], gen_length=8, seed=7)
    assert up_to_the_end(ours.completions[0]) == up_to_the_end(theirs) and ours.nfe.tolist() == [steps]
    plain = gemma.tiny()
    assert wrap(plain).spec.sampler == "renoise"


@pytest.mark.parametrize("batch_size", [2, 3])
def test_a_row_of_a_ragged_batch_is_generated_as_alone(model, batch_size):
    batch = dllm.generate(model, PROMPTS, **SHAPE, batch_size=batch_size)
    assert len({*map(tuple, batch.completions)}) == 3
    for i, prompt in enumerate(PROMPTS):
        alone = dllm.generate(model, prompt, **SHAPE)
        assert alone.completions == batch.completions[i : i + 1] and alone.nfe[0] == batch.nfe[i]


def test_a_prefix_is_encoded_once(model):
    made = dllm.generate(model, PROMPTS, "renoise:max_denoising_steps=3", **SHAPE, eos_early_stop=False)
    assert made.nfe.tolist() == [9] * 3
    assert made.rows.tolist() == [len(prompt) + 16 + 9 * gemma.W for prompt in PROMPTS]


def views(lengths, condition=None):
    """Views that encode these prefixes at once, or in two parts, and the span behind them."""
    start = torch.tensor(lengths)
    span = Span.between(start, start + gemma.W, gemma.W)
    notes = [Note(condition=condition) for _ in lengths]
    yield EncoderView(span.columns, notes, [range(n) for n in lengths]), span, notes
    yield EncoderView(span.columns, notes, [range(n, n) for n in lengths]), span, notes


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("conditioned", [False, True])
def test_a_step_has_the_logits_of_the_module(attention, conditioned):
    network = module()
    network.set_attn_implementation(attention)
    tokens = torch.randint(0, gemma.V, (2, 30))
    lengths = [11, 4]
    said = torch.randn(gemma.W, gemma.V).double() if conditioned else None
    for view, span, _ in views(lengths, said):  # the second reads what the first has stored
        got = wrap(network)(tokens, view, span)
        for row, n in enumerate(lengths):
            want = network(
                input_ids=tokens[row : row + 1, :n],
                decoder_input_ids=tokens[row : row + 1, n : n + gemma.W],
                self_conditioning_logits=None if said is None else said[None],
            ).logits
            torch.testing.assert_close(got[row : row + 1], want, rtol=1e-5, atol=1e-5)
        break_even = wrap(network)(tokens, next(views(lengths, None))[0], span)
        assert torch.equal(break_even, got) == (said is None)  # what was said before matters


def test_a_prefix_may_be_encoded_in_parts(model):
    tokens = torch.randint(0, gemma.V, (1, 30))
    span = Span.between(torch.tensor([20]), torch.tensor([28]), gemma.W)
    whole, parts = [Note()], [Note()]
    want = model(tokens, EncoderView(span.columns, whole, [range(20)]), span)
    for fresh in (range(9), range(9, 20)):
        got = model(tokens, EncoderView(span.columns, parts, [fresh]), span)
    torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-5)


def test_the_next_step_is_told_what_the_last_one_said_within_a_block(model):
    run = dllm.stream(model, PROMPTS[0], "renoise:max_denoising_steps=3", **SHAPE, eos_early_stop=False)
    [state] = run.states
    said = []
    for _ in run:
        note = state.notes[0]
        said.append((note.encoded, note.condition))
    assert [n for n, _ in said] == [10] * 3 + [18] * 3 + [26] * 3
    assert all(c.shape == (gemma.W, gemma.V) and c.dtype == model.dtype for _, c in said)


def test_samplers_that_decide_for_good_can_be_used_too(model):
    made = dllm.generate(model, PROMPTS, "threshold:threshold=0.5", **SHAPE, eos_early_stop=False)
    assert all(0 <= token < gemma.V for row in made.completions for token in row) and (made.nfe <= 24).all()


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"gen_length": 20}, "gen_length=20: this model denoises blocks of 8 tokens; give a multiple"),
        ({"eotp": 0.9}, "eotp=0.9 looks beyond the block"),
        ({"sampler": "sliding"}, "Sliding.* looks beyond the block"),
        ({"cache": "dual"}, "computes every row by itself"),
        ({"sampler": "static", "drafts": 2}, "take another cache|give drafts=1"),
    ],
    ids=str,
)
def test_what_its_decoder_cannot_do_is_refused(model, asked, message):
    with pytest.raises(DllmError, match=message):
        dllm.generate(model, PROMPTS, **SHAPE | asked)


@pytest.mark.parametrize("asked", [{"mask_id": 3}, {"logits_shift": 1}, {"causal": True}], ids=str)
def test_it_is_wrapped_without_the_arguments_of_masked_models(asked):
    with pytest.raises(DllmError, match="denoises random tokens; leave out mask_id, logits_shift and causal"):
        wrap(module(), **asked)


@pytest.mark.parametrize(("given", "ids"), [(None, (gemma.EOS,)), ([3, 4], (3, 4)), ([], ())])
def test_ends_of_text_come_from_the_generation_config_or_else_the_config(given, ids):
    assert wrap(module(), eos_ids=given).spec.eos_ids == ids
    network = module()
    network.generation_config.eos_token_id = [5, 6]
    assert wrap(network).spec.eos_ids == (5, 6)
    network.generation_config.eos_token_id = None
    assert wrap(network).spec.eos_ids == (gemma.EOS,)


def test_a_folder_is_loaded_and_decodes_as_what_was_saved(tmp_path):
    network = module(dtype=torch.float32)
    network.save_pretrained(tmp_path)
    loaded = dllm.load(tmp_path, dtype="float32")
    assert isinstance(loaded, DiffusionGemma) and loaded.dtype == torch.float32 and loaded.tokenizer is None
    assert loaded.spec == wrap(network).spec and not any(p.requires_grad for p in loaded.module.parameters())
    tokens = torch.randint(0, gemma.V, (1, 20))
    (view, span, _), (again, _, _) = next(views([9])), next(views([9]))
    torch.testing.assert_close(loaded(tokens, view, span), wrap(network)(tokens, again, span))


def test_an_older_transformers_is_told_so(tmp_path, monkeypatch):
    (tmp_path / "config.json").write_text(json.dumps({"architectures": ["DiffusionGemmaForBlockDiffusion"]}))
    monkeypatch.setitem(sys.modules, "transformers", SimpleNamespace(__version__="4.57.1"))
    with pytest.raises(DllmError, match=r"transformers 4.57.1 has no DiffusionGemmaForBlockDiffusion; install 5.23"):
        dllm.load(tmp_path)


class Recorded:
    """A streamer that keeps what it is given."""

    def __init__(self):
        self.given = []

    def put(self, value):
        self.given.append(("put", value.tolist()))

    def put_draft(self, value):
        self.given.append(("draft", value.tolist()))

    def end(self):
        self.given.append(("end", None))


def test_a_streamer_is_given_what_transformers_gives_it():
    network = module()
    network.generation_config.eos_token_id, network.config.text_config.eos_token_id = None, None
    theirs, ours = Recorded(), Recorded()
    gemma.generate(network, PROMPTS[0], 7, 16, streamer=theirs)
    dllm.generate(wrap(network, eos_ids=[]), PROMPTS[0], gen_length=16, seed=7, observers=[Streamed(ours)])
    assert ours.given == theirs.given and len(ours.given) > 6


def test_its_own_cache_keeps_one_row_apart_from_the_next(model):
    assert EncoderCache().drafts is False
    twice = dllm.generate(model, [PROMPTS[0], PROMPTS[0]], **SHAPE, batch_size=1, request_ids=[4, 4])
    assert twice.completions[0] == twice.completions[1]
