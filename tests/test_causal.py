"""Autoregressive decoding as users call it: what goes in, what comes out, what is counted, and what is refused."""

import dataclasses
import io
import os

import pytest
import torch
import transformers
from rich.console import Console

import dllm
from dllm import DllmError, Trace, generate, generate_causal, stream_causal
from dllm.generation import token_ids
from dllm.live import LiveView
from dllm.models.hf import wrap
from dllm.models.tiny import tiny as make_tiny
from drafting import Scripted, prompts

PROMPTS = prompts(9)


@pytest.fixture(scope="module")
def model(tiny):
    return tiny(attention="causal", mask_id=None)


@pytest.fixture(scope="module")
def plain(model):
    return generate_causal(model, PROMPTS, gen_length=10)


SIZES = {
    "vocab_size": 61,
    "hidden_size": 48,
    "intermediate_size": 80,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 12,
    "max_position_embeddings": 128,
    "eos_token_id": 1,
    "bos_token_id": 2,
    "pad_token_id": 0,
}
ROPE = {
    "rope_type": "llama3",
    "rope_theta": 1000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16,
}
FAMILIES = {
    "Llama": {"rope_parameters": ROPE},
    "Qwen2": {"tie_word_embeddings": True},
    "Qwen3": {},
}


@pytest.fixture(scope="module", params=FAMILIES)
def pair(request, tmp_path_factory):
    """A random checkpoint, opened by transformers and by us."""
    torch.manual_seed(1)
    folder = tmp_path_factory.mktemp(request.param)
    config = getattr(transformers, request.param + "Config")(**SIZES | FAMILIES[request.param])
    theirs = getattr(transformers, request.param + "ForCausalLM")(config).eval()
    for name, parameter in theirs.named_parameters():  # so that no norm is all ones, no bias all zeros, no token sure
        wide = 1.0 if "embed" in name else 0.2
        torch.nn.init.normal_(parameter, mean=float(parameter.ndim == 1), std=0.15 if parameter.ndim == 1 else wide)
    theirs.save_pretrained(folder)
    theirs.generation_config.pad_token_id = 0
    return theirs, dllm.load(folder, device="cpu", dtype="float32")


def theirs_alone(theirs, prompt, **options):
    """What transformers continues one prompt with, its end of text included."""
    ids = torch.tensor([prompt])
    with torch.no_grad():
        made = theirs.generate(ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=16, **options)
    return made[0, len(prompt) :].tolist()


ASKED = prompts(5, seed=2, vocab_size=61)


def test_greedy_decoding_equals_transformers_generate(pair):
    theirs, ours = pair
    want = [theirs_alone(theirs, prompt) for prompt in ASKED]
    assert len({token for answer in want for token in answer}) > 5
    for draft in (None, "ngram", "recycling:k=8", ours):
        assert generate_causal(ours, ASKED, draft, max_new_tokens=16, batch_size=3).completions == want


def test_so_do_their_prompt_lookup_and_their_assisted_generation(pair):
    theirs, ours = pair
    for prompt in ASKED[:2]:
        ours_alone = generate_causal(ours, prompt, "ngram", max_new_tokens=16).completions[0]
        assert ours_alone == theirs_alone(theirs, prompt, prompt_lookup_num_tokens=4)
        assert ours_alone == theirs_alone(theirs, prompt, assistant_model=theirs)


@pytest.mark.skipif("DLLM_TEST_SMOLLM2" not in os.environ, reason="DLLM_TEST_SMOLLM2 names no folder of SmolLM2-135M")
def test_a_published_checkpoint_is_decoded_as_transformers_does():
    folder = os.environ["DLLM_TEST_SMOLLM2"]
    ours = dllm.load(folder, device="cpu", dtype="float32")
    theirs = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    prompt = token_ids(ours, "Which is the larger number, 9 or 12?", True)
    for draft in (None, "ngram", "recycling:k=8"):
        assert generate_causal(ours, prompt, draft, max_new_tokens=16).completions == [theirs_alone(theirs, prompt)]


def test_a_row_does_not_depend_on_its_batch_nor_on_the_order(model):
    settings = {"gen_length": 10, "temperature": 0.8, "seed": 4, "request_ids": [*range(9)]}
    want = generate_causal(model, PROMPTS, batch_size=9, **settings).completions
    for batch_size in (1, 2, 5):
        assert generate_causal(model, PROMPTS, batch_size=batch_size, **settings).completions == want
    back = settings | {"request_ids": [*range(8, -1, -1)]}
    assert generate_causal(model, PROMPTS[::-1], batch_size=4, **back).completions == want[::-1]


def test_samples_of_one_prompt_differ_and_come_back_with_their_seed(model):
    settings = {"gen_length": 8, "temperature": 1.0, "num_samples": 3}
    one, again = (generate_causal(model, [3, 1], seed=5, **settings) for _ in range(2))
    assert one.completions == again.completions and len({tuple(c) for c in one.completions}) == 3
    drawn = generate_causal(model, [3, 1], **settings)
    assert generate_causal(model, [3, 1], **settings | {"seed": drawn.seed}).completions == drawn.completions


def test_top_k_1_is_greedy_at_any_temperature(model, plain):
    assert generate_causal(model, PROMPTS, gen_length=10, temperature=2.0, top_k=1).completions == plain.completions


def test_what_comes_out(plain):
    length = max(len(p) + len(c) for p, c in zip(PROMPTS, plain.completions, strict=True))
    for prompt, answer, row in zip(PROMPTS, plain.completions, plain.tokens.tolist(), strict=True):
        assert row == [*prompt, *answer] + [38] * (length - len(prompt) - len(answer))
        assert 38 not in answer[:-1] and (len(answer) == 10 or answer[-1] == 38)
    assert plain.steps.tolist() == [len(c) for c in plain.completions] and plain.texts is None


def test_an_answer_ends_with_its_end_of_text_and_goes_on_if_that_is_asked_for(model):
    settings = {"gen_length": 40, "temperature": 1.5, "seed": 2}
    short, long = (generate_causal(model, PROMPTS, eos_early_stop=stop, **settings) for stop in (True, False))
    assert any(len(c) < 40 for c in short.completions) and all(len(c) == 40 for c in long.completions)
    for cut, whole in zip(short.completions, long.completions, strict=True):
        assert cut == whole[: whole.index(38) + 1 if 38 in whole else None]
    assert torch.equal(short.answer_tokens, torch.tensor([len([t for t in c if t != 38]) for c in short.completions]))


@pytest.mark.parametrize("batch_size", [1, 4])
@pytest.mark.parametrize("size", [0, 6])
def test_forwards_and_positions_are_counted_where_they_happen(model, plain, monkeypatch, batch_size, size):
    seen = []
    states = type(model).states
    monkeypatch.setattr(type(model), "states", lambda *a: (seen.append(a[1].numel()), states(*a))[1])
    made = generate_causal(model, PROMPTS, Scripted(plain.completions, size=size), gen_length=10, batch_size=batch_size)
    assert made.forwards == len(seen) and (made.refreshes == 1).all()
    assert made.drafted.sum() > 0 if size else (made.drafted.sum() == 0 and torch.equal(made.nfe, made.steps))
    prompt = torch.tensor([len(p) for p in PROMPTS])
    assert torch.equal(made.rows, prompt + made.nfe - 1 + made.drafted)
    if batch_size == 1:  # else rows are filled up to the widest
        assert made.forwards == made.nfe.sum() and made.rows.sum() == sum(seen)
    assert made.kv_bytes >= 2 * 2 * batch_size * 2 * 8 * 8 * max(len(p) + 10 for p in PROMPTS)


def test_plain_decoding_attends_to_what_stands_before_and_computes_nothing_twice(model):
    made = generate_causal(model, [3, 1, 4], gen_length=5, eos_early_stop=False)
    assert made.rows.tolist() == [3 + 4] and made.columns.tolist() == [3 + 4 + 5 + 6 + 7]


def test_the_store_holds_what_whole_forwards_compute(model, plain):
    """After every step the kept keys are those of the row's tokens, whatever stood in the tree."""
    run = stream_causal(model, PROMPTS, Scripted(plain.completions), gen_length=10, batch_size=3)
    for _ in run:
        for row in run.rows:
            n = len(row.tokens) - 1
            if n < row.prompt_length:
                continue
            fresh = dllm.cache.causal.CausalStore(model, 1, n)
            fresh.begin([fresh.enter()], torch.tensor([row.tokens[:n]]))
            for layer in range(2):
                torch.testing.assert_close(run.store.keys[layer][row.slot, :n], fresh.keys[layer][0])
                torch.testing.assert_close(run.store.values[layer][row.slot, :n], fresh.values[layer][0])


def test_observers_see_every_token_where_nothing_was_decided(model, plain):
    trace = Trace()
    made = generate_causal(model, PROMPTS, Scripted(plain.completions), gen_length=10, batch_size=4, observers=[trace])
    answers = [{} for _ in PROMPTS]
    for change in trace.changes:
        assert change["kind"] == "revealed" and 0 < change["confidence"] <= 1
        answers[change["request"]][change["column"]] = change["token"]
    for prompt, answer, seen in zip(PROMPTS, made.completions, answers, strict=True):
        assert seen == {len(prompt) + i: token for i, token in enumerate(answer)}
    assert trace.forwards == dict(enumerate(made.nfe.tolist()))


def test_a_run_can_be_watched_and_kept(model, tmp_path):
    trace = Trace()
    run = stream_causal(model, PROMPTS[:2], "ngram", gen_length=6, observers=[trace])
    with pytest.raises(RuntimeError, match="0 of 2 rows are finished"):
        run.result()
    with LiveView(run, Console(file=io.StringIO(), force_terminal=True)) as view:
        for step in run:
            view(step)
    assert view.answers == [c + [-1] * (6 - len(c)) for c in run.result().completions]
    trace.to_json(tmp_path / "trace.jsonl", run)
    assert '"mask_id": -1' in (tmp_path / "trace.jsonl").read_text()


class Letters:
    """A tokenizer in which token i is the i-th letter, and the last one a space."""

    chat_template = None

    def __len__(self):
        return 40

    def decode(self, tokens, **_):
        return "".join(" " if t == 39 else "\u2588" if t == 38 else chr(97 + t) for t in tokens if t != 38)


@pytest.mark.parametrize("size", [0, 9])
def test_a_stop_string_ends_the_row_with_the_token_that_completes_it(size):
    speaking = make_tiny(tokenizer=Letters(), attention="causal", mask_id=None)
    plain = generate_causal(speaking, PROMPTS, gen_length=12)
    stops = [plain.texts[0][4:6], plain.texts[3][7:10]]
    assert all(stops)
    made = generate_causal(speaking, PROMPTS, Scripted(plain.completions, size=size), gen_length=12, stop=stops)
    for text, whole, cut, answer in zip(plain.texts, plain.completions, made.texts, made.completions, strict=True):
        ends = [text.find(stop) for stop in stops if stop in text]
        assert cut == text[: min(ends, default=None)]
        if ends:
            n = min(text.find(stop) + len(stop) for stop in stops if stop in text)
            assert answer == whole[:n]
    assert made.nfe.sum() < plain.nfe.sum()


def test_nothing_is_chosen_that_the_tokenizer_has_no_name_for():
    class Few(Letters):
        def __len__(self):
            return 5

    made = generate_causal(make_tiny(tokenizer=Few(), attention="causal", mask_id=None), PROMPTS, gen_length=8)
    assert {token for answer in made.completions for token in answer} <= {*range(5)}


def test_trees_that_reach_beyond_the_end_are_cut_and_the_store_makes_room(model):
    long = Scripted([[5] * 99] * 2, right=1.0, shape="star", size=200)
    made = generate_causal(model, PROMPTS[:2], long, gen_length=3)
    assert made.completions == generate_causal(model, PROMPTS[:2], gen_length=3).completions
    assert generate_causal(model, PROMPTS[:2], long, gen_length=1).drafted.sum() == 0


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("changes", "what"),
    [
        ({"k": 0, "draft": "ngram"}, "k=0 must be a whole number of at least 1"),
        ({"k": True, "draft": "ngram"}, "k=True must be"),
        ({"k": 3}, "k=3 is the length of drafts, but nothing drafts"),
        ({"k": 3, "draft": dllm.speculate.make("ngram")}, "k=3 must be given to Ngram"),
        ({"draft": "ngrm"}, "did you mean 'ngram'"),
        ({"draft": 7}, "draft=7 is neither a name nor a drafter nor a model; there are: ngram"),
        ({"block_length": 4}, "block_length=4 is about filling masks"),
        ({"diffusion_steps": 4}, "diffusion_steps=4 is about filling masks"),
        ({"tempreature": 1.0}, "did you mean 'temperature'"),
        ({"max_new_tokens": 3, "gen_length": 4}, "gen_length is given twice"),
        ({"gen_length": 200}, "the model's context is 128"),
        ({"gen_length": 0}, "gen_length=0 must be a whole number"),
        ({"verify": "typcal"}, "did you mean 'typical'"),
    ],
    ids=str,
)
def test_arguments_that_cannot_be_are_refused_in_one_line(model, changes, what):
    with pytest.raises(DllmError, match=what) as error:
        generate_causal(model, [3], **changes)
    assert "\n" not in str(error.value)


def test_models_are_sent_to_the_function_that_fits_them(tiny, model):
    with pytest.raises(DllmError, match=r"fills masks.*Give it to dllm\.generate\."):
        generate_causal(tiny(), [3])
    with pytest.raises(DllmError, match=r"cannot fill masks\. Give it to dllm\.generate_causal\."):
        generate(model, [3])
    with pytest.raises(DllmError, match="Linear is no model of ours"):
        generate_causal(torch.nn.Linear(2, 2), [3])
    foreign = wrap(transformers.LlamaForCausalLM(transformers.LlamaConfig(**SIZES)), mask_id=3)
    foreign.spec = dataclasses.replace(foreign.spec, attention="causal")
    with pytest.raises(DllmError, match="Foreign cannot use stored keys and values"):
        generate_causal(foreign, [3])


def test_a_model_that_returns_nan_is_told_apart():
    broken = make_tiny(attention="causal", mask_id=None)
    broken.embed.weight[7] = float("nan")
    with pytest.raises(DllmError, match="returned NaN logits for prompt 1 at column 2"):
        generate_causal(broken, [[3], [5, 7]], gen_length=4)
    for verify in ("match", "ratio", "typical"):
        with pytest.raises(DllmError, match="returned NaN logits for prompt 0"):
            generate_causal(broken, [[3]], Wrong(7), verify=verify, gen_length=9, eos_early_stop=False)


class Wrong(Scripted):
    """Drafts one token always, even one that the target cannot take."""

    def start(self, context):
        made = super().start(context)
        made.draft = lambda rows: [dllm.speculate.Tree.chain([self.answers])] * len(rows)
        return made


def test_a_drafter_that_breaks_the_protocol_is_named(model):
    with pytest.raises(DllmError, match=r"drafted the token id 40; the target's vocabulary has 40"):
        generate_causal(model, [3], Wrong(40), gen_length=5)

    class Silent(Scripted):
        def start(self, context):
            made = super().start(context)
            made.draft = lambda _: []
            return made

    with pytest.raises(DllmError, match="returned 0 trees for 1 rows"):
        generate_causal(model, [3], Silent([]), gen_length=5)
